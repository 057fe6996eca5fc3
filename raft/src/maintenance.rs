//! What a node does by itself: beats, snapshots, purges, and giving disk back.
//!
//! Each node decides for itself when a snapshot is due. After it the log is purged, as far as no slow peer and
//! no running transfer needs it, and segments in which nothing or little lives are [reclaimed](crate::reclaim). A
//! failure here is logged and tried again; it stops nothing.

use std::sync::Arc;
use std::time::Duration;

use kubemq_runtime::sync::{mpsc, oneshot};
use kubemq_runtime::{Instant, chain};
use kubemq_storage::log::Log;

use crate::batcher::Batcher;
use crate::core::{Engine, Mark};
use crate::error::Error;
use crate::machine::{Durable, Shared};
use crate::options::Options;
use crate::reclaim::Marks;
use crate::snapshot_file;
use crate::status::Status;
use crate::types;

/// How often it looks whether something is due.
const TICK: Duration = Duration::from_secs(1);
/// How long openraft may take to note what it was told.
const NOTE: Duration = Duration::from_secs(10);
/// How long to wait after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(10);

/// How soon after another a snapshot may be written only because the machine wants one.
const WANTED: Duration = Duration::from_secs(10);

/// Asks for a snapshot now, and hears how it went.
pub(crate) type Request = oneshot::Sender<Result<(), Error>>;

/// See the module.
pub(crate) struct Maintenance {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) batcher: Batcher,
    pub(crate) options: Arc<Options>,
    pub(crate) requests: mpsc::Receiver<Request>,
    /// What the last snapshot left to be given back.
    pub(crate) marks: Marks,
    /// When the last snapshot began that was written only because the machine wanted one.
    pub(crate) wanted: Option<Instant>,
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
            self.shared.log.look_after_disk();
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

    fn due(&mut self) -> bool {
        let now = self.shared.runtime.clock.now();
        let (written, last_bytes) = {
            let facts = self.shared.facts.lock();
            (facts.written, facts.durable.as_ref().map_or(0, |durable| durable.bytes))
        };
        let most = self.options.snapshot_bytes.max(last_bytes.saturating_mul(self.options.snapshot_factor));
        let idle = now >= written.last + self.options.snapshot_idle;
        if written.bytes >= most || (written.operations && idle) {
            return true;
        }
        let wanted = self.wanted.is_none_or(|at| now >= at + WANTED) && self.engine.wants_snapshot();
        if wanted {
            self.wanted = Some(now);
        }
        wanted
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
        let (durable, marks) = snapshot_file::write(&self.shared, moment).await?;
        self.marks = marks;
        let (meta, bytes) = (durable.meta.clone(), durable.bytes);
        self.engine.is_durable(durable);
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

    /// Purges what no one needs and reclaims segments.
    async fn give_back(&mut self) -> Result<(), Error> {
        let status = self.engine.status();
        let Some(upto) = self.purge_point(&status) else { return Ok(()) };
        if status.purged.is_none_or(|purged| purged.index < upto) {
            self.engine.purge(upto).await?;
            let purged = self.engine.reached(Mark::Purged, upto, NOTE).await;
            purged.map_err(|error| Error::Stopped(error.to_string()))?;
        }
        let Some(purged) = self.engine.status().purged else { return Ok(()) };
        if self.marks.is_empty() || !self.shared.facts.lock().leases.is_empty() {
            return Ok(());
        }
        self.marks.reclaim(&self.shared.log, purged.index).await
    }

    /// Returns up to where the log may be purged.
    fn purge_point(&self, status: &Status) -> Option<u64> {
        let (durable, lease) = {
            let facts = self.shared.facts.lock();
            (facts.durable.as_ref().map(Durable::index)?, facts.leases.values().min().copied())
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
