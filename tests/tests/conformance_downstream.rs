//! Receiving over a stream with transactions: rows D-01 to D-37 of the conformance checklist, one test per
//! row, over the wire against the real program. Every row can be observed.

use std::collections::BTreeSet;
use std::time::Duration;

use kubemq_proto::kubemq::{
    QueueMessagePolicy, QueuesDownstreamRequest, QueuesDownstreamRequestType as Kind, QueuesDownstreamResponse,
};
use kubemq_tests::client::{Downstream, attributes, bodies, counts, get, message, message_with, sequences, settle};
use kubemq_tests::errors::{ACK_CLOSED, NO_TRANSACTION, OFFSETS_CLOSED, REQUEUE_NOWHERE, sentence};
use kubemq_tests::{Client, assert_about, assert_soon, connected, sleep, timed};

fn texts(numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
    numbers.into_iter().map(|number| number.to_string()).collect()
}

fn limited(max_receive_count: i32, dead: &str) -> QueueMessagePolicy {
    QueueMessagePolicy { max_receive_count, max_receive_queue: dead.into(), ..QueueMessagePolicy::default() }
}

fn range(kind: Kind, transaction: &str, sequences: impl IntoIterator<Item = i64>) -> QueuesDownstreamRequest {
    QueuesDownstreamRequest { sequence_range: sequences.into_iter().collect(), ..settle(kind, transaction) }
}

fn requeue(kind: Kind, transaction: &str, to: &str) -> QueuesDownstreamRequest {
    QueuesDownstreamRequest { re_queue_channel: to.into(), ..settle(kind, transaction) }
}

fn auto(request: QueuesDownstreamRequest) -> QueuesDownstreamRequest {
    QueuesDownstreamRequest { auto_ack: true, ..request }
}

async fn assert_refused(stream: &mut Downstream, request: QueuesDownstreamRequest, expected: &str) {
    let answer = stream.ask(request.clone()).await;
    assert!(answer.is_error, "{request:?} was accepted: {answer:?}");
    assert_eq!(answer.error, expected, "for {request:?}");
    assert_eq!(answer.request_type_data, request.request_type_data);
    assert_eq!(answer.ref_request_id, request.request_id);
    if request.request_type_data != Kind::Get as i32 {
        assert_eq!(answer.transaction_id, request.ref_transaction_id);
    }
}

/// A queue with ten messages, all of them held on the returned stream.
async fn ten_held(client: &Client, queue: &str) -> (Downstream, String) {
    client.fill(queue, texts(1..=10)).await;
    let mut stream = client.downstream().await;
    let (transaction, messages) = stream.hold(queue, 10).await;
    assert_eq!(bodies(&messages), texts(1..=10));
    assert_eq!(sequences(&messages), (1..=10).collect::<Vec<u64>>());
    assert_eq!(counts(&messages), [1; 10]);
    (stream, transaction)
}

#[tokio::test]
async fn d_01_get_needs_a_client_id() {
    let (_server, client) = connected().await;
    let mut stream = client.downstream().await;
    let request = QueuesDownstreamRequest { client_id: String::new(), ..get("d-01", 1, 1000) };
    let answer = stream.get(request).await;
    assert_eq!((answer.is_error, answer.error.as_str()), (true, sentence(101)));
    assert_eq!(answer.transaction_id.len(), 36, "{}", answer.transaction_id);
}

#[tokio::test]
async fn d_02_get_needs_a_proper_channel() {
    let (_server, client) = connected().await;
    let mut stream = client.downstream().await;
    for name in ["", ">", "a b", "a."] {
        assert_refused(&mut stream, get(name, 1, 1000), sentence(120)).await;
    }
}

