//! A digest sees everything that is stored: two histories that differ in one value have two digests.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;

use bytes::Bytes;
use kubemq_broker::{
    BatchView, ChannelId, Kind, Limits, MoveItem, MoveMode, Name, Operation, Reader, Sequences, Start, State,
};

const START: u64 = 1_700_000_000_000_000_000;

/// What a history is made of; the tests change one value at a time.
#[derive(Clone)]
struct History {
    limits: Limits,
    kind: Kind,
    name: &'static str,
    size: usize,
    delay_ms: u64,
    expiration_ms: u64,
    delayed_size: usize,
    acked: u64,
    dropped: u64,
    mode: MoveMode,
    moved: MoveItem,
    target: &'static str,
    created: &'static str,
    time: u64,
    epoch: u64,
    origin: u64,
    beats: u64,
    reader: &'static str,
    start: u64,
}

impl History {
    fn usual() -> Self {
        Self {
            limits: Limits::default(),
            kind: Kind::Queue,
            name: "q",
            size: 10,
            delay_ms: 1_000,
            expiration_ms: 50,
            delayed_size: 20,
            acked: 2,
            dropped: 4,
            mode: MoveMode::Return,
            moved: MoveItem { sequence: 6, receive_count: 1, expires_at: 9, stored: None },
            target: "t",
            created: "c",
            time: 7,
            epoch: 1,
            origin: 1,
            beats: 0,
            reader: "c",
            start: 1,
        }
    }

    fn digest(&self) -> u64 {
        let name = |text: &str| Name::new(text).unwrap();
        let publish = |size: usize, delay_ms: u64| Operation::Publish {
            kind: self.kind,
            channel: name(self.name),
            delay_ms,
            expiration_ms: self.expiration_ms,
            message: Bytes::from(vec![b'm'; size]),
        };
        let publish_stored = || Operation::Publish {
            kind: Kind::EventsStore,
            channel: name("stored"),
            delay_ms: 0,
            expiration_ms: 0,
            message: Bytes::from_static(b"event"),
        };
        let channel = ChannelId((1 << 16) + 1);
        let mut operations: Vec<Operation> = (0..9).map(|_| publish(self.size, 0)).collect();
        operations.extend([
            publish(self.delayed_size, self.delay_ms),
            Operation::Ack { channel, sequences: Sequences::one(self.acked) },
            Operation::Drop { channel, sequences: Sequences::one(self.dropped) },
            Operation::Move {
                from: channel,
                to: (Kind::Queue, name(self.target)),
                mode: self.mode,
                items: vec![self.moved],
            },
            Operation::Create { kind: Kind::Queue, channel: name(self.created) },
            publish_stored(),
            publish_stored(),
            Operation::OpenCursor {
                channel: name("stored"),
                reader: Reader::client(&name(self.reader)),
                start: Start::At(self.start),
            },
        ]);
        operations.extend((0..self.beats).map(|_| Operation::Beat));
        let operations: Vec<Bytes> = operations.iter().map(Operation::to_bytes).collect();
        let batch =
            BatchView { origin: self.origin, epoch: self.epoch, number: 1, first_part: 1, operations: &operations };
        let mut state = State::new(self.limits);
        let applied = state.apply(1, START + self.time, &[batch]);
        assert_eq!(applied.answers.len(), 1);
        let again = State::restore(state.snapshot().chunks().all().unwrap()).unwrap();
        assert_eq!(again.digest(), state.digest());
        state.digest()
    }
}

#[test]
fn every_value_counts() {
    let usual = History::usual();
    let moved = usual.moved;
    let all = [
        ("nothing", usual.clone()),
        ("limits", History { limits: Limits { channels: 9, ..Limits::default() }, ..usual.clone() }),
        ("kind", History { kind: Kind::EventsStore, ..usual.clone() }),
        ("name", History { name: "r", ..usual.clone() }),
        ("size", History { size: 11, ..usual.clone() }),
        ("delay", History { delay_ms: 1_001, ..usual.clone() }),
        ("expiration of a delayed one", History { expiration_ms: 51, ..usual.clone() }),
        ("size of a delayed one", History { delayed_size: 21, ..usual.clone() }),
        ("acked", History { acked: 3, ..usual.clone() }),
        ("dropped", History { dropped: 5, ..usual.clone() }),
        ("moved", History { moved: MoveItem { sequence: 7, ..moved }, ..usual.clone() }),
        ("receive count", History { moved: MoveItem { receive_count: 2, ..moved }, ..usual.clone() }),
        ("expiry of a copy", History { moved: MoveItem { expires_at: 10, ..moved }, ..usual.clone() }),
        ("dead letter", History { mode: MoveMode::DeadLetter, ..usual.clone() }),
        ("requeue", History { mode: MoveMode::Requeue, ..usual.clone() }),
        ("target", History { target: "u", ..usual.clone() }),
        ("created on purpose", History { created: "t", ..usual.clone() }),
        ("time", History { time: 8, ..usual.clone() }),
        ("epoch", History { epoch: 2, ..usual.clone() }),
        ("origin", History { origin: 2, ..usual.clone() }),
        ("reader", History { reader: "d", ..usual.clone() }),
        ("place of a reader", History { start: 2, ..usual.clone() }),
        ("results", History { beats: 1, ..usual }),
    ];
    let mut seen: BTreeMap<u64, &str> = BTreeMap::new();
    for (what, history) in &all {
        if let Some(before) = seen.insert(history.digest(), what) {
            assert_eq!(before, *what, "the digest sees no difference between these histories");
        }
    }
    assert_eq!(seen.len(), all.len());
}
