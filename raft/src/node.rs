//! One node of the group: start, propose, read, members, stop.
//!
//! A [`Node`] is a handle without type parameters; what runs behind it is openraft over the runtime that
//! [`start`] was given.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use kubemq_runtime::sync::{mpsc, oneshot, watch};
use kubemq_runtime::task::AbortOnDrop;
use kubemq_runtime::{Instant, OnFailure, Runtime, chain};
use kubemq_storage::log::Log;
use kubemq_storage::snapshot::{HeldSnapshot, Snapshots};
use openraft::{AsyncRuntime, Raft};
use parking_lot::Mutex;

use crate::batch::Batch;
use crate::batcher::Batcher;
use crate::core::{Core, Engine, Mark, Proposals};
use crate::error::{Error, PeerError, Refused, Unavailable};
use crate::log_store::LogStore;
use crate::machine::{Machine, Shared};
use crate::maintenance::{Maintenance, Request};
use crate::network::client::Clients;
use crate::network::{Call, Channel, Frame, Peer, Peers, Replies, frame};
use crate::options::Options;
use crate::reclaim::Marks;
use crate::restore::restore;
use crate::snapshot::{Install, Receiver};
use crate::state_machine::{Living, StateMachine};
use crate::status::{Member, Role, Status};
use crate::time::ClusterTime;

/// How long a stopping leader waits for another to take over.
const HAND_OVER: Duration = Duration::from_secs(5);
/// How long a read waits for a leader to be confirmed.
const CONFIRM: Duration = Duration::from_secs(1);
/// How long to wait before asking again.
const CONFIRM_RETRY: Duration = Duration::from_millis(2);
/// Frames of a snapshot's answers that wait for the network.
const REPLIES: usize = 4;
/// Requests for a snapshot that wait.
const REQUESTS: usize = 16;
/// Entries read at once while the last LogTime is looked for.
const LOOK_BACK: u64 = 64;

/// One node of the group. Cheap to clone.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    engine: Arc<dyn Engine>,
    shared: Arc<Shared>,
    batcher: Batcher,
    peers: Arc<dyn Peers>,
    time: ClusterTime,
    status: watch::Receiver<Status>,
    options: Arc<Options>,
    runtime: Runtime,
    barrier: Mutex<Barrier>,
    /// Until when this leader must not trust its lease: it asked another node to take over at once.
    handing_over: Mutex<Option<Instant>>,
    requests: mpsc::Sender<Request>,
    tasks: Mutex<Vec<AbortOnDrop<()>>>,
}

/// Reads that wait for one confirmation.
#[derive(Default)]
struct Barrier {
    running: bool,
    waiting: Vec<oneshot::Sender<Result<(), Unavailable>>>,
}

/// Starts a node on its log and snapshots. It takes part in its group when this returns; see [`Node::recovered`].
///
/// # Errors
///
/// When the storage fails, its content cannot be used, or the log belongs to another node.
pub async fn start<R: AsyncRuntime>(
    options: Options,
    log: Log,
    snapshots: Snapshots,
    machine: impl StateMachine,
    peers: Arc<dyn Peers>,
    runtime: Runtime,
) -> Result<Node, Error> {
    let config = options.config()?;
    let options = Arc::new(options);
    claim(&log, options.node).await?;
    let machine = Machine::<R, _>::new(machine, log.clone(), snapshots.clone(), runtime.clone());
    let marks = restore(&machine).await?;
    let restored = machine.state.lock().meta.time;
    let time = ClusterTime::new(runtime.clock.clone(), restored.max(last_time(&log).await?));
    let store = LogStore::<R>::new(log.clone(), time.clone(), options.append_bytes);
    let network = Clients::<R> {
        node: options.node,
        peers: Arc::clone(&peers),
        log,
        clock: runtime.clock.clone(),
        tasks: runtime.tasks.clone(),
        options: Arc::clone(&options),
        runtime: PhantomData,
    };
    let shared = Arc::clone(&machine.shared);
    let raft = Raft::build(options.node, config, network, store, machine.clone()).await;
    let raft = raft.map_err(|fatal| Error::Stopped(chain(&fatal).to_string()))?;
    shared.facts.lock().running = true;
    let core = Arc::new(Core::new(raft, machine, &options));
    core.run();
    let batcher = Batcher::new(Box::new(Proposals(Arc::clone(&core))), time.clone(), runtime.clone());
    Ok(assemble(Parts { engine: core, shared, batcher, peers, time, options, runtime, marks }))
}

