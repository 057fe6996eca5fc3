//! What a node does by itself: beats, snapshots, purges, and giving disk back.
//!
//! Each node decides for itself when a snapshot is due. After it the log is purged, as far as no slow peer and
//! no running transfer needs it, and segments in which nothing lives are removed. A failure here is logged and
//! tried again; it stops nothing.

use std::sync::Arc;
use std::time::Duration;

use kubemq_runtime::chain;
use kubemq_runtime::sync::{mpsc, oneshot};
use kubemq_storage::log::{Log, SegmentInfo};

use crate::batcher::Batcher;
use crate::core::{Engine, Mark};
use crate::error::Error;
use crate::machine::{Meta, Shared};
use crate::options::Options;
use crate::snapshot_file::{self, Wrote};
use crate::state_machine::Living;
use crate::status::Status;
use crate::types;

/// How often it looks whether something is due.
const TICK: Duration = Duration::from_secs(1);
/// How long openraft may take to note what it was told.
const NOTE: Duration = Duration::from_secs(10);
/// How long to wait after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(10);

/// Asks for a snapshot now, and hears how it went.
pub(crate) type Request = oneshot::Sender<Result<(), Error>>;

/// See the module.
pub(crate) struct Maintenance {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) batcher: Batcher,
    pub(crate) options: Arc<Options>,
    pub(crate) requests: mpsc::Receiver<Request>,
    /// Segments in which nothing lived when the last snapshot was taken, and their last entries.
    pub(crate) dead: Vec<SegmentInfo>,
}

impl Maintenance {
    /// Runs until the node stops.
    pub(crate) async fn run(mut self) {
        let clock = self.shared.runtime.clock.clone();
        loop {
            let status = self.engine.status();
            let many = status.voters.len() + status.learners.len() > 1;
            let tick = if many { TICK.min(self.options.beat / 2) } else { TICK };
            let request = tokio::select! {
                biased;
                request = self.requests.recv() => match request {
                    Some(request) => Some(request),
                    None => return,
                },
                () = clock.sleep(tick) => None,
            };
            let status = self.engine.status();
            if many && status.leads() {
                self.batcher.beat(self.options.beat);
            }
            let result = match &request {
                Some(_) => self.snapshot().await,
                None if self.due() => self.snapshot().await,
                None => Ok(()),
            };
            let failed = result.is_err();
            if let Err(error) = &result {
                tracing::error!(error = %chain(error), "snapshot failed");
            }
            if let Err(error) = self.give_back().await {
                tracing::warn!(error = %chain(&error), "disk could not be given back");
            }
            if let Some(request) = request {
                // Whoever asked may be gone.
                request.send(result).ok();
            } else if failed {
                clock.sleep(AFTER_FAILURE).await;
            }
        }
    }

    fn due(&self) -> bool {
        let facts = self.shared.facts.lock();
        let written = facts.written;
        let most = self.options.snapshot_bytes.max(facts.durable_bytes.saturating_mul(self.options.snapshot_factor));
        let idle = self.shared.runtime.clock.now() >= written.last + self.options.snapshot_idle;
        written.bytes >= most || (written.operations && idle)
    }

    /// Writes a snapshot of this moment, unless there is one.
    async fn snapshot(&mut self) -> Result<(), Error> {
        let writing = self.shared.writing.lock().await;
        let before = self.shared.facts.lock().written;
        let moment = self.engine.moment();
        let Some(id) = moment.meta.raft.last_log_id.as_ref().map(types::stored_id) else { return Ok(()) };
        if self.shared.facts.lock().durable.as_ref().is_some_and(|durable| durable.index() >= id.index) {
            return Ok(());
        }
        // What is derived from entries must not be durable before they are.
        self.shared.log.synced(id.index).await?;
        let Wrote { meta, bytes, dead } = snapshot_file::write(&self.shared, moment).await?;
        self.dead = dead;
        {
            let mut facts = self.shared.facts.lock();
            facts.written.bytes = facts.written.bytes.saturating_sub(before.bytes);
            facts.written.operations = facts.written.last > before.last;
            facts.prepared = Some(meta);
        }
        drop(writing);
        tracing::debug!(index = id.index, bytes, "snapshot written");
        self.engine.snapshot().await?;
        self.engine.reached(Mark::Snapshot, id.index, NOTE).await.map_err(|error| Error::Stopped(error.to_string()))
    }

