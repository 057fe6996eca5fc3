//! Creating, deleting, listing and counting channels.
//!
//! SDKs manage channels with queries to a reserved name: they are answered here, on any node, and never reach a
//! subscriber. A list is read after everything that was acknowledged before it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kubemq_broker::{Channel, ChannelId, Kind, Name, Operation, Outcome, Totals};
use kubemq_proto::kubemq::request::RequestType;
use kubemq_proto::kubemq::{QueueInfo, QueuesInfo, QueuesInfoRequest, QueuesInfoResponse, Request, Response};
use kubemq_proto::strings::Refusal;
use kubemq_proto::validate;
use kubemq_proto::{id, stored};
use regex::{Regex, RegexBuilder};
use serde::Serialize;

use super::{Gateway, Unavailable, send};
use crate::live::{Counted, OTHERS, Pattern};

/// A channel used so recently counts as active.
const ACTIVE_FOR: Duration = Duration::from_secs(60);
/// What a filter may cost as a regular expression; a larger one is taken literally.
const FILTER_BYTES: usize = 256 * 1024;
/// Counters saturate here: some clients keep them in 32 bits.
const MOST: u64 = i32::MAX as u64;

impl Gateway {
    /// Carries out a management request. What is wrong with it stands in the answer, or is the refusal of a
    /// request that means nothing on this channel.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] when it may not have been carried out.
    pub async fn manage(&self, request: Request) -> Result<Result<Response, Refusal>, Unavailable> {
        match validate::request(&request) {
            Ok(RequestType::Query) => {}
            // Nothing else may be sent to this channel.
            Ok(_) => return Ok(Err(Refusal::EmptyChannel)),
            Err(refusal) => return Ok(Err(refusal)),
        }
        let body = match self.carry_out(&request).await? {
            Ok(body) => body,
            Err(refusal) => {
                let answer = Response { error: refusal.to_string(), ..self.answer(request.request_id) };
                return Ok(Ok(answer));
            }
        };
        Ok(Ok(Response { executed: true, body, ..self.answer(request.request_id) }))
    }

    fn answer(&self, request_id: String) -> Response {
        let runtime = self.runtime();
        let timestamp = stored::nanos(runtime.clock.wall().0);
        Response { request_id: id::or_nuid(request_id, &runtime.random), timestamp, ..Default::default() }
    }

