//! Stored events: rows S-01 to S-34 of the conformance checklist, one test per row, over the wire against the real
//! program. Rows of time are asked with shorter pauses where the pause itself is not what they are about.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking with what it saw")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kubemq_proto::kubemq::subscribe::EventsStoreType as From;
use kubemq_proto::kubemq::{Event, EventReceive, Subscribe};
use kubemq_tests::stored::{Reading, from, from_first, stored, vanishing};
use kubemq_tests::wait::{SOON, wall};
use kubemq_tests::{Client, Server, connected, sleep, wait_until};
use tonic::{Code, Status};

const SECOND: i64 = 1_000_000_000;
/// Long enough for an event to come that should not.
const SILENCE: Duration = Duration::from_millis(300);
const INVALID_CLIENT: &str = "stan: invalid clientID: only alphanumeric and `-` or `_` characters allowed";
const REGISTERED: &str = "stan: clientID already registered";

async fn refused(client: &Client, subscribe: Subscribe) -> Status {
    let Err(status) = client.try_read(subscribe).await else { panic!("the subscription was accepted") };
    status
}

async fn assert_refused(subscribe: Subscribe, text: &str) {
    let (_server, client) = connected().await;
    let status = refused(&client, subscribe).await;
    assert_eq!((status.code(), status.message()), (Code::Internal, text));
}

fn in_group(subscribe: Subscribe, group: &str) -> Subscribe {
    Subscribe { group: group.into(), ..subscribe }
}

/// Ends a subscription and waits until the server has noticed: a client may subscribe again only then.
async fn leave(client: &Client, reading: Reading, subscribe: &Subscribe) {
    drop(reading);
    // Refused for as long as the other is there, and it ends at once without having taken anything.
    let again = Subscribe { events_store_type_data: From::StartNewOnly as i32, ..subscribe.clone() };
    wait_until("the client to be free", SOON, async || client.try_read(again.clone()).await.ok().map(drop)).await;
}

#[tokio::test]
async fn s_01_an_undefined_start_is_111() {
    let text = "Error 111: invalid subscription type, cannot be undefined or 0";
    assert_refused(from("s-01", "c", From::Undefined, 0), text).await;
}

#[tokio::test]
async fn s_02_a_start_at_no_sequence_is_112() {
    let text = "Error 112: invalid subscription type start at sequence value, cannot by 0 or negative";
    for value in [0, -1] {
        assert_refused(from("s-02", "c", From::StartAtSequence, value), text).await;
    }
}

#[tokio::test]
async fn s_03_a_start_at_no_time_is_113() {
    let text = "Error 113: invalid subscription type start at time value, cannot by 0 or negative";
    assert_refused(from("s-03", "c", From::StartAtTime, 0), text).await;
}

#[tokio::test]
async fn s_04_a_start_at_no_time_delta_is_114() {
    let text = "Error 114: invalid subscription type start at time delta value, cannot by 0 or negative";
    assert_refused(from("s-04", "c", From::StartAtTimeDelta, 0), text).await;
}

#[tokio::test]
async fn s_05_wildcards_are_107() {
    assert_refused(from_first("a.*", "c"), "Error 107: invalid channel value, no wildcards are allowed").await;
}

#[tokio::test]
async fn s_06_a_client_id_with_a_dot_is_no_client_id() {
    assert_refused(from_first("s-06", "a.b"), INVALID_CLIENT).await;
}

#[tokio::test]
async fn s_07_an_empty_client_id_is_101() {
    assert_refused(from_first("s-07", ""), "Error 101: invalid clientID value, cannot be empty").await;
}

#[tokio::test]
async fn s_08_the_channel_is_looked_at_before_the_start() {
    assert_refused(from("", "c", From::Undefined, 0), "Error 102: invalid channel value, cannot be empty").await;
}

#[tokio::test]
async fn s_09_from_the_first_event_on_and_then_what_comes() {
    let (_server, client) = connected().await;
    client.store("s-09", 1..=10).await;
    let mut reading = client.read(from_first("s-09", "c")).await;
    for number in 1..=10 {
        let event = reading.next().await;
        assert_eq!((event.sequence, event.channel.as_str()), (number, "s-09"));
        assert_eq!(event.body, number.to_string());
        assert!((wall() - event.timestamp).abs() < 600 * SECOND, "{}", event.timestamp);
    }
    client.store("s-09", [11]).await;
    assert_eq!(reading.sequences(1).await, [11]);
}

