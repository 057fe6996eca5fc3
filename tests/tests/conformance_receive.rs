//! Receiving from queues by single calls, and what is told about queues: rows of the conformance
//! checklist, one test per row, over the wire against the real program.
//!
//! Every row can be observed. allow an answer earlier than the reference gives it.

use std::collections::BTreeSet;
use std::time::Duration;

use kubemq_proto::kubemq::{AckAllQueueMessagesRequest, QueueMessagePolicy, ReceiveQueueMessagesRequest};
use kubemq_tests::client::{attributes, bodies, counts, message, message_with, receive_request, sequences};
use kubemq_tests::errors::sentence;
use kubemq_tests::wait::wall;
use kubemq_tests::{Client, Server, assert_about, assert_soon, connected, sleep, timed};

fn expiring(seconds: i32) -> QueueMessagePolicy {
    QueueMessagePolicy { expiration_seconds: seconds, ..QueueMessagePolicy::default() }
}

fn delayed(seconds: i32) -> QueueMessagePolicy {
    QueueMessagePolicy { delay_seconds: seconds, ..QueueMessagePolicy::default() }
}

fn texts(count: u32) -> Vec<String> {
    (1..=count).map(|number| number.to_string()).collect()
}

async fn assert_refused(client: &Client, request: ReceiveQueueMessagesRequest, expected: &str) {
    for is_peak in [false, true] {
        let answer = client.receive_with(ReceiveQueueMessagesRequest { is_peak, ..request.clone() }).await;
        assert!(answer.is_error, "{request:?} was accepted");
        assert_eq!(answer.error, expected, "for {request:?}");
        assert_eq!((answer.is_peak, answer.messages.len(), answer.messages_received), (is_peak, 0, 0));
        if request.request_id.is_empty() {
            assert_eq!(answer.request_id.len(), 22, "a generated id: {}", answer.request_id);
        } else {
            assert_eq!(answer.request_id, request.request_id);
        }
    }
}

#[tokio::test]
async fn q_17_client_id_and_channel_are_mandatory() {
    let (_server, client) = connected().await;
    let request = receive_request("q-17", 1, 1);
    let anonymous = ReceiveQueueMessagesRequest { client_id: String::new(), ..request.clone() };
    assert_refused(&client, anonymous, sentence(101)).await;
    for name in ["", "a.", "a b", "a*", ">"] {
        let request = ReceiveQueueMessagesRequest { channel: name.into(), ..request.clone() };
        assert_refused(&client, request, sentence(120)).await;
    }
    let request = ReceiveQueueMessagesRequest { request_id: String::new(), channel: String::new(), ..request };
    assert_refused(&client, request, sentence(120)).await;
}

#[tokio::test]
async fn q_18_the_number_of_messages_has_bounds() {
    let (_server, client) = connected().await;
    for max in [0, 1025, -1] {
        assert_refused(&client, receive_request("q-18", max, 1), sentence(122)).await;
    }
}

#[tokio::test]
async fn q_19_the_wait_time_has_bounds() {
    let (_server, client) = connected().await;
    for wait in [-1, 3601] {
        assert_refused(&client, receive_request("q-19", 1, wait), sentence(136)).await;
    }
}

#[tokio::test]
async fn q_20_nothing_after_the_default_wait_is_no_error() {
    let (_server, client) = connected().await;
    let (answer, took) = timed(client.receive("q-20", 1, 0)).await;
    assert!(!answer.is_error, "{}", answer.error);
    assert_eq!((answer.messages.len(), answer.messages_received, answer.messages_expired), (0, 0, 0));
    assert_about(took, 1.0);
}

#[tokio::test]
async fn q_21_a_partial_batch_waits_for_the_whole_wait_time() {
    let (_server, client) = connected().await;
    client.fill("q-21", texts(3)).await;
    let (answer, took) = timed(client.receive("q-21", 10, 2)).await;
    assert_eq!(bodies(&answer.messages), texts(3));
    assert_eq!(answer.messages_received, 3);
    assert_about(took, 2.0);
}

