//! The messages of a channel as runs: consecutive sequences whose bodies are consecutive parts of one entry. Runs lie
//! in blocks of 64, shared with snapshots and copied on write. It counts what is alive in each block, but which ones
//! those are is told by [`crate::settled`].

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{Checksum, take_byte, take_word};
use crate::limits::{ENTRY_BOUND, RUNS_PER_BLOCK};
use crate::reference::Reference;

/// Layout of a block in the index on disk.
const BLOCK_VERSION: u8 = 1;

/// What a block costs in RAM besides its runs: list, counters and place in the tree.
const BLOCK_BYTES: u64 = 72;

/// What the tree costs in RAM as soon as there is a block: its first node has room for eleven.
const TREE_BYTES: u64 = 280;

/// What a run costs in RAM.
const RUN_BYTES: u64 = size_of::<Run>() as u64;

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

/// Up to 64 runs.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    runs: Arc<Vec<Run>>,
    /// Messages of these runs that are not settled.
    alive: u32,
    /// Told to the index on disk: it never changes any more.
    sealed: bool,
}

impl Block {
    /// Its runs, ascending.
    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Whether the index on disk was told.
    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// How many messages of `[first, end)` are in it, and their size.
    fn measure(&self, first: u64, end: u64) -> (u32, u64) {
        let from = self.runs.partition_point(|run| run.end() <= first);
        let (mut count, mut bytes) = (0, 0);
        for run in self.runs.iter().skip(from).take_while(|run| run.first_sequence < end) {
            let (low, high) = (first.max(run.first_sequence), end.min(run.end()));
            count += (high - low) as u32;
            bytes += run.share(low, high);
        }
        (count, bytes)
    }
}

