//! Every sentence that a client can read, once.
//!
//! The numbered sentences and the ones in lower case without a number are part of the API: they are compared
//! byte for byte by clients and by tests, odd spaces included. The few that are ours say plainly what happened
//! and avoid words that make SDKs believe that their transport broke (sdk-compatibility.md §6.3).

use tonic::{Code, Status};

/// Why a client's request was refused. The text is what [`Display`](std::fmt::Display) writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A mandatory client id is missing.
    #[error("Error 101: invalid clientID value, cannot be empty")]
    EmptyClientId,
    /// A channel name is missing, or cannot be used here.
    #[error("Error 102: invalid channel value, cannot be empty")]
    EmptyChannel,
    /// A channel name has a wildcard where none may be.
    #[error("Error 107: invalid channel value, no wildcards are allowed")]
    ChannelWildcard,
    /// A channel name has white space or a control character.
    #[error("Error 108: invalid channel value, no white spaces are allowed")]
    ChannelWhiteSpace,
    /// A request says that it waits for no time at all.
    #[error("Error 109: invalid set timeout value, cannot be 0 or negative")]
    RequestTimeout,
    /// A message has neither metadata nor body.
    #[error("Error 110: invalid message, cannot be empty")]
    EmptyMessage,
    /// A subscription to stored events does not say where to begin.
    #[error("Error 111: invalid subscription type, cannot be undefined or 0")]
    StartUndefined,
    /// A subscription to stored events begins at no sequence.
    #[error("Error 112: invalid subscription type start at sequence value, cannot by 0 or negative")]
    StartSequence,
    /// A subscription to stored events begins at no time.
    #[error("Error 113: invalid subscription type start at time value, cannot by 0 or negative")]
    StartTime,
    /// A subscription to stored events begins at no time before now.
    #[error("Error 114: invalid subscription type start at time delta value, cannot by 0 or negative")]
    StartTimeDelta,
    /// A request has neither metadata nor body.
    #[error("Error 115: invalid request, cannot be empty")]
    EmptyRequest,
    /// A request names a cache key without a life time.
    #[error("Error 116: invalid cache ttl value, cannot be 0 or negative")]
    CacheTtl,
    /// An answer does not say to which request.
    #[error("Error 117: invalid request id, cannot be empty")]
    EmptyRequestId,
    /// A subscription to events that are not stored says where in the store to start.
    #[error("Error 118: event store parameters were set but subscribe type is not event store")]
    StartWithoutStore,
    /// A channel name ends with a dot.
    #[error("Error 119: invalid channel value, cannot end with `.`")]
    ChannelEndsWithDot,
    /// A queue name is malformed.
    #[error("Error 120: invalid queue name value, cannot be empty, contains wildcards ,white spaces and end with dot")]
    QueueName,
    /// A queue cannot be received from.
    #[error("Error 121: cannot subscribe to a queue")]
    QueueSubscribe,
    /// The number of messages asked for is out of bounds.
    #[error("Error 122: max messages should be between 1 and max message setting in kubemq config  ")]
    MaxMessages,
    /// A message could not be acknowledged.
    #[error("Error 123: cannot ack the current message")]
    AckFailed,
    /// There is no message to acknowledge.
    #[error("Error 124: no active message to ack")]
    NothingToAck,
    /// The sequence is zero or not that of the message.
    #[error("Error 125: ack sequence cannot be 0 or negative")]
    AckSequence,
    /// There is no message to send on.
    #[error("Error 126: no active message to send")]
    NothingToSend,
    /// A visibility is out of bounds.
    #[error("Error 127: invalid visibility time, cannot be negative or exceed setting in kubemq config")]
    Visibility,
    /// The stream waits for a message or holds one.
    #[error("Error 128: subscription to queue is already active")]
    AlreadyActive,
    /// The time for which a message was held is over.
    #[error("Error 129: current visibility timer expired")]
    VisibilityExpired,
    /// A copy of the message could not be sent.
    #[error("Error 130: error during send message to queue")]
    SendFailed,
    /// The message to send instead is missing.
    #[error("Error 131: invalid queue message")]
    NoModifiedMessage,
    /// The type of a stream request is unknown.
    #[error("Error 132: invalid stream queue messages request type")]
    StreamRequestType,
    /// A policy's expiration is out of bounds.
    #[error("Error 133: invalid expiration seconds, exceed max expiration seconds setting in kubemq config")]
    Expiration,
    /// A policy's receive count is out of bounds.
    #[error(
        "Error 134: invalid max received count, cannot be negative or exceed max receive count setting in kubemq config"
    )]
    ReceiveCount,
    /// A policy's delay is out of bounds.
    #[error("Error 135: invalid delay seconds, exceed max delay seconds setting in kubemq config")]
    Delay,
    /// A wait is out of bounds.
    #[error(
        "Error 136: invalid wait timeout, value cannot be negative or exceed max wait timeout seconds setting in kubemq config"
    )]
    WaitTimeout,
    /// There is no message to reject.
    #[error("Error 137: no active message to reject")]
    NothingToReject,
    /// No message came while the stream waited.
    #[error("Error 138: no new message in queue, wait time expired")]
    WaitExpired,
    /// The call ended in a fault of the program.
    #[error("Error 200: server crushed and recovered")]
    Crashed,
    /// The type of a request is unknown.
    #[error("Error 206: invalid request type")]
    RequestType,
    /// The type of a subscription is unknown, or not one of this method.
    #[error("Error 207: invalid subscribe type")]
    SubscribeType,
    /// Nobody answered a request in its time.
    #[error("Error 301: timeout for request message")]
    RequestTimedOut,
    /// The node is stopping.
    #[error("Error 409: server is in shutdown mode")]
    Shutdown,
    /// A batch without messages.
    #[error("empty messages batch")]
    EmptyBatch,
    /// An upstream request without messages.
    #[error("no messages to send")]
    NoMessages,
    /// The transaction is not one of this stream.
    #[error("transaction is completed or transaction id not found")]
    UnknownTransaction,
    /// The downstream request type has no meaning here.
    #[error("request unknown")]
    UnknownRequest,
    /// Everything in the transaction is settled.
    #[error("cannot {0} messages with closed response ")]
    ClosedTransaction(Verb),
    /// Everything in the transaction is settled, so there is nothing to list.
    #[error("cannot get active offsets with closed response ")]
    ClosedOffsets,
    /// A settlement of listed sequences lists none.
    #[error("cannot {0} empty list of of offsets")]
    EmptyRange(Verb),
    /// A requeue does not say where to.
    #[error("cannot requeue messages with empty channel destination ")]
    EmptyDestination,
    /// The sequence is not, or no longer, in the transaction.
    #[error("invalid ack sequence id {0}")]
    InvalidAckSequence(i64),
    /// The sequence is not, or no longer, in the transaction.
    #[error("invalid nack sequence id {0}")]
    InvalidNackSequence(i64),
    /// A message could not be stored again at the tail of its queue.
    #[error("nack message with seq {0} failed, {1}")]
    NackFailed(u64, Box<Refusal>),
    /// A message could not be stored in the queue it was to go to.
    #[error("re-queue message with seq {0} failed, {1}")]
    RequeueFailed(u64, Box<Refusal>),
    /// The client reads this channel of stored events already, alone.
    #[error("stan: clientID already registered")]
    StoreClientRegistered,
    /// The store does not take this client's id.
    #[error("stan: invalid clientID: only alphanumeric and `-` or `_` characters allowed")]
    StoreClientId,
    /// Nothing is stored under this name.
    #[error("stan: invalid subject")]
    StoreSubject,
    /// The channel keeps the places of as many readers as it may.
    #[error("too many subscriptions per channel")]
    TooManySubscriptions,
    /// The store does not take messages under this name.
    #[error("stan: invalid publish request")]
    PublishName,
    /// A subject has an empty part.
    #[error("nats: invalid subject")]
    Subject,
    /// The name of a group has white space.
    #[error("nats: invalid queue name")]
    GroupName,
    /// As many requests wait for their answer as may.
    #[error("too many requests wait for an answer")]
    TooManyRequests,
    /// The node holds as many channels as it may.
    #[error("too many channels")]
    TooManyChannels,
    /// A message is larger than one may be.
    #[error("nats: maximum payload exceeded")]
    PayloadTooLarge,
    /// It is not known whether the message was stored.
    #[error("stan: publish ack timeout")]
    PublishTimeout,
    /// The disk is nearly full: sends are refused, settlements are not.
    #[error("no space left to store messages")]
    NoSpace,
    /// The node serves nothing yet.
    #[error("grpc server is not ready to accept requests")]
    NotReady,
    /// Nobody leads; the request was certainly not executed.
    #[error("no leader is known, the request was not executed")]
    NoLeader,
    /// The request was sent on and its outcome did not become known.
    #[error("the outcome of the request did not become known")]
    OutcomeUnknown,
    /// A stored message could not be read back.
    #[error("a stored message could not be read")]
    Unreadable,
    /// The caller's deadline passed.
    #[error("the deadline of the call passed")]
    DeadlineExceeded,
    /// The node is stopping and ends its streams.
    #[error("the server is stopping, open the stream again elsewhere")]
    StreamEndsForStop,
    /// A message in a request or an answer is larger than the configured limit.
    #[error("message larger than the configured limit of {0} bytes")]
    MessageTooLarge(usize),
    /// A large message that others wait for did not go on.
    #[error("the message was not sent on for too long while others waited for their turn")]
    UploadStalled,
    /// This version does not serve the method.
    #[error("{0} is not served by this version")]
    NotServed(&'static str),
    /// A management request names no operation that exists.
    #[error("unknown operation, should be create-channel, delete-channel or list-channels")]
    UnknownOperation,
    /// A management request names no type that exists.
    #[error("unknown channel type, should be events, events_store, commands, queries or queues")]
    UnknownChannelType,
    /// The channels cannot be listed yet.
    #[error("cluster snapshot not ready yet")]
    SnapshotNotReady,
}

