//! Events: sending them, one by one or on a stream, and receiving them.

use std::sync::Arc;

use kubemq_proto::kubemq::{Event, Result as EventResult, Subscribe};
use kubemq_proto::validate;
use tonic::{Request, Response, Streaming};

use super::subscription::Frames;
use super::{Answer, Door, Outgoing, not_served};
use crate::gateway::events;

/// Results that may wait for the connection.
const RESULTS: usize = 1024;

pub(crate) async fn send(door: &Arc<Door>, request: Request<Event>) -> Answer<EventResult> {
    let (gateway, event) = (door.gateway()?, request.into_inner());
    if event.store {
        return not_served("SendEvent of a stored event");
    }
    Ok(Response::new(gateway.send_event(event)?))
}

pub(crate) fn open(door: &Arc<Door>, request: Request<Streaming<Event>>) -> Answer<Outgoing<EventResult>> {
    let (gateway, stop) = (door.gateway()?, door.stop.clone());
    let requests = request.into_inner();
    let drive = |results| async move { events::serve(&gateway, requests, results, stop).await };
    Ok(Response::new(Outgoing::start(door, "events", RESULTS, drive)))
}

pub(crate) fn subscribe(door: &Arc<Door>, request: Request<Subscribe>) -> Answer<Frames> {
    let subscribe = request.into_inner();
    if validate::wants_stored_events(&subscribe)? {
        return not_served("SubscribeToEvents of stored events");
    }
    let subscription = door.gateway()?.subscribe_events(&subscribe)?;
    Ok(Response::new(Frames::live(subscription, door.stop.clone())))
}
