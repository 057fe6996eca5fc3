//! The bytes of the log: frames, and the write groups that one fdatasync makes durable.
//!
//! A frame is a fixed head and a payload. The checksum of an entry's frame covers the head and the head of
//! the parts, which carries the checksum of the part table, which carries the checksum of each part: one
//! message is checked without reading its neighbours. Other frames are covered whole.
//!
//! A group's head is bound to the number of its segment and its place there, and covers the checksums of
//! its frames: what an earlier file left in the same blocks is never taken for a group.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::entry::{self, Entry, EntryKind, LogId, Parts, Vote, u32_at};
use crate::Error;

/// Bytes before a frame's payload.
pub(crate) const FRAME_HEAD: usize = 48;
/// Bytes before a group's first frame.
pub(crate) const GROUP_HEAD: usize = 40;

const FRAME_TAG: u32 = 0x464D_424B;
const GROUP_TAG: u32 = 0x474D_424B;

/// What a frame says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Entry(EntryKind),
    /// All hard state at once, at the head of a segment.
    State,
    Vote,
    NodeId,
    Truncate,
    Purge,
    Committed,
    Snapshot,
    /// Nothing; its group's head says how far the file was synced.
    Mark,
    /// One part of an entry whose frame lies elsewhere or nowhere.
    Body,
    /// Where the entries of a segment lie, at its end.
    Footer,
}

impl Kind {
    const fn code(self) -> u8 {
        match self {
            Self::Entry(EntryKind::Blank) => 1,
            Self::Entry(EntryKind::Normal) => 2,
            Self::Entry(EntryKind::Membership) => 3,
            Self::State => 16,
            Self::Vote => 17,
            Self::NodeId => 18,
            Self::Truncate => 19,
            Self::Purge => 20,
            Self::Committed => 21,
            Self::Snapshot => 22,
            Self::Mark => 23,
            Self::Body => 24,
            Self::Footer => 25,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Entry(EntryKind::Blank),
            2 => Self::Entry(EntryKind::Normal),
            3 => Self::Entry(EntryKind::Membership),
            16 => Self::State,
            17 => Self::Vote,
            18 => Self::NodeId,
            19 => Self::Truncate,
            20 => Self::Purge,
            21 => Self::Committed,
            22 => Self::Snapshot,
            23 => Self::Mark,
            24 => Self::Body,
            25 => Self::Footer,
            _ => return None,
        })
    }

    /// Returns how much of a payload the frame's own checksum covers.
    fn covered(self, payload: &[u8]) -> &[u8] {
        match self {
            Self::Entry(_) => payload.get(..entry::HEAD).unwrap_or(payload),
            _ => payload,
        }
    }
}

/// A frame's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) flag: bool,
    /// The Raft group; always 0 so far.
    pub(crate) group: u16,
    pub(crate) id: LogId,
    pub(crate) time: u64,
    /// Bytes of the payload.
    pub(crate) length: usize,
    checksum: u32,
}

/// A frame: its head and its payload.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) head: Head,
    pub(crate) payload: Bytes,
}

impl Frame {
    pub(crate) fn new(kind: Kind, id: LogId, payload: Bytes) -> Self {
        let head = Head { kind, flag: false, group: 0, id, time: 0, length: payload.len(), checksum: 0 };
        Self { head, payload }
    }

    pub(crate) fn with_flag(mut self, flag: bool) -> Self {
        self.head.flag = flag;
        self
    }

    pub(crate) fn with_time(mut self, time: u64) -> Self {
        self.head.time = time;
        self
    }

    pub(crate) fn entry(entry: &Entry) -> Self {
        let payload = entry.parts.as_bytes().clone();
        Self::new(Kind::Entry(entry.kind), entry.id, payload).with_time(entry.time)
    }

    pub(crate) fn vote(vote: Vote) -> Self {
        let id = LogId { term: vote.term, node: vote.node, index: 0 };
        Self::new(Kind::Vote, id, Bytes::new()).with_flag(vote.committed)
    }

