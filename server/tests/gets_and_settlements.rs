//! A Get that follows settlements on its stream: behind acknowledgements it begins at once, also while the disk is slow
//! with them, and is answered when they are applied; behind what gives messages back it begins when they are back, and
//! finds them.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking with what it saw")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kubemq_broker::Limits;
use kubemq_proto::kubemq::kubemq_client::KubemqClient;
use kubemq_proto::kubemq::{
    QueueMessage, QueuesDownstreamRequest, QueuesDownstreamRequestType as Type, QueuesDownstreamResponse,
};
use kubemq_proto::validate::QueueLimits;
use kubemq_raft::TokioRuntime;
use kubemq_raft::network::NoPeers;
use kubemq_runtime::sync::watch;
use kubemq_runtime::{OnFailure, Runtime};
use kubemq_server::gateway::retention::Retention;
use kubemq_server::grpc::{Phase, server as grpc};
use kubemq_server::live;
use kubemq_server::node::{Doors, Formation, Node, Options};
use kubemq_server::scrub::Pace;
use kubemq_storage::fs::faulty::{Fault, Operation};
use kubemq_storage::fs::{FaultyDisk, MemoryDisk};
use kubemq_storage::index::{IndexWriter, MemoryIndex, Opening};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

/// The longest that anything one waits for may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a flush takes while the disk is slow: far longer than an answer that needs none.
const SLOW: Duration = Duration::from_secs(3);

async fn start(is_slow: Arc<AtomicBool>, runtime: &Runtime) -> Node {
    let disk = FaultyDisk::new(Arc::new(MemoryDisk::default()), runtime.clock.clone(), move |call| {
        let slow = call.operation == Operation::Sync && is_slow.load(Ordering::Relaxed);
        if slow { Fault::Late(SLOW) } else { Fault::None }
    });
    let options = Options {
        data: "/data".into(),
        id: None,
        formation: Formation::Alone,
        log: kubemq_storage::log::Options::default(),
        raft: kubemq_raft::Options::new(0),
        queue: QueueLimits::default(),
        live: live::Limits::default(),
        retention: Retention::default(),
        state: Limits::default(),
        index_bytes: 256 << 20,
        index_goal_bytes: 256 << 20,
        scrub: Pace::default(),
    };
    let index = IndexWriter::start(|| Ok((MemoryIndex::default(), Opening::Fresh)), runtime);
    let doors = Doors { runtime: runtime.clone(), disk: Arc::new(disk), peers: Arc::new(NoPeers), index };
    let node = Node::start::<TokioRuntime>(options, doors).await.unwrap();
    node.ready().await;
    node
}

/// One stream of a consumer.
struct Consumer {
    requests: mpsc::Sender<QueuesDownstreamRequest>,
    answers: tonic::Streaming<QueuesDownstreamResponse>,
}

impl Consumer {
    async fn ask(&self, kind: Type, transaction: &str) {
        let request = QueuesDownstreamRequest {
            request_id: "r".into(),
            client_id: "c".into(),
            request_type_data: kind.into(),
            channel: "q".into(),
            max_items: 1,
            wait_timeout: 60_000,
            ref_transaction_id: transaction.into(),
            ..QueuesDownstreamRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// Returns the transaction and the body of the next message.
    async fn taken(&mut self) -> (String, String) {
        let answer = Runtime::real().clock.timeout(PATIENCE, self.answers.message()).await.expect("an answer");
        let answer = answer.unwrap().unwrap();
        assert!(!answer.is_error, "{}", answer.error);
        let body = String::from_utf8(answer.messages.first().expect("a message").body.to_vec()).unwrap();
        (answer.transaction_id, body)
    }
}

#[tokio::test]
async fn a_get_begins_beside_acknowledgements_and_is_answered_behind_them() {
    let runtime = Runtime::real();
    let is_slow = Arc::new(AtomicBool::new(false));
    let node = start(Arc::clone(&is_slow), &runtime).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (phase, phases) = watch::channel(Phase::Serving(node.gateway().clone()));
    let serving = grpc::serve(listener, grpc::Options::default(), runtime.clone(), phases);
    runtime.tasks.spawn("grpc", OnFailure::Log, async move { serving.await.unwrap() });
    let mut api = KubemqClient::new(Endpoint::from_shared(address).unwrap().connect().await.unwrap());

    for body in ["first", "second"] {
        let message =
            QueueMessage { client_id: "c".into(), channel: "q".into(), body: body.into(), ..QueueMessage::default() };
        assert!(!api.send_queue_message(message).await.unwrap().into_inner().is_error);
    }
    let (requests, outbox) = mpsc::channel(4);
    let answers = api.queues_downstream(ReceiverStream::new(outbox)).await.unwrap().into_inner();
    let mut consumer = Consumer { requests, answers };
    consumer.ask(Type::Get, "").await;
    let (transaction, body) = consumer.taken().await;
    assert_eq!(body, "first");

    is_slow.store(true, Ordering::Relaxed);
    let before = node.raft().status().applied;
    consumer.ask(Type::AckAll, &transaction).await;
    consumer.ask(Type::Get, "").await;
    let clock = &runtime.clock;
    let taken = async {
        while node.gateway().in_flight() < 2 {
            clock.sleep(Duration::from_millis(1)).await;
        }
    };
    clock.timeout(PATIENCE, taken).await.expect("it is taken");
    assert_eq!(node.raft().status().applied, before, "the acknowledgement is still on its way to the disk");
    let (transaction, body) = consumer.taken().await;
    assert_eq!(body, "second");
    assert!(node.raft().status().applied > before, "the answer says that it is there");

    is_slow.store(false, Ordering::Relaxed);
    consumer.ask(Type::NAckAll, &transaction).await;
    consumer.ask(Type::Get, "").await;
    let (transaction, body) = consumer.taken().await;
    assert_eq!(body, "second", "it is back");
    consumer.ask(Type::AckAll, &transaction).await;
    drop(consumer);
    phase.send(Phase::Stopping);
    node.stop().await;
}
