//! A client of the API as tests want it: short calls that fail the test when the transport fails, and streams
//! whose answers are awaited with a deadline.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kubemq_proto::kubemq::kubemq_client::KubemqClient;
use kubemq_proto::kubemq::{
    AckAllQueueMessagesRequest, AckAllQueueMessagesResponse, QueueInfo, QueueMessage, QueueMessageAttributes,
    QueueMessagePolicy, QueueMessagesBatchRequest, QueueMessagesBatchResponse, QueuesDownstreamRequest,
    QueuesDownstreamRequestType, QueuesDownstreamResponse, QueuesInfo, QueuesInfoRequest, QueuesUpstreamRequest,
    QueuesUpstreamResponse, ReceiveQueueMessagesRequest, ReceiveQueueMessagesResponse, Request, Response,
    SendQueueMessageResult, StreamQueueMessagesRequest, StreamQueueMessagesResponse, StreamRequestType,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::wait::{SOON, timeout};

/// The id under which the tests send and receive.
pub const CLIENT_ID: &str = "C";
/// The channel that takes management requests.
pub const MANAGEMENT: &str = "kubemq.cluster.internal.requests";

const MAX_MESSAGE: usize = 256 * 1024 * 1024;

/// A connection to a server.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    /// The generated client, for calls that have no helper here.
    pub api: KubemqClient<Channel>,
}

impl Client {
    /// Connects to `address`, as `host:port`.
    ///
    /// # Panics
    ///
    /// Panics when nobody answers.
    pub async fn connect(address: &str) -> Self {
        Self::try_connect(address).await.unwrap_or_else(|error| panic!("could not connect to {address}: {error}"))
    }

