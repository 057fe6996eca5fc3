//! One channel: which messages it holds and where their bodies lie. It stores and settles; what that means for others
//! (moves, timers, limits) is decided in [`crate::state`].

use std::sync::Arc;

use crate::copies::{Copies, Copy};
use crate::cursors::{Cursors, Reader};
use crate::name::Kind;
use crate::operation::MoveItem;
use crate::reference::Reference;
use crate::restore::Head;
use crate::runs::{Found, Run, Runs, SealedBlock};
use crate::sequences::Sequences;
use crate::settled::Settled;

/// What a channel costs in RAM when it is empty, besides its name: itself and its places in two trees.
const CHANNEL_BYTES: u64 = 384;

/// Names one life of a channel: after delete and create the same name has another id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(pub u64);

/// What happened in a channel since it was created. Counters stop at their greatest value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Messages that were stored; a return to the same channel is no new one.
    pub sent: u64,
    /// Their size.
    pub sent_bytes: u64,
    /// Messages that were acked, purged, or moved away; of an events-store channel, events that readers took.
    pub settled: u64,
    /// Their size.
    pub settled_bytes: u64,
    /// Messages that were dropped because they had expired; of an events-store channel, events that were trimmed.
    pub expired: u64,
    /// Messages that left for a dead-letter channel; they count as settled too.
    pub dead_lettered: u64,
    /// Messages that came back to be delivered again.
    pub redelivered: u64,
    /// Messages that wait for their delay now.
    pub delayed: u64,
}

/// Where a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location<'a> {
    /// Entry that carries the body.
    pub entry: u64,
    /// Part of that entry.
    pub part: u16,
    /// Size of the message; among messages of one run an equal share.
    pub bytes: u64,
    /// What differs from the first publish, when it was stored again.
    pub copy: Option<&'a Copy>,
}

/// What looking for something led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup<T> {
    /// It is here.
    Here(T),
    /// It stands in the block of runs that was begun with this sequence, which is not in memory: the index on disk has
    /// it, and [`crate::State::bring_back`] takes it.
    Away(u64),
    /// There is no such thing.
    Nothing,
}

impl<T> Lookup<T> {
    /// The same with what was found turned into something else.
    pub fn map<U>(self, turn: impl FnOnce(T) -> U) -> Lookup<U> {
        match self {
            Self::Here(found) => Lookup::Here(turn(found)),
            Self::Away(block) => Lookup::Away(block),
            Self::Nothing => Lookup::Nothing,
        }
    }

    /// What was found, if it is here.
    pub fn here(self) -> Option<T> {
        match self {
            Self::Here(found) => Some(found),
            Self::Away(_) | Self::Nothing => None,
        }
    }
}

/// Messages that follow each other in a channel and in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Sequence of the first message.
    pub first_sequence: u64,
    /// Entry that carries the bodies.
    pub entry: u64,
    /// Part that carries the first of them.
    pub first_part: u16,
    /// How many messages; never 0.
    pub count: u16,
    /// Size of all messages together.
    pub bytes: u64,
}

/// What one settling took away.
#[derive(Debug, Default)]
pub(crate) struct Gone {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    pub(crate) sequences: Sequences,
    /// Sealed blocks of runs in which nothing is left.
    pub(crate) dropped: Vec<u64>,
}

/// One channel.
#[derive(Clone, Debug)]
pub struct Channel {
    id: ChannelId,
    kind: Kind,
    pub(crate) explicit: bool,
    name: Arc<str>,
    /// The sequence that the next message gets.
    next: u64,
    pub(crate) settled: Settled,
    pub(crate) runs: Runs,
    pub(crate) copies: Copies,
    pub(crate) cursors: Cursors,
    waiting: u64,
    waiting_bytes: u64,
    pub(crate) totals: Totals,
    pub(crate) last_activity: u64,
}

