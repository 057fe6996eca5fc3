//! The messages of a channel as runs: consecutive sequences whose bodies are consecutive parts of one entry. Runs lie
//! in blocks of 64, shared with snapshots and copied on write. It counts what is alive in each block, but which ones
//! those are is told by [`crate::settled`].
//!
//! A block that is full is sealed and never changes again. Its runs may leave the memory while the index on disk and a
//! durable snapshot have them; whether they are here is no part of the state, and nothing that `apply` does depends on
//! it. That is why the size of what is settled in a sealed block is an equal share of what was alive in it.

use std::collections::{BTreeMap, btree_map};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{close_block, open_block, take_byte};
use crate::copies::Copies;
use crate::limits::{ENTRY_BOUND, RUNS_PER_BLOCK};
use crate::reference::Reference;

/// Layout of a block in the index on disk.
const BLOCK_VERSION: u8 = 1;

/// What a list of runs costs in RAM besides them.
const LIST_BYTES: u64 = 48;

/// What a sealed block costs in RAM besides its list: counters and place in the tree.
const SEALED_BYTES: u64 = 72;

/// What the tree costs in RAM as soon as a block is sealed: its first node has room for eleven.
const TREE_BYTES: u64 = 280;

/// What a run costs in RAM.
const RUN_BYTES: u64 = size_of::<Run>() as u64;

/// What leaves the memory with the runs of a sealed block.
pub(crate) const SEALED_LIST_BYTES: u64 = LIST_BYTES + RUNS_PER_BLOCK as u64 * RUN_BYTES;

/// Consecutive messages of one channel from one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Sequence of the first message.
    pub first_sequence: u64,
    /// Entry that carries them.
    pub entry: u64,
    /// Part that carries the first message.
    pub first_part: u16,
    /// How many messages; never 0.
    pub count: u16,
    /// Size of all messages together.
    pub bytes: u32,
}

const _: () = assert!(size_of::<Run>() == 24, "the memory budget promises 24 bytes per run");

impl Run {
    /// The sequence after the last message.
    pub(crate) fn end(&self) -> u64 {
        self.first_sequence + u64::from(self.count)
    }

    /// Where the body of `sequence` lies; it must be one of this run.
    pub(crate) fn reference(&self, sequence: u64) -> Reference {
        Reference::new(self.entry, self.first_part + (sequence - self.first_sequence) as u16)
    }

    /// Where the body of the last message lies.
    fn last_body(&self) -> Reference {
        self.reference(self.end() - 1)
    }

    /// The size of the messages `[first, end)`: each has an equal share of the sum, the first ones one byte more
    /// where it does not divide, so that all shares together are exactly the sum.
    pub(crate) fn share(&self, first: u64, end: u64) -> u64 {
        let (from, to) = (first - self.first_sequence, end - self.first_sequence);
        let (bytes, count) = (u64::from(self.bytes), u64::from(self.count));
        let (each, rest) = (bytes / count, bytes % count);
        each * (to - from) + to.min(rest) - from.min(rest)
    }
}

/// What happened when runs were looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    /// The run that holds the sequence, settled or not.
    Run(&'a Run),
    /// If there is one, it is in the block that was begun with this sequence, whose runs are not in memory.
    Away(u64),
    /// There is none.
    Nothing,
}

/// A full block.
#[derive(Clone, Debug)]
pub(crate) struct Sealed {
    /// Its 64 runs, while they are in memory.
    runs: Option<Arc<Vec<Run>>>,
    /// The entry of its last run.
    last_entry: u64,
    /// Size of its messages that are not settled.
    bytes: u64,
    /// Messages of it that are not settled.
    alive: u32,
    /// Tells its runs from all others.
    sum: u32,
}

impl Sealed {
    /// Its runs, while they are in memory.
    pub(crate) fn runs(&self) -> Option<&[Run]> {
        self.runs.as_deref().map(Vec::as_slice)
    }

    /// The entry of its last run.
    pub(crate) fn last_entry(&self) -> u64 {
        self.last_entry
    }

    /// Messages of it that are not settled.
    pub(crate) fn alive(&self) -> u32 {
        self.alive
    }

