//! Opening a log: what lies in the directory becomes the state and the positions, a torn tail is cut,
//! damage is named.
//!
//! Nothing is repaired here and nothing that was flushed is dropped. When this has returned, everything
//! that it reports is on the disk, also what a crash caught between its write and its sync.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, BytesMut};

use super::entry::{LogId, Parts};
use super::frame::{FRAME_HEAD, Frame, GROUP_HEAD, Kind};
use super::hard_state::HardState;
use super::position::{Positions, SAMPLE_BYTES, Sampler};
use super::scan::{self, Scan, Window};
use super::segment::{self, Beginning, FOOTER_ROOM, Footer, HEADER, Header, Purpose};
use super::shared::{BodyRange, Index, Segment};
use crate::Error;
use crate::fs::{Disk, File};

/// The file in which a log that could not sync says so.
pub(crate) const NOTE: &str = "sync-failed";

/// What was found, ready to go on with.
pub(crate) struct Recovered {
    pub(crate) index: Index,
    pub(crate) active: Option<Active>,
    /// The newest segment of the log, 0 when there is none.
    pub(crate) newest: u64,
    /// The sequence that the next group will have.
    pub(crate) sequence: u64,
    pub(crate) next_number: u64,
}

/// The segment that is being written.
pub(crate) struct Active {
    pub(crate) number: u64,
    pub(crate) file: Arc<dyn File>,
    pub(crate) path: PathBuf,
    /// Where the next group goes; everything before it is synced.
    pub(crate) offset: u64,
    /// Bytes reserved.
    pub(crate) len: u64,
    /// The file was another segment before.
    pub(crate) reused: bool,
    /// Up to here the file was written before, if only with zeros.
    pub(crate) paved: u64,
    pub(crate) sampler: Sampler,
}

/// What lies behind the last group of a segment.
#[derive(Clone, Copy)]
struct Rest {
    /// It is to go: it was written and never answered for.
    cut: bool,
    /// It is a trailer.
    sealed: bool,
}

struct Found {
    number: u64,
    path: PathBuf,
    file: Arc<dyn File>,
    header: Header,
}

/// Reads the log in `dir`.
pub(crate) async fn recover(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Recovered, Error> {
    let mut recovery = Recovery {
        disk,
        dir,
        index: Index::default(),
        active: None,
        newest: 0,
        sequence: 1,
        next_number: 1,
        unusable: Vec::new(),
        holes: Vec::new(),
    };
    disk.create_dir_all(dir).await?;
    let note = read_note(disk, dir).await?;
    let found = recovery.find(note).await?;
    recovery.read_log(&found, note).await?;
    for body in found.iter().filter(|found| found.header.purpose == Purpose::Bodies) {
        recovery.read_bodies(body).await?;
    }
    recovery.check_holes()?;
    recovery.clean(note.is_some()).await?;
    Ok(recovery.finish())
}

struct Recovery<'a> {
    disk: &'a Arc<dyn Disk>,
    dir: &'a Path,
    index: Index,
    active: Option<Active>,
    newest: u64,
    sequence: u64,
    next_number: u64,
    /// Reserved and freed files, and segments whose first write was torn.
    unusable: Vec<PathBuf>,
    /// Segments whose predecessor is gone, and the last entry before them.
    holes: Vec<(PathBuf, Option<LogId>)>,
}

