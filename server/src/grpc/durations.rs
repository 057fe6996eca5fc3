//! How long calls took, by method, and requests on streams, by what they ask for. How long a stream is open says nothing
//! and is not counted, nor is what a subscription brings.

use std::sync::Arc;

use kubemq_runtime::{Clock, Instant};

use crate::gateway::stream::Exchange;
use crate::metrics::Latency;

/// Methods that are answered once.
const METHODS: [&str; 9] = [
    "AckAllQueueMessages",
    "Ping",
    "QueuesInfo",
    "ReceiveQueueMessages",
    "SendEvent",
    "SendQueueMessage",
    "SendQueueMessagesBatch",
    "SendRequest",
    "SendResponse",
];

/// The durations of one server's calls and requests. Clones are the same.
#[derive(Clone, Default)]
pub struct Durations {
    calls: Arc<[Latency; METHODS.len()]>,
    pub(super) events: Arc<Latency>,
    pub(super) upstream: Arc<Latency>,
    pub(super) downstream: Arc<Exchange>,
    pub(super) queue_stream: Arc<Exchange>,
}

impl Durations {
    /// Counts a call of `method` when what is returned is dropped; nothing when the method is not counted.
    pub(super) fn begin(&self, method: &str, clock: &Clock) -> Option<Timed> {
        let place = METHODS.iter().position(|name| *name == method)?;
        Some(Timed { durations: self.clone(), place, clock: clock.clone(), began: clock.now() })
    }

    /// Returns the methods and what was counted for them; of streams also what was asked for.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, &Latency)> {
        let calls = METHODS.into_iter().zip(&*self.calls).map(|(method, latency)| (method, "", latency));
        calls.chain([
            ("SendEventsStream", "send", &*self.events),
            ("QueuesUpstream", "send", &*self.upstream),
            ("QueuesDownstream", "get", &self.downstream.gets),
            ("QueuesDownstream", "settle", &self.downstream.settlements),
            ("StreamQueueMessage", "get", &self.queue_stream.gets),
            ("StreamQueueMessage", "settle", &self.queue_stream.settlements),
        ])
    }
}

/// A call under way. It has ended when this is dropped, whichever way.
pub(super) struct Timed {
    durations: Durations,
    place: usize,
    clock: Clock,
    began: Instant,
}

impl Drop for Timed {
    fn drop(&mut self) {
        if let Some(latency) = self.durations.calls.get(self.place) {
            latency.observe(self.clock.now().since(self.began));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;

    use super::*;

    #[test]
    fn all_methods_are_counted_but_subscriptions() {
        let files = prost_types::FileDescriptorSet::decode(kubemq_proto::FILE_DESCRIPTOR_SET).unwrap();
        let methods = files.file.iter().flat_map(|file| &file.service).flat_map(|service| &service.method);
        let (streams, calls): (Vec<_>, Vec<_>) = methods
            .filter(|method| method.client_streaming() || !method.server_streaming())
            .partition(|method| method.client_streaming());
        let names = |methods: Vec<&prost_types::MethodDescriptorProto>| -> BTreeSet<String> {
            methods.into_iter().map(|method| method.name().to_owned()).collect()
        };
        let durations = Durations::default();
        let counted = |of_streams: bool| -> BTreeSet<String> {
            let rows = durations.iter().filter(|(_, request, _)| request.is_empty() != of_streams);
            rows.map(|(method, ..)| method.to_owned()).collect()
        };
        assert_eq!(names(calls), counted(false));
        assert_eq!(names(streams), counted(true));
    }
}
