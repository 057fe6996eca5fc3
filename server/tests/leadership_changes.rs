//! Leadership moves away and comes back, again and again, while clients use every stream of a node over gRPC: no
//! stream ends, nothing that was acknowledged is lost, stored events stay in order, and all go on afterwards.
//!
//! Two nodes in this process, whose leader hands over to the other; clients are at the first one. Who may not lead
//! cannot carry out what must be stored, so its streams wait for the leadership to come back.
//!
//! `KUBEMQ_SOAK_ELECTIONS=2000 cargo test -p kubemq-server --test leadership_changes` goes on for longer.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking with what it saw")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kubemq_broker::Limits;
use kubemq_proto::kubemq::kubemq_client::KubemqClient;
use kubemq_proto::kubemq::request::RequestType;
use kubemq_proto::kubemq::subscribe::{EventsStoreType, SubscribeType};
use kubemq_proto::kubemq::{
    Event, QueueMessage, QueuesDownstreamRequest, QueuesDownstreamRequestType, QueuesUpstreamRequest,
    ReceiveQueueMessagesRequest, Request, Response, StreamQueueMessagesRequest, StreamRequestType, Subscribe,
};
use kubemq_proto::strings::Refusal;
use kubemq_proto::validate::QueueLimits;
use kubemq_raft::network::memory::MemoryNetwork;
use kubemq_raft::{Member, TokioRuntime};
use kubemq_runtime::sync::watch;
use kubemq_runtime::{OnFailure, Runtime};
use kubemq_server::gateway::retention::Retention;
use kubemq_server::grpc::{Phase, server as grpc};
use kubemq_server::live;
use kubemq_server::node::{Doors, Formation, Node, Options};
use kubemq_server::scrub::Pace;
use kubemq_storage::fs::MemoryDisk;
use kubemq_storage::index::{IndexWriter, MemoryIndex, Opening};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

type Api = KubemqClient<Channel>;

/// The longest that anything here may take, unless more elections are asked for.
const PATIENCE: Duration = Duration::from_secs(120);
/// Times that leadership moves.
const ELECTIONS: u64 = 30;

async fn start(id: u64, network: &MemoryNetwork) -> Node {
    let runtime = Runtime::real();
    let members = (1..=2).map(|id| (id, Member { address: format!("memory:{id}") })).collect();
    let raft = kubemq_raft::Options {
        heartbeat: Duration::from_millis(30),
        election_least: Duration::from_millis(150),
        election_most: Duration::from_millis(250),
        ..kubemq_raft::Options::new(id)
    };
    let options = Options {
        data: "/data".into(),
        id: Some(id),
        formation: Formation::Together(members),
        log: kubemq_storage::log::Options::default(),
        raft,
        queue: QueueLimits::default(),
        live: live::Limits::default(),
        retention: Retention::default(),
        state: Limits::default(),
        index_bytes: 256 << 20,
        index_goal_bytes: 0,
        scrub: Pace::default(),
    };
    let index = IndexWriter::start(|| Ok((MemoryIndex::default(), Opening::Fresh)), &runtime);
    let peers = network.peers(id, runtime.clone());
    let doors = Doors { runtime: runtime.clone(), disk: Arc::new(MemoryDisk::default()), peers, index };
    let node = Node::start::<TokioRuntime>(options, doors).await.unwrap();
    network.join(id, node.raft().clone(), runtime);
    node
}

/// Serves `node` over gRPC and returns where.
async fn serve(node: &Node, runtime: &Runtime, phase: watch::Receiver<Phase>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let serving = grpc::serve(listener, grpc::Options::default(), runtime.clone(), phase);
    runtime.tasks.spawn("grpc", OnFailure::Log, async move { serving.await.unwrap() });
    node.ready().await;
    address
}

async fn connect(address: &str) -> Api {
    KubemqClient::new(Endpoint::from_shared(address.to_owned()).unwrap().connect().await.unwrap())
}