impl Recovery<'_> {
    /// Opens the segments, in order, and sorts out those that were never written.
    async fn find(&mut self, note: Option<Note>) -> Result<Vec<Found>, Error> {
        let names = self.disk.list(self.dir).await?;
        self.unusable = names.iter().filter(|name| segment::is_free(name)).map(|name| self.dir.join(name)).collect();
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment::number(name)).collect();
        numbers.sort_unstable();
        let mut found: Vec<Found> = Vec::new();
        // Newest first: whether a bad beginning is a torn write depends on what was written later.
        for number in numbers.into_iter().rev() {
            self.next_number = self.next_number.max(number + 1);
            let path = segment::path(self.dir, number);
            let file = self.disk.open(&path).await?;
            let dropped = note.is_some_and(|note| note.number == number && note.offset <= HEADER as u64);
            let beginning = {
                let mut window = Window::open(&file, &path).await?;
                let bytes = window.get(0, HEADER).await?;
                Header::decode(&bytes, number, &path)?
            };
            let later_log = found.iter().any(|later| later.header.purpose == Purpose::Log);
            match beginning {
                _ if dropped => self.unusable.push(path),
                Beginning::Header(header) => {
                    let mut window = Window::open(&file, &path).await?;
                    let torn = header.purpose == Purpose::Log
                        && !later_log
                        && self.first_group_is_torn(&mut window, &header, &path).await?;
                    if torn {
                        self.unusable.push(path);
                    } else {
                        found.push(Found { number, path, file, header });
                    }
                }
                beginning => {
                    let reused = matches!(beginning, Beginning::Other);
                    let mut window = Window::open(&file, &path).await?;
                    let behind = scan::look_behind(&mut window, number, HEADER as u64, 0).await?;
                    if behind.group.is_some() || (later_log && behind.dirty && !reused) {
                        let what = "the header of a segment is damaged".to_owned();
                        return Err(Error::Damaged { path, offset: 0, what });
                    }
                    // Reserved and never used, or its first write was torn. Were it more than that, the
                    // segment after it would miss it.
                    self.unusable.push(path);
                }
            }
        }
        found.reverse();
        Ok(found)
    }

    /// Returns whether the newest segment has a header but no valid first group: both go in one write.
    async fn first_group_is_torn(&self, window: &mut Window<'_>, header: &Header, path: &Path) -> Result<bool, Error> {
        let Err(what) = scan::read_group(window, header.number, HEADER as u64).await? else { return Ok(false) };
        let behind = scan::look_behind(window, header.number, HEADER as u64, 0).await?;
        match behind.group {
            None => Ok(true),
            Some(_) => Err(Error::Damaged { path: path.to_owned(), offset: HEADER as u64, what: what.to_owned() }),
        }
    }

    async fn read_log(&mut self, found: &[Found], note: Option<Note>) -> Result<(), Error> {
        let log: Vec<&Found> = found.iter().filter(|found| found.header.purpose == Purpose::Log).collect();
        for (place, segment) in log.iter().enumerate() {
            let (header, next) = (&segment.header, log.get(place + 1));
            let before = place.checked_sub(1).and_then(|before| log.get(before)).map_or(0, |before| before.number);
            if header.previous != before {
                self.holes.push((segment.path.clone(), self.last_before(segment).await?));
            }
            // Without its direct successor nothing says how many groups a segment had.
            let groups_end = next.filter(|next| next.header.previous == segment.number);
            let groups_end = groups_end.map(|next| next.header.first_sequence);
            let footer = match next {
                Some(_) => segment::read_footer(&segment.file, segment.number)
                    .await?
                    .filter(|(_, sequence, _)| groups_end.is_none_or(|end| sequence + 1 == end)),
                None => None,
            };
            match footer {
                Some((footer, sequence, end)) => self.take_footer(segment, footer, sequence, end),
                None => self.read_segment(segment, next.is_some(), groups_end, note).await?,
            }
            self.newest = segment.number;
        }
        Ok(())
    }

    /// Returns the last entry before a segment, from the hard state at its head.
    async fn last_before(&self, found: &Found) -> Result<Option<LogId>, Error> {
        let mut window = Window::open(&found.file, &found.path).await?;
        let mut state = HardState::default();
        if let Ok(group) = scan::read_group(&mut window, found.number, HEADER as u64).await?
            && let Some((_, frame)) = group.frames.first()
        {
            // A malformed first frame is found again, and named, when the segment is read.
            state.fold(frame).ok();
        }
        Ok(state.last)
    }

    fn take_footer(&mut self, found: &Found, footer: Footer, sequence: u64, end: u64) {
        if let Some(dead) = footer.dead_from {
            self.index.positions.truncate_from(dead);
        }
        for (index, sample) in footer.samples {
            self.index.positions.insert(index, sample);
        }
        self.index.state = footer.state;
        self.sequence = sequence + 1;
        self.insert(found, (footer.range, footer.parts), end, true);
    }

    /// Takes a segment with the range of its entries and the number of its parts.
    fn insert(&mut self, found: &Found, holds: (Option<(u64, u64)>, u64), end: u64, sealed: bool) {
        let (file, path, purpose) = (Arc::clone(&found.file), found.path.clone(), found.header.purpose);
        let (range, parts) = holds;
        self.index.segments.insert(found.number, Segment { file, path, purpose, range, parts, end, sealed });
    }

    /// Reads a segment frame by frame: the newest one, or a sealed one whose footer cannot be read.
    async fn read_segment(
        &mut self,
        found: &Found,
        is_sealed: bool,
        groups_end: Option<u64>,
        note: Option<Note>,
    ) -> Result<(), Error> {
        let number = found.number;
        let note = note.filter(|note| note.number == number);
        let limit = note.map_or(u64::MAX, |note| note.offset);
        let mut window = Window::open(&found.file, &found.path).await?;
        let limit = limit.min(window.len);
        let (index, mut sampler, mut sealed) = (&mut self.index, Sampler::default(), false);
        let scan = scan::scan(&mut window, number, found.header.first_sequence, limit, |group| {
            for (offset, frame) in &group.frames {
                sealed |= frame.head.kind == Kind::Footer;
                fold(&mut index.state, &mut sampler, &mut index.positions, number, *offset, frame)?;
            }
            Ok(())
        })
        .await?;
        let (len, end) = (window.len, scan.end);
        if is_sealed {
            // Only the footer itself may be missing: it says nothing that the frames do not say.
            let whole =
                groups_end.is_none_or(|groups| scan.sequence == groups || (scan.sequence + 1 == groups && !sealed));
            if !whole {
                let what = "write groups are missing at the end of a segment".to_owned();
                return Err(Error::Damaged { path: found.path.clone(), offset: end, what });
            }
            tracing::warn!(path = %found.path.display(), "the footer of a segment is damaged: read its frames instead");
            self.sequence = scan.sequence;
            self.insert(found, (sampler.range, sampler.parts), end, true);
            return Ok(());
        }
        self.sequence = scan.sequence;
        // A segment whose footer was written takes nothing more.
        let cut = scan.dirty && !sealed && (note.is_some() || !found.header.reused);
        self.make_durable(found, &scan, len, Rest { cut, sealed }).await?;
        self.insert(found, (sampler.range, sampler.parts), end, sealed);
        if !sealed {
            let (file, path) = (Arc::clone(&found.file), found.path.clone());
            let len = len.saturating_sub(FOOTER_ROOM).max(end);
            let reused = found.header.reused;
            self.active = Some(Active { number, file, path, offset: end, len, reused, paved: end, sampler });
        }
        Ok(())
    }

    /// Cuts what was torn and writes the last group again: a crash may have come before its sync, and after
    /// a failed sync the page cache may show what never reached the disk.
    async fn make_durable(&self, found: &Found, scan: &Scan, len: u64, rest: Rest) -> Result<(), Error> {
        let Rest { cut, sealed } = rest;
        let file = &found.file;
        if cut {
            tracing::warn!(path = %found.path.display(), offset = scan.end, "cut a write that a crash tore");
            file.set_len(scan.end).await?;
            file.allocate(len).await?;
        }
        if let Some(last) = scan.last_group {
            // The first group went in one write with the header.
            let start = if last == HEADER as u64 { 0 } else { last };
            let length = usize::try_from(scan.end - start).unwrap_or(usize::MAX);
            let bytes = file.read_at(start, length).await?;
            file.write_at(start, &[bytes]).await?;
            if sealed {
                let at = segment::trailer_at(len, scan.end);
                file.write_at(at, &[segment::trailer(found.number, last)]).await?;
            }
        }
        file.sync_data().await
    }

    async fn read_bodies(&mut self, found: &Found) -> Result<(), Error> {
        let mut window = Window::open(&found.file, &found.path).await?;
        let len = window.len;
        let (mut ranges, mut range, mut parts) = (BodyRanges::new(found.number), None::<(u64, u64)>, 0);
        let scan = scan::scan(&mut window, found.number, found.header.first_sequence, len, |group| {
            for (offset, frame) in &group.frames {
                if frame.head.kind == Kind::Body {
                    ranges.add(*offset, frame);
                    parts += 1;
                    let (least, greatest) = range.unwrap_or((u64::MAX, 0));
                    range = Some((least.min(frame.head.id.index), greatest.max(frame.head.id.index)));
                }
            }
            Ok(())
        })
        .await?;
        // What was caught before its sync is offered from now on, so it must stay.
        self.make_durable(found, &scan, len, Rest { cut: scan.dirty, sealed: false }).await?;
        self.index.bodies.extend(ranges.ranges);
        self.insert(found, (range, parts), scan.end, true);
        Ok(())
    }

    /// Refuses a log from whose middle a segment above the purge point is gone.
    fn check_holes(&self) -> Result<(), Error> {
        let purged = self.index.state.purged;
        for (path, last) in &self.holes {
            if let Some(last) = last
                && purged.is_none_or(|purged| purged.index < last.index)
            {
                let what = format!("the segment before it, with entries up to {}, is missing", last.index);
                return Err(Error::Damaged { path: path.clone(), offset: 0, what });
            }
        }
        Ok(())
    }

    /// Removes what was never used, and the note of a failed sync now that the log was cut there.
    async fn clean(&self, note: bool) -> Result<(), Error> {
        for path in &self.unusable {
            match self.disk.remove(path).await {
                // A log that has just been closed gives its freed files back itself.
                Err(error) if error.is_missing() => {}
                removed => removed?,
            }
        }
        if note {
            self.disk.remove(&self.dir.join(NOTE)).await?;
        }
        if note || !self.unusable.is_empty() {
            // A note that came back would cut what is written from now on.
            self.disk.sync_dir(self.dir).await?;
        }
        Ok(())
    }

    fn finish(mut self) -> Recovered {
        let index = &mut self.index;
        if let (Some(committed), last) = (index.state.committed, index.state.last)
            && last.is_none_or(|last| last.index < committed.index)
        {
            index.state.committed = last;
        }
        index.synced_before = index.next().unwrap_or(0);
        index.durable_purged = index.state.purged;
        let (active, newest) = (self.active, self.newest);
        Recovered { index: self.index, active, newest, sequence: self.sequence, next_number: self.next_number }
    }
}

