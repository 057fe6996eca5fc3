//! The files: format, writing beside, renaming, verifying, keeping the last two.
//!
//! A file is a header with the caller's metadata, chunks, and a trailer. Each has its own checksum, and a
//! chunk's covers its number, so that a file with a lost, repeated or exchanged part does not verify.
//!
//! Every call here touches the disk: only futures that run on a thread of their own may make them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::Poll;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kubemq_runtime::chain;
use parking_lot::Mutex;

use super::{MAX_CHUNK_BYTES, MAX_META_BYTES, SnapshotFile};
use crate::Error;
use crate::fs::{Disk, File};

/// The version of the format that is written.
const FORMAT_VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"kmqsnap\n";
/// Magic, version, length of the metadata, checksum of both and of the metadata.
const HEADER: usize = 8 + 4 + 4 + 4;
/// Length and checksum.
const CHUNK_HEADER: usize = 4 + 4;
/// Stands where the length of a chunk would: the trailer begins.
const END: u32 = u32::MAX;
/// End mark, checksum, number of chunks, bytes in all of them.
const TRAILER: usize = 4 + 4 + 8 + 8;
/// How many files are kept.
const KEPT: usize = 2;
/// Chunks are gathered up to so many bytes or pieces before they are written.
const WRITE_BYTES: usize = 1024 * 1024;
const WRITE_PIECES: usize = 256;
/// How much is read from the file at a time.
const READ_BYTES: usize = 1024 * 1024;

const SUFFIX: &str = ".snapshot";
const TEMPORARY: &str = ".temporary";

impl SnapshotFile {
    fn new(number: u64) -> Self {
        Self { number, name: format!("{number:020}{SUFFIX}") }
    }

    fn parse(name: &str) -> Option<Self> {
        let number = name.strip_suffix(SUFFIX)?.parse().ok()?;
        Some(Self { number, name: name.to_owned() })
    }
}

/// The snapshot files of one directory.
#[derive(Clone)]
pub(super) struct Files(Arc<Shared>);

struct Shared {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    state: Mutex<State>,
}

struct State {
    /// Complete files, oldest first.
    files: Vec<SnapshotFile>,
    /// Numbers of files that did not verify.
    damaged: BTreeSet<u64>,
    next_number: u64,
    next_temporary: u64,
}

impl Files {
    /// Opens `dir`, which is created when it does not exist, and removes what unfinished writes left there.
    pub(super) async fn open(disk: Arc<dyn Disk>, dir: PathBuf) -> Result<Self, Error> {
        disk.create_dir_all(&dir).await?;
        let files = Self::list(disk, dir).await?;
        for name in files.0.disk.list(&files.0.dir).await? {
            if name.ends_with(TEMPORARY) {
                files.0.disk.remove(&files.0.dir.join(name)).await?;
            }
        }
        Ok(files)
    }

    /// Opens `dir` without changing anything in it. A directory that does not exist has no snapshots.
    pub(super) async fn list(disk: Arc<dyn Disk>, dir: PathBuf) -> Result<Self, Error> {
        let names = match disk.list(&dir).await {
            Err(error) if error.is_missing() => Vec::new(),
            names => names?,
        };
        let mut files: Vec<_> = names.iter().filter_map(|name| SnapshotFile::parse(name)).collect();
        files.sort_by_key(|file| file.number);
        let next_number = files.last().map_or(1, |file| file.number + 1);
        let state = State { files, damaged: BTreeSet::new(), next_number, next_temporary: 1 };
        Ok(Self(Arc::new(Shared { disk, dir, state: Mutex::new(state) })))
    }

    /// Returns the complete files, oldest first, verified or not.
    #[must_use]
    pub(super) fn files(&self) -> Vec<SnapshotFile> {
        self.0.state.lock().files.clone()
    }

