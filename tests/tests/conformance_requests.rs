//! Commands and queries: the rows C-01 to C-28 of the conformance checklist (grpc-api.md §13), over the wire
//! against the real program. C-29 is in `conformance_management.rs`.
#![expect(clippy::expect_used, reason = "a test fails by panicking with what it saw")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use kubemq_proto::kubemq::request::RequestType::{self, Command, Query};
use kubemq_proto::kubemq::subscribe::SubscribeType::{self, Commands, Queries};
use kubemq_proto::kubemq::{Request, Response, Subscribe};
use kubemq_tests::client::MANAGEMENT;
use kubemq_tests::errors::sentence;
use kubemq_tests::live::{executed, request, subscribe};
use kubemq_tests::{Client, Options, Server, assert_about, connected, sleep, timed};
use tonic::Code;

const SILENCE: Duration = Duration::from_millis(500);
/// Milliseconds that no test waits for.
const LONG: i32 = 60_000;

async fn assert_refused(client: &Client, request: Request, text: &str) {
    let status = client.ask(request.clone()).await.expect_err(text);
    assert_eq!((status.code(), status.message()), (Code::Internal, text), "{request:?}");
}

async fn assert_not_subscribed(client: &Client, subscribe: Subscribe, text: &str) {
    let refused = match client.try_requests(subscribe.clone()).await {
        Ok(mut subscribed) => subscribed.try_next().await.map(drop),
        Err(status) => Err(status),
    };
    let status = refused.expect_err(text);
    assert_eq!((status.code(), status.message()), (Code::Internal, text), "{subscribe:?}");
}

/// A request and the kind of its subscription, for both kinds.
const KINDS: [(RequestType, SubscribeType); 2] = [(Command, Commands), (Query, Queries)];

#[tokio::test]
async fn c_01_a_request_has_a_type() {
    let (_server, client) = connected().await;
    for kind in [0, 3, -1] {
        let untyped = Request { request_type_data: kind, client_id: String::new(), ..request(Query, "", "", 0) };
        assert_refused(&client, untyped, sentence(206)).await;
    }
}

#[tokio::test]
async fn c_02_a_requester_has_a_client_id() {
    let (_server, client) = connected().await;
    let nameless = Request { client_id: String::new(), ..request(Command, "", "", 0) };
    assert_refused(&client, nameless, sentence(101)).await;
}

#[tokio::test]
async fn c_03_a_request_has_a_channel() {
    let (_server, client) = connected().await;
    let rows = [("", 102), ("a.", 119), ("a b", 108), ("a.*", 107), ("a.>", 107), ("a\nb", 108), ("a *.", 119)];
    for (channel, number) in rows {
        assert_refused(&client, request(Query, channel, "", 0), sentence(number)).await;
    }
    // The reserved channel takes queries only.
    assert_refused(&client, request(Command, MANAGEMENT, "b", LONG), sentence(102)).await;
}

#[tokio::test]
async fn c_04_a_request_has_time() {
    let (_server, client) = connected().await;
    for timeout in [0, -1, i32::MIN] {
        assert_refused(&client, request(Command, "c-04", "b", timeout), sentence(109)).await;
    }
}

#[tokio::test]
async fn c_05_the_time_is_told_before_the_payload() {
    let (_server, client) = connected().await;
    assert_refused(&client, request(Query, "c-05", "", 0), sentence(109)).await;
}

#[tokio::test]
async fn c_06_a_request_has_a_payload() {
    let (_server, client) = connected().await;
    assert_refused(&client, request(Query, "c-06", "", 1000), sentence(115)).await;
}

#[tokio::test]
async fn c_07_a_cache_key_has_a_life_time() {
    let (_server, client) = connected().await;
    for (kind, ttl) in [(Query, 0), (Command, 0), (Query, -1)] {
        let keyed = Request { cache_key: "k".into(), cache_ttl: ttl, ..request(kind, "c-07", "b", 1000) };
        assert_refused(&client, keyed, sentence(116)).await;
    }
}

