//! The leader's side: who waits for messages, and who holds which.
//!
//! The desk lives in memory and beside the replicated state, under the same lock: what is committed becomes
//! ready, and is reserved for the poll that has waited longest, in one step. It decides nothing that must
//! survive it. A message is *ready* when the state has it unsettled and the desk has it neither in a
//! reader's hands nor being settled, and has not heard that its body cannot be read here.
//!
//! Every node keeps a desk. On a node that does not lead it only remembers what its own gateway's clients
//! still hold, so that a node that comes to lead again hands none of that out a second time. Who reads stored
//! events is served by any node, but for groups (see [`readers`]).

mod away;
mod hands;
mod polls;
mod readers;
mod timers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use kubemq_broker::{ChannelId, Copy, Effect, Kind, Lookup, State};
use kubemq_runtime::FixedHashMap;
use kubemq_runtime::sync::Notify;

use self::away::Away;
use self::hands::Hands;
use self::readers::Readers;
pub(crate) use polls::Poll;
pub(crate) use readers::{Leave, Member, ReaderKey, StoredEvent, Want};
pub(crate) use timers::release_when_due;

/// The replicated state and the desk, changed together.
pub(crate) struct Core {
    pub(crate) state: State,
    pub(crate) desk: Desk,
}

/// See the module documentation.
#[derive(Default)]
pub(crate) struct Desk {
    channels: FixedHashMap<ChannelId, DeskChannel>,
    /// How many messages may be out, and how many are.
    hands: Hands,
    /// Polls of channels that do not exist yet, by channel name.
    absent: BTreeMap<Arc<str>, VecDeque<u64>>,
    /// Peeks at channels that do not exist yet, by channel name.
    absent_watchers: BTreeMap<Arc<str>, Vec<Arc<Notify>>>,
    polls: FixedHashMap<u64, WaitingPoll>,
    next_poll: u64,
    /// Notified when a timer was set that is due before all others.
    pub(crate) timer_set: Arc<Notify>,
    /// Who reads stored events.
    pub(crate) readers: Readers,
    /// Blocks of the index that somebody waits for.
    pub(crate) away: Away,
}

/// What the desk knows of a channel that somebody reads. Without an entry, every living message is ready.
#[derive(Default)]
struct DeskChannel {
    /// Below it, only what is in `returned` can be ready.
    cursor: u64,
    /// Given back unsettled; handed out again before anything at the cursor.
    returned: BTreeSet<u64>,
    out: FixedHashMap<u64, Out>,
    /// Of these the body cannot be read here: they are handed to nobody and settled by nobody here.
    damaged: BTreeSet<u64>,
    /// Waiting polls, longest wait first. While one waits, nothing is ready.
    queue: VecDeque<u64>,
    /// Peeks that wait for the channel to change.
    watchers: Vec<Arc<Notify>>,
}

/// Why a message is not ready.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Out {
    /// In the hands of a reader.
    Held,
    /// Its settlement is on the way; it vanishes when that is applied, or is ready again if it never is.
    Settling,
}

struct WaitingPoll {
    channel: Arc<str>,
    /// Messages still wanted.
    want: usize,
    queued: bool,
    reserved: Vec<Reserved>,
    notify: Arc<Notify>,
}

/// A message that was reserved for one reader: where its bytes are, and what its copy says.
#[derive(Clone, Debug)]
pub(crate) struct Reserved {
    pub(crate) channel: ChannelId,
    pub(crate) sequence: u64,
    pub(crate) entry: u64,
    pub(crate) part: u16,
    /// The size that it is counted with.
    pub(crate) bytes: u64,
    pub(crate) copy: Option<Copy>,
}

impl Core {
    pub(crate) fn new(state: State) -> Self {
        Self { state, desk: Desk::default() }
    }

    /// Replaces the state by one from a snapshot: channels that are gone there are gone here.
    pub(crate) fn replace(&mut self, state: State) {
        self.state = state;
        let gone: Vec<ChannelId> =
            self.desk.channels.keys().copied().filter(|id| self.state.channel_by_id(*id).is_none()).collect();
        for channel in gone {
            self.desk.deleted(channel);
        }
        // A snapshot brings the bodies that were lacking.
        for channel in self.desk.channels.values_mut() {
            channel.returned.append(&mut channel.damaged);
        }
        let ids: Vec<ChannelId> = self.desk.channels.keys().copied().collect();
        for channel in ids {
            self.serve(channel);
        }
        self.desk.readers.wake_all();
        self.desk.timer_set.notify_one();
    }

