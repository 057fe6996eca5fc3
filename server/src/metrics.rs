//! The numbers of a node, and their Prometheus names.
//!
//! Nothing counts twice: what the state, the log, the index and consensus count anyway is read when somebody
//! asks, so a message costs nothing here. Only what nobody else knows is counted in this file. There is no
//! global registry: [`Metrics`] hangs on its node.

mod live;
mod process;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kubemq_broker::{Kind, State, Totals};
use kubemq_storage::index::IndexStats;
use kubemq_storage::log::{Flush, Stats as LogStats};
use prometheus::TextEncoder;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use self::live::LiveNumbers;
use crate::grpc::Ingest;
use crate::node::Node;
use crate::scrub::ScrubStats;

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
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let class = usize::try_from(u64::BITS - micros.leading_zeros()).unwrap_or(CLASSES);
        self.classes[class.min(CLASSES - 1)].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn classes(&self) -> [u64; CLASSES] {
        std::array::from_fn(|class| self.classes[class].load(Ordering::Relaxed))
    }
}

/// What is known of one channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ChannelNumbers {
    totals: Totals,
    waiting: u64,
    waiting_bytes: u64,
    readers: u64,
}

/// What is shown of channels of stored events, too.
const OF_EVENTS_STORE: [&str; 5] =
    ["kubemq_messages_count", "kubemq_messages_volume", "kubemq_messages_expired", "kubemq_messages_pending", CLIENTS];

/// What is not shown of queues: who polls one now is no subscriber.
const CLIENTS: &str = "kubemq_clients_count";

/// What is known of a node at one moment.
#[derive(Clone, Debug, Default)]
struct Numbers {
    queues: BTreeMap<String, ChannelNumbers>,
    events_store: BTreeMap<String, ChannelNumbers>,
    live: LiveNumbers,
    channels: u64,
    timers: u64,
    index_memory: u64,
    in_flight: u64,
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
    /// How long it took from handing a batch to consensus until it was committed and applied.
    commit: Arc<Latency>,
    read: Arc<dyn Fn() -> Numbers + Send + Sync>,
    host: Arc<str>,
}

impl Metrics {
    /// Returns the metrics of `node`, which is named `host` in them and takes requests in from `ingest`.
    #[must_use]
    pub fn new(node: &Node, ingest: &Ingest, host: &str) -> Self {
        let (gateway, raft, log, index) =
            (node.gateway().clone(), node.raft().clone(), node.log().clone(), node.index().clone());
        let commit = gateway.commit_latency();
        let ingest = ingest.clone();
        let read = move || {
            let mut numbers = Numbers::default();
            gateway.with_core(|core| numbers.read_state(&core.state, |channel| core.desk.readers.count(channel)));
            numbers.live = LiveNumbers::read(gateway.live());
            numbers.in_flight = as_u64(gateway.in_flight());
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
            let status = raft.status();
            numbers.term = status.term;
            numbers.leads = status.leads();
            numbers.committed = status.committed.map_or(0, |id| id.index);
            numbers.applied = status.applied.map_or(0, |id| id.index);
            numbers
        };
        Self { commit, read: Arc::new(read), host: host.into() }
    }