#[tokio::test]
async fn c_08_nobody_there_is_told_after_the_whole_time() {
    let (_server, client) = connected().await;
    for (kind, _) in KINDS {
        let asked = request(kind, "c-08", "b", 1000);
        let ((), took) = timed(Box::pin(assert_refused(&client, asked, sentence(301)))).await;
        assert_about(took, 1.0);
    }
}

#[tokio::test]
async fn c_09_silence_is_told_after_the_whole_time() {
    let (_server, client) = connected().await;
    let mut silent = client.requests(Commands, "c-09", "").await;
    let asked = request(Command, "c-09", "b", 500);
    let ((), took) = timed(Box::pin(assert_refused(&client, asked, sentence(301)))).await;
    assert_about(took, 0.5);
    assert_eq!(silent.next().await.channel, "c-09");
}

/// An answer with something in every field.
fn full(request: &Request) -> Response {
    Response {
        metadata: "meta".into(),
        body: "body".into(),
        cache_hit: true,
        timestamp: 1_700_000_000,
        span: "span".into(),
        tags: [("k".to_owned(), "v".to_owned())].into(),
        ..executed(request)
    }
}

#[tokio::test]
async fn c_10_the_answer_to_a_command_has_no_payload() {
    let (_server, client) = connected().await;
    let _responder = client.respond(Commands, "c-10", "", |request| full(&request)).await;
    let asked = request(Command, "c-10", "b", LONG);
    let expected = Response {
        metadata: String::new(),
        body: "".into(),
        cache_hit: false,
        reply_channel: String::new(),
        ..full(&asked)
    };
    assert_eq!(client.ask(asked).await.unwrap(), expected);
}

#[tokio::test]
async fn c_11_the_answer_to_a_query_is_that_of_the_responder() {
    let (_server, client) = connected().await;
    let _responder = client.respond(Queries, "c-11", "", |request| full(&request)).await;
    let asked = request(Query, "c-11", "b", LONG);
    let expected = Response { reply_channel: String::new(), ..full(&asked) };
    assert_eq!(client.ask(asked).await.unwrap(), expected);
}

#[tokio::test]
async fn c_12_a_responder_may_say_that_it_had_a_cache() {
    let (_server, client) = connected().await;
    let answer = |request: Request| Response { cache_hit: request.metadata == "hit", ..executed(&request) };
    let _responder = client.respond(Queries, "c-12", "", answer).await;
    for (metadata, hit) in [("hit", true), ("miss", false)] {
        let asked = Request { metadata: metadata.into(), ..request(Query, "c-12", "b", LONG) };
        assert_eq!(client.ask(asked).await.unwrap().cache_hit, hit);
    }
}

#[tokio::test]
async fn an_answer_without_a_time_gets_one() {
    let (_server, client) = connected().await;
    let _responder = client.respond(Commands, "time", "", |request| executed(&request)).await;
    let before = kubemq_tests::wait::wall();
    let answer = client.ask(request(Command, "time", "b", LONG)).await.unwrap();
    assert!((before..=kubemq_tests::wait::wall()).contains(&answer.timestamp), "{answer:?}");
}

#[tokio::test]
async fn c_13_not_executed_is_an_answer() {
    let (_server, client) = connected().await;
    let answer = |request: Request| Response { executed: false, error: "boom".into(), ..executed(&request) };
    for (kind, subscribe) in KINDS {
        let _responder = client.respond(subscribe, "c-13", "", answer).await;
        let answer = client.ask(request(kind, "c-13", "b", LONG)).await.unwrap();
        assert_eq!((answer.executed, answer.error.as_str()), (false, "boom"));
    }
}

#[tokio::test]
async fn c_14_a_responder_gets_the_request_as_it_was_sent() {
    let (_server, client) = connected().await;
    let mut asked = client.requests(Queries, "c-14", "").await;
    let sent = Request {
        metadata: "meta".into(),
        reply_channel: "mine".into(),
        cache_key: "k".into(),
        cache_ttl: 7,
        span: "span".into(),
        tags: [("k".to_owned(), "v".to_owned())].into(),
        ..request(Query, "c-14", "body", 200)
    };
    let nameless = Request { request_id: String::new(), cache_key: "other".into(), ..sent.clone() };
    // Nobody answers: only what arrives counts.
    assert_refused(&client, sent.clone(), sentence(301)).await;
    assert_refused(&client, nameless, sentence(301)).await;
    let (first, second) = (asked.next().await, asked.next().await);
    assert!(!first.reply_channel.is_empty() && first.reply_channel != "mine", "{first:?}");
    assert_ne!(first.reply_channel, second.reply_channel);
    assert_eq!(second.request_id.len(), 22, "{second:?}");
    assert_eq!(Request { reply_channel: "mine".into(), ..first }, sent);
}

