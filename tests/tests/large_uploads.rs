//! Promise: large messages wait for memory instead of taking it, and nobody waits for them.

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use kubemq_tests::process::Options;
use kubemq_tests::{Client, Server, assert_soon, message, timed};

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn many_large_uploads_at_once_take_their_budget_and_leave_the_way_to_others() {
    const UPLOADS: usize = 32;
    const SIZE: usize = 16 * MIB;
    let environment = [("LIMITS_INGEST", "32MiB"), ("LIMITS_TAIL_CACHE", "16MiB")];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let server = Server::start_with(Options { environment, ..Options::default() }).await;
    let before = server.peak_memory();
    let body = Bytes::from(vec![7; SIZE]);

    // Each over a connection of its own, so that no window holds them back.
    let mut uploads = FuturesUnordered::new();
    for number in 0..UPLOADS {
        let (address, body) = (server.grpc(), body.clone());
        uploads.push(async move {
            let client = Client::connect(&address).await;
            client.send(message(&format!("large.{}", number % 4), body)).await
        });
    }
    let other = Client::connect(&server.grpc()).await;
    while !uploads.is_empty() {
        let (sent, took) = timed(other.send(message("small", "a".as_bytes()))).await;
        assert!(!sent.is_error, "{}", sent.error);
        assert_soon(took);
        let sent = uploads.next().await.unwrap();
        assert!(!sent.is_error, "{}", sent.error);
    }
    let grown = server.peak_memory() - before;
    assert!(grown < 192 * MIB as u64, "{UPLOADS} uploads of {SIZE} bytes took {} MiB", grown / MIB as u64);

    for channel in 0..4 {
        for _ in 0..UPLOADS / 4 {
            let [message] = other.take(&format!("large.{channel}"), 1).await.try_into().unwrap();
            assert_eq!(message.body, body);
        }
    }
}

#[tokio::test]
async fn messages_larger_than_what_may_be_unconfirmed_are_all_stored() {
    const UPLOADS: usize = 8;
    // Two of them are more than may be under way; each is confirmed before the next one goes.
    const SIZE: usize = 40 * MIB;
    let server = Server::start().await;
    let body = Bytes::from(vec![7; SIZE]);
    let uploads: FuturesUnordered<_> = (0..UPLOADS)
        .map(|_| async {
            let client = Client::connect(&server.grpc()).await;
            client.send(message("large", body.clone())).await
        })
        .collect();
    let refused: Vec<_> =
        uploads.map(|sent| sent.error).filter(|error| std::future::ready(!error.is_empty())).collect().await;
    assert_eq!(refused, Vec::<String>::new());
    let client = Client::connect(&server.grpc()).await;
    for _ in 0..UPLOADS {
        assert_eq!(client.take("large", 1).await[0].body.len(), SIZE);
    }
}
