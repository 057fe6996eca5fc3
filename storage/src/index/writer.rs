//! The thread that owns the index: it takes sealed blocks, writes them, and answers reads.
//!
//! Whoever seals a block must never wait for a disk, so putting is a push into a bounded inbox; when that is
//! full the block is refused and stays where it is. Whoever reads a block keeps a receiver waiting, so reads go before
//! everything else, and ask again behind it when they find nothing. An index that fails while it runs is cleared once and
//! reported through [`IndexWriter::state`], so that its owner puts every block again.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use kubemq_runtime::sync::{mpsc, oneshot, watch};
use kubemq_runtime::{OnFailure, Runtime, chain};

use super::{BlockKey, Index, IndexError, Opening, Space};

/// Requests that may wait for the index thread.
const INBOX: usize = 4096;
/// Reads that may wait for the index thread, and as many more for what is still in the inbox.
const READS: usize = 64;
/// Bytes of blocks that may wait for the index thread.
const INBOX_BYTES: usize = 16 * 1024 * 1024;
/// The size of the files is looked up once in so many requests: it costs system calls and is for people.
const DISK_BYTES_EVERY: u64 = 1024;

/// The inbox of the index is full: the block stays in memory and may be offered again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the index cannot take more blocks now")]
pub struct Full;

/// What the owner of the blocks must know about the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexState {
    /// Being opened and checked.
    Opening,
    /// In use. A higher number with `opening.is_empty()` means that every block must be put again.
    Open {
        /// How often the index was opened or cleared by this process.
        number: u64,
        /// What was found the last time.
        opening: Opening,
    },
    /// Given up until the next start. Blocks stay in memory.
    Failed(IndexError),
    /// Closed by its owner.
    Closed,
}

/// Numbers about the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexStats {
    /// Blocks in the index.
    pub blocks: u64,
    /// Bytes of disk in use.
    pub disk_bytes: u64,
    /// Blocks written since the start.
    pub written: u64,
    /// Requests refused because the inbox was full.
    pub refused: u64,
}

#[derive(Default)]
struct Counters {
    blocks: AtomicU64,
    disk_bytes: AtomicU64,
    written: AtomicU64,
    refused: AtomicU64,
    waiting_bytes: AtomicUsize,
}

enum Request {
    Put(BlockKey, Bytes),
    Remove(Space, u64, RangeInclusive<u64>),
    Missing(Vec<BlockKey>, oneshot::Sender<Result<Vec<BlockKey>, IndexError>>),
    Shrink,
    Close(oneshot::Sender<()>),
}

/// Somebody waits for a block.
struct Read {
    key: BlockKey,
    answer: oneshot::Sender<Result<Option<Bytes>, IndexError>>,
}

/// A handle to the index thread, cheap to clone.
#[derive(Clone)]
pub struct IndexWriter {
    inbox: mpsc::Sender<Request>,
    reads: mpsc::Sender<Read>,
    state: watch::Receiver<IndexState>,
    counters: Arc<Counters>,
}

impl std::fmt::Debug for IndexWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IndexWriter").field("state", &self.state).finish_non_exhaustive()
    }
}

impl IndexWriter {
    /// Starts the thread, which opens the index with `open` first.
    pub fn start<I, F>(open: F, runtime: &Runtime) -> Self
    where
        I: Index,
        F: FnOnce() -> Result<(I, Opening), IndexError> + Send + 'static,
    {
        let (inbox, requests) = mpsc::channel(INBOX);
        let (reads, read) = mpsc::channel(READS);
        let (state, receiver) = watch::channel(IndexState::Opening);
        let counters = Arc::new(Counters::default());
        let worker = Worker { state, counters: Arc::clone(&counters), number: 0, served: 0, late: VecDeque::new() };
        // The index is never needed: its thread failing is logged and its owner sees a closed inbox.
        drop(runtime.tasks.dedicated("index", OnFailure::Log, worker.run(open, read, requests)));
        Self { inbox, reads, state: receiver, counters }
    }

