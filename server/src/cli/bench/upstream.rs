//! The load of an upstream stream: publishes flow one way, their confirmations the other.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::{Stream, StreamExt as _};
use kubemq_runtime::Clock;
use tonic::Request;
use tonic::codegen::http::uri::PathAndQuery;

use super::flow::Flow;
use super::meter::Meter;
use super::wire::{Template, Upstream, UpstreamAnswer, Wire};
use super::{Service, stream_ended};
use crate::cli::client::refused;
use crate::cli::output::Failure;

/// How many answers are counted under one lock.
const COUNTED_AT_ONCE: usize = 1024;

/// What a confirmation means for the load.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Confirmation {
    /// The message is done: its place in the window is free.
    Ends,
    /// Only a refusal ends the message here; otherwise its receiver does.
    Refusals,
}

/// Publishes what `flow` lets go until the stream fails.
pub(super) async fn publish(
    service: Service,
    flow: Arc<Flow>,
    templates: Arc<[Template]>,
    batch: u64,
    confirmation: Confirmation,
    meter: Meter,
    clock: Clock,
) -> Failure {
    let requests = Requests { flow: Arc::clone(&flow), templates, batch, turn: 0 };
    let mut grpc = tonic::client::Grpc::new(service);
    if let Err(error) = grpc.ready().await {
        return refused(&tonic::Status::from_error(error.into()));
    }
    let path = PathAndQuery::from_static("/kubemq.kubemq/QueuesUpstream");
    let stream = match grpc.streaming(Request::new(requests), path, Wire::<Upstream, UpstreamAnswer>::default()).await {
        Ok(response) => response.into_inner(),
        Err(status) => return refused(&status),
    };
    let mut answers = stream.ready_chunks(COUNTED_AT_ONCE);
    while let Some(answers) = answers.next().await {
        let now = clock.now();
        let mut failure = None;
        meter.with(|counters| {
            for answer in answers {
                let answer = match answer {
                    Ok(answer) => answer,
                    Err(status) => {
                        failure = Some(refused(&status));
                        return;
                    }
                };
                let refused = if answer.error.is_some() && answer.results < batch { batch } else { answer.refused };
                if let Some(error) = answer.error {
                    counters.refused(refused, error);
                }
                let Some(id) = answer.id.filter(|&id| flow.made(id)) else {
                    failure = Some(Failure::Refused("an answer names a request that was never sent".to_owned()));
                    return;
                };
                if confirmation == Confirmation::Ends {
                    counters.answered(id.intended, now, batch - refused.min(batch));
                    flow.answered(batch);
                } else {
                    flow.answered(refused.min(batch));
                }
            }
        });
        if let Some(failure) = failure {
            return failure;
        }
        flow.wake();
    }
    stream_ended()
}

/// The requests of one stream, each as soon as the flow lets it go; the channels take turns.
struct Requests {
    flow: Arc<Flow>,
    templates: Arc<[Template]>,
    batch: u64,
    turn: usize,
}

impl Stream for Requests {
    type Item = Upstream;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Upstream>> {
        let Some(id) = ready!(self.flow.poll_next(context)) else { return Poll::Ready(None) };
        self.turn = (self.turn + 1) % self.templates.len();
        let template = self.templates[self.turn].clone();
        Poll::Ready(Some(Upstream { id, count: self.batch, template }))
    }
}
