//! Stored events as tests want them: storing some, subscribing to them, reading them with a deadline.

use std::time::Duration;

use kubemq_proto::kubemq::subscribe::{EventsStoreType, SubscribeType};
use kubemq_proto::kubemq::{Event, EventReceive, Result as EventResult, Subscribe};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::client::{CLIENT_ID, Client, Duplex, unique};
use crate::wait::{SOON, runtime, timeout};

/// A `SendEventsStream` stream.
pub type Events = Duplex<Event, EventResult>;

/// Returns an event to be stored.
#[must_use]
pub fn stored(channel: &str, body: impl Into<bytes::Bytes>) -> Event {
    Event {
        event_id: unique("event"),
        client_id: CLIENT_ID.into(),
        channel: channel.into(),
        body: body.into(),
        store: true,
        ..Event::default()
    }
}

/// Returns a subscription to stored events by `client`.
#[must_use]
pub fn from(channel: &str, client: &str, start: EventsStoreType, value: i64) -> Subscribe {
    Subscribe {
        subscribe_type_data: SubscribeType::EventsStore as i32,
        client_id: client.into(),
        channel: channel.into(),
        events_store_type_data: start as i32,
        events_store_type_value: value,
        ..Subscribe::default()
    }
}

/// Returns a subscription to stored events from the first on.
#[must_use]
pub fn from_first(channel: &str, client: &str) -> Subscribe {
    from(channel, client, EventsStoreType::StartFromFirst, 0)
}

impl Client {
    /// Stores one event for each number, whose body is the number.
    ///
    /// # Panics
    ///
    /// Panics when one is refused.
    pub async fn store(&self, channel: &str, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            let result = self.store_event(stored(channel, number.to_string())).await;
            assert!(result.sent && result.error.is_empty(), "an event was refused: {result:?}");
        }
    }

    /// Stores one event and returns the result.
    ///
    /// # Panics
    ///
    /// Panics when the call fails.
    pub async fn store_event(&self, event: Event) -> EventResult {
        let sent = timeout(SOON, Box::pin(self.api.clone().send_event(event))).await.expect("an answer in time");
        sent.unwrap_or_else(|status| panic!("SendEvent failed: {status}")).into_inner()
    }

    /// Opens a `SendEventsStream` stream.
    ///
    /// # Errors
    ///
    /// The status that the server answers.
    pub async fn try_publish(&self) -> Result<Events, Status> {
        let (requests, receiver) = mpsc::channel(64);
        let mut api = self.api.clone();
        let responses = Box::pin(api.send_events_stream(ReceiverStream::new(receiver))).await?.into_inner();
        Ok(Duplex::new(requests, responses))
    }

    /// Subscribes to stored events.
    ///
    /// # Errors
    ///
    /// The status that the server answers.
    ///
    /// # Panics
    ///
    /// Panics when there is no answer.
    pub async fn try_read(&self, subscribe: Subscribe) -> Result<Reading, Status> {
        let mut api = self.api.clone();
        let events = timeout(SOON, Box::pin(api.subscribe_to_events(subscribe))).await.expect("an answer in time")?;
        Ok(Reading { events: events.into_inner() })
    }

    /// Subscribes to stored events.
    ///
    /// # Panics
    ///
    /// Panics when that is refused.
    pub async fn read(&self, subscribe: Subscribe) -> Reading {
        self.try_read(subscribe).await.unwrap_or_else(|status| panic!("the subscription was refused: {status}"))
    }
}

/// Runs a client that vanishes without a word, as a killed process does, and returns what it made of its work. What it
/// keeps beside that ends with the sockets that were opened, and not before.
///
/// # Panics
///
/// Panics when the client does.
pub async fn vanishing<T, K, F>(client: impl FnOnce() -> F + Send + 'static) -> T
where
    F: Future<Output = (T, K)>,
    T: Send + 'static,
{
    let work = move || {
        // Its tasks are dropped with it: nobody is left to say goodbye.
        let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an executor");
        let (made, kept) = executor.block_on(client());
        drop(executor);
        drop(kept);
        made
    };
    runtime().tasks.compute("vanishing", work).await.expect("a client that did not panic")
}

/// A subscription to stored events. Dropping it cancels it.
pub struct Reading {
    events: Streaming<EventReceive>,
}

impl Reading {
    /// Returns the next event, or nothing when none comes within `deadline`.
    ///
    /// # Errors
    ///
    /// The status with which the subscription ended.
    pub async fn next_within(&mut self, deadline: Duration) -> Result<Option<EventReceive>, Status> {
        match timeout(deadline, self.events.message()).await {
            Err(_) => Ok(None),
            Ok(Ok(Some(event))) => Ok(Some(event)),
            Ok(Ok(None)) => Err(Status::ok("the subscription ended")),
            Ok(Err(status)) => Err(status),
        }
    }

    /// Returns the next event.
    ///
    /// # Panics
    ///
    /// Panics when none comes.
    pub async fn next(&mut self) -> EventReceive {
        let next = self.next_within(SOON).await.unwrap_or_else(|status| panic!("the subscription ended: {status}"));
        next.expect("an event in time")
    }

    /// Returns the sequences of the next `count` events.
    pub async fn sequences(&mut self, count: usize) -> Vec<u64> {
        let mut sequences = Vec::with_capacity(count);
        while sequences.len() < count {
            sequences.push(self.next().await.sequence);
        }
        sequences
    }

    /// Fails the test when an event comes within `duration`.
    ///
    /// # Panics
    ///
    /// Panics then, and when the subscription ends.
    pub async fn stays_silent(&mut self, duration: Duration) {
        let next = self.next_within(duration).await;
        let next = next.unwrap_or_else(|status| panic!("the subscription ended: {status}"));
        assert_eq!(next, None, "expected silence");
    }
}
