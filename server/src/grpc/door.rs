//! Who may come in: whether the node serves, stops, or does neither yet, and how many calls are under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kubemq_proto::strings::Refusal;
use kubemq_runtime::sync::{Notify, watch};
use kubemq_runtime::{Instant, Runtime, UnixNanos};
use tonic::body::Body;

use super::durations::Durations;
use super::ingest::{Ingest, Metered, Paid};
use crate::gateway::stream::Stop;
use crate::gateway::{Gateway, Transactions};

/// What the node does now.
#[derive(Clone)]
pub enum Phase {
    /// It cannot serve yet: every call is refused.
    Starting,
    /// It serves.
    Serving(Gateway),
    /// It stops: what is under way is finished, nothing new begins.
    Stopping,
}

/// How the node introduces itself.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) host: String,
    pub(crate) version: String,
    /// When it started, by the wall clock and by the one that is never set.
    pub(crate) started: UnixNanos,
    pub(crate) started_at: Instant,
}

/// What all calls of one server share.
pub(crate) struct Door {
    pub(crate) runtime: Runtime,
    pub(crate) identity: Identity,
    pub(crate) transactions: Transactions,
    pub(crate) stop: Stop,
    ingest: Ingest,
    pub(crate) durations: Durations,
    /// The largest message, in bytes.
    largest: usize,
    phase: watch::Receiver<Phase>,
    under_way: AtomicUsize,
    idle: Notify,
}

impl Door {
    pub(crate) fn new(
        runtime: Runtime,
        identity: Identity,
        (ingest, durations, largest): (Ingest, Durations, usize),
        phase: watch::Receiver<Phase>,
    ) -> Arc<Self> {
        Arc::new(Self {
            runtime,
            identity,
            transactions: Transactions::default(),
            stop: Stop::new(),
            ingest,
            durations,
            largest,
            phase,
            under_way: AtomicUsize::new(0),
            idle: Notify::new(),
        })
    }

    /// Returns the gateway, or why nothing is served.
    pub(crate) fn gateway(&self) -> Result<Gateway, Refusal> {
        match &*self.phase.borrow() {
            Phase::Starting => Err(Refusal::NotReady),
            Phase::Serving(gateway) => Ok(gateway.clone()),
            Phase::Stopping => Err(Refusal::Shutdown),
        }
    }

    /// Returns whether calls are served.
    pub(crate) fn is_open(&self) -> Result<(), Refusal> {
        match &*self.phase.borrow() {
            Phase::Starting => Err(Refusal::NotReady),
            Phase::Serving(_) => Ok(()),
            Phase::Stopping => Err(Refusal::Shutdown),
        }
    }

    /// Counts a call as under way until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::AcqRel);
        UnderWay(Arc::clone(self))
    }

    /// Has the request of a call pay for its messages before they are gathered.
    pub(crate) fn meter(&self, body: Body, is_stream: bool, paid: Paid) -> Metered {
        Metered::new(body, self.ingest.clone(), self.runtime.clock.clone(), self.largest, is_stream, paid)
    }

    /// Waits until the node stops, or whoever told its phase is gone.
    pub(crate) async fn stopping(&self) {
        let mut phase = self.phase.clone();
        // Nobody will say that it serves either when the sender is gone.
        phase.wait_for(|phase| matches!(phase, Phase::Stopping)).await.ok();
    }

    /// Waits until no call is under way.
    pub(crate) async fn idle(&self) {
        loop {
            let mut notified = std::pin::pin!(self.idle.notified());
            notified.as_mut().enable();
            if self.under_way.load(Ordering::Acquire) == 0 {
                return;
            }
            notified.await;
        }
    }
}

/// One call under way.
pub(crate) struct UnderWay(Arc<Door>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.0.under_way.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}
