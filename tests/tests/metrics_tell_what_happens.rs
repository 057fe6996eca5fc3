//! Promise: each number that README.md names stands in `/metrics`, none stands there unnamed, and traffic moves them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking with what it saw")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kubemq_proto::kubemq::request::RequestType;
use kubemq_proto::kubemq::subscribe::SubscribeType;
use kubemq_proto::kubemq::{
    Event, QueueMessage, QueueMessagePolicy, QueuesDownstreamRequest, QueuesDownstreamRequestType,
    QueuesUpstreamRequest, ReceiveQueueMessagesRequest, Request, Response, StreamQueueMessagesRequest,
    StreamRequestType, Subscribe,
};
use kubemq_tests::client::{attributes, get, message, message_with, old, old_receive, receive_request, settle};
use kubemq_tests::http::http_get;
use kubemq_tests::live::{event, executed, request, subscribe};
use kubemq_tests::process::Options;
use kubemq_tests::stored::{from_first, stored};
use kubemq_tests::wait::SOON;
use kubemq_tests::{Client, Server, wait_until};

/// Of these nothing but their presence can be asked of one node in a moment.
const STILL: [&str; 20] = [
    // It is what it is.
    "kubemq_build_info",
    "kubemq_durability_info",
    // Nothing is wrong with the disk, see damaged_messages.rs.
    "kubemq_store_nearly_full",
    "kubemq_damaged_messages_total",
    "kubemq_missing_bodies",
    "kubemq_scrub_read_bytes_total",
    "kubemq_scrub_damaged",
    "kubemq_scrub_last_pass_seconds",
    "kubemq_index_came_back_total",
    "kubemq_index_left_memory_total",
    "kubemq_index_refused_total",
    // In whole seconds.
    "process_cpu_seconds_total",
    // Nothing large enough, see large_uploads.rs.
    "kubemq_index_blocks",
    "kubemq_index_disk_bytes",
    "kubemq_ingest_bytes",
    "kubemq_ingest_waiting",
    // Nothing waits for its flush after it was acknowledged, see flush_now_and_then.rs.
    "kubemq_log_unflushed_bytes",
    // Gone again too quickly to be seen for sure.
    "kubemq_stream_unanswered_requests",
    "kubemq_stream_unanswered_bytes",
    "kubemq_readers_waiting_events",
];
/// Only clusters have these.
const OF_CLUSTERS: [&str; 1] = ["kubemq_raft_follower_lag_entries"];

/// What a scrape says: a value for each name and its labels.
struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    fn of(server: &Server) -> Self {
        let (status, text) = http_get(&server.http(), "/metrics").unwrap();
        assert_eq!(status, 200, "{text}");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self(
            lines
                .map(|line| line.rsplit_once(' ').unwrap())
                .map(|(key, value)| (key.to_owned(), value.parse().unwrap()))
                .collect(),
        )
    }

    /// Returns the sum of a name's values over all labels that contain each of `labels`.
    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let named = self.0.iter().filter(|(key, _)| key.split('{').next() == Some(name));
        named.filter(|(key, _)| labels.iter().all(|label| key.contains(label))).map(|(_, value)| value).sum()
    }

    /// Returns the names, a histogram's once.
    fn names(&self) -> BTreeSet<String> {
        let name = |key: &str| key.split('{').next().unwrap().to_owned();
        let mut names: BTreeSet<String> = self.0.keys().map(|key| name(key)).collect();
        let histograms: Vec<String> =
            names.iter().filter_map(|name| name.strip_suffix("_bucket")).map(str::to_owned).collect();
        for histogram in histograms {
            for part in ["_bucket", "_sum", "_count"] {
                names.remove(&format!("{histogram}{part}"));
            }
            names.insert(histogram);
        }
        names
    }
}