    /// Begins a snapshot whose chunks come one by one. Dropped unfinished, it leaves a temporary file that
    /// the next opening removes; [`Writer::abandon`] removes it at once.
    pub(super) async fn begin(&self, meta: Bytes) -> Result<Writer, Error> {
        if meta.len() > MAX_META_BYTES {
            return Err(Error::Refused { what: "a snapshot has more metadata than is read back" });
        }
        let number = {
            let mut state = self.0.state.lock();
            state.next_temporary += 1;
            state.next_temporary - 1
        };
        let path = self.0.dir.join(format!("{number}{TEMPORARY}"));
        let file = self.0.disk.create(&path).await?;
        let mut header = BytesMut::with_capacity(HEADER);
        header.put_slice(&MAGIC);
        header.put_u32_le(FORMAT_VERSION);
        header.put_u32_le(length(&meta));
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&header), &meta);
        header.put_u32_le(checksum);
        let mut writer = Writer {
            files: self.clone(),
            file,
            path,
            offset: 0,
            pieces: Vec::new(),
            pieces_bytes: 0,
            chunks: 0,
            chunk_bytes: 0,
            checksum,
        };
        writer.gather(header.freeze());
        writer.gather(meta);
        Ok(writer)
    }

    /// Opens a snapshot to be read now or later, also when newer ones have pushed it out meanwhile.
    pub(super) async fn hold(&self, snapshot: &SnapshotFile) -> Result<Held, Error> {
        let path = self.0.dir.join(&snapshot.name);
        let file = self.0.disk.open(&path).await?;
        Ok(Held { files: self.clone(), snapshot: snapshot.clone(), path, file })
    }

    /// Makes `path` the newest snapshot and removes what is not kept any more.
    async fn publish(&self, path: &Path) -> Result<SnapshotFile, Error> {
        let file = {
            let mut state = self.0.state.lock();
            state.next_number += 1;
            SnapshotFile::new(state.next_number - 1)
        };
        self.0.disk.rename(path, &self.0.dir.join(&file.name)).await?;
        self.0.disk.sync_dir(&self.0.dir).await?;
        let outdated = {
            let mut state = self.0.state.lock();
            state.files.push(file.clone());
            state.files.sort_by_key(|file| file.number);
            state.forget_outdated()
        };
        for file in outdated {
            // Losing this race with a crash costs disk until the next snapshot, nothing else.
            if let Err(error) = self.0.disk.remove(&self.0.dir.join(&file.name)).await {
                tracing::warn!(snapshot = file.name, error = %chain(&error), "old snapshot was not removed");
            }
        }
        Ok(file)
    }
}

impl State {
    /// Takes out all but the newest whole files.
    fn forget_outdated(&mut self) -> Vec<SnapshotFile> {
        let whole = self.files.iter().rev().filter(|file| !self.damaged.contains(&file.number));
        let kept: Vec<u64> = whole.take(KEPT).map(|file| file.number).collect();
        let (files, outdated) = self.files.drain(..).partition(|file| kept.contains(&file.number));
        self.files = files;
        outdated
    }
}

/// A snapshot that is being written.
pub(super) struct Writer {
    files: Files,
    file: Arc<dyn File>,
    path: PathBuf,
    offset: u64,
    pieces: Vec<Bytes>,
    pieces_bytes: usize,
    chunks: u64,
    chunk_bytes: u64,
    /// Over the checksums of all parts so far: ties the trailer to this file.
    checksum: u32,
}

impl Writer {
    /// Adds a chunk.
    pub(super) async fn push(&mut self, chunk: Bytes) -> Result<(), Error> {
        if chunk.len() > MAX_CHUNK_BYTES {
            return Err(Error::Refused { what: "a chunk of a snapshot is larger than is read back" });
        }
        let checksum = chunk_checksum(self.chunks, &chunk);
        let mut header = BytesMut::with_capacity(CHUNK_HEADER);
        header.put_u32_le(length(&chunk));
        header.put_u32_le(checksum);
        self.checksum = crc32c::crc32c_append(self.checksum, &checksum.to_le_bytes());
        self.chunks += 1;
        self.chunk_bytes += u64::from(length(&chunk));
        self.gather(header.freeze());
        self.gather(chunk);
        if self.pieces_bytes >= WRITE_BYTES || self.pieces.len() >= WRITE_PIECES {
            self.write().await?;
        }
        Ok(())
    }