    /// Connects to `address`, as `host:port`.
    ///
    /// # Errors
    ///
    /// When nobody answers.
    ///
    /// # Panics
    ///
    /// Panics when `address` is no address.
    pub async fn try_connect(address: &str) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address").tcp_nodelay(true);
        let endpoint = endpoint.initial_stream_window_size(1 << 20).initial_connection_window_size(4 << 20);
        // Libraries that cannot read large answers are known by their names and get small ones: this one can.
        let endpoint = endpoint.user_agent("grpc-go/1.63.2").expect("a name");
        Ok(Self::over(endpoint.connect().await?))
    }

    /// Returns a client over a channel that the caller has made.
    #[must_use]
    pub fn over(channel: Channel) -> Self {
        let api = KubemqClient::new(channel.clone());
        let api = api.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE);
        Self { channel, api }
    }

    /// Returns the connection, for raw calls.
    #[must_use]
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Sends one message and returns the result, which may tell of an error.
    pub async fn send(&self, message: QueueMessage) -> SendQueueMessageResult {
        called("SendQueueMessage", Box::pin(self.api.clone().send_queue_message(message))).await
    }

    /// Sends one message of each body to `channel`, in one batch.
    ///
    /// # Panics
    ///
    /// Panics when one is refused.
    pub async fn fill(&self, channel: &str, bodies: impl IntoIterator<Item = impl Into<Bytes>>) {
        self.fill_with(bodies.into_iter().map(|body| message(channel, body))).await;
    }

    /// Sends `messages` in one batch.
    ///
    /// # Panics
    ///
    /// Panics when one is refused.
    pub async fn fill_with(&self, messages: impl IntoIterator<Item = QueueMessage>) {
        let answer = self.batch(messages).await;
        let refused = answer.results.iter().find(|result| result.is_error);
        assert_eq!(refused, None, "a message was refused");
    }

    /// Sends `messages` in one batch and returns the answer.
    pub async fn batch(&self, messages: impl IntoIterator<Item = QueueMessage>) -> QueueMessagesBatchResponse {
        let request = QueueMessagesBatchRequest { batch_id: unique("batch"), messages: messages.into_iter().collect() };
        called("SendQueueMessagesBatch", Box::pin(self.api.clone().send_queue_messages_batch(request))).await
    }

    /// Receives and removes up to `max` messages, waiting up to `wait` seconds.
    pub async fn receive(&self, channel: &str, max: i32, wait: i32) -> ReceiveQueueMessagesResponse {
        self.receive_with(receive_request(channel, max, wait)).await
    }

    /// Looks at up to `max` messages, waiting up to `wait` seconds.
    pub async fn peek(&self, channel: &str, max: i32, wait: i32) -> ReceiveQueueMessagesResponse {
        self.receive_with(ReceiveQueueMessagesRequest { is_peak: true, ..receive_request(channel, max, wait) }).await
    }

    /// Makes a receive call as given.
    pub async fn receive_with(&self, request: ReceiveQueueMessagesRequest) -> ReceiveQueueMessagesResponse {
        called("ReceiveQueueMessages", Box::pin(self.api.clone().receive_queue_messages(request))).await
    }

    /// Receives exactly `count` messages, at once.
    ///
    /// # Panics
    ///
    /// Panics when there are fewer.
    pub async fn take(&self, channel: &str, count: usize) -> Vec<QueueMessage> {
        let answer = self.receive(channel, i32::try_from(count).expect("a small count"), 5).await;
        assert!(!answer.is_error, "receive failed: {}", answer.error);
        assert_eq!(answer.messages.len(), count, "messages in {channel}");
        answer.messages
    }

    /// Fails the test when `channel` has a message that could be received.
    ///
    /// # Panics
    ///
    /// Panics when there is one.
    pub async fn assert_empty(&self, channel: &str) {
        let answer = self.peek(channel, 1, 1).await;
        assert!(!answer.is_error, "peek failed: {}", answer.error);
        assert_eq!(answer.messages, [], "messages in {channel}");
    }

    /// Discards what `channel` holds.
    pub async fn ack_all(&self, channel: &str, wait: i32) -> AckAllQueueMessagesResponse {
        let request = AckAllQueueMessagesRequest {
            request_id: unique("ack-all"),
            client_id: CLIENT_ID.into(),
            channel: channel.into(),
            wait_time_seconds: wait,
        };
        called("AckAllQueueMessages", Box::pin(self.api.clone().ack_all_queue_messages(request))).await
    }

    /// Returns what is known of the queues in `names`.
    ///
    /// # Panics
    ///
    /// Panics when the answer lacks its body or does not echo the request's id.
    pub async fn queues_info(&self, names: &str) -> QueuesInfo {
        let id = unique("info");
        let request = QueuesInfoRequest { request_id: id.clone(), queue_name: names.into() };
        let answer = called("QueuesInfo", Box::pin(self.api.clone().queues_info(request))).await;
        assert_eq!(answer.ref_request_id, id);
        answer.info.expect("an info")
    }

    /// Returns what is known of the one queue `name`.
    ///
    /// # Panics
    ///
    /// Panics when it is not listed.
    pub async fn queue_info(&self, name: &str) -> QueueInfo {
        let info = self.queues_info(name).await;
        info.queues.into_iter().find(|queue| queue.name == name).unwrap_or_else(|| panic!("queue {name} is not listed"))
    }

    /// Sends a management request: `what` is `create-channel`, `delete-channel` or `list-channels`.
    ///
    /// # Errors
    ///
    /// The status that the server answers.
    pub async fn manage(&self, what: &str, tags: &[(&str, &str)]) -> Result<Response, Status> {
        let request = Request {
            request_type_data: 2,
            client_id: CLIENT_ID.into(),
            channel: MANAGEMENT.into(),
            metadata: what.into(),
            timeout: 10_000,
            tags: tags.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            ..Request::default()
        };
        let mut api = self.api.clone();
        timeout(SOON, Box::pin(api.send_request(request)))
            .await
            .expect("an answer in time")
            .map(tonic::Response::into_inner)
    }

    /// Opens a `StreamQueueMessage` stream.
    ///
    /// # Panics
    ///
    /// Panics when the server does not answer.
    pub async fn stream(&self) -> OldStream {
        self.try_stream().await.unwrap_or_else(|status| panic!("StreamQueueMessage failed: {status}"))
    }

    /// Opens a `StreamQueueMessage` stream.
    ///
    /// # Errors
    ///
    /// The status that the server answers.
    pub async fn try_stream(&self) -> Result<OldStream, Status> {
        let (requests, receiver) = mpsc::channel(64);
        let mut api = self.api.clone();
        let responses = Box::pin(api.stream_queue_message(ReceiverStream::new(receiver))).await?.into_inner();
        Ok(Duplex::new(requests, responses))
    }

    /// Opens a `QueuesUpstream` stream.
    ///
    /// # Panics
    ///
    /// Panics when the server does not answer.
    pub async fn upstream(&self) -> Upstream {
        self.try_upstream().await.unwrap_or_else(|status| panic!("QueuesUpstream failed: {status}"))
    }

    /// Opens a `QueuesUpstream` stream.
    ///
    /// # Errors
    ///
    /// The status that the server answers.
    pub async fn try_upstream(&self) -> Result<Upstream, Status> {
        let (requests, receiver) = mpsc::channel(64);
        let mut api = self.api.clone();
        let responses = Box::pin(api.queues_upstream(ReceiverStream::new(receiver))).await?.into_inner();
        Ok(Duplex::new(requests, responses))
    }

    /// Opens a `QueuesDownstream` stream.
    ///
    /// # Panics
    ///
    /// Panics when the server does not answer.
    pub async fn downstream(&self) -> Downstream {
        self.try_downstream().await.unwrap_or_else(|status| panic!("QueuesDownstream failed: {status}"))
    }

    /// Opens a `QueuesDownstream` stream.
    ///
    /// # Errors
    ///
    /// The status that the server answers.
    pub async fn try_downstream(&self) -> Result<Downstream, Status> {
        let (requests, receiver) = mpsc::channel(64);
        let mut api = self.api.clone();
        let responses = Box::pin(api.queues_downstream(ReceiverStream::new(receiver))).await?.into_inner();
        Ok(Duplex::new(requests, responses))
    }
}

