//! Snapshot files: written beside the last one, made real by one rename, verified before they are used.
//!
//! The last two are kept: when the newest is damaged the one before it is offered, by name. A thread of its own
//! does what touches the disk, several things in turns, so any task may call and none waits behind a long
//! write. What is in the metadata and in the chunks is the caller's business.
//!
//! A snapshot may be larger than memory: it is written and read chunk by chunk, and nothing here holds all of one.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use kubemq_runtime::sync::{mpsc, oneshot};
use kubemq_runtime::{OnFailure, Runtime};

use self::files::{Files, Held, Reader, Writer};
use crate::Error;
use crate::fs::Disk;

mod files;

/// The largest chunk; one part of a snapshot that has to be in memory at once.
pub const MAX_CHUNK_BYTES: usize = 64 * 1024 * 1024;
/// The most metadata that a snapshot carries.
pub const MAX_META_BYTES: usize = 1024 * 1024;

/// Requests that may wait for the thread; callers wait when it is full.
const INBOX: usize = 64;

/// A complete snapshot file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Its place in time: a higher number is newer.
    pub number: u64,
    /// Its name inside the directory.
    pub name: String,
}

type Job = BoxFuture<'static, ()>;

/// The snapshot files of one directory; clones are the same.
#[derive(Clone)]
pub struct Snapshots {
    files: Files,
    thread: Thread,
}

impl fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshots").field("files", &self.files()).finish_non_exhaustive()
    }
}

impl Snapshots {
    /// Opens `dir`, which is created when it does not exist, removes what unfinished writes left there, and
    /// starts the thread. It ends when the last clone, reader and writer is gone.
    ///
    /// # Errors
    ///
    /// Any failure of the disk.
    pub async fn open(disk: Arc<dyn Disk>, dir: PathBuf, runtime: &Runtime) -> Result<Self, Error> {
        let thread = Thread::start(runtime);
        let files = thread.run(Files::open(disk, dir)).await??;
        Ok(Self { files, thread })
    }

    /// Opens `dir` without changing anything in it, for inspection. A directory that does not exist has no
    /// snapshots.
    ///
    /// # Errors
    ///
    /// Any failure of the disk.
    pub async fn open_read_only(disk: Arc<dyn Disk>, dir: PathBuf, runtime: &Runtime) -> Result<Self, Error> {
        let thread = Thread::start(runtime);
        let files = thread.run(Files::list(disk, dir)).await??;
        Ok(Self { files, thread })
    }

    /// Returns the complete files, oldest first, verified or not.
    #[must_use]
    pub fn files(&self) -> Vec<SnapshotFile> {
        self.files.files()
    }

    /// Returns the file of that name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<SnapshotFile> {
        self.files().into_iter().find(|file| file.name == name)
    }

    /// Begins a snapshot whose chunks come one by one. Dropped unfinished, it leaves a temporary file that
    /// the next opening removes; [`SnapshotWriter::abandon`] removes it at once.
    ///
    /// # Errors
    ///
    /// Any failure of the disk, and [`Error::Refused`] for metadata that is too large.
    pub async fn begin(&self, meta: Bytes) -> Result<SnapshotWriter, Error> {
        let files = self.files.clone();
        let writer = self.thread.run(async move { files.begin(meta).await }).await??;
        Ok(SnapshotWriter { writer: Some(writer), thread: self.thread.clone() })
    }

    /// Reads all of a snapshot and keeps nothing of it.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] or [`Error::UnknownVersion`] when it is not what was written, and failures of the disk.
    pub async fn verify(&self, file: &SnapshotFile) -> Result<(), Error> {
        let mut reader = self.hold(file).await?.reader().await?;
        while reader.next_chunk().await?.is_some() {}
        Ok(())
    }

    /// Opens a snapshot to be read now or later.
    ///
    /// # Errors
    ///
    /// Any failure of the disk. Whether the content is whole shows when it is read.
    pub async fn hold(&self, file: &SnapshotFile) -> Result<HeldSnapshot, Error> {
        let (files, file) = (self.files.clone(), file.clone());
        let held = self.thread.run(async move { files.hold(&file).await }).await??;
        Ok(HeldSnapshot { held, thread: self.thread.clone() })
    }
}

