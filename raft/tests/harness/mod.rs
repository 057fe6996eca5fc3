//! A group of voters in one process, over the network in memory, on disks in memory.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kubemq_raft::network::memory::MemoryNetwork;
use kubemq_raft::{
    Batch, Committed, Envelope, Living, Member, Node, Options, Origin, Refused, RestoreError, Role, SnapshotSource,
    StateMachine, TokioRuntime,
};
use kubemq_runtime::Runtime;
use kubemq_storage::fs::{Disk, MemoryDisk};
use kubemq_storage::log::{self, Log};
use kubemq_storage::snapshot::Snapshots;
use parking_lot::Mutex;

/// The longest that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What the machine knows: under each key, where its last value lies in the log.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Known {
    pub(crate) values: BTreeMap<u64, (u64, u16)>,
    /// The batches in the order in which they were applied.
    pub(crate) order: Vec<u64>,
    pub(crate) time: u64,
    /// Whether LogTime ever stood still or went back.
    pub(crate) disorder: bool,
}

/// Keeps references to bodies, as the broker does, never the bodies.
#[derive(Clone, Default)]
pub(crate) struct Recorder(pub Arc<Mutex<Known>>);

impl StateMachine for Recorder {
    fn apply(&mut self, entries: Vec<Committed>) {
        let mut known = self.0.lock();
        for entry in entries {
            known.disorder |= entry.time <= known.time;
            known.time = entry.time;
            let mut part = 1;
            for batch in Envelope::of(&entry.parts).unwrap().batches {
                known.order.push(batch.number);
                for _ in 0..batch.operations {
                    let mut operation = entry.parts.get(part).unwrap();
                    known.values.insert(operation.get_u64_le(), (entry.id.index, part));
                    part += 1;
                }
            }
        }
    }

    fn snapshot(&mut self) -> Box<dyn SnapshotSource> {
        Box::new(Moment(self.0.lock().clone()))
    }

    fn restore(&mut self, chunks: Vec<Bytes>) -> Result<(), RestoreError> {
        let mut chunks = chunks.into_iter();
        let mut head = chunks.next().ok_or_else(|| RestoreError("empty".to_owned()))?;
        let mut known = Known { time: head.get_u64_le(), disorder: head.get_u8() == 1, ..Known::default() };
        while head.has_remaining() {
            known.order.push(head.get_u64_le());
        }
        for mut chunk in chunks {
            known.values.insert(chunk.get_u64_le(), (chunk.get_u64_le(), chunk.get_u16_le()));
        }
        *self.0.lock() = known;
        Ok(())
    }

    fn digest(&self) -> u64 {
        let known = self.0.lock();
        let mut digest = known.time;
        for (key, (entry, part)) in &known.values {
            for word in [*key, *entry, u64::from(*part)] {
                digest = (digest.rotate_left(7) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            }
        }
        digest
    }
}

struct Moment(Known);

impl SnapshotSource for Moment {
    fn chunks(self: Box<Self>) -> Box<dyn Iterator<Item = Bytes> + Send> {
        let mut head = BytesMut::new();
        head.put_u64_le(self.0.time);
        head.put_u8(u8::from(self.0.disorder));
        self.0.order.iter().for_each(|number| head.put_u64_le(*number));
        let values = self.0.values.into_iter().map(|(key, (entry, part))| {
            let mut chunk = BytesMut::new();
            chunk.put_u64_le(key);
            chunk.put_u64_le(entry);
            chunk.put_u16_le(part);
            chunk.freeze()
        });
        Box::new(std::iter::once(head.freeze()).chain(values))
    }

    fn living(&self) -> Box<dyn Iterator<Item = Living> + Send + '_> {
        let mut living: Vec<_> =
            self.0.values.values().map(|(entry, part)| Living { entry: *entry, first: *part, count: 1 }).collect();
        living.sort_unstable();
        Box::new(living.into_iter())
    }
}

/// One running node.
#[derive(Clone)]
pub(crate) struct Voter {
    pub(crate) node: Node,
    pub(crate) log: Log,
    pub(crate) recorder: Recorder,
}

pub(crate) struct Cluster {
    pub(crate) network: MemoryNetwork,
    pub(crate) running: BTreeMap<u64, Voter>,
    pub(crate) runtime: Runtime,
    disks: BTreeMap<u64, MemoryDisk>,
    next: AtomicU64,
    tune: fn(&mut Options),
}

impl Cluster {
    /// Starts `count` empty nodes.
    pub(crate) async fn start(count: u64, tune: fn(&mut Options)) -> Self {
        let disks = (1..=count).map(|id| (id, MemoryDisk::new())).collect();
        let mut cluster = Self {
            network: MemoryNetwork::new(),
            running: BTreeMap::new(),
            runtime: Runtime::real(),
            disks,
            next: AtomicU64::new(1),
            tune,
        };
        for id in 1..=count {
            cluster.open(id).await;
        }
        cluster
    }

