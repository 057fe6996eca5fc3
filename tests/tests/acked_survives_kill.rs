//! Promise: what was acknowledged survives the death of the process.
//!
//! The real program is killed at random moments while publishers and consumers work, and started again on the
//! same directory, round after round; now and then it is killed while it starts. In the end everything is
//! drained and the history that the clients wrote is judged (see `kubemq_tests::checker`): nothing
//! acknowledged is lost, nothing comes that was not sent, bytes, order and receive counts are right.
//!
//! `KUBEMQ_KILL_ROUNDS` says how many rounds (10 by default), `KUBEMQ_KILL_SEED` which ones. The seed decides
//! what clients do and when the process dies, not how the threads of two processes interleave.
#![expect(clippy::panic, clippy::expect_used, reason = "a test fails by panicking with what it saw")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kubemq_proto::kubemq::{
    QueueMessage, QueuesDownstreamRequest, QueuesDownstreamRequestType as Kind, QueuesUpstreamRequest,
    StreamQueueMessagesRequest, StreamRequestType,
};
use kubemq_runtime::{OnFailure, Random};
use kubemq_tests::checker::{Rules, check};
use kubemq_tests::client::{CLIENT_ID, attributes, old, old_receive, sequences};
use kubemq_tests::history::{Event, History, Settlement};
use kubemq_tests::process::Options;
use kubemq_tests::wait::runtime;
use kubemq_tests::{Client, Server, get, settle, sleep};

const DEFAULT_ROUNDS: u64 = 10;
/// Sent to by single calls, received by two streams.
const SHARED: &str = "kill-shared";
/// Sent to over a stream, received by one stream.
const SINGLE: &str = "kill-single";
/// Sent to by single calls, received over the old stream.
const OLD: &str = "kill-old";

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
}

