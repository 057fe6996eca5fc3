//! The files of a stopped node, read-only: what is wrong with them, and what they still hold.
//!
//! Every frame and every part is read and checked once; where entries lie is remembered, so that they can be read again
//! one by one. Nothing is changed, and nothing is left out because something else is damaged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::PartRead;
use super::entry::Entry;
use super::frame::{FRAME_HEAD, Frame, Head, Kind};
use super::hard_state::HardState;
use super::recovery::dead_from;
use super::scan::{Window, look_behind};
use super::segment::{self, Beginning, HEADER, Header, Purpose};
use super::survey::{Came, Mark, Met, frames_between, survey};
use crate::Error;
use crate::fs::{Disk, File};

/// Something in a file that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The file.
    pub path: PathBuf,
    /// Where in the file.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
    /// Whether an open would cut it as the torn end of the log; anything else is damage.
    pub torn: bool,
    /// Whether it costs nothing but time: what it said stands elsewhere, too.
    pub harmless: bool,
}

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Segments that were read.
    pub segments: u64,
    /// Valid write groups.
    pub groups: u64,
    /// Entries, also truncated and purged ones.
    pub entries: u64,
    /// Single parts that snapshots brought.
    pub bodies: u64,
    /// Bytes of groups.
    pub bytes: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Reads all segments in `dir` and changes nothing. The log must not be open.
///
/// # Errors
///
/// What the disk says, and [`Error::UnknownVersion`]. Damage is reported, not returned.
pub async fn check(disk: Arc<dyn Disk>, dir: &Path) -> Result<Report, Error> {
    Ok(Salvage::open(disk, dir).await?.report)
}

/// Where a frame lies.
#[derive(Clone, Copy, Debug)]
struct Spot {
    segment: u64,
    offset: u64,
}

/// See the module.
pub struct Salvage {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    report: Report,
    state: HardState,
    entries: BTreeMap<u64, Spot>,
    bodies: BTreeMap<(u64, u16), Spot>,
    files: BTreeMap<u64, Arc<dyn File>>,
    /// The entry that was read last.
    last: Option<Entry>,
}

impl std::fmt::Debug for Salvage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Salvage").field("dir", &self.dir).field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

/// A segment that was read to its end.
struct Surveyed {
    number: u64,
    header: Header,
    end: Mark,
    /// Its trailer leads to its footer.
    has_footer: bool,
}

impl Salvage {
    /// Reads all segments in `dir`. The log must not be open.
    ///
    /// # Errors
    ///
    /// What the disk says, and [`Error::UnknownVersion`]. Damage is in the [report](Self::report).
    pub async fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, Error> {
        let mut numbers: Vec<u64> = disk.list(dir).await?.iter().filter_map(|name| segment::number(name)).collect();
        numbers.sort_unstable();
        let mut salvage = Self {
            disk,
            dir: dir.to_owned(),
            report: Report::default(),
            state: HardState::default(),
            entries: BTreeMap::new(),
            bodies: BTreeMap::new(),
            files: BTreeMap::new(),
            last: None,
        };
        let mut log: Option<Surveyed> = None;
        for number in numbers {
            let Some(surveyed) = salvage.read_segment(number).await? else { continue };
            if surveyed.header.purpose == Purpose::Log {
                if let Some(before) = &log {
                    salvage.compare(before, &surveyed.header);
                }
                log = Some(surveyed);
            }
        }
        // Only the newest segment of the log can have a torn end.
        let newest = segment::path(dir, log.map_or(0, |log| log.number));
        for finding in &mut salvage.report.findings {
            finding.torn &= finding.path >= newest;
        }
        Ok(salvage)
    }

    /// Returns what was read and what is wrong with it.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Returns the index of the last entry that the log said it had, or its purge point.
    #[must_use]
    pub fn last_index(&self) -> Option<u64> {
        self.state.last.map(|last| last.index)
    }

