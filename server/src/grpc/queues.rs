//! Queues by unary calls.

use std::sync::Arc;

use kubemq_proto::kubemq::{
    AckAllQueueMessagesRequest, AckAllQueueMessagesResponse, QueueMessage, QueueMessagesBatchRequest,
    QueueMessagesBatchResponse, ReceiveQueueMessagesRequest, ReceiveQueueMessagesResponse, SendQueueMessageResult,
};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response};

use super::{Answer, Door, unavailable};
use crate::gateway::Client;

/// How the libraries name themselves that refuse answers above 4 MB.
const SMALL_ANSWERS: [&str; 2] = ["grpc-python", "tonic/"];

pub(crate) async fn send(door: &Arc<Door>, request: Request<QueueMessage>) -> Answer<SendQueueMessageResult> {
    let result = door.gateway()?.send(request.into_inner()).await;
    result.map(Response::new).map_err(|error| unavailable(&error))
}

pub(crate) async fn send_batch(
    door: &Arc<Door>,
    request: Request<QueueMessagesBatchRequest>,
) -> Answer<QueueMessagesBatchResponse> {
    let result = door.gateway()?.send_batch(request.into_inner()).await;
    Ok(Response::new(result.map_err(|error| unavailable(&error))??))
}

pub(crate) async fn receive(
    door: &Arc<Door>,
    request: Request<ReceiveQueueMessagesRequest>,
) -> Answer<ReceiveQueueMessagesResponse> {
    let client = client(request.metadata());
    let result = door.gateway()?.receive(request.into_inner(), client, &door.stop).await;
    result.map(Response::new).map_err(|error| unavailable(&error))
}

pub(crate) async fn ack_all(
    door: &Arc<Door>,
    request: Request<AckAllQueueMessagesRequest>,
) -> Answer<AckAllQueueMessagesResponse> {
    let result = door.gateway()?.ack_all_messages(request.into_inner()).await;
    result.map(Response::new).map_err(|error| unavailable(&error))
}

/// Returns what the call says of the client's library.
pub(crate) fn client(metadata: &MetadataMap) -> Client {
    let agent = metadata.get("user-agent").and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    Client { small_answers: SMALL_ANSWERS.iter().any(|name| agent.starts_with(name)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_with_small_answers_are_known_by_name() {
        let rows = [
            ("grpc-python/1.62.0 grpc-c/39.0.0 (linux; chttp2)", true),
            ("grpc-python-asyncio/1.62.0", true),
            ("tonic/0.12.3", true),
            ("mine tonic/0.14.9", false),
            ("grpc-go/1.53.0", false),
            ("grpc-node-js/1.10", false),
        ];
        for (agent, expected) in rows {
            let mut metadata = MetadataMap::new();
            metadata.insert("user-agent", agent.parse().unwrap());
            assert_eq!(client(&metadata).small_answers, expected, "{agent}");
        }
        assert!(!client(&MetadataMap::new()).small_answers);
    }
}
