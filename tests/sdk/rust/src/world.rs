//! What a scenario gets: where the server is, and a channel of its own; and what scenarios do again and again.

use std::time::{Duration, Instant};

use kubemq::{
    KubemqClient, PollRequest, PollResponse, QueueDownstreamReceiver, QueueMessage, QueueMessageBuilder, Result,
};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};

const SOON: Duration = Duration::from_secs(30);
const LARGE: usize = 100 << 20;

#[derive(Clone)]
pub struct World {
    pub host: String,
    pub port: u16,
    pub channel: String,
}

impl World {
    pub async fn client(&self) -> KubemqClient {
        self.client_named("rust").await
    }

    pub async fn client_named(&self, id: &str) -> KubemqClient {
        let builder = KubemqClient::builder().host(&self.host).port(self.port).client_id(id).check_connection(true);
        builder.build().await.expect("a client")
    }

    /// Returns a client that takes large messages.
    pub async fn large_client(&self) -> KubemqClient {
        let builder = KubemqClient::builder().host(&self.host).port(self.port).client_id("rust");
        builder.max_receive_message_size(LARGE).max_send_message_size(LARGE).build().await.expect("a client")
    }

    pub fn other(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.channel)
    }

    /// Asks for the server to be ended and started again.
    pub async fn again(&self, how: &str) {
        println!("{}", json!({ "request": how }));
        let mut line = String::new();
        BufReader::new(tokio::io::stdin()).read_line(&mut line).await.expect("an answer");
    }

    /// Sends messages with these bodies in one batch.
    pub async fn fill(&self, client: &KubemqClient, channel: &str, bodies: &[String]) {
        let messages = bodies.iter().map(|body| message(channel, body).build()).collect();
        let results = client.send_queue_messages(messages).await.expect("results");
        assert_eq!(results.len(), bodies.len());
        assert!(results.iter().all(|result| !result.is_error), "{results:?}");
    }

    /// Receives and acknowledges by one call.
    pub async fn take(&self, client: &KubemqClient, channel: &str, most: i32, wait: i32) -> Vec<QueueMessage> {
        client.receive_queue_messages(channel, most, wait, false).await.expect("messages")
    }

    pub async fn takes(&self, client: &KubemqClient, channel: &str, expected: &[String]) -> Vec<QueueMessage> {
        let messages = self.take(client, channel, expected.len() as i32, 10).await;
        assert_eq!(bodies(&messages), expected, "from {channel}");
        messages
    }

    pub async fn empty(&self, client: &KubemqClient, channel: &str) {
        let messages = self.take(client, channel, 1, 1).await;
        assert!(messages.is_empty(), "{channel} has {:?}", bodies(&messages));
    }

    /// Polls, and compares what comes.
    pub async fn polls(
        &self,
        receiver: &mut QueueDownstreamReceiver,
        channel: &str,
        expected: &[String],
    ) -> PollResponse {
        let response = receiver.poll(request(channel, expected.len() as i32, 10)).await.expect("an answer");
        assert_eq!(polled(&response), expected, "from {channel}");
        response
    }

    pub async fn polls_nothing(&self, receiver: &mut QueueDownstreamReceiver, channel: &str) {
        let response = receiver.poll(request(channel, 10, 1)).await.expect("an answer");
        assert!(response.messages.is_empty(), "{channel} gave {:?}", polled(&response));
    }

    /// Waits until a connection that was lost is back: the SDK does not repeat calls, the application does.
    pub async fn connected(&self, client: &KubemqClient) {
        until("the connection", async || client.ping().await.ok()).await;
    }
}

/// Calls `probe` until it returns something.
pub async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(started.elapsed() < SOON, "waited {SOON:?} in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn message(channel: &str, body: &str) -> QueueMessageBuilder {
    QueueMessage::builder().channel(channel).body(body)
}

pub fn request(channel: &str, most: i32, wait: i32) -> PollRequest {
    PollRequest { channel: channel.to_owned(), max_items: most, wait_timeout_seconds: wait, auto_ack: false }
}

pub fn texts(first: u32, last: u32) -> Vec<String> {
    (first..=last).map(|number| number.to_string()).collect()
}

pub fn list(bodies: &[&str]) -> Vec<String> {
    bodies.iter().map(ToString::to_string).collect()
}

pub fn body(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn bodies(messages: &[QueueMessage]) -> Vec<String> {
    messages.iter().map(|message| body(&message.body)).collect()
}

pub fn polled(response: &PollResponse) -> Vec<String> {
    response.messages.iter().map(|message| body(&message.message.body)).collect()
}

pub fn counts(response: &PollResponse) -> Vec<i32> {
    response.messages.iter().map(|one| one.message.attributes.as_ref().expect("attributes").receive_count).collect()
}

pub fn must<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}
