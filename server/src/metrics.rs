//! The numbers of a node, and their Prometheus names.
//!
//! Nothing counts twice: what the state, the log, the index, consensus and the traffic of clients count anyway is read
//! when somebody asks, so a message costs nothing here. Only what nobody else knows is counted in this file. There is
//! no global registry: [`Metrics`] hangs on its node.

mod ages;
mod buffers;
mod families;
mod live;
mod process;
mod traffic;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kubemq_broker::{Kind, State, Totals};
use kubemq_raft::Node as Raft;
use kubemq_storage::index::{IndexStats, IndexWriter};
use kubemq_storage::log::{Flush, Log, Stats as LogStats};
use prometheus::TextEncoder;
use prometheus::proto::{MetricFamily, MetricType};

use self::ages::Ages;
use self::buffers::Buffer;
use self::families::{counter, family, gauge, histogram, measured, metric};
use self::live::LiveNumbers;
use crate::gateway::{Gateway, Sender};
use crate::grpc::{Durations, Ingest};
use crate::live::Pattern;
use crate::node::Node;
use crate::scrub::ScrubStats;
use crate::traffic::{Counted, Of};

/// Channels that are listed by name; the others are summed up under one name, or a scrape would grow with them.
const CHANNELS: usize = 1_000;
/// The name under which the other channels are summed up.
const OTHERS: &str = "_other";
/// Classes of a latency; class n holds what took less than 2^n microseconds.
const CLASSES: usize = 24;

/// Durations by their order of magnitude. Cheap enough to be counted on every commit.
#[derive(Debug, Default)]
pub struct Latency {
    classes: [AtomicU64; CLASSES],
    nanos: AtomicU64,
}

impl Latency {
    /// Counts one.
    pub fn observe(&self, took: Duration) {
        self.observe_all(took, 1);
    }

    /// Counts so many that began and ended together.
    pub(crate) fn observe_all(&self, took: Duration, count: usize) {
        let count = as_u64(count);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let class = usize::try_from(u64::BITS - micros.leading_zeros()).unwrap_or(CLASSES);
        self.classes[class.min(CLASSES - 1)].fetch_add(count, Ordering::Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos.saturating_mul(count), Ordering::Relaxed);
    }

    fn read(&self) -> Observed {
        Observed {
            classes: std::array::from_fn(|class| self.classes[class].load(Ordering::Relaxed)),
            sum: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)),
        }
    }
}

/// What a [`Latency`] holds at one moment.
#[derive(Clone, Copy, Debug)]
struct Observed {
    classes: [u64; CLASSES],
    sum: Duration,
}

/// What is known of one channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ChannelNumbers {
    totals: Totals,
    waiting: u64,
    waiting_bytes: u64,
    readers: u64,
    /// The age of the oldest message, when it is known.
    oldest: Option<Duration>,
}

/// What is shown of channels of stored events, too.
const OF_EVENTS_STORE: [&str; 3] = ["kubemq_messages_expired", "kubemq_messages_pending", CLIENTS];

/// What is not shown of queues: who polls one now is no subscriber.
const CLIENTS: &str = "kubemq_clients_count";

