//! The stream that holds one message: receive it, then ack, reject, resend or replace it before its visibility
//! runs out.
//!
//! One stream serves one message. The answer to what ends the exchange is sent before the stream ends. Whoever
//! goes away without settling has used up one receive.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt as _};
use kubemq_broker::Outcome;
use kubemq_proto::kubemq::{QueueMessage, StreamQueueMessagesRequest, StreamQueueMessagesResponse, StreamRequestType};
use kubemq_proto::strings::Refusal;
use kubemq_proto::validate::{self, StreamStep};
use kubemq_proto::{id, kubemq};
use kubemq_runtime::sync::mpsc;
use kubemq_runtime::{Instant, OnFailure};

use super::receive::{to_wire, volume};
use super::stream::{Ended, Exchange, Outlet, Stop};
use super::{Gateway, Held, Submitted, Take, Unavailable};

/// Serves one stream until it ends, and counts how long its requests take.
///
/// # Errors
///
/// What the stream of requests ended with; nobody reads answers then.
pub async fn serve<S, E>(
    gateway: &Gateway,
    requests: S,
    responses: mpsc::Sender<StreamQueueMessagesResponse>,
    (stop, durations): (Stop, Arc<Exchange>),
) -> Result<Ended, E>
where
    S: Stream<Item = Result<StreamQueueMessagesRequest, E>> + Send + Unpin,
{
    let mut requests = requests.fuse();
    let outlet = Outlet::new(responses, stop);
    let (gateway, state, last) = (gateway.clone(), State::Idle, Ids::default());
    let mut stream = QueueStream { gateway, outlet, durations, state, timer: None, last };
    loop {
        let step = tokio::select! {
            biased;
            ended = stream.outlet.ended() => Err(ended),
            taken = received(&mut stream.state) => stream.received(taken).await,
            () = expiry(&mut stream.timer) => stream.expired().await,
            request = requests.next() => match request {
                Some(Ok(request)) => stream.request(request).await,
                Some(Err(error)) => {
                    stream.abandon();
                    return Err(error);
                }
                // No ack can follow: whatever is held or awaited is of no use any more.
                None => Err(Ended::Finished),
            },
        };
        if let Err(ended) = step {
            if ended != Ended::Stopped {
                stream.abandon();
            }
            return Ok(ended);
        }
    }
}

/// The request that an answer belongs to.
#[derive(Clone, Debug, Default)]
struct Ids {
    request_id: String,
    kind: i32,
}

enum State {
    /// Nothing was asked for.
    Idle,
    /// A message is awaited.
    Waiting {
        ids: Ids,
        client_id: String,
        visibility: Duration,
        began: Instant,
        taken: BoxFuture<'static, Result<Held, Unavailable>>,
    },
    /// A message is held.
    Active { ids: Ids, held: Held, sequence: u64 },
    /// The exchange is complete.
    Over,
}

struct QueueStream {
    gateway: Gateway,
    outlet: Outlet<StreamQueueMessagesResponse>,
    durations: Arc<Exchange>,
    state: State,
    /// When the visibility runs out, and the wait for it.
    timer: Option<BoxFuture<'static, ()>>,
    last: Ids,
}

/// Ends when the awaited message came or the wait is over; never without one awaited. Cancel safe.
async fn received(state: &mut State) -> Result<Held, Unavailable> {
    match state {
        State::Waiting { taken, .. } => taken.await,
        _ => pending().await,
    }
}

/// Ends when the timer does; never without one. Cancel safe.
async fn expiry(timer: &mut Option<BoxFuture<'static, ()>>) {
    match timer {
        Some(timer) => timer.await,
        None => pending().await,
    }
}

/// What goes on after a step: `Err` says how the stream ended.
type Step = Result<(), Ended>;

impl QueueStream {
    async fn request(&mut self, request: StreamQueueMessagesRequest) -> Step {
        let began = self.now();
        let is_get = request.stream_request_type_data == i32::from(StreamRequestType::ReceiveMessage);
        let step = self.carry_out(request, began).await;
        if !is_get {
            self.durations.settlements.observe(self.now().since(began));
        } else if !matches!(&self.state, State::Waiting { began: waits_since, .. } if *waits_since == began) {
            // It was refused.
            self.durations.gets.observe(self.now().since(began));
        }
        step
    }

    fn now(&self) -> Instant {
        self.gateway.runtime().clock.now()
    }

