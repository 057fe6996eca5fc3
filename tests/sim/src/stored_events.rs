//! What publishers and readers of stored events know: where every event lies, by what they were told and sent.
//!
//! An event has one sequence, whoever reads it, and sequences have no holes. A reader that is one client is sent every
//! event behind its place, in order, and perhaps again what it had; the members of a group are sent it between them. A
//! place that was noted never lies beyond what was sent. Only events that its channel does not keep may be missing.

use std::collections::{BTreeMap, BTreeSet};

use crate::oracle::{ChannelNumber, Id, Told};

/// Who reads a channel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Reader {
    /// The channel of the workload.
    pub channel: ChannelNumber,
    /// Names it among the readers of a run.
    pub number: u64,
    /// Whether it is all members of a group, or one client.
    pub group: bool,
    /// Whether it begins at the first event, or behind everything that was stored before it came.
    pub first: bool,
}

/// An event as it was sent to a reader.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The event.
    pub id: Id,
    /// Its sequence.
    pub sequence: u64,
    /// When it was stored, in cluster time.
    pub time: u64,
}

struct Event {
    channel: ChannelNumber,
    /// True nanoseconds when it was submitted, and when its publisher knew that it is stored.
    began: u64,
    stored: Option<u64>,
    sequence: Option<u64>,
}

/// What is known of a channel.
#[derive(Default)]
struct Channel {
    /// So many events stay; nothing is no bound.
    keep: Option<u64>,
    /// Events that may have been stored.
    tried: u64,
    /// What has which sequence, and its time.
    places: BTreeMap<u64, (Id, u64)>,
}

impl Channel {
    /// Returns whether an event may have been removed.
    fn may_be_gone(&self, sequence: u64) -> bool {
        self.keep.is_some_and(|keep| sequence + keep <= self.tried)
    }
}

/// What is known of a reader.
#[derive(Default)]
struct Progress {
    /// True nanoseconds when its first subscription had begun.
    since: Option<u64>,
    /// The sequence behind which it began, once that is known.
    base: Option<u64>,
    /// It has everything up to here that there is to have.
    complete: u64,
    /// What it has beyond.
    ahead: BTreeSet<u64>,
    /// What its connections took and it does not have yet.
    under_way: BTreeMap<u64, u64>,
    /// It read where a disk was damaged: what cannot be read there is passed over.
    doubtful: bool,
}

impl Progress {
    fn begin(&mut self, after: u64) {
        if self.base.is_none() {
            (self.base, self.complete) = (Some(after), after);
        }
    }

    fn advance(&mut self, channel: &Channel) {
        while self.ahead.remove(&(self.complete + 1)) || channel.may_be_gone(self.complete + 1) {
            self.complete += 1;
        }
    }
}

/// The shadow of all stored events.
#[derive(Default)]
pub struct Shelf {
    events: BTreeMap<Id, Event>,
    channels: BTreeMap<ChannelNumber, Channel>,
    readers: BTreeMap<Reader, Progress>,
    /// What happened, for the reader of a report.
    pub tally: Tally,
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Tally {
    pub stored: u64,
    pub unknown: u64,
    pub subscribed: u64,
    pub read: u64,
    pub again: u64,
    pub lost: u64,
    pub places: u64,
    pub doubtful: u64,
}

impl Shelf {
    /// Of `channel`, only the last `keep` events stay.
    pub fn keeps(&mut self, channel: ChannelNumber, keep: u64) {
        self.channels.entry(channel).or_default().keep = Some(keep);
    }

    /// An event is about to be submitted.
    pub fn publishing(&mut self, id: Id, channel: ChannelNumber, now: u64) {
        self.channels.entry(channel).or_default().tried += 1;
        self.events.insert(id, Event { channel, began: now, stored: None, sequence: None });
    }

    /// The publisher was told how it ended.
    ///
    /// # Errors
    ///
    /// When an event was seen that was certainly not stored.
    pub fn published(&mut self, id: Id, told: Told, now: u64) -> Result<(), String> {
        let Some(event) = self.events.get_mut(&id) else { return Ok(()) };
        match told {
            Told::Done => {
                self.tally.stored += 1;
                event.stored = Some(now);
            }
            Told::NotDone if event.sequence.is_some() => {
                return Err(format!("event {id:x} was sent to readers, but its publisher was told it was not stored"));
            }
            Told::NotDone => {}
            Told::Unknown => self.tally.unknown += 1,
        }
        Ok(())
    }

