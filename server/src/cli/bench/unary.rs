//! The load of unary sends and requests: one call per message, all of a connection in one task.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use kubemq_runtime::Clock;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status};

use super::Service;
use super::flow::Flow;
use super::meter::Meter;
use super::wire::{Answer, Id, Single, Template, Wire};
use crate::cli::client::refused;
use crate::cli::output::Failure;

/// Calls the method at `path` with what `flow` lets go until a call fails.
pub(super) async fn send<A: Answer>(
    service: Service,
    path: &'static str,
    flow: Arc<Flow>,
    templates: Arc<[Template]>,
    meter: Meter,
    clock: Clock,
) -> Failure {
    let grpc = tonic::client::Grpc::new(service);
    let mut calls = FuturesUnordered::new();
    let mut turn = 0;
    loop {
        let (id, answer) = poll_fn(|context| {
            while let Poll::Ready(Some(id)) = flow.poll_next(context) {
                turn = (turn + 1) % templates.len();
                calls.push(call::<A>(grpc.clone(), path, id, templates[turn].clone()));
            }
            match calls.poll_next_unpin(context) {
                Poll::Ready(Some(answer)) => Poll::Ready(answer),
                // None: no call is open, and the flow wakes this task for the next.
                Poll::Ready(None) | Poll::Pending => Poll::Pending,
            }
        })
        .await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(status) => return refused(&status),
        };
        let now = clock.now();
        meter.with(|counters| match answer.error() {
            None => counters.answered(id.intended, now, 1),
            Some(error) => counters.refused(1, error),
        });
        flow.answered(1);
    }
}

async fn call<A: Answer>(
    mut grpc: tonic::client::Grpc<Service>,
    path: &'static str,
    id: Id,
    template: Template,
) -> (Id, Result<A, Status>) {
    if let Err(error) = grpc.ready().await {
        return (id, Err(Status::from_error(error.into())));
    }
    let path = PathAndQuery::from_static(path);
    let answer = grpc.unary(Request::new(Single { id, template }), path, Wire::<Single, A>::default()).await;
    (id, answer.map(tonic::Response::into_inner))
}