#[tokio::test]
async fn q_22_a_full_batch_comes_at_once() {
    let (_server, client) = connected().await;
    client.fill("q-22", texts(10)).await;
    let (answer, took) = timed(client.receive("q-22", 10, 60)).await;
    assert_eq!(bodies(&answer.messages), texts(10));
    assert_soon(took);
}

#[tokio::test]
async fn q_23_what_was_received_is_gone() {
    let (_server, client) = connected().await;
    client.fill("q-23", ["1"]).await;
    client.take("q-23", 1).await;
    client.assert_empty("q-23").await;
}

#[tokio::test]
async fn q_24_a_fresh_message_has_plain_attributes() {
    let (_server, client) = connected().await;
    let before = wall();
    client.fill("q-24", texts(3)).await;
    let received = client.take("q-24", 3).await;
    assert_eq!(sequences(&received), [1, 2, 3]);
    for message in &received {
        let attributes = attributes(message);
        assert!(attributes.timestamp > before - 1_000_000_000 && attributes.timestamp < wall() + 1_000_000_000);
        assert_eq!((attributes.receive_count, attributes.md5_of_body.as_str()), (1, ""));
        assert_eq!((attributes.re_routed, attributes.re_routed_from_queue.as_str()), (false, ""));
        assert_eq!((attributes.expiration_at, attributes.delayed_to), (0, 0));
    }
}

#[tokio::test]
async fn q_25_a_message_without_policy_gets_the_default_one() {
    let (_server, client) = connected().await;
    client.fill("q-25", ["1"]).await;
    let policy = client.take("q-25", 1).await.remove(0).policy.expect("a policy");
    assert_eq!(policy, QueueMessagePolicy { max_receive_count: 1024, ..QueueMessagePolicy::default() });
}

#[tokio::test]
async fn q_26_an_expired_message_is_counted_and_not_delivered() {
    let (_server, client) = connected().await;
    client.fill_with([message_with("q-26", "1", expiring(1))]).await;
    sleep(Duration::from_secs(2)).await;
    let answer = client.receive("q-26", 1, 1).await;
    assert_eq!((answer.messages.len(), answer.messages_received, answer.messages_expired), (0, 0, 1));
}

#[tokio::test]
async fn q_27_a_delayed_message_comes_when_it_is_due() {
    let (_server, client) = connected().await;
    let sent = client.send(message_with("q-27", "1", delayed(3))).await;
    assert!(!sent.is_error, "{}", sent.error);
    let early = client.receive("q-27", 1, 1).await;
    // A machine that stalls for two seconds may let it become due during the call.
    assert!(early.messages.is_empty() || wall() >= sent.delayed_to, "it came early");
    let received =
        if early.messages.is_empty() { client.receive("q-27", 1, 20).await.messages } else { early.messages };
    assert!(wall() >= sent.delayed_to, "it came early");
    assert_eq!(bodies(&received), ["1"]);
    assert_eq!(attributes(&received[0]).delayed_to, 0);
    assert_eq!(received[0].policy.as_ref().expect("a policy").delay_seconds, 0);
    assert_eq!(counts(&received), [1]);
}

#[tokio::test]
async fn q_28_expiration_starts_after_the_delay() {
    let (_server, client) = connected().await;
    let policy = QueueMessagePolicy { expiration_seconds: 1, ..delayed(3) };
    client.fill_with([message_with("q-28", "1", policy)]).await;
    sleep(Duration::from_secs(5)).await;
    let answer = client.receive("q-28", 1, 1).await;
    assert_eq!((answer.messages.len(), answer.messages_expired), (0, 1));
}

#[tokio::test]
async fn q_29_a_waiting_call_gets_what_comes() {
    let (_server, client) = connected().await;
    let send = async {
        sleep(Duration::from_secs(2)).await;
        client.fill("q-29", ["1"]).await;
    };
    let ((answer, took), ()) = tokio::join!(timed(client.receive("q-29", 1, 60)), send);
    assert_eq!(bodies(&answer.messages), ["1"]);
    assert_about(took, 2.0);
}

