//! A queue message as it is stored, and as it is delivered again.
//!
//! Stored is the encoding of [`QueueMessage`] without what the place of storage says anyway: the channel and
//! the attributes. Delivery puts both back. Nothing here copies a body more often than encoding must.

use std::time::Duration;

use bytes::Bytes;
use prost::{DecodeError, Message as _};

use crate::kubemq::{QueueMessage, QueueMessageAttributes, QueueMessagePolicy};
use crate::validate::QueueLimits;

/// Where and how often a stored message is delivered: what its attributes are made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'a> {
    /// The sequence in its channel.
    pub sequence: u64,
    /// When it was stored, in nanoseconds since the Unix epoch.
    pub time: u64,
    /// How often it was handed out, this time included.
    pub receive_count: u32,
    /// When it expires, in nanoseconds since the Unix epoch, zero for never.
    pub expires_at: u64,
    /// The queue that it was dead-lettered from.
    pub rerouted_from: Option<&'a str>,
    /// True when its policy no longer holds, as for every dead letter.
    pub cleared_policy: bool,
}

/// Prepares a message for storing: its attributes are forgotten, its policy is completed, and its channel is
/// taken out and returned. Encode what remains.
pub fn prepare(message: &mut QueueMessage, limits: &QueueLimits) -> String {
    message.attributes = None;
    let policy = message.policy.get_or_insert_default();
    if policy.max_receive_count == 0 {
        policy.max_receive_count = limits.max_receive_count;
    }
    std::mem::take(&mut message.channel)
}

/// Returns how long the message is delayed after it is sent.
#[must_use]
pub fn delay(policy: &QueueMessagePolicy) -> Duration {
    Duration::from_secs(u64::try_from(policy.delay_seconds).unwrap_or(0))
}

/// Returns how long the message lives after it is sent or released, zero for ever.
#[must_use]
pub fn expiration(policy: &QueueMessagePolicy) -> Duration {
    Duration::from_secs(u64::try_from(policy.expiration_seconds).unwrap_or(0))
}

/// Returns the message to deliver from what was stored.
///
/// # Errors
///
/// When `stored` is not the encoding of a message.
pub fn deliver(stored: Bytes, channel: &str, attributes: &Attributes<'_>) -> Result<QueueMessage, DecodeError> {
    let mut message = QueueMessage::decode(stored)?;
    channel.clone_into(&mut message.channel);
    if attributes.cleared_policy {
        message.policy = Some(QueueMessagePolicy::default());
    } else if let Some(policy) = &mut message.policy {
        // What is delivered is no longer delayed.
        policy.delay_seconds = 0;
    }
    message.attributes = Some(wire_attributes(attributes));
    Ok(message)
}

fn wire_attributes(attributes: &Attributes<'_>) -> QueueMessageAttributes {
    QueueMessageAttributes {
        timestamp: nanos(attributes.time),
        sequence: attributes.sequence,
        receive_count: i32::try_from(attributes.receive_count).unwrap_or(i32::MAX),
        re_routed: attributes.rerouted_from.is_some(),
        re_routed_from_queue: attributes.rerouted_from.unwrap_or_default().to_owned(),
        expiration_at: nanos(attributes.expires_at),
        ..QueueMessageAttributes::default()
    }
}

/// Returns nanoseconds as the wire carries them.
#[must_use]
pub fn nanos(nanos: u64) -> i64 {
    i64::try_from(nanos).unwrap_or(i64::MAX)
}

/// The part of [`QueueMessage`] that holds its policy; everything else is skipped without a copy.
#[derive(Clone, PartialEq, prost::Message)]
struct PolicyOnly {
    #[prost(message, optional, tag = "8")]
    policy: Option<QueueMessagePolicy>,
}

/// Reads only the policy of a stored message.
///
/// # Errors
///
/// When `stored` is not the encoding of a message.
pub fn policy(stored: &[u8]) -> Result<QueueMessagePolicy, DecodeError> {
    Ok(PolicyOnly::decode(stored)?.policy.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn sent() -> QueueMessage {
        QueueMessage {
            message_id: "m1".to_owned(),
            client_id: "c".to_owned(),
            channel: "q".to_owned(),
            metadata: "meta".to_owned(),
            body: Bytes::from_static(b"body"),
            tags: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
            attributes: Some(QueueMessageAttributes { sequence: 99, re_routed: true, ..Default::default() }),
            policy: Some(QueueMessagePolicy { delay_seconds: 5, expiration_seconds: 10, ..Default::default() }),
            topic: "t".to_owned(),
            partition: 3,
            partition_key: "p".to_owned(),
        }
    }

    #[test]
    fn what_was_sent_is_delivered_with_the_attributes_of_the_server() {
        let mut message = sent();
        assert_eq!(prepare(&mut message, &QueueLimits::default()), "q");
        let stored = Bytes::from(message.encode_to_vec());
        let attributes = Attributes { sequence: 7, time: 1, receive_count: 2, expires_at: 3, ..Attributes::default() };
        let delivered = deliver(stored, "q", &attributes).unwrap();
        let expected = QueueMessage {
            attributes: Some(QueueMessageAttributes {
                timestamp: 1,
                sequence: 7,
                receive_count: 2,
                expiration_at: 3,
                ..Default::default()
            }),
            policy: Some(QueueMessagePolicy { expiration_seconds: 10, max_receive_count: 1024, ..Default::default() }),
            ..sent()
        };
        assert_eq!(delivered, expected);
    }

    #[test]
    fn a_dead_letter_has_no_policy_and_says_where_it_is_from() {
        let mut message = sent();
        prepare(&mut message, &QueueLimits::default());
        let attributes = Attributes { rerouted_from: Some("q"), cleared_policy: true, ..Attributes::default() };
        let delivered = deliver(message.encode_to_vec().into(), "d", &attributes).unwrap();
        assert_eq!(delivered.policy, Some(QueueMessagePolicy::default()));
        let attributes = delivered.attributes.unwrap();
        assert!(attributes.re_routed);
        assert_eq!(attributes.re_routed_from_queue, "q");
        assert_eq!(delivered.channel, "d");
    }

    #[test]
    fn the_policy_is_read_alone() {
        let mut message = sent();
        prepare(&mut message, &QueueLimits::default());
        assert_eq!(Some(policy(&message.encode_to_vec()).unwrap()), message.policy);
        assert_eq!(policy(&[]).unwrap(), QueueMessagePolicy::default());
        assert!(policy(&[0x42, 0x7F]).is_err());
    }

    #[test]
    fn a_delivered_body_is_a_slice_of_what_was_stored() {
        let stored = Bytes::from(QueueMessage { body: Bytes::from(vec![7; 1000]), ..sent() }.encode_to_vec());
        let delivered = deliver(stored.clone(), "q", &Attributes::default()).unwrap();
        let range = stored.as_ptr_range();
        assert!(range.contains(&delivered.body.as_ptr()));
    }
}
