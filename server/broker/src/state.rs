//! The state that all nodes share, and the one way to change it: [`State::apply`]. What single operations do to
//! channels is in [`crate::queue`] and [`crate::events_store`]; nothing else changes anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::channel::{Channel, ChannelId};
use crate::effect::{Answer, Applied, BatchAnswer, Effect, Outcome, Refusal};
use crate::limits::{ENTRY_BOUND, Limits};
use crate::memory::ChannelMemory;
use crate::name::{Kind, NameKey};
use crate::operation::Operation;
use crate::origins::{BatchView, Origins};
use crate::reference::Reference;
use crate::restore::{RestoreError, Restoring};
use crate::snapshot::Snapshot;
use crate::timers::{Due, Timers};

/// Channels of one kind, by name.
pub(crate) type Names = BTreeMap<NameKey, ChannelId>;

/// What all entries so far have led to.
#[derive(Clone, Debug)]
pub struct State {
    pub(crate) limits: Limits,
    /// Index of the last entry that was applied.
    pub(crate) entry: u64,
    /// The greatest time that an entry carried.
    pub(crate) time: u64,
    pub(crate) channels: BTreeMap<ChannelId, Arc<Channel>>,
    pub(crate) names: [Names; Kind::ALL.len()],
    pub(crate) timers: Timers,
    pub(crate) origins: Origins,
    pub(crate) channel_memory: ChannelMemory,
}

/// A delayed message: when it is due, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delayed {
    /// When it is due, in nanoseconds.
    pub due: u64,
    /// The channel that it will be stored in.
    pub channel: ChannelId,
    /// Entry that carries the body.
    pub entry: u64,
    /// Part of that entry.
    pub part: u16,
}

/// What one call of `apply` collects.
#[derive(Debug)]
pub(crate) struct Applying {
    /// Time of the entry.
    pub(crate) time: u64,
    pub(crate) effects: Vec<Effect>,
    /// Channels in which something was stored; may name one several times.
    pub(crate) ready: Vec<ChannelId>,
    /// When the earliest new timer is due.
    pub(crate) due: Option<u64>,
}