/// Has leadership move to and fro, and ends with node 1 leading.
async fn move_leadership(nodes: [&Node; 2], runtime: &Runtime, times: u64) {
    let patience = patience(times);
    let moved = runtime.clock.timeout(patience, try_to_move_leadership(nodes, runtime, times)).await;
    assert!(moved.is_ok(), "after {patience:?}: {:#?}", nodes.map(|node| node.raft().status()));
}

/// The longest that so many elections may take.
fn patience(elections: u64) -> Duration {
    PATIENCE * u32::try_from(elections.div_ceil(ELECTIONS).max(1)).unwrap()
}

async fn try_to_move_leadership(nodes: [&Node; 2], runtime: &Runtime, times: u64) {
    let clock = &runtime.clock;
    let from = nodes[0].raft().status().term;
    loop {
        let [first, second] = nodes.map(|node| node.raft().status());
        if first.term >= from + times && first.leads() {
            return;
        }
        let (from, to) = if first.leads() { (nodes[0], nodes[1]) } else { (nodes[1], nodes[0]) };
        if first.leads() || second.leads() {
            from.raft().transfer_leader(to.id()).await.unwrap();
        }
        // One that did not succeed is tried again, and not before it had its time.
        let mut status = to.raft().watch();
        clock.timeout(Duration::from_secs(2), status.wait_for(|status| status.leads())).await.ok();
        // Long enough for what waits to be carried out in between.
        clock.sleep(Duration::from_millis(if to.id() == 1 { 100 } else { 20 })).await;
    }
}

/// What the clients share: whether they are to go on.
#[derive(Clone, Default)]
struct Going(Arc<AtomicBool>);

impl Going {
    fn goes_on(&self) -> bool {
        !self.0.load(Ordering::Relaxed)
    }