/// Awaits a call that has to succeed on the transport's level.
async fn called<T>(what: &str, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> T {
    let answer = timeout(4 * SOON, call).await.unwrap_or_else(|_| panic!("{what} did not answer"));
    answer.unwrap_or_else(|status| panic!("{what} failed: {status}")).into_inner()
}

/// Both directions of a stream.
pub struct Duplex<Q, A> {
    requests: Option<mpsc::Sender<Q>>,
    responses: Streaming<A>,
}

/// A `StreamQueueMessage` stream.
pub type OldStream = Duplex<StreamQueueMessagesRequest, StreamQueueMessagesResponse>;
/// A `QueuesUpstream` stream.
pub type Upstream = Duplex<QueuesUpstreamRequest, QueuesUpstreamResponse>;
/// A `QueuesDownstream` stream.
pub type Downstream = Duplex<QueuesDownstreamRequest, QueuesDownstreamResponse>;

impl<Q, A> Duplex<Q, A> {
    pub(crate) fn new(requests: mpsc::Sender<Q>, responses: Streaming<A>) -> Self {
        Self { requests: Some(requests), responses }
    }

    /// Sends `request`.
    ///
    /// # Panics
    ///
    /// Panics when the stream has ended or was half-closed.
    pub async fn send(&self, request: Q) {
        let requests = self.requests.as_ref().expect("a stream that is not half-closed");
        assert!(requests.send(request).await.is_ok(), "the stream has ended");
    }

    /// Sends `request`, and returns whether the stream still took it.
    pub async fn try_send(&self, request: Q) -> bool {
        match &self.requests {
            Some(requests) => requests.send(request).await.is_ok(),
            None => false,
        }
    }

    /// Says that no more requests come.
    pub fn half_close(&mut self) {
        self.requests = None;
    }

    /// Returns the next answer, `None` when the stream has ended with OK.
    ///
    /// # Errors
    ///
    /// The status with which the stream ended.
    ///
    /// # Panics
    ///
    /// Panics when nothing comes within `deadline`.
    pub async fn next_within(&mut self, deadline: Duration) -> Result<Option<A>, Status> {
        let next = timeout(deadline, self.responses.message()).await;
        next.unwrap_or_else(|_| panic!("no answer within {deadline:?}"))
    }

    /// Returns the next answer.
    ///
    /// # Panics
    ///
    /// Panics when the stream ends or nothing comes.
    pub async fn next(&mut self) -> A {
        let next = self.next_within(SOON).await.unwrap_or_else(|status| panic!("the stream failed: {status}"));
        next.expect("an answer before the end of the stream")
    }

    /// Sends `request` and returns the next answer.
    pub async fn ask(&mut self, request: Q) -> A {
        self.send(request).await;
        self.next().await
    }

    /// Fails the test when the stream does not end with OK soon.
    ///
    /// # Panics
    ///
    /// Panics when it ends otherwise or something else comes.
    pub async fn ends(&mut self)
    where
        A: std::fmt::Debug,
    {
        let end = self.next_within(SOON).await.unwrap_or_else(|status| panic!("the stream failed: {status}"));
        assert!(end.is_none(), "the stream goes on: {end:?}");
    }

    /// Returns the status with which the stream ends, skipping answers before it.
    pub async fn failure(&mut self) -> Status {
        loop {
            match self.next_within(SOON).await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::new(Code::Ok, ""),
                Err(status) => return status,
            }
        }
    }

    /// Fails the test when an answer comes within `duration`.
    ///
    /// # Panics
    ///
    /// Panics when one comes, or the stream ends.
    pub async fn stays_silent(&mut self, duration: Duration)
    where
        A: std::fmt::Debug,
    {
        if let Ok(answer) = timeout(duration, self.responses.message()).await {
            panic!("expected silence, got {answer:?}");
        }
    }
}

