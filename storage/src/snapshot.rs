//! Snapshot files: written beside the last one, made real by one rename, verified before they are used.
//!
//! The last two are kept: when the newest is damaged the one before it is offered, by name. A thread of its own
//! does what touches the disk, several things in turns, so any task may call and none waits behind a long
//! write. What is in the metadata and in the chunks is the caller's business.

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

use self::files::{Files, Reader, Writer};
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

/// A verified snapshot in memory.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Where it came from.
    pub file: SnapshotFile,
    /// What the caller gave with it.
    pub meta: Bytes,
    /// The content.
    pub chunks: Vec<Bytes>,
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

    /// Writes a snapshot. It exists, durably, when this returns; before that there is no trace of it that
    /// anyone would read. `chunks` is asked for the next chunk on the snapshot thread.
    ///
    /// # Errors
    ///
    /// Any failure of the disk, and [`Error::Refused`] for metadata or a chunk that is too large.
    pub async fn write(
        &self,
        meta: Bytes,
        chunks: impl Iterator<Item = Bytes> + Send + 'static,
    ) -> Result<SnapshotFile, Error> {
        let files = self.files.clone();
        self.thread.run(async move { files.write(meta, chunks).await }).await?
    }

    /// Begins a snapshot whose chunks come one by one. Dropped unfinished, it leaves a temporary file that
    /// the next opening removes; [`SnapshotWriter::abandon`] removes it at once.
    ///
    /// # Errors
    ///
    /// As [`Snapshots::write`].
    pub async fn begin(&self, meta: Bytes) -> Result<SnapshotWriter, Error> {
        let files = self.files.clone();
        let writer = self.thread.run(async move { files.begin(meta).await }).await??;
        Ok(SnapshotWriter { writer: Some(writer), thread: self.thread.clone() })
    }

    /// Reads a snapshot and verifies all of it.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] or [`Error::UnknownVersion`] when it is not what was written, and failures of the disk.
    pub async fn read(&self, file: &SnapshotFile) -> Result<Loaded, Error> {
        let (files, file) = (self.files.clone(), file.clone());
        self.thread.run(async move { files.read(&file).await }).await?
    }

    /// Begins to read a snapshot chunk by chunk. It stays readable to the end, even when newer ones are written
    /// meanwhile; it is verified only when the end was reached.
    ///
    /// # Errors
    ///
    /// As [`Snapshots::read`].
    pub async fn reader(&self, file: &SnapshotFile) -> Result<SnapshotReader, Error> {
        let (files, file) = (self.files.clone(), file.clone());
        let reader = self.thread.run(async move { files.reader(&file).await }).await??;
        Ok(SnapshotReader { meta: reader.meta().clone(), reader: Some(reader), thread: self.thread.clone() })
    }

    /// Reads the newest snapshot that verifies, or nothing when there never was one. A damaged one is named in
    /// the log and passed over.
    ///
    /// # Errors
    ///
    /// The first failure, when there are snapshots and none of them can be read: starting without one would
    /// forget what it holds.
    pub async fn latest_valid(&self) -> Result<Option<Loaded>, Error> {
        let files = self.files.clone();
        self.thread.run(async move { files.latest_valid().await }).await?
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
    /// As [`Snapshots::read`].
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

    async fn writes_and_reads(disk: Arc<dyn Disk>, dir: PathBuf) {
        let runtime = Runtime::real();
        let snapshots = Snapshots::open(Arc::clone(&disk), dir.clone(), &runtime).await.unwrap();
        assert!(snapshots.latest_valid().await.unwrap().is_none());
        let first = snapshots.write(Bytes::from_static(b"1"), chunks(1).into_iter()).await.unwrap();
        let mut reader = snapshots.reader(&first).await.unwrap();

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

        let loaded = snapshots.latest_valid().await.unwrap().unwrap();
        assert_eq!((loaded.file, loaded.meta, loaded.chunks), (second, Bytes::from_static(b"2"), chunks(2)));
        assert_eq!(snapshots.read(&first).await.unwrap().chunks, chunks(1));
        drop(snapshots);
        let again = Snapshots::open_read_only(disk, dir, &runtime).await.unwrap();
        assert_eq!(again.files().len(), 2);
        assert_eq!(again.latest_valid().await.unwrap().unwrap().chunks, chunks(2));
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
    async fn a_read_is_served_while_a_long_write_goes_on() {
        let runtime = Runtime::real();
        let disk = Arc::new(MemoryDisk::new());
        let snapshots = Snapshots::open(disk, PathBuf::from("/data"), &runtime).await.unwrap();
        let first = snapshots.write(Bytes::from_static(b"1"), chunks(1).into_iter()).await.unwrap();
        // A write that ends only when it is told to: endless chunks until the flag is up.
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let endless = {
            let stop = Arc::clone(&stop);
            std::iter::repeat(Bytes::from(vec![7; 600_000]))
                .take_while(move |_| !stop.load(std::sync::atomic::Ordering::Relaxed))
        };
        let writing = snapshots.clone();
        let write = runtime.tasks.spawn("write", OnFailure::Log, async move {
            writing.write(Bytes::from_static(b"2"), endless).await.unwrap()
        });
        assert_eq!(snapshots.read(&first).await.unwrap().chunks, chunks(1));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let second = write.await.unwrap();
        assert_eq!(snapshots.latest_valid().await.unwrap().unwrap().file, second);
    }
}