    async fn carry_out(&self, request: &Request) -> Result<Result<Bytes, Refusal>, Unavailable> {
        let tag = |key: &str| request.tags.get(key).map(String::as_str).unwrap_or_default();
        let Some(kind) = kind_of(tag("channel_type")) else { return Ok(Err(Refusal::UnknownChannelType)) };
        let change = match request.metadata.as_str() {
            "create-channel" => |kind, channel| Operation::Create { kind, channel },
            "delete-channel" => |kind, channel| Operation::Delete { kind, channel },
            "list-channels" => {
                let filter = if tag("channel_search").is_empty() { tag("search") } else { tag("channel_search") };
                return self.list(kind, filter).await.map(Ok).or_else(|unavailable| match unavailable {
                    // Clients know this text and ask again.
                    Unavailable::NotLeader => Ok(Err(Refusal::SnapshotNotReady)),
                    other => Err(other),
                });
            }
            _ => return Ok(Err(Refusal::UnknownOperation)),
        };
        let name = match channel_name(kind, tag("channel")) {
            Ok(name) => name,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let outcomes = self.commit(vec![change(kind, name).to_bytes()]).await?;
        if let Some(Outcome::Refused(reason)) = outcomes.first() {
            return Ok(Err(send::refusal(*reason)));
        }
        if request.metadata == "delete-channel"
            && let Some(pattern) = pattern_of(kind)
        {
            self.live().forget(pattern, tag("channel"));
        }
        Ok(Ok(Bytes::new()))
    }

    /// Returns the channels of a kind whose names match, as a JSON array.
    async fn list(&self, kind: Kind, filter: &str) -> Result<Bytes, Unavailable> {
        let seen: Vec<Seen> = self.read(|state| state.channels(kind).map(Seen::of).collect()).await?;
        let counted = pattern_of(kind).map(|pattern| self.counted(pattern)).unwrap_or_default();
        let filter = Filter::new(filter);
        let (now, wall) = (self.time().0, self.runtime().clock.wall().0);
        let is_recent = |now: u64, last: u64| now.saturating_sub(last) < nanos(ACTIVE_FOR);
        // What was created and not used yet is known only to the state, what was used only to this node.
        let created = seen.iter().filter(|channel| !counted.contains_key(&*channel.name));
        let mut listed: Vec<Listed<'_>> = created
            .filter(|channel| filter.matches(&channel.name))
            .map(|channel| channel.listed(kind, is_recent(now, channel.last_activity) || self.is_used(channel.id)))
            .collect();
        let used = counted.iter().filter(|(name, _)| filter.matches(name));
        listed.extend(used.map(|(name, counted)| {
            Listed::live(kind, name, counted, counted.subscribers > 0 || is_recent(wall, counted.last_seen))
        }));
        // Strings and numbers always have a JSON form.
        Ok(serde_json::to_vec(&listed).unwrap_or_else(|_| b"[]".to_vec()).into())
    }

    /// Returns what passed through channels whose messages are not stored. Patterns are no channels.
    fn counted(&self, pattern: Pattern) -> BTreeMap<Box<str>, Counted> {
        let counted = self.live().counted(pattern).into_iter();
        counted.filter(|(name, _)| validate::channel_name(name).is_ok() && &**name != OTHERS).collect()
    }

    /// Counts what queues hold and held.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] when the state cannot be read now.
    pub async fn queues_info(&self, request: QueuesInfoRequest) -> Result<QueuesInfoResponse, Unavailable> {
        let wanted: Vec<&str> = request.queue_name.split(';').collect();
        let seen: Vec<Seen> = self
            .read(|state| match wanted.as_slice() {
                [""] => state.channels(Kind::Queue).map(Seen::of).collect(),
                names => names.iter().filter_map(|name| state.channel(Kind::Queue, name)).map(Seen::of).collect(),
            })
            .await?;
        let queues: Vec<QueueInfo> = seen.iter().map(|queue| queue.info(self.is_used(queue.id))).collect();
        let sum = |count: fn(&QueueInfo) -> i64| queues.iter().map(count).fold(0_i64, i64::saturating_add);
        let info = QueuesInfo {
            total_queue: i32::try_from(queues.len()).unwrap_or(i32::MAX),
            sent: sum(|queue| queue.sent),
            delivered: sum(|queue| queue.delivered),
            waiting: sum(|queue| queue.waiting),
            queues,
        };
        Ok(QueuesInfoResponse { ref_request_id: request.request_id, info: Some(info) })
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn kind_of(name: &str) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| kind.name() == name)
}

/// Returns how messages of a kind travel that are not stored.
fn pattern_of(kind: Kind) -> Option<Pattern> {
    match kind {
        Kind::Events => Some(Pattern::Events),
        Kind::Commands => Some(Pattern::Commands),
        Kind::Queries => Some(Pattern::Queries),
        Kind::Queue | Kind::EventsStore => None,
    }
}

fn channel_name(kind: Kind, name: &str) -> Result<Name, Refusal> {
    let refusal = match kind {
        Kind::Queue => {
            validate::queue_name(name)?;
            if validate::has_empty_token(name) {
                return Err(Refusal::QueueName);
            }
            Refusal::QueueName
        }
        Kind::EventsStore | Kind::Events | Kind::Commands | Kind::Queries => {
            validate::channel_name(name)?;
            Refusal::EmptyChannel
        }
    };
    Name::new(name).map_err(|_| refusal)
}

/// What is shown of a channel, copied out of the state.
struct Seen {
    id: ChannelId,
    name: Arc<str>,
    totals: Totals,
    waiting: u64,
    waiting_bytes: u64,
    first: Option<u64>,
    last: Option<u64>,
    last_activity: u64,
}

impl Seen {
    fn of(channel: &Channel) -> Self {
        Self {
            id: channel.id(),
            name: Arc::clone(channel.name()),
            totals: *channel.totals(),
            waiting: channel.waiting(),
            waiting_bytes: channel.waiting_bytes(),
            first: channel.first_sequence(),
            last: channel.last_sequence(),
            last_activity: channel.last_activity(),
        }
    }

    fn listed(&self, kind: Kind, is_active: bool) -> Listed<'_> {
        let counters = |messages: u64, volume: u64| Counters {
            messages: messages.min(MOST),
            volume: volume.min(MOST),
            responses: 0,
            waiting: self.waiting.min(MOST),
            expired: self.totals.expired.min(MOST),
            delayed: self.totals.delayed.min(MOST),
        };
        Listed {
            name: &self.name,
            kind: kind.name(),
            last_activity: self.last_activity / 1_000_000,
            is_active,
            incoming: counters(self.totals.sent, self.totals.sent_bytes),
            outgoing: counters(self.totals.settled, self.totals.settled_bytes),
        }
    }

