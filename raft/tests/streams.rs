//! Snapshots are larger than memory: of their chunks, few are alive at once.

#![expect(clippy::unwrap_used, reason = "a test that fails panics")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kubemq_raft::network::memory::MemoryNetwork;
use kubemq_raft::{
    Committed, Living, Node, Options, Piece, Pieces, RestoreError, Restoring, SnapshotSource, StateMachine,
    TokioRuntime,
};
use kubemq_runtime::Runtime;
use kubemq_storage::fs::{Disk, MemoryDisk};
use kubemq_storage::log::{self, Log};
use kubemq_storage::snapshot::Snapshots;

const CHUNKS: u64 = 20_000;
/// What may be gathered for one write, with what waits for it.
const FEW: u64 = 1_000;

/// Counts chunks that exist now, and the most that ever did.
#[derive(Default)]
struct Alive {
    now: AtomicU64,
    most: AtomicU64,
}

struct Chunk(Arc<Alive>, [u8; 8]);

impl Chunk {
    fn make(alive: &Arc<Alive>, number: u64) -> Bytes {
        let now = alive.now.fetch_add(1, Ordering::Relaxed) + 1;
        alive.most.fetch_max(now, Ordering::Relaxed);
        Bytes::from_owner(Self(Arc::clone(alive), number.to_le_bytes()))
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.1
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Has a state of numbered chunks, all of which stand in the previous snapshot once there is one.
#[derive(Clone, Default)]
struct Wide {
    alive: Arc<Alive>,
    durable: bool,
    restored: Arc<AtomicU64>,
    walks: Arc<AtomicU64>,
}

#[derive(Default)]
struct Count(u64);

impl Restoring for Count {
    fn push(&mut self, chunk: Bytes) -> Result<(), RestoreError> {
        let number = chunk.as_array::<8>().map(|bytes| u64::from_le_bytes(*bytes));
        if number != Some(self.0) {
            return Err(RestoreError(format!("{number:?} instead of {}", self.0)));
        }
        self.0 += 1;
        Ok(())
    }
}

impl StateMachine for Wide {
    type Restoring = Count;

    fn apply(&mut self, _: Vec<Committed>) {}

    fn snapshot(&mut self) -> Box<dyn SnapshotSource> {
        Box::new(self.clone())
    }

    fn restoring(&self) -> Count {
        Count::default()
    }

    fn restore(&mut self, read: Count) -> Result<(), RestoreError> {
        self.restored.store(read.0, Ordering::Relaxed);
        if read.0 == CHUNKS { Ok(()) } else { Err(RestoreError("chunks are missing".to_owned())) }
    }

    fn snapshot_is_durable(&mut self, _: u64) {
        self.durable = true;
    }

    fn wants_snapshot(&self) -> bool {
        !self.durable
    }

    fn digest(&self) -> u64 {
        0
    }
}

impl SnapshotSource for Wide {
    fn chunks(&self) -> Box<dyn Pieces<Bytes>> {
        self.walks.fetch_add(1, Ordering::Relaxed);
        Box::new(Numbered { of: self.clone(), next: 0, fed: None })
    }

    fn living(&self) -> Box<dyn Pieces<Vec<Living>>> {
        Box::new(Nothing)
    }
}

struct Nothing;

impl Pieces<Vec<Living>> for Nothing {
    fn next(&mut self) -> Result<Piece<Vec<Living>>, RestoreError> {
        Ok(Piece::End)
    }

    fn feed(&mut self, _: Option<Bytes>) {}
}

struct Numbered {
    of: Wide,
    next: u64,
    fed: Option<Bytes>,
}

impl Pieces<Bytes> for Numbered {
    fn next(&mut self) -> Result<Piece<Bytes>, RestoreError> {
        if self.next == CHUNKS {
            return Ok(Piece::End);
        }
        if self.of.durable && self.fed.take().is_none() {
            return Ok(Piece::Previous);
        }
        self.next += 1;
        Ok(Piece::Next(Chunk::make(&self.of.alive, self.next - 1)))
    }

    fn feed(&mut self, chunk: Option<Bytes>) {
        self.fed = chunk;
    }
}

async fn start(disk: &MemoryDisk, machine: Wide) -> (Node, Log) {
    let runtime = Runtime::real();
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let log = Log::open(Arc::clone(&disk), PathBuf::from("/log"), log::Options::default(), &runtime).await.unwrap();
    let snapshots = Snapshots::open(disk, PathBuf::from("/snapshots"), &runtime).await.unwrap();
    let peers = MemoryNetwork::new().peers(1, runtime.clone());
    let node = kubemq_raft::start::<TokioRuntime>(Options::new(1), log.clone(), snapshots, machine, peers, runtime);
    let node = node.await.unwrap();
    node.stand_alone(Duration::from_secs(60)).await.unwrap();
    (node, log)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_chunks_of_a_snapshot_are_alive_at_once() {
    let disk = MemoryDisk::new();
    let machine = Wide::default();
    // The machine wants its first snapshot by itself, so that nobody has to ask for it.
    let (node, log) = start(&disk, machine.clone()).await;
    let clock = Runtime::real().clock;
    let deadline = clock.now() + Duration::from_secs(60);
    while node.durable_snapshot().is_none() {
        assert!(clock.now() < deadline, "no snapshot was written although the machine wants one");
        clock.sleep(Duration::from_millis(5)).await;
    }
    node.stop().await;
    log.close().await.unwrap();
    let (node, log) = start(&disk, machine.clone()).await;
    assert_eq!(machine.restored.load(Ordering::Relaxed), CHUNKS);
    // What was elected after the start is new, so there is something to write, and all of it stands in the first file.
    let walks = machine.walks.load(Ordering::Relaxed);
    node.snapshot().await.unwrap();
    assert!(machine.walks.load(Ordering::Relaxed) > walks);
    let most = machine.alive.most.load(Ordering::Relaxed);
    assert!((1..FEW).contains(&most), "{most} chunks were alive at once");
    assert_eq!(machine.alive.now.load(Ordering::Relaxed), 0);
    node.stop().await;
    log.close().await.unwrap();
}