/// Checks that the log is this node's, or makes it so.
async fn claim(log: &Log, node: u64) -> Result<(), Error> {
    match log.state().node_id {
        Some(found) if found == node => Ok(()),
        Some(found) => Err(Error::WrongNode { found, asked: node }),
        None => Ok(log.save_node_id(node).await?),
    }
}

/// Returns the LogTime of the last entry in the log that has one.
async fn last_time(log: &Log) -> Result<u64, Error> {
    let state = log.state();
    let first = state.purged.map_or(0, |purged| purged.index + 1);
    let mut to = state.last.map_or(0, |last| last.index + 1);
    while to > first {
        let from = to.saturating_sub(LOOK_BACK).max(first);
        let entries = log.entries(from, to, u64::MAX).await?;
        if let Some(time) = entries.iter().map(|entry| entry.time).max().filter(|time| *time > 0) {
            return Ok(time);
        }
        to = from;
    }
    Ok(0)
}

struct Parts {
    engine: Arc<dyn Engine>,
    shared: Arc<Shared>,
    batcher: Batcher,
    peers: Arc<dyn Peers>,
    time: ClusterTime,
    options: Arc<Options>,
    runtime: Runtime,
    marks: Marks,
}

fn assemble(parts: Parts) -> Node {
    let Parts { engine, shared, batcher, peers, time, options, runtime, marks } = parts;
    let (sender, status) = watch::channel(engine.status());
    let (requests, receiver) = mpsc::channel(REQUESTS);
    let follower = {
        let (engine, time, tasks) = (Arc::clone(&engine), time.clone(), runtime.tasks.clone());
        async move {
            let publish = |status: Status| {
                time.lead(status.leads());
                sender.send(status);
            };
            engine.follow(&publish).await;
            // A stop that was asked for ends this task first.
            tasks.fail("consensus");
        }
    };
    let maintenance = Maintenance {
        engine: Arc::clone(&engine),
        shared: Arc::clone(&shared),
        batcher: batcher.clone(),
        options: Arc::clone(&options),
        requests: receiver,
        marks,
        wanted: None,
    };
    let tasks = vec![
        runtime.tasks.spawn("raft-status", OnFailure::StopNode, follower).abort_on_drop(),
        runtime.tasks.spawn("raft-maintenance", OnFailure::StopNode, maintenance.run()).abort_on_drop(),
    ];
    Node(Arc::new(Inner {
        engine,
        shared,
        batcher,
        peers,
        time,
        status,
        options,
        runtime,
        barrier: Mutex::default(),
        handing_over: Mutex::default(),
        requests,
        tasks: Mutex::new(tasks),
    }))
}

impl Node {
    /// Takes a batch to be proposed, behind all that were taken before.
    ///
    /// What becomes of a committed batch the state machine tells by its own means. `refused` hears of every
    /// other end, at most once; it may run before this returns and on any thread, so it must not wait for
    /// anything that the caller holds. A leader without a lease is waited for until `deadline`.
    ///
    /// # Errors
    ///
    /// When the batch was not taken: `refused` will not be called then.
    pub fn submit(
        &self,
        batch: Batch,
        deadline: Instant,
        refused: impl FnOnce(Refused) + Send + 'static,
    ) -> Result<(), Refused> {
        self.0.batcher.submit(batch, deadline, Box::new(refused))
    }

