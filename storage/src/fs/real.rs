//! The operating system's files.

#![expect(clippy::disallowed_types, reason = "this is the door to the disk")]

use std::fs;
use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{Advice, FallocateFlags, SeekFrom};

use super::{DirLock, Disk, File};
use crate::Error;

/// Pieces that one call hands to the kernel: its own limit on Linux.
const PIECES_PER_CALL: usize = 1024;

/// A page of the page cache.
static PAGE: [u8; 4096] = [0; 4096];

/// The kernel keeps pages in pieces of up to this size, and lets only whole ones go: a piece that begins before a range
/// is left to the next range.
const LARGEST_PIECE: u64 = 2 << 20;

/// Name of the file whose lock stands for its directory.
const LOCK_NAME: &str = "lock";

/// The disk of this machine. Every call blocks the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

#[async_trait]
impl Disk for RealDisk {
    async fn create(&self, path: &Path) -> Result<Arc<dyn File>, Error> {
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(path);
        Ok(Arc::new(RealFile { file: file.map_err(|error| Error::disk("create", path, error))?, path: path.into() }))
    }

    async fn open(&self, path: &Path) -> Result<Arc<dyn File>, Error> {
        let file = fs::OpenOptions::new().read(true).write(true).open(path);
        Ok(Arc::new(RealFile { file: file.map_err(|error| Error::disk("open", path, error))?, path: path.into() }))
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        fs::rename(from, to).map_err(|error| Error::disk("rename", from, error))
    }

    async fn remove(&self, path: &Path) -> Result<(), Error> {
        fs::remove_file(path).map_err(|error| Error::disk("remove", path, error))
    }

    async fn list(&self, dir: &Path) -> Result<Vec<String>, Error> {
        let failed = |error| Error::disk("list", dir, error);
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_file() {
                // A name that is no text is none of ours.
                names.extend(entry.file_name().into_string());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    async fn create_dir_all(&self, dir: &Path) -> Result<(), Error> {
        let mut missing = Vec::new();
        let mut at = Some(dir);
        while let Some(parent) = at
            && !parent.as_os_str().is_empty()
            && !parent.is_dir()
        {
            missing.push(parent);
            at = parent.parent();
        }
        for created in missing.into_iter().rev() {
            match fs::create_dir(created) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::disk("create", created, error));
                }
                _ => {}
            }
            let parent = created.parent().filter(|parent| !parent.as_os_str().is_empty());
            sync_directory(parent.unwrap_or_else(|| Path::new(".")))?;
        }
        Ok(())
    }

    async fn sync_dir(&self, dir: &Path) -> Result<(), Error> {
        sync_directory(dir)
    }

    async fn free_space(&self, dir: &Path) -> Result<u64, Error> {
        let space = rustix::fs::statvfs(dir).map_err(|error| Error::disk("measure", dir, error.into()))?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    async fn total_space(&self, dir: &Path) -> Result<u64, Error> {
        let space = rustix::fs::statvfs(dir).map_err(|error| Error::disk("measure", dir, error.into()))?;
        Ok(space.f_blocks.saturating_mul(space.f_frsize))
    }

    async fn lock_dir(&self, dir: &Path) -> Result<Box<dyn DirLock>, Error> {
        let path = dir.join(LOCK_NAME);
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|error| Error::disk("open", &path, error))?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(RealLock { _file: file })),
            Err(fs::TryLockError::WouldBlock) => Err(Error::Locked { path: dir.to_owned() }),
            Err(fs::TryLockError::Error(error)) => Err(Error::disk("lock", &path, error)),
        }
    }
}

fn sync_directory(dir: &Path) -> Result<(), Error> {
    let opened = fs::File::open(dir).map_err(|error| Error::disk("open", dir, error))?;
    opened.sync_all().map_err(|error| Error::disk("sync", dir, error))
}

/// The kernel gives the lock back when the file is closed, also when the process is killed.
struct RealLock {
    _file: fs::File,
}

impl DirLock for RealLock {}

struct RealFile {
    file: fs::File,
    path: PathBuf,
}

