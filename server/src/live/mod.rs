//! What is not stored: events, commands and queries, from the senders of this node to its subscribers.
//!
//! Nothing here touches the log or consensus, and nobody waits for a subscriber: what does not fit into its
//! queue is dropped for it alone. Requests are checked and answered by the [`gateway`](crate::gateway).
//!
//! Start reading in [`routes`], then [`inbox`].

mod cache;
mod inbox;
mod numbers;
mod pending;
mod routes;
mod subjects;

use std::sync::Arc;
use std::time::Duration;

use kubemq_proto::frame::Frame;
use kubemq_proto::kubemq::{Event, Request, Response, Subscribe};
use kubemq_runtime::{Instant, Runtime};
use prost::Message as _;

use self::cache::Cache;
use self::inbox::{Budget, Owner};
use self::pending::Pending;
use self::routes::{Route, Routes};

pub use self::numbers::{Counted, OTHERS};
pub use self::routes::Subscription;
use crate::traffic::{Of, Row, Side, Traffic};

/// Bounds of what is not stored: messages, answers and counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that may wait for one subscriber, each message with 128 bytes of overhead.
    pub subscriber_bytes: usize,
    /// Bytes that may wait on the node, a message for many counted once. Beyond it each subscriber has its share.
    pub subscribers_bytes: usize,
    /// Requests that may wait for their answer.
    pub pending_requests: usize,
    /// Bytes of answers that are kept for queries with a cache key; none for zero.
    pub cache_bytes: usize,
    /// The longest life of such an answer.
    pub cache_life: Duration,
    /// Clients that are counted by name, each once for each channel and direction; none for zero.
    pub named_clients: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            subscriber_bytes: 64 * 1024 * 1024,
            subscribers_bytes: 512 * 1024 * 1024,
            pending_requests: 64 * 1024,
            cache_bytes: 64 * 1024 * 1024,
            cache_life: Duration::from_secs(24 * 3600),
            named_clients: 1_000,
        }
    }
}

/// A pattern whose messages are not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Events.
    Events,
    /// Commands.
    Commands,
    /// Queries.
    Queries,
}

impl Pattern {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Events, Self::Commands, Self::Queries];

    /// Returns the name that channel lists and metrics use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Commands => "commands",
            Self::Queries => "queries",
        }
    }

    fn counted_as(self) -> Of {
        match self {
            Self::Events => Of::Events,
            Self::Commands => Of::Commands,
            Self::Queries => Of::Queries,
        }
    }
}

/// What a node holds of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests that wait for their answer.
    pub pending_requests: usize,
    /// Bytes that wait for subscribers.
    pub waiting_bytes: usize,
    /// Ways to subscribers that are remembered, and the most that are.
    pub routes: (usize, usize),
    /// Channels that are counted by name, and the most that are.
    pub counted_channels: (usize, usize),
    /// Answers that are kept for queries with a cache key.
    pub cached_answers: usize,
    /// What they cost.
    pub cached_bytes: usize,
}

/// The events, commands and queries of a node. Clones are the same.
#[derive(Clone)]
pub struct Live(Arc<Inner>);

struct Inner {
    runtime: Runtime,
    limits: Limits,
    events: Arc<Routes>,
    commands: Arc<Routes>,
    queries: Arc<Routes>,
    budget: Arc<Budget>,
    pending: Arc<Pending>,
    cache: Cache,
    traffic: Traffic,
}

impl Live {
    /// Returns one without subscribers.
    #[must_use]
    pub fn new(runtime: &Runtime, limits: Limits) -> Self {
        let budget = Budget::new(limits.subscribers_bytes);
        let traffic = Traffic::new(limits.named_clients);
        let routes = |pattern: Pattern| Routes::new(runtime, &budget, (&traffic, pattern.counted_as()));
        Self(Arc::new(Inner {
            events: routes(Pattern::Events),
            commands: routes(Pattern::Commands),
            queries: routes(Pattern::Queries),
            traffic: traffic.clone(),
            budget: Arc::clone(&budget),
            pending: Pending::new(limits.pending_requests),
            cache: Cache::new(limits.cache_bytes, limits.cache_life),
            runtime: runtime.clone(),
            limits,
        }))
    }

