//! Time: a monotonic clock, the wall clock, sleeping and deadlines.

use std::fmt;
use std::future::Future;
use std::ops::{Add, Sub};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::BoxFuture;

/// A point of monotonic time: nanoseconds since the clock was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// Returns the point `nanos` nanoseconds after the clock was made.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Returns the nanoseconds since the clock was made.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Returns the time from `earlier` to `self`, zero when `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(saturating_nanos(duration)))
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(saturating_nanos(duration)))
    }
}

/// Wall-clock time: nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixNanos(pub u64);

impl Add<Duration> for UnixNanos {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(saturating_nanos(duration)))
    }
}

/// The time that a deadline passed before the awaited thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("deadline has elapsed")]
pub struct Elapsed;

/// What stands behind a [`Clock`].
pub trait TimeSource: Send + Sync + 'static {
    /// Returns the monotonic time.
    fn now(&self) -> Instant;
    /// Returns the wall-clock time, which may jump.
    fn wall(&self) -> UnixNanos;
    /// Returns a future that ends at `deadline`.
    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()>;
}

/// The clock of one node.
#[derive(Clone)]
pub struct Clock(Arc<dyn TimeSource>);

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

impl Clock {
    /// Returns a clock over `source`.
    pub fn new(source: impl TimeSource) -> Self {
        Self(Arc::new(source))
    }

    /// Returns the system's clock.
    #[must_use]
    pub fn real() -> Self {
        Self::new(SystemTime::start())
    }

    /// Returns the monotonic time.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.0.now()
    }

    /// Returns the wall-clock time, which may jump.
    #[must_use]
    pub fn wall(&self) -> UnixNanos {
        self.0.wall()
    }

    /// Sleeps for `duration`. Cancel safe.
    pub fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.sleep_until(self.now() + duration)
    }

    /// Sleeps until `deadline`. Cancel safe.
    pub fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        self.0.sleep_until(deadline)
    }

    /// Awaits `future` for at most `duration`. The future is polled first, so what is ready is never late.
    ///
    /// # Errors
    ///
    /// [`Elapsed`] when the time passed first; the future is dropped then.
    pub async fn timeout<F: Future>(&self, duration: Duration, future: F) -> Result<F::Output, Elapsed> {
        self.timeout_at(self.now() + duration, future).await
    }

    /// Awaits `future` until `deadline` at most. The future is polled first, so what is ready is never late.
    ///
    /// # Errors
    ///
    /// [`Elapsed`] when the deadline passed first; the future is dropped then.
    pub async fn timeout_at<F: Future>(&self, deadline: Instant, future: F) -> Result<F::Output, Elapsed> {
        let mut future = pin!(future);
        // The timer is made only when the future has to wait: most do not.
        let mut sleep: Option<Pin<Box<dyn Future<Output = ()> + Send>>> = None;
        std::future::poll_fn(|cx| {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(value));
            }
            let sleep = sleep.get_or_insert_with(|| self.0.sleep_until(deadline));
            sleep.as_mut().poll(cx).map(|()| Err(Elapsed))
        })
        .await
    }
}

struct SystemTime {
    start: std::time::Instant,
}

#[expect(clippy::disallowed_methods, reason = "this is the door to time")]
impl SystemTime {
    fn start() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the door to time")]
impl TimeSource for SystemTime {
    fn now(&self) -> Instant {
        Instant(saturating_nanos(self.start.elapsed()))
    }

    fn wall(&self) -> UnixNanos {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        UnixNanos(saturating_nanos(since_epoch))
    }

    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        let deadline = self.start + Duration::from_nanos(deadline.0);
        Box::pin(tokio::time::sleep_until(deadline.into()))
    }
}

fn saturating_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_ready_is_never_late() {
        let clock = Clock::real();
        let past = clock.now() - Duration::from_secs(1);
        assert_eq!(clock.timeout_at(past, async { 7 }).await, Ok(7));
        assert_eq!(clock.timeout_at(past, std::future::pending::<()>()).await, Err(Elapsed));
    }

    #[test]
    fn arithmetic_saturates() {
        let early = Instant::from_nanos(5);
        let late = early + Duration::MAX;
        assert_eq!(late.as_nanos(), u64::MAX);
        assert_eq!(early.since(late), Duration::ZERO);
    }
}
