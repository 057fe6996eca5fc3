//! Whole nodes: everything below the gRPC handlers, under clients that send, take, settle, peek, purge and delete,
//! and under publishers and readers of stored events.
//!
//! Clients talk to the gateway of the node that they believe to lead. What they are told goes to the
//! [`oracle`](crate::oracle), which knows where every message may be, and to the [shelf](crate::stored_events), which
//! knows where every event lies.

mod clients;
mod end;
mod events;
#[cfg(test)]
mod scripted;
#[cfg(test)]
mod transfers;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use kubemq_broker::Limits;
use kubemq_proto::validate::QueueLimits;
use kubemq_raft::network::{Call, Channel, Frame, Replies};
use kubemq_raft::{Member, PeerError};
use kubemq_runtime::{OnFailure, Random, Runtime};
use kubemq_server::node::{Doors, Formation, Node, Options};
use kubemq_storage::index::{IndexWriter, MemoryIndex, Opening};
use parking_lot::Mutex;

use crate::cluster::{Boot, Cluster, Program, SETTLING};
use crate::faults::{settle, torment};
use crate::network::{Endpoint, address};
use crate::openraft_runtime::SimRuntime;
use crate::oracle::{ChannelNumber, Leadership, Oracle};
use crate::run::{Asked, Ended, Plant};
use crate::stored_events::Shelf;
use crate::world::Simulation;

const NODES: usize = 3;
/// How long a leader that was replaced may still hand out messages: its lease, and what a step takes.
const DEPOSED_MAY_HAND_OUT: u64 = 2_000_000_000;

/// The channels of the workload: three to work on, one with a single reader, one for dead letters, and one that is
/// emptied, deleted and made anew.
const CHANNELS: [&str; 6] = ["work-0", "work-1", "work-2", "solo", "dead", "scrap"];
const SOLO: ChannelNumber = 3;
const DEAD: ChannelNumber = 4;
const SCRAP: ChannelNumber = 5;

/// Thresholds, small enough that segments, snapshots, purges and removals happen in a run.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    segment: u64,
    tail: u64,
    snapshot: u64,
    keep: u64,
    index: u64,
}

impl Sizes {
    fn draw(random: &Random) -> Self {
        Self {
            segment: 32 * 1024 + random.below(256 * 1024),
            tail: 16 * 1024 + random.below(256 * 1024),
            snapshot: 32 * 1024 + random.below(512 * 1024),
            keep: 16 * 1024 + random.below(256 * 1024),
            // Most clusters have less memory for the index than they use.
            index: if random.below(4) == 0 { 128 << 20 } else { random.below(8 * 1024) },
        }
    }
}

/// A running node, and its doors.
#[derive(Clone)]
pub(crate) struct Running {
    node: Arc<Node>,
    runtime: Runtime,
}

struct Nodes {
    sizes: Sizes,
}

struct Peer(kubemq_raft::Node);

#[async_trait]
impl Endpoint for Peer {
    async fn call(&self, call: Call, request: Frame) -> Result<Frame, PeerError> {
        self.0.handle(call, request).await
    }

    fn open(&self, channel: Channel, requests: Replies) -> Replies {
        self.0.handle_stream(channel, requests)
    }
}

impl Program for Nodes {
    type Running = Running;

    fn boot(&self, boot: Boot) -> BoxFuture<'static, Result<Running, String>> {
        let sizes = self.sizes;
        Box::pin(async move {
            let Boot { node, runtime, disk, peers, joins, .. } = boot;
            let member = |node| (node as u64, Member { address: address(node) });
            let mut raft = kubemq_raft::Options::new(node as u64);
            raft.snapshot_bytes = sizes.snapshot;
            raft.keep_bytes = sizes.keep;
            raft.snapshot_idle = Duration::from_secs(5);
            let log = kubemq_storage::log::Options {
                segment_bytes: sizes.segment,
                tail_cache_bytes: sizes.tail,
                ..Default::default()
            };
            let options = Options {
                data: PathBuf::from("data"),
                id: Some(node as u64),
                formation: if joins {
                    Formation::Join
                } else {
                    Formation::Together((1..=NODES).map(member).collect::<BTreeMap<_, _>>())
                },
                log,
                raft,
                queue: QueueLimits::default(),
                live: kubemq_server::live::Limits::default(),
                retention: events::retention(),
                state: Limits::default(),
                index_bytes: 256 << 20,
                index_goal_bytes: sizes.index,
                scrub: kubemq_server::scrub::Pace::default(),
            };
            let index = IndexWriter::start(|| Ok((MemoryIndex::new(), Opening::Fresh)), &runtime);
            let doors = Doors { runtime: runtime.clone(), disk: Arc::new(disk), peers, index };
            let node = Node::start::<SimRuntime>(options, doors).await;
            let node = node.map_err(|error| kubemq_runtime::chain(&error).to_string())?;
            Ok(Running { node: Arc::new(node), runtime })
        })
    }

    fn endpoint(running: &Running) -> Arc<dyn Endpoint> {
        Arc::new(Peer(running.node.raft().clone()))
    }

    fn raft(running: &Running) -> &kubemq_raft::Node {
        running.node.raft()
    }

    fn synced(running: &Running) -> u64 {
        running.node.log().state().synced_index
    }

    fn stopped(running: &Running) -> BoxFuture<'static, String> {
        let (log, tasks) = (running.node.log().clone(), running.runtime.tasks.clone());
        let raft = running.node.raft().clone();
        Box::pin(async move {
            let mut failure = log.failure();
            tokio::select! {
                biased;
                name = tasks.failure() => format!("task {name} failed: {:?}", raft.status().failure),
                _ = failure.wait_for(Option::is_some) => "the log failed".to_owned(),
            }
        })
    }
}

