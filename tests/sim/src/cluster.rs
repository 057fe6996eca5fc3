//! Three lives at a time: starts nodes, ends them as a crash or a power loss would, and checks what must hold for
//! consensus at each instant.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kubemq_raft::network::Peers;
use kubemq_raft::{Node as Raft, Role, Status};
use kubemq_runtime::sync::oneshot;
use kubemq_runtime::{Random, Runtime};
use kubemq_storage::fs::{Disk, MemoryDisk};
use parking_lot::Mutex;

use crate::disk::{DiskFaults, SimDisk};
use crate::network::{Endpoint, Network};
use crate::run::Ended;
use crate::world::{Failure, Place, Simulation, World};

/// What a node starts with.
pub struct Boot {
    /// The node's number, from 1.
    pub node: usize,
    /// The place of this life.
    pub place: Arc<Place>,
    /// Its doors to time, randomness and tasks.
    pub runtime: Runtime,
    /// Its door to the disk.
    pub disk: SimDisk,
    /// Its door to other nodes.
    pub peers: Arc<dyn Peers>,
    /// It came later: it waits to be taken in, and never forms a group.
    pub joins: bool,
}

/// What runs on the nodes of a cluster.
pub trait Program: Send + Sync + 'static {
    /// A running node.
    type Running: Clone + Send + Sync + 'static;
    /// Starts a node from what lies on its disk.
    fn boot(&self, boot: Boot) -> BoxFuture<'static, Result<Self::Running, String>>;
    /// What answers the node's peers.
    fn endpoint(running: &Self::Running) -> Arc<dyn Endpoint>;
    /// Its consensus.
    fn raft(running: &Self::Running) -> &Raft;
    /// Up to which entry the node has synced its log.
    fn synced(running: &Self::Running) -> u64;
    /// Ends with a reason when the node must stop.
    fn stopped(running: &Self::Running) -> BoxFuture<'static, String>;
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The process goes; what it has written stays in the page cache.
    Crash,
    /// The machine goes; what was not flushed may be lost.
    PowerLoss,
}

/// How long the cluster may take to agree after the faults have ended.
pub const SETTLING: Duration = Duration::from_secs(60);

struct Life<P: Program> {
    place: Arc<Place>,
    disk: SimDisk,
    running: Option<P::Running>,
}

struct Member<P: Program> {
    /// What is on the disk while the node is down.
    memory: MemoryDisk,
    life: Option<Life<P>>,
    /// A fault was injected that may stop this life.
    excused: bool,
    /// The disk has little room.
    limited: bool,
    /// Bytes that were flushed have changed: once it has stopped it stays away.
    damaged: bool,
    /// It left the group, for ever.
    out: bool,
    /// It came after the group was formed.
    joins: bool,
    faults: DiskFaults,
    /// Up to which entry the last life had synced its log.
    synced: u64,
}

impl<P: Program> Member<P> {
    fn new(joins: bool) -> Self {
        Self {
            memory: MemoryDisk::new(),
            life: None,
            excused: false,
            limited: false,
            damaged: false,
            out: false,
            joins,
            faults: DiskFaults::default(),
            synced: 0,
        }
    }
}

/// What must never go back.
#[derive(Default)]
struct Watched {
    /// Per node: the term, which survives everything.
    terms: BTreeMap<usize, u64>,
    /// Per node and life: the committed index.
    committed: BTreeMap<(usize, u64), u64>,
    /// Per term and leader: the life in which it led.
    leaderships: BTreeMap<(u64, usize), u64>,
    /// Per node and life: the last entry when it was first seen, and how many came from a leader since.
    heard: BTreeMap<(usize, u64), (u64, u64)>,
    /// A node came to lead that had heard of no other leader in its life.
    cold_start: bool,
}

/// Entries from another leader after which a life surely knows the time: the first one may carry none.
const KNOWS_THE_TIME: u64 = 3;

struct Inner<P: Program> {
    world: World,
    harness: Arc<Place>,
    network: Network,
    program: P,
    members: Mutex<BTreeMap<usize, Member<P>>>,
    /// The voters; while they change, the former ones and the new ones.
    groups: Mutex<Vec<BTreeSet<usize>>>,
    watched: Mutex<Watched>,
    counts: Mutex<Counts>,
    /// Of every life: what is gone once nothing of it is left.
    witnesses: Mutex<Vec<Witness>>,
    random: Random,
}

/// What happened to the nodes, for the reader.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    lives_ended: u64,
    changes: u64,
    bits_flipped: u64,
    stopped_by_damage: u64,
}

