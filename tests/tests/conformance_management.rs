//! Creating, deleting and listing channels over the reserved channel, as current SDKs do it (grpc-api.md §11,
//! sdk-compatibility.md §5), over the wire against the real program. C-29 is the only row of the conformance
//! checklist about it.
#![expect(clippy::panic, reason = "a test fails by panicking with what it saw")]

use kubemq_proto::kubemq::request::RequestType;
use kubemq_proto::kubemq::subscribe::SubscribeType;
use kubemq_proto::kubemq::{QueueMessagePolicy, Request, Response};
use kubemq_tests::client::{CLIENT_ID, MANAGEMENT, bodies, message, message_with};
use kubemq_tests::live::{executed, request};
use kubemq_tests::{Client, Server, connected};
use serde_json::Value;

const TYPES: [&str; 5] = ["events", "events_store", "commands", "queries", "queues"];

async fn manage(client: &Client, what: &str, tags: &[(&str, &str)]) -> Response {
    client.manage(what, tags).await.unwrap_or_else(|status| panic!("{what}: {status}"))
}

async fn create(client: &Client, kind: &str, channel: &str) {
    let tags = [("channel_type", kind), ("channel", channel), ("client_id", CLIENT_ID)];
    let answer = manage(client, "create-channel", &tags).await;
    assert_eq!((answer.executed, answer.error.as_str()), (true, ""));
}

async fn delete(client: &Client, kind: &str, channel: &str) {
    let answer = manage(client, "delete-channel", &[("channel_type", kind), ("channel", channel)]).await;
    assert_eq!((answer.executed, answer.error.as_str()), (true, ""));
}

async fn list(client: &Client, kind: &str, filter: &[(&str, &str)]) -> Vec<Value> {
    let tags: Vec<(&str, &str)> = [("channel_type", kind)].into_iter().chain(filter.iter().copied()).collect();
    let answer = manage(client, "list-channels", &tags).await;
    assert_eq!((answer.executed, answer.error.as_str()), (true, ""));
    serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{error}: {:?}", answer.body))
}

fn names(channels: &[Value]) -> Vec<&str> {
    let mut names: Vec<&str> = channels.iter().filter_map(|channel| channel["name"].as_str()).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn c_29_channels_are_listed_by_a_query() {
    let (_server, client) = connected().await;
    client.fill("c-29", ["1"]).await;
    let request = Request {
        request_id: "id".into(),
        request_type_data: 2,
        client_id: CLIENT_ID.into(),
        channel: MANAGEMENT.into(),
        metadata: "list-channels".into(),
        timeout: 10_000,
        tags: [("channel_type".to_owned(), "queues".to_owned())].into(),
        ..Request::default()
    };
    let answer = client.api.clone().send_request(request).await.unwrap().into_inner();
    assert_eq!((answer.executed, answer.error.as_str(), answer.request_id.as_str()), (true, "", "id"));
    let channels: Vec<Value> = serde_json::from_slice(&answer.body).unwrap();
    assert!(names(&channels).contains(&"c-29"), "{channels:?}");
}

#[tokio::test]
async fn a_created_channel_is_listed_and_a_deleted_one_is_not() {
    let (_server, client) = connected().await;
    for kind in TYPES {
        let channel = format!("managed-{kind}");
        let filter = [("channel_search", channel.as_str())];
        create(&client, kind, &channel).await;
        create(&client, kind, &channel).await;
        let channels = list(&client, kind, &filter).await;
        assert_eq!(names(&channels), [channel.as_str()]);
        for other in TYPES.iter().filter(|other| **other != kind) {
            assert_eq!(list(&client, other, &filter).await, [Value::Null; 0]);
        }
        delete(&client, kind, &channel).await;
        delete(&client, kind, &channel).await;
        assert_eq!(list(&client, kind, &filter).await, [Value::Null; 0]);
    }
}

#[tokio::test]
async fn a_listed_channel_has_all_keys() {
    let (_server, client) = connected().await;
    client.fill("keys", ["12345", "1"]).await;
    let policy = QueueMessagePolicy { delay_seconds: 600, ..QueueMessagePolicy::default() };
    client.fill_with([message_with("keys", "late", policy)]).await;
    client.take("keys", 1).await;
    let channel = list(&client, "queues", &[("channel_search", "keys")]).await.remove(0);
    let keys: Vec<&String> = channel.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["incoming", "isActive", "lastActivity", "name", "outgoing", "type"]);
    assert_eq!((channel["name"].as_str(), channel["type"].as_str()), (Some("keys"), Some("queues")));
    assert_eq!(channel["isActive"].as_bool(), Some(true));
    let minute = 60_000;
    let age = kubemq_tests::wait::wall() / 1_000_000 - channel["lastActivity"].as_i64().unwrap();
    assert!((-minute..10 * minute).contains(&age), "last activity {age} ms ago");
    for side in ["incoming", "outgoing"] {
        for key in ["messages", "volume", "responses", "waiting", "expired", "delayed"] {
            assert!(channel[side][key].is_i64() || channel[side][key].is_u64(), "{side}.{key} in {channel}");
        }
    }
    assert_eq!(channel["outgoing"]["messages"].as_i64(), Some(1), "{channel}");
    assert!(channel["incoming"]["volume"].as_i64().unwrap() >= 6, "{channel}");
    create(&client, "events", "keys-events").await;
    let channel = list(&client, "events", &[("channel_search", "keys-events")]).await.remove(0);
    for side in ["incoming", "outgoing"] {
        for key in ["messages", "volume", "responses", "waiting", "expired", "delayed"] {
            assert_eq!(channel[side][key].as_i64(), Some(0), "{side}.{key} in {channel}");
        }
    }
}

