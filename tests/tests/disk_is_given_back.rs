//! Promise: what was settled gives its disk back, also when one message in each file of the log, or a channel that
//! nobody reads, still lives.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use kubemq_tests::client::bodies;
use kubemq_tests::process::Options;
use kubemq_tests::{Client, Server, wait_until};

const MIB: u64 = 1 << 20;

/// Bytes of a segment: the smallest.
const SEGMENT: u64 = MIB;

/// What snapshots, the index and the files that are kept for the next segments may take besides.
const BESIDE: u64 = 12 * MIB;

/// A snapshot is written a second after the last write, and what it frees goes then.
const RECLAIMED: Duration = Duration::from_secs(60);

async fn start() -> Server {
    let arguments = ["--set", "store.segmentSize=1MiB", "--set", "store.snapshotIdle=1"].map(str::to_owned).into();
    Server::start_with(Options { arguments, ..Options::default() }).await
}

/// Sends `count` messages of 8 KiB to `channel` and receives them.
async fn pass_through(client: &Client, channel: &str, count: usize) {
    for _ in 0..count / 64 {
        client.fill(channel, (0..64).map(|_| vec![7; 8192])).await;
        client.take(channel, 64).await;
    }
}

fn disk(path: &Path) -> u64 {
    let sizes = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk(&entry.path()),
        // What vanishes meanwhile takes nothing.
        metadata => metadata.map_or(0, |metadata| metadata.blocks() * 512),
    });
    sizes.sum()
}

async fn shrinks_to(server: &Server, bound: u64) {
    let mut last = 0;
    let shrunk = wait_until("the disk to come back", RECLAIMED, async || {
        last = disk(&server.data());
        (last <= bound).then_some(())
    });
    shrunk.await;
}

#[tokio::test]
async fn everything_settled_leaves_two_segments() {
    let server = start().await;
    let client = Client::connect(&server.grpc()).await;
    pass_through(&client, "through", 6400).await;
    assert!(server.metric("kubemq_log_written_bytes_total") > 40.0 * 1024.0 * 1024.0, "this fills many segments");
    wait_until("the segments to go", RECLAIMED, async || (server.metric("kubemq_store_segments") <= 2.0).then_some(()))
        .await;
    shrinks_to(&server, 2 * SEGMENT + BESIDE).await;
}

#[tokio::test]
async fn one_living_message_in_each_segment_keeps_none_of_them() {
    const KEPT: usize = 24;
    let mut server = start().await;
    let client = Client::connect(&server.grpc()).await;
    for number in 0..KEPT {
        client.fill("kept", [number.to_string()]).await;
        pass_through(&client, "through", 192).await;
    }
    // A body of some bytes: what lives is nothing beside a segment.
    shrinks_to(&server, 2 * SEGMENT + BESIDE).await;
    server.kill();
    server.restart().await;
    let client = Client::connect(&server.grpc()).await;
    let kept = bodies(&client.take("kept", KEPT).await);
    assert_eq!(kept, (0..KEPT).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_channel_that_nobody_reads_keeps_only_what_is_its_own() {
    const ROUNDS: usize = 64;
    let server = start().await;
    let client = Client::connect(&server.grpc()).await;
    for number in 0..ROUNDS {
        client.fill("unread", [format!("{number:08192}")]).await;
        pass_through(&client, "busy", 64).await;
    }
    let living = (ROUNDS * 8192) as u64;
    shrinks_to(&server, 4 * living + 2 * SEGMENT + BESIDE).await;
    let unread = bodies(&client.take("unread", ROUNDS).await);
    assert_eq!(unread, (0..ROUNDS).map(|number| format!("{number:08192}")).collect::<Vec<_>>());
}
