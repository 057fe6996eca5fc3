//! Promise: who sends all he can takes no one else's turn: others are served meanwhile, not afterwards.

use kubemq_tests::{Client, Server};

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
