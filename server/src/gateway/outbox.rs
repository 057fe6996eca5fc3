//! The way of operations from this node's gateway to the leader: ordered batches, a few of them unconfirmed.
//!
//! There is no task and no timer here. Whoever submits forms the next batch when the window is open, and the
//! confirmation of a batch forms the one after it, so a batch is what arrived while earlier ones were being
//! committed; senders take turns in it ([`Lanes`]). An operation whose outcome will never be known here (leadership moved) is answered with an
//! error that says so; it is never answered twice and never silently dropped.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use kubemq_broker::Outcome;
use kubemq_raft::batch::{MAX_BYTES, MAX_OPERATIONS};
use kubemq_raft::{Batch, Node, Origin};
use kubemq_runtime::sync::{Notify, oneshot};
use kubemq_runtime::{Clock, Instant};
use parking_lot::Mutex;

use super::Unavailable;
use super::lanes::{COMMON, Lanes};
use crate::metrics::Latency;

/// Batches sent and not confirmed, at most. The leader is in this process, so a deeper window only makes
/// smaller batches.
const WINDOW: usize = 2;
/// The same while [`MANY`] operations wait: the log flushes together what waits for it. Large ones would gain nothing by it,
/// and whoever comes after them would wait longer.
const DEEP_WINDOW: usize = 4;
/// See [`DEEP_WINDOW`].
const MANY: usize = MAX_OPERATIONS / 2;
/// Bytes sent and not confirmed, unless a single batch has more.
const UNCONFIRMED_BYTES: usize = 64 * 1024 * 1024;
/// How long a batch may wait for the lease of a new leader.
const GIVE_UP: Duration = Duration::from_secs(10);
/// Bytes that wait for a batch before publishers are asked to wait.
const PENDING_BYTES: usize = 64 * 1024 * 1024;
/// Operations that wait for a batch before publishers are asked to wait.
const PENDING_OPERATIONS: usize = 64 * 1024;

/// The epoch of what was not taken. Those of leaders begin at one.
const NOBODY: u64 = 0;

pub(crate) struct Outbox {
    raft: Node,
    clock: Clock,
    node: u64,
    inner: Mutex<Inner>,
    /// Notified when what waits falls below its bounds.
    drained: Notify,
    /// Notified when nothing is under way any more.
    idle: Notify,
    /// Notified when a batch was not taken: whoever leads must begin anew.
    broken: Notify,
    /// From forming a batch to its confirmation.
    latency: Arc<Latency>,
    /// Operations that were confirmed.
    confirmed: AtomicU64,
    /// The newest lane.
    lane: AtomicU64,
}

#[derive(Default)]
struct Inner {
    /// Epoch of this gateway as an origin; none while this node does not lead.
    epoch: Option<u64>,
    next_number: u64,
    pending: Lanes<Submission>,
    pending_operations: usize,
    pending_bytes: usize,
    unconfirmed: VecDeque<Unconfirmed>,
    /// A batch is being handed to the leader at this moment.
    handing_over: bool,
}

struct Submission {
    operations: Vec<Bytes>,
    bytes: usize,
    answer: oneshot::Sender<Answer>,
}

struct Unconfirmed {
    number: u64,
    bytes: usize,
    sent: Instant,
    /// Number of operations and the one who waits for them, in the order of the batch.
    waiting: Vec<(usize, oneshot::Sender<Answer>)>,
}

type Answer = Result<Outcomes, Unavailable>;

/// The outcomes of one submission: a slice of those of its batch.
#[derive(Clone, Debug)]
struct Outcomes {
    batch: Arc<[Outcome]>,
    range: Range<usize>,
}

impl Outbox {
    pub(crate) fn new(raft: Node, clock: Clock, node: u64) -> Arc<Self> {
        Arc::new(Self {
            raft,
            clock,
            node,
            inner: Mutex::default(),
            drained: Notify::new(),
            idle: Notify::new(),
            broken: Notify::new(),
            latency: Arc::default(),
            confirmed: AtomicU64::new(0),
            lane: AtomicU64::new(COMMON),
        })
    }