#[tokio::test]
async fn c_15_only_requests_are_subscribed_to_here() {
    let (_server, client) = connected().await;
    for kind in [SubscribeType::Undefined, SubscribeType::Events, SubscribeType::EventsStore] {
        assert_not_subscribed(&client, subscribe(kind, "c-15", ""), sentence(207)).await;
        let nameless = Subscribe { client_id: String::new(), ..subscribe(kind, "", "") };
        assert_not_subscribed(&client, nameless, sentence(207)).await;
    }
}

#[tokio::test]
async fn c_16_a_responder_has_a_client_id_and_a_channel() {
    let (_server, client) = connected().await;
    for (_, kind) in KINDS {
        let nameless = Subscribe { client_id: String::new(), ..subscribe(kind, "", "") };
        assert_not_subscribed(&client, nameless, sentence(101)).await;
        for (channel, number) in [("", 102), (MANAGEMENT, 102), ("a.", 119), ("a b", 108)] {
            assert_not_subscribed(&client, subscribe(kind, channel, ""), sentence(number)).await;
        }
        assert_not_subscribed(&client, subscribe(kind, "a..b", ""), "nats: invalid subject").await;
        assert_not_subscribed(&client, subscribe(kind, "a", "g 1"), "nats: invalid queue name").await;
    }
}

#[tokio::test]
async fn c_17_responders_use_wildcards() {
    let (_server, client) = connected().await;
    let answer = |request: Request| Response { metadata: request.channel.clone(), ..executed(&request) };
    let _responder = client.respond(Queries, "c-17.>", "", answer).await;
    assert_eq!(client.ask(request(Query, "c-17.b", "b", LONG)).await.unwrap().metadata, "c-17.b");
    assert_refused(&client, request(Query, "c-17", "b", 300), sentence(301)).await;
}

/// Answers with `name`, and counts.
fn counting(name: &'static str) -> (Arc<AtomicU32>, impl FnMut(Request) -> Response + Send + 'static) {
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    let answer = move |request: Request| {
        counted.fetch_add(1, Ordering::Relaxed);
        Response { metadata: name.into(), ..executed(&request) }
    };
    (count, answer)
}

#[tokio::test]
async fn c_18_a_group_shares() {
    let (_server, client) = connected().await;
    let ((one, first), (two, second)) = (counting("1"), counting("2"));
    let _members =
        [client.respond(Queries, "c-18", "g", first).await, client.respond(Queries, "c-18", "g", second).await];
    for _ in 0..200 {
        assert!(client.ask(request(Query, "c-18", "b", LONG)).await.unwrap().executed);
    }
    let counts = [one.load(Ordering::Relaxed), two.load(Ordering::Relaxed)];
    assert_eq!(counts.iter().sum::<u32>(), 200);
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

#[tokio::test]
async fn c_19_without_a_group_all_are_asked_and_the_first_answer_counts() {
    let (_server, client) = connected().await;
    let mut silent = client.requests(Queries, "c-19", "").await;
    let mut other_group = client.requests(Queries, "c-19", "g").await;
    let (_, answer) = counting("quick");
    let _quick = client.respond(Queries, "c-19", "", answer).await;
    let asked = request(Query, "c-19", "b", LONG);
    assert_eq!(client.ask(asked.clone()).await.unwrap().metadata, "quick");
    for late in [silent.next().await, other_group.next().await] {
        assert_eq!(late.request_id, asked.request_id);
        client.answer(executed(&late)).await.unwrap();
    }
}

#[tokio::test]
async fn c_20_commands_and_queries_do_not_mix() {
    let (_server, client) = connected().await;
    let mut queries = client.requests(Queries, "c-20", "").await;
    let mut events = client.events("c-20", "").await;
    assert_refused(&client, request(Command, "c-20", "b", 300), sentence(301)).await;
    queries.stays_silent(SILENCE).await;
    events.stays_silent(SILENCE).await;
}

#[tokio::test]
async fn c_21_an_answer_is_checked() {
    let (_server, client) = connected().await;
    let answer = |client: &str, reply: &str, id: &str| Response {
        client_id: client.into(),
        reply_channel: reply.into(),
        request_id: id.into(),
        ..Response::default()
    };
    let rows = [
        (answer("", "", ""), 101),
        (answer("c", "", ""), 102),
        (answer("c", "a.", ""), 119),
        (answer("c", "a b", ""), 108),
        (answer("c", "a.*", ""), 107),
        (answer("c", "a", ""), 117),
    ];
    for (answer, number) in rows {
        let status = client.answer(answer.clone()).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Internal, sentence(number)), "{answer:?}");
    }
}

