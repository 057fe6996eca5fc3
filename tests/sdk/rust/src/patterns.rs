//! The scenarios of events, events-store, commands and queries.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kubemq::{
    Command, CommandReply, CommandResponse, Event, EventStore, EventStoreReceive, EventsStoreSubscription as Start,
    JitterMode, KubemqClient, Query, QueryReply, QueryResponse, Result, RetryPolicy, Subscription,
};

use crate::world::{World, body, list, must, texts, until};

const PROBE: &str = "probe";

/// Plays a scenario; returns false when it is not one of these.
pub async fn play(id: &str, w: World) -> bool {
    match id {
        "events_send" => events_send(w).await,
        "events_stream" => events_stream(w).await,
        "events_fan_out" => events_fan_out(w).await,
        "events_groups" => events_groups(w).await,
        "events_group_left" => events_group_left(w).await,
        "events_wildcards" => events_wildcards(w).await,
        "events_large" => events_large(w).await,
        "events_idle" => events_idle(w).await,
        "events_reconnect" => events_reconnect(w, "kill").await,
        "events_restart" => events_reconnect(w, "stop").await,
        "store_send" => store_send(w).await,
        "store_stream" => store_stream(w).await,
        "store_new_only" => store_new_only(w).await,
        "store_first" => store_from(w, Start::StartFromFirst, 1).await,
        "store_last" => store_from(w, Start::StartFromLast, 10).await,
        "store_sequence" => store_from(w, Start::StartAtSequence(4), 4).await,
        "store_sequence_ahead" => store_sequence_ahead(w).await,
        "store_time" => store_time(w).await,
        "store_delta" => store_delta(w).await,
        "store_groups" => store_groups(w).await,
        "store_resume" => store_resume(w).await,
        "store_closed" => store_closed(w).await,
        "store_reconnect" => store_reconnect(w, "kill").await,
        "store_restart" => store_reconnect(w, "stop").await,
        "command_answer" => command_answer(w).await,
        "command_error" => command_error(w).await,
        "command_timeout" => command_timeout(w).await,
        "command_groups" => command_groups(w).await,
        "command_concurrent" => command_concurrent(w).await,
        "command_reconnect" => command_reconnect(w).await,
        "query_answer" => query_answer(w).await,
        "query_error" => query_error(w).await,
        "query_timeout" => query_timeout(w).await,
        "query_cache" => query_cache(w).await,
        "query_large" => query_large(w).await,
        "query_groups" => query_groups(w).await,
        _ => return false,
    }
    true
}

/// What a subscriber has received: an event, a stored event, a command or a query.
#[derive(Clone, Debug, Default)]
struct Got {
    id: String,
    channel: String,
    metadata: String,
    body: String,
    tag: String,
    sequence: u64,
    timestamp: i64,
}

/// Collects what a subscriber receives. Probes, which show that a subscription works, are only counted.
#[derive(Clone, Default)]
struct Inbox {
    received: Arc<Mutex<Vec<Got>>>,
    probes: Arc<Mutex<usize>>,
    subscription: Option<Arc<Subscription>>,
}

impl Inbox {
    fn put(&self, got: Got) {
        if got.body == PROBE {
            *self.probes.lock().unwrap() += 1;
        } else {
            self.received.lock().unwrap().push(got);
        }
    }

    fn all(&self) -> Vec<Got> {
        self.received.lock().unwrap().clone()
    }

    fn bodies(&self) -> Vec<String> {
        self.all().into_iter().map(|got| got.body).collect()
    }

    fn probed(&self) -> bool {
        *self.probes.lock().unwrap() > 0
    }

    fn forget_probes(&self) {
        *self.probes.lock().unwrap() = 0;
    }

    /// Waits for as many as are expected, and compares.
    async fn has(&self, expected: &[String]) {
        let enough = async || (self.all().len() >= expected.len()).then_some(());
        until(&format!("{} messages", expected.len()), enough).await;
        assert_eq!(self.bodies(), expected);
    }
}

