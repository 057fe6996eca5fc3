//! The HTTP interface for operators: is it alive, does it serve, what does it do.
//!
//! It is up before anything else and ends last, so that whoever watches the node sees why it does not serve.
//! It changes nothing.

mod health;
mod metrics;

use std::io;

use axum::Router;
use axum::routing::get;
use kubemq_runtime::sync::watch;
use tokio::net::TcpListener;

use crate::grpc::{Durations, Ingest};
use crate::metrics::Metrics;
use crate::node::Node;

pub use health::Readiness;

/// What the node does, as operators see it.
#[derive(Clone, Default)]
pub enum Stage {
    /// It recovers what it has stored.
    #[default]
    Starting,
    /// It serves while it has a leader.
    Serving(Served),
    /// It stops.
    Stopping,
    /// Its state cannot be trusted or written any more.
    Failed,
}

/// What a serving node can be asked.
#[derive(Clone)]
pub struct Served {
    readiness: Readiness,
    metrics: Metrics,
}

impl Served {
    /// Returns what can be asked of `node`, which is named `host` in its metrics, takes requests in from
    /// `ingest`, and counts in `durations` how long they take.
    #[must_use]
    pub fn new(node: &Node, ingest: &Ingest, durations: &Durations, host: &str) -> Self {
        let raft = node.raft().clone();
        let readiness = Readiness::new(move || raft.status().leader.is_some());
        Self { readiness, metrics: Metrics::new(node, ingest, durations, host) }
    }
}

type Stages = watch::Receiver<Stage>;

/// Serves on `listener` for as long as the process lives.
///
/// # Errors
///
/// When the listener fails.
pub async fn serve(listener: TcpListener, stage: watch::Receiver<Stage>) -> io::Result<()> {
    axum::serve(listener, routes(stage)).await
}

fn routes(stage: Stages) -> Router {
    Router::new()
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/metrics", get(metrics::metrics))
        .with_state(Shared(stage))
}

/// What every handler gets.
#[derive(Clone)]
struct Shared(Stages);

impl Shared {
    fn stage(&self) -> Stage {
        self.0.borrow().clone()
    }
}

#[cfg(test)]
mod tests;