#[tokio::test]
async fn c_22_an_answer_that_nobody_waits_for_is_taken() {
    let (_server, client) = connected().await;
    for token in ["_INBOX.nobody", "a", "_EVENTS_.x"] {
        let unknown = Request { reply_channel: token.into(), ..request(Query, "c-22", "b", LONG) };
        client.answer(executed(&unknown)).await.unwrap();
    }
}

#[tokio::test]
async fn c_23_a_second_answer_is_ignored() {
    let (_server, client) = connected().await;
    let mut asked = client.requests(Queries, "c-23", "").await;
    let answering = async {
        let request = asked.next().await;
        for metadata in ["first", "second"] {
            client.answer(Response { metadata: metadata.into(), ..executed(&request) }).await.unwrap();
        }
    };
    let (answer, ()) = tokio::join!(client.ask(request(Query, "c-23", "b", LONG)), answering);
    assert_eq!(answer.unwrap().metadata, "first");
}

#[tokio::test]
async fn c_24_only_the_reply_channel_leads_back() {
    let (_server, client) = connected().await;
    let answer = |request: Request| Response { request_id: "wrong".into(), ..executed(&request) };
    let _responder = client.respond(Commands, "c-24", "", answer).await;
    assert_eq!(client.ask(request(Command, "c-24", "b", LONG)).await.unwrap().request_id, "wrong");
}

#[tokio::test]
async fn c_25_an_answer_is_no_event() {
    let (_server, client) = connected().await;
    let mut events = client.events("x", "").await;
    let mut all = client.events("_EVENTS_.>", "").await;
    let forged = Request { reply_channel: "_EVENTS_.x".into(), ..request(Query, "c-25", "b", LONG) };
    client.answer(full(&forged)).await.unwrap();
    events.stays_silent(SILENCE).await;
    all.stays_silent(SILENCE).await;
}

fn keyed(channel: &str, key: &str, seconds: i32) -> Request {
    Request { cache_key: key.into(), cache_ttl: seconds, ..request(Query, channel, "b", LONG) }
}

