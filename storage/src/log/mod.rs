//! The log: the one place where durability happens.
//!
//! An append-only sequence of entries and hard state in segment files. One task, the writer, takes everything
//! that waits in the inbox, writes it as one group and syncs once; so a vote, an append, a truncation and a
//! purge have one order, and nothing is answered before it is on the disk, unless it is told to flush now and then
//! ([`Flush`]). Bodies are written once and read
//! from where they lie; the newest stay in memory. Nothing is ever cut from a file but what a crash tore.
//!
//! Start reading in `frame.rs`, then `writer.rs`, then `recovery.rs`. The log does not decide what
//! may be forgotten: its owner says what is applied, purged, and which segments go.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use kubemq_runtime::sync::{oneshot, watch};
use kubemq_runtime::{OnFailure, Runtime};
use parking_lot::Mutex;

mod behind;
pub mod entry;
mod frame;
mod group;
mod hard_state;
mod keeper;
mod page_cache;
mod position;
mod queue;
mod reader;
mod recovery;
mod salvage;
mod scan;
mod scrub;
mod segment;
mod shared;
mod stats;
mod stretch;
mod survey;
mod tail;
#[cfg(test)]
mod tests;
mod types;
mod writer;

pub use salvage::{Finding, Report, Salvage, check};
pub use scrub::{ScrubDamage, ScrubPlace, Scrubbed};
pub use stats::{CLASSES, Stats};
pub use stretch::{Moment, PartsRead};
pub use types::{Body, Flush, Options, PartRead, SegmentInfo, State};

use self::entry::{Entry, LogId, Vote};
use self::frame::{Frame, Kind};
use self::keeper::{Keeper, KeeperJob};
use self::page_cache::PageCache;
use self::queue::{Command, Inbox, Queue, TooLate};
use self::reader::ReadJob;
use self::shared::Shared;
use self::stats::Counts;
use self::writer::Writer;
use crate::Error;
use crate::fs::Disk;

/// Told once an append is on the disk, or why it is not. Called by the writer: it must be quick.
pub type Done = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// How many tasks read files.
const READERS: usize = 2;

/// A handle of a log. Clones are the same log; when the last one is dropped, its tasks end.
#[derive(Clone)]
pub struct Log(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.inbox.abandon();
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Log").field(&self.0.shared.dir).finish()
    }
}

impl Log {
    /// Opens the log in `dir`, or makes an empty one there, and starts its tasks.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] when flushed bytes have changed or are missing, [`Error::UnknownVersion`] when a
    /// newer program wrote the files, and what the disk says.
    pub async fn open(disk: Arc<dyn Disk>, dir: PathBuf, options: Options, runtime: &Runtime) -> Result<Self, Error> {
        let (opened, result) = oneshot::channel();
        let runtime_of_tasks = runtime.clone();
        // Recovery reads files, which only a thread of its own may do: the writer's.
        let writer = async move {
            match start(disk, dir, options, &runtime_of_tasks).await {
                Ok((log, writer)) => {
                    // The caller may have stopped waiting: then the log is dropped and the writer ends.
                    drop(opened.send(Ok(log)));
                    writer.run().await;
                }
                Err(error) => drop(opened.send(Err(error))),
            }
        };
        drop(runtime.tasks.dedicated("log-writer", OnFailure::StopNode, writer));
        result.await.unwrap_or(Err(Error::Closed))
    }

    /// Returns what the log holds.
    #[must_use]
    pub fn state(&self) -> State {
        let failed = self.0.shared.failure.borrow().is_some();
        let index = self.0.shared.index.lock();
        let state = &index.state;
        State {
            node_id: state.node_id,
            vote: state.vote,
            last: state.last,
            purged: state.purged,
            committed: state.committed,
            snapshot: state.snapshot.clone(),
            synced_index: index.synced_before.saturating_sub(1),
            failed,
        }
    }