#[tokio::test]
async fn d_03_auto_ack_removes_what_it_gives() {
    let (_server, client) = connected().await;
    client.fill("d-03", texts(1..=10)).await;
    let mut stream = client.downstream().await;
    let (answer, took) = timed(Box::pin(stream.get(auto(get("d-03", 10, 60_000))))).await;
    assert_eq!(bodies(&answer.messages), texts(1..=10));
    assert_ne!(answer.transaction_id, "");
    assert_soon(took);
    let empty = stream.get(auto(get("d-03", 10, 1000))).await;
    assert_eq!((empty.messages.len(), empty.is_error), (0, false));
    drop(stream);
    client.assert_empty("d-03").await;
}

#[tokio::test]
async fn d_04_a_partial_get_waits_for_the_whole_time() {
    let (_server, client) = connected().await;
    client.fill("d-04", texts(1..=5)).await;
    let mut stream = client.downstream().await;
    let (answer, took) = timed(Box::pin(stream.get(get("d-04", 10, 2000)))).await;
    assert_eq!(bodies(&answer.messages), texts(1..=5));
    assert_about(took, 2.0);
}

#[tokio::test]
async fn d_05_no_wait_means_at_once() {
    let (_server, client) = connected().await;
    let mut stream = client.downstream().await;
    for wait in [0, -1, 1] {
        let mut fastest = Duration::MAX;
        // The reference stretches the time to a second. The fastest of some shows that nobody waits for that.
        for _ in 0..5 {
            let (answer, took) = timed(Box::pin(stream.get(get("d-05", 10, wait)))).await;
            assert_eq!((answer.messages.len(), answer.is_error), (0, false));
            fastest = fastest.min(took);
        }
        assert!(fastest < Duration::from_millis(900), "took {fastest:?}");
    }
}

#[tokio::test]
async fn d_06_ack_all_is_silent() {
    let (_server, client) = connected().await;
    let (mut stream, transaction) = ten_held(&client, "d-06").await;
    stream.send(settle(Kind::AckAll, &transaction)).await;
    stream.stays_silent(Duration::from_secs(1)).await;
    drop(stream);
    client.assert_empty("d-06").await;
}

#[tokio::test]
async fn d_07_a_closed_transaction_cannot_be_acked() {
    let (_server, client) = connected().await;
    let (mut stream, transaction) = ten_held(&client, "d-07").await;
    stream.send(settle(Kind::AckAll, &transaction)).await;
    assert_refused(&mut stream, settle(Kind::AckAll, &transaction), ACK_CLOSED).await;
    assert_refused(&mut stream, range(Kind::AckRange, &transaction, [1]), ACK_CLOSED).await;
    let nack = "cannot nack messages with closed response ";
    assert_refused(&mut stream, settle(Kind::NAckAll, &transaction), nack).await;
    assert_refused(&mut stream, range(Kind::NAckRange, &transaction, [1]), nack).await;
}

#[tokio::test]
async fn d_08_an_unknown_transaction_is_refused() {
    let (_server, client) = connected().await;
    let mut stream = client.downstream().await;
    for kind in [Kind::AckAll, Kind::AckRange, Kind::NAckAll, Kind::ReQueueAll, Kind::ActiveOffsets] {
        assert_refused(&mut stream, settle(kind, "no such thing"), NO_TRANSACTION).await;
    }
}

#[tokio::test]
async fn d_09_transactions_of_others_are_unknown() {
    let (_server, client) = connected().await;
    let (mut stream, transaction) = ten_held(&client, "d-09").await;
    let mut other = client.downstream().await;
    for client_id in ["", "somebody else"] {
        let request = QueuesDownstreamRequest { client_id: client_id.into(), ..settle(Kind::AckAll, &transaction) };
        assert_refused(&mut other, request, NO_TRANSACTION).await;
    }
    assert_eq!(stream.active(&transaction).await.len(), 10);
}

