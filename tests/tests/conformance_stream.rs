//! The old transactional stream, one message per stream: rows T-01 to T-27 of the conformance checklist, one
//! test per row, over the wire against the real program. Every row can be observed.
#![expect(clippy::expect_used, reason = "a test fails by panicking with what it saw")]

use std::time::Duration;

use kubemq_proto::kubemq::{QueueMessage, QueueMessagePolicy, StreamQueueMessagesRequest, StreamRequestType as Kind};
use kubemq_tests::client::{OldStream, attributes, bodies, counts, message, message_with, old, old_receive, sequences};
use kubemq_tests::errors::sentence;
use kubemq_tests::{Client, assert_about, assert_soon, connected, now, sleep, timed};

/// Opens a stream and receives the message that `queue` has.
async fn active(client: &Client, queue: &str, visibility: i32) -> (OldStream, QueueMessage) {
    let mut stream = client.stream().await;
    let answer = stream.ask(old_receive(queue, visibility, 5)).await;
    assert!(!answer.is_error, "{}", answer.error);
    (stream, answer.message.expect("a message"))
}

async fn assert_refused(stream: &mut OldStream, request: StreamQueueMessagesRequest, expected: &str) {
    let answer = stream.ask(request.clone()).await;
    assert!(answer.is_error, "{request:?} was accepted");
    assert_eq!(answer.error, expected, "for {request:?}");
    assert_eq!(answer.stream_request_type_data, request.stream_request_type_data);
    assert_eq!(answer.request_id, request.request_id);
    assert_eq!(answer.message, None);
}

async fn assert_done(stream: &mut OldStream, request: StreamQueueMessagesRequest) {
    let answer = stream.ask(request.clone()).await;
    assert!(!answer.is_error, "{request:?}: {}", answer.error);
    assert_eq!(answer.stream_request_type_data, request.stream_request_type_data);
    assert_eq!(answer.request_id, request.request_id);
    assert_eq!(answer.message, None);
}

fn about(kind: Kind, message: &QueueMessage) -> StreamQueueMessagesRequest {
    StreamQueueMessagesRequest { ref_sequence: attributes(message).sequence, ..old(kind, &message.channel) }
}

#[tokio::test]
async fn t_01_a_client_id_is_mandatory() {
    let (_server, client) = connected().await;
    client.fill("t-01", ["1"]).await;
    let mut stream = client.stream().await;
    let request = StreamQueueMessagesRequest { client_id: String::new(), ..old_receive("t-01", 0, 1) };
    assert_refused(&mut stream, request, sentence(101)).await;
    let answer = stream.ask(old_receive("t-01", 0, 5)).await;
    assert!(answer.message.is_some(), "the stream stays open: {answer:?}");
}

#[tokio::test]
async fn t_02_an_unknown_type_is_refused() {
    let (_server, client) = connected().await;
    let mut stream = client.stream().await;
    assert_refused(&mut stream, old(Kind::Unknown, "t-02"), sentence(132)).await;
    let request = StreamQueueMessagesRequest { stream_request_type_data: 9, ..old(Kind::Unknown, "t-02") };
    assert_refused(&mut stream, request, sentence(132)).await;
}

#[tokio::test]
async fn t_03_receive_needs_a_proper_channel() {
    let (_server, client) = connected().await;
    let mut stream = client.stream().await;
    for name in ["", "a.", "a b", "*"] {
        assert_refused(&mut stream, old_receive(name, 0, 1), sentence(120)).await;
    }
}

#[tokio::test]
async fn t_04_visibility_has_bounds() {
    let (_server, client) = connected().await;
    let mut stream = client.stream().await;
    for visibility in [-1, 43201] {
        assert_refused(&mut stream, old_receive("t-04", visibility, 1), sentence(127)).await;
    }
}

#[tokio::test]
async fn t_05_the_wait_time_has_bounds() {
    let (_server, client) = connected().await;
    let mut stream = client.stream().await;
    for wait in [-1, 3601] {
        assert_refused(&mut stream, old_receive("t-05", 0, wait), sentence(136)).await;
    }
}

#[tokio::test]
async fn t_06_nothing_within_the_wait_time_ends_the_stream() {
    let (_server, client) = connected().await;
    let mut stream = client.stream().await;
    let ((), took) = timed(assert_refused(&mut stream, old_receive("t-06", 0, 1), sentence(138))).await;
    assert_about(took, 1.0);
    stream.ends().await;
}

