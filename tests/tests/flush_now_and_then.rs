//! Promise: with durability `interval` an acknowledgement comes before the flush, the death of the process takes
//! nothing, and a node that may have lost something with the power says so.

use kubemq_tests::process::Options;
use kubemq_tests::wait::SOON;
use kubemq_tests::{Client, Server};

#[tokio::test]
async fn acknowledged_before_the_flush_and_kept_when_the_process_dies() {
    let environment = [("KUBEMQ_DURABILITY", "interval"), ("STORE_FLUSH_INTERVAL_MILLISECONDS", "60000")];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let mut server = Server::start_with(Options { environment, ..Options::default() }).await;
    assert_eq!(server.ready().unwrap()["durability"], "interval (60000 ms)");
    let before = server.metric("kubemq_log_fdatasync_total");
    let client = Client::connect(&server.grpc()).await;
    for number in 0..100 {
        client.fill("lazy", [format!("{number}")]).await;
    }
    let flushes = server.metric("kubemq_log_fdatasync_total") - before;
    assert!(flushes < 50.0, "{flushes} flushes for 100 acknowledgements");
    assert!(server.metric("kubemq_log_unflushed_bytes") > 1000.0);

    server.kill();
    server.restart().await;
    assert!(!server.log().contains("the machine stopped"), "only the process died: {}", server.log());
    let client = Client::connect(&server.grpc()).await;
    let bodies: Vec<_> = client.take("lazy", 100).await.into_iter().map(|message| message.body).collect();
    assert_eq!(bodies, (0..100).map(|number| format!("{number}").into_bytes()).collect::<Vec<_>>());

    // As after the loss of power: the machine runs under another name than the node that did not stop.
    server.kill();
    std::fs::write(server.data().join("RUNNING"), "another start of the machine").unwrap();
    server.restart().await;
    assert!(server.log().contains("what it acknowledged in its last moments may be lost"), "{}", server.log());

    server.terminate();
    assert!(server.wait_exit(SOON).await.success());
    assert!(!server.data().join("RUNNING").exists(), "it has stopped and everything is flushed");
}
