//! The stream on which queue messages are received as transactions and settled.
//!
//! Settlements take effect in the order in which they came. A Get begins once whatever was given back or moved before
//! it is applied, so that it can find that, and is answered once all settlements before it are applied: its answer is
//! what tells a client that they are, as one that went well has no answer of its own. While a Get waits it holds nothing
//! up. When the stream ends, everything unsettled returns to its queue.

use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use kubemq_broker::Outcome;
use kubemq_proto::kubemq::{
    QueuesDownstreamRequest, QueuesDownstreamRequestType as Type, QueuesDownstreamResponse as Response,
};
use kubemq_proto::strings::Refusal;
use kubemq_proto::{id, validate};
use kubemq_runtime::sync::mpsc;
use kubemq_runtime::{Instant, OnFailure};

use super::receive::{Client, to_wire, volume};
use super::stream::{Ended, Exchange, Outlet, Stop};
use super::transactions::{Did, Own, Settling, Transactions};
use super::{Gateway, Held, Take, Unavailable};

/// Gets of one stream that may wait at the same time; more are refused.
const GETS: usize = 1024;
/// Transactions of one stream that may be open; more Gets are refused.
const OPEN_TRANSACTIONS: usize = 64 * 1024;
/// Settlements of one stream that are on their way to their commit; beyond it the stream is not read.
const SETTLEMENTS: usize = 16 * 1024;

/// Serves one stream until it ends, and counts how long its requests take.
///
/// # Errors
///
/// What the stream of requests ended with; nobody reads answers then.
pub async fn serve<S, E>(
    gateway: &Gateway,
    transactions: &Transactions,
    (client, durations): (Client, Arc<Exchange>),
    requests: S,
    responses: mpsc::Sender<Response>,
    stop: Stop,
) -> Result<Ended, E>
where
    S: Stream<Item = Result<QueuesDownstreamRequest, E>> + Send + Unpin,
{
    let mut requests = requests.fuse();
    let mut outlet = Outlet::new(responses, stop);
    let mut stream = Downstream {
        gateway: gateway.clone(),
        client,
        durations,
        own: Own::new(transactions.clone()),
        settling: VecDeque::new(),
        settled: 0,
        submitted: 0,
        returning: 0,
        later: VecDeque::new(),
        done: VecDeque::new(),
        gets: FuturesUnordered::new(),
    };
    let mut reading = true;
    loop {
        if !reading && stream.is_idle() {
            return Ok(Ended::Finished);
        }
        if let Some(got) = stream.answerable() {
            if let Err(ended) = outlet.send(stream.got(got)).await {
                return Ok(ended);
            }
            continue;
        }
        let answer = tokio::select! {
            biased;
            ended = outlet.ended() => {
                if ended == Ended::Gone {
                    stream.settle_what_is_there(&mut requests);
                }
                return Ok(ended);
            }
            outcomes = front(&mut stream.settling), if !stream.settling.is_empty() => stream.finish(outcomes),
            Some(got) = stream.gets.next(), if !stream.gets.is_empty() => {
                stream.done.push_back(got);
                None
            },
            request = requests.next(), if reading && stream.settling.len() < SETTLEMENTS => match request {
                Some(request) => stream.request(request?),
                None => {
                    reading = false;
                    None
                }
            },
        };
        if let Some(answer) = answer
            && let Err(ended) = outlet.send(answer).await
        {
            return Ok(ended);
        }
    }
}

struct Downstream {
    gateway: Gateway,
    client: Client,
    durations: Arc<Exchange>,
    own: Own,
    /// On their way to their commit, in order, and since when.
    settling: VecDeque<(Settling, Response, Instant)>,
    /// Settlements submitted and applied since the stream began.
    submitted: u64,
    settled: u64,
    /// How many settlements must be applied for everything to be back that was given back or moved so far.
    returning: u64,
    /// Gets that begin when so many settlements are applied.
    later: VecDeque<(u64, Get)>,
    gets: FuturesUnordered<BoxFuture<'static, Got>>,
    /// Gets that are carried out and not answered yet.
    done: VecDeque<Got>,
}

