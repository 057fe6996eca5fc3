//! Clients that put every message into a frame of its own, as several libraries do, and send them faster than
//! they can be carried out.

use bytes::{Buf, Bytes};
use kubemq_proto::kubemq::{QueueMessage, QueuesUpstreamRequest};
use kubemq_tests::connected;
use kubemq_tests::live::{event, texts};
use prost::Message as _;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;

#[derive(Clone, Copy)]
struct OnePerFrame;

impl Codec for OnePerFrame {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for OnePerFrame {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(buffer, item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        // Whatever is there is handed over at once.
        BufferSettings::new(1024, 1)
    }
}

impl Decoder for OnePerFrame {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

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
    let _results = grpc.streaming(tonic::Request::new(requests), path, OnePerFrame).await.unwrap();
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
    let mut answers = grpc.streaming(tonic::Request::new(requests), path, OnePerFrame).await.unwrap().into_inner();
    for answered in 0..MESSAGES {
        assert!(answers.message().await.unwrap().is_some(), "after {answered}");
    }
}
