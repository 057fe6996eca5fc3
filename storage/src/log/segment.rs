//! One file of the log: its name, its header, and the trailer that leads to its footer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::entry::u32_at;
use super::frame::{Frame, GROUP_HEAD, Group, Kind};
use super::hard_state::HardState;
use super::position::Sample;
use crate::Error;
use crate::fs::File;

/// The format that this program writes.
pub(crate) const VERSION: u32 = 1;
/// Bytes before the first group.
pub(crate) const HEADER: usize = 64;
/// Bytes at the very end of a sealed segment.
const TRAILER: usize = 32;

/// Bytes reserved behind a segment's groups for its footer; a larger one makes the file grow.
pub(crate) const FOOTER_ROOM: u64 = 64 << 10;

const HEADER_MAGIC: &[u8; 8] = b"kmq-log\n";
const TRAILER_MAGIC: &[u8; 8] = b"kmq-end\n";
const EXTENSION: &str = "seg";
const FREE_EXTENSION: &str = "free";

/// What a segment holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// Entries and hard state, in the order in which they were written.
    Log,
    /// Single parts, found by (entry, part).
    Bodies,
}

/// The beginning of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) purpose: Purpose,
    pub(crate) number: u64,
    /// The segment of the log before this one, 0 when there was none.
    pub(crate) previous: u64,
    /// The sequence of its first group.
    pub(crate) first_sequence: u64,
    /// The file was another segment before: behind the groups of this one lies what that one held.
    pub(crate) reused: bool,
}

/// What the first bytes of a file are.
pub(crate) enum Beginning {
    Header(Header),
    /// Reserved and not written yet.
    Zero,
    /// That of the segment that the file was before: reserved and not written since.
    Other,
    Bad,
}

impl Header {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER);
        out.put_slice(HEADER_MAGIC);
        out.put_u32_le(VERSION);
        out.put_u32_le(match self.purpose {
            Purpose::Log => 0,
            Purpose::Bodies => 1,
        });
        out.put_u64_le(self.number);
        out.put_u64_le(self.previous);
        out.put_u64_le(self.first_sequence);
        out.put_u8(u8::from(self.reused));
        out.put_bytes(0, HEADER - 4 - out.len());
        let checksum = crc32c::crc32c(&out);
        out.put_u32_le(checksum);
        out.freeze()
    }

    /// Reads the beginning of the file at `path`, which is named after segment `number`.
    pub(crate) fn decode(bytes: &[u8], number: u64, path: &Path) -> Result<Beginning, Error> {
        let Some(header) = bytes.get(..HEADER) else {
            return Ok(if bytes.iter().all(|byte| *byte == 0) { Beginning::Zero } else { Beginning::Bad });
        };
        if header.iter().all(|byte| *byte == 0) {
            return Ok(Beginning::Zero);
        }
        if crc32c::crc32c(&header[..HEADER - 4]) != u32_at(header, HEADER - 4) || &header[..8] != HEADER_MAGIC {
            return Ok(Beginning::Bad);
        }
        let mut header = &header[8..];
        let found = header.get_u32_le();
        if found != VERSION {
            return Err(Error::UnknownVersion { path: path.to_owned(), found, known: VERSION });
        }
        let purpose = if header.get_u32_le() == 0 { Purpose::Log } else { Purpose::Bodies };
        let decoded = Self {
            purpose,
            number: header.get_u64_le(),
            previous: header.get_u64_le(),
            first_sequence: header.get_u64_le(),
            reused: header.get_u8() != 0,
        };
        Ok(if decoded.number == number { Beginning::Header(decoded) } else { Beginning::Other })
    }
}

/// Returns the path of segment `number` in `dir`.
pub(crate) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:012}.{EXTENSION}"))
}

/// Returns the path in `dir` of the file that was segment `number` and may be written again.
pub(crate) fn free_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:012}.{FREE_EXTENSION}"))
}

/// Returns whether a file of that name was a segment and may be written again.
pub(crate) fn is_free(name: &str) -> bool {
    name.strip_suffix(FREE_EXTENSION).is_some_and(|rest| rest.ends_with('.'))
}

/// Returns the number in the name of a segment's file.
pub(crate) fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(EXTENSION)?.strip_suffix('.')?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// What a sealed segment says about itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Footer {
    /// The least and the greatest index among its frames, also those that were truncated later.
    pub(crate) range: Option<(u64, u64)>,
    /// Entries of earlier segments from here on are dead.
    pub(crate) dead_from: Option<u64>,
    /// Parts in it but for the first of each entry.
    pub(crate) parts: u64,
    /// Where its living entries lie.
    pub(crate) samples: Vec<(u64, Sample)>,
    /// The hard state at its end.
    pub(crate) state: HardState,
}