    /// Adds `entries`, which must follow the last one. They are readable when this returns; `done` is called
    /// when they are on the disk, in the order of the calls. Never blocks: the caller bounds what it adds
    /// before `done`.
    pub fn append(&self, entries: Vec<Entry>, done: Done) {
        let mut index = self.0.shared.index.lock();
        let mut next = index.next();
        let in_order = entries.iter().all(|entry| {
            let fits = next.is_none_or(|next| next == entry.id.index);
            next = Some(entry.id.index + 1);
            fits
        });
        if !in_order {
            drop(index);
            return done(Err(Error::Refused { what: "the entries do not follow the last one" }));
        }
        for entry in &entries {
            index.state.last = Some(entry.id);
            index.tail.push(entry.clone());
        }
        let epoch = index.epoch;
        // Under the lock, so that the inbox has the order in which the entries became readable.
        let pushed = self.0.shared.inbox.push(Command::Append { entries, epoch, done });
        drop(index);
        after_push(pushed);
    }

    /// Keeps the node id that belongs to this directory; returns when it is on the disk.
    ///
    /// # Errors
    ///
    /// What the disk says, also when it failed before.
    pub async fn save_node_id(&self, id: u64) -> Result<(), Error> {
        self.command(Frame::node_id(id)).await
    }

    /// Keeps a vote; returns when it is on the disk.
    ///
    /// # Errors
    ///
    /// As [`Log::save_node_id`].
    pub async fn save_vote(&self, vote: Vote) -> Result<(), Error> {
        self.command(Frame::vote(vote)).await
    }

    /// Notes how far entries are committed. It rides on the next group and is not synced by itself.
    pub fn save_committed(&self, id: LogId) {
        self.0.shared.inbox.set_committed(id);
    }

    /// Keeps the name of the newest snapshot; returns when it is on the disk.
    ///
    /// # Errors
    ///
    /// As [`Log::save_node_id`].
    pub async fn save_snapshot_pointer(&self, id: LogId, name: &str) -> Result<(), Error> {
        self.command(Frame::new(Kind::Snapshot, id, Bytes::copy_from_slice(name.as_bytes()))).await
    }

    /// Drops the entries after `last`, or all. A frame says so; no file becomes shorter.
    ///
    /// # Errors
    ///
    /// As [`Log::save_node_id`].
    pub async fn truncate_after(&self, last: Option<LogId>) -> Result<(), Error> {
        let (done, result) = callback();
        let pushed = {
            let mut index = self.0.shared.index.lock();
            let end = index.state.last.map(|end| end.index);
            if last.is_some_and(|last| end.is_none_or(|end| last.index >= end)) {
                // There is nothing after it.
                return Ok(());
            }
            let purged = index.state.purged;
            index.truncate_from(last.map_or(0, |last| last.index + 1));
            let kept = last.filter(|last| purged.is_none_or(|purged| purged.index < last.index));
            index.state.last = kept.or(purged);
            let (frame, epoch) = (Frame::truncate(last), Some(index.epoch));
            self.0.shared.inbox.push(Command::Frame { frame, epoch, done })
        };
        after_push(pushed);
        result.await.unwrap_or(Err(Error::Closed))
    }

    /// Forgets the entries up to `upto`. Their bodies stay readable by [`Log::read_part`] until their segment
    /// is removed.
    ///
    /// # Errors
    ///
    /// As [`Log::save_node_id`].
    pub async fn purge(&self, upto: LogId) -> Result<(), Error> {
        let (done, result) = callback();
        let pushed = {
            let mut index = self.0.shared.index.lock();
            if index.state.purged.is_some_and(|purged| purged.index >= upto.index) {
                return Ok(());
            }
            index.state.purged = Some(upto);
            if index.state.last.is_none_or(|last| last.index < upto.index) {
                // A snapshot came from elsewhere: what is here does not lead up to it.
                index.state.last = Some(upto);
                index.epoch += 1;
                index.generation += 1;
                index.tail.clear();
            }
            let frame = Frame::new(Kind::Purge, upto, Bytes::new());
            let epoch = Some(index.epoch);
            self.0.shared.inbox.push(Command::Frame { frame, epoch, done })
        };
        after_push(pushed);
        result.await.unwrap_or(Err(Error::Closed))
    }