    /// A reader's subscription has begun: what is stored from now on is sent to it.
    pub fn subscribed(&mut self, reader: Reader, now: u64) {
        self.tally.subscribed += 1;
        let progress = self.readers.entry(reader).or_default();
        progress.since.get_or_insert(now);
        if reader.first {
            progress.begin(0);
        }
    }

    /// Returns whether a reader has ever subscribed, as far as it knows.
    #[must_use]
    pub fn is_known(&self, reader: Reader) -> bool {
        self.readers.get(&reader).is_some_and(|progress| progress.since.is_some())
    }

    /// A reader's connection took an event; the reader has it when it has [arrived](Self::arrived).
    ///
    /// # Errors
    ///
    /// When nobody stored it, or another event had its place.
    pub fn taken(&mut self, reader: Reader, seen: Seen) -> Result<(), String> {
        let Seen { id, sequence, time } = seen;
        let Some(event) = self.events.get_mut(&id) else { return Err(format!("nobody stored event {id:x}")) };
        if event.channel != reader.channel {
            return Err(format!("event {id:x} of channel {} was sent to {reader:?}", event.channel));
        }
        if let Some(other) = event.sequence.replace(sequence).filter(|other| *other != sequence) {
            return Err(format!("event {id:x} has the sequences {other} and {sequence}"));
        }
        let channel = self.channels.entry(reader.channel).or_default();
        let place = *channel.places.entry(sequence).or_insert((id, time));
        if place != (id, time) {
            let (other, then) = place;
            return Err(format!("sequence {sequence} is event {other:x} of {then} and event {id:x} of {time}"));
        }
        let progress = self.readers.entry(reader).or_default();
        progress.begin(sequence - 1);
        *progress.under_way.entry(sequence).or_default() += 1;
        Ok(())
    }

    /// A reader reads where a disk is damaged: what it misses may be missing.
    pub fn doubt(&mut self, reader: Reader) {
        let doubtful = &mut self.readers.entry(reader).or_default().doubtful;
        self.tally.doubtful += u64::from(!std::mem::replace(doubtful, true));
    }

    /// A reader has an event that its connection took.
    ///
    /// # Errors
    ///
    /// When it lacks an earlier one, unless it reads as one of a group.
    pub fn arrived(&mut self, reader: Reader, sequence: u64) -> Result<(), String> {
        self.leave(reader, sequence);
        let (Some(channel), Some(progress)) = (self.channels.get(&reader.channel), self.readers.get_mut(&reader))
        else {
            return Ok(());
        };
        self.tally.read += 1;
        progress.advance(channel);
        if sequence <= progress.complete || !progress.ahead.insert(sequence) {
            self.tally.again += 1;
            return Ok(());
        }
        if !reader.group && !progress.doubtful && sequence > progress.complete + 1 {
            return Err(format!("{reader:?} was sent event {sequence}, and has none after {}", progress.complete));
        }
        progress.advance(channel);
        Ok(())
    }

    /// The connection broke before an event arrived.
    pub fn lost(&mut self, reader: Reader, sequence: u64) {
        self.tally.lost += 1;
        self.leave(reader, sequence);
    }

    fn leave(&mut self, reader: Reader, sequence: u64) {
        let under_way = self.readers.get_mut(&reader).map(|progress| &mut progress.under_way);
        let Some(under_way) = under_way else { return };
        if let Some(count) = under_way.get_mut(&sequence) {
            *count -= 1;
            if *count == 0 {
                under_way.remove(&sequence);
            }
        }
    }