#[tokio::test]
async fn d_09b_the_same_client_settles_on_another_stream() {
    let (_server, client) = connected().await;
    let (mut stream, transaction) = ten_held(&client, "d-09b").await;
    let mut other = client.downstream().await;
    other.send(settle(Kind::AckAll, &transaction)).await;
    other.half_close();
    other.ends().await;
    assert_refused(&mut stream, settle(Kind::ActiveOffsets, &transaction), OFFSETS_CLOSED).await;
    drop(stream);
    client.assert_empty("d-09b").await;
}

#[tokio::test]
async fn d_10_closing_gives_the_rest_back_as_it_was() {
    let (_server, client) = connected().await;
    let (mut stream, transaction) = ten_held(&client, "d-10").await;
    stream.send(range(Kind::AckRange, &transaction, [1, 3, 5])).await;
    stream.send(settle(Kind::CloseByClient, &transaction)).await;
    let (_, messages) = stream.hold("d-10", 7).await;
    assert_eq!(sequences(&messages), [2, 4, 6, 7, 8, 9, 10]);
    assert_eq!(counts(&messages), [1; 7]);
}

#[tokio::test]
async fn d_11_an_empty_ack_is_refused() {
    let (_server, client) = connected().await;
    let (mut stream, transaction) = ten_held(&client, "d-11").await;
    let request = range(Kind::AckRange, &transaction, []);
    assert_refused(&mut stream, request, "cannot ack empty list of of offsets").await;
}

#[tokio::test]
async fn d_12_an_ack_of_what_is_not_held_is_refused() {
    let (_server, client) = connected().await;
    let (mut stream, transaction) = ten_held(&client, "d-12").await;
    assert_refused(&mut stream, range(Kind::AckRange, &transaction, [-1]), "invalid ack sequence id -1").await;
}

#[tokio::test]
async fn d_13_a_range_stops_at_the_first_mistake() {
    let (_server, client) = connected().await;
    client.fill("d-13", texts(1..=3)).await;
    let mut stream = client.downstream().await;
    let (transaction, _) = stream.hold("d-13", 3).await;
    let request = range(Kind::AckRange, &transaction, [1, 99, 2]);
    assert_refused(&mut stream, request, "invalid ack sequence id 99").await;
    assert_eq!(stream.active(&transaction).await, [2, 3]);
}

#[tokio::test]
async fn d_14_the_last_ack_closes_the_transaction() {
    let (_server, client) = connected().await;
    let (mut stream, transaction) = ten_held(&client, "d-14").await;
    for sequence in 1..=10 {
        stream.send(range(Kind::AckRange, &transaction, [sequence])).await;
    }
    assert_refused(&mut stream, settle(Kind::ActiveOffsets, &transaction), OFFSETS_CLOSED).await;
}

#[tokio::test]
async fn d_15_active_offsets_are_what_is_unsettled() {
    let (_server, client) = connected().await;
    let (mut stream, transaction) = ten_held(&client, "d-15").await;
    assert_eq!(stream.active(&transaction).await, (1..=10).collect::<Vec<i64>>());
    stream.send(range(Kind::AckRange, &transaction, [2, 4, 6])).await;
    assert_eq!(stream.active(&transaction).await, [1, 3, 5, 7, 8, 9, 10]);
}

#[tokio::test]
async fn d_16_a_nack_counts_until_the_limit() {
    let (_server, client) = connected().await;
    client.fill_with((1..=10).map(|number| message_with("d-16", number.to_string(), limited(2, "")))).await;
    let mut stream = client.downstream().await;
    let (transaction, messages) = stream.hold("d-16", 10).await;
    assert_eq!(counts(&messages), [1; 10]);
    stream.send(settle(Kind::NAckAll, &transaction)).await;
    let (transaction, messages) = stream.hold("d-16", 10).await;
    assert_eq!(counts(&messages), [2; 10]);
    assert!(sequences(&messages).iter().all(|sequence| *sequence > 10), "{:?}", sequences(&messages));
    assert_eq!(BTreeSet::from_iter(bodies(&messages)), BTreeSet::from_iter(texts(1..=10)));
    stream.send(settle(Kind::NAckAll, &transaction)).await;
    let answer = stream.get(get("d-16", 10, 1000)).await;
    assert_eq!(bodies(&answer.messages), [""; 0]);
}