#[tokio::test]
async fn t_07_receive_gives_the_message() {
    let (_server, client) = connected().await;
    client.fill("t-07", ["1"]).await;
    let mut stream = client.stream().await;
    let request = old_receive("t-07", 0, 5);
    let answer = stream.ask(request.clone()).await;
    assert_eq!((answer.is_error, answer.error.as_str()), (false, ""));
    assert_eq!(answer.stream_request_type_data, Kind::ReceiveMessage as i32);
    assert_eq!(answer.request_id, request.request_id);
    let message = answer.message.expect("a message");
    assert_eq!((message.channel.as_str(), &message.body[..]), ("t-07", &b"1"[..]));
    assert_eq!((attributes(&message).receive_count, attributes(&message).sequence), (1, 1));
}

#[tokio::test]
async fn t_08_a_stream_holds_one_message() {
    let (_server, client) = connected().await;
    client.fill("t-08", ["1", "2"]).await;
    let (mut stream, message) = active(&client, "t-08", 60).await;
    assert_refused(&mut stream, old_receive("t-08", 0, 1), sentence(128)).await;
    assert_eq!(bodies(&client.take("t-08", 1).await), ["2"], "the first one stays held");
    assert_done(&mut stream, about(Kind::AckMessage, &message)).await;
    stream.ends().await;
    client.assert_empty("t-08").await;
}

#[tokio::test]
async fn t_09_there_is_nothing_to_ack_before_a_receive() {
    let (_server, client) = connected().await;
    let mut stream = client.stream().await;
    let request = StreamQueueMessagesRequest { ref_sequence: 1, ..old(Kind::AckMessage, "t-09") };
    assert_refused(&mut stream, request, sentence(124)).await;
}

#[tokio::test]
async fn t_10_an_ack_names_a_sequence() {
    let (_server, client) = connected().await;
    client.fill("t-10", ["1"]).await;
    let (mut stream, _) = active(&client, "t-10", 60).await;
    assert_refused(&mut stream, old(Kind::AckMessage, "t-10"), sentence(125)).await;
    assert_refused(&mut stream, old(Kind::RejectMessage, "t-10"), sentence(125)).await;
}

#[tokio::test]
async fn t_11_an_ack_of_another_sequence_changes_nothing() {
    let (_server, client) = connected().await;
    client.fill("t-11", ["1"]).await;
    let (mut stream, message) = active(&client, "t-11", 60).await;
    for kind in [Kind::AckMessage, Kind::RejectMessage] {
        let request = StreamQueueMessagesRequest { ref_sequence: 99, ..old(kind, "t-11") };
        assert_refused(&mut stream, request, sentence(125)).await;
    }
    assert_done(&mut stream, about(Kind::AckMessage, &message)).await;
}

#[tokio::test]
async fn t_12_an_ack_removes_the_message_and_ends_the_stream() {
    let (_server, client) = connected().await;
    client.fill("t-12", ["1"]).await;
    let (mut stream, message) = active(&client, "t-12", 60).await;
    assert_done(&mut stream, about(Kind::AckMessage, &message)).await;
    stream.ends().await;
    client.assert_empty("t-12").await;
}

#[tokio::test]
async fn t_13_there_is_nothing_to_reject_before_a_receive() {
    let (_server, client) = connected().await;
    let mut stream = client.stream().await;
    let request = StreamQueueMessagesRequest { ref_sequence: 1, ..old(Kind::RejectMessage, "t-13") };
    assert_refused(&mut stream, request, sentence(137)).await;
}

#[tokio::test]
async fn t_14_a_rejected_message_comes_again() {
    let (_server, client) = connected().await;
    client.fill("t-14", ["1"]).await;
    let (mut stream, message) = active(&client, "t-14", 60).await;
    assert_done(&mut stream, about(Kind::RejectMessage, &message)).await;
    stream.ends().await;
    let again = client.take("t-14", 1).await;
    assert_eq!((counts(&again), bodies(&again)), (vec![2], vec!["1".to_owned()]));
    assert_eq!(again[0].message_id, message.message_id);
    assert!(sequences(&again)[0] > attributes(&message).sequence);
    client.assert_empty("t-14").await;
}

#[tokio::test]
async fn t_15_there_is_nothing_to_resend_before_a_receive() {
    let (_server, client) = connected().await;
    let mut stream = client.stream().await;
    assert_refused(&mut stream, old(Kind::ResendMessage, "t-15-2"), sentence(126)).await;
}

