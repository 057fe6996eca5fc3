//! Random lists of operations against a naive model, on four replicas that are written down and read again at
//! different moments; one of them lets blocks leave its memory whenever it may. Everything that can be seen must be
//! equal: answers, effects, messages, counts, digests.
//!
//! `KUBEMQ_LISTS` says how many lists (10 000), `KUBEMQ_FIRST` with which seed they begin (0), `KUBEMQ_SEED` runs a
//! single one.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod common;
mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::{Bytes, BytesMut};
use common::Random;
use kubemq_broker::{
    Answer, Applied, BatchView, BlockKey, ChannelId, Coldest, Effect, Kind, Limits, Lookup, MoveItem, MoveMode, Name,
    Operation, Piece, Reader, Restoring, Sequences, Snapshot, SnapshotBlocks, Start, State, Stored, TimerRef,
    decode_run_block,
};
use model::{Batch, Model};

const MILLISECOND: u64 = 1_000_000;

/// How far the leader looks ahead of what is due.
const AHEAD: u64 = 5_000 * MILLISECOND;

/// What a list is like: drawn once, so that some lists do a lot of one thing.
#[derive(Debug)]
struct Shape {
    names: Vec<String>,
    kinds: Vec<Kind>,
    /// How often each sort of operation is chosen.
    weights: [u64; 14],
    entries: u64,
    /// Most operations in one batch.
    operations: u64,
    /// Longest burst of publishes, and over how many channels it is spread.
    burst: u64,
    spread: u64,
    longest_delay_ms: u64,
    longest_step_ms: u64,
}

impl Shape {
    fn draw(random: &mut Random) -> Self {
        let all = ["a", "b", "orders", "orders.eu", "dead", "é"];
        // Long queues: bitmaps over many blocks, sealed blocks, holes between them.
        let large = random.once_in(30);
        let names = 1 + random.below(if large { 2 } else { all.len() as u64 });
        let names = all[..names as usize].iter().map(|name| (*name).to_owned()).collect();
        let kinds = match random.below(6) {
            0 => vec![Kind::EventsStore],
            1 | 2 => vec![Kind::Queue, Kind::EventsStore, Kind::Commands],
            _ => vec![Kind::Queue],
        };
        let mut weights = [0; 14];
        for weight in &mut weights {
            *weight = [0, 1, 1, 3, 8][random.below(5) as usize];
        }
        weights[0] += 4;
        if large {
            weights[0] += 16;
            weights[4] = weights[4].min(1);
            weights[6] = 0;
        }
        Self {
            names,
            kinds,
            weights,
            entries: 5 + random.below(25),
            operations: 1 + random.below(12),
            burst: if large { 600 } else { [1, 4, 30, 150][random.below(4) as usize] },
            spread: 1 + random.below(3),
            longest_delay_ms: [10, 5_000, 3_600_000][random.below(3) as usize],
            longest_step_ms: [2, 3_000, 2_000_000][random.below(3) as usize],
        }
    }
}

/// Everybody who reads stored events.
fn readers() -> Vec<Reader> {
    let names = ["a", "b"].map(|name| Name::new(name).unwrap());
    names.iter().flat_map(|name| [Reader::client(name), Reader::group(name)]).collect()
}

/// What the model is asked for when an operation is invented.
struct Inventor<'a> {
    random: &'a mut Random,
    shape: &'a Shape,
    model: &'a Model,
}

