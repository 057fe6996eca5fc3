//! What the streams of publishes share: requests come in any number, are submitted together, and are answered in the
//! order in which they came.
//!
//! Reading goes on while what was submitted commits; how much may be unanswered is bounded, beyond that the stream is
//! not read. One task does it all: what a commit completes is answered after one wake-up.
//!
//! While nobody leads, what was certainly not stored waits, for at most ten seconds, and is submitted again in order;
//! nothing later passes it by. What may have been stored is never submitted again.

use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use kubemq_broker::Outcome;
use kubemq_runtime::Instant;
use kubemq_runtime::sync::mpsc;

use super::stream::{Ended, Outlet, Stop};
use super::{Gateway, LEAD_RETRY, Submitted, Unavailable, WAIT_FOR_LEADER};
use crate::metrics::Latency;

/// Requests of one stream that are not answered yet, at most.
const UNANSWERED_REQUESTS: usize = 16 * 1024;
/// Bytes of what they want stored; one request more may be read.
const UNANSWERED_BYTES: usize = 32 * 1024 * 1024;
/// Operations that are submitted together, at most, unless one request brings more.
const TOGETHER_OPERATIONS: usize = 1024;
/// Their bytes.
const TOGETHER_BYTES: usize = 256 * 1024;

/// What a stream makes of its requests.
pub(super) trait Publishing {
    /// What the client sends.
    type Request: Send;
    /// What it is answered.
    type Answer: Send + 'static;
    /// What is kept of the requests of a group until its outcomes are known.
    type Kept: Default + Send;

    /// Requests of one stream that are looked at before others get a turn.
    const TURN: usize;

    /// Looks at a request. What is to be answered goes into `group`.
    fn stage(&mut self, request: Self::Request, group: &mut Group<Self::Kept>);

    /// Told when all requests that were there are staged.
    fn all_staged(&mut self) {}

    /// Returns the answers to a group, whose outcomes are aligned with its operations.
    fn answers(&self, kept: Self::Kept, outcomes: Result<Vec<Outcome>, Unavailable>) -> Vec<Self::Answer>;
}

/// Requests that are submitted and answered together.
#[derive(Default)]
pub(super) struct Group<K> {
    /// What they want stored.
    pub(super) operations: Vec<Bytes>,
    /// Bytes of the operations.
    pub(super) bytes: usize,
    /// Requests that will be answered.
    pub(super) requests: usize,
    /// What their answers are made of.
    pub(super) kept: K,
}

impl<K> Group<K> {
    fn is_empty(&self) -> bool {
        self.requests == 0
    }

    fn is_full(&self) -> bool {
        self.operations.len() >= TOGETHER_OPERATIONS || self.bytes >= TOGETHER_BYTES
    }
}

/// Serves one stream until it ends, and counts how long its requests take: until they are answered, or handed on where
/// nothing is answered.
///
/// # Errors
///
/// What the stream of requests ended with; nobody reads answers then.
pub(super) async fn serve<P, S, E>(
    gateway: &Gateway,
    publishing: P,
    requests: S,
    answers: mpsc::Sender<P::Answer>,
    (stop, durations): (Stop, Arc<Latency>),
) -> Result<Ended, E>
where
    P: Publishing + Send,
    S: Stream<Item = Result<P::Request, E>> + Send + Unpin,
{
    let mut requests = requests.fuse();
    let mut outlet = Outlet::new(answers, stop);
    let mut line = Line::new(gateway, publishing, durations);
    let mut end = None;
    loop {
        // Without a leader nothing that waits can be finished before the node has stopped.
        let gives_up = line.leaderless && matches!(end, Some(Ok(Ended::Stopped)));
        if (line.is_idle() || gives_up)
            && let Some(end) = end
        {
            return end;
        }
        let deadline = line.groups.front().map(|first| first.deadline);
        let answers = tokio::select! {
            biased;
            ended = outlet.ended() => match ended {
                // What was read is finished and answered.
                Ended::Stopped => {
                    end = Some(Ok(Ended::Stopped));
                    continue;
                }
                ended => {
                    // It was sent before the client went: it is stored, and nobody is told.
                    line.submit();
                    return Ok(ended);
                }
            },
            outcomes = line.front(), if !line.groups.is_empty() && !line.leaderless => line.complete(outcomes),
            led = leader(gateway, deadline), if line.leaderless => {
                line.leaderless = false;
                if led {
                    line.submit_again();
                    continue;
                }
                line.complete(Err(Unavailable::NotLeader))
            },
            () = gateway.room(), if !line.staged.is_empty() => {
                line.submit();
                continue;
            }
            request = requests.next(), if end.is_none() && line.may_read() => {
                let (ended, more) = line.stage_what_is_there(request, &mut requests);
                end = ended;
                if more {
                    // Others must get to run although this stream could go on.
                    tokio::task::yield_now().await;
                }
                continue;
            },
        };
        for answer in answers {
            if let Err(ended) = outlet.send(answer).await {
                line.submit();
                return Ok(ended);
            }
        }
    }
}

