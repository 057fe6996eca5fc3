//! How long to wait before trying again.

use std::time::Duration;

use crate::Random;

/// Waits that double from `first` to `most`, each drawn from its upper half so that retries spread.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    first: Duration,
    most: Duration,
    random: Random,
}

impl Backoff {
    /// Returns waits from `first` to `most`.
    #[must_use]
    pub fn new(first: Duration, most: Duration, random: Random) -> Self {
        Self { next: first, first, most, random }
    }

    /// Returns the next wait.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.most);
        let half = wait / 2;
        let jitter = self.random.below(u64::try_from(half.as_nanos()).unwrap_or(u64::MAX));
        half + Duration::from_nanos(jitter)
    }

    /// Starts again from the first wait.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}
