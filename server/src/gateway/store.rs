//! Storing events: checked, encoded once, submitted together, answered when they are committed.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use kubemq_broker::{Kind, Name, Outcome, publish_head};
use kubemq_proto::kubemq::{Event, Result as EventResult};
use kubemq_proto::strings::Refusal;
use kubemq_proto::{frame, id, subscribe, validate};
use prost::Message as _;

use super::events::failed;
use super::{Gateway, Submitted, Unavailable, send};

impl Gateway {
    /// Stores one event. What is wrong with it stands in the result, and so does an outcome that did not become known.
    ///
    /// # Errors
    ///
    /// [`Unavailable::NotLeader`] when it was certainly not stored.
    pub async fn store_event(&self, event: Event) -> Result<EventResult, Unavailable> {
        let mut stored = Stored::new(self, vec![event]);
        if !stored.operations.is_empty() {
            self.room().await;
            match self.commit(std::mem::take(&mut stored.operations)).await {
                Err(Unavailable::NotLeader) => return Err(Unavailable::NotLeader),
                outcomes => stored.settle(outcomes),
            }
        }
        Ok(stored.results.pop().unwrap_or_default())
    }

    /// Stores events, in order and behind everything submitted before. They are on their way when this returns; their
    /// results, aligned with them, come when they are committed.
    pub fn store_events(&self, events: Vec<Event>) -> StoreEvents {
        let mut stored = Stored::new(self, events);
        let submitted = self.submit(std::mem::take(&mut stored.operations));
        StoreEvents { stored, submitted }
    }
}

/// Events on their way into the log. Resolves to their results.
#[must_use = "the events may be refused"]
pub struct StoreEvents {
    stored: Stored,
    submitted: Submitted,
}

impl Future for StoreEvents {
    type Output = Vec<EventResult>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcomes = ready!(Pin::new(&mut self.submitted).poll(cx));
        self.stored.settle(outcomes);
        Poll::Ready(std::mem::take(&mut self.stored.results))
    }
}

/// Events, what is to be submitted for them, and their results.
#[derive(Default)]
struct Stored {
    operations: Vec<Bytes>,
    /// One for each event, complete when it is refused.
    results: Vec<EventResult>,
    /// The place among the results of each operation.
    waiting: Vec<usize>,
}

impl Stored {
    fn new(gateway: &Gateway, events: Vec<Event>) -> Self {
        let mut stored = Self::default();
        let mut buffer = BytesMut::new();
        for event in events {
            let place = stored.results.len();
            match stored.add(gateway, event, &mut buffer) {
                Ok(result) => {
                    stored.results.push(result);
                    stored.waiting.push(place);
                }
                Err(refused) => stored.results.push(refused),
            }
        }
        stored
    }

    fn add(&mut self, gateway: &Gateway, mut event: Event, buffer: &mut BytesMut) -> Result<EventResult, EventResult> {
        if let Err(refusal) = validate::event(&event) {
            return Err(failed(event.event_id, &refusal));
        }
        event.event_id = id::or_nuid(event.event_id, &gateway.runtime().random);
        if let Err(refusal) = subscribe::storable_event(&event, gateway.limits().max_message_bytes) {
            return Err(failed(event.event_id, &refusal));
        }
        if let Some(refusal) = gateway.refuses_to_store() {
            return Err(failed(event.event_id, &refusal));
        }
        let event_id = event.event_id.clone();
        let Ok(name) = Name::new(&event.channel) else { return Err(failed(event_id, &Refusal::PublishName)) };
        let bytes = event.encoded_len();
        let operation = send::encode_publish(&name, bytes, buffer, |out| {
            publish_head(out, Kind::EventsStore, &name, 0, 0);
            frame::store_event(event, out);
        });
        self.operations.push(operation);
        Ok(EventResult { event_id, sent: true, ..EventResult::default() })
    }

    fn settle(&mut self, outcomes: Result<Vec<Outcome>, Unavailable>) {
        let refusal = match &outcomes {
            Err(Unavailable::NotLeader) => Refusal::NoLeader,
            _ => Refusal::PublishTimeout,
        };
        let outcomes = outcomes.unwrap_or_default();
        for (position, place) in std::mem::take(&mut self.waiting).into_iter().enumerate() {
            let Some(result) = self.results.get_mut(place) else { continue };
            let refusal = match outcomes.get(position) {
                Some(Outcome::Stored { .. }) => continue,
                Some(Outcome::Refused(reason)) => send::refusal(*reason),
                _ => refusal.clone(),
            };
            *result = failed(std::mem::take(&mut result.event_id), &refusal);
        }
    }
}