impl RealFile {
    fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut buffer = Vec::with_capacity(len);
        while buffer.len() < len {
            let at = offset + buffer.len() as u64;
            match rustix::io::pread(&self.file, rustix::buffer::spare_capacity(&mut buffer), at) {
                Ok(0) => break,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // The allocator may have given more room than was asked for.
        buffer.truncate(len);
        Ok(Bytes::from(buffer))
    }

    fn write(&self, mut offset: u64, pieces: &[Bytes]) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut rest = slices.as_mut_slice();
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let count = rest.len().min(PIECES_PER_CALL);
            match rustix::io::pwritev(&self.file, &rest[..count], offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        loop {
            match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                // Some file systems cannot reserve: a longer, sparse file serves, and full disks show later.
                Err(rustix::io::Errno::OPNOTSUPP) => {
                    if self.file.metadata()?.len() < len {
                        self.file.set_len(len)?;
                    }
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[async_trait]
impl File for RealFile {
    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, Error> {
        self.read(offset, len).map_err(|error| Error::disk("read", &self.path, error))
    }

    async fn write_at(&self, offset: u64, pieces: &[Bytes]) -> Result<(), Error> {
        self.write(offset, pieces).map_err(|error| Error::disk("write", &self.path, error))
    }

    async fn allocate(&self, len: u64) -> Result<(), Error> {
        self.reserve(len).map_err(|error| Error::disk("allocate", &self.path, error))
    }

    async fn pave(&self, range: Range<u64>) -> Result<(), Error> {
        let mut at = range.start;
        while at < range.end {
            let length = range.end.min((at + 1).next_multiple_of(PAGE.len() as u64)) - at;
            let zeros = Bytes::from_static(&PAGE).slice(..usize::try_from(length).unwrap_or(0));
            // One call for each page: what one call writes becomes one large piece of the page cache, and a flush writes
            // all of a piece of which a byte has changed.
            self.write(at, &[zeros]).map_err(|error| Error::disk("write", &self.path, error))?;
            at += length;
        }
        Ok(())
    }

    async fn set_len(&self, len: u64) -> Result<(), Error> {
        self.file.set_len(len).map_err(|error| Error::disk("resize", &self.path, error))
    }

    async fn len(&self) -> Result<u64, Error> {
        let metadata = self.file.metadata().map_err(|error| Error::disk("measure", &self.path, error))?;
        Ok(metadata.len())
    }

    async fn next_data(&self, offset: u64) -> Result<u64, Error> {
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) => Ok(data),
            // Nothing follows, up to the end of the file.
            Err(rustix::io::Errno::NXIO) => self.len().await.map(|len| len.max(offset)),
            // Not every file system knows its holes.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(offset),
            Err(error) => Err(Error::disk("search", &self.path, error.into())),
        }
    }

    async fn let_go(&self, range: Range<u64>) {
        let from = range.start.saturating_sub(LARGEST_PIECE);
        let Some(length) = range.end.checked_sub(from).and_then(NonZeroU64::new) else { return };
        // Where the kernel has no ear for it, it does what it did before.
        rustix::fs::fadvise(&self.file, from, Some(length), Advice::DontNeed).ok();
    }

    async fn sync_data(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(|error| Error::disk("sync", &self.path, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_are_written_one_after_the_other_and_reads_end_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/file");
        RealDisk.create_dir_all(path.parent().unwrap()).await.unwrap();
        let file = RealDisk.create(&path).await.unwrap();
        assert!(RealDisk.create(&path).await.is_err(), "it exists");
        let pieces: Vec<Bytes> = (0..3000_u32).map(|n| n.to_le_bytes().to_vec().into()).collect();
        file.write_at(10, &pieces).await.unwrap();
        file.write_at(0, &[]).await.unwrap();
        assert_eq!(file.read_at(10 + 4 * 2999, 100).await.unwrap(), 2999_u32.to_le_bytes().to_vec());
        assert_eq!(file.read_at(0, 100_000).await.unwrap().len(), 12_010);
        assert!(file.read_at(50_000, 10).await.unwrap().is_empty());
        file.allocate(20_000).await.unwrap();
        assert_eq!(file.len().await.unwrap(), 20_000);
        file.set_len(11).await.unwrap();
        file.sync_data().await.unwrap();
        assert_eq!(RealDisk.open(&path).await.unwrap().len().await.unwrap(), 11);
    }

    #[tokio::test]
    async fn holes_are_skipped_and_data_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = RealDisk.create(&dir.path().join("file")).await.unwrap();
        file.allocate(8 << 20).await.unwrap();
        let place = 5 << 20;
        file.write_at(place, &[Bytes::from_static(b"here")]).await.unwrap();
        // Where the file system does not know, it says what it was asked.
        let (before, behind) = (file.next_data(1000).await.unwrap(), file.next_data(place + (1 << 20)).await.unwrap());
        assert!((1000..=place).contains(&before), "{before}");
        assert_eq!(file.next_data(place).await.unwrap(), place);
        assert!(behind == 8 << 20 || behind == place + (1 << 20), "{behind}");
        assert!(file.next_data(9 << 20).await.unwrap() >= 8 << 20);
    }

    #[tokio::test]
    async fn names_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let missing = RealDisk.open(&a).await.err().unwrap();
        assert!(missing.is_missing() && missing.to_string().starts_with("cannot open"), "{missing}");
        drop(RealDisk.create(&b).await.unwrap());
        drop(RealDisk.create(&a).await.unwrap());
        assert_eq!(RealDisk.list(dir.path()).await.unwrap(), ["a", "b"]);
        RealDisk.rename(&a, &b).await.unwrap();
        RealDisk.sync_dir(dir.path()).await.unwrap();
        assert_eq!(RealDisk.list(dir.path()).await.unwrap(), ["b"]);
        RealDisk.remove(&b).await.unwrap();
        assert!(RealDisk.list(dir.path()).await.unwrap().is_empty());
        let free = RealDisk.free_space(dir.path()).await.unwrap();
        assert!(free > 0 && RealDisk.total_space(dir.path()).await.unwrap() >= free);
    }

    #[tokio::test]
    async fn a_directory_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let lock = RealDisk.lock_dir(dir.path()).await.unwrap();
        let second = RealDisk.lock_dir(dir.path()).await.err().unwrap();
        assert!(matches!(second, Error::Locked { .. }), "{second}");
        drop(lock);
        RealDisk.lock_dir(dir.path()).await.unwrap();
    }
}
