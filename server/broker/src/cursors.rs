//! How far the readers of an events-store channel came: one place for each client that reads alone and one for each
//! group. It knows names and sequences; that a place lies inside its channel is the channel's business.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{put_number, take_bytes};
use crate::name::{Name, NameError};
use crate::operation::DecodeError;

const CLIENT: u8 = 1;
const GROUP: u8 = 2;

/// What a place costs in RAM besides the reader's name, its share of tree nodes included.
const CURSOR_BYTES: u64 = 64;

/// What the first place costs in RAM: a node with room for eleven.
const TREE_BYTES: u64 = 304;

/// Who reads: a client alone, or all members of a group together. A client and a group of one name are two readers.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reader(Bytes);

impl Reader {
    /// The reader that is this client.
    #[must_use]
    pub fn client(id: &Name) -> Self {
        Self::new(CLIENT, id.as_bytes())
    }

    /// The reader that is this group, whoever its members are.
    #[must_use]
    pub fn group(name: &Name) -> Self {
        Self::new(GROUP, name.as_bytes())
    }

    fn new(tag: u8, name: &[u8]) -> Self {
        let mut key = BytesMut::with_capacity(1 + name.len());
        key.put_u8(tag);
        key.put_slice(name);
        Self(key.freeze())
    }

    /// Whether it is a group.
    #[must_use]
    pub fn is_group(&self) -> bool {
        self.0.first() == Some(&GROUP)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        put_key(out, &self.0);
    }

    pub(crate) fn decode(from: &mut Bytes) -> Result<Self, DecodeError> {
        let key = take_bytes(from)?;
        match key.first() {
            Some(&(CLIENT | GROUP)) => {
                Name::from_bytes(key.slice(1..))?;
                Ok(Self(key))
            }
            Some(other) => Err(DecodeError::UnknownReader(*other)),
            None => Err(DecodeError::Name(NameError::Empty)),
        }
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.is_group() { "group" } else { "client" };
        write!(f, "{kind} {:?}", String::from_utf8_lossy(self.0.get(1..).unwrap_or_default()))
    }
}

fn put_key(out: &mut BytesMut, key: &[u8]) {
    put_number(out, key.len() as u64);
    out.put_slice(key);
}

/// Where a reader begins that has no place yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Behind everything that is stored.
    New,
    /// At the first event that is stored.
    First,
    /// At the last event that is stored.
    Last,
    /// At this sequence: at the first event when that is later, behind everything when there is no such event yet.
    At(u64),
}

impl Start {
    pub(crate) fn encode(self, out: &mut BytesMut) {
        let (tag, sequence) = match self {
            Self::New => (1, 0),
            Self::First => (2, 0),
            Self::Last => (3, 0),
            Self::At(sequence) => (4, sequence),
        };
        out.put_u8(tag);
        put_number(out, sequence);
    }

    pub(crate) fn decode(tag: u8, sequence: u64) -> Result<Self, DecodeError> {
        match (tag, sequence) {
            (1, 0) => Ok(Self::New),
            (2, 0) => Ok(Self::First),
            (3, 0) => Ok(Self::Last),
            (4, sequence) => Ok(Self::At(sequence)),
            (1..=3, _) => Err(DecodeError::Number),
            (other, _) => Err(DecodeError::UnknownStart(other)),
        }
    }
}

/// The place of one reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// The sequence of the last event that it took.
    pub(crate) after: u64,
    /// When it was last used, in nanoseconds.
    pub(crate) used: u64,
}

impl Cursor {
    fn is_stale(&self, first: u64, before: u64) -> bool {
        self.used < before && self.after.saturating_add(1) < first
    }
}

/// The places of all readers of one channel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cursors {
    places: BTreeMap<Box<[u8]>, Cursor>,
    /// Bytes of all names.
    name_bytes: u64,
}

impl Cursors {
    pub(crate) fn get(&self, reader: &Reader) -> Option<u64> {
        self.places.get(reader.as_bytes()).map(|cursor| cursor.after)
    }

    /// Puts a reader at a place, wherever it was before.
    pub(crate) fn set(&mut self, reader: &[u8], cursor: Cursor) {
        match self.places.get_mut(reader) {
            Some(place) => *place = cursor,
            None => {
                self.name_bytes += reader.len() as u64;
                self.places.insert(reader.into(), cursor);
            }
        }
    }

    /// How many places [`Cursors::forget`] would forget.
    pub(crate) fn stale(&self, first: u64, before: u64) -> usize {
        self.places.values().filter(|cursor| cursor.is_stale(first, before)).count()
    }

    /// Forgets the places that were not used since `before` and whose next event is gone: those before `first` are.
    pub(crate) fn forget(&mut self, first: u64, before: u64) {
        let name_bytes = &mut self.name_bytes;
        self.places.retain(|reader, cursor| {
            let keep = !cursor.is_stale(first, before);
            if !keep {
                *name_bytes -= reader.len() as u64;
            }
            keep
        });
    }

    /// Takes back places that were written down, in order; `None` when one of them cannot be.
    pub(crate) fn restore(&mut self, reader: &[u8], cursor: Cursor) -> Option<()> {
        if self.places.last_key_value().is_some_and(|(before, _)| **before >= *reader) {
            return None;
        }
        self.set(reader, cursor);
        Some(())
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// All places, in the order of the readers' keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], Cursor)> {
        self.places.iter().map(|(reader, cursor)| (&**reader, *cursor))
    }

    /// What the places cost in RAM.
    pub(crate) fn index_bytes(&self) -> u64 {
        match self.len() as u64 {
            0 => 0,
            count => TREE_BYTES + count * CURSOR_BYTES + self.name_bytes,
        }
    }
}

/// Writes one place as a snapshot holds it.
pub(crate) fn put_place(out: &mut BytesMut, reader: &[u8], cursor: Cursor) {
    put_key(out, reader);
    put_number(out, cursor.after);
    put_number(out, cursor.used);
}