    /// Returns the entries from `from` up to `to`, exclusively: all of them, or fewer when they have more than
    /// `max_bytes` bytes, but at least one.
    ///
    /// # Errors
    ///
    /// [`Error::Purged`] below the purge point, [`Error::NotFound`] behind the last entry, [`Error::Damaged`]
    /// when an entry is not what was written.
    pub async fn entries(&self, from: u64, to: u64, max_bytes: u64) -> Result<Vec<Entry>, Error> {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let (mut next, mut to) = (from, to);
        while next < to && (entries.is_empty() || bytes < max_bytes) {
            let chunk = {
                let index = self.0.shared.index.lock();
                if let Some(purged) = index.state.purged.filter(|purged| purged.index >= next) {
                    return Err(Error::Purged { index: purged.index.min(next) });
                }
                to = to.min(index.next().unwrap_or(0));
                if next >= to {
                    return if entries.is_empty() {
                        Err(Error::NotFound { entry: next, part: 0 })
                    } else {
                        Ok(entries)
                    };
                }
                while next < to
                    && (entries.is_empty() || bytes < max_bytes)
                    && let Some(entry) = index.tail.get(next)
                {
                    bytes += entry.parts.as_bytes().len() as u64;
                    entries.push(entry.clone());
                    next += 1;
                }
                if next >= to || index.tail.get(next.saturating_sub(1)).is_some() {
                    continue;
                }
                index.find_chunk(next)
            };
            let chunk = match chunk {
                Some(chunk) => chunk,
                None => self.read(|reply| ReadJob::Entries { from: next, reply }).await?,
            };
            while next < to
                && (entries.is_empty() || bytes < max_bytes)
                && let Some(entry) = chunk.entry(next)
            {
                let entry = entry?;
                bytes += entry.parts.as_bytes().len() as u64;
                entries.push(entry);
                next += 1;
            }
        }
        Ok(entries)
    }

    /// Returns a part of an entry when it is in memory.
    #[must_use]
    pub fn cached_part(&self, entry: u64, part: u16) -> Option<PartRead> {
        let chunk = {
            let index = self.0.shared.index.lock();
            if index.find_body(entry, part).is_some() {
                return None;
            }
            if let Some(entry) = index.tail.get(entry) {
                let (time, bytes, whole) = (entry.time, entry.parts.get(part)?, entry.parts.as_bytes().len());
                drop(index);
                return Some(PartRead { time, bytes: reader::apart(bytes, whole as u64) });
            }
            index.find_chunk(entry)?
        };
        chunk.part(entry, part)?.ok()
    }

    /// Returns a part of an entry from memory or from a file, also below the purge point. A part that a
    /// snapshot brought goes before what the log holds at that index.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when it is not here, [`Error::Damaged`] when it is not what was written.
    pub async fn read_part(&self, entry: u64, part: u16) -> Result<PartRead, Error> {
        if let Some(read) = self.cached_part(entry, part) {
            return Ok(read);
        }
        if self.0.shared.index.lock().find_body(entry, part).is_some() {
            return self.read(|reply| ReadJob::Body { entry, part, reply }).await;
        }
        let chunk = self.read(|reply| ReadJob::Entries { from: entry, reply }).await.map_err(|error| match error {
            Error::NotFound { entry, .. } => Error::NotFound { entry, part },
            error => error,
        })?;
        chunk.part(entry, part).unwrap_or(Err(Error::NotFound { entry, part }))
    }

    /// Returns whether the part is stored here, as far as that is known without reading: an entry whose
    /// frame is here has all its parts.
    #[must_use]
    pub fn has_part(&self, entry: u64, part: u16) -> bool {
        let index = self.0.shared.index.lock();
        if index.find_body(entry, part).is_some() {
            return true;
        }
        match index.tail.get(entry) {
            Some(entry) => part < entry.parts.count(),
            None => index.has_frame(entry),
        }
    }

    /// Returns whether a part is in a file of bodies beside the log.
    #[must_use]
    pub fn has_body(&self, entry: u64, part: u16) -> bool {
        self.0.shared.index.lock().find_body(entry, part).is_some()
    }

