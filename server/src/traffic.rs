//! What clients send and receive: messages and bytes by pattern, direction, channel and client, for the metrics.
//!
//! Names come from clients, so there are at most so many rows; what has none of its own is counted together with the
//! others of its channel. A row is found once for a stretch of messages of one client, not for each. Nothing here is
//! stored: counting begins with the process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kubemq_broker::{Kind, Outcome};
use kubemq_runtime::{FixedHashMap, UnixNanos};
use parking_lot::Mutex;

/// Channels of each pattern and direction that have rows of their own.
const CHANNELS: usize = 1_000;
/// Longer names of clients and channels are counted with the others.
const LONGEST_NAME: usize = 256;
/// The name under which others are counted.
const OTHERS: &str = "_other";

/// What is counted apart, as metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Of {
    /// Events that are not stored.
    Events,
    /// Stored events.
    EventsStore,
    /// Commands.
    Commands,
    /// Queries.
    Queries,
    /// Messages of queues.
    Queues,
    /// Answers to commands and queries.
    Responses,
}

impl Of {
    /// Returns the name that metrics use.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Events => Kind::Events.name(),
            Self::EventsStore => Kind::EventsStore.name(),
            Self::Commands => Kind::Commands.name(),
            Self::Queries => Kind::Queries.name(),
            Self::Queues => Kind::Queue.name(),
            Self::Responses => "responses",
        }
    }
}

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    /// From a client.
    Send,
    /// To a client.
    Receive,
}

impl Side {
    /// Returns the name that metrics use.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Receive => "receive",
        }
    }
}

/// What one client sent to a channel, or received from it.
#[derive(Debug)]
pub(crate) struct Row {
    channel: Box<str>,
    client: Box<str>,
    /// Of all clients of the channel.
    is_of_all: bool,
    messages: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    last_seen: AtomicU64,
}

impl Row {
    fn new(channel: &str, client: &str, is_of_all: bool) -> Arc<Self> {
        Arc::new(Self {
            channel: channel.into(),
            client: client.into(),
            is_of_all,
            messages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            last_seen: AtomicU64::new(0),
        })
    }

    /// Counts messages and their bytes, the last of them seen at `time`.
    pub(crate) fn add(&self, messages: u64, bytes: u64, time: UnixNanos) {
        if messages > 0 {
            self.messages.fetch_add(messages, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            self.last_seen.store(time.0, Ordering::Relaxed);
        }
    }

    /// Counts a request that nobody answered in time or that was answered as not executed.
    pub(crate) fn failed(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns whether messages of `client` and `channel` are surely counted here.
    fn is_of(&self, channel: &str, client: &str) -> bool {
        *self.channel == *channel && (self.is_of_all || *self.client == *client)
    }
}

/// What a [`Row`] holds at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) errors: u64,
    /// When the last message was seen, in nanoseconds since the Unix epoch.
    pub(crate) last_seen: u64,
}

/// The rows of a node. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Traffic {
    rows: Arc<Mutex<Rows>>,
    most: usize,
}

#[derive(Debug, Default)]
struct Rows {
    channels: BTreeMap<(Of, Side), FixedHashMap<Box<str>, Clients>>,
    /// Rows that name a client.
    named: usize,
}

#[derive(Debug, Default)]
struct Clients {
    named: FixedHashMap<Box<str>, Arc<Row>>,
    others: Option<Arc<Row>>,
}

/// What is counted, by pattern, direction, channel and client.
pub(crate) type Counted = BTreeMap<(Of, Side, Box<str>, Box<str>), Counts>;

impl Traffic {
    /// Returns one in which so many rows name a client; without any, no row does.
    pub(crate) fn new(most: usize) -> Self {
        Self { rows: Arc::default(), most }
    }

