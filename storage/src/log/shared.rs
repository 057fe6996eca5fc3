//! What the log's handles and tasks share.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kubemq_runtime::sync::watch;
use kubemq_runtime::{Clock, Tasks};
use parking_lot::Mutex;

use super::entry::LogId;
use super::hard_state::HardState;
use super::keeper::KeeperJob;
use super::page_cache::{PageCache, Stretch};
use super::position::Positions;
use super::queue::{Inbox, Queue};
use super::reader::{Chunk, ReadJob};
use super::segment::Purpose;
use super::stats::Counts;
use super::tail::Tail;
use super::{Options, SegmentInfo};
use crate::Error;
use crate::fs::{Disk, File};

pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) options: Options,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
    pub(crate) inbox: Inbox,
    pub(crate) reads: Queue<ReadJob>,
    pub(crate) keeper: Queue<KeeperJob>,
    pub(crate) index: Mutex<Index>,
    /// Entries before this index are synced here.
    pub(crate) synced_before: watch::Sender<u64>,
    pub(crate) failure: watch::Sender<Option<Error>>,
    pub(crate) counts: Counts,
    pub(crate) next_number: AtomicU64,
    /// The keeper has been told to look and has not begun to.
    pub(crate) looks: AtomicBool,
    /// Little of the disk is left.
    pub(crate) nearly_full: AtomicBool,
    /// Bytes that were free when that was last asked, if it ever was.
    pub(crate) free_bytes: AtomicU64,
    pub(crate) page_cache: Mutex<PageCache>,
}

impl Shared {
    /// Returns a number that no segment has had.
    pub(crate) fn new_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes that a part of a segment's file was written.
    pub(crate) fn has_written(&self, segment: u64, range: Range<u64>) {
        let left = self.page_cache.lock().wrote(segment, range);
        self.let_go(left);
    }

    /// Notes that a part of a segment's file was read.
    pub(crate) fn has_read(&self, segment: u64, range: Range<u64>) {
        let left = self.page_cache.lock().read(segment, range);
        self.let_go(left);
    }

    /// The kernel may take a millisecond for it, which nobody waits for.
    fn let_go(&self, stretches: Vec<Stretch>) {
        if !stretches.is_empty() {
            self.keeper.push(KeeperJob::LetGo { stretches });
        }
    }

    /// Ends all tasks of the log once they have done what is queued.
    pub(crate) fn close_queues(&self) {
        self.reads.close();
        self.keeper.close();
    }
}

/// A segment's file and what it holds.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) file: Arc<dyn File>,
    pub(crate) path: PathBuf,
    pub(crate) purpose: Purpose,
    pub(crate) range: Option<(u64, u64)>,
    /// Parts but for the first of each entry, or bodies.
    pub(crate) parts: u64,
    /// Where its write groups end.
    pub(crate) end: u64,
    pub(crate) sealed: bool,
}

impl Segment {
    pub(crate) fn info(&self, number: u64) -> SegmentInfo {
        SegmentInfo {
            number,
            first: self.range.map(|range| range.0),
            last: self.range.map(|range| range.1),
            bytes: self.end,
            parts: self.parts,
            sealed: self.sealed,
            bodies_only: self.purpose == Purpose::Bodies,
        }
    }
}

/// Consecutive parts of one entry in a body segment, at most 64 KiB or one part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyRange {
    pub(crate) count: u16,
    pub(crate) segment: u64,
    pub(crate) offset: u64,
}

/// Where everything is. Locked for short sections only.
#[derive(Default)]
pub(crate) struct Index {
    /// As callers see it: appended entries count, what waits for its sync (a vote, a node id) does not.
    pub(crate) state: HardState,
    /// The purge point that is on the disk.
    pub(crate) durable_purged: Option<LogId>,
    /// Entries before this index are synced here.
    pub(crate) synced_before: u64,
    /// Counts truncations: an entry that was appended in an earlier epoch may be gone.
    pub(crate) epoch: u64,
    /// Counts what makes positions that were looked up before it stale.
    pub(crate) generation: u64,
    pub(crate) tail: Tail,
    pub(crate) positions: Positions,
    pub(crate) segments: BTreeMap<u64, Segment>,
    pub(crate) bodies: BTreeMap<(u64, u16), BodyRange>,
    /// What readers read ahead, oldest first.
    pub(crate) read_ahead: VecDeque<Arc<Chunk>>,
}

impl Index {
    /// Returns the index that the next entry will have, when that is fixed.
    pub(crate) fn next(&self) -> Option<u64> {
        self.state.last.map(|last| last.index + 1)
    }

    /// Drops the entries from `index` on from memory.
    pub(crate) fn truncate_from(&mut self, index: u64) {
        self.epoch += 1;
        self.synced_before = self.synced_before.min(index);
        self.tail.truncate_from(index);
        self.forget_read_ahead(index);
    }

    /// Forgets what was read ahead from `index` on.
    pub(crate) fn forget_read_ahead(&mut self, index: u64) {
        self.generation += 1;
        self.read_ahead.retain(|chunk| chunk.end() <= index);
    }

    /// Returns where part `part` of `entry` lies, when a body segment has it.
    pub(crate) fn find_body(&self, entry: u64, part: u16) -> Option<(u16, BodyRange)> {
        let (&(of, first), range) = self.bodies.range(..=(entry, part)).next_back()?;
        (of == entry && part - first < range.count).then_some((first, *range))
    }

    /// Returns whether a body segment has parts of `entry`.
    pub(crate) fn has_bodies_of(&self, entry: u64) -> bool {
        self.bodies.range((entry, 0)..=(entry, u16::MAX)).next().is_some()
    }

    /// Returns whether the frame of `entry` lies in a file of the log.
    pub(crate) fn has_frame(&self, entry: u64) -> bool {
        self.segment_of(entry).is_some()
    }

    /// Returns the segment of the log that holds the frame of `entry`.
    fn segment_of(&self, entry: u64) -> Option<u64> {
        let span = self.positions.spans(entry, 0).first().copied()?;
        let range = self.segments.get(&span.segment).and_then(|segment| segment.range);
        range.is_some_and(|(_, last)| entry <= last).then_some(span.segment)
    }

    /// Returns the segment that `count` parts of `entry` from `first` on are read from, or as many of them as lie
    /// together: a body goes before what the log holds.
    pub(crate) fn place(&self, entry: u64, first: u16, count: u16) -> (Option<u64>, u16) {
        if let Some((start, range)) = self.find_body(entry, first) {
            return (Some(range.segment), count.min(start + range.count - first));
        }
        let next = self.bodies.range((entry, first)..=(entry, u16::MAX)).next();
        let together = next.map_or(count, |((_, part), _)| count.min(part - first));
        (self.segment_of(entry), together)
    }

    /// Forgets a segment.
    pub(crate) fn remove_segment(&mut self, number: u64) {
        self.segments.remove(&number);
        self.positions.remove_segment(number);
        self.bodies.retain(|_, range| range.segment != number);
        self.read_ahead.retain(|chunk| chunk.segment != number);
    }
}