    /// Their size.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Tells its runs from all others.
    pub(crate) fn sum(&self) -> u32 {
        self.sum
    }

    /// Takes `count` messages out and gives back their size: the share that they have of what is alive.
    fn take(&mut self, count: u64) -> u64 {
        let alive = u64::from(self.alive);
        debug_assert!(count <= alive, "more was settled than was alive");
        let count = count.min(alive);
        let bytes = if count == alive { self.bytes } else { share(self.bytes, count, alive) };
        self.alive -= count as u32;
        self.bytes -= bytes;
        bytes
    }
}

/// `count` of `all` parts of `bytes`, rounded down.
fn share(bytes: u64, count: u64, all: u64) -> u64 {
    (u128::from(bytes) * u128::from(count) / u128::from(all.max(1))) as u64
}

/// All runs of one channel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runs {
    /// Full blocks, by the sequence that each was begun with.
    sealed: BTreeMap<u64, Sealed>,
    /// Up to 64 runs behind all others; never an empty list.
    open: Option<Arc<Vec<Run>>>,
    /// Messages of the open block that are not settled.
    open_alive: u32,
    /// Sealed blocks whose runs are in memory.
    here: u32,
}

/// A block that a new message sealed.
#[derive(Debug)]
pub(crate) struct SealedBlock {
    /// The sequence that it was begun with.
    pub(crate) first_sequence: u64,
    /// Its bytes for the index on disk.
    pub(crate) bytes: Bytes,
}

impl Runs {
    /// Appends a message behind everything else. When that seals a block, `alive` tells the size of those messages of a
    /// run that are not settled.
    pub(crate) fn push(
        &mut self,
        sequence: u64,
        body: Reference,
        bytes: u32,
        alive: impl Fn(&Run) -> u64,
    ) -> Option<SealedBlock> {
        let run = Run { first_sequence: sequence, entry: body.entry(), first_part: body.part(), count: 1, bytes };
        let mut sealed = None;
        if let Some(open) = &mut self.open {
            let joins = open.last().and_then(|before| joined(before, &run));
            if joins.is_some() || open.len() < RUNS_PER_BLOCK {
                let runs = Arc::make_mut(open);
                match (joins, runs.last_mut()) {
                    (Some(joined), Some(before)) => *before = joined,
                    _ => runs.push(run),
                }
                self.open_alive += 1;
                return None;
            }
            sealed = self.seal(alive);
        }
        self.open = Some(Arc::new(vec![run]));
        self.open_alive = 1;
        sealed
    }

    fn seal(&mut self, alive: impl Fn(&Run) -> u64) -> Option<SealedBlock> {
        let runs = self.open.take()?;
        let bytes = runs.iter().map(alive).sum();
        let (first_sequence, last_entry) = (runs.first()?.first_sequence, runs.last()?.entry);
        let (block, sum) = encode_run_block(&runs);
        self.sealed.insert(first_sequence, Sealed { runs: Some(runs), last_entry, bytes, alive: self.open_alive, sum });
        self.here += 1;
        Some(SealedBlock { first_sequence, bytes: block })
    }