    /// Returns where messages of `client` and `channel` are counted.
    pub(crate) fn of(&self, of: Of, side: Side, channel: &str, client: &str) -> Arc<Row> {
        let mut rows = self.rows.lock();
        let Rows { channels, named } = &mut *rows;
        let channels = channels.entry((of, side)).or_default();
        let has_name = channel.len() <= LONGEST_NAME && (channels.len() < CHANNELS || channels.contains_key(channel));
        let channel = if has_name { channel } else { OTHERS };
        let clients = match channels.get_mut(channel) {
            Some(clients) => clients,
            None => channels.entry(channel.into()).or_default(),
        };
        if let Some(row) = clients.named.get(client) {
            return Arc::clone(row);
        }
        if has_name && *named < self.most && client.len() <= LONGEST_NAME {
            *named += 1;
            return Arc::clone(clients.named.entry(client.into()).or_insert_with(|| Row::new(channel, client, false)));
        }
        let others = if self.most == 0 { "" } else { OTHERS };
        Arc::clone(clients.others.get_or_insert_with(|| Row::new(channel, others, self.most == 0)))
    }

    /// Returns how many rows name a client, and how many may.
    pub(crate) fn fill(&self) -> (usize, usize) {
        (self.rows.lock().named, self.most)
    }

    /// Returns what was counted. Rows of channels that are gone and that nobody counts in are forgotten.
    pub(crate) fn read(&self, exists: impl Fn(Of, &str) -> bool) -> Counted {
        let mut counted = Counted::new();
        let mut rows = self.rows.lock();
        for ((of, _), channels) in &mut rows.channels {
            channels.retain(|channel, clients| {
                let mut all = clients.named.values().chain(&clients.others);
                all.any(|row| Arc::strong_count(row) > 1) || &**channel == OTHERS || exists(*of, channel)
            });
        }
        rows.named = rows.channels.values().flat_map(|channels| channels.values().map(|all| all.named.len())).sum();
        for ((of, side), channels) in &rows.channels {
            for row in channels.values().flat_map(|clients| clients.named.values().chain(&clients.others)) {
                // A client may have the name of the others.
                let counts = counted.entry((*of, *side, row.channel.clone(), row.client.clone())).or_default();
                let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
                counts.messages += read(&row.messages);
                counts.bytes += read(&row.bytes);
                counts.errors += read(&row.errors);
                counts.last_seen = counts.last_seen.max(read(&row.last_seen));
            }
        }
        counted
    }
}

/// Messages on their way into the log by who sent them, in order: they count once they are stored.
#[derive(Debug, Default)]
pub(crate) struct Sent(Vec<Run>);

/// Messages of one row, one after another.
#[derive(Debug)]
struct Run {
    row: Arc<Row>,
    messages: usize,
    bytes: usize,
}

impl Sent {
    /// Notes the next message.
    pub(crate) fn add(&mut self, traffic: &Traffic, of: Of, (channel, client): (&str, &str), bytes: usize) {
        match self.0.last_mut().filter(|run| run.row.is_of(channel, client)) {
            Some(run) => {
                run.messages += 1;
                run.bytes += bytes;
            }
            None => self.0.push(Run { row: traffic.of(of, Side::Send, channel, client), messages: 1, bytes }),
        }
    }

    /// Counts those that were stored, as their outcomes say; where only some of a run were, their part of its bytes.
    pub(crate) fn settle(&mut self, outcomes: &[Outcome]) {
        let mut rest = outcomes;
        for Run { row, messages, bytes } in std::mem::take(&mut self.0) {
            let (own, later) = rest.split_at(messages.min(rest.len()));
            rest = later;
            let times = own.iter().filter_map(|outcome| match outcome {
                Outcome::Stored { time, .. } | Outcome::Scheduled { time, .. } => Some(*time),
                _ => None,
            });
            let (stored, time) = times.fold((0, 0), |(stored, last), time| (stored + 1, time.max(last)));
            let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
            let each = bytes.checked_div(u64::try_from(messages).unwrap_or(u64::MAX)).unwrap_or(0);
            let all = usize::try_from(stored) == Ok(messages);
            row.add(stored, if all { bytes } else { each.saturating_mul(stored) }, UnixNanos(time));
        }
    }
}

#[cfg(test)]
mod tests {
    use kubemq_broker::Refusal;

    use super::*;

