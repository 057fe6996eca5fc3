//! What subscribers have received, and what scenarios with subscribers do again and again.

use crate::world::{World, must, until};
use kubemq::{JitterMode, KubemqClient, RetryPolicy, Subscription};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const PROBE: &str = "probe";

/// What a subscriber has received: an event, a stored event, a command or a query.
#[derive(Clone, Debug, Default)]
pub struct Got {
    pub id: String,
    pub channel: String,
    pub metadata: String,
    pub body: String,
    pub tag: String,
    pub sequence: u64,
    pub timestamp: i64,
}

/// Collects what a subscriber receives. Probes, which show that a subscription works, are only counted.
#[derive(Clone, Default)]
pub struct Inbox {
    pub received: Arc<Mutex<Vec<Got>>>,
    pub probes: Arc<Mutex<usize>>,
    pub subscription: Option<Arc<Subscription>>,
}

impl Inbox {
    pub fn put(&self, got: Got) {
        if got.body == PROBE {
            *self.probes.lock().unwrap() += 1;
        } else {
            self.received.lock().unwrap().push(got);
        }
    }

    pub fn all(&self) -> Vec<Got> {
        self.received.lock().unwrap().clone()
    }

    pub fn bodies(&self) -> Vec<String> {
        self.all().into_iter().map(|got| got.body).collect()
    }

    pub fn probed(&self) -> bool {
        *self.probes.lock().unwrap() > 0
    }

    pub fn forget_probes(&self) {
        *self.probes.lock().unwrap() = 0;
    }

    /// Waits for as many as are expected, and compares.
    pub async fn has(&self, expected: &[String]) {
        let enough = async || (self.all().len() >= expected.len()).then_some(());
        until(&format!("{} messages", expected.len()), enough).await;
        assert_eq!(self.bodies(), expected);
    }
}

pub fn tag(tags: &std::collections::HashMap<String, String>) -> String {
    tags.get("key").cloned().unwrap_or_default()
}

/// Returns a client whose subscriptions come back. They try once, and again only as long as each try meets a server.
pub async fn reconnecting(w: &World) -> KubemqClient {
    let (initial_backoff, jitter_mode) = (Duration::from_secs(2), JitterMode::None);
    let policy = RetryPolicy { initial_backoff, jitter_mode, ..RetryPolicy::default() };
    let builder = KubemqClient::builder().host(&w.host).port(w.port).client_id("rust").retry_policy(policy);
    must(builder.build().await)
}

/// Sends probes until every subscriber has seen one.
pub async fn ready(client: &KubemqClient, channel: &str, inboxes: &[&Inbox]) {
    until("the subscriptions", async || {
        client.publish_event(channel, PROBE, None, None).await.ok()?;
        inboxes.iter().all(|inbox| inbox.probed()).then_some(())
    })
    .await;
}

/// Waits until members have got as many as are expected between them, each of them some, and compares.
pub async fn together(expected: &[String], members: &[&Inbox]) {
    let mut union = until("all messages of the group", async || {
        let union: Vec<String> = members.iter().flat_map(|member| member.bodies()).collect();
        (union.len() >= expected.len()).then_some(union)
    })
    .await;
    let mut expected = expected.to_vec();
    expected.sort();
    union.sort();
    assert_eq!(union, expected);
    assert!(members.iter().all(|member| !member.all().is_empty()), "a member of the group got nothing");
}

/// Returns the body of messages that pass the limits of every SDK just so.
pub fn large() -> String {
    "0123456789".repeat(300_000)
}
