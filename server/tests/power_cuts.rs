//! The power is cut at every write, every flush and every change of a name while a node writes a snapshot, copies the
//! living out of files and removes them, trims stored events, and hands blocks to its index, of delayed messages too. Each cut is started on:
//! what was acknowledged is there, whole and once; what was settled is not; the node goes on.
//!
//! A power loss keeps any part of what was not flushed; the index keeps any part of its blocks.
//!
//! `KUBEMQ_CUTS=10000 cargo test -p kubemq-server --test power_cuts -- --nocapture` cuts as often as that.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking with what it saw")]

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use kubemq_broker::{Channel, Kind, Limits, Operation, State};
use kubemq_proto::kubemq::subscribe::{EventsStoreType, SubscribeType};
use kubemq_proto::kubemq::{
    Event, EventReceive, QueueMessage, QueueMessagePolicy, QueueMessagesBatchRequest, Subscribe,
};
use kubemq_proto::validate::QueueLimits;
use kubemq_raft::TokioRuntime;
use kubemq_raft::network::NoPeers;
use kubemq_runtime::{Random, Runtime};
use kubemq_server::gateway::retention::Retention;
use kubemq_server::gateway::subscription::Connection;
use kubemq_server::gateway::{Gateway, Take};
use kubemq_server::live;
use kubemq_server::node::{Doors, Formation, Node, Options};
use kubemq_server::scrub::Pace;
use kubemq_storage::fs::{Disk as _, MemoryDisk};
use kubemq_storage::index::{BlockKey, Index, IndexError, IndexWriter, Opening, Space};
use kubemq_storage::log::Flush;
use parking_lot::Mutex;
use prost::Message as _;

/// How often the power is cut, unless more is asked for.
const CUTS: usize = 400;
/// The longest that anything one waits for may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Messages and events of one stage; one message in so many stays for good.
const BURST: usize = 160;
const STAYS: usize = 20;
/// Delayed messages of one stage.
const DELAYED: usize = 150;
/// Stored events that are kept.
const KEPT: usize = 40;
/// Stages of one life of a node.
const STAGES: usize = 4;

/// What is under way when the power goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Phase {
    Snapshot,
    Compaction,
    Retention,
    Index,
}

/// What is known to somebody outside the node, in the order in which it came to be known.
#[derive(Clone, Copy, Debug)]
enum Fact {
    /// The message was acknowledged. Its number is its sequence.
    Sent(usize),
    /// The delayed message was acknowledged.
    Delayed(usize),
    /// Its settlement was asked for.
    Settling(usize),
    /// Its settlement was acknowledged.
    Settled(usize),
    /// The event was acknowledged. Its number is its sequence.
    Stored(usize),
    /// Events up to this one were to go.
    Trimming(usize),
}

type Blocks = BTreeMap<BlockKey, Bytes>;

/// What a cut leaves, and what was known before it.
struct Cut {
    phase: Phase,
    disk: MemoryDisk,
    blocks: Blocks,
    facts: usize,
}

/// A node's surroundings, from which it is cut.
#[derive(Default)]
struct World {
    disk: MemoryDisk,
    blocks: Mutex<Blocks>,
    facts: Mutex<Vec<Fact>>,
    cuts: Mutex<Vec<Cut>>,
    phase: Mutex<Option<Phase>>,
    flush: Flush,
    /// The snapshots that were there when the last one was begun.
    snapshots: Mutex<Vec<String>>,
}

impl World {
    fn know(&self, fact: Fact) {
        self.facts.lock().push(fact);
    }

    fn enter(&self, phase: Option<Phase>) {
        *self.phase.lock() = phase;
    }

    fn cut(&self, phase: Phase, disk: &MemoryDisk) {
        // What is known afterwards may be more; what is known before surely holds.
        let facts = self.facts.lock().len();
        let cut = Cut { phase, disk: disk.copy(), blocks: self.blocks.lock().clone(), facts };
        self.cuts.lock().push(cut);
    }

