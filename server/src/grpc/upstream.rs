//! The stream on which queue messages are sent.

use std::sync::Arc;

use kubemq_proto::kubemq::QueuesUpstreamRequest;
use tonic::{Request, Response, Streaming};

use super::{Answer, Door, Outgoing};
use crate::gateway::upstream;

/// Answers that may wait for the connection.
const ANSWERS: usize = 1024;

type Answers = Outgoing<kubemq_proto::kubemq::QueuesUpstreamResponse>;

pub(crate) fn open(door: &Arc<Door>, request: Request<Streaming<QueuesUpstreamRequest>>) -> Answer<Answers> {
    let (gateway, stop, durations) = (door.gateway()?, door.stop.clone(), Arc::clone(&door.durations.upstream));
    let requests = request.into_inner();
    let drive = |answers| async move { upstream::serve(&gateway, requests, answers, stop, durations).await };
    Ok(Response::new(Outgoing::start(door, "upstream", ANSWERS, drive)))
}
