//! The newest entries, in memory: readable before they are written, and pinned until they are synced and
//! applied.

use std::collections::VecDeque;

use super::entry::Entry;

/// What an entry costs beside its bytes.
const OVERHEAD: u64 = 128;

/// Consecutive entries up to the last one.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    entries: VecDeque<Entry>,
    bytes: u64,
    /// Entries before this index are applied.
    applied_before: u64,
}

impl Tail {
    /// Returns the index of the oldest entry that is held.
    pub(crate) fn first(&self) -> Option<u64> {
        self.entries.front().map(|entry| entry.id.index)
    }

    /// Returns the entry at `index` when it is held.
    pub(crate) fn get(&self, index: u64) -> Option<&Entry> {
        let place = index.checked_sub(self.first()?)?;
        self.entries.get(usize::try_from(place).ok()?)
    }

    /// Adds the entry after the last one.
    pub(crate) fn push(&mut self, entry: Entry) {
        self.bytes += weight(&entry);
        self.entries.push_back(entry);
    }

    /// Drops the entries from `index` on.
    pub(crate) fn truncate_from(&mut self, index: u64) {
        while self.entries.back().is_some_and(|entry| entry.id.index >= index) {
            self.bytes -= self.entries.pop_back().map_or(0, |entry| weight(&entry));
        }
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    /// Notes that the entries before `index` are applied.
    pub(crate) fn applied_before(&mut self, index: u64) {
        self.applied_before = self.applied_before.max(index);
    }

    /// Drops the oldest entries until the rest fits into `budget`, but none that is unapplied or not synced.
    pub(crate) fn evict(&mut self, synced_before: u64, budget: u64) {
        let free_before = synced_before.min(self.applied_before);
        while self.bytes > budget && self.entries.front().is_some_and(|entry| entry.id.index < free_before) {
            self.bytes -= self.entries.pop_front().map_or(0, |entry| weight(&entry));
        }
    }

    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }
}

fn weight(entry: &Entry) -> u64 {
    entry.parts.as_bytes().len() as u64 + OVERHEAD
}
