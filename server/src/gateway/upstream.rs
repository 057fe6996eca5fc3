//! The stream on which queue messages are sent: many requests in flight, answered in the order in which they
//! came. How they get into the log is the business of [`publishing`](super::publishing).

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use kubemq_broker::Outcome;
use kubemq_proto::kubemq::{QueuesUpstreamRequest, QueuesUpstreamResponse, SendQueueMessageResult};
use kubemq_proto::strings::Refusal;
use kubemq_runtime::sync::mpsc;

use super::publishing::{self, Group, Publishing};
use super::send::{Publishes, refused};
use super::stream::{Ended, Stop};
use super::{Gateway, Sender, Unavailable};
use crate::metrics::Latency;

/// Serves one stream until it ends, and counts in `durations` how long its requests take.
///
/// # Errors
///
/// What the stream of requests ended with; nobody reads answers then.
pub async fn serve<S, E>(
    gateway: &Gateway,
    requests: S,
    responses: mpsc::Sender<QueuesUpstreamResponse>,
    stop: Stop,
    durations: Arc<Latency>,
) -> Result<Ended, E>
where
    S: Stream<Item = Result<QueuesUpstreamRequest, E>> + Send + Unpin,
{
    let upstream = Upstream { gateway: gateway.clone(), buffer: BytesMut::new() };
    publishing::serve(gateway, upstream, requests, responses, (stop, durations)).await
}

struct Upstream {
    gateway: Gateway,
    buffer: BytesMut,
}

/// What is kept of the requests of a group.
#[derive(Default)]
struct Kept {
    publishes: Publishes,
    requests: Vec<Request>,
}

struct Request {
    id: String,
    results: usize,
    refusal: Option<Refusal>,
}

impl Publishing for Upstream {
    type Request = QueuesUpstreamRequest;
    type Answer = QueuesUpstreamResponse;
    type Kept = Kept;

    const TURN: usize = 1024;

    fn stage(&mut self, request: QueuesUpstreamRequest, group: &mut Group<Kept>) {
        let Kept { publishes, requests } = &mut group.kept;
        let results = publishes.results.len();
        let mut refusal = None;
        if request.messages.is_empty() {
            // Some clients look at the first result without asking whether there is one.
            publishes.results.push(refused(String::new(), &Refusal::NoMessages));
            refusal = Some(Refusal::NoMessages);
        }
        for message in request.messages {
            let (limits, random) = ((self.gateway.limits(), self.gateway.traffic()), &self.gateway.runtime().random);
            publishes.refusal = self.gateway.refuses_to_store();
            publishes.add(message, limits, random, &mut self.buffer);
        }
        group.bytes += publishes.operations.iter().map(Bytes::len).sum::<usize>();
        group.operations.append(&mut publishes.operations);
        group.requests += 1;
        requests.push(Request { id: request.request_id, results: publishes.results.len() - results, refusal });
    }

    fn answers(&self, kept: Kept, outcomes: Result<Vec<Outcome>, Unavailable>) -> Vec<QueuesUpstreamResponse> {
        let Kept { mut publishes, requests } = kept;
        match outcomes {
            Ok(outcomes) => publishes.settle(&outcomes),
            Err(Unavailable::NotLeader) => publishes.fail(&Refusal::NoLeader),
            Err(_) => publishes.fail(&Refusal::PublishTimeout),
        }
        let refused = publishes.results.iter().filter(|result| result.is_error).count();
        self.gateway.numbers().refuse(Sender::Queues, refused);
        let mut results = publishes.results.into_iter();
        let answer = |request: Request| {
            let own: Vec<SendQueueMessageResult> = results.by_ref().take(request.results).collect();
            QueuesUpstreamResponse {
                ref_request_id: request.id,
                results: own,
                is_error: request.refusal.is_some(),
                error: request.refusal.map(|refusal| refusal.to_string()).unwrap_or_default(),
            }
        };
        requests.into_iter().map(answer).collect()
    }
}
