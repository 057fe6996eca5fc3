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
use crate::index_memory::IndexMemory;

/// This node's replica of the broker's state.
pub(crate) struct Replica {
    core: Arc<Mutex<Core>>,
    node: u64,
    /// Set once consensus runs; what is replayed before has nobody to answer. Weak, because the outbox holds
    /// consensus, and consensus this replica: a stopped node would never be freed.
    outbox: Arc<OnceLock<Weak<Outbox>>>,
    feed: IndexFeed,
    memory: IndexMemory,
}

impl Replica {
    pub(crate) fn new(
        core: Arc<Mutex<Core>>,
        node: u64,
        outbox: Arc<OnceLock<Weak<Outbox>>>,
        feed: IndexFeed,
        memory: IndexMemory,
    ) -> Self {
        Self { core, node, outbox, feed, memory }
    }
}

/// A state that is being read.
pub(crate) struct StateRestoring(kubemq_broker::Restoring);

impl Restoring for StateRestoring {
    fn push(&mut self, chunk: Bytes) -> Result<(), RestoreError> {
        self.0.push(chunk).map_err(unreadable)
    }
}

fn unreadable(error: kubemq_broker::RestoreError) -> RestoreError {
    RestoreError(error.to_string())
}

impl StateMachine for Replica {
    type Restoring = StateRestoring;

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
            self.memory.look(&core.state);
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

    fn restoring(&self) -> StateRestoring {
        StateRestoring(kubemq_broker::Restoring::new(self.memory.goal()))
    }

    fn restore(&mut self, read: StateRestoring) -> Result<(), RestoreError> {
        let state = read.0.finish().map_err(unreadable)?;
        self.memory.look(&state);
        self.core.lock().replace(state);
        Ok(())
    }

    fn snapshot_is_durable(&mut self, index: u64) {
        self.memory.snapshot_is_durable(index);
    }

    fn wants_snapshot(&self) -> bool {
        self.memory.wants_snapshot()
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
        Box::new(Chunks(self.0.chunks()))
    }

    fn living(&self) -> Box<dyn Pieces<Vec<Living>>> {
        Box::new(LivingRanges(self.0.living()))
    }
}

struct Chunks(kubemq_broker::SnapshotChunks);

impl Pieces<Bytes> for Chunks {
    fn next(&mut self) -> Result<Piece<Bytes>, RestoreError> {
        self.0.next_piece().map(piece).map_err(unreadable)
    }

    fn feed(&mut self, chunk: Option<Bytes>) {
        self.0.feed(chunk);
    }
}

struct LivingRanges(kubemq_broker::LivingWalk);

impl Pieces<Vec<Living>> for LivingRanges {
    fn next(&mut self) -> Result<Piece<Vec<Living>>, RestoreError> {
        let ranges = self.0.next_piece().map(piece).map_err(unreadable)?;
        let living = |(entry, first, count)| Living { entry, first, count };
        Ok(match ranges {
            Piece::Next(ranges) => Piece::Next(ranges.into_iter().map(living).collect()),
            Piece::Previous => Piece::Previous,
            Piece::End => Piece::End,
        })
    }

    fn feed(&mut self, chunk: Option<Bytes>) {
        self.0.feed(chunk);
    }
}

fn piece<T>(piece: kubemq_broker::Piece<T>) -> Piece<T> {
    match piece {
        kubemq_broker::Piece::Next(next) => Piece::Next(next),
        kubemq_broker::Piece::Previous => Piece::Previous,
        kubemq_broker::Piece::End => Piece::End,
    }
}