    /// Notes that the entries up to `index` are applied: once they are synced, too, they may leave memory.
    pub fn applied(&self, index: u64) {
        let mut shared = self.0.shared.index.lock();
        let synced = shared.synced_before;
        shared.tail.applied_before(index.saturating_add(1));
        shared.tail.evict(synced, self.0.shared.options.tail_cache_bytes);
    }

    /// Waits until the entries up to `index` are synced here. Cancel safe.
    ///
    /// # Errors
    ///
    /// The error that ended the log.
    pub async fn synced(&self, index: u64) -> Result<(), Error> {
        let mut synced = self.0.shared.synced_before.subscribe();
        let mut failure = self.0.shared.failure.subscribe();
        loop {
            if self.0.shared.index.lock().synced_before > index {
                return Ok(());
            }
            if let Some(error) = failure.borrow_and_update().clone() {
                return Err(error);
            }
            tokio::select! {
                biased;
                changed = synced.changed() => changed.map_err(|_| Error::Closed)?,
                changed = failure.changed() => changed.map_err(|_| Error::Closed)?,
            }
        }
    }

    /// Returns the files of the log, oldest first.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let index = self.0.shared.index.lock();
        index.segments.iter().map(|(number, segment)| segment.info(*number)).collect()
    }

    /// Returns the segment from which `count` parts of `entry` from `first` on are read, when they are here, or as
    /// many of them as lie together. Says at least one.
    #[must_use]
    pub fn place(&self, entry: u64, first: u16, count: u16) -> (Option<u64>, u16) {
        let (segment, together) = self.0.shared.index.lock().place(entry, first, count);
        (segment, together.max(1))
    }

    /// Removes segments. Reads that have begun end well.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when one is being written or holds entries above the purge point; then none is
    /// removed.
    pub async fn remove_segments(&self, numbers: Vec<u64>) -> Result<(), Error> {
        {
            let index = self.0.shared.index.lock();
            let purged = index.durable_purged.map(|purged| purged.index);
            if let Some(what) = keeper::refuses(&index.segments, purged, &numbers) {
                return Err(Error::Refused { what });
            }
        }
        let (reply, result) = oneshot::channel();
        self.0.shared.keeper.push(KeeperJob::Remove { numbers, reply });
        result.await.unwrap_or(Err(Error::Closed))
    }

    /// Writes parts that a snapshot brings, beside the log; returns when they are on the disk.
    ///
    /// # Errors
    ///
    /// What the disk says. Bodies of earlier calls stay.
    pub async fn insert_bodies(&self, bodies: Vec<Body>) -> Result<(), Error> {
        let (reply, result) = oneshot::channel();
        self.0.shared.keeper.push(KeeperJob::Insert { bodies, reply });
        result.await.unwrap_or(Err(Error::Closed))
    }

    /// Has the log look how much of the disk is free and give back files that it kept for reuse. To be called about
    /// once a second; returns at once.
    pub fn look_after_disk(&self) {
        if !self.0.shared.looks.swap(true, Ordering::Relaxed) {
            self.0.shared.keeper.push(KeeperJob::Look);
        }
    }

    /// Returns whether less of the disk is free than [is to stay so](Options::reserve_bytes): what makes room may still
    /// be written, and nothing else should be.
    #[must_use]
    pub fn is_nearly_full(&self) -> bool {
        self.0.shared.nearly_full.load(Ordering::Relaxed)
    }

    /// Returns the bytes of the disk that were free when it was [looked after](Self::look_after_disk).
    #[must_use]
    pub fn free_bytes(&self) -> Option<u64> {
        Some(self.0.shared.free_bytes.load(Ordering::Relaxed)).filter(|free| *free != u64::MAX)
    }

    /// Returns what the log has done since it was opened.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let (tail_bytes, read_ahead_bytes) = {
            let index = self.0.shared.index.lock();
            (index.tail.bytes(), index.read_ahead_bytes())
        };
        let shared = &self.0.shared;
        Stats {
            tail_bytes,
            tail_most: shared.options.tail_cache_bytes,
            read_ahead_bytes,
            read_ahead_most: reader::KEPT,
            page_cache_bytes: shared.page_cache.lock().bytes(),
            page_cache_most: shared.options.page_cache_bytes + page_cache::READ_BYTES,
            ..shared.counts.stats()
        }
    }

    /// Returns when the log is flushed.
    #[must_use]
    pub fn flush(&self) -> Flush {
        self.0.shared.options.flush
    }

    /// Tells when the log has failed: its node must stop.
    #[must_use]
    pub fn failure(&self) -> watch::Receiver<Option<Error>> {
        self.0.shared.failure.subscribe()
    }

    /// Returns the directory of the log.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0.shared.dir
    }

    /// Writes what waits and a mark that all is synced, and ends the log's tasks. Later calls that need them
    /// fail with [`Error::Closed`].
    ///
    /// # Errors
    ///
    /// As [`Log::save_node_id`].
    pub async fn close(&self) -> Result<(), Error> {
        let (done, result) = callback();
        after_push(self.0.shared.inbox.push(Command::Close { done }));
        match result.await.unwrap_or(Err(Error::Closed)) {
            Err(Error::Closed) => Ok(()),
            result => result,
        }
    }

    async fn command(&self, frame: Frame) -> Result<(), Error> {
        let (done, result) = callback();
        after_push(self.0.shared.inbox.push(Command::Frame { frame, epoch: None, done }));
        result.await.unwrap_or(Err(Error::Closed))
    }

    async fn read<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> ReadJob) -> Result<T, Error> {
        let (reply, result) = oneshot::channel();
        self.0.shared.reads.push(job(reply));
        result.await.unwrap_or(Err(Error::Closed))
    }
}