/// What the tasks of the scene share.
#[derive(Clone)]
struct Scene {
    cluster: Cluster<Nodes>,
    oracle: Arc<Mutex<Oracle>>,
    shelf: Arc<Mutex<Shelf>>,
    plant: Plant,
    established: Arc<Mutex<Established>>,
}

/// The latest leadership that somebody handed out under, and since when.
#[derive(Default)]
struct Established {
    latest: Option<(u64, usize, u64)>,
}

impl Established {
    /// Notes a hand-out; returns how long a later leader has been handing out before.
    fn note(&mut self, leadership: Leadership, now: u64) -> Option<u64> {
        let (node, term) = leadership;
        match self.latest {
            Some((latest, leader, since)) if (latest, leader) != (term, node) => {
                if latest >= term {
                    return Some(now.saturating_sub(since));
                }
                self.latest = Some((term, node, now));
            }
            Some(_) => {}
            None => self.latest = Some((term, node, now)),
        }
        None
    }
}

impl Scene {
    fn new(cluster: Cluster<Nodes>, plant: Plant) -> Self {
        let mut shelf = Shelf::default();
        shelf.keeps(events::TRAIL, events::KEPT);
        let shelf = Arc::new(Mutex::new(shelf));
        Self { cluster, oracle: Arc::default(), shelf, plant, established: Arc::default() }
    }

    fn check(&self, result: Result<(), String>) {
        if let Err(reason) = result {
            self.cluster.world().fail(reason);
        }
    }
}

/// Runs the scene.
#[must_use]
pub fn run(asked: &Asked) -> Ended {
    let plan = asked.plan();
    let longest = Duration::from_secs(asked.seconds) + 8 * SETTLING;
    let mut simulation = Simulation::new(asked.seed, plan.order, longest, asked.trace);
    let world = simulation.world();
    let sizes = Sizes::draw(&world.random("sizes"));
    let cluster = Cluster::new(&simulation, NODES, Nodes { sizes });
    let scene = Scene::new(cluster, asked.plant);
    let watched = scene.clone();
    simulation.at_each_instant(move || {
        watched.cluster.check_instant()?;
        if watched.cluster.take_cold_start() {
            watched.oracle.lock().time_jumped();
        }
        Ok(())
    });
    let (root, seconds) = (scene.clone(), asked.seconds);
    let ended = simulation.run(async move {
        let cluster = &root.cluster;
        for node in cluster.nodes() {
            cluster.set_disk(node, |faults| faults.lying_sync = root.plant == Plant::AckBeforeSync);
            cluster.start(node);
        }
        let until = cluster.world().now() + seconds * 1_000_000_000;
        let tasks = cluster.world().runtime(cluster.harness()).tasks;
        let clients = clients::all(&root, until);
        let clients: Vec<_> =
            clients.into_iter().map(|client| tasks.spawn("client", OnFailure::StopNode, client)).collect();
        let served = torment(cluster.clone(), plan).await;
        root.check_done(served)?;
        for client in clients {
            client.await.ok();
        }
        settle(cluster);
        cluster.changed().await?;
        root.check_end().await
    });
    let tally = scene.oracle.lock().tally;
    let events = scene.shelf.lock().tally;
    let tally = format!("{tally:?}, events {events:?}, {}, {sizes:?}", scene.cluster.summary());
    scene.cluster.conclude(simulation, ended, tally)
}
