//! What a gateway counts that nobody else knows.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use kubemq_broker::Kind;

/// Counters and levels; each change is one atomic addition.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    queues_refused: AtomicU64,
    events_store_refused: AtomicU64,
    events_refused: AtomicU64,
    leaderships: AtomicU64,
    unanswered_requests: AtomicUsize,
    unanswered_bytes: AtomicUsize,
}

/// Who is told that a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// Of a queue message.
    Queues,
    /// Of an event that was to be stored.
    EventsStore,
    /// Of an event that was not.
    Events,
}

impl Sender {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Queues, Self::EventsStore, Self::Events];

    /// Returns the name that metrics use.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Queues => Kind::Queue.name(),
            Self::EventsStore => Kind::EventsStore.name(),
            Self::Events => Kind::Events.name(),
        }
    }

    /// Returns who sent an event.
    pub(crate) fn of_event(is_stored: bool) -> Self {
        if is_stored { Self::EventsStore } else { Self::Events }
    }
}

impl Numbers {
    fn counter(&self, sender: Sender) -> &AtomicU64 {
        match sender {
            Sender::Queues => &self.queues_refused,
            Sender::EventsStore => &self.events_store_refused,
            Sender::Events => &self.events_refused,
        }
    }

    /// Counts messages whose sender is told that they were not taken.
    pub(crate) fn refuse(&self, sender: Sender, messages: usize) {
        if messages > 0 {
            self.counter(sender).fetch_add(u64::try_from(messages).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// Returns how many messages were refused.
    pub(crate) fn refused(&self, sender: Sender) -> u64 {
        self.counter(sender).load(Ordering::Relaxed)
    }

    /// Counts that this node has come to lead.
    pub(crate) fn lead(&self) {
        self.leaderships.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how often this node has come to lead.
    pub(crate) fn leaderships(&self) -> u64 {
        self.leaderships.load(Ordering::Relaxed)
    }

    /// Notes requests of a stream that will be answered.
    pub(crate) fn read(&self, requests: usize, bytes: usize) {
        self.unanswered_requests.fetch_add(requests, Ordering::Relaxed);
        self.unanswered_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes that requests of a stream are answered, or that nobody waits for the answers any more.
    pub(crate) fn answered(&self, requests: usize, bytes: usize) {
        self.unanswered_requests.fetch_sub(requests, Ordering::Relaxed);
        self.unanswered_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Returns how many requests of all streams are not answered, and their bytes.
    pub(crate) fn unanswered(&self) -> (usize, usize) {
        (self.unanswered_requests.load(Ordering::Relaxed), self.unanswered_bytes.load(Ordering::Relaxed))
    }
}
