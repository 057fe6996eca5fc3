//! Keeps the index of stored messages within its memory.
//!
//! Sealed blocks leave the memory when the index takes more than it should, first those that lie farthest from being
//! read; only such as a durable snapshot holds, so that nothing depends on the index on disk. They come back before
//! somebody needs them. What can never leave (channels, copies, delayed messages, blocks that are not sealed) is bounded
//! by refusing what would add to it, which the gateway does as long as [`IndexMemory::is_full`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kubemq_broker::{ChannelId, State};
use kubemq_runtime::chain;
use kubemq_storage::index::{BlockKey, IndexState, IndexWriter};

use crate::gateway::Gateway;
use crate::index_feed::IndexFeed;

/// How often to look whether something should leave.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Channels that are looked at, and blocks that leave, while nothing else can be applied.
const TOGETHER: usize = 256;
/// Blocks of a channel that stay while others can leave: they are read next.
const HEAD_BLOCKS: usize = 2;
/// Blocks that come back together.
const AHEAD: usize = 16;
/// How long to wait before trying again to bring back what could not be found.
const RETRY: Duration = Duration::from_millis(500);

/// The bound and the numbers; clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct IndexMemory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    most: u64,
    goal: u64,
    /// The newest durable snapshot is of this entry.
    durable: AtomicU64,
    is_full: AtomicBool,
    wants_snapshot: AtomicBool,
    left: AtomicU64,
    came_back: AtomicU64,
}

impl IndexMemory {
    /// `most` bytes of index may be in memory; blocks leave it when there are more than `goal`.
    pub(crate) fn new(most: u64, goal: u64) -> Self {
        Self(Arc::new(Inner {
            most,
            goal,
            durable: AtomicU64::new(0),
            is_full: AtomicBool::new(false),
            wants_snapshot: AtomicBool::new(false),
            left: AtomicU64::new(0),
            came_back: AtomicU64::new(0),
        }))
    }

    /// Returns how many bytes of index may be in memory.
    pub(crate) fn most(&self) -> u64 {
        self.0.most
    }

    /// Returns how many bytes there should be.
    pub(crate) fn goal(&self) -> u64 {
        self.0.goal
    }

    /// Looks at the state after it changed.
    pub(crate) fn look(&self, state: &State) {
        self.0.is_full.store(state.index_bytes() >= self.0.most, Ordering::Relaxed);
    }

    /// Returns whether nothing may be added to the index.
    pub(crate) fn is_full(&self) -> bool {
        self.0.is_full.load(Ordering::Relaxed)
    }

    /// Notes that the newest durable snapshot is of entry `index`.
    pub(crate) fn snapshot_is_durable(&self, index: u64) {
        self.0.durable.store(index, Ordering::Release);
        self.0.wants_snapshot.store(false, Ordering::Relaxed);
    }

    /// Returns whether more could leave the memory after a snapshot.
    pub(crate) fn wants_snapshot(&self) -> bool {
        self.0.wants_snapshot.load(Ordering::Relaxed)
    }

    /// Returns how many blocks left the memory since the start, and how many came back.
    pub(crate) fn moved(&self) -> (u64, u64) {
        (self.0.left.load(Ordering::Relaxed), self.0.came_back.load(Ordering::Relaxed))
    }

    /// Lets blocks leave whenever there are too many, for as long as the node lives.
    pub(crate) async fn let_go_of_what_is_cold(self, gateway: Gateway, index: IndexWriter) {
        let clock = gateway.runtime().clock.clone();
        loop {
            clock.sleep(LOOK_EVERY).await;
            // What an index that failed holds would have to be found in the snapshot, block by block.
            let can_fetch = matches!(*index.state().borrow(), IndexState::Open { .. });
            if can_fetch {
                for keep in [HEAD_BLOCKS, 0] {
                    self.let_go(&gateway, keep).await;
                }
            }
            let (all, sealed) = gateway.with_core(|core| {
                self.look(&core.state);
                (core.state.index_bytes(), core.state.sealed_bytes())
            });
            let wants = can_fetch && all > self.goal() && sealed > self.goal() / 8;
            self.0.wants_snapshot.store(wants, Ordering::Relaxed);
        }
    }

    async fn let_go(&self, gateway: &Gateway, keep: usize) {
        let mut next = Some(ChannelId::default());
        while let Some(from) = next {
            let durable = self.0.durable.load(Ordering::Acquire);
            let before;
            let after;
            (before, next, after) = gateway.with_core(|core| {
                let before = core.state.sealed_blocks();
                let next = core.state.let_go(durable, self.goal(), keep, from, TOGETHER);
                (before, next, core.state.sealed_blocks())
            });
            self.0.left.fetch_add(before - after, Ordering::Relaxed);
            // Between two steps others have the state.
            gateway.runtime().clock.sleep(Duration::ZERO).await;
        }
    }

    /// Brings back what somebody waits for, for as long as the node lives.
    pub(crate) async fn bring_back_what_is_wanted(self, gateway: Gateway, index: IndexWriter, feed: IndexFeed) {
        let clock = gateway.runtime().clock.clone();
        let asked = gateway.with_core(|core| Arc::clone(&core.desk.away.asked));
        loop {
            let wanted = gateway.with_core(|core| core.desk.away.take());
            if wanted.is_empty() {
                asked.notified().await;
                continue;
            }
            let mut missing = BTreeSet::new();
            for (channel, first) in wanted {
                missing.extend(self.bring_back(&gateway, &index, channel, first).await);
                gateway.with_core(|core| core.came_back(channel));
            }
            if missing.is_empty() {
                continue;
            }
            let found = feed.put_all(&gateway, &missing).await;
            self.0.came_back.fetch_add(found.came_back, Ordering::Relaxed);
            match found.result {
                Ok(()) => tracing::warn!(
                    missing = missing.len(),
                    blocks = found.blocks,
                    "the index on disk lacked blocks and was rebuilt"
                ),
                Err(error) => {
                    tracing::error!(missing = missing.len(), error = %chain(&*error), "blocks of the index cannot be found");
                    clock.sleep(RETRY).await;
                }
            }
            for channel in missing.iter().map(|(channel, _)| *channel).collect::<BTreeSet<_>>() {
                gateway.with_core(|core| core.came_back(channel));
            }
        }
    }

    /// Brings back a block and some that follow it; returns those that the index on disk does not have.
    async fn bring_back(
        &self,
        gateway: &Gateway,
        index: &IndexWriter,
        channel: ChannelId,
        first: u64,
    ) -> Vec<(ChannelId, u64)> {
        let away = |core: &mut crate::desk::Core, from, most| {
            let found = core.state.channel_by_id(channel);
            found.map(|found| found.away_from(from, most).collect::<Vec<u64>>()).unwrap_or_default()
        };
        let mut missing = Vec::new();
        for first in gateway.with_core(|core| away(core, first, AHEAD)) {
            let block = index.get(BlockKey::runs(channel.0, first)).await.ok().flatten();
            let is_missing = gateway.with_core(|core| {
                let came = block.is_some_and(|block| core.state.bring_back(channel, first, &block));
                self.0.came_back.fetch_add(u64::from(came), Ordering::Relaxed);
                // It may have been settled meanwhile.
                !came && away(core, first, 1) == [first]
            });
            if is_missing {
                missing.push((channel, first));
            }
        }
        missing
    }
}
