//! Promise: the index of stored messages keeps to the memory that it was given, whatever waits; what left the memory is
//! there when it is read, and when not even the index on disk is left.

use std::time::Duration;

use kubemq_proto::kubemq::QueuesDownstreamRequestType;
use kubemq_tests::client::{attributes, bodies, message, settle};
use kubemq_tests::process::Options;
use kubemq_tests::{Client, Server, wait_until};

const MIB: f64 = 1_048_576.0;

/// Snapshots, which let blocks leave the memory, are at least ten seconds apart for that reason.
const SHED: Duration = Duration::from_secs(90);

/// Messages in one request.
const TOGETHER: usize = 1_000;

async fn start() -> Server {
    let arguments = ["--set", "limits.index=1MiB", "--set", "store.snapshotIdle=1"].map(str::to_owned).into();
    Server::start_with(Options { arguments, ..Options::default() }).await
}

/// Sends messages to two channels in turn, so that each takes a place of its own in the index.
async fn send_in_turn(client: &Client, numbers: std::ops::Range<usize>) {
    for first in numbers.clone().step_by(TOGETHER) {
        let numbers = first..(first + TOGETHER).min(numbers.end);
        client.fill_with(numbers.map(|number| message(["left", "right"][number % 2], number.to_string()))).await;
    }
}

async fn receive_in_order(client: &Client, channel: &str, mut numbers: impl Iterator<Item = usize>, count: usize) {
    for _ in 0..count / 500 {
        let got = bodies(&client.take(channel, 500).await);
        assert!(
            got.iter().all(|body| numbers.next().map(|number| number.to_string()).as_ref() == Some(body)),
            "{channel}"
        );
    }
}

#[tokio::test]
async fn a_backlog_larger_than_its_memory_is_received_in_order() {
    // As runs of 24 bytes it takes half as much again as the index may.
    const ALL: usize = 64_000;
    let mut server = start().await;
    let client = Client::connect(&server.grpc()).await;
    let mut sent = 0;
    while sent < ALL {
        send_in_turn(&client, sent..sent + 4_000).await;
        sent += 4_000;
        let leaves_room = async || (server.metric("kubemq_index_memory_bytes") < 0.8 * MIB).then_some(());
        wait_until("blocks to leave the memory", SHED, leaves_room).await;
    }
    assert!(server.metric("kubemq_index_left_memory_total") > 300.0);
    let peeked = client.peek("left", 1_000, 5).await.messages;
    assert_eq!(bodies(&peeked), (0..1_000).map(|number| (2 * number).to_string()).collect::<Vec<_>>());
    receive_in_order(&client, "left", (0..).step_by(2), 10_000).await;

    // The process is killed, and the index on disk is lost: everything is where it was.
    server.kill();
    std::fs::remove_dir_all(server.data().join("index")).expect("the index on disk");
    server.restart().await;
    assert!(server.metric("kubemq_index_memory_bytes") < MIB, "starting takes no more memory than running");
    let client = Client::connect(&server.grpc()).await;
    receive_in_order(&client, "left", (20_000..).step_by(2), 22_000).await;

    // What is given back far from where others read goes on from there.
    let mut held = client.downstream().await;
    let (transaction, messages) = held.hold("right", 1_000).await;
    assert_eq!(bodies(&messages), (0..1_000).map(|number| (2 * number + 1).to_string()).collect::<Vec<_>>());
    held.send(settle(QueuesDownstreamRequestType::NAckAll, &transaction)).await;
    receive_in_order(&client, "right", (2_001..).step_by(2), 31_000).await;
    let again = client.take("right", 1_000).await;
    assert!(again.iter().all(|message| attributes(message).receive_count == 2), "given back once");
    for channel in ["left", "right"] {
        client.assert_empty(channel).await;
    }
    let came_back = server.metric("kubemq_index_came_back_total");
    assert!(came_back > 50.0, "{came_back} blocks came back");
}

#[tokio::test]
async fn at_the_limit_sends_are_refused_and_settlements_make_room() {
    let server = start().await;
    let client = Client::connect(&server.grpc()).await;
    client.fill("held", ["before"]).await;
    let (mut refused, mut stored) = (String::new(), Vec::new());
    // Channels do not leave the memory.
    for batch in 0..100 {
        let names: Vec<String> = (0..100).map(|number| format!("full-{batch}-{number}")).collect();
        let results = client.batch(names.iter().map(|name| message(name, "body"))).await.results;
        stored.extend(names.into_iter().zip(&results).filter(|(_, result)| !result.is_error).map(|(name, _)| name));
        if let Some(result) = results.iter().find(|result| result.is_error) {
            refused.clone_from(&result.error);
            break;
        }
    }
    assert_eq!(refused, kubemq_proto::strings::Refusal::NoSpace.to_string());
    assert!(server.metric("kubemq_index_memory_bytes") >= MIB);
    assert!(client.send(message("held", "more")).await.is_error, "nothing more is taken");
    assert_eq!(bodies(&client.take("held", 1).await), ["before"], "what was stored can be received and settled");

    for channel in &stored {
        client.take(channel, 1).await;
    }
    assert!(!client.send(message("held", "more")).await.is_error, "there is room again");
}
