//! Sending queue messages: checked, encoded once, submitted together, answered one by one.
//!
//! A message that is refused is answered and concerns nobody else. Nothing here waits for anything but the
//! commit and, before it, for room.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kubemq_broker::{Kind, Name, Outcome, publish_head};
use kubemq_proto::kubemq::{
    QueueMessage, QueueMessagesBatchRequest, QueueMessagesBatchResponse, SendQueueMessageResult,
};
use kubemq_proto::strings::Refusal;
use kubemq_proto::validate::{self, QueueLimits};
use kubemq_proto::{id, stored};
use kubemq_runtime::Random;
use prost::Message as _;

use super::{Gateway, LEAD_RETRY, Sender, Unavailable, WAIT_FOR_LEADER};
use crate::traffic::{Of, Sent, Traffic};

/// Bytes that small messages share, so that most of them need no allocation of their own.
const SHARED_BYTES: usize = 64 * 1024;
/// From here on a message has a buffer of its own: it would waste what is left of a shared one.
const OWN_BYTES: usize = 16 * 1024;
/// More than what stands before the message in an operation, without the channel's name.
const HEAD_BYTES: usize = 32;

impl Gateway {
    /// Stores one message.
    ///
    /// # Errors
    ///
    /// [`Unavailable::NotLeader`] when it was certainly not stored. What is wrong with the message, and an
    /// outcome that did not become known, stand in the result.
    pub async fn send(&self, message: QueueMessage) -> Result<SendQueueMessageResult, Unavailable> {
        Ok(self.send_all(vec![message]).await?.pop().unwrap_or_default())
    }

    /// Stores the messages of a batch, each by itself. An empty batch has no answer but a refusal.
    ///
    /// # Errors
    ///
    /// As [`Gateway::send`].
    pub async fn send_batch(
        &self,
        batch: QueueMessagesBatchRequest,
    ) -> Result<Result<QueueMessagesBatchResponse, Refusal>, Unavailable> {
        if batch.messages.is_empty() {
            return Ok(Err(Refusal::EmptyBatch));
        }
        let results = self.send_all(batch.messages).await?;
        let have_errors = results.iter().any(|result| result.is_error);
        Ok(Ok(QueueMessagesBatchResponse { batch_id: batch.batch_id, results, have_errors }))
    }

    async fn send_all(&self, messages: Vec<QueueMessage>) -> Result<Vec<SendQueueMessageResult>, Unavailable> {
        let mut publishes = Publishes { refusal: self.refuses_to_store(), ..Publishes::default() };
        let mut buffer = BytesMut::new();
        for message in messages {
            publishes.add(message, (self.limits(), self.traffic()), &self.runtime().random, &mut buffer);
        }
        if !publishes.operations.is_empty() {
            self.room().await;
            match self.commit(std::mem::take(&mut publishes.operations)).await {
                Ok(outcomes) => publishes.settle(&outcomes),
                Err(Unavailable::NotLeader) => return Err(Unavailable::NotLeader),
                Err(_) => publishes.fail(&Refusal::PublishTimeout),
            }
        }
        let refused = publishes.results.iter().filter(|result| result.is_error).count();
        self.numbers().refuse(Sender::Queues, refused);
        Ok(publishes.results)
    }

    /// Returns why nothing can be stored now, if so: when the disk or the memory of the index is nearly full, what is
    /// left is for the settlements that make room.
    pub(super) fn refuses_to_store(&self) -> Option<Refusal> {
        (self.0.log.is_nearly_full() || self.0.memory.is_full()).then_some(Refusal::NoSpace)
    }

    /// Submits operations and waits for their outcomes; while there is no leader it waits and submits again.
    pub(super) async fn commit(&self, operations: Vec<Bytes>) -> Result<Vec<Outcome>, Unavailable> {
        let clock = &self.runtime().clock;
        let deadline = clock.now() + WAIT_FOR_LEADER;
        loop {
            self.available().await?;
            match self.submit(operations.clone()).await {
                // Who follows leadership must get to run before it is asked again.
                Err(Unavailable::NotLeader) if clock.now() < deadline => clock.sleep(LEAD_RETRY).await,
                outcome => return outcome,
            }
        }
    }
}

