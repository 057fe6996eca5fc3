//! What the clients of the broker know of every message: where it may be now, by what they were told.
//!
//! A message is in one place at a time, because every settlement is one atomic operation. An outcome that is not known
//! leaves several places possible; a later sight of the message leaves one. What is seen outside of them is a failure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Names a message: its producer in the upper half, a number in the lower.
pub type Id = u64;
/// Names a channel of the workload.
pub type ChannelNumber = usize;

/// Where a message may be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spot {
    /// Nowhere: never stored, or settled.
    Gone,
    /// In a channel.
    At {
        /// The channel.
        channel: ChannelNumber,
        /// The receive count that the next hand-out shows.
        count: u32,
        /// Its policy does not count any more.
        cleared: bool,
    },
}

impl fmt::Debug for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("gone"),
            Self::At { channel, count, cleared } => {
                write!(f, "channel {channel} count {count}{}", if *cleared { " cleared" } else { "" })
            }
        }
    }
}

/// Who leads where: a node in a term.
pub type Leadership = (usize, u64);

/// What was sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// Where to.
    pub channel: ChannelNumber,
    /// True nanoseconds when it was submitted.
    pub at: u64,
    /// Seconds of delay.
    pub delay: u64,
    /// Seconds to live once it is visible; 0 for ever.
    pub expiration: u64,
    /// Hand-outs after which it is dead; 0 without limit.
    pub max_receive: u32,
    /// The channel that it goes to when it is dead.
    pub dead_letter: Option<ChannelNumber>,
    /// Bytes of body behind its id.
    pub size: usize,
}

struct Message {
    sent: Sent,
    /// The sender was told that it is stored.
    acked: bool,
    possible: BTreeSet<Spot>,
    /// Changes with everything that is tried or seen.
    version: u64,
    /// Settlements that were tried.
    tries: u64,
    /// Where it was seen, in order.
    seen: Vec<Spot>,
    /// In whose hands, and under which leadership it was handed out.
    holder: Option<Leadership>,
    /// True nanoseconds from which it may have expired.
    expires: u64,
    /// True nanoseconds before which it may not be seen.
    due: u64,
    /// The sequence of its first publish, once seen.
    sequence: Option<u64>,
}

/// One hand-out, as a client saw it.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// The message.
    pub id: Id,
    /// The channel of the workload.
    pub channel: ChannelNumber,
    /// The channel is never deleted, so that a sequence is one message for ever.
    pub lasting: bool,
    /// Its sequence there.
    pub sequence: u64,
    /// The receive count that was shown.
    pub count: u32,
    /// True nanoseconds.
    pub now: u64,
    /// When it expires, in cluster time; 0 = never.
    pub expires_at: u64,
    /// Cluster time at which it may not have expired yet.
    pub fresh_at: u64,
}

/// How a client tries to settle a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settle {
    /// It was processed.
    Ack,
    /// It was not.
    Nack,
    /// It is sent again, to this channel.
    Requeue(ChannelNumber),
}

/// One settlement of one message that is under way.
#[derive(Debug)]
pub struct Trying {
    id: Id,
    version: u64,
    tries: u64,
    sights: usize,
    before: BTreeSet<Spot>,
    after: BTreeSet<Spot>,
}

/// How an operation ended for the one who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It was done.
    Done,
    /// It was certainly not done.
    NotDone,
    /// It may have been done.
    Unknown,
}

/// The shadow of everything that was sent.
#[derive(Default)]
pub struct Oracle {
    messages: BTreeMap<Id, Message>,
    /// Which message has a sequence of a channel.
    places: BTreeMap<(ChannelNumber, u64), Id>,
    /// The greatest sequence that was handed out for the first time, per channel with a single reader.
    first: BTreeMap<ChannelNumber, u64>,
    /// What happened, for the reader.
    pub tally: Tally,
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Tally {
    pub stored: u64,
    pub unknown: u64,
    pub not_done: u64,
    pub delivered: u64,
    pub again: u64,
    pub acked: u64,
    pub nacked: u64,
    pub requeued: u64,
    pub returned: u64,
    pub peeked: u64,
    pub purged: u64,
    pub drained: u64,
    /// Blocks of the index that left the memory of a node in its last life, and that came back.
    pub left_memory: u64,
    pub came_back: u64,
}

/// Returns the body of a message.
#[must_use]
pub fn body(id: Id, size: usize) -> Vec<u8> {
    let mut body = id.to_le_bytes().to_vec();
    body.resize(8 + size, u8::try_from(id % 251).unwrap_or(0));
    body
}

/// Returns the message that has this body; nothing when no message has.
#[must_use]
pub fn id_of(bytes: &[u8]) -> Option<Id> {
    let id = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    (bytes == body(id, bytes.len() - 8)).then_some(id)
}

impl Oracle {
    /// A message is about to be submitted.
    pub fn sending(&mut self, id: Id, sent: Sent) {
        let here = Spot::At { channel: sent.channel, count: 1, cleared: false };
        let message = Message {
            sent,
            acked: false,
            possible: BTreeSet::from([Spot::Gone, here]),
            version: 0,
            tries: 0,
            seen: Vec::new(),
            holder: None,
            expires: expires(sent.at, sent.delay, sent.expiration),
            due: sent.at + sent.delay * 985_000_000,
            sequence: None,
        };
        self.messages.insert(id, message);
    }

