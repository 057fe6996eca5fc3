//! What the drivers of client streams share: how a stream ends, and the way of its answers.
//!
//! A driver reads requests from any `Stream` and writes answers into a bounded channel, so that gRPC, REST and
//! the simulation drive the same code. It never writes after the client is gone.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use kubemq_proto::strings::Refusal;
use kubemq_runtime::sync::{Notify, mpsc};

use super::Unavailable;
use crate::metrics::Latency;

impl Unavailable {
    /// Returns what a client is told.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::NotLeader => Refusal::NoLeader,
            Self::Unknown => Refusal::OutcomeUnknown,
            Self::Unreadable(_) => Refusal::Unreadable,
        }
    }
}

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The client said that it is done, or the exchange is complete: everything was answered.
    Finished,
    /// The client went away; nobody reads answers any more.
    Gone,
    /// The node stops.
    Stopped,
}

/// How long the requests of streams took on which messages are received.
#[derive(Debug, Default)]
pub struct Exchange {
    /// From asking for messages to the answer, waiting included.
    pub(crate) gets: Latency,
    /// Everything else, until it was carried out: settlements until they were applied.
    pub(crate) settlements: Latency,
}

/// Tells streams and waiting calls that the node stops. Clones are the same signal.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<Signal>);

#[derive(Debug, Default)]
struct Signal {
    raised: AtomicBool,
    notify: Notify,
}

impl Stop {
    /// Returns a signal that is not raised.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises the signal, for ever.
    pub fn raise(&self) {
        self.0.raised.store(true, Ordering::Release);
        self.0.notify.notify_waiters();
    }

    /// Returns whether the signal is raised.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.0.raised.load(Ordering::Acquire)
    }

    /// Waits until the signal is raised. Cancel safe.
    pub async fn raised(&self) {
        let mut notified = std::pin::pin!(self.0.notify.notified());
        // Registered before the flag is read, so that a signal raised in between is not missed.
        notified.as_mut().enable();
        if !self.is_raised() {
            notified.await;
        }
    }
}

/// The way of a stream's answers to its client.
pub(crate) struct Outlet<T> {
    responses: mpsc::Sender<T>,
    gone: BoxFuture<'static, ()>,
    stop: Option<BoxFuture<'static, ()>>,
}

impl<T: Send + 'static> Outlet<T> {
    pub(crate) fn new(responses: mpsc::Sender<T>, stop: Stop) -> Self {
        let watched = responses.clone();
        Self {
            responses,
            gone: Box::pin(async move { watched.closed().await }),
            stop: Some(Box::pin(async move { stop.raised().await })),
        }
    }

    /// Sends one answer; waits while the client does not read.
    ///
    /// # Errors
    ///
    /// How the stream ended instead.
    pub(crate) async fn send(&mut self, answer: T) -> Result<(), Ended> {
        let answer = match self.responses.try_send(answer) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(Ended::Gone),
            Err(mpsc::error::TrySendError::Full(answer)) => answer,
        };
        let responses = self.responses.clone();
        tokio::select! {
            biased;
            sent = responses.send(answer) => sent.map_err(|_| Ended::Gone),
            ended = self.ended() => Err(ended),
        }
    }

    /// Waits until the client is gone or the node stops; the latter is told once. Cancel safe.
    pub(crate) async fn ended(&mut self) -> Ended {
        poll_fn(|cx| self.poll_ended(cx)).await
    }

    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        // A closed channel stays closed, but its future is not polled after it ended: the flag is the truth.
        if self.responses.is_closed() || Pin::new(&mut self.gone).poll(cx).is_ready() {
            return Poll::Ready(Ended::Gone);
        }
        if let Some(stop) = &mut self.stop
            && stop.as_mut().poll(cx).is_ready()
        {
            self.stop = None;
            return Poll::Ready(Ended::Stopped);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stop_is_told_to_those_who_wait_and_those_who_ask_later() {
        let stop = Stop::new();
        let waiting = stop.raised();
        stop.raise();
        waiting.await;
        stop.raised().await;
        assert!(stop.is_raised());
    }

    #[tokio::test]
    async fn a_full_outlet_ends_when_the_client_goes_away_or_the_node_stops() {
        let (sender, receiver) = mpsc::channel(1);
        let stop = Stop::new();
        let mut outlet = Outlet::new(sender, stop.clone());
        assert_eq!(outlet.send(1).await, Ok(()));
        stop.raise();
        assert_eq!(outlet.send(2).await, Err(Ended::Stopped));
        drop(receiver);
        assert_eq!(outlet.send(3).await, Err(Ended::Gone));
        assert_eq!(outlet.ended().await, Ended::Gone);
    }
}
