use std::path::{Path, PathBuf};
use std::time::Duration;

use kubemq_broker::Kind;
use kubemq_proto::kubemq::QueueMessage;
use kubemq_storage::fs::{Disk as _, MemoryDisk};

use super::*;
use crate::gateway::{Held, Peeked, Take};
use crate::node::tests::{options, start_with};
use crate::node::{Node, Options};

const SOON: Duration = Duration::from_secs(10);

/// A node in memory that keeps no messages in RAM, in files that are full soon.
pub(crate) async fn start(disk: &MemoryDisk) -> Node {
    let log = kubemq_storage::log::Options { segment_bytes: 32 << 10, tail_cache_bytes: 0, ..Default::default() };
    start_with(Options { log, ..options() }, disk).await
}

fn body(number: u64) -> String {
    format!("<message {number}>{}", "x".repeat(1000))
}

async fn send(node: &Node, number: u64) {
    let message = QueueMessage {
        client_id: "c".to_owned(),
        channel: "q".to_owned(),
        body: body(number).into(),
        ..QueueMessage::default()
    };
    let sent = node.gateway().send(message).await.unwrap();
    assert!(!sent.is_error, "{sent:?}");
}

/// A node like that, which holds a few files of messages.
pub(crate) async fn filled(disk: &MemoryDisk) -> Node {
    let node = start(disk).await;
    node.ready().await;
    for number in 0..100 {
        send(&node, number).await;
    }
    node
}

fn wanted(node: &Node, max: usize, wait: Duration) -> Take {
    let deadline = node.gateway().runtime().clock.now() + wait;
    Take { channel: "q".to_owned(), max, max_bytes: u64::MAX, deadline }
}

async fn take(node: &Node, max: usize, wait: Duration) -> Held {
    node.gateway().take(wanted(node, max, wait)).await.unwrap()
}

fn peeked(peeked: &Peeked) -> Vec<u64> {
    peeked.deliveries.iter().map(|delivery| delivery.sequence).collect()
}

async fn waiting(node: &Node) -> u64 {
    let waiting = node.gateway().read(|state| state.channel(Kind::Queue, "q").map(kubemq_broker::Channel::waiting));
    waiting.await.unwrap().unwrap()
}

/// Returns the file that holds the body of a message, and where in it.
async fn find(disk: &MemoryDisk, number: u64) -> (PathBuf, u64) {
    let (dir, wanted) = (Path::new("/data/log"), format!("<message {number}>"));
    for name in disk.list(dir).await.unwrap() {
        let path = dir.join(name);
        let file = disk.open(&path).await.unwrap();
        let bytes = file.read_at(0, usize::try_from(file.len().await.unwrap()).unwrap()).await.unwrap();
        if let Some(at) = bytes.windows(wanted.len()).position(|window| window == wanted.as_bytes()) {
            return (path, at as u64);
        }
    }
    panic!("{wanted} is in no file");
}

/// Waits for a state: an answer may be there a moment before the message leaves the newest part of the log.
async fn until(node: &Node, is_so: impl Fn() -> bool) {
    let clock = &node.gateway().runtime().clock;
    let so = async {
        while !is_so() {
            clock.sleep(Duration::from_millis(1)).await;
        }
    };
    clock.timeout(SOON, so).await.expect("it does not come to that");
}

async fn flip(disk: &MemoryDisk, number: u64) {
    let (path, at) = find(disk, number).await;
    // Behind what the message is found by, so that it is found again.
    assert!(disk.flip_bit(&path, 8 * (at + 100)));
}

