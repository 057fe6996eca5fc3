//! What applying leads to, as data: an outcome for each operation, an answer for each batch, and effects that others
//! carry out. Nothing here does anything by itself, and no sentence here is meant for clients.

use std::sync::Arc;

use bytes::Bytes;

use crate::channel::ChannelId;
use crate::name::Kind;
use crate::operation::DecodeError;
use crate::sequences::Sequences;

/// Why an operation changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The bytes are no operation that this version knows.
    #[error("the operation cannot be read")]
    Malformed,
    /// The channel name is empty, too long or no text.
    #[error("the channel name is not valid")]
    Name,
    /// A channel would have to be created and there are as many as may be.
    #[error("there are too many channels")]
    TooManyChannels,
    /// Messages of this channel kind are not stored.
    #[error("channels of this kind store nothing")]
    NotStored,
    /// A channel keeps the places of as many readers as it may.
    #[error("there are too many readers of this channel")]
    TooManyCursors,
    /// The channel has used up its sequences, or the log its indexes.
    #[error("the numbers of this log are used up")]
    Exhausted,
}

impl From<DecodeError> for Refusal {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Name(_) => Self::Name,
            _ => Self::Malformed,
        }
    }
}

/// What became of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A message was stored.
    Stored {
        /// Its sequence.
        sequence: u64,
        /// Its store time, in nanoseconds.
        time: u64,
    },
    /// A delayed message was taken.
    Scheduled {
        /// When it was taken, in nanoseconds.
        time: u64,
        /// When it is due, in nanoseconds.
        due: u64,
    },
    /// An `Ack` or `Drop` settled this many; those that were gone are not counted.
    Settled {
        /// How many.
        count: u64,
    },
    /// A `Move` moved this many; those that were gone are not counted.
    Moved {
        /// How many.
        count: u64,
    },
    /// A `Purge` settled this many.
    Purged {
        /// How many.
        count: u64,
    },
    /// A `Release` stored this many.
    Released {
        /// How many.
        count: u64,
    },
    /// The channel exists.
    Created {
        /// Its id.
        channel: ChannelId,
        /// Whether it did not exist before.
        new: bool,
    },
    /// The channel does not exist.
    Deleted {
        /// Whether it did before.
        existed: bool,
    },
    /// A `Tidy` found its channel in use.
    Kept,
    /// A `Beat` was taken.
    Noted,
    /// A `Trim` removed this many.
    Trimmed {
        /// How many.
        count: u64,
    },
    /// A reader has a place.
    Opened {
        /// The channel.
        channel: ChannelId,
        /// It has everything up to this sequence.
        after: u64,
    },
    /// A reader was noted at a place, or where it was already when that is later.
    Advanced {
        /// It has everything up to this sequence; 0 when the channel is gone.
        after: u64,
    },
    /// A `ForgetCursors` forgot so many places.
    Forgotten {
        /// How many.
        count: u64,
    },
    /// Nothing changed.
    Refused(Refusal),
}

/// What became of one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was applied, now or earlier: one outcome per operation.
    Results(Arc<[Outcome]>),
    /// It was not applied: batches before it are missing, or its results are forgotten.
    Gap {
        /// The number that this origin must send next.
        expected: u64,
    },
    /// It was not applied: a later epoch of its node was seen.
    Retired {
        /// That epoch.
        epoch: u64,
    },
}

/// The answer to a batch, with the batch's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchAnswer {
    /// Node that the batch came from.
    pub origin: u64,
    /// Epoch of that node's process.
    pub epoch: u64,
    /// Number of the batch.
    pub number: u64,
    /// What became of it.
    pub answer: Answer,
}

/// Names a block in the index on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlockKey {
    /// A block of runs.
    Runs {
        /// The channel.
        channel: ChannelId,
        /// First sequence in the block.
        first_sequence: u64,
    },
    /// A block of delayed messages.
    Timers {
        /// The span of time that they fall due in.
        bucket: u64,
        /// Where the body of the first one lies.
        first: u64,
    },
}

impl BlockKey {
    /// The key as bytes; blocks of one channel or bucket lie together and in order.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 17] {
        let (tag, high, low) = match self {
            Self::Runs { channel, first_sequence } => (b'r', channel.0, first_sequence),
            Self::Timers { bucket, first } => (b't', bucket, first),
        };
        let mut key = [0; 17];
        key[0] = tag;
        key[1..9].copy_from_slice(&high.to_be_bytes());
        key[9..].copy_from_slice(&low.to_be_bytes());
        key
    }
}

/// Something that others should do or know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A channel came to be.
    Created {
        /// Its id.
        channel: ChannelId,
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: Arc<str>,
    },
    /// Messages were stored; named once per channel and call of `apply`.
    Ready {
        /// The channel.
        channel: ChannelId,
    },
    /// Messages are gone: acked, moved away, dropped, purged or trimmed.
    Settled {
        /// The channel.
        channel: ChannelId,
        /// Which ones.
        sequences: Sequences,
    },
    /// A channel is gone, with everything in it.
    Deleted {
        /// Its id.
        channel: ChannelId,
    },
    /// Delayed messages were taken; named once per call of `apply`, with the earliest.
    TimerSet {
        /// When that one is due, in nanoseconds.
        due: u64,
    },
    /// A block is full and will not change any more: for the index on disk.
    Sealed {
        /// Its key.
        key: BlockKey,
        /// Its bytes.
        block: Bytes,
    },
    /// Nothing in a sealed block is needed any more.
    Dropped {
        /// Its key.
        key: BlockKey,
    },
}

/// Everything that one call of `apply` leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Applied {
    /// One answer per batch, in order.
    pub answers: Vec<BatchAnswer>,
    /// What follows.
    pub effects: Vec<Effect>,
}
