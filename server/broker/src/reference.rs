//! Where a body lies: entry and part in one word. It says nothing about files.

use crate::limits::ENTRY_BOUND;

/// An entry index (48 bits) and a part of that entry (16 bits), ordered as they lie in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Reference(u64);

impl Reference {
    /// Names a part. Entries at or beyond [`ENTRY_BOUND`] are refused before anything is stored.
    pub(crate) fn new(entry: u64, part: u16) -> Self {
        debug_assert!(entry < ENTRY_BOUND, "entries beyond the bound are refused before");
        Self((entry << 16) | u64::from(part))
    }

    /// The word itself.
    pub(crate) fn word(self) -> u64 {
        self.0
    }

    /// The reference that this word stands for.
    pub(crate) fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// The entry.
    pub(crate) fn entry(self) -> u64 {
        self.0 >> 16
    }

    /// The part.
    pub(crate) fn part(self) -> u16 {
        (self.0 & 0xffff) as u16
    }
}
