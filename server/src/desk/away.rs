//! Blocks of the index that are not in memory and that somebody waits for.

use std::collections::BTreeSet;
use std::sync::Arc;

use kubemq_broker::{BlockKey, Channel, ChannelId};
use kubemq_runtime::sync::Notify;
use tokio::sync::futures::OwnedNotified;

/// So many blocks before it is needed a block is asked for.
const SOON: usize = 8;

/// Returns the first block that a reader at `from` will need soon and that is not in memory.
pub(super) fn soon(channel: &Channel, from: u64) -> Option<u64> {
    channel.away_from(from, SOON).next()
}

/// Who needs what. There is at most one block of a channel here for each time that somebody looked and found it away,
/// and each of them once: no more than channels that are read, and what is needed next of delayed messages.
#[derive(Default)]
pub(crate) struct Away {
    wanted: BTreeSet<BlockKey>,
    /// The channels of those that are being read now.
    coming: BTreeSet<ChannelId>,
    /// Notified when something is wanted.
    pub(crate) asked: Arc<Notify>,
    /// All who wait for any block are notified when some came back.
    came: Arc<Notify>,
}

impl Away {
    /// Notes that the block of `channel` that was begun with this sequence is needed, if one is.
    pub(crate) fn want(&mut self, channel: ChannelId, block: Option<u64>) {
        self.want_all(block.map(|first_sequence| BlockKey::Runs { channel, first_sequence }));
    }

    /// Notes that these blocks are needed.
    pub(super) fn want_all(&mut self, blocks: impl IntoIterator<Item = BlockKey>) {
        for block in blocks {
            if self.wanted.insert(block) {
                self.asked.notify_one();
            }
        }
    }

    /// Returns what ends when some blocks came back, counted from now on.
    pub(crate) fn came(&self) -> OwnedNotified {
        Arc::clone(&self.came).notified_owned()
    }

    /// Blocks came back.
    pub(super) fn tell(&self) {
        self.came.notify_waiters();
    }

    /// Returns whether a block of `channel` is on its way.
    pub(crate) fn is_wanted(&self, channel: ChannelId) -> bool {
        let of_it = |first_sequence| BlockKey::Runs { channel, first_sequence };
        self.coming.contains(&channel) || self.wanted.range(of_it(0)..=of_it(u64::MAX)).next().is_some()
    }

    /// Takes what is wanted; it is on its way until the next call.
    pub(crate) fn take(&mut self) -> BTreeSet<BlockKey> {
        let wanted = std::mem::take(&mut self.wanted);
        let channels = wanted.iter().filter_map(|block| match block {
            BlockKey::Runs { channel, .. } => Some(*channel),
            BlockKey::Timers { .. } => None,
        });
        self.coming = channels.collect();
        wanted
    }
}
