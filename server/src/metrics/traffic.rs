//! The numbers of what clients send and receive, with the labels of KubeMQ.

use prometheus::proto::{Metric, MetricFamily, MetricType};

use super::families::{family, metric};
use super::live::{ERRORS, ERRORS_HELP};
use crate::traffic::{Counted, Counts, Of, Side};

/// What is shown of a row.
struct Shown {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    /// Whether a row of this pattern and direction has it.
    has: fn(Of, Side) -> bool,
    read: fn(&Counts) -> u64,
}

const SHOWN: [Shown; 4] = [
    Shown {
        name: "kubemq_messages_count",
        help: "counts messages per node,client_id,type,side,channel: sent, or delivered, since the node started",
        kind: MetricType::COUNTER,
        has: |_, _| true,
        read: |counts| counts.messages,
    },
    Shown {
        name: "kubemq_messages_volume",
        help: "sum volume per node,client_id,type,side,channel",
        kind: MetricType::COUNTER,
        has: |_, _| true,
        read: |counts| counts.bytes,
    },
    Shown {
        name: ERRORS,
        help: ERRORS_HELP,
        kind: MetricType::COUNTER,
        has: |of, side| matches!(of, Of::Commands | Of::Queries) && side == Side::Send,
        read: |counts| counts.errors,
    },
    Shown {
        name: "kubemq_messages_last_seen",
        help: "time of last seen message per node,client_id,type,side,channel, in milliseconds since the Unix epoch",
        kind: MetricType::GAUGE,
        has: |_, side| side == Side::Send,
        read: |counts| counts.last_seen / 1_000_000,
    },
];

/// Returns the families of `counted`.
pub(super) fn families(counted: &Counted, host: &str) -> Vec<MetricFamily> {
    let rows = |shown: &Shown| -> Vec<Metric> {
        let rows = counted.iter().filter(|((of, side, ..), _)| (shown.has)(*of, *side));
        let row = rows.map(|((of, side, channel, client), counts)| {
            let labels = [
                ("node", host),
                ("client_id", &**client),
                ("type", of.name()),
                ("side", side.name()),
                ("channel", &**channel),
            ];
            metric(shown.kind, &labels, (shown.read)(counts))
        });
        row.collect()
    };
    SHOWN.iter().map(|shown| family(shown.name, shown.help, shown.kind, rows(shown))).collect()
}
