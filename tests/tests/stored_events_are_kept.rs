//! Promise: stored events are kept as long as the configuration says: by age, by number and by size, and no shorter.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking with what it saw")]

use std::time::Duration;

use kubemq_proto::kubemq::subscribe::EventsStoreType as From;
use kubemq_tests::process::Options;
use kubemq_tests::stored::{from, from_first, stored, vanishing};
use kubemq_tests::{Client, Server, sleep, wait_until};

/// Trims come every ten seconds.
const TRIMMED: Duration = Duration::from_secs(60);

/// Returns the first sequence that is there, as a new client sees it.
async fn first(client: &Client, channel: &str) -> Option<u64> {
    let reader = kubemq_tests::client::unique("first");
    let mut reading = client.read(from_first(channel, &reader)).await;
    Some(reading.next_within(Duration::from_secs(1)).await.unwrap()?.sequence)
}

#[tokio::test]
async fn stored_events_are_kept_by_age_number_and_size() {
    let rules = "aged.*: age=15s; few: events=10; small: bytes=64KiB";
    let environment = [("STORE_RETENTION".to_owned(), rules.to_owned())].into();
    let server = Server::start_with(Options { environment, ..Options::default() }).await;
    let client = Client::connect(&server.grpc()).await;

    client.store("kept", 1..=30).await;
    client.store("few", 1..=30).await;
    for _ in 0..100 {
        assert!(client.store_event(stored("small", vec![7; 2048])).await.sent);
    }
    client.store("aged.a", 1..=5).await;
    // A reader that was here before most of it goes, and vanished before its place was noted.
    let address = server.grpc();
    let gone = vanishing(async move || {
        let client = Client::connect(&address).await;
        let mut early = client.read(from_first("few", "early")).await;
        (early.sequences(2).await, (early, client))
    });
    assert_eq!(gone.await, [1, 2]);
    // The first look after fifteen seconds finds these young, whenever it comes.
    sleep(Duration::from_secs(13)).await;
    client.store("aged.a", 6..=8).await;

    let oldest = async || first(&client, "aged.a").await.filter(|first| *first != 1);
    assert_eq!(wait_until("old events to go", TRIMMED, oldest).await, 6);
    wait_until("all but ten events to go", TRIMMED, async || (first(&client, "few").await? > 1).then_some(())).await;
    wait_until("what is too much to go", TRIMMED, async || (first(&client, "small").await? > 1).then_some(())).await;

    assert_eq!(first(&client, "kept").await, Some(1), "nothing else goes");
    assert_eq!(first(&client, "few").await, Some(21));
    let rest = 101 - first(&client, "small").await.unwrap();
    // An event costs a little more than its body.
    assert!((25..=32).contains(&rest), "{rest} events of 2 KiB in 64 KiB");

    // A place below the first event moves to it, and every start lies behind it, too.
    let mut early = client.read(from_first("few", "early")).await;
    assert_eq!(early.sequences(10).await, (21..=30).collect::<Vec<_>>());
    let mut at = client.read(from("few", "at", From::StartAtSequence, 4)).await;
    assert_eq!(at.sequences(1).await, [21]);

    // Everything grows old, and the sequences go on.
    wait_until("the rest to go", TRIMMED, async || first(&client, "aged.a").await.is_none().then_some(())).await;
    let mut reading = client.read(from_first("aged.a", "later")).await;
    client.store("aged.a", [9]).await;
    assert_eq!(reading.sequences(1).await, [9]);
}
