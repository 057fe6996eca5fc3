//! The stream that holds one queue message.

use std::sync::Arc;

use kubemq_proto::kubemq::{StreamQueueMessagesRequest, StreamQueueMessagesResponse};
use tonic::{Request, Response, Streaming};

use super::{Answer, Door, Outgoing};
use crate::gateway::queue_stream;

/// Answers that may wait for the connection: one message and small ones.
const ANSWERS: usize = 4;

type Answers = Outgoing<StreamQueueMessagesResponse>;

pub(crate) fn open(door: &Arc<Door>, request: Request<Streaming<StreamQueueMessagesRequest>>) -> Answer<Answers> {
    let (gateway, stop, durations) = (door.gateway()?, door.stop.clone(), Arc::clone(&door.durations.queue_stream));
    let requests = request.into_inner();
    let drive = |answers| async move { queue_stream::serve(&gateway, requests, answers, (stop, durations)).await };
    Ok(Response::new(Outgoing::start(door, "queue-stream", ANSWERS, drive)))
}