impl Drop for Downstream {
    /// Settlements that are on their way outlive the stream: what the state refuses is given back.
    fn drop(&mut self) {
        let settling = std::mem::take(&mut self.settling);
        if settling.is_empty() {
            return;
        }
        let gateway = self.gateway.clone();
        let finish = async move {
            for (mut settling, ..) in settling {
                let outcomes = (&mut settling.submitted).await;
                settling.finish(&gateway, outcomes);
            }
        };
        drop(self.gateway.runtime().tasks.spawn("settle", OnFailure::Log, finish));
    }
}

/// A Get that was found in order.
struct Get {
    answer: Response,
    client_id: String,
    auto_ack: bool,
    take: Take,
    /// How many settlements must be applied for it to be answered.
    after: u64,
    began: Instant,
}

/// What a Get came to.
struct Got {
    answer: Response,
    client_id: String,
    held: Option<Held>,
    after: u64,
    began: Instant,
}

impl Downstream {
    fn is_idle(&self) -> bool {
        self.under_way() == 0
    }

    /// Begins what a request asks for; returns what is to be answered at once.
    fn request(&mut self, request: QueuesDownstreamRequest) -> Option<Response> {
        let began = self.now();
        let under_way = self.under_way();
        let (answer, durations) = if request.request_type_data == i32::from(Type::Get) {
            (self.get(request, began), &self.durations.gets)
        } else {
            (self.settle(request, began), &self.durations.settlements)
        };
        if self.under_way() == under_way {
            durations.observe(self.now().since(began));
        }
        answer
    }

    /// Returns how many requests are begun and not yet carried out.
    fn under_way(&self) -> usize {
        self.settling.len() + self.unanswered_gets()
    }

    fn unanswered_gets(&self) -> usize {
        self.later.len() + self.gets.len() + self.done.len()
    }

    fn now(&self) -> Instant {
        self.gateway.runtime().clock.now()
    }

    fn settle(&mut self, request: QueuesDownstreamRequest, began: Instant) -> Option<Response> {
        let answer = Response {
            transaction_id: request.ref_transaction_id.clone(),
            ref_request_id: request.request_id.clone(),
            request_type_data: request.request_type_data,
            ..Default::default()
        };
        let Some(found) = self.own.find(&request.ref_transaction_id, &request.client_id) else {
            // Clients close what they believe open, also what never was.
            let silent = request.request_type_data == i32::from(Type::CloseByClient);
            return (!silent).then(|| refused(answer, &Refusal::UnknownTransaction));
        };
        match found.request(&request) {
            Did::Nothing => None,
            Did::Offsets(active_offsets) => Some(Response { active_offsets, ..answer }),
            Did::Status { complete, offsets } => {
                Some(Response { transaction_complete: complete, active_offsets: offsets, ..answer })
            }
            Did::Settling { settling, refusal } => {
                let refusal = refusal.map(|refusal| refused(answer.clone(), &refusal));
                if let Some(settling) = settling {
                    self.submitted += 1;
                    if settling.returns() {
                        self.returning = self.submitted;
                    }
                    self.settling.push_back((settling, answer, began));
                }
                refusal
            }
            Did::Refused(refusal) => Some(refused(answer, &refusal)),
            Did::Unknown => {
                let answer = Response { request_type_data: Type::PollRequestTypeUnknown.into(), ..answer };
                Some(refused(answer, &Refusal::UnknownRequest))
            }
        }
    }

    fn get(&mut self, request: QueuesDownstreamRequest, began: Instant) -> Option<Response> {
        let answer = Response {
            transaction_id: id::uuid(&self.gateway.runtime().random),
            ref_request_id: request.request_id.clone(),
            request_type_data: Type::Get.into(),
            ..Default::default()
        };
        let wanted = match validate::get(&request, self.gateway.limits()) {
            Ok(wanted) => wanted,
            Err(refusal) => return Some(refused(answer, &refusal)),
        };
        if self.unanswered_gets() >= GETS || self.own.is_full(OPEN_TRANSACTIONS) {
            return Some(refused(answer, &Refusal::QueueSubscribe));
        }
        let client = if request.auto_ack { self.client } else { Client::default() };
        let take = Take {
            channel: request.channel,
            max: wanted.max,
            max_bytes: self.gateway.answer_bytes(client),
            deadline: began + wanted.wait,
        };
        let after = self.submitted;
        let get = Get { answer, client_id: request.client_id, auto_ack: request.auto_ack, take, after, began };
        if self.settled < self.returning {
            self.later.push_back((self.returning, get));
        } else {
            self.begin(get);
        }
        None
    }

