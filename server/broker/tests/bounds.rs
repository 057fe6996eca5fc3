//! Each bound of the core that no other scenario comes to.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bytes::Bytes;
use kubemq_broker::limits::{CURSORS_PER_CHANNEL, Limits, MOVE_ITEMS, RELEASE_TIMERS, SEQUENCE_RANGES, TIMERS_SOON};
use kubemq_broker::{
    Answer, BatchView, ChannelId, DecodeError, Kind, MoveItem, MoveMode, Name, Operation, Outcome, Piece, Reader,
    Refusal, Restoring, Sequences, Start, State, TimerRef,
};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

#[test]
fn longer_lists_are_malformed() {
    let item = |sequence| MoveItem { sequence, receive_count: 1, expires_at: 0, stored: None };
    let moved = |count: usize| Operation::Move {
        from: ChannelId(1),
        to: (Kind::Queue, name("q")),
        mode: MoveMode::Requeue,
        items: (1..=count as u64).map(item).collect(),
    };
    let released = |count: usize| Operation::Release {
        timers: (1..=count as u64).map(|entry| TimerRef { due: 1, entry, part: 1, scheduled: None }).collect(),
    };
    // Every other one, so that each is a range of its own.
    let acked = |count: usize| Operation::Ack {
        channel: ChannelId(1),
        sequences: (1..=count as u64).map(|number| 2 * number).collect(),
    };
    for (most, operation) in
        [(MOVE_ITEMS, &moved as &dyn Fn(usize) -> Operation), (RELEASE_TIMERS, &released), (SEQUENCE_RANGES, &acked)]
    {
        let whole = operation(most);
        assert_eq!(Operation::decode(&whole.to_bytes()), Ok(whole));
        assert_eq!(Operation::decode(&operation(most + 1).to_bytes()), Err(DecodeError::TooMany), "{most}");
    }
    let long: Sequences = (1..=SEQUENCE_RANGES as u64 + 1).map(|number| 2 * number).collect();
    let pieces = long.split();
    assert_eq!(pieces.len(), 2, "who settles more uses several operations");
}

#[test]
fn a_channel_keeps_so_many_places_and_refuses_the_next() {
    let mut state = State::new(Limits::default());
    let mut entry = 0;
    let mut open = |from: usize, to: usize| {
        entry += 1;
        let open = |number| Operation::OpenCursor {
            channel: name("e"),
            reader: Reader::client(&name(&format!("c{number}"))),
            start: Start::New,
        };
        let operations: Vec<Bytes> = (from..to).map(|number| open(number).to_bytes()).collect();
        let batch = BatchView { origin: 1, epoch: 1, number: entry, first_part: 1, operations: &operations };
        let applied = state.apply(entry, entry, &[batch]);
        let Answer::Results(results) = &applied.answers[0].answer else { panic!("{applied:?}") };
        results.to_vec()
    };
    for from in (0..CURSORS_PER_CHANNEL).step_by(1000) {
        assert!(open(from, from + 1000).iter().all(|outcome| matches!(outcome, Outcome::Opened { .. })));
    }
    let next = CURSORS_PER_CHANNEL;
    assert_eq!(open(next, next + 1), [Outcome::Refused(Refusal::TooManyCursors)]);
    assert!(matches!(open(7, 8)[..], [Outcome::Opened { .. }]), "who is known goes on");
}

/// Delayed messages by the ten thousand, some of them sent after it was asked what is due: of those that are due at most
/// so many are told, and releasing them tells the others, each once and in order.
#[test]
fn what_is_due_soon_is_known_in_pieces() {
    const SECOND: u64 = 1_000_000_000;
    let mut state = State::default();
    let apply = |state: &mut State, operations: &[Operation]| {
        let operations: Vec<Bytes> = operations.iter().map(Operation::to_bytes).collect();
        let entry = state.entry() + 1;
        let batch = BatchView { origin: 1, epoch: 1, number: entry, first_part: 1, operations: &operations };
        assert_eq!(state.apply(entry, 1000 * SECOND, &[batch]).answers.len(), 1);
    };
    let send = |number: u64| Operation::Publish {
        kind: Kind::Queue,
        channel: name("q"),
        // All of them within half a minute, in no order.
        delay_ms: 30_000 + number * 7_919 % 30_000,
        expiration_ms: 0,
        message: Bytes::from_static(b"m"),
    };
    let pieces = |count: u64| (0..count / 1000).map(|piece| (piece * 1000..(piece + 1) * 1000).map(send).collect());
    let sent: Vec<Vec<Operation>> = pieces(3 * TIMERS_SOON as u64).collect();
    sent.iter().for_each(|operations| apply(&mut state, operations));
    let later = 2000 * SECOND;
    let due = state.due(later, SECOND, usize::MAX).timers;
    assert_eq!(due.len(), TIMERS_SOON, "no more are told at a time");
    // What comes in between is due before most of the others.
    sent.iter().for_each(|operations| apply(&mut state, operations));
    let due = state.due(later, SECOND, usize::MAX).timers;
    assert!((TIMERS_SOON..=2 * TIMERS_SOON).contains(&due.len()), "{} are told", due.len());

    let mut released: Vec<TimerRef> = Vec::new();
    while state.timer_count() > 0 {
        let timers = state.due(later, SECOND, RELEASE_TIMERS).timers;
        released.extend(&timers);
        let operations = [Operation::Release { timers }.to_bytes()];
        let entry = state.entry() + 1;
        let batch = BatchView { origin: 1, epoch: 1, number: entry, first_part: 1, operations: &operations };
        assert_eq!(state.apply(entry, later, &[batch]).answers.len(), 1);
    }
    assert_eq!(released.len(), 2 * sent.iter().map(Vec::len).sum::<usize>());
    assert!(released.is_sorted_by(|a, b| a < b), "in order, and none twice");
}

/// A start keeps less in memory than there is, and of each channel what is received first.
#[test]
fn what_is_read_first_is_in_memory_after_a_start() {
    const CHANNELS: u64 = 50;
    let mut state = State::default();
    let channel = |number: u64| name(&format!("q{number}"));
    for entry in 1..=64 * 6 + 1 {
        let publish = |number| {
            let (delay_ms, expiration_ms, message) = (0, 0, Bytes::from_static(b"m"));
            Operation::Publish { kind: Kind::Queue, channel: channel(number), delay_ms, expiration_ms, message }
        };
        let operations: Vec<Bytes> = (0..CHANNELS).map(|number| publish(number).to_bytes()).collect();
        let batch = BatchView { origin: 1, epoch: 1, number: entry, first_part: 1, operations: &operations };
        assert_eq!(state.apply(entry, entry, &[batch]).answers.len(), 1);
    }
    let mut restoring = Restoring::new(state.sealed_bytes() * 2 / 3);
    let mut chunks = state.snapshot().chunks();
    while let Piece::Next(chunk) = chunks.next_piece().unwrap() {
        restoring.push(chunk).unwrap();
    }
    let restored = restoring.finish().unwrap();
    assert_eq!(restored.digest(), state.digest());
    assert_eq!(restored.sealed_bytes(), state.sealed_bytes() * 2 / 3);
    let away = |number| restored.channel(Kind::Queue, channel(number).as_str()).unwrap().away_from(1, 2).count();
    assert_eq!((0..CHANNELS).map(away).sum::<usize>(), 0);
}