/// What is known of a node at one moment.
#[derive(Clone, Debug, Default)]
struct Numbers {
    queues: BTreeMap<String, ChannelNumbers>,
    events_store: BTreeMap<String, ChannelNumbers>,
    live: LiveNumbers,
    /// What clients sent and received.
    traffic: Counted,
    channels: u64,
    timers: u64,
    index_memory: u64,
    index_left: u64,
    index_came_back: u64,
    in_flight: u64,
    polls: u64,
    /// Events that were read and wait for connections.
    reading: u64,
    /// Messages that were refused, by pattern.
    refused: [(&'static str, u64); 3],
    /// Requests of streams that are not answered, and their bytes.
    unanswered: (usize, usize),
    leaderships: u64,
    operations: u64,
    /// How many entries each follower lacks.
    behind: Vec<(u64, u64)>,
    ingest: u64,
    ingest_waiting: u64,
    passed_over: u64,
    missing: u64,
    scrub: ScrubStats,
    log: LogStats,
    log_bytes: u64,
    free_bytes: u64,
    nearly_full: u64,
    durability: &'static str,
    segments: u64,
    index: IndexStats,
    term: u64,
    leads: bool,
    committed: u64,
    applied: u64,
}

/// Reads the numbers of a node when asked. Clones read the same node.
#[derive(Clone)]
pub struct Metrics {
    /// None for a node that has done nothing.
    sources: Option<Arc<Sources>>,
    host: Arc<str>,
}

/// Where numbers come from.
struct Sources {
    gateway: Gateway,
    raft: Raft,
    log: Log,
    index: IndexWriter,
    ingest: Ingest,
    durations: Durations,
    ages: Ages,
}

impl Metrics {
    /// Returns the metrics of `node`, which is named `host` in them, takes requests in from `ingest`, and counts in
    /// `durations` how long they take.
    #[must_use]
    pub fn new(node: &Node, ingest: &Ingest, durations: &Durations, host: &str) -> Self {
        let sources = Sources {
            gateway: node.gateway().clone(),
            raft: node.raft().clone(),
            log: node.log().clone(),
            index: node.index().clone(),
            ingest: ingest.clone(),
            durations: durations.clone(),
            ages: Ages::default(),
        };
        Self { sources: Some(Arc::new(sources)), host: host.into() }
    }

    /// Returns the metrics of a node that has done nothing.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self { sources: None, host: "test".into() }
    }

    /// Returns everything in Prometheus' text format.
    pub async fn render(&self) -> String {
        let mut families = match &self.sources {
            Some(sources) => {
                let numbers = sources.read().await;
                let mut families = numbers.families(&self.host);
                families.extend(buffers::families(&sources.buffers()));
                families.extend(sources.histograms());
                families
            }
            None => Numbers::default().families(&self.host),
        };
        families.extend(process::families());
        // Only a family without metrics cannot be written, and none of these is.
        TextEncoder::new().encode_to_string(&families).unwrap_or_default()
    }
}

impl Sources {
    async fn read(&self) -> Numbers {
        let Self { gateway, raft, log, index, ingest, .. } = self;
        let mut numbers = Numbers::default();
        gateway.with_core(|core| {
            numbers.read_state(&core.state, |channel| core.desk.readers.count(channel));
            numbers.in_flight = as_u64(core.desk.in_flight());
            numbers.polls = as_u64(core.desk.waiting_polls());
            numbers.reading = as_u64(core.desk.readers.waiting_events());
            let (state, live) = (&core.state, gateway.live());
            numbers.traffic = gateway.traffic().read(|of, channel| match of {
                Of::Queues => state.channel(Kind::Queue, channel).is_some(),
                Of::EventsStore => state.channel(Kind::EventsStore, channel).is_some(),
                Of::Events => live.counts(Pattern::Events, channel),
                Of::Commands => live.counts(Pattern::Commands, channel),
                Of::Queries => live.counts(Pattern::Queries, channel),
                Of::Responses => true,
            });
        });
        for (queue, age) in self.ages.read(gateway).await {
            if let Some(numbers) = numbers.queues.get_mut(&queue) {
                numbers.oldest = Some(Duration::from_nanos(age));
            }
        }
        numbers.live = LiveNumbers::read(gateway.live());
        numbers.refused = Sender::ALL.map(|sender| (sender.name(), gateway.numbers().refused(sender)));
        numbers.unanswered = gateway.numbers().unanswered();
        numbers.leaderships = gateway.numbers().leaderships();
        numbers.operations = gateway.operations();
        (numbers.ingest, numbers.ingest_waiting) = (as_u64(ingest.used()), as_u64(ingest.waiting()));
        numbers.passed_over = gateway.passed_over();
        numbers.missing = raft.missing_bodies();
        numbers.scrub = gateway.scrubber().stats();
        numbers.log = log.stats();
        let segments = log.segments();
        numbers.segments = as_u64(segments.len());
        numbers.log_bytes = segments.iter().map(|segment| segment.bytes).sum();
        numbers.free_bytes = log.free_bytes().unwrap_or(0);
        numbers.nearly_full = u64::from(log.is_nearly_full());
        numbers.durability = if log.flush() == Flush::Group { "group" } else { "interval" };
        numbers.index = index.stats();
        (numbers.index_left, numbers.index_came_back) = gateway.index_blocks_moved();
        let status = raft.status();
        numbers.term = status.term;
        numbers.leads = status.leads();
        numbers.committed = status.committed.map_or(0, |id| id.index);
        numbers.applied = status.applied.map_or(0, |id| id.index);
        let last = status.last.unwrap_or(0);
        let behind = |(id, matched): (&u64, &Option<u64>)| (*id, last.saturating_sub(matched.unwrap_or(0)));
        numbers.behind = status.matched.iter().filter(|(id, _)| **id != status.node).map(behind).collect();
        numbers
    }