impl Inventor<'_> {
    fn kind(&mut self) -> Kind {
        *self.random.pick(&self.shape.kinds)
    }

    fn name(&mut self) -> Name {
        let name: &String = self.random.pick(&self.shape.names);
        Name::new(name).unwrap()
    }

    fn reader(&mut self) -> Reader {
        self.random.pick(&readers()).clone()
    }

    /// A channel that exists, usually.
    fn channel(&mut self) -> ChannelId {
        if self.model.channels.is_empty() || self.random.once_in(12) {
            return ChannelId(self.random.below(1 << 20));
        }
        self.random.pick(&self.model.channels).id
    }

    fn sequences_of(&self, id: ChannelId) -> Vec<u64> {
        let found = self.model.channels.iter().find(|channel| channel.id == id);
        found.map(|channel| channel.messages.iter().map(|message| message.sequence).collect()).unwrap_or_default()
    }

    /// Some sequences: stored ones, settled ones, and ones that never were.
    fn sequences(&mut self, id: ChannelId) -> Sequences {
        let stored = self.sequences_of(id);
        let highest = stored.last().copied().unwrap_or(5);
        match self.random.below(6) {
            0 => stored.first().map(|first| Sequences::one(*first)).unwrap_or_default(),
            1 => {
                let first = self.random.below(highest + 2);
                Sequences::range(first, first + self.random.below(highest + 3))
            }
            2 => stored.iter().copied().filter(|_| self.random.once_in(2)).collect(),
            3 => stored.iter().copied().filter(|_| !self.random.once_in(10)).collect(),
            4 => {
                let from = self.random.below(highest + 2);
                let last = if self.random.once_in(4) { u64::MAX } else { highest };
                Sequences::range(from, last)
            }
            _ => (0..self.random.below(6)).map(|_| self.random.below(highest + 3)).collect(),
        }
    }

    fn publish(&mut self, kind: Kind, name: Name) -> Operation {
        let delayed = self.shape.weights[9] > 0 && self.random.once_in(3);
        let delay_ms = if delayed { 1 + self.random.below(self.shape.longest_delay_ms) } else { 0 };
        let expiration_ms = if self.random.once_in(3) { self.random.below(100_000) } else { 0 };
        // Equal sizes within a channel: then the shares of a run and of a block are exact.
        let message = Bytes::from(vec![b'm'; name.as_str().len() * 7 + usize::from(kind == Kind::Queue)]);
        Operation::Publish { kind, channel: name, delay_ms, expiration_ms, message }
    }

    /// Where a message stands, as whoever moves it knows.
    fn stored(&self, id: ChannelId, sequence: u64) -> Option<Stored> {
        let channel = self.model.channels.iter().find(|channel| channel.id == id)?;
        let message = channel.messages.iter().find(|message| message.sequence == sequence)?;
        let ((entry, part), bytes) = (message.body, message.size as u32);
        Some(Stored { entry, part, bytes })
    }

    fn some_move(&mut self) -> Operation {
        let from = self.channel();
        let mut items: Vec<MoveItem> = Vec::new();
        for sequence in self.sequences(from).iter().take(40) {
            let receive_count = self.random.below(5) as u32;
            let expires_at = self.random.below(3) * 1_000_000;
            items.push(MoveItem { sequence, receive_count, expires_at, stored: self.stored(from, sequence) });
        }
        if self.random.once_in(4) {
            items.reverse();
        }
        if self.random.once_in(4) {
            // Repeated, and beyond the tail: where a copy of this very move may land.
            items.extend(items.first().copied());
            let next = self.sequences_of(from).last().map_or(1, |last| last + 1);
            items.push(MoveItem { sequence: next, receive_count: 9, expires_at: 9, stored: None });
        }
        let mode = *self.random.pick(&[MoveMode::Return, MoveMode::DeadLetter, MoveMode::Requeue]);
        let own = self.model.channels.iter().find(|channel| channel.id == from);
        let own = own.map(|channel| (channel.kind, Name::new(&channel.name).unwrap()));
        let to = match own {
            Some(own) if self.random.once_in(2) => own,
            _ => (self.kind(), self.name()),
        };
        Operation::Move { from, to, mode, items }
    }

    fn release(&mut self, time: u64) -> Operation {
        let soon = self.model.due(time.saturating_add(self.random.below(2) * 2_000 * MILLISECOND));
        let mut timers: Vec<TimerRef> = soon.into_iter().filter(|_| !self.random.once_in(5)).take(1024).collect();
        if self.random.once_in(4) {
            timers.extend(timers.first().copied());
            timers.truncate(1024);
        }
        if self.random.once_in(4) && timers.len() < 1024 {
            // Of an entry that is still to come.
            let entry = u64::MAX - self.random.below(1 << 60);
            timers.push(TimerRef { due: self.random.below(time), entry, part: 3, scheduled: None });
        }
        Operation::Release { timers }
    }

    /// One operation, or a burst of them.
    fn invent(&mut self, time: u64, into: &mut Vec<Option<Operation>>) {
        let sum: u64 = self.shape.weights.iter().sum();
        let mut drawn = self.random.below(sum);
        let mut sort = 0;
        while drawn >= self.shape.weights[sort] {
            drawn -= self.shape.weights[sort];
            sort += 1;
        }
        let operation = match sort {
            0 => {
                let start = self.random.below(self.shape.names.len() as u64);
                let kind = self.kind();
                for number in 0..1 + self.random.below(self.shape.burst) {
                    let place = (start + number % self.shape.spread) % self.shape.names.len() as u64;
                    let name = Name::new(&self.shape.names[place as usize]).unwrap();
                    let operation = self.publish(kind, name);
                    into.push(Some(operation));
                }
                return;
            }
            1 => {
                let channel = self.channel();
                Operation::Ack { channel, sequences: self.sequences(channel) }
            }
            2 => self.some_move(),
            3 => {
                let channel = self.channel();
                Operation::Drop { channel, sequences: self.sequences(channel) }
            }
            4 => {
                let (kind, channel) = (self.kind(), self.name());
                let id = self.model.find(kind, channel.as_str()).unwrap_or(ChannelId(0));
                let held = if self.random.once_in(3) { Sequences::new() } else { self.sequences(id) };
                let upto = match self.random.below(3) {
                    0 => u64::MAX,
                    _ => self.random.below(self.sequences_of(id).last().copied().unwrap_or_default() + 3),
                };
                Operation::Purge { kind, channel, upto, held }
            }
            5 => Operation::Create { kind: self.kind(), channel: self.name() },
            6 if self.random.once_in(3) => Operation::Delete { kind: self.kind(), channel: self.name() },
            7 => {
                let channel = self.channel();
                let found = self.model.channels.iter().find(|one| one.id == channel);
                let last_activity = match found {
                    Some(found) if !self.random.once_in(4) => found.last_activity,
                    _ => self.random.below(time),
                };
                Operation::Tidy { channel, last_activity }
            }
            8 => {
                into.push(None);
                return;
            }
            9 => self.release(time),
            10 => {
                let channel = self.channel();
                let highest = self.sequences_of(channel).last().copied().unwrap_or(3);
                let upto = if self.random.once_in(8) { u64::MAX } else { self.random.below(highest + 2) };
                Operation::Trim { channel, upto }
            }
            11 => {
                let (channel, reader) = (self.name(), self.reader());
                let sequence = self.random.below(12);
                let start = *self.random.pick(&[Start::New, Start::First, Start::Last, Start::At(sequence)]);
                Operation::OpenCursor { channel, reader, start }
            }
            12 => {
                let (channel, reader) = (self.channel(), self.reader());
                let highest = self.sequences_of(channel).last().copied().unwrap_or(3);
                let after = if self.random.once_in(8) { u64::MAX } else { self.random.below(highest + 2) };
                let (events, bytes) = (self.random.below(5), self.random.below(500));
                Operation::MoveCursor { channel, reader, after, events, bytes }
            }
            13 => {
                let before = if self.random.once_in(3) { u64::MAX } else { self.random.below(time + 1) };
                Operation::ForgetCursors { channel: self.channel(), before }
            }
            _ => Operation::Beat,
        };
        into.push(Some(operation));
    }
}

