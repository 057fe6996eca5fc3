//! Gives disk back: segments in which nothing lives are removed, and of those in which little lives, that little is
//! copied first.
//!
//! What lives is marked when a snapshot is taken. Of the entries up to there, less may live later and never more, so
//! marks stay right however late they are acted on. A copy is on the disk before what it was copied from is removed:
//! whoever reads finds the one or the other.

use std::collections::BTreeMap;

use kubemq_runtime::OnFailure;
use kubemq_storage::log::{Body, Log, SegmentInfo};

use crate::error::Error;
use crate::machine::Shared;
use crate::state_machine::Living;
use crate::walk::Walk;

/// A segment in which less than one part in so many lives is copied and removed.
const SPARSE: u64 = 4;
/// Living parts that are copied after one snapshot, at most: their places are kept in memory until then.
const COPIED_PARTS: u64 = 256 * 1024;
/// Bytes of bodies that are written together.
const COPIED_TOGETHER: usize = 1 << 20;

/// What of the log need not be kept, as of one snapshot.
#[derive(Default)]
pub(crate) struct Marks {
    /// Segments in which nothing lives.
    dead: Vec<SegmentInfo>,
    sparse: Vec<Sparse>,
    /// Parts that live and are in no file here.
    missing: Missing,
}

/// Parts that are not where they must be.
#[derive(Clone, Copy, Default)]
struct Missing {
    /// How many; one that is referred to twice counts twice.
    parts: u64,
    /// The entry and the part of the first.
    first: Option<(u64, u16)>,
}

impl Missing {
    fn add(&mut self, living: Living) {
        self.parts += u64::from(living.count);
        let place = (living.entry, living.first);
        self.first = Some(self.first.map_or(place, |first| first.min(place)));
    }
}

/// A segment in which little lives, and what.
struct Sparse {
    segment: SegmentInfo,
    living: Vec<Living>,
}

impl Marks {
    /// Marks the segments by what lives in a snapshot of entry `upto`, of which two walks are given. Of what lies behind
    /// that entry the snapshot says nothing: it stays.
    ///
    /// # Errors
    ///
    /// When the snapshot before is needed and cannot be read: then nothing is marked.
    pub(crate) async fn of(shared: &Shared, upto: u64, living: [Walk<Vec<Living>>; 2]) -> Result<Self, Error> {
        let log = shared.log.clone();
        let mark = async move { Self::mark(&log, upto, living).await };
        let marked = shared.runtime.tasks.dedicated("snapshot-mark", OnFailure::Log, mark);
        let marks = marked.await.map_err(|_| Error::Stopped("marking what lives panicked".to_owned()))??;
        let known = std::mem::replace(&mut shared.facts.lock().missing, marks.missing.parts);
        if let Some((entry, part)) = marks.missing.first.filter(|_| marks.missing.parts > known) {
            let bodies = marks.missing.parts;
            tracing::error!(bodies, entry, part, "bodies of stored messages are in no file here; this is the first");
        }
        Ok(marks)
    }

    /// Walks twice through what lives: to count it by segment, and to note what of it lies in those with little.
    async fn mark(log: &Log, upto: u64, living: [Walk<Vec<Living>>; 2]) -> Result<Self, Error> {
        let [mut counted, mut kept] = living;
        let segments = as_the_next_counts_on(log.segments());
        let mut census: BTreeMap<u64, u64> = BTreeMap::new();
        let mut missing = Missing::default();
        while let Some(ranges) = counted.next().await? {
            for (segment, living) in places(log, ranges) {
                match segment {
                    Some(segment) => *census.entry(segment).or_default() += u64::from(living.count),
                    None => missing.add(living),
                }
            }
        }
        let (dead, mut sparse) = decide(segments, upto, &census);
        let numbers: BTreeMap<u64, usize> =
            sparse.iter().enumerate().map(|(place, sparse)| (sparse.segment.number, place)).collect();
        if !numbers.is_empty() {
            while let Some(ranges) = kept.next().await? {
                for (segment, living) in places(log, ranges) {
                    if let Some(sparse) =
                        segment.and_then(|segment| numbers.get(&segment)).and_then(|place| sparse.get_mut(*place))
                    {
                        sparse.living.push(living);
                    }
                }
            }
        }
        // Copied as they lie: that reads a file from its start to its end, and nothing twice.
        sparse.iter_mut().for_each(|sparse| Living::put_in_order(&mut sparse.living));
        Ok(Self { dead, sparse, missing })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.dead.is_empty() && self.sparse.is_empty()
    }

