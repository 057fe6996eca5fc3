//! Commands and queries: asking, answering, and the answers that are kept for those who ask the same again.

use kubemq_proto::kubemq::request::RequestType;
use kubemq_proto::kubemq::{Request, Response, Subscribe};
use kubemq_proto::strings::Refusal;
use kubemq_proto::{id, stored, validate};
use prost::Message as _;

use super::Gateway;
use super::stream::Stop;
use crate::live::{Pattern, Subscription, Unanswered};

impl Gateway {
    /// Asks the responders of a channel and returns the first answer.
    ///
    /// # Errors
    ///
    /// What is wrong with the request, that nobody answered in its time, or that the node stopped meanwhile.
    pub async fn request(&self, mut request: Request, stop: &Stop) -> Result<Response, Refusal> {
        let kind = validate::request(&request)?;
        request.request_id = id::or_nuid(request.request_id, &self.runtime().random);
        if !validate::is_deliverable(request.encoded_len(), self.limits().max_message_bytes) {
            return Err(Refusal::RequestTimedOut);
        }
        if kind != RequestType::Query {
            let response = self.ask(Pattern::Commands, request, stop).await?;
            return Ok(Response { body: bytes::Bytes::new(), metadata: String::new(), cache_hit: false, ..response });
        }
        if request.cache_key.is_empty() {
            return self.ask(Pattern::Queries, request, stop).await;
        }
        if let Some(kept) = self.live().cached(&request.channel, &request.cache_key) {
            return Ok(Response { request_id: request.request_id, cache_hit: true, ..kept });
        }
        let (channel, key, seconds) = (request.channel.clone(), request.cache_key.clone(), request.cache_ttl);
        let response = self.ask(Pattern::Queries, request, stop).await?;
        if response.executed && response.error.is_empty() {
            self.live().keep(&channel, &key, &response, seconds);
        }
        Ok(response)
    }

    async fn ask(&self, pattern: Pattern, request: Request, stop: &Stop) -> Result<Response, Refusal> {
        let answer = tokio::select! {
            biased;
            answer = self.live().request(pattern, request) => answer,
            // Answers are calls like any other, and those are refused now.
            () = stop.raised() => return Err(Refusal::OutcomeUnknown),
        };
        let mut response = answer.map_err(|unanswered| match unanswered {
            Unanswered::TimedOut => Refusal::RequestTimedOut,
            Unanswered::TooMany => Refusal::TooManyRequests,
        })?;
        if response.timestamp == 0 {
            response.timestamp = stored::nanos(self.runtime().clock.wall().0);
        }
        Ok(response)
    }

    /// Subscribes to commands or queries. What is asked after this returns is received.
    ///
    /// # Errors
    ///
    /// What is wrong with the subscription.
    pub fn subscribe_requests(&self, subscribe: &Subscribe) -> Result<Subscription, Refusal> {
        let pattern = match validate::requests_subscription(subscribe)? {
            RequestType::Query => Pattern::Queries,
            RequestType::Command | RequestType::Unknown => Pattern::Commands,
        };
        Ok(self.live().subscribe(pattern, subscribe))
    }

    /// Hands an answer to whoever waits for it; nobody may.
    ///
    /// # Errors
    ///
    /// What is wrong with the answer.
    pub fn answer_request(&self, response: Response) -> Result<(), Refusal> {
        validate::response(&response)?;
        self.live().answer(response);
        Ok(())
    }
}
