//! Consensus and the log alone: three nodes under a machine that records what it applies, and clients that write.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use kubemq_raft::network::{Call, Channel, Frame, Replies};
use kubemq_raft::{
    Batch, Committed, Envelope, Member, Node, Origin, PeerError, Refused, RestoreError, SnapshotSource, StateMachine,
};
use kubemq_runtime::sync::oneshot;
use kubemq_runtime::{OnFailure, Random};
use kubemq_storage::fs::Disk;
use kubemq_storage::log::Log;
use kubemq_storage::snapshot::Snapshots;
use parking_lot::Mutex;

use self::record::{LIVING, Picture, Reading, Record, Write};
use crate::cluster::{Boot, Cluster, Program, SETTLING};
use crate::faults::{settle, torment};
use crate::network::{Endpoint, address};
use crate::openraft_runtime::SimRuntime;
use crate::run::{Asked, Ended, Plant};
use crate::world::{Fingerprint, Simulation, World};

mod record;

const NODES: usize = 3;
const CLIENTS: u64 = 4;
/// With so many writes that stand in no durable snapshot the machine wants one.
const WANTED: usize = 400;

/// What all nodes have applied, and who waits for it.
#[derive(Default)]
struct Ledger {
    /// Per entry: what the first node that applied it found in it, and its time.
    entries: BTreeMap<u64, (u64, u64, usize)>,
    /// Per write that was submitted to a life of a node: who waits.
    waiting: BTreeMap<(usize, u64, u64), oneshot::Sender<Result<u64, Refused>>>,
    applied: u64,
    restored: u64,
}

struct Recorder {
    world: World,
    place: Arc<crate::world::Place>,
    ledger: Arc<Mutex<Ledger>>,
    record: Arc<Mutex<Record>>,
    plant: Plant,
}

fn print(time: u64, bytes: &[Bytes]) -> u64 {
    let mut fingerprint = Fingerprint::default();
    fingerprint.word(time);
    for bytes in bytes {
        fingerprint.bytes(bytes);
    }
    fingerprint.value()
}

impl Recorder {
    /// Returns what must hold and does not.
    fn note(&self, ledger: &mut Ledger, entry: &Committed, found: u64) -> Result<(), String> {
        let (node, index) = (self.place.node, entry.id.index);
        let (first, _, by) = *ledger.entries.entry(index).or_insert((found, entry.time, node));
        if first != found {
            return Err(format!("entry {index} has other content on node {node} than on node {by}"));
        }
        let before = ledger.entries.range(..index).next_back();
        if before.is_some_and(|(_, (_, time, _))| *time >= entry.time) {
            return Err(format!("entry {index} does not have a later time than the entry before it"));
        }
        ledger.applied += 1;
        Ok(())
    }

    fn apply_entry(&self, entry: &Committed) -> Result<(), String> {
        let index = entry.id.index;
        let envelope = Envelope::of(&entry.parts).map_err(|error| format!("entry {index}: {error}"))?;
        let parts: Vec<Bytes> = (0..entry.parts.count()).filter_map(|part| entry.parts.get(part)).collect();
        let found = print(entry.time, &parts);
        self.world.trace(self.place.node, format_args!("apply {index} {found:x}"));
        let mut ledger = self.ledger.lock();
        self.note(&mut ledger, entry, found)?;
        let mut record = self.record.lock();
        if index <= record.last {
            return Err(format!("entry {index} was applied after entry {}", record.last));
        }
        record.last = index;
        let mut part: u16 = 1;
        let mut writes = Vec::new();
        for batch in envelope.batches {
            for _ in 0..batch.operations {
                let bytes = parts.get(usize::from(part)).cloned().unwrap_or_default();
                let number = bytes.clone().try_get_u64_le().map_err(|_| format!("entry {index} has an empty part"))?;
                writes.push(Write { number, entry: index, part, print: print(0, &[bytes]) });
                part += 1;
            }
        }
        if self.plant == Plant::HashOrder {
            writes = in_hash_order(writes);
        }
        for write in writes {
            record.push(write);
            // Answered only by the life that it was submitted to.
            if let Some(waiting) = ledger.waiting.remove(&(self.place.node, self.place.life, write.number)) {
                waiting.send(Ok(index)).ok();
            }
        }
        Ok(())
    }
}