#[tokio::test]
async fn filters_are_parts_of_names_or_expressions() {
    let (_server, client) = connected().await;
    for channel in ["filter.one.a", "filter.two.a", "filter.two.b"] {
        client.fill(channel, ["1"]).await;
    }
    let rows: [(&str, &[&str]); 5] = [
        ("filter.two", &["filter.two.a", "filter.two.b"]),
        ("filter.two.a", &["filter.two.a"]),
        ("^filter\\..*\\.a$", &["filter.one.a", "filter.two.a"]),
        ("filter.*.b", &["filter.two.b"]),
        ("no such filter", &[]),
    ];
    for (filter, expected) in rows {
        for tag in ["channel_search", "search"] {
            let channels = list(&client, "queues", &[(tag, filter)]).await;
            assert_eq!(names(&channels), expected, "{tag} {filter}");
        }
    }
    let all = list(&client, "queues", &[("channel_search", "")]).await;
    assert!(names(&all).contains(&"filter.one.a"));
}

#[tokio::test]
async fn deleting_takes_the_messages_along() {
    let (_server, client) = connected().await;
    client.fill("deleted", ["1", "2"]).await;
    delete(&client, "queues", "deleted").await;
    client.assert_empty("deleted").await;
    client.fill("deleted", ["3"]).await;
    let received = client.take("deleted", 1).await;
    assert_eq!(bodies(&received), ["3"]);
    assert_eq!(kubemq_tests::client::sequences(&received), [1], "it starts anew");
}

#[tokio::test]
async fn settling_what_was_deleted_has_no_effect() {
    let (_server, client) = connected().await;
    client.fill("settled-late", ["1"]).await;
    let mut stream = client.downstream().await;
    let (transaction, _) = stream.hold("settled-late", 1).await;
    delete(&client, "queues", "settled-late").await;
    client.fill("settled-late", ["2"]).await;
    let kind = kubemq_proto::kubemq::QueuesDownstreamRequestType::AckAll;
    stream.send(kubemq_tests::settle(kind, &transaction)).await;
    let (_, messages) = stream.hold("settled-late", 1).await;
    assert_eq!(bodies(&messages), ["2"], "the ack was for another message of the same sequence");
}

