//! Events that are not stored: the rows W-05, W-06 and E-01 to E-35 of the conformance checklist
//! (grpc-api.md §13), over the wire against the real program.
#![expect(clippy::expect_used, reason = "a test fails by panicking with what it saw")]

use std::collections::BTreeSet;
use std::time::Duration;

use kubemq_proto::kubemq::subscribe::SubscribeType;
use kubemq_proto::kubemq::{Event, EventReceive, Subscribe};
use kubemq_tests::client::{MANAGEMENT, bodies};
use kubemq_tests::errors::sentence;
use kubemq_tests::live::{Subscribed, event, subscribe, texts};
use kubemq_tests::{Client, assert_soon, connected, timed};
use tonic::Code;

/// Long enough for an event to arrive that must not.
const SILENCE: Duration = Duration::from_millis(500);

async fn assert_refused(client: &Client, event: Event, text: &str) {
    let status = client.send_event(event.clone()).await.expect_err(text);
    assert_eq!((status.code(), status.message()), (Code::Internal, text), "{event:?}");
}

async fn assert_not_subscribed(client: &Client, subscribe: Subscribe, text: &str) {
    let refused = match client.try_events(subscribe.clone()).await {
        Ok(mut subscribed) => subscribed.try_next().await.map(drop),
        Err(status) => Err(status),
    };
    let status = refused.expect_err(text);
    assert_eq!((status.code(), status.message()), (Code::Internal, text), "{subscribe:?}");
}

fn numbers(count: u32) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

#[tokio::test]
async fn w_05_ten_mebibytes_arrive_intact() {
    let (_server, client) = connected().await;
    let body: Vec<u8> = (0..10 << 20_u32).map(|position| u8::try_from(position % 251).unwrap()).collect();
    let mut events = client.events("w-05", "").await;
    client.publish("w-05", [body.clone()]).await;
    assert!(events.next().await.body == body);
}

#[tokio::test]
async fn w_06_a_message_beyond_the_limit_is_resource_exhausted() {
    let (_server, client) = connected().await;
    let status = client.send_event(event("w-06", vec![0; 104_857_601])).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    client.publish("w-06", ["goes on"]).await;
}

#[tokio::test]
async fn an_event_that_delivery_would_make_too_large_is_not_sent() {
    let (_server, client) = connected().await;
    let mut events = client.events("edge", "").await;
    let result = client.send_event(event("edge", vec![0; 104_857_600 - 100])).await.unwrap();
    assert_eq!((result.sent, result.error.as_str()), (false, "nats: maximum payload exceeded"));
    client.publish("edge", ["goes on"]).await;
    assert_eq!(texts(&events.take(1).await), ["goes on"]);
}

#[tokio::test]
async fn e_01_a_client_id_is_needed() {
    let (_server, client) = connected().await;
    assert_refused(&client, Event { client_id: String::new(), ..event("e-01", "b") }, sentence(101)).await;
}

#[tokio::test]
async fn e_02_a_channel_is_needed() {
    let (_server, client) = connected().await;
    assert_refused(&client, event("", "b"), sentence(102)).await;
}

#[tokio::test]
async fn e_03_a_channel_does_not_end_with_a_dot() {
    let (_server, client) = connected().await;
    assert_refused(&client, event("a.", "b"), sentence(119)).await;
}

#[tokio::test]
async fn e_04_a_channel_has_no_white_space() {
    let (_server, client) = connected().await;
    for channel in ["a b", "a\tb", "a\rb", "a\nb", "a\0b", "a\u{2003}b"] {
        assert_refused(&client, event(channel, "b"), sentence(108)).await;
    }
}

#[tokio::test]
async fn e_05_a_channel_to_send_to_has_no_wildcards() {
    let (_server, client) = connected().await;
    for channel in ["a.*", "a.>", "a*b"] {
        assert_refused(&client, event(channel, "b"), sentence(107)).await;
    }
}

#[tokio::test]
async fn e_06_tags_are_no_payload() {
    let (_server, client) = connected().await;
    let tags = [("k".to_owned(), "v".to_owned())].into();
    assert_refused(&client, Event { tags, ..event("e-06", "") }, sentence(110)).await;
}

#[tokio::test]
async fn e_07_dots_are_told_before_spaces_and_wildcards() {
    let (_server, client) = connected().await;
    assert_refused(&client, event("a *.", "b"), sentence(119)).await;
    assert_refused(&client, event("a *", "b"), sentence(108)).await;
}