    /// Hands a sealed block over. Never waits.
    ///
    /// # Errors
    ///
    /// [`Full`] when too much waits already; the block must stay in memory.
    pub fn put(&self, key: BlockKey, block: Bytes) -> Result<(), Full> {
        let bytes = block.len();
        let waiting = self.counters.waiting_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if waiting <= INBOX_BYTES && self.push(Request::Put(key, block)).is_ok() {
            return Ok(());
        }
        self.counters.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.counters.refused.fetch_add(1, Ordering::Relaxed);
        Err(Full)
    }

    /// Forgets the blocks of `owner` whose first lies in `range`. Never waits.
    ///
    /// # Errors
    ///
    /// [`Full`] when too much waits already; offer it again later, or the blocks keep their place on disk.
    pub fn remove(&self, space: Space, owner: u64, range: RangeInclusive<u64>) -> Result<(), Full> {
        self.push(Request::Remove(space, owner, range)).inspect_err(|_| {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
        })
    }

    /// Asks for disk back when most of it holds nothing alive. To be called now and then; skipped when busy.
    pub fn shrink(&self) {
        // Being asked again is certain, so a full inbox is no loss.
        self.push(Request::Shrink).ok();
    }

    /// Returns a block, or nothing when it is missing or damaged.
    ///
    /// # Errors
    ///
    /// Any error means that the block must come from elsewhere.
    pub async fn get(&self, key: BlockKey) -> Result<Option<Bytes>, IndexError> {
        let (answer, result) = oneshot::channel();
        self.reads.send(Read { key, answer }).await.map_err(|_| IndexError::Closed)?;
        result.await.map_err(|_| IndexError::Closed)?
    }

    /// Returns those of `keys` that the index does not hold whole.
    ///
    /// # Errors
    ///
    /// Any error means that all of them are missing.
    pub async fn missing(&self, keys: Vec<BlockKey>) -> Result<Vec<BlockKey>, IndexError> {
        self.ask(|answer| Request::Missing(keys, answer)).await?
    }

    /// Returns the state of the index, to be watched.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<IndexState> {
        self.state.clone()
    }

    /// Returns numbers about the index.
    #[must_use]
    pub fn stats(&self) -> IndexStats {
        IndexStats {
            blocks: self.counters.blocks.load(Ordering::Relaxed),
            disk_bytes: self.counters.disk_bytes.load(Ordering::Relaxed),
            written: self.counters.written.load(Ordering::Relaxed),
            refused: self.counters.refused.load(Ordering::Relaxed),
        }
    }

    /// Writes out what was handed over and ends the thread.
    pub async fn close(&self) {
        // An error means that the thread has ended already.
        self.ask(Request::Close).await.ok();
    }

    fn push(&self, request: Request) -> Result<(), Full> {
        self.inbox.try_send(request).map_err(|_| Full)
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, IndexError> {
        let (answer, result) = oneshot::channel();
        self.inbox.send(request(answer)).await.map_err(|_| IndexError::Closed)?;
        result.await.map_err(|_| IndexError::Closed)
    }
}

enum Next {
    Read(Read),
    Request(Request),
}

struct Worker {
    state: watch::Sender<IndexState>,
    counters: Arc<Counters>,
    number: u64,
    /// Requests that were served.
    served: u64,
    /// Reads that found nothing, each with the number of the request behind which it asks again.
    late: VecDeque<(u64, Read)>,
}