#[tokio::test]
async fn t_16_a_resent_message_starts_afresh_elsewhere() {
    let (_server, client) = connected().await;
    let policy = QueueMessagePolicy { max_receive_count: 7, ..QueueMessagePolicy::default() };
    client.fill_with([message_with("t-16", "1", policy)]).await;
    let (mut stream, message) = active(&client, "t-16", 60).await;
    assert_done(&mut stream, old(Kind::ResendMessage, "t-16-2")).await;
    stream.ends().await;
    let resent = client.take("t-16-2", 1).await;
    assert_eq!((counts(&resent), sequences(&resent)), (vec![1], vec![1]));
    assert_eq!((resent[0].message_id.as_str(), &resent[0].body[..]), (message.message_id.as_str(), &b"1"[..]));
    assert_eq!(resent[0].policy, message.policy);
    assert!(!attributes(&resent[0]).re_routed);
    client.assert_empty("t-16").await;
}

#[tokio::test]
async fn t_17_a_resend_needs_a_proper_channel() {
    let (_server, client) = connected().await;
    client.fill("t-17", ["1"]).await;
    let (mut stream, message) = active(&client, "t-17", 60).await;
    for name in ["", "a b", "a."] {
        assert_refused(&mut stream, old(Kind::ResendMessage, name), sentence(120)).await;
    }
    assert_done(&mut stream, about(Kind::AckMessage, &message)).await;
}

#[tokio::test]
async fn t_18_a_modified_message_is_needed() {
    let (_server, client) = connected().await;
    let mut stream = client.stream().await;
    assert_refused(&mut stream, old(Kind::SendModifiedMessage, ""), sentence(131)).await;
    let rows = [
        (QueueMessage { client_id: String::new(), ..message("t-18", "2") }, 101),
        (message("a b", "2"), 120),
        (message("t-18", ""), 110),
        (message_with("t-18", "2", QueueMessagePolicy { delay_seconds: -1, ..Default::default() }), 135),
    ];
    for (modified, number) in rows {
        let request =
            StreamQueueMessagesRequest { modified_message: Some(modified), ..old(Kind::SendModifiedMessage, "") };
        assert_refused(&mut stream, request, sentence(number)).await;
    }
}

#[tokio::test]
async fn t_19_there_is_nothing_to_replace_before_a_receive() {
    let (_server, client) = connected().await;
    let mut stream = client.stream().await;
    let modified_message = Some(message("t-19", "2"));
    let request = StreamQueueMessagesRequest { modified_message, ..old(Kind::SendModifiedMessage, "") };
    assert_refused(&mut stream, request, sentence(124)).await;
    client.assert_empty("t-19").await;
}

#[tokio::test]
async fn t_20_a_modified_message_replaces_the_held_one() {
    let (_server, client) = connected().await;
    client.fill("t-20", ["1"]).await;
    let (mut stream, _) = active(&client, "t-20", 60).await;
    let modified = message("t-20-2", "2");
    let request =
        StreamQueueMessagesRequest { modified_message: Some(modified.clone()), ..old(Kind::SendModifiedMessage, "") };
    assert_done(&mut stream, request).await;
    stream.ends().await;
    let received = client.take("t-20-2", 1).await;
    assert_eq!((bodies(&received), counts(&received)), (vec!["2".to_owned()], vec![1]));
    assert_eq!(received[0].message_id, modified.message_id);
    client.assert_empty("t-20").await;
}

#[tokio::test]
async fn t_21_visibility_ends_with_a_message_that_comes_again() {
    let (_server, client) = connected().await;
    client.fill("t-21", ["1"]).await;
    let (mut stream, message) = active(&client, "t-21", 2).await;
    let (answer, took) = timed(stream.next()).await;
    assert!(answer.is_error);
    assert_eq!(answer.error, sentence(129));
    // The visibility starts when the server hands the message out, before the client sees it.
    assert_about(took, 1.8);
    stream.ends().await;
    let again = client.take("t-21", 1).await;
    assert_eq!(counts(&again), [2]);
    assert_eq!(again[0].message_id, message.message_id);
    client.assert_empty("t-21").await;
}

#[tokio::test]
async fn t_22_visibility_can_be_extended() {
    // Times of the row are stretched, so that a stalling machine does not fail it.
    let (_server, client) = connected().await;
    client.fill("t-22", ["1"]).await;
    let (mut stream, message) = active(&client, "t-22", 4).await;
    sleep(Duration::from_secs(1)).await;
    let longer = StreamQueueMessagesRequest { visibility_seconds: 30, ..old(Kind::ModifyVisibility, "t-22") };
    assert_done(&mut stream, longer).await;
    sleep(Duration::from_secs(5)).await;
    assert_done(&mut stream, about(Kind::AckMessage, &message)).await;
    stream.ends().await;
    client.assert_empty("t-22").await;
}