#[tokio::test]
async fn s_10_from_the_last_event_on() {
    let (_server, client) = connected().await;
    client.store("s-10", 1..=10).await;
    let mut reading = client.read(from("s-10", "c", From::StartFromLast, 0)).await;
    client.store("s-10", [11]).await;
    assert_eq!(reading.sequences(2).await, [10, 11]);
}

#[tokio::test]
async fn s_11_only_new_events() {
    let (_server, client) = connected().await;
    client.store("s-11", 1..=10).await;
    let mut reading = client.read(from("s-11", "c", From::StartNewOnly, 0)).await;
    client.store("s-11", [11]).await;
    assert_eq!(reading.sequences(1).await, [11]);
    reading.stays_silent(SILENCE).await;
}

#[tokio::test]
async fn s_12_from_a_sequence_on() {
    let (_server, client) = connected().await;
    client.store("s-12", 1..=10).await;
    let mut reading = client.read(from("s-12", "c", From::StartAtSequence, 4)).await;
    assert_eq!(reading.sequences(7).await, (4..=10).collect::<Vec<_>>());
    reading.stays_silent(SILENCE).await;
}

#[tokio::test]
async fn s_13_a_sequence_that_does_not_exist_yet_means_only_new_events() {
    let (_server, client) = connected().await;
    client.store("s-13", 1..=10).await;
    let mut reading = client.read(from("s-13", "c", From::StartAtSequence, 99)).await;
    reading.stays_silent(SILENCE).await;
    client.store("s-13", [11]).await;
    assert_eq!(reading.sequences(1).await, [11]);
    // As SDKs resume: behind the last event that they saw.
    let mut resumed = client.read(from("s-13", "d", From::StartAtSequence, 12)).await;
    client.store("s-13", [12]).await;
    assert_eq!(resumed.sequences(1).await, [12]);
}

/// Stores five events, a pause around a moment, and five more; returns the moment.
async fn around_a_pause(client: &Client, channel: &str) -> i64 {
    client.store(channel, 1..=5).await;
    sleep(Duration::from_secs(2)).await;
    let moment = wall();
    sleep(Duration::from_millis(1100)).await;
    client.store(channel, 6..=10).await;
    moment
}

#[tokio::test]
async fn s_14_from_a_time_in_nanoseconds_on() {
    let (_server, client) = connected().await;
    let moment = around_a_pause(&client, "s-14").await;
    let mut reading = client.read(from("s-14", "c", From::StartAtTime, moment)).await;
    assert_eq!(reading.sequences(5).await, [6, 7, 8, 9, 10]);
    let mut all = client.read(from("s-14", "d", From::StartAtTime, moment - 60 * SECOND)).await;
    assert_eq!(all.sequences(10).await, (1..=10).collect::<Vec<_>>());
    // Exactly the time of an event is that event.
    let mut events = client.read(from_first("s-14", "e")).await;
    let third = loop {
        let event = events.next().await;
        if event.sequence == 3 {
            break event.timestamp;
        }
    };
    let mut reading = client.read(from("s-14", "f", From::StartAtTime, third)).await;
    assert!(reading.next().await.sequence <= 3);
    let mut reading = client.read(from("s-14", "g", From::StartAtTime, third + SECOND)).await;
    assert_eq!(reading.sequences(1).await, [6]);
}

#[tokio::test]
async fn s_15_from_some_seconds_ago_on() {
    let (_server, client) = connected().await;
    client.store("s-15", 1..=5).await;
    sleep(Duration::from_secs(5)).await;
    client.store("s-15", 6..=10).await;
    let mut reading = client.read(from("s-15", "c", From::StartAtTimeDelta, 3)).await;
    assert_eq!(reading.sequences(5).await, [6, 7, 8, 9, 10]);
    let mut reading = client.read(from("s-15", "d", From::StartAtTimeDelta, i64::MAX)).await;
    assert_eq!(reading.sequences(1).await, [1]);
}