    /// Looks for the run that holds `sequence`, settled or not.
    pub(crate) fn find(&self, sequence: u64) -> Found<'_> {
        let runs =
            match self.open.as_deref().filter(|open| open.first().is_some_and(|run| run.first_sequence <= sequence)) {
                Some(open) => open,
                None => match self.sealed.range(..=sequence).next_back() {
                    Some((_, Sealed { runs: Some(runs), .. })) => runs,
                    Some((first, _)) => return Found::Away(*first),
                    None => return Found::Nothing,
                },
            };
        match runs.get(runs.partition_point(|run| run.end() <= sequence)) {
            Some(run) if run.first_sequence <= sequence => Found::Run(run),
            _ => Found::Nothing,
        }
    }

    /// Settles `[first, end)`, of which nothing was settled before and of which `copies` has what is not here. Gives
    /// back how many messages of it were here, and their size; blocks in which nothing is alive any more go, and sealed
    /// ones among them are named in `dropped`.
    pub(crate) fn settle(&mut self, first: u64, end: u64, copies: &Copies, dropped: &mut Vec<u64>) -> (u64, u64) {
        let (mut count, mut bytes) = (0, 0);
        let open_first = self.open_first();
        let sealed_end = end.min(open_first.unwrap_or(u64::MAX));
        if first < sealed_end {
            let from = self.sealed.range(..=first).next_back().map_or(first, |(key, _)| *key);
            let mut empty = Vec::new();
            let mut blocks = self.sealed.range_mut(from..sealed_end).peekable();
            while let Some((key, block)) = blocks.next() {
                let (low, high) = (first.max(*key), blocks.peek().map_or(sealed_end, |(next, _)| **next));
                let here = (high - low) - copies.count_in(low, high);
                count += here;
                bytes += block.take(here);
                if block.alive == 0 {
                    self.here -= u32::from(block.runs.is_some());
                    empty.push(*key);
                }
            }
            for key in empty {
                self.sealed.remove(&key);
                dropped.push(key);
            }
            if self.sealed.is_empty() {
                // An emptied tree keeps a node; a new one has none.
                self.sealed = BTreeMap::new();
            }
        }
        if open_first.is_some_and(|open| end > open)
            && let Some(open) = &self.open
        {
            let (here, size) = measure(open, first, end);
            count += u64::from(here);
            bytes += size;
            debug_assert!(here <= self.open_alive, "more was settled than was alive");
            self.open_alive = self.open_alive.saturating_sub(here);
            if self.open_alive == 0 {
                self.open = None;
            }
        }
        (count, bytes)
    }

    /// The sequence that the block behind all sealed ones was begun with.
    pub(crate) fn open_first(&self) -> Option<u64> {
        Some(self.open.as_ref()?.first()?.first_sequence)
    }

    /// Lets the runs of sealed blocks leave the memory, of the entries up to `entry`, the last ones first and at most
    /// `most`; the first `keep` stay. Gives back how many left.
    pub(crate) fn let_go(&mut self, entry: u64, keep: usize, most: usize) -> usize {
        let Some(first) = self.sealed.keys().nth(keep).copied() else { return 0 };
        let here = self.here as usize;
        let mut gone = 0;
        for (_, block) in self.sealed.range_mut(first..).rev() {
            if gone == most || gone == here {
                break;
            }
            if block.last_entry <= entry {
                gone += usize::from(block.runs.take().is_some());
            }
        }
        self.here -= gone as u32;
        gone
    }

    /// Whether [`Runs::let_go`] may find something. It may say yes once too often.
    pub(crate) fn can_let_go(&self, entry: u64, keep: usize) -> bool {
        self.here > 0
            && self.sealed.len() > keep
            && self.sealed.first_key_value().is_some_and(|(_, block)| block.last_entry <= entry)
    }

    /// Takes the runs of a sealed block back into memory; false when it is not there or these are not its runs.
    pub(crate) fn bring_back(&mut self, first: u64, runs: Vec<Run>) -> bool {
        let Some(block) = self.sealed.get_mut(&first) else { return false };
        let begins = runs.first().is_some_and(|run| run.first_sequence == first);
        if !begins || runs.len() != RUNS_PER_BLOCK || encode_run_block(&runs).1 != block.sum {
            return false;
        }
        if block.runs.is_none() {
            block.runs = Some(Arc::new(runs));
            self.here += 1;
        }
        true
    }

    /// The sealed blocks from the one that holds `sequence` on whose runs are not in memory, by their first sequences;
    /// looks at `most` blocks.
    pub(crate) fn away_from(&self, sequence: u64, most: usize) -> impl Iterator<Item = u64> + '_ {
        let most = if self.here as usize == self.sealed.len() { 0 } else { most };
        let from = self.sealed.range(..=sequence).next_back().map_or(sequence, |(key, _)| *key);
        self.sealed.range(from..).take(most).filter(|(_, block)| block.runs.is_none()).map(|(first, _)| *first)
    }

    /// What messages from `sequence` on weigh, which must be in a run and not settled: up to which sequence they weigh
    /// alike, and how many messages of what size that was taken from.
    pub(crate) fn weight(&self, sequence: u64) -> Option<(u64, u64, u64)> {
        if self.open_first().is_some_and(|open| open <= sequence) {
            let Found::Run(run) = self.find(sequence) else { return None };
            return Some((run.end(), u64::from(run.count), u64::from(run.bytes)));
        }
        let (_, block) = self.sealed.range(..=sequence).next_back()?;
        let next = self.sealed.range(sequence + 1..).next().map(|(next, _)| *next);
        let end = next.or_else(|| self.open_first()).unwrap_or(u64::MAX);
        Some((end, u64::from(block.alive), block.bytes))
    }

    /// The first sealed block that holds something of `entry` or of a later one, by its first sequence.
    pub(crate) fn block_from_entry(&self, entry: u64) -> Option<u64> {
        let (last, block) = self.sealed.last_key_value()?;
        if block.last_entry < entry {
            return None;
        }
        // Blocks lie in the order of their entries.
        let (mut low, mut high) = (0, *last);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.sealed.range(..=middle).next_back() {
                Some((first, block)) if block.last_entry >= entry => high = *first,
                _ => low = middle + 1,
            }
        }
        Some(high)
    }

    /// The runs of a block, when they are in memory: of the sealed one that begins at `first`, or of the open one.
    pub(crate) fn of_block(&self, first: Option<u64>) -> Option<&[Run]> {
        match first {
            Some(first) => self.sealed.get(&first)?.runs(),
            None => Some(self.open().0),
        }
    }

    /// What the runs cost in RAM.
    pub(crate) fn index_bytes(&self) -> u64 {
        let lists = u64::from(self.here) + u64::from(self.open.is_some());
        let tree = if self.sealed.is_empty() { 0 } else { TREE_BYTES + self.sealed.len() as u64 * SEALED_BYTES };
        tree + lists * LIST_BYTES + self.runs_here() * RUN_BYTES
    }

    fn runs_here(&self) -> u64 {
        u64::from(self.here) * RUNS_PER_BLOCK as u64 + self.open.as_ref().map_or(0, |open| open.len() as u64)
    }

    /// What of that could leave the memory.
    pub(crate) fn sealed_here_bytes(&self) -> u64 {
        u64::from(self.here) * SEALED_LIST_BYTES
    }

    /// The sealed blocks, ascending, each with the sequence that it was begun with.
    pub(crate) fn sealed(&self) -> btree_map::Iter<'_, u64, Sealed> {
        self.sealed.iter()
    }

    /// The sealed blocks that begin at `first` or behind it.
    pub(crate) fn sealed_from(&self, first: u64) -> btree_map::Range<'_, u64, Sealed> {
        self.sealed.range(first..)
    }

    /// The runs behind all sealed blocks, and how many messages of them are not settled.
    pub(crate) fn open(&self) -> (&[Run], u32) {
        (self.open.as_deref().map_or(&[], Vec::as_slice), self.open_alive)
    }

    /// The sealed blocks whose runs are in memory, each with the sequence that it was begun with and its bytes for the
    /// index on disk.
    pub(crate) fn sealed_blocks(&self) -> impl Iterator<Item = (u64, Bytes)> + '_ {
        self.sealed.iter().filter_map(|(first, block)| Some((*first, encode_run_block(block.runs.as_ref()?).0)))
    }

    /// Takes back a block that was written down; `None` when it does not belong behind the others. `alive` tells how
    /// many messages of a run are not settled, and their size; of a sealed block `bytes` is the size that was written
    /// down, when it was. A sealed block stays in memory only if `stays`.
    pub(crate) fn restore_block(
        &mut self,
        runs: Vec<Run>,
        seal: Seal,
        next: u64,
        alive: impl Fn(&Run) -> (u64, u64),
    ) -> Option<()> {
        // Only the last block of a channel may still be open.
        if runs.len() > RUNS_PER_BLOCK || self.open.is_some() || (seal != Seal::Open && runs.len() < RUNS_PER_BLOCK) {
            return None;
        }
        let last = self.sealed.last_key_value();
        let (mut end, mut entry) = last.map_or((1, 0), |(first, block)| (first + 1, block.last_entry));
        if let Some((_, Sealed { runs: Some(runs), .. })) = last {
            end = runs.last()?.end();
        }
        let (mut living, mut size, mut body) = (0, 0, None);
        for run in &runs {
            let whole = run.count > 0 && run.first_part.checked_add(run.count - 1).is_some();
            let inside = run.first_sequence >= end && run.first_sequence < next;
            let short = inside && u64::from(run.count) <= next - run.first_sequence;
            let behind = run.entry >= entry && body < Some(run.reference(run.first_sequence));
            if !whole || !short || run.entry >= ENTRY_BOUND || !behind {
                return None;
            }
            (end, entry, body) = (run.end(), run.entry, Some(run.last_body()));
            let (count, bytes) = alive(run);
            living += count;
            size += bytes;
        }
        let first = runs.first()?.first_sequence;
        let alive = u32::try_from(living).ok().filter(|alive| *alive > 0)?;
        match seal {
            Seal::Open => {
                self.open = Some(Arc::new(runs));
                self.open_alive = alive;
            }
            Seal::Sealed { bytes, stays } => {
                let sum = encode_run_block(&runs).1;
                let bytes = bytes.unwrap_or(size);
                self.here += u32::from(stays);
                let runs = stays.then(|| Arc::new(runs));
                self.sealed.insert(first, Sealed { runs, last_entry: entry, bytes, alive, sum });
            }
        }
        Some(())
    }
}

