//! The scenarios of events-store.

use crate::inbox::{Got, Inbox, PROBE, reconnecting, tag, together};
use crate::world::{World, body, list, must, texts, until};
use kubemq::{EventStore, EventStoreReceive, EventsStoreSubscription as Start, KubemqClient};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Plays a scenario; returns false when it is not one of these.
pub async fn play(id: &str, w: World) -> bool {
    match id {
        "store_send" => store_send(w).await,
        "store_stream" => store_stream(w).await,
        "store_new_only" => store_new_only(w).await,
        "store_first" => store_from(w, Start::StartFromFirst, 1).await,
        "store_last" => store_from(w, Start::StartFromLast, 10).await,
        "store_sequence" => store_from(w, Start::StartAtSequence(4), 4).await,
        "store_sequence_ahead" => store_sequence_ahead(w).await,
        "store_time" => store_time(w).await,
        "store_delta" => store_delta(w).await,
        "store_groups" => store_groups(w).await,
        "store_resume" => store_resume(w).await,
        "store_closed" => store_closed(w).await,
        "store_reconnect" => store_reconnect(w, "kill").await,
        "store_restart" => store_reconnect(w, "stop").await,
        _ => return false,
    }
    true
}

async fn follow(client: &KubemqClient, channel: &str, group: &str, start: Start) -> Inbox {
    let mut inbox = Inbox::default();
    let copy = inbox.clone();
    let on_event = move |event: EventStoreReceive| -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        let EventStoreReceive { id, sequence, timestamp, channel, metadata, body: bytes, tags } = event;
        copy.put(Got { id, channel, metadata, body: body(&bytes), tag: tag(&tags), sequence, timestamp });
        Box::pin(async {})
    };
    inbox.subscription =
        Some(Arc::new(must(client.subscribe_to_events_store(channel, group, start, on_event, None).await)));
    inbox
}

async fn store(client: &KubemqClient, channel: &str, bodies: &[String]) {
    for one in bodies {
        let result = must(client.publish_event_store(channel, one.as_bytes(), None, None).await);
        assert!(result.sent && result.error.is_empty(), "{result:?}");
    }
}

async fn store_send(w: World) {
    let client = w.client().await;
    let event = EventStore::builder().id("my-id").channel(&w.channel).metadata("metadata").body("body");
    let result = must(client.send_event_store(event.add_tag("key", "value").build()).await);
    assert!(result.sent && result.id == "my-id", "{result:?}");
    let inbox = follow(&client, &w.channel, "", Start::StartFromFirst).await;
    inbox.has(&list(&["body"])).await;
    let got = inbox.all().remove(0);
    assert_eq!((&*got.id, &*got.metadata, &*got.tag, &got.channel), ("my-id", "metadata", "value", &w.channel));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_nanos() as i64;
    assert!(got.sequence == 1 && (now - got.timestamp).abs() < 60_000_000_000, "{got:?}");
}

async fn store_stream(w: World) {
    let client = w.client().await;
    let mut stream = must(client.send_event_store_stream().await);
    let mut missing: BTreeSet<String> = texts(1, 100).into_iter().collect();
    for one in &texts(1, 100) {
        let event = EventStore::builder().id(one.as_str()).channel(&w.channel).body(one.as_str());
        must(stream.send(event.build()).await);
        // The SDK keeps 64 results at most.
        let result = tokio::time::timeout(Duration::from_secs(30), stream.results().recv()).await;
        let result = result.expect("a result in time").expect("an open stream");
        assert!(result.sent && missing.remove(&result.event_id), "{result:?}");
    }
    let inbox = follow(&client, &w.channel, "", Start::StartFromFirst).await;
    inbox.has(&texts(1, 100)).await;
}

/// Stores one message after the other until the subscriber gets one.
async fn first_new(w: &World, client: &KubemqClient, inbox: &Inbox) -> Got {
    let mut number = 0;
    until("a new event", async || {
        number += 1;
        store(client, &w.channel, &[format!("new {number}")]).await;
        inbox.all().first().cloned()
    })
    .await
}

async fn store_new_only(w: World) {
    let client = w.client().await;
    store(&client, &w.channel, &texts(1, 3)).await;
    let inbox = follow(&client, &w.channel, "", Start::StartNewOnly).await;
    let got = first_new(&w, &client, &inbox).await;
    assert!(got.body.starts_with("new") && got.sequence > 3, "{got:?}");
}