#[tokio::test]
async fn q_30_a_peek_leaves_everything_as_it_was() {
    let (_server, client) = connected().await;
    client.fill("q-30", texts(10)).await;
    for _ in 0..2 {
        let peeked = client.peek("q-30", 5, 5).await;
        assert_eq!(bodies(&peeked.messages), texts(5));
        assert_eq!(counts(&peeked.messages), [1; 5]);
        assert_eq!(sequences(&peeked.messages), [1, 2, 3, 4, 5]);
    }
    let received = client.take("q-30", 10).await;
    assert_eq!(bodies(&received), texts(10));
    assert_eq!(sequences(&received), (1..=10).collect::<Vec<u64>>());
    assert_eq!(counts(&received), [1; 10]);
}

#[tokio::test]
async fn q_31_a_peek_says_that_it_is_one() {
    let (_server, client) = connected().await;
    client.fill("q-31", texts(10)).await;
    let peeked = client.peek("q-31", 5, 5).await;
    assert!(peeked.is_peak);
    assert_eq!(peeked.messages_received, 5);
}

#[tokio::test]
async fn q_32_a_peek_removes_what_has_expired() {
    let (_server, client) = connected().await;
    client.fill_with([message_with("q-32", "old", expiring(1)), message("q-32", "new")]).await;
    sleep(Duration::from_secs(2)).await;
    let peeked = client.peek("q-32", 1, 1).await;
    assert_eq!((bodies(&peeked.messages), peeked.messages_expired), (vec!["new".to_owned()], 1));
    let again = client.peek("q-32", 1, 1).await;
    assert_eq!((bodies(&again.messages), again.messages_expired), (vec!["new".to_owned()], 0));
}

#[tokio::test]
async fn q_33_ack_all_empties_a_queue() {
    let (_server, client) = connected().await;
    client.fill("q-33", texts(5)).await;
    let (answer, took) = timed(client.ack_all("q-33", 1)).await;
    assert!(!answer.is_error, "{}", answer.error);
    assert_eq!(answer.affected_messages, 5);
    assert_soon(took);
    client.assert_empty("q-33").await;
}

#[tokio::test]
async fn q_34_ack_all_of_nothing_is_no_error() {
    let (_server, client) = connected().await;
    let (answer, took) = timed(client.ack_all("q-34", 2)).await;
    assert_eq!((answer.affected_messages, answer.is_error, answer.error.as_str()), (0, false, ""));
    assert_soon(took);
}

#[tokio::test]
async fn q_35_ack_all_checks_its_request() {
    let (_server, client) = connected().await;
    let rows = [
        ("", "q-35", 1, sentence(101)),
        ("C", "", 1, sentence(120)),
        ("C", "a b", 1, sentence(120)),
        ("C", "q-35", 3601, sentence(136)),
        ("C", "q-35", -1, sentence(136)),
    ];
    for (client_id, channel, wait, expected) in rows {
        let request = AckAllQueueMessagesRequest {
            request_id: "id".into(),
            client_id: client_id.into(),
            channel: channel.into(),
            wait_time_seconds: wait,
        };
        let answer = client.api.clone().ack_all_queue_messages(request).await.unwrap().into_inner();
        assert!(answer.is_error);
        assert_eq!((answer.error.as_str(), answer.request_id.as_str()), (expected, "id"));
    }
}

#[tokio::test]
async fn q_36_two_receivers_share_without_duplicates() {
    let (server, client) = connected().await;
    let other = Client::connect(&server.grpc()).await;
    client.fill("q-36", texts(100)).await;
    let receive = async |client: &Client| {
        let mut received = Vec::new();
        loop {
            let answer = client.receive("q-36", 7, 1).await;
            if answer.messages.is_empty() {
                return received;
            }
            received.extend(bodies(&answer.messages));
        }
    };
    let (mut all, others) = tokio::join!(receive(&client), receive(&other));
    all.extend(others);
    assert_eq!(all.len(), 100, "no duplicates");
    assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), texts(100).into_iter().collect());
}