#[tokio::test]
async fn e_08_the_client_id_is_told_before_the_channel() {
    let (_server, client) = connected().await;
    assert_refused(&client, Event { client_id: String::new(), ..event("", "") }, sentence(101)).await;
}

#[tokio::test]
async fn e_09_metadata_alone_is_sent() {
    let (_server, client) = connected().await;
    let result = client.send_event(Event { metadata: "m".into(), ..event("e-09", "") }).await.unwrap();
    assert!(result.sent, "{result:?}");
}

#[tokio::test]
async fn e_10_a_missing_id_is_made() {
    let (_server, client) = connected().await;
    let mut events = client.events("e-10", "").await;
    let result = client.send_event(Event { event_id: String::new(), ..event("e-10", "b") }).await.unwrap();
    assert!(result.sent && result.error.is_empty(), "{result:?}");
    assert_eq!(result.event_id.len(), 22, "{result:?}");
    assert!(result.event_id.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{result:?}");
    assert_eq!(events.next().await.event_id, result.event_id);
}

#[tokio::test]
async fn e_11_an_id_is_kept() {
    let (_server, client) = connected().await;
    let mut events = client.events("e-11", "").await;
    let result = client.send_event(Event { event_id: "x1".into(), ..event("e-11", "b") }).await.unwrap();
    assert_eq!(result.event_id, "x1");
    assert_eq!(events.next().await.event_id, "x1");
}

#[tokio::test]
async fn e_12_nobody_needs_to_listen() {
    let (_server, client) = connected().await;
    let (result, took) = timed(Box::pin(client.send_event(event("e-12", "b")))).await;
    assert!(result.unwrap().sent);
    assert_soon(took);
}

#[tokio::test]
async fn e_13_an_event_arrives_as_it_was_sent() {
    let (_server, client) = connected().await;
    let mut events = client.events("e-13", "").await;
    let sent = Event {
        metadata: "meta".into(),
        tags: [("k".to_owned(), "v".to_owned()), ("empty".to_owned(), String::new())].into(),
        ..event("e-13", "body")
    };
    client.send_event(sent.clone()).await.unwrap();
    let Event { event_id, channel, metadata, body, tags, .. } = sent;
    let expected = EventReceive { event_id, channel, metadata, body, tags, timestamp: 0, sequence: 0 };
    assert_eq!(events.next().await, expected);
}

#[tokio::test]
async fn e_14_every_subscriber_gets_every_event_in_order() {
    let (_server, client) = connected().await;
    let mut subscribers = [client.events("e-14", "").await, client.events("e-14", "").await];
    client.publish("e-14", numbers(100)).await;
    for events in &mut subscribers {
        assert_eq!(texts(&events.take(100).await), numbers(100));
    }
}

/// Returns what the members of a group got, each its own, after everything has arrived.
async fn shared(members: &mut [Subscribed<EventReceive>], count: usize) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for events in members {
        all.push(texts(&events.rest(SILENCE).await));
    }
    let mut together: Vec<String> = all.concat();
    assert_eq!(together.len(), count, "each event once");
    together.sort();
    together.dedup();
    assert_eq!(together.len(), count, "no event twice");
    all
}

#[tokio::test]
async fn e_15_a_group_shares() {
    let (_server, client) = connected().await;
    let mut members = [client.events("e-15", "g").await, client.events("e-15", "g").await];
    let stream = client.events_stream().await;
    for number in numbers(1000) {
        stream.send(event("e-15", number)).await;
    }
    let all = shared(&mut members, 1000).await;
    assert!(all.iter().all(|own| !own.is_empty()), "{:?}", all.iter().map(Vec::len).collect::<Vec<_>>());
}

#[tokio::test]
async fn e_16_each_group_and_who_has_none_gets_a_copy() {
    let (_server, client) = connected().await;
    let mut first = [client.events("e-16", "g1").await, client.events("e-16", "g1").await];
    let mut second = [client.events("e-16", "g2").await, client.events("e-16", "g2").await];
    let mut single = client.events("e-16", "").await;
    client.publish("e-16", numbers(50)).await;
    assert_eq!(texts(&single.take(50).await), numbers(50));
    shared(&mut first, 50).await;
    shared(&mut second, 50).await;
}

