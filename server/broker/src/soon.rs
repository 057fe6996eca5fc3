//! What is due soon, in order: a bounded piece of all delayed messages, for whoever has to release them. It is made from
//! the blocks that are in memory, goes no further than to the first one that is not, and names those that must come
//! back. It is no part of the state: nothing that `apply` does depends on it.

use std::collections::{BTreeMap, BinaryHeap};

use crate::effect::BlockKey;
use crate::limits::TIMERS_SOON;
use crate::operation::TimerRef;
use crate::reference::Reference;
use crate::timer::{Key, Scheduled, Timer};

/// Blocks that are asked for together.
pub(crate) const BLOCKS_WANTED: usize = 256;

/// The first of all delayed messages.
#[derive(Debug, Default)]
pub(crate) struct Soon {
    /// What is not released and lies before this is in `timers`, all of it.
    until: Key,
    /// Up to this time was looked last.
    limit: u64,
    timers: BTreeMap<Key, Scheduled>,
    /// Blocks without which it cannot go on, in the order in which they are needed.
    away: Vec<BlockKey>,
}

impl Soon {
    /// Notes a new one.
    pub(crate) fn add(&mut self, timer: &Timer) {
        if timer.key() >= self.until {
            return;
        }
        self.timers.insert(timer.key(), timer.scheduled);
        if self.timers.len() > 2 * TIMERS_SOON {
            while self.timers.len() > TIMERS_SOON
                && let Some((last, _)) = self.timers.pop_last()
            {
                self.until = last;
            }
            // What follows is to be looked for again.
            self.away.clear();
        }
    }

    /// Forgets one that was released.
    pub(crate) fn remove(&mut self, key: Key) {
        self.timers.remove(&key);
    }

    /// At most `max` of those that are due at `now`.
    pub(crate) fn due(&self, now: u64, max: usize) -> Vec<TimerRef> {
        let due = self.timers.iter().take_while(|((due, _), _)| *due <= now).take(max);
        due.map(|(key, scheduled)| scheduled.reference(*key)).collect()
    }

    /// When the first one is due.
    pub(crate) fn first(&self) -> Option<u64> {
        self.timers.first_key_value().map(|((due, _), _)| *due)
    }

    /// Where that ends of which everything is here.
    pub(crate) fn until(&self) -> Key {
        self.until
    }

    /// Blocks that must come back.
    pub(crate) fn away(&self) -> &[BlockKey] {
        &self.away
    }

    /// Whether it takes more.
    pub(crate) fn has_room(&self) -> bool {
        self.timers.len() < TIMERS_SOON / 2
    }

    /// Whether more should be looked for, up to half of `ahead` beyond `now`.
    pub(crate) fn lacks(&self, now: u64, ahead: u64) -> bool {
        self.has_room() && self.until.0 <= now.saturating_add(ahead / 2)
    }

    /// Whether a block whose timers are due between `earliest` and `latest` holds something that will be looked for soon.
    pub(crate) fn needs(&self, earliest: u64, latest: u64) -> bool {
        earliest < self.limit && latest >= self.until.0
    }

    /// Begins to look for what is due before `limit`.
    pub(crate) fn look(&mut self, limit: u64) -> Looking {
        self.limit = limit;
        self.away.clear();
        let room = TIMERS_SOON.saturating_sub(self.timers.len());
        Looking { from: self.until, limit, room, found: BinaryHeap::new(), away: Vec::new(), stop: None }
    }

    /// Takes what was found.
    pub(crate) fn take(&mut self, looking: Looking) {
        let Looking { from, limit, room, found, away, stop } = looking;
        let full = found.len() >= room;
        let last = found.peek().map(|(key, _)| (key.0, Reference::from_word(key.1.word().saturating_add(1))));
        let end = if full { last.unwrap_or(from) } else { (limit, Reference::default()) };
        let end = stop.map_or(end, |stop| end.min(stop)).max(from);
        self.timers.extend(found.into_iter().filter(|(key, _)| *key < end));
        self.until = end;
        self.away = away;
    }
}

/// A search for what comes next.
#[derive(Debug)]
pub(crate) struct Looking {
    from: Key,
    limit: u64,
    room: usize,
    /// The last of those that were found so far is on top.
    found: BinaryHeap<(Key, Scheduled)>,
    away: Vec<BlockKey>,
    /// Nothing from here on can be taken: the first block that is away may hold something before it.
    stop: Option<Key>,
}

impl Looking {
    /// Whether what lies at `key` or behind it may be among what is looked for.
    pub(crate) fn wants(&self, key: Key) -> bool {
        let behind = self.found.len() >= self.room && self.found.peek().is_none_or(|(last, _)| *last < key);
        key.0 < self.limit && !behind && self.away.len() < BLOCKS_WANTED
    }

    /// Whether it was looked at before, all of it up to the time `latest`.
    pub(crate) fn is_behind(&self, latest: u64) -> bool {
        latest < self.from.0
    }

    /// Offers one that is not released.
    pub(crate) fn offer(&mut self, timer: &Timer) {
        let key = timer.key();
        let stopped = self.stop.is_some_and(|stop| key >= stop);
        if key < self.from || stopped || !self.wants(key) {
            return;
        }
        self.found.push((key, timer.scheduled));
        if self.found.len() > self.room {
            self.found.pop();
        }
    }

    /// Meets a block that is not here and holds nothing before `first`.
    pub(crate) fn miss(&mut self, block: BlockKey, first: Key) {
        self.stop = Some(self.stop.map_or(first, |stop| stop.min(first)));
        self.away.push(block);
    }
}