/// Something that cannot be read.
fn garbage(random: &mut Random) -> Bytes {
    let readable = Operation::Ack { channel: ChannelId(3), sequences: Sequences::range(1, 1 << 40) }.to_bytes();
    match random.below(3) {
        0 => readable.slice(..random.below(readable.len() as u64) as usize),
        1 => Bytes::from(vec![200 + random.below(50) as u8; 5]),
        _ => Bytes::from_static(&[9, 7]),
    }
}

/// A replica: its own state, how often it starts anew from what it wrote down, and what it wrote down last.
struct Replica {
    state: State,
    restore_once_in: u64,
    forgets: bool,
    durable: Vec<Bytes>,
}

impl Replica {
    fn new(limits: Limits, restore_once_in: u64, forgets: bool) -> Self {
        Self { state: State::new(limits), restore_once_in, forgets, durable: Vec::new() }
    }

    fn maybe_restore(&mut self, random: &mut Random) {
        if random.once_in(self.restore_once_in) {
            let digest = self.state.digest();
            let written = write(&self.state.snapshot(), &self.durable);
            let room = if self.forgets { random.below(4) * 2_000 } else { u64::MAX };
            let mut restoring = Restoring::new(room);
            recut(random, &written).into_iter().try_for_each(|chunk| restoring.push(chunk)).unwrap();
            let restored = restoring.finish().unwrap();
            assert_eq!(restored.digest(), digest, "digest after a restore");
            if !self.forgets {
                assert_eq!(restored.index_bytes(), self.state.index_bytes(), "memory counted again from nothing");
            }
            assert!(restored.sealed_bytes() <= room);
            self.state = restored;
            self.durable = written;
        }
    }

