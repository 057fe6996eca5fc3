//! What each operation does, one table or scenario per rule.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use bytes::Bytes;
use kubemq_broker::{
    Answer, Applied, BatchView, BlockKey, ChannelId, Effect, Kind, Limits, MoveItem, MoveMode, Name, Operation,
    Outcome, Reader, Refusal, Scheduled, Sequences, Start, State, Stored, TimerRef, decode_run_block,
};

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_700_000_000 * SECOND;

/// A state with one sender, one second between entries.
struct Broker {
    state: State,
    entry: u64,
    time: u64,
}

impl Broker {
    fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    fn with_limits(limits: Limits) -> Self {
        Self { state: State::new(limits), entry: 0, time: START }
    }

    fn apply_all(&mut self, operations: &[Operation]) -> (Vec<Outcome>, Vec<Effect>) {
        self.entry += 1;
        self.time += SECOND;
        let operations: Vec<Bytes> = operations.iter().map(Operation::to_bytes).collect();
        let batch = BatchView { origin: 1, epoch: 1, number: self.entry, first_part: 1, operations: &operations };
        let Applied { answers, effects } = self.state.apply(self.entry, self.time, &[batch]);
        let Answer::Results(results) = &answers[0].answer else { panic!("{:?}", answers[0]) };
        (results.to_vec(), effects)
    }

    fn apply(&mut self, operation: Operation) -> Outcome {
        self.apply_all(&[operation]).0[0]
    }

    /// Publishes messages of these sizes to a queue, in one entry.
    fn publish(&mut self, name: &str, sizes: &[usize]) -> ChannelId {
        let operations: Vec<Operation> = sizes.iter().map(|size| publish(name, 0, 0, *size)).collect();
        self.apply_all(&operations);
        self.id(name)
    }

    fn id(&self, name: &str) -> ChannelId {
        self.state.channel(Kind::Queue, name).expect("the channel exists").id()
    }

