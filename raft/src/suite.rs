//! openraft's own storage suite on our log store and machine.

use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use kubemq_runtime::Runtime;
use kubemq_storage::fs::{Disk, MemoryDisk, RealDisk};
use kubemq_storage::log::{self, Log};
use kubemq_storage::snapshot::Snapshots;
use openraft::impls::TokioRuntime;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{OptionalSend, Snapshot, StorageError};

use crate::log_store::LogStore;
use crate::machine::{Builder, Handle, Machine};
use crate::snapshot::Incoming;
use crate::state_machine::{Committed, Living, Piece, Pieces, RestoreError, Restoring, SnapshotSource, StateMachine};
use crate::status::Member;
use crate::time::ClusterTime;
use crate::types::{LeaderId, LogId, SnapshotMeta, StoredMembership, Types};

type C = Types<TokioRuntime>;

/// Counts entries.
#[derive(Default)]
struct Counter(u64);

struct Counted(u64);

/// The chunk that is all of a snapshot.
#[derive(Default)]
struct Count(Option<Bytes>);

impl Restoring for Count {
    fn push(&mut self, chunk: Bytes) -> Result<(), RestoreError> {
        self.0 = Some(chunk);
        Ok(())
    }
}

impl StateMachine for Counter {
    type Restoring = Count;

    fn apply(&mut self, entries: Vec<Committed>) {
        self.0 += entries.len() as u64;
    }

    fn snapshot(&mut self) -> Box<dyn SnapshotSource> {
        Box::new(Counted(self.0))
    }

    fn restoring(&self) -> Count {
        Count::default()
    }

    fn restore(&mut self, read: Count) -> Result<(), RestoreError> {
        let chunk = read.0.as_ref().and_then(|chunk| chunk.as_array::<8>());
        self.0 = u64::from_le_bytes(*chunk.ok_or_else(|| RestoreError("no count".to_owned()))?);
        Ok(())
    }

    fn snapshot_is_durable(&mut self, _: u64) {}

    fn wants_snapshot(&self) -> bool {
        false
    }

    fn digest(&self) -> u64 {
        self.0
    }
}

/// A walk through what is all in memory.
struct Given<T>(std::vec::IntoIter<T>);

impl<T: Send> Pieces<T> for Given<T> {
    fn next(&mut self) -> Result<Piece<T>, RestoreError> {
        Ok(self.0.next().map_or(Piece::End, Piece::Next))
    }

    fn feed(&mut self, _: Option<Bytes>) {}
}

impl SnapshotSource for Counted {
    fn chunks(&self) -> Box<dyn Pieces<Bytes>> {
        Box::new(Given(vec![Bytes::copy_from_slice(&self.0.to_le_bytes())].into_iter()))
    }

    fn living(&self) -> Box<dyn Pieces<Vec<Living>>> {
        Box::new(Given(vec![].into_iter()))
    }
}

/// Our machine, which also installs a snapshot that another machine in this process would send.
struct Installing(Machine<TokioRuntime, Counter>);

impl RaftStateMachine<C> for Installing {
    type SnapshotData = Handle;
    type SnapshotBuilder = Builder<TokioRuntime, Counter>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), std::io::Error> {
        self.0.applied_state().await
    }

    async fn apply<S>(&mut self, entries: S) -> Result<(), std::io::Error>
    where
        S: futures_util::Stream<Item = Result<EntryResponder<C>, std::io::Error>> + Unpin + OptionalSend,
    {
        self.0.apply(entries).await
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder<TokioRuntime, Counter>> {
        self.0.try_create_snapshot_builder(force).await
    }

    async fn get_snapshot_builder(&mut self) -> Builder<TokioRuntime, Counter> {
        self.0.get_snapshot_builder().await
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, handle: Handle) -> Result<(), std::io::Error> {
        let Handle::Outgoing(outgoing) = handle else { panic!("a running machine gives what can be sent") };
        let mut writer = self.0.shared.snapshots.begin(outgoing.moment.meta.encode()).await.unwrap();
        let mut chunks = outgoing.moment.chunks();
        while let Some(chunk) = chunks.next().await.unwrap() {
            writer.push(chunk).await.unwrap();
        }
        let writer = Arc::new(parking_lot::Mutex::new(Some(writer)));
        let incoming = Incoming { meta: outgoing.moment.meta, writer };
        self.0.install_snapshot(meta, Handle::Incoming(Box::new(incoming))).await
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<Snapshot<LeaderId, u64, Member, Handle>>, std::io::Error> {
        self.0.get_current_snapshot().await
    }
}

/// Makes a fresh store for each test.
struct Stores<D> {
    disk: D,
}

type Guard = Option<tempfile::TempDir>;

impl<D: Fn() -> (Guard, Arc<dyn Disk>, PathBuf) + Send + Sync>
    StoreBuilder<C, LogStore<TokioRuntime>, Installing, Guard> for Stores<D>
{
    async fn build(&self) -> Result<(Guard, LogStore<TokioRuntime>, Installing), StorageError<C>> {
        let (guard, disk, dir) = (self.disk)();
        let runtime = Runtime::real();
        // Small segments, so that the suite's entries cross their borders.
        let options = log::Options { segment_bytes: 4096, ..log::Options::default() };
        let log = Log::open(Arc::clone(&disk), dir.join("log"), options, &runtime).await.unwrap();
        let snapshots = Snapshots::open(disk, dir.join("snapshots"), &runtime).await.unwrap();
        let time = ClusterTime::new(runtime.clock.clone(), 0);
        let machine = Machine::new(Counter::default(), log.clone(), snapshots, runtime);
        machine.shared.facts.lock().running = true;
        Ok((guard, LogStore::new(log, time, 4 << 20), Installing(machine)))
    }
}

fn run(disk: impl Fn() -> (Guard, Arc<dyn Disk>, PathBuf) + Send + Sync) {
    let _: PhantomData<C> = PhantomData;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(Suite::test_all(Stores { disk })).unwrap();
}

#[test]
fn the_suite_passes_on_real_files() {
    run(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        (Some(dir), Arc::new(RealDisk), path)
    });
}

#[test]
fn the_suite_passes_on_the_memory_disk() {
    run(|| (None, Arc::new(MemoryDisk::new()), PathBuf::from("/data")));
}
