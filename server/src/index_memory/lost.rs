//! Blocks of the index that were found nowhere. To look for them again costs reading a whole snapshot, so it is done less
//! and less often while nobody asks for others; whoever needs them waits no longer than he would have waited anyway.

use std::collections::BTreeSet;
use std::time::Duration;

use kubemq_broker::BlockKey;
use kubemq_runtime::backoff::Backoff;
use kubemq_runtime::{Instant, Random};

/// How long to wait before the snapshot is read again, at first.
const FIRST: Duration = Duration::from_secs(1);
/// The same after many times.
const MOST: Duration = Duration::from_secs(60);

/// See the module documentation.
pub(super) struct Lost {
    /// Of all times since something was found: no more than blocks that are away.
    blocks: BTreeSet<BlockKey>,
    again: Option<Instant>,
    backoff: Backoff,
}

impl Lost {
    pub(super) fn new(random: Random) -> Self {
        Self { blocks: BTreeSet::new(), again: None, backoff: Backoff::new(FIRST, MOST, random) }
    }

    /// Returns whether all of `missing` were looked for in vain a short while ago.
    pub(super) fn holds(&self, missing: &BTreeSet<BlockKey>, now: Instant) -> bool {
        self.again.is_some_and(|again| now < again) && missing.is_subset(&self.blocks)
    }

    /// Notes that not all of `missing` were found.
    pub(super) fn add(&mut self, missing: &BTreeSet<BlockKey>, now: Instant) {
        if !missing.is_subset(&self.blocks) {
            self.backoff.reset();
            self.blocks.extend(missing);
        }
        self.again = Some(now + self.backoff.wait());
    }

    /// Notes that everything was found.
    pub(super) fn clear(&mut self) {
        self.blocks.clear();
        self.again = None;
        self.backoff.reset();
    }
}

#[cfg(test)]
mod tests {
    use kubemq_broker::ChannelId;
    use kubemq_runtime::Clock;

    use super::*;

    #[test]
    fn what_was_found_nowhere_is_looked_for_less_and_less_often() {
        let block = |first_sequence| BTreeSet::from([BlockKey::Runs { channel: ChannelId(1), first_sequence }]);
        let mut lost = Lost::new(Random::from_seed(1));
        let begin = Clock::real().now();
        // Somebody asks twice a second for ten minutes.
        let mut looked = Vec::new();
        for half_seconds in 0..1200 {
            let now = begin + Duration::from_millis(500) * half_seconds;
            if !lost.holds(&block(1), now) {
                lost.add(&block(1), now);
                looked.push(half_seconds);
            }
        }
        assert!(looked.len() < 30, "{looked:?}");
        let now = begin + Duration::from_millis(500) * 1199;
        assert!(lost.holds(&block(1), now) && !lost.holds(&block(2), now), "another one is looked for at once");
        lost.add(&block(2), now);
        assert!(!lost.holds(&block(2), now + FIRST), "and soon again");
        lost.clear();
        assert!(!lost.holds(&block(1), now));
    }
}
