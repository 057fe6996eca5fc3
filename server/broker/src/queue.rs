//! What each operation does. Everything here either happens as a whole or not at all, and whatever names messages or
//! channels that are gone changes nothing.

use std::sync::Arc;

use crate::channel::{Channel, ChannelId, Gone};
use crate::copies::Copy;
use crate::effect::{BlockKey, Effect, Outcome, Refusal};
use crate::memory::ChannelMemory;
use crate::name::{Kind, Name, NameKey};
use crate::operation::{MoveItem, MoveMode, TimerRef};
use crate::reference::Reference;
use crate::sequences::Sequences;
use crate::state::{Applying, State};
use crate::timer::{Scheduled, Timer};
use crate::timers::Released;

const NANOS_PER_MS: u64 = 1_000_000;

impl State {
    /// Lets `change` have a channel for itself, and counts what that does to the memory of the index.
    pub(crate) fn change<T>(&mut self, id: ChannelId, change: impl FnOnce(&mut Channel) -> T) -> Option<T> {
        let channel = Arc::make_mut(self.channels.get_mut(&id)?);
        let before = ChannelMemory::of(channel);
        let result = change(channel);
        let after = ChannelMemory::of(channel);
        self.channel_memory.replace(before, after);
        Some(result)
    }

    fn find(&self, kind: Kind, name: &Name) -> Option<ChannelId> {
        self.names.get(kind.place())?.get(name.as_bytes()).copied()
    }

    pub(crate) fn find_or_create(
        &mut self,
        at: Reference,
        kind: Kind,
        name: &Name,
        applying: &mut Applying,
    ) -> Result<ChannelId, Refusal> {
        if let Some(id) = self.find(kind, name) {
            return Ok(id);
        }
        if self.channels.len() as u64 >= self.limits.channels {
            return Err(Refusal::TooManyChannels);
        }
        // Entry and part: no two operations have both in common, and each creates one channel at most.
        let id = ChannelId(at.word());
        let name: Arc<str> = Arc::from(name.as_str());
        let channel = Channel::new(id, kind, Arc::clone(&name), applying.time);
        self.channel_memory.replace(ChannelMemory::default(), ChannelMemory::of(&channel));
        self.channels.insert(id, Arc::new(channel));
        if let Some(names) = self.names.get_mut(kind.place()) {
            names.insert(NameKey(Arc::clone(&name)), id);
        }
        applying.effects.push(Effect::Created { channel: id, kind, name });
        Ok(id)
    }

    pub(crate) fn publish(
        &mut self,
        at: Reference,
        (kind, name): (Kind, &Name),
        delay_ms: u64,
        expiration_ms: u64,
        bytes: u32,
        applying: &mut Applying,
    ) -> Result<Outcome, Refusal> {
        if !kind.is_stored() {
            return Err(Refusal::NotStored);
        }
        let id = self.find_or_create(at, kind, name, applying)?;
        let time = applying.time;
        if delay_ms > 0 {
            let due = time.saturating_add(delay_ms.saturating_mul(NANOS_PER_MS));
            self.schedule(Timer { due, body: at, scheduled: Scheduled::new(id, expiration_ms, bytes) }, applying);
            return Ok(Outcome::Scheduled { time, due });
        }
        let stored = self.change(id, |channel| {
            channel.last_activity = time;
            channel.count_sent(u64::from(bytes));
            channel.store(at, bytes)
        });
        let Some((sequence, sealed)) = stored else { return Err(Refusal::TooManyChannels) };
        if let Some(block) = sealed {
            let key = BlockKey::Runs { channel: id, first_sequence: block.first_sequence };
            applying.effects.push(Effect::Sealed { key, block: block.bytes });
        }
        applying.stored_in(id);
        Ok(Outcome::Stored { sequence, time })
    }

    fn schedule(&mut self, timer: Timer, applying: &mut Applying) {
        // No two parts of a log have one name; whoever applies what is no log finds one of them.
        if !self.timers.is_behind(&timer) {
            return;
        }
        self.change(timer.scheduled.channel, |channel| {
            channel.last_activity = applying.time;
            channel.totals.delayed = channel.totals.delayed.saturating_add(1);
        });
        if let Some((key, block)) = self.timers.add(timer) {
            applying.effects.push(Effect::Sealed { key, block });
        }
        applying.due = Some(applying.due.map_or(timer.due, |due| due.min(timer.due)));
    }

