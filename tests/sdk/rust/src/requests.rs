//! The scenarios of commands and queries.

use crate::inbox::{Got, Inbox, PROBE, large, reconnecting, tag, together};
use crate::world::{World, body, list, must, texts, until};
use kubemq::{Command, CommandReply, CommandResponse, KubemqClient, Query, QueryReply, QueryResponse, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Plays a scenario; returns false when it is not one of these.
pub async fn play(id: &str, w: World) -> bool {
    match id {
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