    /// A step of the disk.
    fn stepped(&self, disk: &MemoryDisk) {
        let Some(mut phase) = *self.phase.lock() else { return };
        if phase == Phase::Snapshot && snapshots(disk) != *self.snapshots.lock() {
            // It is in its place: what follows is about the files of the log.
            phase = Phase::Compaction;
        }
        self.cut(phase, disk);
    }
}

/// Returns the names of the finished snapshots.
fn snapshots(disk: &MemoryDisk) -> Vec<String> {
    let names = disk.list(Path::new("/data/snapshots")).now_or_never();
    let names = names.and_then(Result::ok).unwrap_or_default();
    names.into_iter().filter(|name| name.ends_with(".snapshot")).collect()
}

/// An index whose blocks outlive its node, and whose every change is a cut.
struct CutIndex(Arc<World>);

impl CutIndex {
    fn changed(&self) {
        self.0.cut(Phase::Index, &self.0.disk);
    }
}

impl Index for CutIndex {
    fn put(&mut self, key: BlockKey, block: &Bytes) -> Result<(), IndexError> {
        self.0.blocks.lock().insert(key, block.clone());
        self.changed();
        Ok(())
    }

    fn get(&mut self, key: BlockKey) -> Result<Option<Bytes>, IndexError> {
        Ok(self.0.blocks.lock().get(&key).cloned())
    }

    fn remove_range(&mut self, space: Space, owner: u64, range: RangeInclusive<u64>) -> Result<u64, IndexError> {
        let before = self.0.blocks.lock().len();
        self.0.blocks.lock().retain(|key, _| !(key.space == space && key.owner == owner && range.contains(&key.first)));
        let removed = before - self.0.blocks.lock().len();
        if removed > 0 {
            self.changed();
        }
        Ok(removed as u64)
    }

    fn clear(&mut self) -> Result<(), IndexError> {
        self.0.blocks.lock().clear();
        Ok(())
    }

    fn shrink(&mut self) -> Result<bool, IndexError> {
        Ok(false)
    }

    fn flush(&mut self) -> Result<(), IndexError> {
        Ok(())
    }

    fn len(&self) -> u64 {
        self.0.blocks.lock().len() as u64
    }

    fn disk_bytes(&self) -> u64 {
        0
    }
}

async fn start(world: &Arc<World>) -> Node {
    let options = Options {
        data: "/data".into(),
        id: None,
        formation: Formation::Alone,
        log: kubemq_storage::log::Options {
            segment_bytes: 16 << 10,
            tail_cache_bytes: 0,
            flush: world.flush,
            ..Default::default()
        },
        raft: kubemq_raft::Options { keep_bytes: 0, ..kubemq_raft::Options::new(0) },
        queue: QueueLimits::default(),
        live: live::Limits::default(),
        retention: Retention::default(),
        state: Limits::default(),
        index_bytes: 256 << 20,
        // Whatever may leave the memory does, and comes back.
        index_goal_bytes: 0,
        scrub: Pace::default(),
    };
    let runtime = Runtime::real();
    let index = CutIndex(Arc::clone(world));
    let index = IndexWriter::start(move || Ok((index, Opening::Kept)), &runtime);
    let doors = Doors { runtime, disk: Arc::new(world.disk.clone()), peers: Arc::new(NoPeers), index };
    let node = Node::start::<TokioRuntime>(options, doors).await.unwrap();
    node.ready().await;
    node
}

fn body(number: usize) -> Bytes {
    format!("<{number}>").repeat(60).into()
}

async fn send(gateway: &Gateway, number: usize) {
    let message = QueueMessage {
        client_id: "c".to_owned(),
        channel: "q".to_owned(),
        body: body(number),
        ..QueueMessage::default()
    };
    let sent = gateway.send(message).await.unwrap();
    assert!(!sent.is_error, "{sent:?}");
}

