//! Sending over a stream: rows U-01 to U-06 of the conformance checklist, one test per row, over the wire
//! against the real program. Every row can be observed.

use std::collections::BTreeMap;

use kubemq_proto::kubemq::{QueueMessage, QueuesUpstreamRequest};
use kubemq_tests::client::{bodies, message, sequences};
use kubemq_tests::connected;
use kubemq_tests::errors::sentence;

fn request(id: &str, messages: Vec<QueueMessage>) -> QueuesUpstreamRequest {
    QueuesUpstreamRequest { request_id: id.into(), messages }
}

fn messages(channel: &str, count: u32) -> Vec<QueueMessage> {
    (1..=count).map(|number| message(channel, number.to_string())).collect()
}

#[tokio::test]
async fn u_01_a_request_gets_one_response_with_all_results() {
    let (_server, client) = connected().await;
    let mut stream = client.upstream().await;
    let sent = messages("u-01", 10);
    let answer = stream.ask(request("id", sent.clone())).await;
    assert_eq!((answer.ref_request_id.as_str(), answer.is_error, answer.error.as_str()), ("id", false, ""));
    assert_eq!(answer.results.len(), 10);
    for (result, message) in answer.results.iter().zip(&sent) {
        assert!(!result.is_error, "{}", result.error);
        assert_eq!(result.message_id, message.message_id);
        assert!(result.sent_at > 0);
    }
    let received = client.take("u-01", 10).await;
    assert_eq!(bodies(&received), (1..=10).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn u_02_an_empty_request_is_an_error() {
    let (_server, client) = connected().await;
    let mut stream = client.upstream().await;
    let answer = stream.ask(request("id", Vec::new())).await;
    assert_eq!((answer.is_error, answer.error.as_str()), (true, "no messages to send"));
    assert_eq!(answer.ref_request_id, "id");
    let answer = stream.ask(request("next", messages("u-02", 1))).await;
    assert!(!answer.is_error, "the stream goes on");
}

#[tokio::test]
async fn u_03_refused_messages_are_told_in_the_results() {
    let (_server, client) = connected().await;
    let mut stream = client.upstream().await;
    let answer = stream.ask(request("id", messages("", 10))).await;
    assert!(!answer.is_error);
    let errors: Vec<(bool, &str)> =
        answer.results.iter().map(|result| (result.is_error, result.error.as_str())).collect();
    assert_eq!(errors, [(true, sentence(120)); 10]);
}

#[tokio::test]
async fn u_04_requests_in_flight_are_matched_by_their_ids() {
    let (_server, client) = connected().await;
    let mut stream = client.upstream().await;
    for number in 1..=5 {
        stream.send(request(&number.to_string(), vec![message("u-04", number.to_string())])).await;
    }
    let mut answers = BTreeMap::new();
    for _ in 0..5 {
        let answer = stream.next().await;
        assert!(!answer.is_error && answer.results.iter().all(|result| !result.is_error), "{answer:?}");
        answers.insert(answer.ref_request_id, answer.results.len());
    }
    assert_eq!(answers, (1..=5).map(|number| (number.to_string(), 1)).collect());
    let received = client.take("u-04", 5).await;
    assert_eq!(bodies(&received), ["1", "2", "3", "4", "5"], "one stream keeps its order");
    assert_eq!(sequences(&received), [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn u_05_an_empty_request_id_is_echoed() {
    let (_server, client) = connected().await;
    let mut stream = client.upstream().await;
    let answer = stream.ask(request("", messages("u-05", 1))).await;
    assert_eq!(answer.ref_request_id, "");
    assert!(!answer.is_error);
}

#[tokio::test]
async fn u_06_half_closing_ends_the_stream_after_the_last_response() {
    let (_server, client) = connected().await;
    let mut stream = client.upstream().await;
    for number in 1..=20 {
        stream.send(request(&number.to_string(), messages("u-06", 10))).await;
    }
    stream.half_close();
    for _ in 1..=20 {
        assert_eq!(stream.next().await.results.len(), 10);
    }
    stream.ends().await;
    assert_eq!(client.take("u-06", 200).await.len(), 200);
}

#[tokio::test]
async fn channels_of_one_request_may_differ() {
    let (_server, client) = connected().await;
    let mut stream = client.upstream().await;
    let mixed = vec![message("u-mixed-1", "1"), message("", "2"), message("u-mixed-2", "3")];
    let answer = stream.ask(request("id", mixed)).await;
    assert_eq!(answer.results.iter().map(|result| result.is_error).collect::<Vec<_>>(), [false, true, false]);
    assert!(!answer.is_error);
    assert_eq!(bodies(&client.take("u-mixed-1", 1).await), ["1"]);
    assert_eq!(bodies(&client.take("u-mixed-2", 1).await), ["3"]);
}
