//! The stream on which queue messages are sent: many requests in flight, answered in the order in which they
//! came.
//!
//! Requests that have arrived are submitted together, and reading goes on while they commit; how much may be
//! unanswered is bounded, beyond that the stream is not read. One task does it all: what a commit completes is
//! answered after one wake-up.

use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use kubemq_broker::Outcome;
use kubemq_proto::kubemq::{QueuesUpstreamRequest, QueuesUpstreamResponse, SendQueueMessageResult};
use kubemq_proto::strings::Refusal;
use kubemq_runtime::sync::mpsc;

use super::send::{Publishes, refused};
use super::stream::{Ended, Outlet, Stop};
use super::{Gateway, Submitted, Unavailable};

/// Requests of one stream that are not answered yet, at most.
const UNANSWERED_REQUESTS: usize = 16 * 1024;
/// Bytes of messages of one stream that are not answered yet; one request more may be read.
const UNANSWERED_BYTES: usize = 32 * 1024 * 1024;
/// Messages that are submitted together, at most, unless one request brings more.
const TOGETHER_MESSAGES: usize = 1024;
/// Bytes that are submitted together, at most, unless one request brings more.
const TOGETHER_BYTES: usize = 256 * 1024;

/// Serves one stream until it ends.
///
/// # Errors
///
/// What the stream of requests ended with; nobody reads answers then.
pub async fn serve<S, E>(
    gateway: &Gateway,
    requests: S,
    responses: mpsc::Sender<QueuesUpstreamResponse>,
    stop: Stop,
) -> Result<Ended, E>
where
    S: Stream<Item = Result<QueuesUpstreamRequest, E>> + Send + Unpin,
{
    let mut requests = requests.fuse();
    let mut outlet = Outlet::new(responses, stop);
    let mut upstream = Upstream::new(gateway);
    let mut end = None;
    loop {
        // Without a leader nothing that waits can be finished before the node has stopped.
        let gives_up = upstream.leaderless && matches!(end, Some(Ok(Ended::Stopped)));
        if (upstream.is_idle() || gives_up)
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
                    upstream.submit();
                    return Ok(ended);
                }
            },
            outcomes = upstream.front(), if !upstream.groups.is_empty() && !upstream.leaderless => {
                for answer in upstream.complete(outcomes) {
                    if let Err(ended) = outlet.send(answer).await {
                        return Ok(ended);
                    }
                }
            },
            () = gateway.lead(), if upstream.leaderless => upstream.submit_again(),
            () = gateway.room(), if !upstream.staged.is_empty() => upstream.submit(),
            request = requests.next(), if end.is_none() && upstream.may_read() => {
                end = upstream.stage_what_is_there(request, &mut requests);
            },
        }
    }
}

struct Upstream {
    gateway: Gateway,
    buffer: BytesMut,
    /// Read and not yet submitted.
    staged: Group,
    /// Submitted, oldest first.
    groups: VecDeque<InFlight>,
    unanswered_requests: usize,
    unanswered_bytes: usize,
    /// The first group was not taken because nobody leads: nothing new is read until it is submitted again.
    leaderless: bool,
}

/// Requests that are submitted together.
#[derive(Default)]
struct Group {
    publishes: Publishes,
    requests: Vec<Request>,
    bytes: usize,
}

struct Request {
    id: String,
    results: usize,
    refusal: Option<Refusal>,
}

struct InFlight {
    group: Group,
    /// Kept until the outcome is known, to submit them again under the next leader.
    operations: Vec<Bytes>,
    state: Flight,
}

enum Flight {
    Submitted(Submitted),
    Known(Result<Vec<Outcome>, Unavailable>),
}

impl Group {
    fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    fn is_full(&self) -> bool {
        self.publishes.operations.len() >= TOGETHER_MESSAGES || self.bytes >= TOGETHER_BYTES
    }
}

