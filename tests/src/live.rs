//! Events, commands and queries as tests want them: subscriptions that are awaited with a deadline, requests that
//! are answered by a function.

use std::time::Duration;

use bytes::Bytes;
use kubemq_proto::kubemq::request::RequestType;
use kubemq_proto::kubemq::subscribe::SubscribeType;
use kubemq_proto::kubemq::{Event, EventReceive, Request, Response, Result as EventResult, Subscribe};
use kubemq_runtime::task::AbortOnDrop;
use kubemq_runtime::{OnFailure, Runtime};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::client::{CLIENT_ID, Client, Duplex, unique};
use crate::wait::{SOON, runtime, timeout};

/// A `SendEventsStream` stream.
pub type EventsStream = Duplex<Event, EventResult>;

/// Returns an event to `channel` that is not to be stored.
#[must_use]
pub fn event(channel: &str, body: impl Into<Bytes>) -> Event {
    Event {
        event_id: unique("event"),
        client_id: CLIENT_ID.into(),
        channel: channel.into(),
        body: body.into(),
        ..Event::default()
    }
}

/// Returns a subscription.
#[must_use]
pub fn subscribe(kind: SubscribeType, channel: &str, group: &str) -> Subscribe {
    Subscribe {
        subscribe_type_data: kind.into(),
        client_id: CLIENT_ID.into(),
        channel: channel.into(),
        group: group.into(),
        ..Subscribe::default()
    }
}

/// Returns a request that waits for `timeout` milliseconds.
#[must_use]
pub fn request(kind: RequestType, channel: &str, body: impl Into<Bytes>, timeout: i32) -> Request {
    Request {
        request_id: unique("request"),
        request_type_data: kind.into(),
        client_id: CLIENT_ID.into(),
        channel: channel.into(),
        body: body.into(),
        timeout,
        ..Request::default()
    }
}

/// Returns the answer to a delivered request that says that it was carried out.
#[must_use]
pub fn executed(request: &Request) -> Response {
    Response {
        client_id: "responder".into(),
        request_id: request.request_id.clone(),
        reply_channel: request.reply_channel.clone(),
        executed: true,
        ..Response::default()
    }
}

/// Returns the bodies of received events as text.
#[must_use]
pub fn texts(events: &[EventReceive]) -> Vec<String> {
    events.iter().map(|event| String::from_utf8_lossy(&event.body).into_owned()).collect()
}

/// Something that a client is subscribed to.
pub struct Subscribed<T>(Streaming<T>);

impl<T: std::fmt::Debug> Subscribed<T> {
    /// Returns what comes next, or the status with which the subscription ended.
    ///
    /// # Errors
    ///
    /// The status.
    ///
    /// # Panics
    ///
    /// Panics when nothing comes.
    pub async fn try_next(&mut self) -> Result<T, Status> {
        let next = timeout(SOON, self.0.message()).await.unwrap_or_else(|_| panic!("nothing came within {SOON:?}"));
        next?.ok_or_else(|| Status::new(Code::Ok, "the subscription ended"))
    }

    /// Returns what comes next.
    ///
    /// # Panics
    ///
    /// Panics when the subscription ends or nothing comes.
    pub async fn next(&mut self) -> T {
        self.try_next().await.unwrap_or_else(|status| panic!("the subscription failed: {status}"))
    }

    /// Returns the next `count`.
    pub async fn take(&mut self, count: usize) -> Vec<T> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            taken.push(self.next().await);
        }
        taken
    }

    /// Returns what is there and what comes before nothing has come for `pause`.
    pub async fn rest(&mut self, pause: Duration) -> Vec<T> {
        let mut taken = Vec::new();
        while let Ok(Ok(Some(next))) = timeout(pause, self.0.message()).await {
            taken.push(next);
        }
        taken
    }

    /// Fails the test when anything comes within `duration`.
    ///
    /// # Panics
    ///
    /// Panics then.
    pub async fn stays_silent(&mut self, duration: Duration) {
        if let Ok(next) = timeout(duration, self.0.message()).await {
            panic!("expected silence, got {next:?}");
        }
    }
}

impl Client {
    /// Sends one event.
    ///
    /// # Errors
    ///
    /// The status that the server answers.
    ///
    /// # Panics
    ///
    /// Panics when it does not answer.
    pub async fn send_event(&self, event: Event) -> Result<EventResult, Status> {
        let mut api = self.api.clone();
        let answer = timeout(SOON, Box::pin(api.send_event(event))).await.expect("an answer in time");
        answer.map(tonic::Response::into_inner)
    }

