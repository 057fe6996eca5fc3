//! Messages that were stored again: returned, dead-lettered, requeued, or released after their delay. Each refers to
//! the body that its first publish wrote. Blocks of 64 are shared with snapshots and copied on write.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::limits::COPIES_PER_BLOCK;
use crate::reference::Reference;

/// What a block costs in RAM besides its copies.
const BLOCK_BYTES: u64 = 72;

/// What the tree costs in RAM as soon as there is a block: its first node has room for eleven.
const TREE_BYTES: u64 = 192;

/// What a copy costs in RAM.
const COPY_BYTES: u64 = size_of::<Copy>() as u64;

/// A message that was stored again. What is not here (policy, headers, body) stands in the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Its sequence in this channel.
    pub sequence: u64,
    /// When this copy was stored, in nanoseconds.
    pub time: u64,
    /// When it expires, in nanoseconds; 0 for never. The policy in the body does not count any more.
    pub expires_at: u64,
    /// The channel whose receive limit it reached.
    pub rerouted_from: Option<Arc<str>>,
    pub(crate) body: Reference,
    /// How often it was received and given back: a receiver sees one more.
    pub receive_count: u32,
    /// Its size.
    pub(crate) bytes: u32,
    /// The policy in the body is void: no receive limit, no dead-letter channel, no expiration.
    pub cleared_policy: bool,
    /// It counts as sent at [`Copy::time`]: released after a delay, or requeued.
    pub fresh: bool,
}

const _: () = assert!(size_of::<Copy>() <= 64, "the memory budget counts 64 bytes per copy, its sequence included");

/// All copies of one channel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Copies {
    /// By the sequence that each block was begun with, or a later one when the first ones are gone.
    blocks: BTreeMap<u64, Arc<Vec<Copy>>>,
    /// Copies in all blocks.
    count: u64,
}

impl Copies {
    /// Appends a copy behind everything else.
    pub(crate) fn push(&mut self, copy: Copy) {
        self.count += 1;
        if let Some(mut last) = self.blocks.last_entry()
            && last.get().len() < COPIES_PER_BLOCK
        {
            Arc::make_mut(last.get_mut()).push(copy);
            return;
        }
        self.blocks.insert(copy.sequence, Arc::new(vec![copy]));
    }

    /// The copy with this sequence.
    pub(crate) fn find(&self, sequence: u64) -> Option<&Copy> {
        if self.count == 0 {
            return None;
        }
        let (_, block) = self.blocks.range(..=sequence).next_back()?;
        let place = block.binary_search_by_key(&sequence, |copy| copy.sequence).ok()?;
        block.get(place)
    }

    /// Removes the copies in `[first, end)`; gives back how many there were, and their size.
    pub(crate) fn settle(&mut self, first: u64, end: u64) -> (u64, u64) {
        if self.count == 0 {
            return (0, 0);
        }
        let from = self.blocks.range(..=first).next_back().map_or(first, |(key, _)| *key);
        let (mut count, mut bytes) = (0, 0);
        let mut empty = Vec::new();
        for (key, block) in self.blocks.range_mut(from..end) {
            let low = block.partition_point(|copy| copy.sequence < first);
            let high = block.partition_point(|copy| copy.sequence < end);
            if low == high {
                continue;
            }
            let copies = Arc::make_mut(block);
            count += (high - low) as u64;
            bytes += copies.drain(low..high).map(|copy| u64::from(copy.bytes)).sum::<u64>();
            if copies.is_empty() {
                empty.push(*key);
            } else if copies.len() < copies.capacity() / 4 {
                copies.shrink_to(copies.len() * 2);
            }
        }
        for key in empty {
            self.blocks.remove(&key);
        }
        if self.blocks.is_empty() {
            // An emptied tree keeps a node; a new one has none.
            self.blocks = BTreeMap::new();
        }
        self.count -= count;
        (count, bytes)
    }

    /// How many there are in `[first, end)`.
    pub(crate) fn count_in(&self, first: u64, end: u64) -> u64 {
        if self.count == 0 || first >= end {
            return 0;
        }
        let from = self.blocks.range(..=first).next_back().map_or(first, |(key, _)| *key);
        let below = |block: &[Copy], bound| block.partition_point(|copy| copy.sequence < bound);
        self.blocks.range(from..end).map(|(_, block)| (below(block, end) - below(block, first)) as u64).sum()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// What the copies cost in RAM.
    pub(crate) fn index_bytes(&self) -> u64 {
        if self.blocks.is_empty() {
            return 0;
        }
        TREE_BYTES + self.count * COPY_BYTES + self.blocks.len() as u64 * BLOCK_BYTES
    }

    /// The first block that was begun at `sequence` or behind it, and where it was begun.
    pub(crate) fn block_from(&self, sequence: u64) -> Option<(u64, &[Copy])> {
        self.blocks.range(sequence..).next().map(|(first, block)| (*first, block.as_slice()))
    }

    /// All copies, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Copy> {
        self.blocks.values().flat_map(|block| block.iter())
    }

    /// Takes back a block that was written down; `None` when it does not belong behind the others.
    pub(crate) fn restore_block(&mut self, copies: Vec<Copy>, next: u64) -> Option<()> {
        if copies.len() > COPIES_PER_BLOCK {
            return None;
        }
        let mut before =
            self.blocks.last_key_value().and_then(|(_, block)| block.last()).map_or(0, |copy| copy.sequence);
        for copy in &copies {
            if copy.sequence <= before || copy.sequence >= next {
                return None;
            }
            before = copy.sequence;
        }
        self.count += copies.len() as u64;
        self.blocks.insert(copies.first()?.sequence, Arc::new(copies));
        Some(())
    }
}