    /// Has blocks leave the memory that were written down.
    fn maybe_forget(&mut self, random: &mut Random) {
        if !self.forgets || random.once_in(3) {
            return;
        }
        let digest = self.state.digest();
        if random.once_in(2) {
            self.durable = write(&self.state.snapshot(), &self.durable);
        }
        if self.durable.is_empty() {
            return;
        }
        let entry = entry_of(&self.durable);
        let goal = if random.once_in(2) { 0 } else { self.state.index_bytes().saturating_sub(random.below(5_000)) };
        let keep = random.below(3) as usize;
        let mut next = Some(Coldest::default());
        while let Some(from) = next {
            next = self.state.let_go(entry, goal, keep, from, 1 + random.below(3) as usize);
        }
        assert_eq!(self.state.digest(), digest, "what is in memory is no part of the state");
    }

    /// Brings everything back from the index on disk.
    fn remember(&mut self, index: &Index) {
        let away: Vec<BlockKey> = index.blocks.keys().copied().filter(|key| self.state.is_away(*key)).collect();
        assert_eq!(self.state.sealed_blocks() + away.len() as u64, index.blocks.len() as u64, "here or away");
        for key in away {
            self.bring_back(index, key);
        }
    }

    fn bring_back(&mut self, index: &Index, key: BlockKey) {
        if let Some((_, other)) = index.blocks.iter().find(|(other, _)| **other != key) {
            assert!(!self.state.bring_back(key, other), "another block is not taken");
        }
        assert!(self.state.bring_back(key, &index.blocks[&key]), "{key:?} comes back");
    }

    /// Asks what is due while not everything is in memory, and brings back what it says it needs, some of it at a time:
    /// the first of all that is due is told in order, and in the end all of it.
    fn look_at_what_is_due(&mut self, random: &mut Random, index: &Index, model: &Model) {
        let now = model.time.saturating_add(random.below(2) * random.below(100_000) * MILLISECOND);
        let expected = model.due(now);
        let max = 1 + random.below(200) as usize;
        loop {
            let due = self.state.due(now, random.below(100_000) * MILLISECOND, max);
            assert_eq!(due.timers, expected[..due.timers.len()], "what is due, in order");
            assert!(due.away.iter().all(|key| self.state.is_away(*key)), "only what is away is asked for");
            if due.timers.len() == max.min(expected.len()) {
                return;
            }
            let most = 1 + random.below(due.away.len() as u64) as usize;
            due.away[..most].iter().for_each(|key| self.bring_back(index, *key));
        }
    }
}

/// A snapshot's bytes; what left the memory is taken over from the one before.
fn write(snapshot: &Snapshot, previous: &[Bytes]) -> Vec<Bytes> {
    let (mut walk, mut chunks, mut rest) = (snapshot.chunks(), Vec::new(), previous.iter());
    loop {
        match walk.next_piece().expect("the snapshot before has what is not in memory") {
            Piece::Next(chunk) => chunks.push(chunk),
            Piece::Previous => walk.feed(rest.next().cloned()),
            Piece::End => return chunks,
        }
    }
}

