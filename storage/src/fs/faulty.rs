//! A disk that breaks what the caller tells it to break.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use kubemq_runtime::Clock;

use super::{DirLock, Disk, File};
use crate::Error;

/// Which call is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// [`Disk::create`].
    Create,
    /// [`Disk::open`].
    Open,
    /// [`Disk::rename`].
    Rename,
    /// [`Disk::remove`].
    Remove,
    /// [`Disk::list`].
    List,
    /// [`Disk::create_dir_all`].
    CreateDir,
    /// [`Disk::sync_dir`].
    SyncDir,
    /// [`Disk::free_space`] and [`Disk::total_space`].
    FreeSpace,
    /// [`Disk::lock_dir`].
    LockDir,
    /// [`File::read_at`].
    Read,
    /// [`File::write_at`] and [`File::pave`].
    Write,
    /// [`File::allocate`].
    Allocate,
    /// [`File::set_len`].
    SetLen,
    /// [`File::len`].
    Len,
    /// [`File::sync_data`].
    Sync,
}

/// A call that is about to be made.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Counts the calls of this disk, from 0.
    pub number: u64,
    /// What is called.
    pub operation: Operation,
    /// The file or directory.
    pub path: &'a Path,
}

/// What happens to a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It works.
    None,
    /// It does nothing and fails.
    Fail(io::ErrorKind),
    /// A write writes its first half and fails; a read returns half of the bytes. Other calls work.
    Short,
    /// It works, later.
    Late(Duration),
    /// A bit of what is read or written is flipped: this one, counted modulo the length. Other calls work.
    FlipBit(u64),
    /// A sync of a file or a directory does nothing and claims success. Other calls work.
    Lie,
}

type Decide = Arc<dyn Fn(&Call<'_>) -> Fault + Send + Sync>;

/// A disk over another one that asks for each call what is to happen to it.
#[derive(Clone)]
pub struct FaultyDisk {
    inner: Arc<dyn Disk>,
    faults: Faults,
}

#[derive(Clone)]
struct Faults {
    clock: Clock,
    calls: Arc<AtomicU64>,
    decide: Decide,
}

/// What is left to do for the one call that a fault touches.
enum Left {
    Work,
    Half,
    Flip(u64),
    Nothing,
}

impl Faults {
    async fn meet(&self, operation: Operation, path: &Path) -> Result<Left, Error> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        match (self.decide)(&Call { number, operation, path }) {
            Fault::None => Ok(Left::Work),
            Fault::Fail(kind) => Err(Error::disk("reach", path, io::Error::new(kind, "an injected fault"))),
            Fault::Short => Ok(Left::Half),
            Fault::FlipBit(bit) => Ok(Left::Flip(bit)),
            Fault::Lie => Ok(Left::Nothing),
            Fault::Late(wait) => {
                self.clock.sleep(wait).await;
                Ok(Left::Work)
            }
        }
    }
}

impl FaultyDisk {
    /// Returns a disk over `inner` that asks `decide` for each call; `clock` times what is late.
    pub fn new(
        inner: Arc<dyn Disk>,
        clock: Clock,
        decide: impl Fn(&Call<'_>) -> Fault + Send + Sync + 'static,
    ) -> Self {
        let faults = Faults { clock, calls: Arc::new(AtomicU64::new(0)), decide: Arc::new(decide) };
        Self { inner, faults }
    }

    /// Returns how many calls were made.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.faults.calls.load(Ordering::Relaxed)
    }

    fn file(&self, inner: Arc<dyn File>, path: &Path) -> Arc<dyn File> {
        Arc::new(FaultyFile { inner, faults: self.faults.clone(), path: path.to_owned() })
    }
}

#[async_trait]
impl Disk for FaultyDisk {
    async fn create(&self, path: &Path) -> Result<Arc<dyn File>, Error> {
        self.faults.meet(Operation::Create, path).await?;
        Ok(self.file(self.inner.create(path).await?, path))
    }

    async fn open(&self, path: &Path) -> Result<Arc<dyn File>, Error> {
        self.faults.meet(Operation::Open, path).await?;
        Ok(self.file(self.inner.open(path).await?, path))
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        self.faults.meet(Operation::Rename, from).await?;
        self.inner.rename(from, to).await
    }