#[tokio::test]
async fn t_23_a_wrong_extension_leaves_the_timer() {
    let (_server, client) = connected().await;
    client.fill("t-23", ["1"]).await;
    let (mut stream, _) = active(&client, "t-23", 3).await;
    let started = now();
    let wrong = StreamQueueMessagesRequest { visibility_seconds: -1, ..old(Kind::ModifyVisibility, "t-23") };
    assert_refused(&mut stream, wrong, sentence(127)).await;
    let answer = stream.next().await;
    assert_eq!(answer.error, sentence(129));
    assert_about(now().since(started), 2.8);
}

#[tokio::test]
async fn t_24_a_client_that_goes_away_gives_the_message_back() {
    let (_server, client) = connected().await;
    client.fill("t-24", ["1"]).await;
    let (stream, message) = active(&client, "t-24", 60).await;
    drop(stream);
    let again = client.take("t-24", 1).await;
    assert_eq!(counts(&again), [2]);
    assert_eq!(again[0].message_id, message.message_id);
}

#[tokio::test]
async fn t_25_the_last_reject_leads_to_the_dead_letter_queue() {
    let (_server, client) = connected().await;
    let dead = "t-25-dead";
    let policy =
        QueueMessagePolicy { max_receive_count: 2, max_receive_queue: dead.into(), ..QueueMessagePolicy::default() };
    client.fill_with([message_with("t-25", "1", policy)]).await;
    let mut id = String::new();
    for count in [1, 2] {
        let (mut stream, message) = active(&client, "t-25", 60).await;
        assert_eq!(attributes(&message).receive_count, count);
        assert_done(&mut stream, about(Kind::RejectMessage, &message)).await;
        stream.ends().await;
        id = message.message_id;
    }
    let letters = client.take(dead, 1).await;
    assert_eq!((counts(&letters), bodies(&letters)), (vec![1], vec!["1".to_owned()]));
    assert_eq!(letters[0].message_id, id);
    assert!(attributes(&letters[0]).re_routed);
    assert_eq!(attributes(&letters[0]).re_routed_from_queue, "t-25");
    assert_eq!(letters[0].policy.clone().unwrap_or_default(), QueueMessagePolicy::default());
    client.assert_empty("t-25").await;
}

#[tokio::test]
async fn t_26_without_a_dead_letter_queue_the_last_reject_discards() {
    let (_server, client) = connected().await;
    let policy = QueueMessagePolicy { max_receive_count: 1, ..QueueMessagePolicy::default() };
    client.fill_with([message_with("t-26", "1", policy)]).await;
    let (mut stream, message) = active(&client, "t-26", 60).await;
    assert_done(&mut stream, about(Kind::RejectMessage, &message)).await;
    stream.ends().await;
    client.assert_empty("t-26").await;
}

#[tokio::test]
async fn t_27_an_expired_message_does_not_change_the_wait() {
    let (_server, client) = connected().await;
    let policy = QueueMessagePolicy { expiration_seconds: 1, ..QueueMessagePolicy::default() };
    client.fill_with([message_with("t-27", "1", policy)]).await;
    sleep(Duration::from_secs(2)).await;
    let mut stream = client.stream().await;
    let ((), took) = timed(assert_refused(&mut stream, old_receive("t-27", 60, 2), sentence(138))).await;
    assert_about(took, 2.0);
    stream.ends().await;
}

#[tokio::test]
async fn half_closing_while_a_message_is_held_gives_it_back() {
    let (_server, client) = connected().await;
    client.fill("t-half", ["1"]).await;
    let (mut stream, _) = active(&client, "t-half", 60).await;
    stream.half_close();
    stream.ends().await;
    assert_eq!(counts(&client.take("t-half", 1).await), [2]);
}

#[tokio::test]
async fn settlements_end_the_stream_at_once() {
    // Clients open the next stream only after the end of this one.
    let (_server, client) = connected().await;
    client.fill("t-quick", (0..20).map(|number| number.to_string())).await;
    let round_trips = async {
        for _ in 0..20 {
            let (mut stream, message) = active(&client, "t-quick", 60).await;
            assert_done(&mut stream, about(Kind::AckMessage, &message)).await;
            stream.ends().await;
        }
    };
    let ((), took) = timed(Box::pin(round_trips)).await;
    assert_soon(took);
}