    /// Settles ranges of one channel; `count` says how that is counted.
    fn settle(
        &mut self,
        id: ChannelId,
        ranges: impl Iterator<Item = (u64, u64)>,
        applying: &mut Applying,
        count: impl FnOnce(&mut Channel, &Gone),
    ) -> u64 {
        let mut gone = Gone::default();
        self.change(id, |channel| {
            for (first, last) in ranges {
                channel.settle(first, last, &mut gone);
            }
            if gone.count > 0 {
                channel.last_activity = applying.time;
                count(channel, &gone);
            }
        });
        let settled = gone.count;
        applying.gone(id, gone);
        settled
    }

    pub(crate) fn ack(&mut self, id: ChannelId, sequences: &Sequences, applying: &mut Applying) -> Outcome {
        let ranges = sequences.ranges().iter().copied();
        let count = self.settle(id, ranges, applying, |channel, gone| channel.count_settled(gone.count, gone.bytes));
        Outcome::Settled { count }
    }

    pub(crate) fn drop_expired(&mut self, id: ChannelId, sequences: &Sequences, applying: &mut Applying) -> Outcome {
        let ranges = sequences.ranges().iter().copied();
        let count = self.settle(id, ranges, applying, |channel, gone| {
            channel.totals.expired = channel.totals.expired.saturating_add(gone.count);
        });
        Outcome::Settled { count }
    }

    pub(crate) fn purge(
        &mut self,
        kind: Kind,
        name: &Name,
        upto: u64,
        held: &Sequences,
        applying: &mut Applying,
    ) -> Outcome {
        let Some(id) = self.find(kind, name) else { return Outcome::Purged { count: 0 } };
        let ranges = between(upto, held);
        let count = self.settle(id, ranges, applying, |channel, gone| channel.count_settled(gone.count, gone.bytes));
        Outcome::Purged { count }
    }

    pub(crate) fn move_to(
        &mut self,
        at: Reference,
        from: ChannelId,
        (kind, name): (Kind, &Name),
        mode: MoveMode,
        items: &[MoveItem],
        applying: &mut Applying,
    ) -> Result<Outcome, Refusal> {
        if !kind.is_stored() {
            return Err(Refusal::NotStored);
        }
        let Some(source) = self.channels.get(&from) else { return Ok(Outcome::Moved { count: 0 }) };
        // Nothing to move creates no channel either.
        if !items.iter().any(|item| source.is_alive(item.sequence)) {
            return Ok(Outcome::Moved { count: 0 });
        }
        let end = source.next_sequence();
        let target = self.find_or_create(at, kind, name, applying)?;
        let returned = mode == MoveMode::Return && target == from;
        let mut gone = Gone::default();
        let mut count = 0;
        // A copy that lands in the same channel is not among those that were named.
        for item in items.iter().filter(|item| item.sequence < end) {
            let Some(copy) = self.take_copy(from, item, mode, applying.time, &mut gone) else { continue };
            count += 1;
            self.change(target, |channel| {
                if !returned {
                    channel.count_sent(u64::from(copy.bytes));
                }
                channel.last_activity = applying.time;
                channel.store_copy(copy)
            });
        }
        self.change(from, |channel| {
            channel.last_activity = applying.time;
            if !returned {
                channel.count_settled(count, gone.bytes);
            }
            match mode {
                MoveMode::Return => channel.totals.redelivered = channel.totals.redelivered.saturating_add(count),
                MoveMode::DeadLetter => {
                    channel.totals.dead_lettered = channel.totals.dead_lettered.saturating_add(count);
                }
                MoveMode::Requeue => {}
            }
        });
        applying.gone(from, gone);
        applying.stored_in(target);
        Ok(Outcome::Moved { count })
    }

    /// Takes one message out of its channel and gives back the copy of it that is to be stored.
    fn take_copy(
        &mut self,
        from: ChannelId,
        item: &MoveItem,
        mode: MoveMode,
        time: u64,
        gone: &mut Gone,
    ) -> Option<Copy> {
        let source = self.channels.get(&from)?;
        let before = source.copy(item.sequence);
        let (body, bytes) = source.body_to_move(item)?;
        let (rerouted_from, cleared_policy) = match mode {
            MoveMode::Return => (before.and_then(|copy| copy.rerouted_from.clone()), false),
            MoveMode::DeadLetter => (Some(Arc::clone(source.name())), true),
            MoveMode::Requeue => (None, false),
        };
        let copy = Copy {
            sequence: 0,
            time,
            expires_at: item.expires_at,
            rerouted_from,
            body,
            receive_count: item.receive_count,
            bytes,
            cleared_policy: cleared_policy || before.is_some_and(|copy| copy.cleared_policy),
            fresh: mode == MoveMode::Requeue,
        };
        self.change(from, |channel| channel.settle(item.sequence, item.sequence, gone));
        Some(copy)
    }