    /// Takes what the state reports of an applied chunk: wakes the polls it satisfies.
    pub(crate) fn take_effects(&mut self, effects: impl IntoIterator<Item = Effect>) {
        let mut ready = BTreeSet::new();
        for effect in effects {
            match effect {
                Effect::Ready { channel } => {
                    ready.insert(channel);
                }
                Effect::Settled { channel, sequences } => self.desk.settled(channel, sequences.iter()),
                Effect::Deleted { channel } => self.desk.deleted(channel),
                Effect::TimerSet { .. } => self.desk.timer_set.notify_one(),
                Effect::Created { .. } | Effect::Sealed { .. } | Effect::Dropped { .. } => {}
            }
        }
        self.serve_who_wants_room();
        for channel in ready {
            self.serve(channel);
        }
    }

    /// Begins to lead: everything is ready but what this node's own clients hold.
    pub(crate) fn lead(&mut self) {
        for channel in self.desk.channels.values_mut() {
            channel.cursor = 0;
            channel.returned.clear();
            channel.out.retain(|_, out| *out == Out::Held);
        }
        self.desk.hands = self.desk.hands.with(self.desk.channels.values().map(|channel| channel.out.len()).sum());
        let ids: BTreeSet<ChannelId> = self.desk.channels.keys().copied().collect();
        for channel in ids {
            self.serve(channel);
        }
        self.desk.readers.lead(&self.state);
        self.desk.timer_set.notify_one();
    }

    /// Hands what is ready in `channel` to its waiting polls, in the order in which they came.
    fn serve(&mut self, id: ChannelId) {
        let Some(channel) = self.state.channel_by_id(id) else { return };
        if channel.kind() != Kind::Queue {
            self.wake_readers(id);
            return;
        }
        if let Some(polls) = self.desk.absent.remove(channel.name()) {
            self.desk.channels.entry(id).or_default().queue.extend(polls);
        }
        for watcher in self.desk.absent_watchers.remove(channel.name()).into_iter().flatten() {
            watcher.notify_one();
        }
        let Some(desk) = self.desk.channels.get_mut(&id) else { return };
        for watcher in desk.watchers.drain(..) {
            watcher.notify_one();
        }
        while let Some(first) = desk.queue.front().copied() {
            let Some(poll) = self.desk.polls.get_mut(&first) else {
                desk.queue.pop_front();
                continue;
            };
            let before = poll.reserved.len();
            let want = self.desk.hands.room(poll.want);
            let away = desk.reserve(channel, id, want, &mut poll.reserved);
            self.desk.away.want(id, away);
            let got = poll.reserved.len() - before;
            self.desk.hands.take(got);
            if want < poll.want && got == want {
                self.desk.hands.wants_room(id);
            }
            if got == 0 {
                return;
            }
            poll.want -= got;
            poll.notify.notify_one();
            if poll.want > 0 {
                return;
            }
            poll.queued = false;
            desk.queue.pop_front();
        }
        self.desk.tidy(id);
    }

    /// Hands out what the bound had kept at the desk, a channel after another, as far as there is room now.
    fn serve_who_wants_room(&mut self) {
        // A channel that wants room again has left none.
        while let Some(channel) = self.desk.hands.next() {
            self.serve(channel);
        }
    }

    /// Takes back what a reader did not settle: ready again under the same sequence.
    pub(crate) fn give_back(&mut self, id: ChannelId, sequences: impl IntoIterator<Item = u64>) {
        let Some(desk) = self.desk.channels.get_mut(&id) else { return };
        for sequence in sequences {
            if desk.out.remove(&sequence).is_some() {
                self.desk.hands.give_back(1);
                if sequence < desk.cursor {
                    desk.returned.insert(sequence);
                }
            }
        }
        self.serve_who_wants_room();
        self.serve(id);
        self.desk.tidy(id);
    }