#[tokio::test]
async fn s_16_the_last_event_of_an_empty_channel_is_the_first_to_come() {
    let (_server, client) = connected().await;
    let mut reading = client.read(from("s-16", "c", From::StartFromLast, 0)).await;
    client.store("s-16", [1]).await;
    assert_eq!(reading.sequences(1).await, [1]);
}

#[tokio::test]
async fn s_17_a_time_in_the_future_means_only_new_events() {
    let (_server, client) = connected().await;
    client.store("s-17", [1]).await;
    let mut reading = client.read(from("s-17", "c", From::StartAtTime, wall() + 3600 * SECOND)).await;
    client.store("s-17", [2]).await;
    assert_eq!(reading.sequences(1).await, [2]);
}

#[tokio::test]
async fn s_18_from_a_time_in_seconds_on() {
    let (_server, client) = connected().await;
    let moment = around_a_pause(&client, "s-18").await;
    // A second, rounded up, still lies in the pause.
    let mut reading = client.read(from("s-18", "c", From::StartAtTime, moment / SECOND + 1)).await;
    assert_eq!(reading.sequences(5).await, [6, 7, 8, 9, 10]);
}

/// Reads five events as `subscribe`, leaves, and stores three more.
async fn read_five_and_leave(client: &Client, channel: &str, subscribe: &Subscribe) {
    client.store(channel, 1..=5).await;
    let mut reading = client.read(subscribe.clone()).await;
    assert_eq!(reading.sequences(5).await, [1, 2, 3, 4, 5]);
    leave(client, reading, subscribe).await;
    client.store(channel, 6..=8).await;
}

#[tokio::test]
async fn s_19_a_client_that_returns_goes_on_where_it_was() {
    let (_server, client) = connected().await;
    read_five_and_leave(&client, "s-19", &from_first("s-19", "c1")).await;
    let mut reading = client.read(from_first("s-19", "c1")).await;
    assert_eq!(reading.sequences(3).await, [6, 7, 8]);
    reading.stays_silent(SILENCE).await;
}

#[tokio::test]
async fn s_20_also_when_it_asks_for_new_events_only() {
    let (_server, client) = connected().await;
    read_five_and_leave(&client, "s-20", &from_first("s-20", "c1")).await;
    let mut reading = client.read(from("s-20", "c1", From::StartNewOnly, 0)).await;
    assert_eq!(reading.sequences(3).await, [6, 7, 8]);
}

#[tokio::test]
async fn s_21_another_client_begins_where_it_asks() {
    let (_server, client) = connected().await;
    read_five_and_leave(&client, "s-21", &from_first("s-21", "c1")).await;
    let mut reading = client.read(from_first("s-21", "c2")).await;
    assert_eq!(reading.sequences(8).await, (1..=8).collect::<Vec<_>>());
}

#[tokio::test]
async fn s_22_a_group_goes_on_where_it_was_whoever_its_members_are() {
    let (_server, client) = connected().await;
    let (first, second) = (in_group(from_first("s-22", "c1"), "g"), in_group(from_first("s-22", "c2"), "g"));
    client.store("s-22", 1..=5).await;
    let mut reading = client.read(first).await;
    assert_eq!(reading.sequences(5).await, [1, 2, 3, 4, 5]);
    drop(reading);
    // The end of a stream arrives before what the same connection sends next; a little later is noticed, too.
    client.store("s-22", 6..=8).await;
    let mut reading = client.read(second).await;
    assert_eq!(reading.sequences(3).await, [6, 7, 8]);
    reading.stays_silent(SILENCE).await;
}

/// Reads until nothing comes any more.
async fn drain(mut reading: Reading) -> Vec<EventReceive> {
    let mut events = Vec::new();
    while let Some(event) = reading.next_within(Duration::from_secs(2)).await.unwrap() {
        events.push(event);
    }
    events
}