/// What was written down of a block besides its runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seal {
    /// More runs may follow in it.
    Open,
    /// It is full.
    Sealed {
        /// Size of its messages that are not settled.
        bytes: Option<u64>,
        /// Whether its runs stay in memory.
        stays: bool,
    },
}

/// How many messages of `[first, end)` are in `runs`, and their size.
fn measure(runs: &[Run], first: u64, end: u64) -> (u32, u64) {
    let from = runs.partition_point(|run| run.end() <= first);
    let (mut count, mut bytes) = (0, 0);
    for run in runs.iter().skip(from).take_while(|run| run.first_sequence < end) {
        let (low, high) = (first.max(run.first_sequence), end.min(run.end()));
        count += (high - low) as u32;
        bytes += run.share(low, high);
    }
    (count, bytes)
}

/// Both as one run, when `after` goes on where `before` ends.
fn joined(before: &Run, after: &Run) -> Option<Run> {
    let same = before.entry == after.entry && before.end() == after.first_sequence;
    if !same || before.first_part.checked_add(before.count)? != after.first_part {
        return None;
    }
    Some(Run { count: before.count.checked_add(1)?, bytes: before.bytes.checked_add(after.bytes)?, ..*before })
}

/// A block as bytes for the index on disk: version, count, runs, checksum. With it comes the half of the checksum that
/// is kept in memory.
pub(crate) fn encode_run_block(runs: &[Run]) -> (Bytes, u32) {
    let mut out = BytesMut::with_capacity(2 + size_of_val(runs) + 8);
    out.put_u8(BLOCK_VERSION);
    out.put_u8(runs.len() as u8);
    for run in runs {
        out.put_u64_le(run.first_sequence);
        out.put_u64_le(run.entry);
        out.put_u16_le(run.first_part);
        out.put_u16_le(run.count);
        out.put_u32_le(run.bytes);
    }
    close_block(out)
}

/// Reads a sealed block of runs back. `None` when its bytes are damaged or of another version.
#[must_use]
pub fn decode_run_block(block: &Bytes) -> Option<Vec<Run>> {
    let mut rest = open_block(block, BLOCK_VERSION)?;
    let count = usize::from(take_byte(&mut rest).ok()?);
    if count > RUNS_PER_BLOCK || rest.len() != count * size_of::<Run>() {
        return None;
    }
    let mut runs = Vec::with_capacity(count);
    for _ in 0..count {
        runs.push(take_run(&mut rest)?);
    }
    Some(runs)
}

fn take_run(from: &mut Bytes) -> Option<Run> {
    use bytes::Buf;
    Some(Run {
        first_sequence: from.try_get_u64_le().ok()?,
        entry: from.try_get_u64_le().ok()?,
        first_part: from.try_get_u16_le().ok()?,
        count: from.try_get_u16_le().ok()?,
        bytes: from.try_get_u32_le().ok()?,
    })
}
