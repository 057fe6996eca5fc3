//! Every rule that a client's request must keep, in the order in which breaking it is reported.
//!
//! Each function returns the first refusal, or what the request means with its defaults filled in. Rules that
//! depend on state (is a message held, is the transaction known) are the gateway's.

use std::time::Duration;

use prost::Message as _;

use crate::kubemq::request::RequestType;
use crate::kubemq::subscribe::SubscribeType;
use crate::kubemq::{
    AckAllQueueMessagesRequest, Event, QueueMessage, QueueMessagePolicy, QueuesDownstreamRequest,
    ReceiveQueueMessagesRequest, Request, Response, StreamQueueMessagesRequest, StreamRequestType, Subscribe,
};
use crate::strings::Refusal;

/// The longest name of a channel whose messages are stored, in bytes.
pub const MAX_NAME_BYTES: usize = 256;

/// The longest subject of events, commands and queries, in bytes. Nothing of these is stored, so this only keeps
/// names of megabytes out of the tables of subscriptions.
pub const MAX_SUBJECT_BYTES: usize = 32 * 1024;

/// The name to which management requests are sent. No channel of any kind has it.
pub const MANAGEMENT_CHANNEL: &str = "kubemq.cluster.internal.requests";

/// What delivery adds to a message at most, attributes and ids: it must fit into the same limit as the request
/// that brought the message.
const ENVELOPE_BYTES: usize = 1024;

/// Bounds and defaults of queue calls: the configuration block `queue`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// The most messages that one receive or peek may ask for.
    pub max_number_of_messages: i32,
    /// The longest wait of a receive, an ack-all or a stream, in seconds.
    pub max_wait_timeout_seconds: i32,
    /// The wait where none is given, in seconds.
    pub default_wait_timeout_seconds: i32,
    /// The longest expiration of a policy, in seconds.
    pub max_expiration_seconds: i32,
    /// The longest delay of a policy, in seconds.
    pub max_delay_seconds: i32,
    /// The highest receive count of a policy, and the one where none is given.
    pub max_receive_count: i32,
    /// The longest visibility of a stream, in seconds.
    pub max_visibility_seconds: i32,
    /// The visibility where none is given, in seconds.
    pub default_visibility_seconds: i32,
    /// The most messages that a downstream Get returns where no number is given.
    pub default_max_items: usize,
    /// The largest request or answer with one message, in bytes.
    pub max_message_bytes: usize,
    /// Where an answer with messages stops being filled, in bytes. One message is always delivered.
    pub max_answer_bytes: u64,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self {
            max_number_of_messages: 1024,
            max_wait_timeout_seconds: 3600,
            default_wait_timeout_seconds: 1,
            max_expiration_seconds: 43_200,
            max_delay_seconds: 43_200,
            max_receive_count: 1024,
            max_visibility_seconds: 43_200,
            default_visibility_seconds: 60,
            default_max_items: 200_000,
            max_message_bytes: 100 * 1024 * 1024,
            max_answer_bytes: 32 * 1024 * 1024,
        }
    }
}

/// Checks a queue's name as every queue call does.
///
/// # Errors
///
/// 120 when it is empty, too long or reserved, ends with a dot, or has white space, a control character or a
/// wildcard.
pub fn queue_name(name: &str) -> Result<(), Refusal> {
    let acceptable = !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && name != MANAGEMENT_CHANNEL
        && !name.ends_with('.')
        && !name.contains(is_wildcard)
        && !name.contains(is_blank);
    if acceptable { Ok(()) } else { Err(Refusal::QueueName) }
}

/// Returns whether `name` has an empty part: `.a`, `a..b`. A queue of such a name can neither be sent to nor
/// received from, each with a refusal of its own.
#[must_use]
pub fn has_empty_token(name: &str) -> bool {
    name.starts_with('.') || name.contains("..")
}

/// Checks the name of a queue to receive from, as a receive, a Get, a stream or an ack-all does in the end.
///
/// # Errors
///
/// 121 when no queue can have this name.
pub fn queue_source(name: &str) -> Result<(), Refusal> {
    if has_empty_token(name) { Err(Refusal::QueueSubscribe) } else { Ok(()) }
}

/// Checks the name of a queue that a copy of a message is to be sent to.
///
/// # Errors
///
/// 120, or the refusal of the store for names with an empty part.
pub fn queue_destination(name: &str) -> Result<(), Refusal> {
    queue_name(name)?;
    if has_empty_token(name) { Err(Refusal::PublishName) } else { Ok(()) }
}

