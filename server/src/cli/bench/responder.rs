//! The other end of commands and queries: answers each at once, all of a connection in one task.

use std::future::poll_fn;
use std::task::Poll;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use kubemq_proto::kubemq as proto;
use kubemq_proto::kubemq::subscribe::SubscribeType;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status, Streaming};

use super::wire::{Asked, Nothing, Wire};
use super::{Service, stream_ended};
use crate::cli::client::{LARGEST_MESSAGE, refused};
use crate::cli::output::Failure;

/// Subscribes to the commands or queries of `channel`. What is asked after this returns is received.
pub(super) async fn subscribe(
    service: Service,
    kind: SubscribeType,
    client_id: &str,
    channel: &str,
) -> Result<Streaming<Asked>, Failure> {
    let subscribe = proto::Subscribe {
        subscribe_type_data: kind.into(),
        client_id: client_id.to_owned(),
        channel: channel.to_owned(),
        ..proto::Subscribe::default()
    };
    let mut grpc = tonic::client::Grpc::new(service).max_decoding_message_size(LARGEST_MESSAGE);
    grpc.ready().await.map_err(|error| refused(&Status::from_error(error.into())))?;
    let path = PathAndQuery::from_static("/kubemq.kubemq/SubscribeToRequests");
    let codec = Wire::<proto::Subscribe, Asked>::default();
    let answer = grpc.server_streaming(Request::new(subscribe), path, codec).await;
    answer.map(tonic::Response::into_inner).map_err(|status| refused(&status))
}

/// Answers what is asked until the subscription or an answer fails.
pub(super) async fn respond(service: Service, mut asked: Streaming<Asked>, client_id: String) -> Failure {
    let grpc = tonic::client::Grpc::new(service);
    let mut answers = FuturesUnordered::new();
    loop {
        let ended = poll_fn(|context| {
            loop {
                match asked.poll_next_unpin(context) {
                    Poll::Ready(Some(Ok(asked))) => answers.push(answer(grpc.clone(), asked, client_id.clone())),
                    Poll::Ready(Some(Err(status))) => return Poll::Ready(Some(refused(&status))),
                    Poll::Ready(None) => return Poll::Ready(Some(stream_ended())),
                    Poll::Pending => break,
                }
            }
            match answers.poll_next_unpin(context) {
                Poll::Ready(Some(answer)) => Poll::Ready(answer.err().map(|status: Status| refused(&status))),
                // None: no answer is under way, and the next request wakes this task.
                Poll::Ready(None) | Poll::Pending => Poll::Pending,
            }
        })
        .await;
        if let Some(failure) = ended {
            return failure;
        }
    }
}

async fn answer(mut grpc: tonic::client::Grpc<Service>, asked: Asked, client_id: String) -> Result<(), Status> {
    let response = proto::Response {
        client_id,
        request_id: asked.request_id,
        reply_channel: asked.reply_channel,
        executed: true,
        timestamp: 1,
        ..proto::Response::default()
    };
    grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let path = PathAndQuery::from_static("/kubemq.kubemq/SendResponse");
    grpc.unary(Request::new(response), path, Wire::<proto::Response, Nothing>::default()).await.map(|_| ())
}
