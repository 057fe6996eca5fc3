//! Clients that put every message into a frame of its own, as several libraries do, and send them faster than
//! they can be carried out.

use bytes::Bytes;
use kubemq_proto::kubemq::{QueueMessage, QueuesUpstreamRequest};
use kubemq_tests::connected;
use kubemq_tests::live::{event, texts};
use kubemq_tests::raw::Raw;
use prost::Message as _;
use tonic::codegen::http::uri::PathAndQuery;

/// Each message has a frame of its own.
const ONE_PER_FRAME: Raw = Raw { one_per_frame: true };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_in_frames_of_their_own_are_taken_as_fast_as_they_come() {
    const EVENTS: usize = 300_000;
    let (_server, client) = connected().await;
    let mut last = client.events("small.last", "").await;
    let small = kubemq_proto::kubemq::Event { event_id: "e".into(), ..event("small", "b") };
    let small = Bytes::from(small.encode_to_vec());
    let end = Bytes::from(event("small.last", "end").encode_to_vec());
    let all = (0..EVENTS).map(move |_| small.clone()).chain([end]);
    let requests = futures_util::StreamExt::chain(tokio_stream::iter(all), futures_util::stream::pending());
    let mut grpc = tonic::client::Grpc::new(client.channel().clone());
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static("/kubemq.kubemq/SendEventsStream");
    let _results = grpc.streaming(tonic::Request::new(requests), path, ONE_PER_FRAME).await.unwrap();
    assert_eq!(texts(&last.take(1).await), ["end"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_in_frames_of_their_own_wait_for_the_disk() {
    const MESSAGES: usize = 100_000;
    let (_server, client) = connected().await;
    let message =
        QueueMessage { client_id: "c".into(), channel: "small".into(), body: "b".into(), ..Default::default() };
    let small = Bytes::from(QueuesUpstreamRequest { request_id: "r".into(), messages: vec![message] }.encode_to_vec());
    let all = (0..MESSAGES).map(move |_| small.clone());
    let requests = futures_util::StreamExt::chain(tokio_stream::iter(all), futures_util::stream::pending());
    let mut grpc = tonic::client::Grpc::new(client.channel().clone());
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static("/kubemq.kubemq/QueuesUpstream");
    let mut answers = grpc.streaming(tonic::Request::new(requests), path, ONE_PER_FRAME).await.unwrap().into_inner();
    for answered in 0..MESSAGES {
        assert!(answers.message().await.unwrap().is_some(), "after {answered}");
    }
}