/// The groups of one stream, on their way into the log.
struct Line<P: Publishing> {
    gateway: Gateway,
    lane: u64,
    publishing: P,
    durations: Arc<Latency>,
    /// Read and not yet submitted.
    staged: Group<P::Kept>,
    /// When that was read.
    staged_at: Instant,
    /// Submitted, oldest first.
    groups: VecDeque<InFlight<P::Kept>>,
    unanswered_requests: usize,
    unanswered_bytes: usize,
    /// The first group was not taken because nobody leads: what comes after it waits with it.
    leaderless: bool,
}

struct InFlight<K> {
    /// Its operations are kept until the outcome is known, to submit them again under the next leader.
    group: Group<K>,
    flight: Flight,
    /// The leadership that it was given to, which what comes after it must be given to, too; none when nothing is
    /// before it and it has no operations.
    epoch: Option<u64>,
    /// When it was read.
    began: Instant,
    /// Until when it waits for a leader.
    deadline: Instant,
}

enum Flight {
    Submitted(Submitted),
    Known(Result<Vec<Outcome>, Unavailable>),
}

impl<P: Publishing> Line<P> {
    fn new(gateway: &Gateway, publishing: P, durations: Arc<Latency>) -> Self {
        Self {
            gateway: gateway.clone(),
            lane: gateway.lane(),
            publishing,
            durations,
            staged: Group::default(),
            staged_at: gateway.runtime().clock.now(),
            groups: VecDeque::new(),
            unanswered_requests: 0,
            unanswered_bytes: 0,
            leaderless: false,
        }
    }

    fn is_idle(&self) -> bool {
        self.groups.is_empty() && self.staged.is_empty()
    }

    fn may_read(&self) -> bool {
        self.staged.is_empty() && !self.is_full()
    }

    fn is_full(&self) -> bool {
        self.unanswered_requests + self.staged.requests >= UNANSWERED_REQUESTS
            || self.unanswered_bytes + self.staged.bytes >= UNANSWERED_BYTES
    }

    /// Stages `first` and the requests that can be had without waiting. Returns how the stream ends when there will
    /// be none after them, and whether its turn is over although there may be more.
    fn stage_what_is_there<S, E>(
        &mut self,
        first: Option<Result<P::Request, E>>,
        requests: &mut S,
    ) -> (Option<Result<Ended, E>>, bool)
    where
        S: Stream<Item = Result<P::Request, E>> + Unpin,
    {
        let mut next = Some(first);
        let mut end = None;
        let mut taken = 0;
        // Nothing is staged before what was staged is submitted.
        self.staged_at = self.now();
        while let Some(request) = next {
            match request {
                Some(Ok(request)) => self.publishing.stage(request, &mut self.staged),
                // What came before the mistake is carried out and answered all the same.
                Some(Err(error)) => end = Some(Err(error)),
                None => end = Some(Ok(Ended::Finished)),
            }
            taken += 1;
            if end.is_some() || taken == P::TURN || self.staged.is_full() || self.is_full() {
                break;
            }
            next = requests.next().now_or_never();
        }
        self.publishing.all_staged();
        let handed_on = (taken - usize::from(end.is_some())).saturating_sub(self.staged.requests);
        if handed_on > 0 {
            self.durations.observe_all(self.now().since(self.staged_at), handed_on);
        }
        (end, taken == P::TURN)
    }