    fn routes(&self, pattern: Pattern) -> &Arc<Routes> {
        match pattern {
            Pattern::Events => &self.0.events,
            Pattern::Commands => &self.0.commands,
            Pattern::Queries => &self.0.queries,
        }
    }

    /// Subscribes as a checked `subscribe` says. Whatever is sent after this returns is received.
    #[must_use]
    pub fn subscribe(&self, pattern: Pattern, subscribe: &Subscribe) -> Subscription {
        let owner = Owner {
            client: subscribe.client_id.as_str().into(),
            channel: subscribe.channel.as_str().into(),
            group: subscribe.group.as_str().into(),
        };
        self.routes(pattern).subscribe(owner, self.0.limits.subscriber_bytes)
    }

    /// Returns what events of one stream are sent through.
    #[must_use]
    pub fn publisher(&self) -> Publisher {
        Publisher { live: self.clone(), last: None, sender: None, frames: Vec::new(), bytes: 0 }
    }

    /// Hands a checked `request` to its responders and waits for the first answer, for at most as long as the
    /// request says. The answer is as the responder gave it. Cancel safe: giving up leaves nothing behind.
    ///
    /// # Errors
    ///
    /// [`Unanswered`] says why there is none.
    pub async fn request(&self, pattern: Pattern, mut request: Request) -> Result<Response, Unanswered> {
        let Inner { runtime, pending, traffic, .. } = &*self.0;
        let deadline = runtime.clock.now() + Duration::from_millis(u64::try_from(request.timeout).unwrap_or(0));
        let mut waiting = pending.wait(&runtime.random).ok_or(Unanswered::TooMany)?;
        let route = self.routes(pattern).route(&request.channel);
        let bytes = u64::try_from(request.encoded_len()).unwrap_or(u64::MAX);
        let sent = traffic.of(pattern.counted_as(), Side::Send, &request.channel, &request.client_id);
        sent.add(1, bytes, runtime.clock.wall());
        waiting.token().clone_into(&mut request.reply_channel);
        route.deliver(&mut vec![Frame::request(request)], bytes, runtime);
        let Ok(Some(response)) = runtime.clock.timeout_at(deadline, waiting.answer()).await else {
            sent.failed();
            return Err(Unanswered::TimedOut);
        };
        // Who answers does not name the channel.
        let answered = traffic.of(Of::Responses, Side::Send, "", &response.client_id);
        answered.add(1, u64::try_from(response.encoded_len()).unwrap_or(u64::MAX), runtime.clock.wall());
        route.numbers.answered();
        if !response.executed {
            sent.failed();
        }
        Ok(response)
    }

    /// Hands a checked answer to whoever waits for it. An answer that nobody waits for is discarded.
    pub fn answer(&self, mut response: Response) {
        let token = std::mem::take(&mut response.reply_channel);
        if !self.0.pending.answer(&token, response) {
            tracing::debug!("an answer came that nobody waits for");
        }
    }

    /// Returns the answer that is kept for `key` on `channel`.
    #[must_use]
    pub fn cached(&self, channel: &str, key: &str) -> Option<Response> {
        self.0.cache.get(channel, key, self.now())
    }

    /// Keeps an answer for `key` on `channel` for so many seconds.
    pub fn keep(&self, channel: &str, key: &str, response: &Response, seconds: i32) {
        self.0.cache.put(channel, key, response, seconds, self.now());
    }

    fn now(&self) -> Instant {
        self.0.runtime.clock.now()
    }

    /// Returns what was counted for the channels of a pattern.
    #[must_use]
    pub fn counted(&self, pattern: Pattern) -> Vec<(Box<str>, Counted)> {
        self.routes(pattern).numbers.read()
    }