/// Checks a channel's name for the patterns other than queues, when a channel is created or deleted by name.
///
/// # Errors
///
/// 102, 119, 108 or 107, in that order; a name too long, reserved or with an empty part is 102.
pub fn channel_name(name: &str) -> Result<(), Refusal> {
    stored_channel(name)?;
    if has_empty_token(name) { Err(Refusal::EmptyChannel) } else { Ok(()) }
}

/// Checks the name of a channel whose events are stored, but for empty parts.
///
/// # Errors
///
/// 102 when it is empty, too long or reserved, then 119, 108, 107.
pub(crate) fn stored_channel(name: &str) -> Result<(), Refusal> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(Refusal::EmptyChannel);
    }
    not_reserved(name)?;
    subject(name)
}

/// The rules that every subject to send to keeps: 119, 108, 107.
fn subject(name: &str) -> Result<(), Refusal> {
    pattern(name)?;
    if name.contains(is_wildcard) { Err(Refusal::ChannelWildcard) } else { Ok(()) }
}

/// The rules that every subject to subscribe to keeps: 119, 108.
fn pattern(name: &str) -> Result<(), Refusal> {
    if name.ends_with('.') {
        return Err(Refusal::ChannelEndsWithDot);
    }
    if name.contains(is_blank) || name.len() > MAX_SUBJECT_BYTES {
        return Err(Refusal::ChannelWhiteSpace);
    }
    Ok(())
}

/// The rules of a sender's or subscriber's name and of its channel being there at all: 101, 102.
fn client_and_channel(client_id: &str, channel: &str) -> Result<(), Refusal> {
    if client_id.is_empty() {
        return Err(Refusal::EmptyClientId);
    }
    if channel.is_empty() { Err(Refusal::EmptyChannel) } else { Ok(()) }
}

/// The reserved name takes management requests and nothing else: 102.
fn not_reserved(channel: &str) -> Result<(), Refusal> {
    if channel == MANAGEMENT_CHANNEL { Err(Refusal::EmptyChannel) } else { Ok(()) }
}

fn is_wildcard(character: char) -> bool {
    matches!(character, '*' | '>')
}

fn is_blank(character: char) -> bool {
    character.is_whitespace() || character.is_control()
}

/// Checks a message to be stored. Its channel is checked completely, so what passes can be stored.
///
/// # Errors
///
/// 101, 120, 110, 133, 134, 135, 120 for the dead-letter queue, then what the store refuses.
pub fn send(message: &QueueMessage, limits: &QueueLimits) -> Result<(), Refusal> {
    message_itself(message)?;
    if let Some(policy) = &message.policy {
        self::policy(policy, limits)?;
    }
    storable(message, limits)
}

fn message_itself(message: &QueueMessage) -> Result<(), Refusal> {
    if message.client_id.is_empty() {
        return Err(Refusal::EmptyClientId);
    }
    queue_name(&message.channel)?;
    if message.metadata.is_empty() && message.body.is_empty() { Err(Refusal::EmptyMessage) } else { Ok(()) }
}

fn policy(policy: &QueueMessagePolicy, limits: &QueueLimits) -> Result<(), Refusal> {
    if !within(policy.expiration_seconds, limits.max_expiration_seconds) {
        return Err(Refusal::Expiration);
    }
    if !within(policy.max_receive_count, limits.max_receive_count) {
        return Err(Refusal::ReceiveCount);
    }
    if !within(policy.delay_seconds, limits.max_delay_seconds) {
        return Err(Refusal::Delay);
    }
    let dead_letter = policy.max_receive_queue.as_str();
    if dead_letter.is_empty() {
        return Ok(());
    }
    queue_name(dead_letter)?;
    // A name that the store would refuse later would lose the message then.
    if has_empty_token(dead_letter) { Err(Refusal::QueueName) } else { Ok(()) }
}

/// What the store itself refuses, after everything else was found in order.
fn storable(message: &QueueMessage, limits: &QueueLimits) -> Result<(), Refusal> {
    if !is_deliverable(message.encoded_len(), limits.max_message_bytes) {
        return Err(Refusal::PayloadTooLarge);
    }
    if has_empty_token(&message.channel) { Err(Refusal::PublishName) } else { Ok(()) }
}

fn within(value: i32, most: i32) -> bool {
    (0..=most).contains(&value)
}

/// What a valid receive or peek asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receive {
    /// The most messages to return.
    pub max: usize,
    /// How long to wait for them.
    pub wait: Duration,
}

