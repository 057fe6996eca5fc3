//! The doors to time, randomness and tasks.
//!
//! Everything in this workspace that waits, draws a random number or starts a task does so through a
//! [`Runtime`] that it was handed. A program makes one with [`Runtime::real`]; the simulation makes one per
//! node, backed by its own executor, so that whole nodes replay under one seed. There is no global state
//! here and nothing that knows what a message is.
//!
//! Start reading in [`clock`], then [`task`].

pub mod backoff;
pub mod chain;
pub mod clock;
pub mod hash;
pub mod random;
pub mod sync;
pub mod task;

pub use chain::chain;
pub use clock::{Clock, Instant, UnixNanos};
pub use hash::{FixedHashMap, FixedHashSet};
pub use random::Random;
pub use task::{OnFailure, Task, Tasks};

/// The doors of one node, cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    /// Monotonic and wall time, sleeping and deadlines.
    pub clock: Clock,
    /// Ids and jitter.
    pub random: Random,
    /// Tasks and threads.
    pub tasks: Tasks,
}

impl Runtime {
    /// Returns the doors of a real process: the system's clocks, a generator seeded by the system, and the
    /// tokio runtime of the caller.
    ///
    /// # Panics
    ///
    /// Panics when called outside a tokio runtime.
    #[must_use]
    pub fn real() -> Self {
        Self { clock: Clock::real(), random: Random::from_system(), tasks: Tasks::tokio() }
    }
}