    /// Returns whether `channel` is one of those for which it is counted by name.
    #[must_use]
    pub fn counts(&self, pattern: Pattern, channel: &str) -> bool {
        self.routes(pattern).numbers.has(channel)
    }

    /// Returns what clients sent and received, stored messages included.
    pub(crate) fn traffic(&self) -> &Traffic {
        &self.0.traffic
    }

    /// Forgets what was counted for a channel that nobody subscribes to.
    pub fn forget(&self, pattern: Pattern, channel: &str) {
        self.routes(pattern).forget(channel);
    }

    /// Returns the bounds.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Returns what is held now.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let (cached_answers, cached_bytes) = self.0.cache.size();
        let sum = |read: fn(&Routes) -> usize| Pattern::ALL.iter().map(|&pattern| read(self.routes(pattern))).sum();
        Totals {
            pending_requests: self.0.pending.len(),
            waiting_bytes: self.0.budget.used(),
            routes: (sum(|routes| routes.kept()), Pattern::ALL.len() * Routes::MOST_KEPT),
            counted_channels: (sum(|routes| routes.numbers.named()), Pattern::ALL.len() * numbers::Numbers::MOST_NAMED),
            cached_answers,
            cached_bytes,
        }
    }
}

/// Why a request has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// Nobody answered in time.
    TimedOut,
    /// As many requests wait as may; nobody was asked.
    TooMany,
}

/// Sends events, in order, and remembers the route of the last one. Events to the same channel that are sent
/// one after another are handed over together by [`Publisher::flush`], or when the channel changes.
pub struct Publisher {
    live: Live,
    last: Option<Last>,
    sender: Option<Sender>,
    frames: Vec<Frame>,
    /// Of the events in `frames`, as they were sent.
    bytes: u64,
}

struct Last {
    channel: String,
    version: u64,
    route: Arc<Route>,
}

/// Who sent the last event, and what of it is not counted yet.
struct Sender {
    client: String,
    row: Arc<Row>,
    messages: u64,
    bytes: u64,
}

impl Publisher {
    /// Takes a checked event. It is on its way at the next flush.
    pub fn send(&mut self, event: Event) {
        let is_same = self.last.as_ref().is_some_and(|last| last.channel == event.channel);
        if !is_same {
            self.flush();
            self.sender = None;
            self.last = Some(self.look_up(event.channel.clone()));
        }
        let bytes = u64::try_from(event.encoded_len()).unwrap_or(u64::MAX);
        self.bytes += bytes;
        if self.sender.as_ref().is_none_or(|sender| sender.client != event.client_id) {
            self.count_sent();
            let row = self.live.traffic().of(Of::Events, Side::Send, &event.channel, &event.client_id);
            self.sender = Some(Sender { client: event.client_id.clone(), row, messages: 0, bytes: 0 });
        }
        if let Some(sender) = &mut self.sender {
            sender.messages += 1;
            sender.bytes += bytes;
        }
        self.frames.push(Frame::event(event));
    }

    fn look_up(&self, channel: String) -> Last {
        let routes = self.live.routes(Pattern::Events);
        // Before the route is looked up: a change in between is noticed at the next flush.
        let version = routes.version();
        let route = routes.route(&channel);
        Last { channel, version, route }
    }

    fn count_sent(&mut self) {
        if let Some(Sender { row, messages, bytes, .. }) = &mut self.sender {
            row.add(std::mem::take(messages), std::mem::take(bytes), self.live.0.runtime.clock.wall());
        }
    }

    /// Hands over what was sent.
    pub fn flush(&mut self) {
        self.count_sent();
        let Some(last) = self.last.take_if(|_| !self.frames.is_empty()) else { return };
        let is_good = last.version == self.live.routes(Pattern::Events).version();
        let last = if is_good { last } else { self.look_up(last.channel) };
        last.route.deliver(&mut self.frames, std::mem::take(&mut self.bytes), &self.live.0.runtime);
        self.last = Some(last);
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll};

