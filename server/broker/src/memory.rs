//! What of the index is in memory: it counts it, lets blocks leave, and takes them back. Nothing here changes the state:
//! which blocks are in memory is no part of it.

use std::sync::Arc;

use bytes::Bytes;

use crate::channel::{Channel, ChannelId};
use crate::effect::BlockKey;
use crate::reference::Reference;
use crate::runs::{SEALED_LIST_BYTES, decode_run_block};
use crate::state::State;
use crate::timer::{Key, decode_timer_block};
use crate::timers::SEALED_TIMERS_BYTES;

/// What channels cost in RAM.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ChannelMemory {
    /// All of it.
    all: u64,
    /// What of that are sealed blocks of runs.
    sealed: u64,
    /// What of that are copies.
    copies: u64,
}

impl ChannelMemory {
    pub(crate) fn of(channel: &Channel) -> Self {
        let (sealed, copies) = (channel.runs.sealed_here_bytes(), channel.copies.index_bytes());
        Self { all: channel.index_bytes(), sealed, copies }
    }

    /// Counts `after` instead of `before`.
    pub(crate) fn replace(&mut self, before: Self, after: Self) {
        let replaced = |sum: u64, before: u64, after: u64| sum.saturating_sub(before).saturating_add(after);
        self.all = replaced(self.all, before.all, after.all);
        self.sealed = replaced(self.sealed, before.sealed, after.sealed);
        self.copies = replaced(self.copies, before.copies, after.copies);
    }
}

/// Where to look for what may leave the memory: first among delayed messages, then in channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coldest(Walk);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Walk {
    /// At the last block of delayed messages before this.
    Timers(Key),
    /// At this channel.
    Channels(ChannelId),
}

impl Default for Coldest {
    fn default() -> Self {
        Self(Walk::Timers((u64::MAX, Reference::from_word(u64::MAX))))
    }
}

impl State {
    /// What the index costs in RAM: channels, runs, copies, delayed messages and bitmaps.
    #[must_use]
    pub fn index_bytes(&self) -> u64 {
        self.channel_memory.all.saturating_add(self.timers.index_bytes())
    }

    /// What of that are messages that were stored again, or released after a delay: they never leave the memory.
    #[must_use]
    pub fn copy_bytes(&self) -> u64 {
        self.channel_memory.copies
    }

    /// What sealed blocks cost in RAM that are in memory: so much could leave it.
    #[must_use]
    pub fn sealed_bytes(&self) -> u64 {
        self.channel_memory.sealed.saturating_add(self.timers.here_bytes())
    }

    /// How many sealed blocks are in memory.
    #[must_use]
    pub fn sealed_blocks(&self) -> u64 {
        self.channel_memory.sealed / SEALED_LIST_BYTES + self.timers.here()
    }

    /// Lets blocks leave the memory that the index on disk and a durable snapshot of entry `durable` hold, until at most
    /// `goal` bytes of index are left: first those with what is due last, then of channels. The first `keep` blocks of
    /// each channel stay, for they are read next, and those that will soon be looked at for what is due. Begins at
    /// `from`, looks at about `most` channels or minutes and lets no more than about as many blocks go; gives back where
    /// to go on.
    pub fn let_go(&mut self, durable: u64, goal: u64, keep: usize, from: Coldest, most: usize) -> Option<Coldest> {
        let channels = match from.0 {
            Walk::Timers(before) => {
                let wanted = self.wanted(goal, SEALED_TIMERS_BYTES).min(most);
                if wanted == 0 {
                    return None;
                }
                let next = match self.timers.let_go(durable, wanted, before, most) {
                    (_, Some(before)) => Walk::Timers(before),
                    (_, None) => Walk::Channels(ChannelId::default()),
                };
                return Some(Coldest(next));
            }
            Walk::Channels(from) => from,
        };
        let ids: Vec<ChannelId> = self.channels.range(channels..).take(most + 1).map(|(id, _)| *id).collect();
        let mut left = most;
        for id in ids.iter().take(most).copied() {
            let wanted = self.wanted(goal, SEALED_LIST_BYTES).min(left.max(1));
            if wanted == 0 {
                return None;
            }
            let can = |channel: &Arc<Channel>| channel.runs.can_let_go(durable, keep);
            if !self.channels.get(&id).is_some_and(can) {
                continue;
            }
            let gone = self.change(id, |channel| channel.runs.let_go(durable, keep, wanted)).unwrap_or_default();
            left = left.saturating_sub(gone);
            if left == 0 {
                return Some(Coldest(Walk::Channels(id)));
            }
        }
        ids.get(most).map(|id| Coldest(Walk::Channels(*id)))
    }

    /// How many blocks of this size should leave.
    fn wanted(&self, goal: u64, each: u64) -> usize {
        usize::try_from(self.index_bytes().saturating_sub(goal).div_ceil(each)).unwrap_or(usize::MAX)
    }

    /// Whether this block is needed and not in memory.
    #[must_use]
    pub fn is_away(&self, block: BlockKey) -> bool {
        match block {
            BlockKey::Runs { channel, first_sequence } => {
                let channel = self.channels.get(&channel);
                channel.is_some_and(|channel| channel.away_from(first_sequence, 1).eq([first_sequence]))
            }
            BlockKey::Timers { .. } => self.timers.is_away(block),
        }
    }

    /// Takes a block back into memory that had left it; false when it is not needed any more or is not that block.
    pub fn bring_back(&mut self, key: BlockKey, block: &Bytes) -> bool {
        match key {
            BlockKey::Runs { channel, first_sequence } => {
                let Some(runs) = decode_run_block(block) else { return false };
                self.change(channel, |channel| channel.runs.bring_back(first_sequence, runs)).unwrap_or_default()
            }
            BlockKey::Timers { bucket, first } => {
                let Some(timers) = decode_timer_block(block) else { return false };
                self.timers.bring_back(bucket, first, timers)
            }
        }
    }
}