    /// Begins to accept operations as origin `epoch` of this node.
    pub(crate) fn open(self: &Arc<Self>, epoch: u64) {
        self.close(&Unavailable::Unknown);
        let mut inner = self.inner.lock();
        inner.epoch = Some(epoch);
        inner.next_number = 1;
    }

    /// Answers everything that waits with `reason` and accepts nothing more.
    pub(crate) fn close(&self, reason: &Unavailable) {
        let (mut pending, unconfirmed) = {
            let mut inner = self.inner.lock();
            let handing_over = inner.handing_over;
            let old = std::mem::replace(&mut *inner, Inner { handing_over, ..Inner::default() });
            (old.pending, old.unconfirmed)
        };
        // A receiver that is gone gave up waiting.
        while let Some(submission) = pending.pop() {
            submission.answer.send(Err(reason.clone())).ok();
        }
        for (_, answer) in unconfirmed.into_iter().flat_map(|batch| batch.waiting) {
            answer.send(Err(Unavailable::Unknown)).ok();
        }
        self.drained.notify_waiters();
        self.idle.notify_waiters();
    }

    /// Returns how long batches took from being formed to being confirmed.
    pub(crate) fn latency(&self) -> &Arc<Latency> {
        &self.latency
    }

    /// Returns how many operations were confirmed.
    pub(crate) fn confirmed(&self) -> u64 {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// Returns how many operations wait for a batch and their bytes, each with its bound.
    pub(crate) fn fill(&self) -> [(usize, usize); 2] {
        let inner = self.inner.lock();
        [(inner.pending_operations, PENDING_OPERATIONS), (inner.pending_bytes, PENDING_BYTES)]
    }

    /// Waits until a batch was not taken. Cancel safe.
    pub(crate) async fn broken(&self) {
        self.broken.notified().await;
    }

    /// Waits until nothing is under way. Cancel safe.
    pub(crate) async fn idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.inner.lock().is_idle() {
                return;
            }
            idle.await;
        }
    }

    /// Waits until there is room for more operations. Cancel safe.
    pub(crate) async fn room(&self) {
        loop {
            let drained = self.drained.notified();
            {
                let inner = self.inner.lock();
                if inner.pending_bytes < PENDING_BYTES && inner.pending_operations < PENDING_OPERATIONS {
                    return;
                }
            }
            drained.await;
        }
    }

    /// Returns a lane for one sender.
    pub(crate) fn lane(&self) -> u64 {
        self.lane.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Queues `operations` behind everything submitted before in the same lane, under the leadership `epoch` if one is
    /// named. They are in the queue when this returns.
    pub(crate) fn submit(self: &Arc<Self>, mut operations: Vec<Bytes>, lane: u64, epoch: Option<u64>) -> Submitted {
        let mut chunks = Chunks::default();
        let mut epoch = epoch;
        while !operations.is_empty() {
            let (count, bytes) = first_chunk(&operations);
            let rest = operations.split_off(count);
            let (answer, receiver) = oneshot::channel();
            chunks.push(receiver);
            // All of them together: a part must not be taken by the next leader alone.
            epoch = Some(self.enqueue(Submission { operations, bytes, answer }, lane, epoch));
            operations = rest;
        }
        self.advance();
        Submitted { chunks, outcomes: Vec::new(), epoch: epoch.unwrap_or(NOBODY) }
    }

    /// Returns the leadership that the submission was given to.
    fn enqueue(&self, submission: Submission, lane: u64, only: Option<u64>) -> u64 {
        let mut inner = self.inner.lock();
        let Some(epoch) = inner.epoch.filter(|epoch| only.is_none_or(|only| only == *epoch)) else {
            drop(inner);
            submission.answer.send(Err(Unavailable::NotLeader)).ok();
            return NOBODY;
        };
        inner.pending_operations += submission.operations.len();
        inner.pending_bytes += submission.bytes;
        inner.pending.push(lane, submission.bytes, submission);
        epoch
    }

    /// Forms and sends batches while the window is open.
    fn advance(self: &Arc<Self>) {
        loop {
            let now = self.clock.now();
            let (batch, deadline) = {
                let mut inner = self.inner.lock();
                // One hands over at a time, so that batches arrive in the order of their numbers. The lock is
                // not held meanwhile: a refusal may come back on the spot.
                if inner.handing_over || !inner.has_window() {
                    return;
                }
                let was_full = inner.is_full();
                let Some(batch) = inner.next_batch(self.node, now) else { return };
                inner.handing_over = true;
                if was_full && !inner.is_full() {
                    self.drained.notify_waiters();
                }
                (batch, now + GIVE_UP)
            };
            // Weak, because consensus keeps this while the batch waits there, and is kept from here.
            let outbox = Arc::downgrade(self);
            let (epoch, number) = (batch.origin.epoch, batch.number);
            let refused = Box::new(move |refused| {
                if let Some(outbox) = outbox.upgrade() {
                    outbox.refused(epoch, number, refused);
                }
            });
            let taken = self.raft.submit(batch, deadline, refused);
            self.inner.lock().handing_over = false;
            if let Err(refused) = taken {
                self.refused(epoch, number, refused);
            }
        }
    }

    /// Answers those who wait for batch `number`, and sends what gathered in the meantime.
    pub(crate) fn confirm(self: &Arc<Self>, epoch: u64, number: u64, outcomes: &Arc<[Outcome]>) {
        let confirmed = {
            let mut inner = self.inner.lock();
            if inner.epoch != Some(epoch) || inner.unconfirmed.front().is_none_or(|first| first.number != number) {
                return;
            }
            let confirmed = inner.unconfirmed.pop_front();
            if inner.is_idle() {
                self.idle.notify_waiters();
            }
            confirmed
        };
        self.advance();
        if let Some(confirmed) = &confirmed {
            self.latency.observe(self.clock.now().since(confirmed.sent));
            let operations: usize = confirmed.waiting.iter().map(|(count, _)| count).sum();
            self.confirmed.fetch_add(u64::try_from(operations).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        let mut start = 0;
        for (count, answer) in confirmed.into_iter().flat_map(|batch| batch.waiting) {
            let range = start..(start + count).min(outcomes.len());
            start = range.end;
            answer.send(Ok(Outcomes { batch: Arc::clone(outcomes), range })).ok();
        }
    }

    /// The leader did not take batch `number`, or leadership moved while it had it.
    fn refused(&self, epoch: u64, number: u64, refused: kubemq_raft::Refused) {
        tracing::debug!(epoch, number, error = %refused, "batch refused");
        let not_proposed = {
            let mut inner = self.inner.lock();
            if inner.epoch != Some(epoch) {
                return;
            }
            let known = !matches!(refused, kubemq_raft::Refused::Unknown | kubemq_raft::Refused::Stopped);
            let at = inner.unconfirmed.iter().position(|batch| batch.number == number).filter(|_| known);
            at.and_then(|at| inner.unconfirmed.remove(at))
        };
        for (_, answer) in not_proposed.into_iter().flat_map(|batch| batch.waiting) {
            answer.send(Err(Unavailable::NotLeader)).ok();
        }
        self.give_up(epoch);
    }

    /// The state did not take a batch in its place: what is under way is lost to this epoch.
    pub(crate) fn out_of_order(&self, epoch: u64) {
        self.give_up(epoch);
    }

    fn give_up(&self, epoch: u64) {
        if self.inner.lock().epoch == Some(epoch) {
            self.close(&Unavailable::NotLeader);
            self.broken.notify_one();
        }
    }
}

impl Inner {
    fn is_full(&self) -> bool {
        self.pending_bytes >= PENDING_BYTES || self.pending_operations >= PENDING_OPERATIONS
    }

    /// Returns whether the next batch may go beside those that are not confirmed.
    fn has_window(&self) -> bool {
        let under_way: usize = self.unconfirmed.iter().map(|batch| batch.bytes).sum();
        let next = self.pending.front().map_or(0, |next| next.bytes);
        let window = if self.pending_operations >= MANY { DEEP_WINDOW } else { WINDOW };
        self.unconfirmed.is_empty()
            || self.unconfirmed.len() < window && under_way + next.max(MAX_BYTES) <= UNCONFIRMED_BYTES
    }

    fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.unconfirmed.is_empty()
    }

    fn next_batch(&mut self, node: u64, now: Instant) -> Option<Batch> {
        let epoch = self.epoch?;
        let mut operations = Vec::new();
        let mut waiting = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.pending.front() {
            let over = operations.len() + next.operations.len() > MAX_OPERATIONS || bytes + next.bytes > MAX_BYTES;
            if over && !operations.is_empty() {
                break;
            }
            let Some(next) = self.pending.pop() else { break };
            bytes += next.bytes;
            waiting.push((next.operations.len(), next.answer));
            if operations.is_empty() {
                operations = next.operations;
            } else {
                operations.extend(next.operations);
            }
        }
        if operations.is_empty() {
            return None;
        }
        self.pending_operations -= operations.len();
        self.pending_bytes -= bytes;
        let number = self.next_number;
        self.next_number += 1;
        self.unconfirmed.push_back(Unconfirmed { number, bytes, sent: now, waiting });
        Some(Batch { origin: Origin { node, epoch }, number, operations })
    }
}

/// Returns how many of `operations` fit into one batch, at least one, and their bytes.
fn first_chunk(operations: &[Bytes]) -> (usize, usize) {
    let mut bytes = 0;
    for (count, operation) in operations.iter().enumerate() {
        let more = bytes + operation.len();
        if count > 0 && (count == MAX_OPERATIONS || more > MAX_BYTES) {
            return (count, bytes);
        }
        bytes = more;
    }
    (operations.len(), bytes)
}

/// Receivers of the chunks of one submission; nearly always one.
#[derive(Debug, Default)]
struct Chunks {
    first: Option<oneshot::Receiver<Answer>>,
    rest: VecDeque<oneshot::Receiver<Answer>>,
}

impl Chunks {
    fn push(&mut self, receiver: oneshot::Receiver<Answer>) {
        if self.first.is_none() {
            self.first = Some(receiver);
        } else {
            self.rest.push_back(receiver);
        }
    }
}

/// Operations on their way. Resolves to their outcomes after they were committed and applied.
///
/// Dropping it does not take the operations back.
#[derive(Debug)]
#[must_use = "the operations may fail"]
pub struct Submitted {
    chunks: Chunks,
    outcomes: Vec<Outcome>,
    epoch: u64,
}

impl Submitted {
    /// Returns the leadership that the operations were given to.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Leaves the operations to themselves: they are committed when the leader stays, and nobody is told.
    pub fn forget(self) {}
}

impl Future for Submitted {
    type Output = Result<Vec<Outcome>, Unavailable>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let this = &mut *self;
            let Some(chunk) = &mut this.chunks.first else {
                return Poll::Ready(Ok(std::mem::take(&mut this.outcomes)));
            };
            let Poll::Ready(answer) = Pin::new(chunk).poll(cx) else { return Poll::Pending };
            let outcomes = match answer {
                Ok(Ok(outcomes)) => outcomes,
                // What came before was taken: all of them together were not certainly not executed.
                Ok(Err(Unavailable::NotLeader)) if !this.outcomes.is_empty() => {
                    return Poll::Ready(Err(Unavailable::Unknown));
                }
                Ok(Err(unavailable)) => return Poll::Ready(Err(unavailable)),
                // The outbox was dropped with its node.
                Err(_) => return Poll::Ready(Err(Unavailable::Unknown)),
            };
            this.outcomes.extend(outcomes.batch.get(outcomes.range).into_iter().flatten().cloned());
            this.chunks.first = this.chunks.rest.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