    async fn remove(&self, path: &Path) -> Result<(), Error> {
        self.faults.meet(Operation::Remove, path).await?;
        self.inner.remove(path).await
    }

    async fn list(&self, dir: &Path) -> Result<Vec<String>, Error> {
        self.faults.meet(Operation::List, dir).await?;
        self.inner.list(dir).await
    }

    async fn create_dir_all(&self, dir: &Path) -> Result<(), Error> {
        self.faults.meet(Operation::CreateDir, dir).await?;
        self.inner.create_dir_all(dir).await
    }

    async fn sync_dir(&self, dir: &Path) -> Result<(), Error> {
        match self.faults.meet(Operation::SyncDir, dir).await? {
            Left::Nothing => Ok(()),
            _ => self.inner.sync_dir(dir).await,
        }
    }

    async fn free_space(&self, dir: &Path) -> Result<u64, Error> {
        self.faults.meet(Operation::FreeSpace, dir).await?;
        self.inner.free_space(dir).await
    }

    async fn total_space(&self, dir: &Path) -> Result<u64, Error> {
        self.faults.meet(Operation::FreeSpace, dir).await?;
        self.inner.total_space(dir).await
    }

    async fn lock_dir(&self, dir: &Path) -> Result<Box<dyn DirLock>, Error> {
        self.faults.meet(Operation::LockDir, dir).await?;
        self.inner.lock_dir(dir).await
    }
}

struct FaultyFile {
    inner: Arc<dyn File>,
    faults: Faults,
    path: PathBuf,
}

fn flip(bytes: &Bytes, bit: u64) -> Bytes {
    let mut flipped = bytes.to_vec();
    let bits = (flipped.len() as u64 * 8).max(1);
    if let Some(byte) = flipped.get_mut(usize::try_from(bit % bits / 8).unwrap_or(usize::MAX)) {
        *byte ^= 1 << (bit % 8);
    }
    flipped.into()
}

#[async_trait]
impl File for FaultyFile {
    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, Error> {
        let left = self.faults.meet(Operation::Read, &self.path).await?;
        let bytes = self.inner.read_at(offset, len).await?;
        Ok(match left {
            Left::Half => bytes.slice(..bytes.len() / 2),
            Left::Flip(bit) => flip(&bytes, bit),
            Left::Work | Left::Nothing => bytes,
        })
    }

    async fn write_at(&self, offset: u64, pieces: &[Bytes]) -> Result<(), Error> {
        match self.faults.meet(Operation::Write, &self.path).await? {
            Left::Work | Left::Nothing => self.inner.write_at(offset, pieces).await,
            Left::Flip(bit) => self.inner.write_at(offset, &[flip(&pieces.concat().into(), bit)]).await,
            Left::Half => {
                let all = Bytes::from(pieces.concat());
                self.inner.write_at(offset, &[all.slice(..all.len() / 2)]).await?;
                Err(Error::disk("write", &self.path, io::ErrorKind::WriteZero.into()))
            }
        }
    }

    async fn allocate(&self, len: u64) -> Result<(), Error> {
        self.faults.meet(Operation::Allocate, &self.path).await?;
        self.inner.allocate(len).await
    }

    async fn pave(&self, range: Range<u64>) -> Result<(), Error> {
        self.faults.meet(Operation::Write, &self.path).await?;
        self.inner.pave(range).await
    }

    async fn set_len(&self, len: u64) -> Result<(), Error> {
        self.faults.meet(Operation::SetLen, &self.path).await?;
        self.inner.set_len(len).await
    }

    async fn len(&self) -> Result<u64, Error> {
        self.faults.meet(Operation::Len, &self.path).await?;
        self.inner.len().await
    }

    async fn let_go(&self, range: Range<u64>) {
        self.inner.let_go(range).await;
    }

    async fn sync_data(&self) -> Result<(), Error> {
        match self.faults.meet(Operation::Sync, &self.path).await? {
            Left::Nothing => Ok(()),
            _ => self.inner.sync_data().await,
        }
    }
}