    fn buffers(&self) -> Vec<Buffer> {
        buffers::of(&self.gateway, &self.raft, &self.log, &self.ingest)
    }

    fn histograms(&self) -> [MetricFamily; 2] {
        let commit = histogram(
            "kubemq_commit_seconds",
            "time from handing a batch of operations to consensus until it was applied",
            &[(Vec::new(), self.gateway.commit_latency().read())],
        );
        let requests = self.durations.iter().map(|(method, request, latency)| {
            let mut labels = vec![("interface", "grpc"), ("method", method)];
            labels.extend((!request.is_empty()).then_some(("request", request)));
            (labels, latency.read())
        });
        let help = "time that calls took that are answered once, and requests on streams; receiving includes waiting";
        [commit, histogram("kubemq_request_duration_seconds", help, &requests.collect::<Vec<_>>())]
    }
}

impl Numbers {
    fn read_state(&mut self, state: &State, readers: impl Fn(&str) -> usize) {
        for (kind, all) in [(Kind::Queue, &mut self.queues), (Kind::EventsStore, &mut self.events_store)] {
            for (n, channel) in state.channels(kind).enumerate() {
                let name = if n < CHANNELS { &**channel.name() } else { OTHERS };
                // Most scrapes see channels they have a name for; the others share one.
                let numbers = match all.get_mut(name) {
                    Some(numbers) => numbers,
                    None => all.entry(name.to_owned()).or_default(),
                };
                numbers.add(channel.totals(), channel.waiting(), channel.waiting_bytes());
                if kind == Kind::EventsStore {
                    numbers.readers += as_u64(readers(channel.name()));
                }
            }
        }
        self.channels = state.channel_count();
        self.timers = state.timer_count();
        self.index_memory = state.index_bytes();
    }

