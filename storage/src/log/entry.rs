//! What the log holds: entries, each a list of parts that are checked one by one, and votes.
//!
//! The bytes of an entry's parts are built once. The same `Bytes` go to this node's file, to the peers and
//! to their files; nothing here copies or re-encodes them.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::Error;

/// The identity of an entry: who made it in which term, and its place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LogId {
    /// The leader's term.
    pub term: u64,
    /// The leader's node id.
    pub node: u64,
    /// The place in the log.
    pub index: u64,
}

/// Whom this node voted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Vote {
    /// The term of the vote.
    pub term: u64,
    /// The candidate or leader.
    pub node: u64,
    /// Whether a quorum granted it.
    pub committed: bool,
}

/// What an entry is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// A leader's first entry: carries nothing.
    Blank,
    /// Operations of the state machine.
    Normal,
    /// A change of the cluster's members.
    Membership,
}

/// One record of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Who made it, and its place.
    pub id: LogId,
    /// The LogTime that it carries, in nanoseconds, 0 when it carries none.
    pub time: u64,
    /// What it is for.
    pub kind: EntryKind,
    /// Its payload.
    pub parts: Parts,
}

/// Version byte of the encoding of parts.
const VERSION: u8 = 1;
/// Version, zero, count (u16), length of all bodies (u32), checksum of the head's first eight bytes and the table.
pub(crate) const HEAD: usize = 12;
/// Where a part ends (u32), counted from the first body, and the checksum of its bytes (u32).
const ROW: usize = 8;
/// Bytes that all parts of one entry may have together.
const MOST_BYTES: usize = 1 << 31;

/// The payload of an entry: numbered parts, each with its own checksum. Cheap to clone.
///
/// Encoded as head, bodies, table; the table comes last so that bodies are written where they stay.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parts(Bytes);

impl Parts {
    /// Returns a builder.
    #[must_use]
    pub fn builder() -> PartsBuilder {
        PartsBuilder::default()
    }

    /// Returns a payload without parts.
    #[must_use]
    pub fn empty() -> Self {
        Self::builder().finish()
    }

    /// Takes bytes from outside: checks the table and every part.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] when a length or a checksum does not fit.
    pub fn decode(bytes: Bytes) -> Result<Self, Error> {
        let parts = Self::decode_table(bytes)?;
        parts.check()?;
        Ok(parts)
    }

    /// Takes bytes whose parts will be checked when they are read: checks the table only.
    pub(crate) fn decode_table(bytes: Bytes) -> Result<Self, Error> {
        let head = bytes.get(..HEAD).ok_or(Error::Malformed { what: "the head of the parts is cut" })?;
        if head[0] != VERSION {
            return Err(Error::Malformed { what: "the parts have an unknown version" });
        }
        let (count, bodies) = (usize::from(u16_at(head, 2)), u32_at(head, 4) as usize);
        if Some(bytes.len()) != bodies.checked_add(HEAD + count * ROW) {
            return Err(Error::Malformed { what: "the parts have another length than their head says" });
        }
        let table = &bytes[HEAD + bodies..];
        if table_checksum(&head[..8], table) != u32_at(head, 8) {
            return Err(Error::Malformed { what: "the checksum of the part table does not fit" });
        }
        let mut before = 0;
        for row in table.as_chunks::<ROW>().0 {
            let end = u32_at(row, 0) as usize;
            if end < before || end > bodies {
                return Err(Error::Malformed { what: "the part table is not ascending" });
            }
            before = end;
        }
        if before != bodies {
            return Err(Error::Malformed { what: "the part table does not cover the bodies" });
        }
        Ok(Self(bytes))
    }

    /// Checks every part.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self.first_bad() {
            None => Ok(()),
            Some(_) => Err(Error::Malformed { what: "the checksum of a part does not fit" }),
        }
    }

    /// Returns the number of the first part whose bytes do not fit their checksum.
    pub(crate) fn first_bad(&self) -> Option<u16> {
        (0..self.count()).find(|&n| self.get_checked(n).is_none())
    }

    /// Returns the encoding.
    #[must_use]
    pub const fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// Returns the number of parts.
    #[must_use]
    pub fn count(&self) -> u16 {
        u16_at(&self.0, 2)
    }

    /// Returns the number of parts that an encoding says it has, which need not be a whole one.
    pub(crate) fn count_of(bytes: &[u8]) -> u16 {
        bytes.get(..4).map_or(0, |head| u16_at(head, 2))
    }

    /// Returns part `n` without copying it, or nothing when there are fewer parts.
    #[must_use]
    pub fn get(&self, n: u16) -> Option<Bytes> {
        let (start, end, _) = self.row(n)?;
        Some(self.0.slice(start..end))
    }

    /// Returns part `n` when there is one and its bytes fit their checksum.
    #[must_use]
    pub fn get_checked(&self, n: u16) -> Option<Bytes> {
        let (start, end, checksum) = self.row(n)?;
        (crc32c::crc32c(&self.0[start..end]) == checksum).then(|| self.0.slice(start..end))
    }

    fn row(&self, n: u16) -> Option<(usize, usize, u32)> {
        let count = self.count();
        if n >= count {
            return None;
        }
        let table = self.0.len() - usize::from(count) * ROW;
        let at = table + usize::from(n) * ROW;
        let start = if n == 0 { 0 } else { u32_at(&self.0, at - ROW) as usize };
        Some((HEAD + start, HEAD + u32_at(&self.0, at) as usize, u32_at(&self.0, at + 4)))
    }
}