/// Sends messages that are due in a second.
async fn delay(world: &World, gateway: &Gateway, numbers: std::ops::Range<usize>) {
    let message = |number| QueueMessage {
        client_id: "c".to_owned(),
        channel: "d".to_owned(),
        body: body(number),
        policy: Some(QueueMessagePolicy { delay_seconds: 1, ..QueueMessagePolicy::default() }),
        ..QueueMessage::default()
    };
    let messages = numbers.clone().map(message).collect();
    let batch = QueueMessagesBatchRequest { messages, ..QueueMessagesBatchRequest::default() };
    let answer = gateway.send_batch(batch).await.unwrap().unwrap();
    assert!(answer.results.iter().all(|result| !result.is_error));
    numbers.for_each(|number| world.know(Fact::Delayed(number)));
}

async fn store(gateway: &Gateway, number: usize) {
    let event = Event {
        client_id: "c".to_owned(),
        channel: "e".to_owned(),
        body: body(number),
        store: true,
        ..Event::default()
    };
    let stored = gateway.store_event(event).await.unwrap();
    assert!(stored.sent, "{stored:?}");
}

/// Sends and stores.
async fn publish(world: &World, gateway: &Gateway, from: usize, count: usize) {
    for number in from..from + count {
        send(gateway, number).await;
        world.know(Fact::Sent(number));
        store(gateway, number).await;
        world.know(Fact::Stored(number));
    }
}

/// Takes all but what stays.
async fn settle(world: &World, gateway: &Gateway) {
    let deadline = gateway.runtime().clock.now();
    let mut held =
        gateway.take(Take { channel: "q".to_owned(), max: 100_000, max_bytes: u64::MAX, deadline }).await.unwrap();
    let sequences: Vec<u64> = held.unsettled().filter(|sequence| !sequence.is_multiple_of(STAYS as u64)).collect();
    for some in sequences.chunks(40) {
        let facts =
            |fact: fn(usize) -> Fact| some.iter().for_each(|&one| world.know(fact(usize::try_from(one).unwrap())));
        facts(Fact::Settling);
        held.ack(some).await.unwrap();
        facts(Fact::Settled);
    }
}

/// Removes events as the retention does.
async fn trim(world: &World, gateway: &Gateway, last: usize) {
    let id = gateway.read(|state| state.channel(Kind::EventsStore, "e").map(Channel::id)).await.unwrap().unwrap();
    let upto = last.saturating_sub(KEPT);
    world.know(Fact::Trimming(upto));
    gateway.submit(vec![Operation::Trim { channel: id, upto: upto as u64 }.to_bytes()]).await.unwrap();
}

/// Lives a life and returns where it was cut and what was known.
async fn live(world: &Arc<World>) {
    let node = start(world).await;
    let gateway = node.gateway();
    let weak = Arc::downgrade(world);
    world.disk.observe(Arc::new(move |_, disk| {
        if let Some(world) = weak.upgrade() {
            world.stepped(disk);
        }
    }));
    let mut next = 1;
    for stage in 0..STAGES {
        delay(world, gateway, stage * DELAYED..(stage + 1) * DELAYED).await;
        publish(world, gateway, next, BURST).await;
        next += BURST;
        settle(world, gateway).await;
        // While something is done beside the traffic, the traffic goes on.
        let (traffic, last) = (AtomicBool::new(true), next - 1);
        let more = async {
            while traffic.load(Ordering::Relaxed) {
                publish(world, gateway, next, 1).await;
                next += 1;
            }
        };
        let work = async {
            world.enter(Some(Phase::Retention));
            trim(world, gateway, last).await;
            *world.snapshots.lock() = snapshots(&world.disk);
            world.enter(Some(Phase::Snapshot));
            node.raft().snapshot().await.unwrap();
            world.enter(None);
            traffic.store(false, Ordering::Relaxed);
        };
        tokio::join!(work, more);
    }
    world.disk.fence();
    drop(node);
}

/// What should be there after a cut.
#[derive(Default)]
struct Expected {
    messages: BTreeMap<usize, Fate>,
    delayed: usize,
    events: usize,
    trimming: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    There,
    Either,
    Gone,
}

