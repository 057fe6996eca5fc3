//! Many subscriptions, and one that reads nothing: what they cost others.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use kubemq_proto::kubemq::request::RequestType;
use kubemq_proto::kubemq::subscribe::SubscribeType;
use kubemq_tests::live::{event, request, texts};
use kubemq_tests::{Client, Options, Server, wait_until};
use tonic::Code;

const MEBIBYTE: u64 = 1024 * 1024;

#[tokio::test]
async fn what_one_does_not_read_is_bounded_and_nobody_elses_loss() {
    const EVENTS: usize = 64 * 1024;
    let arguments = ["--set".to_owned(), "limits.subscriber=4MiB".to_owned()].into();
    let server = Server::start_with(Options { arguments, ..Options::default() }).await;
    let client = Client::connect(&server.grpc()).await;
    let mut stalled = Client::connect(&server.grpc()).await.events("one", "").await;
    let mut reader = Client::connect(&server.grpc()).await.events("one", "").await;
    let before = server.memory();
    let mut most = before;
    let stream = client.events_stream().await;
    // 64 MiB pass, of which the one that does not read may hold four, and what its connection takes.
    for batch in 0..EVENTS / 256 {
        for number in 0..256 {
            let body = format!("{:01024}", batch * 256 + number);
            stream.send(event("one", body)).await;
        }
        let taken = reader.take(256).await;
        assert_eq!(texts(&taken)[255], format!("{:01024}", batch * 256 + 255), "nothing is lost to who reads");
        most = most.max(server.memory());
    }
    let grown = most - before;
    assert!(grown < 32 * MEBIBYTE, "memory grew by {} KiB", grown / 1024);
    assert!(server.metric("kubemq_subscribers_dropped_total") > 0.0);
    let told = server.log().matches("a subscriber reads too slowly").count();
    assert_eq!(told, 1, "an episode is told once");

    // It reads on: what waited comes in order, and then what is sent from now on.
    let waited = texts(&stalled.rest(Duration::from_secs(1)).await);
    assert!(waited.len() < EVENTS && waited.is_sorted(), "{} events had waited", waited.len());
    client.publish("one", ["again"]).await;
    assert_eq!(texts(&stalled.take(1).await), ["again"]);
    wait_until("what waited gave its memory back", Duration::from_secs(20), async || {
        (server.metric("kubemq_subscribers_waiting_bytes") == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn ten_thousand_subscriptions_and_a_thousand_on_one_channel() {
    let server = Server::start().await;
    let client = Client::connect(&server.grpc()).await;
    let mut own = Vec::new();
    for connection in 0..10 {
        let client = &Client::connect(&server.grpc()).await;
        let opening: Vec<_> = (0..900)
            .map(|number| async move {
                // A thousand channels by their name, the others by a pattern: each subscription is one of its kind.
                let name = format!("many.{connection}.{number}");
                client.events(if number % 3 == 0 { &name } else { "many.*.x" }, "").await
            })
            .collect();
        let opened: Vec<_> = futures_util::stream::iter(opening).buffered(100).collect().await;
        own.extend(opened);
    }
    let crowd = &Client::connect(&server.grpc()).await;
    let opening = futures_util::stream::iter((0..1000).map(|_| crowd.events("crowd", ""))).buffered(100);
    let mut crowd: Vec<_> = opening.collect().await;
    assert_eq!(server.metric("kubemq_clients_count"), 10_000.0);

    client.publish("crowd", ["1", "2", "3"]).await;
    let receiving: FuturesUnordered<_> = crowd.iter_mut().map(|events| events.take(3)).collect();
    let received: Vec<_> = receiving.collect().await;
    assert!(received.len() == 1000 && received.iter().all(|events| texts(events) == ["1", "2", "3"]));

    for number in [0, 3, 899 - 899 % 3] {
        client.publish(&format!("many.7.{number}"), ["to one"]).await;
        assert_eq!(texts(&own[7 * 900 + number].take(1).await), ["to one"]);
    }
    client.publish("many.7.x", ["to many"]).await;
    let receiving: FuturesUnordered<_> = own
        .iter_mut()
        .enumerate()
        .filter(|(place, _)| place % 900 % 3 != 0)
        .map(|(_, events)| events.take(1))
        .collect();
    assert_eq!(receiving.count().await, 6000);

    drop((own, crowd));
    wait_until("all subscriptions are gone", Duration::from_secs(60), async || {
        (server.metric("kubemq_clients_count") == 0.0).then_some(())
    })
    .await;
    client.publish("crowd", ["nobody"]).await;
}

#[tokio::test]
async fn a_node_that_stops_tells_its_subscribers_and_waits_for_nobody() {
    let mut server = Server::start().await;
    let client = Client::connect(&server.grpc()).await;
    let mut events = client.events("stop.>", "").await;
    let mut commands = client.requests(SubscribeType::Commands, "stop", "").await;
    let mut stream = client.events_stream().await;
    // One that reads nothing, behind more than its connection takes.
    let _stalled = Client::connect(&server.grpc()).await.events("stop.>", "").await;
    for _ in 0..20 {
        stream.send(event("stop.a", vec![7; 1 << 20])).await;
    }
    events.take(20).await;
    let asking = client.ask(request(RequestType::Command, "stop", "b", 60_000));
    let stopping = async {
        commands.next().await;
        server.terminate();
        for (what, ended) in [
            ("events", events.try_next().await.map(drop)),
            ("commands", commands.try_next().await.map(drop)),
            ("sending", Err(stream.failure().await)),
        ] {
            let status = ended.err().map(|status| (status.code(), !status.message().is_empty()));
            assert_eq!(status, Some((Code::Aborted, true)), "{what}");
        }
    };
    let (answer, ()) = tokio::join!(asking, stopping);
    assert!(answer.is_err_and(|status| status.code() == Code::Internal), "nobody can answer any more");
    let status = server.wait_exit(Duration::from_secs(8)).await;
    assert_eq!(status.code(), Some(0), "{}", server.log());
}
