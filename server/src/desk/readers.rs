//! Who reads stored events here, and what each of them was given.
//!
//! A *reader* has one place in one channel: a client alone, or all members of a group together. Its members are
//! given stretches of events, each event to one of them, and say how far their connections took them. What a member
//! leaves behind undelivered goes to the others, and before newer events. A member whose connection takes nothing
//! for a while gives back what waits for it: it can be read again, and must neither cost memory nor keep events from
//! others.
//!
//! Places survive as cursors in the replicated state. Here is only what is ahead of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use kubemq_broker::{Channel, ChannelId, Kind, Lookup, Operation, Reader, Stretch};
use kubemq_runtime::sync::Notify;
use parking_lot::Mutex;

use super::{Core, away};

/// Events that one member of several is given at a time, at most, so that the others get some.
const SHARE: u64 = 64;

/// Names a reader: a channel, which need not exist, and who reads it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ReaderKey {
    /// The channel's name: a channel that is deleted and made anew is read on from its beginning.
    pub(crate) channel: Arc<str>,
    pub(crate) reader: Reader,
}

/// Everybody who reads.
#[derive(Default)]
pub(crate) struct Readers {
    channels: BTreeMap<Arc<str>, BTreeMap<Reader, Open>>,
    next_member: u64,
    /// Notified when somebody reads after nobody did.
    pub(crate) came: Arc<Notify>,
}

/// A reader with members.
#[derive(Default)]
struct Open {
    /// Unknown until the first member has joined.
    place: Option<Place>,
    joining: usize,
    members: BTreeMap<u64, Arc<Member>>,
    /// Members that found nothing, longest wait first.
    waiting: VecDeque<(u64, Waker)>,
    /// Notified when a member leaves.
    left: Arc<Notify>,
}

/// Where a reader is.
struct Place {
    channel: ChannelId,
    /// The first event that was given to nobody yet, but for those that came back.
    next: u64,
    /// What came back undelivered: first sequences and the ones behind the last.
    returned: BTreeMap<u64, u64>,
    /// The cursor that was last proposed.
    noted: u64,
    /// It is proposed again although it did not move: somebody is there.
    refresh: bool,
}

/// One subscription.
pub(crate) struct Member {
    id: u64,
    given: Mutex<Given>,
}

/// What a member was given and its connection did not take yet, or took a moment ago.
#[derive(Default)]
struct Given {
    batches: VecDeque<Batch>,
    /// Batches before this place are taken completely, but not noted yet: in a group there may be many.
    open: usize,
    /// Read from the log, in the order of the batches.
    events: VecDeque<StoredEvent>,
    /// Counts how often events were taken away: what was being read then is not wanted any more.
    generation: u64,
    /// The connection asked for more since the last look.
    asked: bool,
    taken_events: u64,
    taken_bytes: u64,
}

/// Consecutive events that a member was given.
struct Batch {
    /// Everything below is noted, or about to be.
    kept: u64,
    /// What the connection had taken at the last look.
    aged: u64,
    /// What the connection takes next.
    next: u64,
    end: u64,
}

/// An event on its way to a connection.
#[derive(Debug)]
pub(crate) struct StoredEvent {
    pub(crate) sequence: u64,
    pub(crate) time: u64,
    /// As it is stored; none when it cannot be read.
    pub(crate) event: Option<Bytes>,
}

/// How much a member wants at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    pub(crate) events: u64,
    pub(crate) bytes: u64,
}

/// How a member leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// The client has what its connection took.
    Clean,
    /// The connection is lost: what it took a moment ago may not have arrived.
    Lost,
}

/// A place to be proposed.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    pub(crate) key: ReaderKey,
    pub(crate) operation: Operation,
}

impl Readers {
    fn open(&mut self, key: &ReaderKey) -> Option<&mut Open> {
        self.channels.get_mut(&key.channel)?.get_mut(&key.reader)
    }

    /// Announces a member: the reader's place is kept until it has joined or given up.
    ///
    /// # Errors
    ///
    /// What is notified when the one leaves who reads alone as the same client.
    pub(crate) fn announce(&mut self, key: &ReaderKey) -> Result<(), Arc<Notify>> {
        if self.channels.is_empty() {
            self.came.notify_one();
        }
        let open = self.channels.entry(Arc::clone(&key.channel)).or_default().entry(key.reader.clone()).or_default();
        if !key.reader.is_group() && (open.joining > 0 || !open.members.is_empty()) {
            return Err(Arc::clone(&open.left));
        }
        open.joining += 1;
        Ok(())
    }