/// A snapshot file that is held open: it can be read, any number of times, also when newer ones have pushed it out of
/// the directory meanwhile. Its room on the disk is free again when the last clone and reader is gone.
#[derive(Clone)]
pub struct HeldSnapshot {
    held: Held,
    thread: Thread,
}

impl fmt::Debug for HeldSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HeldSnapshot").field(self.file()).finish()
    }
}

impl HeldSnapshot {
    /// Returns which file it is.
    #[must_use]
    pub fn file(&self) -> &SnapshotFile {
        self.held.snapshot()
    }

    /// Begins to read it, chunk by chunk, from the start. It is verified only when the end was reached; each chunk is
    /// before it is given.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] or [`Error::UnknownVersion`] when it does not begin as it was written, and failures of the
    /// disk.
    pub async fn reader(&self) -> Result<SnapshotReader, Error> {
        let held = self.held.clone();
        let reader = self.thread.run(async move { held.reader().await }).await??;
        Ok(SnapshotReader { meta: reader.meta().clone(), reader: Some(reader), thread: self.thread.clone() })
    }
}

/// A snapshot that is being written.
pub struct SnapshotWriter {
    /// Nothing only while a call is under way, and after one was cancelled or failed.
    writer: Option<Writer>,
    thread: Thread,
}

impl SnapshotWriter {
    /// Adds a chunk. Not cancel safe: the snapshot cannot be finished after a cancelled call.
    ///
    /// # Errors
    ///
    /// Any failure of the disk, after which the snapshot cannot be finished, and [`Error::Refused`] for a chunk
    /// that is too large.
    pub async fn push(&mut self, chunk: Bytes) -> Result<(), Error> {
        let mut writer = self.writer.take().ok_or(Error::Closed)?;
        let push = async move {
            match writer.push(chunk).await {
                Ok(()) => Ok(writer),
                Err(error) => {
                    writer.abandon().await;
                    Err(error)
                }
            }
        };
        self.writer = Some(self.thread.run(push).await??);
        Ok(())
    }

    /// Completes the snapshot: it exists, durably, when this returns.
    ///
    /// # Errors
    ///
    /// Any failure of the disk: the snapshot may exist or not after the next opening, but never in part.
    pub async fn finish(mut self) -> Result<SnapshotFile, Error> {
        let writer = self.writer.take().ok_or(Error::Closed)?;
        self.thread.run(writer.finish()).await?
    }

    /// Removes what was written.
    pub async fn abandon(mut self) {
        if let Some(writer) = self.writer.take() {
            // It is removed at the next opening if it cannot be removed now.
            self.thread.run(writer.abandon()).await.ok();
        }
    }
}

/// A snapshot that is being read.
pub struct SnapshotReader {
    meta: Bytes,
    /// Nothing only while a call is under way, and after one was cancelled or failed.
    reader: Option<Reader>,
    thread: Thread,
}

impl SnapshotReader {
    /// Returns what the caller gave with the snapshot.
    #[must_use]
    pub const fn meta(&self) -> &Bytes {
        &self.meta
    }

    /// Returns the next chunk, or nothing when the end was reached and everything verified. Not cancel safe.
    ///
    /// # Errors
    ///
    /// As [`Snapshots::verify`]; nothing more can be read afterwards.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let mut reader = self.reader.take().ok_or(Error::Closed)?;
        let (reader, chunk) = self
            .thread
            .run(async move {
                let chunk = reader.next_chunk().await;
                (reader, chunk)
            })
            .await?;
        let chunk = chunk?;
        self.reader = Some(reader);
        Ok(chunk)
    }
}

/// The thread that may touch the disk.
#[derive(Clone)]
struct Thread(mpsc::Sender<Job>);

impl Thread {
    fn start(runtime: &Runtime) -> Self {
        let (sender, jobs) = mpsc::channel(INBOX);
        drop(runtime.tasks.dedicated("snapshots", OnFailure::StopNode, work(jobs)));
        Self(sender)
    }

    /// Runs `future` on the thread, to its end even when the caller has gone.
    async fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> Result<T, Error> {
        let (sender, result) = oneshot::channel();
        let job = Box::pin(async move {
            // The caller may have gone.
            sender.send(future.await).ok();
        });
        self.0.send(job).await.map_err(|_| Error::Closed)?;
        result.await.map_err(|_| Error::Closed)
    }
}