#[tokio::test]
async fn d_17_beyond_the_limit_lies_the_dead_letter_queue() {
    let (_server, client) = connected().await;
    let policy = limited(2, "d-17-dead");
    client.fill_with((1..=10).map(|number| message_with("d-17", number.to_string(), policy.clone()))).await;
    let mut stream = client.downstream().await;
    for count in [1, 2] {
        let (transaction, messages) = stream.hold("d-17", 10).await;
        assert_eq!(counts(&messages), [count; 10]);
        stream.send(settle(Kind::NAckAll, &transaction)).await;
    }
    let (_, letters) = stream.hold("d-17-dead", 10).await;
    assert_eq!(bodies(&letters), texts(1..=10));
    assert_eq!(counts(&letters), [1; 10]);
    for letter in &letters {
        assert_eq!((attributes(letter).re_routed, attributes(letter).re_routed_from_queue.as_str()), (true, "d-17"));
        assert_eq!(letter.policy.clone().unwrap_or_default(), QueueMessagePolicy::default());
    }
    client.assert_empty("d-17").await;
}

#[tokio::test]
async fn d_18_a_limit_of_one_means_one_delivery() {
    let (_server, client) = connected().await;
    client.fill_with([message_with("d-18", "1", limited(1, ""))]).await;
    let mut stream = client.downstream().await;
    let (transaction, _) = stream.hold("d-18", 1).await;
    stream.send(settle(Kind::NAckAll, &transaction)).await;
    let answer = stream.get(get("d-18", 10, 1000)).await;
    assert_eq!(bodies(&answer.messages), [""; 0]);
}

#[tokio::test]
async fn d_19_a_nack_checks_its_list() {
    let (_server, client) = connected().await;
    let (mut stream, transaction) = ten_held(&client, "d-19").await;
    let request = range(Kind::NAckRange, &transaction, []);
    assert_refused(&mut stream, request, "cannot nack empty list of of offsets").await;
    assert_refused(&mut stream, range(Kind::NAckRange, &transaction, [-1]), "invalid nack sequence id -1").await;
}

#[tokio::test]
async fn d_19b_a_nacked_message_is_there_while_the_transaction_is_open() {
    let (_server, client) = connected().await;
    client.fill("d-19b", texts(1..=3)).await;
    let mut stream = client.downstream().await;
    let (transaction, _) = stream.hold("d-19b", 3).await;
    stream.send(range(Kind::NAckRange, &transaction, [2])).await;
    let (_, messages) = stream.hold("d-19b", 1).await;
    assert_eq!((bodies(&messages), counts(&messages)), (texts([2]), vec![2]));
    assert_eq!(stream.active(&transaction).await, [1, 3]);
}

#[tokio::test]
async fn d_20_requeue_all_moves_to_another_queue() {
    let (_server, client) = connected().await;
    let (mut stream, transaction) = ten_held(&client, "d-20").await;
    stream.send(requeue(Kind::ReQueueAll, &transaction, "d-20-2")).await;
    let (_, messages) = stream.hold("d-20-2", 10).await;
    assert_eq!((bodies(&messages), counts(&messages)), (texts(1..=10), vec![1; 10]));
    assert!(messages.iter().all(|message| !attributes(message).re_routed));
    drop(stream);
    client.assert_empty("d-20").await;
}

#[tokio::test]
async fn d_21_requeue_says_where_to() {
    let (_server, client) = connected().await;
    let (mut stream, transaction) = ten_held(&client, "d-21").await;
    assert_refused(&mut stream, requeue(Kind::ReQueueAll, &transaction, ""), REQUEUE_NOWHERE).await;
    assert_refused(&mut stream, range(Kind::ReQueueRange, &transaction, [1]), REQUEUE_NOWHERE).await;
    assert_eq!(stream.active(&transaction).await.len(), 10);
}