    /// Returns how many operations wait to be committed and their bytes, each with its bound.
    #[must_use]
    pub fn fill(&self) -> [(usize, usize); 2] {
        self.0.batcher.fill()
    }

    /// Waits until this node has applied everything that was committed anywhere before the call. One
    /// confirmation serves all who waited when it began. Cancel safe.
    ///
    /// # Errors
    ///
    /// When no leader was confirmed in time, or the node has stopped.
    pub async fn read_barrier(&self) -> Result<(), Unavailable> {
        let (sender, receiver) = oneshot::channel();
        let starts = {
            let mut barrier = self.0.barrier.lock();
            barrier.waiting.push(sender);
            !std::mem::replace(&mut barrier.running, true)
        };
        if starts {
            let inner = Arc::clone(&self.0);
            self.0.runtime.tasks.spawn("read-barrier", OnFailure::StopNode, async move { inner.pass_barriers().await });
        }
        receiver.await.unwrap_or(Err(Unavailable::Stopped))
    }

    /// Returns what this node knows of its group now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.0.engine.status()
    }

    /// Returns how many parts of entries the state referred to that were in no file here, when it was last looked: at the
    /// start, and with each snapshot.
    #[must_use]
    pub fn missing_bodies(&self) -> u64 {
        self.0.shared.facts.lock().missing
    }

    /// Returns the newest durable snapshot, to be read as a stream: its chunks are those that the state was written in.
    /// It stays readable although newer ones are written meanwhile.
    #[must_use]
    pub fn durable_snapshot(&self) -> Option<HeldSnapshot> {
        self.0.shared.facts.lock().durable.as_ref().map(|durable| durable.held.clone())
    }

    /// Walks through what of the log the state of this moment refers to, on a thread of its own: in no order that means
    /// anything, and a range may be named twice. `look` is given each range and what it made of those before.
    ///
    /// # Errors
    ///
    /// When the newest durable snapshot is needed for that and cannot be read.
    pub async fn fold_living<T: Send + 'static>(
        &self,
        start: T,
        mut look: impl FnMut(&mut T, Living) + Send + 'static,
    ) -> Result<T, Error> {
        let mut walk = self.0.engine.moment().living();
        let walked = self.0.runtime.tasks.dedicated("living", OnFailure::Log, async move {
            let mut seen = start;
            while let Some(ranges) = walk.next().await? {
                ranges.into_iter().for_each(|range| look(&mut seen, range));
            }
            Ok(seen)
        });
        walked.await.map_err(|_| Error::Stopped("a walk through the state panicked".to_owned()))?
    }

    /// Returns whether this node leads and a majority confirmed that within the lease. Cheap: for each poll.
    #[must_use]
    pub fn has_lease(&self) -> bool {
        self.0.engine.has_lease()
    }

    /// Returns whether this node surely leads at this moment: nobody else can have become leader within its lease.
    /// Cheap, and asks nobody.
    #[must_use]
    pub fn leads(&self) -> bool {
        let now = self.0.runtime.clock.now();
        self.0.handing_over.lock().is_none_or(|until| now >= until) && self.0.engine.leads()
    }

    /// Returns the status, as it was when role, leader, term or membership last changed.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.0.status.clone()
    }

    /// Returns the group's time.
    #[must_use]
    pub fn time(&self) -> ClusterTime {
        self.0.time.clone()
    }

    /// Returns the index of the last entry applied and the digest of the state after it.
    #[must_use]
    pub fn digest(&self) -> (u64, u64) {
        self.0.engine.digest()
    }

    /// Forms a group of `members`. All of them must be empty.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyFormed`] when this node is not empty.
    pub async fn initialize(&self, members: BTreeMap<u64, Member>) -> Result<(), Error> {
        self.0.engine.initialize(members).await
    }

    /// Forms a group of this node alone if it is empty, has it elect itself, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it is a member of another group, or is not ready within `limit`.
    pub async fn stand_alone(&self, limit: Duration) -> Result<(), Error> {
        let node = self.0.options.node;
        let status = self.status();
        if status.voters.is_empty() && status.last.is_none() {
            // Right after a start the status may not show yet what the log holds: that is no empty node.
            match self.initialize(BTreeMap::from([(node, Member::default())])).await {
                Ok(()) | Err(Error::AlreadyFormed) => {}
                Err(error) => return Err(error),
            }
        } else if status.voters.keys().ne([&node]) {
            return Err(Error::Membership("this node has peers".to_owned()));
        }
        self.0.engine.elect_alone().await?;
        self.recovered(limit).await
    }

    /// Waits until everything in this node's log that is committed is known to be, and is applied.
    ///
    /// # Errors
    ///
    /// When that took longer than `limit`.
    pub async fn recovered(&self, limit: Duration) -> Result<(), Error> {
        self.0.engine.recovered(limit).await
    }

    /// Adds a member without a vote; with `wait`, until it has most of the log.
    ///
    /// # Errors
    ///
    /// When this node does not lead, or another change is under way.
    pub async fn add_learner(&self, id: u64, member: Member, wait: bool) -> Result<(), Error> {
        self.0.engine.add_learner(id, member, wait).await
    }

    /// Makes `voters`, who must be members, the voters. Former ones stay as learners if `retain` says so.
    ///
    /// # Errors
    ///
    /// When this node does not lead, or another change is under way.
    pub async fn change_voters(&self, voters: BTreeSet<u64>, retain: bool) -> Result<(), Error> {
        self.0.engine.change_voters(voters, retain).await
    }

    /// Has this node campaign, if it has heard no leader within the lease.
    ///
    /// # Errors
    ///
    /// When the node has stopped.
    pub async fn elect(&self) -> Result<(), Error> {
        self.0.engine.elect().await
    }

    /// Hands leadership to `to`, if this node has it.
    ///
    /// # Errors
    ///
    /// When the node has stopped.
    pub async fn transfer_leader(&self, to: u64) -> Result<(), Error> {
        // Peers that are asked to let another lead do not wait for this one's lease to end.
        let until = self.0.runtime.clock.now() + self.0.options.election_most * 4;
        *self.0.handing_over.lock() = Some(until);
        self.0.engine.transfer_leader(to).await
    }

    /// Writes a snapshot now, purges what it covers as far as no peer needs it, and gives disk back.
    ///
    /// # Errors
    ///
    /// When it could not be written.
    pub async fn snapshot(&self) -> Result<(), Error> {
        let gone = || Error::Stopped("the node stops".to_owned());
        let (sender, receiver) = oneshot::channel();
        self.0.requests.send(sender).await.map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())?
    }

    /// Purges the log up to entry `upto`, as far as a snapshot covers it.
    ///
    /// # Errors
    ///
    /// When the node has stopped.
    pub async fn purge(&self, upto: u64) -> Result<(), Error> {
        self.0.engine.purge(upto).await
    }

    /// Answers a peer's call. Runs as a task of this node.
    ///
    /// # Errors
    ///
    /// When the request cannot be read, or the node has stopped.
    pub async fn handle(&self, call: Call, request: Frame) -> Result<Frame, PeerError> {
        self.0.engine.call(call, request).await
    }

    /// Serves a peer's stream. Called and polled by tasks of this node.
    #[must_use]
    pub fn handle_stream(&self, channel: Channel, requests: Replies) -> Replies {
        match channel {
            Channel::Append => self.0.engine.append(requests),
            Channel::Snapshot => self.receive_snapshot(requests),
        }
    }

    fn receive_snapshot(&self, requests: Replies) -> Replies {
        let (sender, receiver) = mpsc::channel(REPLIES);
        let (install, time) = (self.0.engine.install(), self.0.time.clone());
        let install: Install = Box::new(move |vote, incoming| {
            // Nothing that this node stamps as a leader may lie before it.
            time.remember(incoming.meta.time);
            install(vote, incoming)
        });
        let snapshot = Receiver {
            log: self.0.shared.log.clone(),
            snapshots: self.0.shared.snapshots.clone(),
            clock: self.0.runtime.clock.clone(),
            stall: self.0.options.snapshot_stall,
            replies: sender,
            install,
            committed: self.0.engine.applied(),
            lease: self.0.shared.lease(0),
        };
        self.0.runtime.tasks.spawn("snapshot-receive", OnFailure::Log, snapshot.run(requests));
        let replies = stream::unfold(receiver, |mut receiver: mpsc::Receiver<Result<Frame, PeerError>>| async move {
            receiver.recv().await.map(|reply| (reply, receiver))
        });
        replies.boxed()
    }

    /// Hands leadership over where there is somebody, then stops.
    pub async fn shutdown(&self) {
        let status = self.status();
        if status.leads() && status.voters.len() > 1 {
            self.hand_over(&status).await;
        }
        self.stop().await;
    }

    /// Stops at once: refuses what waits, and ends every task of this crate. The log stays open.
    pub async fn stop(&self) {
        self.0.batcher.stop();
        let tasks = std::mem::take(&mut *self.0.tasks.lock());
        drop(tasks);
        self.0.engine.shutdown().await;
    }

    /// Gives leadership to the voter that has most of the log.
    async fn hand_over(&self, status: &Status) {
        let others = status.voters.keys().filter(|id| **id != status.node);
        let Some(to) = others.max_by_key(|id| status.matched.get(id).copied().flatten()) else { return };
        let mut watch = self.watch();
        if self.transfer_leader(*to).await.is_ok() {
            let gone = watch.wait_for(|status| status.role != Role::Leader && status.leader.is_some());
            if self.0.runtime.clock.timeout(HAND_OVER, gone).await.is_err() {
                tracing::warn!(to, "no other node took over in time");
            }
        }
    }
}