/// Returns a callback and where its argument arrives.
fn callback() -> (Done, oneshot::Receiver<Result<(), Error>>) {
    let (sender, receiver) = oneshot::channel();
    // Whoever asked may have stopped waiting.
    (Box::new(move |result| drop(sender.send(result))), receiver)
}

/// Wakes the writer, or answers a command that came too late.
fn after_push(pushed: Result<Option<std::task::Waker>, Box<TooLate>>) {
    match pushed {
        Ok(Some(waker)) => waker.wake(),
        Ok(None) => {}
        Err(late) => {
            let TooLate(command, error) = *late;
            match command {
                Command::Append { done, .. } | Command::Frame { done, .. } | Command::Close { done } => {
                    done(Err(error))
                }
            }
        }
    }
}

/// Reads the directory and starts the tasks beside the writer.
async fn start(disk: Arc<dyn Disk>, dir: PathBuf, options: Options, runtime: &Runtime) -> Result<(Log, Writer), Error> {
    let recovered = recovery::recover(&disk, &dir).await?;
    let state = recovered.index.state.clone();
    let inbox = Inbox::new();
    if let Some(committed) = state.committed {
        inbox.set_committed(committed);
    }
    let shared = Arc::new(Shared {
        disk,
        dir,
        options,
        clock: runtime.clock.clone(),
        tasks: runtime.tasks.clone(),
        inbox,
        reads: Queue::new(),
        keeper: Queue::new(),
        synced_before: watch::channel(recovered.index.synced_before).0,
        failure: watch::channel(None).0,
        index: Mutex::new(recovered.index),
        counts: Counts::default(),
        next_number: AtomicU64::new(recovered.next_number),
        looks: AtomicBool::new(false),
        nearly_full: AtomicBool::new(false),
        free_bytes: AtomicU64::new(u64::MAX),
        page_cache: Mutex::new(PageCache::new(options.page_cache_bytes)),
    });
    for _ in 0..READERS {
        drop(runtime.tasks.dedicated("log-reader", OnFailure::StopNode, reader::run(Arc::clone(&shared))));
    }
    let keeper = Keeper::new(Arc::clone(&shared));
    drop(runtime.tasks.dedicated("log-keeper", OnFailure::StopNode, keeper.run()));
    let writer = Writer::new(Arc::clone(&shared), (state, recovered.sequence, recovered.active, recovered.newest));
    Ok((Log(Arc::new(Handle { shared })), writer))
}
