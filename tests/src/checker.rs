//! Judges a history: nothing acknowledged is lost, nothing is delivered that was never sent, and order and
//! receive counts are as promised.
//!
//! The checker knows only what clients know. It never accuses the server of what could have been otherwise:
//! a send or a settlement without an answer may have happened or not.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::history::{Event, Settlement};

/// Something in a history that cannot happen on a broker that keeps its promises.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A message was acknowledged and nobody ever acknowledged its receipt, although everything was drained.
    #[error("{id} was stored, and is gone without having been acknowledged by a receiver")]
    Lost {
        /// The message.
        id: String,
    },
    /// A message came that nobody sent, or not to this channel.
    #[error("{id} came from {channel}, where nobody sent it")]
    NeverSent {
        /// The message.
        id: String,
        /// The channel that it came from.
        channel: String,
    },
    /// A message came whose sender had been told that it was refused.
    #[error("{id} came although it had been refused")]
    Refused {
        /// The message.
        id: String,
    },
    /// A message came with another body.
    #[error("{id} came with a body that is not the one sent")]
    Altered {
        /// The message.
        id: String,
    },
    /// A message was delivered again after its acknowledgement had taken effect.
    #[error("{id} came again, with sequence {sequence}, after it had been acknowledged")]
    Resurrected {
        /// The message.
        id: String,
        /// The sequence with which it came.
        sequence: u64,
    },
    /// Two messages came under one sequence.
    #[error("{id} and {other} came under sequence {sequence}")]
    SharedSequence {
        /// The message that came later.
        id: String,
        /// The message that came first.
        other: String,
        /// The sequence.
        sequence: u64,
    },
    /// The receive count does not rise from copy to copy of a message, or changed within a copy.
    #[error("{id} came with receive count {later} at sequence {sequence}, after {earlier} at {before}")]
    ReceiveCount {
        /// The message.
        id: String,
        /// The sequence of the copy.
        sequence: u64,
        /// Its receive count.
        later: i32,
        /// The sequence of an earlier copy, or the same.
        before: u64,
        /// The receive count of that one.
        earlier: i32,
    },
    /// A message was sent after another one and stored before it.
    #[error("{id} was stored at {sequence}, behind which it belongs: {reason}")]
    Order {
        /// The message.
        id: String,
        /// Its sequence.
        sequence: u64,
        /// What says that it should be later.
        reason: String,
    },
    /// The only reader of a channel got first deliveries out of order.
    #[error("{id} at {sequence} was handed out for the first time after {after}")]
    FirstDelivery {
        /// The message.
        id: String,
        /// Its sequence.
        sequence: u64,
        /// A higher sequence handed out earlier.
        after: u64,
    },
    /// A message was handed out while somebody held it.
    #[error("{id} at {sequence} was handed to {receiver} while {holder} held it")]
    TwoHolders {
        /// The message.
        id: String,
        /// Its sequence.
        sequence: u64,
        /// Who got it.
        receiver: u64,
        /// Who held it.
        holder: u64,
    },
}

/// What the checker may assume about a history.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Channels that never had two receivers at the same time.
    pub single_reader: BTreeSet<String>,
    /// Whether every channel was emptied at the end, by receivers that acknowledged all that came.
    pub drained: bool,
}

/// Returns everything in `events` that cannot happen.
#[must_use]
pub fn check(events: &[Event], rules: &Rules) -> Vec<Violation> {
    let mut checker = Checker { rules: rules.clone(), ..Checker::default() };
    for event in events {
        checker.event(event);
    }
    checker.finish()
}

#[derive(Debug)]
struct Sent {
    sender: u64,
    channel: String,
    body: Bytes,
    acknowledged: bool,
    refused: bool,
    /// A receiver has at least tried to acknowledge it.
    ack_tried: bool,
    /// An acknowledgement has taken effect.
    gone: bool,
}

type Place = (String, u64);