fn tag(tags: &std::collections::HashMap<String, String>) -> String {
    tags.get("key").cloned().unwrap_or_default()
}

/// Returns a client whose subscriptions come back. They try once, and again only as long as each try meets a server.
async fn reconnecting(w: &World) -> KubemqClient {
    let (initial_backoff, jitter_mode) = (Duration::from_secs(2), JitterMode::None);
    let policy = RetryPolicy { initial_backoff, jitter_mode, ..RetryPolicy::default() };
    let builder = KubemqClient::builder().host(&w.host).port(w.port).client_id("rust").retry_policy(policy);
    must(builder.build().await)
}

async fn subscribe(client: &KubemqClient, channel: &str, group: &str) -> Inbox {
    let mut inbox = Inbox::default();
    let copy = inbox.clone();
    let on_event = move |event: kubemq::EventReceive| -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        let kubemq::EventReceive { id, channel, metadata, body: bytes, tags, .. } = event;
        copy.put(Got { id, channel, metadata, body: body(&bytes), tag: tag(&tags), ..Got::default() });
        Box::pin(async {})
    };
    inbox.subscription = Some(Arc::new(must(client.subscribe_to_events(channel, group, on_event, None).await)));
    inbox
}

async fn follow(client: &KubemqClient, channel: &str, group: &str, start: Start) -> Inbox {
    let mut inbox = Inbox::default();
    let copy = inbox.clone();
    let on_event = move |event: EventStoreReceive| -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        let EventStoreReceive { id, sequence, timestamp, channel, metadata, body: bytes, tags } = event;
        copy.put(Got { id, channel, metadata, body: body(&bytes), tag: tag(&tags), sequence, timestamp });
        Box::pin(async {})
    };
    inbox.subscription =
        Some(Arc::new(must(client.subscribe_to_events_store(channel, group, start, on_event, None).await)));
    inbox
}

async fn publish(client: &KubemqClient, channel: &str, bodies: &[String]) {
    for one in bodies {
        must(client.publish_event(channel, one.as_bytes(), None, None).await);
    }
}

async fn store(client: &KubemqClient, channel: &str, bodies: &[String]) {
    for one in bodies {
        let result = must(client.publish_event_store(channel, one.as_bytes(), None, None).await);
        assert!(result.sent && result.error.is_empty(), "{result:?}");
    }
}

/// Sends probes until every subscriber has seen one.
async fn ready(client: &KubemqClient, channel: &str, inboxes: &[&Inbox]) {
    until("the subscriptions", async || {
        client.publish_event(channel, PROBE, None, None).await.ok()?;
        inboxes.iter().all(|inbox| inbox.probed()).then_some(())
    })
    .await;
}

