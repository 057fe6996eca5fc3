//! The broker as somebody would write it in an afternoon: lists of messages, searched from end to end. It knows what
//! operations mean and nothing of how the core keeps them.

use std::collections::{BTreeMap, BTreeSet};

use kubemq_broker::{
    Answer, ChannelId, Kind, Limits, MoveMode, Operation, Outcome, Reader, Refusal, Scheduled, Start, TimerRef,
};

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MessageCopy {
    pub(crate) receive_count: u32,
    pub(crate) time: u64,
    pub(crate) expires_at: u64,
    pub(crate) rerouted_from: Option<String>,
    pub(crate) cleared_policy: bool,
    pub(crate) fresh: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) sequence: u64,
    pub(crate) body: (u64, u16),
    pub(crate) size: u64,
    pub(crate) copy: Option<MessageCopy>,
}

#[derive(Clone, Debug)]
pub(crate) struct Channel {
    pub(crate) id: ChannelId,
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) explicit: bool,
    pub(crate) stored: u64,
    pub(crate) messages: Vec<Message>,
    pub(crate) sent: (u64, u64),
    pub(crate) settled: (u64, u64),
    pub(crate) expired: u64,
    pub(crate) dead_lettered: u64,
    pub(crate) redelivered: u64,
    pub(crate) last_activity: u64,
    /// Readers, their places, and when they were used.
    pub(crate) cursors: Vec<(Reader, u64, u64)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Timer {
    pub(crate) due: u64,
    pub(crate) body: (u64, u16),
    pub(crate) channel: ChannelId,
    pub(crate) expiration_ms: u64,
    pub(crate) size: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(crate) origin: u64,
    pub(crate) epoch: u64,
    pub(crate) number: u64,
    pub(crate) first_part: u16,
    /// `None` is one that cannot be read.
    pub(crate) operations: Vec<Option<Operation>>,
}

/// What changed, to be compared with the effects.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Changes {
    pub(crate) settled: BTreeMap<ChannelId, BTreeSet<u64>>,
    pub(crate) ready: BTreeSet<ChannelId>,
    pub(crate) created: Vec<ChannelId>,
    pub(crate) deleted: Vec<ChannelId>,
}

#[derive(Clone, Debug)]
struct Origin {
    epoch: u64,
    results: Vec<Vec<Outcome>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) limits: Limits,
    pub(crate) time: u64,
    pub(crate) channels: Vec<Channel>,
    pub(crate) timers: Vec<Timer>,
    origins: BTreeMap<u64, Origin>,
    changes: Changes,
}

impl Channel {
    fn place(&mut self, reader: &Reader, after: u64, time: u64) {
        self.cursors.retain(|(one, _, _)| one != reader);
        self.cursors.push((reader.clone(), after, time));
    }
}