/// Takes over what a frame at `offset` of segment `number` says; returns from which index on it leaves no
/// entries. The writer does the same with what it wrote.
pub(crate) fn fold(
    state: &mut HardState,
    sampler: &mut Sampler,
    positions: &mut Positions,
    number: u64,
    offset: u64,
    frame: &Frame,
) -> Result<Option<u64>, &'static str> {
    let dead = dead_from(state, frame);
    if let Some(dead) = dead {
        sampler.truncate_from(dead);
        positions.truncate_from(dead);
    }
    if let Kind::Entry(_) = frame.head.kind {
        sampler.parts += u64::from(Parts::count_of(&frame.payload).saturating_sub(1));
    }
    if let Kind::Entry(_) = frame.head.kind
        && let Some(sample) = sampler.entry(frame.head.id.index, number, offset, frame.head.time)
    {
        positions.insert(frame.head.id.index, sample);
    }
    state.fold(frame)?;
    Ok(dead)
}

/// Returns from which index on a frame leaves no entries: a truncation, or a purge beyond the last entry.
pub(crate) fn dead_from(state: &HardState, frame: &Frame) -> Option<u64> {
    let id = frame.head.id;
    let next = state.last.map_or(0, |last| last.index + 1);
    match frame.head.kind {
        Kind::Truncate if frame.head.flag => Some(id.index + 1),
        Kind::Truncate => Some(0),
        Kind::Purge if next <= id.index => Some(next),
        _ => None,
    }
}

