use std::path::PathBuf;
use std::time::Duration;

use kubemq_proto::kubemq::{Event, QueueMessage, QueueMessagePolicy};
use kubemq_storage::fs::MemoryDisk;

use super::*;
use crate::cli::doctor::export::Line;
use crate::damage::tests::start;
use crate::gateway::Take;
use crate::node::Node;

/// Bits that are flipped in each file.
const FLIPS: u64 = 150;

/// What an export says of one message, but for when it happened.
type Said = BTreeSet<String>;

fn message(number: u64, delay_seconds: i32) -> QueueMessage {
    QueueMessage {
        client_id: "c".to_owned(),
        channel: "orders".to_owned(),
        metadata: format!("about {number}"),
        body: format!("<message {number}>{}", "x".repeat(500)).into(),
        tags: [("number".to_owned(), number.to_string())].into(),
        policy: Some(QueueMessagePolicy { delay_seconds, ..QueueMessagePolicy::default() }),
        ..QueueMessage::default()
    }
}

async fn fill(node: &Node, numbers: std::ops::Range<u64>) {
    for number in numbers {
        assert!(!node.gateway().send(message(number, 0)).await.unwrap().is_error);
        let event = Event {
            event_id: format!("e{number}"),
            client_id: "c".to_owned(),
            channel: "log".to_owned(),
            metadata: "stored".to_owned(),
            body: format!("<event {number}>").into(),
            store: true,
            ..Event::default()
        };
        let stored = node.gateway().store_event(event).await.unwrap();
        assert!(stored.sent, "{stored:?}");
    }
}

/// A node that has seen something of everything, and was stopped: two snapshots, and log behind them.
async fn stopped() -> (MemoryDisk, Runtime) {
    let disk = MemoryDisk::default();
    let node = start(&disk).await;
    fill(&node, 1..31).await;
    node.raft().snapshot().await.unwrap();
    fill(&node, 31..51).await;
    assert!(!node.gateway().send(message(900, 3600)).await.unwrap().is_error);
    let deadline = node.gateway().runtime().clock.now() + Duration::from_secs(5);
    let take = Take { channel: "orders".to_owned(), max: 5, max_bytes: u64::MAX, deadline };
    let mut held = node.gateway().take(take).await.unwrap();
    held.ack(&[1, 2, 3]).await.unwrap();
    held.nack(&[4]).await.unwrap();
    drop(held);
    node.raft().snapshot().await.unwrap();
    fill(&node, 51..81).await;
    node.stop().await;
    (disk, Runtime::real())
}

/// Returns what is exported, those lines that name what cannot be read, and whether anything is said to be wrong.
async fn export(disk: &MemoryDisk, runtime: &Runtime) -> (Said, Vec<String>, bool) {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let data = Path::new("/data");
    let salvage = Salvage::open(Arc::clone(&disk), &data.join("log")).await.unwrap();
    let damaged = !salvage.report().findings.is_empty();
    let mut holdings = Holdings::open(&disk, runtime, data, salvage).await.unwrap();
    let (mut readable, mut unreadable) = (Said::new(), Vec::new());
    let told: Result<(), serde_json::Error> = holdings
        .each(|item| {
            let line = Line::new(&item);
            let text = serde_json::to_string(&line)?;
            if line.is_readable() {
                // A sequence may be lower when something before it is lost.
                let mut value: serde_json::Value = serde_json::from_str(&text)?;
                value["sequence"].take();
                readable.insert(value.to_string());
            } else {
                unreadable.push(text);
            }
            Ok(())
        })
        .await;
    told.unwrap();
    let wrong = damaged || !holdings.doubts().is_empty();
    (readable, unreadable, wrong)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_healthy_directory_holds_is_what_was_sent_and_not_settled() {
    let (disk, runtime) = stopped().await;
    let (readable, unreadable, wrong) = export(&disk, &runtime).await;
    assert!(unreadable.is_empty() && !wrong, "{unreadable:?}");
    // 80 sent, 3 acked, 1 given back as a copy, 1 delayed; 80 events.
    assert_eq!(readable.len(), 80 - 3 + 1 + 80);
    let lines: Vec<serde_json::Value> = readable.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    for number in (4..81).chain([900]) {
        let sent = message(number, 0);
        let of = |line: &&serde_json::Value| line["metadata"] == sent.metadata.as_str();
        let line = lines.iter().find(of).unwrap_or_else(|| panic!("message {number} is missing"));
        let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &sent.body);
        assert_eq!((&line["body"], &line["tags"]["number"]), (&body.into(), &number.to_string().into()));
        assert_eq!((line["channel"].as_str(), line["client_id"].as_str()), (Some("orders"), Some("c")));
        assert_eq!(line["kind"], "queues");
        assert_eq!(line["receive_count"].as_u64(), (number == 4).then_some(1));
        assert_eq!(line["due"].is_u64(), number == 900);
        assert!(line["time"].is_u64());
    }
    let events = lines.iter().filter(|line| line["kind"] == "events_store" && line["metadata"] == "stored");
    assert_eq!(events.count(), 80);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_that_flips_anywhere_is_named_and_all_but_one_message_is_exported_unchanged() {
    let (disk, runtime) = stopped().await;
    let (whole, ..) = export(&disk, &runtime).await;
    let settled: Vec<String> = (1..4).map(|number| format!("\"about {number}\"")).collect();
    let mut files: Vec<PathBuf> = Vec::new();
    for dir in ["/data/log", "/data/snapshots"] {
        let names = disk.list(Path::new(dir)).await.unwrap();
        files.extend(names.into_iter().map(|name| Path::new(dir).join(name)));
    }
    let (mut named, mut lost) = (0, 0);
    for path in files {
        let len = disk.open(&path).await.unwrap().len().await.unwrap();
        for flip in 0..FLIPS {
            let bit = len * 8 / FLIPS * flip + flip % 8;
            assert!(disk.flip_bit(&path, bit));
            let (readable, unreadable, wrong) = export(&disk, &runtime).await;
            for line in readable.difference(&whole) {
                // What was settled by what is lost comes out again; nothing else may be new.
                let is_old = settled.iter().any(|settled| line.contains(settled)) || line.contains("\"about 4\"");
                assert!(wrong && is_old, "bit {bit} of {path:?} makes {line}");
            }
            let gone: Vec<&String> = whole.difference(&readable).collect();
            assert!(gone.len() <= 1, "bit {bit} of {path:?} costs {gone:?}");
            assert!(gone.is_empty() || wrong, "bit {bit} of {path:?} costs {gone:?}, and nothing is said");
            assert!(unreadable.len() <= 1, "{unreadable:?}");
            (named, lost) = (named + u64::from(wrong), lost + gone.len());
            assert!(disk.flip_bit(&path, bit));
        }
    }
    assert!(named > 100 && lost > 10, "{named} named, {lost} messages lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_snapshot_the_log_alone_gives_back_what_it_holds() {
    let (disk, runtime) = stopped().await;
    let (whole, ..) = export(&disk, &runtime).await;
    for name in disk.list(Path::new("/data/snapshots")).await.unwrap() {
        disk.remove(&Path::new("/data/snapshots").join(name)).await.unwrap();
    }
    let (readable, ..) = export(&disk, &runtime).await;
    assert!(whole.is_subset(&readable));
}