#[tokio::test]
async fn a_group_on_overlapping_patterns_is_one_group() {
    let (_server, client) = connected().await;
    let mut members = [client.events("overlap.*", "g").await, client.events("overlap.>", "g").await];
    client.publish("overlap.x", numbers(100)).await;
    shared(&mut members, 100).await;
    client.publish("overlap.x.y", ["deep"]).await;
    assert_eq!(texts(&members[1].take(1).await), ["deep"]);
}

async fn sent_to(client: &Client, pattern: &str, channels: &[&str]) -> Vec<String> {
    let mut events = client.events(pattern, "").await;
    for channel in channels {
        client.publish(channel, ["b"]).await;
    }
    events.rest(SILENCE).await.into_iter().map(|event| event.channel).collect()
}

#[tokio::test]
async fn e_17_a_star_is_one_part() {
    let (_server, client) = connected().await;
    let got = sent_to(&client, "e-17.*", &["e-17.b", "e-17", "e-17.b.c"]).await;
    assert_eq!(got, ["e-17.b"]);
}

#[tokio::test]
async fn e_18_the_rest_is_one_part_or_more() {
    let (_server, client) = connected().await;
    let got = sent_to(&client, "e-18.>", &["e-18", "e-18.b", "e-18.b.c"]).await;
    assert_eq!(got, ["e-18.b", "e-18.b.c"]);
}

#[tokio::test]
async fn e_19_a_star_in_the_middle() {
    let (_server, client) = connected().await;
    let got = sent_to(&client, "e-19.*.c", &["e-19.x.c", "e-19.x.y"]).await;
    assert_eq!(got, ["e-19.x.c"]);
}

#[tokio::test]
async fn wildcards_are_whole_parts_at_their_place() {
    let (_server, client) = connected().await;
    for pattern in ["glued*", "glued*.>", "glued.>.x"] {
        assert_eq!(sent_to(&client, pattern, &["glued", "gluedx", "glued.x", "glued.y.x"]).await, [""; 0], "{pattern}");
    }
}

#[tokio::test]
async fn e_20_a_client_id_may_subscribe_twice() {
    let (_server, client) = connected().await;
    let mut subscribers = [client.events("e-20", "").await, client.events("e-20", "").await];
    client.publish("e-20", ["b"]).await;
    for events in &mut subscribers {
        assert_eq!(events.next().await.channel, "e-20");
    }
}

#[tokio::test]
async fn e_21_only_events_are_subscribed_to_here() {
    let (_server, client) = connected().await;
    for kind in [SubscribeType::Undefined, SubscribeType::Commands, SubscribeType::Queries] {
        assert_not_subscribed(&client, subscribe(kind, "e-21", ""), sentence(207)).await;
        let nameless = Subscribe { client_id: String::new(), ..subscribe(kind, "", "") };
        assert_not_subscribed(&client, nameless, sentence(207)).await;
    }
}

#[tokio::test]
async fn e_22_a_subscriber_has_a_client_id() {
    let (_server, client) = connected().await;
    let nameless = Subscribe { client_id: String::new(), ..subscribe(SubscribeType::Events, "e-22", "") };
    assert_not_subscribed(&client, nameless, sentence(101)).await;
}

#[tokio::test]
async fn e_23_a_subscriber_has_a_channel() {
    let (_server, client) = connected().await;
    let long = "x".repeat(40_000);
    let rows = [("", 102), (MANAGEMENT, 102), ("a.", 119), ("a b", 108), ("a\tb", 108), (long.as_str(), 108)];
    for (channel, number) in rows {
        assert_not_subscribed(&client, subscribe(SubscribeType::Events, channel, ""), sentence(number)).await;
    }
    assert_refused(&client, event(MANAGEMENT, "b"), sentence(102)).await;
}

#[tokio::test]
async fn e_24_what_is_not_stored_has_no_start() {
    let (_server, client) = connected().await;
    let start = Subscribe { events_store_type_data: 1, ..subscribe(SubscribeType::Events, "e-24", "") };
    assert_not_subscribed(&client, start, sentence(118)).await;
}

#[tokio::test]
async fn e_25_what_was_sent_before_is_gone() {
    let (_server, client) = connected().await;
    client.publish("e-25", ["before"]).await;
    let mut events = client.events("e-25", "").await;
    client.publish("e-25", ["after"]).await;
    assert_eq!(texts(&events.rest(SILENCE).await), ["after"]);
}

