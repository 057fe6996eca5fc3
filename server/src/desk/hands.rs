//! How many messages of all channels are in readers' hands, and who waits for the number to fall.
//!
//! At the bound nothing is handed out, as if all queues were empty; settlements, which make room, are never held up.

use std::collections::BTreeSet;
use std::ops::Bound;

use kubemq_broker::ChannelId;

/// Messages of all channels that readers hold or are settling, at most.
const IN_FLIGHT: usize = 1_000_000;

/// See the module documentation.
pub(super) struct Hands {
    most: usize,
    out: usize,
    /// Channels with polls that could have had more. They take turns in their order.
    wanting: BTreeSet<ChannelId>,
    /// The channel whose turn it was last.
    turn: Option<ChannelId>,
}

impl Default for Hands {
    fn default() -> Self {
        Self { most: IN_FLIGHT, out: 0, wanting: BTreeSet::new(), turn: None }
    }
}

impl Hands {
    /// Returns the same bound with so many messages out and nobody who waits.
    pub(super) fn with(&self, out: usize) -> Self {
        Self { most: self.most, out, wanting: BTreeSet::new(), turn: None }
    }

    pub(super) fn most(&self) -> usize {
        self.most
    }

    pub(super) fn out(&self) -> usize {
        self.out
    }

    /// Returns how many of `want` messages may be handed out.
    pub(super) fn room(&self, want: usize) -> usize {
        want.min(self.most.saturating_sub(self.out))
    }

    pub(super) fn is_full(&self) -> bool {
        self.out >= self.most
    }

    pub(super) fn take(&mut self, messages: usize) {
        self.out += messages;
    }

    pub(super) fn give_back(&mut self, messages: usize) {
        self.out -= messages;
    }

    /// Notes that polls of `channel` are to be served when there is room.
    pub(super) fn wants_room(&mut self, channel: ChannelId) {
        self.wanting.insert(channel);
    }

    /// There is no such channel any more.
    pub(super) fn forget(&mut self, channel: ChannelId) {
        self.wanting.remove(&channel);
    }

    /// Takes the next channel that is to be served; none when there is no room.
    pub(super) fn next(&mut self) -> Option<ChannelId> {
        if self.is_full() {
            return None;
        }
        let behind = self.turn.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.wanting.range((behind, Bound::Unbounded)).next().or_else(|| self.wanting.first()).copied()?;
        self.wanting.remove(&next);
        self.turn = Some(next);
        Some(next)
    }

    #[cfg(test)]
    pub(super) fn at_most(most: usize) -> Self {
        Self { most, ..Self::default() }
    }
}

#[cfg(test)]
mod tests;
