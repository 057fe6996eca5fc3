//! Messages in a reader's hands, and how they are settled.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use kubemq_broker::limits::MOVE_ITEMS;
use kubemq_broker::{ChannelId, Kind, MoveItem, MoveMode, Name, Operation, Sequences, Stored};
use kubemq_proto::stored;
use kubemq_runtime::UnixNanos;

use super::{Gateway, Submitted};
use crate::damage::Unreadable;
use crate::desk::Reserved;

/// One hand-out of a message.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Its place in the channel.
    pub sequence: u64,
    /// How often it was handed out, this time included.
    pub receive_count: u32,
    /// When it was stored, nanoseconds of cluster time.
    pub time: u64,
    /// When it expires, nanoseconds of cluster time; 0 = never.
    pub expires_at: u64,
    /// The channel that it was dead-lettered from.
    pub rerouted_from: Option<Arc<str>>,
    /// Whether its policy no longer applies, as in a dead-letter channel.
    pub cleared_policy: bool,
    /// The stored message, encoded without channel and attributes.
    pub message: Bytes,
    /// Where it stands in the log.
    pub(crate) stored: Stored,
}

impl Delivery {
    /// Puts together what the log holds and what the state says of its copy.
    pub(crate) fn decode(reserved: &Reserved, time: u64, operation: &Bytes) -> Result<Self, Unreadable> {
        let operation = Operation::decode(operation).map_err(|error| Unreadable::Content(error.to_string()))?;
        let Operation::Publish { expiration_ms, message, .. } = operation else {
            return Err(Unreadable::Content("something else".to_owned()));
        };
        let bytes = u32::try_from(reserved.bytes).unwrap_or(u32::MAX);
        let stored = Stored { entry: reserved.entry, part: reserved.part, bytes };
        let Some(copy) = &reserved.copy else {
            let expires_at = if expiration_ms == 0 { 0 } else { time + expiration_ms * 1_000_000 };
            return Ok(Self {
                sequence: reserved.sequence,
                receive_count: 1,
                time,
                expires_at,
                rerouted_from: None,
                cleared_policy: false,
                message,
                stored,
            });
        };
        Ok(Self {
            sequence: reserved.sequence,
            receive_count: copy.receive_count + 1,
            time: copy.time,
            expires_at: copy.expires_at,
            rerouted_from: copy.rerouted_from.clone(),
            cleared_policy: copy.cleared_policy,
            message,
            stored,
        })
    }

    pub(crate) fn has_expired(&self, now: UnixNanos) -> bool {
        self.expires_at != 0 && self.expires_at < now.0
    }
}

/// What is remembered of a delivery until it is settled.
#[derive(Clone, Debug)]
struct Unsettled {
    receive_count: u32,
    expires_at: u64,
    policy: Policy,
    stored: Stored,
}

/// What the policy of a message says about giving it back.
#[derive(Clone, Debug)]
struct Policy {
    max_receive_count: u32,
    max_receive_queue: Option<Arc<str>>,
    expiration_seconds: u32,
}

impl Policy {
    /// The policy of a message whose own no longer applies.
    const CLEARED: Self = Self { max_receive_count: u32::MAX, max_receive_queue: None, expiration_seconds: 0 };

    fn of(delivery: &Delivery) -> Self {
        if delivery.cleared_policy {
            return Self::CLEARED;
        }
        // What was stored was encoded here; bytes that do not decode have no policy to speak of.
        let policy = stored::policy(&delivery.message).unwrap_or_default();
        let max_receive_count = u32::try_from(policy.max_receive_count).unwrap_or(0);
        Self {
            max_receive_count: if max_receive_count == 0 { u32::MAX } else { max_receive_count },
            max_receive_queue: (!policy.max_receive_queue.is_empty()).then(|| policy.max_receive_queue.into()),
            expiration_seconds: u32::try_from(policy.expiration_seconds).unwrap_or(0),
        }
    }
}

/// The deliveries of one transaction. Dropping it gives back what is unsettled: under the same sequence, and
/// not counted as a receive.
pub struct Held {
    gateway: Gateway,
    channel_id: Option<ChannelId>,
    channel: Arc<str>,
    /// What was taken, lowest sequence first; the caller may move it out.
    pub deliveries: Vec<Delivery>,
    /// Messages that had expired and were removed on the way.
    pub expired: u32,
    unsettled: BTreeMap<u64, Unsettled>,
    /// Taken out to be stored elsewhere, which the state may refuse.
    moving: BTreeMap<u64, Unsettled>,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("channel", &self.channel).field("unsettled", &self.unsettled.len()).finish()
    }
}

impl Held {
    pub(crate) fn new(gateway: Gateway, channel: &str) -> Self {
        Self {
            gateway,
            channel_id: None,
            channel: channel.into(),
            deliveries: Vec::new(),
            expired: 0,
            unsettled: BTreeMap::new(),
            moving: BTreeMap::new(),
        }
    }

    pub(crate) fn push(&mut self, channel: ChannelId, delivery: Delivery) {
        self.channel_id = Some(channel);
        let unsettled = Unsettled {
            receive_count: delivery.receive_count,
            expires_at: delivery.expires_at,
            policy: Policy::of(&delivery),
            stored: delivery.stored,
        };
        self.unsettled.insert(delivery.sequence, unsettled);
        self.deliveries.push(delivery);
    }

    pub(crate) fn is_of(&self, channel: ChannelId) -> bool {
        self.channel_id.is_none_or(|own| own == channel)
    }

    pub(crate) fn channel_id(&self) -> Option<ChannelId> {
        self.channel_id
    }