/// Runs jobs in turns until nobody can send one any more.
async fn work(mut jobs: mpsc::Receiver<Job>) {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            job = jobs.recv(), if running.len() < INBOX => match job {
                Some(job) => running.push(job),
                None => break,
            },
            Some(()) = running.next() => {}
        }
    }
    while running.next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{MemoryDisk, RealDisk};

    fn chunks(number: u8) -> Vec<Bytes> {
        (0..100).map(|n| Bytes::from(vec![number ^ n; 40_000])).collect()
    }

    async fn write(
        snapshots: &Snapshots,
        meta: &'static [u8],
        chunks: impl IntoIterator<Item = Bytes>,
    ) -> SnapshotFile {
        let mut writer = snapshots.begin(Bytes::from_static(meta)).await.unwrap();
        for chunk in chunks {
            writer.push(chunk).await.unwrap();
        }
        writer.finish().await.unwrap()
    }

    async fn read(snapshots: &Snapshots, file: &SnapshotFile) -> (Bytes, Vec<Bytes>) {
        let mut reader = snapshots.hold(file).await.unwrap().reader().await.unwrap();
        let mut chunks = Vec::new();
        while let Some(chunk) = reader.next_chunk().await.unwrap() {
            chunks.push(chunk);
        }
        (reader.meta().clone(), chunks)
    }

    async fn writes_and_reads(disk: Arc<dyn Disk>, dir: PathBuf) {
        let runtime = Runtime::real();
        let snapshots = Snapshots::open(Arc::clone(&disk), dir.clone(), &runtime).await.unwrap();
        assert!(snapshots.files().is_empty());
        let first = write(&snapshots, b"1", chunks(1)).await;
        let mut reader = snapshots.hold(&first).await.unwrap().reader().await.unwrap();

        let mut writer = snapshots.begin(Bytes::from_static(b"2")).await.unwrap();
        for (mine, other) in chunks(2).into_iter().zip(chunks(1)) {
            writer.push(mine).await.unwrap();
            assert_eq!(reader.next_chunk().await.unwrap(), Some(other));
        }
        assert_eq!(reader.next_chunk().await.unwrap(), None);
        assert_eq!(snapshots.find(&first.name), Some(first.clone()));
        let second = writer.finish().await.unwrap();
        let unfinished = snapshots.begin(Bytes::new()).await.unwrap();
        unfinished.abandon().await;

        assert_eq!(snapshots.files(), [first.clone(), second.clone()]);
        assert_eq!(read(&snapshots, &second).await, (Bytes::from_static(b"2"), chunks(2)));
        assert_eq!(read(&snapshots, &first).await.1, chunks(1));
        drop(snapshots);
        let again = Snapshots::open_read_only(disk, dir, &runtime).await.unwrap();
        assert_eq!(again.files(), [first, second.clone()]);
        assert_eq!(read(&again, &second).await.1, chunks(2));
        again.verify(&second).await.unwrap();
    }

    #[tokio::test]
    async fn works_on_a_memory_disk() {
        writes_and_reads(Arc::new(MemoryDisk::new()), PathBuf::from("/data/snapshots")).await;
    }

    #[tokio::test]
    async fn works_on_a_real_disk() {
        let dir = tempfile::tempdir().unwrap();
        writes_and_reads(Arc::new(RealDisk), dir.path().join("snapshots")).await;
    }

    #[tokio::test]
    async fn what_is_held_can_be_read_after_newer_ones_have_pushed_it_out() {
        let disk = Arc::new(MemoryDisk::new());
        let dir = PathBuf::from("/data");
        let snapshots = Snapshots::open(Arc::clone(&disk) as _, dir.clone(), &Runtime::real()).await.unwrap();
        let held = snapshots.hold(&write(&snapshots, b"1", chunks(1)).await).await.unwrap();
        for _ in 0..3 {
            write(&snapshots, b"2", chunks(2)).await;
        }
        assert!(snapshots.find(&held.file().name).is_none());
        assert_eq!(disk.list(&dir).await.unwrap().len(), 2);
        for _ in 0..2 {
            let mut reader = held.reader().await.unwrap();
            assert_eq!(reader.meta(), &Bytes::from_static(b"1"));
            for chunk in chunks(1) {
                assert_eq!(reader.next_chunk().await.unwrap(), Some(chunk));
            }
            assert_eq!(reader.next_chunk().await.unwrap(), None);
        }
    }
}