#[tokio::test]
async fn c_26_without_a_cache_every_query_is_answered_by_a_responder() {
    let arguments = ["--set".to_owned(), "queries.cacheSize=0".to_owned()].into();
    let server = Server::start_with(Options { arguments, ..Options::default() }).await;
    let client = Client::connect(&server.grpc()).await;
    let (count, answer) = counting("r");
    let _responder = client.respond(Queries, "c-26", "", answer).await;
    for _ in 0..2 {
        assert!(!client.ask(keyed("c-26", "k", 60)).await.unwrap().cache_hit);
    }
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn c_27_an_answer_is_kept_for_its_life_time() {
    let (_server, client) = connected().await;
    let (count, answer) = counting("r");
    let _responder = client.respond(Queries, "c-27", "", answer).await;
    let (first, second) = (keyed("c-27", "k", 2), keyed("c-27", "k", 2));
    let answered = client.ask(first.clone()).await.unwrap();
    assert_eq!((answered.cache_hit, answered.request_id.as_str()), (false, first.request_id.as_str()));
    let kept = client.ask(second.clone()).await.unwrap();
    assert_eq!(kept, Response { cache_hit: true, request_id: second.request_id, ..answered });
    assert_eq!(count.load(Ordering::Relaxed), 1);
    sleep(Duration::from_secs(3)).await;
    assert!(!client.ask(keyed("c-27", "k", 2)).await.unwrap().cache_hit);
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn only_what_was_executed_is_kept_and_only_for_its_channel_and_key() {
    let (_server, client) = connected().await;
    let answer = |request: Request| Response { executed: request.metadata.is_empty(), ..executed(&request) };
    let _responders = [
        client.respond(Queries, "kept", "", answer).await,
        client.respond(Queries, "kept-elsewhere", "", answer).await,
        client.respond(Commands, "kept", "", answer).await,
    ];
    let hit = async |request: Request| client.ask(request).await.unwrap().cache_hit;
    let failing = Request { metadata: "fail".into(), ..keyed("kept", "k", 60) };
    assert!(!hit(failing).await && !hit(keyed("kept", "k", 60)).await, "a failure is not kept");
    assert!(hit(keyed("kept", "k", 60)).await);
    assert!(!hit(keyed("kept", "other", 60)).await);
    assert!(!hit(keyed("kept-elsewhere", "k", 60)).await);
    assert!(!hit(request(Query, "kept", "b", LONG)).await, "who names no key asks for no cache");
    let command = Request { request_type_data: Command.into(), ..keyed("kept", "k", 60) };
    assert!(!hit(command).await);
}

#[tokio::test]
async fn c_28_a_thousand_at_a_time_are_answered() {
    let (_server, client) = connected().await;
    let answer = |request: Request| Response { body: request.body.clone(), ..executed(&request) };
    let _responder = client.respond(Queries, "c-28", "", answer).await;
    let ask = async |number: usize| {
        let answer = client.ask(request(Query, "c-28", number.to_string(), LONG)).await;
        assert_eq!(answer.unwrap().body, number.to_string());
    };
    let asking: FuturesUnordered<_> = (0..1000).map(ask).collect();
    assert_eq!(asking.count().await, 1000);
}

#[tokio::test]
async fn a_requester_whose_own_deadline_is_shorter_is_let_go() {
    let (_server, client) = connected().await;
    let mut asked = client.requests(Commands, "deadline", "").await;
    let mut call = tonic::Request::new(request(Command, "deadline", "b", LONG));
    call.set_timeout(Duration::from_millis(300));
    let status = client.api.clone().send_request(call).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
    client.answer(executed(&asked.next().await)).await.unwrap();
}

#[tokio::test]
async fn as_many_wait_as_may_and_the_next_is_refused() {
    let arguments = ["--set".to_owned(), "limits.pendingRequests=3".to_owned()].into();
    let server = Server::start_with(Options { arguments, ..Options::default() }).await;
    let client = Client::connect(&server.grpc()).await;
    let mut asked = client.requests(Commands, "full", "").await;
    let waiting: Vec<_> = (0..3).map(|_| client.ask(request(Command, "full", "b", LONG))).collect();
    let refusal = async {
        let waiting = asked.take(3).await;
        let status = client.ask(request(Command, "full", "b", LONG)).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        for request in waiting {
            client.answer(executed(&request)).await.unwrap();
        }
    };
    let (answers, ()) = tokio::join!(futures_util::future::join_all(waiting), refusal);
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_refused(&client, request(Command, "full", "b", 100), sentence(301)).await;
}

#[tokio::test]
async fn a_request_too_large_to_deliver_is_told_at_once() {
    let (_server, client) = connected().await;
    let mut asked = client.requests(Commands, "large", "").await;
    let large = request(Command, "large", vec![0; 104_857_600 - 100], LONG);
    let (answer, took) = timed(Box::pin(client.ask(large))).await;
    assert_eq!(answer.unwrap_err().message(), sentence(301));
    assert!(took < Duration::from_secs(30));
    asked.stays_silent(SILENCE).await;
}
