//! Waiting for states, with a deadline and a name for what is awaited.
//!
//! Nothing here waits for an amount of time to have passed and then hopes; [`sleep`] is for rows of the
//! specification that speak of time themselves.

use std::time::Duration;

use kubemq_runtime::clock::Elapsed;
use kubemq_runtime::{Clock, Instant, Runtime};

const PAUSE: Duration = Duration::from_millis(10);

/// Long enough for anything that should happen at once, on a machine that is busy with other tests.
pub const SOON: Duration = Duration::from_secs(20);

/// Returns the clock of the calling thread's tests.
#[must_use]
pub fn clock() -> Clock {
    // One clock for all threads, so that their instants can be compared.
    static SHARED: std::sync::OnceLock<Clock> = std::sync::OnceLock::new();
    SHARED.get_or_init(Clock::real).clone()
}

/// Returns the monotonic time.
#[must_use]
pub fn now() -> Instant {
    clock().now()
}

/// Returns the wall-clock time in nanoseconds since the Unix epoch.
///
/// # Panics
///
/// Panics after the year 2262.
#[must_use]
pub fn wall() -> i64 {
    i64::try_from(clock().wall().0).expect("a time before the year 2262")
}

/// Returns the doors of the calling test. Call it inside a tokio runtime.
#[must_use]
pub fn runtime() -> Runtime {
    Runtime { clock: clock(), ..Runtime::real() }
}

/// Lets `duration` pass, for rows that speak of time themselves.
pub async fn sleep(duration: Duration) {
    clock().sleep(duration).await;
}

/// Awaits `future` for at most `duration`.
///
/// # Errors
///
/// [`Elapsed`] when the time passed first.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    clock().timeout(duration, future).await
}

/// Calls `probe` again and again until it returns something, and returns that.
///
/// # Panics
///
/// Panics with `what` when `deadline` passed first.
pub async fn wait_until<T>(what: &str, deadline: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let started = now();
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(now().since(started) < deadline, "waited {deadline:?} in vain for: {what}");
        sleep(PAUSE).await;
    }
}