impl Channel {
    pub(crate) fn new(id: ChannelId, kind: Kind, name: Arc<str>, time: u64) -> Self {
        Self {
            id,
            kind,
            explicit: false,
            name,
            next: 1,
            settled: Settled::new(),
            runs: Runs::default(),
            copies: Copies::default(),
            cursors: Cursors::default(),
            waiting: 0,
            waiting_bytes: 0,
            totals: Totals::default(),
            last_activity: time,
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> ChannelId {
        self.id
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether somebody created it on purpose; others are tidied away when they are empty and idle.
    #[must_use]
    pub fn is_explicit(&self) -> bool {
        self.explicit
    }

    /// The sequence that the next message gets.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        self.next
    }

    /// The lowest sequence that is stored and not settled.
    #[must_use]
    pub fn first_sequence(&self) -> Option<u64> {
        self.next_alive(1)
    }

    /// The highest sequence that is stored and not settled.
    #[must_use]
    pub fn last_sequence(&self) -> Option<u64> {
        self.settled.previous_unsettled(self.next - 1)
    }

    /// Messages that are stored and not settled, held ones included.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Their size.
    #[must_use]
    pub fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }

    /// What happened here so far.
    #[must_use]
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// When something was last stored, settled or created here, in nanoseconds.
    #[must_use]
    pub fn last_activity(&self) -> u64 {
        self.last_activity
    }

    /// The first sequence at or after `from` that is stored and not settled.
    #[must_use]
    pub fn next_alive(&self, from: u64) -> Option<u64> {
        if from >= self.next {
            return None;
        }
        Some(self.settled.next_unsettled(from)).filter(|sequence| *sequence < self.next)
    }

    /// Whether `sequence` is stored and not settled.
    #[must_use]
    pub fn is_alive(&self, sequence: u64) -> bool {
        sequence > 0 && sequence < self.next && !self.settled.is_settled(sequence)
    }

    /// Where the message with this sequence is; nothing when it is settled or was never stored.
    #[must_use]
    pub fn locate(&self, sequence: u64) -> Lookup<Location<'_>> {
        if !self.is_alive(sequence) {
            return Lookup::Nothing;
        }
        if let Some(copy) = self.copies.find(sequence) {
            let (entry, part) = (copy.body.entry(), copy.body.part());
            return Lookup::Here(Location { entry, part, bytes: u64::from(copy.bytes), copy: Some(copy) });
        }
        match self.runs.find(sequence) {
            Found::Run(run) => {
                let body = run.reference(sequence);
                let bytes = run.share(sequence, sequence + 1);
                Lookup::Here(Location { entry: body.entry(), part: body.part(), bytes, copy: None })
            }
            Found::Away(block) => Lookup::Away(block),
            Found::Nothing => Lookup::Nothing,
        }
    }

    /// What differs from its first publish, if the message with this sequence was stored again and is not settled.
    pub(crate) fn copy(&self, sequence: u64) -> Option<&Copy> {
        self.copies.find(sequence)
    }

    /// Where the body of a message is that is to be moved, and its size: the same on every node, whatever is in memory
    /// there.
    pub(crate) fn body_to_move(&self, item: &MoveItem) -> Option<(Reference, u32)> {
        if !self.is_alive(item.sequence) {
            return None;
        }
        if let Some(copy) = self.copies.find(item.sequence) {
            return Some((copy.body, copy.bytes));
        }
        if let Some(stored) = item.stored {
            return Some((Reference::new(stored.entry, stored.part), stored.bytes));
        }
        // Only an operation of version 1 says nothing, and no block leaves the memory of a state that may still get one.
        let location = self.locate(item.sequence).here()?;
        Some((Reference::new(location.entry, location.part), u32::try_from(location.bytes).unwrap_or(u32::MAX)))
    }

    /// The first messages at or after `from` that are stored, not settled, and lie together in the log.
    #[must_use]
    pub fn stretch(&self, from: u64) -> Lookup<Stretch> {
        let Some(first_sequence) = self.next_alive(from) else { return Lookup::Nothing };
        let Location { entry, part: first_part, bytes, copy } = match self.locate(first_sequence) {
            Lookup::Here(location) => location,
            Lookup::Away(block) => return Lookup::Away(block),
            Lookup::Nothing => return Lookup::Nothing,
        };
        let one = Stretch { first_sequence, entry, first_part, count: 1, bytes };
        if copy.is_some() {
            return Lookup::Here(one);
        }
        let Found::Run(run) = self.runs.find(first_sequence) else { return Lookup::Here(one) };
        let end = self.settled.next_settled(first_sequence, run.end());
        Lookup::Here(Stretch { count: (end - first_sequence) as u16, bytes: run.share(first_sequence, end), ..one })
    }