/// All runs of one channel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runs {
    /// By the sequence that each block was begun with.
    blocks: BTreeMap<u64, Block>,
    /// Runs in all blocks.
    count: u64,
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
    /// Appends a message behind everything else.
    pub(crate) fn push(&mut self, sequence: u64, body: Reference, bytes: u32) -> Option<SealedBlock> {
        let run = Run { first_sequence: sequence, entry: body.entry(), first_part: body.part(), count: 1, bytes };
        let mut sealed = None;
        if let Some(mut last) = self.blocks.last_entry()
            && !last.get().sealed
        {
            let first_sequence = *last.key();
            let block = last.get_mut();
            let full = block.runs.len() >= RUNS_PER_BLOCK;
            let joins = block.runs.last().and_then(|before| joined(before, &run));
            if joins.is_some() || !full {
                let runs = Arc::make_mut(&mut block.runs);
                match (joins, runs.last_mut()) {
                    (Some(joined), Some(before)) => *before = joined,
                    _ => {
                        runs.push(run);
                        self.count += 1;
                    }
                }
                block.alive += 1;
                return None;
            }
            block.sealed = true;
            sealed = Some(SealedBlock { first_sequence, bytes: encode_run_block(&block.runs) });
        }
        self.blocks.insert(sequence, Block { runs: Arc::new(vec![run]), alive: 1, sealed: false });
        self.count += 1;
        sealed
    }

    /// The run that holds `sequence`, settled or not.
    pub(crate) fn find(&self, sequence: u64) -> Option<&Run> {
        let (_, block) = self.blocks.range(..=sequence).next_back()?;
        let run = block.runs.get(block.runs.partition_point(|run| run.end() <= sequence))?;
        (run.first_sequence <= sequence).then_some(run)
    }

    /// Settles `[first, end)`, of which nothing was settled before. Gives back how many messages of it were here, and
    /// their size; blocks in which nothing is alive any more go, and sealed ones among them are named in `dropped`.
    pub(crate) fn settle(&mut self, first: u64, end: u64, dropped: &mut Vec<u64>) -> (u64, u64) {
        let from = self.blocks.range(..=first).next_back().map_or(first, |(key, _)| *key);
        let (mut count, mut bytes) = (0, 0);
        let mut empty = Vec::new();
        for (key, block) in self.blocks.range_mut(from..end) {
            let (here, size) = block.measure(first, end);
            debug_assert!(here <= block.alive, "more was settled than was alive");
            block.alive = block.alive.saturating_sub(here);
            count += u64::from(here);
            bytes += size;
            if block.alive == 0 {
                empty.push(*key);
            }
        }
        for key in empty {
            if let Some(block) = self.blocks.remove(&key) {
                self.count -= block.runs.len() as u64;
                if block.sealed {
                    dropped.push(key);
                }
            }
        }
        if self.blocks.is_empty() {
            // An emptied tree keeps a node; a new one has none.
            self.blocks = BTreeMap::new();
        }
        (count, bytes)
    }

    /// Takes the first block out.
    pub(crate) fn take_first(&mut self) -> Option<Block> {
        let (_, block) = self.blocks.pop_first()?;
        self.count -= block.runs.len() as u64;
        Some(block)
    }

    /// What the runs cost in RAM.
    pub(crate) fn index_bytes(&self) -> u64 {
        if self.blocks.is_empty() {
            return 0;
        }
        TREE_BYTES + self.count * RUN_BYTES + self.blocks.len() as u64 * BLOCK_BYTES
    }

    /// How many runs there are.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// All blocks, ascending, each with the sequence that it was begun with.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (u64, &Block)> {
        self.blocks.iter().map(|(key, block)| (*key, block))
    }

    /// The sealed blocks, each with the sequence that it was begun with and its bytes for the index on disk.
    pub(crate) fn sealed_blocks(&self) -> impl Iterator<Item = (u64, Bytes)> + '_ {
        self.blocks().filter(|(_, block)| block.sealed).map(|(first, block)| (first, encode_run_block(&block.runs)))
    }

    /// Takes back a block that was written down; `None` when it does not belong behind the others. `alive` tells how
    /// many messages of a run are not settled.
    pub(crate) fn restore_block(
        &mut self,
        runs: Vec<Run>,
        sealed: bool,
        next: u64,
        alive: impl Fn(&Run) -> u64,
    ) -> Option<()> {
        if runs.len() > RUNS_PER_BLOCK || (sealed && runs.len() < RUNS_PER_BLOCK) {
            return None;
        }
        let last = self.blocks.last_key_value().and_then(|(_, block)| block.runs.last());
        let (mut end, mut body) = last.map_or((1, None), |last| (last.end(), Some(last.last_body())));
        let mut living = 0;
        for run in &runs {
            let whole = run.count > 0 && run.first_part.checked_add(run.count - 1).is_some();
            let inside = run.first_sequence >= end && run.first_sequence < next;
            let short = inside && u64::from(run.count) <= next - run.first_sequence;
            if !whole || !short || run.entry >= ENTRY_BOUND || body >= Some(run.reference(run.first_sequence)) {
                return None;
            }
            (end, body) = (run.end(), Some(run.last_body()));
            living += alive(run);
        }
        let first = runs.first()?.first_sequence;
        let alive = u32::try_from(living).ok().filter(|alive| *alive > 0)?;
        // Only the last block of a channel may still be open.
        if self.blocks.last_key_value().is_some_and(|(_, block)| !block.sealed) {
            return None;
        }
        self.count += runs.len() as u64;
        self.blocks.insert(first, Block { runs: Arc::new(runs), alive, sealed });
        Some(())
    }
}

/// Both as one run, when `after` goes on where `before` ends.
fn joined(before: &Run, after: &Run) -> Option<Run> {
    let same = before.entry == after.entry && before.end() == after.first_sequence;
    if !same || before.first_part.checked_add(before.count)? != after.first_part {
        return None;
    }
    Some(Run { count: before.count.checked_add(1)?, bytes: before.bytes.checked_add(after.bytes)?, ..*before })
}

/// A block as bytes for the index on disk: version, count, runs, checksum.
fn encode_run_block(runs: &[Run]) -> Bytes {
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
    let mut sum = Checksum::new();
    sum.slice(&out);
    out.put_u64_le(sum.value());
    out.freeze()
}

/// Reads a sealed block of runs back. `None` when its bytes are damaged or of another version.
#[must_use]
pub fn decode_run_block(block: &Bytes) -> Option<Vec<Run>> {
    let content = block.len().checked_sub(8)?;
    let mut sum = Checksum::new();
    sum.slice(&block[..content]);
    if take_word(&mut block.slice(content..)).ok()? != sum.value() {
        return None;
    }
    let mut rest = block.slice(..content);
    if take_byte(&mut rest).ok()? != BLOCK_VERSION {
        return None;
    }
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
