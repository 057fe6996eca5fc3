//! Promise: delayed messages take no more memory than the index was given, however many wait. All of them come in the
//! order in which they are due and none early, when the process is killed meanwhile and when not even the index on disk
//! is left.

use std::time::Duration;

use kubemq_proto::kubemq::QueueMessagePolicy;
use kubemq_tests::client::{attributes, message_with};
use kubemq_tests::process::Options;
use kubemq_tests::{Client, Server, now, wait_until};

const MIB: f64 = 1_048_576.0;

/// Snapshots, which let blocks leave the memory, are at least ten seconds apart for that reason.
const SHED: Duration = Duration::from_secs(90);

/// Messages in one request, and in all: half as many again as the index has room for.
const TOGETHER: usize = 1_000;
const ALL: usize = 48_000;

/// Longer than it takes to send them and to start again, in seconds; they are due within so many seconds from then on.
const DELAY: u64 = 45;
const SPREAD: u64 = 12;

#[tokio::test]
async fn more_delayed_messages_than_there_is_memory_come_in_order_and_none_early() {
    let arguments = ["--set", "limits.index=1MiB", "--set", "store.snapshotIdle=1"].map(str::to_owned).into();
    let mut server = Server::start_with(Options { arguments, ..Options::default() }).await;
    let client = Client::connect(&server.grpc()).await;
    let begin = now();
    let mut dues = Vec::new();
    while dues.len() < ALL {
        let numbers = dues.len()..dues.len() + TOGETHER;
        let left = DELAY.saturating_sub(now().since(begin).as_secs());
        let delayed = numbers.map(|number| {
            // Each other one two seconds later: a part of them is needed together, and not all.
            let seconds = left + number as u64 * SPREAD / ALL as u64 + number as u64 % 2 * 2;
            let delay_seconds = i32::try_from(seconds).unwrap_or(i32::MAX);
            message_with("later", number.to_string(), QueueMessagePolicy { delay_seconds, ..Default::default() })
        });
        let results = client.batch(delayed).await.results;
        assert!(results.iter().all(|result| !result.is_error), "{:?}", results.iter().find(|result| result.is_error));
        dues.extend(results.iter().map(|result| result.delayed_to));
        let leaves_room = async || (server.metric("kubemq_index_memory_bytes") < 0.8 * MIB).then_some(());
        wait_until("blocks to leave the memory", SHED, leaves_room).await;
    }
    assert!(server.metric("kubemq_index_left_memory_total") > 300.0);
    assert!(now().since(begin).as_secs() < DELAY, "it took too long to send them: this shows nothing");

    // The process is killed, and the index on disk is lost.
    server.kill();
    std::fs::remove_dir_all(server.data().join("index")).expect("the index on disk");
    server.restart().await;
    assert!(server.metric("kubemq_index_memory_bytes") < MIB, "starting takes no more memory than running");
    let client = Client::connect(&server.grpc()).await;
    let waiting = server.metric("kubemq_timers") + server.metric("kubemq_messages_pending");
    assert_eq!(waiting, ALL as f64, "delayed or due");

    let (mut last, mut seen) = ((0, 0), vec![false; ALL]);
    while !seen.iter().all(|seen| *seen) {
        let got = client.receive("later", 1_000, 100).await.messages;
        assert!(!got.is_empty(), "nothing more came behind {last:?}");
        assert!(server.metric("kubemq_index_memory_bytes") < MIB, "releasing takes no more memory than waiting");
        for message in &got {
            let number: usize =
                std::str::from_utf8(&message.body).ok().and_then(|body| body.parse().ok()).expect("a number");
            assert!(attributes(message).timestamp >= dues[number], "{number} came early");
            assert!((dues[number], number) > last, "{number} came behind {last:?}");
            assert!(!std::mem::replace(&mut seen[number], true), "{number} came twice");
            last = (dues[number], number);
        }
    }
    client.assert_empty("later").await;
    assert_eq!(server.metric("kubemq_timers"), 0.0);
    let came_back = server.metric("kubemq_index_came_back_total");
    assert!(came_back > 100.0, "{came_back} blocks came back");
}