    /// The broker has noted that a reader has everything up to `place`.
    ///
    /// # Errors
    ///
    /// When the reader was not sent all that.
    pub fn noted(&mut self, reader: Reader, place: u64) -> Result<(), String> {
        self.tally.places += 1;
        let (Some(channel), Some(progress)) = (self.channels.get(&reader.channel), self.readers.get_mut(&reader))
        else {
            return Ok(());
        };
        if progress.base.is_none() {
            // Where it began is told by the first event that it is sent.
            return Ok(());
        }
        progress.advance(channel);
        let has = |sequence: &u64| {
            progress.ahead.contains(sequence)
                || progress.under_way.contains_key(sequence)
                || progress.doubtful
                || channel.may_be_gone(*sequence)
        };
        match (progress.complete + 1..=place).find(|sequence| !has(sequence)) {
            Some(lacking) => Err(format!("the place of {reader:?} is {place}, and it was not sent event {lacking}")),
            None => Ok(()),
        }
    }

    /// Returns whether a reader has everything up to `sequence`, or has that one and may miss others.
    #[must_use]
    pub fn has(&mut self, reader: Reader, sequence: u64) -> bool {
        let (Some(channel), Some(progress)) = (self.channels.get(&reader.channel), self.readers.get_mut(&reader))
        else {
            return false;
        };
        progress.advance(channel);
        progress.complete >= sequence || (progress.doubtful && progress.ahead.contains(&sequence))
    }

    /// Returns the sequence of an event, once somebody has read it.
    #[must_use]
    pub fn sequence(&self, id: Id) -> Option<u64> {
        self.events.get(&id)?.sequence
    }

    /// Checks, when every reader has read everything, that nothing is missing and that the order is right.
    ///
    /// # Errors
    ///
    /// The first event that is lost, or stored before what was known to be stored when it was submitted.
    pub fn check_read(&mut self) -> Result<(), String> {
        for (number, channel) in &self.channels {
            let last = channel.places.last_key_value().map_or(0, |(sequence, _)| *sequence);
            if let Some(hole) = (1..=last).find(|at| !channel.places.contains_key(at) && !channel.may_be_gone(*at)) {
                return Err(format!("nobody was sent sequence {hole} of channel {number}, and there are {last}"));
            }
            let mut latest = 0;
            for (sequence, (id, _)) in &channel.places {
                let Some(event) = self.events.get(id) else { continue };
                if event.stored.is_some_and(|stored| stored < latest) {
                    return Err(format!(
                        "event {id:x} is sequence {sequence}, behind one that was submitted when it was stored already"
                    ));
                }
                latest = latest.max(event.began);
            }
            if !channel.places.values().map(|(_, time)| *time).is_sorted() {
                return Err(format!("the events of channel {number} do not lie in the order of their times"));
            }
        }
        self.check_complete()
    }

