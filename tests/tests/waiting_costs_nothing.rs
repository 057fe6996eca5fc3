//! Waiting polls cost no polling: a thousand of them leave the process as idle as none. What is compared is
//! the time that the process was on a processor, which a busy machine does not add to.

use std::time::Duration;

use kubemq_tests::client::{bodies, old_receive};
use kubemq_tests::{Client, Server, get, sleep};

/// How long the process is watched.
const WATCHED: Duration = Duration::from_secs(4);
/// How much processor time it may take meanwhile, in hundredths of a second: 2 %. A loop per poll, even one
/// that sleeps for 50 ms, would take all there is.
const ALLOWED: u64 = 8;

/// Returns the processor time that a process has taken so far, in hundredths of a second.
fn processor_time(id: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // The name of the program may have spaces; the fields follow its closing bracket.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let times: Vec<u64> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    assert_eq!(times.len(), 2, "{stat}");
    times.iter().sum()
}

async fn taken(server: &Server) -> u64 {
    let before = processor_time(server.id());
    sleep(WATCHED).await;
    processor_time(server.id()) - before
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_waiting_polls_cost_nothing() {
    let server = Server::start().await;
    let client = Client::connect(&server.grpc()).await;
    // Messages that are held or delayed give a loop something to look at.
    client.fill("backlog", (0..2000).map(|number| number.to_string())).await;
    let mut holding = client.downstream().await;
    holding.hold("backlog", 2000).await;
    sleep(Duration::from_secs(2)).await;
    let idle = taken(&server).await;
    let mut polls = Vec::new();
    for number in 0..800 {
        let stream = client.downstream().await;
        let queue = if number % 2 == 0 { "backlog".to_owned() } else { format!("waiting-{number}") };
        stream.send(get(&queue, 1, 3_600_000)).await;
        polls.push(stream);
    }
    let mut old = Vec::new();
    for number in 0..200 {
        let stream = client.stream().await;
        stream.send(old_receive(&format!("waiting-old-{number}"), 60, 3600)).await;
        old.push(stream);
    }
    sleep(Duration::from_secs(2)).await;
    let waiting = taken(&server).await;
    assert!(waiting <= idle + ALLOWED, "idle {idle}, with a thousand polls {waiting} hundredths in {WATCHED:?}");
    // They do wait: one of them gets what comes.
    client.fill("waiting-401", ["1"]).await;
    assert_eq!(bodies(&polls[401].next().await.messages), ["1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_messages_are_not_searched_at_every_get() {
    // Getting one message takes as long behind many held ones as behind few: asked as a ratio, with room.
    let server = Server::start().await;
    let client = Client::connect(&server.grpc()).await;
    let mut spent = Vec::new();
    for held in [100, 20_000_usize] {
        let queue = format!("held-{held}");
        for _ in 0..held / 100 {
            client.fill(&queue, (0..100).map(|number| number.to_string())).await;
        }
        let mut holding = client.downstream().await;
        holding.hold(&queue, held).await;
        client.fill(&queue, (0..300).map(|number| number.to_string())).await;
        let before = processor_time(server.id());
        let mut stream = client.downstream().await;
        for _ in 0..300 {
            stream.hold(&queue, 1).await;
        }
        spent.push(processor_time(server.id()) - before);
    }
    assert!(spent[1] <= 5 * spent[0] + 50, "hundredths of a second behind 100 and 20 000 held ones: {spent:?}");
}