fn assert_shared(taken: &[Vec<EventReceive>], count: u64) {
    for events in taken {
        assert!(events.is_sorted_by_key(|event| event.sequence), "each member's events are in order");
    }
    let sum: usize = taken.iter().map(Vec::len).sum();
    let all: BTreeSet<u64> = taken.iter().flatten().map(|event| event.sequence).collect();
    assert_eq!((sum as u64, all), (count, (1..=count).collect()));
}

#[tokio::test]
async fn s_23_each_event_goes_to_one_member_of_a_group() {
    let (_server, client) = connected().await;
    let member = |client: &str| in_group(from_first("s-23", client), "g");
    let (one, two) = (client.read(member("c1")).await, client.read(member("c2")).await);
    let ((), one, two) = tokio::join!(client.store("s-23", 1..=100), drain(one), drain(two));
    assert!(!one.is_empty() && !two.is_empty(), "{} and {}", one.len(), two.len());
    assert_shared(&[one, two], 100);
}

#[tokio::test]
async fn s_24_a_client_reads_a_channel_once_alone() {
    let (_server, client) = connected().await;
    let mut first = client.read(from_first("s-24", "c1")).await;
    let status = refused(&client, from_first("s-24", "c1")).await;
    assert_eq!((status.code(), status.message()), (Code::Internal, REGISTERED));
    client.store("s-24", [1]).await;
    assert_eq!(first.sequences(1).await, [1]);
}

#[tokio::test]
async fn s_24b_a_client_may_be_two_members_of_a_group() {
    let (_server, client) = connected().await;
    let member = || in_group(from_first("s-24b", "c1"), "g");
    let (one, two) = (client.read(member()).await, client.read(member()).await);
    let ((), one, two) = tokio::join!(client.store("s-24b", 1..=20), drain(one), drain(two));
    assert_shared(&[one, two], 20);
}

#[tokio::test]
async fn s_25_a_client_reads_two_channels() {
    let (_server, client) = connected().await;
    let (mut a, mut b) = (client.read(from_first("s-25a", "c1")).await, client.read(from_first("s-25b", "c1")).await);
    client.store("s-25a", [1]).await;
    client.store("s-25b", [1]).await;
    assert_eq!((a.sequences(1).await, b.sequences(1).await), (vec![1], vec![1]));
}

#[tokio::test]
async fn s_26_a_client_that_left_may_return() {
    let (server, _client) = connected().await;
    let first = Client::connect(&server.grpc()).await;
    let reading = first.read(from_first("s-26", "c1")).await;
    // The whole connection ends.
    drop((reading, first));
    sleep(Duration::from_secs(1)).await;
    let second = Client::connect(&server.grpc()).await;
    let mut reading = second.read(from_first("s-26", "c1")).await;
    second.store("s-26", [1]).await;
    assert_eq!(reading.sequences(1).await, [1]);
}

#[tokio::test]
async fn s_27_a_client_has_one_place_alone_and_its_groups_others() {
    let (_server, client) = connected().await;
    client.store("s-27", 1..=3).await;
    let mut reading = client.read(in_group(from_first("s-27", "c1"), "g")).await;
    assert_eq!(reading.sequences(3).await, [1, 2, 3]);
    drop(reading);
    let mut alone = client.read(from_first("s-27", "c1")).await;
    assert_eq!(alone.sequences(3).await, [1, 2, 3]);
    let mut other = client.read(in_group(from_first("s-27", "c1"), "h")).await;
    assert_eq!(other.sequences(3).await, [1, 2, 3]);
}

#[tokio::test]
async fn s_28_what_was_stored_is_what_is_read() {
    let (_server, client) = connected().await;
    let tags = BTreeMap::from([("k".to_owned(), "v".to_owned()), ("empty".to_owned(), String::new())]);
    let sent = Event { event_id: "mine".into(), metadata: "meta".into(), tags, ..stored("s-28", "body") };
    let result = client.store_event(sent.clone()).await;
    assert_eq!((result.event_id.as_str(), result.sent, result.error.as_str()), ("mine", true, ""));
    let generated = client.store_event(Event { event_id: String::new(), ..stored("s-28", vec![7; 3_000_000]) }).await;
    assert_eq!(generated.event_id.len(), 22);
    let mut reading = client.read(from_first("s-28", "c")).await;
    let event = reading.next().await;
    let Event { event_id, channel, metadata, body, tags, .. } = sent;
    let expected = EventReceive { event_id, channel, metadata, body, tags, sequence: 1, timestamp: event.timestamp };
    assert_eq!(event, expected);
    let large = reading.next().await;
    assert_eq!((large.event_id, large.body.len()), (generated.event_id, 3_000_000));
}

