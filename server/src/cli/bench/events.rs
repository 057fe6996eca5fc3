//! The load of events: published on a stream, done when every subscriber has them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::{Stream, StreamExt as _};
use kubemq_proto::kubemq as proto;
use kubemq_proto::kubemq::subscribe::SubscribeType;
use kubemq_runtime::Clock;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Streaming};

use super::flow::Flow;
use super::meter::Meter;
use super::wire::{Received, Single, Template, Wire};
use super::{Service, stored, stream_ended};
use crate::cli::client::{LARGEST_MESSAGE, refused};
use crate::cli::output::Failure;

/// How many events are counted under one lock.
const COUNTED_AT_ONCE: usize = 1024;

/// Subscribes to `channel`. What is published after this returns is received.
pub(super) async fn subscribe(
    service: Service,
    client_id: &str,
    channel: &str,
) -> Result<Streaming<Received>, Failure> {
    let subscribe = proto::Subscribe {
        subscribe_type_data: SubscribeType::Events.into(),
        client_id: client_id.to_owned(),
        channel: channel.to_owned(),
        ..proto::Subscribe::default()
    };
    let mut grpc = tonic::client::Grpc::new(service).max_decoding_message_size(LARGEST_MESSAGE);
    grpc.ready().await.map_err(|error| refused(&tonic::Status::from_error(error.into())))?;
    let path = PathAndQuery::from_static("/kubemq.kubemq/SubscribeToEvents");
    let codec = Wire::<proto::Subscribe, Received>::default();
    let answer = grpc.server_streaming(Request::new(subscribe), path, codec).await;
    answer.map(tonic::Response::into_inner).map_err(|status| refused(&status))
}

/// Counts what arrives until the subscription fails.
pub(super) async fn receive(events: Streaming<Received>, flow: Arc<Flow>, meter: Meter, clock: Clock) -> Failure {
    let mut events = events.ready_chunks(COUNTED_AT_ONCE);
    while let Some(events) = events.next().await {
        let now = clock.now();
        let mut failure = None;
        let mut own = 0;
        meter.with(|counters| {
            for event in events {
                match event {
                    Ok(Received(Some(id))) if flow.made(id) => {
                        counters.answered(id.intended, now, 1);
                        own += 1;
                    }
                    // Somebody else publishes there, too.
                    Ok(_) => {}
                    Err(status) => failure = Some(refused(&status)),
                }
            }
        });
        if let Some(failure) = failure {
            return failure;
        }
        flow.answered(own);
        flow.wake();
    }
    stream_ended()
}

/// Publishes what `flow` lets go until the stream fails; each event counts for so many messages of the flow.
pub(super) async fn publish(
    service: Service,
    flow: Arc<Flow>,
    templates: Arc<[Template]>,
    receivers: u64,
    meter: Meter,
) -> Failure {
    let events = Events { flow: Arc::clone(&flow), templates, turn: 0 };
    let mut answers = match stored::open(service, events).await {
        Ok(answers) => answers,
        Err(failure) => return failure,
    };
    // Only what is refused is answered.
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(answer) => meter.with(|counters| counters.refused(receivers, answer.error.unwrap_or_default())),
            Err(status) => return refused(&status),
        }
        flow.answered(receivers);
        flow.wake();
    }
    stream_ended()
}

/// The events of one stream, each as soon as the flow lets it go; the channels take turns.
struct Events {
    flow: Arc<Flow>,
    templates: Arc<[Template]>,
    turn: usize,
}

impl Stream for Events {
    type Item = Single;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Single>> {
        let Some(id) = ready!(self.flow.poll_next(context)) else { return Poll::Ready(None) };
        self.turn = (self.turn + 1) % self.templates.len();
        let template = self.templates[self.turn].clone();
        Poll::Ready(Some(Single { id, template }))
    }
}
