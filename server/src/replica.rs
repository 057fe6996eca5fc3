//! The replicated state as consensus sees it: committed entries go in, answers and wake-ups come out.

use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use kubemq_broker::{Answer, BatchView, State};
use kubemq_raft::batch::Envelope;
use kubemq_raft::{Committed, Living, Piece, Pieces, RestoreError, Restoring, SnapshotSource, StateMachine};
use parking_lot::Mutex;

use crate::desk::Core;
use crate::gateway::Outbox;
use crate::index_feed::IndexFeed;

/// Ranges of living parts that are named at once.
const LIVING: usize = 1024;

/// This node's replica of the broker's state.
pub(crate) struct Replica {
    core: Arc<Mutex<Core>>,
    node: u64,
    /// Set once consensus runs; what is replayed before has nobody to answer. Weak, because the outbox holds
    /// consensus, and consensus this replica: a stopped node would never be freed.
    outbox: Arc<OnceLock<Weak<Outbox>>>,
    feed: IndexFeed,
}

impl Replica {
    pub(crate) fn new(core: Arc<Mutex<Core>>, node: u64, outbox: Arc<OnceLock<Weak<Outbox>>>, feed: IndexFeed) -> Self {
        Self { core, node, outbox, feed }
    }
}

/// The chunks of a snapshot that is being read.
#[derive(Default)]
pub(crate) struct Gathered(Vec<Bytes>);

impl Restoring for Gathered {
    fn push(&mut self, chunk: Bytes) -> Result<(), RestoreError> {
        self.0.push(chunk);
        Ok(())
    }
}

impl StateMachine for Replica {
    type Restoring = Gathered;

    fn apply(&mut self, entries: Vec<Committed>) {
        let mut answers = Vec::new();
        {
            let mut core = self.core.lock();
            let mut effects = Vec::new();
            for entry in &entries {
                let applied = apply_entry(&mut core.state, entry);
                answers.extend(applied.answers.into_iter().filter(|answer| answer.origin == self.node));
                effects.extend(applied.effects);
            }
            self.feed.take(&effects);
            core.take_effects(effects);
        }
        let Some(outbox) = self.outbox.get().and_then(Weak::upgrade) else { return };
        for answer in answers {
            match answer.answer {
                Answer::Results(outcomes) => outbox.confirm(answer.epoch, answer.number, &outcomes),
                // Nothing of the batch was applied, and nothing of what follows it will be.
                Answer::Gap { .. } | Answer::Retired { .. } => {
                    tracing::warn!(number = answer.number, answer = ?answer.answer, "batch out of order");
                    outbox.out_of_order(answer.epoch);
                }
            }
        }
    }

    fn snapshot(&mut self) -> Box<dyn SnapshotSource> {
        Box::new(StateSnapshot(self.core.lock().state.snapshot()))
    }

    fn restoring(&self) -> Gathered {
        Gathered::default()
    }

    fn restore(&mut self, read: Gathered) -> Result<(), RestoreError> {
        let state = State::restore(read.0).map_err(|error| RestoreError(error.to_string()))?;
        self.core.lock().replace(state);
        Ok(())
    }

    fn snapshot_is_durable(&mut self, _index: u64) {}

    fn wants_snapshot(&self) -> bool {
        false
    }

    fn digest(&self) -> u64 {
        self.core.lock().state.digest()
    }
}

fn apply_entry(state: &mut State, entry: &Committed) -> kubemq_broker::Applied {
    // An entry that cannot be read is skipped on every node alike.
    let envelope = Envelope::of(&entry.parts).unwrap_or_else(|error| {
        tracing::error!(index = entry.id.index, %error, "an entry without a readable envelope");
        Envelope::default()
    });
    let operations: Vec<Bytes> = (1..entry.parts.count()).filter_map(|part| entry.parts.get(part)).collect();
    let mut first: u16 = 1;
    let mut rest = operations.as_slice();
    let mut batches = Vec::with_capacity(envelope.batches.len());
    for batch in &envelope.batches {
        let (own, others) = rest.split_at(usize::from(batch.operations).min(rest.len()));
        let (origin, epoch) = (batch.origin.node, batch.origin.epoch);
        batches.push(BatchView { origin, epoch, number: batch.number, first_part: first, operations: own });
        first = first.saturating_add(batch.operations);
        rest = others;
    }
    state.apply(entry.id.index, entry.time, &batches)
}

struct StateSnapshot(kubemq_broker::Snapshot);

impl SnapshotSource for StateSnapshot {
    fn chunks(&self) -> Box<dyn Pieces<Bytes>> {
        Box::new(InMemory(self.0.clone().chunks()))
    }

    fn living(&self) -> Box<dyn Pieces<Vec<Living>>> {
        let snapshot = self.0.clone();
        // Looked through when the first is asked for, away from whoever took the snapshot.
        Box::new(InMemory(std::iter::once_with(move || living(&snapshot)).flatten()))
    }
}

fn living(snapshot: &kubemq_broker::Snapshot) -> Vec<Vec<Living>> {
    let mut living = snapshot.living().map(|(entry, first, count)| {
        let count = u16::try_from(count).unwrap_or(u16::MAX);
        Living { entry, first, count }
    });
    std::iter::from_fn(|| Some(living.by_ref().take(LIVING).collect()).filter(|batch: &Vec<_>| !batch.is_empty()))
        .collect()
}

/// A walk through what is all in memory.
struct InMemory<I>(I);

impl<T, I: Iterator<Item = T> + Send> Pieces<T> for InMemory<I> {
    fn next(&mut self) -> Result<Piece<T>, RestoreError> {
        Ok(self.0.next().map_or(Piece::End, Piece::Next))
    }

    fn feed(&mut self, _: Option<Bytes>) {}
}