impl Worker {
    async fn run<I: Index>(
        mut self,
        open: impl FnOnce() -> Result<(I, Opening), IndexError> + Send,
        // Closed last: who finds that reads are not answered any more finds that nothing else is taken, either.
        mut reads: mpsc::Receiver<Read>,
        mut requests: mpsc::Receiver<Request>,
    ) {
        let mut index = match open() {
            Ok((index, opening)) => {
                if let Opening::Replaced { reason } = &opening {
                    tracing::warn!(reason, "the index was damaged and is rebuilt");
                }
                self.count(&index);
                self.opened(opening);
                index
            }
            Err(error) => return self.give_up(error),
        };
        loop {
            let next = tokio::select! {
                biased;
                Some(read) = reads.recv() => Next::Read(read),
                Some(request) = requests.recv() => Next::Request(request),
                else => return,
            };
            if let Next::Request(Request::Close(answer)) = next {
                index.flush().ok();
                drop(index);
                self.state.send(IndexState::Closed);
                answer.send(()).ok();
                return;
            }
            let served = match next {
                Next::Read(read) => self.read(&mut index, read, requests.len() as u64),
                Next::Request(request) => self.serve_and_read_late(&mut index, request),
            };
            if let Err(error) = served
                && let Err(error) = self.start_again(&mut index, &error)
            {
                return self.give_up(error);
            }
            self.counters.blocks.store(index.len(), Ordering::Relaxed);
            if self.served.is_multiple_of(DISK_BYTES_EVERY) {
                self.count(&index);
            }
        }
    }

    /// Answers a read, or keeps it until the `waiting` requests before it are served, when they may bring what it wants.
    fn read(&mut self, index: &mut impl Index, read: Read, waiting: u64) -> Result<(), IndexError> {
        let block = index.get(read.key);
        if block == Ok(None) && waiting > 0 && self.late.len() < READS {
            self.late.push_back((self.served + waiting, read));
            return Ok(());
        }
        reply(read.answer, block)
    }

    fn serve_and_read_late(&mut self, index: &mut impl Index, request: Request) -> Result<(), IndexError> {
        let mut result = self.serve(index, request);
        self.served += 1;
        while let Some((_, read)) = self.late.pop_front_if(|(behind, _)| *behind <= self.served) {
            result = result.and(self.read(index, read, 0));
        }
        result
    }

    fn serve(&self, index: &mut impl Index, request: Request) -> Result<(), IndexError> {
        match request {
            Request::Put(key, block) => {
                self.counters.waiting_bytes.fetch_sub(block.len(), Ordering::Relaxed);
                match index.put(key, &block) {
                    Err(error @ IndexError::TooLarge { .. }) => tracing::error!(%error, "a block was not indexed"),
                    result => {
                        result?;
                        self.counters.written.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            Request::Remove(space, owner, range) => {
                index.remove_range(space, owner, range)?;
            }
            Request::Shrink => {
                index.shrink()?;
            }
            Request::Missing(keys, answer) => {
                let missing = keys.into_iter().map(|key| Ok((key, index.contains(key)?)));
                let missing = missing.filter(|found| !matches!(found, Ok((_, true))));
                return reply(answer, missing.map(|found| found.map(|(key, _)| key)).collect());
            }
            Request::Close(answer) => drop(answer),
        }
        Ok(())
    }

    /// Clears an index that failed; its owner sees a new number and puts everything again.
    fn start_again(&mut self, index: &mut impl Index, error: &IndexError) -> Result<(), IndexError> {
        tracing::warn!(error = %chain(error), "the index failed and is rebuilt");
        index.clear()?;
        self.count(index);
        self.opened(Opening::Replaced { reason: error.to_string() });
        Ok(())
    }

    fn opened(&mut self, opening: Opening) {
        self.number += 1;
        self.state.send(IndexState::Open { number: self.number, opening });
    }

    fn give_up(&self, error: IndexError) {
        tracing::error!(error = %chain(&error), "the index cannot be used until the next start");
        self.state.send(IndexState::Failed(error));
    }

    fn count(&self, index: &impl Index) {
        self.counters.blocks.store(index.len(), Ordering::Relaxed);
        self.counters.disk_bytes.store(index.disk_bytes(), Ordering::Relaxed);
    }
}

/// Answers with `result`, and passes an error on to the thread as well.
fn reply<T>(answer: oneshot::Sender<Result<T, IndexError>>, result: Result<T, IndexError>) -> Result<(), IndexError> {
    let error = result.as_ref().err().cloned();
    // Whoever asked may have gone away.
    answer.send(result).ok();
    error.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests;
