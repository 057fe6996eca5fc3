//! The index on disk is kept like the state: sealed blocks go to it as they come, and all of them again when
//! it was found empty or damaged. Nothing waits for it and nothing is recovered from it.

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kubemq_broker::{Effect, SnapshotBlocks};
use kubemq_runtime::chain;
use kubemq_runtime::sync::watch::Closed;
use kubemq_storage::index::{BlockKey, Full, IndexState, IndexWriter, Opening, Space};
use kubemq_storage::snapshot::HeldSnapshot;

use crate::gateway::Gateway;

/// How long to wait before offering blocks again to an index that is busy.
const RETRY: Duration = Duration::from_millis(50);
/// How often to look whether the index lacks a block that it could not take.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Hands sealed blocks to the index as they come; clones feed the same index.
#[derive(Clone)]
pub(crate) struct IndexFeed {
    index: IndexWriter,
    /// A block could not be handed over: the index lacks something.
    lacks: Arc<AtomicBool>,
}

impl IndexFeed {
    pub(crate) fn new(index: IndexWriter) -> Self {
        Self { index, lacks: Arc::default() }
    }

    /// Passes on what an applied chunk sealed or made superfluous. Never waits.
    pub(crate) fn take(&self, effects: &[Effect]) {
        for effect in effects {
            let taken = match effect {
                Effect::Sealed { key, block } => self.index.put(on_disk(*key), block.clone()),
                Effect::Dropped { key } => self.remove(*key),
                Effect::Deleted { channel } => self.index.remove(Space::Runs, channel.0, 0..=u64::MAX),
                Effect::Created { .. } | Effect::Ready { .. } | Effect::Settled { .. } | Effect::TimerSet { .. } => {
                    continue;
                }
            };
            if taken.is_err() {
                self.lacks.store(true, Ordering::Relaxed);
            }
        }
    }

    fn remove(&self, key: kubemq_broker::BlockKey) -> Result<(), Full> {
        let BlockKey { space, owner, first } = on_disk(key);
        self.index.remove(space, owner, first..=first)
    }

    /// Puts every block again whenever the index begins empty or lacks some, for as long as the node lives.
    pub(crate) async fn rebuild_when_empty(self, gateway: Gateway) {
        let mut state = self.index.state();
        let mut filled = 0;
        loop {
            let seen = state.borrow_and_update().clone();
            match seen {
                IndexState::Opening => {}
                IndexState::Open { number, opening } => {
                    let lacks = self.lacks.swap(false, Ordering::Relaxed);
                    let empty = opening.is_empty() && number > filled;
                    filled = number;
                    if empty || lacks {
                        let Found { blocks, result, .. } = self.put_all(&gateway, &BTreeSet::new()).await;
                        if let Err(error) = result {
                            tracing::error!(error = %chain(&*error), "the index on disk could not be rebuilt");
                        } else if blocks > 0 || lacks || matches!(opening, Opening::Replaced { .. }) {
                            tracing::warn!(blocks, found = ?opening, "the index on disk was rebuilt");
                        }
                    }
                }
                IndexState::Failed(error) => {
                    tracing::error!(error = %chain(&error), "the index on disk is given up until the next start");
                }
                IndexState::Closed => return,
            }
            let changed = gateway.runtime().clock.timeout(LOOK_EVERY, state.changed()).await;
            if changed == Ok(Err(Closed)) {
                return;
            }
        }
    }

    /// Puts every block: those that are in memory, then those that left it, from the newest durable snapshot. Blocks of
    /// `wanted` come back into memory on the way.
    pub(crate) async fn put_all(&self, gateway: &Gateway, wanted: &BTreeSet<kubemq_broker::BlockKey>) -> Found {
        let mut found = Found { blocks: 0, came_back: 0, result: Ok(()) };
        // Taken before the snapshot is asked for: what leaves the memory from here on is among these.
        let snapshot = gateway.with_core(|core| core.state.snapshot());
        for (key, block) in snapshot.sealed_blocks() {
            found.blocks += u64::from(self.put(gateway, key, &block).await);
        }
        drop(snapshot);
        if let Some(held) = gateway.raft().durable_snapshot() {
            found.result = self.put_what_left(gateway, &held, wanted, &mut found).await;
        }
        let missing = gateway.with_core(|core| wanted.iter().find(|block| core.state.is_away(**block)).copied());
        if let (Some(key), Ok(())) = (missing, &found.result) {
            found.result = Err(Box::new(NotInSnapshot { key: on_disk(key) }));
        }
        found
    }

    async fn put_what_left(
        &self,
        gateway: &Gateway,
        held: &HeldSnapshot,
        wanted: &BTreeSet<kubemq_broker::BlockKey>,
        found: &mut Found,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let mut reader = held.reader().await?;
        let mut blocks = SnapshotBlocks::default();
        while let Some(chunk) = reader.next_chunk().await? {
            blocks.push(chunk);
            while let Some((key, block)) = blocks.next_block()? {
                let is_away = gateway.with_core(|core| {
                    let is_away = core.state.is_away(key);
                    if is_away && wanted.contains(&key) && core.state.bring_back(key, &block) {
                        found.came_back += 1;
                    }
                    is_away
                });
                if is_away {
                    found.blocks += u64::from(self.put(gateway, key, &block).await);
                }
            }
        }
        Ok(())
    }

    /// Puts a block once the index takes it; false when it never will.
    async fn put(&self, gateway: &Gateway, key: kubemq_broker::BlockKey, block: &Bytes) -> bool {
        while self.index.put(on_disk(key), block.clone()).is_err() {
            if matches!(*self.index.state().borrow(), IndexState::Failed(_) | IndexState::Closed) {
                return false;
            }
            gateway.runtime().clock.sleep(RETRY).await;
        }
        true
    }
}

/// What putting every block came to.
pub(crate) struct Found {
    /// Blocks that the index took.
    pub(crate) blocks: u64,
    /// Blocks that came back into memory.
    pub(crate) came_back: u64,
    /// Whether everything was found.
    pub(crate) result: Result<(), Box<dyn Error + Send + Sync>>,
}

/// A block left the memory and is nowhere.
#[derive(Debug, thiserror::Error)]
#[error("block {key} is neither in the index nor in the newest snapshot")]
struct NotInSnapshot {
    key: BlockKey,
}

pub(crate) fn on_disk(key: kubemq_broker::BlockKey) -> BlockKey {
    match key {
        kubemq_broker::BlockKey::Runs { channel, first_sequence } => BlockKey::runs(channel.0, first_sequence),
        kubemq_broker::BlockKey::Timers { bucket, first } => BlockKey::timers(bucket, first),
    }
}