type Witness = (Arc<Place>, Weak<dyn Any + Send + Sync>);

/// The nodes of one world. Clones are the same cluster.
pub struct Cluster<P: Program>(Arc<Inner<P>>);

impl<P: Program> Clone for Cluster<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<P: Program> fmt::Debug for Cluster<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cluster({})", self.0.members.lock().len())
    }
}

impl<P: Program> Cluster<P> {
    /// Returns a cluster of `size` nodes with empty disks, none of them started.
    #[must_use]
    pub fn new(simulation: &Simulation, size: usize, program: P) -> Self {
        let (world, harness) = (simulation.world(), simulation.harness());
        Self(Arc::new(Inner {
            network: Network::new(&world, &harness),
            random: world.random("cluster"),
            members: Mutex::new((1..=size).map(|node| (node, Member::new(false))).collect()),
            groups: Mutex::new(vec![(1..=size).collect()]),
            watched: Mutex::new(Watched::default()),
            counts: Mutex::default(),
            witnesses: Mutex::default(),
            world,
            harness,
            program,
        }))
    }

    /// Returns the world.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.0.world
    }

    /// Returns the network.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.0.network
    }

    /// Returns what runs on the nodes.
    #[must_use]
    pub fn program(&self) -> &P {
        &self.0.program
    }

    /// Returns the place of the harness.
    #[must_use]
    pub fn harness(&self) -> &Arc<Place> {
        &self.0.harness
    }

    /// Returns the numbers of all nodes that have not left.
    #[must_use]
    pub fn nodes(&self) -> Vec<usize> {
        self.0.members.lock().iter().filter(|(_, member)| !member.out).map(|(node, _)| *node).collect()
    }

    /// Returns the voters; while they change, the former ones and the new ones.
    pub(crate) fn groups(&self) -> Vec<BTreeSet<usize>> {
        self.0.groups.lock().clone()
    }

    pub(crate) fn set_groups(&self, groups: Vec<BTreeSet<usize>>) {
        self.0.counts.lock().changes += u64::from(groups.len() == 1);
        *self.0.groups.lock() = groups;
    }

    /// Adds a node with an empty disk, which waits to be taken into the group.
    pub(crate) fn add(&self) -> usize {
        let node = {
            let mut members = self.0.members.lock();
            let node = members.last_key_value().map_or(1, |(last, _)| last + 1);
            members.insert(node, Member::new(true));
            node
        };
        self.start(node);
        node
    }

    /// Ends a node for ever.
    pub(crate) fn retire(&self, node: usize) {
        if let Some(member) = self.0.members.lock().get_mut(&node) {
            member.out = true;
        }
        self.end(node, None, End::Crash, true);
    }

    /// Returns the node whose flushed bytes were changed, if there is one.
    pub(crate) fn damaged(&self) -> Option<usize> {
        let members = self.0.members.lock();
        members.iter().find(|(_, member)| member.damaged && !member.out).map(|(node, _)| *node)
    }

    /// Returns whether a disk was ever damaged: a leader passes over what it cannot read, and a later one hands it out.
    pub(crate) fn was_damaged(&self) -> bool {
        self.0.counts.lock().bits_flipped > 0
    }

    /// Flips a bit of `node`'s disk where `change` chooses it; it may stop because of it, and then stays away.
    pub(crate) fn damage(&self, node: usize, change: impl FnOnce(&MemoryDisk) -> bool) {
        let mut members = self.0.members.lock();
        let Some(member) = members.get_mut(&node) else { return };
        let memory = member.life.as_ref().map_or(&member.memory, |life| life.disk.memory());
        let damaged = change(memory);
        member.damaged |= damaged;
        self.0.counts.lock().bits_flipped += u64::from(damaged);
    }

    /// Starts a life of `node`, if it has none.
    pub fn start(&self, node: usize) {
        let inner = &self.0;
        let place = inner.world.place(node);
        let (disk, joins) = {
            let mut members = inner.members.lock();
            let Some(member) = members.get_mut(&node) else { return };
            if member.life.is_some() || member.out {
                return;
            }
            let random = inner.world.random(&format!("disk {node} {}", place.life));
            let disk = SimDisk::new(inner.world.clone(), node, member.memory.clone(), random, member.faults);
            member.life = Some(Life { place: Arc::clone(&place), disk: disk.clone(), running: None });
            member.excused = member.limited;
            (disk, member.joins)
        };
        inner.witnesses.lock().push((Arc::clone(&place), disk.witness()));
        inner.world.trace(node, format_args!("start of life {}", place.life));
        let runtime = inner.world.runtime(&place);
        let boot = Boot { node, runtime, disk, peers: inner.network.peers(&place), place: Arc::clone(&place), joins };
        let (cluster, booting) = (self.clone(), inner.program.boot(boot));
        let here = Arc::clone(&place);
        let task = async move {
            match booting.await {
                Ok(running) => {
                    cluster.ready(&here, &running);
                    let reason = P::stopped(&running).await;
                    cluster.stops(&here, &reason);
                }
                Err(reason) => cluster.stops(&here, &format!("it did not start: {reason}")),
            }
        };
        inner.world.spawn(&place, "boot", Box::pin(task));
    }

    fn ready(&self, place: &Arc<Place>, running: &P::Running) {
        {
            let mut members = self.0.members.lock();
            let life = members.get_mut(&place.node).and_then(|member| member.life.as_mut());
            let Some(life) = life.filter(|life| Arc::ptr_eq(&life.place, place)) else { return };
            life.running = Some(running.clone());
        }
        self.0.world.trace(place.node, format_args!("ready"));
        self.0.network.attach(place, P::endpoint(running));
    }

    /// A node says that it must stop: it is ended as its process would be, and started again after a while.
    fn stops(&self, place: &Arc<Place>, reason: &str) {
        let (node, life) = (place.node, place.life);
        self.0.world.trace(node, format_args!("stops: {reason}"));
        let (excused, damaged) = self
            .0
            .members
            .lock()
            .get(&node)
            .map_or((true, false), |member| (member.excused || member.out, member.damaged));
        if damaged && (excused || reason.contains("damage")) {
            // Its process ends; it is not started again, since it would find the same.
            self.0.counts.lock().stopped_by_damage += 1;
            let cluster = self.clone();
            let task = async move {
                cluster.end(node, Some(life), End::Crash, false);
            };
            self.0.world.spawn(&self.0.harness, "stop", Box::pin(task));
            return;
        }
        if !excused {
            self.0.world.fail(format!("node {node} stopped without a fault of its disk: {reason}"));
            return;
        }
        let cluster = self.clone();
        let pause = Duration::from_millis(50 + self.0.random.below(1000));
        let task = async move {
            cluster.end(node, Some(life), End::Crash, false);
            cluster.0.world.sleep(pause).await;
            cluster.start(node);
        };
        self.0.world.spawn(&self.0.harness, "restart", Box::pin(task));
    }

    /// Ends the life of `node` (only the given one, if it is given); returns whether it had one.
    pub fn end(&self, node: usize, life: Option<u64>, how: End, silent: bool) -> bool {
        let inner = &self.0;
        let ended = {
            let mut members = inner.members.lock();
            let Some(member) = members.get_mut(&node) else { return false };
            let matches = member.life.as_ref().is_some_and(|now| life.is_none_or(|life| now.place.life == life));
            if !matches {
                return false;
            }
            inner.counts.lock().lives_ended += 1;
            if let Some(running) = member.life.as_ref().and_then(|life| life.running.as_ref()) {
                member.synced = P::synced(running);
            }
            member.life.take()
        };
        let Some(ended) = ended else { return false };
        inner.world.trace(node, format_args!("end by {how:?}, silent {silent}"));
        inner.network.detach(node, silent);
        // What survives is fixed before destructors run, and they find a disk that does nothing more.
        let left = match how {
            End::Crash => ended.disk.memory().process_crash(),
            End::PowerLoss => ended.disk.memory().power_loss(&inner.random),
        };
        ended.disk.memory().fence();
        let tasks = inner.world.kill(&ended.place);
        inner.world.trace(node, format_args!("{tasks} tasks ended"));
        if let Some(member) = inner.members.lock().get_mut(&node) {
            member.memory = left;
        }
        drop(ended);
        true
    }

    /// Returns the node while it runs.
    #[must_use]
    pub fn running(&self, node: usize) -> Option<P::Running> {
        self.0.members.lock().get(&node)?.life.as_ref()?.running.clone()
    }

    /// Runs `call` as a handler in the process of `node` and waits for what it returns, at most for `limit`. Nothing
    /// means that the node is not there, went away, or took longer: what was asked may have been done.
    pub async fn call<T, F>(&self, node: usize, limit: Duration, call: impl FnOnce(P::Running) -> F) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (place, running) = {
            let members = self.0.members.lock();
            let life = members.get(&node)?.life.as_ref()?;
            (Arc::clone(&life.place), life.running.clone()?)
        };
        let (sender, receiver) = oneshot::channel();
        let handler = call(running);
        let task = async move {
            // The client may have gone.
            sender.send(handler.await).ok();
        };
        let id = self.0.world.spawn(&place, "handler", Box::pin(task))?;
        let clock = self.0.world.runtime_clock(&self.0.harness);
        match clock.timeout(limit, receiver).await {
            Ok(answer) => answer.ok(),
            Err(_) => {
                // The connection is closed, and its handler with it.
                self.0.world.abort(id);
                None
            }
        }
    }

    /// Returns the life of the node, whether it is ready or not.
    #[must_use]
    pub fn place(&self, node: usize) -> Option<Arc<Place>> {
        self.0.members.lock().get(&node)?.life.as_ref().map(|life| Arc::clone(&life.place))
    }

    /// Returns the status of every ready node.
    #[must_use]
    pub fn statuses(&self) -> BTreeMap<usize, Status> {
        let members = self.0.members.lock();
        let lives = members.iter().filter_map(|(node, member)| Some((*node, member.life.as_ref()?)));
        let status = |(node, life): (usize, &Life<P>)| {
            let running = life.running.as_ref()?;
            // The lease is judged by the node's own clock.
            Some((node, self.0.world.within(&life.place, || P::raft(running).status())))
        };
        lives.filter_map(status).collect()
    }

    /// Returns the node that leads, by its own account, in the latest term.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        let statuses = self.statuses();
        let leaders = statuses.iter().filter(|(_, status)| status.leads());
        leaders.max_by_key(|(_, status)| status.term).map(|(node, _)| *node)
    }

    /// Returns the node that leads with a majority's consent, as it knows by its lease and term.
    #[must_use]
    pub fn leader_with_lease(&self) -> Option<(usize, u64)> {
        let statuses = self.statuses();
        let leaders = statuses.iter().filter(|(_, status)| status.leads() && status.quorum_contact);
        leaders.max_by_key(|(_, status)| status.term).map(|(node, status)| (*node, status.term))
    }

    /// Breaks the disk of a node that runs; it may stop because of it.
    pub fn break_disk(&self, node: usize, change: impl FnOnce(&SimDisk)) {
        let mut members = self.0.members.lock();
        let Some(member) = members.get_mut(&node) else { return };
        member.excused = true;
        if let Some(life) = &member.life {
            change(&life.disk);
        }
    }

    /// Leaves `room` bytes on the disk of a node, in this life and later ones, until it is called without. It may stop
    /// because of it.
    pub fn limit_disk(&self, node: usize, room: Option<u64>) {
        let mut members = self.0.members.lock();
        let Some(member) = members.get_mut(&node) else { return };
        member.excused |= room.is_some();
        member.limited = room.is_some();
        let memory = member.life.as_ref().map_or(&member.memory, |life| life.disk.memory());
        memory.set_capacity(u64::MAX);
        if let Some(room) = room
            && let Some(Ok(free)) = memory.free_space(Path::new("data")).now_or_never()
        {
            memory.set_capacity((u64::MAX - free).saturating_add(room));
        }
    }

    /// Changes how the disk of a node behaves, now and in later lives. It must not stop because of it.
    pub fn set_disk(&self, node: usize, change: impl Fn(&mut DiskFaults)) {
        let mut members = self.0.members.lock();
        let Some(member) = members.get_mut(&node) else { return };
        change(&mut member.faults);
        if let Some(life) = &member.life {
            life.disk.set_faults(change);
        }
    }

    /// Returns whether the log is synced up to `index` on a majority, as far as the nodes themselves knew.
    #[must_use]
    pub fn is_on_majority(&self, index: u64) -> bool {
        let members = self.0.members.lock();
        let synced = |node: &&usize| {
            let Some(member) = members.get(node) else { return false };
            let running = member.life.as_ref().and_then(|life| life.running.as_ref());
            running.map_or(member.synced, P::synced) >= index
        };
        self.groups().iter().any(|voters| 2 * voters.iter().filter(synced).count() > voters.len())
    }

    /// Returns once one node leads, all follow it, and all have applied the same.
    ///
    /// # Errors
    ///
    /// When that takes longer than it may.
    pub async fn agreed(&self) -> Result<(), String> {
        let world = self.world();
        let limit = world.now() + u64::try_from(SETTLING.as_nanos()).unwrap_or(u64::MAX);
        loop {
            let statuses = self.statuses();
            let leaders: BTreeSet<_> = statuses.values().map(|status| status.leader).collect();
            let applied: BTreeSet<_> = statuses.values().map(|status| status.applied.map(|id| id.index)).collect();
            let done = statuses.values().all(|status| status.applied.map(|id| id.index) == status.last);
            let all = statuses.keys().copied().eq(self.nodes());
            if all && leaders.len() == 1 && !leaders.contains(&None) && applied.len() == 1 && done {
                return Ok(());
            }
            if world.now() > limit {
                return Err(format!("no agreement {} s after the faults ended: {statuses:?}", SETTLING.as_secs()));
            }
            world.sleep(Duration::from_millis(20)).await;
        }
    }

    /// Returns what happened to the nodes, for the reader.
    #[must_use]
    pub fn summary(&self) -> String {
        format!("{:?}", *self.0.counts.lock())
    }

    /// Returns whether a group started again since the last call: its first leader read its wall clock.
    #[must_use]
    pub fn take_cold_start(&self) -> bool {
        std::mem::take(&mut self.0.watched.lock().cold_start)
    }

    /// Ends a run of which `result` came, and checks that nothing of it stays behind.
    pub fn conclude(
        &self,
        simulation: Simulation,
        result: Result<Result<(), String>, Failure>,
        tally: String,
    ) -> Ended {
        let world = &self.0.world;
        let failed = |reason| Failure { seed: world.seed(), at: world.now(), reason };
        let (hash, trace) = (world.hash(), simulation.take_trace());
        let (simulated, polls) = (world.now(), world.polls());
        let dissolved = self.dissolve(simulation);
        let failure = match result {
            Ok(Ok(())) => dissolved.err().map(failed),
            Ok(Err(reason)) => Some(failed(reason)),
            Err(failure) => Some(failure),
        };
        Ended { hash, trace, simulated, polls, tally, failure }
    }

    /// Ends every life and the simulation, and checks that nothing of any life is left: it would be kept for as long as
    /// the process runs.
    fn dissolve(&self, simulation: Simulation) -> Result<(), String> {
        self.0.world.within(&self.0.harness, || {
            for node in self.nodes() {
                self.end(node, None, End::Crash, true);
            }
        });
        // With it go the tasks of the harness, and what they hold.
        drop(simulation);
        let witnesses = std::mem::take(&mut *self.0.witnesses.lock());
        let left: Vec<_> = witnesses.iter().filter(|(_, witness)| witness.strong_count() > 0).collect();
        match left.first() {
            Some((place, _)) => Err(format!("something of {place:?}, and {} lives in all, is never freed", left.len())),
            None => Ok(()),
        }
    }

    /// Checks what must hold for consensus at each instant.
    ///
    /// # Errors
    ///
    /// The sentence that does not hold.
    pub fn check_instant(&self) -> Result<(), String> {
        let members = self.0.members.lock();
        let mut watched = self.0.watched.lock();
        for (node, member) in members.iter() {
            let Some(life) = &member.life else { continue };
            let Some(running) = &life.running else { continue };
            let status = self.0.world.within(&life.place, || P::raft(running).status());
            watched.check(*node, life.place.life, &status)?;
        }
        Ok(())
    }
}