#[tokio::test]
async fn d_22_requeue_checks_its_list() {
    let (_server, client) = connected().await;
    let (mut stream, transaction) = ten_held(&client, "d-22").await;
    let nothing = requeue(Kind::ReQueueRange, &transaction, "d-22-2");
    assert_refused(&mut stream, nothing.clone(), "cannot requeue empty list of of offsets").await;
    let unknown = QueuesDownstreamRequest { sequence_range: vec![-1], ..nothing };
    assert_refused(&mut stream, unknown, "invalid ack sequence id -1").await;
}

#[tokio::test]
async fn d_23_requeue_of_ranges_distributes() {
    let (_server, client) = connected().await;
    let (mut stream, transaction) = ten_held(&client, "d-23").await;
    for (to, from) in [("d-23-a", 1), ("d-23-b", 6)] {
        let request = requeue(Kind::ReQueueRange, &transaction, to);
        stream.send(QueuesDownstreamRequest { sequence_range: (from..from + 5).collect(), ..request }).await;
    }
    assert_refused(&mut stream, settle(Kind::ActiveOffsets, &transaction), OFFSETS_CLOSED).await;
    assert_eq!(bodies(&stream.hold("d-23-a", 5).await.1), texts(1..=5));
    assert_eq!(bodies(&stream.hold("d-23-b", 5).await.1), texts(6..=10));
}

#[tokio::test]
async fn d_24_requeue_to_a_malformed_name_changes_nothing() {
    let (_server, client) = connected().await;
    let (mut stream, transaction) = ten_held(&client, "d-24").await;
    let expected = format!("re-queue message with seq 1 failed, {}", sentence(120));
    assert_refused(&mut stream, requeue(Kind::ReQueueAll, &transaction, "a b"), &expected).await;
    assert_eq!(stream.active(&transaction).await.len(), 10);
}

#[tokio::test]
async fn d_25_a_closed_transaction_cannot_be_requeued() {
    let (_server, client) = connected().await;
    let (mut stream, transaction) = ten_held(&client, "d-25").await;
    stream.send(settle(Kind::AckAll, &transaction)).await;
    assert_refused(&mut stream, requeue(Kind::ReQueueAll, &transaction, "d-25-2"), ACK_CLOSED).await;
    let request = requeue(Kind::ReQueueRange, &transaction, "d-25-2");
    assert_refused(&mut stream, request, "cannot requeue messages with closed response ").await;
}

#[tokio::test]
async fn d_26_a_lost_stream_gives_everything_back_as_it_was() {
    let (_server, client) = connected().await;
    let (stream, _) = ten_held(&client, "d-26").await;
    drop(stream);
    let mut stream = client.downstream().await;
    let (_, messages) = stream.hold("d-26", 10).await;
    assert_eq!(sequences(&messages), (1..=10).collect::<Vec<u64>>());
    assert_eq!(counts(&messages), [1; 10]);
}

#[tokio::test]
async fn d_27_the_status_of_a_transaction_is_told() {
    let (_server, client) = connected().await;
    let (mut stream, transaction) = ten_held(&client, "d-27").await;
    stream.send(range(Kind::AckRange, &transaction, [1])).await;
    for (complete, offsets) in [(false, 9), (true, 0)] {
        let answer = stream.ask(settle(Kind::TransactionStatus, &transaction)).await;
        assert_eq!(answer.request_type_data, Kind::TransactionStatus as i32, "{answer:?}");
        assert_eq!((answer.is_error, answer.transaction_complete), (false, complete));
        assert_eq!(answer.active_offsets.len(), offsets);
        stream.send(settle(Kind::AckAll, &transaction)).await;
    }
}