impl Upstream {
    fn new(gateway: &Gateway) -> Self {
        Self {
            gateway: gateway.clone(),
            buffer: BytesMut::new(),
            staged: Group::default(),
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
        self.staged.is_empty()
            && !self.leaderless
            && self.unanswered_requests < UNANSWERED_REQUESTS
            && self.unanswered_bytes < UNANSWERED_BYTES
    }

    /// Checks and encodes a request, to be submitted with the others that are staged.
    fn stage(&mut self, request: QueuesUpstreamRequest) {
        let group = &mut self.staged;
        let operations = group.publishes.operations.len();
        let results = group.publishes.results.len();
        let mut refusal = None;
        if request.messages.is_empty() {
            // Some clients look at the first result without asking whether there is one.
            group.publishes.results.push(refused(String::new(), &Refusal::NoMessages));
            refusal = Some(Refusal::NoMessages);
        }
        for message in request.messages {
            let (limits, random) = (self.gateway.limits(), &self.gateway.runtime().random);
            group.publishes.refusal = self.gateway.refuses_to_store();
            group.publishes.add(message, limits, random, &mut self.buffer);
        }
        let added = group.publishes.operations.iter().skip(operations);
        let bytes: usize = added.map(Bytes::len).sum();
        group.bytes += bytes;
        self.unanswered_bytes += bytes;
        self.unanswered_requests += 1;
        let results = group.publishes.results.len() - results;
        group.requests.push(Request { id: request.request_id, results, refusal });
    }

    /// Stages `first` and the requests that can be had without waiting. Returns how the stream ends when there
    /// will be none after them.
    fn stage_what_is_there<S, E>(
        &mut self,
        first: Option<Result<QueuesUpstreamRequest, E>>,
        requests: &mut S,
    ) -> Option<Result<Ended, E>>
    where
        S: Stream<Item = Result<QueuesUpstreamRequest, E>> + Unpin,
    {
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Some(Ok(request)) => self.stage(request),
                // What came before the mistake is carried out and answered all the same.
                Some(Err(error)) => return Some(Err(error)),
                None => return Some(Ok(Ended::Finished)),
            }
            let more = !self.staged.is_full() && self.unanswered_requests < UNANSWERED_REQUESTS;
            next = if more { requests.next().now_or_never() } else { None };
        }
        None
    }

    fn submit(&mut self) {
        let mut group = std::mem::take(&mut self.staged);
        let operations = std::mem::take(&mut group.publishes.operations);
        let state = Flight::Submitted(self.gateway.submit(operations.clone()));
        self.groups.push_back(InFlight { group, operations, state });
    }

    /// Waits for the outcomes of the oldest group. Cancel safe.
    async fn front(&mut self) -> Result<Vec<Outcome>, Unavailable> {
        std::future::poll_fn(|cx| match self.groups.front_mut().map(|group| &mut group.state) {
            Some(Flight::Submitted(submitted)) => Pin::new(submitted).poll(cx),
            Some(Flight::Known(outcomes)) => std::task::Poll::Ready(outcomes.clone()),
            None => std::task::Poll::Pending,
        })
        .await
    }

    /// Returns the answers of the oldest group, unless it has to be submitted again.
    fn complete(&mut self, outcomes: Result<Vec<Outcome>, Unavailable>) -> Vec<QueuesUpstreamResponse> {
        if outcomes == Err(Unavailable::NotLeader) {
            if let Some(first) = self.groups.front_mut() {
                first.state = Flight::Known(outcomes);
            }
            self.leaderless = true;
            return Vec::new();
        }
        let Some(InFlight { mut group, .. }) = self.groups.pop_front() else { return Vec::new() };
        match outcomes {
            Ok(outcomes) => group.publishes.settle(&outcomes),
            Err(_) => group.publishes.fail(&Refusal::PublishTimeout),
        }
        self.unanswered_requests = self.unanswered_requests.saturating_sub(group.requests.len());
        self.unanswered_bytes = self.unanswered_bytes.saturating_sub(group.bytes);
        answers(group)
    }

    /// Submits again, in order, everything that was not taken.
    fn submit_again(&mut self) {
        self.leaderless = false;
        for flight in &mut self.groups {
            if let Flight::Submitted(submitted) = &mut flight.state
                && let Some(outcomes) = submitted.now_or_never()
            {
                flight.state = Flight::Known(outcomes);
            }
            if matches!(flight.state, Flight::Known(Err(Unavailable::NotLeader))) {
                flight.state = Flight::Submitted(self.gateway.submit(flight.operations.clone()));
            }
        }
    }
}

fn answers(group: Group) -> Vec<QueuesUpstreamResponse> {
    let mut results = group.publishes.results.into_iter();
    let answer = |request: Request| {
        let own: Vec<SendQueueMessageResult> = results.by_ref().take(request.results).collect();
        QueuesUpstreamResponse {
            ref_request_id: request.id,
            results: own,
            is_error: request.refusal.is_some(),
            error: request.refusal.map(|refusal| refusal.to_string()).unwrap_or_default(),
        }
    };
    group.requests.into_iter().map(answer).collect()
}