    fn check_complete(&mut self) -> Result<(), String> {
        for (id, event) in self.events.iter().filter(|(_, event)| event.stored.is_some()) {
            let Some(channel) = self.channels.get(&event.channel) else { continue };
            let Some(sequence) = event.sequence else {
                if channel.keep.is_some() {
                    // It was removed before anybody read it, or is lost: what is there has no holes.
                    continue;
                }
                return Err(format!("event {id:x} is lost: it was stored, and nobody was sent it"));
            };
            let readers = self.readers.iter_mut();
            let readers = readers.filter(|(reader, progress)| reader.channel == event.channel && !progress.doubtful);
            for (reader, progress) in readers {
                progress.advance(channel);
                let wants = reader.first || progress.since.is_some_and(|since| since < event.began);
                let from = progress.base.map_or(1, |base| base + 1);
                if wants && (sequence < from || sequence > progress.complete) && !channel.may_be_gone(sequence) {
                    return Err(format!("{reader:?} was never sent event {id:x}, sequence {sequence}"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: Reader = Reader { channel: 0, number: 1, group: false, first: true };
    const GROUP: Reader = Reader { channel: 0, number: 2, group: true, first: true };

    /// A shelf with events 1 to `count` of channel 0, the event `i` with sequence `i` and stored at time `10 * i`.
    fn stored(count: u64) -> Shelf {
        let mut shelf = Shelf::default();
        for id in 1..=count {
            shelf.publishing(id, 0, 10 * id);
            shelf.published(id, Told::Done, 10 * id + 1).unwrap();
        }
        shelf
    }

    fn seen(sequence: u64) -> Seen {
        Seen { id: sequence, sequence, time: sequence }
    }

    fn read(shelf: &mut Shelf, reader: Reader, sequence: u64) -> Result<(), String> {
        shelf.taken(reader, seen(sequence))?;
        shelf.arrived(reader, sequence)
    }

    #[test]
    fn one_client_reads_in_order_and_perhaps_again() {
        let mut shelf = stored(4);
        shelf.subscribed(ALONE, 0);
        for sequence in [1, 2, 1, 2, 3, 4] {
            read(&mut shelf, ALONE, sequence).unwrap();
        }
        shelf.check_read().unwrap();
        let mut shelf = stored(4);
        shelf.subscribed(ALONE, 0);
        read(&mut shelf, ALONE, 1).unwrap();
        assert!(read(&mut shelf, ALONE, 3).is_err(), "it skips one");
    }

    #[test]
    fn members_of_a_group_read_in_any_order_and_miss_nothing() {
        let mut shelf = stored(3);
        shelf.subscribed(GROUP, 0);
        for sequence in [2, 3] {
            read(&mut shelf, GROUP, sequence).unwrap();
        }
        assert!(shelf.check_read().is_err(), "the first is missing");
        read(&mut shelf, GROUP, 1).unwrap();
        shelf.check_read().unwrap();
    }

    #[test]
    fn a_place_lies_behind_what_was_sent_and_not_lost() {
        let mut shelf = stored(3);
        shelf.subscribed(ALONE, 0);
        read(&mut shelf, ALONE, 1).unwrap();
        shelf.taken(ALONE, seen(2)).unwrap();
        shelf.noted(ALONE, 2).unwrap();
        assert!(shelf.noted(ALONE, 3).is_err());
        shelf.lost(ALONE, 2);
        assert!(shelf.noted(ALONE, 2).is_err());
    }

    #[test]
    fn an_event_has_one_sequence_and_a_sequence_one_event() {
        let mut shelf = stored(3);
        read(&mut shelf, ALONE, 1).unwrap();
        assert!(shelf.taken(ALONE, Seen { id: 1, ..seen(2) }).is_err());
        assert!(shelf.taken(ALONE, Seen { id: 2, ..seen(1) }).is_err());
        assert!(shelf.taken(ALONE, seen(9)).is_err(), "nobody stored it");
        assert!(shelf.taken(Reader { channel: 1, ..ALONE }, seen(2)).is_err());
    }

    #[test]
    fn what_was_stored_before_another_was_submitted_lies_before_it() {
        let mut shelf = stored(2);
        for (id, sequence) in [(2, 1), (1, 2)] {
            shelf.taken(ALONE, Seen { id, sequence, time: 1 }).unwrap();
            shelf.arrived(ALONE, sequence).unwrap();
        }
        assert!(shelf.check_read().is_err());
    }

    #[test]
    fn only_what_a_channel_does_not_keep_may_be_missing() {
        for (keep, fits) in [(2, true), (3, false)] {
            let mut shelf = stored(4);
            shelf.keeps(0, keep);
            shelf.subscribed(ALONE, 0);
            assert_eq!(read(&mut shelf, ALONE, 3).is_ok(), fits, "two are missing");
        }
    }

    #[test]
    fn who_comes_later_reads_what_comes_after() {
        let late = Reader { first: false, ..ALONE };
        let mut shelf = stored(3);
        shelf.subscribed(late, 25);
        read(&mut shelf, ALONE, 1).unwrap();
        read(&mut shelf, ALONE, 2).unwrap();
        read(&mut shelf, ALONE, 3).unwrap();
        assert!(shelf.check_read().is_err(), "it came before the third");
        read(&mut shelf, late, 3).unwrap();
        shelf.check_read().unwrap();
    }

    #[test]
    fn an_event_that_nobody_reads_is_lost_and_one_that_was_refused_is_not_read() {
        let mut shelf = stored(1);
        assert!(shelf.check_read().is_err());
        read(&mut shelf, ALONE, 1).unwrap();
        shelf.check_read().unwrap();
        assert!(shelf.published(1, Told::NotDone, 9).is_err());
    }
}