    /// Purges what no one needs and removes segments in which nothing lives.
    async fn give_back(&mut self) -> Result<(), Error> {
        let status = self.engine.status();
        let Some(upto) = self.purge_point(&status) else { return Ok(()) };
        if status.purged.is_none_or(|purged| purged.index < upto) {
            self.engine.purge(upto).await?;
            let purged = self.engine.reached(Mark::Purged, upto, NOTE).await;
            purged.map_err(|error| Error::Stopped(error.to_string()))?;
        }
        let Some(purged) = self.engine.status().purged else { return Ok(()) };
        if self.dead.is_empty() || !self.shared.facts.lock().leases.is_empty() {
            return Ok(());
        }
        let (gone, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.dead).into_iter().partition(|segment| segment.last.unwrap_or(0) <= purged.index);
        self.dead = kept;
        if !gone.is_empty() {
            let numbers = gone.iter().map(|segment| segment.number).collect();
            if let Err(error) = self.shared.log.remove_segments(numbers).await {
                self.dead.extend(gone);
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Returns up to where the log may be purged.
    fn purge_point(&self, status: &Status) -> Option<u64> {
        let (durable, lease) = {
            let facts = self.shared.facts.lock();
            (facts.durable.as_ref().map(Meta::index)?, facts.leases.values().min().copied())
        };
        let mut upto = durable.min(status.snapshot.map_or(0, |id| id.index)).min(lease.unwrap_or(u64::MAX));
        if let Some(slowest) = status.matched.values().map(|matched| matched.unwrap_or(0)).min() {
            upto = upto.min(slowest.max(kept_from(&self.shared.log, self.options.keep_bytes)));
        }
        (upto > 0).then_some(upto)
    }
}

/// Returns the first entry of the newest segments that have `keep` bytes together, or a quarter of the log.
fn kept_from(log: &Log, keep: u64) -> u64 {
    let mut segments = log.segments();
    segments.retain(|segment| !segment.bodies_only);
    segments.sort_by_key(|segment| segment.number);
    let all: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let keep = keep.max(all / 4);
    let mut bytes = 0;
    for segment in segments.iter().rev() {
        bytes += segment.bytes;
        if bytes > keep {
            return segment.last.unwrap_or(0);
        }
    }
    0
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

/// Returns the sealed segments in which nothing of `living` lies, the living parts of a snapshot of entry `upto`, in
/// ascending order. Of what lies behind that entry the snapshot says nothing: it stays.
pub(crate) fn dead(segments: Vec<SegmentInfo>, upto: u64, living: impl Iterator<Item = Living>) -> Vec<SegmentInfo> {
    let covered = |segment: &SegmentInfo| segment.sealed && segment.last.is_none_or(|last| last <= upto);
    let mut unmarked: Vec<_> = as_the_next_counts_on(segments).into_iter().filter(covered).collect();
    unmarked.sort_by_key(|segment| segment.first);
    let mut dead = Vec::new();
    let mut last = None;
    for Living { entry, .. } in living {
        if last == Some(entry) {
            continue;
        }
        last = Some(entry);
        if unmarked.is_empty() {
            break;
        }
        // Those that begin later are not reached yet; those that end earlier are decided.
        let begun = unmarked.partition_point(|segment| segment.first.unwrap_or(0) <= entry);
        if begun == 0 {
            continue;
        }
        let mut index = 0;
        unmarked.retain(|segment| {
            index += 1;
            if index > begun {
                return true;
            }
            if segment.last.is_none_or(|last| last < entry) {
                dead.push(*segment);
            }
            false
        });
    }
    dead.extend(unmarked);
    dead
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(number: u64, first: u64, last: u64) -> SegmentInfo {
        SegmentInfo { number, first: Some(first), last: Some(last), bytes: 1, sealed: true, bodies_only: false }
    }

    fn dead_numbers(segments: &[SegmentInfo], living: &[u64]) -> Vec<u64> {
        let living = living.iter().map(|entry| Living { entry: *entry, first: 1, count: 1 });
        let mut numbers: Vec<_> =
            dead(segments.to_vec(), u64::MAX, living).iter().map(|segment| segment.number).collect();
        numbers.sort_unstable();
        numbers
    }

    #[test]
    fn a_segment_is_dead_when_nothing_lives_between_its_ends() {
        // The third repeats indexes of the second, as after a truncation; the fifth holds single bodies.
        let segments =
            [segment(1, 0, 9), segment(2, 10, 19), segment(3, 15, 24), segment(4, 25, 30), segment(5, 3, 28)];
        assert_eq!(dead_numbers(&segments, &[]), [1, 2, 3, 4, 5]);
        assert_eq!(dead_numbers(&segments, &[0]), [2, 3, 4, 5]);
        assert_eq!(dead_numbers(&segments, &[9, 9, 10]), [3, 4]);
        assert_eq!(dead_numbers(&segments, &[17]), [1, 4]);
        assert_eq!(dead_numbers(&segments, &[2, 22, 31]), [2, 4]);
        assert_eq!(dead_numbers(&segments, &[0, 14, 24, 30]), Vec::<u64>::new());
    }

    #[test]
    fn a_segment_without_entries_goes_with_those_before_it() {
        let vote = SegmentInfo { first: None, last: None, ..segment(2, 0, 0) };
        let dead = |upto| dead(vec![segment(1, 0, 9), vote, segment(3, 10, 12)], upto, std::iter::empty());
        assert_eq!(dead(8).len(), 0);
        assert_eq!(dead(9).iter().map(|segment| segment.last).collect::<Vec<_>>(), [Some(9), Some(9)]);
    }

    #[test]
    fn what_lies_behind_the_snapshot_is_not_dead() {
        // A snapshot that is installed later may refer to it.
        let segments = vec![segment(1, 0, 9), segment(2, 5, 20)];
        let numbers: Vec<_> = dead(segments, 19, std::iter::empty()).iter().map(|segment| segment.number).collect();
        assert_eq!(numbers, [1]);
    }

    #[test]
    fn what_is_still_written_to_is_not_dead() {
        let open = SegmentInfo { sealed: false, ..segment(1, 0, 9) };
        let empty = SegmentInfo { first: None, last: None, ..segment(2, 0, 0) };
        assert_eq!(dead_numbers(&[open, empty], &[]), [2]);
    }
}