    /// Sends one event of each body to `channel`, one after another.
    ///
    /// # Panics
    ///
    /// Panics when one is refused.
    pub async fn publish(&self, channel: &str, bodies: impl IntoIterator<Item = impl Into<Bytes>>) {
        for body in bodies {
            let result = self.send_event(event(channel, body)).await;
            assert!(result.as_ref().is_ok_and(|result| result.sent), "{result:?}");
        }
    }

    /// Opens a `SendEventsStream` stream.
    ///
    /// # Panics
    ///
    /// Panics when the server does not answer.
    pub async fn events_stream(&self) -> EventsStream {
        let (requests, receiver) = mpsc::channel(64);
        let mut api = self.api.clone();
        let responses = timeout(SOON, Box::pin(api.send_events_stream(ReceiverStream::new(receiver)))).await;
        let responses = responses.expect("an answer in time").expect("a stream of events").into_inner();
        Duplex::new(requests, responses)
    }

    /// Subscribes to events. What is sent after this returns is received.
    ///
    /// # Panics
    ///
    /// Panics when the server refuses.
    pub async fn events(&self, channel: &str, group: &str) -> Subscribed<EventReceive> {
        let subscribe = subscribe(SubscribeType::Events, channel, group);
        self.try_events(subscribe).await.unwrap_or_else(|status| panic!("SubscribeToEvents failed: {status}"))
    }

    /// Subscribes to events as given.
    ///
    /// # Errors
    ///
    /// The status that the server answers.
    ///
    /// # Panics
    ///
    /// Panics when it does not answer.
    pub async fn try_events(&self, subscribe: Subscribe) -> Result<Subscribed<EventReceive>, Status> {
        let mut api = self.api.clone();
        let answer = timeout(SOON, Box::pin(api.subscribe_to_events(subscribe))).await.expect("an answer in time");
        answer.map(|answer| Subscribed(answer.into_inner()))
    }

    /// Subscribes to commands or queries. What is asked after this returns is received.
    ///
    /// # Panics
    ///
    /// Panics when the server refuses.
    pub async fn requests(&self, kind: SubscribeType, channel: &str, group: &str) -> Subscribed<Request> {
        let subscribe = subscribe(kind, channel, group);
        self.try_requests(subscribe).await.unwrap_or_else(|status| panic!("SubscribeToRequests failed: {status}"))
    }

    /// Subscribes to commands or queries as given.
    ///
    /// # Errors
    ///
    /// The status that the server answers.
    ///
    /// # Panics
    ///
    /// Panics when it does not answer.
    pub async fn try_requests(&self, subscribe: Subscribe) -> Result<Subscribed<Request>, Status> {
        let mut api = self.api.clone();
        let answer = timeout(SOON, Box::pin(api.subscribe_to_requests(subscribe))).await.expect("an answer in time");
        answer.map(|answer| Subscribed(answer.into_inner()))
    }

    /// Asks, and waits for the answer as long as the request says.
    ///
    /// # Errors
    ///
    /// The status that the server answers.
    ///
    /// # Panics
    ///
    /// Panics when it does not answer.
    pub async fn ask(&self, request: Request) -> Result<Response, Status> {
        let wait = SOON + Duration::from_millis(u64::try_from(request.timeout).unwrap_or(0));
        let mut api = self.api.clone();
        let answer = timeout(wait, Box::pin(api.send_request(request))).await.expect("an answer in time");
        answer.map(tonic::Response::into_inner)
    }

    /// Answers a request.
    ///
    /// # Errors
    ///
    /// The status that the server answers.
    ///
    /// # Panics
    ///
    /// Panics when it does not answer.
    pub async fn answer(&self, response: Response) -> Result<(), Status> {
        let mut api = self.api.clone();
        let answer = timeout(SOON, Box::pin(api.send_response(response))).await.expect("an answer in time");
        answer.map(|_| ())
    }

    /// Answers everything that is asked on `channel` with what `answer` makes of it, until the result is dropped.
    ///
    /// # Panics
    ///
    /// Panics when the server refuses the subscription.
    pub async fn respond(
        &self,
        kind: SubscribeType,
        channel: &str,
        group: &str,
        mut answer: impl FnMut(Request) -> Response + Send + 'static,
    ) -> AbortOnDrop<()> {
        let mut asked = self.requests(kind, channel, group).await;
        let (client, Runtime { tasks, .. }) = (self.clone(), runtime());
        let responder = tasks.spawn("responder", OnFailure::Log, async move {
            while let Ok(Some(request)) = asked.0.message().await {
                // The requester notices when its answer is missing.
                client.api.clone().send_response(answer(request)).await.ok();
            }
        });
        responder.abort_on_drop()
    }
}
