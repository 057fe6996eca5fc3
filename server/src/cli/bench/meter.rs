//! What is counted while a load runs.

use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use kubemq_runtime::Instant;
use parking_lot::Mutex;

/// The longest latency that is told apart from longer ones.
const LONGEST: Duration = Duration::from_secs(600);

/// Counters shared by all connections of a load.
#[derive(Clone)]
pub(super) struct Meter(Arc<Mutex<Counters>>);

/// What was counted since the last look.
#[derive(Clone, Debug)]
pub(super) struct Counters {
    /// Only requests that were meant to go from here on have their latency recorded.
    recorded_from: Instant,
    /// Nanoseconds, one value per message.
    pub(super) latencies: Histogram<u64>,
    pub(super) messages: u64,
    pub(super) refused: u64,
    pub(super) error: Option<String>,
}

impl Counters {
    fn new(recorded_from: Instant) -> Result<Self, hdrhistogram::CreationError> {
        let longest = u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX);
        let latencies = Histogram::new_with_bounds(100, longest, 3)?;
        Ok(Self { recorded_from, latencies, messages: 0, refused: 0, error: None })
    }

    /// Counts `messages` answered at `now`, meant to go at `intended`.
    pub(super) fn answered(&mut self, intended: Instant, now: Instant, messages: u64) {
        self.messages += messages;
        if intended >= self.recorded_from {
            let nanos = u64::try_from(now.since(intended).as_nanos()).unwrap_or(u64::MAX);
            self.latencies.saturating_record_n(nanos, messages);
        }
    }

    /// Counts `messages` that were refused.
    pub(super) fn refused(&mut self, messages: u64, error: String) {
        self.refused += messages;
        self.error.get_or_insert(error);
    }
}

impl Meter {
    pub(super) fn new() -> Result<Self, hdrhistogram::CreationError> {
        Ok(Self(Arc::new(Mutex::new(Counters::new(Instant::default())?))))
    }

    /// Counts with `count`: once per batch of answers, so that the lock costs nothing per message.
    pub(super) fn with(&self, count: impl FnOnce(&mut Counters)) {
        count(&mut self.0.lock());
    }

    /// Forgets everything, and from now on records no request that was meant to go before `now`.
    pub(super) fn start_over(&self, now: Instant) {
        let mut counters = self.0.lock();
        counters.latencies.reset();
        (counters.messages, counters.refused, counters.error, counters.recorded_from) = (0, 0, None, now);
    }

    /// Returns what was counted since the last call, and begins again from zero.
    pub(super) fn take(&self) -> Counters {
        let mut counters = self.0.lock();
        let taken = counters.clone();
        counters.latencies.reset();
        (counters.messages, counters.refused) = (0, 0);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_warm_up_leaves_no_latency_behind() {
        let meter = Meter::new().unwrap();
        let at = Instant::from_nanos;
        meter.with(|counters| counters.answered(at(5), at(10), 1));
        meter.start_over(at(100));
        // Meant to go before the measurement, answered within it: counted, not recorded.
        meter.with(|counters| counters.answered(at(99), at(5_000_099), 2));
        meter.with(|counters| counters.answered(at(100), at(2_000_100), 3));
        let taken = meter.take();
        assert_eq!((taken.messages, taken.latencies.len()), (5, 3));
        assert!((1_990_000..2_010_000).contains(&taken.latencies.value_at_quantile(0.5)));
        assert_eq!(meter.take().messages, 0);
    }
}