impl Expected {
    fn after(facts: &[Fact]) -> Self {
        let mut expected = Self::default();
        for fact in facts {
            match *fact {
                Fact::Sent(number) => drop(expected.messages.insert(number, Fate::There)),
                Fact::Delayed(number) => expected.delayed = number + 1,
                Fact::Settling(number) => drop(expected.messages.insert(number, Fate::Either)),
                Fact::Settled(number) => drop(expected.messages.insert(number, Fate::Gone)),
                Fact::Stored(number) => expected.events = expected.events.max(number),
                Fact::Trimming(upto) => expected.trimming = expected.trimming.max(upto),
            }
        }
        expected
    }
}

/// Starts what a cut left, and says what is wrong.
async fn check(cut: &Cut, facts: &[Fact], random: &Random) -> Result<(), String> {
    let mut blocks = cut.blocks.clone();
    let keep = random.below(4);
    blocks.retain(|_, _| random.below(4) <= keep);
    let world = Arc::new(World { disk: cut.disk.power_loss(random), blocks: Mutex::new(blocks), ..World::default() });
    let node = start(&world).await;
    let gateway = node.gateway();
    let expected = Expected::after(&facts[..cut.facts]);

    let mut found = Vec::new();
    for (sequence, found_body) in peek(gateway, "q").await? {
        if found_body != body(sequence) {
            return Err(format!("message {sequence} has another body"));
        }
        found.push(sequence);
    }
    if !found.is_sorted_by(|a, b| a < b) {
        return Err(format!("messages are out of order or twice: {found:?}"));
    }
    for (number, fate) in &expected.messages {
        let is_there = found.binary_search(number).is_ok();
        if (*fate == Fate::There && !is_there) || (*fate == Fate::Gone && is_there) {
            return Err(format!("message {number} should be {fate:?}"));
        }
    }
    events(gateway, &expected).await?;
    delayed(gateway, expected.delayed).await?;

    // It goes on: what is sent now is stored behind all that.
    send(gateway, 0).await;
    if random.below(8) == 0 {
        node.raft().snapshot().await.map_err(|error| error.to_string())?;
    }
    let missing = node.raft().missing_bodies();
    node.stop().await;
    if missing > 0 { Err(format!("{missing} bodies are missing")) } else { Ok(()) }
}

/// Returns what is ready in a channel, with the sequences.
async fn peek(gateway: &Gateway, channel: &str) -> Result<Vec<(usize, Bytes)>, String> {
    let deadline = gateway.runtime().clock.now();
    let take = Take { channel: channel.to_owned(), max: 100_000, max_bytes: u64::MAX, deadline };
    let mut found = Vec::new();
    for delivery in gateway.peek(take).await.map_err(|error| error.to_string())?.deliveries {
        let message = QueueMessage::decode(delivery.message).map_err(|error| error.to_string())?;
        found.push((usize::try_from(delivery.sequence).unwrap(), message.body));
    }
    Ok(found)
}

/// Waits until everything that was delayed is released: at least the first `count` of it, in order.
async fn delayed(gateway: &Gateway, count: usize) -> Result<(), String> {
    let clock = &gateway.runtime().clock;
    let deadline = clock.now() + PATIENCE;
    while gateway.read(State::timer_count).await.map_err(|error| error.to_string())? > 0 {
        if clock.now() > deadline {
            return Err("delayed messages are not released".to_owned());
        }
        clock.sleep(Duration::from_millis(2)).await;
    }
    let found: Vec<Bytes> = peek(gateway, "d").await?.into_iter().map(|(_, body)| body).collect();
    let expected: Vec<Bytes> = (0..found.len()).map(body).collect();
    if found.len() < count || found != expected {
        return Err(format!("of {count} delayed messages {} were released, or others", found.len()));
    }
    Ok(())
}