fn living(snapshot: &Snapshot, previous: &[Bytes]) -> Vec<(u64, u16, u16)> {
    let (mut walk, mut ranges, mut rest) = (snapshot.living(), Vec::new(), previous.iter());
    loop {
        match walk.next_piece().expect("the snapshot before has what is not in memory") {
            Piece::Next(some) => ranges.extend(some),
            Piece::Previous => walk.feed(rest.next().cloned()),
            Piece::End => return ranges,
        }
    }
}

fn entry_of(chunks: &[Bytes]) -> u64 {
    State::restore(chunks.iter().cloned()).unwrap().entry()
}

/// A snapshot's bytes, cut at other places.
fn recut(random: &mut Random, chunks: &[Bytes]) -> Vec<Bytes> {
    let mut all = BytesMut::new();
    for chunk in chunks {
        all.extend_from_slice(chunk);
    }
    let mut rest = all.freeze();
    let mut chunks = Vec::new();
    while !rest.is_empty() {
        let longest = 1 + random.below(3000);
        let length = 1 + random.below(longest.min(rest.len() as u64));
        chunks.push(rest.split_to(length as usize));
    }
    chunks
}

/// What the index on disk would hold.
#[derive(Default)]
struct Index {
    blocks: BTreeMap<BlockKey, Bytes>,
}

impl Index {
    fn take(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Sealed { key, block } => {
                    assert!(self.blocks.insert(*key, block.clone()).is_none(), "{key:?} was sealed twice");
                }
                Effect::Dropped { key } => {
                    assert!(self.blocks.remove(key).is_some(), "{key:?} was dropped but not sealed");
                }
                Effect::Deleted { channel } => {
                    self.blocks.retain(|key, _| !matches!(key, BlockKey::Runs { channel: of, .. } if of == channel));
                }
                _ => {}
            }
        }
    }

    /// Every living message in a sealed block lies where the block says; a block without any is not kept.
    fn check(&self, state: &State) {
        let again: BTreeMap<BlockKey, Bytes> = state.snapshot().sealed_blocks().collect();
        let mut written = SnapshotBlocks::default();
        write(&state.snapshot(), &[]).into_iter().for_each(|chunk| written.push(chunk));
        let written: Vec<_> = std::iter::from_fn(|| written.next_block().unwrap()).collect();
        assert!(written.iter().map(|(key, block)| (key, block)).eq(again.iter()), "as it is written down");
        assert_eq!(again.keys().collect::<Vec<_>>(), self.blocks.keys().collect::<Vec<_>>(), "sealed blocks");
        assert!(again == self.blocks, "sealed blocks are told alike when the index is built anew");
        for (key, block) in &self.blocks {
            let BlockKey::Runs { channel, first_sequence } = key else { continue };
            let runs = decode_run_block(block).expect("a sealed block can be read");
            let channel = state.channel_by_id(*channel).expect("blocks of a deleted channel go");
            assert_eq!(runs.len(), 64);
            assert_eq!(runs[0].first_sequence, *first_sequence);
            let mut alive = 0;
            for run in runs {
                for place in 0..run.count {
                    if let Some(location) = channel.locate(run.first_sequence + u64::from(place)).here() {
                        assert!(location.copy.is_none());
                        assert_eq!((location.entry, location.part), (run.entry, run.first_part + place));
                        alive += 1;
                    }
                }
            }
            assert!(alive > 0, "a block in which everything is settled is dropped");
        }
    }
}

/// Compares what applying answered with what the model says.
fn check_applied(applied: &Applied, answers: &[Answer], changes: &model::Changes) {
    let given: Vec<&Answer> = applied.answers.iter().map(|answer| &answer.answer).collect();
    assert_eq!(given, answers.iter().collect::<Vec<_>>(), "answers");
    let mut seen = model::Changes::default();
    for effect in &applied.effects {
        match effect {
            Effect::Created { channel, .. } => seen.created.push(*channel),
            Effect::Deleted { channel } => seen.deleted.push(*channel),
            Effect::Ready { channel } => assert!(seen.ready.insert(*channel), "woken once per entry"),
            Effect::Settled { channel, sequences } => {
                for sequence in sequences.iter() {
                    assert!(seen.settled.entry(*channel).or_default().insert(sequence), "settled twice: {sequence}");
                }
            }
            Effect::TimerSet { .. } | Effect::Sealed { .. } | Effect::Dropped { .. } => {}
        }
    }
    assert_eq!(&seen, changes, "effects");
}

