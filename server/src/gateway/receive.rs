//! Receiving without a transaction: receive, peek and ack-all.
//!
//! A receive holds what it collects until its answer is complete, then settles all of it at once and answers
//! after the commit; dropped before that, it gives everything back.

use kubemq_proto::kubemq::{
    AckAllQueueMessagesRequest, AckAllQueueMessagesResponse, QueueMessage, ReceiveQueueMessagesRequest,
    ReceiveQueueMessagesResponse,
};
use kubemq_proto::stored::{self, Attributes};
use kubemq_proto::strings::Refusal;
use kubemq_proto::{id, validate};

use super::stream::Stop;
use super::{Delivery, Gateway, Held, Peeked, Take, Unavailable};
use crate::traffic::{Of, Side};

/// What an answer may hold for a client whose library refuses more than 4 MB: what it cannot read would be
/// lost when it is settled already.
const SMALL_ANSWER_BYTES: u64 = 4 * 1024 * 1024 - 64 * 1024;

/// What is known of the client's library.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// Whether it refuses answers above 4 MB.
    pub small_answers: bool,
}

/// What a receive or a peek waited for.
enum Waited {
    Held(Held),
    Peeked(Peeked),
}

impl Gateway {
    /// Receives or peeks; what is wrong with the request stands in the answer. Cancel safe: dropped before the
    /// settlement is submitted, it gives everything back. It waits no longer than until `stop`.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] when the messages cannot be read or settled now.
    pub async fn receive(
        &self,
        request: ReceiveQueueMessagesRequest,
        client: Client,
        stop: &Stop,
    ) -> Result<ReceiveQueueMessagesResponse, Unavailable> {
        let checked = validate::receive(&request, self.limits());
        let mut response = ReceiveQueueMessagesResponse {
            request_id: id::or_nuid(request.request_id, &self.runtime().random),
            is_peak: request.is_peak,
            ..Default::default()
        };
        let wanted = match checked {
            Ok(wanted) => wanted,
            Err(refusal) => {
                response.is_error = true;
                response.error = refusal.to_string();
                return Ok(response);
            }
        };
        let take = Take {
            channel: request.channel,
            max: wanted.max,
            max_bytes: self.answer_bytes(client),
            deadline: self.runtime().clock.now() + wanted.wait,
        };
        let channel = take.channel.clone();
        let waited = tokio::select! {
            biased;
            waited = self.wait_for(take, request.is_peak) => Some(waited?),
            () = stop.raised() => None,
        };
        let (messages, expired) = match waited {
            Some(Waited::Peeked(peeked)) => (to_wire(&channel, peeked.deliveries)?, peeked.expired),
            Some(Waited::Held(mut held)) => {
                let deliveries = std::mem::take(&mut held.deliveries);
                let sequences: Vec<u64> = deliveries.iter().map(|delivery| delivery.sequence).collect();
                let volume = volume(&deliveries);
                let mut messages = to_wire(&channel, deliveries)?;
                if !sequences.is_empty() {
                    match held.ack(&sequences).await {
                        Ok(_) => self.count_received(&channel, &request.client_id, volume),
                        // They are still there, for whoever polls under the next leader.
                        Err(Unavailable::NotLeader) => messages.clear(),
                        Err(error) => return Err(error),
                    }
                }
                (messages, held.expired)
            }
            None => {
                response.is_error = true;
                response.error = Refusal::Shutdown.to_string();
                return Ok(response);
            }
        };
        response.messages_received = i32::try_from(messages.len()).unwrap_or(i32::MAX);
        response.messages_expired = i32::try_from(expired).unwrap_or(i32::MAX);
        response.messages = messages;
        Ok(response)
    }

    async fn wait_for(&self, take: Take, is_peek: bool) -> Result<Waited, Unavailable> {
        Ok(if is_peek { Waited::Peeked(self.peek(take).await?) } else { Waited::Held(self.take(take).await?) })
    }

    /// Discards what a queue has to give and nobody holds.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] when it may not have been done.
    pub async fn ack_all_messages(
        &self,
        request: AckAllQueueMessagesRequest,
    ) -> Result<AckAllQueueMessagesResponse, Unavailable> {
        let checked = validate::ack_all(&request, self.limits());
        let request_id = id::or_nuid(request.request_id, &self.runtime().random);
        let mut response = AckAllQueueMessagesResponse { request_id, ..Default::default() };
        match checked {
            // The wait is an upper bound: everything there is goes at once.
            Ok(_wait) => response.affected_messages = self.ack_all(&request.channel).await?,
            Err(refusal) => {
                response.is_error = true;
                response.error = refusal.to_string();
            }
        }
        Ok(response)
    }

    /// Counts messages and bytes that `client` is handed. Peeks are not counted.
    pub(super) fn count_received(&self, channel: &str, client: &str, (messages, bytes): (u64, u64)) {
        if messages > 0 {
            let row = self.traffic().of(Of::Queues, Side::Receive, channel, client);
            row.add(messages, bytes, self.runtime().clock.wall());
        }
    }

    /// Returns how many bytes an answer may hold whose messages are settled before it is sent.
    pub(super) fn answer_bytes(&self, client: Client) -> u64 {
        let most = self.limits().max_answer_bytes;
        if client.small_answers { most.min(SMALL_ANSWER_BYTES) } else { most }
    }
}

/// Returns how many messages there are, and their bytes.
pub(super) fn volume(deliveries: &[Delivery]) -> (u64, u64) {
    (deliveries.len() as u64, deliveries.iter().map(|delivery| delivery.message.len() as u64).sum())
}

/// Returns deliveries as clients see them.
pub(super) fn to_wire(channel: &str, deliveries: Vec<Delivery>) -> Result<Vec<QueueMessage>, Unavailable> {
    deliveries.into_iter().map(|delivery| message_to_wire(channel, delivery)).collect()
}

/// Returns a delivery as clients see it.
pub(super) fn message_to_wire(channel: &str, delivery: Delivery) -> Result<QueueMessage, Unavailable> {
    let attributes = Attributes {
        sequence: delivery.sequence,
        time: delivery.time,
        receive_count: delivery.receive_count,
        expires_at: delivery.expires_at,
        rerouted_from: delivery.rerouted_from.as_deref(),
        cleared_policy: delivery.cleared_policy,
    };
    stored::deliver(delivery.message, channel, &attributes).map_err(|error| {
        let sequence = delivery.sequence;
        Unavailable::Unreadable(format!("message {sequence} of queue {channel}: {error}"))
    })
}