    fn families(&self, host: &str) -> Vec<MetricFamily> {
        let mut families = traffic::families(&self.traffic, host);
        families.extend(self.message_families(host));
        self.live.add_to(&mut families, host);
        self.add_refused(&mut families, host);
        families.extend(self.queue_families(host));
        let (classes, sum) = (self.log.fdatasync_latency, Duration::from_nanos(self.log.fdatasync_nanos));
        let flushes = Observed { classes, sum };
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        families.push(gauge("kubemq_build_info", "version of the program", &version, 1));
        families.extend([
            gauge("kubemq_channels", "channels of all kinds", &[], self.channels),
            gauge("kubemq_queue_inflight", "messages that receivers hold", &[], self.in_flight),
            gauge("kubemq_queue_polls", "receivers that wait for messages", &[], self.polls),
            gauge("kubemq_readers_waiting_events", "stored events read ahead for connections", &[], self.reading),
            gauge(
                "kubemq_stream_unanswered_requests",
                "requests on streams that wait for their outcome",
                &[],
                as_u64(self.unanswered.0),
            ),
            gauge("kubemq_stream_unanswered_bytes", "what they want stored", &[], as_u64(self.unanswered.1)),
            counter("kubemq_operations_total", "messages and settlements committed for clients", &[], self.operations),
            gauge("kubemq_ingest_bytes", "memory of large requests on their way in", &[], self.ingest),
            gauge("kubemq_ingest_waiting", "large requests that wait for their turn", &[], self.ingest_waiting),
            counter(
                "kubemq_damaged_messages_total",
                "stored messages that could not be read here and were passed over",
                &[],
                self.passed_over,
            ),
            gauge("kubemq_missing_bodies", "stored messages whose bodies are in no file here", &[], self.missing),
            counter("kubemq_scrub_read_bytes_total", "bytes that were read again and checked", &[], self.scrub.bytes),
            gauge("kubemq_scrub_damaged", "damaged places that the scrubber knows of", &[], self.scrub.damaged),
            gauge(
                "kubemq_scrub_last_pass_seconds",
                "when everything had last been read again, since 1970; 0: not yet",
                &[],
                self.scrub.last_pass,
            ),
            gauge("kubemq_timers", "messages that wait for their delay", &[], self.timers),
            gauge("kubemq_index_memory_bytes", "memory of the index of messages", &[], self.index_memory),
            gauge("kubemq_index_disk_bytes", "disk of the index of messages", &[], self.index.disk_bytes),
            gauge("kubemq_index_blocks", "blocks of the index on disk", &[], self.index.blocks),
            counter("kubemq_index_left_memory_total", "blocks of the index that left the memory", &[], self.index_left),
            counter("kubemq_index_came_back_total", "blocks of the index that came back", &[], self.index_came_back),
            counter("kubemq_index_refused_total", "blocks that the index could not take", &[], self.index.refused),
            gauge("kubemq_store_bytes", "disk of the log", &[], self.log_bytes),
            gauge("kubemq_store_free_bytes", "disk that is free", &[], self.free_bytes),
            gauge("kubemq_durability_info", "what an acknowledgement promises", &[("mode", self.durability)], 1),
            gauge("kubemq_log_unflushed_bytes", "answered before they were flushed", &[], self.log.unflushed_bytes),
            gauge("kubemq_store_nearly_full", "whether sends are refused for want of disk", &[], self.nearly_full),
            gauge("kubemq_store_segments", "files of the log", &[], self.segments),
            counter("kubemq_log_written_bytes_total", "bytes written to the log", &[], self.log.bytes),
            counter("kubemq_log_entries_total", "entries written to the log", &[], self.log.entries),
            counter("kubemq_log_groups_total", "write groups, each flushed once", &[], self.log.groups),
            counter("kubemq_log_fdatasync_total", "flushes of the log", &[], self.log.fdatasyncs),
            counter("kubemq_log_file_reads_total", "reads that memory could not serve", &[], self.log.file_reads),
            gauge("kubemq_log_tail_bytes", "memory of the newest part of the log", &[], self.log.tail_bytes),
            gauge("kubemq_raft_term", "term of consensus", &[], self.term),
            gauge("kubemq_raft_leader", "1 on the node that leads", &[], u64::from(self.leads)),
            gauge("kubemq_raft_committed_index", "last entry known to be committed", &[], self.committed),
            gauge("kubemq_raft_applied_index", "last entry applied here", &[], self.applied),
            counter("kubemq_raft_leader_changes_total", "times that this node came to lead", &[], self.leaderships),
            self.lag_family(),
            histogram("kubemq_log_fdatasync_seconds", "time that flushes of the log took", &[(Vec::new(), flushes)]),
        ]);
        // Of some there may be nothing to tell.
        families.retain(|family| !family.get_metric().is_empty());
        families
    }

    /// Adds what was refused to what requests count as errors.
    fn add_refused(&self, families: &mut Vec<MetricFamily>, host: &str) {
        let refused = self.refused.iter().filter(|(name, _)| !name.is_empty());
        let metrics =
            refused.map(|(name, count)| metric(MetricType::COUNTER, &live::labels(host, name, "send", ""), *count));
        live::add(families, live::ERRORS, live::ERRORS_HELP, MetricType::COUNTER, metrics.collect());
    }