    async fn carry_out(&mut self, mut request: StreamQueueMessagesRequest, began: Instant) -> Step {
        request.request_id = id::or_nuid(request.request_id, &self.gateway.runtime().random);
        let ids = Ids { request_id: request.request_id.clone(), kind: request.stream_request_type_data };
        self.last = ids.clone();
        let step = match validate::stream(&request, self.gateway.limits()) {
            Ok(step) => step,
            Err(refusal) => return self.refuse(ids, &refusal).await,
        };
        match step {
            StreamStep::Receive { visibility, wait } => {
                self.receive(ids, (request.client_id, request.channel), visibility, (began, wait)).await
            }
            StreamStep::ModifyVisibility(visibility) => {
                self.start_timer(visibility);
                self.answer(ids).await
            }
            StreamStep::Ack { sequence } => match self.holding(sequence, Refusal::NothingToAck) {
                Ok(held) => {
                    let acked = held.ack(&[sequence]);
                    self.settle(ids, acked, Refusal::AckFailed).await
                }
                Err(refusal) => self.refuse(ids, &refusal).await,
            },
            StreamStep::Reject { sequence } => match self.holding(sequence, Refusal::NothingToReject) {
                Ok(held) => {
                    let rejected = held.nack(&[sequence]);
                    self.settle(ids, rejected, Refusal::SendFailed).await
                }
                Err(refusal) => self.refuse(ids, &refusal).await,
            },
            StreamStep::Resend => self.resend(ids, &request.channel).await,
            StreamStep::SendModified => self.replace(ids, request.modified_message.unwrap_or_default()).await,
        }
    }

    async fn receive(
        &mut self,
        ids: Ids,
        (client_id, channel): (String, String),
        visibility: Duration,
        (began, wait): (Instant, Duration),
    ) -> Step {
        if !matches!(self.state, State::Idle) {
            return self.refuse(ids, &Refusal::AlreadyActive).await;
        }
        if let Err(refusal) = validate::queue_source(&channel) {
            return self.refuse(ids, &refusal).await;
        }
        let taken = Box::pin(take_one(self.gateway.clone(), channel, began + wait));
        self.state = State::Waiting { ids, client_id, visibility, began, taken };
        Ok(())
    }

    /// The awaited message came, or the wait is over.
    async fn received(&mut self, taken: Result<Held, Unavailable>) -> Step {
        let State::Waiting { ids, client_id, visibility, began, .. } = std::mem::replace(&mut self.state, State::Over)
        else {
            return Ok(());
        };
        self.durations.gets.observe(self.now().since(began));
        let mut held = match taken {
            Ok(held) => held,
            Err(unavailable) => return self.end(ids, Some(&unavailable.refusal())).await,
        };
        let Some(delivery) = held.deliveries.pop() else {
            return self.end(ids, Some(&Refusal::WaitExpired)).await;
        };
        let sequence = delivery.sequence;
        let volume = volume(std::slice::from_ref(&delivery));
        let message = match to_wire(held.channel(), vec![delivery]) {
            Ok(mut messages) => messages.pop(),
            Err(unavailable) => return self.end(ids, Some(&unavailable.refusal())).await,
        };
        self.gateway.count_received(held.channel(), &client_id, volume);
        self.state = State::Active { ids: ids.clone(), held, sequence };
        self.start_timer(visibility);
        self.outlet.send(StreamQueueMessagesResponse { message, ..response(ids) }).await
    }

    /// The visibility ran out, with or without a message.
    async fn expired(&mut self) -> Step {
        self.timer = None;
        match std::mem::replace(&mut self.state, State::Over) {
            State::Active { ids, mut held, sequence } => {
                match held.nack(&[sequence]).await {
                    // It returns as it was when it is dropped.
                    Ok(outcomes) if outcomes.iter().any(is_refused) => held.refused(&[sequence]),
                    Ok(_) => {}
                    Err(error) => tracing::debug!(%error, "an expired message was not stored again"),
                }
                self.end(ids, Some(&Refusal::VisibilityExpired)).await
            }
            State::Waiting { ids, began, .. } => {
                self.durations.gets.observe(self.now().since(began));
                self.end(ids, Some(&Refusal::VisibilityExpired)).await
            }
            State::Idle | State::Over => self.end(self.last.clone(), Some(&Refusal::VisibilityExpired)).await,
        }
    }

