//! What the program writes: the bytes that are changed.
#![expect(clippy::expect_used, reason = "a sample that cannot be made is a mistake here")]

use bytes::Bytes;
use kubemq_broker::{
    BatchView, Kind, Limits, MoveItem, MoveMode, Name, Operation, Reader, Scheduled, Sequences, Start, State, Stored,
    TimerRef,
};
use kubemq_raft::batch::{Envelope, Header, Origin};
use kubemq_raft::network::Frame;
use kubemq_runtime::Random;

const KINDS: [Kind; 2] = [Kind::Queue, Kind::EventsStore];
const NAMES: [&str; 4] = ["a", "orders.eu", "dead", "é"];

fn below(random: &Random, bound: usize) -> usize {
    usize::try_from(random.below(bound as u64)).expect("a number below a usize")
}

/// Returns an operation that may well mean something to [`state`].
pub(crate) fn operation(random: &Random) -> Operation {
    let name = || Name::new(NAMES[below(random, NAMES.len())]).expect("a name");
    let (channel, to) = (name(), name());
    let kind = KINDS[usize::from(random.below(3) == 0)];
    let id = kubemq_broker::ChannelId(random.below(6));
    let sequences = Sequences::range(random.below(20), random.below(40));
    let reader = Reader::client(&channel);
    match random.below(13) {
        0..4 => Operation::Publish {
            kind,
            channel,
            delay_ms: random.below(3) * 1_000,
            expiration_ms: random.below(3) * 5_000,
            message: Bytes::from(vec![7; below(random, 40)]),
        },
        4 => Operation::Ack { channel: id, sequences },
        5 => {
            let item = |sequence| {
                let stored = Stored { entry: 1 + sequence, part: 1, bytes: 9 };
                MoveItem { sequence, receive_count: 1, expires_at: random.below(2) * 1_000_000, stored: Some(stored) }
            };
            let mode = [MoveMode::Return, MoveMode::DeadLetter, MoveMode::Requeue][below(random, 3)];
            Operation::Move { from: id, to: (kind, to), mode, items: (0..random.below(9)).map(item).collect() }
        }
        6 => Operation::Drop { channel: id, sequences },
        7 => {
            let timer = |part| {
                let scheduled = (part > 1).then(|| Scheduled::new(id, random.below(9_000), 7));
                TimerRef { due: random.below(9_000_000_000), entry: random.below(20), part, scheduled }
            };
            Operation::Release { timers: (0..4).map(timer).collect() }
        }
        8 => Operation::Create { kind, channel },
        9 => Operation::Delete { kind, channel },
        10 => Operation::Trim { channel: id, upto: random.below(30) },
        11 => Operation::OpenCursor { channel, reader, start: Start::At(random.below(30)) },
        _ => Operation::MoveCursor { channel: id, reader, after: random.below(30), events: 3, bytes: 30 },
    }
}

/// Returns a state that some operations have been through.
pub(crate) fn state(random: &Random) -> State {
    let mut state = State::new(Limits::default());
    for entry in 1..=1 + random.below(30) {
        let operations: Vec<Bytes> = (0..1 + random.below(8)).map(|_| operation(random).to_bytes()).collect();
        apply(&mut state, (entry, entry * 500_000_000), entry, &operations);
    }
    state
}

/// Applies one batch at an entry and a time.
pub(crate) fn apply(state: &mut State, (entry, time): (u64, u64), number: u64, operations: &[Bytes]) {
    let batch = BatchView { origin: 1, epoch: 1, number, first_part: 1, operations };
    // What it answers is not known to be right: only that it does.
    drop(state.apply(entry, time, &[batch]));
}

/// Applies one more batch, and returns whether the state can be written down and read again.
pub(crate) fn goes_on(mut state: State, operations: &[Bytes]) -> bool {
    let next = (state.entry().saturating_add(1), state.time().saturating_add(1));
    apply(&mut state, next, next.0, operations);
    let restored = State::restore(state.snapshot().chunks().all().expect("nothing left the memory"))
        .expect("a state that was just written");
    restored.digest() == state.digest()
}

/// Returns the bytes of a snapshot.
pub(crate) fn snapshot(random: &Random) -> Vec<u8> {
    state(random).snapshot().chunks().all().expect("nothing left the memory").into_iter().flatten().collect()
}

/// Returns a block of runs as the index on disk holds it.
pub(crate) fn runs(random: &Random) -> Vec<u8> {
    let mut state = State::new(Limits::default());
    let publish = Operation::Publish {
        kind: Kind::Queue,
        channel: Name::new("a").expect("a name"),
        delay_ms: 0,
        expiration_ms: 0,
        message: Bytes::from_static(b"message"),
    };
    let operations = [publish.to_bytes()];
    let mut entry = 0;
    for number in 1..=200 {
        entry += 1 + random.below(3);
        apply(&mut state, (entry, entry), number, &operations);
    }
    let snapshot = state.snapshot();
    snapshot.sealed_blocks().next().expect("a block that is full").1.to_vec()
}

/// Returns part 0 of an entry.
pub(crate) fn envelope(random: &Random) -> Vec<u8> {
    let header = |number| Header { origin: Origin { node: random.u64(), epoch: 1 }, number, operations: 3 };
    Envelope { batches: (0..1 + random.below(5)).map(header).collect() }.encode().to_vec()
}

/// Returns what nodes send to each other, in one piece.
pub(crate) fn frame(random: &Random) -> Vec<u8> {
    let piece = || Bytes::from(vec![9; below(random, 50)]);
    Frame { head: piece(), bodies: (0..random.below(5)).map(|_| piece()).collect() }.to_bytes().to_vec()
}

/// Returns a configuration file, and half of the time only the beginning of one.
pub(crate) fn config(random: &Random) -> Vec<u8> {
    let example = kubemq_server::config::example();
    let is_meant = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let lines: Vec<&str> = example.lines().filter(is_meant).collect();
    let most = if random.below(2) == 0 { lines.len() } else { 1 + below(random, lines.len()) };
    // A section without a key would be no section.
    let most = (1..=most).rev().find(|most| !lines[most - 1].ends_with(':')).unwrap_or(lines.len());
    lines[..most].join("\n").into_bytes()
}