#[tokio::test]
async fn d_28_no_type_and_no_transaction_is_an_unknown_transaction() {
    let (_server, client) = connected().await;
    let mut stream = client.downstream().await;
    assert_refused(&mut stream, settle(Kind::PollRequestTypeUnknown, "unknown"), NO_TRANSACTION).await;
    let (mut stream, transaction) = ten_held(&client, "d-28").await;
    assert_refused(&mut stream, settle(Kind::PollRequestTypeUnknown, &transaction), "request unknown").await;
}

#[tokio::test]
async fn d_29_auto_ack_leaves_nothing_to_ack() {
    let (_server, client) = connected().await;
    client.fill("d-29", texts(1..=2)).await;
    let mut stream = client.downstream().await;
    let answer = stream.get(auto(get("d-29", 2, 5000))).await;
    assert_eq!(answer.messages.len(), 2);
    assert_refused(&mut stream, settle(Kind::AckAll, &answer.transaction_id), ACK_CLOSED).await;
}

#[tokio::test]
async fn d_30_expired_messages_are_not_given() {
    let (_server, client) = connected().await;
    let policy = QueueMessagePolicy { expiration_seconds: 1, ..QueueMessagePolicy::default() };
    client.fill_with((1..=3).map(|number| message_with("d-30", number.to_string(), policy.clone()))).await;
    sleep(Duration::from_secs(2)).await;
    let mut stream = client.downstream().await;
    let answer = stream.get(get("d-30", 3, 1000)).await;
    assert_eq!((answer.messages.len(), answer.is_error), (0, false));
}

#[tokio::test]
async fn d_31_responses_have_no_metadata_and_are_not_complete() {
    let (_server, client) = connected().await;
    client.fill("d-31", texts(1..=3)).await;
    let mut stream = client.downstream().await;
    let held = stream.get(get("d-31", 2, 5000)).await;
    let transaction = held.transaction_id.clone();
    let answers: Vec<QueuesDownstreamResponse> = vec![
        held,
        stream.ask(settle(Kind::ActiveOffsets, &transaction)).await,
        stream.ask(range(Kind::AckRange, &transaction, [99])).await,
        stream.ask(settle(Kind::AckAll, "unknown")).await,
        stream.ask(auto(get("d-31", 1, 5000))).await,
        stream.ask(get("d-31", 1, 0)).await,
        stream.ask(get("", 1, 0)).await,
    ];
    for answer in answers {
        assert!(!answer.transaction_complete, "{answer:?}");
        assert!(answer.metadata.is_empty(), "{answer:?}");
    }
}

#[tokio::test]
async fn d_32_an_open_transaction_takes_nothing_new() {
    let (_server, client) = connected().await;
    client.fill("d-32", texts(1..=5)).await;
    let mut first = client.downstream().await;
    let held = first.get(get("d-32", 10, 1000)).await;
    assert_eq!(held.messages.len(), 5);
    client.fill("d-32", texts(6..=10)).await;
    let mut second = client.downstream().await;
    let (held, took) = timed(Box::pin(second.hold("d-32", 5))).await;
    assert_eq!(bodies(&held.1), texts(6..=10));
    assert_soon(took);
}

#[tokio::test]
async fn d_33_a_waiting_get_holds_nothing_up() {
    let (_server, client) = connected().await;
    let (mut stream, transaction) = ten_held(&client, "d-33").await;
    let waiting = get("d-33-empty", 1, 60_000);
    stream.send(waiting).await;
    stream.send(settle(Kind::AckAll, &transaction)).await;
    let (answer, took) = timed(Box::pin(stream.ask(settle(Kind::ActiveOffsets, &transaction)))).await;
    assert_eq!(answer.error, OFFSETS_CLOSED);
    assert_soon(took);
    client.fill("d-33-empty", ["late"]).await;
    assert_eq!(bodies(&stream.next().await.messages), ["late"]);
}

