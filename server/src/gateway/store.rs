//! Storing events: checked, encoded once, answered when they are committed.

use bytes::{Bytes, BytesMut};
use kubemq_broker::{Kind, Name, Outcome, publish_head};
use kubemq_proto::kubemq::{Event, Result as EventResult};
use kubemq_proto::strings::Refusal;
use kubemq_proto::{frame, id, subscribe};
use prost::Message as _;

use super::events::failed;
use super::{Gateway, Numbers, Sender, Unavailable, send};
use crate::traffic::{Of, Sent};

impl Gateway {
    /// Stores one event. What is wrong with it stands in the result, and so does an outcome that did not become known.
    ///
    /// # Errors
    ///
    /// [`Unavailable::NotLeader`] when it was certainly not stored.
    pub async fn store_event(&self, mut event: Event) -> Result<EventResult, Unavailable> {
        if let Err(refusal) = self.check_event(&event) {
            return Ok(failed(event.event_id, &refusal));
        }
        event.event_id = id::or_nuid(event.event_id, &self.runtime().random);
        let mut stored = Stored::default();
        if let Some(operation) = stored.add(self, event, &mut BytesMut::new()) {
            self.room().await;
            match self.commit(vec![operation]).await {
                Err(Unavailable::NotLeader) => return Err(Unavailable::NotLeader),
                outcomes => stored.settle(outcomes, self.numbers()),
            }
        }
        Ok(stored.results.pop().unwrap_or_default())
    }
}

/// Events on their way into the log, and their results.
#[derive(Default)]
pub(super) struct Stored {
    /// One for each event, complete when it is refused; of the others once they are settled.
    pub(super) results: Vec<EventResult>,
    /// The place among the results of each operation.
    waiting: Vec<usize>,
    sent: Sent,
}

impl Stored {
    /// Returns what to submit for a valid event that has an id; nothing when it is refused.
    pub(super) fn add(&mut self, gateway: &Gateway, event: Event, buffer: &mut BytesMut) -> Option<Bytes> {
        let event_id = event.event_id.clone();
        match encode(gateway, event, buffer, &mut self.sent) {
            Ok(operation) => {
                self.waiting.push(self.results.len());
                self.results.push(EventResult { event_id, sent: true, ..EventResult::default() });
                Some(operation)
            }
            Err(refusal) => {
                gateway.numbers().refuse(Sender::EventsStore, 1);
                self.results.push(failed(event_id, &refusal));
                None
            }
        }
    }

    /// Fills in what became of the operations.
    pub(super) fn settle(&mut self, outcomes: Result<Vec<Outcome>, Unavailable>, numbers: &Numbers) {
        let refusal = match &outcomes {
            Err(Unavailable::NotLeader) => Refusal::NoLeader,
            _ => Refusal::PublishTimeout,
        };
        let outcomes = outcomes.unwrap_or_default();
        self.sent.settle(&outcomes);
        let mut refused = 0;
        for (position, place) in std::mem::take(&mut self.waiting).into_iter().enumerate() {
            let Some(result) = self.results.get_mut(place) else { continue };
            let refusal = match outcomes.get(position) {
                Some(Outcome::Stored { .. }) => continue,
                Some(Outcome::Refused(reason)) => send::refusal(*reason),
                _ => refusal.clone(),
            };
            *result = failed(std::mem::take(&mut result.event_id), &refusal);
            refused += 1;
        }
        numbers.refuse(Sender::EventsStore, refused);
    }
}

/// Returns the operation that stores a valid event.
fn encode(gateway: &Gateway, event: Event, buffer: &mut BytesMut, sent: &mut Sent) -> Result<Bytes, Refusal> {
    subscribe::storable_event(&event, gateway.limits().max_message_bytes)?;
    if let Some(refusal) = gateway.refuses_to_store() {
        return Err(refusal);
    }
    let name = Name::new(&event.channel).map_err(|_| Refusal::PublishName)?;
    let bytes = event.encoded_len();
    sent.add(gateway.traffic(), Of::EventsStore, (&event.channel, &event.client_id), bytes);
    Ok(send::encode_publish(&name, bytes, buffer, |out| {
        publish_head(out, Kind::EventsStore, &name, 0, 0);
        frame::store_event(event, out);
    }))
}