#[test]
fn each_message_is_counted_once() {
    let damage = Damage::default();
    let why = Unreadable::from(StorageError::NotFound { entry: 3, part: 1 });
    for sequence in [7, 7, 8, 7] {
        damage.pass_over(&Place { channel: "q", sequence, entry: 3, part: 1 }, &why);
    }
    assert_eq!(damage.passed_over(), 2);
    assert!(why.is_lasting() && !Unreadable::from(StorageError::Closed).is_lasting());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_message_is_passed_over_and_settled_by_nobody() {
    let disk = MemoryDisk::default();
    let node = start(&disk).await;
    for number in 1..=10 {
        send(&node, number).await;
    }
    flip(&disk, 4).await;
    let others: Vec<u64> = (1..=10).filter(|number| *number != 4).collect();
    assert_eq!(peeked(&node.gateway().peek(wanted(&node, 9, SOON)).await.unwrap()), others);
    let mut held = take(&node, 9, SOON).await;
    assert_eq!(held.unsettled().collect::<Vec<_>>(), others);
    assert_eq!(node.gateway().in_flight(), 9, "nobody holds what was passed over");
    held.ack(&[1, 2, 3, 4, 5]).await.unwrap();
    // What comes back is handed out again, the damaged one is not.
    drop(held);
    assert_eq!(take(&node, 10, Duration::from_millis(50)).await.unsettled().collect::<Vec<_>>(), [6, 7, 8, 9, 10]);
    assert_eq!(node.gateway().ack_all("q").await.unwrap(), 5);
    assert_eq!(waiting(&node).await, 1);
    assert!(node.gateway().peek(wanted(&node, 1, Duration::ZERO)).await.unwrap().deliveries.is_empty());
    assert_eq!(node.gateway().passed_over(), 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_that_meets_only_damage_waits_for_the_next_message() {
    let disk = MemoryDisk::default();
    let node = start(&disk).await;
    send(&node, 1).await;
    until(&node, || node.log().stats().tail_bytes == 0).await;
    flip(&disk, 1).await;
    let gateway = node.gateway().clone();
    let poll = wanted(&node, 1, SOON);
    let reads = node.log().stats().file_reads;
    let waits = node.gateway().runtime().tasks.spawn("poll", kubemq_runtime::OnFailure::Log, async move {
        gateway.take(poll).await.map(|held| held.unsettled().collect::<Vec<_>>())
    });
    until(&node, || node.gateway().passed_over() > 0).await;
    assert!(take(&node, 1, Duration::from_millis(50)).await.is_settled());
    assert!(node.log().stats().file_reads - reads < 10, "what is known to be damaged is not read again and again");
    send(&node, 2).await;
    assert_eq!(waits.await.unwrap().unwrap(), [2]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_message_is_there_when_its_disk_is_mended() {
    let disk = MemoryDisk::default();
    let node = start(&disk).await;
    for number in 1..=100 {
        send(&node, number).await;
    }
    // What a snapshot covers is not read again by the next start.
    node.raft().snapshot().await.unwrap();
    node.stop().await;
    for (number, expected) in [(Some(7), 99), (Some(8), 98), (None, 98)] {
        if let Some(number) = number {
            flip(&disk, number).await;
        }
        let node = start(&disk).await;
        let held = take(&node, 100, Duration::from_millis(200)).await;
        assert_eq!(held.deliveries.len(), expected);
        assert!(!held.holds(7));
        drop(held);
        assert_eq!((node.gateway().passed_over(), waiting(&node).await), (100 - expected as u64, 100));
        node.stop().await;
    }
    flip(&disk, 7).await;
    flip(&disk, 8).await;
    let node = start(&disk).await;
    assert_eq!(take(&node, 100, SOON).await.deliveries.len(), 100);
    node.stop().await;
}

#[test]
fn so_many_are_remembered_and_the_next_is_counted_each_time() {
    let damage = Damage::default();
    let pass_over = |sequence: usize| {
        let place = Place { channel: "q", sequence: sequence as u64, entry: 1, part: 1 };
        damage.pass_over(&place, &Unreadable::Content("nothing".to_owned()));
        usize::try_from(damage.passed_over()).unwrap()
    };
    for sequence in 0..TOLD {
        assert_eq!(pass_over(sequence), sequence + 1);
    }
    assert_eq!((pass_over(0), pass_over(TOLD - 1)), (TOLD, TOLD), "known");
    assert_eq!((pass_over(TOLD), pass_over(TOLD)), (TOLD + 1, TOLD + 2), "not remembered");
}