    fn begin(&mut self, get: Get) {
        self.gets.push(Box::pin(carry_out(self.gateway.clone(), get)));
    }

    /// The oldest settlement is applied, or failed; Gets that came after it may begin.
    fn finish(&mut self, outcomes: Result<Vec<Outcome>, Unavailable>) -> Option<Response> {
        let (settling, answer, began) = self.settling.pop_front()?;
        self.settled += 1;
        self.durations.settlements.observe(self.now().since(began));
        let refusal = settling.finish(&self.gateway, outcomes);
        while let Some((after, _)) = self.later.front()
            && *after <= self.settled
        {
            if let Some((_, get)) = self.later.pop_front() {
                self.begin(get);
            }
        }
        refusal.map(|refusal| refused(answer, &refusal))
    }

    /// The client is gone: settlements that it sent before are carried out, nothing is answered.
    fn settle_what_is_there<S, E>(&mut self, requests: &mut S)
    where
        S: Stream<Item = Result<QueuesDownstreamRequest, E>> + Unpin,
    {
        while self.settling.len() < SETTLEMENTS
            && let Some(Some(Ok(request))) = requests.next().now_or_never()
        {
            if request.request_type_data != i32::from(Type::Get) {
                drop(self.request(request));
            }
        }
    }

    /// Takes a Get that may be answered now.
    fn answerable(&mut self) -> Option<Got> {
        let at = self.done.iter().position(|got| got.after <= self.settled)?;
        self.done.remove(at)
    }

    fn got(&mut self, got: Got) -> Response {
        self.durations.gets.observe(self.now().since(got.began));
        if !got.answer.is_error {
            self.own.open(&got.answer.transaction_id, got.client_id, got.held);
        }
        got.answer
    }
}

/// Waits for the outcomes of the oldest settlement; never without one. Cancel safe.
async fn front(settling: &mut VecDeque<(Settling, Response, Instant)>) -> Result<Vec<Outcome>, Unavailable> {
    std::future::poll_fn(|cx| match settling.front_mut() {
        Some((settling, ..)) => Pin::new(&mut settling.submitted).poll(cx),
        None => Poll::Pending,
    })
    .await
}

async fn carry_out(gateway: Gateway, get: Get) -> Got {
    let Get { answer, client_id, auto_ack, take, after, began } = get;
    match take_messages(&gateway, take, auto_ack, &client_id).await {
        Ok((messages, held)) => Got { answer: Response { messages, ..answer }, client_id, held, after, began },
        Err(unavailable) => {
            Got { answer: refused(answer, &unavailable.refusal()), client_id, held: None, after, began }
        }
    }
}

type Taken = (Vec<kubemq_proto::kubemq::QueueMessage>, Option<Held>);

/// Takes messages; also settles them when the client will not. Dropped before that, it gives everything back.
async fn take_messages(gateway: &Gateway, take: Take, auto_ack: bool, client_id: &str) -> Result<Taken, Unavailable> {
    let mut held = gateway.take(take).await?;
    let deliveries = std::mem::take(&mut held.deliveries);
    if deliveries.is_empty() {
        return Ok((Vec::new(), None));
    }
    let sequences: Vec<u64> =
        if auto_ack { deliveries.iter().map(|delivery| delivery.sequence).collect() } else { Vec::new() };
    let volume = volume(&deliveries);
    let messages = to_wire(held.channel(), deliveries)?;
    if auto_ack {
        return match held.ack(&sequences).await {
            Ok(_) => {
                gateway.count_received(held.channel(), client_id, volume);
                Ok((messages, None))
            }
            // They are still there, for whoever polls under the next leader.
            Err(Unavailable::NotLeader) => Ok((Vec::new(), None)),
            Err(error) => Err(error),
        };
    }
    gateway.count_received(held.channel(), client_id, volume);
    Ok((messages, Some(held)))
}

