//! How requests and answers are shown: names and order of the KubeMQ tool.

use std::collections::BTreeMap;

use kubemq_proto::kubemq as proto;
use serde::Serialize;

use super::queue_json::{BodyView, time};

/// A command, a query or the answer to one as the tool shows it. Fields without a value are left out.
#[derive(Debug, Serialize)]
pub(super) struct RequestView<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    channel: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    client_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    metadata: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tags: &'a BTreeMap<String, String>,
    // Text, as the tool has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    executed: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    executed_at: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cache_hit: bool,
    #[serde(flatten)]
    body: Option<BodyView>,
}

impl<'a> RequestView<'a> {
    /// Returns how a request is shown.
    pub(super) fn request(request: &'a proto::Request) -> Self {
        Self {
            id: &request.request_id,
            channel: &request.channel,
            client_id: &request.client_id,
            metadata: &request.metadata,
            tags: &request.tags,
            executed: None,
            timeout: Some(request.timeout),
            executed_at: None,
            error: "",
            cache_hit: false,
            body: Some(BodyView::new(&request.body)),
        }
    }

    /// Returns how an answer is shown.
    pub(super) fn answer(response: &'a proto::Response) -> Self {
        Self {
            id: &response.request_id,
            channel: "",
            client_id: &response.client_id,
            metadata: &response.metadata,
            tags: &response.tags,
            executed: Some(if response.executed { "true" } else { "false" }),
            timeout: None,
            executed_at: time(response.timestamp),
            error: &response.error,
            cache_hit: response.cache_hit,
            body: (!response.body.is_empty()).then(|| BodyView::new(&response.body)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_there_is_shown() {
        let response = proto::Response { request_id: "r".into(), error: "no".into(), ..Default::default() };
        let shown = serde_json::to_string(&RequestView::answer(&response)).unwrap();
        assert_eq!(shown, r#"{"id":"r","executed":"false","error":"no"}"#);
        let response = proto::Response { executed: true, cache_hit: true, body: "7".into(), ..Default::default() };
        let shown = serde_json::to_string(&RequestView::answer(&response)).unwrap();
        assert_eq!(shown, r#"{"executed":"true","cache_hit":true,"body_json":7}"#);
    }
}
