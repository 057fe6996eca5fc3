//! The floor of the gRPC interface: a bare tonic server with the same API that stores nothing.
//!
//! It has the settings and the shape that a fast server has (engine.md §5: large windows and frames, no delay,
//! the replies of a stream from a task of its own), answers every send with a made-up result, and keeps
//! messages and stored events, in memory, only on channels whose name begins with [`KEPT`]. Other events and
//! requests it relays by the exact name of their channel, to everybody who subscribed; it knows neither patterns
//! nor groups nor bounds but that of a channel between two tasks. What it reaches is what the network stack
//! leaves of the machine.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::{Stream, StreamExt as _};
use kubemq_proto::frame::{Frame, store_event};
use kubemq_proto::kubemq as proto;
use kubemq_proto::kubemq::QueuesDownstreamRequestType as Kind;
use kubemq_proto::kubemq::kubemq_server::{Kubemq, KubemqServer};
use kubemq_proto::kubemq::subscribe::SubscribeType;
use kubemq_runtime::sync::{Notify, mpsc, oneshot};
use kubemq_runtime::{OnFailure, Runtime};
use parking_lot::Mutex;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// What the names of the channels begin with whose messages are kept for a Get.
pub(crate) const KEPT: &str = "kept";

/// Replies that wait for the network before the reader of a stream waits for them.
const REPLIES: usize = 256;

/// Serves until the process is killed; `ready` learns the address.
pub(crate) async fn serve(
    runtime: Runtime,
    ready: impl FnOnce(std::net::SocketAddr) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.context("could not listen")?;
    ready(listener.local_addr()?)?;
    let incoming = TcpListenerStream::new(listener).map(|socket| {
        let socket = socket?;
        // The builder's own setting does not reach connections that it did not accept itself.
        socket.set_nodelay(true)?;
        Ok::<_, std::io::Error>(socket)
    });
    let service = KubemqServer::new(Floor {
        runtime,
        queues: Arc::default(),
        events: Arc::default(),
        transactions: Arc::default(),
        subscribers: Arc::default(),
        waiting: Arc::default(),
    });
    tonic::transport::Server::builder()
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .max_frame_size(1 << 20)
        .add_service(service.max_decoding_message_size(100 << 20).max_encoding_message_size(100 << 20))
        .serve_with_incoming(incoming)
        .await
        .context("the floor server ended")
}

#[derive(Clone)]
struct Floor {
    runtime: Runtime,
    queues: Arc<Mutex<BTreeMap<String, Arc<Queue>>>>,
    /// The stored events of kept channels.
    events: Arc<Mutex<BTreeMap<String, Arc<Vec<Frame>>>>>,
    transactions: Arc<AtomicU64>,
    subscribers: Arc<Mutex<BTreeMap<String, Vec<Subscriber>>>>,
    waiting: Arc<Mutex<BTreeMap<String, oneshot::Sender<proto::Response>>>>,
}

type Subscriber = mpsc::Sender<Result<Frame, Status>>;

/// The messages of a kept channel.
#[derive(Default)]
struct Queue {
    messages: Mutex<VecDeque<proto::QueueMessage>>,
    arrived: Notify,
}

impl Floor {
    fn queue(&self, channel: &str) -> Arc<Queue> {
        let mut queues = self.queues.lock();
        if let Some(queue) = queues.get(channel) {
            return Arc::clone(queue);
        }
        Arc::clone(queues.entry(channel.to_owned()).or_default())
    }

    fn accept(&self, message: proto::QueueMessage) -> proto::SendQueueMessageResult {
        let message_id = message.message_id.clone();
        if message.channel.starts_with(KEPT) {
            let queue = self.queue(&message.channel);
            queue.messages.lock().push_back(message);
            queue.arrived.notify_one();
        }
        let now = i64::try_from(self.runtime.clock.wall().0).unwrap_or(i64::MAX);
        proto::SendQueueMessageResult { message_id, sent_at: now, ..proto::SendQueueMessageResult::default() }
    }

    /// Keeps a stored event of a kept channel, as it will be sent.
    fn keep(&self, event: proto::Event) {
        if !event.channel.starts_with(KEPT) {
            return;
        }
        let mut channels = self.events.lock();
        let frames = Arc::make_mut(channels.entry(event.channel.clone()).or_default());
        let (channel, sequence) = (event.channel.clone(), frames.len() as u64 + 1);
        let mut stored = bytes::BytesMut::new();
        store_event(event, &mut stored);
        frames.push(Frame::stored_event(&channel, self.runtime.clock.wall().0, sequence, stored.freeze()));
    }

