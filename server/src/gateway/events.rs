//! Sending events and subscribing to them.
//!
//! Events that are not stored go to the subscribers of this node at once, and what became of them is told to
//! nobody: on a stream only a refusal is answered.

use std::sync::Arc;

use bytes::BytesMut;
use futures_util::Stream;
use kubemq_broker::Outcome;
use kubemq_proto::id;
use kubemq_proto::kubemq::{Event, Result as EventResult, Subscribe};
use kubemq_proto::strings::Refusal;
use kubemq_proto::validate;
use kubemq_runtime::sync::mpsc;
use prost::Message as _;

use super::publishing::{self, Group, Publishing};
use super::store::Stored;
use super::stream::{Ended, Stop};
use super::{Gateway, Sender, Unavailable};
use crate::live::{Pattern, Publisher, Subscription};
use crate::metrics::Latency;

impl Gateway {
    /// Sends one event that is not to be stored.
    ///
    /// # Errors
    ///
    /// What is wrong with the event. That it is too large to be delivered stands in the result.
    pub fn send_event(&self, mut event: Event) -> Result<EventResult, Refusal> {
        self.check_event(&event)?;
        event.event_id = id::or_nuid(event.event_id, &self.runtime().random);
        if !self.is_deliverable(&event) {
            return Ok(failed(event.event_id, &Refusal::PayloadTooLarge));
        }
        let result = EventResult { event_id: event.event_id.clone(), sent: true, ..EventResult::default() };
        let mut publisher = self.live().publisher();
        publisher.send(event);
        publisher.flush();
        Ok(result)
    }

    /// Subscribes to events that are not stored. What is sent after this returns is received.
    ///
    /// # Errors
    ///
    /// What is wrong with the subscription.
    pub fn subscribe_events(&self, subscribe: &Subscribe) -> Result<Subscription, Refusal> {
        validate::events_subscription(subscribe)?;
        Ok(self.live().subscribe(Pattern::Events, subscribe))
    }

    /// Returns what is wrong with an event, if anything is.
    ///
    /// # Errors
    ///
    /// That.
    pub fn check_event(&self, event: &Event) -> Result<(), Refusal> {
        validate::event(event).inspect_err(|_| self.numbers().refuse(Sender::of_event(event.store), 1))
    }

    fn is_deliverable(&self, event: &Event) -> bool {
        validate::is_deliverable(event.encoded_len(), self.limits().max_message_bytes)
    }
}

/// Returns the result of an event that was not sent.
pub(super) fn failed(event_id: String, refusal: &Refusal) -> EventResult {
    EventResult { event_id, sent: false, error: refusal.to_string() }
}

/// Serves one stream of events until it ends, and counts in `durations` how long each takes. Results come in the order of the events they belong to.
///
/// # Errors
///
/// What the stream of events ended with; nobody reads results then.
pub async fn serve<S, E>(
    gateway: &Gateway,
    events: S,
    results: mpsc::Sender<EventResult>,
    stop: Stop,
    durations: Arc<Latency>,
) -> Result<Ended, E>
where
    S: Stream<Item = Result<Event, E>> + Send + Unpin,
{
    let sending = Sending { gateway: gateway.clone(), publisher: gateway.live().publisher(), buffer: BytesMut::new() };
    publishing::serve(gateway, sending, events, results, (stop, durations)).await
}

/// One stream of events. Those that are not to be stored are on their way when all that were there are staged.
struct Sending {
    gateway: Gateway,
    publisher: Publisher,
    buffer: BytesMut,
}

impl Publishing for Sending {
    type Request = Event;
    type Answer = EventResult;
    type Kept = Stored;

    const TURN: usize = 256;

    fn stage(&mut self, mut event: Event, group: &mut Group<Stored>) {
        if let Err(refusal) = self.gateway.check_event(&event) {
            group.kept.results.push(failed(event.event_id, &refusal));
            group.requests += 1;
            return;
        }
        event.event_id = id::or_nuid(event.event_id, &self.gateway.runtime().random);
        if event.store {
            if let Some(operation) = group.kept.add(&self.gateway, event, &mut self.buffer) {
                group.bytes += operation.len();
                group.operations.push(operation);
            }
            group.requests += 1;
        } else if self.gateway.is_deliverable(&event) {
            self.publisher.send(event);
        }
    }

    fn all_staged(&mut self) {
        self.publisher.flush();
    }

    fn answers(&self, mut stored: Stored, outcomes: Result<Vec<Outcome>, Unavailable>) -> Vec<EventResult> {
        stored.settle(outcomes, self.gateway.numbers());
        stored.results
    }
}