/// Waits until members have got as many as are expected between them, each of them some, and compares.
async fn together(expected: &[String], members: &[&Inbox]) {
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

async fn events_send(w: World) {
    let client = w.client().await;
    let inbox = subscribe(&client, &w.channel, "").await;
    ready(&client, &w.channel, &[&inbox]).await;
    let event = Event::builder().id("my-id").channel(&w.channel).metadata("metadata").body("body");
    must(client.send_event(event.add_tag("key", "value").build()).await);
    inbox.has(&list(&["body"])).await;
    let got = inbox.all().remove(0);
    assert_eq!((&*got.id, &*got.metadata, &*got.tag, &got.channel), ("my-id", "metadata", "value", &w.channel));
}

async fn events_stream(w: World) {
    let client = w.client().await;
    let inbox = subscribe(&client, &w.channel, "").await;
    ready(&client, &w.channel, &[&inbox]).await;
    let mut stream = must(client.send_event_stream().await);
    for one in texts(1, 100) {
        must(stream.send(Event::builder().channel(&w.channel).body(one).build()).await);
    }
    inbox.has(&texts(1, 100)).await;
    assert!(stream.errors().try_recv().is_err(), "an error over the stream");
}

async fn events_fan_out(w: World) {
    let client = w.client().await;
    let first = subscribe(&client, &w.channel, "").await;
    let second = subscribe(&client, &w.channel, "").await;
    ready(&client, &w.channel, &[&first, &second]).await;
    publish(&client, &w.channel, &texts(1, 20)).await;
    first.has(&texts(1, 20)).await;
    second.has(&texts(1, 20)).await;
}

async fn events_groups(w: World) {
    let client = w.client().await;
    let one = subscribe(&client, &w.channel, "group").await;
    let two = subscribe(&client, &w.channel, "group").await;
    let other = subscribe(&client, &w.channel, "other").await;
    let single = subscribe(&client, &w.channel, "").await;
    ready(&client, &w.channel, &[&one, &two, &other, &single]).await;
    publish(&client, &w.channel, &texts(1, 60)).await;
    single.has(&texts(1, 60)).await;
    other.has(&texts(1, 60)).await;
    together(&texts(1, 60), &[&one, &two]).await;
}

async fn events_group_left(w: World) {
    let client = w.client().await;
    let stays = subscribe(&client, &w.channel, "group").await;
    let leaves = subscribe(&client, &w.channel, "group").await;
    ready(&client, &w.channel, &[&stays, &leaves]).await;
    leaves.subscription.as_ref().expect("a subscription").unsubscribe().await;
    // Until the server has noticed, some may still go to who left.
    let mut round = 0;
    until("a round that reaches the one who stays", async || {
        round += 1;
        let bodies: Vec<String> = texts(1, 20).iter().map(|number| format!("{round}-{number}")).collect();
        publish(&client, &w.channel, &bodies).await;
        for _ in 0..20 {
            if stays.bodies().ends_with(&bodies) {
                return Some(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        None
    })
    .await;
}

async fn events_wildcards(w: World) {
    let client = w.client().await;
    let star = subscribe(&client, &w.other("*"), "").await;
    let rest = subscribe(&client, &w.other(">"), "").await;
    ready(&client, &w.other("p"), &[&star, &rest]).await;
    publish(&client, &w.other("a.b"), &list(&["deep"])).await;
    publish(&client, &w.other("a"), &list(&["flat"])).await;
    rest.has(&list(&["deep", "flat"])).await;
    star.has(&list(&["flat"])).await;
    assert_eq!((&rest.all()[0].channel, &star.all()[0].channel), (&w.other("a.b"), &w.other("a")));
}

/// Returns the body of messages that pass the limits of every SDK just so.
fn large() -> String {
    "0123456789".repeat(300_000)
}

async fn events_large(w: World) {
    let client = w.client().await;
    let inbox = subscribe(&client, &w.channel, "").await;
    ready(&client, &w.channel, &[&inbox]).await;
    publish(&client, &w.channel, &[large()]).await;
    until("the event", async || (!inbox.all().is_empty()).then_some(())).await;
    assert!(inbox.bodies() == [large()], "the body changed");
}

async fn events_idle(w: World) {
    let builder = KubemqClient::builder().host(&w.host).port(w.port).client_id("rust");
    let client = must(builder.keepalive_time(Duration::from_secs(5)).build().await);
    let sender = w.client().await;
    let inbox = subscribe(&client, &w.channel, "").await;
    ready(&sender, &w.channel, &[&inbox]).await;
    tokio::time::sleep(Duration::from_secs(17)).await;
    // What is sent while a subscription is lost does not come: this one was never.
    publish(&sender, &w.channel, &texts(1, 10)).await;
    inbox.has(&texts(1, 10)).await;
}

async fn events_reconnect(w: World, how: &str) {
    let (client, sender) = (reconnecting(&w).await, w.client().await);
    let inbox = subscribe(&client, &w.channel, "").await;
    ready(&sender, &w.channel, &[&inbox]).await;
    w.again(how).await;
    inbox.forget_probes();
    ready(&sender, &w.channel, &[&inbox]).await;
    publish(&sender, &w.channel, &texts(1, 10)).await;
    inbox.has(&texts(1, 10)).await;
}

async fn store_send(w: World) {
    let client = w.client().await;
    let event = EventStore::builder().id("my-id").channel(&w.channel).metadata("metadata").body("body");
    let result = must(client.send_event_store(event.add_tag("key", "value").build()).await);
    assert!(result.sent && result.id == "my-id", "{result:?}");
    let inbox = follow(&client, &w.channel, "", Start::StartFromFirst).await;
    inbox.has(&list(&["body"])).await;
    let got = inbox.all().remove(0);
    assert_eq!((&*got.id, &*got.metadata, &*got.tag, &got.channel), ("my-id", "metadata", "value", &w.channel));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_nanos() as i64;
    assert!(got.sequence == 1 && (now - got.timestamp).abs() < 60_000_000_000, "{got:?}");
}

async fn store_stream(w: World) {
    let client = w.client().await;
    let mut stream = must(client.send_event_store_stream().await);
    let mut missing: BTreeSet<String> = texts(1, 100).into_iter().collect();
    for one in &texts(1, 100) {
        let event = EventStore::builder().id(one.as_str()).channel(&w.channel).body(one.as_str());
        must(stream.send(event.build()).await);
        // The SDK keeps 64 results at most.
        let result = tokio::time::timeout(Duration::from_secs(30), stream.results().recv()).await;
        let result = result.expect("a result in time").expect("an open stream");
        assert!(result.sent && missing.remove(&result.event_id), "{result:?}");
    }
    let inbox = follow(&client, &w.channel, "", Start::StartFromFirst).await;
    inbox.has(&texts(1, 100)).await;
}

/// Stores one message after the other until the subscriber gets one.
async fn first_new(w: &World, client: &KubemqClient, inbox: &Inbox) -> Got {
    let mut number = 0;
    until("a new event", async || {
        number += 1;
        store(client, &w.channel, &[format!("new {number}")]).await;
        inbox.all().first().cloned()
    })
    .await
}

async fn store_new_only(w: World) {
    let client = w.client().await;
    store(&client, &w.channel, &texts(1, 3)).await;
    let inbox = follow(&client, &w.channel, "", Start::StartNewOnly).await;
    let got = first_new(&w, &client, &inbox).await;
    assert!(got.body.starts_with("new") && got.sequence > 3, "{got:?}");
}

/// Stores ten, expects all from number `first` on, and then what is stored afterwards.
async fn store_from(w: World, start: Start, first: u32) {
    let client = w.client().await;
    store(&client, &w.channel, &texts(1, 10)).await;
    let inbox = follow(&client, &w.channel, "", start).await;
    inbox.has(&texts(first, 10)).await;
    store(&client, &w.channel, &texts(11, 12)).await;
    inbox.has(&texts(first, 12)).await;
    let sequences: Vec<u64> = inbox.all().iter().map(|got| got.sequence).collect();
    assert_eq!(sequences, (u64::from(first)..=12).collect::<Vec<_>>());
}

async fn store_sequence_ahead(w: World) {
    let client = w.client().await;
    store(&client, &w.channel, &texts(1, 3)).await;
    let inbox = follow(&client, &w.channel, "", Start::StartAtSequence(4)).await;
    let got = first_new(&w, &client, &inbox).await;
    assert!(got.body == "new 1" && got.sequence == 4, "{got:?}");
}

async fn store_time(w: World) {
    let client = w.client().await;
    store(&client, &w.channel, &texts(1, 5)).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let moment = SystemTime::now() - Duration::from_secs(1);
    store(&client, &w.channel, &texts(6, 10)).await;
    follow(&client, &w.channel, "", Start::StartAtTime(moment)).await.has(&texts(6, 10)).await;
}

async fn store_delta(w: World) {
    let client = w.client().await;
    store(&client, &w.channel, &texts(1, 5)).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    store(&client, &w.channel, &texts(6, 10)).await;
    let start = Start::StartAtTimeDelta(Duration::from_secs(3));
    follow(&client, &w.channel, "", start).await.has(&texts(6, 10)).await;
}

async fn store_groups(w: World) {
    let (one, two) = (w.client_named("one").await, w.client_named("two").await);
    let first = follow(&one, &w.channel, "group", Start::StartFromFirst).await;
    let second = follow(&two, &w.channel, "group", Start::StartFromFirst).await;
    until("both members", async || {
        store(&one, &w.channel, &list(&[PROBE])).await;
        (first.probed() && second.probed()).then_some(())
    })
    .await;
    store(&one, &w.channel, &texts(1, 100)).await;
    together(&texts(1, 100), &[&first, &second]).await;
    for member in [first, second] {
        assert!(member.all().is_sorted_by_key(|got| got.sequence), "not in order");
    }
}

async fn store_resume(w: World) {
    let (sender, client) = (w.client_named("sender").await, w.client_named("resumes").await);
    store(&sender, &w.channel, &texts(1, 5)).await;
    let inbox = follow(&client, &w.channel, "", Start::StartFromFirst).await;
    inbox.has(&texts(1, 5)).await;
    inbox.subscription.as_ref().expect("a subscription").unsubscribe().await;
    store(&sender, &w.channel, &texts(6, 8)).await;
    follow(&client, &w.channel, "", Start::StartFromFirst).await.has(&texts(6, 8)).await;
}

async fn store_closed(w: World) {
    let (sender, client) = (w.client_named("sender").await, w.client_named("closes").await);
    store(&sender, &w.channel, &texts(1, 5)).await;
    let inbox = follow(&client, &w.channel, "", Start::StartFromFirst).await;
    inbox.has(&texts(1, 5)).await;
    must(client.close().await);
    store(&sender, &w.channel, &texts(6, 8)).await;
    let client = w.client_named("closes").await;
    let inbox = follow(&client, &w.channel, "", Start::StartFromFirst).await;
    until("the last event", async || inbox.bodies().contains(&"8".to_owned()).then_some(())).await;
    let bodies = inbox.bodies();
    assert!(bodies.len() >= 3 && texts(1, 8).ends_with(&bodies), "{bodies:?}");
}

async fn store_reconnect(w: World, how: &str) {
    let (client, sender) = (reconnecting(&w).await, w.client().await);
    let inbox = follow(&client, &w.channel, "", Start::StartFromFirst).await;
    store(&sender, &w.channel, &texts(1, 5)).await;
    inbox.has(&texts(1, 5)).await;
    w.again(how).await;
    w.connected(&sender).await;
    store(&sender, &w.channel, &texts(6, 10)).await;
    until("the last event", async || inbox.bodies().contains(&"10".to_owned()).then_some(())).await;
    // What was on its way when the server ended may come twice.
    let mut seen = BTreeSet::new();
    let distinct: Vec<String> = inbox.bodies().into_iter().filter(|body| seen.insert(body.clone())).collect();
    assert_eq!(distinct, texts(1, 10));
}

/// Answers commands: with the tags that they brought, or with an error when the body asks for it.
async fn respond(client: &KubemqClient, channel: &str, group: &str) -> Inbox {
    let mut inbox = Inbox::default();
    let (copy, answering) = (inbox.clone(), client.clone());
    let on_command = move |command: kubemq::CommandReceive| -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        let (copy, client) = (copy.clone(), answering.clone());
        Box::pin(async move {
            let reply = CommandReply::builder().request_id(&command.id).response_to(&command.response_to);
            let mut reply = reply.tags(command.tags.clone());
            if command.body == b"fail" {
                reply = reply.error("it failed");
            }
            // Whoever asked may be gone.
            client.send_command_response(reply.build()).await.ok();
            let kubemq::CommandReceive { id, channel, metadata, body: bytes, tags, .. } = command;
            copy.put(Got { id, channel, metadata, body: body(&bytes), tag: tag(&tags), ..Got::default() });
        })
    };
    inbox.subscription = Some(Arc::new(must(client.subscribe_to_commands(channel, group, on_command, None).await)));
    inbox
}

/// Answers queries: with metadata, body and tags of the query, or with an error when the body asks for it.
async fn answer(client: &KubemqClient, channel: &str, group: &str) -> Inbox {
    let mut inbox = Inbox::default();
    let (copy, answering) = (inbox.clone(), client.clone());
    let on_query = move |query: kubemq::QueryReceive| -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        let (copy, client) = (copy.clone(), answering.clone());
        Box::pin(async move {
            let reply = QueryReply::builder().request_id(&query.id).response_to(&query.response_to);
            let reply = reply.metadata(&query.metadata).body(format!("answer to {}", body(&query.body)));
            let mut reply = reply.tags(query.tags.clone());
            if query.body == b"fail" {
                reply = reply.error("it failed");
            }
            // Whoever asked may be gone.
            client.send_query_response(reply.build()).await.ok();
            let kubemq::QueryReceive { id, channel, metadata, body: bytes, tags, .. } = query;
            copy.put(Got { id, channel, metadata, body: body(&bytes), tag: tag(&tags), ..Got::default() });
        })
    };
    inbox.subscription = Some(Arc::new(must(client.subscribe_to_queries(channel, group, on_query, None).await)));
    inbox
}

async fn command(w: &World, client: &KubemqClient, body: &str, seconds: u64) -> Result<CommandResponse> {
    let command = Command::builder().channel(&w.channel).metadata("metadata").body(body).add_tag("key", "value");
    client.send_command(command.timeout(Duration::from_secs(seconds)).build()).await
}

async fn query(w: &World, client: &KubemqClient, body: &str, seconds: u64) -> Result<QueryResponse> {
    let query = Query::builder().channel(&w.channel).metadata("metadata").body(body).add_tag("key", "value");
    client.send_query(query.timeout(Duration::from_secs(seconds)).build()).await
}

/// Sends probes until every responder has seen one.
async fn commands_ready(w: &World, client: &KubemqClient, inboxes: &[&Inbox]) {
    until("the responders", async || {
        let response = command(w, client, PROBE, 1).await.ok()?;
        (response.executed && inboxes.iter().all(|inbox| inbox.probed())).then_some(())
    })
    .await;
}

async fn queries_ready(w: &World, client: &KubemqClient, inboxes: &[&Inbox]) {
    until("the responders", async || {
        let response = query(w, client, PROBE, 1).await.ok()?;
        (response.executed && inboxes.iter().all(|inbox| inbox.probed())).then_some(())
    })
    .await;
}

fn assert_timeout<T: std::fmt::Debug>(result: Result<T>, started: Instant) {
    let error = result.expect_err("nobody answers").to_string();
    assert!(error.contains("Error 301"), "{error}");
    let took = started.elapsed();
    assert!(took > Duration::from_millis(950) && took < Duration::from_secs(10), "after {took:?}");
}

async fn command_answer(w: World) {
    let client = w.client().await;
    let inbox = respond(&client, &w.channel, "").await;
    commands_ready(&w, &client, &[&inbox]).await;
    let response = must(command(&w, &client, "body", 10).await);
    assert!(response.executed && response.error.is_empty() && tag(&response.tags) == "value", "{response:?}");
    inbox.has(&list(&["body"])).await;
    let got = inbox.all().remove(0);
    assert_eq!((&*got.metadata, &*got.tag, &got.channel), ("metadata", "value", &w.channel));
    assert!(!got.id.is_empty());
}

async fn command_error(w: World) {
    let client = w.client().await;
    let inbox = respond(&client, &w.channel, "").await;
    commands_ready(&w, &client, &[&inbox]).await;
    let response = must(command(&w, &client, "fail", 10).await);
    assert!(!response.executed && response.error == "it failed", "{response:?}");
}

async fn command_timeout(w: World) {
    let client = w.client().await;
    let started = Instant::now();
    assert_timeout(command(&w, &client, "body", 1).await, started);
}

async fn command_groups(w: World) {
    let client = w.client().await;
    let one = respond(&client, &w.channel, "group").await;
    let two = respond(&client, &w.channel, "group").await;
    commands_ready(&w, &client, &[&one, &two]).await;
    for one in texts(1, 60) {
        let response = must(command(&w, &client, &one, 10).await);
        assert!(response.executed, "{response:?}");
    }
    together(&texts(1, 60), &[&one, &two]).await;
}

async fn command_concurrent(w: World) {
    let client = w.client().await;
    let inbox = respond(&client, &w.channel, "").await;
    commands_ready(&w, &client, &[&inbox]).await;
    let tasks = texts(1, 50).into_iter().map(|one| {
        let (w, client) = (w.clone(), client.clone());
        tokio::spawn(async move { command(&w, &client, &one, 10).await })
    });
    for task in tasks.collect::<Vec<_>>() {
        let response = must(task.await.expect("a task that asked"));
        assert!(response.executed, "{response:?}");
    }
    together(&texts(1, 50), &[&inbox]).await;
}

async fn command_reconnect(w: World) {
    let (client, sender) = (reconnecting(&w).await, w.client().await);
    let inbox = respond(&client, &w.channel, "").await;
    commands_ready(&w, &sender, &[&inbox]).await;
    w.again("kill").await;
    commands_ready(&w, &sender, &[&inbox]).await;
    let response = must(command(&w, &sender, "body", 10).await);
    assert!(response.executed, "{response:?}");
}

async fn query_answer(w: World) {
    let client = w.client().await;
    let inbox = answer(&client, &w.channel, "").await;
    queries_ready(&w, &client, &[&inbox]).await;
    let response = must(query(&w, &client, "body", 10).await);
    assert!(response.executed && response.error.is_empty() && !response.cache_hit, "{response:?}");
    assert_eq!(
        (&*body(&response.body), &*response.metadata, &*tag(&response.tags)),
        ("answer to body", "metadata", "value")
    );
    inbox.has(&list(&["body"])).await;
    assert_eq!((&*inbox.all()[0].metadata, &*inbox.all()[0].tag), ("metadata", "value"));
}

async fn query_error(w: World) {
    let client = w.client().await;
    let inbox = answer(&client, &w.channel, "").await;
    queries_ready(&w, &client, &[&inbox]).await;
    let response = must(query(&w, &client, "fail", 10).await);
    assert!(!response.executed && response.error == "it failed", "{response:?}");
}

async fn query_timeout(w: World) {
    let client = w.client().await;
    let started = Instant::now();
    assert_timeout(query(&w, &client, "body", 1).await, started);
}

async fn query_cache(w: World) {
    let client = w.client().await;
    let inbox = answer(&client, &w.channel, "").await;
    queries_ready(&w, &client, &[&inbox]).await;
    let ask = async |hit: bool| {
        let query = Query::builder().channel(&w.channel).body("body").timeout(Duration::from_secs(10));
        let query = query.cache_key("key").cache_ttl(Duration::from_secs(2)).build();
        let response = must(client.send_query(query).await);
        assert_eq!((&*body(&response.body), response.cache_hit), ("answer to body", hit));
    };
    for hit in [false, true, true] {
        ask(hit).await;
    }
    inbox.has(&list(&["body"])).await;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    ask(false).await;
    inbox.has(&list(&["body", "body"])).await;
}

async fn query_large(w: World) {
    let client = w.client().await;
    let inbox = answer(&client, &w.channel, "").await;
    queries_ready(&w, &client, &[&inbox]).await;
    let response = must(query(&w, &client, &large(), 10).await);
    assert!(body(&response.body) == format!("answer to {}", large()), "the body of the answer changed");
    until("the query", async || (!inbox.all().is_empty()).then_some(())).await;
    assert!(inbox.bodies() == [large()], "the body changed");
}

async fn query_groups(w: World) {
    let client = w.client().await;
    let one = answer(&client, &w.channel, "group").await;
    let two = answer(&client, &w.channel, "group").await;
    queries_ready(&w, &client, &[&one, &two]).await;
    for one in texts(1, 60) {
        let response = must(query(&w, &client, &one, 10).await);
        assert_eq!(body(&response.body), format!("answer to {one}"));
    }
    together(&texts(1, 60), &[&one, &two]).await;
}
