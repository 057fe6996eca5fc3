//! What the pushes send and receive beside the loads of `kubemq bench`: messages whose content counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, anyhow, bail};
use kubemq_proto::kubemq::kubemq_client::KubemqClient;
use kubemq_proto::kubemq::{
    QueueMessage, QueuesDownstreamRequest, QueuesDownstreamRequestType, QueuesUpstreamRequest,
    ReceiveQueueMessagesRequest, SendQueueMessageResult,
};
use kubemq_runtime::sync::mpsc;
use kubemq_server::cli::client::{Client, LARGEST_MESSAGE, Token, connect as reach, endpoint};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

/// The name by which the broker knows this client.
const CLIENT_ID: &str = "kubemq-bench";

/// Requests of an upstream stream that may be unanswered.
const UNANSWERED: usize = 16;

/// Messages for which a Get of a drain asks.
const ITEMS: i32 = 1024;

/// How long a Get of a drain waits, in milliseconds; a channel that is silent for so long has nothing left.
const SILENCE_MILLIS: i32 = 30_000;

/// Connects to a broker.
///
/// # Errors
///
/// When nobody answers at the address.
pub(crate) async fn connect(address: &str) -> anyhow::Result<Client> {
    let channel = reach(&endpoint(address).map_err(|failure| anyhow!("{failure}"))?, address).await;
    let channel = channel.map_err(|failure| anyhow!("{failure}"))?;
    let client = KubemqClient::with_interceptor(channel, Token::default());
    Ok(client.max_decoding_message_size(LARGEST_MESSAGE).max_encoding_message_size(LARGEST_MESSAGE))
}

/// Receives one message of `channel`.
///
/// # Errors
///
/// When there is none.
pub(crate) async fn receive_one(client: &mut Client, channel: &str) -> anyhow::Result<QueueMessage> {
    let request = ReceiveQueueMessagesRequest {
        request_id: "receive".to_owned(),
        client_id: CLIENT_ID.to_owned(),
        channel: channel.to_owned(),
        max_number_of_messages: 1,
        wait_time_seconds: 30,
        ..ReceiveQueueMessagesRequest::default()
    };
    let answer = client.receive_queue_messages(request).await.context("could not receive")?.into_inner();
    if answer.is_error {
        bail!("could not receive: {}", answer.error);
    }
    answer.messages.into_iter().next().with_context(|| format!("{channel} has no message"))
}

/// Returns a message to `channel`.
pub(crate) fn message(channel: &str, body: impl Into<bytes::Bytes>) -> QueueMessage {
    QueueMessage {
        client_id: CLIENT_ID.to_owned(),
        channel: channel.to_owned(),
        body: body.into(),
        ..QueueMessage::default()
    }
}

/// Sends what `next` returns, a batch per request, until that is empty, and shows each batch's results to `seen`.
///
/// # Errors
///
/// When the stream ends or a message is refused.
pub(crate) async fn send(
    client: &mut Client,
    mut next: impl FnMut() -> Vec<QueueMessage> + Send + 'static,
    mut seen: impl FnMut(&[SendQueueMessageResult]),
) -> anyhow::Result<()> {
    let (places, free) = mpsc::channel(UNANSWERED);
    for _ in 0..UNANSWERED {
        places.try_send(()).ok();
    }
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let requests = ReceiverStream::new(free).map_while(move |()| {
        let messages = next();
        let request_id = count.load(Ordering::Relaxed).to_string();
        count.fetch_add(usize::from(!messages.is_empty()), Ordering::Relaxed);
        (!messages.is_empty()).then_some(QueuesUpstreamRequest { request_id, messages })
    });
    let mut answers = client.queues_upstream(requests).await.context("could not open a stream")?.into_inner();
    let mut answered = 0;
    while let Some(answer) = answers.message().await.context("the stream failed")? {
        if let Some(refused) = answer.results.iter().find(|result| result.is_error) {
            bail!("a message was refused: {}", refused.error);
        }
        if answer.is_error {
            bail!("a request was refused: {}", answer.error);
        }
        seen(&answer.results);
        answered += 1;
        // Nobody waits for a place any more when all was sent.
        places.try_send(()).ok();
    }
    if answered != sent.load(Ordering::Relaxed) {
        bail!("the broker ended the stream");
    }
    Ok(())
}

/// Receives and settles `count` messages of `channel`, each shown to `seen`; returns how many there were before it
/// fell silent.
///
/// # Errors
///
/// When the stream fails, or `seen` does.
pub(crate) async fn drain(
    address: &str,
    channel: &str,
    count: u64,
    mut seen: impl FnMut(&QueueMessage) -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let mut client = connect(address).await?;
    let (requests, outbox) = mpsc::channel(4);
    requests.try_send(get(channel)).ok();
    let answers = client.queues_downstream(ReceiverStream::new(outbox)).await.context("could not open a stream")?;
    let mut answers = answers.into_inner();
    let mut received = 0;
    while received < count {
        let answer = answers.message().await.context("the stream failed")?.context("the broker ended the stream")?;
        if answer.is_error {
            bail!("the broker answered: {}", answer.error);
        }
        if answer.request_type_data != i32::from(QueuesDownstreamRequestType::Get) {
            continue;
        }
        if answer.messages.is_empty() {
            return Ok(received);
        }
        let settle = QueuesDownstreamRequest {
            request_id: "ack".to_owned(),
            request_type_data: QueuesDownstreamRequestType::AckAll.into(),
            ref_transaction_id: answer.transaction_id,
            ..QueuesDownstreamRequest::default()
        };
        // A stream that has ended says why at the next look.
        requests.send(settle).await.ok();
        requests.send(get(channel)).await.ok();
        for message in &answer.messages {
            seen(message)?;
        }
        received += answer.messages.len() as u64;
    }
    Ok(received)
}

fn get(channel: &str) -> QueuesDownstreamRequest {
    QueuesDownstreamRequest {
        request_id: "get".to_owned(),
        client_id: CLIENT_ID.to_owned(),
        request_type_data: QueuesDownstreamRequestType::Get.into(),
        channel: channel.to_owned(),
        max_items: ITEMS,
        wait_timeout: SILENCE_MILLIS,
        ..QueuesDownstreamRequest::default()
    }
}