/// Checks a receive or a peek.
///
/// # Errors
///
/// 101, 120, 122, 136, 121.
pub fn receive(request: &ReceiveQueueMessagesRequest, limits: &QueueLimits) -> Result<Receive, Refusal> {
    if request.client_id.is_empty() {
        return Err(Refusal::EmptyClientId);
    }
    queue_name(&request.channel)?;
    let max = usize::try_from(request.max_number_of_messages).unwrap_or(0);
    if max < 1 || request.max_number_of_messages > limits.max_number_of_messages {
        return Err(Refusal::MaxMessages);
    }
    let wait = wait(request.wait_time_seconds, limits)?;
    queue_source(&request.channel)?;
    Ok(Receive { max, wait })
}

/// Checks an ack-all and returns how long it may wait.
///
/// # Errors
///
/// 101, 120, 136, 121.
pub fn ack_all(request: &AckAllQueueMessagesRequest, limits: &QueueLimits) -> Result<Duration, Refusal> {
    if request.client_id.is_empty() {
        return Err(Refusal::EmptyClientId);
    }
    queue_name(&request.channel)?;
    let wait = wait(request.wait_time_seconds, limits)?;
    queue_source(&request.channel)?;
    Ok(wait)
}

fn wait(seconds: i32, limits: &QueueLimits) -> Result<Duration, Refusal> {
    if !within(seconds, limits.max_wait_timeout_seconds) {
        return Err(Refusal::WaitTimeout);
    }
    Ok(or_default(seconds, limits.default_wait_timeout_seconds))
}

fn visibility(seconds: i32, limits: &QueueLimits) -> Result<Duration, Refusal> {
    if !within(seconds, limits.max_visibility_seconds) {
        return Err(Refusal::Visibility);
    }
    Ok(or_default(seconds, limits.default_visibility_seconds))
}

fn or_default(seconds: i32, default: i32) -> Duration {
    let seconds = if seconds == 0 { default } else { seconds };
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// What a valid request of a stream of one message asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamStep {
    /// Waits for a message and holds it.
    Receive {
        /// How long the message is held.
        visibility: Duration,
        /// How long to wait for it.
        wait: Duration,
    },
    /// Removes the message.
    Ack {
        /// The message's sequence, as the client names it.
        sequence: u64,
    },
    /// Stores the message again at the tail.
    Reject {
        /// The message's sequence, as the client names it.
        sequence: u64,
    },
    /// Holds the message for so long from now.
    ModifyVisibility(Duration),
    /// Sends the message to another queue.
    Resend,
    /// Sends another message instead.
    SendModified,
}

/// Checks what can be checked of a stream request without knowing the stream's state.
///
/// # Errors
///
/// 101, then by type: 120, 127, 136 for a receive; 125 for ack and reject; 127; 120; 131 and the rules of the
/// modified message and 127; 132 for types that do not exist.
pub fn stream(request: &StreamQueueMessagesRequest, limits: &QueueLimits) -> Result<StreamStep, Refusal> {
    if request.client_id.is_empty() {
        return Err(Refusal::EmptyClientId);
    }
    match StreamRequestType::try_from(request.stream_request_type_data) {
        Ok(StreamRequestType::ReceiveMessage) => {
            queue_name(&request.channel)?;
            let visibility = visibility(request.visibility_seconds, limits)?;
            Ok(StreamStep::Receive { visibility, wait: wait(request.wait_time_seconds, limits)? })
        }
        Ok(StreamRequestType::AckMessage) => Ok(StreamStep::Ack { sequence: reference(request)? }),
        Ok(StreamRequestType::RejectMessage) => Ok(StreamStep::Reject { sequence: reference(request)? }),
        Ok(StreamRequestType::ModifyVisibility) => {
            Ok(StreamStep::ModifyVisibility(visibility(request.visibility_seconds, limits)?))
        }
        Ok(StreamRequestType::ResendMessage) => queue_name(&request.channel).map(|()| StreamStep::Resend),
        Ok(StreamRequestType::SendModifiedMessage) => {
            let message = request.modified_message.as_ref().ok_or(Refusal::NoModifiedMessage)?;
            message_itself(message)?;
            if let Some(policy) = &message.policy {
                self::policy(policy, limits)?;
            }
            visibility(request.visibility_seconds, limits)?;
            Ok(StreamStep::SendModified)
        }
        Ok(StreamRequestType::Unknown) | Err(_) => Err(Refusal::StreamRequestType),
    }
}

fn reference(request: &StreamQueueMessagesRequest) -> Result<u64, Refusal> {
    if request.ref_sequence == 0 { Err(Refusal::AckSequence) } else { Ok(request.ref_sequence) }
}

/// What a valid Get asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Get {
    /// The most messages to return.
    pub max: usize,
    /// How long to wait for them.
    pub wait: Duration,
}