#[tokio::test]
async fn mistakes_are_answers_that_say_so() {
    let (_server, client) = connected().await;
    let rows: [(&str, &[(&str, &str)]); 5] = [
        ("create-channel", &[("channel_type", "topics"), ("channel", "a")]),
        ("create-channel", &[("channel_type", "queues"), ("channel", "")]),
        ("create-channel", &[("channel_type", "queues"), ("channel", "a b")]),
        ("list-channels", &[("channel_type", "topics")]),
        ("paint-channel", &[("channel_type", "queues"), ("channel", "a")]),
    ];
    for (what, tags) in rows {
        match client.manage(what, tags).await {
            Ok(answer) => assert!(!answer.executed && !answer.error.is_empty(), "{what} {tags:?}: {answer:?}"),
            Err(status) => assert_eq!(status.code(), tonic::Code::Internal, "{what} {tags:?}: {status}"),
        }
    }
}

#[tokio::test]
async fn the_reserved_channel_is_no_channel() {
    let (_server, client) = connected().await;
    let result = client.send(message(MANAGEMENT, "1")).await;
    assert!(result.is_error, "a message was stored in the reserved channel");
    let channels = list(&client, "queues", &[("channel_search", MANAGEMENT)]).await;
    assert_eq!(channels, [Value::Null; 0]);
}

#[tokio::test]
async fn created_channels_survive_a_restart() {
    let mut server = Server::start().await;
    let client = Client::connect(&server.grpc()).await;
    for kind in TYPES {
        create(&client, kind, "kept").await;
    }
    delete(&client, "events", "kept").await;
    server.kill();
    server.restart().await;
    let client = Client::connect(&server.grpc()).await;
    for kind in TYPES {
        let expected: &[&str] = if kind == "events" { &[] } else { &["kept"] };
        assert_eq!(names(&list(&client, kind, &[]).await), expected, "{kind}");
    }
}

#[tokio::test]
async fn channels_that_store_nothing_are_listed_while_they_are_used() {
    let (_server, client) = connected().await;
    let mut events = client.events("listed.live.>", "").await;
    client.publish("listed.live.a", ["1", "2"]).await;
    events.take(2).await;
    let answer = |request: Request| executed(&request);
    let _responder = client.respond(SubscribeType::Queries, "listed.live.q", "", answer).await;
    client.ask(request(RequestType::Query, "listed.live.q", "b", 10_000)).await.unwrap();
    create(&client, "events", "listed.live.created").await;

    let filter = [("channel_search", "listed.live")];
    let channels = list(&client, "events", &filter).await;
    assert_eq!(names(&channels), ["listed.live.a", "listed.live.created"], "a pattern is no channel");
    let used = channels.iter().find(|channel| channel["name"] == "listed.live.a").unwrap();
    assert_eq!((used["isActive"].as_bool(), used["incoming"]["messages"].as_u64()), (Some(true), Some(2)));
    assert_eq!(used["outgoing"]["messages"].as_u64(), Some(2));
    assert!(used["lastActivity"].as_i64() > Some(1_700_000_000_000), "{used}");
    let queries = list(&client, "queries", &filter).await;
    assert_eq!(names(&queries), ["listed.live.q"]);
    assert_eq!(queries[0]["outgoing"]["responses"].as_u64(), Some(1), "{}", queries[0]);
    assert_eq!(names(&list(&client, "commands", &filter).await), [""; 0]);

    delete(&client, "events", "listed.live.a").await;
    assert_eq!(names(&list(&client, "events", &filter).await), ["listed.live.created"]);
    client.publish("listed.live.a", ["anew"]).await;
    let channels = list(&client, "events", &filter).await;
    let used = channels.iter().find(|channel| channel["name"] == "listed.live.a").unwrap();
    assert_eq!(used["incoming"]["messages"].as_u64(), Some(1), "{used}");
}
