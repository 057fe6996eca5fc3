//! The numbers of events, commands and queries that are not those of their clients.

use std::collections::BTreeMap;

use prometheus::proto::{MetricFamily, MetricType};

use super::{CHANNELS, OTHERS, as_u64, family, gauge, metric};
use crate::live::{Counted, Live, Pattern, Totals};

/// What is known of them at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct LiveNumbers {
    channels: BTreeMap<&'static str, BTreeMap<Box<str>, Counted>>,
    totals: Totals,
}

/// What is shown of a channel.
struct Row {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    side: &'static str,
    read: fn(&Counted) -> u64,
}

/// What went wrong, of all patterns.
pub(super) const ERRORS: &str = "kubemq_errors_count";
/// Its help.
pub(super) const ERRORS_HELP: &str = "counts errors per node,type,side,channel: requests that nobody answered in time \
                                      or executed, and, without a channel, messages that were refused";

const ROWS: [Row; 2] = [
    Row {
        name: "kubemq_clients_count",
        help: "holds amount of connected clients per node,type,side,channel: subscriptions, by channel or pattern",
        kind: MetricType::GAUGE,
        side: "receive",
        read: |counted| counted.subscribers,
    },
    Row {
        name: "kubemq_subscribers_dropped_total",
        help: "copies of messages that did not fit into a subscriber's queue",
        kind: MetricType::COUNTER,
        side: "receive",
        read: |counted| counted.dropped,
    },
];

impl LiveNumbers {
    pub(super) fn read(live: &Live) -> Self {
        let mut channels: BTreeMap<&'static str, BTreeMap<Box<str>, Counted>> = BTreeMap::new();
        for pattern in Pattern::ALL {
            let named = channels.entry(pattern.name()).or_default();
            for (name, counted) in live.counted(pattern) {
                let name = if named.len() < CHANNELS { name } else { OTHERS.into() };
                named.entry(name).or_default().add(&counted);
            }
        }
        Self { channels, totals: live.totals() }
    }

    /// Adds metrics to the families of their names.
    pub(super) fn add_to(&self, families: &mut Vec<MetricFamily>, host: &str) {
        for row in &ROWS {
            let mut metrics = Vec::new();
            for (kind, named) in &self.channels {
                metrics.extend(named.iter().map(|(channel, counted)| {
                    let labels = labels(host, kind, row.side, channel);
                    metric(row.kind, &labels, (row.read)(counted))
                }));
            }
            add(families, row.name, row.help, row.kind, metrics);
        }
        let Totals { pending_requests, waiting_bytes, cached_answers, cached_bytes, .. } = &self.totals;
        families.extend([
            gauge("kubemq_requests_pending", "requests that wait for their answer", &[], as_u64(*pending_requests)),
            gauge(
                "kubemq_subscribers_waiting_bytes",
                "memory of what waits for subscribers",
                &[],
                as_u64(*waiting_bytes),
            ),
            gauge("kubemq_query_cache_entries", "answers kept for queries", &[], as_u64(*cached_answers)),
            gauge("kubemq_query_cache_bytes", "memory of answers kept for queries", &[], as_u64(*cached_bytes)),
        ]);
    }
}

pub(super) fn labels<'a>(
    host: &'a str,
    kind: &'a str,
    side: &'a str,
    channel: &'a str,
) -> [(&'static str, &'a str); 5] {
    [("node", host), ("client_id", ""), ("type", kind), ("side", side), ("channel", channel)]
}

pub(super) fn add(
    families: &mut Vec<MetricFamily>,
    name: &str,
    help: &str,
    kind: MetricType,
    metrics: Vec<prometheus::proto::Metric>,
) {
    match families.iter_mut().find(|family| family.name() == name) {
        Some(family) => family.mut_metric().extend(metrics),
        None if metrics.is_empty() => {}
        None => families.push(family(name, help, kind, metrics)),
    }
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    #[tokio::test]
    async fn so_many_channels_are_named_and_the_others_summed_up() {
        let live = Live::new(&kubemq_runtime::Runtime::real(), crate::live::Limits::default());
        let subscribe = |number: usize| {
            let channel = format!("c.{number:05}");
            live.subscribe(Pattern::Events, &kubemq_proto::kubemq::Subscribe { channel, ..Default::default() })
        };
        let subscriptions: Vec<_> = (0..CHANNELS + 50).map(subscribe).collect();
        let numbers = LiveNumbers::read(&live);
        let named = &numbers.channels["events"];
        assert_eq!((named.len(), named[OTHERS].subscribers), (CHANNELS + 1, 50));
        assert_eq!(named.values().map(|counted| counted.subscribers).sum::<u64>(), subscriptions.len() as u64);
    }

    #[test]
    fn they_stand_beside_those_of_stored_events_under_the_same_names() {
        let counted = Counted { dropped: 1, subscribers: 2, ..Counted::default() };
        let named = BTreeMap::from([("orders".into(), counted)]);
        let numbers = LiveNumbers { channels: BTreeMap::from([("queries", named)]), totals: Totals::default() };
        let reader = metric(MetricType::GAUGE, &labels("node-a", "events_store", "receive", "e"), 7);
        let mut families = vec![family("kubemq_clients_count", "counts", MetricType::GAUGE, vec![reader])];
        numbers.add_to(&mut families, "node-a");
        let text = TextEncoder::new().encode_to_string(&families).unwrap();
        let line = |name: &str, kind: &str, channel: &str, value: u64| {
            format!(
                "{name}{{node=\"node-a\",client_id=\"\",type=\"{kind}\",side=\"receive\",channel=\"{channel}\"}} {value}"
            )
        };
        for expected in [
            line("kubemq_clients_count", "events_store", "e", 7),
            line("kubemq_clients_count", "queries", "orders", 2),
            line("kubemq_subscribers_dropped_total", "queries", "orders", 1),
        ] {
            assert!(text.lines().any(|line| line == expected), "{expected}\n{text}");
        }
        assert_eq!(text.matches("# TYPE kubemq_clients_count ").count(), 1);
    }
}