    /// The lowest sequence of which the body lies in `entry` or behind it; the next sequence when none does. Meant
    /// for channels in which nothing is stored twice.
    #[must_use]
    pub fn first_from_entry(&self, entry: u64) -> Lookup<u64> {
        let block = self.runs.block_from_entry(entry);
        let Some(runs) = self.runs.of_block(block) else { return block.map_or(Lookup::Nothing, Lookup::Away) };
        let first = runs.iter().find(|run| run.entry >= entry).map_or(self.next, |run| run.first_sequence);
        Lookup::Here(first.max(self.settled.floor()))
    }

    /// The last sequence that has to go for at most `bytes` to be left, oldest first; 0 when none has. Inside a sealed
    /// block all messages count alike.
    #[must_use]
    pub fn excess_over(&self, bytes: u64) -> u64 {
        let mut excess = self.waiting_bytes.saturating_sub(bytes);
        let mut upto = 0;
        let mut from = 1;
        while excess > 0
            && let Some(first) = self.next_alive(from)
        {
            let (end, count, bytes) = match self.copies.find(first) {
                Some(copy) => (first + 1, 1, u64::from(copy.bytes)),
                None => self.runs.weight(first).unwrap_or((first + 1, 1, 0)),
            };
            // Copies may lie between the messages of a run.
            let end = if self.copies.count() > 0 { first + 1 } else { self.settled.next_settled(first, end) };
            let each = bytes / count.max(1);
            let size = each * (end - first);
            (from, upto) = (end, end - 1);
            if size >= excess {
                upto = upto.min(first + excess.div_ceil(each.max(1)) - 1);
            }
            excess = excess.saturating_sub(size);
        }
        upto
    }

    /// How many messages of a run are not settled, and their size.
    pub(crate) fn alive_in(&self, run: &Run) -> (u64, u64) {
        alive_in(&self.settled, run)
    }

    /// How far a reader came: it has everything up to this sequence.
    #[must_use]
    pub fn cursor(&self, reader: &Reader) -> Option<u64> {
        self.cursors.get(reader)
    }

