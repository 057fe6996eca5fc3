//! How a queue message and the answer to a send are shown: names, order and times of the KubeMQ tool.

use std::collections::BTreeMap;

use base64::Engine as _;
use kubemq_proto::kubemq as proto;
use serde::Serialize;

/// A queue message as the tool shows it. Fields without a value are left out.
#[derive(Debug, Serialize)]
pub struct MessageView<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    channel: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    client_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    sequence: u64,
    #[serde(skip_serializing_if = "is_zero")]
    receive_count: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    rerouted_from: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    metadata: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay_to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expire_at: Option<String>,
    // The misspelling is the tool's; scripts read it.
    #[serde(skip_serializing_if = "is_zero")]
    max_dead_letter_queue_retires: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    dead_letter_queue: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tags: &'a BTreeMap<String, String>,
    #[serde(flatten)]
    body: BodyView,
}

/// A body as the most readable of three forms.
#[derive(Debug, Serialize)]
pub(super) enum BodyView {
    #[serde(rename = "body_json")]
    Json(serde_json::Value),
    #[serde(rename = "body_string")]
    Text(String),
    #[serde(rename = "body_base64")]
    Bytes(String),
}

/// The answer to a send as the tool shows it.
#[derive(Debug, Serialize)]
pub struct ResultView<'a> {
    message_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiration_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delayed_to: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_error: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
}

impl<'a> MessageView<'a> {
    /// Returns how `message` is shown.
    #[must_use]
    pub fn new(message: &'a proto::QueueMessage) -> Self {
        let attributes = message.attributes.as_ref();
        let policy = message.policy.as_ref();
        Self {
            id: &message.message_id,
            channel: &message.channel,
            client_id: &message.client_id,
            timestamp: attributes.and_then(|a| time(a.timestamp)),
            sequence: attributes.map_or(0, |a| a.sequence),
            receive_count: attributes.map_or(0, |a| positive(a.receive_count)),
            rerouted_from: attributes.map_or("", |a| &a.re_routed_from_queue),
            metadata: &message.metadata,
            delay_to: attributes.and_then(|a| time(a.delayed_to)),
            expire_at: attributes.and_then(|a| time(a.expiration_at)),
            max_dead_letter_queue_retires: policy.map_or(0, |p| positive(p.max_receive_count)),
            dead_letter_queue: policy.map_or("", |p| &p.max_receive_queue),
            tags: &message.tags,
            body: BodyView::new(&message.body),
        }
    }
}

impl BodyView {
    pub(super) fn new(body: &[u8]) -> Self {
        if let Ok(value) = serde_json::from_slice(body) {
            return Self::Json(value);
        }
        match std::str::from_utf8(body) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Bytes(base64::engine::general_purpose::STANDARD.encode(body)),
        }
    }
}

impl<'a> ResultView<'a> {
    /// Returns how `result` is shown.
    #[must_use]
    pub fn new(result: &'a proto::SendQueueMessageResult) -> Self {
        Self {
            message_id: &result.message_id,
            sent_at: time(result.sent_at),
            expiration_at: time(result.expiration_at),
            delayed_to: time(result.delayed_to),
            is_error: result.is_error,
            error: &result.error,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
pub(super) fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn positive(count: i32) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

/// Returns a time in UTC as `YYYY-MM-DD HH:MM:SS.mmm`, nothing for zero.
pub(super) fn time(unix_nanos: i64) -> Option<String> {
    let millis = u64::try_from(unix_nanos).ok().filter(|&nanos| nanos > 0)? / 1_000_000;
    let (year, month, day) = date(millis / 86_400_000);
    let seconds = millis / 1000 % 86_400;
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    Some(format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{:03}", millis % 1000))
}

/// Returns year, month and day of the given day since the first of January 1970.
fn date(days_since_epoch: u64) -> (u64, u64, u64) {
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut days = days_since_epoch;
    let mut year = 1970;
    // Nanoseconds in 64 bits end in 2262: a few hundred steps at most.
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_to_the_millisecond() {
        assert_eq!(time(0), None);
        assert_eq!(time(951_825_599_999_000_000).as_deref(), Some("2000-02-29 11:59:59.999"));
        assert_eq!(time(1_704_067_199_001_000_000).as_deref(), Some("2023-12-31 23:59:59.001"));
        assert_eq!(time(4_107_542_400_000_000_000).as_deref(), Some("2100-03-01 00:00:00.000"));
    }

    #[test]
    fn a_message_shows_only_what_it_has() {
        let mut message = proto::QueueMessage { channel: "orders".into(), ..proto::QueueMessage::default() };
        let shown = |message: &proto::QueueMessage| serde_json::to_string(&MessageView::new(message)).unwrap();
        message.body = "plain".into();
        assert_eq!(shown(&message), r#"{"channel":"orders","body_string":"plain"}"#);
        message.body = r#"{"a":1}"#.into();
        assert_eq!(shown(&message), r#"{"channel":"orders","body_json":{"a":1}}"#);
        // Valid base64 is shown as it is, not decoded.
        message.body = "aGVsbG8=".into();
        assert_eq!(shown(&message), r#"{"channel":"orders","body_string":"aGVsbG8="}"#);
        message.body = vec![0xFF, 0xFE].into();
        assert_eq!(shown(&message), r#"{"channel":"orders","body_base64":"//4="}"#);
    }
}
