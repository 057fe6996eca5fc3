//! Plays scenarios with the `kubemq` crate, unmodified.
//!
//! Prints one JSON line per scenario. When a scenario needs the server to end and to be started again, it prints
//! `{"request":"kill"}` or `{"request":"stop"}` and waits for a line on its standard input.

mod events;
mod inbox;
mod queues;
mod requests;
mod store;
mod world;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use world::World;

/// A scenario gets two minutes: most take none, some wait for a delay.
const PATIENCE: Duration = Duration::from_secs(120);

async fn play(id: String, w: World) {
    let known = queues::play(&id, w.clone()).await
        || events::play(&id, w.clone()).await
        || store::play(&id, w.clone()).await
        || requests::play(&id, w).await;
    assert!(known, "the runner does not know this scenario");
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().expect("usage: kubemq-sdk-rust <host:port> <scenario>…");
    let (host, port) = address.rsplit_once(':').expect("host:port");
    let (host, port) = (host.to_owned(), port.parse().expect("a port"));

    // What a check says, and where it stands, reaches only the hook.
    let said = Arc::new(Mutex::new(String::new()));
    let last = said.clone();
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload_as_str().unwrap_or("?");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        *last.lock().unwrap() = format!("{place}: {text}");
    }));
    let local = tokio::task::LocalSet::new();
    for id in arguments {
        let world = World { host: host.clone(), port, channel: format!("rust.{id}") };
        let started = Instant::now();
        // A task of its own, so that a check that fails ends nothing else.
        let played = local.run_until(async { tokio::task::spawn_local(play(id.clone(), world)).await });
        let played = tokio::time::timeout(PATIENCE, played).await;
        let (result, detail) = match played {
            Ok(Ok(())) => ("passed", format!("{} ms", started.elapsed().as_millis())),
            Ok(Err(_)) => ("failed", said.lock().unwrap().clone()),
            Err(_) => ("failed", format!("not through after {PATIENCE:?}")),
        };
        println!("{}", json!({ "scenario": id, "result": result, "detail": detail }));
    }
}
