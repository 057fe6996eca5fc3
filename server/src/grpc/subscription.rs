//! What a subscription streams to its client.
//!
//! There is no task between a subscriber's queue and its connection: the connection takes what waits whenever it
//! can write, and encodes it all before it writes.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use futures_util::future::BoxFuture;
use kubemq_proto::frame::Frame;
use kubemq_proto::strings::Refusal;
use tonic::Status;

use crate::gateway::stream::Stop;
use crate::gateway::subscription::StoredSubscription;
use crate::live::Subscription;

/// The frames of one subscription. Dropping it ends the subscription.
pub(crate) struct Frames {
    source: Source,
    signal: Stop,
    stop: Option<BoxFuture<'static, ()>>,
}

/// Where they come from.
enum Source {
    Live(Subscription),
    Stored(StoredSubscription),
}

impl Frames {
    /// Streams a subscription to what is not stored, until the node stops.
    pub(crate) fn live(subscription: Subscription, stop: Stop) -> Self {
        Self::new(Source::Live(subscription), stop)
    }

    /// Streams a subscription to stored events, until the node stops.
    pub(crate) fn stored(subscription: StoredSubscription, stop: Stop) -> Self {
        Self::new(Source::Stored(subscription), stop)
    }

    fn new(source: Source, stop: Stop) -> Self {
        let signal = stop.clone();
        Self { source, signal, stop: Some(Box::pin(async move { stop.raised().await })) }
    }
}

impl Stream for Frames {
    type Item = Result<Frame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Live(subscription) => match subscription.poll_next(cx) {
                Poll::Ready(Some(frame)) => Poll::Ready(Ok(frame)),
                Poll::Ready(None) | Poll::Pending => Poll::Pending,
            },
            // Of these there may be more for a long time.
            Source::Stored(_) if this.signal.is_raised() => Poll::Pending,
            Source::Stored(subscription) => subscription.poll_next(cx).map_err(Status::from),
        };
        if let Poll::Ready(frame) = frame {
            return Poll::Ready(Some(frame));
        }
        let Some(stop) = &mut self.stop else { return Poll::Ready(None) };
        if stop.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.stop = None;
        Poll::Ready(Some(Err(Refusal::StreamEndsForStop.into())))
    }
}
