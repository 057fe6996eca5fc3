//! How long the oldest message of each queue has been waiting.
//!
//! The state does not know when a message was sent, its entry in the log does. It is read once for each message that
//! comes to be the oldest of its queue, mostly from memory; of many queues at once only some are read each time.

use std::collections::BTreeMap;

use kubemq_broker::{ChannelId, Kind};
use parking_lot::Mutex;

use super::CHANNELS;
use crate::gateway::Gateway;

/// Messages that are read for one scrape, at most.
const READS: usize = 64;

/// The oldest message of each queue, and when it was sent.
#[derive(Default)]
pub(super) struct Ages(Mutex<BTreeMap<ChannelId, (u64, Option<u64>)>>);

impl Ages {
    /// Returns the age of the oldest message of each queue in nanoseconds, as far as it is known.
    pub(super) async fn read(&self, gateway: &Gateway) -> BTreeMap<String, u64> {
        let oldest: Vec<(ChannelId, String, u64)> = gateway.with_core(|core| {
            let queues = core.state.channels(Kind::Queue).take(CHANNELS);
            let first = |queue: &kubemq_broker::Channel| {
                Some((queue.id(), queue.name().as_ref().to_owned(), queue.first_sequence()?))
            };
            queues.filter_map(first).collect()
        });
        let mut known = std::mem::take(&mut *self.0.lock());
        let mut still = BTreeMap::new();
        let mut ages = BTreeMap::new();
        let mut reads = 0;
        let now = gateway.time().0;
        for (id, name, sequence) in oldest {
            let sent = match known.remove(&id).filter(|(oldest, _)| *oldest == sequence) {
                Some((_, sent)) => sent,
                None if reads < READS => {
                    reads += 1;
                    // What cannot be read is told to the log, once.
                    gateway.stored_at(id, sequence).await.ok().flatten()
                }
                None => continue,
            };
            still.insert(id, (sequence, sent));
            if let Some(sent) = sent {
                ages.insert(name, now.saturating_sub(sent));
            }
        }
        *self.0.lock() = still;
        ages
    }
}