    /// Returns the first entry at or behind `from` that can be read, but for some of its parts perhaps.
    ///
    /// # Errors
    ///
    /// What the disk says.
    pub async fn next_entry(&mut self, from: u64) -> Result<Option<Entry>, Error> {
        let Some((index, spot)) = self.entries.range(from..).next().map(|(index, spot)| (*index, *spot)) else {
            return Ok(None);
        };
        if self.last.as_ref().is_none_or(|last| last.id.index != index) {
            let frame = self.frame(spot).await?;
            self.last = frame.to_entry()?;
        }
        Ok(self.last.clone())
    }

    /// Returns a part of an entry, whole.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when it is in no file, [`Error::Damaged`] when it is not what was written, and what the disk
    /// says.
    pub async fn part(&mut self, entry: u64, part: u16) -> Result<PartRead, Error> {
        if let Some(spot) = self.bodies.get(&(entry, part)).copied() {
            let frame = self.frame(spot).await?;
            return Ok(PartRead { time: frame.head.time, bytes: frame.payload });
        }
        let missing = Error::NotFound { entry, part };
        let Some(spot) = self.entries.get(&entry).copied() else { return Err(missing) };
        let Some(read) = self.next_entry(entry).await? else { return Err(missing) };
        match read.parts.get_checked(part) {
            Some(bytes) => Ok(PartRead { time: read.time, bytes }),
            None if part < read.parts.count() => {
                let what = format!("the checksum of part {part} of entry {entry} does not fit");
                Err(Error::Damaged { path: segment::path(&self.dir, spot.segment), offset: spot.offset, what })
            }
            None => Err(missing),
        }
    }

    async fn frame(&mut self, spot: Spot) -> Result<Frame, Error> {
        let path = segment::path(&self.dir, spot.segment);
        let file = match self.files.get(&spot.segment) {
            Some(file) => Arc::clone(file),
            None => self.disk.open(&path).await?,
        };
        self.files.insert(spot.segment, Arc::clone(&file));
        let damaged = |what: &str| Error::Damaged { path: path.clone(), offset: spot.offset, what: what.to_owned() };
        let head = file.read_at(spot.offset, FRAME_HEAD).await?;
        let head = Head::decode(&head).map_err(damaged)?;
        let bytes = file.read_at(spot.offset, FRAME_HEAD + head.length).await?;
        Frame::decode(&bytes).map_err(damaged)
    }

    async fn read_segment(&mut self, number: u64) -> Result<Option<Surveyed>, Error> {
        let path = segment::path(&self.dir, number);
        let file = self.disk.open(&path).await?;
        let mut window = Window::open(&file, &path).await?;
        let bytes = window.get(0, HEADER).await?;
        let header = match Header::decode(&bytes, number, &path)? {
            Beginning::Header(header) => header,
            beginning => match self.judge_beginning(&mut window, number, &beginning, &path).await? {
                Some(header) => header,
                None => return Ok(None),
            },
        };
        self.report.segments += 1;
        let footer = segment::read_footer(&file, number).await?;
        let limit = footer.as_ref().map_or(window.len, |(_, _, end)| *end);
        let from = Mark { offset: HEADER as u64, sequence: Some(header.first_sequence).filter(|first| *first > 0) };
        let has_footer = footer.is_some();
        let mut reading = Reading { salvage: self, number, path: path.clone(), last_group: 0, sealed: has_footer };
        let came = survey(&mut window, number, from, (limit, u64::MAX), |met| reading.take(met)).await?;
        if let Came::ToTheEnd { at, dirty: true } = came
            && !header.reused
        {
            // It may have been the head of the last group that was damaged, and not the write that was torn.
            let end = window.len;
            frames_between(&mut window, at.offset, end, &mut |met| reading.take(met)).await?;
        }
        let Reading { last_group, sealed, .. } = reading;
        let (Came::To(end) | Came::ToTheEnd { at: end, .. }) = came;
        self.report.bytes += end.offset;
        // What the last group says of itself was never vouched for by another one.
        for finding in self.report.findings.iter_mut().filter(|finding| finding.path == path) {
            finding.torn |= !sealed && last_group > 0 && finding.offset >= last_group;
        }
        if let Came::ToTheEnd { at, dirty: true } = came
            && !sealed
            && !header.reused
        {
            let what = "bytes behind the last valid write group".to_owned();
            self.report.findings.push(Finding { path, offset: at.offset, what, torn: true, harmless: false });
        }
        Ok(Some(Surveyed { number, header, end, has_footer }))
    }

