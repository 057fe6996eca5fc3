//! Every bound of the core, in one place. It bounds what the state may hold; it does not know how much memory a node
//! has: what differs from node to node must be refused before it is proposed, or replicas would disagree.

/// Longest channel name, in bytes of UTF-8.
pub const NAME_BYTES: usize = 256;

/// Runs in one block; a block is the unit that is shared, copied on write and handed to the index on disk.
pub const RUNS_PER_BLOCK: usize = 64;

/// Copies in one block.
pub const COPIES_PER_BLOCK: usize = 64;

/// Timers in one block.
pub const TIMERS_PER_BLOCK: usize = 64;

/// Timers that are kept in the order in which they are due, besides their blocks; twice as many until some are put back.
pub const TIMERS_SOON: usize = 16_384;

/// Messages that one bitmap block speaks for.
pub const BITMAP_BLOCK: u64 = 1024;

/// Ranges of sequences that one operation may list.
pub const SEQUENCE_RANGES: usize = 1 << 20;

/// Messages that one `Move` may name.
pub const MOVE_ITEMS: usize = 4_096;

/// Timers that one `Release` may name.
pub const RELEASE_TIMERS: usize = 1_024;

/// Readers of one events-store channel whose places are kept.
pub const CURSORS_PER_CHANNEL: usize = 100_000;

/// Batches of an origin whose results are kept, so that a repeated one is answered again.
pub const BATCHES_KEPT: usize = 4;

/// Entry indexes stay below this bound so that entry and part fit into one word.
pub const ENTRY_BOUND: u64 = 1 << 48;

/// Largest piece of a snapshot.
pub const SNAPSHOT_CHUNK: usize = 1 << 20;

/// Largest record inside a snapshot; a record that claims more is damage.
pub const SNAPSHOT_RECORD: usize = 256 << 10;

/// The bounds that decide inside `apply` whether something is refused.
///
/// They must be equal on all nodes; a snapshot carries them, so a node that restores one goes on with the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Channels of all kinds together.
    pub channels: u64,
    /// Origins whose batches are remembered; beyond it the one that was idle longest is forgotten.
    pub origins: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { channels: 100_000, origins: 256 }
    }
}
