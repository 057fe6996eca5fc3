//! Promise: an acknowledged event is stored, in its publisher's order, and sequences have no gap, whenever the process
//! dies; a reader goes on where it was and misses nothing.
//!
//! The real program is killed at random moments while several streams publish and one durable client reads, and
//! started again on the same directory. `KUBEMQ_KILL_ROUNDS` says how many rounds (5 by default),
//! `KUBEMQ_KILL_SEED` which ones.
#![expect(clippy::panic, clippy::expect_used, reason = "a test fails by panicking with what it saw")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use kubemq_runtime::{OnFailure, Random};
use kubemq_tests::process::Options;
use kubemq_tests::stored::{from_first, stored};
use kubemq_tests::wait::runtime;
use kubemq_tests::{Client, Server, sleep};
use parking_lot::Mutex;

const CHANNEL: &str = "kill-events";
const DEFAULT_ROUNDS: u64 = 5;
const PUBLISHERS: u64 = 3;
/// Events of one stream whose result is not known yet.
const IN_FLIGHT: usize = 200;
/// The body of the event behind all others.
const END: &str = "end";

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
}

/// What was acknowledged, by publisher, in the order in which it was sent.
type Acknowledged = Arc<Mutex<BTreeMap<u64, Vec<u64>>>>;

/// Publishes on one stream until it breaks; the bodies say who sent them and as the how-manieth.
async fn publish(client: Client, publisher: u64, acknowledged: Acknowledged) {
    let Ok(mut stream) = client.try_publish().await else { return };
    let mut in_flight = VecDeque::new();
    for number in 0.. {
        if !stream.try_send(stored(CHANNEL, format!("{publisher} {number}"))).await {
            return;
        }
        in_flight.push_back(number);
        while in_flight.len() > IN_FLIGHT {
            let Ok(Some(result)) = stream.next_within(Duration::from_secs(30)).await else { return };
            assert!(result.sent, "{result:?}");
            let number = in_flight.pop_front().expect("an event in flight");
            acknowledged.lock().entry(publisher).or_default().push(number);
        }
    }
}

/// Reads as a client that was here before, until the stream breaks; returns the last sequence.
async fn read_on(client: Client, last: u64) -> u64 {
    let Ok(mut reading) = client.try_read(from_first(CHANNEL, "durable")).await else { return last };
    let mut seen: Option<u64> = None;
    while let Ok(Some(event)) = reading.next_within(Duration::from_secs(30)).await {
        match seen {
            None => assert!(event.sequence <= last + 1, "events {} to {} are missing", last + 1, event.sequence - 1),
            Some(before) => assert_eq!(event.sequence, before + 1),
        }
        seen = Some(event.sequence);
    }
    seen.unwrap_or(last).max(last)
}

async fn round(server: &mut Server, number: u64, life: Duration, acknowledged: &Acknowledged, last: u64) -> u64 {
    let tasks = runtime().tasks;
    let mut publishing = Vec::new();
    for publisher in 0..PUBLISHERS {
        let client = Client::connect(&server.grpc()).await;
        let work = publish(client, number * PUBLISHERS + publisher, Arc::clone(acknowledged));
        publishing.push(tasks.spawn("publisher", OnFailure::Log, work));
    }
    let reading = read_on(Client::connect(&server.grpc()).await, last);
    let reading = tasks.spawn("reader", OnFailure::Log, reading);
    sleep(life).await;
    server.kill();
    for task in publishing {
        task.await.expect("a publisher that did not panic");
    }
    reading.await.expect("a reader that did not panic")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_events_survive_kill() {
    let rounds = setting("KUBEMQ_KILL_ROUNDS").unwrap_or(DEFAULT_ROUNDS);
    let seed = setting("KUBEMQ_KILL_SEED").unwrap_or_else(|| Random::from_system().u64());
    eprintln!("replay with KUBEMQ_KILL_SEED={seed} KUBEMQ_KILL_ROUNDS={rounds}");
    let random = Random::from_seed(seed);
    let acknowledged = Acknowledged::default();
    let mut server = Server::start_with(Options::default()).await;
    let mut last = 0;
    for number in 0..rounds {
        // Longer than it takes until places are noted, now and then.
        let life = Duration::from_millis(50 + random.below(2500));
        last = round(&mut server, number, life, &acknowledged, last).await;
        server.restart().await;
    }
    let client = Client::connect(&server.grpc()).await;
    client.store_event(stored(CHANNEL, END)).await;

    let mut reading = client.read(from_first(CHANNEL, "judge")).await;
    let mut found: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut count = 0;
    loop {
        let event = reading.next().await;
        count += 1;
        assert_eq!(event.sequence, count, "a gap, or an event that came twice");
        let body = String::from_utf8_lossy(&event.body).into_owned();
        if body == END {
            break;
        }
        let (publisher, number) = body.split_once(' ').expect("a body of ours");
        found.entry(publisher.parse().expect("a number")).or_default().push(number.parse().expect("a number"));
    }
    let mut durable = client.read(from_first(CHANNEL, "durable")).await;
    assert!(durable.next().await.sequence <= last + 1);

    let acknowledged = acknowledged.lock();
    let sum: usize = acknowledged.values().map(Vec::len).sum();
    eprintln!("{count} events stored, {sum} of them acknowledged, {last} read by the client that went on");
    assert!(sum > 0 && last > 0, "nothing happened");
    for (publisher, numbers) in &*acknowledged {
        let stored = &found[publisher];
        let expected: Vec<u64> = (0..stored.len() as u64).collect();
        assert_eq!(stored, &expected, "the events of publisher {publisher} are in order and without a gap");
        assert!(stored.len() >= numbers.len(), "publisher {publisher} lost {} events", numbers.len() - stored.len());
    }
}
