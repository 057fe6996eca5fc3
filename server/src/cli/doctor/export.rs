//! `kubemq doctor export`: what a stopped node's files hold, one JSON document a line.
//!
//! Messages that cannot be read have a line that says so. Everything that is in doubt goes to standard error. Nothing is
//! changed, and nothing is imported anywhere.

use std::collections::BTreeMap;

use base64::Engine as _;
use bytes::Bytes;
use kubemq_broker::Kind;
use kubemq_proto::kubemq::{EventReceive, QueueMessage, QueueMessagePolicy};
use prost::Message as _;
use serde::Serialize;

use super::holdings::{Content, Item};

/// A message as it is exported. Fields without a value are left out.
#[derive(Debug, Serialize)]
pub(super) struct Line<'a> {
    channel: &'a str,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
    /// When it was stored; times are nanoseconds since 1970.
    #[serde(skip_serializing_if = "is_zero")]
    time: u64,
    /// When a delayed one is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    due: Option<u64>,
    #[serde(skip_serializing_if = "is_zero")]
    expires_at: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    client_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    metadata: String,
    /// In base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tags: BTreeMap<String, String>,
    /// How often it was handed out.
    #[serde(skip_serializing_if = "is_zero")]
    receive_count: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    rerouted_from: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<Policy>,
    /// Why there is nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<String>,
}

#[derive(Debug, Serialize)]
struct Policy {
    max_receive_count: i32,
    max_receive_queue: String,
    expiration_seconds: i32,
}

impl<'a> Line<'a> {
    pub(super) fn new(item: &Item<'a>) -> Self {
        let mut line = Self {
            channel: item.channel,
            kind: item.kind.name(),
            sequence: item.sequence,
            time: 0,
            due: item.due,
            expires_at: 0,
            id: String::new(),
            client_id: String::new(),
            metadata: String::new(),
            body: None,
            tags: BTreeMap::new(),
            receive_count: 0,
            rerouted_from: String::new(),
            policy: None,
            unreadable: None,
        };
        let filled = match &item.content {
            Ok(content) => line.fill(item, content).map_err(|error| error.to_string()),
            Err(why) => Err(why.clone()),
        };
        line.unreadable = filled.err();
        line
    }

    pub(super) fn is_readable(&self) -> bool {
        self.unreadable.is_none()
    }

    fn fill(&mut self, item: &Item<'_>, content: &Content) -> Result<(), prost::DecodeError> {
        if item.kind == Kind::EventsStore {
            let event = EventReceive::decode(content.message.clone())?;
            (self.id, self.metadata, self.tags) = (event.event_id, event.metadata, event.tags);
            self.time = content.time;
            self.body = body(&event.body);
            return Ok(());
        }
        let message = QueueMessage::decode(content.message.clone())?;
        (self.id, self.client_id) = (message.message_id, message.client_id);
        (self.metadata, self.tags) = (message.metadata, message.tags);
        self.body = body(&message.body);
        // A delayed one is stored when it is due.
        let stored = item.due.unwrap_or(content.time);
        (self.time, self.expires_at) = (stored, 0);
        if content.expiration_ms > 0 {
            self.expires_at = stored.saturating_add(content.expiration_ms.saturating_mul(1_000_000));
        }
        self.policy = message.policy.map(Policy::from);
        if let Some(copy) = item.copy {
            (self.time, self.expires_at) = (copy.time, copy.expires_at);
            self.receive_count = u64::from(copy.receive_count);
            self.rerouted_from = copy.rerouted_from.as_deref().unwrap_or_default().to_owned();
            self.policy = self.policy.take().filter(|_| !copy.cleared_policy);
        }
        Ok(())
    }
}

impl From<QueueMessagePolicy> for Policy {
    fn from(policy: QueueMessagePolicy) -> Self {
        let QueueMessagePolicy { max_receive_count, max_receive_queue, expiration_seconds, .. } = policy;
        Self { max_receive_count, max_receive_queue, expiration_seconds }
    }
}

fn body(body: &Bytes) -> Option<String> {
    (!body.is_empty()).then(|| base64::engine::general_purpose::STANDARD.encode(body))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}