impl Downstream {
    /// Asks for messages and returns the answer.
    ///
    /// # Panics
    ///
    /// Panics when it is not the answer to this request.
    pub async fn get(&mut self, request: QueuesDownstreamRequest) -> QueuesDownstreamResponse {
        let id = request.request_id.clone();
        let answer = self.ask(request).await;
        assert_eq!(answer.request_type_data, QueuesDownstreamRequestType::Get as i32, "{answer:?}");
        assert_eq!(answer.ref_request_id, id);
        answer
    }

    /// Asks for exactly `count` messages to be settled, and returns the transaction and them.
    ///
    /// # Panics
    ///
    /// Panics when there are fewer.
    pub async fn hold(&mut self, channel: &str, count: usize) -> (String, Vec<QueueMessage>) {
        let max = i32::try_from(count).expect("a small count");
        let answer = self.get(get(channel, max, 5000)).await;
        assert!(!answer.is_error, "get failed: {}", answer.error);
        assert_eq!(answer.messages.len(), count, "messages of {channel}");
        (answer.transaction_id, answer.messages)
    }

    /// Returns the sequences that `transaction` still holds, ascending. Everything sent before has been
    /// applied then.
    ///
    /// # Panics
    ///
    /// Panics when the question is refused.
    pub async fn active(&mut self, transaction: &str) -> Vec<i64> {
        let answer = self.ask(settle(QueuesDownstreamRequestType::ActiveOffsets, transaction)).await;
        assert!(!answer.is_error, "{answer:?}");
        assert_eq!(answer.request_type_data, QueuesDownstreamRequestType::ActiveOffsets as i32);
        let mut offsets = answer.active_offsets;
        offsets.sort_unstable();
        offsets
    }
}