    /// Reclaims what lies below the purge point; the rest stays marked.
    ///
    /// # Errors
    ///
    /// What the disk says, and damage where something that lives cannot be read: that segment stays.
    pub(crate) async fn reclaim(&mut self, log: &Log, purged: u64) -> Result<(), Error> {
        let gone: Vec<u64> =
            self.dead.extract_if(.., |segment| is_purged(segment, purged)).map(|it| it.number).collect();
        if !gone.is_empty() {
            log.remove_segments(gone).await?;
        }
        let ready: Vec<Sparse> = self.sparse.extract_if(.., |sparse| is_purged(&sparse.segment, purged)).collect();
        for Sparse { segment, living } in ready {
            copy(log, &living).await?;
            log.remove_segments(vec![segment.number]).await?;
            tracing::debug!(segment = segment.number, runs = living.len(), bytes = segment.bytes, "segment compacted");
        }
        Ok(())
    }
}

fn is_purged(segment: &SegmentInfo, purged: u64) -> bool {
    segment.bodies_only || segment.last.unwrap_or(0) <= purged
}

/// Splits runs where they lie in several segments, and names the segment of each, where it is here.
fn places(log: &Log, living: Vec<Living>) -> impl Iterator<Item = (Option<u64>, Living)> {
    living.into_iter().flat_map(move |run| {
        let mut rest = run;
        std::iter::from_fn(move || {
            if rest.count == 0 {
                return None;
            }
            let (segment, together) = log.place(rest.entry, rest.first, rest.count);
            let here = Living { count: together, ..rest };
            rest.first = rest.first.saturating_add(together);
            rest.count -= together;
            Some((segment, here))
        })
    })
}

/// Copies parts beside the log.
async fn copy(log: &Log, living: &[Living]) -> Result<(), Error> {
    let (mut bodies, mut bytes) = (Vec::new(), 0);
    for Living { entry, first, count } in living.iter().copied() {
        for part in first..first.saturating_add(count) {
            let read = log.read_part(entry, part).await?;
            bytes += read.bytes.len();
            bodies.push(Body { entry, part, time: read.time, bytes: read.bytes });
            if bytes >= COPIED_TOGETHER {
                log.insert_bodies(std::mem::take(&mut bodies)).await?;
                bytes = 0;
            }
        }
    }
    Ok(log.insert_bodies(bodies).await?)
}

/// Returns the segments, each ending where the log had come when it was sealed. One that holds only a vote or a
/// truncation has no entries of its own, and yet the log has a hole without it while those before it stay.
fn as_the_next_counts_on(mut segments: Vec<SegmentInfo>) -> Vec<SegmentInfo> {
    segments.sort_by_key(|segment| segment.number);
    let mut reached = None;
    for segment in segments.iter_mut().filter(|segment| !segment.bodies_only) {
        reached = reached.max(segment.last);
        segment.last = reached;
    }
    segments
}

/// Returns the sealed segments up to entry `upto` in which nothing lives, and those in which little does, by the
/// number of living parts of each.
fn decide(segments: Vec<SegmentInfo>, upto: u64, census: &BTreeMap<u64, u64>) -> (Vec<SegmentInfo>, Vec<Sparse>) {
    // Bodies that are copied now may go into the newest file of bodies.
    let newest_bodies = segments.iter().filter(|segment| segment.bodies_only).map(|segment| segment.number).max();
    let covered = |segment: &SegmentInfo| segment.sealed && segment.last.is_none_or(|last| last <= upto);
    let (mut dead, mut sparse) = (Vec::new(), Vec::new());
    for segment in segments.into_iter().filter(covered) {
        match census.get(&segment.number).copied().unwrap_or(0) {
            0 => dead.push(segment),
            living if living * SPARSE < segment.parts && Some(segment.number) != newest_bodies => {
                sparse.push((living, Sparse { segment, living: Vec::new() }));
            }
            _ => {}
        }
    }
    // Those that cost least come first; the others have their turn after the next snapshot.
    sparse.sort_by_key(|(living, _)| *living);
    let mut copied = 0;
    sparse.retain(|(living, _)| {
        copied += living;
        copied <= COPIED_PARTS
    });
    (dead, sparse.into_iter().map(|(_, sparse)| sparse).collect())
}

#[cfg(test)]
mod tests;