    /// Notes that the body of a message cannot be read here, of one that was reserved for whoever says so (`is_held`) or
    /// of one that was only looked at. Returns whether it is still there: otherwise it was settled meanwhile, and
    /// that is why.
    pub(crate) fn note_damaged(&mut self, message: &Reserved, is_held: bool) -> bool {
        let Reserved { channel, sequence, .. } = *message;
        if !self.state.channel_by_id(channel).is_some_and(|channel| channel.is_alive(sequence)) {
            return false;
        }
        let desk = self.desk.channels.entry(channel).or_default();
        if is_held {
            self.desk.hands.give_back(usize::from(desk.out.remove(&sequence).is_some()));
        } else if desk.out.contains_key(&sequence) {
            // Whoever was handed it meanwhile finds the same, or has it in memory.
            return false;
        }
        let is_new = desk.damaged.insert(sequence);
        self.serve_who_wants_room();
        is_new
    }

    /// Notes that the settlement of `sequences` is on its way.
    pub(crate) fn settling(&mut self, id: ChannelId, sequences: impl IntoIterator<Item = u64>) {
        let Some(desk) = self.desk.channels.get_mut(&id) else { return };
        for sequence in sequences {
            if let Some(out) = desk.out.get_mut(&sequence) {
                *out = Out::Settling;
            }
        }
    }

    /// Notes that the settlement of `sequences` was refused: they are held as before. Returns those that still
    /// exist.
    pub(crate) fn hold_again(&mut self, id: ChannelId, sequences: impl IntoIterator<Item = u64>) -> BTreeSet<u64> {
        let Some(desk) = self.desk.channels.get_mut(&id) else { return BTreeSet::new() };
        let mut kept = BTreeSet::new();
        for sequence in sequences {
            if let Some(out) = desk.out.get_mut(&sequence) {
                *out = Out::Held;
                kept.insert(sequence);
            }
        }
        kept
    }

    /// Returns up to `most` ready messages of `channel` without reserving them, from sequence `from` on. Where a block
    /// of the index must come back first it ends there, and says whether it did.
    pub(crate) fn visible(&mut self, channel: &str, from: u64, most: usize) -> (Vec<Reserved>, bool) {
        let Some(channel) = self.state.channel(Kind::Queue, channel) else { return (Vec::new(), false) };
        let desk = self.desk.channels.get(&channel.id());
        let mut visible = Vec::new();
        let mut from = from;
        while visible.len() < most {
            let Some(sequence) = channel.next_alive(from) else { break };
            from = sequence + 1;
            if desk.is_some_and(|desk| !desk.has_free(sequence)) {
                continue;
            }
            match channel.locate(sequence) {
                Lookup::Here(location) => visible.push(Reserved::new(channel.id(), sequence, &location)),
                Lookup::Away(block) => {
                    self.desk.away.want(channel.id(), Some(block));
                    return (visible, true);
                }
                Lookup::Nothing => {}
            }
        }
        (visible, false)
    }

    /// Blocks of these channels, or of delayed messages, came back into memory: whoever waited for them looks again.
    pub(crate) fn came_back(&mut self, channels: impl IntoIterator<Item = ChannelId>) {
        for id in channels {
            self.serve(id);
        }
        self.desk.away.tell();
    }

    /// Whether a block of `channel` is on its way back into memory, so that it has more than can be handed out now.
    pub(crate) fn waits_for_index(&self, channel: &str) -> bool {
        self.state.channel(Kind::Queue, channel).is_some_and(|channel| self.desk.away.is_wanted(channel.id()))
    }

    /// Returns a notification of the next message that becomes ready in `channel`, which need not exist.
    pub(crate) fn watch(&mut self, channel: &str) -> Arc<Notify> {
        let notify = Arc::new(Notify::new());
        match self.state.channel(Kind::Queue, channel) {
            Some(channel) => {
                let desk = self.desk.channels.entry(channel.id()).or_default();
                desk.watchers.retain(|watcher| Arc::strong_count(watcher) > 1);
                desk.watchers.push(Arc::clone(&notify));
            }
            None => {
                let watchers = self.desk.absent_watchers.entry(channel.into()).or_default();
                watchers.retain(|watcher| Arc::strong_count(watcher) > 1);
                watchers.push(Arc::clone(&notify));
            }
        }
        notify
    }

    /// Returns the sequences of `channel` that readers hold or are settling, and those of which the body cannot be read
    /// here.
    pub(crate) fn not_to_be_settled(&self, id: ChannelId) -> BTreeSet<u64> {
        let Some(desk) = self.desk.channels.get(&id) else { return BTreeSet::new() };
        desk.out.keys().chain(&desk.damaged).copied().collect()
    }
}

