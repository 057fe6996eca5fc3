//! The only door to the disk.
//!
//! The calls are async so that the simulation can make them slow, but real ones block the thread and
//! return ready: only futures that run on a thread of their own (`Tasks::dedicated`) may make them.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::Error;

pub mod faulty;
pub mod memory;
mod pages;
pub mod real;

pub use faulty::FaultyDisk;
pub use memory::MemoryDisk;
pub use real::RealDisk;

/// Files and directories.
#[async_trait]
pub trait Disk: Send + Sync + 'static {
    /// Creates a file that must not exist. Its name is durable after [`Disk::sync_dir`].
    async fn create(&self, path: &Path) -> Result<Arc<dyn File>, Error>;
    /// Opens an existing file for reading and writing.
    async fn open(&self, path: &Path) -> Result<Arc<dyn File>, Error>;
    /// Renames a file, replacing what has the new name. Durable after [`Disk::sync_dir`].
    async fn rename(&self, from: &Path, to: &Path) -> Result<(), Error>;
    /// Removes a file; open handles keep reading it. Durable after [`Disk::sync_dir`].
    async fn remove(&self, path: &Path) -> Result<(), Error>;
    /// Returns the names of the files in `dir`, sorted.
    async fn list(&self, dir: &Path) -> Result<Vec<String>, Error>;
    /// Creates `dir` and its parents, durably. Does nothing when it exists.
    async fn create_dir_all(&self, dir: &Path) -> Result<(), Error>;
    /// Makes the creations, renames and removals in `dir` durable.
    async fn sync_dir(&self, dir: &Path) -> Result<(), Error>;
    /// Returns the bytes that can still be written below `dir`.
    async fn free_space(&self, dir: &Path) -> Result<u64, Error>;
    /// Returns the bytes of the whole disk below `dir`, written or not.
    async fn total_space(&self, dir: &Path) -> Result<u64, Error>;
    /// Takes `dir` for this process until the returned lock is dropped.
    ///
    /// Fails with [`Error::Locked`] when another process has it.
    async fn lock_dir(&self, dir: &Path) -> Result<Box<dyn DirLock>, Error>;
}

/// An open file.
#[expect(clippy::len_without_is_empty, reason = "a file's length is asked for, its emptiness never")]
#[async_trait]
pub trait File: Send + Sync + 'static {
    /// Reads `len` bytes at `offset`: fewer only where the file ends.
    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, Error>;
    /// Writes all `pieces` one after the other, beginning at `offset`.
    async fn write_at(&self, offset: u64, pieces: &[Bytes]) -> Result<(), Error>;
    /// Reserves room for the first `len` bytes; what was not written reads as zeros. The file is at least
    /// that long afterwards.
    async fn allocate(&self, len: u64) -> Result<(), Error>;
    /// Writes zeros to `range`, which was reserved and never written. What is written there later then changes nothing but
    /// bytes, and is flushed sooner.
    async fn pave(&self, range: Range<u64>) -> Result<(), Error>;
    /// Makes the file `len` bytes long.
    async fn set_len(&self, len: u64) -> Result<(), Error>;
    /// Returns the length of the file.
    async fn len(&self) -> Result<u64, Error>;
    /// Returns the first offset from `offset` on at which there may be anything but zeros; the file's length or more
    /// when there is nothing. Who does not know says `offset`.
    async fn next_data(&self, offset: u64) -> Result<u64, Error> {
        Ok(offset)
    }
    /// Says that what was flushed of `range` will hardly be read soon: the system need not keep it in memory. A wish:
    /// nothing that the file holds changes, and nobody is told when it cannot be fulfilled.
    async fn let_go(&self, range: Range<u64>);
    /// Makes the content and the length durable (fdatasync).
    async fn sync_data(&self) -> Result<(), Error>;
}

/// A taken directory: dropping it gives the directory back.
pub trait DirLock: Send + Sync + 'static {}