#[expect(clippy::disallowed_types, reason = "this is the planted bug")]
fn in_hash_order(writes: Vec<Write>) -> Vec<Write> {
    let map: std::collections::HashMap<u64, Write> = writes.into_iter().map(|write| (write.number, write)).collect();
    map.into_values().collect()
}

impl StateMachine for Recorder {
    type Restoring = Reading;

    fn apply(&mut self, entries: Vec<Committed>) {
        for entry in entries {
            if let Err(reason) = self.apply_entry(&entry) {
                self.world.fail(reason);
                return;
            }
        }
    }

    fn snapshot(&mut self) -> Box<dyn SnapshotSource> {
        let record = self.record.lock();
        let writes = record.writes.get(record.durable..).unwrap_or_default().to_vec();
        Box::new(Picture { last: record.last, durable: record.durable, writes })
    }

    fn restoring(&self) -> Reading {
        Reading::default()
    }

    fn restore(&mut self, Reading(record): Reading) -> Result<(), RestoreError> {
        self.world.trace(self.place.node, format_args!("restore {} {:x}", record.last, record.digest.value()));
        self.ledger.lock().restored += 1;
        let durable = record.writes.len();
        *self.record.lock() = Record { durable, ..record };
        Ok(())
    }

    fn snapshot_is_durable(&mut self, index: u64) {
        let mut record = self.record.lock();
        record.durable = record.writes.partition_point(|write| write.entry <= index);
    }

    fn wants_snapshot(&self) -> bool {
        let record = self.record.lock();
        record.writes.len() - record.durable >= WANTED
    }

    fn digest(&self) -> u64 {
        self.record.lock().digest.value()
    }
}

#[derive(Clone)]
struct Running {
    node: Node,
    log: Log,
    record: Arc<Mutex<Record>>,
    runtime: kubemq_runtime::Runtime,
}

struct Peer(Node);

#[async_trait]
impl Endpoint for Peer {
    async fn call(&self, call: Call, request: Frame) -> Result<Frame, PeerError> {
        self.0.handle(call, request).await
    }

    fn open(&self, channel: Channel, requests: Replies) -> Replies {
        self.0.handle_stream(channel, requests)
    }
}

struct Recording {
    world: World,
    ledger: Arc<Mutex<Ledger>>,
    plant: Plant,
    sizes: Sizes,
}

/// Thresholds, small enough that segments, snapshots and purges happen in a run.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    segment: u64,
    snapshot: u64,
    keep: u64,
}

impl Sizes {
    fn draw(random: &Random) -> Self {
        Self {
            segment: 32 * 1024 + random.below(256 * 1024),
            snapshot: 16 * 1024 + random.below(512 * 1024),
            keep: 16 * 1024 + random.below(256 * 1024),
        }
    }
}

impl Program for Recording {
    type Running = Running;

