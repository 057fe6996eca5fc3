//! Promise: what one stream may have open is bounded, beyond it the stream is told or waits, and nothing is lost.

use kubemq_proto::kubemq::QueuesDownstreamRequestType;
use kubemq_tests::client::{bodies, sequences};
use kubemq_tests::wait::SOON;
use kubemq_tests::{connected, get, settle, wait_until};

/// Gets of one stream that may wait.
const GETS: usize = 1024;
/// Transactions of one stream that may be open.
const TRANSACTIONS: usize = 65_536;
/// Settlements of one stream that may be on their way to the disk.
const SETTLEMENTS: usize = 16_384;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_gets_of_one_stream_wait() {
    let (_server, client) = connected().await;
    let mut stream = client.downstream().await;
    for _ in 0..GETS {
        stream.send(get("bounds.gets", 1, 3_600_000)).await;
    }
    let one_more = get("bounds.gets", 1, 3_600_000);
    let refused = stream.ask(one_more.clone()).await;
    assert!(refused.is_error && !refused.error.is_empty(), "{refused:?}");
    assert_eq!(refused.ref_request_id, one_more.request_id);
    client.fill("bounds.gets", ["1"]).await;
    assert_eq!(bodies(&stream.next().await.messages), ["1"], "those that wait are served");
    // One of them is done: there is room for one again.
    stream.send(get("bounds.gets", 1, 3_600_000)).await;
    client.fill("bounds.gets", ["2"]).await;
    assert_eq!(bodies(&stream.next().await.messages), ["2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_transactions_of_one_stream_are_open() {
    let (_server, client) = connected().await;
    let queue = "bounds.transactions";
    for from in (0..TRANSACTIONS + 1).step_by(4096) {
        client.fill(queue, (from..(from + 4096).min(TRANSACTIONS + 1)).map(|number| number.to_string())).await;
    }
    let mut stream = client.downstream().await;
    let mut last = String::new();
    for _ in 0..TRANSACTIONS / 512 {
        for _ in 0..512 {
            stream.send(get(queue, 1, 5000)).await;
        }
        for _ in 0..512 {
            let answer = stream.next().await;
            assert_eq!(answer.messages.len(), 1, "{answer:?}");
            last = answer.transaction_id;
        }
    }
    let refused = stream.ask(get(queue, 1, 5000)).await;
    assert!(refused.is_error && refused.messages.is_empty(), "{refused:?}");
    stream.send(settle(QueuesDownstreamRequestType::AckAll, &last)).await;
    // Once that is applied another may be opened.
    let mut patience = 1000;
    while stream.get(get(queue, 1, 5000)).await.is_error {
        patience -= 1;
        assert!(patience > 0, "one is closed and no other may be opened");
    }
    drop(stream);
    let mut back = 0;
    wait_until("everything to come back", SOON, async || {
        back += client.ack_all(queue, 1).await.affected_messages;
        (back == TRANSACTIONS as u64).then_some(())
    })
    .await;
    client.assert_empty(queue).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settlements_faster_than_the_disk_wait_and_none_is_lost() {
    let (_server, client) = connected().await;
    let queue = "bounds.settlements";
    let count = SETTLEMENTS + 4096;
    for from in (0..count).step_by(4096) {
        client.fill(queue, (from..from + 4096).map(|number| number.to_string())).await;
    }
    let mut stream = client.downstream().await;
    let (transaction, messages) = stream.hold(queue, count).await;
    for sequence in sequences(&messages) {
        let mut ack = settle(QueuesDownstreamRequestType::AckRange, &transaction);
        ack.sequence_range = vec![i64::try_from(sequence).unwrap()];
        stream.send(ack).await;
    }
    stream.half_close();
    stream.ends().await;
    client.assert_empty(queue).await;
}