#[tokio::test]
async fn e_26_a_subject_has_no_empty_part() {
    let (_server, client) = connected().await;
    for channel in ["a..b", ".a"] {
        let subscribe = subscribe(SubscribeType::Events, channel, "");
        assert_not_subscribed(&client, subscribe, "nats: invalid subject").await;
        // Sending there succeeds, and nobody gets it.
        let mut all = client.events(">", "").await;
        client.publish(channel, ["nobody"]).await;
        assert!(!texts(&all.rest(SILENCE).await).contains(&"nobody".to_owned()));
    }
}

#[tokio::test]
async fn e_27_a_group_has_no_white_space() {
    let (_server, client) = connected().await;
    let subscribe = subscribe(SubscribeType::Events, "e-27", "g 1");
    assert_not_subscribed(&client, subscribe, "nats: invalid queue name").await;
}

#[tokio::test]
async fn e_28_what_is_sent_is_not_answered() {
    let (_server, client) = connected().await;
    let mut events = client.events("e-28", "").await;
    let mut stream = client.events_stream().await;
    for number in numbers(10) {
        stream.send(event("e-28", number)).await;
    }
    assert_eq!(texts(&events.take(10).await), numbers(10));
    stream.stays_silent(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn e_29_what_is_refused_is_answered_and_the_stream_goes_on() {
    let (_server, client) = connected().await;
    let mut events = client.events("e-29", "").await;
    let mut stream = client.events_stream().await;
    let result = stream.ask(Event { event_id: String::new(), ..event("", "b") }).await;
    assert_eq!((result.event_id.as_str(), result.sent, result.error.as_str()), ("", false, sentence(102)));
    let result = stream.ask(Event { event_id: "mine".into(), ..event("e-29", "") }).await;
    assert_eq!((result.event_id.as_str(), result.sent, result.error.as_str()), ("mine", false, sentence(110)));
    stream.send(event("e-29", "good")).await;
    assert_eq!(texts(&events.take(1).await), ["good"]);
}

#[tokio::test]
async fn e_30_every_event_to_store_is_answered_in_order() {
    let (_server, client) = connected().await;
    let mut stream = client.events_stream().await;
    let mut ids = BTreeSet::new();
    for number in numbers(10) {
        stream.send(Event { event_id: String::new(), store: true, ..event("e-30", number) }).await;
    }
    for _ in 0..10 {
        let result = stream.next().await;
        assert_eq!((result.sent, result.error.as_str(), result.event_id.len()), (true, "", 22), "{result:?}");
        ids.insert(result.event_id);
    }
    assert_eq!(ids.len(), 10);
    let named: Vec<Event> = (0..10).map(|number| Event { store: true, ..event("e-30", number.to_string()) }).collect();
    for event in &named {
        stream.send(event.clone()).await;
    }
    for event in named {
        assert_eq!(stream.next().await.event_id, event.event_id);
    }
}

#[tokio::test]
async fn e_31_a_refusal_to_store_is_answered() {
    let (_server, client) = connected().await;
    let mut stream = client.events_stream().await;
    let result = stream.ask(Event { store: true, client_id: String::new(), ..event("e-31", "b") }).await;
    assert_eq!((result.sent, result.error.as_str()), (false, sentence(101)));
}

#[tokio::test]
async fn e_32_what_was_sent_before_a_half_close_arrives() {
    let (_server, client) = connected().await;
    let mut events = client.events("e-32", "").await;
    let mut stream = client.events_stream().await;
    for number in numbers(5) {
        stream.send(event("e-32", number)).await;
    }
    stream.half_close();
    stream.ends().await;
    assert_eq!(texts(&events.take(5).await), numbers(5));
}

#[tokio::test]
async fn e_33_a_stream_mixes_what_is_stored_and_what_is_not() {
    let (_server, client) = connected().await;
    let mut live = [client.events("e-33-a", "").await, client.events("e-33-b", "").await];
    let new_only = Subscribe { events_store_type_data: 1, ..subscribe(SubscribeType::EventsStore, "e-33-a", "") };
    let reader = Subscribe { client_id: "e-33".into(), ..new_only };
    let mut stored = client.try_events(reader).await.unwrap();
    let mut stream = client.events_stream().await;
    for number in numbers(20) {
        stream.send(event("e-33-a", format!("live {number}"))).await;
        stream
            .send(Event { store: true, event_id: number.clone(), ..event("e-33-a", format!("stored {number}")) })
            .await;
        stream.send(Event { event_id: format!("bad {number}"), ..event("e 33", "refused") }).await;
        stream.send(event("e-33-b", format!("live {number}"))).await;
    }
    for number in numbers(20) {
        let (kept, refused) = (stream.next().await, stream.next().await);
        assert_eq!((kept.event_id, kept.sent), (number.clone(), true), "results come in the order of the events");
        assert_eq!((refused.event_id, refused.error.as_str()), (format!("bad {number}"), sentence(108)));
    }
    let expected = |what: &str| numbers(20).iter().map(|number| format!("{what} {number}")).collect::<Vec<_>>();
    assert_eq!(texts(&stored.take(20).await), expected("stored"));
    for events in &mut live {
        assert_eq!(texts(&events.take(20).await), expected("live"));
        events.stays_silent(SILENCE).await;
    }
}

#[tokio::test]
async fn a_stream_mixes_channels_and_keeps_the_order_of_each() {
    let (_server, client) = connected().await;
    let names: BTreeSet<String> = (0..5).map(|number| format!("mixed-{number}")).collect();
    let mut subscribers = Vec::new();
    for name in &names {
        subscribers.push(client.events(name, "").await);
    }
    let stream = client.events_stream().await;
    for number in numbers(100) {
        for name in &names {
            stream.send(event(name, number.clone())).await;
        }
    }
    for events in &mut subscribers {
        assert_eq!(texts(&events.take(100).await), numbers(100));
    }
}

#[tokio::test]
async fn e_34_who_stops_reading_delays_nobody() {
    let (server, client) = connected().await;
    // Connections of their own: what one does not read must not stand in the other's way.
    let stalled = Client::connect(&server.grpc()).await.events("e-34", "").await;
    let mut reader = Client::connect(&server.grpc()).await.events("e-34", "").await;
    let stream = client.events_stream().await;
    let body = vec![7_u8; 10_000];
    for _ in 0..20 {
        for _ in 0..100 {
            stream.send(event("e-34", body.clone())).await;
        }
        // Twenty megabytes pass one that reads none of them.
        let (taken, took) = timed(Box::pin(reader.take(100))).await;
        assert!(taken.iter().all(|event| event.body == body));
        assert_soon(took);
    }
    drop(stalled);
}

#[tokio::test]
async fn e_35_patterns_do_not_mix() {
    let (_server, client) = connected().await;
    let mut commands = client.requests(SubscribeType::Commands, "e-35", "").await;
    let mut queries = client.requests(SubscribeType::Queries, "e-35", "").await;
    let new_only = Subscribe { events_store_type_data: 1, ..subscribe(SubscribeType::EventsStore, "e-35", "") };
    let mut stored = client.try_events(Subscribe { client_id: "e-35".into(), ..new_only }).await.unwrap();
    let mut events = client.events("e-35", "").await;
    client.fill("e-35", ["queue"]).await;
    client.publish("e-35", ["event"]).await;
    assert_eq!(texts(&events.rest(SILENCE).await), ["event"]);
    assert_eq!(bodies(&client.take("e-35", 1).await), ["queue"]);
    commands.stays_silent(SILENCE).await;
    queries.stays_silent(SILENCE).await;
    stored.stays_silent(SILENCE).await;
}

#[tokio::test]
async fn r_01_a_semicolon_is_a_letter_like_any_other() {
    let (_server, client) = connected().await;
    let mut literal = client.events("r-01;other", "").await;
    let mut parts = [client.events("r-01", "").await, client.events("other", "").await];
    client.publish("r-01;other", ["b"]).await;
    assert_eq!(texts(&literal.take(1).await), ["b"]);
    for part in &mut parts {
        part.stays_silent(SILENCE).await;
    }
}

#[tokio::test]
async fn nothing_comes_after_a_subscription_was_dropped() {
    let (_server, client) = connected().await;
    let other = client.events("dropped", "g").await;
    let mut stays = client.events("dropped", "g").await;
    drop(other);
    // The server learns of it by a reset: until then the group has two members.
    kubemq_tests::wait_until("the group has one member", Duration::from_secs(20), async || {
        client.publish("dropped", numbers(20)).await;
        (stays.rest(SILENCE).await.len() == 20).then_some(())
    })
    .await;
}

#[tokio::test]
async fn long_and_odd_names_are_names() {
    let (_server, client) = connected().await;
    let longest = format!("{}{}", "n".repeat(255), "ö");
    for name in ["a/b:c", "größe.ü", longest.as_str()] {
        let mut events = client.events(name, "").await;
        client.publish(name, ["b"]).await;
        assert_eq!(events.next().await.channel, name);
    }
}