    fn boot(&self, boot: Boot) -> BoxFuture<'static, Result<Running, String>> {
        let (world, ledger, plant, sizes) = (self.world.clone(), Arc::clone(&self.ledger), self.plant, self.sizes);
        Box::pin(async move {
            let Boot { node, place, runtime, disk, peers, joins } = boot;
            let chained = |error: &dyn std::error::Error| kubemq_runtime::chain(error).to_string();
            let disk: Arc<dyn Disk> = Arc::new(disk);
            let options = kubemq_storage::log::Options { segment_bytes: sizes.segment, ..Default::default() };
            let log = Log::open(Arc::clone(&disk), PathBuf::from("data/log"), options, &runtime).await;
            let log = log.map_err(|error| chained(&error))?;
            let snapshots = Snapshots::open(disk, PathBuf::from("data/snapshots"), &runtime).await;
            let snapshots = snapshots.map_err(|error| chained(&error))?;
            let record = Arc::default();
            let machine = Recorder { world, place, ledger, record: Arc::clone(&record), plant };
            let mut options = kubemq_raft::Options::new(node as u64);
            options.snapshot_bytes = sizes.snapshot;
            options.keep_bytes = sizes.keep;
            options.snapshot_idle = Duration::from_secs(5);
            options.leader_restore = plant == Plant::LeaderRestore;
            let raft =
                kubemq_raft::start::<SimRuntime>(options, log.clone(), snapshots, machine, peers, runtime.clone());
            let raft = raft.await.map_err(|error| chained(&error))?;
            let status = raft.status();
            if node == 1 && !joins && status.voters.is_empty() && status.last.is_none() {
                let member = |node| (node as u64, Member { address: address(node) });
                match raft.initialize((1..=NODES).map(member).collect()).await {
                    Ok(()) | Err(kubemq_raft::Error::AlreadyFormed) => {}
                    Err(error) => return Err(chained(&error)),
                }
            }
            Ok(Running { node: raft, log, record, runtime })
        })
    }

    fn endpoint(running: &Running) -> Arc<dyn Endpoint> {
        Arc::new(Peer(running.node.clone()))
    }

    fn raft(running: &Running) -> &Node {
        &running.node
    }

    fn synced(running: &Running) -> u64 {
        running.log.state().synced_index
    }

    fn stopped(running: &Running) -> BoxFuture<'static, String> {
        let running = running.clone();
        Box::pin(async move {
            let mut failure = running.log.failure();
            let mut status = running.node.watch();
            tokio::select! {
                biased;
                name = running.runtime.tasks.failure() => format!("task {name} failed: {:?}", running.node.status().failure),
                _ = failure.wait_for(Option::is_some) => "the log failed".to_owned(),
                _ = status.wait_for(|status| status.role == kubemq_raft::Role::Stopped) => {
                    format!("consensus stopped: {:?}", running.node.status().failure)
                }
            }
        })
    }
}

/// What the clients know.
#[derive(Default)]
struct Oracle {
    /// Per client: what was acknowledged, in order.
    acked: BTreeMap<u64, Vec<u64>>,
    /// Writes that were refused before they were proposed.
    refused: BTreeSet<u64>,
    unknown: u64,
    barriers: u64,
}

#[derive(Clone)]
struct Scene {
    cluster: Cluster<Recording>,
    oracle: Arc<Mutex<Oracle>>,
}

/// How one write ended.
enum Told {
    Acked,
    Refused,
    Unknown,
}

impl Scene {
    /// Submits one write to a node and waits for what becomes of it.
    async fn write(&self, node: usize, number: u64, size: usize, limit: Duration) -> Told {
        let mut operation = BytesMut::with_capacity(8 + size);
        operation.put_u64_le(number);
        operation.resize(8 + size, u8::try_from(number % 251).unwrap_or(0));
        let operation = operation.freeze();
        let Some(place) = self.cluster.place(node) else { return Told::Refused };
        let ledger = Arc::clone(&self.cluster.program().ledger);
        let answer = self.cluster.call(node, limit, move |running| async move {
            let (sender, receiver) = oneshot::channel();
            let key = (place.node, place.life, number);
            ledger.lock().waiting.insert(key, sender);
            let origin = Origin { node: place.node as u64, epoch: place.life };
            let batch = Batch { origin, number, operations: vec![operation] };
            let deadline = running.runtime.clock.now() + Duration::from_secs(2);
            let told = Arc::clone(&ledger);
            let refused = move |refused| {
                if let Some(waiting) = told.lock().waiting.remove(&key) {
                    waiting.send(Err(refused)).ok();
                }
            };
            if let Err(refused) = running.node.submit(batch, deadline, Box::new(refused)) {
                ledger.lock().waiting.remove(&key);
                return Some(Err(refused));
            }
            receiver.await.ok()
        });
        match answer.await.flatten() {
            Some(Ok(index)) => {
                if !self.cluster.is_on_majority(index) {
                    let reason =
                        format!("write {number:x} in entry {index} was acknowledged before a majority had synced it");
                    self.cluster.world().fail(reason);
                }
                Told::Acked
            }
            Some(Err(Refused::Unknown | Refused::Stopped)) | None => Told::Unknown,
            Some(Err(_)) => Told::Refused,
        }
    }