    use futures_util::task::noop_waker_ref;

    use super::*;

    fn subscribe(channel: &str) -> Subscribe {
        Subscribe { client_id: "c".to_owned(), channel: channel.to_owned(), ..Subscribe::default() }
    }

    fn event(channel: &str, id: &str) -> Event {
        Event { event_id: id.to_owned(), channel: channel.to_owned(), ..Event::default() }
    }

    fn received(subscription: &mut Subscription) -> Vec<Frame> {
        let mut cx = Context::from_waker(noop_waker_ref());
        std::iter::from_fn(|| match subscription.poll_next(&mut cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => None,
        })
        .collect()
    }

    #[tokio::test]
    async fn a_publisher_keeps_order_and_sees_new_subscriptions() {
        let live = Live::new(&Runtime::real(), Limits::default());
        let mut a = live.subscribe(Pattern::Events, &subscribe("a"));
        let mut publisher = live.publisher();
        publisher.send(event("a", "1"));
        publisher.send(event("a", "2"));
        assert_eq!(received(&mut a).len(), 0, "nothing is handed over before the flush");
        publisher.send(event("b", "3"));
        publisher.send(event("a", "4"));
        publisher.flush();
        let expected = ["1", "2", "4"].map(|id| Frame::event(event("a", id)));
        assert_eq!(received(&mut a), expected);

        let mut late = live.subscribe(Pattern::Events, &subscribe(">"));
        publisher.send(event("a", "5"));
        publisher.flush();
        assert_eq!((received(&mut a).len(), received(&mut late).len()), (1, 1));
        drop(a);
        publisher.send(event("a", "6"));
        publisher.flush();
        publisher.flush();
        assert_eq!(received(&mut late).len(), 1);
        assert_eq!((live.totals().pending_requests, live.totals().cached_answers), (0, 0));
    }

    #[tokio::test]
    async fn an_answer_finds_its_requester_and_nobody_else() {
        let live = Live::new(&Runtime::real(), Limits::default());
        let mut responder = live.subscribe(Pattern::Commands, &subscribe("a"));
        let mut other = live.subscribe(Pattern::Queries, &subscribe("a"));
        let request = Request { channel: "a".to_owned(), timeout: 60_000, ..Request::default() };
        let answering = async {
            let frame = std::future::poll_fn(|cx| responder.poll_next(cx)).await.unwrap();
            let asked = Request::decode(frame.encode_to_vec().as_slice()).unwrap();
            assert_eq!(live.totals().pending_requests, 1);
            let reply_channel = asked.reply_channel;
            live.answer(Response { reply_channel: "_INBOX.forged".to_owned(), ..Response::default() });
            live.answer(Response { reply_channel, request_id: "yes".to_owned(), ..Response::default() });
        };
        let (answer, ()) = tokio::join!(live.request(Pattern::Commands, request), answering);
        assert_eq!(answer.unwrap().request_id, "yes");
        assert!(received(&mut other).is_empty());
        assert_eq!(live.totals().pending_requests, 0);
    }

    #[tokio::test]
    async fn a_request_without_an_answer_ends_with_its_time() {
        let live = Live::new(&Runtime::real(), Limits { pending_requests: 1, ..Limits::default() });
        let request = |timeout| Request { channel: "a".to_owned(), timeout, ..Request::default() };
        let silent = live.request(Pattern::Queries, request(50));
        let mut silent = std::pin::pin!(silent);
        assert!(futures_util::poll!(silent.as_mut()).is_pending());
        assert_eq!(live.request(Pattern::Queries, request(50)).await, Err(Unanswered::TooMany));
        assert_eq!(silent.await, Err(Unanswered::TimedOut));
        assert_eq!(live.totals().pending_requests, 0);
        let sent = live.traffic().read(|_, _| true).into_values().next().unwrap();
        assert_eq!((live.counted(Pattern::Queries)[0].1.sent, sent.messages, sent.errors), (1, 1, 1));
    }
}
