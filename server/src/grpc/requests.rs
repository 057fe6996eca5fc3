//! Commands and queries: asking, receiving what is asked, answering.

use std::sync::Arc;

use kubemq_proto::kubemq::{Empty, Request as KubemqRequest, Response as KubemqResponse, Subscribe};
use kubemq_proto::validate::MANAGEMENT_CHANNEL;
use tonic::{Request, Response};

use super::subscription::Frames;
use super::{Answer, Door, management};

pub(crate) async fn send(door: &Arc<Door>, request: Request<KubemqRequest>) -> Answer<KubemqResponse> {
    let request = request.into_inner();
    if request.channel == MANAGEMENT_CHANNEL {
        return management::manage(door, request).await;
    }
    Ok(Response::new(door.gateway()?.request(request, &door.stop).await?))
}

pub(crate) fn subscribe(door: &Arc<Door>, request: Request<Subscribe>) -> Answer<Frames> {
    let subscription = door.gateway()?.subscribe_requests(&request.into_inner())?;
    Ok(Response::new(Frames::live(subscription, door.stop.clone())))
}

pub(crate) fn answer(door: &Arc<Door>, request: Request<KubemqResponse>) -> Answer<Empty> {
    door.gateway()?.answer_request(request.into_inner())?;
    Ok(Response::new(Empty {}))
}