    /// Reads what a node has applied, behind a barrier: nothing that was acknowledged before may be missing.
    async fn read(&self, node: usize) {
        let acked: Vec<_> = self.oracle.lock().acked.values().filter_map(|numbers| numbers.last().copied()).collect();
        let found = self.cluster.call(node, Duration::from_secs(2), |running| async move {
            running.node.read_barrier().await.ok()?;
            let record = running.record.lock();
            Some(record.writes.iter().map(|write| write.number).collect::<BTreeSet<_>>())
        });
        let Some(found) = found.await.flatten() else { return };
        self.oracle.lock().barriers += 1;
        if let Some(missing) = acked.iter().find(|number| !found.contains(number)) {
            self.cluster
                .world()
                .fail(format!("node {node} passed a read barrier without the acknowledged write {missing:x}"));
        }
    }

    async fn client(self, client: u64, until: u64) {
        let world = self.cluster.world().clone();
        let draw = world.random(&format!("client {client}"));
        let mut count = 0;
        while world.now() < until {
            let any = self.cluster.any(&draw);
            let node = if draw.below(10) == 0 { any } else { self.cluster.leader().unwrap_or(any) };
            if draw.below(200) == 0 {
                self.read(node).await;
            }
            count += 1;
            let number = client << 32 | count;
            let size = match draw.below(100) {
                0 => draw.below(60_000),
                1..10 => draw.below(4_000),
                _ => draw.below(200),
            };
            let told = self.write(node, number, usize::try_from(size).unwrap_or(0), Duration::from_secs(3)).await;
            let mut pause = draw.below(20_000);
            {
                let mut oracle = self.oracle.lock();
                match told {
                    Told::Acked => oracle.acked.entry(client).or_default().push(number),
                    Told::Refused => {
                        oracle.refused.insert(number);
                        pause += 20_000;
                    }
                    Told::Unknown => oracle.unknown += 1,
                }
            }
            world.sleep(Duration::from_micros(pause)).await;
        }
    }

    fn acked(&self) -> usize {
        self.oracle.lock().acked.values().map(Vec::len).sum()
    }

    /// Checks that clients got on while there was a leader for so long: otherwise the run shows nothing.
    fn check_done(&self, served: Duration) -> Result<(), String> {
        let acked = self.acked();
        if (acked as u64) < served.as_secs() {
            return Err(format!("only {acked} writes were acknowledged in {} s with a leader", served.as_secs()));
        }
        Ok(())
    }

    /// Checks each node's record against what the clients were told.
    async fn check_end(&self) -> Result<(), String> {
        self.cluster.agreed().await?;
        for fresh in 0..3 {
            self.write_fresh(fresh).await?;
        }
        self.cluster.agreed().await?;
        let mut digests = BTreeSet::new();
        for node in self.cluster.nodes() {
            let running = self.cluster.running(node).ok_or("a node is gone")?;
            let record = running.record.lock().clone();
            digests.insert((record.last, record.digest.value()));
            self.check_record(node, &record)?;
            self.check_bodies(node, &record).await?;
        }
        if digests.len() != 1 {
            return Err(format!("the nodes differ after the same entries: {digests:x?}"));
        }
        Ok(())
    }

    /// Writes until one write is acknowledged: leadership may still move because somebody asked for that at the end.
    async fn write_fresh(&self, fresh: u64) -> Result<(), String> {
        for attempt in 0..20 {
            let number = (CLIENTS + 1) << 32 | fresh << 8 | attempt;
            let leader = self.cluster.leader().unwrap_or(1);
            if let Told::Acked = self.write(leader, number, 10, Duration::from_secs(3)).await {
                self.oracle.lock().acked.entry(CLIENTS + 1).or_default().push(number);
                return Ok(());
            }
            self.cluster.world().sleep(Duration::from_millis(200)).await;
        }
        Err("no fresh write was acknowledged after the faults ended".to_owned())
    }