    fn info(&self, is_used: bool) -> QueueInfo {
        let delivered = self.totals.sent.saturating_sub(self.waiting);
        QueueInfo {
            name: self.name.as_ref().to_owned(),
            messages: stored::nanos(self.waiting),
            bytes: stored::nanos(self.waiting_bytes),
            first_sequence: stored::nanos(self.first.unwrap_or(0)),
            last_sequence: stored::nanos(self.last.unwrap_or(0)),
            sent: stored::nanos(self.totals.sent),
            delivered: stored::nanos(delivered),
            waiting: stored::nanos(self.waiting),
            // All readers of a queue are one group: there is one, or there never was one.
            subscribers: i64::from(is_used || delivered > 0),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    last_activity: u64,
    is_active: bool,
    incoming: Counters,
    outgoing: Counters,
}

impl<'a> Listed<'a> {
    fn live(kind: Kind, name: &'a str, counted: &Counted, is_active: bool) -> Self {
        let counters = |messages: u64, volume: u64, responses: u64| Counters {
            messages: messages.min(MOST),
            volume: volume.min(MOST),
            responses: responses.min(MOST),
            waiting: 0,
            expired: 0,
            delayed: 0,
        };
        Self {
            name,
            kind: kind.name(),
            last_activity: counted.last_seen / 1_000_000,
            is_active,
            incoming: counters(counted.sent, counted.sent_bytes, 0),
            outgoing: counters(counted.delivered, counted.delivered_bytes, counted.responses),
        }
    }
}

#[derive(Serialize)]
struct Counters {
    messages: u64,
    volume: u64,
    responses: u64,
    waiting: u64,
    expired: u64,
    delayed: u64,
}

/// Which names a list is to hold: SDKs mean a part of the name, a regular expression or a subject wildcard.
struct Filter<'a> {
    text: &'a str,
    pattern: Option<Regex>,
}

impl<'a> Filter<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, pattern: RegexBuilder::new(text).size_limit(FILTER_BYTES).build().ok() }
    }

    fn matches(&self, name: &str) -> bool {
        name.contains(self.text)
            || self.pattern.as_ref().is_some_and(|pattern| pattern.is_match(name))
            || matches_wildcard(self.text, name)
    }
}

/// Returns whether `name` matches a subject pattern: `*` stands for one part, a final `>` for all that follow.
pub(super) fn matches_wildcard(pattern: &str, name: &str) -> bool {
    let mut parts = name.split('.');
    let mut tokens = pattern.split('.').peekable();
    while let Some(token) = tokens.next() {
        let Some(part) = parts.next() else { return false };
        if token == ">" && tokens.peek().is_none() {
            return true;
        }
        if token != "*" && token != part {
            return false;
        }
    }
    parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_parts_expressions_and_wildcards() {
        let rows = [
            ("", "anything", true),
            ("ord", "orders", true),
            ("orders", "ord", false),
            ("^ord.*s$", "orders", true),
            ("^rd", "orders", false),
            ("a.*", "a.b", true),
            ("a.*.c", "a.b.c", true),
            ("x.>", "x.b.c", true),
            ("x.>", "x", false),
            ("*.b", "a.b", true),
            ("*.b", "a.c", false),
            ("a+b", "a+b", true),
            ("(", "a(b", true),
            ("(", "ab", false),
            // Beyond what an expression may cost it is text.
            ("(a{999}){999}", "aaa", false),
            ("(a{999}){999}", "(a{999}){999}", true),
        ];
        for (filter, name, expected) in rows {
            assert_eq!(Filter::new(filter).matches(name), expected, "{filter} on {name}");
        }
    }

    #[test]
    fn names_are_checked_by_kind() {
        assert_eq!(channel_name(Kind::Queue, "a*").err(), Some(Refusal::QueueName));
        assert_eq!(channel_name(Kind::Queue, "a..b").err(), Some(Refusal::QueueName));
        assert_eq!(channel_name(Kind::Events, "a*").err(), Some(Refusal::ChannelWildcard));
        assert_eq!(channel_name(Kind::Commands, "").err(), Some(Refusal::EmptyChannel));
        assert!(channel_name(Kind::EventsStore, "a/b:c").is_ok());
    }

    #[test]
    fn every_type_has_its_name() {
        for kind in Kind::ALL {
            assert_eq!(kind_of(kind.name()), Some(kind));
        }
        assert_eq!(kind_of("topics"), None);
    }

    #[test]
    fn a_listed_channel_has_every_key_and_bounded_numbers() {
        let seen = Seen {
            id: ChannelId(1),
            name: "q".into(),
            totals: Totals { sent: u64::MAX, delayed: 2, expired: 3, settled: 4, ..Totals::default() },
            waiting: 5,
            waiting_bytes: 6,
            first: None,
            last: None,
            last_activity: 7_000_000,
        };
        let expected = concat!(
            r#"{"name":"q","type":"queues","lastActivity":7,"isActive":true,"#,
            r#""incoming":{"messages":2147483647,"volume":0,"responses":0,"waiting":5,"expired":3,"delayed":2},"#,
            r#""outgoing":{"messages":4,"volume":0,"responses":0,"waiting":5,"expired":3,"delayed":2}}"#
        );
        assert_eq!(serde_json::to_string(&seen.listed(Kind::Queue, true)).unwrap(), expected);
    }
}
