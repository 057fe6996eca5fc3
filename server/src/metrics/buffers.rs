//! How full everything is that has a bound: two families with a label for each buffer.
//!
//! The queues of single streams and subscribers are not listed one by one; what all of them hold is.

use kubemq_raft::Node as Raft;
use kubemq_storage::log::Log;
use prometheus::proto::{MetricFamily, MetricType};

use super::{as_u64, family, metric};
use crate::gateway::Gateway;
use crate::grpc::Ingest;

/// One buffer at one moment: bytes, or a number of things, as its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Buffer {
    pub(super) name: &'static str,
    pub(super) used: u64,
    pub(super) most: u64,
}

impl Buffer {
    fn new(name: &'static str, used: usize, most: usize) -> Self {
        Self { name, used: as_u64(used), most: as_u64(most) }
    }
}

/// Returns how full the buffers of a node are.
pub(super) fn of(gateway: &Gateway, raft: &Raft, log: &Log, ingest: &Ingest) -> Vec<Buffer> {
    let [outbox_operations, outbox_bytes] = gateway.outbox_fill();
    let [batcher_operations, batcher_bytes] = raft.fill();
    let (live, limits) = (gateway.live().totals(), gateway.live().limits());
    let log = log.stats();
    let client_labels = gateway.traffic().fill();
    let (index, channels, state) =
        gateway.with_core(|core| (core.state.index_bytes(), core.state.channel_count(), *core.state.limits()));
    let (in_flight, most_in_flight) = gateway.with_core(|core| (core.desk.in_flight(), core.desk.most_in_flight()));
    vec![
        Buffer::new("outbox_operations", outbox_operations.0, outbox_operations.1),
        Buffer::new("outbox_bytes", outbox_bytes.0, outbox_bytes.1),
        Buffer::new("batcher_operations", batcher_operations.0, batcher_operations.1),
        Buffer::new("batcher_bytes", batcher_bytes.0, batcher_bytes.1),
        Buffer::new("ingest_bytes", ingest.used(), ingest.total()),
        Buffer::new("subscribers_bytes", live.waiting_bytes, limits.subscribers_bytes),
        Buffer::new("requests_pending", live.pending_requests, limits.pending_requests),
        Buffer::new("query_cache_bytes", live.cached_bytes, limits.cache_bytes),
        Buffer::new("routes", live.routes.0, live.routes.1),
        Buffer::new("counted_channels", live.counted_channels.0, live.counted_channels.1),
        Buffer::new("client_labels", client_labels.0, client_labels.1),
        Buffer { name: "read_ahead_bytes", used: log.read_ahead_bytes, most: log.read_ahead_most },
        Buffer { name: "tail_cache_bytes", used: log.tail_bytes, most: log.tail_most },
        Buffer { name: "page_cache_bytes", used: log.page_cache_bytes, most: log.page_cache_most },
        Buffer::new("in_flight", in_flight, most_in_flight),
        Buffer { name: "index_bytes", used: index, most: gateway.index_memory().most() },
        Buffer { name: "channels", used: channels, most: state.channels },
    ]
}

/// Returns the families of `buffers`.
pub(super) fn families(buffers: &[Buffer]) -> [MetricFamily; 2] {
    type Read = fn(&Buffer) -> u64;
    let rows: [(&str, &str, Read); 2] = [
        ("kubemq_buffer_used", "what a buffer holds: bytes or a number, as its name says", |buffer| buffer.used),
        ("kubemq_buffer_limit", "what a buffer may hold; the last message may go beyond it", |buffer| buffer.most),
    ];
    rows.map(|(name, help, read)| {
        let metrics = buffers.iter().map(|buffer| metric(MetricType::GAUGE, &[("buffer", buffer.name)], read(buffer)));
        family(name, help, MetricType::GAUGE, metrics.collect())
    })
}