/// Checks a Get of a downstream stream.
///
/// # Errors
///
/// 101, 120, 121.
pub fn get(request: &QueuesDownstreamRequest, limits: &QueueLimits) -> Result<Get, Refusal> {
    if request.client_id.is_empty() {
        return Err(Refusal::EmptyClientId);
    }
    queue_name(&request.channel)?;
    queue_source(&request.channel)?;
    let max = match usize::try_from(request.max_items) {
        Ok(0) | Err(_) => limits.default_max_items,
        Ok(max) => max,
    };
    Ok(Get { max, wait: Duration::from_millis(u64::try_from(request.wait_timeout).unwrap_or(0)) })
}

/// Checks a command or a query before anything is done with it.
///
/// # Errors
///
/// 206, 101, 102, 119, 108, 107, 109, 115, 116.
pub fn request(request: &Request) -> Result<RequestType, Refusal> {
    let kind = match RequestType::try_from(request.request_type_data) {
        Ok(RequestType::Unknown) | Err(_) => return Err(Refusal::RequestType),
        Ok(kind) => kind,
    };
    client_and_channel(&request.client_id, &request.channel)?;
    subject(&request.channel)?;
    if request.timeout <= 0 {
        return Err(Refusal::RequestTimeout);
    }
    if request.metadata.is_empty() && request.body.is_empty() {
        return Err(Refusal::EmptyRequest);
    }
    if !request.cache_key.is_empty() && request.cache_ttl <= 0 {
        return Err(Refusal::CacheTtl);
    }
    Ok(kind)
}

/// Checks an event, whether it is to be stored or not.
///
/// # Errors
///
/// 101, 102, 119, 108, 107, 110.
pub fn event(event: &Event) -> Result<(), Refusal> {
    client_and_channel(&event.client_id, &event.channel)?;
    not_reserved(&event.channel)?;
    subject(&event.channel)?;
    if event.metadata.is_empty() && event.body.is_empty() { Err(Refusal::EmptyMessage) } else { Ok(()) }
}

/// Returns whether a subscription to events wants those of the store.
///
/// # Errors
///
/// 207 when it is not one to events.
pub fn wants_stored_events(subscribe: &Subscribe) -> Result<bool, Refusal> {
    match SubscribeType::try_from(subscribe.subscribe_type_data) {
        Ok(SubscribeType::Events) => Ok(false),
        Ok(SubscribeType::EventsStore) => Ok(true),
        _ => Err(Refusal::SubscribeType),
    }
}

/// Checks a subscription to events that are not stored; its type was looked at before.
///
/// # Errors
///
/// 101, 102, 119, 108, 118, then what is wrong with the subject and the group.
pub fn events_subscription(subscribe: &Subscribe) -> Result<(), Refusal> {
    client_and_channel(&subscribe.client_id, &subscribe.channel)?;
    pattern(&subscribe.channel)?;
    if subscribe.events_store_type_data != 0 {
        return Err(Refusal::StartWithoutStore);
    }
    subject_and_group(subscribe)
}

/// Checks a subscription to requests and returns of which kind.
///
/// # Errors
///
/// 207, 101, 102, 119, 108, then what is wrong with the subject and the group.
pub fn requests_subscription(subscribe: &Subscribe) -> Result<RequestType, Refusal> {
    let kind = match SubscribeType::try_from(subscribe.subscribe_type_data) {
        Ok(SubscribeType::Commands) => RequestType::Command,
        Ok(SubscribeType::Queries) => RequestType::Query,
        _ => return Err(Refusal::SubscribeType),
    };
    client_and_channel(&subscribe.client_id, &subscribe.channel)?;
    pattern(&subscribe.channel)?;
    subject_and_group(subscribe)?;
    Ok(kind)
}

fn subject_and_group(subscribe: &Subscribe) -> Result<(), Refusal> {
    not_reserved(&subscribe.channel)?;
    if has_empty_token(&subscribe.channel) {
        return Err(Refusal::Subject);
    }
    let group = subscribe.group.as_str();
    if group.contains(is_blank) || group.len() > MAX_SUBJECT_BYTES { Err(Refusal::GroupName) } else { Ok(()) }
}

/// Checks the answer to a request.
///
/// # Errors
///
/// 101, 102, 119, 108, 107, 117.
pub fn response(response: &Response) -> Result<(), Refusal> {
    client_and_channel(&response.client_id, &response.reply_channel)?;
    subject(&response.reply_channel)?;
    if response.request_id.is_empty() { Err(Refusal::EmptyRequestId) } else { Ok(()) }
}

/// Returns whether a message of so many bytes can be delivered with what delivery adds to it.
#[must_use]
pub fn is_deliverable(bytes: usize, max_message_bytes: usize) -> bool {
    bytes.saturating_add(ENVELOPE_BYTES) <= max_message_bytes
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
