//! A whole node: builds its parts in the order in which they need each other, and stops them in reverse.
//!
//! Everything below the wire is here, and nothing global: a process runs one node, the simulation several.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kubemq_broker::{Limits, State};
use kubemq_proto::validate::QueueLimits;
use kubemq_raft::network::Peers;
use kubemq_raft::{Member, Node as Raft};
use kubemq_runtime::task::AbortOnDrop;
use kubemq_runtime::{OnFailure, Runtime};
use kubemq_storage::fs::Disk;
use kubemq_storage::index::IndexWriter;
use kubemq_storage::log::Log;
use kubemq_storage::snapshot::Snapshots;
use parking_lot::Mutex;

use crate::desk::{Core, release_when_due};
use crate::gateway::retention::Retention;
use crate::gateway::{Gateway, Outbox, Parts, keep_places, trim_what_is_old};
use crate::index_feed::IndexFeed;
use crate::index_memory::IndexMemory;
use crate::live::{self, Live};
use crate::replica::Replica;
use crate::scrub::{Pace, scrub_now_and_then};

/// How long a stopping node waits for what was submitted to be committed.
const DRAIN: Duration = Duration::from_secs(5);

/// How long a node alone may take to apply what its log holds.
const RECOVERY: Duration = Duration::from_secs(600);

/// What a node is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it keeps what it must not forget.
    pub data: PathBuf,
    /// Its id, when it is not to be drawn at random with a new data directory.
    pub id: Option<u64>,
    /// What it is part of.
    pub formation: Formation,
    /// Settings of the log.
    pub log: kubemq_storage::log::Options,
    /// Settings of consensus.
    pub raft: kubemq_raft::Options,
    /// Limits that requests are checked against.
    pub queue: QueueLimits,
    /// Bounds of what is not stored.
    pub live: live::Limits,
    /// How long stored events are kept.
    pub retention: Retention,
    /// Limits of the replicated state.
    pub state: Limits,
    /// Bytes of the index of stored messages that may be in memory.
    pub index_bytes: u64,
    /// So many should be there: the rest is for what comes until a snapshot is written, and for the memory that the
    /// index on disk itself takes.
    pub index_goal_bytes: u64,
    /// How fast and how often what is stored is read again.
    pub scrub: Pace,
}

/// How a node comes to be part of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Formation {
    /// It is a group of its own.
    Alone,
    /// With an empty data directory it forms a group with these voters, itself among them, who all start empty.
    Together(BTreeMap<u64, Member>),
    /// With an empty data directory it waits until the leader of a group takes it in.
    Join,
}

/// The doors of a node to the world outside it.
pub struct Doors {
    /// Time, randomness, tasks.
    pub runtime: Runtime,
    /// Files.
    pub disk: Arc<dyn Disk>,
    /// Other nodes.
    pub peers: Arc<dyn Peers>,
    /// The index on disk, which may forget.
    pub index: IndexWriter,
}

/// Why a node did not start.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StartError {
    /// The log or a snapshot could not be opened.
    #[error("could not open the data directory {}", dir.display())]
    Storage {
        /// The directory.
        dir: PathBuf,
        /// What went wrong.
        #[source]
        cause: kubemq_storage::Error,
    },
    /// Consensus could not start.
    #[error("could not start consensus")]
    Raft(#[from] kubemq_raft::Error),
}

/// A running node.
pub struct Node {
    id: u64,
    gateway: Gateway,
    raft: Raft,
    log: Log,
    index: IndexWriter,
    runtime: Runtime,
    tasks: Vec<AbortOnDrop<()>>,
}

