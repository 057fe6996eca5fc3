//! What each node believes the time to be.

use std::time::Duration;

/// The wall clock at the start of every run, in nanoseconds since the Unix epoch: some day in 2026.
const WALL_START: u64 = 1_780_000_000_000_000_000;

/// The clocks of one node: monotonic with drift, wall with jumps.
#[derive(Clone, Debug)]
pub(super) struct NodeClock {
    /// True time and monotonic time when the drift last changed.
    base: (u64, u64),
    /// Parts per million that this node's clock runs faster than true time.
    drift: i64,
    /// What is added to the wall clock.
    wall_offset: i64,
}

impl NodeClock {
    pub(super) fn new() -> Self {
        Self { base: (0, 1_000_000_000), drift: 0, wall_offset: 0 }
    }

    pub(super) fn monotonic(&self, truth: u64) -> u64 {
        let passed = truth.saturating_sub(self.base.0);
        let skew = i128::from(passed) * i128::from(self.drift) / 1_000_000;
        let there = i128::from(self.base.1) + i128::from(passed) + skew;
        u64::try_from(there).unwrap_or(u64::MAX)
    }

    /// Returns the true time at which this clock will show `monotonic`, or a little later.
    pub(super) fn truth(&self, monotonic: u64) -> u64 {
        let ahead = i128::from(monotonic) - i128::from(self.base.1);
        if ahead <= 0 {
            return self.base.0;
        }
        let passed = ahead * 1_000_000 / (1_000_000 + i128::from(self.drift)) + 1;
        let passed = if self.drift == 0 { ahead } else { passed };
        u64::try_from(i128::from(self.base.0) + passed).unwrap_or(u64::MAX)
    }

    pub(super) fn wall(&self, truth: u64) -> u64 {
        WALL_START.saturating_add(self.monotonic(truth)).saturating_add_signed(self.wall_offset)
    }

    pub(super) fn set_drift(&mut self, truth: u64, drift: i64) {
        self.base = (truth, self.monotonic(truth));
        self.drift = drift.clamp(-500_000, 500_000);
    }

    pub(super) fn jump_wall(&mut self, forward: bool, by: Duration) {
        let by = i64::try_from(by.as_nanos()).unwrap_or(i64::MAX);
        self.wall_offset = self.wall_offset.saturating_add(if forward { by } else { -by });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_true_time_of_a_deadline_is_not_before_it() {
        let mut clock = NodeClock::new();
        for drift in [0, 1, -1, 333, -777, 100_000, -400_000] {
            clock.set_drift(5_000_000_123, drift);
            for deadline in [6_000_000_000, 6_000_000_001, 99_999_999_999, 1_000_000_000] {
                let truth = clock.truth(deadline);
                assert!(clock.monotonic(truth) >= deadline, "{drift} {deadline}");
            }
        }
    }

    #[test]
    fn a_change_of_drift_does_not_move_the_clock() {
        let mut clock = NodeClock::new();
        clock.set_drift(0, 250);
        let before = clock.monotonic(7_000_000_007);
        clock.set_drift(7_000_000_007, -250);
        assert_eq!(clock.monotonic(7_000_000_007), before);
    }
}