    pub(crate) fn node_id(node: u64) -> Self {
        Self::new(Kind::NodeId, LogId { term: 0, node, index: 0 }, Bytes::new())
    }

    /// A truncation that leaves `last`, or nothing, as the last entry.
    pub(crate) fn truncate(last: Option<LogId>) -> Self {
        Self::new(Kind::Truncate, last.unwrap_or_default(), Bytes::new()).with_flag(last.is_some())
    }

    /// Returns the bytes that the frame takes in a file.
    pub(crate) fn size(&self) -> u64 {
        (FRAME_HEAD + self.payload.len()) as u64
    }

    /// Appends the head to `out` and returns the frame's checksum.
    pub(crate) fn encode_head(&self, out: &mut BytesMut) -> u32 {
        let start = out.len();
        out.put_u32_le(FRAME_TAG);
        out.put_u32_le(0);
        // Payloads are bounded far below: 2 GiB of parts.
        out.put_u32_le(u32::try_from(self.payload.len()).unwrap_or(u32::MAX));
        out.put_u8(self.head.kind.code());
        out.put_u8(u8::from(self.head.flag));
        out.put_u16_le(self.head.group);
        out.put_u64_le(self.head.id.term);
        out.put_u64_le(self.head.id.node);
        out.put_u64_le(self.head.id.index);
        out.put_u64_le(self.head.time);
        let checksum = frame_checksum(&out[start..], self.head.kind.covered(&self.payload));
        out[start + 4..start + 8].copy_from_slice(&checksum.to_le_bytes());
        checksum
    }

    /// Reads the frame that `bytes` begin with; says what is wrong with it otherwise.
    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, &'static str> {
        let head = Head::decode(bytes)?;
        if bytes.len() < FRAME_HEAD + head.length {
            return Err("a frame is cut");
        }
        let payload = bytes.slice(FRAME_HEAD..FRAME_HEAD + head.length);
        if frame_checksum(&bytes[..FRAME_HEAD], head.kind.covered(&payload)) != head.checksum {
            return Err("the checksum of a frame does not fit");
        }
        Ok(Self { head, payload })
    }

    pub(crate) const fn checksum(&self) -> u32 {
        self.head.checksum
    }

    /// Returns the entry of an entry's frame: its part table is checked, its parts are not.
    pub(crate) fn to_entry(&self) -> Result<Option<Entry>, Error> {
        let Kind::Entry(kind) = self.head.kind else { return Ok(None) };
        let parts = Parts::decode_table(self.payload.clone())?;
        Ok(Some(Entry { id: self.head.id, time: self.head.time, kind, parts }))
    }
}

impl Head {
    /// Reads the head that `bytes` begin with, unchecked: its checksum covers payload, too.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let Some(mut head) = bytes.get(..FRAME_HEAD) else { return Err("a frame is cut") };
        if head.get_u32_le() != FRAME_TAG {
            return Err("a frame has no tag");
        }
        let checksum = head.get_u32_le();
        let length = head.get_u32_le() as usize;
        let kind = Kind::from_code(head.get_u8()).ok_or("a frame has an unknown kind")?;
        let flag = head.get_u8() != 0;
        let group = head.get_u16_le();
        let id = LogId { term: head.get_u64_le(), node: head.get_u64_le(), index: head.get_u64_le() };
        Ok(Self { kind, flag, group, id, time: head.get_u64_le(), length, checksum })
    }
}

/// The checksum of a frame: all of its head but the checksum itself, then what it covers of the payload.
fn frame_checksum(head: &[u8], covered: &[u8]) -> u32 {
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&head[..4]), &head[8..FRAME_HEAD]);
    crc32c::crc32c_append(checksum, covered)
}