    fn alive(&self, name: &str) -> Vec<u64> {
        let channel = self.state.channel(Kind::Queue, name).expect("the channel exists");
        let mut alive = Vec::new();
        while let Some(next) = channel.next_alive(alive.last().map_or(0, |last| last + 1)) {
            alive.push(next);
        }
        assert_eq!(channel.waiting(), alive.len() as u64);
        alive
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn publish(channel: &str, delay_ms: u64, expiration_ms: u64, size: usize) -> Operation {
    let message = Bytes::from(vec![b'm'; size]);
    Operation::Publish { kind: Kind::Queue, channel: name(channel), delay_ms, expiration_ms, message }
}

fn item(sequence: u64) -> MoveItem {
    MoveItem { sequence, receive_count: 1, expires_at: 0, stored: None }
}

fn move_all(from: ChannelId, to: &str, mode: MoveMode, sequences: &[u64]) -> Operation {
    let items = sequences.iter().copied().map(item).collect();
    Operation::Move { from, to: (Kind::Queue, name(to)), mode, items }
}

fn sequences(all: &[u64]) -> Sequences {
    all.iter().copied().collect()
}

#[test]
fn publish_gives_gap_free_sequences_from_1_and_creates_the_channel() {
    let mut broker = Broker::new();
    let (outcomes, effects) = broker.apply_all(&[publish("q", 0, 0, 1), publish("r", 0, 0, 2), publish("q", 0, 0, 3)]);
    let time = broker.time;
    assert_eq!(
        outcomes,
        [
            Outcome::Stored { sequence: 1, time },
            Outcome::Stored { sequence: 1, time },
            Outcome::Stored { sequence: 2, time }
        ]
    );
    let (q, r) = (ChannelId((1 << 16) + 1), ChannelId((1 << 16) + 2));
    assert_eq!((broker.id("q"), broker.id("r")), (q, r), "entry and part");
    assert_eq!(
        effects,
        [
            Effect::Created { channel: q, kind: Kind::Queue, name: "q".into() },
            Effect::Created { channel: r, kind: Kind::Queue, name: "r".into() },
            Effect::Ready { channel: q },
            Effect::Ready { channel: r },
        ]
    );
    let location = broker.state.channel_by_id(q).unwrap().locate(2).here().unwrap();
    assert_eq!((location.entry, location.part, location.copy), (1, 3, None));
}

#[test]
fn publish_is_refused_where_nothing_can_be_stored() {
    let full = Limits { channels: 1, ..Limits::default() };
    let events =
        |kind| Operation::Publish { kind, channel: name("e"), delay_ms: 0, expiration_ms: 0, message: Bytes::new() };
    for (limits, operation, expected) in [
        (Limits::default(), events(Kind::Events), Refusal::NotStored),
        (Limits::default(), events(Kind::Commands), Refusal::NotStored),
        (Limits::default(), events(Kind::Queries), Refusal::NotStored),
        (full, publish("second", 0, 0, 1), Refusal::TooManyChannels),
        (full, publish("second", 50, 0, 1), Refusal::TooManyChannels),
    ] {
        let mut broker = Broker::with_limits(limits);
        broker.apply(Operation::Create { kind: Kind::Queue, channel: name("first") });
        let before = broker.state.index_bytes();
        assert_eq!(broker.apply(operation.clone()), Outcome::Refused(expected), "{operation:?}");
        assert_eq!((broker.state.channel_count(), broker.state.index_bytes()), (1, before), "nothing changed");
    }
}

#[test]
fn a_move_says_where_the_message_stands_and_an_old_one_does_not() {
    let mut broker = Broker::new();
    let q = broker.publish("q", &[15, 15]);
    let stored = Stored { entry: broker.state.entry(), part: 2, bytes: 15 };
    let items = vec![item(1), MoveItem { stored: Some(stored), ..item(2) }];
    let to = (Kind::Queue, name("r"));
    let moved = Operation::Move { from: q, to, mode: MoveMode::Requeue, items };
    assert_eq!(broker.apply(moved), Outcome::Moved { count: 2 });
    let found = broker.state.channel(Kind::Queue, "r").unwrap();
    let places: Vec<_> = [1, 2].map(|sequence| found.locate(sequence).here().unwrap()).into();
    assert_eq!(places.iter().map(|at| (at.entry, at.part, at.bytes)).collect::<Vec<_>>(), [(1, 1, 15), (1, 2, 15)]);
}

#[test]
fn the_size_of_what_is_settled_in_a_sealed_block_is_an_equal_share_and_the_last_takes_the_rest() {
    let mut broker = Broker::new();
    // Two channels in turn, so that every message is a run of its own.
    for number in 0..100 {
        broker.apply_all(&[publish("q", 0, 0, number), publish("r", 0, 0, 1)]);
    }
    let q = broker.id("q");
    let bytes = |broker: &Broker| broker.state.channel_by_id(q).unwrap().waiting_bytes();
    assert_eq!(bytes(&broker), 99 * 100 / 2);
    // 64 runs are sealed; their messages have 63 * 64 / 2 bytes.
    broker.apply(Operation::Ack { channel: q, sequences: sequences(&[1]) });
    assert_eq!(bytes(&broker), 4950 - 2016 / 64);
    broker.apply(Operation::Ack { channel: q, sequences: Sequences::range(3, 64) });
    broker.apply(Operation::Ack { channel: q, sequences: sequences(&[2]) });
    assert_eq!(bytes(&broker), 4950 - 2016, "all together are exactly the sum");
    broker.apply(Operation::Ack { channel: q, sequences: sequences(&[66]) });
    assert_eq!(bytes(&broker), 4950 - 2016 - 65, "in the open block each run has its own size");
}

#[test]
fn settled_messages_are_ignored() {
    let mut broker = Broker::new();
    let q = broker.publish("q", &[10, 20, 30, 40, 50]);
    for (channel, list, expected, left) in [
        (q, &[2][..], 1, &[1, 3, 4, 5][..]),
        (q, &[2], 0, &[1, 3, 4, 5]),
        (q, &[0, 2, 3, 99], 1, &[1, 4, 5]),
        (ChannelId(999), &[1], 0, &[1, 4, 5]),
        (q, &[1, 4, 5], 3, &[]),
        (q, &[1, 2, 3, 4, 5], 0, &[]),
    ] {
        let (outcomes, effects) = broker.apply_all(&[Operation::Ack { channel, sequences: sequences(list) }]);
        assert_eq!(outcomes, [Outcome::Settled { count: expected }], "{list:?}");
        assert_eq!(effects.is_empty(), expected == 0, "{effects:?}");
        assert_eq!(broker.alive("q"), left);
    }
    let channel = broker.state.channel_by_id(q).unwrap();
    let totals = channel.totals();
    assert_eq!((totals.sent, totals.sent_bytes, totals.settled, totals.settled_bytes), (5, 150, 5, 150));
    assert_eq!((channel.first_sequence(), channel.last_sequence(), channel.waiting_bytes()), (None, None, 0));
    assert_eq!(channel.next_sequence(), 6, "sequences go on");
}

#[test]
fn shares_of_a_run_add_up_whatever_is_settled_first() {
    for order in [[1, 2, 3, 4], [4, 3, 2, 1], [2, 4, 1, 3]] {
        let mut broker = Broker::new();
        let q = broker.publish("q", &[1, 0, 9, 5]);
        let channel = broker.state.channel_by_id(q).unwrap();
        let shares: Vec<u64> = (1..=4).map(|sequence| channel.locate(sequence).here().unwrap().bytes).collect();
        assert_eq!(shares, [4, 4, 4, 3], "15 bytes in equal shares");
        let mut left = 15;
        for sequence in order {
            broker.apply(Operation::Ack { channel: q, sequences: Sequences::one(sequence) });
            left -= shares[sequence as usize - 1];
            assert_eq!(broker.state.channel_by_id(q).unwrap().waiting_bytes(), left);
        }
        assert_eq!(left, 0);
    }
}

#[test]
fn expired_messages_are_counted_apart() {
    let mut broker = Broker::new();
    let q = broker.publish("q", &[1, 1, 1]);
    let dropped = Operation::Drop { channel: q, sequences: sequences(&[1, 3]) };
    assert_eq!(broker.apply(dropped.clone()), Outcome::Settled { count: 2 });
    assert_eq!(broker.apply(dropped), Outcome::Settled { count: 0 });
    let totals = *broker.state.channel_by_id(q).unwrap().totals();
    assert_eq!((totals.expired, totals.settled, broker.alive("q")), (2, 0, vec![2]));
}

#[test]
fn what_a_move_keeps_and_what_it_changes() {
    // (mode, rerouted from, policy cleared, fresh), first from a fresh message, then from what that made of it.
    for (mode, first, second) in [
        (MoveMode::Return, (None, false, false), (Some("q"), true, false)),
        (MoveMode::DeadLetter, (Some("q"), true, false), (Some("d"), true, false)),
        (MoveMode::Requeue, (None, false, true), (None, true, true)),
    ] {
        let mut broker = Broker::new();
        let q = broker.publish("q", &[7]);
        let body = broker.state.channel_by_id(q).unwrap().locate(1).here().map(|at| (at.entry, at.part)).unwrap();
        let items = vec![MoveItem { sequence: 1, receive_count: 4, expires_at: 77, stored: None }];
        broker.apply(Operation::Move { from: q, to: (Kind::Queue, name("t")), mode, items });
        let check = |broker: &Broker, channel: &str, expected: (Option<&str>, bool, bool), count: u32| {
            let channel = broker.state.channel(Kind::Queue, channel).unwrap();
            let location = channel.locate(channel.last_sequence().unwrap()).here().unwrap();
            let copy = location.copy.unwrap();
            assert_eq!((location.entry, location.part, location.bytes), (body.0, body.1, 7), "no body is copied");
            let seen = (copy.rerouted_from.as_deref(), copy.cleared_policy, copy.fresh);
            assert_eq!(seen, expected, "{mode:?}");
            assert_eq!((copy.receive_count, copy.time), (count, broker.time));
        };
        check(&broker, "t", first, 4);

        let mut broker = Broker::new();
        let q = broker.publish("q", &[7]);
        broker.apply(move_all(q, "d", MoveMode::DeadLetter, &[1]));
        let d = broker.id("d");
        broker.apply(move_all(d, "t", mode, &[1]));
        check(&broker, "t", second, 1);
    }
}

#[test]
fn a_move_counts_where_messages_went() {
    // (mode, to, what q counts: sent, settled, dead-lettered, redelivered; what t counts as sent)
    for (mode, to, expected, at_target) in [
        (MoveMode::Return, "q", (3, 0, 0, 2), None),
        (MoveMode::Return, "t", (3, 2, 0, 2), Some(2)),
        (MoveMode::DeadLetter, "t", (3, 2, 2, 0), Some(2)),
        (MoveMode::DeadLetter, "q", (5, 2, 2, 0), None),
        (MoveMode::Requeue, "q", (5, 2, 0, 0), None),
        (MoveMode::Requeue, "t", (3, 2, 0, 0), Some(2)),
    ] {
        let mut broker = Broker::new();
        let q = broker.publish("q", &[1, 1, 1]);
        let (outcomes, effects) = broker.apply_all(&[move_all(q, to, mode, &[1, 2, 9])]);
        assert_eq!(outcomes, [Outcome::Moved { count: 2 }]);
        assert!(effects.contains(&Effect::Settled { channel: q, sequences: Sequences::range(1, 2) }));
        assert!(effects.contains(&Effect::Ready { channel: broker.id(to) }));
        let channel = broker.state.channel_by_id(q).unwrap();
        let totals = channel.totals();
        let seen = (totals.sent, totals.settled, totals.dead_lettered, totals.redelivered);
        assert_eq!(seen, expected, "{mode:?} to {to}");
        assert_eq!(channel.waiting(), totals.sent - totals.settled - totals.expired);
        let target = broker.state.channel(Kind::Queue, "t").map(|channel| channel.totals().sent);
        assert_eq!(target, at_target);
    }
}

#[test]
fn a_move_to_its_own_channel_goes_to_the_tail() {
    let mut broker = Broker::new();
    let q = broker.publish("q", &[1, 1, 1]);
    // 4 is where the first copy lands: it was not there when the move was proposed.
    let outcome = broker.apply(move_all(q, "q", MoveMode::Return, &[2, 1, 2, 4]));
    assert_eq!(outcome, Outcome::Moved { count: 2 });
    assert_eq!(broker.alive("q"), [3, 4, 5]);
    let channel = broker.state.channel_by_id(q).unwrap();
    let parts: Vec<u16> = [3, 4, 5].map(|sequence| channel.locate(sequence).here().unwrap().part).into();
    assert_eq!(parts, [3, 2, 1], "in the order in which they were named");
}

#[test]
fn a_move_that_cannot_be_is_refused_as_a_whole() {
    let limits = Limits { channels: 1, ..Limits::default() };
    let events = (Kind::Events, name("e"));
    let mut broker = Broker::with_limits(limits);
    let q = broker.publish("q", &[1, 1]);
    for (operation, expected) in [
        (move_all(q, "dead", MoveMode::DeadLetter, &[1, 2]), Outcome::Refused(Refusal::TooManyChannels)),
        (
            Operation::Move { from: q, to: events, mode: MoveMode::Requeue, items: vec![item(1)] },
            Outcome::Refused(Refusal::NotStored),
        ),
        (move_all(q, "dead", MoveMode::DeadLetter, &[8, 9]), Outcome::Moved { count: 0 }),
        (move_all(q, "dead", MoveMode::DeadLetter, &[]), Outcome::Moved { count: 0 }),
        (move_all(ChannelId(5), "dead", MoveMode::DeadLetter, &[1]), Outcome::Moved { count: 0 }),
    ] {
        let (outcomes, effects) = broker.apply_all(std::slice::from_ref(&operation));
        assert_eq!((outcomes, effects), (vec![expected], vec![]), "{operation:?}");
        assert_eq!(broker.alive("q"), [1, 2]);
        assert_eq!(broker.state.channel_count(), 1);
    }
}

#[test]
fn a_delay_gives_no_sequence_until_its_release() {
    let mut broker = Broker::new();
    let (outcomes, effects) = broker.apply_all(&[publish("q", 2_000, 9_000, 4), publish("q", 0, 0, 1)]);
    let due = broker.time + 2 * SECOND;
    let scheduled = Scheduled::new(broker.id("q"), 9_000, 4);
    let reference = TimerRef { due, entry: 1, part: 1, scheduled: Some(scheduled) };
    assert_eq!(outcomes[0], Outcome::Scheduled { time: broker.time, due });
    assert!(effects.contains(&Effect::TimerSet { due }));
    assert_eq!(broker.alive("q"), [1]);
    let channel = broker.state.channel(Kind::Queue, "q").unwrap();
    assert_eq!((channel.totals().delayed, channel.totals().sent, channel.is_empty()), (1, 1, false));
    let early = broker.state.due(due - 1, SECOND, 9);
    assert_eq!((early.timers, early.look_at), (vec![], Some(due)));
    assert_eq!(broker.state.due(due, SECOND, 9).timers, [reference]);

    let release = Operation::Release { timers: vec![reference] };
    assert_eq!(broker.apply(release.clone()), Outcome::Released { count: 0 }, "never early, whoever asks");
    let unknown = [(due + 1, 1, 1), (due, 2, 1), (due, 1, 2), (due, u64::MAX, 1)];
    let timers = unknown.map(|(due, entry, part)| TimerRef { due, entry, part, scheduled: None }).into();
    assert_eq!(broker.apply(Operation::Release { timers }), Outcome::Released { count: 0 });
    assert_eq!(broker.apply(release.clone()), Outcome::Released { count: 1 });
    assert_eq!(broker.alive("q"), [1, 2]);
    let copy = broker.state.channel(Kind::Queue, "q").unwrap().locate(2).here().unwrap().copy.unwrap().clone();
    assert_eq!((copy.time, copy.fresh, copy.receive_count), (broker.time, true, 0));
    assert_eq!(copy.expires_at, broker.time + 9 * SECOND, "it begins to expire when it becomes visible");
    assert_eq!(broker.apply(release), Outcome::Released { count: 0 }, "only once");
    assert_eq!(broker.state.timer_count(), 0);
}

#[test]
fn a_purge_leaves_what_is_held_and_what_came_later() {
    for (upto, held, count, left) in [
        (u64::MAX, &[][..], 6, &[][..]),
        (u64::MAX, &[1, 6], 4, &[1, 6]),
        (4, &[2, 3], 2, &[2, 3, 5, 6]),
        (4, &[0, 5, 6, u64::MAX], 4, &[5, 6]),
        (0, &[], 0, &[1, 2, 3, 4, 5, 6]),
        (3, &[1, 2, 3], 0, &[1, 2, 3, 4, 5, 6]),
    ] {
        let mut broker = Broker::new();
        broker.publish("q", &[1; 6]);
        let purge = Operation::Purge { kind: Kind::Queue, channel: name("q"), upto, held: sequences(held) };
        assert_eq!(broker.apply(purge), Outcome::Purged { count }, "{upto} {held:?}");
        assert_eq!(broker.alive("q"), left, "{upto} {held:?}");
        assert_eq!(broker.state.channel(Kind::Queue, "q").unwrap().totals().settled, count);
    }
    let mut broker = Broker::new();
    let purge = Operation::Purge { kind: Kind::Queue, channel: name("q"), upto: 9, held: Sequences::new() };
    assert_eq!(broker.apply(purge), Outcome::Purged { count: 0 });
    assert_eq!(broker.state.channel_count(), 0, "a purge creates nothing");
}

#[test]
fn create_and_delete_are_idempotent_and_a_new_life_has_a_new_id() {
    let mut broker = Broker::new();
    let create = Operation::Create { kind: Kind::Queue, channel: name("q") };
    let delete = Operation::Delete { kind: Kind::Queue, channel: name("q") };
    let first = ChannelId((1 << 16) + 1);
    assert_eq!(broker.apply(create.clone()), Outcome::Created { channel: first, new: true });
    assert_eq!(broker.apply(create.clone()), Outcome::Created { channel: first, new: false });
    broker.publish("q", &[1, 1]);
    broker.apply(publish("q", 1_000, 0, 1));
    let due = broker.time + SECOND;
    let (outcomes, effects) = broker.apply_all(std::slice::from_ref(&delete));
    assert_eq!(outcomes, [Outcome::Deleted { existed: true }]);
    assert_eq!(effects, [Effect::Deleted { channel: first }]);
    assert_eq!(broker.apply(delete), Outcome::Deleted { existed: false });
    assert!(broker.state.channel(Kind::Queue, "q").is_none());
    assert_eq!(broker.state.snapshot().living().all().unwrap().len(), 0, "the delayed message is not needed any more");

    assert_eq!(broker.apply(create), Outcome::Created { channel: ChannelId((7 << 16) + 1), new: true });
    let second = broker.publish("q", &[1]);
    let release = Operation::Release { timers: broker.state.due(due, SECOND, 9).timers };
    assert_eq!(broker.apply(release), Outcome::Released { count: 0 }, "a timer belongs to one life");
    assert_eq!(broker.state.timer_count(), 0, "and goes when it is due");
    let late = Operation::Ack { channel: first, sequences: Sequences::one(1) };
    assert_eq!(broker.apply(late), Outcome::Settled { count: 0 });
    assert_eq!((broker.alive("q"), broker.id("q") == second), (vec![1], true));
}

#[test]
fn kinds_keep_channels_apart() {
    let mut broker = Broker::new();
    for kind in Kind::ALL {
        broker.apply(Operation::Create { kind, channel: name("x") });
    }
    assert_eq!(broker.state.channel_count(), 5);
    broker.apply(Operation::Delete { kind: Kind::Events, channel: name("x") });
    let left: Vec<usize> = Kind::ALL.map(|kind| broker.state.channels(kind).count()).into();
    assert_eq!(left, [1, 1, 0, 1, 1]);
}

#[test]
fn only_idle_empty_channels_that_nobody_wanted_are_tidied_away() {
    let mut broker = Broker::new();
    let empty = broker.publish("empty", &[1]);
    broker.apply(Operation::Ack { channel: empty, sequences: Sequences::one(1) });
    let used = broker.time;
    broker.publish("full", &[1]);
    broker.apply(publish("delayed", 1_000_000, 0, 1));
    broker.apply(Operation::Create { kind: Kind::Queue, channel: name("wanted") });
    assert_eq!(broker.state.idle(used, 9), [], "not before");
    assert_eq!(broker.state.idle(used + 1, 9), [(empty, used)]);
    for channel in ["full", "delayed", "wanted"] {
        let found = broker.state.channel(Kind::Queue, channel).unwrap();
        let tidy = Operation::Tidy { channel: found.id(), last_activity: found.last_activity() };
        assert_eq!(broker.apply(tidy), Outcome::Kept, "{channel}");
    }
    let tidy = Operation::Tidy { channel: empty, last_activity: used };
    let again = broker.publish("empty", &[1]);
    broker.apply(Operation::Ack { channel: again, sequences: Sequences::one(2) });
    assert_eq!(broker.apply(tidy), Outcome::Kept, "it was used since");
    let tidy = Operation::Tidy { channel: empty, last_activity: broker.time - SECOND };
    assert_eq!(broker.apply(tidy.clone()), Outcome::Deleted { existed: true });
    assert_eq!(broker.apply(tidy), Outcome::Deleted { existed: false });
}

#[test]
fn what_cannot_be_read_is_refused_and_the_rest_of_the_batch_goes_on() {
    let mut state = State::default();
    let long = "n".repeat(300);
    let mut named = bytes::BytesMut::from(&[6, 1, 1, 0xac, 0x02][..]);
    named.extend_from_slice(long.as_bytes());
    let operations = [Bytes::new(), named.freeze(), publish("q", 0, 0, 1).to_bytes(), Bytes::from_static(&[99, 1])];
    let batch = BatchView { origin: 1, epoch: 1, number: 1, first_part: 1, operations: &operations };
    let applied = state.apply(1, START, &[batch]);
    let Answer::Results(results) = &applied.answers[0].answer else { panic!("{applied:?}") };
    assert_eq!(
        results[..],
        [
            Outcome::Refused(Refusal::Malformed),
            Outcome::Refused(Refusal::Name),
            Outcome::Stored { sequence: 1, time: START },
            Outcome::Refused(Refusal::Malformed),
        ]
    );
}

#[test]
fn numbers_that_do_not_fit_are_refused() {
    let mut state = State::default();
    let operations = [publish("q", 0, 0, 1).to_bytes(), publish("q", 0, 0, 1).to_bytes()];
    let batch = BatchView { origin: 1, epoch: 1, number: 1, first_part: u16::MAX, operations: &operations };
    let applied = state.apply(1, START, &[batch]);
    let Answer::Results(results) = &applied.answers[0].answer else { panic!("{applied:?}") };
    assert_eq!(results[1], Outcome::Refused(Refusal::Exhausted), "there is no such part");
    let late = BatchView { number: 2, first_part: 1, ..batch };
    let applied = state.apply(1 << 48, START, &[late]);
    let Answer::Results(results) = &applied.answers[0].answer else { panic!("{applied:?}") };
    assert_eq!(results[..], [Outcome::Refused(Refusal::Exhausted); 2]);
}

#[test]
fn an_entry_that_was_applied_changes_nothing() {
    let mut state = State::default();
    let operations = [publish("q", 0, 0, 1).to_bytes()];
    let batch = |number| BatchView { origin: 1, epoch: 1, number, first_part: 1, operations: &operations };
    let first = state.apply(5, START, &[batch(1)]);
    let digest = state.digest();
    for entry in [0, 4, 5] {
        let again = state.apply(entry, START + 1, &[batch(1), batch(2)]);
        assert_eq!(again.answers[0], first.answers[0]);
        assert_eq!(again.answers[1].answer, Answer::Gap { expected: 2 });
        assert_eq!((again.effects, state.digest()), (vec![], digest));
    }
}

#[test]
fn a_delay_that_overflows_is_due_at_the_end_of_time() {
    let mut broker = Broker::new();
    let outcome = broker.apply(publish("q", u64::MAX, u64::MAX, 1));
    assert_eq!(outcome, Outcome::Scheduled { time: broker.time, due: u64::MAX });
    assert_eq!(broker.state.timer_count(), 1);
    assert!(broker.state.due(broker.time + (1 << 60), SECOND, 9).timers.is_empty());
}

#[test]
fn a_block_of_64_runs_is_sealed_once_and_dropped_when_nothing_in_it_lives() {
    let mut broker = Broker::new();
    let mut sealed = Vec::new();
    for _ in 0..130 {
        // Another channel in between, so that each message is a run.
        let (_, effects) = broker.apply_all(&[publish("q", 0, 0, 1), publish("r", 0, 0, 1), publish("q", 0, 0, 1)]);
        let q = broker.id("q");
        for effect in effects {
            if let Effect::Sealed { key, block } = effect
                && let BlockKey::Runs { channel, first_sequence } = key
                && channel == q
            {
                let runs = decode_run_block(&block).unwrap();
                assert_eq!((runs.len(), runs[0].first_sequence), (64, first_sequence));
                sealed.push(key);
            }
        }
    }
    let q = broker.id("q");
    let key = |first_sequence| BlockKey::Runs { channel: q, first_sequence };
    assert_eq!(sealed, [key(1), key(65), key(129), key(193)]);
    // One old message stays; the blocks behind it go all the same.
    let ack = Operation::Ack { channel: q, sequences: Sequences::range(2, 200) };
    let before = broker.state.index_bytes();
    let (_, effects) = broker.apply_all(&[ack]);
    let dropped: Vec<&Effect> = effects.iter().filter(|effect| matches!(effect, Effect::Dropped { .. })).collect();
    assert_eq!(dropped, [&Effect::Dropped { key: key(65) }, &Effect::Dropped { key: key(129) }]);
    assert!(broker.state.index_bytes() < before);
    assert_eq!(broker.alive("q").len(), 61);
}

#[test]
fn damaged_blocks_are_refused() {
    let mut broker = Broker::new();
    let mut found = None;
    for _ in 0..65 {
        let (_, effects) = broker.apply_all(&[publish("q", 0, 0, 1)]);
        found = found.or(effects.into_iter().find_map(|effect| match effect {
            Effect::Sealed { block, .. } => Some(block),
            _ => None,
        }));
    }
    let block = found.expect("the 65th run seals the first block");
    assert!(decode_run_block(&block).is_some());
    for bit in 0..block.len() * 8 {
        let mut damaged = block.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decode_run_block(&damaged.into()), None, "bit {bit}");
    }
    for length in 0..block.len() {
        assert_eq!(decode_run_block(&block.slice(..length)), None, "{length} bytes");
    }
}

fn publish_stored(channel: &str, size: usize) -> Operation {
    let message = Bytes::from(vec![b'm'; size]);
    Operation::Publish { kind: Kind::EventsStore, channel: name(channel), delay_ms: 0, expiration_ms: 0, message }
}

fn open(channel: &str, reader: &Reader, start: Start) -> Operation {
    Operation::OpenCursor { channel: name(channel), reader: reader.clone(), start }
}

#[test]
fn a_new_reader_begins_where_it_asks_and_a_known_one_where_it_was() {
    let mut broker = Broker::new();
    broker.apply_all(&(0..10).map(|_| publish_stored("e", 5)).collect::<Vec<_>>());
    let channel = broker.state.channel(Kind::EventsStore, "e").unwrap().id();
    assert_eq!(broker.apply(Operation::Trim { channel, upto: 3 }), Outcome::Trimmed { count: 3 });
    let rows = [
        (Start::New, 10),
        (Start::First, 3),
        (Start::Last, 9),
        (Start::At(7), 6),
        (Start::At(0), 3),
        (Start::At(2), 3),
        (Start::At(11), 10),
        (Start::At(99), 10),
        (Start::At(u64::MAX), 10),
    ];
    for (place, (start, after)) in rows.into_iter().enumerate() {
        let reader = Reader::client(&name(&format!("c{place}")));
        assert_eq!(broker.apply(open("e", &reader, start)), Outcome::Opened { channel, after }, "{start:?}");
        assert_eq!(broker.apply(open("e", &reader, Start::First)), Outcome::Opened { channel, after }, "known");
    }
    let group = Reader::group(&name("c0"));
    assert_eq!(broker.apply(open("e", &group, Start::First)), Outcome::Opened { channel, after: 3 }, "another reader");
}

#[test]
fn a_reader_moves_on_and_never_back_and_what_it_took_is_counted() {
    let mut broker = Broker::new();
    let reader = Reader::group(&name("g"));
    let Outcome::Opened { channel, after: 0 } = broker.apply(open("e", &reader, Start::New)) else { panic!("opened") };
    broker.apply_all(&(0..10).map(|_| publish_stored("e", 5)).collect::<Vec<_>>());
    let moved = |channel, after| Operation::MoveCursor { channel, reader: reader.clone(), after, events: 2, bytes: 10 };
    for (to, after) in [(4, 4), (2, 4), (99, 10)] {
        assert_eq!(broker.apply(moved(channel, to)), Outcome::Advanced { after });
    }
    let found = broker.state.channel_by_id(channel).unwrap();
    assert_eq!((found.cursor(&reader), found.totals().settled, found.totals().settled_bytes), (Some(10), 6, 30));
    assert_eq!(found.waiting(), 10, "events stay where they are");
    assert_eq!(broker.apply(moved(ChannelId(1), 5)), Outcome::Advanced { after: 0 }, "no such channel");
    broker.publish("q", &[1]);
    let queue = broker.id("q");
    assert_eq!(broker.apply(moved(queue, 1)), Outcome::Advanced { after: 0 }, "queues have no readers");
    assert_eq!(broker.apply(Operation::Trim { channel: queue, upto: 9 }), Outcome::Trimmed { count: 0 });
    assert_eq!(broker.alive("q"), [1]);
}

#[test]
fn what_is_trimmed_frees_the_log_and_moves_the_readers() {
    let mut broker = Broker::new();
    for _ in 0..5 {
        broker.apply_all(&(0..4).map(|_| publish_stored("e", 5)).collect::<Vec<_>>());
    }
    let reader = Reader::client(&name("c"));
    let Outcome::Opened { channel, after: 0 } = broker.apply(open("e", &reader, Start::First)) else {
        panic!("opened")
    };
    let used = broker.state.channel_by_id(channel).unwrap().last_activity();
    let (outcomes, effects) = broker.apply_all(&[Operation::Trim { channel, upto: 10 }]);
    assert_eq!(outcomes, [Outcome::Trimmed { count: 10 }]);
    assert_eq!(effects, [Effect::Settled { channel, sequences: Sequences::range(1, 10) }]);
    let found = broker.state.channel_by_id(channel).unwrap();
    assert_eq!((found.first_sequence(), found.totals().expired, found.last_activity()), (Some(11), 10, used));
    assert_eq!(broker.state.snapshot().living().all().unwrap(), [(3, 3, 2), (4, 1, 4), (5, 1, 4)]);
    assert_eq!(broker.apply(open("e", &reader, Start::New)), Outcome::Opened { channel, after: 10 });
    assert_eq!(broker.apply(Operation::Trim { channel, upto: u64::MAX }), Outcome::Trimmed { count: 10 });
    assert_eq!(broker.state.snapshot().living().all().unwrap().len(), 0);
    let (outcomes, _) = broker.apply_all(&[publish_stored("e", 5)]);
    assert!(matches!(outcomes[0], Outcome::Stored { sequence: 21, .. }), "sequences go on: {outcomes:?}");
    let tidy = Operation::Tidy { channel, last_activity: broker.time };
    assert_eq!(broker.apply(tidy), Outcome::Kept);
}

#[test]
fn a_reader_of_a_channel_that_cannot_be_created_is_refused() {
    let limits = Limits { channels: 1, ..Limits::default() };
    let mut broker = Broker::with_limits(limits);
    let known = Reader::client(&name("known"));
    assert!(matches!(broker.apply(open("e", &known, Start::New)), Outcome::Opened { .. }));
    assert_eq!(broker.apply(open("f", &known, Start::New)), Outcome::Refused(Refusal::TooManyChannels));
}

#[test]
fn a_place_is_forgotten_when_it_is_old_and_what_comes_next_is_gone() {
    let mut broker = Broker::new();
    let [lost, exact, ahead] = ["lost", "exact", "ahead"].map(|client| Reader::client(&name(client)));
    let Outcome::Opened { channel, .. } = broker.apply(open("e", &lost, Start::New)) else { panic!("opened") };
    broker.apply_all(&(0..10).map(|_| publish_stored("e", 5)).collect::<Vec<_>>());
    broker.apply(open("e", &exact, Start::At(4)));
    broker.apply(open("e", &ahead, Start::At(9)));
    let used = broker.time;
    let forget = |before| Operation::ForgetCursors { channel, before };
    let has = |broker: &Broker, reader| broker.state.channel_by_id(channel).unwrap().cursor(reader);
    assert_eq!(broker.apply(forget(u64::MAX)), Outcome::Forgotten { count: 0 }, "they can all go on");
    broker.apply(Operation::Trim { channel, upto: 3 });
    assert_eq!(broker.apply(forget(1)), Outcome::Forgotten { count: 0 }, "it is not old");
    assert_eq!(broker.apply(forget(used)), Outcome::Forgotten { count: 1 });
    assert_eq!([&lost, &exact, &ahead].map(|reader| has(&broker, reader)), [None, Some(3), Some(8)]);
    // Whoever uses a place keeps it.
    let moved = Operation::MoveCursor { channel, reader: ahead.clone(), after: 0, events: 0, bytes: 0 };
    assert_eq!(broker.apply(moved), Outcome::Advanced { after: 8 });
    let now = broker.time;
    broker.apply(Operation::Trim { channel, upto: u64::MAX });
    let restored = kubemq_broker::State::restore(broker.state.snapshot().chunks().all().unwrap()).unwrap();
    broker.state = restored;
    assert_eq!(broker.apply(forget(now)), Outcome::Forgotten { count: 1 }, "with nothing stored there is no place");
    assert_eq!([&exact, &ahead].map(|reader| has(&broker, reader)), [None, Some(8)]);
    assert_eq!(broker.apply(forget(u64::MAX)), Outcome::Forgotten { count: 1 });
    assert!(broker.state.channel_by_id(channel).unwrap().is_empty());
    assert_eq!(
        broker.apply(Operation::ForgetCursors { channel: ChannelId(1), before: 1 }),
        Outcome::Forgotten { count: 0 }
    );
}
