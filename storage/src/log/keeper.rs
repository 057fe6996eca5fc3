//! The task that makes and removes files, so that the writer does not wait for it: it reserves the next
//! segment ahead of need, removes segments, and writes bodies that a snapshot brings.
//!
//! The files of removed segments are kept for a while to be written again: on room that was written before, a
//! sync has no metadata to write, and the kernel finds the pages in its cache. Only a file that nobody reads any
//! more is written again, and nothing that it held is ever taken for a part of the new segment: every group and
//! header names its segment.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kubemq_runtime::Instant;
use kubemq_runtime::sync::oneshot;

use super::Body;
use super::entry::LogId;
use super::frame::{Frame, GROUP_HEAD, Group, Kind};
use super::page_cache::Stretch;
use super::recovery::BodyRanges;
use super::segment::{self, FOOTER_ROOM, HEADER, Header, Purpose};
use super::shared::{Segment, Shared};
use crate::Error;
use crate::fs::File;

/// What the keeper is asked to do.
pub(crate) enum KeeperJob {
    /// Look how much of the disk is free, and give back what was kept for too long.
    Look,
    /// Reserve a segment.
    Reserve { reply: oneshot::Sender<Result<Spare, Error>> },
    /// Remove segments that are known to be removable.
    Remove { numbers: Vec<u64>, reply: oneshot::Sender<Result<(), Error>> },
    /// Tell the system that parts of files will hardly be read again.
    LetGo { stretches: Vec<Stretch> },
    /// Write bodies and sync them.
    Insert { bodies: Vec<Body>, reply: oneshot::Sender<Result<(), Error>> },
}

/// Freed files that are kept, at most.
pub(super) const FREE_FILES: usize = 8;
/// How long they are kept when none comes or goes.
pub(super) const FREE_FOR: Duration = Duration::from_secs(60);

/// A reserved file, durable under its name.
pub(crate) struct Spare {
    pub(crate) number: u64,
    pub(crate) file: Arc<dyn File>,
    pub(crate) path: PathBuf,
    /// Bytes for groups.
    pub(crate) len: u64,
    /// The file was another segment before.
    pub(crate) reused: bool,
}

/// The body segment that is being written.
struct Open {
    number: u64,
    file: Arc<dyn File>,
    path: PathBuf,
    offset: u64,
    sequence: u64,
    range: Option<(u64, u64)>,
    parts: u64,
}

pub(crate) struct Keeper {
    shared: Arc<Shared>,
    open: Option<Open>,
    /// Files of removed segments, to be written again.
    free: Vec<PathBuf>,
    /// When the last of them came or went.
    freed: Instant,
}