impl Default for State {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl State {
    /// The state before the first entry. All nodes begin with the same limits.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            entry: 0,
            time: 0,
            channels: BTreeMap::new(),
            names: Default::default(),
            timers: Timers::default(),
            origins: Origins::default(),
            channel_memory: ChannelMemory::default(),
        }
    }

    /// Applies one committed entry: its index, its time in nanoseconds and its batches in order.
    ///
    /// Total: whatever it is given, it answers. An entry that is not newer than the last one changes nothing, and
    /// neither does a batch that is not the next of its origin or an operation that cannot be read.
    pub fn apply(&mut self, entry: u64, time: u64, batches: &[BatchView<'_>]) -> Applied {
        let mut applied = Applied { answers: Vec::with_capacity(batches.len()), effects: Vec::new() };
        if entry <= self.entry {
            for batch in batches {
                let answer = self.origins.answer(batch).unwrap_or(Answer::Gap { expected: batch.number });
                applied.answers.push(answer_to(batch, answer));
            }
            return applied;
        }
        self.entry = entry;
        self.time = self.time.max(time);
        let mut applying = Applying { time: self.time, effects: Vec::new(), ready: Vec::new(), due: None };
        for batch in batches {
            let answer = match self.origins.answer(batch) {
                Some(answer) => answer,
                None => self.apply_batch(entry, batch, &mut applying),
            };
            applied.answers.push(answer_to(batch, answer));
        }
        applied.effects = self.finish(applying);
        applied
    }

    fn apply_batch(&mut self, entry: u64, batch: &BatchView<'_>, applying: &mut Applying) -> Answer {
        let mut results = Vec::with_capacity(batch.operations.len());
        for (place, bytes) in batch.operations.iter().enumerate() {
            let part = u16::try_from(place).ok().and_then(|place| batch.first_part.checked_add(place));
            let outcome = match part {
                Some(part) if entry < ENTRY_BOUND => {
                    let at = Reference::new(entry, part);
                    self.apply_operation(at, bytes, applying).unwrap_or_else(Outcome::Refused)
                }
                _ => Outcome::Refused(Refusal::Exhausted),
            };
            results.push(outcome);
        }
        let results: Arc<[Outcome]> = results.into();
        self.origins.keep(batch, Arc::clone(&results), entry, self.limits.origins);
        Answer::Results(results)
    }

    fn apply_operation(&mut self, at: Reference, bytes: &Bytes, applying: &mut Applying) -> Result<Outcome, Refusal> {
        match Operation::decode(bytes)? {
            Operation::Publish { kind, channel, delay_ms, expiration_ms, message } => {
                let bytes = u32::try_from(message.len()).unwrap_or(u32::MAX);
                self.publish(at, (kind, &channel), delay_ms, expiration_ms, bytes, applying)
            }
            Operation::Ack { channel, sequences } => Ok(self.ack(channel, &sequences, applying)),
            Operation::Drop { channel, sequences } => Ok(self.drop_expired(channel, &sequences, applying)),
            Operation::Move { from, to: (kind, name), mode, items } => {
                self.move_to(at, from, (kind, &name), mode, &items, applying)
            }
            Operation::Release { timers } => Ok(self.release(&timers, applying)),
            Operation::Purge { kind, channel, upto, held } => Ok(self.purge(kind, &channel, upto, &held, applying)),
            Operation::Create { kind, channel } => self.create(at, kind, &channel, applying),
            Operation::Delete { kind, channel } => Ok(self.delete(kind, &channel, applying)),
            Operation::Tidy { channel, last_activity } => Ok(self.tidy(channel, last_activity, applying)),
            Operation::Beat => Ok(Outcome::Noted),
            Operation::Trim { channel, upto } => Ok(self.trim(channel, upto, applying)),
            Operation::OpenCursor { channel, reader, start } => {
                self.open_cursor(at, &channel, &reader, start, applying)
            }
            Operation::MoveCursor { channel, reader, after, events, bytes } => {
                self.move_cursor(channel, &reader, after, (events, bytes), applying)
            }
            Operation::ForgetCursors { channel, before } => Ok(self.forget_cursors(channel, before)),
        }
    }

    /// Names each channel that has something new once, and only if it still exists.
    fn finish(&self, mut applying: Applying) -> Vec<Effect> {
        applying.ready.sort_unstable();
        applying.ready.dedup();
        for channel in applying.ready {
            if self.channels.contains_key(&channel) {
                applying.effects.push(Effect::Ready { channel });
            }
        }
        if let Some(due) = applying.due {
            applying.effects.push(Effect::TimerSet { due });
        }
        applying.effects
    }

    /// Index of the last entry that was applied.
    #[must_use]
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// The greatest time that an entry carried, in nanoseconds.
    #[must_use]
    pub fn time(&self) -> u64 {
        self.time
    }

    /// The limits that decide here.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The channel with this kind and name.
    #[must_use]
    pub fn channel(&self, kind: Kind, name: &str) -> Option<&Channel> {
        let id = self.names.get(kind.place())?.get(name.as_bytes())?;
        self.channel_by_id(*id)
    }

    /// The channel with this id.
    #[must_use]
    pub fn channel_by_id(&self, id: ChannelId) -> Option<&Channel> {
        self.channels.get(&id).map(|channel| &**channel)
    }

    /// All channels of a kind, by name.
    pub fn channels(&self, kind: Kind) -> impl Iterator<Item = &Channel> {
        let names = self.names.get(kind.place());
        names.into_iter().flat_map(|names| names.values()).filter_map(|id| self.channel_by_id(*id))
    }

    /// How many channels of all kinds there are.
    #[must_use]
    pub fn channel_count(&self) -> u64 {
        self.channels.len() as u64
    }

    /// How many delayed messages there are, those of deleted channels included.
    #[must_use]
    pub fn timer_count(&self) -> u64 {
        self.timers.count()
    }

    /// The latest epoch of node `origin` of which a batch was applied: its next one must be greater.
    #[must_use]
    pub fn origin_epoch(&self, origin: u64) -> Option<u64> {
        self.origins.epoch(origin)
    }

    /// What to release at `now`, at most `max` delayed messages; looks `ahead` of that, in nanoseconds, for blocks that
    /// must come back into memory first.
    pub fn due(&mut self, now: u64, ahead: u64, max: usize) -> Due {
        self.timers.due(now, ahead, max)
    }

    /// All delayed messages whose channel still exists and whose block is in memory, in no order that means anything.
    pub fn delayed(&self) -> impl Iterator<Item = Delayed> + '_ {
        let timers = self.timers.iter().filter(|timer| self.channels.contains_key(&timer.scheduled.channel));
        timers.map(|timer| Delayed {
            due: timer.due,
            channel: timer.scheduled.channel,
            entry: timer.body.entry(),
            part: timer.body.part(),
        })
    }

    /// At most `max` channels that nobody created explicitly, that are empty and were not used since `before`, each
    /// with its last activity: what a [`Operation::Tidy`] names.
    #[must_use]
    pub fn idle(&self, before: u64, max: usize) -> Vec<(ChannelId, u64)> {
        let idle = |channel: &Channel| !channel.explicit && channel.is_empty() && channel.last_activity < before;
        let channels = self.channels.values().filter(|channel| idle(channel));
        channels.take(max).map(|channel| (channel.id(), channel.last_activity)).collect()
    }

    /// The state as it is now, to be written down elsewhere while this one goes on. Costs one shared pointer for each
    /// channel and for each minute in which delayed messages are due; one of them is copied, by its blocks, when it
    /// changes.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        // Names stand in the channels; the catalogue is made again when a snapshot is read.
        Snapshot::new(Self {
            limits: self.limits,
            entry: self.entry,
            time: self.time,
            channels: self.channels.clone(),
            names: Default::default(),
            timers: self.timers.clone(),
            origins: self.origins.clone(),
            channel_memory: self.channel_memory,
        })
    }

    /// The state that a snapshot was taken of, all of it in memory. Total on any bytes; how they are cut into chunks does
    /// not matter.
    pub fn restore(chunks: impl IntoIterator<Item = Bytes>) -> Result<Self, RestoreError> {
        let mut restoring = Restoring::new(u64::MAX);
        chunks.into_iter().try_for_each(|chunk| restoring.push(chunk))?;
        restoring.finish()
    }

    /// A number that is equal for equal states, and almost never otherwise.
    #[must_use]
    pub fn digest(&self) -> u64 {
        crate::digest::digest(self)
    }
}

fn answer_to(batch: &BatchView<'_>, answer: Answer) -> BatchAnswer {
    BatchAnswer { origin: batch.origin, epoch: batch.epoch, number: batch.number, answer }
}
