//! Gathers batches into entries.
//!
//! Whoever submits proposes, while fewer than two entries are in flight; each completion proposes the next. So
//! an entry holds what arrived during the previous commit: there is no timer, no linger and no task. Entries that are
//! full do not wait for that: the log flushes together what waits for it. An entry
//! that the leader refuses because it has no lease yet goes back to its place in the queue and is proposed
//! again after 2 ms, until the deadlines of its batches; any other refusal goes to who submitted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kubemq_runtime::{Instant, OnFailure, Runtime};
use kubemq_storage::{LogId, Parts};
use parking_lot::Mutex;

use crate::batch::{self, Batch};
use crate::error::Refused;
use crate::time::ClusterTime;
use crate::types::Proposal;

/// Entries that are proposed and not yet committed.
const IN_FLIGHT: usize = 2;
/// The same while the next one is full.
const FULL_IN_FLIGHT: usize = 4;
/// Operations that wait for an entry.
const MOST_OPERATIONS: usize = 16 * 1024;
/// Bytes that wait for an entry, unless a single batch has more. What is in flight is bounded by itself, and who sends
/// may know that it was committed before this does.
const MOST_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of a single operation.
const MOST_OPERATION_BYTES: usize = 1 << 30;
/// How long to wait for the lease of a new leader before proposing again.
const LEASE_RETRY: Duration = Duration::from_millis(2);

/// Hears why a batch was refused. It is not called when the batch was committed.
pub(crate) type OnRefused = Box<dyn FnOnce(Refused) + Send>;

/// How a proposal ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// Committed and applied here.
    Committed(LogId),
    /// Not proposed: this node does not lead.
    NotLeader(Option<u64>),
    /// Not proposed: this node leads, but no majority has confirmed that lately.
    NoLease,
    /// Proposed, and then leadership was lost.
    Unknown,
    /// Consensus has stopped.
    Stopped,
}

/// Takes an entry's payload to consensus.
pub(crate) trait Proposer: Send + Sync + 'static {
    /// Proposes. `done` is called exactly once, or dropped when consensus has stopped. Returns a future when the
    /// proposal could not be handed over at once: nothing else may be proposed until it has ended.
    fn propose(&self, proposal: Proposal, done: Done) -> Option<BoxFuture<'static, ()>>;
}

struct Waiting {
    batch: Batch,
    bytes: usize,
    deadline: Instant,
    refused: OnRefused,
    /// The place in the order of submission.
    place: u64,
}

struct State {
    queue: VecDeque<Waiting>,
    in_flight: usize,
    /// Somebody hands an entry over at this moment.
    proposing: bool,
    /// An entry was refused for want of a lease, and the wait has not ended.
    pausing: bool,
    stopped: bool,
    next_place: u64,
    /// When the last entry was proposed.
    last: Instant,
}

struct Shared {
    state: Mutex<State>,
    proposer: Box<dyn Proposer>,
    time: ClusterTime,
    runtime: Runtime,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Batcher(Arc<Shared>);

/// The end of one entry, told once. Dropping it says that consensus has stopped.
pub(crate) struct Done {
    batcher: Batcher,
    entry: Option<Vec<Waiting>>,
}

impl Done {
    pub(crate) fn tell(mut self, outcome: Outcome) {
        if let Some(entry) = self.entry.take() {
            self.batcher.ended(entry, outcome);
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            self.batcher.ended(entry, Outcome::Stopped);
        }
    }
}

impl Batcher {
    pub(crate) fn new(proposer: Box<dyn Proposer>, time: ClusterTime, runtime: Runtime) -> Self {
        let state = State {
            queue: VecDeque::new(),
            in_flight: 0,
            proposing: false,
            pausing: false,
            stopped: false,
            next_place: 0,
            last: runtime.clock.now(),
        };
        Self(Arc::new(Shared { state: Mutex::new(state), proposer, time, runtime }))
    }

    /// Takes a batch, behind all that were taken before.
    pub(crate) fn submit(&self, batch: Batch, deadline: Instant, refused: OnRefused) -> Result<(), Refused> {
        let bytes = batch.bytes();
        let count = batch.operations.len();
        let alone = count == 1 && bytes <= MOST_OPERATION_BYTES;
        if count == 0 || count > batch::MAX_OPERATIONS || (bytes > batch::MAX_BYTES && !alone) {
            return Err(Refused::Malformed);
        }
        {
            let mut state = self.0.state.lock();
            if state.stopped {
                return Err(Refused::Stopped);
            }
            let (waiting, waiting_bytes) = state.waiting();
            let full = waiting + count > MOST_OPERATIONS || waiting_bytes + bytes > MOST_BYTES;
            if full && waiting > 0 {
                return Err(Refused::Overloaded);
            }
            let place = state.next_place;
            state.next_place += 1;
            state.queue.push_back(Waiting { batch, bytes, deadline, refused, place });
        }
        self.pump();
        Ok(())
    }

    /// Proposes an entry that carries nothing but the time, if none was proposed for `idle`.
    pub(crate) fn beat(&self, idle: Duration) {
        {
            let mut state = self.0.state.lock();
            let due = self.0.runtime.clock.now() >= state.last + idle;
            if !due || state.stopped || state.pausing || state.proposing || state.in_flight > 0 {
                return;
            }
            state.proposing = true;
            state.in_flight += 1;
        }
        if self.hand_over(Vec::new()) {
            self.pump();
        }
    }

