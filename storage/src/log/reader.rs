//! The tasks that read the log's files: they find a frame by the sparse positions, check what they read,
//! and read a mebibyte ahead for whoever reads in order.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use kubemq_runtime::sync::oneshot;

use super::entry::Entry;
use super::frame::{FRAME_HEAD, Frame, GROUP_HEAD, Head, Kind, is_group};
use super::position::Span;
use super::scrub::{self, ScrubJob};
use super::shared::{Index, Segment, Shared};
use super::stats::Counts;
use super::{PartRead, PartsRead};
use crate::Error;

/// Read at once for somebody who reads here and there.
const NEAR: u64 = 64 << 10;
/// Read at once for somebody who reads in order.
const AHEAD: u64 = 1 << 20;
/// Bytes of read-ahead that are kept, in all.
pub(super) const KEPT: u64 = 16 << 20;
/// What is handed out keeps at most so many times its bytes in memory.
const LEAST_SHARE: u64 = 4;
/// How far behind a chunk the next read may begin and still count as being in order.
const IN_ORDER: u64 = 64;

/// What the readers are asked for.
pub(crate) enum ReadJob {
    /// The chunk that begins with this entry.
    Entries { from: u64, reply: oneshot::Sender<Result<Arc<Chunk>, Error>> },
    /// A part from a body segment.
    Body { entry: u64, part: u16, reply: oneshot::Sender<Result<PartRead, Error>> },
    /// A piece of a sealed file, to be checked.
    Scrub(ScrubJob),
}

/// Consecutive entries as they lie in a file. Frames and part tables are checked, parts are not yet.
pub(crate) struct Chunk {
    pub(crate) segment: u64,
    first: u64,
    bytes: u64,
    /// Each with the place of its frame.
    entries: Vec<(u64, Entry)>,
    path: std::path::PathBuf,
}

impl Chunk {
    /// Returns the index behind the last entry.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn place(&self, index: u64) -> Option<&(u64, Entry)> {
        self.entries.get(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }

    /// Returns the LogTime of an entry.
    pub(crate) fn time(&self, index: u64) -> Option<u64> {
        self.place(index).map(|(_, entry)| entry.time)
    }

    /// Returns an entry whose parts are intact.
    pub(crate) fn entry(&self, index: u64) -> Option<Result<Entry, Error>> {
        let (offset, entry) = self.place(index)?;
        Some(match entry.parts.first_bad() {
            None => Ok(entry.clone()),
            Some(part) => Err(self.damaged(*offset, index, part)),
        })
    }

    /// Returns a part that is intact.
    pub(crate) fn part(&self, index: u64, part: u16) -> Option<Result<PartRead, Error>> {
        let (offset, entry) = self.place(index)?;
        Some(match entry.parts.get_checked(part) {
            Some(bytes) => Ok(PartRead { time: entry.time, bytes: apart(bytes, self.bytes) }),
            None if part < entry.parts.count() => Err(self.damaged(*offset, index, part)),
            None => Err(Error::NotFound { entry: index, part }),
        })
    }

    /// Returns parts that are intact. Whoever follows the log has all of the chunk soon, so they stay parts of it.
    pub(crate) fn parts(&self, index: u64, parts: Range<u16>) -> Option<Result<PartsRead, Error>> {
        let (offset, entry) = self.place(index)?;
        let mut bytes = Vec::with_capacity(parts.len());
        for part in parts {
            match entry.parts.get_checked(part) {
                Some(intact) => bytes.push(intact),
                None if part < entry.parts.count() => return Some(Err(self.damaged(*offset, index, part))),
                None => return Some(Err(Error::NotFound { entry: index, part })),
            }
        }
        Some(Ok(PartsRead { time: entry.time, bytes }))
    }

    fn damaged(&self, offset: u64, entry: u64, part: u16) -> Error {
        let what = format!("the checksum of part {part} of entry {entry} does not fit");
        Error::Damaged { path: self.path.clone(), offset, what }
    }
}