    /// Returns the channel that the messages were taken from.
    #[must_use]
    pub fn channel(&self) -> &str {
        &self.channel
    }

    /// Returns the sequences that are not settled yet, ascending.
    pub fn unsettled(&self) -> impl Iterator<Item = u64> + '_ {
        self.unsettled.keys().copied()
    }

    /// Returns whether `sequence` was taken and is not settled yet.
    #[must_use]
    pub fn holds(&self, sequence: u64) -> bool {
        self.unsettled.contains_key(&sequence)
    }

    /// Returns whether everything is settled.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.unsettled.is_empty()
    }

    /// Removes the messages: they were processed. Sequences that are not held are ignored.
    pub fn ack(&mut self, sequences: &[u64]) -> Submitted {
        let (Some(channel), settled) = (self.channel_id, self.settle(sequences)) else {
            return self.gateway.submit(Vec::new());
        };
        self.gateway.submit(acked(channel, settled.into_keys()))
    }

    /// Gives the messages back as not processed: a copy goes to the tail and counts as a receive, or to the
    /// dead-letter channel, or nowhere, as the message's policy says.
    pub fn nack(&mut self, sequences: &[u64]) -> Submitted {
        let (Some(channel), settled) = (self.channel_id, self.settle(sequences)) else {
            return self.gateway.submit(Vec::new());
        };
        self.moving.extend(settled.clone());
        let mut again = Vec::new();
        let mut dead: BTreeMap<Arc<str>, Vec<MoveItem>> = BTreeMap::new();
        let mut discarded = Vec::new();
        for (sequence, message) in settled {
            let (expires_at, stored) = (message.expires_at, Some(message.stored));
            let item = |receive_count| MoveItem { sequence, receive_count, expires_at, stored };
            if message.receive_count < message.policy.max_receive_count {
                again.push(item(message.receive_count));
            } else if let Some(queue) = message.policy.max_receive_queue {
                dead.entry(queue).or_default().push(item(0));
            } else {
                discarded.push(sequence);
            }
        }
        let mut operations = moved(channel, &self.channel, MoveMode::Return, &again);
        for (queue, items) in dead {
            operations.extend(moved(channel, &queue, MoveMode::DeadLetter, &items));
        }
        operations.extend(acked(channel, discarded));
        self.gateway.submit(operations)
    }

    /// Sends the messages afresh to queue `to`, which may be their own, and removes them here.
    pub fn requeue(&mut self, sequences: &[u64], to: &str) -> Submitted {
        let (Some(channel), settled) = (self.channel_id, self.settle(sequences)) else {
            return self.gateway.submit(Vec::new());
        };
        self.moving.extend(settled.clone());
        let now = self.gateway.time().0;
        let item = |(sequence, message): (u64, Unsettled)| {
            let lives = u64::from(message.policy.expiration_seconds) * 1_000_000_000;
            let expires_at = if lives == 0 { 0 } else { now + lives };
            MoveItem { sequence, receive_count: 0, expires_at, stored: Some(message.stored) }
        };
        let items: Vec<MoveItem> = settled.into_iter().map(item).collect();
        self.gateway.submit(moved(channel, to, MoveMode::Requeue, &items))
    }

    /// Holds again those of `sequences` that the state refused to store elsewhere.
    pub fn refused(&mut self, sequences: &[u64]) {
        let Some(channel) = self.channel_id else { return };
        let refused: BTreeMap<u64, Unsettled> =
            sequences.iter().filter_map(|sequence| self.moving.remove_entry(sequence)).collect();
        let kept = self.gateway.with_core(|core| core.hold_again(channel, refused.keys().copied()));
        self.unsettled.extend(refused.into_iter().filter(|(sequence, _)| kept.contains(sequence)));
    }

    /// Takes the named messages out of this transaction, marked as being settled at the desk.
    fn settle(&mut self, sequences: &[u64]) -> BTreeMap<u64, Unsettled> {
        let settled: BTreeMap<u64, Unsettled> =
            sequences.iter().filter_map(|sequence| self.unsettled.remove_entry(sequence)).collect();
        if let Some(channel) = self.channel_id {
            self.gateway.with_core(|core| core.settling(channel, settled.keys().copied()));
        }
        settled
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(channel) = self.channel_id
            && !self.unsettled.is_empty()
        {
            let unsettled = std::mem::take(&mut self.unsettled);
            self.gateway.with_core(|core| core.give_back(channel, unsettled.into_keys()));
        }
    }
}

impl Gateway {
    /// Makes ready again those of `sequences` that the state refused to move and that nobody holds any more.
    pub(super) fn give_back_refused(&self, channel: ChannelId, sequences: &[u64]) {
        self.with_core(|core| core.give_back(channel, sequences.iter().copied()));
    }
}

fn acked(channel: ChannelId, sequences: impl IntoIterator<Item = u64>) -> Vec<Bytes> {
    let sequences: Sequences = sequences.into_iter().collect();
    if sequences.is_empty() {
        return Vec::new();
    }
    let pieces = sequences.split().into_iter();
    pieces.map(|sequences| Operation::Ack { channel, sequences }.to_bytes()).collect()
}

fn moved(from: ChannelId, to: &str, mode: MoveMode, items: &[MoveItem]) -> Vec<Bytes> {
    // Names were checked when they came in; one that cannot be a channel's moves nothing.
    let Ok(to) = Name::new(to) else { return Vec::new() };
    let piece = |items: &[MoveItem]| {
        Operation::Move { from, to: (Kind::Queue, to.clone()), mode, items: items.to_vec() }.to_bytes()
    };
    items.chunks(MOVE_ITEMS).map(piece).collect()
}
