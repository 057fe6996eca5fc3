//! Promise: readers of stored events keep their places and disturb nobody: a group across a restart, one that lags
//! behind, many that do not read at all, one whose channel is deleted.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking with what it saw")]

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use kubemq_proto::kubemq::Subscribe;
use kubemq_proto::kubemq::subscribe::EventsStoreType as From;
use kubemq_tests::process::Options;
use kubemq_tests::stored::{Reading, from, from_first, stored};
use kubemq_tests::wait::SOON;
use kubemq_tests::{Client, Server, assert_soon, connected, sleep, timed, wait_until};

const BODY: usize = 4096;

/// Stores events of 4 KiB on a stream, many in flight.
async fn store_many(client: &Client, channel: &str, count: u64) {
    let mut stream = client.try_publish().await.unwrap();
    let body = bytes::Bytes::from(vec![7; BODY]);
    let mut answered = 0;
    for sent in 0..count {
        stream.send(stored(channel, body.clone())).await;
        while sent - answered > 500 {
            assert!(stream.next().await.sent);
            answered += 1;
        }
    }
    while answered < count {
        assert!(stream.next().await.sent);
        answered += 1;
    }
}

#[tokio::test]
async fn a_group_goes_on_after_the_process_was_killed() {
    let mut server = Server::start().await;
    let client = Client::connect(&server.grpc()).await;
    let member = || Subscribe { group: "g".into(), ..from_first("group", "m") };
    client.store("group", 1..=40).await;
    let (mut one, mut two) = (client.read(member()).await, client.read(member()).await);
    let mut seen: BTreeSet<u64> = BTreeSet::new();
    let read = async |reading: &mut Reading| {
        let mut sequences = Vec::new();
        while let Ok(Some(event)) = reading.next_within(Duration::from_millis(500)).await {
            sequences.push(event.sequence);
        }
        sequences
    };
    seen.extend(read(&mut one).await);
    seen.extend(read(&mut two).await);
    assert_eq!(seen.len(), 40, "{seen:?}");
    // Long enough for the places to be noted.
    sleep(Duration::from_secs(4)).await;
    server.kill();
    server.restart().await;
    let client = Client::connect(&server.grpc()).await;
    client.store("group", 41..=60).await;
    let mut one = client.read(member()).await;
    assert_eq!(one.sequences(20).await, (41..=60).collect::<Vec<_>>(), "neither again nor missing");
}

#[tokio::test]
async fn a_client_that_says_goodbye_gets_nothing_twice() {
    let (server, client) = connected().await;
    client.store("goodbye", 1..=100).await;
    for number in 0..20 {
        client.store("goodbye", [101 + number]).await;
        // Streams and connection end at once, as at the end of a program.
        let other = Client::connect(&server.grpc()).await;
        let mut reading =
            wait_until("the client to be free", SOON, async || other.try_read(from_first("goodbye", "c")).await.ok())
                .await;
        let expected: Vec<u64> = if number == 0 { (1..=101).collect() } else { vec![101 + number] };
        assert_eq!(reading.sequences(expected.len()).await, expected, "the {number}th time");
        drop((reading, other));
    }
}