    async fn get(&self, request: &proto::QueuesDownstreamRequest) -> proto::QueuesDownstreamResponse {
        let queue = self.queue(&request.channel);
        let wanted = usize::try_from(request.max_items).unwrap_or(0);
        let wait = Duration::from_millis(u64::try_from(request.wait_timeout).unwrap_or(0));
        let enough = async {
            while queue.messages.lock().len() < wanted {
                queue.arrived.notified().await;
            }
        };
        // Enough or not: what is there is given.
        self.runtime.clock.timeout(wait, enough).await.ok();
        let mut messages = queue.messages.lock();
        let count = wanted.min(messages.len());
        proto::QueuesDownstreamResponse {
            transaction_id: self.transactions.fetch_add(1, Ordering::Relaxed).to_string(),
            ref_request_id: request.request_id.clone(),
            request_type_data: Kind::Get.into(),
            messages: messages.drain(..count).collect(),
            ..proto::QueuesDownstreamResponse::default()
        }
    }
}

impl Floor {
    fn subscribe(&self, channel: String) -> Replies<Frame> {
        let (sender, frames) = mpsc::channel(REPLIES);
        self.subscribers.lock().entry(channel).or_default().push(sender);
        Box::pin(ReceiverStream::new(frames))
    }

    fn subscribers(&self, channel: &str) -> Vec<Subscriber> {
        self.subscribers.lock().get(channel).cloned().unwrap_or_default()
    }
}

/// Who gets the events of one stream, looked up when the channel changes.
#[derive(Default)]
struct Relay {
    channel: String,
    subscribers: Vec<Subscriber>,
}

impl Relay {
    async fn send(&mut self, floor: &Floor, event: proto::Event) {
        if event.channel != self.channel {
            self.channel.clone_from(&event.channel);
            self.subscribers = floor.subscribers(&self.channel);
        }
        let frame = Frame::event(event);
        for subscriber in &self.subscribers {
            // Who is gone needs no event.
            subscriber.send(Ok(frame.clone())).await.ok();
        }
    }
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<Response<T>, Status>;

fn absent<T>() -> Answer<T> {
    Err(Status::unimplemented("the floor does not have this"))
}

#[tonic::async_trait]
impl Kubemq for Floor {
    async fn send_queue_message(&self, request: Request<proto::QueueMessage>) -> Answer<proto::SendQueueMessageResult> {
        Ok(Response::new(self.accept(request.into_inner())))
    }

    type QueuesUpstreamStream = Replies<proto::QueuesUpstreamResponse>;

    async fn queues_upstream(
        &self,
        request: Request<Streaming<proto::QueuesUpstreamRequest>>,
    ) -> Answer<Self::QueuesUpstreamStream> {
        let mut requests = request.into_inner();
        let (replies, outbox) = mpsc::channel(REPLIES);
        let floor = self.clone();
        self.runtime.tasks.spawn("floor-upstream", OnFailure::Log, async move {
            while let Some(Ok(request)) = requests.next().await {
                let reply = proto::QueuesUpstreamResponse {
                    ref_request_id: request.request_id,
                    results: request.messages.into_iter().map(|message| floor.accept(message)).collect(),
                    ..proto::QueuesUpstreamResponse::default()
                };
                if replies.send(Ok(reply)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outbox))))
    }

    type QueuesDownstreamStream = Replies<proto::QueuesDownstreamResponse>;

    async fn queues_downstream(
        &self,
        request: Request<Streaming<proto::QueuesDownstreamRequest>>,
    ) -> Answer<Self::QueuesDownstreamStream> {
        let mut requests = request.into_inner();
        let (replies, outbox) = mpsc::channel(REPLIES);
        let floor = self.clone();
        self.runtime.tasks.spawn("floor-downstream", OnFailure::Log, async move {
            while let Some(Ok(request)) = requests.next().await {
                // A settlement has no answer, and nothing to settle here.
                if request.request_type_data() == Kind::Get
                    && replies.send(Ok(floor.get(&request).await)).await.is_err()
                {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outbox))))
    }