#[tokio::test]
async fn q_37_a_restart_keeps_messages_and_sequences() {
    let mut server = Server::start().await;
    let client = Client::connect(&server.grpc()).await;
    client.fill("q-37", texts(3)).await;
    client.take("q-37", 1).await;
    server.kill();
    server.restart().await;
    let client = Client::connect(&server.grpc()).await;
    let received = client.take("q-37", 2).await;
    assert_eq!((bodies(&received), sequences(&received)), (vec!["2".to_owned(), "3".to_owned()], vec![2, 3]));
    assert_eq!(counts(&received), [1, 1]);
}

#[tokio::test]
async fn q_38_colons_and_slashes_are_letters() {
    let (_server, client) = connected().await;
    for name in ["q-38:b", "q-38/b"] {
        client.fill(name, ["1"]).await;
        assert_eq!(bodies(&client.take(name, 1).await), ["1"]);
    }
}

#[tokio::test]
async fn q_39_info_is_about_the_named_queues() {
    let (_server, client) = connected().await;
    for queue in ["q-39-1", "q-39-2", "q-39-3"] {
        client.fill(queue, ["1", "2"]).await;
    }
    let info = client.queues_info("q-39-1;q-39-2;q-39-missing").await;
    let mut names: Vec<&str> = info.queues.iter().map(|queue| queue.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["q-39-1", "q-39-2"]);
    assert_eq!((info.total_queue, info.sent, info.waiting, info.delivered), (2, 4, 4, 0));
    let all = client.queues_info("").await;
    assert!(all.queues.iter().any(|queue| queue.name == "q-39-3"), "{all:?}");
}

#[tokio::test]
async fn q_40_info_counts() {
    let (_server, client) = connected().await;
    client.fill("q-40", texts(5)).await;
    let queue = client.queue_info("q-40").await;
    assert_eq!((queue.messages, queue.sent, queue.waiting, queue.delivered, queue.subscribers), (5, 5, 5, 0, 0));
    assert_eq!((queue.first_sequence, queue.last_sequence), (1, 5));
    assert!(queue.bytes > 0);
    client.take("q-40", 2).await;
    let queue = client.queue_info("q-40").await;
    assert_eq!((queue.messages, queue.sent, queue.waiting, queue.delivered), (3, 5, 3, 2));
    assert_eq!((queue.first_sequence, queue.last_sequence), (3, 5));
}

#[tokio::test]
async fn q_41_info_keeps_names_whole() {
    let (_server, client) = connected().await;
    client.fill("SENSORS", ["1"]).await;
    assert_eq!(client.queue_info("SENSORS").await.sent, 1);
}

#[tokio::test]
async fn namespaces_do_not_mix() {
    let (_server, client) = connected().await;
    client.fill("namespace", ["1"]).await;
    let answer = client.manage("list-channels", &[("channel_type", "events"), ("channel_search", "namespace")]).await;
    assert_eq!(answer.unwrap().body, "[]");
}

#[tokio::test]
async fn a_hundred_messages_of_100_kilobytes_come_in_one_call() {
    let (_server, client) = connected().await;
    let body = vec![7_u8; 100_000];
    client.fill("hundred", (0..100).map(|_| body.clone())).await;
    let received = client.take("hundred", 100).await;
    assert!(received.iter().all(|message| message.body == body), "a body changed");
}

#[tokio::test]
async fn a_call_that_is_cancelled_takes_nothing() {
    let (_server, client) = connected().await;
    let waiting = client.receive("cancelled", 1, 60);
    let cancelled = kubemq_tests::wait::timeout(Duration::from_secs(1), waiting).await;
    assert!(cancelled.is_err());
    sleep(Duration::from_millis(300)).await;
    client.fill("cancelled", ["1"]).await;
    assert_eq!(bodies(&client.take("cancelled", 1).await), ["1"]);
}