    /// Returns the metrics of a node that has done nothing.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self { commit: Arc::default(), read: Arc::new(Numbers::default), host: "test".into() }
    }

    /// Returns everything in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        let mut families = (self.read)().families(&self.host);
        families.push(histogram(
            "kubemq_commit_seconds",
            "time from handing a batch of operations to consensus until it was applied",
            self.commit.classes(),
            Duration::from_nanos(self.commit.nanos.load(Ordering::Relaxed)),
        ));
        families.extend(process::families());
        // Only a family without metrics cannot be written, and none of these is.
        TextEncoder::new().encode_to_string(&families).unwrap_or_default()
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
        let mut families = self.message_families(host);
        self.live.add_to(&mut families, host);
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        families.push(gauge("kubemq_build_info", "version of the program", &version, 1));
        families.extend([
            gauge("kubemq_channels", "channels of all kinds", &[], self.channels),
            gauge("kubemq_queue_inflight", "messages that receivers hold", &[], self.in_flight),
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
            histogram(
                "kubemq_log_fdatasync_seconds",
                "time that flushes of the log took",
                self.log.fdatasync_latency,
                Duration::from_nanos(self.log.fdatasync_nanos),
            ),
        ]);
        families
    }

    fn message_families(&self, host: &str) -> Vec<MetricFamily> {
        type Read = fn(&ChannelNumbers) -> u64;
        let rows: [(&str, &str, MetricType, &str, Read); 10] = [
            (
                "kubemq_messages_count",
                "counts messages per node,type,side,channel: stored on the side send, settled or read on the side receive",
                MetricType::COUNTER,
                "send",
                |numbers| numbers.totals.sent,
            ),
            ("kubemq_messages_count", "", MetricType::COUNTER, "receive", ChannelNumbers::received),
            (
                "kubemq_messages_volume",
                "sum volume per node,type,side,channel",
                MetricType::COUNTER,
                "send",
                |numbers| numbers.totals.sent_bytes,
            ),
            ("kubemq_messages_volume", "", MetricType::COUNTER, "receive", |numbers| numbers.totals.settled_bytes),
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
        sum.sent += totals.sent;
        sum.sent_bytes += totals.sent_bytes;
        sum.settled += totals.settled;
        sum.settled_bytes += totals.settled_bytes;
        sum.expired += totals.expired;
        sum.dead_lettered += totals.dead_lettered;
        sum.redelivered += totals.redelivered;
        sum.delayed += totals.delayed;
        self.waiting += waiting;
        self.waiting_bytes += waiting_bytes;
    }

    /// What left for a dead-letter channel was not received.
    fn received(&self) -> u64 {
        self.totals.settled.saturating_sub(self.totals.dead_lettered)
    }
}

fn as_u64(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn gauge(name: &str, help: &str, labels: &[(&str, &str)], value: u64) -> MetricFamily {
    family(name, help, MetricType::GAUGE, vec![metric(MetricType::GAUGE, labels, value)])
}

fn counter(name: &str, help: &str, labels: &[(&str, &str)], value: u64) -> MetricFamily {
    family(name, help, MetricType::COUNTER, vec![metric(MetricType::COUNTER, labels, value)])
}

fn histogram(name: &str, help: &str, classes: [u64; CLASSES], sum: Duration) -> MetricFamily {
    let mut count = 0;
    let buckets = classes.iter().enumerate().take(CLASSES - 1).map(|(class, more)| {
        count += more;
        let mut bucket = Bucket::default();
        bucket.set_cumulative_count(count);
        bucket.set_upper_bound(Duration::from_micros(1 << class).as_secs_f64());
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(classes.iter().sum());
    histogram.set_sample_sum(sum.as_secs_f64());
    let mut metric = Metric::default();
    metric.set_histogram(histogram);
    family(name, help, MetricType::HISTOGRAM, vec![metric])
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are floating-point numbers")]
fn metric(kind: MetricType, labels: &[(&str, &str)], value: u64) -> Metric {
    let labels = labels.iter().map(|(name, value)| {
        let mut label = LabelPair::default();
        label.set_name((*name).to_owned());
        label.set_value((*value).to_owned());
        label
    });
    let mut metric = Metric::from_label(labels.collect());
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value as f64);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value as f64);
        metric.set_gauge(gauge);
    }
    metric
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn sample() -> Numbers {
        let totals = Totals { sent: 7, settled: 4, dead_lettered: 1, delayed: 2, ..Totals::default() };
        let orders = ChannelNumbers { totals, waiting: 3, waiting_bytes: 99, readers: 0 };
        let read = ChannelNumbers { readers: 2, ..orders };
        let mut numbers = Numbers {
            queues: [("orders".to_owned(), orders)].into(),
            events_store: [("log".to_owned(), read)].into(),
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
        let queue = |name: &str, side: &str| {
            format!("{name}{{node=\"node-a\",client_id=\"\",type=\"queues\",side=\"{side}\",channel=\"orders\"}}")
        };
        for line in [
            format!("{} 7", queue("kubemq_messages_count", "send")),
            format!("{} 3", queue("kubemq_messages_count", "receive")),
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
        let classes = latency.classes();
        assert_eq!((classes[0], classes[1], classes[2], classes[7], classes[CLASSES - 1]), (1, 1, 1, 1, 1));
    }
}
