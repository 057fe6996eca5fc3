//! How events are shown: names, order and times of the KubeMQ tool.

use std::collections::BTreeMap;

use kubemq_proto::kubemq as proto;
use serde::Serialize;

use super::queue_json::{BodyView, is_zero, time};

/// An event as the tool shows it. Fields without a value are left out.
#[derive(Debug, Serialize)]
pub struct EventView<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    channel: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    client_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    sequence: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    metadata: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tags: &'a BTreeMap<String, String>,
    #[serde(flatten)]
    body: BodyView,
}

impl<'a> EventView<'a> {
    /// Returns how an event that is sent is shown.
    #[must_use]
    pub fn sent(event: &'a proto::Event) -> Self {
        Self {
            id: &event.event_id,
            channel: &event.channel,
            client_id: &event.client_id,
            timestamp: None,
            sequence: 0,
            metadata: &event.metadata,
            tags: &event.tags,
            body: BodyView::new(&event.body),
        }
    }

    /// Returns how an event that was received is shown.
    #[must_use]
    pub fn received(event: &'a proto::EventReceive) -> Self {
        Self {
            id: &event.event_id,
            channel: &event.channel,
            client_id: "",
            timestamp: time(event.timestamp),
            sequence: event.sequence,
            metadata: &event.metadata,
            tags: &event.tags,
            body: BodyView::new(&event.body),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_event_shows_its_place() {
        let event = proto::EventReceive {
            event_id: "e".into(),
            channel: "orders".into(),
            body: "plain".into(),
            timestamp: 951_825_599_999_000_000,
            sequence: 7,
            ..proto::EventReceive::default()
        };
        let expected = concat!(
            r#"{"id":"e","channel":"orders","timestamp":"2000-02-29 11:59:59.999","sequence":7,"#,
            r#""body_string":"plain"}"#
        );
        assert_eq!(serde_json::to_string(&EventView::received(&event)).unwrap(), expected);
        let live = proto::EventReceive { timestamp: 0, sequence: 0, ..event };
        let expected = r#"{"id":"e","channel":"orders","body_string":"plain"}"#;
        assert_eq!(serde_json::to_string(&EventView::received(&live)).unwrap(), expected);
    }
}