/// The head of a write group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Group {
    /// Bytes of the frames that follow.
    pub(crate) length: u32,
    /// How many those are.
    pub(crate) frames: u32,
    /// How far the file was synced when the group was written.
    pub(crate) synced_to: u64,
    /// Counts the groups of the log, over all segments.
    pub(crate) sequence: u64,
    /// Covers the checksums of the frames.
    pub(crate) checksums: u32,
}

impl Group {
    /// Encodes the head of a group at `offset` of segment `number`.
    pub(crate) fn encode(&self, number: u64, offset: u64) -> Bytes {
        let mut out = BytesMut::with_capacity(GROUP_HEAD);
        out.put_u32_le(GROUP_TAG);
        out.put_u32_le(0);
        out.put_u32_le(self.length);
        out.put_u32_le(self.frames);
        out.put_u64_le(self.synced_to);
        out.put_u64_le(self.sequence);
        out.put_u32_le(self.checksums);
        out.put_u32_le(0);
        let checksum = group_checksum(&out, number, offset);
        out[4..8].copy_from_slice(&checksum.to_le_bytes());
        out.freeze()
    }

    /// Reads the head of a group at `offset` of segment `number`, when there is one.
    pub(crate) fn decode(bytes: &[u8], number: u64, offset: u64) -> Option<Self> {
        let mut head = bytes.get(..GROUP_HEAD)?;
        if !is_group(head) || group_checksum(head, number, offset) != u32_at(head, 4) {
            return None;
        }
        head.advance(8);
        Some(Self {
            length: head.get_u32_le(),
            frames: head.get_u32_le(),
            synced_to: head.get_u64_le(),
            sequence: head.get_u64_le(),
            checksums: head.get_u32_le(),
        })
    }
}

/// Returns whether `bytes` begin with the tag of a group.
pub(crate) fn is_group(bytes: &[u8]) -> bool {
    bytes.len() >= 4 && u32_at(bytes, 0) == GROUP_TAG
}

/// The first byte of a group, to search for.
pub(crate) const GROUP_FIRST_BYTE: u8 = GROUP_TAG.to_le_bytes()[0];

/// The first byte of a frame, to search for.
pub(crate) const FRAME_FIRST_BYTE: u8 = FRAME_TAG.to_le_bytes()[0];

fn group_checksum(head: &[u8], number: u64, offset: u64) -> u32 {
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), &offset.to_le_bytes());
    crc32c::crc32c_append(checksum, &head[8..GROUP_HEAD])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Bytes, Entry) {
        let mut parts = Parts::builder();
        parts.push(b"hello");
        let id = LogId { term: 2, node: 3, index: 4 };
        let entry = Entry { id, time: 5, kind: EntryKind::Normal, parts: parts.finish() };
        let frame = Frame::entry(&entry);
        let mut out = BytesMut::new();
        frame.encode_head(&mut out);
        out.put_slice(&frame.payload);
        (out.freeze(), entry)
    }

    #[test]
    fn every_changed_bit_of_a_frame_is_noticed() {
        let (bytes, entry) = sample();
        assert_eq!(Frame::decode(&bytes).unwrap().to_entry().unwrap(), Some(entry));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            let read = Frame::decode(&bad.into()).ok().and_then(|frame| frame.to_entry().ok().flatten());
            let intact = read.is_some_and(|entry| entry.parts.check().is_ok());
            assert!(!intact, "bit {bit}");
        }
    }

    #[test]
    fn a_group_is_valid_only_where_it_was_written() {
        let group = Group { length: 1, frames: 2, synced_to: 3, sequence: 4, checksums: 5 };
        let bytes = group.encode(7, 64);
        assert_eq!(Group::decode(&bytes, 7, 64), Some(group));
        assert_eq!(Group::decode(&bytes, 8, 64), None);
        assert_eq!(Group::decode(&bytes, 7, 65), None);
        for bit in 0..(GROUP_HEAD - 4) * 8 {
            let mut bad = bytes.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Group::decode(&bad, 7, 64), None, "bit {bit}");
        }
    }
}