impl Footer {
    pub(crate) fn to_frame(&self) -> Frame {
        let mut out = BytesMut::new();
        for (there, value) in [
            (self.range.is_some(), self.range.unwrap_or_default().0),
            (self.range.is_some(), self.range.unwrap_or_default().1),
            (self.dead_from.is_some(), self.dead_from.unwrap_or_default()),
        ] {
            out.put_u8(u8::from(there));
            out.put_u64_le(value);
        }
        out.put_u64_le(self.parts);
        self.state.encode(&mut out);
        for (index, sample) in &self.samples {
            out.put_u64_le(*index);
            out.put_u64_le(sample.segment);
            out.put_u64_le(sample.offset);
            out.put_u64_le(sample.time);
        }
        Frame::new(Kind::Footer, Default::default(), out.freeze())
    }

    pub(crate) fn decode(payload: &Bytes) -> Option<Self> {
        let mut bytes = payload.clone();
        let mut value = || Some((bytes.try_get_u8().ok()? != 0, bytes.try_get_u64_le().ok()?));
        let (first, last, dead) = (value()?, value()?, value()?);
        let parts = bytes.try_get_u64_le().ok()?;
        let state = HardState::take(&mut bytes)?;
        let mut samples = Vec::with_capacity(bytes.len() / 32);
        while bytes.has_remaining() {
            let index = bytes.try_get_u64_le().ok()?;
            let segment = bytes.try_get_u64_le().ok()?;
            let offset = bytes.try_get_u64_le().ok()?;
            samples.push((index, Sample { segment, offset, time: bytes.try_get_u64_le().ok()? }));
        }
        let range = first.0.then_some((first.1, last.1));
        Some(Self { range, dead_from: dead.0.then_some(dead.1), parts, samples, state })
    }
}

/// Encodes the last bytes of sealed segment `number`, whose footer's group lies at `offset`.
pub(crate) fn trailer(number: u64, offset: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(TRAILER);
    out.put_slice(TRAILER_MAGIC);
    out.put_u64_le(number);
    out.put_u64_le(offset);
    out.put_u32_le(0);
    let checksum = crc32c::crc32c(&out);
    out.put_u32_le(checksum);
    out.freeze()
}

/// Returns where the trailer of a file of `len` bytes lies when its groups end at `end`.
pub(crate) const fn trailer_at(len: u64, end: u64) -> u64 {
    let at = len.saturating_sub(TRAILER as u64);
    if at < end { end } else { at }
}

/// Reads the footer of a sealed segment by its trailer: the footer, the sequence of its group, where that begins.
/// Returns nothing when either is not intact: the segment's frames say the same, only slower.
pub(crate) async fn read_footer(file: &Arc<dyn File>, number: u64) -> Result<Option<(Footer, u64, u64)>, Error> {
    let len = file.len().await?;
    let Some(at) = len.checked_sub(TRAILER as u64) else { return Ok(None) };
    let bytes = file.read_at(at, TRAILER).await?;
    if bytes.len() < TRAILER
        || &bytes[..8] != TRAILER_MAGIC
        || crc32c::crc32c(&bytes[..TRAILER - 4]) != u32_at(&bytes, TRAILER - 4)
    {
        return Ok(None);
    }
    let mut rest = &bytes[8..];
    if rest.get_u64_le() != number {
        return Ok(None);
    }
    let offset = rest.get_u64_le();
    let length = usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX);
    // The group ends before the trailer; reserved space may lie between them.
    let head = file.read_at(offset, GROUP_HEAD.min(length)).await?;
    let Some(group) = Group::decode(&head, number, offset) else { return Ok(None) };
    let body = file.read_at(offset + GROUP_HEAD as u64, (group.length as usize).min(length)).await?;
    let Ok(frame) = Frame::decode(&body) else { return Ok(None) };
    if frame.head.kind != Kind::Footer {
        return Ok(None);
    }
    Ok(Footer::decode(&frame.payload).map(|footer| (footer, group.sequence, offset)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_numbers() {
        let name = path(Path::new("d"), 42);
        assert_eq!(number(name.file_name().unwrap().to_str().unwrap()), Some(42));
        for other in ["", ".seg", "x.seg", "1.tmp", "+1.seg", "1"] {
            assert_eq!(number(other), None, "{other}");
        }
    }

    #[test]
    fn a_header_says_what_it_is() {
        let header = Header { purpose: Purpose::Bodies, number: 3, previous: 2, first_sequence: 9, reused: true };
        let path = Path::new("3.seg");
        let bytes = header.encode();
        assert_eq!(bytes.len(), HEADER);
        assert!(matches!(Header::decode(&bytes, 3, path), Ok(Beginning::Header(read)) if read == header));
        assert!(matches!(Header::decode(&bytes, 4, path), Ok(Beginning::Other)));
        assert!(matches!(Header::decode(&[0; HEADER], 3, path), Ok(Beginning::Zero)));
        assert!(matches!(Header::decode(&[7; HEADER], 3, path), Ok(Beginning::Bad)));
        let mut newer = bytes.to_vec();
        newer[8] = 2;
        let checksum = crc32c::crc32c(&newer[..HEADER - 4]);
        newer[HEADER - 4..].copy_from_slice(&checksum.to_le_bytes());
        assert!(matches!(Header::decode(&newer, 3, path), Err(Error::UnknownVersion { found: 2, .. })));
    }
}