    /// What only queues have.
    fn queue_families(&self, host: &str) -> [MetricFamily; 2] {
        let labels = |queue| live::labels(host, "queues", "send", queue);
        let depth =
            self.queues.iter().map(|(queue, numbers)| metric(MetricType::GAUGE, &labels(queue), numbers.waiting));
        let aged = self.queues.iter().filter_map(|(queue, numbers)| Some((queue, numbers.oldest?)));
        let ages = aged.map(|(queue, age)| measured(&labels(queue), age.as_secs_f64()));
        let (help, age_help) = ("messages stored and not settled", "age of the oldest message, since it was sent");
        [
            family("kubemq_queue_depth", help, MetricType::GAUGE, depth.collect()),
            family("kubemq_queue_oldest_age_seconds", age_help, MetricType::GAUGE, ages.collect()),
        ]
    }

    fn lag_family(&self) -> MetricFamily {
        let metrics =
            self.behind.iter().map(|(id, behind)| metric(MetricType::GAUGE, &[("peer", &id.to_string())], *behind));
        let help = "entries that a follower lacks, on the node that leads";
        family("kubemq_raft_follower_lag_entries", help, MetricType::GAUGE, metrics.collect())
    }

    fn message_families(&self, host: &str) -> Vec<MetricFamily> {
        type Read = fn(&ChannelNumbers) -> u64;
        let rows: [(&str, &str, MetricType, &str, Read); 6] = [
            (
                "kubemq_messages_expired",
                "counts how many messages are expired per node,type,side,channel",
                MetricType::COUNTER,
                "send",
                |numbers| numbers.totals.expired,
            ),
            (
                "kubemq_messages_delayed",
                "counts how many messages are delayed per node,type,side,channel",
                MetricType::GAUGE,
                "send",
                |numbers| numbers.totals.delayed,
            ),
            (
                "kubemq_messages_pending",
                "current pending messages per node,type,side,channel: stored and not settled",
                MetricType::GAUGE,
                "send",
                |numbers| numbers.waiting,
            ),
            (
                "kubemq_dead_letter_total",
                "messages that left for a dead-letter channel",
                MetricType::COUNTER,
                "receive",
                |numbers| numbers.totals.dead_lettered,
            ),
            (
                "kubemq_redelivered_total",
                "messages that came back to be delivered again",
                MetricType::COUNTER,
                "receive",
                |numbers| numbers.totals.redelivered,
            ),
            (
                CLIENTS,
                "holds amount of connected clients per node,type,side,channel: subscriptions, by channel or pattern",
                MetricType::GAUGE,
                "receive",
                |numbers| numbers.readers,
            ),
        ];
        let mut families: Vec<MetricFamily> = Vec::new();
        for (name, help, kind, side, read) in rows {
            let queues = self.queues.iter().filter(|_| name != CLIENTS).map(|numbers| ("queues", numbers));
            let stored = self.events_store.iter().filter(|_| OF_EVENTS_STORE.contains(&name));
            let all = queues.chain(stored.map(|numbers| ("events_store", numbers)));
            let metrics = all.map(|(of, (channel, numbers))| {
                let labels = [("node", host), ("client_id", ""), ("type", of), ("side", side), ("channel", channel)];
                metric(kind, &labels, read(numbers))
            });
            match families.iter_mut().find(|family| family.name() == name) {
                Some(family) => family.mut_metric().extend(metrics),
                None => families.push(family(name, help, kind, metrics.collect())),
            }
        }
        families.retain(|family| !family.get_metric().is_empty());
        families
    }
}

impl ChannelNumbers {
    fn add(&mut self, totals: &Totals, waiting: u64, waiting_bytes: u64) {
        let sum = &mut self.totals;
        sum.expired += totals.expired;
        sum.dead_lettered += totals.dead_lettered;
        sum.redelivered += totals.redelivered;
        sum.delayed += totals.delayed;
        self.waiting += waiting;
        self.waiting_bytes += waiting_bytes;
    }
}

fn as_u64(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::{Counts, Side};
    use std::collections::BTreeSet;

    fn sample() -> Numbers {
        let totals = Totals { dead_lettered: 1, delayed: 2, ..Totals::default() };
        let row = |side, messages| {
            let counts = Counts { messages, bytes: 10, errors: 1, last_seen: 5_000_000 };
            ((Of::Queues, side, "orders".into(), "me".into()), counts)
        };
        let asked = Counts { messages: 2, bytes: 10, errors: 1, last_seen: 5_000_000 };
        let orders = ChannelNumbers { totals, waiting: 3, waiting_bytes: 99, ..ChannelNumbers::default() };
        let read = ChannelNumbers { readers: 2, ..orders };
        let mut numbers = Numbers {
            queues: [("orders".to_owned(), orders)].into(),
            events_store: [("log".to_owned(), read)].into(),
            traffic: [
                row(Side::Send, 7),
                row(Side::Receive, 3),
                ((Of::Commands, Side::Send, "c".into(), "".into()), asked),
            ]
            .into(),
            ..Numbers::default()
        };
        numbers.log.fdatasync_latency[7] = 2;
        numbers.log.fdatasync_latency[8] = 1;
        numbers.log.fdatasync_nanos = 450_000;
        numbers
    }

    fn render(numbers: &Numbers) -> String {
        TextEncoder::new().encode_to_string(&numbers.families("node-a")).unwrap()
    }

    #[test]
    fn numbers_appear_under_their_names_and_labels() {
        let text = render(&sample());
        let labelled = |name: &str, client: &str, side: &str| {
            format!(
                "{name}{{node=\"node-a\",client_id=\"{client}\",type=\"queues\",side=\"{side}\",channel=\"orders\"}}"
            )
        };
        let queue = |name: &str, side: &str| labelled(name, "", side);
        let of_client = |name: &str, side: &str| labelled(name, "me", side);
        for line in [
            format!("{} 7", of_client("kubemq_messages_count", "send")),
            format!("{} 3", of_client("kubemq_messages_count", "receive")),
            format!("{} 10", of_client("kubemq_messages_volume", "send")),
            format!("{} 5", of_client("kubemq_messages_last_seen", "send")),
            "kubemq_errors_count{node=\"node-a\",client_id=\"\",type=\"commands\",side=\"send\",channel=\"c\"} 1".to_owned(),
            format!("{} 2", queue("kubemq_messages_delayed", "send")),
            format!("{} 3", queue("kubemq_messages_pending", "send")),
            format!("{} 1", queue("kubemq_dead_letter_total", "receive")),
            "kubemq_clients_count{node=\"node-a\",client_id=\"\",type=\"events_store\",side=\"receive\",channel=\"log\"} 2"
                .to_owned(),
            "kubemq_messages_pending{node=\"node-a\",client_id=\"\",type=\"events_store\",side=\"send\",channel=\"log\"} 3"
                .to_owned(),
            "# TYPE kubemq_messages_count counter".to_owned(),
            "# TYPE kubemq_messages_delayed gauge".to_owned(),
            "kubemq_log_fdatasync_seconds_bucket{le=\"0.000064\"} 0".to_owned(),
            "kubemq_log_fdatasync_seconds_bucket{le=\"0.000128\"} 2".to_owned(),
            "kubemq_log_fdatasync_seconds_bucket{le=\"+Inf\"} 3".to_owned(),
            "kubemq_log_fdatasync_seconds_sum 0.00045".to_owned(),
            "kubemq_log_fdatasync_seconds_count 3".to_owned(),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn each_family_appears_once_and_is_explained() {
        for numbers in [sample(), Numbers::default()] {
            let families = numbers.families("n");
            let names: BTreeSet<&str> = families.iter().map(MetricFamily::name).collect();
            assert_eq!(names.len(), families.len());
            assert!(families.iter().all(|family| !family.help().is_empty() && family.name().starts_with("kubemq_")));
        }
    }

    #[test]
    fn latencies_fall_into_their_class() {
        let latency = Latency::default();
        for micros in [0, 1, 2, 100, u64::MAX / 1000] {
            latency.observe(Duration::from_micros(micros));
        }
        let classes = latency.read().classes;
        assert_eq!((classes[0], classes[1], classes[2], classes[7], classes[CLASSES - 1]), (1, 1, 1, 1, 1));
    }
}
