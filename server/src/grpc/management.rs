//! Ping, counts, and the queries that manage channels.

use std::sync::Arc;

use kubemq_proto::kubemq::{
    PingResult, QueuesInfoRequest, QueuesInfoResponse, Request as KubemqRequest, Response as KubemqResponse,
};
use tonic::{Request, Response};

use super::{Answer, Door, unavailable};

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Answers without waiting for anything: clients judge the connection by it.
pub(crate) fn ping(door: &Arc<Door>) -> PingResult {
    let identity = &door.identity;
    // Not from the start time above: a wall clock that is set must not make the node younger.
    let up = door.runtime.clock.now().since(identity.started_at);
    PingResult {
        host: identity.host.clone(),
        version: identity.version.clone(),
        server_start_time: i64::try_from(identity.started.0 / NANOS_PER_SECOND).unwrap_or(i64::MAX),
        server_up_time_seconds: i64::try_from(up.as_secs()).unwrap_or(i64::MAX),
    }
}

pub(crate) async fn queues_info(door: &Arc<Door>, request: Request<QueuesInfoRequest>) -> Answer<QueuesInfoResponse> {
    let result = door.gateway()?.queues_info(request.into_inner()).await;
    result.map(Response::new).map_err(|error| unavailable(&error))
}

/// Carries out a request to the reserved channel.
pub(crate) async fn manage(door: &Arc<Door>, request: KubemqRequest) -> Answer<KubemqResponse> {
    let result = door.gateway()?.manage(request).await;
    Ok(Response::new(result.map_err(|error| unavailable(&error))??))
}