impl Node {
    /// Starts a node over the consensus runtime `R` and recovers what it had acknowledged before. Alone, it carries
    /// out calls when this returns; with others, once [`Node::ready`] does.
    ///
    /// # Errors
    ///
    /// [`StartError`] names what could not be opened.
    pub async fn start<R: kubemq_raft::AsyncRuntime>(options: Options, doors: Doors) -> Result<Self, StartError> {
        let Doors { runtime, disk, peers, index } = doors;
        let opened = |cause| StartError::Storage { dir: options.data.clone(), cause };
        let log = Log::open(Arc::clone(&disk), options.data.join("log"), options.log, &runtime);
        let log = log.await.map_err(opened)?;
        let id = match log.state().node_id {
            Some(id) => id,
            None => {
                let id = options.id.unwrap_or_else(|| runtime.random.branch("node id").u64() >> 1 | 1);
                log.save_node_id(id).await.map_err(opened)?;
                id
            }
        };
        let snapshots = Snapshots::open(disk, options.data.join("snapshots"), &runtime).await.map_err(opened)?;

        let core = Arc::new(Mutex::new(Core::new(State::new(options.state))));
        let outbox_cell = Arc::new(OnceLock::new());
        let feed = IndexFeed::new(index.clone());
        let memory = IndexMemory::new(options.index_bytes, options.index_goal_bytes);
        let replica = Replica::new(Arc::clone(&core), id, Arc::clone(&outbox_cell), feed.clone(), memory.clone());
        let mut settings = kubemq_raft::Options { node: id, ..options.raft };
        if options.formation == Formation::Alone {
            // Nobody else is to be convinced or replaced: consensus need not wake up fifty times a second.
            settings.heartbeat = Duration::from_secs(1);
            settings.election_least = Duration::from_secs(3);
            settings.election_most = Duration::from_secs(5);
        }
        let raft = kubemq_raft::start::<R>(settings, log.clone(), snapshots, replica, peers, runtime.clone()).await?;
        let outbox = Outbox::new(raft.clone(), runtime.clock.clone(), id);
        outbox_cell.set(Arc::downgrade(&outbox)).ok();
        let gateway = Gateway::new(Parts {
            runtime: runtime.clone(),
            raft: raft.clone(),
            log: log.clone(),
            core,
            outbox,
            live: Live::new(&runtime, options.live),
            limits: options.queue,
            retention: options.retention,
            memory: memory.clone(),
            node: id,
        });
        let bring_back = memory.clone().bring_back_what_is_wanted(gateway.clone(), index.clone(), feed.clone());
        let let_go = memory.let_go_of_what_is_cold(gateway.clone(), index.clone());
        let tasks = vec![
            runtime.tasks.spawn("leadership", OnFailure::StopNode, gateway.clone().follow_leadership()).abort_on_drop(),
            runtime.tasks.spawn("timers", OnFailure::StopNode, release_when_due(gateway.clone())).abort_on_drop(),
            runtime.tasks.spawn("places", OnFailure::StopNode, keep_places(gateway.clone())).abort_on_drop(),
            runtime.tasks.spawn("retention", OnFailure::StopNode, trim_what_is_old(gateway.clone())).abort_on_drop(),
            runtime
                .tasks
                .spawn("scrub", OnFailure::Log, scrub_now_and_then(gateway.clone(), options.scrub))
                .abort_on_drop(),
            runtime.tasks.spawn("index-come", OnFailure::StopNode, bring_back).abort_on_drop(),
            runtime.tasks.spawn("index-go", OnFailure::StopNode, let_go).abort_on_drop(),
            runtime.tasks.spawn("index-feed", OnFailure::Log, feed.rebuild_when_empty(gateway.clone())).abort_on_drop(),
        ];
        match options.formation {
            Formation::Alone => raft.stand_alone(RECOVERY).await?,
            Formation::Together(members) if raft.status().voters.is_empty() => form(&raft, members).await?,
            Formation::Together(_) | Formation::Join => {}
        }
        Ok(Self { id, gateway, raft, log, index, runtime, tasks })
    }

    /// Waits until calls can be carried out here.
    pub async fn ready(&self) {
        self.gateway.lead().await;
    }

    /// Returns the node's id.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns the way to the broker.
    #[must_use]
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// Returns consensus.
    #[must_use]
    pub fn raft(&self) -> &Raft {
        &self.raft
    }

    /// Returns the log.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Returns the index on disk.
    #[must_use]
    pub fn index(&self) -> &IndexWriter {
        &self.index
    }

    /// Stops the node after its clients are gone: what was submitted is committed, leadership is handed over,
    /// everything is on disk.
    pub async fn stop(self) {
        if self.runtime.clock.timeout(DRAIN, self.gateway.drained()).await.is_err() {
            tracing::warn!("stopping with operations that are not committed");
        }
        drop(self.tasks);
        self.raft.shutdown().await;
        if let Err(error) = self.log.close().await {
            tracing::error!(error = %kubemq_runtime::chain(&error), "the log did not close cleanly");
        }
        self.index.close().await;
    }
}