impl Keeper {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let freed = shared.clock.now();
        Self { shared, open: None, free: Vec::new(), freed }
    }

    /// Works until the queue is closed.
    pub(crate) async fn run(mut self) {
        self.look_at_the_disk().await;
        while let Some(job) = self.shared.keeper.pop().await {
            // Whoever asked may be gone; the work was wanted all the same.
            match job {
                KeeperJob::Look => self.look().await,
                KeeperJob::LetGo { stretches } => self.let_go(stretches).await,
                KeeperJob::Reserve { reply } => drop(reply.send(self.reserve().await)),
                KeeperJob::Remove { numbers, reply } => drop(reply.send(self.remove(numbers).await)),
                KeeperJob::Insert { bodies, reply } => {
                    let inserted = self.insert(bodies).await;
                    if inserted.is_err() {
                        // What that file holds is in doubt; the next bodies go into another one.
                        self.open = None;
                    }
                    drop(reply.send(inserted));
                }
            }
        }
        self.remove_free().await;
    }

    async fn reserve(&mut self) -> Result<Spare, Error> {
        let shared = &self.shared;
        let number = shared.new_number();
        let path = segment::path(&shared.dir, number);
        let (len, free) = (shared.options.segment_bytes, self.free.pop());
        let reused = free.is_some();
        self.freed = shared.clock.now();
        let file = match free {
            Some(free) => {
                shared.disk.rename(&free, &path).await?;
                shared.disk.open(&path).await?
            }
            None => shared.disk.create(&path).await?,
        };
        let reserved = async {
            file.allocate(len + FOOTER_ROOM).await?;
            file.sync_data().await?;
            shared.disk.sync_dir(&shared.dir).await
        };
        match reserved.await {
            Ok(()) => Ok(Spare { number, file, path, len, reused }),
            Err(error) => {
                // An empty file in the way of nothing; the next open removes it, too.
                if let Err(error) = shared.disk.remove(&path).await {
                    tracing::warn!(error = %kubemq_runtime::chain(&error), "could not remove a segment without room");
                }
                Err(error)
            }
        }
    }

    async fn remove(&mut self, numbers: Vec<u64>) -> Result<(), Error> {
        for number in numbers {
            if self.open.as_ref().is_some_and(|open| open.number == number) {
                self.open = None;
            }
            let segment = {
                let mut index = self.shared.index.lock();
                let segment = index.segments.get(&number).cloned();
                index.remove_segment(number);
                segment
            };
            let Some(segment) = segment else { continue };
            // Readers that still hold the file go on reading it: then it is not written again.
            let whole = segment.purpose == Purpose::Log
                && segment.file.len().await? == self.shared.options.segment_bytes + FOOTER_ROOM;
            // Where room is scarce it is given back at once.
            let wanted = self.free.len() < FREE_FILES && !self.shared.nearly_full.load(Ordering::Relaxed);
            if whole && wanted && Arc::strong_count(&segment.file) == 1 {
                let free = segment::free_path(&self.shared.dir, number);
                self.shared.disk.rename(&segment.path, &free).await?;
                self.free.push(free);
                self.freed = self.shared.clock.now();
            } else {
                self.shared.disk.remove(&segment.path).await?;
            }
        }
        self.shared.disk.sync_dir(&self.shared.dir).await
    }

    async fn let_go(&self, stretches: Vec<Stretch>) {
        for Stretch { segment, range } in stretches {
            // A file that is gone keeps nothing.
            let file = self.shared.index.lock().segments.get(&segment).map(|segment| Arc::clone(&segment.file));
            if let Some(file) = file {
                file.let_go(range).await;
            }
        }
    }

    async fn look(&mut self) {
        self.shared.looks.store(false, Ordering::Relaxed);
        self.look_at_the_disk().await;
        if self.shared.clock.now().since(self.freed) >= FREE_FOR {
            self.remove_free().await;
        }
    }

    /// Notes whether little of the disk is left, and says so when that changes.
    async fn look_at_the_disk(&mut self) {
        let Shared { disk, dir, options, nearly_full, free_bytes, .. } = &*self.shared;
        if options.reserve_bytes == 0 {
            return;
        }
        let (free, total) = match (disk.free_space(dir).await, disk.total_space(dir).await) {
            (Ok(free), Ok(total)) => (free, total),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(error = %kubemq_runtime::chain(&error), "could not ask how much of the disk is free");
                return;
            }
        };
        free_bytes.store(free, Ordering::Relaxed);
        let reserve =
            (total / 20).clamp(4 * options.segment_bytes, options.reserve_bytes.max(4 * options.segment_bytes));
        let was = nearly_full.load(Ordering::Relaxed);
        // A little more must be free before it is over, or it would be over and begin again with each segment.
        let is = free < if was { reserve + reserve / 8 } else { reserve };
        nearly_full.store(is, Ordering::Relaxed);
        match (was, is) {
            (false, true) => {
                tracing::error!(free, reserve, "the disk is nearly full: nothing more is stored until there is room");
                self.remove_free().await;
            }
            (true, false) => tracing::warn!(free, reserve, "there is room on the disk again"),
            _ => {}
        }
    }

    /// Gives the room of freed files back. What fails here is removed by the next open.
    async fn remove_free(&mut self) {
        for path in std::mem::take(&mut self.free) {
            if let Err(error) = self.shared.disk.remove(&path).await {
                tracing::warn!(error = %kubemq_runtime::chain(&error), "could not remove a freed segment");
            }
        }
    }

    async fn insert(&mut self, mut bodies: Vec<Body>) -> Result<(), Error> {
        if bodies.is_empty() {
            return Ok(());
        }
        bodies.sort_by_key(|body| (body.entry, body.part));
        if self.open.as_ref().is_none_or(|open| open.offset >= self.shared.options.segment_bytes) {
            self.open = Some(self.create().await?);
        }
        let Some(open) = &mut self.open else { return Err(Error::Closed) };
        let (number, start) = (open.number, open.offset);
        let mut ranges = BodyRanges::new(open.number);
        let mut bodies = bodies.into_iter().peekable();
        while bodies.peek().is_some() {
            let most = self.shared.options.group_bytes;
            let mut frames = Vec::new();
            let mut length = 0;
            while let Some(body) = bodies.next_if(|body| length == 0 || length + body.bytes.len() as u64 <= most) {
                let frame = body_frame(body);
                length += frame.size();
                frames.push(frame);
            }
            open.write(frames, &mut ranges).await?;
        }
        let end = open.offset;
        self.publish(ranges);
        self.shared.has_written(number, start..end);
        Ok(())
    }

    async fn create(&self) -> Result<Open, Error> {
        let shared = &self.shared;
        let number = shared.new_number();
        let path = segment::path(&shared.dir, number);
        let file = shared.disk.create(&path).await?;
        let header = Header { purpose: Purpose::Bodies, number, previous: 0, first_sequence: 1, reused: false };
        file.write_at(0, &[header.encode()]).await?;
        // A name that leads to a torn header would look like a damaged segment of the log.
        file.sync_data().await?;
        shared.disk.sync_dir(&shared.dir).await?;
        Ok(Open { number, file, path, offset: HEADER as u64, sequence: 1, range: None, parts: 0 })
    }

    fn publish(&self, ranges: BodyRanges) {
        let Some(open) = &self.open else { return };
        let mut index = self.shared.index.lock();
        index.bodies.extend(ranges.ranges);
        let segment = Segment {
            file: Arc::clone(&open.file),
            path: open.path.clone(),
            purpose: Purpose::Bodies,
            range: open.range,
            parts: open.parts,
            end: open.offset,
            sealed: true,
        };
        index.segments.insert(open.number, segment);
    }
}