/// Returns a request id that no other request has.
#[must_use]
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{prefix}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Returns a message to `channel`.
#[must_use]
pub fn message(channel: &str, body: impl Into<Bytes>) -> QueueMessage {
    QueueMessage {
        message_id: unique("message"),
        client_id: CLIENT_ID.into(),
        channel: channel.into(),
        body: body.into(),
        ..QueueMessage::default()
    }
}

/// Returns a message to `channel` with `policy`.
#[must_use]
pub fn message_with(channel: &str, body: impl Into<Bytes>, policy: QueueMessagePolicy) -> QueueMessage {
    QueueMessage { policy: Some(policy), ..message(channel, body) }
}

/// Returns a request to receive from `channel`.
#[must_use]
pub fn receive_request(channel: &str, max: i32, wait: i32) -> ReceiveQueueMessagesRequest {
    ReceiveQueueMessagesRequest {
        request_id: unique("receive"),
        client_id: CLIENT_ID.into(),
        channel: channel.into(),
        max_number_of_messages: max,
        wait_time_seconds: wait,
        is_peak: false,
    }
}

/// Returns a downstream request for up to `max` messages that waits up to `wait` milliseconds.
#[must_use]
pub fn get(channel: &str, max: i32, wait: i32) -> QueuesDownstreamRequest {
    QueuesDownstreamRequest {
        request_id: unique("get"),
        client_id: CLIENT_ID.into(),
        request_type_data: QueuesDownstreamRequestType::Get as i32,
        channel: channel.into(),
        max_items: max,
        wait_timeout: wait,
        ..QueuesDownstreamRequest::default()
    }
}

/// Returns a downstream request about `transaction`.
#[must_use]
pub fn settle(kind: QueuesDownstreamRequestType, transaction: &str) -> QueuesDownstreamRequest {
    QueuesDownstreamRequest {
        request_id: unique("settle"),
        client_id: CLIENT_ID.into(),
        request_type_data: kind as i32,
        ref_transaction_id: transaction.into(),
        ..QueuesDownstreamRequest::default()
    }
}

/// Returns a request on the old stream.
#[must_use]
pub fn old(kind: StreamRequestType, channel: &str) -> StreamQueueMessagesRequest {
    StreamQueueMessagesRequest {
        request_id: unique("stream"),
        client_id: CLIENT_ID.into(),
        stream_request_type_data: kind as i32,
        channel: channel.into(),
        ..StreamQueueMessagesRequest::default()
    }
}

/// Returns a request on the old stream for a message, held for `visibility` seconds.
#[must_use]
pub fn old_receive(channel: &str, visibility: i32, wait: i32) -> StreamQueueMessagesRequest {
    StreamQueueMessagesRequest {
        visibility_seconds: visibility,
        wait_time_seconds: wait,
        ..old(StreamRequestType::ReceiveMessage, channel)
    }
}

/// Returns the attributes of a received message.
///
/// # Panics
///
/// Panics when it has none.
#[must_use]
pub fn attributes(message: &QueueMessage) -> &QueueMessageAttributes {
    message.attributes.as_ref().expect("attributes")
}

/// Returns the sequences of received messages.
#[must_use]
pub fn sequences(messages: &[QueueMessage]) -> Vec<u64> {
    messages.iter().map(|message| attributes(message).sequence).collect()
}

/// Returns the receive counts of received messages.
#[must_use]
pub fn counts(messages: &[QueueMessage]) -> Vec<i32> {
    messages.iter().map(|message| attributes(message).receive_count).collect()
}

/// Returns the bodies of received messages as text.
#[must_use]
pub fn bodies(messages: &[QueueMessage]) -> Vec<String> {
    messages.iter().map(|message| String::from_utf8_lossy(&message.body).into_owned()).collect()
}