/// Gathers the bodies of one segment into ranges.
pub(crate) struct BodyRanges {
    segment: u64,
    pub(crate) ranges: BTreeMap<(u64, u16), BodyRange>,
    /// The key of the range that may go on, and where the next body would have to lie.
    open: Option<((u64, u16), u64)>,
}

impl BodyRanges {
    pub(crate) fn new(segment: u64) -> Self {
        Self { segment, ranges: BTreeMap::new(), open: None }
    }

    pub(crate) fn add(&mut self, offset: u64, frame: &Frame) {
        let (entry, part) = (frame.head.id.index, u16::try_from(frame.head.id.node).unwrap_or(u16::MAX));
        let next = offset + FRAME_HEAD as u64 + frame.payload.len() as u64;
        if let Some((key, at)) = self.open
            && let Some(range) = self.ranges.get_mut(&key)
            && key.0 == entry
            && u32::from(key.1) + u32::from(range.count) == u32::from(part)
            && at == offset
            && offset - range.offset < SAMPLE_BYTES
        {
            range.count += 1;
            self.open = Some((key, next));
            return;
        }
        self.ranges.insert((entry, part), BodyRange { count: 1, segment: self.segment, offset });
        self.open = Some(((entry, part), next));
    }
}

/// Where a log stopped because it could not sync.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Note {
    pub(crate) number: u64,
    pub(crate) offset: u64,
}

impl Note {
    pub(crate) fn encode(self) -> bytes::Bytes {
        let mut out = BytesMut::new();
        out.put_u64_le(self.number);
        out.put_u64_le(self.offset);
        let checksum = crc32c::crc32c(&out);
        out.put_u32_le(checksum);
        out.freeze()
    }
}

async fn read_note(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Option<Note>, Error> {
    let path = dir.join(NOTE);
    let file = match disk.open(&path).await {
        Ok(file) => file,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(error),
    };
    let bytes = file.read_at(0, 20).await?;
    let mut rest = &bytes[..];
    let (Ok(number), Ok(offset), Ok(checksum)) = (rest.try_get_u64_le(), rest.try_get_u64_le(), rest.try_get_u32_le())
    else {
        // The crash came while it was written: the last group is written again instead.
        return Ok(Some(Note { number: 0, offset: u64::MAX }));
    };
    if crc32c::crc32c(&bytes[..16]) != checksum {
        return Ok(Some(Note { number: 0, offset: u64::MAX }));
    }
    Ok(Some(Note { number, offset }))
}

const _: () = assert!(GROUP_HEAD < HEADER);