    async fn ping(&self, _: Request<proto::Empty>) -> Answer<proto::PingResult> {
        Ok(Response::new(proto::PingResult { host: "floor".to_owned(), ..proto::PingResult::default() }))
    }

    type SendEventsStreamStream = Replies<proto::Result>;

    async fn send_events_stream(
        &self,
        request: Request<Streaming<proto::Event>>,
    ) -> Answer<Self::SendEventsStreamStream> {
        let mut events = request.into_inner();
        let (replies, outbox) = mpsc::channel(REPLIES);
        let floor = self.clone();
        self.runtime.tasks.spawn("floor-events", OnFailure::Log, async move {
            let mut relay = Relay::default();
            while let Some(Ok(event)) = events.next().await {
                if !event.store {
                    relay.send(&floor, event).await;
                    continue;
                }
                let event_id = event.event_id.clone();
                floor.keep(event);
                if replies.send(Ok(proto::Result { event_id, sent: true, ..proto::Result::default() })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outbox))))
    }

    type SubscribeToEventsStream = Replies<Frame>;

    async fn subscribe_to_events(&self, request: Request<proto::Subscribe>) -> Answer<Self::SubscribeToEventsStream> {
        if request.get_ref().subscribe_type_data() == SubscribeType::Events {
            return Ok(Response::new(self.subscribe(request.into_inner().channel)));
        }
        let frames = self.events.lock().get(&request.get_ref().channel).cloned().unwrap_or_default();
        // What is read is in memory and encoded; it is sent once, and then the stream stays silent.
        let all = (0..frames.len()).map(move |place| Ok(frames[place].clone()));
        let silence = futures_util::stream::pending();
        Ok(Response::new(Box::pin(futures_util::stream::iter(all).chain(silence))))
    }

    type SubscribeToRequestsStream = Replies<Frame>;
    type StreamQueueMessageStream = Replies<proto::StreamQueueMessagesResponse>;

    async fn send_event(&self, _: Request<proto::Event>) -> Answer<proto::Result> {
        absent()
    }

    async fn subscribe_to_requests(
        &self,
        request: Request<proto::Subscribe>,
    ) -> Answer<Self::SubscribeToRequestsStream> {
        Ok(Response::new(self.subscribe(request.into_inner().channel)))
    }

    async fn send_request(&self, request: Request<proto::Request>) -> Answer<proto::Response> {
        let mut request = request.into_inner();
        let (sender, answer) = oneshot::channel();
        request.reply_channel = self.transactions.fetch_add(1, Ordering::Relaxed).to_string();
        self.waiting.lock().insert(request.reply_channel.clone(), sender);
        let subscribers = self.subscribers(&request.channel);
        let frame = Frame::request(request);
        for subscriber in &subscribers {
            subscriber.send(Ok(frame.clone())).await.ok();
        }
        answer.await.map(Response::new).map_err(|_| Status::internal("no answer"))
    }

    async fn send_response(&self, request: Request<proto::Response>) -> Answer<proto::Empty> {
        let response = request.into_inner();
        let waiting = self.waiting.lock().remove(&response.reply_channel);
        if let Some(waiting) = waiting {
            waiting.send(response).ok();
        }
        Ok(Response::new(proto::Empty {}))
    }

    async fn send_queue_messages_batch(
        &self,
        _: Request<proto::QueueMessagesBatchRequest>,
    ) -> Answer<proto::QueueMessagesBatchResponse> {
        absent()
    }

    async fn receive_queue_messages(
        &self,
        _: Request<proto::ReceiveQueueMessagesRequest>,
    ) -> Answer<proto::ReceiveQueueMessagesResponse> {
        absent()
    }

    async fn stream_queue_message(
        &self,
        _: Request<Streaming<proto::StreamQueueMessagesRequest>>,
    ) -> Answer<Self::StreamQueueMessageStream> {
        absent()
    }

    async fn ack_all_queue_messages(
        &self,
        _: Request<proto::AckAllQueueMessagesRequest>,
    ) -> Answer<proto::AckAllQueueMessagesResponse> {
        absent()
    }

    async fn queues_info(&self, _: Request<proto::QueuesInfoRequest>) -> Answer<proto::QueuesInfoResponse> {
        absent()
    }
}
