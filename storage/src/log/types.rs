//! What callers of the log hand in and get back.

use std::time::Duration;

use bytes::Bytes;

use super::entry::{LogId, Vote};

/// The sizes of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Bytes of groups in a segment; a larger frame has a segment of its own.
    pub segment_bytes: u64,
    /// Bytes of entries that stay in memory; what is not synced and applied stays whatever this says.
    pub tail_cache_bytes: u64,
    /// Bytes that were written last and that the system is to keep in its page cache.
    pub page_cache_bytes: u64,
    /// Bytes of frames that one sync makes durable, or one larger frame.
    pub group_bytes: u64,
    /// With less than this free, or a twentieth of the disk when that is less, but never less than four segments,
    /// [the disk is nearly full](super::Log::is_nearly_full). Zero: it never is.
    pub reserve_bytes: u64,
    /// When what was written is flushed.
    pub flush: Flush,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            tail_cache_bytes: 64 << 20,
            page_cache_bytes: 256 << 20,
            group_bytes: 4 << 20,
            reserve_bytes: 0,
            flush: Flush::Group,
        }
    }
}

/// When what was written is flushed to the disk, and with that what an answer promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Flush {
    /// Each group before it is answered: what was answered survives the loss of power.
    #[default]
    Group,
    /// Entries at the latest after this time, if the disk keeps up; everything else before it is answered. What was
    /// answered survives the process, and the loss of power may take the entries of this time: "synced" then means
    /// written, here and in what the log reports.
    Interval(Duration),
}

/// What a log holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    /// The node id that was made with this directory.
    pub node_id: Option<u64>,
    /// The newest vote that is on the disk.
    pub vote: Vote,
    /// The last entry, or the purge point when that lies beyond all entries.
    pub last: Option<LogId>,
    /// The purge point.
    pub purged: Option<LogId>,
    /// The last entry that was known to be committed; may lag.
    pub committed: Option<LogId>,
    /// The newest snapshot and its name.
    pub snapshot: Option<(LogId, String)>,
    /// The index of the last entry that is synced here, 0 also when there is none.
    pub synced_index: u64,
    /// Whether the log has failed and takes nothing more.
    pub failed: bool,
}

/// A part that was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartRead {
    /// The LogTime of its entry.
    pub time: u64,
    /// Its bytes.
    pub bytes: Bytes,
}

/// A part of an entry that a snapshot brings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Body {
    /// The entry's index.
    pub entry: u64,
    /// The part's number.
    pub part: u16,
    /// The LogTime of the entry.
    pub time: u64,
    /// The part's bytes.
    pub bytes: Bytes,
}

/// One file of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentInfo {
    /// Its number; larger is newer.
    pub number: u64,
    /// The least index of its entries, also of truncated ones.
    pub first: Option<u64>,
    /// The greatest index of its entries, also of truncated ones.
    pub last: Option<u64>,
    /// Bytes written to it.
    pub bytes: u64,
    /// Parts in it but for the first of each entry, also of truncated entries.
    pub parts: u64,
    /// Whether nothing more is written to it.
    pub sealed: bool,
    /// Whether it holds single parts that a snapshot brought, and no entries.
    pub bodies_only: bool,
}