    /// The sender was told how it ended.
    ///
    /// # Errors
    ///
    /// When a message was seen that was certainly not stored.
    pub fn sent(&mut self, id: Id, told: Told) -> Result<(), String> {
        let Some(message) = self.messages.get_mut(&id) else { return Ok(()) };
        match told {
            Told::Done => {
                self.tally.stored += 1;
                message.acked = true;
                if message.version == 0 {
                    message.possible.remove(&Spot::Gone);
                }
            }
            Told::NotDone => {
                self.tally.not_done += 1;
                if !message.seen.is_empty() {
                    return Err(format!("message {id:x} was seen, but its sender was told that it was not stored"));
                }
                message.possible = BTreeSet::from([Spot::Gone]);
            }
            Told::Unknown => self.tally.unknown += 1,
        }
        Ok(())
    }

    /// A message was handed out under `leadership`.
    ///
    /// # Errors
    ///
    /// When it cannot be there, or not now, or not a second time.
    pub fn delivered(&mut self, sight: &Sight, leadership: Leadership) -> Result<(), String> {
        let id = sight.id;
        self.seen(sight)?;
        let Some(message) = self.messages.get_mut(&id) else { return Ok(()) };
        if message.holder == Some(leadership) {
            return Err(format!(
                "message {id:x} was handed out twice by node {} in term {}",
                leadership.0, leadership.1
            ));
        }
        message.holder = Some(leadership);
        let matches = |spot: &Spot| matches!(spot, Spot::At { channel, count, .. } if *channel == sight.channel && *count == sight.count);
        let left: BTreeSet<Spot> = message.possible.iter().copied().filter(matches).collect();
        let Some(spot) = left.first().copied() else {
            return Err(format!(
                "message {id:x} was handed out in channel {} with count {}, and can only be: {:?}",
                sight.channel, sight.count, message.possible
            ));
        };
        self.tally.delivered += 1;
        self.tally.again += u64::from(!message.seen.is_empty());
        message.seen.push(spot);
        message.version += 1;
        message.possible = left;
        if message.sequence.is_none()
            && message.seen.len() == 1
            && sight.count == 1
            && sight.channel == message.sent.channel
        {
            message.sequence = Some(sight.sequence);
        }
        Ok(())
    }

    /// A message was handed out to the only reader of its channel: what was never handed out before comes in order.
    ///
    /// # Errors
    ///
    /// When a later one was handed out before.
    pub fn in_order(&mut self, sight: &Sight) -> Result<(), String> {
        let Some(message) = self.messages.get(&sight.id) else { return Ok(()) };
        if message.seen.len() > 1 {
            return Ok(());
        }
        let greatest = self.first.entry(sight.channel).or_default();
        if sight.sequence < *greatest {
            let (id, sequence) = (sight.id, sight.sequence);
            return Err(format!(
                "message {id:x}, sequence {sequence}, came for the first time after sequence {greatest}"
            ));
        }
        *greatest = sight.sequence;
        Ok(())
    }

    /// A message was seen, taken or not.
    ///
    /// # Errors
    ///
    /// When it was never sent, is too early or too late, or another message had its sequence.
    pub fn seen(&mut self, sight: &Sight) -> Result<(), String> {
        let id = sight.id;
        let Some(message) = self.messages.get(&id) else { return Err(format!("nobody sent message {id:x}")) };
        let other = *self.places.entry((sight.channel, sight.sequence)).or_insert(id);
        if sight.lasting && other != id {
            return Err(format!("messages {other:x} and {id:x} had the same sequence {}", sight.sequence));
        }
        if sight.now < message.due {
            let early = message.due - sight.now;
            return Err(format!("message {id:x} with a delay of {} s came {early} ns early", message.sent.delay));
        }
        if sight.expires_at != 0 && sight.expires_at < sight.fresh_at {
            return Err(format!("message {id:x} had expired {} ns before", sight.fresh_at - sight.expires_at));
        }
        if message.sent.expiration == 0 && sight.expires_at != 0 {
            return Err(format!("message {id:x} expires, and was sent without an expiration"));
        }
        Ok(())
    }