    /// Returns whether somebody may be announced.
    pub(crate) fn is_free(&self, key: &ReaderKey) -> bool {
        let open = self.channels.get(&key.channel).and_then(|readers| readers.get(&key.reader));
        key.reader.is_group() || open.is_none_or(|open| open.joining == 0 && open.members.is_empty())
    }

    /// Takes an announcement back.
    pub(crate) fn give_up(&mut self, key: &ReaderKey) {
        if let Some(open) = self.open(key) {
            open.joining -= 1;
            open.left.notify_waiters();
        }
        self.tidy(key);
    }

    /// Makes an announced member one. Without others the reader begins behind `after`.
    pub(crate) fn join(&mut self, key: &ReaderKey, channel: ChannelId, after: u64) -> Option<Arc<Member>> {
        self.next_member += 1;
        let member = Arc::new(Member { id: self.next_member, given: Mutex::default() });
        let open = self.open(key)?;
        open.joining -= 1;
        open.place.get_or_insert_with(|| Place {
            channel,
            next: after + 1,
            returned: BTreeMap::new(),
            noted: after,
            refresh: false,
        });
        open.members.insert(member.id, Arc::clone(&member));
        Some(member)
    }

    fn tidy(&mut self, key: &ReaderKey) {
        let Some(readers) = self.channels.get_mut(&key.channel) else { return };
        if readers.get(&key.reader).is_some_and(|open| open.joining == 0 && open.members.is_empty()) {
            readers.remove(&key.reader);
        }
        if readers.is_empty() {
            self.channels.remove(&key.channel);
        }
    }

    /// Returns whether nobody reads.
    pub(crate) fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }

    /// Returns how many members read `channel`.
    pub(crate) fn count(&self, channel: &str) -> usize {
        self.channels.get(channel).map_or(0, |readers| readers.values().map(|open| open.members.len()).sum())
    }

    /// Returns how many events were read and wait for the connections of all members.
    pub(crate) fn waiting_events(&self) -> usize {
        let members = self.channels.values().flat_map(BTreeMap::values).flat_map(|open| open.members.values());
        members.map(|member| member.given.lock().events.len()).sum()
    }

    /// Has every place proposed at the next look, so that it is not forgotten while somebody reads from it.
    pub(crate) fn refresh(&mut self) {
        let places = self.channels.values_mut().flat_map(BTreeMap::values_mut).filter_map(|open| open.place.as_mut());
        places.for_each(|place| place.refresh = true);
    }

    /// Has every waiting member look again.
    pub(crate) fn wake_all(&mut self) {
        for open in self.channels.values_mut().flat_map(BTreeMap::values_mut) {
            open.wake(usize::MAX);
        }
    }

    /// The places of groups may have been moved by another leader.
    pub(super) fn lead(&mut self, state: &kubemq_broker::State) {
        for (name, readers) in &mut self.channels {
            for (reader, open) in readers.iter_mut().filter(|(reader, _)| reader.is_group()) {
                let cursor = state.channel(Kind::EventsStore, name).and_then(|channel| channel.cursor(reader));
                if let (Some(place), Some(cursor)) = (&mut open.place, cursor) {
                    place.next = place.next.max(cursor + 1);
                }
            }
        }
        self.wake_all();
    }
}

impl Core {
    /// Gives a member the next events. Without any, `waker` is woken when there are some.
    pub(crate) fn give_events(
        &mut self,
        key: &ReaderKey,
        member: &Member,
        want: Want,
        waker: &Waker,
    ) -> Option<(u64, Vec<Stretch>)> {
        let state = &self.state;
        let open = self.desk.readers.open(key)?;
        let place = open.place.as_mut()?;
        let known = state.channel_by_id(place.channel);
        let Some(channel) = known.or_else(|| state.channel(Kind::EventsStore, &key.channel)) else {
            open.wait(member, waker);
            return None;
        };
        if channel.id() != place.channel {
            // It was deleted and made anew: what was given of the former one is nobody's place any more.
            *place = Place { channel: channel.id(), next: 1, returned: BTreeMap::new(), noted: 0, refresh: false };
            open.members.values().for_each(|member| member.given.lock().forget_batches());
        }
        let share = if open.members.len() > 1 {
            let ready = channel.next_sequence().saturating_sub(place.next) + place.returned_count();
            ready.div_ceil(open.members.len() as u64).min(SHARE)
        } else {
            u64::MAX
        };
        let mut given = member.given.lock();
        let (stretches, away) = place.take(channel, Want { events: want.events.min(share), ..want }, &mut given);
        self.desk.away.want(channel.id(), away);
        if stretches.is_empty() {
            drop(given);
            open.wait(member, waker);
            return None;
        }
        if place.has_more(channel) {
            open.wake(1);
        }
        Some((given.generation, stretches))
    }