#[tokio::test]
async fn s_29_stored_events_survive_a_restart() {
    let mut server = Server::start().await;
    let client = Client::connect(&server.grpc()).await;
    client.store("s-29", 1..=20).await;
    server.kill();
    server.restart().await;
    let client = Client::connect(&server.grpc()).await;
    let mut reading = client.read(from_first("s-29", "new")).await;
    for number in 1..=20 {
        let event = reading.next().await;
        assert_eq!((event.sequence, event.body), (number, number.to_string().into()));
    }
    client.store("s-29", [21]).await;
    assert_eq!(reading.sequences(1).await, [21]);
}

#[tokio::test]
async fn s_30_a_client_goes_on_where_it_was_after_a_restart() {
    let mut server = Server::start().await;
    let client = Client::connect(&server.grpc()).await;
    client.store("s-30", 1..=5).await;
    let mut reading = client.read(from_first("s-30", "c1")).await;
    assert_eq!(reading.sequences(5).await, [1, 2, 3, 4, 5]);
    // The server is asked to stop: it notes what was taken.
    server.terminate();
    server.wait_exit(SOON).await;
    server.restart().await;
    let client = Client::connect(&server.grpc()).await;
    client.store("s-30", 6..=8).await;
    let mut reading = client.read(from_first("s-30", "c1")).await;
    assert_eq!(reading.sequences(3).await, [6, 7, 8]);
}

#[tokio::test]
async fn s_31_groups_may_read_channels_with_a_colon() {
    let (_server, client) = connected().await;
    let mut reading = client.read(in_group(from_first("s-31:b", "c1"), "g:1")).await;
    client.store("s-31:b", [1]).await;
    assert_eq!(reading.sequences(1).await, [1]);
}

#[tokio::test]
async fn s_32_a_channel_with_a_slash_is_stored() {
    let (_server, client) = connected().await;
    client.store("s-32/b", [1]).await;
    assert_eq!(client.read(from_first("s-32/b", "c")).await.sequences(1).await, [1]);
    // What can be stored nowhere is refused and not lost.
    let result = client.store_event(stored("s-32..b", "x")).await;
    assert_eq!((result.sent, result.error.as_str()), (false, "stan: invalid publish request"));
    assert_refused(from_first("s-32..b", "c"), "stan: invalid subject").await;
}

#[tokio::test]
async fn s_33_an_unknown_start_means_only_new_events() {
    let (_server, client) = connected().await;
    client.store("s-33", [1]).await;
    let unknown = Subscribe { events_store_type_data: 9, ..from_first("s-33", "c") };
    let mut reading = client.read(unknown).await;
    client.store("s-33", [2]).await;
    assert_eq!(reading.sequences(1).await, [2]);
}

#[tokio::test]
async fn s_34_what_a_lost_client_did_not_get_comes_again() {
    let (server, client) = connected().await;
    client.store("s-34", 1..=60).await;
    let address = server.grpc();
    let seen = vanishing(async move || {
        let lost = Client::connect(&address).await;
        let mut reading = lost.read(from_first("s-34", "c1")).await;
        let seen = reading.sequences(10).await;
        (seen, (reading, lost))
    });
    assert_eq!(seen.await, (1..=10).collect::<Vec<_>>());
    let mut reading =
        wait_until("the client to be free", SOON, async || client.try_read(from_first("s-34", "c1")).await.ok()).await;
    let mut again = reading.sequences(50).await;
    assert!(again[0] <= 11, "events 11 to {} are missing", again[0] - 1);
    while again.last() != Some(&60) {
        again.push(reading.next().await.sequence);
    }
    assert!(again.windows(2).all(|pair| pair[1] == pair[0] + 1), "{again:?}");
}