    /// Judges a file that does not begin with its header. Returns one that is made up when there is something behind it.
    async fn judge_beginning(
        &mut self,
        window: &mut Window<'_>,
        number: u64,
        beginning: &Beginning,
        path: &Path,
    ) -> Result<Option<Header>, Error> {
        let behind = look_behind(window, number, HEADER as u64 - 1, 0).await?;
        let blank = match beginning {
            Beginning::Zero => !behind.dirty,
            _ => matches!(beginning, Beginning::Other) && behind.group.is_none(),
        };
        if blank {
            return Ok(None);
        }
        let (what, torn) = ("the header of the segment is not valid".to_owned(), behind.group.is_none());
        self.report.findings.push(Finding { path: path.to_owned(), offset: 0, what, torn, harmless: false });
        let header = Header { purpose: Purpose::Log, number, previous: 0, first_sequence: 0, reused: true };
        Ok((!torn).then_some(header))
    }

    /// Compares where a segment ends with where the next one begins.
    fn compare(&mut self, before: &Surveyed, next: &Header) {
        let path = segment::path(&self.dir, before.number);
        let is_next = next.previous == before.number && next.first_sequence > 0;
        let Some(sequence) = before.end.sequence.filter(|_| is_next) else { return };
        let (what, harmless) = match next.first_sequence.saturating_sub(sequence) {
            // The survey stops before a footer that is whole.
            1 if before.has_footer => return,
            0 | 1 => ("the footer of the segment is damaged: a start reads its frames instead", true),
            _ => ("write groups are missing at the end of the segment", false),
        };
        let offset = before.end.offset;
        self.report.findings.push(Finding { path, offset, what: what.to_owned(), torn: false, harmless });
    }
}

/// What one segment is read into.
struct Reading<'a> {
    salvage: &'a mut Salvage,
    number: u64,
    path: PathBuf,
    last_group: u64,
    sealed: bool,
}

impl Reading<'_> {
    fn take(&mut self, met: Met) {
        let report = &mut self.salvage.report;
        match met {
            Met::Group(offset) => {
                report.groups += 1;
                self.last_group = offset;
            }
            Met::Bad { offset, what, .. } => {
                report.findings.push(Finding { path: self.path.clone(), offset, what, torn: false, harmless: false });
            }
            Met::Frame(offset, frame) => self.take_frame(offset, &frame),
        }
    }

    fn take_frame(&mut self, offset: u64, frame: &Frame) {
        let salvage = &mut *self.salvage;
        let spot = Spot { segment: self.number, offset };
        if let Some(dead) = dead_from(&salvage.state, frame) {
            salvage.entries.split_off(&dead);
        }
        match frame.head.kind {
            Kind::Entry(_) => {
                salvage.report.entries += 1;
                salvage.entries.insert(frame.head.id.index, spot);
            }
            Kind::Body => {
                salvage.report.bodies += 1;
                let part = u16::try_from(frame.head.id.node).unwrap_or(u16::MAX);
                salvage.bodies.insert((frame.head.id.index, part), spot);
            }
            Kind::Footer => self.sealed = true,
            _ => {}
        }
        if let Err(what) = salvage.state.fold(frame) {
            let (path, what) = (self.path.clone(), what.to_owned());
            salvage.report.findings.push(Finding { path, offset, what, torn: false, harmless: false });
        }
    }
}