/// Messages on their way into the log, and the answers to them.
#[derive(Default)]
pub(super) struct Publishes {
    /// What to submit.
    pub(super) operations: Vec<Bytes>,
    /// One per message, in order; complete once settled.
    pub(super) results: Vec<SendQueueMessageResult>,
    waiting: Vec<Waiting>,
    sent: Sent,
    /// Why nothing can be stored now.
    pub(super) refusal: Option<Refusal>,
}

/// A message whose operation is submitted: its place among the results, and its life time.
struct Waiting {
    result: usize,
    expiration: Duration,
}

impl Publishes {
    /// Checks and encodes one message. Its answer is complete when it is refused.
    pub(super) fn add(
        &mut self,
        mut message: QueueMessage,
        (limits, traffic): (&QueueLimits, &Traffic),
        random: &Random,
        buffer: &mut BytesMut,
    ) {
        if message.message_id.is_empty() {
            message.message_id = id::nuid(random);
        }
        if let Err(refusal) = validate::send(&message, limits) {
            self.results.push(refused(message.message_id, &refusal));
            return;
        }
        if let Some(refusal) = &self.refusal {
            self.results.push(refused(message.message_id, refusal));
            return;
        }
        let channel = stored::prepare(&mut message, limits);
        let policy = message.policy.as_ref();
        let delay = policy.map(stored::delay).unwrap_or_default();
        let expiration = policy.map(stored::expiration).unwrap_or_default();
        let Ok(name) = Name::from_bytes(Bytes::from(channel)) else {
            self.results.push(refused(message.message_id, &Refusal::QueueName));
            return;
        };
        let bytes = message.encoded_len();
        self.sent.add(traffic, Of::Queues, (name.as_str(), &message.client_id), bytes);
        self.operations.push(encode((&message, bytes), &name, (delay, expiration), buffer));
        self.waiting.push(Waiting { result: self.results.len(), expiration });
        self.results.push(SendQueueMessageResult { message_id: message.message_id, ..Default::default() });
    }

    /// Fills in what became of the operations.
    pub(super) fn settle(&mut self, outcomes: &[Outcome]) {
        self.sent.settle(outcomes);
        for (position, waiting) in std::mem::take(&mut self.waiting).into_iter().enumerate() {
            let Some(result) = self.results.get_mut(waiting.result) else { continue };
            match outcomes.get(position) {
                Some(Outcome::Stored { time, .. }) => {
                    result.sent_at = stored::nanos(*time);
                    result.expiration_at = expires(*time, waiting.expiration);
                }
                Some(Outcome::Scheduled { time, due }) => {
                    result.sent_at = stored::nanos(*time);
                    result.delayed_to = stored::nanos(*due);
                    result.expiration_at = expires(*due, waiting.expiration);
                }
                Some(Outcome::Refused(reason)) => set_error(result, &refusal(*reason)),
                _ => set_error(result, &Refusal::PublishTimeout),
            }
        }
    }

    /// Answers everything that waits with one refusal.
    pub(super) fn fail(&mut self, refusal: &Refusal) {
        for waiting in std::mem::take(&mut self.waiting) {
            if let Some(result) = self.results.get_mut(waiting.result) {
                set_error(result, refusal);
            }
        }
    }
}

fn encode(
    (message, bytes): (&QueueMessage, usize),
    name: &Name,
    (delay, expiration): (Duration, Duration),
    shared: &mut BytesMut,
) -> Bytes {
    let (delay, expiration) = (millis(delay), millis(expiration));
    encode_publish(name, bytes, shared, |out| {
        publish_head(out, Kind::Queue, name, delay, expiration);
        message.encode_raw(out);
    })
}

