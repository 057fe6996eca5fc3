//! The stream on which queue messages are received and settled.

use std::sync::Arc;

use kubemq_proto::kubemq::{QueuesDownstreamRequest, QueuesDownstreamResponse};
use tonic::{Request, Response, Streaming};

use super::queues::client;
use super::{Answer, Door, Outgoing};
use crate::gateway::downstream;

/// Answers that may wait for the connection: each may hold many messages.
const ANSWERS: usize = 4;

type Answers = Outgoing<QueuesDownstreamResponse>;

pub(crate) fn open(door: &Arc<Door>, request: Request<Streaming<QueuesDownstreamRequest>>) -> Answer<Answers> {
    let (gateway, transactions, stop) = (door.gateway()?, door.transactions.clone(), door.stop.clone());
    let (client, durations) = (client(request.metadata()), Arc::clone(&door.durations.downstream));
    let requests = request.into_inner();
    let drive = |answers| async move {
        downstream::serve(&gateway, &transactions, (client, durations), requests, answers, stop).await
    };
    Ok(Response::new(Outgoing::start(door, "downstream", ANSWERS, drive)))
}
