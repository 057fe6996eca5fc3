//! A group of voters in one process, over the network in memory, on disks in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kubemq_raft::network::memory::MemoryNetwork;
use kubemq_raft::{
    Batch, Committed, Envelope, Living, Member, Node, Options, Origin, Piece, Pieces, Refused, RestoreError, Restoring,
    Role, SnapshotSource, StateMachine, TokioRuntime,
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
    /// What is in memory.
    values: BTreeMap<u64, (u64, u16)>,
    /// Keys whose values stand only in the newest durable snapshot.
    dropped: BTreeSet<u64>,
    /// The batches in the order in which they were applied.
    pub(crate) order: Vec<u64>,
    pub(crate) time: u64,
    /// Whether LogTime ever stood still or went back.
    pub(crate) disorder: bool,
    digest: u64,
}

impl Known {
    pub(crate) fn keys(&self) -> BTreeSet<u64> {
        self.values.keys().chain(&self.dropped).copied().collect()
    }

    pub(crate) fn dropped(&self) -> usize {
        self.dropped.len()
    }

    fn put(&mut self, key: u64, entry: u64, part: u16) {
        for word in [key, entry, u64::from(part)] {
            self.digest = (self.digest.rotate_left(7) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        }
        self.dropped.remove(&key);
        self.values.insert(key, (entry, part));
    }
}

/// Keeps references to bodies, as the broker does, never the bodies; and of the references, whatever a durable snapshot
/// holds, only that there is one.
#[derive(Clone, Default)]
pub(crate) struct Recorder(pub Arc<Mutex<Known>>);

/// What was read of a snapshot.
#[derive(Default)]
pub(crate) struct Reading(Option<Known>);

impl Restoring for Reading {
    fn push(&mut self, mut chunk: Bytes) -> Result<(), RestoreError> {
        if let Some(known) = &mut self.0 {
            known.dropped.insert(chunk.get_u64_le());
            return Ok(());
        }
        let (time, disorder, digest) = (chunk.get_u64_le(), chunk.get_u8() == 1, chunk.get_u64_le());
        let mut known = Known { time, disorder, digest, ..Known::default() };
        while chunk.has_remaining() {
            known.order.push(chunk.get_u64_le());
        }
        self.0 = Some(known);
        Ok(())
    }
}

impl StateMachine for Recorder {
    type Restoring = Reading;

    fn apply(&mut self, entries: Vec<Committed>) {
        let mut known = self.0.lock();
        for entry in entries {
            known.disorder |= entry.time <= known.time;
            known.time = entry.time;
            let mut part = 1;
            for batch in Envelope::of(&entry.parts).unwrap().batches {
                known.order.push(batch.number);
                for _ in 0..batch.operations {
                    let key = entry.parts.get(part).unwrap().get_u64_le();
                    known.put(key, entry.id.index, part);
                    part += 1;
                }
            }
        }
    }

    fn snapshot(&mut self) -> Box<dyn SnapshotSource> {
        Box::new(Moment(self.0.lock().clone()))
    }

    fn restoring(&self) -> Reading {
        Reading::default()
    }

    fn restore(&mut self, read: Reading) -> Result<(), RestoreError> {
        *self.0.lock() = read.0.ok_or_else(|| RestoreError("empty".to_owned()))?;
        Ok(())
    }

    fn snapshot_is_durable(&mut self, index: u64) {
        let known = &mut *self.0.lock();
        let held = known.values.extract_if(.., |_, (entry, _)| *entry <= index);
        known.dropped.extend(held.map(|(key, _)| key));
    }

    fn wants_snapshot(&self) -> bool {
        false
    }

    fn digest(&self) -> u64 {
        self.0.lock().digest
    }
}

struct Moment(Known);

impl Moment {
    fn walk<T: Send + 'static>(&self, head: Option<T>, each: fn(u64, u64, u16) -> T) -> Box<dyn Pieces<T>> {
        let Known { values, dropped, .. } = self.0.clone();
        Box::new(Merge { head, values, dropped, fed: 0, found: None, each })
    }
}

impl SnapshotSource for Moment {
    fn chunks(&self) -> Box<dyn Pieces<Bytes>> {
        let mut head = BytesMut::new();
        head.put_u64_le(self.0.time);
        head.put_u8(u8::from(self.0.disorder));
        head.put_u64_le(self.0.digest);
        self.0.order.iter().for_each(|number| head.put_u64_le(*number));
        self.walk(Some(head.freeze()), |key, entry, part| {
            let mut chunk = BytesMut::new();
            chunk.put_u64_le(key);
            chunk.put_u64_le(entry);
            chunk.put_u16_le(part);
            chunk.freeze()
        })
    }

    fn living(&self) -> Box<dyn Pieces<Vec<Living>>> {
        // By key, which is no order of the log, and each twice.
        self.walk(None, |_, entry, part| vec![Living { entry, first: part, count: 1 }; 2])
    }
}

/// Walks through what is in memory, and then through the previous snapshot for what is not.
struct Merge<T> {
    head: Option<T>,
    values: BTreeMap<u64, (u64, u16)>,
    /// What was not found yet.
    dropped: BTreeSet<u64>,
    /// Chunks of the previous snapshot so far.
    fed: usize,
    found: Option<T>,
    each: fn(u64, u64, u16) -> T,
}

impl<T: Send> Pieces<T> for Merge<T> {
    fn next(&mut self) -> Result<Piece<T>, RestoreError> {
        if let Some(next) = self.head.take().or_else(|| self.found.take()) {
            return Ok(Piece::Next(next));
        }
        if let Some((key, (entry, part))) = self.values.pop_first() {
            return Ok(Piece::Next((self.each)(key, entry, part)));
        }
        Ok(if self.dropped.is_empty() { Piece::End } else { Piece::Previous })
    }

    fn feed(&mut self, chunk: Option<Bytes>) {
        // The end with something missing shows when more is asked for.
        let Some(mut chunk) = chunk else { return };
        self.fed += 1;
        // The first is the head.
        if self.fed > 1 {
            let (key, entry, part) = (chunk.get_u64_le(), chunk.get_u64_le(), chunk.get_u16_le());
            self.found = self.dropped.remove(&key).then(|| (self.each)(key, entry, part));
        }
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
    pub(crate) disks: BTreeMap<u64, MemoryDisk>,
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
        self.try_open(id).await.unwrap();
    }

    /// As [`Self::open`].
    ///
    /// # Errors
    ///
    /// Why it did not start.
    pub(crate) async fn try_open(&mut self, id: u64) -> Result<(), kubemq_raft::Error> {
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
        let node = match started.await {
            Ok(node) => node,
            Err(error) => {
                log.close().await.unwrap();
                return Err(error);
            }
        };
        self.network.join(id, node.clone(), runtime);
        self.running.insert(id, Voter { node, log, recorder });
        Ok(())
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
        let living = voter.node.fold_living(BTreeSet::new(), |seen, living| seen.extend([living])).await.unwrap();
        let keys = voter.recorder.0.lock().keys();
        assert!(!keys.is_empty());
        let mut found = BTreeSet::new();
        for Living { entry, first, count } in living {
            assert_eq!(count, 1);
            let read = voter.log.read_part(entry, first).await;
            let read = read.unwrap_or_else(|error| panic!("entry {entry}, part {first}: {error}"));
            let key = read.bytes.clone().get_u64_le();
            assert_eq!(read.bytes, body(key), "key {key}");
            assert!(found.insert(key), "key {key} is there once");
        }
        assert_eq!(found, keys);
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
