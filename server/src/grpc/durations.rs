//! How long calls took, by method. Streams are not counted: how long they are open says nothing.

use std::sync::Arc;

use kubemq_runtime::{Clock, Instant};

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

/// The durations of one server's calls. Clones are the same.
#[derive(Clone, Default)]
pub struct Durations(Arc<[Latency; METHODS.len()]>);

impl Durations {
    /// Counts a call of `method` when what is returned is dropped; nothing when the method is not counted.
    pub(super) fn begin(&self, method: &str, clock: &Clock) -> Option<Timed> {
        let place = METHODS.iter().position(|name| *name == method)?;
        Some(Timed { durations: self.clone(), place, clock: clock.clone(), began: clock.now() })
    }

    /// Returns the methods and what was counted for them.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Latency)> {
        METHODS.into_iter().zip(&*self.0)
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
        if let Some(latency) = self.durations.0.get(self.place) {
            latency.observe(self.clock.now().since(self.began));
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn all_methods_that_are_answered_once_are_counted() {
        let files = prost_types::FileDescriptorSet::decode(kubemq_proto::FILE_DESCRIPTOR_SET).unwrap();
        let methods = files.file.iter().flat_map(|file| &file.service).flat_map(|service| &service.method);
        let unary = methods.filter(|method| !method.client_streaming() && !method.server_streaming());
        let mut names: Vec<_> = unary.map(|method| method.name()).collect();
        names.sort_unstable();
        assert_eq!(names, METHODS);
    }
}