/// Compares everything that can be seen of a state with the model.
fn check_state(state: &mut State, model: &Model) {
    assert_eq!(state.channel_count(), model.channels.len() as u64);
    assert_eq!(state.timer_count(), model.timers.len() as u64);
    for kind in Kind::ALL {
        let listed: Vec<&str> = state.channels(kind).map(|channel| &**channel.name()).collect();
        let mut expected: Vec<&str> =
            model.channels.iter().filter(|channel| channel.kind == kind).map(|channel| &*channel.name).collect();
        expected.sort_unstable();
        assert_eq!(listed, expected, "channels of {kind:?}");
    }
    for expected in &model.channels {
        check_channel(state, expected, model);
    }
    let due = state.due(model.time, AHEAD, usize::MAX);
    assert_eq!(due.timers, model.due(model.time), "what is due");
    let first = model.timers.iter().map(|timer| timer.due).min();
    match (due.look_at, first) {
        (None, None) => {}
        (Some(look), Some(first)) => assert!(look <= first && (look > model.time || !due.timers.is_empty())),
        (look, first) => panic!("looks at {look:?} for {first:?}"),
    }
}

fn check_channel(state: &State, expected: &model::Channel, model: &Model) {
    let channel = state.channel(expected.kind, &expected.name).expect("the channel is found by its name");
    assert_eq!(state.channel_by_id(expected.id).map(|found| found.id()), Some(channel.id()));
    assert_eq!((channel.kind(), channel.is_explicit()), (expected.kind, expected.explicit));
    assert_eq!(channel.next_sequence(), expected.stored + 1);
    assert_eq!(channel.waiting(), expected.messages.len() as u64);
    assert_eq!(channel.waiting_bytes(), expected.messages.iter().map(|message| message.size).sum::<u64>());
    assert_eq!(channel.first_sequence(), expected.messages.first().map(|message| message.sequence));
    assert_eq!(channel.last_sequence(), expected.messages.last().map(|message| message.sequence));
    assert_eq!(channel.last_activity(), expected.last_activity);
    let totals = channel.totals();
    assert_eq!((totals.sent, totals.sent_bytes), expected.sent);
    assert_eq!((totals.settled, totals.settled_bytes), expected.settled);
    assert_eq!(totals.expired, expected.expired);
    assert_eq!(totals.dead_lettered, expected.dead_lettered);
    assert_eq!(totals.redelivered, expected.redelivered);
    let delayed = model.timers.iter().filter(|timer| timer.channel == expected.id).count();
    assert_eq!(totals.delayed, delayed as u64);
    let unused = expected.messages.is_empty() && delayed == 0 && expected.cursors.is_empty();
    assert_eq!(channel.is_empty(), unused);
    for reader in readers() {
        let place = expected.cursors.iter().find(|(one, _, _)| *one == reader).map(|(_, after, _)| *after);
        assert_eq!(channel.cursor(&reader), place, "the place of {reader:?}");
    }
    check_reading(channel, expected);

    let mut from = 0;
    for message in &expected.messages {
        assert_eq!(channel.next_alive(from), Some(message.sequence), "alive from {from}");
        if message.sequence > from + 1 {
            assert!(channel.locate(message.sequence - 1).here().is_none(), "{} is settled", message.sequence - 1);
        }
        let location = channel.locate(message.sequence).here().expect("what waits is somewhere");
        assert_eq!((location.entry, location.part), message.body, "body of {}", message.sequence);
        assert_eq!(location.bytes, message.size);
        let copy = location.copy.map(|copy| model::MessageCopy {
            receive_count: copy.receive_count,
            time: copy.time,
            expires_at: copy.expires_at,
            rerouted_from: copy.rerouted_from.as_deref().map(str::to_owned),
            cleared_policy: copy.cleared_policy,
            fresh: copy.fresh,
        });
        assert_eq!(copy, message.copy, "copy {}", message.sequence);
        from = message.sequence + 1;
    }
    assert_eq!(channel.next_alive(from), None);
    assert!(channel.locate(from).here().is_none() && channel.locate(expected.stored + 1).here().is_none());
    assert!(channel.locate(0).here().is_none() && channel.locate(u64::MAX).here().is_none());
}