    fn end(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Refuses every error but the one that says that the outcome is not known.
fn check_error(error: &str) {
    assert_eq!(error, Refusal::PublishTimeout.to_string(), "only an unknown outcome is an error");
}

async fn next<T>(stream: &mut tonic::Streaming<T>, what: &str) -> T {
    let runtime = Runtime::real();
    let next = runtime.clock.timeout(PATIENCE, stream.message()).await;
    let next = next.unwrap_or_else(|_| panic!("nothing came on {what}"));
    next.unwrap_or_else(|status| panic!("{what} failed: {status}")).unwrap_or_else(|| panic!("{what} ended"))
}

/// Sends messages on one stream for as long as it goes on, and one more. Returns those that were acknowledged.
async fn upstream(mut api: Api, going: Going) -> BTreeSet<u64> {
    let (sender, receiver) = mpsc::channel(64);
    let mut answers = api.queues_upstream(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let sending = async {
        let mut number = 0;
        loop {
            let last = !going.goes_on();
            number += 1;
            let message = QueueMessage {
                client_id: "up".into(),
                channel: "q".into(),
                body: number.to_string().into(),
                ..QueueMessage::default()
            };
            let request = QueuesUpstreamRequest { request_id: number.to_string(), messages: vec![message] };
            sender.send(request).await.unwrap();
            if last {
                return number;
            }
            tokio::task::yield_now().await;
        }
    };
    let mut acknowledged = BTreeSet::new();
    let mut sending = std::pin::pin!(sending);
    let mut last = None;
    let mut seen = 0;
    while last != Some(seen) {
        tokio::select! {
            biased;
            number = &mut sending, if last.is_none() => last = Some(number),
            answer = next(&mut answers, "the upstream") => {
                seen += 1;
                assert_eq!(answer.ref_request_id, seen.to_string(), "answers come in order");
                match answer.results[0].error.as_str() {
                    "" => drop(acknowledged.insert(seen)),
                    error => check_error(error),
                }
            }
        }
    }
    assert!(acknowledged.contains(&seen), "it goes on afterwards");
    acknowledged
}

/// Takes and settles messages on one stream until it has seen all that are named at the end.
async fn downstream(mut api: Api, wanted: watch::Receiver<Option<BTreeSet<u64>>>) {
    let (sender, receiver) = mpsc::channel(4);
    let mut answers = api.queues_downstream(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let mut taken = BTreeSet::new();
    let request = |kind: QueuesDownstreamRequestType, transaction: &str| QueuesDownstreamRequest {
        request_id: "r".into(),
        client_id: "down".into(),
        request_type_data: kind.into(),
        channel: "q".into(),
        max_items: 16,
        wait_timeout: 1000,
        ref_transaction_id: transaction.into(),
        ..QueuesDownstreamRequest::default()
    };
    loop {
        if let Some(wanted) = &*wanted.borrow()
            && wanted.is_subset(&taken)
        {
            return;
        }
        sender.send(request(QueuesDownstreamRequestType::Get, "")).await.unwrap();
        let answer = loop {
            let answer = next(&mut answers, "the downstream").await;
            if answer.request_type_data == i32::from(QueuesDownstreamRequestType::Get) {
                break answer;
            }
            // A settlement of which the outcome is not known: what was taken may come again.
            assert!(answer.is_error);
        };
        // When its time was over while the other node led, there was nothing.
        assert!(!answer.is_error, "{}", answer.error);
        taken.extend(answer.messages.iter().map(|message| number(&message.body)));
        if !answer.messages.is_empty() {
            sender.send(request(QueuesDownstreamRequestType::AckAll, &answer.transaction_id)).await.unwrap();
        }
    }
}

/// Sends messages, and takes and settles each on a stream of the old kind, for as long as it goes on and until all that
/// were acknowledged were seen.
async fn old_streams(mut api: Api, going: Going) {
    let (mut acknowledged, mut taken) = (BTreeSet::new(), BTreeSet::new());
    let request = |kind: StreamRequestType, sequence: u64| StreamQueueMessagesRequest {
        request_id: "r".into(),
        client_id: "old".into(),
        stream_request_type_data: kind.into(),
        channel: "old".into(),
        visibility_seconds: 60,
        wait_time_seconds: 1,
        ref_sequence: sequence,
        ..StreamQueueMessagesRequest::default()
    };
    for sent in 1.. {
        if going.goes_on() {
            let body = sent.to_string().into();
            let message =
                QueueMessage { client_id: "old".into(), channel: "old".into(), body, ..QueueMessage::default() };
            match api.send_queue_message(message).await.unwrap().into_inner().error.as_str() {
                "" => drop(acknowledged.insert(sent)),
                error => check_error(error),
            }
        } else if acknowledged.is_subset(&taken) {
            assert!(acknowledged.len() > 1);
            return;
        }
        let (sender, receiver) = mpsc::channel(2);
        let mut answers = api.stream_queue_message(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        sender.send(request(StreamRequestType::ReceiveMessage, 0)).await.unwrap();
        let answer = next(&mut answers, "the old stream").await;
        let Some(message) = answer.message else {
            // When its time was over while the other node led, there was nothing.
            assert_eq!(answer.error, Refusal::WaitExpired.to_string());
            continue;
        };
        taken.insert(number(&message.body));
        let sequence = message.attributes.unwrap().sequence;
        sender.send(request(StreamRequestType::AckMessage, sequence)).await.unwrap();
        // Where the outcome is not known, it may come again.
        next(&mut answers, "the old stream").await;
    }
}

/// Receives without waiting and peeks, again and again for as long as it goes on: none of that is an error, but a
/// settlement of which the outcome is not known.
async fn polls(mut api: Api, going: Going) {
    while going.goes_on() {
        let request = ReceiveQueueMessagesRequest {
            request_id: "r".into(),
            client_id: "poll".into(),
            channel: "old".into(),
            max_number_of_messages: 1,
            wait_time_seconds: 1,
            is_peak: true,
        };
        let peeked = api.receive_queue_messages(request.clone()).await.unwrap().into_inner();
        assert!(!peeked.is_error, "{}", peeked.error);
        let nothing = ReceiveQueueMessagesRequest { channel: "nothing".into(), is_peak: false, ..request };
        let received = api.receive_queue_messages(nothing).await.unwrap().into_inner();
        assert!(!received.is_error && received.messages.is_empty(), "{}", received.error);
    }
}

fn number(body: &[u8]) -> u64 {
    std::str::from_utf8(body).unwrap().parse().unwrap()
}

/// Sends events on one stream, in turns to be stored and not to be, for as long as it goes on, and a last one to be
/// stored. Returns how many were sent, and which of them were stored.
async fn events(mut api: Api, going: Going) -> (u64, BTreeSet<u64>) {
    let (sender, receiver) = mpsc::channel(64);
    let mut results = api.send_events_stream(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let sending = async {
        let mut number = 0;
        loop {
            let last = !going.goes_on() && number % 2 == 0;
            number += 1;
            let event = Event {
                event_id: number.to_string(),
                client_id: "e".into(),
                channel: "e".into(),
                body: number.to_string().into(),
                store: number % 2 == 1,
                ..Event::default()
            };
            sender.send(event).await.unwrap();
            if last {
                return number;
            }
            tokio::task::yield_now().await;
        }
    };
    let mut stored = BTreeSet::new();
    let mut sending = std::pin::pin!(sending);
    let mut last = None;
    let mut expected = 1;
    while last.is_none_or(|last| expected <= last) {
        tokio::select! {
            biased;
            number = &mut sending, if last.is_none() => last = Some(number),
            result = next(&mut results, "the stream of events") => {
                assert_eq!(result.event_id, expected.to_string(), "results of stored events come in order");
                if result.sent {
                    stored.insert(expected);
                } else {
                    check_error(&result.error);
                }
                expected += 2;
            }
        }
    }
    let last = last.unwrap();
    assert!(stored.contains(&last), "it goes on afterwards");
    (last, stored)
}

fn subscription(kind: SubscribeType, channel: &str) -> Subscribe {
    Subscribe {
        subscribe_type_data: kind.into(),
        client_id: "s".into(),
        channel: channel.into(),
        events_store_type_data: match kind {
            SubscribeType::EventsStore => EventsStoreType::StartFromFirst.into(),
            _ => 0,
        },
        ..Subscribe::default()
    }
}

/// Answers requests of `kind` until it is dropped.
async fn respond(mut api: Api, kind: SubscribeType, subscribed: mpsc::Sender<()>) {
    let mut requests = api.subscribe_to_requests(subscription(kind, "r")).await.unwrap().into_inner();
    subscribed.send(()).await.unwrap();
    loop {
        let request = next(&mut requests, "the subscription to requests").await;
        let response = Response {
            client_id: "s".into(),
            request_id: request.request_id,
            reply_channel: request.reply_channel,
            executed: true,
            ..Response::default()
        };
        api.send_response(response).await.unwrap();
    }
}

/// Sends requests of `kind`, one after another, for as long as it goes on, and one more: all of them are answered.
async fn request(mut api: Api, kind: RequestType, going: Going) {
    for number in 0.. {
        let last = !going.goes_on();
        let request = Request {
            request_id: number.to_string(),
            request_type_data: kind.into(),
            client_id: "r".into(),
            channel: "r".into(),
            body: "x".into(),
            timeout: 60_000,
            ..Request::default()
        };
        let response = api.send_request(request).await.unwrap().into_inner();
        assert!(response.executed && response.request_id == number.to_string());
        if last {
            return;
        }
    }
}

/// Reads events that are not stored: all of them, in order, up to the last that is named at the end.
async fn read_live(mut api: Api, subscribed: mpsc::Sender<()>, mut last: watch::Receiver<Option<u64>>) {
    let subscription = subscription(SubscribeType::Events, "e");
    let mut events = api.subscribe_to_events(subscription).await.unwrap().into_inner();
    subscribed.send(()).await.unwrap();
    let mut expected = 2;
    while last.borrow().is_none_or(|last| expected < last) {
        let event = tokio::select! {
            biased;
            _ = last.changed() => continue,
            event = next(&mut events, "the subscription to events") => event,
        };
        assert_eq!(number(&event.body), expected, "events that are not stored need no leader");
        expected += 2;
    }
}

/// Reads stored events: in order, none twice, and all that are named at the end.
async fn read_stored(mut api: Api, mut wanted: watch::Receiver<Option<BTreeSet<u64>>>) {
    let subscription = subscription(SubscribeType::EventsStore, "e");
    let mut events = api.subscribe_to_events(subscription).await.unwrap().into_inner();
    let mut read: BTreeMap<u64, u64> = BTreeMap::new();
    let mut before = (0, 0);
    while !wanted.borrow().as_ref().is_some_and(|wanted| wanted.iter().all(|number| read.contains_key(number))) {
        let event = tokio::select! {
            biased;
            _ = wanted.changed() => continue,
            event = next(&mut events, "the subscription to stored events") => event,
        };
        let this = (event.sequence, number(&event.body));
        assert!(this.0 == before.0 + 1 && this.1 > before.1, "{this:?} after {before:?}: they were sent in this order");
        read.insert(this.1, this.0);
        before = this;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_stay_open_and_go_on_whoever_leads() {
    let runtime = Runtime::real();
    let network = MemoryNetwork::new();
    let (first, second) = (start(1, &network).await, start(2, &network).await);
    first.raft().elect().await.unwrap();
    let (phase, phases) = watch::channel(Phase::Serving(first.gateway().clone()));
    move_leadership([&first, &second], &runtime, 0).await;
    let address = serve(&first, &runtime, phases).await;
    let elections = std::env::var("KUBEMQ_SOAK_ELECTIONS").map_or(ELECTIONS, |times| times.parse().expect("a number"));

    let going = Going::default();
    let (all_messages, messages) = watch::channel(None);
    let (all_stored, stored) = watch::channel(None);
    let (last_event, last) = watch::channel(None);
    let (subscribed, mut is_subscribed) = mpsc::channel(1);
    let spawn =
        |name, work: futures_util::future::BoxFuture<'static, ()>| runtime.tasks.spawn(name, OnFailure::StopNode, work);
    let mut responders = Vec::new();
    let mut readers = vec![spawn("live", Box::pin(read_live(connect(&address).await, subscribed.clone(), last)))];
    is_subscribed.recv().await.unwrap();
    readers.push(spawn("stored", Box::pin(read_stored(connect(&address).await, stored))));
    readers.push(spawn("downstream", Box::pin(downstream(connect(&address).await, messages))));
    let mut requesters = vec![
        spawn("old", Box::pin(old_streams(connect(&address).await, going.clone()))),
        spawn("polls", Box::pin(polls(connect(&address).await, going.clone()))),
    ];
    for (asked, kind) in [(SubscribeType::Commands, RequestType::Command), (SubscribeType::Queries, RequestType::Query)]
    {
        let respond = respond(connect(&address).await, asked, subscribed.clone());
        responders.push(spawn("responder", Box::pin(respond)).abort_on_drop());
        // A request that nobody hears waits for its time to be over.
        is_subscribed.recv().await.unwrap();
        requesters.push(spawn("requester", Box::pin(request(connect(&address).await, kind, going.clone()))));
    }
    let sent = {
        let (up, down) = (connect(&address).await, connect(&address).await);
        let (going_up, going_down) = (going.clone(), going.clone());
        async move { tokio::join!(upstream(up, going_up), events(down, going_down)) }
    };
    let moving = async {
        move_leadership([&first, &second], &runtime, elections).await;
        going.end();
    };
    let worked = async {
        let ((messages, (last, events)), ()) = tokio::join!(sent, moving);
        println!("{} messages and {} stored events of {last} acknowledged", messages.len(), events.len());
        assert!(messages.len() > 1 && events.len() > 1);
        all_messages.send(Some(messages));
        all_stored.send(Some(events));
        last_event.send(Some(last));
        for task in readers.into_iter().chain(requesters) {
            task.await.expect("none of the clients failed");
        }
    };
    tokio::select! {
        biased;
        task = runtime.tasks.failure() => panic!("the client {task} failed"),
        worked = runtime.clock.timeout(2 * patience(elections), worked) => worked.expect("in time"),
    }
    drop(responders);
    phase.send(Phase::Stopping);
    first.stop().await;
    second.stop().await;
}