    /// Completes the snapshot: it exists, durably, when this returns.
    pub(super) async fn finish(mut self) -> Result<SnapshotFile, Error> {
        self.gather(trailer(self.checksum, self.chunks, self.chunk_bytes));
        let result = match self.write().await {
            Ok(()) => self.file.sync_data().await,
            error => error,
        };
        if let Err(error) = result {
            self.abandon().await;
            return Err(error);
        }
        self.files.publish(&self.path).await
    }

    /// Removes what was written.
    pub(super) async fn abandon(self) {
        // It is removed at the next opening if it cannot be removed now.
        self.files.0.disk.remove(&self.path).await.ok();
    }

    fn gather(&mut self, piece: Bytes) {
        self.pieces_bytes += piece.len();
        if !piece.is_empty() {
            self.pieces.push(piece);
        }
    }

    async fn write(&mut self) -> Result<(), Error> {
        self.file.write_at(self.offset, &self.pieces).await?;
        self.offset += u64::try_from(self.pieces_bytes).unwrap_or(u64::MAX);
        self.pieces.clear();
        self.pieces_bytes = 0;
        // Whoever else waits for the thread gets its turn.
        yield_now().await;
        Ok(())
    }
}

/// A complete file, held open.
#[derive(Clone)]
pub(super) struct Held {
    files: Files,
    snapshot: SnapshotFile,
    path: PathBuf,
    file: Arc<dyn File>,
}

impl Held {
    pub(super) fn snapshot(&self) -> &SnapshotFile {
        &self.snapshot
    }

    /// Begins to read it chunk by chunk. It is verified only when the end was reached.
    pub(super) async fn reader(self) -> Result<Reader, Error> {
        Reader::open(self).await
    }
}

/// A snapshot that is being read.
pub(super) struct Reader {
    held: Held,
    meta: Bytes,
    /// Where `buffer` begins in the file.
    offset: u64,
    buffer: Bytes,
    chunks: u64,
    chunk_bytes: u64,
    checksum: u32,
    ended: bool,
}

impl Reader {
    async fn open(held: Held) -> Result<Self, Error> {
        let mut reader = Self {
            held,
            meta: Bytes::new(),
            offset: 0,
            buffer: Bytes::new(),
            chunks: 0,
            chunk_bytes: 0,
            checksum: 0,
            ended: false,
        };
        let header = reader.take(HEADER, "the header is cut off").await?;
        if header[..8] != MAGIC {
            return Err(reader.damaged(0, "not a snapshot file"));
        }
        let mut fields = header.slice(8..);
        let version = fields.get_u32_le();
        if version != FORMAT_VERSION {
            return Err(Error::UnknownVersion { path: reader.held.path, found: version, known: FORMAT_VERSION });
        }
        let meta_length = fields.get_u32_le();
        let checksum = fields.get_u32_le();
        let meta_length = usize::try_from(meta_length).unwrap_or(usize::MAX);
        if meta_length > MAX_META_BYTES {
            return Err(reader.damaged(0, "the length of the metadata is wrong"));
        }
        reader.meta = reader.take(meta_length, "the metadata is cut off").await?;
        reader.checksum = crc32c::crc32c_append(crc32c::crc32c(&header[..HEADER - 4]), &reader.meta);
        if reader.checksum != checksum {
            return Err(reader.damaged(0, "the checksum of the header is wrong"));
        }
        Ok(reader)
    }