    /// Removes a member. Returns the place to be proposed when it left in good order.
    pub(crate) fn leave_reader(&mut self, key: &ReaderKey, member: &Member, leave: Leave) -> Option<Note> {
        let open = self.desk.readers.open(key)?;
        open.members.remove(&member.id)?;
        open.waiting.retain(|(id, _)| *id != member.id);
        let place = open.place.as_mut()?;
        let counts = member.given.lock().end(leave, &mut place.returned);
        let note = (leave == Leave::Clean).then(|| open.note(key, counts)).flatten();
        open.wake(usize::MAX);
        open.left.notify_waiters();
        self.desk.readers.tidy(key);
        note
    }

    /// Looks how far everybody came: what connections took before the last look is noted. A connection that took
    /// nothing since then although there was something gives back what waits for it; what it took last may be on its
    /// way still, and is not noted before it asks again.
    pub(crate) fn note_readers(&mut self) -> Vec<Note> {
        let mut notes = Vec::new();
        for (channel, readers) in &mut self.desk.readers.channels {
            for (reader, open) in readers {
                let Some(place) = &mut open.place else { continue };
                let returned = place.returned.len();
                let mut counts = (0, 0);
                let waiting: BTreeSet<u64> = open.waiting.iter().map(|(id, _)| *id).collect();
                for (id, member) in &open.members {
                    let (events, bytes) = member.given.lock().look(waiting.contains(id), &mut place.returned);
                    counts = (counts.0 + events, counts.1 + bytes);
                }
                if place.returned.len() > returned {
                    open.wake(usize::MAX);
                }
                let key = ReaderKey { channel: Arc::clone(channel), reader: reader.clone() };
                notes.extend(open.note(&key, counts));
            }
        }
        notes
    }

    /// Forgets that a place was proposed: it did not become known what came of it.
    pub(crate) fn note_again(&mut self, key: &ReaderKey) {
        if let Some(place) = self.desk.readers.open(key).and_then(|open| open.place.as_mut()) {
            place.noted = 0;
        }
    }

    /// Wakes those who wait for events of this channel, as many as there are events for.
    pub(super) fn wake_readers(&mut self, id: ChannelId) {
        let Some(channel) = self.state.channel_by_id(id) else { return };
        let Some(readers) = self.desk.readers.channels.get_mut(channel.name()) else { return };
        for open in readers.values_mut() {
            let next = open.place.as_ref().filter(|place| place.channel == id).map_or(1, |place| place.next);
            let ready = channel.next_sequence().saturating_sub(next);
            open.wake(usize::try_from(ready).unwrap_or(usize::MAX));
        }
    }
}

impl Open {
    fn wait(&mut self, member: &Member, waker: &Waker) {
        self.waiting.retain(|(id, _)| *id != member.id);
        self.waiting.push_back((member.id, waker.clone()));
    }

    fn wake(&mut self, most: usize) {
        let count = most.min(self.waiting.len());
        for (_, waker) in self.waiting.drain(..count) {
            waker.wake();
        }
    }

    /// Returns what is to be proposed, if it says anything new.
    fn note(&mut self, key: &ReaderKey, (events, bytes): (u64, u64)) -> Option<Note> {
        let place = self.place.as_mut()?;
        let kept = self.members.values().filter_map(|member| member.given.lock().lowest()).min();
        let returned = place.returned.keys().next().copied();
        let after = kept.into_iter().chain(returned).min().unwrap_or(u64::MAX).min(place.next) - 1;
        if after <= place.noted && events == 0 && !place.refresh {
            return None;
        }
        place.noted = after;
        place.refresh = false;
        let reader = key.reader.clone();
        let operation = Operation::MoveCursor { channel: place.channel, reader, after, events, bytes };
        Some(Note { key: key.clone(), operation })
    }
}

impl Place {
    fn returned_count(&self) -> u64 {
        self.returned.iter().map(|(first, end)| end - first).sum()
    }

