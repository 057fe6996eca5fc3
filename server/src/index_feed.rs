//! The index on disk is kept like the state: sealed blocks go to it as they come, and all of them again when
//! it was found empty or damaged. Nothing waits for it and nothing is recovered from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kubemq_broker::Effect;
use kubemq_runtime::chain;
use kubemq_runtime::sync::watch::Closed;
use kubemq_storage::index::{BlockKey, Full, IndexState, IndexWriter, Opening, Space};

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
                        let blocks = self.put_all(&gateway).await;
                        if blocks > 0 || lacks || matches!(opening, Opening::Replaced { .. }) {
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

    async fn put_all(&self, gateway: &Gateway) -> u64 {
        let snapshot = gateway.with_core(|core| core.state.snapshot());
        let clock = &gateway.runtime().clock;
        let mut blocks = 0;
        for (key, block) in snapshot.sealed_blocks() {
            while self.index.put(on_disk(key), block.clone()).is_err() {
                if matches!(*self.index.state().borrow(), IndexState::Failed(_) | IndexState::Closed) {
                    return blocks;
                }
                clock.sleep(RETRY).await;
            }
            blocks += 1;
        }
        blocks
    }
}

fn on_disk(key: kubemq_broker::BlockKey) -> BlockKey {
    match key {
        kubemq_broker::BlockKey::Runs { channel, first_sequence } => BlockKey::runs(channel.0, first_sequence),
        kubemq_broker::BlockKey::Timers { bucket, number } => BlockKey::timers(bucket, number),
    }
}