fn body_frame(body: Body) -> Frame {
    let id = LogId { term: 0, node: u64::from(body.part), index: body.entry };
    Frame::new(Kind::Body, id, body.bytes).with_time(body.time)
}

impl Open {
    async fn write(&mut self, frames: Vec<Frame>, ranges: &mut BodyRanges) -> Result<(), Error> {
        let (mut pieces, mut small) = (vec![Bytes::new()], BytesMut::new());
        let (mut length, mut checksums) = (0_u64, 0);
        let start = self.offset + GROUP_HEAD as u64;
        for frame in &frames {
            let checksum = frame.encode_head(&mut small);
            checksums = crc32c::crc32c_append(checksums, &checksum.to_le_bytes());
            pieces.push(small.split().freeze());
            pieces.push(frame.payload.clone());
            ranges.add(start + length, frame);
            length += frame.size();
            self.parts += 1;
            let entry = frame.head.id.index;
            let (least, greatest) = self.range.unwrap_or((entry, entry));
            self.range = Some((least.min(entry), greatest.max(entry)));
        }
        let group = Group {
            length: u32::try_from(length).unwrap_or(u32::MAX),
            frames: u32::try_from(frames.len()).unwrap_or(u32::MAX),
            synced_to: self.offset,
            sequence: self.sequence,
            checksums,
        };
        pieces[0] = group.encode(self.number, self.offset);
        self.file.write_at(self.offset, &pieces).await?;
        // Before the next group, as in the log: a bad group with another one behind it is damage.
        self.file.sync_data().await?;
        self.offset = start + length;
        self.sequence += 1;
        Ok(())
    }
}

/// Returns which of `numbers` may not be removed, and why.
pub(crate) fn refuses(segments: &BTreeMap<u64, Segment>, purged: Option<u64>, numbers: &[u64]) -> Option<&'static str> {
    numbers.iter().find_map(|number| {
        let segment = segments.get(number)?;
        let above = segment.range.is_some_and(|(_, last)| purged.is_none_or(|purged| purged < last));
        match segment.purpose {
            Purpose::Bodies => None,
            Purpose::Log if !segment.sealed => Some("the segment is being written"),
            Purpose::Log if above => Some("the segment holds entries above the purge point"),
            Purpose::Log => None,
        }
    })
}
