//! What a connection may hold, how long it may be silent, and how long it is waited for when the node stops.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking with what it saw")]
#![expect(clippy::disallowed_types, reason = "a socket of its own, to say nothing on")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use kubemq_proto::kubemq::Empty;
use kubemq_runtime::OnFailure;
use kubemq_tests::client::message;
use kubemq_tests::live::event;
use kubemq_tests::process::Options;
use kubemq_tests::raw::Raw;
use kubemq_tests::wait::{SOON, runtime};
use kubemq_tests::{Client, Server, connected, wait_until};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::codegen::http::uri::PathAndQuery;

/// What a stream may have on its way that the node has not read: the server's own value.
const STREAM_WINDOW: usize = 1 << 20;
/// The same of all streams of a connection.
const CONNECTION_WINDOW: usize = 64 << 20;
/// How long calls may go on when the node stops, and how long connections may take to close after that.
const FINISH_AND_CLOSE: Duration = Duration::from_secs(5 + 2);

/// Opens a stream of events that are all refused, each with an answer, and reads no answer, so that the node does not
/// read on. Adds up in `sent` what the library has taken. The stream stays open for as long as what is returned lives.
async fn unread_stream(client: &Client, sent: &Arc<AtomicUsize>) -> impl Sized + use<> {
    let refused = Bytes::from(event("not a name", vec![7; 4096]).encode_to_vec());
    let sent = Arc::clone(sent);
    let requests = futures_util::stream::repeat_with(move || {
        sent.fetch_add(refused.len(), Ordering::Relaxed);
        refused.clone()
    });
    let mut grpc = tonic::client::Grpc::new(client.channel().clone());
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static("/kubemq.kubemq/SendEventsStream");
    grpc.streaming(tonic::Request::new(requests), path, Raw::default()).await.unwrap().into_inner()
}

/// Waits until nothing more is taken.
async fn stalls(what: &str, sent: &AtomicUsize) -> usize {
    let mut last = (0, 0);
    wait_until(what, SOON, async || {
        let now = sent.load(Ordering::Relaxed);
        last = if now > 0 && now == last.0 { (now, last.1 + 1) } else { (now, 0) };
        (last.1 == 40).then_some(now)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_read_waits_at_the_client_first_of_a_stream_then_of_a_connection() {
    let (server, client) = connected().await;
    let sent = Arc::new(AtomicUsize::new(0));
    let first = unread_stream(&client, &sent).await;
    let by_one = stalls("one stream to stall", &sent).await;
    assert!(by_one > STREAM_WINDOW, "{by_one}");
    // Nobody else on this connection waits for it.
    assert!(!client.send(message("windows", "1")).await.is_error);
    let mut streams = vec![first];
    for _ in 0..CONNECTION_WINDOW / STREAM_WINDOW + 4 {
        streams.push(unread_stream(&client, &sent).await);
    }
    let by_all = stalls("all streams to stall", &sent).await;
    assert!(by_all > CONNECTION_WINDOW, "{by_all}");
    // Now it is the connection that is not read: whoever sends on it waits. Other connections go on.
    let mut waiting = std::pin::pin!(client.send(message("windows", "2")));
    let pause = runtime().clock.timeout(Duration::from_secs(1), &mut waiting).await;
    assert!(pause.is_err(), "the window of the connection is used up");
    let other = Client::connect(&server.grpc()).await;
    assert!(!other.send(message("windows", "3")).await.is_error);
    drop(streams);
    assert!(!waiting.await.is_error, "there is room again");
}

#[tokio::test]
async fn a_connection_that_is_silent_is_asked_whether_it_is_still_there() {
    let server = Server::start().await;
    let mut connection = tokio::net::TcpStream::connect(("127.0.0.1", server.grpc_port())).await.unwrap();
    // The preface and settings that say nothing; from then on silence, but for the acknowledgement.
    connection.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let asked = async {
        loop {
            let mut head = [0; 9];
            connection.read_exact(&mut head).await.unwrap();
            let [a, b, c, kind, flags, ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            connection.read_exact(&mut payload).await.unwrap();
            match (kind, flags & 1) {
                (4, 0) => connection.write_all(b"\0\0\0\x04\x01\0\0\0\0").await.unwrap(),
                (6, 0) => return,
                _ => {}
            }
        }
    };
    runtime().clock.timeout(Duration::from_secs(60), asked).await.expect("a question");
}

/// Begins a call that will never be complete.
async fn begin_endless_call(client: &Client) -> impl Sized + use<> {
    let mut grpc = tonic::client::Grpc::new(client.channel().clone());
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static("/kubemq.kubemq/SendQueueMessage");
    let call = runtime().tasks.spawn("call", OnFailure::Log, async move {
        let body = futures_util::stream::pending::<Bytes>().boxed();
        drop(grpc.client_streaming::<_, Bytes, Bytes, _>(tonic::Request::new(body), path, Raw::default()).await);
    });
    // It was begun before this on the same connection.
    tokio::task::yield_now().await;
    wait_until("the call to be under way", SOON, async || client.api.clone().ping(Empty {}).await.ok()).await;
    call.abort_on_drop()
}

#[tokio::test]
async fn a_call_that_does_not_end_is_cut_off_and_its_connection_is_too() {
    let mut server = Server::start().await;
    let client = Client::connect(&server.grpc()).await;
    let _call = begin_endless_call(&client).await;
    server.terminate();
    let status = server.wait_exit(FINISH_AND_CLOSE + Duration::from_secs(3)).await;
    assert_eq!(status.code(), Some(0), "{}", server.log());
    assert!(server.log().contains("calls still under way were cut off"), "{}", server.log());
}

#[tokio::test]
async fn stopping_takes_no_longer_than_configured() {
    let arguments = ["--set".to_owned(), "shutdown.graceSeconds=2".to_owned()].into();
    let mut server = Server::start_with(Options { arguments, ..Options::default() }).await;
    let client = Client::connect(&server.grpc()).await;
    let _call = begin_endless_call(&client).await;
    server.terminate();
    server.wait_exit(FINISH_AND_CLOSE).await;
    let log = server.log();
    assert!(log.contains("stopping took too long and was cut off"), "{log}");
    assert!(!log.contains("calls still under way were cut off"), "{log}");
}