    fn check_record(&self, node: usize, record: &Record) -> Result<(), String> {
        let mut places: BTreeMap<u64, usize> = BTreeMap::new();
        for (place, write) in record.writes.iter().enumerate() {
            if places.insert(write.number, place).is_some() {
                return Err(format!("node {node} has write {:x} twice", write.number));
            }
        }
        let oracle = self.oracle.lock();
        if let Some(number) = oracle.refused.iter().find(|number| places.contains_key(number)) {
            return Err(format!("node {node} has write {number:x}, which was refused"));
        }
        for numbers in oracle.acked.values() {
            let mut last = None;
            for number in numbers {
                let place = places.get(number);
                if place.is_none() {
                    return Err(format!("node {node} has lost the acknowledged write {number:x}"));
                }
                if place <= last {
                    return Err(format!("node {node} has write {number:x} before one that was acknowledged before it"));
                }
                last = place;
            }
        }
        Ok(())
    }

    /// Reads every body that a snapshot would name.
    async fn check_bodies(&self, node: usize, record: &Record) -> Result<(), String> {
        for write in record.writes.iter().rev().take(LIVING).copied() {
            let (entry, part) = (write.entry, write.part);
            let read = self.cluster.call(node, Duration::from_secs(10), move |running| async move {
                running.log.read_part(entry, part).await
            });
            match read.await {
                Some(Ok(read)) if print(0, std::slice::from_ref(&read.bytes)) == write.print => {}
                Some(Ok(_)) => {
                    return Err(format!("node {node}: part {part} of entry {entry} is not what was written"));
                }
                Some(Err(error)) => {
                    let chain = kubemq_runtime::chain(&error);
                    return Err(format!("node {node}: part {part} of entry {entry} cannot be read: {chain}"));
                }
                None => return Err(format!("node {node}: reading part {part} of entry {entry} did not end")),
            }
        }
        Ok(())
    }
}

/// Runs the scene.
#[must_use]
pub fn run(asked: &Asked) -> Ended {
    let plan = asked.plan();
    let longest = Duration::from_secs(asked.seconds) + 5 * SETTLING;
    let mut simulation = Simulation::new(asked.seed, plan.order, longest, asked.trace);
    let world = simulation.world();
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let sizes = Sizes::draw(&world.random("sizes"));
    let program = Recording { world, ledger: Arc::clone(&ledger), plant: asked.plant, sizes };
    let cluster = Cluster::new(&simulation, NODES, program);
    let watched = cluster.clone();
    simulation.at_each_instant(move || watched.check_instant());
    let scene = Scene { cluster, oracle: Arc::default() };
    let (root, seconds) = (scene.clone(), asked.seconds);
    let ended = simulation.run(async move {
        let cluster = &root.cluster;
        if root.cluster.program().plant == Plant::AckBeforeSync {
            for node in cluster.nodes() {
                cluster.set_disk(node, |faults| faults.lying_sync = true);
            }
        }
        for node in cluster.nodes() {
            cluster.start(node);
        }
        let until = cluster.world().now() + seconds * 1_000_000_000;
        let clients = cluster.world().runtime(cluster.harness());
        let clients: Vec<_> = (1..=CLIENTS)
            .map(|client| clients.tasks.spawn("client", OnFailure::StopNode, root.clone().client(client, until)))
            .collect();
        let served = torment(cluster.clone(), plan).await;
        root.check_done(served)?;
        for client in clients {
            client.await.ok();
        }
        settle(cluster);
        cluster.changed().await?;
        root.check_end().await
    });
    let tally = {
        let (oracle, ledger) = (scene.oracle.lock(), ledger.lock());
        format!(
            "{} acked, {} unknown, {} refused, {} barriers, {}, {} snapshots restored, {sizes:?}",
            oracle.acked.values().map(Vec::len).sum::<usize>(),
            oracle.unknown,
            oracle.refused.len(),
            oracle.barriers,
            scene.cluster.summary(),
            ledger.restored,
        )
    };
    scene.cluster.conclude(simulation, ended, tally)
}
