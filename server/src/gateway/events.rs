//! Sending events and subscribing to them.
//!
//! Events that are not stored go to the subscribers of this node at once, and what became of them is told to
//! nobody: on a stream only a refusal is answered.

use std::collections::VecDeque;
use std::task::Poll;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use kubemq_proto::id;
use kubemq_proto::kubemq::{Event, Result as EventResult, Subscribe};
use kubemq_proto::strings::Refusal;
use kubemq_proto::validate;
use kubemq_runtime::sync::mpsc;
use prost::Message as _;

use super::Gateway;
use super::stream::{Ended, Outlet, Stop};
use crate::live::{Pattern, Publisher, Subscription};

/// Events of one stream that are looked at before others get a turn.
const TOGETHER: usize = 256;
/// Events of one stream whose result is not told yet, at most.
const UNANSWERED: usize = 16 * 1024;
/// Their bytes, at most; one event more may be read.
const UNANSWERED_BYTES: usize = 32 * 1024 * 1024;

impl Gateway {
    /// Sends one event that is not to be stored.
    ///
    /// # Errors
    ///
    /// What is wrong with the event. That it is too large to be delivered stands in the result.
    pub fn send_event(&self, mut event: Event) -> Result<EventResult, Refusal> {
        validate::event(&event)?;
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

    fn is_deliverable(&self, event: &Event) -> bool {
        validate::is_deliverable(event.encoded_len(), self.limits().max_message_bytes)
    }
}

/// Returns the result of an event that was not sent.
pub(super) fn failed(event_id: String, refusal: &Refusal) -> EventResult {
    EventResult { event_id, sent: false, error: refusal.to_string() }
}

/// Serves one stream of events until it ends. Results come in the order of the events they belong to.
///
/// # Errors
///
/// What the stream of events ended with; nobody reads results then.
pub async fn serve<S, E>(
    gateway: &Gateway,
    events: S,
    results: mpsc::Sender<EventResult>,
    stop: Stop,
) -> Result<Ended, E>
where
    S: Stream<Item = Result<Event, E>> + Send + Unpin,
{
    let mut events = events.fuse();
    let mut outlet = Outlet::new(results, stop);
    let mut sending = Sending::new(gateway);
    let mut end = None;
    loop {
        if sending.unanswered.is_empty()
            && sending.stored.is_empty()
            && let Some(end) = end
        {
            return end;
        }
        tokio::select! {
            biased;
            ended = outlet.ended() => match ended {
                // What was read is finished and answered.
                Ended::Stopped => end = Some(Ok(Ended::Stopped)),
                ended => {
                    // It was sent before the client went: it is stored, and nobody is told.
                    sending.store();
                    return Ok(ended);
                }
            },
            results = sending.front(), if !sending.unanswered.is_empty() => {
                for result in results {
                    if let Err(ended) = outlet.send(result).await {
                        sending.store();
                        return Ok(ended);
                    }
                }
            },
            () = gateway.room(), if !sending.stored.is_empty() => sending.store(),
            event = events.next(), if end.is_none() && sending.may_read() => {
                let (ended, more) = sending.take_what_is_there(event, &mut events);
                end = ended;
                if more {
                    // Subscribers must get to run although this stream could go on.
                    tokio::task::yield_now().await;
                }
            },
        }
    }
}

/// One stream of events.
struct Sending<'a> {
    gateway: &'a Gateway,
    publisher: Publisher,
    /// Results that are not told yet, in order.
    unanswered: VecDeque<Answer>,
    unanswered_events: usize,
    unanswered_bytes: usize,
    /// To be stored together.
    stored: Vec<Event>,
    stored_bytes: usize,
}

/// The results of events that were sent one after another.
struct Answer {
    results: Results,
    events: usize,
    bytes: usize,
}

enum Results {
    Known(EventResult),
    Stored(BoxFuture<'static, Vec<EventResult>>),
}

impl<'a> Sending<'a> {
    fn new(gateway: &'a Gateway) -> Self {
        Self {
            gateway,
            publisher: gateway.live().publisher(),
            unanswered: VecDeque::new(),
            unanswered_events: 0,
            unanswered_bytes: 0,
            stored: Vec::new(),
            stored_bytes: 0,
        }
    }

    fn may_read(&self) -> bool {
        // While there is no room for what was read nothing more is read.
        self.stored.is_empty() && !self.is_full()
    }

    fn is_full(&self) -> bool {
        let (events, bytes) = (self.unanswered_events + self.stored.len(), self.unanswered_bytes + self.stored_bytes);
        events >= UNANSWERED || bytes >= UNANSWERED_BYTES
    }

    /// Sends `first` and the events that can be had without waiting. Returns how the stream ends when there will
    /// be none after them, and whether there may be more right now.
    fn take_what_is_there<S, E>(
        &mut self,
        first: Option<Result<Event, E>>,
        events: &mut S,
    ) -> (Option<Result<Ended, E>>, bool)
    where
        S: Stream<Item = Result<Event, E>> + Unpin,
    {
        let mut next = Some(first);
        let mut taken = 0;
        let mut end = None;
        while let Some(event) = next {
            match event {
                Some(Ok(event)) => self.take(event),
                // What came before the mistake is sent and answered all the same.
                Some(Err(error)) => end = Some(Err(error)),
                None => end = Some(Ok(Ended::Finished)),
            }
            taken += 1;
            if end.is_some() || taken == TOGETHER || self.is_full() {
                break;
            }
            next = events.next().now_or_never();
        }
        self.publisher.flush();
        (end, taken == TOGETHER)
    }

    fn take(&mut self, mut event: Event) {
        if let Err(refusal) = validate::event(&event) {
            self.answer(failed(event.event_id, &refusal));
            return;
        }
        if event.event_id.is_empty() {
            event.event_id = id::nuid(&self.gateway.runtime().random);
        }
        if event.store {
            self.stored_bytes += event.encoded_len();
            self.stored.push(event);
        } else if self.gateway.is_deliverable(&event) {
            self.publisher.send(event);
        }
    }

    /// Has the events stored that are to be; results of later events come after theirs.
    fn store(&mut self) {
        let events = std::mem::take(&mut self.stored);
        let bytes = std::mem::take(&mut self.stored_bytes);
        if events.is_empty() {
            return;
        }
        let count = events.len();
        let results = self.gateway.store_events(events).boxed();
        self.push(Answer { results: Results::Stored(results), events: count, bytes });
    }

    fn answer(&mut self, result: EventResult) {
        self.store();
        self.push(Answer { results: Results::Known(result), events: 1, bytes: 0 });
    }

    fn push(&mut self, answer: Answer) {
        self.unanswered_events += answer.events;
        self.unanswered_bytes += answer.bytes;
        self.unanswered.push_back(answer);
    }

    /// Waits for the oldest results. Cancel safe.
    async fn front(&mut self) -> Vec<EventResult> {
        let results = std::future::poll_fn(|cx| match self.unanswered.front_mut().map(|answer| &mut answer.results) {
            Some(Results::Known(result)) => Poll::Ready(vec![std::mem::take(result)]),
            Some(Results::Stored(results)) => results.as_mut().poll(cx),
            None => Poll::Pending,
        })
        .await;
        if let Some(answer) = self.unanswered.pop_front() {
            self.unanswered_events -= answer.events;
            self.unanswered_bytes -= answer.bytes;
        }
        results
    }
}