/// What a settlement does, as its refusals name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Removes messages.
    Ack,
    /// Stores messages again at the tail.
    Nack,
    /// Stores messages in a queue as if sent anew.
    Requeue,
}

impl std::fmt::Display for Verb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ack => "ack",
            Self::Nack => "nack",
            Self::Requeue => "requeue",
        })
    }
}

impl Refusal {
    /// Returns the code with which the refusal ends a call, where it ends one instead of standing in a reply.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::EmptyBatch | Self::Crashed => Code::Unknown,
            Self::NotReady | Self::NoLeader | Self::Shutdown => Code::Unavailable,
            Self::DeadlineExceeded | Self::UploadStalled => Code::DeadlineExceeded,
            Self::StreamEndsForStop => Code::Aborted,
            Self::MessageTooLarge(_) | Self::TooManyRequests => Code::ResourceExhausted,
            Self::NotServed(_) => Code::Unimplemented,
            Self::Unreadable => Code::DataLoss,
            _ => Code::Internal,
        }
    }

    /// Returns the number in the text, for those that have one.
    #[must_use]
    pub fn number(&self) -> Option<u16> {
        self.to_string().strip_prefix("Error ")?.split(':').next()?.parse().ok()
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code(), refusal.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sentences of grpc-api.md §2.2, written down a second time: a typing mistake has to be made twice.
    #[test]
    fn every_sentence_is_the_one_that_clients_compare() {
        let rows: &[(Refusal, &str)] = &[
            (Refusal::EmptyClientId, "Error 101: invalid clientID value, cannot be empty"),
            (Refusal::EmptyChannel, "Error 102: invalid channel value, cannot be empty"),
            (Refusal::ChannelWildcard, "Error 107: invalid channel value, no wildcards are allowed"),
            (Refusal::ChannelWhiteSpace, "Error 108: invalid channel value, no white spaces are allowed"),
            (Refusal::RequestTimeout, "Error 109: invalid set timeout value, cannot be 0 or negative"),
            (Refusal::EmptyMessage, "Error 110: invalid message, cannot be empty"),
            (Refusal::StartUndefined, "Error 111: invalid subscription type, cannot be undefined or 0"),
            (
                Refusal::StartSequence,
                "Error 112: invalid subscription type start at sequence value, cannot by 0 or negative",
            ),
            (Refusal::StartTime, "Error 113: invalid subscription type start at time value, cannot by 0 or negative"),
            (
                Refusal::StartTimeDelta,
                "Error 114: invalid subscription type start at time delta value, cannot by 0 or negative",
            ),
            (Refusal::StoreClientRegistered, "stan: clientID already registered"),
            (Refusal::StoreClientId, "stan: invalid clientID: only alphanumeric and `-` or `_` characters allowed"),
            (Refusal::StoreSubject, "stan: invalid subject"),
            (Refusal::TooManySubscriptions, "too many subscriptions per channel"),
            (Refusal::EmptyRequest, "Error 115: invalid request, cannot be empty"),
            (Refusal::CacheTtl, "Error 116: invalid cache ttl value, cannot be 0 or negative"),
            (Refusal::EmptyRequestId, "Error 117: invalid request id, cannot be empty"),
            (
                Refusal::StartWithoutStore,
                "Error 118: event store parameters were set but subscribe type is not event store",
            ),
            (Refusal::ChannelEndsWithDot, "Error 119: invalid channel value, cannot end with `.`"),
            (
                Refusal::QueueName,
                "Error 120: invalid queue name value, cannot be empty, contains wildcards ,white spaces and end with dot",
            ),
            (Refusal::QueueSubscribe, "Error 121: cannot subscribe to a queue"),
            (
                Refusal::MaxMessages,
                concat!("Error 122: max messages should be between 1 and max message setting in kubemq config", "  "),
            ),
            (Refusal::AckFailed, "Error 123: cannot ack the current message"),
            (Refusal::NothingToAck, "Error 124: no active message to ack"),
            (Refusal::AckSequence, "Error 125: ack sequence cannot be 0 or negative"),
            (Refusal::NothingToSend, "Error 126: no active message to send"),
            (
                Refusal::Visibility,
                "Error 127: invalid visibility time, cannot be negative or exceed setting in kubemq config",
            ),
            (Refusal::AlreadyActive, "Error 128: subscription to queue is already active"),
            (Refusal::VisibilityExpired, "Error 129: current visibility timer expired"),
            (Refusal::SendFailed, "Error 130: error during send message to queue"),
            (Refusal::NoModifiedMessage, "Error 131: invalid queue message"),
            (Refusal::StreamRequestType, "Error 132: invalid stream queue messages request type"),
            (
                Refusal::Expiration,
                "Error 133: invalid expiration seconds, exceed max expiration seconds setting in kubemq config",
            ),
            (
                Refusal::ReceiveCount,
                "Error 134: invalid max received count, cannot be negative or exceed max receive count setting in kubemq config",
            ),
            (Refusal::Delay, "Error 135: invalid delay seconds, exceed max delay seconds setting in kubemq config"),
            (
                Refusal::WaitTimeout,
                "Error 136: invalid wait timeout, value cannot be negative or exceed max wait timeout seconds setting in kubemq config",
            ),
            (Refusal::NothingToReject, "Error 137: no active message to reject"),
            (Refusal::WaitExpired, "Error 138: no new message in queue, wait time expired"),
            (Refusal::RequestType, "Error 206: invalid request type"),
            (Refusal::SubscribeType, "Error 207: invalid subscribe type"),
            (Refusal::RequestTimedOut, "Error 301: timeout for request message"),
            (Refusal::Subject, "nats: invalid subject"),
            (Refusal::GroupName, "nats: invalid queue name"),
            (Refusal::Shutdown, "Error 409: server is in shutdown mode"),
            (Refusal::ClosedTransaction(Verb::Ack), "cannot ack messages with closed response "),
            (Refusal::ClosedTransaction(Verb::Nack), "cannot nack messages with closed response "),
            (Refusal::ClosedTransaction(Verb::Requeue), "cannot requeue messages with closed response "),
            (Refusal::ClosedOffsets, "cannot get active offsets with closed response "),
            (Refusal::EmptyRange(Verb::Ack), "cannot ack empty list of of offsets"),
            (Refusal::EmptyRange(Verb::Nack), "cannot nack empty list of of offsets"),
            (Refusal::EmptyRange(Verb::Requeue), "cannot requeue empty list of of offsets"),
            (Refusal::EmptyDestination, "cannot requeue messages with empty channel destination "),
            (Refusal::InvalidAckSequence(-1), "invalid ack sequence id -1"),
            (Refusal::InvalidNackSequence(99), "invalid nack sequence id 99"),
            (
                Refusal::RequeueFailed(7, Box::new(Refusal::PublishName)),
                "re-queue message with seq 7 failed, stan: invalid publish request",
            ),
        ];
        for (refusal, text) in rows {
            assert_eq!(refusal.to_string(), *text);
        }
    }

    #[test]
    fn numbers_are_those_of_the_texts() {
        assert_eq!(Refusal::EmptyClientId.number(), Some(101));
        assert_eq!(Refusal::Shutdown.number(), Some(409));
        assert_eq!(Refusal::EmptyBatch.number(), None);
    }

    #[test]
    fn a_refusal_that_ends_a_call_has_the_code_that_clients_expect() {
        assert_eq!(Status::from(Refusal::EmptyBatch).code(), Code::Unknown);
        assert_eq!(Status::from(Refusal::NotReady).code(), Code::Unavailable);
        assert_eq!(Status::from(Refusal::StreamEndsForStop).code(), Code::Aborted);
        assert_eq!(Status::from(Refusal::MessageTooLarge(5)).code(), Code::ResourceExhausted);
        assert_eq!(Status::from(Refusal::EmptyChannel).code(), Code::Internal);
        // SDKs take only this code, with this text, for a request that nobody answered.
        assert_eq!(Status::from(Refusal::RequestTimedOut).code(), Code::Internal);
    }
}
