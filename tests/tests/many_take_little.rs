//! Promise: many of a thing take no more memory than they must: messages that wait, channels, connections, streams;
//! and a restart keeps all of them.

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use kubemq_proto::kubemq::QueueMessagePolicy;
use kubemq_tests::client::{bodies, message_with};
use kubemq_tests::process::Options;
use kubemq_tests::wait::SOON;
use kubemq_tests::{Client, Server, get, message, wait_until};

const MIB: u64 = 1 << 20;

/// Little of the log stays in memory.
async fn start() -> Server {
    let arguments = ["--set", "limits.tailCache=1MiB"].map(str::to_owned).into();
    Server::start_with(Options { arguments, ..Options::default() }).await
}

#[tokio::test]
async fn bodies_that_wait_are_not_in_memory_and_come_at_once_after_a_restart() {
    const BATCHES: usize = 100;
    const EACH: usize = 1000;
    let mut server = start().await;
    let client = Client::connect(&server.grpc()).await;
    let before = server.memory();
    for batch in 0..BATCHES {
        client.fill("waiting", (0..EACH).map(|number| format!("{:01024}", batch * EACH + number))).await;
    }
    // A hundred MiB of bodies, a hundred thousand messages.
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 48 * MIB, "memory grew by {} MiB", grown / MIB);
    let index = server.metric("kubemq_index_memory_bytes");
    assert!(index < 16.0 * BATCHES as f64 * EACH as f64, "the index takes {index} bytes");

    server.kill();
    server.restart().await;
    let client = Client::connect(&server.grpc()).await;
    assert_eq!(server.metric("kubemq_messages_pending"), (BATCHES * EACH) as f64);
    let first = bodies(&client.take("waiting", EACH).await);
    assert_eq!(first, (0..EACH).map(|number| format!("{number:01024}")).collect::<Vec<_>>());
    let after = server.peak_memory();
    assert!(after < before + 64 * MIB, "after a restart memory went up to {} MiB", after / MIB);
}

#[tokio::test]
async fn thousands_of_channels_take_kilobytes_each_and_none_is_forgotten() {
    const CHANNELS: usize = 5000;
    let mut server = start().await;
    let client = Client::connect(&server.grpc()).await;
    let before = server.memory();
    let names: Vec<_> = (0..CHANNELS).map(|number| format!("many.{number}")).collect();
    for names in names.chunks(500) {
        client.fill_with(names.iter().map(|name| message(name, name.clone()))).await;
    }
    let each = server.memory().saturating_sub(before) / CHANNELS as u64;
    assert!(each < 6 * 1024, "{each} bytes for each channel");
    server.kill();
    server.restart().await;
    let client = Client::connect(&server.grpc()).await;
    for name in names.iter().step_by(97) {
        assert_eq!(bodies(&client.take(name, 1).await), [name.as_str()]);
    }
    let left = CHANNELS - CHANNELS.div_ceil(97);
    assert_eq!(server.metric("kubemq_messages_pending"), left as f64);
}

#[tokio::test]
async fn hundreds_of_connections_and_thousands_of_streams_take_kilobytes_each() {
    const CONNECTIONS: usize = 250;
    const STREAMS: usize = 10;
    let server = start().await;
    // What is used once is in memory before it is looked at.
    drop(Client::connect(&server.grpc()).await.downstream().await);
    let before = server.memory();
    let mut open = Vec::new();
    for number in 0..CONNECTIONS {
        let client = Client::connect(&server.grpc()).await;
        for stream in 0..STREAMS {
            let downstream = client.downstream().await;
            downstream.send(get(&format!("idle.{number}.{stream}"), 1, 3_600_000)).await;
            open.push(downstream);
        }
    }
    wait_until("all to wait", SOON, async || {
        (server.metric("kubemq_queue_polls") >= (CONNECTIONS * STREAMS) as f64).then_some(())
    })
    .await;
    let bound = (CONNECTIONS * 64 * 1024 + CONNECTIONS * STREAMS * 32 * 1024) as u64;
    let grown = server.memory().saturating_sub(before);
    assert!(grown <= bound, "memory grew by {} KiB, {} are allowed", grown / 1024, bound / 1024);
    let client = Client::connect(&server.grpc()).await;
    client.fill("idle.249.9", ["here"]).await;
    assert_eq!(bodies(&open.last_mut().unwrap().next().await.messages), ["here"]);
}

#[tokio::test]
async fn messages_to_many_channels_share_their_flushes() {
    const CHANNELS: usize = 500;
    const ROUNDS: usize = 10;
    let server = start().await;
    let client = Client::connect(&server.grpc()).await;
    let before = server.metric("kubemq_log_fdatasync_total");
    for _ in 0..ROUNDS {
        let sending: FuturesUnordered<_> =
            (0..CHANNELS).map(|number| client.send(message(&format!("wide.{number}"), "body"))).collect();
        let refused: Vec<_> =
            sending.map(|sent| sent.error).filter(|error| std::future::ready(!error.is_empty())).collect().await;
        assert_eq!(refused, Vec::<String>::new());
    }
    let flushes = server.metric("kubemq_log_fdatasync_total") - before;
    let messages = CHANNELS * ROUNDS;
    assert!(flushes < messages as f64 / 4.0, "{flushes} flushes for {messages} messages to {CHANNELS} channels");
}

#[tokio::test]
async fn thousands_that_come_due_together_are_released_in_order_with_a_restart_in_between() {
    const MESSAGES: usize = 5000;
    let mut server = start().await;
    let client = Client::connect(&server.grpc()).await;
    let policy = QueueMessagePolicy { delay_seconds: 4, ..QueueMessagePolicy::default() };
    let mut dues = Vec::new();
    for from in (0..MESSAGES).step_by(500) {
        let batch = client
            .batch((from..from + 500).map(|number| message_with("due", format!("{number}"), policy.clone())))
            .await;
        dues.extend(batch.results.iter().map(|result| result.delayed_to));
    }
    assert!(dues.is_sorted(), "each is due as long after it was sent");
    server.kill();
    server.restart().await;
    let client = Client::connect(&server.grpc()).await;
    let mut received = Vec::new();
    while received.len() < MESSAGES {
        let answer = client.receive("due", 1000, 20).await;
        assert!(!answer.messages.is_empty(), "{} of {MESSAGES} came: {}", received.len(), answer.error);
        let early = dues[received.len() + answer.messages.len() - 1] - kubemq_tests::wait::wall();
        assert!(early < 20_000_000, "{early} ns early");
        received.extend(bodies(&answer.messages));
    }
    assert_eq!(received, (0..MESSAGES).map(|number| number.to_string()).collect::<Vec<_>>());
    client.assert_empty("due").await;
}