    pub(crate) fn release(&mut self, timers: &[TimerRef], applying: &mut Applying) -> Outcome {
        let time = applying.time;
        let mut count = 0;
        for timer in timers.iter().filter(|timer| timer.due <= time) {
            let Some(Released { timer, dropped }) = self.timers.release(timer) else { continue };
            if let Some(key) = dropped {
                applying.effects.push(Effect::Dropped { key });
            }
            let Scheduled { channel, expiration, bytes } = timer.scheduled;
            let stored = self.change(channel, |channel| {
                channel.last_activity = time;
                channel.totals.delayed = channel.totals.delayed.saturating_sub(1);
                channel.count_sent(u64::from(bytes));
                channel.store_copy(Copy {
                    sequence: 0,
                    time,
                    expires_at: expiration.from(time),
                    rerouted_from: None,
                    body: timer.body,
                    receive_count: 0,
                    bytes,
                    cleared_policy: false,
                    fresh: true,
                })
            });
            // The channel may be gone; then this was all that was left of the message.
            if stored.is_some() {
                count += 1;
                applying.stored_in(channel);
            }
        }
        Outcome::Released { count }
    }

    pub(crate) fn create(
        &mut self,
        at: Reference,
        kind: Kind,
        name: &Name,
        applying: &mut Applying,
    ) -> Result<Outcome, Refusal> {
        let new = self.find(kind, name).is_none();
        let id = self.find_or_create(at, kind, name, applying)?;
        self.change(id, |channel| {
            channel.explicit = true;
            channel.last_activity = applying.time;
        });
        Ok(Outcome::Created { channel: id, new })
    }

    pub(crate) fn delete(&mut self, kind: Kind, name: &Name, applying: &mut Applying) -> Outcome {
        let existed = match self.find(kind, name) {
            Some(id) => self.remove(id, applying),
            None => false,
        };
        Outcome::Deleted { existed }
    }

    pub(crate) fn tidy(&mut self, id: ChannelId, last_activity: u64, applying: &mut Applying) -> Outcome {
        let Some(channel) = self.channels.get(&id) else { return Outcome::Deleted { existed: false } };
        if channel.explicit || !channel.is_empty() || channel.last_activity != last_activity {
            return Outcome::Kept;
        }
        Outcome::Deleted { existed: self.remove(id, applying) }
    }

    fn remove(&mut self, id: ChannelId, applying: &mut Applying) -> bool {
        let Some(channel) = self.channels.remove(&id) else { return false };
        self.channel_memory.replace(ChannelMemory::of(&channel), ChannelMemory::default());
        if let Some(names) = self.names.get_mut(channel.kind().place()) {
            names.remove(channel.name().as_bytes());
        }
        applying.effects.push(Effect::Deleted { channel: id });
        true
    }
}

impl Applying {
    fn stored_in(&mut self, id: ChannelId) {
        if self.ready.last() != Some(&id) {
            self.ready.push(id);
        }
    }

    pub(crate) fn gone(&mut self, id: ChannelId, gone: Gone) {
        if gone.count > 0 {
            self.effects.push(Effect::Settled { channel: id, sequences: gone.sequences });
        }
        for first_sequence in gone.dropped {
            let key = BlockKey::Runs { channel: id, first_sequence };
            self.effects.push(Effect::Dropped { key });
        }
    }
}

/// The ranges from 1 to `upto` without what is held, first and last included.
fn between(upto: u64, held: &Sequences) -> impl Iterator<Item = (u64, u64)> + '_ {
    let mut from = 1_u64;
    let holes = held.ranges().iter().copied().chain([(u64::MAX, u64::MAX)]);
    holes.filter_map(move |(first, last)| {
        let range = (from, first.saturating_sub(1).min(upto));
        from = from.max(last.saturating_add(1));
        (range.0 <= range.1).then_some(range)
    })
}