/// Returns what `write` appends for a message of so many bytes: the operation that stores it.
pub(super) fn encode_publish(
    name: &Name,
    message_bytes: usize,
    shared: &mut BytesMut,
    write: impl FnOnce(&mut BytesMut),
) -> Bytes {
    let need = HEAD_BYTES + name.as_bytes().len() + message_bytes;
    if need >= OWN_BYTES {
        let mut own = BytesMut::with_capacity(need);
        write(&mut own);
        return own.freeze();
    }
    if shared.capacity() < need {
        shared.reserve(SHARED_BYTES);
    }
    write(shared);
    shared.split().freeze()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn expires(from: u64, expiration: Duration) -> i64 {
    if expiration.is_zero() {
        return 0;
    }
    stored::nanos(from.saturating_add(u64::try_from(expiration.as_nanos()).unwrap_or(u64::MAX)))
}

/// Returns the answer to a message that was refused.
pub(super) fn refused(message_id: String, refusal: &Refusal) -> SendQueueMessageResult {
    SendQueueMessageResult { message_id, is_error: true, error: refusal.to_string(), ..Default::default() }
}

fn set_error(result: &mut SendQueueMessageResult, refusal: &Refusal) {
    result.is_error = true;
    result.error = refusal.to_string();
}

/// Returns what a client is told when the state refuses an operation.
pub(super) fn refusal(reason: kubemq_broker::Refusal) -> Refusal {
    match reason {
        kubemq_broker::Refusal::TooManyChannels => Refusal::TooManyChannels,
        kubemq_broker::Refusal::TooManyCursors => Refusal::TooManySubscriptions,
        kubemq_broker::Refusal::Exhausted => Refusal::NoSpace,
        kubemq_broker::Refusal::Malformed | kubemq_broker::Refusal::Name | kubemq_broker::Refusal::NotStored => {
            Refusal::PublishName
        }
    }
}

#[cfg(test)]
mod tests {
    use kubemq_broker::Operation;
    use kubemq_proto::kubemq::QueueMessagePolicy;

    use super::*;

    fn message(body: usize) -> QueueMessage {
        QueueMessage {
            client_id: "c".to_owned(),
            channel: "q".to_owned(),
            body: Bytes::from(vec![7; body]),
            ..QueueMessage::default()
        }
    }

    fn publishes(messages: Vec<QueueMessage>) -> Publishes {
        let (limits, random) = (QueueLimits::default(), Random::from_seed(1));
        let mut publishes = Publishes::default();
        let mut buffer = BytesMut::new();
        for message in messages {
            publishes.add(message, (&limits, &Traffic::new(10)), &random, &mut buffer);
        }
        publishes
    }

    #[test]
    fn an_operation_holds_the_message_without_channel_and_attributes() {
        for body in [10, 100, OWN_BYTES, 5 * SHARED_BYTES] {
            let policy = QueueMessagePolicy { delay_seconds: 2, expiration_seconds: 3, ..Default::default() };
            let publishes = publishes(vec![QueueMessage { policy: Some(policy), ..message(body) }; 3]);
            assert_eq!(publishes.operations.len(), 3);
            for operation in &publishes.operations {
                let Ok(Operation::Publish { kind, channel, delay_ms, expiration_ms, message }) =
                    Operation::decode(operation)
                else {
                    panic!("not a publish");
                };
                assert_eq!((kind, channel.as_str(), delay_ms, expiration_ms), (Kind::Queue, "q", 2000, 3000));
                let message = QueueMessage::decode(message).unwrap();
                assert_eq!((message.channel.as_str(), message.attributes, message.body.len()), ("", None, body));
                assert_eq!(message.policy.unwrap().max_receive_count, 1024);
            }
        }
    }

    #[test]
    fn each_message_has_its_own_answer() {
        let bad = QueueMessage { channel: "a b".to_owned(), message_id: "mine".to_owned(), ..message(1) };
        let policy = QueueMessagePolicy { delay_seconds: 5, expiration_seconds: 10, ..Default::default() };
        let mut publishes =
            publishes(vec![message(1), bad, QueueMessage { policy: Some(policy), ..message(1) }, message(1)]);
        assert_eq!(publishes.operations.len(), 3);
        publishes.settle(&[
            Outcome::Stored { sequence: 1, time: 100 },
            Outcome::Scheduled { time: 100, due: 5_000_000_100 },
            Outcome::Refused(kubemq_broker::Refusal::TooManyChannels),
        ]);
        let [first, second, third, fourth] = publishes.results.as_slice() else { panic!("four answers") };
        assert_eq!((first.message_id.len(), first.sent_at, first.expiration_at, first.is_error), (22, 100, 0, false));
        assert_eq!(second.message_id, "mine");
        assert_eq!((second.sent_at, second.error.as_str()), (0, Refusal::QueueName.to_string().as_str()));
        assert_eq!((third.sent_at, third.delayed_to, third.expiration_at), (100, 5_000_000_100, 15_000_000_100));
        assert_eq!(fourth.error, "too many channels");
    }

    #[test]
    fn an_unknown_outcome_is_an_error() {
        let mut publishes = publishes(vec![message(1), message(1)]);
        publishes.settle(&[Outcome::Stored { sequence: 1, time: 1 }]);
        assert_eq!(publishes.results.iter().map(|result| result.is_error).collect::<Vec<_>>(), [false, true]);
    }
}