impl Watched {
    fn check(&mut self, node: usize, life: u64, status: &Status) -> Result<(), String> {
        let term = self.terms.entry(node).or_default();
        if status.term < *term {
            return Err(format!("node {node} went back from term {term} to {}", status.term));
        }
        *term = status.term;
        let index = |id: Option<kubemq_storage::LogId>| id.map_or(0, |id| id.index);
        let (committed, applied) = (index(status.committed), index(status.applied));
        let (purged, snapshot) = (index(status.purged), index(status.snapshot));
        let before = self.committed.entry((node, life)).or_default();
        if committed < *before {
            return Err(format!("node {node} went back from committed entry {before} to {committed}"));
        }
        *before = committed;
        if purged > snapshot || snapshot > applied || applied > committed {
            return Err(format!(
                "node {node}: purged {purged} ≤ snapshot {snapshot} ≤ applied {applied} ≤ committed {committed} does not hold"
            ));
        }
        let last = status.last.unwrap_or(0);
        let heard = self.heard.entry((node, life)).or_insert((last, 0));
        if status.role == Role::Leader {
            self.cold_start |= heard.1 < KNOWS_THE_TIME;
            // From now on it keeps the time itself.
            heard.1 = KNOWS_THE_TIME;
        } else if status.leader.is_some() {
            heard.1 = heard.1.max(last.saturating_sub(heard.0));
        }
        if status.role == Role::Leader {
            let first = *self.leaderships.entry((status.term, node)).or_insert(life);
            if first != life {
                return Err(format!(
                    "node {node} leads in term {} in life {life}, and did in life {first}",
                    status.term
                ));
            }
        }
        Ok(())
    }
}