impl Reserved {
    fn new(channel: ChannelId, sequence: u64, location: &kubemq_broker::Location<'_>) -> Self {
        let kubemq_broker::Location { entry, part, bytes, copy } = *location;
        Self { channel, sequence, entry, part, bytes, copy: copy.cloned() }
    }
}

impl Desk {
    /// Returns whether somebody polls `channel` or holds a message of it.
    pub(crate) fn is_used(&self, id: ChannelId) -> bool {
        self.channels.get(&id).is_some_and(|desk| !desk.out.is_empty() || !desk.queue.is_empty())
    }

    /// Has everybody who waits for messages look again.
    pub(crate) fn wake_polls(&self) {
        // In the order in which they came.
        let waiting: BTreeMap<u64, &Arc<Notify>> = self.polls.iter().map(|(id, poll)| (*id, &poll.notify)).collect();
        for notify in waiting.into_values() {
            notify.notify_one();
        }
    }

    /// Returns how many messages readers hold or are settling, in all channels.
    pub(crate) fn in_flight(&self) -> usize {
        self.hands.out()
    }

    /// Returns how many messages readers may hold.
    pub(crate) fn most_in_flight(&self) -> usize {
        self.hands.most()
    }

    /// Returns how many polls wait for messages.
    pub(crate) fn waiting_polls(&self) -> usize {
        self.polls.len()
    }

    fn settled(&mut self, id: ChannelId, sequences: impl Iterator<Item = u64>) {
        let Some(desk) = self.channels.get_mut(&id) else { return };
        for sequence in sequences {
            self.hands.give_back(usize::from(desk.out.remove(&sequence).is_some()));
            desk.returned.remove(&sequence);
            desk.damaged.remove(&sequence);
        }
        self.tidy(id);
    }

    /// The polls of a deleted channel go on with the channel of the same name, once there is one.
    fn deleted(&mut self, id: ChannelId) {
        let Some(desk) = self.channels.remove(&id) else { return };
        self.hands.give_back(desk.out.len());
        self.hands.forget(id);
        for poll in desk.queue {
            if let Some(waiting) = self.polls.get(&poll) {
                self.absent.entry(Arc::clone(&waiting.channel)).or_default().push_back(poll);
            }
        }
        for watcher in desk.watchers {
            watcher.notify_one();
        }
    }

    /// Forgets a channel of which nothing need be remembered.
    fn tidy(&mut self, id: ChannelId) {
        let idle = self.channels.get(&id).is_some_and(|desk| {
            let nothing_out = desk.out.is_empty() && desk.returned.is_empty() && desk.damaged.is_empty();
            nothing_out && desk.queue.is_empty() && desk.watchers.is_empty()
        });
        if idle {
            self.channels.remove(&id);
        }
    }
}

impl DeskChannel {
    /// Returns whether nothing here keeps a message from being handed out.
    fn has_free(&self, sequence: u64) -> bool {
        !self.out.contains_key(&sequence) && !self.damaged.contains(&sequence)
    }

    /// Reserves up to `want` ready messages, lowest sequence first. Names a block of the index that must come back into
    /// memory for those that follow.
    fn reserve(
        &mut self,
        channel: &kubemq_broker::Channel,
        id: ChannelId,
        want: usize,
        into: &mut Vec<Reserved>,
    ) -> Option<u64> {
        let end = into.len() + want;
        while into.len() < end {
            let returned = self.returned.pop_first();
            let sequence = match returned {
                Some(sequence) => sequence,
                None => channel.next_alive(self.cursor)?,
            };
            if !self.has_free(sequence) {
                self.cursor = self.cursor.max(sequence + 1);
                continue;
            }
            let location = match channel.locate(sequence) {
                Lookup::Here(location) => location,
                Lookup::Away(block) => {
                    self.returned.extend(returned);
                    return Some(block);
                }
                // What was settled since it came back is gone.
                Lookup::Nothing => {
                    self.cursor = self.cursor.max(sequence + 1);
                    continue;
                }
            };
            self.cursor = self.cursor.max(sequence + 1);
            into.push(Reserved::new(id, sequence, &location));
            self.out.insert(sequence, Out::Held);
        }
        away::soon(channel, self.cursor)
    }
}
