//! Promise: delays and expirations are in the log and survive the death of the process: nothing comes early,
//! nothing is forgotten, nothing comes after it has expired.
#![expect(clippy::panic, reason = "a test fails by panicking with what it saw")]

use std::collections::BTreeMap;
use std::time::Duration;

use kubemq_proto::kubemq::QueueMessagePolicy;
use kubemq_tests::client::{attributes, message_with};
use kubemq_tests::wait::{SOON, wall};
use kubemq_tests::{Client, Server, now, sleep, wait_until};

/// How much the broker's time may run ahead of ours: it follows the wall clock by at most 0.1 %.
const SLEW: Duration = Duration::from_millis(20);

#[tokio::test]
async fn delayed_messages_are_never_early_across_restarts() {
    let mut server = Server::start().await;
    let mut client = Client::connect(&server.grpc()).await;
    let mut due = BTreeMap::new();
    for number in 0..60_i32 {
        let delay_seconds = 1 + number % 6;
        let policy = QueueMessagePolicy { delay_seconds, ..QueueMessagePolicy::default() };
        let before = now();
        let sent = client.send(message_with("delayed", number.to_string(), policy)).await;
        assert!(!sent.is_error, "{}", sent.error);
        assert!(sent.delayed_to > 0);
        due.insert(sent.message_id, before + Duration::from_secs(delay_seconds.unsigned_abs().into()));
    }
    for _ in 0..3 {
        // A kill in the middle of the waiting time of some, and behind that of others.
        server.kill();
        server.restart().await;
        client = Client::connect(&server.grpc()).await;
        let started = now();
        while now().since(started) < Duration::from_millis(1500) {
            take_due(&client, &mut due).await;
        }
    }
    wait_until("the last delayed message", SOON, async || {
        take_due(&client, &mut due).await;
        due.is_empty().then_some(())
    })
    .await;
    client.assert_empty("delayed").await;
}

async fn take_due(client: &Client, due: &mut BTreeMap<String, kubemq_runtime::Instant>) {
    let mut stream = client.downstream().await;
    let answer = stream.get(kubemq_tests::get("delayed", 100, 100)).await;
    let received = now() + SLEW;
    for message in &answer.messages {
        let was_due = due.remove(&message.message_id);
        let was_due = was_due.unwrap_or_else(|| panic!("{} came twice or was never sent", message.message_id));
        assert!(received >= was_due, "{} came {:?} early", message.message_id, was_due.since(received));
        assert_eq!(attributes(message).delayed_to, 0);
    }
    let kind = kubemq_proto::kubemq::QueuesDownstreamRequestType::AckAll;
    if !answer.messages.is_empty() {
        stream.send(kubemq_tests::settle(kind, &answer.transaction_id)).await;
        // A get begins when the settlements before it have taken effect.
        stream.get(kubemq_tests::get("delayed-nothing", 1, 0)).await;
    }
}

#[tokio::test]
async fn expired_messages_are_not_delivered_after_a_restart() {
    let mut server = Server::start().await;
    let client = Client::connect(&server.grpc()).await;
    let policy = |expiration_seconds| QueueMessagePolicy { expiration_seconds, ..QueueMessagePolicy::default() };
    client.fill_with((0..10).map(|number| message_with("expiring", format!("{number}"), policy(2)))).await;
    client.fill_with([message_with("expiring", "lasting", policy(3600))]).await;
    server.kill();
    let expiry = wall() + 2_000_000_000;
    while wall() <= expiry {
        sleep(Duration::from_millis(100)).await;
    }
    server.restart().await;
    let client = Client::connect(&server.grpc()).await;
    let answer = client.receive("expiring", 11, 2).await;
    assert_eq!(kubemq_tests::client::bodies(&answer.messages), ["lasting"]);
    assert_eq!(answer.messages_expired, 10);
}

#[tokio::test]
async fn receive_counts_survive_a_kill() {
    let mut server = Server::start().await;
    for expected in 1..=4 {
        let client = Client::connect(&server.grpc()).await;
        if expected == 1 {
            client.fill("counted", ["1"]).await;
        }
        let mut stream = client.downstream().await;
        let (transaction, messages) = stream.hold("counted", 1).await;
        assert_eq!(kubemq_tests::client::counts(&messages), [expected]);
        let kind = kubemq_proto::kubemq::QueuesDownstreamRequestType::NAckAll;
        stream.send(kubemq_tests::settle(kind, &transaction)).await;
        // Asked behind the nack, so that it has taken effect.
        stream.hold("counted", 1).await;
        server.kill();
        server.restart().await;
    }
}