    /// Starts `count` nodes and forms a group of them.
    pub(crate) async fn form(count: u64, tune: fn(&mut Options)) -> Self {
        let cluster = Self::start(count, tune).await;
        let members = (1..=count).map(|id| (id, Member { address: format!("memory:{id}") })).collect();
        cluster.running[&1].node.initialize(members).await.unwrap();
        cluster
    }

    /// Starts node `id` on what its disk holds.
    pub(crate) async fn open(&mut self, id: u64) {
        let runtime = Runtime::real();
        let disk: Arc<dyn Disk> = Arc::new(self.disks[&id].clone());
        let sizes = log::Options { segment_bytes: 32 * 1024, tail_cache_bytes: 16 * 1024, ..log::Options::default() };
        let log = Log::open(Arc::clone(&disk), PathBuf::from("/data/log"), sizes, &runtime).await.unwrap();
        let snapshots = Snapshots::open(disk, PathBuf::from("/data/snapshots"), &runtime).await.unwrap();
        let mut options = Options::new(id);
        (self.tune)(&mut options);
        let recorder = Recorder::default();
        let peers = self.network.peers(id, runtime.clone());
        let started = kubemq_raft::start::<TokioRuntime>(
            options,
            log.clone(),
            snapshots,
            recorder.clone(),
            peers,
            runtime.clone(),
        );
        let node = started.await.unwrap();
        self.network.join(id, node.clone(), runtime);
        self.running.insert(id, Voter { node, log, recorder });
    }

    /// Ends node `id` as a killed process would: nobody is told, and what the disk was given stays.
    pub(crate) async fn kill(&mut self, id: u64) {
        self.network.leave(id);
        let voter = self.running.remove(&id).unwrap();
        voter.node.stop().await;
        voter.log.close().await.unwrap();
    }

    /// Waits until the running nodes agree on a leader that knows a majority, and returns its id.
    pub(crate) async fn leader(&self) -> u64 {
        self.until("a leader", || self.led_by()).await
    }

    fn led_by(&self) -> Option<u64> {
        let leads = self.running.iter().find(|(_, voter)| voter.node.status().quorum_contact)?;
        let agreed = self.running.values().all(|voter| voter.node.status().leader == Some(*leads.0));
        agreed.then_some(*leads.0)
    }

    /// Waits until `condition` gives something.
    pub(crate) async fn until<T>(&self, what: &str, condition: impl Fn() -> Option<T>) -> T {
        let deadline = self.runtime.clock.now() + PATIENCE;
        loop {
            if let Some(found) = condition() {
                return found;
            }
            let statuses: Vec<_> = self.running.values().map(|voter| voter.node.status()).collect();
            assert!(self.runtime.clock.now() < deadline, "{what} did not come about: {statuses:#?}");
            self.runtime.clock.sleep(Duration::from_millis(2)).await;
        }
    }

    /// Writes `keys`, each with a body that repeats it, through whoever leads, until all are committed.
    pub(crate) async fn write(&self, keys: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let mut numbers = Vec::new();
        for key in keys {
            numbers.push(self.write_one(key).await);
        }
        numbers
    }

    async fn write_one(&self, key: u64) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        loop {
            let leader = self.leader().await;
            let voter = &self.running[&leader];
            let batch = Batch { origin: Origin { node: 9, epoch: 1 }, number, operations: vec![body(key)] };
            let refused = Arc::new(Mutex::new(None::<Refused>));
            let told = Arc::clone(&refused);
            let deadline = self.runtime.clock.now() + PATIENCE;
            if voter.node.submit(batch, deadline, move |why| *told.lock() = Some(why)).is_err() {
                continue;
            }
            let applied = || voter.recorder.0.lock().order.contains(&number);
            self.until("a write", || (applied() || refused.lock().is_some()).then_some(())).await;
            if applied() {
                return number;
            }
        }
    }

    /// Waits until all running nodes have applied the same, and returns the digest.
    pub(crate) async fn settle(&self) -> u64 {
        self.until("equal digests", || {
            let mut digests = self.running.values().map(|voter| voter.node.digest());
            let first = digests.next()?;
            let last = self.running.values().filter_map(|voter| voter.node.status().last).max()?;
            (first.0 == last && digests.all(|digest| digest == first)).then_some(first.1)
        })
        .await
    }

    /// Checks that node `id` serves every body that its state refers to.
    pub(crate) async fn check_bodies(&self, id: u64) {
        let voter = &self.running[&id];
        let values = voter.recorder.0.lock().values.clone();
        assert!(!values.is_empty());
        for (key, (entry, part)) in values {
            let read = voter.log.read_part(entry, part).await;
            let read = read.unwrap_or_else(|error| panic!("key {key} in entry {entry}, part {part}: {error}"));
            assert_eq!(read.bytes, body(key), "key {key}");
        }
    }

    pub(crate) fn roles(&self) -> Vec<Role> {
        self.running.values().map(|voter| voter.node.status().role).collect()
    }
}

/// What is written under `key`: 1 KiB.
pub(crate) fn body(key: u64) -> Bytes {
    let mut body = BytesMut::with_capacity(1024);
    while body.len() < 1024 {
        body.put_u64_le(key);
    }
    body.freeze()
}