fn refused(answer: Response, refusal: &Refusal) -> Response {
    Response { is_error: true, error: refusal.to_string(), ..answer }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use kubemq_proto::kubemq::{QueueMessage, QueueMessagesBatchRequest};
    use kubemq_runtime::Runtime;
    use kubemq_storage::fs::faulty::{Call, Fault, FaultyDisk, Operation};
    use kubemq_storage::fs::{Disk, MemoryDisk};
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;
    use crate::gateway::LEAD_RETRY;
    use crate::node::Node;
    use crate::node::tests::{options, start_on, start_with};

    /// The longest that anything one waits for may take.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Returns a disk whose syncs take five seconds while it is slow.
    fn slow_disk(runtime: &Runtime, is_slow: &Arc<AtomicBool>) -> Arc<dyn Disk> {
        let is_slow = Arc::clone(is_slow);
        let decide = move |call: &Call<'_>| match call.operation {
            Operation::Sync if is_slow.load(Ordering::Relaxed) => Fault::Late(Duration::from_secs(5)),
            _ => Fault::None,
        };
        Arc::new(FaultyDisk::new(Arc::new(MemoryDisk::default()), runtime.clock.clone(), decide))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stream_with_too_many_settlements_under_way_is_not_read_on() {
        let (runtime, is_slow) = (Runtime::real(), Arc::new(AtomicBool::new(false)));
        let node = start_on(options(), slow_disk(&runtime, &is_slow)).await;
        let (gateway, count) = (node.gateway(), SETTLEMENTS + 100);
        let message =
            QueueMessage { client_id: "c".to_owned(), channel: "q".to_owned(), body: "x".into(), ..Default::default() };
        let batch = QueueMessagesBatchRequest { batch_id: "b".to_owned(), messages: vec![message; count] };
        assert!(!gateway.send_batch(batch).await.unwrap().unwrap().have_errors);

        let (requests, receiver) = mpsc::channel(count);
        let (answers, mut answered) = mpsc::channel(1);
        let request = |kind: Type| QueuesDownstreamRequest {
            client_id: "c".to_owned(),
            request_type_data: kind.into(),
            channel: "q".to_owned(),
            max_items: i32::try_from(count).unwrap(),
            ..QueuesDownstreamRequest::default()
        };
        let settle = async {
            requests.send(Ok::<_, Infallible>(request(Type::Get))).await.unwrap();
            let held: Response = answered.recv().await.unwrap();
            assert_eq!(held.messages.len(), count);
            is_slow.store(true, Ordering::Relaxed);
            for sequence in 1..=count {
                let sequence_range = vec![i64::try_from(sequence).unwrap()];
                let ref_transaction_id = held.transaction_id.clone();
                let ack = QueuesDownstreamRequest { ref_transaction_id, sequence_range, ..request(Type::AckRange) };
                requests.try_send(Ok(ack)).unwrap();
            }
            // Until nothing more is read for a while.
            let mut read = (0, 0);
            while read.0 == 0 || read.1 < 50 {
                runtime.clock.sleep(LEAD_RETRY).await;
                let now = count - (requests.max_capacity() - requests.capacity());
                read = if now == read.0 { (now, read.1 + 1) } else { (now, 0) };
            }
            is_slow.store(false, Ordering::Relaxed);
            drop(requests);
            read.0
        };
        let (transactions, of_client) = (Transactions::default(), (Client::default(), Arc::default()));
        let served = serve(gateway, &transactions, of_client, ReceiverStream::new(receiver), answers, Stop::new());
        let (served, read) = tokio::join!(served, settle);
        assert_eq!((served, read), (Ok(Ended::Finished), SETTLEMENTS));
        assert_eq!(get(&node, "q", 1).await, [0; 0], "all of them were carried out");
        node.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_get_begins_beside_acknowledgements_and_is_answered_behind_them() {
        let (runtime, is_slow) = (Runtime::real(), Arc::new(AtomicBool::new(false)));
        let node = start_on(options(), slow_disk(&runtime, &is_slow)).await;
        fill(&node, "q", &[1, 2]).await;
        let (requests, receiver) = mpsc::channel(4);
        let (answers, mut answered) = mpsc::channel(1);
        let request = |kind: Type, transaction: &str| {
            Ok::<_, Infallible>(QueuesDownstreamRequest {
                client_id: "c".to_owned(),
                request_type_data: kind.into(),
                channel: "q".to_owned(),
                max_items: 1,
                wait_timeout: 60_000,
                ref_transaction_id: transaction.to_owned(),
                ..QueuesDownstreamRequest::default()
            })
        };
        // Returns the transaction and the size of the next message.
        let mut taken = async || {
            let answer: Response = runtime.clock.timeout(PATIENCE, answered.recv()).await.unwrap().unwrap();
            (answer.transaction_id, answer.messages[0].body.len())
        };
        let applied = || node.gateway().with_core(|core| core.state.entry());
        let consume = async {
            let requests = requests;
            let ask = async |kind, transaction: &str| requests.send(request(kind, transaction)).await.unwrap();
            ask(Type::Get, "").await;
            let (transaction, first) = taken().await;
            assert_eq!(first, 1);
            is_slow.store(true, Ordering::Relaxed);
            let before = applied();
            ask(Type::AckAll, &transaction).await;
            ask(Type::Get, "").await;
            let is_taken = async {
                while node.gateway().in_flight() < 2 {
                    runtime.clock.sleep(LEAD_RETRY).await;
                }
            };
            runtime.clock.timeout(PATIENCE, is_taken).await.unwrap();
            assert_eq!(applied(), before, "the acknowledgement is still on its way to the disk");
            let (transaction, second) = taken().await;
            assert_eq!(second, 2);
            assert!(applied() > before, "the answer says that it is there");
            is_slow.store(false, Ordering::Relaxed);
            ask(Type::NAckAll, &transaction).await;
            ask(Type::Get, "").await;
            let (transaction, again) = taken().await;
            assert_eq!(again, 2, "behind what gives it back a Get finds it");
            ask(Type::AckAll, &transaction).await;
        };
        let (transactions, of_client) = (Transactions::default(), (Client::default(), Arc::default()));
        let stop = Stop::new();
        let served = serve(node.gateway(), &transactions, of_client, ReceiverStream::new(receiver), answers, stop);
        // The stream ends with the consumer.
        let (served, ()) = tokio::join!(served, consume);
        assert_eq!(served, Ok(Ended::Finished));
        node.stop().await;
    }

    async fn fill(node: &Node, channel: &str, sizes: &[usize]) {
        for size in sizes {
            let (client_id, channel, body) = ("c".to_owned(), channel.to_owned(), vec![7; *size].into());
            let message = QueueMessage { client_id, channel, body, ..QueueMessage::default() };
            assert!(!node.gateway().send(message).await.unwrap().is_error);
        }
    }

    /// Returns the sizes of the messages that a Get brings, on a stream of its own.
    async fn get(node: &Node, channel: &str, max_items: i32) -> Vec<usize> {
        let request = QueuesDownstreamRequest {
            client_id: "c".to_owned(),
            request_type_data: Type::Get.into(),
            channel: channel.to_owned(),
            max_items,
            ..QueuesDownstreamRequest::default()
        };
        let requests = futures_util::stream::iter([Ok::<_, Infallible>(request)]);
        let (sender, mut answers) = mpsc::channel(1);
        let (gateway, of_client) = (node.gateway(), (Client::default(), Arc::default()));
        let served = serve(gateway, &Transactions::default(), of_client, requests, sender, Stop::new()).await;
        assert_eq!(served, Ok(Ended::Finished));
        answers.recv().await.unwrap().messages.iter().map(|message| message.body.len()).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_answer_is_full_with_the_default_number_or_with_its_bytes() {
        let mut options = options();
        options.queue.default_max_items = 3;
        options.queue.max_answer_bytes = 10_000;
        let node = start_with(options, &MemoryDisk::default()).await;
        fill(&node, "small", &[1; 5]).await;
        assert_eq!(get(&node, "small", 0).await, [1; 3]);
        assert_eq!(get(&node, "small", 5).await, [1; 5], "who gives a number gets it");
        fill(&node, "large", &[4_000; 4]).await;
        assert_eq!(get(&node, "large", 4).await, [4_000; 2]);
        fill(&node, "huge", &[20_000, 1]).await;
        assert_eq!(get(&node, "huge", 2).await, [20_000], "one is always delivered");
        node.stop().await;
    }
}
