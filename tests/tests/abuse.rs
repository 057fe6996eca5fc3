//! What no honest client sends: refused, contained, and never the end of the server.

use bytes::Bytes;
use kubemq_proto::kubemq::request::RequestType;
use kubemq_proto::kubemq::subscribe::SubscribeType;
use kubemq_proto::kubemq::{Empty, QueueMessage, Request};
use kubemq_tests::client::{bodies, message};
use kubemq_tests::live::{event, executed, request, subscribe, texts};
use kubemq_tests::{Client, connected, get, raw};
use prost::Message;
use tonic::Code;

const UNARY: [&str; 8] = [
    "/kubemq.kubemq/SendQueueMessage",
    "/kubemq.kubemq/SendQueueMessagesBatch",
    "/kubemq.kubemq/ReceiveQueueMessages",
    "/kubemq.kubemq/AckAllQueueMessages",
    "/kubemq.kubemq/QueuesInfo",
    "/kubemq.kubemq/SendRequest",
    "/kubemq.kubemq/SendEvent",
    "/kubemq.kubemq/SendResponse",
];
const STREAMS: [&str; 6] = [
    "/kubemq.kubemq/StreamQueueMessage",
    "/kubemq.kubemq/QueuesUpstream",
    "/kubemq.kubemq/QueuesDownstream",
    "/kubemq.kubemq/SendEventsStream",
    "/kubemq.kubemq/SubscribeToEvents",
    "/kubemq.kubemq/SubscribeToRequests",
];

#[tokio::test]
async fn undecodable_bytes_are_internal() {
    let (_server, mut client) = connected().await;
    let garbage = Bytes::from_static(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff");
    for method in UNARY {
        let status = raw::unary(client.channel(), method, garbage.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal, "{method}: {status}");
    }
    for method in STREAMS {
        let status = raw::streaming(client.channel(), method, vec![garbage.clone()]).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal, "{method}: {status}");
    }
    client.api.ping(Empty {}).await.unwrap();
}

#[tokio::test]
async fn text_that_is_not_utf_8_is_internal() {
    let (_server, mut client) = connected().await;
    // Field 2, ClientID, and field 3, Channel, with a byte that no UTF-8 text has.
    let message = b"\x12\x02\xff\xfe\x1a\x02q\xff\x2a\x01x";
    let status = raw::unary(client.channel(), UNARY[0], Bytes::from_static(message)).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal, "{status}");
    let status = raw::streaming(client.channel(), STREAMS[2], vec![Bytes::from_static(message)]).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal, "{status}");
    client.api.ping(Empty {}).await.unwrap();
}

#[tokio::test]
async fn what_was_answered_before_a_bad_frame_is_stored() {
    let (_server, client) = connected().await;
    let good = kubemq_proto::kubemq::QueuesUpstreamRequest {
        request_id: "good".into(),
        messages: vec![message("interrupted", "1")],
    };
    let frames = vec![good.encode_to_vec().into(), Bytes::from_static(b"\xff\xff\xff")];
    match raw::streaming(client.channel(), STREAMS[1], frames).await {
        Ok(answer) => {
            assert!(answer.is_some());
            assert_eq!(bodies(&client.take("interrupted", 1).await), ["1"]);
        }
        // Without an answer nobody knows, which is right as well.
        Err(status) => assert_eq!(status.code(), Code::Internal, "{status}"),
    }
}

#[tokio::test]
async fn a_method_that_does_not_exist_is_unimplemented() {
    let (_server, client) = connected().await;
    let status = raw::unary(client.channel(), "/kubemq.kubemq/Nonsense", Bytes::new()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn extreme_numbers_are_answered() {
    let (_server, client) = connected().await;
    let mut stream = client.downstream().await;
    for max in [0, -1, i32::MIN, i32::MAX] {
        let answer = stream.get(get("extreme", max, 1)).await;
        assert!(!answer.is_error, "{answer:?}");
    }
    let answer = client.receive("extreme", i32::MIN, i32::MIN).await;
    assert!(answer.is_error);
    let extreme = QueueMessage { partition: i32::MIN, ..message("extreme", "1") };
    assert!(!client.send(extreme).await.is_error);
    assert_eq!(client.take("extreme", 1).await[0].partition, i32::MIN);
}

#[tokio::test]
async fn half_a_message_is_waited_for_and_dropped_with_its_connection() {
    use std::io::Write;
    let (server, mut client) = connected().await;
    for bytes in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\0"] {
        let mut socket = std::net::TcpStream::connect(server.grpc()).unwrap();
        socket.write_all(bytes).unwrap();
    }
    client.api.ping(Empty {}).await.unwrap();
}

#[tokio::test]
async fn many_idle_streams_are_no_burden() {
    let (_server, client) = connected().await;
    let mut streams = Vec::new();
    for number in 0..500 {
        let stream = client.downstream().await;
        stream.send(get(&format!("idle-{number}"), 1, 3_600_000)).await;
        streams.push(stream);
    }
    client.fill("idle-250", ["1"]).await;
    assert_eq!(bodies(&streams[250].next().await.messages), ["1"]);
}

#[tokio::test]
async fn names_of_megabytes_and_odd_tokens_are_refused_and_leave_nothing_behind() {
    let (_server, client) = connected().await;
    let endless = "x".repeat(10 << 20);
    let deep = "a.".repeat(16_000) + "a";
    let status = client.send_event(event(&endless, "b")).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal, "{}", status.code());
    let status = client.try_events(subscribe(SubscribeType::Events, "a", &endless)).await.err().unwrap();
    assert_eq!(status.code(), Code::Internal, "{}", status.code());
    let forged = Request { reply_channel: endless, ..request(RequestType::Query, "a", "b", 1000) };
    assert_eq!(client.answer(executed(&forged)).await.unwrap_err().code(), Code::Internal);
    // As many parts as a name can have.
    let mut events = [client.events(&deep, "").await, client.events(&deep.replace('a', "*"), "").await];
    client.publish(&deep, ["deep"]).await;
    for events in &mut events {
        assert_eq!(texts(&events.take(1).await), ["deep"]);
    }
}

#[tokio::test]
async fn streams_that_are_opened_and_dropped_leave_nothing_behind() {
    let (server, client) = connected().await;
    for round in 0..50 {
        // Ten thousand altogether. A connection of its own for each round: the client's library gives up one on
        // which it was sent too much for streams that it had dropped.
        let client = Client::connect(&server.grpc()).await;
        let mut streams = Vec::new();
        for _ in 0..100 {
            let subscribed = client.events("opened.>", "").await;
            streams.push((subscribed, client.events_stream().await));
        }
        client.publish("opened.x", [round.to_string()]).await;
    }
    let mut events = client.events("opened.x", "").await;
    client.publish("opened.x", ["last"]).await;
    assert_eq!(texts(&events.take(1).await), ["last"]);
}