/// Returns `part`, a slice of `whole` bytes, as bytes of its own when it is a small share of them: as long as somebody
/// holds it, who may be slow, it would keep all of them in memory. Holders count what they hold.
pub(super) fn apart(part: Bytes, whole: u64) -> Bytes {
    if part.len() as u64 * LEAST_SHARE < whole { Bytes::copy_from_slice(&part) } else { part }
}

impl Index {
    /// Returns what was read ahead and holds the entry at `index`.
    pub(crate) fn find_chunk(&self, index: u64) -> Option<Arc<Chunk>> {
        self.read_ahead.iter().find(|chunk| chunk.first <= index && index < chunk.end()).cloned()
    }

    /// Returns how much was read ahead and is kept.
    pub(crate) fn read_ahead_bytes(&self) -> u64 {
        self.read_ahead.iter().map(|chunk| chunk.bytes).sum()
    }

    /// Keeps a chunk, and as many older ones as the budget allows.
    fn keep(&mut self, chunk: &Arc<Chunk>) {
        self.read_ahead.push_back(Arc::clone(chunk));
        let mut bytes = self.read_ahead_bytes();
        while bytes > KEPT && self.read_ahead.len() > 1 {
            bytes -= self.read_ahead.pop_front().map_or(0, |chunk| chunk.bytes);
        }
    }
}

/// Serves reads until the queue is closed.
pub(crate) async fn run(shared: Arc<Shared>) {
    while let Some(job) = shared.reads.pop().await {
        // Whoever asked may have stopped waiting.
        match job {
            ReadJob::Entries { from, reply } => drop(reply.send(read_chunk(&shared, from).await)),
            ReadJob::Body { entry, part, reply } => drop(reply.send(read_body(&shared, entry, part).await)),
            ReadJob::Scrub(ScrubJob { place, budget, reply }) => {
                drop(reply.send(scrub::scrub(&shared, place, budget).await));
            }
        }
    }
}

async fn read_chunk(shared: &Shared, from: u64) -> Result<Arc<Chunk>, Error> {
    let missing = Error::NotFound { entry: from, part: 0 };
    let (generation, spans, segment, budget) = {
        let index = shared.index.lock();
        // Another reader may have brought it meanwhile.
        if let Some(chunk) = index.find_chunk(from) {
            return Ok(chunk);
        }
        let in_order = index.read_ahead.iter().any(|chunk| (chunk.end()..chunk.end() + IN_ORDER).contains(&from));
        let budget = if in_order { AHEAD } else { NEAR };
        let spans = index.positions.spans(from, budget);
        let Some(first) = spans.first() else { return Err(missing) };
        let Some(segment) = index.segments.get(&first.segment).cloned() else { return Err(missing) };
        (index.generation, spans, segment, budget)
    };
    let Some(number) = spans.first().map(|span| span.segment) else { return Err(missing) };
    let mut walk = Walk { shared, segment: &segment, number, base: 0, bytes: Bytes::new() };
    let entries = walk.entries(&spans, from, budget).await?;
    if entries.is_empty() {
        return Err(missing);
    }
    let bytes = entries.iter().map(|(_, entry)| entry.parts.as_bytes().len() as u64).sum();
    let chunk = Arc::new(Chunk { segment: number, first: from, bytes, entries, path: segment.path.clone() });
    let mut index = shared.index.lock();
    // What was truncated meanwhile must not be found again.
    if index.generation == generation && index.segments.contains_key(&number) {
        index.keep(&chunk);
    }
    Ok(chunk)
}

async fn read_body(shared: &Shared, entry: u64, part: u16) -> Result<PartRead, Error> {
    let missing = Error::NotFound { entry, part };
    let (range, segment) = {
        let index = shared.index.lock();
        let Some((_, range)) = index.find_body(entry, part) else { return Err(missing) };
        let Some(segment) = index.segments.get(&range.segment).cloned() else { return Err(missing) };
        (range, segment)
    };
    let mut walk = Walk { shared, segment: &segment, number: range.segment, base: 0, bytes: Bytes::new() };
    let mut offset = range.offset;
    loop {
        let Some((frame, next)) = walk.frame(offset, NEAR).await? else { return Err(missing) };
        let id = frame.head.id;
        if frame.head.kind == Kind::Body && id.index == entry && id.node == u64::from(part) {
            let bytes = apart(frame.payload, walk.bytes.len() as u64);
            return Ok(PartRead { time: frame.head.time, bytes });
        }
        if frame.head.kind != Kind::Body || id.index != entry {
            return Err(missing);
        }
        offset = next;
    }
}