impl Default for Parts {
    fn default() -> Self {
        Self::empty()
    }
}

/// Builds [`Parts`], writing every body once, where it stays.
#[derive(Debug)]
pub struct PartsBuilder {
    bytes: BytesMut,
    table: BytesMut,
}

impl Default for PartsBuilder {
    fn default() -> Self {
        let mut bytes = BytesMut::new();
        bytes.put_bytes(0, HEAD);
        Self { bytes, table: BytesMut::new() }
    }
}

impl PartsBuilder {
    /// Makes room for `parts` more parts of `bytes` bytes together.
    pub fn reserve(&mut self, parts: usize, bytes: usize) {
        self.bytes.reserve(bytes + (self.table.len() + parts * ROW));
        self.table.reserve(parts * ROW);
    }

    /// Adds a part.
    ///
    /// # Panics
    ///
    /// When there would be more than 65 535 parts or more than 2 GiB: callers bound both far below.
    pub fn push(&mut self, part: &[u8]) {
        self.push_pieces(&[part]);
    }

    /// Adds a part that consists of `pieces`.
    ///
    /// # Panics
    ///
    /// As [`PartsBuilder::push`].
    pub fn push_pieces(&mut self, pieces: &[&[u8]]) {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        assert!(self.table.len() / ROW < usize::from(u16::MAX), "an entry has at most 65 535 parts");
        assert!(length <= MOST_BYTES - self.len_bytes(), "an entry has at most 2 GiB");
        let mut checksum = 0;
        for piece in pieces {
            checksum = crc32c::crc32c_append(checksum, piece);
            self.bytes.put_slice(piece);
        }
        self.table.put_u32_le(to_u32(self.len_bytes()));
        self.table.put_u32_le(checksum);
    }

    /// Returns the bytes of all parts together.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.bytes.len() - HEAD
    }

    /// Returns the number of parts.
    #[must_use]
    pub fn count(&self) -> u16 {
        u16::try_from(self.table.len() / ROW).unwrap_or(u16::MAX)
    }

    /// Returns the parts.
    #[must_use]
    pub fn finish(mut self) -> Parts {
        let (count, bodies) = (self.count(), to_u32(self.len_bytes()));
        self.bytes.put_slice(&self.table);
        self.bytes[0] = VERSION;
        self.bytes[2..4].copy_from_slice(&count.to_le_bytes());
        self.bytes[4..8].copy_from_slice(&bodies.to_le_bytes());
        let checksum = table_checksum(&self.bytes[..8], &self.table);
        self.bytes[8..HEAD].copy_from_slice(&checksum.to_le_bytes());
        Parts(self.bytes.freeze())
    }
}

fn table_checksum(head: &[u8], table: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), table)
}

/// The builder bounds what it counts far below `u32::MAX`.
fn to_u32(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Parts {
        let mut builder = Parts::builder();
        builder.push(b"one");
        builder.push(b"");
        builder.push_pieces(&[b"th", b"ree"]);
        builder.finish()
    }

    #[test]
    fn parts_come_back_as_they_were_pushed() {
        let parts = Parts::decode(sample().as_bytes().clone()).unwrap();
        assert_eq!(parts.count(), 3);
        let bodies: Vec<_> = (0..4).map(|n| parts.get(n)).collect();
        assert_eq!(bodies, [Some("one".into()), Some("".into()), Some("three".into()), None]);
        assert_eq!(Parts::decode(Parts::empty().as_bytes().clone()).unwrap().count(), 0);
    }

    #[test]
    fn every_changed_bit_and_every_cut_is_noticed() {
        let good = sample().as_bytes().clone();
        for bit in 0..good.len() * 8 {
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Parts::decode(bad.into()).is_err(), "bit {bit}");
        }
        for length in 0..good.len() {
            assert!(Parts::decode(good.slice(..length)).is_err(), "length {length}");
        }
    }
}
