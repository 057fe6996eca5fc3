//! What official SDKs do that no row of the checklist says, played back over the wire (sdk-compatibility.md
//! §1, §8, §13): of those SDKs that do not run here themselves, or as a regression without their toolchains.

use std::time::Duration;

use kubemq_proto::kubemq::kubemq_client::KubemqClient;
use kubemq_proto::kubemq::{QueuesDownstreamRequest, QueuesDownstreamRequestType as Kind, QueuesUpstreamRequest};
use kubemq_tests::client::{attributes, bodies, message, receive_request, sequences, unique};
use kubemq_tests::{Client, assert_about, connected, get, settle, timed};
use tonic::transport::Endpoint;

fn texts(numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
    numbers.into_iter().map(|number| number.to_string()).collect()
}

/// A settlement as Go2, C# and Rust send it: without a channel, and not necessarily with a client id.
fn bare(kind: Kind, transaction: &str, sequences: &[u64]) -> QueuesDownstreamRequest {
    QueuesDownstreamRequest {
        client_id: String::new(),
        sequence_range: sequences.iter().map(|sequence| i64::try_from(*sequence).unwrap_or(-1)).collect(),
        ..settle(kind, transaction)
    }
}

#[tokio::test]
async fn go2_closes_transactions_that_are_settled() {
    let (_server, client) = connected().await;
    client.fill("go2-close", texts(1..=20)).await;
    let mut stream = client.downstream().await;
    for batch in 0..4 {
        let (transaction, messages) = stream.hold("go2-close", 5).await;
        assert_eq!(bodies(&messages), texts(batch * 5 + 1..=batch * 5 + 5));
        for sequence in sequences(&messages) {
            stream.send(bare(Kind::AckRange, &transaction, &[sequence])).await;
        }
        stream.send(bare(Kind::CloseByClient, &transaction, &[])).await;
    }
    stream.stays_silent(Duration::from_millis(500)).await;
    stream.half_close();
    stream.ends().await;
    client.assert_empty("go2-close").await;
}

#[tokio::test]
async fn go2_polls_a_queue_on_a_stream_of_its_own() {
    let (_server, client) = connected().await;
    client.fill("go2-poll", texts(1..=3)).await;
    for expected in 1..=3 {
        let mut stream = client.downstream().await;
        let answer = stream.get(QueuesDownstreamRequest { auto_ack: true, ..get("go2-poll", 1, 5000) }).await;
        assert_eq!(bodies(&answer.messages), texts([expected]));
        stream.send(bare(Kind::CloseByClient, &answer.transaction_id, &[])).await;
        stream.half_close();
        stream.ends().await;
    }
    client.assert_empty("go2-poll").await;
}

#[tokio::test]
async fn one_batch_is_settled_in_three_ways() {
    let (_server, client) = connected().await;
    client.fill("mixed", texts(1..=6)).await;
    let mut stream = client.downstream().await;
    let (transaction, _) = stream.hold("mixed", 6).await;
    stream.send(bare(Kind::AckRange, &transaction, &[1])).await;
    stream.send(bare(Kind::NAckRange, &transaction, &[2, 3])).await;
    let requeue = bare(Kind::ReQueueRange, &transaction, &[4]);
    stream.send(QueuesDownstreamRequest { re_queue_channel: "mixed-other".into(), ..requeue }).await;
    // The rest, without an error for what is settled already.
    stream.send(bare(Kind::AckAll, &transaction, &[])).await;
    let (_, again) = stream.hold("mixed", 2).await;
    assert_eq!(bodies(&again), texts([2, 3]));
    assert_eq!(bodies(&stream.hold("mixed-other", 1).await.1), texts([4]));
}

#[tokio::test]
async fn an_empty_poll_answers_after_its_wait_and_not_much_later() {
    let (_server, client) = connected().await;
    let mut stream = client.downstream().await;
    let (answer, took) = timed(Box::pin(stream.get(get("punctual", 1, 2000)))).await;
    assert_eq!((answer.messages.len(), answer.is_error), (0, false));
    assert_about(took, 2.0);
}

