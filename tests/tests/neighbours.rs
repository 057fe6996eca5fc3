//! Promise: who sends all he can takes no one else's turn: others are served meanwhile, not afterwards.

use kubemq_proto::kubemq::QueuesUpstreamRequest;
use kubemq_tests::client::bodies;
use kubemq_tests::{Client, Server, message};

#[tokio::test]
async fn a_quiet_channel_is_served_while_another_is_flooded() {
    const FLOOD: usize = 3000;
    const QUIET: usize = 20;
    let server = Server::start().await;
    let flooding = Client::connect(&server.grpc()).await;
    let quiet = Client::connect(&server.grpc()).await;
    // Some 190 MiB, as fast as they are taken.
    let mut flood = flooding.api.clone();
    let requests = (0..FLOOD).map(|number| QueuesUpstreamRequest {
        request_id: number.to_string(),
        messages: vec![message("flooded", vec![7; 65_536])],
    });
    let requests = futures_util::StreamExt::chain(tokio_stream::iter(requests), futures_util::stream::pending());
    let mut answers = Box::pin(flood.queues_upstream(requests)).await.unwrap().into_inner();
    let mut stored = 0;
    // The first answer says that the flood has begun.
    assert!(answers.message().await.unwrap().is_some());
    stored += 1;
    let others = async {
        for number in 0..QUIET {
            quiet.fill("quiet", [number.to_string()]).await;
            assert_eq!(bodies(&quiet.take("quiet", 1).await), [number.to_string()]);
        }
    };
    let mut others = Box::pin(others);
    loop {
        tokio::select! {
            biased;
            () = &mut others => break,
            answer = answers.message() => {
                assert!(answer.unwrap().is_some());
                stored += 1;
                assert!(stored < FLOOD, "the others were served only after the whole flood");
            }
        }
    }
    while stored < FLOOD {
        assert!(answers.message().await.unwrap().is_some(), "after {stored}");
        stored += 1;
    }
}

#[tokio::test]
async fn a_backlog_is_drained_while_others_publish_and_memory_stays() {
    const BACKLOG: usize = 20_000;
    let server = Server::start().await;
    let client = Client::connect(&server.grpc()).await;
    for _ in 0..BACKLOG / 1000 {
        client.fill("backlog", (0..1000).map(|number| format!("{number:0512}"))).await;
    }
    let before = server.memory();
    let drained = async {
        let mut left = BACKLOG;
        while left > 0 {
            left -= client.take("backlog", 500).await.len();
        }
    };
    let publisher = Client::connect(&server.grpc()).await;
    let mut published = 0_u64;
    let mut drained = Box::pin(drained);
    loop {
        tokio::select! {
            biased;
            () = &mut drained => break,
            () = publisher.fill("published", ["one"]) => published += 1,
        }
    }
    assert!(published >= 20, "{published} messages were published while {BACKLOG} were drained");
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 128 << 20, "memory grew by {} MiB", grown >> 20);
}
