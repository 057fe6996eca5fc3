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
use crate::live::Subscription;

/// The frames of one subscription. Dropping it ends the subscription.
pub(crate) struct Frames {
    subscription: Subscription,
    stop: Option<BoxFuture<'static, ()>>,
}

impl Frames {
    /// Streams a subscription to what is not stored, until the node stops.
    pub(crate) fn live(subscription: Subscription, stop: Stop) -> Self {
        Self { subscription, stop: Some(Box::pin(async move { stop.raised().await })) }
    }
}

impl Stream for Frames {
    type Item = Result<Frame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(Some(frame)) = self.subscription.poll_next(cx) {
            return Poll::Ready(Some(Ok(frame)));
        }
        let Some(stop) = &mut self.stop else { return Poll::Ready(None) };
        if stop.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.stop = None;
        Poll::Ready(Some(Err(Refusal::StreamEndsForStop.into())))
    }
}