    fn has_more(&self, channel: &Channel) -> bool {
        self.next < channel.next_sequence() || !self.returned.is_empty()
    }

    /// Takes the next stretches for a member: what came back first, then what is new. Names a block of the index that
    /// must come back into memory for those that follow.
    fn take(&mut self, channel: &Channel, want: Want, given: &mut Given) -> (Vec<Stretch>, Option<u64>) {
        let mut stretches = Vec::new();
        let (mut events, mut bytes) = (want.events, want.bytes);
        while events > 0 && bytes > 0 {
            let back = self.returned.pop_first();
            let (from, end) = back.unwrap_or((self.next, u64::MAX));
            let stretch = match channel.stretch(from) {
                Lookup::Here(stretch) if stretch.first_sequence < end => stretch,
                Lookup::Away(block) => {
                    self.returned.extend(back);
                    return (stretches, Some(block));
                }
                // What came back was removed meanwhile, or nothing is left.
                Lookup::Here(_) | Lookup::Nothing if back.is_some() => continue,
                Lookup::Here(_) | Lookup::Nothing => break,
            };
            let each = (stretch.bytes / u64::from(stretch.count)).max(1);
            let count =
                u64::from(stretch.count).min(end - stretch.first_sequence).min(events).min(bytes.div_ceil(each));
            let behind = stretch.first_sequence + count;
            match back {
                None => self.next = behind,
                Some(_) if behind < end => drop(self.returned.insert(behind, end)),
                Some(_) => {}
            }
            events -= count;
            bytes = bytes.saturating_sub(count * each);
            given.add(stretch.first_sequence, behind);
            stretches.push(Stretch { count: u16::try_from(count).unwrap_or(stretch.count), ..stretch });
        }
        (stretches, away::soon(channel, self.next))
    }
}

impl Member {
    /// Returns the next event for the connection, which takes it now, and how many are left.
    pub(crate) fn take(&self) -> Option<(StoredEvent, usize)> {
        let mut given = self.given.lock();
        given.asked = true;
        let event = given.events.pop_front()?;
        if let Some(batch) = given.open_batch() {
            batch.next = event.sequence + 1;
        }
        if let Some(bytes) = &event.event {
            given.taken_events += 1;
            given.taken_bytes += bytes.len() as u64;
        }
        Some((event, given.events.len()))
    }

    /// Adds events that were read, unless they were taken away since `generation`.
    pub(crate) fn add(&self, generation: u64, events: impl IntoIterator<Item = StoredEvent>) {
        let mut given = self.given.lock();
        if given.generation == generation {
            given.events.extend(events);
        }
    }
}

impl Given {
    fn add(&mut self, first: u64, end: u64) {
        match self.batches.back_mut() {
            Some(last) if last.end == first => last.end = end,
            _ => self.batches.push_back(Batch { kept: first, aged: first, next: first, end }),
        }
        self.open = self.open.min(self.batches.len() - 1);
    }

    /// The batch that the next event belongs to: batches lie in the order of the events.
    fn open_batch(&mut self) -> Option<&mut Batch> {
        while self.batches.get(self.open).is_some_and(|batch| batch.next >= batch.end) {
            self.open += 1;
        }
        self.batches.get_mut(self.open)
    }

    fn forget_batches(&mut self) {
        self.batches.clear();
        self.open = 0;
    }

    /// The lowest event that is not to be noted yet.
    fn lowest(&self) -> Option<u64> {
        self.batches.iter().filter(|batch| batch.kept < batch.end).map(|batch| batch.kept).min()
    }

    fn look(&mut self, is_waiting: bool, returned: &mut BTreeMap<u64, u64>) -> (u64, u64) {
        let is_stalled = !std::mem::take(&mut self.asked) && !is_waiting;
        for batch in &mut self.batches {
            if !is_stalled {
                batch.kept = batch.aged;
                batch.aged = batch.next;
            } else if batch.next < batch.end {
                returned.insert(batch.next, batch.end);
                batch.end = batch.next;
            }
        }
        if is_stalled {
            self.events = VecDeque::new();
            self.generation += 1;
        }
        while self.batches.front().is_some_and(|batch| batch.kept >= batch.end) {
            self.batches.pop_front();
            self.open = self.open.saturating_sub(1);
        }
        self.take_counts()
    }