#[tokio::test]
async fn who_lags_slows_nobody_and_who_does_not_read_costs_little() {
    let environment = [("LIMITS_TAIL_CACHE".to_owned(), "1MiB".to_owned())].into();
    let server = Server::start_with(Options { environment, ..Options::default() }).await;
    let client = Client::connect(&server.grpc()).await;
    let count = 15_000;
    store_many(&client, "lag", count).await;

    // These want 60 MB each and take nothing.
    let before = server.memory();
    let idle = Client::connect(&server.grpc()).await;
    let mut stalled = Vec::new();
    for number in 0..40 {
        stalled.push(idle.read(from_first("lag", &format!("stalled-{number}"))).await);
    }
    // One follows while another reads everything from the files.
    let mut tail = client.read(from("lag", "tail", From::StartNewOnly, 0)).await;
    let lagging = Client::connect(&server.grpc()).await;
    let mut lagging = lagging.read(from_first("lag", "lagging")).await;
    let follow = async {
        for number in 1..=50 {
            let ((), took) = timed(client.store("lag", [number])).await;
            assert_soon(took);
            let (event, took) = timed(tail.next()).await;
            assert_eq!(event.sequence, count + number);
            assert_soon(took);
        }
    };
    let catch_up = async {
        for sequence in 1..=count {
            let event = lagging.next().await;
            assert_eq!((event.sequence, event.body.len()), (sequence, BODY));
        }
    };
    tokio::join!(follow, catch_up);
    assert_eq!(lagging.sequences(50).await, (count + 1..=count + 50).collect::<Vec<_>>());

    // What waits for the stalled ones is in files: it needs no memory for longer than a moment.
    let bound = 48 * 1024 * 1024;
    wait_until("the memory of stalled readers to be freed", SOON, async || {
        (server.memory().saturating_sub(before) < bound).then_some(())
    })
    .await;
    // They lose nothing by it. (What all of them together may have on its way is bounded by their one connection.)
    let mut last = stalled.pop().unwrap();
    drop(stalled);
    assert_eq!(last.sequences(2_000).await, (1..=2_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_thousand_follow_one_channel_and_one_that_stands_still_slows_nobody() {
    const FOLLOWERS: usize = 1_000;
    const EVENTS: u64 = 100;
    let environment = [("LIMITS_TAIL_CACHE".to_owned(), "16MiB".to_owned())].into();
    let server = Server::start_with(Options { environment, ..Options::default() }).await;
    let client = Client::connect(&server.grpc()).await;
    // More than the connection of the one that stands still takes.
    let stored_before = 3_000;
    store_many(&client, "crowd", stored_before).await;
    let _standing = Client::connect(&server.grpc()).await.read(from_first("crowd", "standing")).await;
    let mut crowd = Vec::with_capacity(FOLLOWERS);
    for connection in 0..4 {
        let client = &Client::connect(&server.grpc()).await;
        let opening = (0..FOLLOWERS / 4).map(|number| async move {
            let name = format!("follower-{connection}-{number}");
            client.read(from("crowd", &name, From::StartNewOnly, 0)).await
        });
        let opened: Vec<_> = futures_util::stream::iter(opening).buffered(50).collect().await;
        crowd.extend(opened);
    }
    let before = server.memory();
    let mut most = before;
    let publish = async {
        for number in 0..EVENTS {
            let body = format!("{number:04096}");
            let (result, took) = timed(client.store_event(stored("crowd", body))).await;
            assert!(result.sent);
            assert_soon(took);
            most = most.max(server.memory());
        }
    };
    let expected: Vec<u64> = (stored_before + 1..=stored_before + EVENTS).collect();
    let follow = async {
        let mut reading: FuturesUnordered<_> =
            crowd.iter_mut().map(|reading| reading.sequences(expected.len())).collect();
        let mut followed = 0;
        while let Some(sequences) = reading.next().await {
            assert_eq!(sequences, expected);
            followed += 1;
        }
        assert_eq!(followed, FOLLOWERS);
    };
    tokio::join!(publish, follow);
    // The tail cache, and what is under way on four connections: an event is in memory once, not for each of them.
    let grown = most.max(server.memory()).saturating_sub(before);
    assert!(grown < 96 * 1024 * 1024, "memory grew by {} MiB", grown >> 20);
}

#[tokio::test]
async fn a_subscription_goes_on_with_the_channel_that_is_made_anew() {
    let (_server, client) = connected().await;
    client.store("anew", 1..=3).await;
    let mut reading = client.read(from_first("anew", "c")).await;
    assert_eq!(reading.sequences(3).await, [1, 2, 3]);
    let tags = [("channel_type", "events_store"), ("channel", "anew")];
    assert!(client.manage("delete-channel", &tags).await.unwrap().executed);
    client.store("anew", 1..=2).await;
    assert_eq!(reading.sequences(2).await, [1, 2]);
}

#[tokio::test]
async fn a_list_shows_what_was_stored_and_what_was_read() {
    let (_server, client) = connected().await;
    client.store("listed", 1..=3).await;
    let listed = async || {
        let tags = [("channel_type", "events_store"), ("channel_search", "listed")];
        let answer = client.manage("list-channels", &tags).await.unwrap();
        let list: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        list[0].clone()
    };
    let channel = listed().await;
    assert_eq!((channel["name"].as_str(), channel["type"].as_str()), (Some("listed"), Some("events_store")));
    assert_eq!((&channel["incoming"]["messages"], &channel["outgoing"]["messages"]), (&3.into(), &0.into()));
    assert!(channel["incoming"]["volume"].as_u64().unwrap() > 3);
    let mut reading = client.read(from_first("listed", "c")).await;
    assert_eq!(reading.sequences(3).await, [1, 2, 3]);
    wait_until("what was read to be counted", SOON, async || {
        (listed().await["outgoing"]["messages"] == 3).then_some(())
    })
    .await;
    assert_eq!(listed().await["isActive"], true);
}