/// Steps from frame to frame through a segment.
struct Walk<'a> {
    shared: &'a Shared,
    segment: &'a Segment,
    number: u64,
    base: u64,
    bytes: Bytes,
}

impl Walk<'_> {
    /// Returns the entries of `spans` from `from` on, at least the first and about `budget` bytes.
    async fn entries(&mut self, spans: &[Span], from: u64, budget: u64) -> Result<Vec<(u64, Entry)>, Error> {
        let mut entries: Vec<(u64, Entry)> = Vec::new();
        let Some(first) = spans.first() else { return Ok(entries) };
        let mut taken = 0;
        for span in spans {
            let mut offset = span.offset;
            let mut index = span.from;
            while index < span.to {
                // The whole span may have to be skipped before the wanted entry comes.
                let want = if entries.is_empty() { budget.max(NEAR) } else { budget.saturating_sub(taken).max(NEAR) };
                let held = offset >= self.base && offset < self.base + self.bytes.len() as u64;
                if !entries.is_empty() && (taken >= budget || !held) {
                    return Ok(entries);
                }
                let Some((frame, next)) = self.frame(offset, want).await? else { return Ok(entries) };
                if let Some(entry) = frame.to_entry().map_err(|error| self.damaged(offset, error.to_string()))? {
                    if entry.id.index != index {
                        return Ok(entries);
                    }
                    if index >= from {
                        taken += frame.size();
                        entries.push((offset, entry));
                    }
                    index += 1;
                }
                offset = next;
            }
        }
        debug_assert!(first.from <= from, "the first stretch holds the first entry");
        Ok(entries)
    }

    /// Returns the frame at `offset`, or behind the group's head there, and where the next one begins. Returns
    /// nothing at the end of what was written.
    async fn frame(&mut self, mut offset: u64, want: u64) -> Result<Option<(Frame, u64)>, Error> {
        if offset >= self.segment.end {
            return Ok(None);
        }
        let mut bytes = self.get(offset, FRAME_HEAD.min(self.left(offset)), want).await?;
        if is_group(&bytes) {
            offset += GROUP_HEAD as u64;
            bytes = self.get(offset, FRAME_HEAD.min(self.left(offset)), want).await?;
        }
        let head = Head::decode(&bytes).map_err(|what| self.damaged(offset, what.to_owned()))?;
        let length = FRAME_HEAD + head.length;
        if length > self.left(offset) {
            return Err(self.damaged(offset, "a frame is longer than its segment".to_owned()));
        }
        let bytes = self.get(offset, length, want).await?;
        let frame = Frame::decode(&bytes).map_err(|what| self.damaged(offset, what.to_owned()))?;
        Ok(Some((frame, offset + length as u64)))
    }

    fn left(&self, offset: u64) -> usize {
        usize::try_from(self.segment.end.saturating_sub(offset)).unwrap_or(usize::MAX)
    }

    /// Returns `length` bytes at `offset`, reading about `want` when they are not held.
    async fn get(&mut self, offset: u64, length: usize, want: u64) -> Result<Bytes, Error> {
        let held = self.base + self.bytes.len() as u64;
        if offset < self.base || offset + length as u64 > held {
            let want = usize::try_from(want).unwrap_or(usize::MAX).min(self.left(offset)).max(length);
            self.bytes = self.segment.file.read_at(offset, want).await?;
            self.base = offset;
            Counts::add(&self.shared.counts.file_reads, 1);
            self.shared.has_read(self.number, offset..offset + self.bytes.len() as u64);
            if self.bytes.len() < length {
                return Err(self.damaged(offset, "a read ended before the segment does".to_owned()));
            }
        }
        let start = usize::try_from(offset - self.base).unwrap_or(0);
        Ok(self.bytes.slice(start..start + length))
    }

    fn damaged(&self, offset: u64, what: String) -> Error {
        Error::Damaged { path: self.segment.path.clone(), offset, what }
    }
}
