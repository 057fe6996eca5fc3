//! What the log counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How many latency classes there are; class n holds what took less than 2^n microseconds.
pub const CLASSES: usize = 24;

/// What a log has done since it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Write groups.
    pub groups: u64,
    /// Frames in them.
    pub frames: u64,
    /// Entries in them.
    pub entries: u64,
    /// Bytes written, heads included.
    pub bytes: u64,
    /// Calls of fdatasync for write groups and footers.
    pub fdatasyncs: u64,
    /// Idle marks among the groups.
    pub marks: u64,
    /// Bytes of entries in the tail cache.
    pub tail_bytes: u64,
    /// Beyond so many the oldest are given up.
    pub tail_most: u64,
    /// Bytes that were read ahead from files.
    pub read_ahead_bytes: u64,
    /// Beyond so many the oldest are forgotten, unless they are one chunk.
    pub read_ahead_most: u64,
    /// Bytes of the files that the system is to keep in memory: what was written or read last.
    pub page_cache_bytes: u64,
    /// Beyond so many the oldest are let go.
    pub page_cache_most: u64,
    /// Reads that went to a file.
    pub file_reads: u64,
    /// Bytes of groups that are written and not flushed yet.
    pub unflushed_bytes: u64,
    /// How many fdatasyncs took less than 2^n microseconds, and not less than half of it.
    pub fdatasync_latency: [u64; CLASSES],
    /// How long all of them took together, in nanoseconds.
    pub fdatasync_nanos: u64,
}

/// The counters behind [`Stats`].
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) groups: AtomicU64,
    pub(crate) frames: AtomicU64,
    pub(crate) entries: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) fdatasyncs: AtomicU64,
    pub(crate) marks: AtomicU64,
    pub(crate) file_reads: AtomicU64,
    pub(crate) unflushed: AtomicU64,
    latency: [AtomicU64; CLASSES],
    latency_nanos: AtomicU64,
}

impl Counts {
    pub(crate) fn add(counter: &AtomicU64, more: u64) {
        counter.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn synced(&self, took: Duration) {
        Self::add(&self.fdatasyncs, 1);
        Self::add(&self.latency_nanos, u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let class = (u64::BITS - micros.leading_zeros()) as usize;
        Self::add(&self.latency[class.min(CLASSES - 1)], 1);
    }

    /// Returns what was counted. What the log holds is for others to add.
    pub(crate) fn stats(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            groups: read(&self.groups),
            frames: read(&self.frames),
            entries: read(&self.entries),
            bytes: read(&self.bytes),
            fdatasyncs: read(&self.fdatasyncs),
            marks: read(&self.marks),
            unflushed_bytes: read(&self.unflushed),
            file_reads: read(&self.file_reads),
            fdatasync_nanos: read(&self.latency_nanos),
            fdatasync_latency: std::array::from_fn(|class| read(&self.latency[class])),
            ..Stats::default()
        }
    }
}