#[tokio::test]
async fn a_receiver_is_used_for_many_polls() {
    let (_server, client) = connected().await;
    client.fill("reuse", texts(1..=100)).await;
    let mut stream = client.downstream().await;
    let mut received = Vec::new();
    while received.len() < 100 {
        let (transaction, messages) = stream.hold("reuse", 1).await;
        received.extend(bodies(&messages));
        stream.send(bare(Kind::AckAll, &transaction, &[])).await;
    }
    assert_eq!(received, texts(1..=100));
}

#[tokio::test]
async fn java_asks_several_times_at_once_on_one_stream() {
    let (_server, client) = connected().await;
    let mut stream = client.downstream().await;
    let waiting: Vec<QueuesDownstreamRequest> =
        (0..5).map(|number| get(&format!("concurrent-{number}"), 1, 20_000)).collect();
    for request in &waiting {
        stream.send(request.clone()).await;
    }
    for number in [3, 0, 4, 1, 2] {
        client.fill(&format!("concurrent-{number}"), [number.to_string()]).await;
        let answer = stream.next().await;
        assert_eq!(answer.ref_request_id, waiting[number].request_id);
        assert_eq!(bodies(&answer.messages), [number.to_string()]);
    }
}

#[tokio::test]
async fn csharp_sends_one_request_per_stream_and_closes_before_it_reads() {
    let (_server, client) = connected().await;
    for number in 1..=10 {
        let mut stream = client.upstream().await;
        let messages = vec![message("csharp", number.to_string())];
        stream.send(QueuesUpstreamRequest { request_id: unique("csharp"), messages }).await;
        stream.half_close();
        assert!(!stream.next().await.results[0].is_error);
        stream.ends().await;
    }
    assert_eq!(bodies(&client.take("csharp", 10).await), texts(1..=10));
}

#[tokio::test]
async fn js_asks_again_and_closes_without_losing_anything() {
    let (_server, client) = connected().await;
    client.fill("js", texts(1..=2)).await;
    let mut stream = client.downstream().await;
    let (transaction, messages) = stream.hold("js", 1).await;
    stream.send(bare(Kind::AckRange, &transaction, &sequences(&messages))).await;
    // A reset may overtake what was sent before it, but not what was answered behind it.
    stream.get(get("js-nothing", 1, 0)).await;
    stream.send(get("js", 1, 5000)).await;
    stream.half_close();
    drop(stream);
    let received = client.take("js", 1).await;
    assert_eq!(bodies(&received), texts([2]));
    assert_eq!(attributes(&received[0]).receive_count, 1);
}

#[tokio::test]
async fn clients_that_share_an_id_do_not_disturb_each_other() {
    let (server, client) = connected().await;
    client.fill("shared-id", texts(1..=5)).await;
    let mut streams = Vec::new();
    for expected in 1..=5 {
        let other = Client::connect(&server.grpc()).await;
        let mut stream = other.downstream().await;
        assert_eq!(bodies(&stream.hold("shared-id", 1).await.1), texts([expected]));
        streams.push(stream);
    }
}

#[tokio::test]
async fn a_library_that_reads_four_megabytes_loses_nothing_to_larger_answers() {
    let (server, client) = connected().await;
    let body = vec![7_u8; 100_000];
    client.fill("small-reader", (0..100).map(|_| body.clone())).await;
    // A client of tonic with its defaults says its name and reads 4 MB at most, as the Rust SDK does.
    let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc())).unwrap();
    let mut small = KubemqClient::new(endpoint.connect().await.unwrap());
    let mut received = 0;
    while received < 100 {
        let answer = small.receive_queue_messages(receive_request("small-reader", 100, 2)).await;
        let count = answer.unwrap().into_inner().messages.len();
        assert!(count > 0, "{received} of 100 were received");
        received += count;
    }
    assert_eq!(received, 100);
}
