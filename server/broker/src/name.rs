//! What a channel is called, and of which kind it is. It checks that a name is text of a bounded length; which
//! characters clients may use is decided where calls come in.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::sync::Arc;

use bytes::Bytes;

use crate::limits::NAME_BYTES;

/// The kind of a channel. Two channels of different kinds may bear one name and have nothing in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Stored; each message goes to one receiver.
    Queue = 1,
    /// Stored; each subscriber reads at its own place.
    EventsStore = 2,
    /// Not stored: stands in the catalogue when it was created explicitly.
    Events = 3,
    /// Not stored: stands in the catalogue when it was created explicitly.
    Commands = 4,
    /// Not stored: stands in the catalogue when it was created explicitly.
    Queries = 5,
}

impl Kind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Queue, Self::EventsStore, Self::Events, Self::Commands, Self::Queries];

    /// Whether messages of this kind are stored.
    #[must_use]
    pub fn is_stored(self) -> bool {
        matches!(self, Self::Queue | Self::EventsStore)
    }

    /// The name that clients and operators use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queue => "queues",
            Self::EventsStore => "events_store",
            Self::Events => "events",
            Self::Commands => "commands",
            Self::Queries => "queries",
        }
    }

    /// The number that stands for this kind in bytes.
    pub(crate) fn number(self) -> u8 {
        self as u8
    }

    /// Place in a table of all kinds.
    pub(crate) fn place(self) -> usize {
        usize::from(self.number() - 1)
    }

    /// The kind with this number.
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }
}

/// Why something is no channel name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is nothing in it.
    #[error("a channel name is empty")]
    Empty,
    /// It has more than [`NAME_BYTES`] bytes.
    #[error("a channel name is longer than {NAME_BYTES} bytes")]
    TooLong,
    /// It is not UTF-8.
    #[error("a channel name is not text")]
    NotText,
}

/// A channel name inside an operation: 1 to [`NAME_BYTES`] bytes of UTF-8, a slice of the operation's bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Bytes);

impl Name {
    /// Checks and copies a name.
    pub fn new(name: &str) -> Result<Self, NameError> {
        Self::from_bytes(Bytes::copy_from_slice(name.as_bytes()))
    }

    /// Checks a name without copying it.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, NameError> {
        if bytes.is_empty() {
            return Err(NameError::Empty);
        }
        if bytes.len() > NAME_BYTES {
            return Err(NameError::TooLong);
        }
        if std::str::from_utf8(&bytes).is_err() {
            return Err(NameError::NotText);
        }
        Ok(Self(bytes))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Checked when it was made, and nothing changes it afterwards.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The name as bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// A name as key of the catalogue: it is found by its bytes, so that an operation's slice is compared as it is.
#[derive(Clone, Debug)]
pub(crate) struct NameKey(pub(crate) Arc<str>);

impl Borrow<[u8]> for NameKey {
    fn borrow(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl PartialEq for NameKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes() == other.0.as_bytes()
    }
}

impl Eq for NameKey {}

impl PartialOrd for NameKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for NameKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.as_bytes().cmp(other.0.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_bounds() {
        let longest = "n".repeat(NAME_BYTES);
        for (name, expected) in [
            ("", Some(NameError::Empty)),
            ("orders", None),
            (longest.as_str(), None),
            (format!("{longest}n").as_str(), Some(NameError::TooLong)),
        ] {
            assert_eq!(Name::new(name).err(), expected, "{name}");
        }
        assert_eq!(Name::from_bytes(Bytes::from_static(&[0xff])).err(), Some(NameError::NotText));
    }

    #[test]
    fn kinds_come_back_from_their_numbers() {
        for (place, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(Kind::from_number(kind.number()), Some(kind));
            assert_eq!(kind.place(), place);
        }
        assert_eq!(Kind::from_number(0), None);
        assert_eq!(Kind::from_number(6), None);
    }
}