#[derive(Default)]
struct Checker {
    rules: Rules,
    sent: BTreeMap<String, Sent>,
    order: Vec<String>,
    /// The message at each place, and its receive count there.
    places: BTreeMap<Place, (String, i32)>,
    holders: BTreeMap<Place, u64>,
    departed: BTreeSet<u64>,
    unconfirmed: BTreeMap<u64, Vec<Place>>,
    handed_out: BTreeMap<(String, u64), u64>,
    /// Per channel: the sends that were answered, to find the floor of later ones.
    answered: BTreeMap<String, Vec<String>>,
    /// Per message: how many answered sends of its channel preceded it.
    preceded_by: BTreeMap<String, usize>,
    violations: Vec<Violation>,
}

impl Checker {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Sending { sender, id, channel, body } => self.sending(*sender, id, channel, body),
            Event::Sent { id } => {
                if let Some(sent) = self.sent.get_mut(id) {
                    sent.acknowledged = true;
                    self.answered.entry(sent.channel.clone()).or_default().push(id.clone());
                }
            }
            Event::Refused { id } => {
                if let Some(sent) = self.sent.get_mut(id) {
                    sent.refused = true;
                }
            }
            Event::Delivered { receiver, channel, id, body, sequence, receive_count } => {
                self.delivered(*receiver, id, body, (channel.clone(), *sequence), *receive_count);
            }
            Event::Settling { receiver, channel, sequence, settlement } => {
                self.settling(*receiver, (channel.clone(), *sequence), *settlement);
            }
            Event::Confirmed { receiver } => self.confirmed(*receiver),
            Event::Leaving { receiver } => {
                self.departed.insert(*receiver);
            }
            Event::Killed => self.holders.clear(),
        }
    }

    fn sending(&mut self, sender: u64, id: &str, channel: &str, body: &Bytes) {
        let sent = Sent {
            sender,
            channel: channel.into(),
            body: body.clone(),
            acknowledged: false,
            refused: false,
            ack_tried: false,
            gone: false,
        };
        let before = self.sent.insert(id.into(), sent);
        assert!(before.is_none(), "the test used the id {id} twice");
        self.preceded_by.insert(id.into(), self.answered.get(channel).map_or(0, Vec::len));
        self.order.push(id.into());
    }

    fn delivered(&mut self, receiver: u64, id: &str, body: &Bytes, place: Place, receive_count: i32) {
        let sequence = place.1;
        let id_text = || id.to_owned();
        match self.sent.get(id).filter(|sent| sent.channel == place.0) {
            None => self.violations.push(Violation::NeverSent { id: id_text(), channel: place.0.clone() }),
            Some(sent) => {
                if sent.refused {
                    self.violations.push(Violation::Refused { id: id_text() });
                }
                if sent.body != body {
                    self.violations.push(Violation::Altered { id: id_text() });
                }
                if sent.gone {
                    self.violations.push(Violation::Resurrected { id: id_text(), sequence });
                }
            }
        }
        match self.places.get(&place) {
            Some((other, _)) if other != id => {
                let other = other.clone();
                self.violations.push(Violation::SharedSequence { id: id_text(), other, sequence });
            }
            Some((_, earlier)) if *earlier != receive_count => {
                let (earlier, later) = (*earlier, receive_count);
                let counts = Violation::ReceiveCount { id: id_text(), sequence, later, before: sequence, earlier };
                self.violations.push(counts);
            }
            Some(_) => {}
            None => {
                self.places.insert(place.clone(), (id_text(), receive_count));
            }
        }
        self.hand_out(receiver, id, &place, receive_count);
    }

    fn hand_out(&mut self, receiver: u64, id: &str, place: &Place, receive_count: i32) {
        let (channel, sequence) = place;
        let holder = self.holders.insert(place.clone(), receiver).filter(|holder| !self.departed.contains(holder));
        if let Some(holder) = holder {
            let two = Violation::TwoHolders { id: id.to_owned(), sequence: *sequence, receiver, holder };
            self.violations.push(two);
        }
        if receive_count == 1 && self.rules.single_reader.contains(channel) {
            let last = self.handed_out.entry((channel.clone(), receiver)).or_default();
            if *last >= *sequence {
                let first = Violation::FirstDelivery { id: id.to_owned(), sequence: *sequence, after: *last };
                self.violations.push(first);
            }
            *last = *sequence;
        }
    }

    fn settling(&mut self, receiver: u64, place: Place, settlement: Settlement) {
        self.holders.remove(&place);
        if settlement == Settlement::Ack {
            let id = self.places.get(&place).map(|(id, _)| id.clone());
            if let Some(sent) = id.and_then(|id| self.sent.get_mut(&id)) {
                sent.ack_tried = true;
            }
            self.unconfirmed.entry(receiver).or_default().push(place);
        }
    }

    fn confirmed(&mut self, receiver: u64) {
        for place in self.unconfirmed.remove(&receiver).unwrap_or_default() {
            let id = self.places.get(&place).map(|(id, _)| id.clone());
            if let Some(sent) = id.and_then(|id| self.sent.get_mut(&id)) {
                sent.gone = true;
            }
        }
    }

    fn finish(mut self) -> Vec<Violation> {
        self.receive_counts();
        self.orders();
        if self.rules.drained {
            for (id, sent) in &self.sent {
                if sent.acknowledged && !sent.ack_tried {
                    self.violations.push(Violation::Lost { id: id.clone() });
                }
            }
        }
        self.violations
    }

    /// Each copy of a message has a higher sequence and a receive count that is higher.
    fn receive_counts(&mut self) {
        let mut last: BTreeMap<&str, (u64, i32)> = BTreeMap::new();
        // The places of one channel come in the order of their sequences.
        for ((_, sequence), (id, later)) in &self.places {
            if let Some((before, earlier)) = last.insert(id, (*sequence, *later))
                && earlier >= *later
            {
                let (sequence, later, id) = (*sequence, *later, id.clone());
                self.violations.push(Violation::ReceiveCount { id, sequence, later, before, earlier });
            }
        }
    }

    fn orders(&mut self) {
        let first: BTreeMap<&str, u64> = self
            .places
            .iter()
            .filter(|(_, (_, count))| *count == 1)
            .map(|((_, sequence), (id, _))| (id.as_str(), *sequence))
            .collect();
        let floors = self.floors(&first);
        let mut last: BTreeMap<(u64, &str), (u64, &str)> = BTreeMap::new();
        let mut found = Vec::new();
        for id in &self.order {
            let (Some(sent), Some(&sequence)) = (self.sent.get(id), first.get(id.as_str())) else { continue };
            if let Some((floor, answered)) = floors.get(id.as_str()).filter(|(floor, _)| *floor >= sequence) {
                let reason = format!("{answered}, at {floor}, had been answered before this was sent");
                found.push(Violation::Order { id: id.clone(), sequence, reason });
            }
            let key = (sent.sender, sent.channel.as_str());
            if let Some((before, other)) = last.insert(key, (sequence, id))
                && before >= sequence
            {
                let reason = format!("its sender had sent {other}, at {before}, before it");
                found.push(Violation::Order { id: id.clone(), sequence, reason });
            }
        }
        self.violations.append(&mut found);
    }

    /// Finds for each message the highest first sequence among those answered before it was sent.
    fn floors<'a>(&'a self, first: &BTreeMap<&'a str, u64>) -> BTreeMap<&'a str, (u64, &'a str)> {
        // Per channel, what the floor is behind each number of answers.
        let mut floors: BTreeMap<&str, Vec<Option<(u64, &str)>>> = BTreeMap::new();
        for (channel, answered) in &self.answered {
            let mut floor = None;
            let behind = floors.entry(channel).or_insert_with(|| vec![None]);
            for id in answered {
                floor = floor.max(first.get(id.as_str()).map(|sequence| (*sequence, id.as_str())));
                behind.push(floor);
            }
        }
        let mut found = BTreeMap::new();
        for (id, preceded_by) in &self.preceded_by {
            let behind = self.sent.get(id).and_then(|sent| floors.get(sent.channel.as_str()));
            if let Some(floor) = behind.and_then(|behind| *behind.get(*preceded_by)?) {
                found.insert(id.as_str(), floor);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sending(sender: u64, id: &str) -> Event {
        Event::Sending { sender, id: id.into(), channel: "q".into(), body: Bytes::from(id.to_owned()) }
    }

    fn sent(id: &str) -> Event {
        Event::Sent { id: id.into() }
    }

    fn delivered(receiver: u64, id: &str, sequence: u64, receive_count: i32) -> Event {
        let body = Bytes::from(id.to_owned());
        Event::Delivered { receiver, channel: "q".into(), id: id.into(), body, sequence, receive_count }
    }

    fn settling(receiver: u64, sequence: u64, settlement: Settlement) -> Event {
        Event::Settling { receiver, channel: "q".into(), sequence, settlement }
    }

    fn ack(receiver: u64, sequence: u64) -> Event {
        settling(receiver, sequence, Settlement::Ack)
    }

    fn verdict(events: &[Event]) -> Vec<Violation> {
        check(events, &Rules { single_reader: BTreeSet::from(["q".into()]), drained: true })
    }

    /// Two messages; one is nacked, given back by a kill, and acknowledged at last.
    fn honest() -> Vec<Event> {
        vec![
            sending(1, "a"),
            sent("a"),
            sending(1, "b"),
            sent("b"),
            delivered(10, "a", 1, 1),
            delivered(10, "b", 2, 1),
            settling(10, 1, Settlement::Nack),
            ack(10, 2),
            Event::Confirmed { receiver: 10 },
            delivered(10, "a", 3, 2),
            Event::Killed,
            delivered(11, "a", 3, 2),
            ack(11, 3),
            Event::Confirmed { receiver: 11 },
        ]
    }

    #[test]
    fn an_honest_history_passes() {
        assert_eq!(verdict(&honest()), []);
    }

    #[test]
    fn outcomes_that_nobody_knows_accuse_nobody() {
        // A send without an answer that was stored, one that was not, and an ack that a kill overtook.
        let events = [
            sending(1, "a"),
            sending(1, "b"),
            delivered(10, "a", 1, 1),
            ack(10, 1),
            Event::Killed,
            delivered(11, "a", 1, 1),
            ack(11, 1),
        ];
        assert_eq!(verdict(&events), []);
    }

    #[test]
    fn what_was_stored_and_never_came_is_lost() {
        assert_eq!(verdict(&[sending(1, "a"), sent("a")]), [Violation::Lost { id: "a".into() }]);
    }

    #[test]
    fn what_came_and_vanished_without_an_ack_is_lost() {
        let events = [sending(1, "a"), sent("a"), delivered(10, "a", 1, 1), Event::Killed];
        assert_eq!(verdict(&events), [Violation::Lost { id: "a".into() }]);
        let mut events = honest();
        events.truncate(9);
        assert_eq!(verdict(&events), [Violation::Lost { id: "a".into() }]);
    }

    #[test]
    fn what_nobody_sent_is_found() {
        let never = Violation::NeverSent { id: "ghost".into(), channel: "q".into() };
        assert_eq!(verdict(&[delivered(10, "ghost", 1, 1)]), [never]);
        let mut events = honest();
        events[4] = Event::Delivered {
            receiver: 10,
            channel: "elsewhere".into(),
            id: "a".into(),
            body: "a".into(),
            sequence: 1,
            receive_count: 1,
        };
        let elsewhere = Violation::NeverSent { id: "a".into(), channel: "elsewhere".into() };
        assert!(verdict(&events).contains(&elsewhere));
    }

    #[test]
    fn what_was_refused_does_not_come() {
        let events = [sending(1, "a"), Event::Refused { id: "a".into() }, delivered(10, "a", 1, 1), ack(10, 1)];
        assert_eq!(verdict(&events), [Violation::Refused { id: "a".into() }]);
    }

    #[test]
    fn another_body_is_found() {
        let mut events = honest();
        let Event::Delivered { body, .. } = &mut events[5] else { panic!("a delivery") };
        *body = Bytes::from_static(b"B");
        assert_eq!(verdict(&events), [Violation::Altered { id: "b".into() }]);
    }

    #[test]
    fn an_ack_that_took_effect_is_final() {
        let mut events = honest();
        events.push(delivered(12, "b", 2, 1));
        events.push(ack(12, 2));
        assert_eq!(verdict(&events), [Violation::Resurrected { id: "b".into(), sequence: 2 }]);
    }

    #[test]
    fn a_sequence_names_one_message() {
        let events = [
            sending(1, "a"),
            sending(2, "b"),
            delivered(10, "a", 1, 1),
            ack(10, 1),
            delivered(11, "b", 1, 1),
            ack(11, 1),
        ];
        let shared = Violation::SharedSequence { id: "b".into(), other: "a".into(), sequence: 1 };
        assert_eq!(verdict(&events), [shared]);
    }

    #[test]
    fn receive_counts_rise_from_copy_to_copy_and_not_within_one() {
        let base = [sending(1, "a"), sent("a"), delivered(10, "a", 1, 2), settling(10, 1, Settlement::Nack)];
        for (sequence, count, wrong) in [(1, 1, true), (1, 2, false), (2, 1, true), (2, 2, true), (2, 3, false)] {
            let mut events = base.to_vec();
            events.extend([delivered(10, "a", sequence, count), ack(10, sequence)]);
            let found = verdict(&events);
            let counts = found.iter().filter(|violation| matches!(violation, Violation::ReceiveCount { .. }));
            assert_eq!(counts.count(), usize::from(wrong), "{sequence} {count}: {found:?}");
        }
    }

    #[test]
    fn a_message_stored_twice_is_found() {
        // As when a retried batch is applied a second time.
        let events =
            [sending(1, "a"), sent("a"), delivered(10, "a", 1, 1), delivered(10, "a", 2, 1), ack(10, 1), ack(10, 2)];
        assert!(matches!(verdict(&events)[..], [Violation::ReceiveCount { .. }]));
    }

    #[test]
    fn sends_that_follow_an_answer_are_stored_behind_it() {
        let mut events = vec![sending(1, "a"), sent("a"), sending(2, "b"), sent("b")];
        events.extend([delivered(10, "b", 1, 1), delivered(10, "a", 2, 1), ack(10, 1), ack(10, 2)]);
        assert!(matches!(&verdict(&events)[..], [Violation::Order { id, .. }] if id == "b"));
        // Without the answer between them either order is right.
        events.remove(1);
        assert_eq!(verdict(&events), []);
    }

    #[test]
    fn one_sender_keeps_its_order() {
        let mut events = vec![sending(1, "a"), sending(1, "b")];
        events.extend([delivered(10, "b", 1, 1), delivered(10, "a", 2, 1), ack(10, 1), ack(10, 2)]);
        assert!(matches!(&verdict(&events)[..], [Violation::Order { id, .. }] if id == "b"));
    }

    #[test]
    fn first_deliveries_to_the_only_reader_ascend() {
        let events = [
            sending(1, "a"),
            sending(1, "b"),
            delivered(10, "b", 2, 1),
            delivered(10, "a", 1, 1),
            ack(10, 1),
            ack(10, 2),
        ];
        let late = Violation::FirstDelivery { id: "a".into(), sequence: 1, after: 2 };
        assert_eq!(verdict(&events), [late]);
        let rules = Rules { drained: true, ..Rules::default() };
        assert_eq!(check(&events, &rules), [], "several readers may see them in any order");
    }

    #[test]
    fn a_message_has_one_holder() {
        let events = |between: Option<Event>| {
            let mut events = vec![sending(1, "a"), delivered(10, "a", 1, 1)];
            events.extend(between);
            events.extend([delivered(11, "a", 1, 1), ack(11, 1)]);
            events
        };
        let two = Violation::TwoHolders { id: "a".into(), sequence: 1, receiver: 11, holder: 10 };
        assert_eq!(verdict(&events(None)), [two]);
        assert_eq!(verdict(&events(Some(Event::Leaving { receiver: 10 }))), []);
        assert_eq!(verdict(&events(Some(Event::Killed))), []);
    }
}