    /// Its holder has it no more, and has not settled it.
    pub fn released(&mut self, id: Id, leadership: Leadership) {
        if let Some(message) = self.messages.get_mut(&id)
            && message.holder == Some(leadership)
        {
            message.holder = None;
            self.tally.returned += 1;
        }
    }

    /// A settlement is about to be submitted by the one who holds the message.
    pub fn settling(&mut self, id: Id, settle: Settle, now: u64, leadership: Leadership) -> Option<Trying> {
        let message = self.messages.get_mut(&id)?;
        if message.holder == Some(leadership) {
            message.holder = None;
        }
        let before = message.possible.clone();
        let after: BTreeSet<Spot> = before.iter().map(|spot| message.sent.after(*spot, settle)).collect();
        if matches!(settle, Settle::Requeue(_)) {
            message.expires = message.expires.min(expires(now, 0, message.sent.expiration));
        }
        message.version += 1;
        message.tries += 1;
        message.possible.extend(&after);
        let (version, tries) = (message.version, message.tries);
        Some(Trying { id, version, tries, sights: message.seen.len(), before, after })
    }

    /// The one who settled was told how it ended.
    ///
    /// # Errors
    ///
    /// When that contradicts what was seen in between.
    pub fn settled(&mut self, trying: Trying, told: Told) -> Result<(), String> {
        let Some(message) = self.messages.get_mut(&trying.id) else { return Ok(()) };
        // What another holder settled meanwhile explains every sight.
        let next = message.seen.get(trying.sights).filter(|_| message.tries == trying.tries);
        let id = trying.id;
        match told {
            Told::Done => {
                if let Some(spot) = next.filter(|spot| !trying.after.contains(spot)) {
                    return Err(format!("message {id:x} was settled, and handed out as {spot:?} meanwhile"));
                }
                if message.version == trying.version {
                    message.possible = trying.after;
                }
            }
            Told::NotDone => {
                if let Some(spot) = next.filter(|spot| !trying.before.contains(spot)) {
                    return Err(format!("message {id:x} was certainly not settled, but handed out as {spot:?}"));
                }
                if message.version == trying.version {
                    message.possible = trying.before;
                }
            }
            Told::Unknown => {}
        }
        Ok(())
    }

    /// A group started again, and its leader read a wall clock: cluster time may have jumped forward, so that what was
    /// sent before may come due, and expire, at any moment.
    pub fn time_jumped(&mut self) {
        for message in self.messages.values_mut() {
            message.due = 0;
            message.expires = message.expires.min(if message.sent.expiration > 0 { 0 } else { u64::MAX });
        }
    }

    /// Whatever is in `channel` may vanish from now on, until [`Self::vanished`].
    pub fn vanishing(&mut self, channel: ChannelNumber) {
        for message in self.messages.values_mut() {
            let there = |spot: &Spot| matches!(spot, Spot::At { channel: at, .. } if *at == channel);
            if message.possible.iter().any(there) && message.possible.insert(Spot::Gone) {
                message.version += 1;
            }
        }
    }

    /// Returns whether a message may have expired.
    fn may_have_expired(message: &Message, now: u64) -> bool {
        message.sent.expiration > 0 && now >= message.expires
    }

    /// Returns the longest delay of any message, in seconds.
    #[must_use]
    pub fn longest_delay(&self) -> u64 {
        self.messages.values().map(|message| message.sent.delay).max().unwrap_or(0)
    }

