//! The log's ordered index on disk: sealed blocks of the state's index, under keys that sort.
//!
//! A block is written once and may be dropped from memory afterwards. Nothing here is needed for recovery:
//! whoever owns the state can always rebuild every block, so an index may lose all or a part of what it holds,
//! at any time, as long as it never returns something that was not put. That is why each value carries its own
//! checksum, and why a damaged index is thrown away instead of repaired.
//!
//! An index knows keys and bytes; it does not know what a block means, and it refuses large values, because
//! sled keeps those in files of their own that it reclaims far too late.

mod memory;
mod sled;
mod writer;

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use bytes::Bytes;

pub use self::memory::MemoryIndex;
pub use self::sled::{SledIndex, SledOptions};
pub use self::writer::{Full, IndexState, IndexStats, IndexWriter};

/// The largest block that an index takes. Blocks are meant to be near 1.5 KiB.
pub const MAX_BLOCK_BYTES: usize = 64 * 1024;

/// What a block belongs to. Keys of one space sort together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// Runs of a channel: owner is the channel id, first the first sequence.
    Runs,
    /// Delayed messages: owner is the minute in which they are due, first where the first of the block lies.
    Timers,
}

impl Space {
    const fn byte(self) -> u8 {
        match self {
            Self::Runs => 1,
            Self::Timers => 2,
        }
    }
}

/// The name of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey {
    /// What the block belongs to.
    pub space: Space,
    /// The channel or the bucket.
    pub owner: u64,
    /// The place of the block among those of its owner.
    pub first: u64,
}

impl BlockKey {
    /// Returns the key of a block of runs.
    #[must_use]
    pub const fn runs(channel: u64, first_sequence: u64) -> Self {
        Self { space: Space::Runs, owner: channel, first: first_sequence }
    }

    /// Returns the key of a block of delayed messages, by where the first of them lies.
    #[must_use]
    pub const fn timers(bucket: u64, first: u64) -> Self {
        Self { space: Space::Timers, owner: bucket, first }
    }

    /// Bytes that sort like the key.
    fn encode(self) -> [u8; 17] {
        let mut bytes = [0; 17];
        bytes[0] = self.space.byte();
        bytes[1..9].copy_from_slice(&self.owner.to_be_bytes());
        bytes[9..].copy_from_slice(&self.first.to_be_bytes());
        bytes
    }
}

impl fmt::Display for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = match self.space {
            Space::Runs => "runs",
            Space::Timers => "timers",
        };
        write!(f, "{space} {}/{}", self.owner, self.first)
    }
}

/// Why an index did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// What lies on disk cannot be trusted any more: the index must be cleared and rebuilt.
    #[error("the index in {} is damaged: {reason}", dir.display())]
    Damaged {
        /// The directory of the index.
        dir: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The index in this directory is open elsewhere.
    #[error("the index in {} is in use", dir.display())]
    InUse {
        /// The directory of the index.
        dir: PathBuf,
    },
    /// A file or directory could not be read, written, renamed or removed.
    #[error("the index in {} failed: {reason}", dir.display())]
    Io {
        /// The directory of the index.
        dir: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The block is larger than [`MAX_BLOCK_BYTES`].
    #[error("block {key} has {bytes} bytes, more than an index takes")]
    TooLarge {
        /// The block.
        key: BlockKey,
        /// Its size.
        bytes: usize,
    },
    /// The index was closed, or failed for good.
    #[error("the index is closed")]
    Closed,
}

/// What opening an index found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// An index that was there; single blocks may still be missing from it.
    Kept,
    /// Nothing was there: the index is empty.
    Fresh,
    /// What was there is damaged and was thrown away: the index is empty.
    Replaced {
        /// What was found.
        reason: String,
    },
}

impl Opening {
    /// Returns whether every block must be put again.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        !matches!(self, Self::Kept)
    }
}

/// An ordered store of blocks that may forget, used by one thread.
pub trait Index: Send + 'static {
    /// Stores `block`, in place of one with the same key.
    ///
    /// # Errors
    ///
    /// [`IndexError::TooLarge`]; anything else means that the index must be cleared.
    fn put(&mut self, key: BlockKey, block: &Bytes) -> Result<(), IndexError>;

    /// Returns a block, or nothing when it is missing or its own bytes are damaged.
    ///
    /// # Errors
    ///
    /// Any error means that the index must be cleared.
    fn get(&mut self, key: BlockKey) -> Result<Option<Bytes>, IndexError>;

    /// Forgets the blocks of `owner` whose first lies in `range`, and returns how many there were.
    ///
    /// # Errors
    ///
    /// Any error means that the index must be cleared.
    fn remove_range(&mut self, space: Space, owner: u64, range: RangeInclusive<u64>) -> Result<u64, IndexError>;

    /// Forgets everything, damaged or not, and gives the disk back.
    ///
    /// # Errors
    ///
    /// [`IndexError::Io`] when not even an empty index can be made.
    fn clear(&mut self) -> Result<(), IndexError>;

    /// Gives disk back when most of it holds nothing alive, and returns whether it did.
    ///
    /// # Errors
    ///
    /// Any error means that the index must be cleared.
    fn shrink(&mut self) -> Result<bool, IndexError>;

    /// Writes out what is buffered. Not needed for correctness: it spares work at the next start.
    ///
    /// # Errors
    ///
    /// Any error means that the index must be cleared.
    fn flush(&mut self) -> Result<(), IndexError>;

    /// Returns whether a block is there and whole.
    ///
    /// # Errors
    ///
    /// As [`Index::get`].
    fn contains(&mut self, key: BlockKey) -> Result<bool, IndexError> {
        self.get(key).map(|block| block.is_some())
    }

    /// Returns the number of blocks.
    fn len(&self) -> u64;

    /// Returns whether there is no block.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the bytes of disk in use.
    fn disk_bytes(&self) -> u64;
}