    fn end(&mut self, leave: Leave, returned: &mut BTreeMap<u64, u64>) -> (u64, u64) {
        self.open = 0;
        for batch in self.batches.drain(..) {
            let from = if leave == Leave::Clean { batch.next } else { batch.kept };
            if from < batch.end {
                returned.insert(from, batch.end);
            }
        }
        self.events.clear();
        self.generation += 1;
        self.take_counts()
    }

    fn take_counts(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.taken_events), std::mem::take(&mut self.taken_bytes))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kubemq_broker::{BatchView, Name, State};

    use super::*;

    /// A core with one channel of stored events.
    struct Bench {
        core: Core,
        key: ReaderKey,
    }

    impl Bench {
        fn new(group: bool) -> Self {
            let name = Name::new("x").unwrap();
            let reader = if group { Reader::group(&name) } else { Reader::client(&name) };
            let mut bench = Self { core: Core::new(State::default()), key: ReaderKey { channel: "e".into(), reader } };
            bench.store(1);
            bench
        }

        fn apply(&mut self, operations: &[Operation]) {
            let operations: Vec<Bytes> = operations.iter().map(Operation::to_bytes).collect();
            let entry = self.core.state.entry() + 1;
            let batch = BatchView { origin: 1, epoch: 1, number: entry, first_part: 1, operations: &operations };
            let applied = self.core.state.apply(entry, entry, &[batch]);
            self.core.take_effects(applied.effects);
        }

        fn store(&mut self, count: usize) {
            let publish = Operation::Publish {
                kind: Kind::EventsStore,
                channel: Name::new("e").unwrap(),
                delay_ms: 0,
                expiration_ms: 0,
                message: Bytes::from_static(b"event"),
            };
            self.apply(&vec![publish; count]);
        }

        fn join(&mut self) -> Arc<Member> {
            self.core.desk.readers.announce(&self.key).unwrap();
            let channel = self.core.state.channel(Kind::EventsStore, "e").unwrap().id();
            self.core.desk.readers.join(&self.key, channel, 0).unwrap()
        }

        /// Gives a member events and lets them be read; returns how many.
        fn give(&mut self, member: &Member, events: u64) -> u64 {
            let want = Want { events, bytes: u64::MAX };
            let given = self.core.give_events(&self.key, member, want, Waker::noop());
            let Some((generation, stretches)) = given else { return 0 };
            let sequences = stretches
                .iter()
                .flat_map(|stretch| stretch.first_sequence..stretch.first_sequence + u64::from(stretch.count));
            let read: Vec<StoredEvent> = sequences
                .map(|sequence| StoredEvent { sequence, time: 0, event: Some(Bytes::from_static(b"event")) })
                .collect();
            let count = read.len() as u64;
            member.add(generation, read);
            count
        }

        fn noted(&mut self) -> Vec<u64> {
            self.core.note_readers().iter().map(place).collect()
        }
    }

    fn place(note: &Note) -> u64 {
        let Operation::MoveCursor { after, .. } = &note.operation else { panic!("{note:?}") };
        *after
    }

    fn take(member: &Member, count: usize) -> Vec<u64> {
        (0..count).map_while(|_| member.take()).map(|(event, _)| event.sequence).collect()
    }

    #[test]
    fn what_was_taken_is_noted_when_it_is_old_enough() {
        let mut bench = Bench::new(false);
        bench.store(9);
        let member = bench.join();
        assert_eq!(bench.give(&member, 100), 10);
        assert_eq!(take(&member, 4), [1, 2, 3, 4]);
        assert_eq!(bench.noted(), [0], "only what was taken is counted yet");
        assert_eq!(take(&member, 3), [5, 6, 7]);
        assert_eq!(bench.noted(), [4]);
        assert_eq!(take(&member, 3), [8, 9, 10]);
        assert_eq!(bench.noted(), [7]);
        assert_eq!(bench.give(&member, 100), 0, "it waits for more");
        assert_eq!(bench.noted(), [10]);
        assert_eq!(bench.noted(), [0; 0], "nothing new");
    }

    #[test]
    fn a_client_that_leaves_has_what_it_took_and_one_that_is_lost_perhaps_not() {
        for (leave, expected) in [(Leave::Clean, Some(4)), (Leave::Lost, None)] {
            let mut bench = Bench::new(false);
            bench.store(9);
            let member = bench.join();
            bench.give(&member, 100);
            take(&member, 4);
            let note = bench.core.leave_reader(&bench.key, &member, leave);
            assert_eq!(note.as_ref().map(place), expected);
            assert!(bench.core.desk.readers.is_empty());
        }
    }

    #[test]
    fn a_stalled_connection_gives_back_what_waits_and_is_not_believed() {
        let mut bench = Bench::new(false);
        bench.store(9);
        let member = bench.join();
        bench.give(&member, 100);
        take(&member, 4);
        bench.noted();
        assert_eq!(bench.noted(), [0; 0], "what it took last may be on its way");
        assert_eq!(take(&member, 1), [0; 0], "it keeps nothing in memory");
        assert_eq!(bench.give(&member, 100), 6);
        assert_eq!(take(&member, 100), [5, 6, 7, 8, 9, 10]);
        assert_eq!(bench.noted(), [4]);
    }

    #[test]
    fn what_was_being_read_when_it_was_given_back_is_not_added() {
        let mut bench = Bench::new(false);
        let member = bench.join();
        let given = bench.core.give_events(&bench.key, &member, Want { events: 9, bytes: 9 }, Waker::noop());
        let (generation, _) = given.unwrap();
        // Nobody asked for longer than a look.
        bench.noted();
        bench.noted();
        member.add(generation, [StoredEvent { sequence: 1, time: 0, event: None }]);
        assert!(member.take().is_none());
        assert_eq!(bench.give(&member, 9), 1);
    }

    #[test]
    fn members_of_a_group_share_and_what_one_leaves_goes_to_the_others() {
        let mut bench = Bench::new(true);
        bench.store(99);
        let (one, two) = (bench.join(), bench.join());
        assert_eq!((bench.give(&one, 100), bench.give(&two, 100)), (50, 25));
        assert_eq!(take(&one, 10), (1..=10).collect::<Vec<_>>());
        assert_eq!(take(&two, 25), (51..=75).collect::<Vec<_>>());
        let note = bench.core.leave_reader(&bench.key, &one, Leave::Clean).unwrap();
        assert_eq!(place(&note), 10, "the others have not read on from there");
        assert_eq!(bench.give(&two, 1000), 65);
        let rest = take(&two, 65);
        assert_eq!(rest, (11..=50).chain(76..=100).collect::<Vec<_>>(), "older ones first");
        assert_eq!(bench.give(&two, 1), 0);
        bench.noted();
        assert_eq!(bench.noted(), [100]);
    }

    #[test]
    fn one_of_several_members_is_given_no_more_than_its_share() {
        let mut bench = Bench::new(true);
        bench.store(999);
        let (one, two) = (bench.join(), bench.join());
        assert_eq!((bench.give(&one, 1000), bench.give(&two, 1000)), (SHARE, SHARE));
    }

    #[test]
    fn events_of_a_lost_member_are_read_again_by_the_others() {
        let mut bench = Bench::new(true);
        bench.store(3);
        let (one, two) = (bench.join(), bench.join());
        bench.give(&one, 100);
        assert_eq!(take(&one, 2), [1, 2]);
        assert!(bench.core.leave_reader(&bench.key, &one, Leave::Lost).is_none());
        bench.give(&two, 100);
        assert_eq!(take(&two, 9), [1, 2, 3, 4]);
    }

    #[test]
    fn one_client_alone_is_announced_once_and_a_group_often() {
        let mut bench = Bench::new(false);
        assert!(bench.core.desk.readers.announce(&bench.key).is_ok());
        assert!(bench.core.desk.readers.announce(&bench.key).is_err());
        assert!(!bench.core.desk.readers.is_free(&bench.key));
        bench.core.desk.readers.give_up(&bench.key);
        assert!(bench.core.desk.readers.is_free(&bench.key) && bench.core.desk.readers.is_empty());
        let mut bench = Bench::new(true);
        let members = [bench.join(), bench.join()];
        assert_eq!(bench.core.desk.readers.count("e"), members.len());
    }

    #[test]
    fn a_channel_that_is_made_anew_is_read_from_its_beginning() {
        let mut bench = Bench::new(false);
        bench.store(4);
        let member = bench.join();
        bench.give(&member, 100);
        take(&member, 5);
        let (kind, channel) = (Kind::EventsStore, Name::new("e").unwrap());
        bench.apply(&[Operation::Delete { kind, channel }]);
        assert_eq!(bench.give(&member, 100), 0);
        bench.store(2);
        assert_eq!(bench.give(&member, 100), 2);
        assert_eq!(take(&member, 9), [1, 2]);
        bench.noted();
        bench.give(&member, 1);
        assert_eq!(bench.noted(), [2]);
    }
}
