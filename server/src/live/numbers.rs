//! What passed through channels whose messages are not stored: counted per channel name, for metrics and lists.
//!
//! Names come from clients, so there are at most so many; all others are counted together. Counters are atomic
//! and found once per route, not per message.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kubemq_runtime::UnixNanos;
use parking_lot::Mutex;

/// Channels of one kind that are counted by name.
const CHANNELS: usize = 10_000;
/// Longer names are counted with the others.
const LONGEST_NAME: usize = 256;
/// The name under which the others are counted.
pub const OTHERS: &str = "_other";

/// The counters of one channel.
#[derive(Debug, Default)]
pub(super) struct ChannelNumbers {
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    delivered: AtomicU64,
    delivered_bytes: AtomicU64,
    dropped: AtomicU64,
    responses: AtomicU64,
    subscribers: AtomicU64,
    last_seen: AtomicU64,
}

/// What was counted for one channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Messages that senders brought.
    pub sent: u64,
    /// Their bytes on the wire.
    pub sent_bytes: u64,
    /// Messages that were handed to subscribers, each copy counted.
    pub delivered: u64,
    /// Their bytes on the wire.
    pub delivered_bytes: u64,
    /// Copies that did not fit into a subscriber's queue.
    pub dropped: u64,
    /// Requests that were answered.
    pub responses: u64,
    /// Subscriptions that name this channel or pattern.
    pub subscribers: u64,
    /// When something was sent here last, in nanoseconds since the Unix epoch.
    pub last_seen: u64,
}

impl Counted {
    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.sent_bytes += other.sent_bytes;
        self.delivered += other.delivered;
        self.delivered_bytes += other.delivered_bytes;
        self.dropped += other.dropped;
        self.responses += other.responses;
        self.subscribers += other.subscribers;
        self.last_seen = self.last_seen.max(other.last_seen);
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

impl ChannelNumbers {
    pub(super) fn sent(&self, messages: u64, bytes: u64, now: UnixNanos) {
        add(&self.sent, messages);
        add(&self.sent_bytes, bytes);
        self.last_seen.store(now.0, Ordering::Relaxed);
    }

    pub(super) fn delivered(&self, messages: u64, bytes: u64, dropped: u64) {
        add(&self.delivered, messages);
        add(&self.delivered_bytes, bytes);
        if dropped > 0 {
            add(&self.dropped, dropped);
        }
    }

    pub(super) fn answered(&self) {
        add(&self.responses, 1);
    }

    pub(super) fn subscribed(&self) {
        add(&self.subscribers, 1);
    }

    pub(super) fn unsubscribed(&self) {
        self.subscribers.fetch_sub(1, Ordering::Relaxed);
    }

    fn read(&self) -> Counted {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counted {
            sent: read(&self.sent),
            sent_bytes: read(&self.sent_bytes),
            delivered: read(&self.delivered),
            delivered_bytes: read(&self.delivered_bytes),
            dropped: read(&self.dropped),
            responses: read(&self.responses),
            subscribers: read(&self.subscribers),
            last_seen: read(&self.last_seen),
        }
    }
}

/// The counters of all channels of one kind.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    named: Mutex<BTreeMap<Box<str>, Arc<ChannelNumbers>>>,
    others: Arc<ChannelNumbers>,
}

impl Numbers {
    /// Returns the counters of `channel`, or those of all others when too many have their own.
    pub(super) fn of(&self, channel: &str) -> Arc<ChannelNumbers> {
        let mut named = self.named.lock();
        if let Some(numbers) = named.get(channel) {
            return Arc::clone(numbers);
        }
        if named.len() >= CHANNELS || channel.len() > LONGEST_NAME {
            return Arc::clone(&self.others);
        }
        Arc::clone(named.entry(channel.into()).or_default())
    }

    /// Channels that are counted by name, at most.
    pub(super) const MOST_NAMED: usize = CHANNELS;

    /// Returns whether `channel` is counted by name.
    pub(super) fn has(&self, channel: &str) -> bool {
        self.named.lock().contains_key(channel)
    }

    /// Returns how many channels are counted by name.
    pub(super) fn named(&self) -> usize {
        self.named.lock().len()
    }

    /// Forgets what was counted for `channel`. Who still uses it counts unseen until its route is looked up anew.
    pub(super) fn forget(&self, channel: &str) {
        let mut named = self.named.lock();
        if named.get(channel).is_some_and(|numbers| numbers.read().subscribers == 0) {
            named.remove(channel);
        }
    }

    /// Returns what was counted, by name; what has no name of its own last, if there is any.
    pub(super) fn read(&self) -> Vec<(Box<str>, Counted)> {
        let named = self.named.lock();
        let mut all: Vec<_> = named.iter().map(|(name, numbers)| (name.clone(), numbers.read())).collect();
        let others = self.others.read();
        if others != Counted::default() {
            all.push((OTHERS.into(), others));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_nothing_is_lost() {
        let numbers = Numbers::default();
        for number in 0..CHANNELS + 50 {
            numbers.of(&number.to_string()).sent(1, 10, UnixNanos(1));
        }
        numbers.of(&"n".repeat(LONGEST_NAME + 1)).sent(1, 10, UnixNanos(1));
        let read = numbers.read();
        assert_eq!(read.len(), CHANNELS + 1);
        assert_eq!(read.iter().map(|(_, counted)| counted.sent).sum::<u64>(), CHANNELS as u64 + 51);
        assert_eq!(read.last().unwrap().0.as_ref(), OTHERS);
        assert_eq!(read.last().unwrap().1.sent, 51);
    }

    #[test]
    fn a_channel_is_forgotten_unless_somebody_is_there() {
        let numbers = Numbers::default();
        numbers.of("a").sent(1, 1, UnixNanos(1));
        numbers.of("b").subscribed();
        numbers.forget("a");
        numbers.forget("b");
        assert_eq!(numbers.read().iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>(), ["b"]);
        numbers.of("b").unsubscribed();
        numbers.forget("b");
        assert!(numbers.read().is_empty());
    }
}