    fn now(&self) -> Instant {
        self.gateway.runtime().clock.now()
    }

    fn submit(&mut self) {
        let group = std::mem::take(&mut self.staged);
        if group.is_empty() {
            return;
        }
        self.unanswered_requests += group.requests;
        self.unanswered_bytes += group.bytes;
        self.gateway.numbers().read(group.requests, group.bytes);
        let (flight, epoch) = if self.leaderless {
            (Flight::Known(Err(Unavailable::NotLeader)), None)
        } else {
            let behind = self.groups.back().and_then(|last| last.epoch);
            hand_over(&self.gateway, self.lane, &group.operations, behind)
        };
        let deadline = self.now() + WAIT_FOR_LEADER;
        self.groups.push_back(InFlight { group, flight, epoch, began: self.staged_at, deadline });
    }

    /// Waits for the outcomes of the oldest group. Cancel safe.
    async fn front(&mut self) -> Result<Vec<Outcome>, Unavailable> {
        std::future::poll_fn(|cx| match self.groups.front_mut().map(|group| &mut group.flight) {
            Some(Flight::Submitted(submitted)) => Pin::new(submitted).poll(cx),
            Some(Flight::Known(outcomes)) => Poll::Ready(outcomes.clone()),
            None => Poll::Pending,
        })
        .await
    }

    /// Returns the answers to the oldest group, unless it waits for a leader to be submitted again.
    fn complete(&mut self, outcomes: Result<Vec<Outcome>, Unavailable>) -> Vec<P::Answer> {
        let now = self.now();
        let Some(first) = self.groups.front_mut() else { return Vec::new() };
        if outcomes == Err(Unavailable::NotLeader) && now < first.deadline {
            first.flight = Flight::Known(outcomes);
            self.leaderless = true;
            return Vec::new();
        }
        let Some(InFlight { group, began, .. }) = self.groups.pop_front() else { return Vec::new() };
        self.durations.observe_all(now.since(began), group.requests);
        self.unanswered_requests -= group.requests;
        self.unanswered_bytes -= group.bytes;
        self.gateway.numbers().answered(group.requests, group.bytes);
        self.publishing.answers(group.kept, outcomes)
    }

    /// Submits again, in order, everything that was not taken.
    fn submit_again(&mut self) {
        let mut behind = None;
        for InFlight { group, flight, epoch, .. } in &mut self.groups {
            if let Flight::Submitted(submitted) = flight
                && let Some(outcomes) = submitted.now_or_never()
            {
                *flight = Flight::Known(outcomes);
            }
            if matches!(flight, Flight::Known(Err(Unavailable::NotLeader))) {
                (*flight, *epoch) = hand_over(&self.gateway, self.lane, &group.operations, behind);
            }
            behind = epoch.or(behind);
        }
    }
}

impl<P: Publishing> Drop for Line<P> {
    fn drop(&mut self) {
        self.gateway.numbers().answered(self.unanswered_requests, self.unanswered_bytes);
    }
}

/// Waits until this node leads. Returns whether it does before `deadline`. Cancel safe.
async fn leader(gateway: &Gateway, deadline: Option<Instant>) -> bool {
    let clock = &gateway.runtime().clock;
    let leads = async {
        // Who follows leadership must get to run before it is asked again.
        clock.sleep(LEAD_RETRY).await;
        gateway.lead().await;
    };
    match deadline {
        Some(deadline) => clock.timeout_at(deadline, leads).await.is_ok(),
        None => true,
    }
}