    /// Returns what the caller gave with the snapshot.
    #[must_use]
    pub(super) const fn meta(&self) -> &Bytes {
        &self.meta
    }

    /// Returns the next chunk, or nothing when the end was reached and everything verified.
    pub(super) async fn next_chunk(&mut self) -> Result<Option<Bytes>, Error> {
        if self.ended {
            return Ok(None);
        }
        let at = self.offset;
        let mut header = self.take(CHUNK_HEADER, "it is cut off before a chunk").await?;
        let chunk_length = header.get_u32_le();
        let checksum = header.get_u32_le();
        if chunk_length == END {
            return self.end(at, checksum).await.map(|()| None);
        }
        let chunk_length = usize::try_from(chunk_length).unwrap_or(usize::MAX);
        if chunk_length > MAX_CHUNK_BYTES {
            return Err(self.damaged(at, "the length of a chunk is wrong"));
        }
        let chunk = self.take(chunk_length, "it is cut off inside of a chunk").await?;
        if chunk_checksum(self.chunks, &chunk) != checksum {
            return Err(self.damaged(at, "the checksum of a chunk is wrong"));
        }
        self.checksum = crc32c::crc32c_append(self.checksum, &checksum.to_le_bytes());
        self.chunks += 1;
        self.chunk_bytes += u64::from(length(&chunk));
        Ok(Some(chunk))
    }

    async fn end(&mut self, at: u64, checksum: u32) -> Result<(), Error> {
        let rest = self.take(TRAILER - CHUNK_HEADER, "the trailer is cut off").await?;
        let expected = trailer(self.checksum, self.chunks, self.chunk_bytes);
        if expected[4..8] != checksum.to_le_bytes() || expected[8..] != rest {
            return Err(self.damaged(at, "the trailer does not fit what is before it"));
        }
        if self.offset != self.held.file.len().await? {
            return Err(self.damaged(self.offset, "there are bytes behind the trailer"));
        }
        self.ended = true;
        Ok(())
    }

    /// Returns the next `wanted` bytes.
    async fn take(&mut self, wanted: usize, missing: &'static str) -> Result<Bytes, Error> {
        if self.buffer.len() < wanted {
            let have = std::mem::take(&mut self.buffer);
            let place = self.offset + u64::try_from(have.len()).unwrap_or(u64::MAX);
            let more = self.held.file.read_at(place, (wanted - have.len()).max(READ_BYTES)).await?;
            yield_now().await;
            self.buffer = if have.is_empty() { more } else { Bytes::from([have, more].concat()) };
        }
        if self.buffer.len() < wanted {
            return Err(self.damaged(self.offset, missing));
        }
        self.offset += u64::try_from(wanted).unwrap_or(u64::MAX);
        Ok(self.buffer.split_to(wanted))
    }

    /// Notes that the file is damaged, so that it does not push out a whole one, and returns what is wrong.
    fn damaged(&self, offset: u64, what: &str) -> Error {
        let Held { files, snapshot, path, .. } = &self.held;
        files.0.state.lock().damaged.insert(snapshot.number);
        Error::Damaged { path: path.clone(), offset, what: what.to_owned() }
    }
}

/// Lets other futures of the same thread go on.
async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn chunk_checksum(number: u64, chunk: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), chunk)
}

fn trailer(checksum: u32, chunks: u64, chunk_bytes: u64) -> Bytes {
    let mut counts = [0; 16];
    counts[..8].copy_from_slice(&chunks.to_le_bytes());
    counts[8..].copy_from_slice(&chunk_bytes.to_le_bytes());
    let mut trailer = BytesMut::with_capacity(TRAILER);
    trailer.put_u32_le(END);
    trailer.put_u32_le(crc32c::crc32c_append(checksum, &counts));
    trailer.put_slice(&counts);
    trailer.freeze()
}

fn length(bytes: &Bytes) -> u32 {
    // Lengths are checked against limits far below this before.
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