    fn messages(counted: &Counted, of: Of, channel: &str, client: &str) -> u64 {
        counted.get(&(of, Side::Send, channel.into(), client.into())).map_or(0, |counts| counts.messages)
    }

    fn count(traffic: &Traffic, channel: &str, client: &str) {
        traffic.of(Of::Queues, Side::Send, channel, client).add(1, 10, UnixNanos(7));
    }

    #[test]
    fn so_many_clients_are_named_and_the_others_counted_together() {
        let traffic = Traffic::new(3);
        for client in ["a", "b", "a", "c", "d", "_other"] {
            count(&traffic, "q", client);
        }
        count(&traffic, "r", "a");
        let counted = traffic.read(|_, _| true);
        let of = |channel, client| messages(&counted, Of::Queues, channel, client);
        assert_eq!((of("q", "a"), of("q", "b"), of("q", "c"), of("q", OTHERS)), (2, 1, 1, 2));
        assert_eq!((of("r", "a"), of("r", OTHERS)), (0, 1), "each channel's clients count for themselves");
        assert_eq!((counted.len(), traffic.fill()), (5, (3, 3)));
        let long = "n".repeat(LONGEST_NAME + 1);
        let traffic = Traffic::new(3);
        count(&traffic, "q", &long);
        count(&traffic, &long, "a");
        let counted = traffic.read(|_, _| true);
        assert_eq!(
            (messages(&counted, Of::Queues, "q", OTHERS), messages(&counted, Of::Queues, OTHERS, OTHERS)),
            (1, 1)
        );
    }

    #[test]
    fn without_clients_no_row_names_one() {
        let traffic = Traffic::new(0);
        count(&traffic, "q", "a");
        count(&traffic, "q", "b");
        assert_eq!(messages(&traffic.read(|_, _| true), Of::Queues, "q", ""), 2);
        assert!(traffic.of(Of::Queues, Side::Send, "q", "a").is_of("q", "b"), "it need not be looked up again");
    }

    #[test]
    fn so_many_channels_have_rows_and_the_others_one() {
        let traffic = Traffic::new(5);
        for number in 0..CHANNELS + 50 {
            count(&traffic, &number.to_string(), "a");
        }
        let counted = traffic.read(|_, _| true);
        assert_eq!((counted.len(), messages(&counted, Of::Queues, OTHERS, OTHERS)), (CHANNELS + 1, 50));
        assert_eq!(counted.values().map(|counts| counts.messages).sum::<u64>(), CHANNELS as u64 + 50);
    }

    #[test]
    fn rows_of_channels_that_are_gone_make_room() {
        let traffic = Traffic::new(2);
        let held = traffic.of(Of::Queues, Side::Send, "held", "a");
        count(&traffic, "gone", "a");
        assert_eq!(traffic.read(|_, channel| channel == "q").len(), 1);
        count(&traffic, "q", "a");
        held.add(1, 1, UnixNanos(1));
        let counted = traffic.read(|_, channel| channel == "q");
        assert_eq!((messages(&counted, Of::Queues, "held", "a"), messages(&counted, Of::Queues, "q", "a")), (1, 1));
    }

    #[test]
    fn what_is_stored_counts_and_nothing_else() {
        let traffic = Traffic::new(10);
        let mut sent = Sent::default();
        for (channel, client) in [("q", "a"), ("q", "a"), ("q", "b"), ("r", "b")] {
            sent.add(&traffic, Of::Queues, (channel, client), 10);
        }
        sent.settle(&[
            Outcome::Stored { sequence: 1, time: 5 },
            Outcome::Refused(Refusal::Malformed),
            Outcome::Scheduled { time: 6, due: 9 },
        ]);
        let counted = traffic.read(|_, _| true);
        let counts = |channel: &str, client: &str| counted[&(Of::Queues, Side::Send, channel.into(), client.into())];
        assert_eq!(counts("q", "a"), Counts { messages: 1, bytes: 10, errors: 0, last_seen: 5 });
        assert_eq!(counts("q", "b"), Counts { messages: 1, bytes: 10, errors: 0, last_seen: 6 });
        assert_eq!(counts("r", "b"), Counts::default());
    }
}