/// Submits operations behind those that were given to the leadership `behind`. Returns the one they were given to.
fn hand_over(gateway: &Gateway, lane: u64, operations: &[Bytes], behind: Option<u64>) -> (Flight, Option<u64>) {
    if operations.is_empty() {
        return (Flight::Known(Ok(Vec::new())), behind);
    }
    let submitted = gateway.submit_behind(operations.to_vec(), lane, behind);
    let epoch = submitted.epoch();
    (Flight::Submitted(submitted), Some(epoch))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kubemq_broker::{Kind, Name, Operation};
    use kubemq_proto::kubemq::{Event, QueueMessage, QueuesUpstreamRequest};
    use kubemq_proto::strings::Refusal;
    use kubemq_storage::fs::MemoryDisk;
    use tokio_stream::wrappers::ReceiverStream;

    use super::super::{events, upstream};
    use super::*;
    use crate::gateway::lanes::COMMON;
    use crate::node::Node;
    use crate::node::tests::start;

    const SOON: Duration = Duration::from_secs(30);

    type Requests<T> = ReceiverStream<Result<T, std::convert::Infallible>>;

    fn event(number: usize) -> Event {
        Event {
            event_id: number.to_string(),
            client_id: "c".to_owned(),
            channel: "e".to_owned(),
            body: "x".into(),
            store: true,
            ..Event::default()
        }
    }

    fn request(number: usize) -> QueuesUpstreamRequest {
        let message = QueueMessage {
            client_id: "c".to_owned(),
            channel: "q".to_owned(),
            body: "x".into(),
            ..QueueMessage::default()
        };
        QueuesUpstreamRequest { request_id: number.to_string(), messages: vec![message] }
    }

    /// Sends `requests` on a stream to a node that does not lead, `then` does something, and returns the answers.
    async fn answered<T, A>(
        node: &Node,
        requests: Vec<T>,
        serve: impl AsyncFnOnce(Requests<T>, mpsc::Sender<A>) -> Result<Ended, std::convert::Infallible>,
        mut then: impl AsyncFnMut(),
    ) -> Vec<A> {
        let count = requests.len();
        let (sender, receiver) = tokio::sync::mpsc::channel(count);
        for request in requests {
            assert!(sender.try_send(Ok(request)).is_ok());
        }
        drop(sender);
        let (answers, mut answered) = mpsc::channel(count);
        node.ready().await;
        node.gateway().depose();
        let then = async {
            // As long as it takes to ask for a leader many times.
            node.gateway().runtime().clock.sleep(20 * LEAD_RETRY).await;
            assert!(answered.try_recv().is_err(), "nothing is answered while nobody leads");
            then().await;
        };
        let served = async { tokio::join!(serve(ReceiverStream::new(receiver), answers), then).0 };
        let served = node.gateway().runtime().clock.timeout(SOON, served).await;
        assert_eq!(served, Ok(Ok(Ended::Finished)));
        std::iter::from_fn(|| answered.try_recv().ok()).collect()
    }

    async fn answered_events(node: &Node, requests: Vec<Event>, then: impl AsyncFnMut()) -> Vec<(String, String)> {
        let serve = async |requests, answers| {
            events::serve(node.gateway(), requests, answers, Stop::new(), Arc::default()).await
        };
        let results = answered(node, requests, serve, then).await;
        assert!(results.iter().all(|result| result.sent == result.error.is_empty()));
        results.into_iter().map(|result| (result.event_id, result.error)).collect()
    }

    async fn answered_messages(node: &Node, count: usize, then: impl AsyncFnMut()) -> Vec<(String, String)> {
        let (gateway, durations) = (node.gateway(), Arc::default());
        let serve = async |requests, answers| upstream::serve(gateway, requests, answers, Stop::new(), durations).await;
        let answers = answered(node, (0..count).map(request).collect(), serve, then).await;
        let pair = |mut answer: kubemq_proto::kubemq::QueuesUpstreamResponse| {
            (answer.ref_request_id, answer.results.remove(0).error)
        };
        answers.into_iter().map(pair).collect()
    }

    fn all(count: usize, error: &str) -> Vec<(String, String)> {
        (0..count).map(|number| (number.to_string(), error.to_owned())).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_not_taken_is_submitted_again_in_order() {
        let node = start(&MemoryDisk::default()).await;
        let count = 5_000;
        // Later than any that the node comes to by itself.
        let mut epoch = 1_000;
        let mut lead = async || {
            epoch += 1;
            node.gateway().0.outbox.open(epoch);
            node.gateway().0.leading.send(true);
        };
        let mut requests: Vec<Event> = (0..count).map(event).collect();
        requests[1_234].body.clear();
        let results = answered_events(&node, requests, &mut lead).await;
        let mut expected = all(count, "");
        expected[1_234].1 = Refusal::EmptyMessage.to_string();
        assert_eq!(results, expected);
        assert_eq!(answered_messages(&node, count, lead).await, all(count, ""));
        let stored = node.gateway().with_core(|core| {
            let next = |kind, name| core.state.channel(kind, name).unwrap().next_sequence();
            (next(Kind::EventsStore, "e"), next(Kind::Queue, "q"))
        });
        assert_eq!(stored, (count as u64, count as u64 + 1), "each of them once");
        node.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_waits_too_long_for_a_leader_is_told_that_nothing_was_stored() {
        let node = start(&MemoryDisk::default()).await;
        let told = Refusal::NoLeader.to_string();
        assert_eq!(answered_events(&node, (0..2_000).map(event).collect(), async || {}).await, all(2_000, &told));
        let stored = node.gateway().with_core(|core| core.state.channel(Kind::EventsStore, "e").is_some());
        assert!(!stored);
        node.stop().await;
    }

    /// Returns how many of `count` messages of `bytes` are read from a stream while nobody leads.
    async fn read_without_an_answer(node: &Node, count: usize, bytes: usize) -> usize {
        let (sender, receiver) = tokio::sync::mpsc::channel(count);
        let body = Bytes::from(vec![7; bytes]);
        for number in 0..count {
            let mut request = request(number);
            request.messages[0].body = body.clone();
            assert!(sender.try_send(Ok::<_, std::convert::Infallible>(request)).is_ok());
        }
        let (answers, _answered) = mpsc::channel(count);
        let gateway = node.gateway();
        gateway.depose();
        let clock = &gateway.runtime().clock;
        let watch = async {
            let mut read = (0, 0);
            // Until nothing more is read for as long as it takes to ask for a leader many times.
            while read.0 == 0 || read.1 < 50 {
                clock.sleep(LEAD_RETRY).await;
                let now = count - (sender.max_capacity() - sender.capacity());
                read = if now == read.0 { (now, read.1 + 1) } else { (now, 0) };
            }
            read.0
        };
        tokio::select! {
            biased;
            _ = upstream::serve(gateway, ReceiverStream::new(receiver), answers, Stop::new(), Arc::default()) => panic!("ended"),
            read = watch => read,
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stream_that_is_not_answered_is_not_read_on() {
        let node = start(&MemoryDisk::default()).await;
        node.ready().await;
        assert_eq!(read_without_an_answer(&node, UNANSWERED_REQUESTS + 100, 1).await, UNANSWERED_REQUESTS);
        let most = UNANSWERED_BYTES >> 20;
        assert_eq!(read_without_an_answer(&node, most + 100, 1 << 20).await, most);
        node.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_belongs_to_a_leadership_that_is_over_is_not_taken() {
        let node = start(&MemoryDisk::default()).await;
        node.ready().await;
        let gateway = node.gateway();
        let operations = || {
            let channel = Name::new("e").unwrap();
            vec![Operation::Create { kind: Kind::EventsStore, channel }.to_bytes()]
        };
        let first = gateway.submit_behind(operations(), COMMON, None);
        let epoch = first.epoch();
        assert!(first.await.is_ok());
        assert!(gateway.submit_behind(operations(), COMMON, Some(epoch)).await.is_ok());
        for over in [epoch - 1, epoch + 1] {
            assert_eq!(gateway.submit_behind(operations(), COMMON, Some(over)).await, Err(Unavailable::NotLeader));
        }
        node.stop().await;
    }
}