impl Model {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            time: 0,
            channels: Vec::new(),
            timers: Vec::new(),
            origins: BTreeMap::new(),
            changes: Changes::default(),
        }
    }

    pub(crate) fn apply(&mut self, entry: u64, time: u64, batches: &[Batch]) -> (Vec<Answer>, Changes) {
        self.time = self.time.max(time);
        self.changes = Changes::default();
        let answers = batches.iter().map(|batch| self.batch(entry, batch)).collect();
        let mut changes = std::mem::take(&mut self.changes);
        changes.ready.retain(|id| self.channels.iter().any(|channel| channel.id == *id));
        (answers, changes)
    }

    fn batch(&mut self, entry: u64, batch: &Batch) -> Answer {
        let known = self.origins.get(&batch.origin).cloned();
        if let Some(known) = &known
            && batch.epoch < known.epoch
        {
            return Answer::Retired { epoch: known.epoch };
        }
        let mut origin = match known {
            Some(known) if known.epoch == batch.epoch => known,
            _ => Origin { epoch: batch.epoch, results: Vec::new() },
        };
        let last = origin.results.len() as u64;
        if batch.number != last + 1 {
            if batch.number > 0 && batch.number <= last && batch.number + 4 > last {
                return Answer::Results(origin.results[batch.number as usize - 1].clone().into());
            }
            return Answer::Gap { expected: last + 1 };
        }
        let mut results = Vec::new();
        for (place, operation) in batch.operations.iter().enumerate() {
            results.push(match operation {
                Some(operation) => self.operation((entry, batch.first_part + place as u16), operation),
                None => Outcome::Refused(Refusal::Malformed),
            });
        }
        origin.results.push(results.clone());
        self.origins.insert(batch.origin, origin);
        Answer::Results(results.into())
    }

    fn operation(&mut self, at: (u64, u16), operation: &Operation) -> Outcome {
        let time = self.time;
        match operation {
            Operation::Publish { kind, channel, delay_ms, expiration_ms, message } => {
                if !matches!(kind, Kind::Queue | Kind::EventsStore) {
                    return Outcome::Refused(Refusal::NotStored);
                }
                let Some(id) = self.named(at, *kind, channel.as_str()) else {
                    return Outcome::Refused(Refusal::TooManyChannels);
                };
                let size = message.len() as u64;
                self.channel(id).last_activity = time;
                if *delay_ms > 0 {
                    let due = time + delay_ms * 1_000_000;
                    self.timers.push(Timer { due, body: at, channel: id, expiration_ms: *expiration_ms, size });
                    return Outcome::Scheduled { time, due };
                }
                self.channel(id).sent.0 += 1;
                self.channel(id).sent.1 += size;
                let sequence = self.store(id, at, size, None);
                Outcome::Stored { sequence, time }
            }
            Operation::Ack { channel, sequences } => {
                let gone = self.remove(*channel, |sequence| sequences.contains(sequence));
                self.count_settled(*channel, &gone);
                Outcome::Settled { count: gone.len() as u64 }
            }
            Operation::Drop { channel, sequences } => {
                let gone = self.remove(*channel, |sequence| sequences.contains(sequence));
                if !gone.is_empty() {
                    self.channel(*channel).expired += gone.len() as u64;
                }
                Outcome::Settled { count: gone.len() as u64 }
            }
            Operation::Purge { kind, channel, upto, held } => {
                let Some(id) = self.find(*kind, channel.as_str()) else { return Outcome::Purged { count: 0 } };
                let gone = self.remove(id, |sequence| sequence <= *upto && !held.contains(sequence));
                self.count_settled(id, &gone);
                Outcome::Purged { count: gone.len() as u64 }
            }
            Operation::Move { from, to: (kind, name), mode, items } => {
                if !matches!(kind, Kind::Queue | Kind::EventsStore) {
                    return Outcome::Refused(Refusal::NotStored);
                }
                let Some(source) = self.channels.iter().find(|channel| channel.id == *from).cloned() else {
                    return Outcome::Moved { count: 0 };
                };
                let mut named: Vec<_> = Vec::new();
                for item in items {
                    let before = named.iter().any(|(earlier, _): &(u64, _)| *earlier == item.sequence);
                    if let Some(message) = source.messages.iter().find(|message| message.sequence == item.sequence)
                        && !before
                    {
                        named.push((item.sequence, (message.clone(), *item)));
                    }
                }
                if named.is_empty() {
                    return Outcome::Moved { count: 0 };
                }
                let Some(to) = self.named(at, *kind, name.as_str()) else {
                    return Outcome::Refused(Refusal::TooManyChannels);
                };
                let gone = self.remove(*from, |sequence| named.iter().any(|(one, _)| *one == sequence));
                assert_eq!(gone.len(), named.len());
                let comes_back = *mode == MoveMode::Return && to == *from;
                if !comes_back {
                    self.count_settled(*from, &gone);
                }
                match mode {
                    MoveMode::Return => self.channel(*from).redelivered += gone.len() as u64,
                    MoveMode::DeadLetter => self.channel(*from).dead_lettered += gone.len() as u64,
                    MoveMode::Requeue => {}
                }
                for (_, (message, item)) in &named {
                    let old = message.copy.as_ref();
                    let was_cleared = old.is_some_and(|copy| copy.cleared_policy);
                    let came_from = old.and_then(|copy| copy.rerouted_from.clone());
                    let (rerouted_from, cleared_policy, fresh) = match mode {
                        MoveMode::Return => (came_from, was_cleared, false),
                        MoveMode::DeadLetter => (Some(source.name.clone()), true, false),
                        MoveMode::Requeue => (None, was_cleared, true),
                    };
                    let copy = MessageCopy {
                        receive_count: item.receive_count,
                        time,
                        expires_at: item.expires_at,
                        rerouted_from,
                        cleared_policy,
                        fresh,
                    };
                    if !comes_back {
                        self.channel(to).sent.0 += 1;
                        self.channel(to).sent.1 += message.size;
                    }
                    self.store(to, message.body, message.size, Some(copy));
                    self.channel(to).last_activity = time;
                }
                Outcome::Moved { count: named.len() as u64 }
            }
            Operation::Release { timers } => Outcome::Released { count: self.release(timers) },
            Operation::Create { kind, channel } => {
                let new = self.find(*kind, channel.as_str()).is_none();
                match self.named(at, *kind, channel.as_str()) {
                    Some(id) => {
                        self.channel(id).explicit = true;
                        self.channel(id).last_activity = time;
                        Outcome::Created { channel: id, new }
                    }
                    None => Outcome::Refused(Refusal::TooManyChannels),
                }
            }
            Operation::Delete { kind, channel } => {
                let found = self.find(*kind, channel.as_str());
                if let Some(id) = found {
                    self.delete(id);
                }
                Outcome::Deleted { existed: found.is_some() }
            }
            Operation::Tidy { channel, last_activity } => {
                let Some(found) = self.channels.iter().find(|one| one.id == *channel) else {
                    return Outcome::Deleted { existed: false };
                };
                let delayed = self.timers.iter().any(|timer| timer.channel == *channel);
                let used = found.last_activity != *last_activity;
                let kept = !found.messages.is_empty() || !found.cursors.is_empty();
                if found.explicit || used || delayed || kept {
                    return Outcome::Kept;
                }
                self.delete(*channel);
                Outcome::Deleted { existed: true }
            }
            Operation::Beat => Outcome::Noted,
            Operation::Trim { channel, upto } => {
                let Some(before) = self.events_store(*channel).cloned() else { return Outcome::Trimmed { count: 0 } };
                let gone = self.remove(*channel, |sequence| sequence <= *upto);
                self.channel(*channel).expired += gone.len() as u64;
                self.channel(*channel).last_activity = before.last_activity;
                Outcome::Trimmed { count: gone.len() as u64 }
            }
            Operation::OpenCursor { channel, reader, start } => {
                let Some(id) = self.named(at, Kind::EventsStore, channel.as_str()) else {
                    return Outcome::Refused(Refusal::TooManyChannels);
                };
                let channel = self.channel(id);
                channel.last_activity = time;
                let stored = channel.stored;
                let first = channel.messages.first().map_or(stored + 1, |message| message.sequence);
                let known = channel.cursors.iter().find(|(one, _, _)| one == reader).map(|(_, after, _)| *after);
                let after = known.unwrap_or(match start {
                    Start::New => stored,
                    Start::First => first - 1,
                    Start::Last => channel.messages.last().map_or(stored, |message| message.sequence - 1),
                    Start::At(sequence) if *sequence > stored => stored,
                    Start::At(sequence) => sequence.saturating_sub(1),
                });
                let after = after.max(first - 1);
                channel.place(reader, after, time);
                Outcome::Opened { channel: id, after }
            }
            Operation::MoveCursor { channel, reader, after, events, bytes } => {
                if self.events_store(*channel).is_none() {
                    return Outcome::Advanced { after: 0 };
                }
                let channel = self.channel(*channel);
                channel.last_activity = time;
                channel.settled.0 += events;
                channel.settled.1 += bytes;
                let known = channel.cursors.iter().find(|(one, _, _)| one == reader).map_or(0, |(_, after, _)| *after);
                let after = known.max(*after.min(&channel.stored));
                channel.place(reader, after, time);
                Outcome::Advanced { after }
            }
            Operation::ForgetCursors { channel, before } => {
                if self.events_store(*channel).is_none() {
                    return Outcome::Forgotten { count: 0 };
                }
                let channel = self.channel(*channel);
                let (first, known) = (channel.messages.first().map(|message| message.sequence), channel.cursors.len());
                let misses = |after: u64| first.is_none_or(|first| after + 1 < first);
                channel.cursors.retain(|(_, after, used)| used >= before || !misses(*after));
                Outcome::Forgotten { count: (known - channel.cursors.len()) as u64 }
            }
        }
    }

    fn release(&mut self, timers: &[TimerRef]) -> u64 {
        let mut count = 0;
        for wanted in timers {
            let is = |timer: &Timer| timer.due == wanted.due && timer.body == (wanted.entry, wanted.part);
            let Some(place) = self.timers.iter().position(is) else { continue };
            if wanted.due > self.time {
                continue;
            }
            let timer = self.timers.remove(place);
            if !self.channels.iter().any(|channel| channel.id == timer.channel) {
                continue;
            }
            count += 1;
            let time = self.time;
            let expires_at = if timer.expiration_ms == 0 { 0 } else { time + timer.expiration_ms * 1_000_000 };
            let copy = MessageCopy {
                receive_count: 0,
                time,
                expires_at,
                rerouted_from: None,
                cleared_policy: false,
                fresh: true,
            };
            let channel = self.channel(timer.channel);
            channel.sent.0 += 1;
            channel.sent.1 += timer.size;
            channel.last_activity = time;
            self.store(timer.channel, timer.body, timer.size, Some(copy));
        }
        count
    }

    pub(crate) fn find(&self, kind: Kind, name: &str) -> Option<ChannelId> {
        self.channels.iter().find(|channel| channel.kind == kind && channel.name == name).map(|channel| channel.id)
    }

    fn named(&mut self, at: (u64, u16), kind: Kind, name: &str) -> Option<ChannelId> {
        if let Some(id) = self.find(kind, name) {
            return Some(id);
        }
        if self.channels.len() as u64 >= self.limits.channels {
            return None;
        }
        let id = ChannelId(at.0 * 65_536 + u64::from(at.1));
        self.channels.push(Channel {
            id,
            kind,
            name: name.to_owned(),
            explicit: false,
            stored: 0,
            messages: Vec::new(),
            sent: (0, 0),
            settled: (0, 0),
            expired: 0,
            dead_lettered: 0,
            redelivered: 0,
            last_activity: self.time,
            cursors: Vec::new(),
        });
        self.changes.created.push(id);
        Some(id)
    }

    fn events_store(&self, id: ChannelId) -> Option<&Channel> {
        self.channels.iter().find(|channel| channel.id == id && channel.kind == Kind::EventsStore)
    }

    fn channel(&mut self, id: ChannelId) -> &mut Channel {
        self.channels.iter_mut().find(|channel| channel.id == id).unwrap()
    }

    fn store(&mut self, id: ChannelId, body: (u64, u16), size: u64, copy: Option<MessageCopy>) -> u64 {
        self.changes.ready.insert(id);
        let channel = self.channel(id);
        channel.stored += 1;
        let sequence = channel.stored;
        channel.messages.push(Message { sequence, body, size, copy });
        sequence
    }

    fn remove(&mut self, id: ChannelId, which: impl Fn(u64) -> bool) -> Vec<Message> {
        let time = self.time;
        let Some(channel) = self.channels.iter_mut().find(|channel| channel.id == id) else { return Vec::new() };
        let (gone, kept) = channel.messages.drain(..).partition(|message| which(message.sequence));
        channel.messages = kept;
        let gone: Vec<Message> = gone;
        if !gone.is_empty() {
            channel.last_activity = time;
            let settled = self.changes.settled.entry(id).or_default();
            settled.extend(gone.iter().map(|message| message.sequence));
        }
        gone
    }

    fn count_settled(&mut self, id: ChannelId, gone: &[Message]) {
        if !gone.is_empty() {
            let channel = self.channel(id);
            channel.settled.0 += gone.len() as u64;
            channel.settled.1 += gone.iter().map(|message| message.size).sum::<u64>();
        }
    }

    fn delete(&mut self, id: ChannelId) {
        self.channels.retain(|channel| channel.id != id);
        self.changes.deleted.push(id);
    }

    /// What is due, in order.
    pub(crate) fn due(&self, now: u64) -> Vec<TimerRef> {
        let due = self.timers.iter().filter(|timer| timer.due <= now);
        let mut due: Vec<_> = due
            .map(|timer| TimerRef {
                due: timer.due,
                entry: timer.body.0,
                part: timer.body.1,
                scheduled: Some(Scheduled::new(timer.channel, timer.expiration_ms, timer.size as u32)),
            })
            .collect();
        due.sort();
        due
    }

    /// Every body that is still needed.
    pub(crate) fn living(&self) -> BTreeSet<(u64, u16)> {
        let exists = |timer: &&Timer| self.channels.iter().any(|channel| channel.id == timer.channel);
        let stored = self.channels.iter().flat_map(|channel| channel.messages.iter().map(|message| message.body));
        stored.chain(self.timers.iter().filter(exists).map(|timer| timer.body)).collect()
    }
}