/// What readers of stored events ask for.
fn check_reading(channel: &kubemq_broker::Channel, expected: &model::Channel) {
    let mut read = Vec::new();
    let mut from = 0;
    while let Lookup::Here(stretch) = channel.stretch(from) {
        let last = stretch.first_sequence + u64::from(stretch.count) - 1;
        read.extend(
            (0..stretch.count)
                .map(|place| (stretch.first_sequence + u64::from(place), (stretch.entry, stretch.first_part + place))),
        );
        from = last + 1;
    }
    let stored: Vec<_> = expected.messages.iter().map(|message| (message.sequence, message.body)).collect();
    assert_eq!(read, stored, "stretches");

    let all: u64 = expected.messages.iter().map(|message| message.size).sum();
    for bytes in [0, all / 3, all] {
        let mut left = all;
        let mut upto = 0;
        for message in &expected.messages {
            if left <= bytes {
                break;
            }
            left -= message.size;
            upto = message.sequence;
        }
        assert_eq!(channel.excess_over(bytes), upto, "excess over {bytes} of {all}");
    }
    let in_one_piece = expected.messages.iter().zip(1..).all(|(message, place)| {
        message.copy.is_none() && message.sequence == expected.stored + place - expected.messages.len() as u64
    });
    if in_one_piece {
        for entry in expected.messages.iter().flat_map(|message| [message.body.0, message.body.0 + 1]).chain([0]) {
            let first = expected.messages.iter().find(|message| message.body.0 >= entry);
            let first = first.map_or(expected.stored + 1, |message| message.sequence);
            assert_eq!(channel.first_from_entry(entry), Lookup::Here(first), "from entry {entry}");
        }
    }
}

fn check_living(replica: &Replica, model: &Model) {
    let mut named = BTreeSet::new();
    for (entry, first_part, count) in living(&replica.state.snapshot(), &replica.durable) {
        named.extend((first_part..first_part + count).map(|part| (entry, part)));
    }
    assert_eq!(named, model.living(), "living bodies");
}

/// The number of the next batch of each origin, and what was sent last.
#[derive(Default)]
struct Senders {
    sent: BTreeMap<u64, (u64, Vec<Batch>)>,
}

impl Senders {
    /// A new batch, or one that is repeated, too early, too old or of an earlier epoch.
    fn batch(&mut self, random: &mut Random, first_part: u16, operations: Vec<Option<Operation>>) -> Batch {
        let origin = random.below(2);
        let (epoch, sent) = self.sent.entry(origin).or_insert((1, Vec::new()));
        if random.once_in(30) {
            *epoch += 1;
            sent.clear();
        }
        let number = sent.len() as u64 + 1;
        let mut batch = Batch { origin, epoch: *epoch, number, first_part, operations };
        match random.below(24) {
            0 if !sent.is_empty() => {
                let back = 1 + random.below(6.min(sent.len() as u64));
                batch = Batch { first_part, ..sent[sent.len() - back as usize].clone() };
            }
            1 => batch.number += 1 + random.below(2),
            2 => batch.epoch -= 1,
            3 => batch.number = 0,
            _ => sent.push(batch.clone()),
        }
        batch
    }
}

