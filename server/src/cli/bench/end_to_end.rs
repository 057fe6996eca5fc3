//! The load of publish, get and ack at once: a message is done when its receiver has it and settles it.
//!
//! Each channel has a consumer as SDKs write them: one Get open at a time; when it is answered, the settlement
//! of the whole transaction and the next Get go out together.

use std::sync::Arc;

use futures_util::StreamExt as _;
use kubemq_proto::kubemq as proto;
use kubemq_proto::kubemq::QueuesDownstreamRequestType as Kind;
use kubemq_runtime::Clock;
use kubemq_runtime::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::codegen::http::uri::PathAndQuery;

use super::flow::Flow;
use super::meter::Meter;
use super::wire::{Given, Wire};
use super::{Service, stream_ended};
use crate::cli::client::refused;
use crate::cli::output::Failure;

/// How long a Get waits for the messages it asks for, in milliseconds.
const WAIT_MILLIS: i32 = 1000;

/// What a consumer asks for.
#[derive(Clone)]
pub(super) struct Asking {
    pub(super) channel: String,
    pub(super) client_id: String,
    pub(super) items: i32,
}

/// Receives and settles messages of one channel until the stream fails.
pub(super) async fn consume(service: Service, asking: Asking, flow: Arc<Flow>, meter: Meter, clock: Clock) -> Failure {
    // A settlement and a Get per turn; the stream takes both before the next answer can come.
    let (requests, outbox) = mpsc::channel(4);
    if requests.try_send(get(&asking)).is_err() {
        return stream_ended();
    }
    let mut grpc = tonic::client::Grpc::new(service).max_decoding_message_size(crate::cli::client::LARGEST_MESSAGE);
    if let Err(error) = grpc.ready().await {
        return refused(&tonic::Status::from_error(error.into()));
    }
    let path = PathAndQuery::from_static("/kubemq.kubemq/QueuesDownstream");
    let codec = Wire::<proto::QueuesDownstreamRequest, Given>::default();
    let mut answers = match grpc.streaming(Request::new(ReceiverStream::new(outbox)), path, codec).await {
        Ok(response) => response.into_inner(),
        Err(status) => return refused(&status),
    };
    while let Some(answer) = answers.next().await {
        let given = match answer {
            Ok(given) => given,
            Err(status) => return refused(&status),
        };
        if let Some(error) = given.error {
            if given.is_get {
                return Failure::Refused(error);
            }
            meter.with(|counters| counters.refused(1, error));
            continue;
        }
        let now = clock.now();
        let mut own = 0;
        meter.with(|counters| {
            for id in given.ids.iter().flatten().filter(|&&id| flow.made(id)) {
                counters.answered(id.intended, now, 1);
                own += 1;
            }
        });
        flow.answered(own);
        flow.wake();
        if !given.ids.is_empty() && requests.send(settle(given.transaction)).await.is_err() {
            return stream_ended();
        }
        if requests.send(get(&asking)).await.is_err() {
            return stream_ended();
        }
    }
    stream_ended()
}

fn get(asking: &Asking) -> proto::QueuesDownstreamRequest {
    proto::QueuesDownstreamRequest {
        request_id: "get".to_owned(),
        client_id: asking.client_id.clone(),
        request_type_data: Kind::Get.into(),
        channel: asking.channel.clone(),
        max_items: asking.items,
        wait_timeout: WAIT_MILLIS,
        ..proto::QueuesDownstreamRequest::default()
    }
}

fn settle(transaction: String) -> proto::QueuesDownstreamRequest {
    proto::QueuesDownstreamRequest {
        request_id: "ack".to_owned(),
        request_type_data: Kind::AckAll.into(),
        ref_transaction_id: transaction,
        ..proto::QueuesDownstreamRequest::default()
    }
}