async fn events(gateway: &Gateway, expected: &Expected) -> Result<(), String> {
    if expected.events == 0 {
        return Ok(());
    }
    let next = gateway.read(|state| state.channel(Kind::EventsStore, "e").map(Channel::next_sequence)).await;
    let next = usize::try_from(next.map_err(|error| error.to_string())?.unwrap_or(1)).unwrap();
    if next <= expected.events {
        return Err(format!("the next event is {next}, although {} were acknowledged", expected.events));
    }
    let subscribe = Subscribe {
        subscribe_type_data: SubscribeType::EventsStore.into(),
        client_id: "reader".to_owned(),
        channel: "e".to_owned(),
        events_store_type_data: EventsStoreType::StartFromFirst.into(),
        ..Subscribe::default()
    };
    let subscribed = gateway.subscribe_stored(&subscribe, Connection::default()).await;
    let mut subscription = subscribed.map_err(|error| error.to_string())?.map_err(|refusal| refusal.to_string())?;
    let mut last = None;
    while last < Some(expected.events) {
        let next = std::future::poll_fn(|cx| subscription.poll_next(cx));
        let frame = gateway.runtime().clock.timeout(PATIENCE, next).await;
        let frame = frame.map_err(|_| format!("no event after {last:?}"))?.map_err(|refusal| refusal.to_string())?;
        let event = EventReceive::decode(frame.encode_to_vec().as_slice()).map_err(|error| error.to_string())?;
        let number = usize::try_from(event.sequence).unwrap();
        let follows = last.map_or(number <= expected.trimming + 1, |last| number == last + 1);
        if !follows || event.body != body(number) {
            return Err(format!("event {number} after {last:?}, up to {} are gone", expected.trimming));
        }
        last = Some(number);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wherever_the_power_is_cut_nothing_acknowledged_is_lost() {
    let wanted = std::env::var("KUBEMQ_CUTS").ok().map_or(CUTS, |cuts| cuts.parse().unwrap());
    let mut counts: BTreeMap<Phase, usize> = BTreeMap::new();
    for life in 0.. {
        let world = Arc::new(World::default());
        live(&world).await;
        let facts = world.facts.lock().clone();
        let cuts = std::mem::take(&mut *world.cuts.lock());
        assert!(cuts.len() > 20, "{} cuts", cuts.len());
        // Of one life some of each phase are as good as all: the first ones are of the first stage only.
        let every = if wanted == CUTS { cuts.len().div_ceil(CUTS / 2) } else { 1 };
        for (number, cut) in cuts.iter().enumerate().step_by(every) {
            let random = Random::from_seed(life << 32 | number as u64);
            let checked = check(cut, &facts, &random).await;
            assert_eq!(checked, Ok(()), "life {life}, cut {number} in the phase {:?}", cut.phase);
            *counts.entry(cut.phase).or_default() += 1;
        }
        if counts.values().sum::<usize>() >= wanted {
            break;
        }
    }
    println!("\n{} cuts of the power, nothing acknowledged lost: {counts:?}", counts.values().sum::<usize>());
    for phase in [Phase::Snapshot, Phase::Compaction, Phase::Retention, Phase::Index] {
        assert!(counts.get(&phase).is_some_and(|count| *count > 0), "no cut in the phase {phase:?}: {counts:?}");
    }
}

/// A node that flushes now and then may lose what it acknowledged: the same cuts and checks have to find that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_before_its_flush_is_found_lost() {
    let world = Arc::new(World { flush: Flush::Interval(Duration::from_secs(10)), ..World::default() });
    live(&world).await;
    let facts = world.facts.lock().clone();
    let cuts = std::mem::take(&mut *world.cuts.lock());
    let mut lost = 0;
    for (number, cut) in cuts.iter().enumerate().step_by(cuts.len().div_ceil(40)) {
        let checked = check(cut, &facts, &Random::from_seed(number as u64)).await;
        lost += usize::from(checked.is_err());
    }
    assert!(lost > 0, "nothing was lost at {} cuts", cuts.len());
}