/// Returns the names that the README's list of metrics holds.
fn documented() -> BTreeSet<String> {
    let readme = include_str!("../../README.md");
    let section = readme.split("\n## Metrics\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let quoted = section.split('`').skip(1).step_by(2);
    quoted.filter(|word| word.starts_with("kubemq_") || word.starts_with("process_")).map(str::to_owned).collect()
}

/// What was seen to move.
struct Watch {
    server: Server,
    before: Scrape,
    moved: BTreeSet<String>,
}

impl Watch {
    /// Waits until the sum of a name's values is what `is` says of it and of the sum at the beginning.
    async fn until(&mut self, name: &str, labels: &[&str], is: impl Fn(f64, f64) -> bool) {
        let before = self.before.sum(name, labels);
        let what = format!("{name} {labels:?}, which was {before}");
        wait_until(&what, SOON, async || is(before, Scrape::of(&self.server).sum(name, labels)).then_some(())).await;
        self.moved.insert(name.to_owned());
    }

    /// Waits until there is so much more.
    async fn more(&mut self, name: &str, labels: &[&str], by: f64) {
        self.until(name, labels, |before, now| now == before + by).await;
    }

    /// Waits until there is any more.
    async fn grows(&mut self, name: &str, labels: &[&str]) {
        self.until(name, labels, |before, now| now > before).await;
    }

    /// Waits until there is something.
    async fn positive(&mut self, name: &str, labels: &[&str]) {
        self.until(name, labels, |_, now| now > 0.0).await;
    }
}

async fn queues(watch: &mut Watch, client: &Client) {
    let of = ["type=\"queues\"", "channel=\"m.q\""];
    let side = |side| [of[0], of[1], side];
    let (send, receive) = (side("side=\"send\""), side("side=\"receive\""));
    client.fill("m.q", ["1", "2", "3", "4"]).await;
    client.take("m.q", 1).await;
    watch.more("kubemq_messages_count", &send, 4.0).await;
    watch.more("kubemq_messages_count", &receive, 1.0).await;
    watch.grows("kubemq_messages_volume", &send).await;
    watch.grows("kubemq_messages_volume", &receive).await;
    watch.more("kubemq_messages_pending", &send, 3.0).await;
    watch.more("kubemq_queue_depth", &of, 3.0).await;
    watch.positive("kubemq_messages_last_seen", &of).await;
    watch.positive("kubemq_queue_oldest_age_seconds", &of).await;
    let oldest = Scrape::of(&watch.server).sum("kubemq_queue_oldest_age_seconds", &of);
    watch.until("kubemq_queue_oldest_age_seconds", &of, |_, now| now > oldest && now < 600.0).await;

    let mut stream = client.downstream().await;
    let (transaction, _) = stream.hold("m.q", 3).await;
    watch.more("kubemq_queue_inflight", &[], 3.0).await;
    stream.send(settle(QueuesDownstreamRequestType::NAckAll, &transaction)).await;
    watch.more("kubemq_redelivered_total", &of, 3.0).await;

    let policy = QueueMessagePolicy { delay_seconds: 3600, ..QueueMessagePolicy::default() };
    client.send(message_with("m.q", "later", policy)).await;
    watch.more("kubemq_messages_delayed", &of, 1.0).await;
    watch.more("kubemq_timers", &[], 1.0).await;
    let policy = QueueMessagePolicy { expiration_seconds: 1, ..QueueMessagePolicy::default() };
    client.send(message_with("m.x", "short", policy)).await;
    kubemq_tests::sleep(Duration::from_millis(1200)).await;
    assert!(client.receive("m.x", 1, 1).await.messages.is_empty());
    watch.more("kubemq_messages_expired", &["type=\"queues\"", "channel=\"m.x\""], 1.0).await;
    let policy = QueueMessagePolicy { max_receive_count: 1, max_receive_queue: "m.d".into(), ..Default::default() };
    client.send(message_with("m.l", "letter", policy)).await;
    let (transaction, _) = stream.hold("m.l", 1).await;
    stream.send(settle(QueuesDownstreamRequestType::NAckAll, &transaction)).await;
    watch.more("kubemq_dead_letter_total", &["channel=\"m.l\""], 1.0).await;
    assert!(client.send(message("m q", "refused")).await.is_error);
    watch.more("kubemq_errors_count", &["type=\"queues\""], 1.0).await;
    let polling = client.receive("m.empty", 1, 5);
    tokio::join!(watch.positive("kubemq_queue_polls", &[]), polling);
}

/// How long each request on a stream takes is counted, and those that wait count their wait.
async fn streams(watch: &mut Watch, client: &Client) {
    let of = |method: &str, request: &str| [format!("method=\"{method}\""), format!("request=\"{request}\"")];
    let before = Scrape::of(&watch.server);
    let more = async |method: &str, request: &str, requests: f64, seconds: f64| {
        let labels = of(method, request);
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let what = format!("{requests} more of {labels:?}");
        wait_until(&what, SOON, async || {
            let now = Scrape::of(&watch.server);
            let by = |name: &str| now.sum(name, &labels) - before.sum(name, &labels);
            let counted = by("kubemq_request_duration_seconds_count") == requests;
            let took = by("kubemq_request_duration_seconds_sum");
            (counted && took >= seconds && took < seconds + 20.0).then_some(())
        })
        .await;
    };
    let mut upstream = client.upstream().await;
    for number in 0..3 {
        let messages = vec![message("m.up", "1"), message("m.up", "2")];
        let request_id = number.to_string();
        assert!(!upstream.ask(QueuesUpstreamRequest { request_id, messages }).await.is_error);
    }
    more("QueuesUpstream", "send", 3.0, 0.0).await;
    let events = client.events_stream().await;
    for _ in 0..5 {
        events.send(event("m.up", "unheard")).await;
    }
    let mut stored_events = client.try_publish().await.unwrap();
    stored_events.send(stored("m.us", "kept")).await;
    assert!(stored_events.next().await.sent);
    more("SendEventsStream", "send", 6.0, 0.0).await;
    let mut downstream = client.downstream().await;
    let (transaction, _) = downstream.hold("m.up", 5).await;
    downstream.send(settle(QueuesDownstreamRequestType::AckAll, &transaction)).await;
    assert!(downstream.get(get("m.nothing", 1, 1000)).await.messages.is_empty());
    more("QueuesDownstream", "get", 2.0, 1.0).await;
    more("QueuesDownstream", "settle", 1.0, 0.0).await;
    let mut old_stream = client.stream().await;
    let held = old_stream.ask(old_receive("m.up", 60, 10)).await.message.unwrap();
    let sequence = attributes(&held).sequence;
    let ack = StreamQueueMessagesRequest { ref_sequence: sequence, ..old(StreamRequestType::AckMessage, "m.up") };
    assert!(!old_stream.ask(ack).await.is_error);
    let mut waits = client.stream().await;
    assert!(waits.ask(old_receive("m.nothing", 60, 1)).await.is_error);
    more("StreamQueueMessage", "get", 2.0, 1.0).await;
    more("StreamQueueMessage", "settle", 1.0, 0.0).await;
}

async fn stored_events(watch: &mut Watch, client: &Client) {
    let of = ["type=\"events_store\"", "channel=\"m.s\""];
    let side = |side| [of[0], of[1], side];
    let (send, receive) = (side("side=\"send\""), side("side=\"receive\""));
    let mut stream = client.try_publish().await.unwrap();
    // More than the tail cache holds.
    for _ in 0..40 {
        stream.send(stored("m.s", vec![7; 64 * 1024])).await;
    }
    for _ in 0..40 {
        assert!(stream.next().await.sent);
    }
    watch.more("kubemq_messages_count", &send, 40.0).await;
    let mut reading = client.read(from_first("m.s", "c")).await;
    assert_eq!(reading.sequences(40).await.len(), 40);
    watch.more("kubemq_clients_count", &of, 1.0).await;
    watch.more("kubemq_messages_count", &receive, 40.0).await;
    watch.grows("kubemq_messages_volume", &receive).await;
    watch.more("kubemq_messages_pending", &of, 40.0).await;
    watch.positive("kubemq_messages_last_seen", &of).await;
    watch.grows("kubemq_log_file_reads_total", &[]).await;
    stream.send(stored("m s", "refused")).await;
    assert!(!stream.next().await.sent);
    watch.more("kubemq_errors_count", &["type=\"events_store\""], 1.0).await;
    drop(reading);
    watch.more("kubemq_clients_count", &of, 0.0).await;
}

async fn events(watch: &mut Watch, client: &Client) {
    let of = ["type=\"events\"", "channel=\"m.e\""];
    let mut subscribed = client.events("m.e", "").await;
    let stalled = Client::connect(&watch.server.grpc()).await.events("m.e", "").await;
    client.publish("m.e", ["1", "2", "3"]).await;
    subscribed.take(3).await;
    watch.more("kubemq_messages_count", &[of[0], of[1], "side=\"send\""], 3.0).await;
    watch.more("kubemq_messages_count", &[of[0], of[1], "side=\"receive\""], 6.0).await;
    watch.more("kubemq_clients_count", &of, 2.0).await;
    // More than the connection of one that does not read takes, and than may wait for it.
    let stream = client.events_stream().await;
    for _ in 0..24 {
        stream.send(event("m.e", vec![7; 1 << 20])).await;
        subscribed.take(1).await;
    }
    watch.positive("kubemq_subscribers_dropped_total", &of).await;
    watch.positive("kubemq_subscribers_waiting_bytes", &[]).await;
    watch.positive("kubemq_buffer_used", &["buffer=\"subscribers_bytes\""]).await;
    assert!(client.send_event(event("m e", "refused")).await.is_err());
    watch.more("kubemq_errors_count", &["type=\"events\""], 1.0).await;
    drop((subscribed, stalled));
    watch.more("kubemq_clients_count", &of, 0.0).await;
}

async fn requests(watch: &mut Watch, client: &Client) {
    for (kind, asked, name) in [
        (RequestType::Command, SubscribeType::Commands, "type=\"commands\""),
        (RequestType::Query, SubscribeType::Queries, "type=\"queries\""),
    ] {
        let channel = if kind == RequestType::Query { "m.y" } else { "m.c" };
        let responder = client.respond(asked, channel, "", |request| executed(&request)).await;
        let request = request(kind, channel, "b", 10_000);
        client.ask(Request { cache_key: "k".into(), cache_ttl: 60, ..request }).await.unwrap();
        watch.more("kubemq_messages_count", &[name, "side=\"send\""], 1.0).await;
        watch.more("kubemq_messages_count", &[name, "side=\"receive\""], 1.0).await;
        watch.more("kubemq_clients_count", &[name], 1.0).await;
        drop(responder);
        watch.more("kubemq_clients_count", &[name], 0.0).await;
    }
    watch.more("kubemq_messages_count", &["type=\"responses\""], 2.0).await;
    watch.more("kubemq_query_cache_entries", &[], 1.0).await;
    watch.positive("kubemq_query_cache_bytes", &[]).await;
    let waits = client.ask(request(RequestType::Query, "m.nobody", "b", 3_000));
    let (answer, ()) = tokio::join!(waits, watch.more("kubemq_requests_pending", &[], 1.0));
    assert!(answer.is_err());
    watch.more("kubemq_errors_count", &["type=\"queries\"", "channel=\"m.nobody\""], 1.0).await;
}

#[tokio::test]
async fn each_number_stands_there_and_moves() {
    let environment = [("LIMITS_TAIL_CACHE".to_owned(), "1MiB".to_owned())].into();
    let arguments = ["--set".to_owned(), "limits.subscriber=4MiB".to_owned()].into();
    let server = Server::start_with(Options { environment, arguments, ..Options::default() }).await;
    let client = Client::connect(&server.grpc()).await;
    let before = Scrape::of(&server);
    let mut watch = Watch { server, before, moved: BTreeSet::new() };
    queues(&mut watch, &client).await;
    streams(&mut watch, &client).await;
    stored_events(&mut watch, &client).await;
    events(&mut watch, &client).await;
    requests(&mut watch, &client).await;
    for name in [
        "kubemq_channels",
        "kubemq_operations_total",
        "kubemq_log_written_bytes_total",
        "kubemq_log_entries_total",
        "kubemq_log_groups_total",
        "kubemq_log_fdatasync_total",
        "kubemq_log_fdatasync_seconds_count",
        "kubemq_commit_seconds_count",
        "kubemq_raft_committed_index",
        "kubemq_raft_applied_index",
        "kubemq_index_memory_bytes",
    ] {
        watch.grows(name, &[]).await;
    }
    for (method, calls) in [("SendQueueMessagesBatch", 1.0), ("SendQueueMessage", 4.0), ("SendRequest", 3.0)] {
        watch.more("kubemq_request_duration_seconds_count", &[&format!("method=\"{method}\"")], calls).await;
    }
    for name in [
        "kubemq_store_bytes",
        "kubemq_store_free_bytes",
        "kubemq_store_segments",
        "kubemq_log_tail_bytes",
        "kubemq_buffer_limit",
        "kubemq_raft_term",
        "kubemq_raft_leader",
        "kubemq_raft_leader_changes_total",
        "process_resident_memory_bytes",
        "process_threads",
        "process_start_time_seconds",
        "process_open_fds",
    ] {
        watch.positive(name, &[]).await;
    }
    let fill = Scrape::of(&watch.server);
    for buffer in ["outbox_operations", "outbox_bytes", "batcher_operations", "batcher_bytes", "ingest_bytes"]
        .into_iter()
        .chain([
            "subscribers_bytes",
            "requests_pending",
            "query_cache_bytes",
            "page_cache_bytes",
            "tail_cache_bytes",
            "index_bytes",
            "channels",
        ])
    {
        let label = format!("buffer=\"{buffer}\"");
        let [used, limit] = ["used", "limit"].map(|what| fill.sum(&format!("kubemq_buffer_{what}"), &[&label]));
        assert!(limit > 0.0 && used <= limit, "{buffer}: {used} of {limit}");
    }

    let documented = documented();
    let shown = fill.names();
    let unnamed: Vec<_> = shown.difference(&documented).collect();
    assert!(unnamed.is_empty(), "README.md does not name {unnamed:?}");
    let missing: Vec<_> =
        documented.iter().filter(|name| !shown.contains(*name) && !OF_CLUSTERS.contains(&name.as_str())).collect();
    assert!(missing.is_empty(), "/metrics lacks {missing:?}");
    let moved = |name: &String| watch.moved.contains(name) || watch.moved.contains(&format!("{name}_count"));
    let untouched: Vec<_> = shown.iter().filter(|name| !moved(name) && !STILL.contains(&name.as_str())).collect();
    assert!(untouched.is_empty(), "nothing here moves {untouched:?}");
}

/// Waits until the messages of a client, on one side of one channel, are so many; all five labels are named.
async fn counted(server: &Server, name: &str, [client, kind, side, channel]: [&str; 4], messages: f64) {
    let labels = format!("client_id=\"{client}\",type=\"{kind}\",side=\"{side}\",channel=\"{channel}\"}}");
    let mut last = 0.0;
    let what = format!("{messages} of {name} {labels}");
    wait_until(&what, SOON, async || {
        last = Scrape::of(server).sum(name, &["{node=\"", &labels]);
        (last == messages).then_some(())
    })
    .await;
}

async fn queue_messages(client: &Client, from: &str, channel: &str, count: usize) {
    let by = |message: QueueMessage| QueueMessage { client_id: from.into(), ..message };
    let answer = client.batch((0..count).map(|_| by(message(channel, "x")))).await;
    assert!(!answer.have_errors);
}

#[tokio::test]
async fn what_each_client_sends_and_receives_is_counted() {
    let server = Server::start().await;
    let client = Client::connect(&server.grpc()).await;
    const COUNT: &str = "kubemq_messages_count";

    queue_messages(&client, "batch", "l.q", 3).await;
    assert!(!client.send(QueueMessage { client_id: "alone".into(), ..message("l.q", "x") }).await.is_error);
    let messages = ["up", "up", "up too"].map(|from| QueueMessage { client_id: from.into(), ..message("l.q", "x") });
    let mut upstream = client.upstream().await;
    let request = QueuesUpstreamRequest { request_id: "r".into(), messages: messages.into() };
    assert!(!upstream.ask(request).await.is_error);
    for (from, messages) in [("batch", 3.0), ("alone", 1.0), ("up", 2.0), ("up too", 1.0)] {
        counted(&server, COUNT, [from, "queues", "send", "l.q"], messages).await;
    }
    let receive = ReceiveQueueMessagesRequest { client_id: "receiver".into(), ..receive_request("l.q", 2, 5) };
    assert_eq!(
        client.receive_with(ReceiveQueueMessagesRequest { is_peak: true, ..receive.clone() }).await.messages_received,
        2
    );
    assert_eq!(client.receive_with(receive).await.messages_received, 2);
    let mut downstream = client.downstream().await;
    for (to, auto_ack) in [("down", false), ("auto", true)] {
        let get = QueuesDownstreamRequest { client_id: to.into(), auto_ack, ..get("l.q", 1, 5_000) };
        assert_eq!(downstream.get(get).await.messages.len(), 1);
    }
    let old_receive = StreamQueueMessagesRequest { client_id: "old".into(), ..old_receive("l.q", 60, 5) };
    assert!(client.stream().await.ask(old_receive).await.message.is_some());
    for (to, messages) in [("receiver", 2.0), ("down", 1.0), ("auto", 1.0), ("old", 1.0)] {
        counted(&server, COUNT, [to, "queues", "receive", "l.q"], messages).await;
    }

    let by = |from: &str, event: Event| Event { client_id: from.into(), ..event };
    assert!(client.store_event(by("one", stored("l.s", "x"))).await.sent);
    let mut stream = client.try_publish().await.unwrap();
    for _ in 0..2 {
        stream.send(by("many", stored("l.s", "x"))).await;
        assert!(stream.next().await.sent);
    }
    let mut reading = client.read(from_first("l.s", "reader")).await;
    assert_eq!(reading.sequences(3).await.len(), 3);
    counted(&server, COUNT, ["one", "events_store", "send", "l.s"], 1.0).await;
    counted(&server, COUNT, ["many", "events_store", "send", "l.s"], 2.0).await;
    counted(&server, COUNT, ["reader", "events_store", "receive", "l.s"], 3.0).await;

    // S97: three events, two subscribers.
    let by_client = |client: &str, kind| Subscribe { client_id: client.into(), ..subscribe(kind, "l.e", "") };
    let mut first = client.try_events(by_client("first", SubscribeType::Events)).await.unwrap();
    let mut second = client.try_events(by_client("second", SubscribeType::Events)).await.unwrap();
    let stream = client.events_stream().await;
    for from in ["publisher", "publisher", "another"] {
        stream.send(by(from, event("l.e", "x"))).await;
    }
    first.take(3).await;
    second.take(3).await;
    for (from, messages) in [("publisher", 2.0), ("another", 1.0)] {
        counted(&server, COUNT, [from, "events", "send", "l.e"], messages).await;
    }
    for to in ["first", "second"] {
        counted(&server, COUNT, [to, "events", "receive", "l.e"], 3.0).await;
    }

    let answer = |request: &Request| Response { client_id: "answers".into(), ..executed(request) };
    let _responder = client.respond(SubscribeType::Queries, "l.y", "", move |request| answer(&request)).await;
    let ask = |channel| Request { client_id: "asks".into(), ..request_of(channel) };
    client.ask(ask("l.y")).await.unwrap();
    assert!(client.ask(ask("l.nobody")).await.is_err());
    counted(&server, COUNT, ["asks", "queries", "send", "l.y"], 1.0).await;
    counted(&server, COUNT, ["answers", "responses", "send", ""], 1.0).await;
    counted(&server, "kubemq_errors_count", ["asks", "queries", "send", "l.nobody"], 1.0).await;
    counted(&server, "kubemq_errors_count", ["asks", "queries", "send", "l.y"], 0.0).await;
}

fn request_of(channel: &str) -> Request {
    request(RequestType::Query, channel, "b", 500)
}

#[tokio::test]
async fn so_many_clients_are_named_and_the_others_summed_up() {
    let count = "kubemq_messages_count";
    let labels = |most: &str| Options {
        arguments: vec!["--set".to_owned(), format!("metrics.clientLabels={most}")],
        ..Options::default()
    };
    let server = Server::start_with(labels("3")).await;
    let client = Client::connect(&server.grpc()).await;
    for from in ["a", "b", "a", "c", "d", "e"] {
        queue_messages(&client, from, "b.q", 2).await;
    }
    queue_messages(&client, "a", "b.r", 1).await;
    for (client, channel, messages) in
        [("a", "b.q", 4.0), ("b", "b.q", 2.0), ("c", "b.q", 2.0), ("_other", "b.q", 4.0), ("_other", "b.r", 1.0)]
    {
        counted(&server, count, [client, "queues", "send", channel], messages).await;
    }
    let scrape = Scrape::of(&server);
    let [used, limit] =
        ["used", "limit"].map(|what| scrape.sum(&format!("kubemq_buffer_{what}"), &["buffer=\"client_labels\""]));
    assert_eq!((used, limit), (3.0, 3.0));
    drop(server);

    let server = Server::start_with(labels("0")).await;
    let client = Client::connect(&server.grpc()).await;
    for from in ["a", "b"] {
        queue_messages(&client, from, "b.q", 2).await;
    }
    counted(&server, count, ["", "queues", "send", "b.q"], 4.0).await;
    assert!(!Scrape::of(&server).0.keys().any(|key| key.contains("client_id=\"a\"") || key.contains("_other")));
}