impl Inner {
    async fn pass_barriers(&self) {
        loop {
            let waiting = {
                let mut barrier = self.barrier.lock();
                if barrier.waiting.is_empty() {
                    barrier.running = false;
                    return;
                }
                std::mem::take(&mut barrier.waiting)
            };
            let result = self.pass_barrier().await;
            for waiter in waiting {
                // Who does not wait any more does not mind.
                waiter.send(result).ok();
            }
        }
    }

    async fn pass_barrier(&self) -> Result<(), Unavailable> {
        let deadline = self.runtime.clock.now() + CONFIRM;
        loop {
            let index = match self.read_index(deadline).await {
                Err(Unavailable::NoLeader { .. }) if self.runtime.clock.now() < deadline => {
                    self.runtime.clock.sleep(CONFIRM_RETRY).await;
                    continue;
                }
                index => index?,
            };
            let left = deadline.since(self.runtime.clock.now());
            return self.engine.reached(Mark::Applied, index, left).await;
        }
    }

    /// Asks the leader, wherever it is.
    async fn read_index(&self, deadline: Instant) -> Result<u64, Unavailable> {
        let status = self.engine.status();
        if status.role == Role::Stopped {
            return Err(Unavailable::Stopped);
        }
        let leader = status.leader.ok_or(Unavailable::NoLeader { leader: None })?;
        if leader == status.node {
            return self.engine.read_index().await;
        }
        let nowhere = Unavailable::NoLeader { leader: Some(leader) };
        let member = status.voters.get(&leader).ok_or(nowhere)?;
        let peer = Peer { id: leader, address: member.address.as_str().into() };
        let limit = deadline.since(self.runtime.clock.now()).min(self.options.election_most);
        let reply = self.peers.call(&peer, Call::ReadIndex, frame::read_index(), limit).await.map_err(|_| nowhere)?;
        match frame::read_read_indexed(reply).map_err(|_| nowhere)? {
            Ok(index) => Ok(index),
            Err(leader) => Err(Unavailable::NoLeader { leader }),
        }
    }
}