    /// Whether nothing is stored here, nothing is on its way, and nobody keeps a place.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting == 0 && self.totals.delayed == 0 && self.cursors.len() == 0
    }

    /// What this channel costs in RAM.
    #[must_use]
    pub fn index_bytes(&self) -> u64 {
        CHANNEL_BYTES
            + self.name.len() as u64
            + self.runs.index_bytes()
            + self.copies.index_bytes()
            + self.settled.index_bytes()
            + self.cursors.index_bytes()
    }

    /// Stores a message whose body lies at `body`.
    pub(crate) fn store(&mut self, body: Reference, bytes: u32) -> (u64, Option<SealedBlock>) {
        let sequence = self.next;
        let settled = &self.settled;
        let sealed = self.runs.push(sequence, body, bytes, |run| alive_in(settled, run).1);
        self.stored(u64::from(bytes));
        (sequence, sealed)
    }

    /// Stores a copy; its sequence is set here.
    pub(crate) fn store_copy(&mut self, copy: Copy) -> u64 {
        let sequence = self.next;
        let bytes = u64::from(copy.bytes);
        self.copies.push(Copy { sequence, ..copy });
        self.stored(bytes);
        sequence
    }

    fn stored(&mut self, bytes: u64) {
        self.next += 1;
        self.waiting += 1;
        self.waiting_bytes = self.waiting_bytes.saturating_add(bytes);
    }

    /// Counts a message as sent to this channel.
    pub(crate) fn count_sent(&mut self, bytes: u64) {
        self.totals.sent = self.totals.sent.saturating_add(1);
        self.totals.sent_bytes = self.totals.sent_bytes.saturating_add(bytes);
    }

    /// Counts messages as taken from this channel.
    pub(crate) fn count_settled(&mut self, count: u64, bytes: u64) {
        self.totals.settled = self.totals.settled.saturating_add(count);
        self.totals.settled_bytes = self.totals.settled_bytes.saturating_add(bytes);
    }

    /// Settles whatever is alive from `first` to `last`, both included.
    pub(crate) fn settle(&mut self, first: u64, last: u64, gone: &mut Gone) {
        let end = last.saturating_add(1).min(self.next);
        let mut from = self.settled.next_unsettled(first.min(self.next));
        while from < end {
            let to = self.settled.next_settled(from, end);
            self.settled.mark(from, to, self.next);
            let (runs, run_bytes) = self.runs.settle(from, to, &self.copies, &mut gone.dropped);
            let (copies, copy_bytes) = self.copies.settle(from, to);
            debug_assert_eq!(runs + copies, to - from, "every sequence that is alive is in a run or a copy");
            self.waiting = self.waiting.saturating_sub(to - from);
            self.waiting_bytes = self.waiting_bytes.saturating_sub(run_bytes + copy_bytes);
            gone.count += to - from;
            gone.bytes += run_bytes + copy_bytes;
            gone.sequences.add_range(from, to - 1);
            from = self.settled.next_unsettled(to);
        }
    }

    /// Ranges `[first, end)` of what is alive inside `[from, to)`.
    pub(crate) fn alive_ranges(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        alive_ranges(&self.settled, from, to.min(self.next))
    }

    /// A channel without messages, to be filled from what was written down.
    pub(crate) fn restore(head: &Head, settled: Settled) -> Self {
        Self {
            explicit: head.explicit,
            next: head.next,
            settled,
            totals: head.totals,
            last_activity: head.last_activity,
            ..Self::new(head.id, head.kind, Arc::clone(&head.name), 0)
        }
    }

    /// Counts what waits, after everything was filled in; `None` when runs, copies and marks do not fit together.
    pub(crate) fn restored(&mut self) -> Option<()> {
        let waiting: u64 = self.alive_ranges(1, self.next).map(|(first, end)| end - first).sum();
        let (mut in_runs, mut bytes) = (0_u64, 0_u64);
        let mut sealed = self.runs.sealed().peekable();
        while let Some((first, block)) = sealed.next() {
            // What settling counts on: in a block's share of the sequences everything alive is in it or stored again.
            let end = sealed.peek().map_or_else(|| self.runs.open_first().unwrap_or(self.next), |(next, _)| **next);
            let alive: u64 = self.alive_ranges(*first, end).map(|(first, end)| end - first).sum();
            let copies = self.copies.count_in(*first, end);
            if u64::from(block.alive()) + copies != alive {
                return None;
            }
            in_runs += u64::from(block.alive());
            bytes = bytes.saturating_add(block.bytes());
        }
        let (open, open_alive) = self.runs.open();
        for run in open {
            bytes = bytes.saturating_add(self.alive_in(run).1);
        }
        in_runs += u64::from(open_alive);
        for copy in self.copies.iter() {
            let overlaps = matches!(self.runs.find(copy.sequence), Found::Run(_));
            if overlaps || self.settled.is_settled(copy.sequence) {
                return None;
            }
            bytes = bytes.saturating_add(u64::from(copy.bytes));
        }
        self.waiting = waiting;
        self.waiting_bytes = bytes;
        (in_runs + self.copies.count() == waiting).then_some(())
    }

    /// Of the `most` sealed blocks from the one that holds `sequence` on, those whose runs are not in memory, by their
    /// first sequences.
    pub fn away_from(&self, sequence: u64, most: usize) -> impl Iterator<Item = u64> + '_ {
        self.runs.away_from(sequence, most)
    }
}

/// How many messages of a run are not settled, and their size.
fn alive_in(settled: &Settled, run: &Run) -> (u64, u64) {
    let ranges = alive_ranges(settled, run.first_sequence, run.end());
    ranges.fold((0, 0), |(count, bytes), (first, end)| (count + end - first, bytes + run.share(first, end)))
}

/// Ranges `[first, end)` of what is not settled inside `[from, to)`.
fn alive_ranges(settled: &Settled, from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
    let mut next = from;
    std::iter::from_fn(move || {
        let first = settled.next_unsettled(next.min(to));
        if first >= to {
            return None;
        }
        next = settled.next_settled(first, to);
        Some((first, next))
    })
}
