//! Keeps the index of stored messages within its memory.
//!
//! Sealed blocks leave the memory when the index takes more than it should, first those that lie farthest from being
//! read; only such as a durable snapshot holds, so that nothing depends on the index on disk. They come back before
//! somebody needs them. What can never leave (channels, copies, blocks that are not sealed, what is told of those that
//! left) is bounded by refusing what would add to it, which the gateway does as long as [`IndexMemory::is_full`]. Delayed
//! messages become copies when they are due: so many of them that others find no room wait until some are received.

mod lost;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kubemq_broker::{BlockKey, ChannelId, Coldest, State};
use kubemq_runtime::chain;
use kubemq_storage::index::{IndexState, IndexWriter};

use self::lost::Lost;
use crate::gateway::Gateway;
use crate::index_feed::{IndexFeed, on_disk};

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

    /// Returns whether delayed messages that are due may become copies. Where copies do not take much of the memory they
    /// always may: what else takes it would not make room by itself.
    pub(crate) fn has_room_for_released(&self, state: &State) -> bool {
        state.index_bytes() < self.0.most / 2 || state.copy_bytes() < self.0.most / 8
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
        let mut next = Some(Coldest::default());
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
        let mut lost = Lost::new(gateway.runtime().random.clone());
        loop {
            let wanted = gateway.with_core(|core| core.desk.away.take());
            if wanted.is_empty() {
                asked.notified().await;
                continue;
            }
            let mut missing = BTreeSet::new();
            for block in wanted.iter().copied() {
                missing.extend(self.bring_back(&gateway, &index, block).await);
                if let Some(channel) = channel_of(block) {
                    gateway.with_core(|core| core.came_back([channel]));
                }
            }
            // Those who wait for delayed messages wait for all of them together.
            gateway.with_core(|core| core.came_back([]));
            if missing.is_empty() {
                continue;
            }
            if lost.holds(&missing, clock.now()) {
                clock.sleep(RETRY).await;
            } else {
                let found = feed.put_all(&gateway, &missing).await;
                self.0.came_back.fetch_add(found.came_back, Ordering::Relaxed);
                match found.result {
                    Ok(()) => {
                        lost.clear();
                        let (missing, blocks) = (missing.len(), found.blocks);
                        tracing::warn!(missing, blocks, "the index on disk lacked blocks and was rebuilt");
                    }
                    Err(error) => {
                        let number = missing.len();
                        tracing::error!(missing = number, error = %chain(&*error), "blocks of the index cannot be found");
                        let away = |core: &mut crate::desk::Core| {
                            missing.iter().copied().filter(|block| core.state.is_away(*block)).collect()
                        };
                        lost.add(&gateway.with_core(away), clock.now());
                        clock.sleep(RETRY).await;
                    }
                }
            }
            let channels = missing.iter().copied().filter_map(channel_of).collect::<BTreeSet<_>>();
            gateway.with_core(|core| core.came_back(channels));
        }
    }

    /// Brings back a block, and of a channel some that follow it; returns those that the index on disk does not have.
    async fn bring_back(&self, gateway: &Gateway, index: &IndexWriter, block: BlockKey) -> Vec<BlockKey> {
        let wanted = gateway.with_core(|core| match block {
            BlockKey::Runs { channel, first_sequence } => {
                let found = core.state.channel_by_id(channel);
                let firsts = found.into_iter().flat_map(|found| found.away_from(first_sequence, AHEAD));
                firsts.map(|first_sequence| BlockKey::Runs { channel, first_sequence }).collect()
            }
            BlockKey::Timers { .. } if core.state.is_away(block) => vec![block],
            BlockKey::Timers { .. } => Vec::new(),
        });
        let mut missing = Vec::new();
        for key in wanted {
            let block = index.get(on_disk(key)).await.ok().flatten();
            let is_missing = gateway.with_core(|core| {
                let came = block.is_some_and(|block| core.state.bring_back(key, &block));
                self.0.came_back.fetch_add(u64::from(came), Ordering::Relaxed);
                // It may have been settled meanwhile.
                !came && core.state.is_away(key)
            });
            if is_missing {
                missing.push(key);
            }
        }
        missing
    }
}

fn channel_of(block: BlockKey) -> Option<ChannelId> {
    match block {
        BlockKey::Runs { channel, .. } => Some(channel),
        BlockKey::Timers { .. } => None,
    }
}