#[tokio::test]
async fn d_34_a_poll_whose_client_is_gone_takes_nothing() {
    let (_server, client) = connected().await;
    let mut stream = client.downstream().await;
    stream.send(auto(get("d-34", 1, 60_000))).await;
    stream.stays_silent(Duration::from_millis(500)).await;
    drop(stream);
    sleep(Duration::from_millis(500)).await;
    client.fill("d-34", ["1"]).await;
    assert_eq!(bodies(&client.take("d-34", 1).await), ["1"]);
}

#[tokio::test]
async fn d_35_nacked_messages_keep_their_order() {
    let (_server, client) = connected().await;
    let (mut stream, transaction) = ten_held(&client, "d-35").await;
    stream.send(settle(Kind::NAckAll, &transaction)).await;
    let (_, messages) = stream.hold("d-35", 10).await;
    assert_eq!((bodies(&messages), counts(&messages)), (texts(1..=10), vec![2; 10]));
}

#[tokio::test]
async fn d_36_two_streams_share_without_duplicates() {
    let (server, client) = connected().await;
    let other = Client::connect(&server.grpc()).await;
    let (mut first, mut second) = (client.downstream().await, other.downstream().await);
    client.fill("d-36", texts(1..=100)).await;
    let (ones, others) = tokio::join!(Box::pin(first.hold("d-36", 50)), Box::pin(second.hold("d-36", 50)));
    let all: BTreeSet<String> = bodies(&ones.1).into_iter().chain(bodies(&others.1)).collect();
    assert_eq!(all, texts(1..=100).into_iter().collect());
}

#[tokio::test]
async fn d_37_closing_is_silent() {
    let (_server, client) = connected().await;
    let (mut stream, transaction) = ten_held(&client, "d-37").await;
    for transaction in [transaction.as_str(), &transaction, "unknown", ""] {
        stream.send(settle(Kind::CloseByClient, transaction)).await;
    }
    let nobody = QueuesDownstreamRequest { client_id: String::new(), ..settle(Kind::CloseByClient, "") };
    stream.send(nobody).await;
    stream.stays_silent(Duration::from_secs(1)).await;
    assert_eq!(stream.hold("d-37", 10).await.1.len(), 10);
}

#[tokio::test]
async fn half_closing_answers_what_was_asked_and_gives_the_rest_back() {
    let (_server, client) = connected().await;
    client.fill("d-half", texts(1..=5)).await;
    let mut stream = client.downstream().await;
    stream.send(get("d-half", 3, 5000)).await;
    stream.half_close();
    assert_eq!(bodies(&stream.next().await.messages), texts(1..=3));
    stream.ends().await;
    let received = client.take("d-half", 5).await;
    assert_eq!((bodies(&received), counts(&received)), (texts(1..=5), vec![1; 5]));
}

#[tokio::test]
async fn a_get_sees_what_was_settled_before_it() {
    // Fire-and-forget settlements have no other guarantee than their order.
    let (_server, client) = connected().await;
    client.fill("d-order", texts(1..=3)).await;
    let mut stream = client.downstream().await;
    for round in 1..=20 {
        let (transaction, messages) = stream.hold("d-order", 3).await;
        assert_eq!(counts(&messages), [round; 3]);
        stream.send(settle(Kind::NAckAll, &transaction)).await;
    }
}

#[tokio::test]
async fn a_message_of_a_megabyte_passes_a_transaction_intact() {
    let (_server, client) = connected().await;
    let body: Vec<u8> = (0..1_000_000_u32).map(|at| at.to_le_bytes()[at as usize % 3]).collect();
    client.fill_with([message("d-megabyte", body.clone())]).await;
    let mut stream = client.downstream().await;
    let (transaction, messages) = stream.hold("d-megabyte", 1).await;
    assert!(messages[0].body == body, "the body changed");
    stream.send(settle(Kind::NAckAll, &transaction)).await;
    let (_, messages) = stream.hold("d-megabyte", 1).await;
    assert!(messages[0].body == body, "the body of the copy changed");
}