    /// Returns how many operations wait and their bytes, each with its bound.
    pub(crate) fn fill(&self) -> [(usize, usize); 2] {
        let (operations, bytes) = self.0.state.lock().waiting();
        [(operations, MOST_OPERATIONS), (bytes, MOST_BYTES)]
    }

    /// Refuses everything from now on.
    pub(crate) fn stop(&self) {
        let queue = {
            let mut state = self.0.state.lock();
            state.stopped = true;
            std::mem::take(&mut state.queue)
        };
        for waiting in queue {
            (waiting.refused)(Refused::Stopped);
        }
    }

    /// Proposes what waits, as far as it may.
    fn pump(&self) {
        loop {
            let entry = {
                let mut state = self.0.state.lock();
                if state.proposing || state.pausing || state.stopped || state.in_flight >= state.most_in_flight() {
                    return;
                }
                let entry = state.take();
                if entry.is_empty() {
                    return;
                }
                state.proposing = true;
                state.in_flight += 1;
                entry
            };
            if !self.hand_over(entry) {
                return;
            }
        }
    }

    /// Hands one entry to consensus. Returns whether the next may follow at once.
    fn hand_over(&self, entry: Vec<Waiting>) -> bool {
        self.0.state.lock().last = self.0.runtime.clock.now();
        let parts: Parts = batch::encode(entry.iter().map(|waiting| &waiting.batch));
        let proposal = Proposal { time: self.0.time.stamp(), parts };
        let done = Done { batcher: self.clone(), entry: Some(entry) };
        let Some(rest) = self.0.proposer.propose(proposal, done) else {
            self.0.state.lock().proposing = false;
            return true;
        };
        let batcher = self.clone();
        self.0.runtime.tasks.spawn("batcher-hand-over", OnFailure::StopNode, async move {
            rest.await;
            batcher.0.state.lock().proposing = false;
            batcher.pump();
        });
        false
    }

    fn ended(&self, entry: Vec<Waiting>, outcome: Outcome) {
        let refusal = match outcome {
            Outcome::Committed(_) => None,
            Outcome::NoLease => return self.again(entry),
            Outcome::NotLeader(leader) => Some(Refused::NotLeader { leader }),
            Outcome::Unknown => Some(Refused::Unknown),
            Outcome::Stopped => Some(Refused::Stopped),
        };
        self.0.state.lock().in_flight -= 1;
        if let Some(refusal) = refusal {
            for waiting in entry {
                (waiting.refused)(refusal);
            }
        }
        if outcome == Outcome::Stopped {
            self.stop();
        }
        self.pump();
    }

    /// Puts the batches of a refused entry back where they were, but for those whose deadline has passed, and
    /// proposes again after a pause.
    fn again(&self, entry: Vec<Waiting>) {
        let now = self.0.runtime.clock.now();
        let (kept, late): (Vec<_>, Vec<_>) = entry.into_iter().partition(|waiting| waiting.deadline > now);
        let (starts, stopped) = {
            let mut state = self.0.state.lock();
            state.in_flight -= 1;
            for waiting in kept {
                let at = state.queue.partition_point(|other| other.place < waiting.place);
                state.queue.insert(at, waiting);
            }
            let stopped = if state.stopped { std::mem::take(&mut state.queue) } else { VecDeque::new() };
            (!std::mem::replace(&mut state.pausing, true), stopped)
        };
        for waiting in late {
            (waiting.refused)(Refused::Deadline);
        }
        for waiting in stopped {
            (waiting.refused)(Refused::Stopped);
        }
        if starts {
            let batcher = self.clone();
            let pause = self.0.runtime.clock.sleep(LEASE_RETRY);
            self.0.runtime.tasks.spawn("batcher-retry", OnFailure::StopNode, async move {
                pause.await;
                batcher.0.state.lock().pausing = false;
                batcher.pump();
            });
        }
    }
}

impl State {
    /// Returns how many operations wait for an entry, and their bytes. The senders have few batches under way each.
    fn waiting(&self) -> (usize, usize) {
        let sum = |(operations, bytes), waiting: &Waiting| {
            (operations + waiting.batch.operations.len(), bytes + waiting.bytes)
        };
        self.queue.iter().fold((0, 0), sum)
    }

    /// Returns how many entries may be in flight. A batch that is more than half full was cut from more; a single large
    /// operation is flushed by itself.
    fn most_in_flight(&self) -> usize {
        let (operations, bytes) = self.waiting();
        let full = bytes > batch::MAX_BYTES / 2 || operations > batch::MAX_OPERATIONS / 2;
        let large = self.queue.front().is_some_and(|next| next.bytes > batch::MAX_BYTES);
        if full && !large { FULL_IN_FLIGHT } else { IN_FLIGHT }
    }

    /// Takes the batches of the next entry.
    fn take(&mut self) -> Vec<Waiting> {
        let (mut operations, mut bytes, mut count) = (0, 0, 0);
        for waiting in &self.queue {
            operations += waiting.batch.operations.len();
            bytes += waiting.bytes;
            if count > 0 && (operations > batch::MAX_OPERATIONS || bytes > batch::MAX_BYTES) {
                break;
            }
            count += 1;
        }
        self.queue.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests;
