//! The harness of the tests: the real program as a process, clients that speak its API, waiting for states,
//! and a checker of histories.
//!
//! It stands outside the program: it starts the binary, talks to it over its ports, kills it, and reads what
//! it logs. It refuses to know anything about the program's insides, so that a test that passes here says
//! something about what users get.
//!
//! Start reading in [`process`], then [`client`].
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a harness fails the test that uses it by panicking with what it saw"
)]

pub mod checker;
pub mod client;
pub mod errors;
pub mod history;
pub mod http;
pub mod live;
pub mod process;
pub mod raw;
pub mod stored;
pub mod wait;

use std::sync::Arc;
use std::time::Duration;

pub use client::{Client, Duplex, get, message, settle};
pub use process::{Options, Server};
pub use wait::{now, sleep, wait_until};

/// Returns the server that the tests of this process share, and a connection to it.
pub async fn connected() -> (Arc<Server>, Client) {
    let server = Server::shared().await;
    let client = Client::connect(&server.grpc()).await;
    (server, client)
}

/// Awaits `future` and says how long it took.
pub async fn timed<T>(future: impl Future<Output = T>) -> (T, Duration) {
    let started = now();
    let value = future.await;
    (value, now().since(started))
}

/// Fails the test when something that waits for `seconds` took less, or very much more.
///
/// # Panics
///
/// Panics then.
pub fn assert_about(took: Duration, seconds: f64) {
    let took = took.as_secs_f64();
    assert!(took > seconds - 0.05, "took {took} s, less than {seconds}");
    assert_soon(Duration::from_secs_f64((took - seconds).max(0.0)));
}

/// Fails the test when something that should happen at once took as long as a busy machine does not explain.
///
/// # Panics
///
/// Panics then.
pub fn assert_soon(took: Duration) {
    assert!(took < Duration::from_secs(10), "took {took:?}");
}