/// Stores ten, expects all from number `first` on, and then what is stored afterwards.
async fn store_from(w: World, start: Start, first: u32) {
    let client = w.client().await;
    store(&client, &w.channel, &texts(1, 10)).await;
    let inbox = follow(&client, &w.channel, "", start).await;
    inbox.has(&texts(first, 10)).await;
    store(&client, &w.channel, &texts(11, 12)).await;
    inbox.has(&texts(first, 12)).await;
    let sequences: Vec<u64> = inbox.all().iter().map(|got| got.sequence).collect();
    assert_eq!(sequences, (u64::from(first)..=12).collect::<Vec<_>>());
}

async fn store_sequence_ahead(w: World) {
    let client = w.client().await;
    store(&client, &w.channel, &texts(1, 3)).await;
    let inbox = follow(&client, &w.channel, "", Start::StartAtSequence(4)).await;
    let got = first_new(&w, &client, &inbox).await;
    assert!(got.body == "new 1" && got.sequence == 4, "{got:?}");
}

async fn store_time(w: World) {
    let client = w.client().await;
    store(&client, &w.channel, &texts(1, 5)).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let moment = SystemTime::now() - Duration::from_secs(1);
    store(&client, &w.channel, &texts(6, 10)).await;
    follow(&client, &w.channel, "", Start::StartAtTime(moment)).await.has(&texts(6, 10)).await;
}

async fn store_delta(w: World) {
    let client = w.client().await;
    store(&client, &w.channel, &texts(1, 5)).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    store(&client, &w.channel, &texts(6, 10)).await;
    let start = Start::StartAtTimeDelta(Duration::from_secs(3));
    follow(&client, &w.channel, "", start).await.has(&texts(6, 10)).await;
}

async fn store_groups(w: World) {
    let (one, two) = (w.client_named("one").await, w.client_named("two").await);
    let first = follow(&one, &w.channel, "group", Start::StartFromFirst).await;
    let second = follow(&two, &w.channel, "group", Start::StartFromFirst).await;
    until("both members", async || {
        store(&one, &w.channel, &list(&[PROBE])).await;
        (first.probed() && second.probed()).then_some(())
    })
    .await;
    store(&one, &w.channel, &texts(1, 100)).await;
    together(&texts(1, 100), &[&first, &second]).await;
    for member in [first, second] {
        assert!(member.all().is_sorted_by_key(|got| got.sequence), "not in order");
    }
}

async fn store_resume(w: World) {
    let (sender, client) = (w.client_named("sender").await, w.client_named("resumes").await);
    store(&sender, &w.channel, &texts(1, 5)).await;
    let inbox = follow(&client, &w.channel, "", Start::StartFromFirst).await;
    inbox.has(&texts(1, 5)).await;
    inbox.subscription.as_ref().expect("a subscription").unsubscribe().await;
    store(&sender, &w.channel, &texts(6, 8)).await;
    follow(&client, &w.channel, "", Start::StartFromFirst).await.has(&texts(6, 8)).await;
}

async fn store_closed(w: World) {
    let (sender, client) = (w.client_named("sender").await, w.client_named("closes").await);
    store(&sender, &w.channel, &texts(1, 5)).await;
    let inbox = follow(&client, &w.channel, "", Start::StartFromFirst).await;
    inbox.has(&texts(1, 5)).await;
    must(client.close().await);
    store(&sender, &w.channel, &texts(6, 8)).await;
    let client = w.client_named("closes").await;
    let inbox = follow(&client, &w.channel, "", Start::StartFromFirst).await;
    until("the last event", async || inbox.bodies().contains(&"8".to_owned()).then_some(())).await;
    let bodies = inbox.bodies();
    assert!(bodies.len() >= 3 && texts(1, 8).ends_with(&bodies), "{bodies:?}");
}

async fn store_reconnect(w: World, how: &str) {
    let (client, sender) = (reconnecting(&w).await, w.client().await);
    let inbox = follow(&client, &w.channel, "", Start::StartFromFirst).await;
    store(&sender, &w.channel, &texts(1, 5)).await;
    inbox.has(&texts(1, 5)).await;
    w.again(how).await;
    w.connected(&sender).await;
    store(&sender, &w.channel, &texts(6, 10)).await;
    until("the last event", async || inbox.bodies().contains(&"10".to_owned()).then_some(())).await;
    // What was on its way when the server ended may come twice.
    let mut seen = BTreeSet::new();
    let distinct: Vec<String> = inbox.bodies().into_iter().filter(|body| seen.insert(body.clone())).collect();
    assert_eq!(distinct, texts(1, 10));
}