    /// Returns what is held when it is the message that the client means.
    fn holding(&mut self, sequence: u64, nothing: Refusal) -> Result<&mut Held, Refusal> {
        match &mut self.state {
            State::Active { held, sequence: own, .. } if *own == sequence => Ok(held),
            State::Active { .. } => Err(Refusal::AckSequence),
            _ => Err(nothing),
        }
    }

    async fn resend(&mut self, ids: Ids, to: &str) -> Step {
        let State::Active { held, sequence, .. } = &mut self.state else {
            return self.refuse(ids, &Refusal::NothingToSend).await;
        };
        if validate::queue_destination(to).is_err() {
            return self.refuse(ids, &Refusal::SendFailed).await;
        }
        let moved = held.requeue(&[*sequence], to);
        self.settle(ids, moved, Refusal::SendFailed).await
    }

    async fn replace(&mut self, ids: Ids, modified: QueueMessage) -> Step {
        let State::Active { sequence, .. } = self.state else {
            return self.refuse(ids, &Refusal::NothingToAck).await;
        };
        // The old message goes only after the new one is stored.
        let sent = self.gateway.send(modified).await;
        if !sent.is_ok_and(|result| !result.is_error) {
            return self.refuse(ids, &Refusal::SendFailed).await;
        }
        match self.holding(sequence, Refusal::NothingToAck) {
            Ok(held) => {
                let acked = held.ack(&[sequence]);
                self.settle(ids, acked, Refusal::AckFailed).await
            }
            Err(refusal) => self.refuse(ids, &refusal).await,
        }
    }

    /// Answers a settlement after its commit. It ends the stream, unless the state refused it: then the message
    /// is held as before.
    async fn settle(&mut self, ids: Ids, submitted: Submitted, failure: Refusal) -> Step {
        let outcomes = submitted.await;
        let State::Active { held, sequence, .. } = &mut self.state else { return Ok(()) };
        match outcomes {
            Ok(outcomes) if outcomes.iter().any(is_refused) => {
                held.refused(&[*sequence]);
                self.refuse(ids, &failure).await
            }
            Ok(_) => {
                self.state = State::Over;
                self.end(ids, None).await
            }
            Err(error) => {
                tracing::debug!(%error, "a settlement was not carried out");
                self.state = State::Over;
                self.end(ids, Some(&failure)).await
            }
        }
    }

    /// The client is gone: what it held goes to the tail and counts as received.
    fn abandon(&mut self) {
        if let State::Active { mut held, sequence, .. } = std::mem::replace(&mut self.state, State::Over) {
            let submitted = held.nack(&[sequence]);
            // Only the outcome says whether it went: what could not be stored again is given back as it was.
            let returned = async move {
                if submitted.await.is_ok_and(|outcomes| outcomes.iter().any(is_refused)) {
                    held.refused(&[sequence]);
                }
            };
            drop(self.gateway.runtime().tasks.spawn("abandon", OnFailure::Log, returned));
        }
    }

    fn start_timer(&mut self, visibility: Duration) {
        self.timer = Some(self.gateway.runtime().clock.sleep(visibility));
    }

    async fn answer(&mut self, ids: Ids) -> Step {
        self.outlet.send(response(ids)).await
    }

    async fn refuse(&mut self, ids: Ids, refusal: &Refusal) -> Step {
        self.outlet.send(refused(ids, refusal)).await
    }

    /// Sends the last answer.
    async fn end(&mut self, ids: Ids, refusal: Option<&Refusal>) -> Step {
        match refusal {
            Some(refusal) => self.refuse(ids, refusal).await?,
            None => self.answer(ids).await?,
        }
        Err(Ended::Finished)
    }
}

fn is_refused(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused(_))
}

/// Takes one message, or nothing by the deadline.
async fn take_one(gateway: Gateway, channel: String, deadline: Instant) -> Result<Held, Unavailable> {
    gateway.take(Take { channel, max: 1, max_bytes: u64::MAX, deadline }).await
}

fn response(ids: Ids) -> kubemq::StreamQueueMessagesResponse {
    StreamQueueMessagesResponse { request_id: ids.request_id, stream_request_type_data: ids.kind, ..Default::default() }
}

fn refused(ids: Ids, refusal: &Refusal) -> StreamQueueMessagesResponse {
    StreamQueueMessagesResponse { is_error: true, error: refusal.to_string(), ..response(ids) }
}