/// What all clients of a test share.
#[derive(Clone)]
struct World {
    history: History,
    random: Random,
    next: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl World {
    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Makes a message that no other message equals, and notes that it is about to be sent.
    fn message(&self, sender: u64, channel: &str) -> QueueMessage {
        let id = format!("m{}", self.number());
        let length = match self.random.below(200) {
            0 => self.random.below(300_000),
            1..20 => self.random.below(5000),
            _ => self.random.below(200),
        };
        let mut body = id.clone().into_bytes();
        body.resize(body.len() + usize::try_from(length).expect("a small length"), b'.');
        let body = Bytes::from(body);
        self.history.record(Event::Sending { sender, id: id.clone(), channel: channel.into(), body: body.clone() });
        QueueMessage {
            message_id: id,
            client_id: CLIENT_ID.into(),
            channel: channel.into(),
            body,
            ..QueueMessage::default()
        }
    }

    fn answered(&self, id: String, refused: bool) {
        self.history.record(if refused { Event::Refused { id } } else { Event::Sent { id } });
    }
}

/// Sends one message after the other by single calls.
async fn publish_by_calls(world: World, client: Client, channel: &'static str) {
    let sender = world.number();
    while !world.stopped() {
        let message = world.message(sender, channel);
        let id = message.message_id.clone();
        match client.api.clone().send_queue_message(message).await {
            Ok(result) => world.answered(id, result.into_inner().is_error),
            Err(_) => return,
        }
    }
}

/// Sends requests over a stream, some of them in flight.
async fn publish_by_stream(world: World, client: Client, channel: &'static str) {
    let sender = world.number();
    let Ok(mut stream) = client.try_upstream().await else { return };
    let mut in_flight: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for _ in 0..400 {
        if world.stopped() {
            return;
        }
        let count = 1 + world.random.below(16);
        let messages: Vec<QueueMessage> = (0..count).map(|_| world.message(sender, channel)).collect();
        let request_id = world.number().to_string();
        in_flight.insert(request_id.clone(), messages.iter().map(|message| message.message_id.clone()).collect());
        if !stream.try_send(QueuesUpstreamRequest { request_id, messages }).await {
            return;
        }
        let most = usize::try_from(world.random.below(32)).expect("a small number");
        while in_flight.len() > most {
            let Ok(Some(answer)) = stream.next_within(Duration::from_secs(30)).await else { return };
            let ids = in_flight.remove(&answer.ref_request_id).expect("the answer to a request in flight");
            assert_eq!(ids.len(), answer.results.len());
            for (id, result) in ids.into_iter().zip(answer.results) {
                world.answered(id, result.is_error || answer.is_error);
            }
        }
    }
}

/// Receives over a stream with transactions, and settles in every way.
async fn consume(world: World, client: Client, channel: &'static str, may_return: bool) {
    let receiver = world.number();
    let Ok(mut stream) = client.try_downstream().await else { return };
    while !world.stopped() {
        let max = i32::try_from(1 + world.random.below(64)).expect("a small number");
        let request = get(channel, max, 50);
        let id = request.request_id.clone();
        if !stream.try_send(request).await {
            return;
        }
        let Ok(Some(answer)) = stream.next_within(Duration::from_secs(30)).await else { return };
        assert!(!answer.is_error, "{answer:?}");
        assert_eq!(answer.ref_request_id, id);
        world.history.record(Event::Confirmed { receiver });
        world.history.delivered(receiver, channel, &answer.messages);
        let mut held = sequences(&answer.messages);
        // What another receiver gave back while this one waited comes behind what had been taken before.
        assert!(may_return || held.is_sorted(), "one answer is in order: {held:?}");
        let transaction = answer.transaction_id;
        if world.random.below(10) == 0 {
            let nacked = held.split_off(held.len() - held.len() / 4);
            if !range(&world, &mut stream, (receiver, channel), &transaction, nacked, Settlement::Nack).await {
                return;
            }
        }
        if may_return && world.random.below(10) == 0 {
            world.history.settling(receiver, channel, &held, Settlement::Return);
            if !stream.try_send(settle(Kind::CloseByClient, &transaction)).await {
                return;
            }
            continue;
        }
        if world.random.below(2) == 0 && !held.is_empty() {
            world.history.settling(receiver, channel, &held, Settlement::Ack);
            if !stream.try_send(settle(Kind::AckAll, &transaction)).await {
                return;
            }
        } else if !range(&world, &mut stream, (receiver, channel), &transaction, held, Settlement::Ack).await {
            return;
        }
    }
    world.history.record(Event::Leaving { receiver });
}

async fn range(
    world: &World,
    stream: &mut kubemq_tests::client::Downstream,
    (receiver, channel): (u64, &str),
    transaction: &str,
    sequences: Vec<u64>,
    settlement: Settlement,
) -> bool {
    if sequences.is_empty() {
        return true;
    }
    world.history.settling(receiver, channel, &sequences, settlement);
    let kind = if settlement == Settlement::Ack { Kind::AckRange } else { Kind::NAckRange };
    let sequence_range = sequences.iter().map(|sequence| i64::try_from(*sequence).expect("a sequence")).collect();
    stream.try_send(QueuesDownstreamRequest { sequence_range, ..settle(kind, transaction) }).await
}

/// Receives one message per stream, and acknowledges or rejects it.
async fn consume_old(world: World, client: Client, channel: &'static str) {
    while !world.stopped() {
        let receiver = world.number();
        let Ok(mut stream) = client.try_stream().await else { return };
        if !stream.try_send(old_receive(channel, 600, 1)).await {
            return;
        }
        let Ok(Some(answer)) = stream.next_within(Duration::from_secs(30)).await else { return };
        let Some(message) = answer.message else { continue };
        world.history.delivered(receiver, channel, std::slice::from_ref(&message));
        let sequence = attributes(&message).sequence;
        let (kind, settlement) = match world.random.below(8) {
            0 => (StreamRequestType::RejectMessage, Settlement::Nack),
            _ => (StreamRequestType::AckMessage, Settlement::Ack),
        };
        world.history.settling(receiver, channel, &[sequence], settlement);
        if !stream.try_send(StreamQueueMessagesRequest { ref_sequence: sequence, ..old(kind, channel) }).await {
            return;
        }
        let Ok(Some(answer)) = stream.next_within(Duration::from_secs(30)).await else { return };
        assert!(!answer.is_error, "{answer:?}");
        world.history.record(Event::Confirmed { receiver });
    }
}

/// Lets all clients work until the process is killed.
async fn round(world: &World, server: &mut Server) {
    let tasks = runtime().tasks;
    world.stop.store(false, Ordering::Relaxed);
    let mut running = Vec::new();
    for index in 0..8 {
        let (world, client) = (world.clone(), Client::connect(&server.grpc()).await);
        let work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = match index {
            0 | 1 => Box::pin(publish_by_calls(world, client, SHARED)),
            2 | 3 => Box::pin(consume(world, client, SHARED, true)),
            4 => Box::pin(publish_by_stream(world, client, SINGLE)),
            5 => Box::pin(consume(world, client, SINGLE, false)),
            6 => Box::pin(publish_by_calls(world, client, OLD)),
            _ => Box::pin(consume_old(world, client, OLD)),
        };
        running.push(tasks.spawn("client", OnFailure::Log, work));
    }
    sleep(Duration::from_millis(5 + world.random.below(700))).await;
    server.kill();
    world.stop.store(true, Ordering::Relaxed);
    for task in running {
        task.await.expect("a client that did not panic");
    }
    world.history.record(Event::Killed);
}

/// Takes and acknowledges everything that is left.
async fn drain(world: &World, server: &Server) {
    let client = Client::connect(&server.grpc()).await;
    for channel in [SHARED, SINGLE, OLD] {
        let receiver = world.number();
        let mut stream = client.downstream().await;
        loop {
            let answer = stream.get(get(channel, 1024, 1000)).await;
            world.history.record(Event::Confirmed { receiver });
            if answer.messages.is_empty() {
                break;
            }
            world.history.delivered(receiver, channel, &answer.messages);
            world.history.settling(receiver, channel, &sequences(&answer.messages), Settlement::Ack);
            stream.send(settle(Kind::AckAll, &answer.transaction_id)).await;
        }
    }
}

fn assert_honest(world: &World, seed: u64) {
    let events = world.history.events();
    let rules = Rules { single_reader: BTreeSet::from([SINGLE.into()]), drained: true };
    let violations = check(&events, &rules);
    let count = |kind: fn(&Event) -> bool| events.iter().filter(|event| kind(event)).count();
    let sent = count(|event| matches!(event, Event::Sent { .. }));
    let begun = count(|event| matches!(event, Event::Sending { .. }));
    let delivered = count(|event| matches!(event, Event::Delivered { .. }));
    eprintln!("{begun} sends begun, {sent} acknowledged, {delivered} deliveries, {} violations", violations.len());
    let texts: Vec<String> = violations.iter().take(20).map(ToString::to_string).collect();
    assert!(
        violations.is_empty(),
        "seed {seed}: {} violations, the first of them:\n{}",
        violations.len(),
        texts.join("\n")
    );
    assert!(sent > 0 && delivered > 0, "nothing happened");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acked_survives_kill() {
    let rounds = setting("KUBEMQ_KILL_ROUNDS").unwrap_or(DEFAULT_ROUNDS);
    let seed = setting("KUBEMQ_KILL_SEED").unwrap_or_else(|| Random::from_system().u64());
    eprintln!("replay with KUBEMQ_KILL_SEED={seed} KUBEMQ_KILL_ROUNDS={rounds}");
    let world = World {
        history: History::default(),
        random: Random::from_seed(seed),
        next: Arc::default(),
        stop: Arc::default(),
    };
    let mut server = Server::start_with(Options::default()).await;
    for _ in 0..rounds {
        round(&world, &mut server).await;
        while world.random.below(4) == 0 {
            server.start_and_kill(Duration::from_millis(world.random.below(60))).await;
        }
        server.restart().await;
    }
    drain(&world, &server).await;
    assert_honest(&world, seed);
}
