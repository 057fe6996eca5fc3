//! A histogram that counts nothing, in place of a dependency of openraft.
//!
//! openraft records batch sizes in histograms that only its `runtime-stats` feature shows, and that feature is
//! off here. The original builds tables of 26 MiB for them when a process starts, which is more than the rest
//! of an idle broker takes, and spends time on each message. This one has the names that openraft compiles
//! against and does nothing: turning `runtime-stats` on needs the original back (remove the patch in the
//! workspace's manifest).

use std::fmt;
use std::marker::PhantomData;

/// Takes values and forgets them.
pub struct Histogram<T = ()>(PhantomData<fn() -> T>);

impl<T> Histogram<T> {
    /// Returns a histogram.
    #[must_use]
    pub const fn new() -> Self {
        Self(PhantomData)
    }

    /// Forgets `value`.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Forgets `value`, `count` times.
    pub fn record_n(&mut self, value: u64, count: u64) {
        let _ = (value, count);
    }

    /// Returns the statistics of no values.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats::default()
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Clone for Histogram<T> {
    fn clone(&self) -> Self {
        Self::new()
    }
}

impl<T> PartialEq for Histogram<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<T> Eq for Histogram<T> {}

impl<T> fmt::Debug for Histogram<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Histogram")
    }
}

/// Statistics; always those of no values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PercentileStats {
    /// How many values there were.
    pub samples: u64,
    /// Below it lies a thousandth of the values.
    pub p0_1: u64,
    /// Below it lies a hundredth.
    pub p1: u64,
    /// Below it lies a twentieth.
    pub p5: u64,
    /// Below it lies a tenth.
    pub p10: u64,
    /// The median.
    pub p50: u64,
    /// Above it lies a tenth.
    pub p90: u64,
    /// Above it lies a hundredth.
    pub p99: u64,
    /// Above it lies a thousandth.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not counted")
    }
}

/// A chart of nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct AsciiChart;

impl AsciiChart {
    /// Returns a chart.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }

    /// Leaves the chart as it is.
    #[must_use]
    pub fn add<T>(self, name: &str, histogram: Histogram<T>) -> Self {
        let _ = (name, histogram);
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not counted")
    }
}
