//! The client API over gRPC: a thin layer over the [`gateway`](crate::gateway).
//!
//! What a call means is decided there and in `kubemq-proto`. Here are the methods, the way from a refusal to a
//! status, readiness, deadlines, and how streams are tied to their connection.
//!
//! Start reading in [`server`], then [`door`].

mod calls;
mod connection;
mod door;
mod downstream;
mod durations;
mod events;
mod ingest;
mod management;
mod outgoing;
mod queue_stream;
mod queues;
mod requests;
pub mod server;
mod subscription;
mod upstream;

use std::sync::Arc;

use kubemq_proto::kubemq::kubemq_server::Kubemq;
use kubemq_proto::kubemq::{
    AckAllQueueMessagesRequest, AckAllQueueMessagesResponse, Empty, Event, PingResult, QueueMessage,
    QueueMessagesBatchRequest, QueueMessagesBatchResponse, QueuesDownstreamRequest, QueuesDownstreamResponse,
    QueuesInfoRequest, QueuesInfoResponse, QueuesUpstreamRequest, QueuesUpstreamResponse, ReceiveQueueMessagesRequest,
    ReceiveQueueMessagesResponse, Request as KubemqRequest, Response as KubemqResponse, Result as EventResult,
    SendQueueMessageResult, StreamQueueMessagesRequest, StreamQueueMessagesResponse, Subscribe,
};
use tonic::{Request, Response, Status, Streaming};

pub(crate) use door::Door;
pub use door::Phase;
pub use durations::Durations;
pub use ingest::Ingest;
use outgoing::Outgoing;
use subscription::Frames;

type Answer<T> = Result<Response<T>, Status>;

/// The methods of the API, each in the file of its subject.
#[derive(Clone)]
pub(crate) struct Service {
    door: Arc<Door>,
}

#[tonic::async_trait]
impl Kubemq for Service {
    type SendEventsStreamStream = Outgoing<EventResult>;
    type SubscribeToEventsStream = Frames;
    type SubscribeToRequestsStream = Frames;
    type StreamQueueMessageStream = Outgoing<StreamQueueMessagesResponse>;
    type QueuesDownstreamStream = Outgoing<QueuesDownstreamResponse>;
    type QueuesUpstreamStream = Outgoing<QueuesUpstreamResponse>;

    async fn send_event(&self, request: Request<Event>) -> Answer<EventResult> {
        events::send(&self.door, request).await
    }

    async fn send_events_stream(&self, request: Request<Streaming<Event>>) -> Answer<Self::SendEventsStreamStream> {
        events::open(&self.door, request)
    }

    async fn subscribe_to_events(&self, request: Request<Subscribe>) -> Answer<Self::SubscribeToEventsStream> {
        events::subscribe(&self.door, request).await
    }

    async fn subscribe_to_requests(&self, request: Request<Subscribe>) -> Answer<Self::SubscribeToRequestsStream> {
        requests::subscribe(&self.door, request)
    }

    async fn send_request(&self, request: Request<KubemqRequest>) -> Answer<KubemqResponse> {
        requests::send(&self.door, request).await
    }

    async fn send_response(&self, request: Request<KubemqResponse>) -> Answer<Empty> {
        requests::answer(&self.door, request)
    }

    async fn send_queue_message(&self, request: Request<QueueMessage>) -> Answer<SendQueueMessageResult> {
        queues::send(&self.door, request).await
    }

    async fn send_queue_messages_batch(
        &self,
        request: Request<QueueMessagesBatchRequest>,
    ) -> Answer<QueueMessagesBatchResponse> {
        queues::send_batch(&self.door, request).await
    }

    async fn receive_queue_messages(
        &self,
        request: Request<ReceiveQueueMessagesRequest>,
    ) -> Answer<ReceiveQueueMessagesResponse> {
        queues::receive(&self.door, request).await
    }

    async fn stream_queue_message(
        &self,
        request: Request<Streaming<StreamQueueMessagesRequest>>,
    ) -> Answer<Self::StreamQueueMessageStream> {
        queue_stream::open(&self.door, request)
    }

    async fn ack_all_queue_messages(
        &self,
        request: Request<AckAllQueueMessagesRequest>,
    ) -> Answer<AckAllQueueMessagesResponse> {
        queues::ack_all(&self.door, request).await
    }

    async fn ping(&self, _request: Request<Empty>) -> Answer<PingResult> {
        Ok(Response::new(management::ping(&self.door)))
    }

    async fn queues_downstream(
        &self,
        request: Request<Streaming<QueuesDownstreamRequest>>,
    ) -> Answer<Self::QueuesDownstreamStream> {
        downstream::open(&self.door, request)
    }

    async fn queues_upstream(
        &self,
        request: Request<Streaming<QueuesUpstreamRequest>>,
    ) -> Answer<Self::QueuesUpstreamStream> {
        upstream::open(&self.door, request)
    }

    async fn queues_info(&self, request: Request<QueuesInfoRequest>) -> Answer<QueuesInfoResponse> {
        management::queues_info(&self.door, request).await
    }
}

/// Returns the status of a call that could not be carried out.
fn unavailable(unavailable: &crate::gateway::Unavailable) -> Status {
    unavailable.refusal().into()
}
