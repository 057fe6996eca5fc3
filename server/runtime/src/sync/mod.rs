//! What tasks talk through.
//!
//! tokio's channels and locks are deterministic, except for its `watch`, which wakes its waiters in random
//! order; [`watch`] here wakes them in the order in which they began to wait.

pub use tokio::sync::{Mutex, Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

pub mod watch;