/// One list.
fn run(seed: u64, trace: bool) {
    let mut random = Random::new(seed);
    let random = &mut random;
    let shape = Shape::draw(random);
    let limits = Limits { channels: 1 + random.below(12), ..Limits::default() };
    let mut model = Model::new(limits);
    let mut replicas: Vec<Replica> = [(1_000_000, false), (6, false), (15, false), (10, true)]
        .map(|(often, forgets)| Replica::new(limits, often, forgets))
        .into();
    let mut senders = Senders::default();
    let mut index = Index::default();
    let mut kept: Option<(u64, Snapshot, Vec<Bytes>)> = None;
    let mut entry = 0;
    let mut time = 1_700_000_000_000 * MILLISECOND;
    if trace {
        eprintln!("{shape:#?} {limits:?}");
    }
    for _ in 0..shape.entries {
        entry += 1 + random.below(3);
        time += random.below(shape.longest_step_ms) * MILLISECOND;
        let stamp = if random.once_in(20) { time - 5 * MILLISECOND } else { time };
        let mut batches = Vec::new();
        let mut part = 1;
        for _ in 0..=random.below(2) {
            let mut operations = Vec::new();
            for _ in 0..random.below(shape.operations + 1) {
                Inventor { random, shape: &shape, model: &model }.invent(time, &mut operations);
            }
            let batch = senders.batch(random, part, operations);
            part += batch.operations.len() as u16;
            batches.push(batch);
        }
        if trace {
            eprintln!("entry {entry} at {stamp}: {batches:#?}");
        }
        let encoded: Vec<Vec<Bytes>> = batches.iter().map(|batch| encode(random, batch)).collect();
        let views: Vec<BatchView<'_>> = batches
            .iter()
            .zip(&encoded)
            .map(|(batch, operations)| BatchView {
                origin: batch.origin,
                epoch: batch.epoch,
                number: batch.number,
                first_part: batch.first_part,
                operations,
            })
            .collect();
        let (answers, changes) = model.apply(entry, stamp, &batches);
        let applied: Vec<Applied> =
            replicas.iter_mut().map(|replica| replica.state.apply(entry, stamp, &views)).collect();
        check_applied(&applied[0], &answers, &changes);
        for other in &applied[1..] {
            assert_eq!(other, &applied[0], "replicas answer alike");
        }
        index.take(&applied[0].effects);
        for replica in &mut replicas {
            replica.maybe_restore(random);
            replica.maybe_forget(random);
        }
        if random.once_in(8) {
            let replica = random.pick(&replicas);
            kept = Some((replica.state.digest(), replica.state.snapshot(), replica.durable.clone()));
        }
        if random.once_in(4) {
            let replica = &mut replicas[random.below(4) as usize];
            check_living(replica, &model);
            replica.look_at_what_is_due(random, &index, &model);
            replica.remember(&index);
            check_state(&mut replica.state, &model);
            index.check(&replica.state);
        }
    }
    let digests: Vec<u64> = replicas.iter().map(|replica| replica.state.digest()).collect();
    assert!(digests.iter().all(|digest| *digest == digests[0]), "digests {digests:?}");
    let bytes = replicas[0].state.index_bytes();
    for replica in &mut replicas {
        check_living(replica, &model);
        replica.look_at_what_is_due(random, &index, &model);
        replica.remember(&index);
        check_state(&mut replica.state, &model);
        assert_eq!(replica.state.index_bytes(), bytes, "memory is counted alike");
    }
    index.check(&random.pick(&replicas).state);
    if let Some((digest, snapshot, durable)) = kept {
        let then = State::restore(recut(random, &write(&snapshot, &durable))).unwrap();
        assert_eq!(then.digest(), digest, "a snapshot holds the state as it was");
    }
}

fn encode(random: &mut Random, batch: &Batch) -> Vec<Bytes> {
    let bytes = |operation: &Option<Operation>| match operation {
        Some(operation) => operation.to_bytes(),
        None => garbage(random),
    };
    batch.operations.iter().map(bytes).collect()
}

fn number_from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn random_lists_do_what_the_model_does() {
    if let Some(seed) = number_from_environment("KUBEMQ_SEED") {
        run(seed, true);
        return;
    }
    let first = number_from_environment("KUBEMQ_FIRST").unwrap_or(0);
    let lists = number_from_environment("KUBEMQ_LISTS").unwrap_or(10_000);
    for seed in first..first + lists {
        let result = catch_unwind(AssertUnwindSafe(|| run(seed, false)));
        if let Err(failure) = result {
            eprintln!("replay: KUBEMQ_SEED={seed} cargo test -p kubemq-broker --test random_operations -- --nocapture");
            std::panic::resume_unwind(failure);
        }
    }
}
