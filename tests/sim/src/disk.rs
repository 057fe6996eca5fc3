//! A node's disk: the memory disk of the storage crate, with the time that calls take and the ways in which they fail.
//!
//! What a power loss leaves is the memory disk's business; this file knows only how long things take and what breaks.

use std::any::Any;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use kubemq_runtime::Random;
use kubemq_storage::Error;
use kubemq_storage::fs::{DirLock, Disk, File, MemoryDisk};
use parking_lot::Mutex;

use crate::world::World;

/// How slow the disk of a node is, and what breaks next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskFaults {
    /// Of a thousand syncs, this many take 30 to 500 ms.
    pub stalls: u64,
    /// The next sync fails, and what it should have flushed is in doubt.
    pub fail_sync: bool,
    /// The next write stops half-way with an error.
    pub short_write: bool,
    /// A sync says that it has flushed and has not: the lie of a broken disk, or of a program that does not wait.
    pub lying_sync: bool,
}

/// The disk of one life of a node. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk(Arc<Inner>);

struct Inner {
    world: World,
    node: usize,
    memory: MemoryDisk,
    random: Random,
    faults: Mutex<DiskFaults>,
}

impl SimDisk {
    /// Returns the disk of `node` with the content of `memory`.
    #[must_use]
    pub fn new(world: World, node: usize, memory: MemoryDisk, random: Random, faults: DiskFaults) -> Self {
        Self(Arc::new(Inner { world, node, memory, random, faults: Mutex::new(faults) }))
    }

    /// Returns what is gone once nothing of the life that uses this disk is left.
    #[must_use]
    pub fn witness(&self) -> Weak<dyn Any + Send + Sync> {
        let weak: Weak<Inner> = Arc::downgrade(&self.0);
        weak
    }

    /// Returns what lies on the disk.
    #[must_use]
    pub fn memory(&self) -> &MemoryDisk {
        &self.0.memory
    }

    /// Changes how the disk behaves.
    pub fn set_faults(&self, change: impl FnOnce(&mut DiskFaults)) {
        change(&mut self.0.faults.lock());
    }

    /// Returns how the disk behaves.
    #[must_use]
    pub fn faults(&self) -> DiskFaults {
        *self.0.faults.lock()
    }
}

impl Inner {
    async fn takes(&self, micros: Range<u64>) {
        let nanos = 1000 * micros.start + self.random.below(1000 * (micros.end - micros.start));
        self.world.sleep(Duration::from_nanos(nanos)).await;
    }

    async fn sync_takes(&self) {
        let stalls = self.faults.lock().stalls;
        if self.random.below(1000) < stalls {
            self.takes(30_000..500_000).await;
        } else {
            self.takes(150..1_200).await;
        }
    }

    /// Whether the effect comes before the wait: a crash in between finds it done but not answered.
    fn effect_first(&self) -> bool {
        self.random.below(2) == 0
    }
}

struct SimFile {
    disk: Arc<Inner>,
    file: Arc<dyn File>,
    path: PathBuf,
}

impl SimDisk {
    fn file(&self, path: &Path, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(SimFile { disk: Arc::clone(&self.0), file, path: path.to_owned() })
    }
}

#[async_trait]
impl Disk for SimDisk {
    async fn create(&self, path: &Path) -> Result<Arc<dyn File>, Error> {
        self.0.takes(5..50).await;
        self.0.world.trace(self.0.node, format_args!("disk creates {}", path.display()));
        Ok(self.file(path, self.0.memory.create(path).await?))
    }

    async fn open(&self, path: &Path) -> Result<Arc<dyn File>, Error> {
        self.0.takes(5..50).await;
        Ok(self.file(path, self.0.memory.open(path).await?))
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        self.0.takes(5..50).await;
        self.0.world.trace(self.0.node, format_args!("disk renames {} to {}", from.display(), to.display()));
        self.0.memory.rename(from, to).await
    }

    async fn remove(&self, path: &Path) -> Result<(), Error> {
        self.0.takes(5..50).await;
        self.0.world.trace(self.0.node, format_args!("disk removes {}", path.display()));
        self.0.memory.remove(path).await
    }

    async fn list(&self, dir: &Path) -> Result<Vec<String>, Error> {
        self.0.takes(5..50).await;
        self.0.memory.list(dir).await
    }

    async fn create_dir_all(&self, dir: &Path) -> Result<(), Error> {
        self.0.takes(5..50).await;
        self.0.memory.create_dir_all(dir).await
    }

    async fn sync_dir(&self, dir: &Path) -> Result<(), Error> {
        let first = self.0.effect_first();
        if first {
            self.0.memory.sync_dir(dir).await?;
        }
        self.0.sync_takes().await;
        if !first {
            self.0.memory.sync_dir(dir).await?;
        }
        Ok(())
    }

    async fn free_space(&self, dir: &Path) -> Result<u64, Error> {
        self.0.memory.free_space(dir).await
    }

    async fn total_space(&self, dir: &Path) -> Result<u64, Error> {
        self.0.memory.total_space(dir).await
    }

    async fn lock_dir(&self, dir: &Path) -> Result<Box<dyn DirLock>, Error> {
        self.0.memory.lock_dir(dir).await
    }
}

#[async_trait]
impl File for SimFile {
    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, Error> {
        self.disk.takes(2..120).await;
        self.file.read_at(offset, len).await
    }

    async fn write_at(&self, offset: u64, pieces: &[Bytes]) -> Result<(), Error> {
        if std::mem::take(&mut self.disk.faults.lock().short_write) {
            let whole = pieces.concat();
            let written = usize::try_from(self.disk.random.below(whole.len() as u64)).unwrap_or(0);
            self.disk.world.trace(self.disk.node, format_args!("disk wrote {written} of {} bytes", whole.len()));
            self.file.write_at(offset, &[Bytes::from(whole).slice(..written)]).await?;
            return Err(Error::disk("write", &self.path, io::Error::other("a short write, drawn by the seed")));
        }
        let first = self.disk.effect_first();
        if first {
            self.file.write_at(offset, pieces).await?;
        }
        self.disk.takes(4..40).await;
        if !first {
            self.file.write_at(offset, pieces).await?;
        }
        Ok(())
    }

    async fn allocate(&self, len: u64) -> Result<(), Error> {
        self.disk.takes(5..100).await;
        self.file.allocate(len).await
    }

    async fn pave(&self, range: Range<u64>) -> Result<(), Error> {
        self.file.pave(range).await
    }

    async fn set_len(&self, len: u64) -> Result<(), Error> {
        self.disk.takes(5..50).await;
        self.file.set_len(len).await
    }

    async fn len(&self) -> Result<u64, Error> {
        self.file.len().await
    }

    async fn let_go(&self, range: Range<u64>) {
        self.file.let_go(range).await;
    }

    async fn sync_data(&self) -> Result<(), Error> {
        let (fails, lies) = {
            let mut faults = self.disk.faults.lock();
            (std::mem::take(&mut faults.fail_sync), faults.lying_sync)
        };
        let first = self.disk.effect_first();
        if !fails && !lies && first {
            self.file.sync_data().await?;
        }
        self.disk.sync_takes().await;
        if fails {
            self.disk.world.trace(self.disk.node, format_args!("disk failed to sync {}", self.path.display()));
            return Err(Error::disk("sync", &self.path, io::Error::other("a failed sync, drawn by the seed")));
        }
        if !lies && !first {
            self.file.sync_data().await?;
        }
        self.disk.world.trace(self.disk.node, format_args!("disk synced {}", self.path.display()));
        Ok(())
    }
}