    /// Checks, after everything was drained, that nothing that must be somewhere is missing, and the order of
    /// sequences.
    ///
    /// # Errors
    ///
    /// The first message that is lost, or out of order.
    pub fn check_drained(&self, now: u64) -> Result<(), String> {
        for (id, message) in &self.messages {
            if !message.possible.contains(&Spot::Gone) && !Self::may_have_expired(message, now) {
                return Err(format!(
                    "message {id:x} is lost: it must be {:?}; stored {}, seen {:?}, {:?}",
                    message.possible, message.acked, message.seen, message.sent
                ));
            }
        }
        let mut last: BTreeMap<(u64, ChannelNumber), (u64, Id)> = BTreeMap::new();
        for (id, message) in self.messages.iter().filter(|(_, message)| message.sent.delay == 0) {
            let Some(sequence) = message.sequence else { continue };
            let before = last.insert((id >> 32, message.sent.channel), (sequence, *id));
            if let Some((_, other)) = before.filter(|(before, _)| *before >= sequence) {
                return Err(format!(
                    "message {id:x} was stored before {other:x}, which its producer had sent before it"
                ));
            }
        }
        Ok(())
    }
}

fn expires(at: u64, delay: u64, expiration: u64) -> u64 {
    if expiration == 0 { u64::MAX } else { at + delay * 985_000_000 + expiration * 985_000_000 }
}

impl Sent {
    /// Returns where a message is after it was settled, when it was at `spot` before.
    fn after(&self, spot: Spot, settle: Settle) -> Spot {
        let Spot::At { channel, count, cleared } = spot else { return Spot::Gone };
        match settle {
            Settle::Ack => Spot::Gone,
            Settle::Requeue(to) => Spot::At { channel: to, count: 1, cleared },
            Settle::Nack if cleared || self.max_receive == 0 || count < self.max_receive => {
                Spot::At { channel, count: count + 1, cleared }
            }
            Settle::Nack => match self.dead_letter {
                Some(dead) => Spot::At { channel: dead, count: 1, cleared: true },
                None => Spot::Gone,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Leadership = (1, 1);
    const THERE: Leadership = (2, 2);

    fn sight(count: u32) -> Sight {
        Sight {
            id: 7,
            channel: 0,
            lasting: true,
            sequence: u64::from(count),
            count,
            now: 10,
            expires_at: 0,
            fresh_at: 10,
        }
    }

    fn stored(sent: Sent) -> Oracle {
        let mut oracle = Oracle::default();
        oracle.sending(7, sent);
        oracle.sent(7, Told::Done).unwrap();
        oracle
    }

    #[test]
    fn a_stored_message_that_is_never_seen_is_lost() {
        let mut oracle = stored(Sent::default());
        assert!(oracle.check_drained(100).is_err());
        oracle.delivered(&sight(1), HERE).unwrap();
        let trying = oracle.settling(7, Settle::Ack, 10, HERE).unwrap();
        oracle.settled(trying, Told::Done).unwrap();
        oracle.check_drained(100).unwrap();
        assert!(oracle.delivered(&sight(1), THERE).is_err(), "it was settled");
    }

    #[test]
    fn an_unknown_settlement_leaves_both_possible() {
        let sent = Sent { max_receive: 3, ..Sent::default() };
        for count in [1, 2] {
            let mut oracle = stored(sent);
            oracle.delivered(&sight(1), HERE).unwrap();
            let trying = oracle.settling(7, Settle::Nack, 10, HERE).unwrap();
            oracle.settled(trying, Told::Unknown).unwrap();
            oracle.delivered(&sight(count), THERE).unwrap();
            assert!(oracle.delivered(&sight(3), HERE).is_err(), "the count would skip one");
        }
    }

    #[test]
    fn two_holders_under_one_leader_and_a_phantom_are_noticed() {
        let mut oracle = stored(Sent::default());
        oracle.delivered(&sight(1), HERE).unwrap();
        assert!(oracle.delivered(&sight(1), HERE).is_err());
        assert!(Oracle::default().delivered(&sight(1), HERE).is_err());
        let mut oracle = stored(Sent { delay: 60, ..Sent::default() });
        assert!(oracle.delivered(&sight(1), HERE).is_err(), "too early");
    }

    #[test]
    fn what_had_expired_may_not_be_shown() {
        let mut oracle = stored(Sent { expiration: 1, ..Sent::default() });
        oracle.seen(&Sight { expires_at: 7, fresh_at: 7, ..sight(1) }).unwrap();
        assert!(oracle.seen(&Sight { expires_at: 7, fresh_at: 8, ..sight(1) }).is_err());
    }

    #[test]
    fn what_was_settled_may_not_be_handed_out_meanwhile() {
        let mut oracle = stored(Sent::default());
        oracle.delivered(&sight(1), HERE).unwrap();
        let trying = oracle.settling(7, Settle::Ack, 10, HERE).unwrap();
        oracle.delivered(&sight(1), THERE).unwrap();
        assert!(oracle.settled(trying, Told::Done).is_err());
    }

    #[test]
    fn a_dead_message_is_where_its_policy_sends_it() {
        let mut oracle = stored(Sent { max_receive: 1, dead_letter: Some(3), ..Sent::default() });
        oracle.delivered(&sight(1), HERE).unwrap();
        let trying = oracle.settling(7, Settle::Nack, 10, HERE).unwrap();
        oracle.settled(trying, Told::Done).unwrap();
        let dead = Sight { channel: 3, ..sight(1) };
        oracle.delivered(&dead, HERE).unwrap();
        let trying = oracle.settling(7, Settle::Nack, 10, HERE).unwrap();
        oracle.settled(trying, Told::Done).unwrap();
        oracle.delivered(&Sight { channel: 3, ..sight(2) }, HERE).unwrap();
    }

    #[test]
    fn bodies_name_their_message() {
        assert_eq!(id_of(&body(77, 5)), Some(77));
        let mut damaged = body(77, 5);
        damaged[10] ^= 1;
        assert_eq!(id_of(&damaged), None);
        assert_eq!(id_of(b"short"), None);
    }
}
