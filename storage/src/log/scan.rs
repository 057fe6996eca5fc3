//! Reading a segment group by group, and telling a torn tail from damage.
//!
//! A group is written only after everything before it was flushed. So the last group may be torn, and that
//! is normal; a bad group with a valid one behind it was flushed once and is damage. The hole that remains:
//! bit rot in the very last group, before an idle mark follows it, looks like a torn write.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::frame::{FRAME_HEAD, Frame, GROUP_FIRST_BYTE, GROUP_HEAD, Group};
use super::segment::HEADER;
use crate::Error;
use crate::fs::File;

const WINDOW: u64 = 1 << 20;

/// A file that is read forward, a mebibyte at a time.
pub(crate) struct Window<'a> {
    file: &'a Arc<dyn File>,
    path: &'a Path,
    pub(crate) len: u64,
    base: u64,
    bytes: Bytes,
}

impl<'a> Window<'a> {
    pub(crate) async fn open(file: &'a Arc<dyn File>, path: &'a Path) -> Result<Self, Error> {
        Ok(Self { file, path, len: file.len().await?, base: 0, bytes: Bytes::new() })
    }

    /// Returns up to `want` bytes at `offset`: fewer only at the end of the file.
    pub(crate) async fn get(&mut self, offset: u64, want: usize) -> Result<Bytes, Error> {
        let want = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX).min(want);
        let held = self.base + self.bytes.len() as u64;
        if offset < self.base || offset + want as u64 > held {
            let least = usize::try_from(WINDOW.min(self.len.saturating_sub(offset))).unwrap_or(0);
            self.bytes = self.file.read_at(offset, want.max(least)).await?;
            self.base = offset;
            if self.bytes.len() < want {
                // Were this taken for the end of the log, a bad read would cost acknowledged entries.
                let what = "a read ended before the file does".to_owned();
                return Err(Error::Damaged { path: self.path.to_owned(), offset, what });
            }
        }
        let start = usize::try_from(offset - self.base).unwrap_or(0);
        Ok(self.bytes.slice(start..start + want))
    }
}

/// A valid group: its head and its frames with their places.
pub(crate) struct ReadGroup {
    pub(crate) head: Group,
    pub(crate) frames: Vec<(u64, Frame)>,
}

/// Reads the group at `offset`; says why there is none.
pub(crate) async fn read_group(
    window: &mut Window<'_>,
    number: u64,
    offset: u64,
) -> Result<Result<ReadGroup, &'static str>, Error> {
    let head = window.get(offset, GROUP_HEAD).await?;
    let Some(head) = Group::decode(&head, number, offset) else { return Ok(Err("no write group begins there")) };
    let start = offset + GROUP_HEAD as u64;
    let length = head.length as usize;
    let body = window.get(start, length).await?;
    if body.len() < length {
        return Ok(Err("a write group is cut"));
    }
    Ok(read_frames(&head, &body, start).map(|frames| ReadGroup { head, frames }))
}

fn read_frames(head: &Group, body: &Bytes, start: u64) -> Result<Vec<(u64, Frame)>, &'static str> {
    let mut frames = Vec::with_capacity(usize::try_from(head.frames).unwrap_or(0).min(body.len() / FRAME_HEAD));
    let (mut at, mut checksums) = (0, 0);
    while at < body.len() {
        let frame = Frame::decode(&body.slice(at..))?;
        checksums = crc32c::crc32c_append(checksums, &frame.checksum().to_le_bytes());
        if let Some(entry) = frame.to_entry().map_err(|_| "a part table is damaged")?
            && entry.parts.check().is_err()
        {
            return Err("the checksum of a part does not fit");
        }
        let place = start + at as u64;
        at += FRAME_HEAD + frame.payload.len();
        frames.push((place, frame));
    }
    if frames.len() != head.frames as usize || checksums != head.checksums {
        return Err("a write group does not hold the frames that it was written with");
    }
    Ok(frames)
}

/// What a scan found.
pub(crate) struct Scan {
    /// Where the valid groups end.
    pub(crate) end: u64,
    /// The sequence that the next group will have.
    pub(crate) sequence: u64,
    /// Where the last valid group begins.
    pub(crate) last_group: Option<u64>,
    /// Whether bytes other than zero lie beyond the end.
    pub(crate) dirty: bool,
}

/// Reads the groups of segment `number` up to `limit`, the first of which must have `sequence`, and gives each to `each`.
///
/// # Errors
///
/// [`Error::Damaged`] when a bad group has a valid one behind it.
pub(crate) async fn scan(
    window: &mut Window<'_>,
    number: u64,
    sequence: u64,
    limit: u64,
    mut each: impl FnMut(ReadGroup) -> Result<(), &'static str>,
) -> Result<Scan, Error> {
    let mut found = Scan { end: HEADER as u64, sequence, last_group: None, dirty: false };
    let damaged = |path: &Path, offset, what: String| Error::Damaged { path: path.to_owned(), offset, what };
    while found.end < limit {
        let group = match read_group(window, number, found.end).await? {
            Ok(group) if group.head.sequence == found.sequence && group.head.synced_to <= found.end => group,
            Ok(_) => {
                let what = "a write group has another number than its place".to_owned();
                return Err(damaged(window.path, found.end, what));
            }
            Err(what) => {
                let rest = look_behind(window, number, found.end, sequence).await?;
                if let Some(later) = rest.group {
                    let what = format!("{what}, although byte {later} was written after it had been flushed");
                    return Err(damaged(window.path, found.end, what));
                }
                found.dirty = rest.dirty;
                return Ok(found);
            }
        };
        let next = found.end + GROUP_HEAD as u64 + u64::from(group.head.length);
        each(group).map_err(|what| damaged(window.path, found.end, what.to_owned()))?;
        found.last_group = Some(found.end);
        found.end = next;
        found.sequence += 1;
    }
    // The end was given: what lies behind it is to go, whatever it is.
    found.dirty = found.end < window.len;
    Ok(found)
}

/// What lies behind the last valid group.
pub(crate) struct Rest {
    /// Where a later group begins.
    pub(crate) group: Option<u64>,
    pub(crate) dirty: bool,
}

/// Searches the file behind `end` for a group that was written after something there had been flushed, and for any
/// byte that is not zero.
pub(crate) async fn look_behind(window: &mut Window<'_>, number: u64, end: u64, sequence: u64) -> Result<Rest, Error> {
    let mut rest = Rest { group: None, dirty: false };
    let mut at = end;
    loop {
        // Most of what was reserved was never written.
        at = window.file.next_data(at).await?;
        if at >= window.len {
            break;
        }
        // Chunks overlap by less than a head, so that no group falls between two.
        let chunk = window.get(at, usize::try_from(WINDOW).unwrap_or(usize::MAX)).await?;
        for (page, bytes) in chunk.chunks(4096).enumerate() {
            if bytes.iter().fold(0, |all, byte| all | byte) == 0 {
                continue;
            }
            rest.dirty = true;
            for (place, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == GROUP_FIRST_BYTE) {
                let place = page * 4096 + place;
                let offset = at + place as u64;
                let head = &chunk[place..chunk.len().min(place + GROUP_HEAD)];
                let is_later = |group: Group| group.sequence >= sequence && group.synced_to > end;
                if offset > end && Group::decode(head, number, offset).is_some_and(is_later) {
                    rest.group = Some(offset);
                    return Ok(rest);
                }
            }
        }
        if at + chunk.len() as u64 >= window.len {
            break;
        }
        at += (chunk.len() - (GROUP_HEAD - 1)) as u64;
    }
    Ok(rest)
}
