//! Events: sending them, one by one or on a stream, and receiving them.

use std::sync::Arc;

use kubemq_proto::kubemq::{Event, Result as EventResult, Subscribe};
use kubemq_proto::validate;
use tonic::{Request, Response, Streaming};

use super::subscription::Frames;
use super::{Answer, Door, Outgoing, unavailable};
use crate::gateway::events;
use crate::gateway::subscription::Connection;

/// Results that may wait for the connection.
const RESULTS: usize = 1024;

pub(crate) async fn send(door: &Arc<Door>, request: Request<Event>) -> Answer<EventResult> {
    let (gateway, event) = (door.gateway()?, request.into_inner());
    if event.store {
        // What is wrong with the event ends the call; what the store refuses stands in the result.
        gateway.check_event(&event)?;
        let result = gateway.store_event(event).await;
        return result.map(Response::new).map_err(|error| unavailable(&error));
    }
    Ok(Response::new(gateway.send_event(event)?))
}

pub(crate) fn open(door: &Arc<Door>, request: Request<Streaming<Event>>) -> Answer<Outgoing<EventResult>> {
    let (gateway, stop, durations) = (door.gateway()?, door.stop.clone(), Arc::clone(&door.durations.events));
    let requests = request.into_inner();
    let drive = |results| async move { events::serve(&gateway, requests, results, stop, durations).await };
    Ok(Response::new(Outgoing::start(door, "events", RESULTS, drive)))
}

pub(crate) async fn subscribe(door: &Arc<Door>, request: Request<Subscribe>) -> Answer<Frames> {
    let connection = request.extensions().get::<Connection>().cloned().unwrap_or_default();
    let subscribe = request.into_inner();
    if validate::wants_stored_events(&subscribe)? {
        let subscription = door.gateway()?.subscribe_stored(&subscribe, connection).await;
        let subscription = subscription.map_err(|error| unavailable(&error))??;
        return Ok(Response::new(Frames::stored(subscription, door.stop.clone())));
    }
    let subscription = door.gateway()?.subscribe_events(&subscribe)?;
    Ok(Response::new(Frames::live(subscription, door.stop.clone())))
}