async fn form(raft: &Raft, members: BTreeMap<u64, Member>) -> Result<(), StartError> {
    match raft.initialize(members).await {
        // A peer was faster; all of them form the same group.
        Err(kubemq_raft::Error::AlreadyFormed) => Ok(()),
        formed => Ok(formed?),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use kubemq_proto::kubemq::QueueMessage;
    use kubemq_storage::fs::MemoryDisk;
    use kubemq_storage::index::{MemoryIndex, Opening};

    use super::*;
    use crate::gateway::Take;

    pub(crate) fn options() -> Options {
        Options {
            data: "/data".into(),
            id: None,
            formation: Formation::Alone,
            log: kubemq_storage::log::Options::default(),
            raft: kubemq_raft::Options::new(0),
            queue: QueueLimits::default(),
            live: live::Limits::default(),
            retention: Retention::default(),
            state: Limits::default(),
            index_bytes: 256 << 20,
            index_goal_bytes: 128 << 20,
            scrub: Pace::default(),
        }
    }

    /// Starts a node of its own in memory.
    pub(crate) async fn start(disk: &MemoryDisk) -> Node {
        start_with(options(), disk).await
    }

    pub(crate) async fn start_with(options: Options, disk: &MemoryDisk) -> Node {
        start_on(options, Arc::new(disk.clone())).await
    }

    pub(crate) async fn start_on(options: Options, disk: Arc<dyn Disk>) -> Node {
        let runtime = Runtime::real();
        let index = IndexWriter::start(|| Ok((MemoryIndex::default(), Opening::Fresh)), &runtime);
        let doors = Doors { runtime, disk, peers: Arc::new(kubemq_raft::network::NoPeers), index };
        Node::start::<kubemq_raft::TokioRuntime>(options, doors).await.unwrap()
    }

    async fn take(node: &Node, channel: &str, max: usize, wait: Duration) -> crate::gateway::Held {
        let deadline = node.runtime.clock.now() + wait;
        let take = Take { channel: channel.to_owned(), max, max_bytes: u64::MAX, deadline };
        node.gateway().take(take).await.unwrap()
    }

    fn message(body: &str) -> QueueMessage {
        QueueMessage {
            client_id: "c".to_owned(),
            channel: "q".to_owned(),
            body: body.to_owned().into(),
            ..QueueMessage::default()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_message_goes_in_and_comes_out_once_and_survives_a_restart() {
        let disk = MemoryDisk::default();
        let node = start(&disk).await;
        let results =
            [node.gateway().send(message("a")).await.unwrap(), node.gateway().send(message("b")).await.unwrap()];
        assert!(results.iter().all(|result| !result.is_error && result.sent_at > 0), "{results:?}");
        let mut held = take(&node, "q", 1, Duration::from_secs(5)).await;
        assert_eq!(held.unsettled().collect::<Vec<_>>(), [1]);
        held.ack(&[1]).await.unwrap();
        let mut held = take(&node, "q", 10, Duration::from_millis(50)).await;
        assert_eq!(held.unsettled().collect::<Vec<_>>(), [2]);
        held.nack(&[2]).await.unwrap();
        node.stop().await;

        let node = start(&disk).await;
        let held = take(&node, "q", 1, Duration::from_secs(5)).await;
        assert_eq!(held.deliveries.len(), 1);
        assert_eq!((held.deliveries[0].sequence, held.deliveries[0].receive_count), (3, 2));
        drop(held);
        let held = take(&node, "q", 1, Duration::from_secs(5)).await;
        assert_eq!(held.deliveries[0].sequence, 3, "what is given back keeps its place");
        drop(held);
        node.stop().await;
    }

    /// Sends until the answer is `refused`, at most for ten seconds.
    async fn send_until(node: &Node, refused: bool) -> bool {
        for _ in 0..100 {
            let result = node.gateway().send(message("x")).await.unwrap();
            if result.is_error == refused {
                let said = kubemq_proto::strings::Refusal::NoSpace.to_string();
                assert!(!refused || result.error == said, "{result:?}");
                return true;
            }
            node.runtime.clock.sleep(Duration::from_millis(100)).await;
        }
        false
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_nearly_full_disk_refuses_sends_and_lets_messages_be_settled() {
        let disk = MemoryDisk::default();
        disk.set_capacity(64 << 20);
        let mut options = options();
        options.log.segment_bytes = 1 << 20;
        options.log.reserve_bytes = 1 << 30;
        let node = start_with(options, &disk).await;
        assert!(send_until(&node, false).await);
        let other = kubemq_storage::fs::Disk::create(&disk, std::path::Path::new("other")).await.unwrap();
        other.allocate(58 << 20).await.unwrap();
        assert!(send_until(&node, true).await, "it is nearly full");
        let mut held = take(&node, "q", 1, Duration::from_secs(5)).await;
        let sequences: Vec<u64> = held.unsettled().collect();
        assert_eq!(held.ack(&sequences).await.unwrap().len(), 1, "settlements make room");
        other.set_len(0).await.unwrap();
        assert!(send_until(&node, false).await, "there is room again");
        node.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_poll_that_waits_gets_what_comes_and_gives_it_back_when_dropped() {
        let node = start(&MemoryDisk::default()).await;
        let gateway = node.gateway().clone();
        let deadline = node.runtime.clock.now() + Duration::from_secs(30);
        let wanted = Take { channel: "q".to_owned(), max: 2, max_bytes: u64::MAX, deadline };
        let waiting =
            node.runtime.tasks.spawn("poll", OnFailure::Log, async move { gateway.take(wanted).await.map(drop) });
        node.gateway().send(message("a")).await.unwrap();
        let waiting = waiting.abort_on_drop();
        drop(waiting);
        let held = take(&node, "q", 1, Duration::from_secs(5)).await;
        assert_eq!(held.unsettled().collect::<Vec<_>>(), [1]);
        drop(held);
        node.stop().await;
    }
}
