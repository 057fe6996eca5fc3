//! Gathering what one sync will make durable: frames become pieces of bytes, bodies are not copied.

use bytes::{Bytes, BytesMut};

use super::Done;
use super::entry::{Entry, LogId};
use super::frame::{FRAME_HEAD, Frame, Kind};

/// Payloads up to this size are copied beside their frame's head: cheaper than one more piece to write.
const COPIED: usize = 256;

/// One thing to write, or to do once everything before it is synced.
pub(crate) enum Item {
    Entry(Entry, u64),
    Frame(Frame, Option<u64>),
    Done(Done),
    Close(Done),
}

/// A group that is being gathered.
pub(crate) struct Gathered {
    pub(crate) pieces: Vec<Bytes>,
    pub(crate) small: BytesMut,
    pub(crate) length: u64,
    pub(crate) checksums: u32,
    pub(crate) frames: Vec<Placed>,
    pub(crate) done: Vec<Done>,
    pub(crate) close: Option<Done>,
    pub(crate) bytes: u64,
}

/// A frame and where it goes, counted from the group's first frame.
pub(crate) struct Placed {
    pub(crate) frame: Frame,
    pub(crate) at: u64,
    /// For an entry, a truncation or a purge: the epoch in which it was asked for.
    pub(crate) epoch: Option<u64>,
}

impl Item {
    /// Returns the bytes that it will take in a file, when it is written.
    pub(crate) fn size(&self) -> Option<u64> {
        match self {
            Self::Entry(entry, _) => Some((FRAME_HEAD + entry.parts.as_bytes().len()) as u64),
            Self::Frame(frame, _) => Some(frame.size()),
            Self::Done(_) | Self::Close(_) => None,
        }
    }
}

/// A frame that says nothing: what matters is the head of its group.
pub(crate) fn mark() -> Item {
    Item::Frame(Frame::new(Kind::Mark, LogId::default(), Bytes::new()), None)
}

impl Gathered {
    pub(crate) fn new() -> Self {
        Self {
            // The head goes first, when everything else is known.
            pieces: vec![Bytes::new()],
            small: BytesMut::new(),
            length: 0,
            checksums: 0,
            frames: Vec::new(),
            done: Vec::new(),
            close: None,
            bytes: 0,
        }
    }

    /// Returns whether there is nothing in it that a mark need follow.
    pub(crate) fn is_only_mark(&self) -> bool {
        self.frames.iter().all(|placed| matches!(placed.frame.head.kind, Kind::State | Kind::Mark | Kind::Committed))
    }

    pub(crate) fn push(&mut self, frame: Frame, epoch: Option<u64>) {
        let checksum = frame.encode_head(&mut self.small);
        self.checksums = crc32c::crc32c_append(self.checksums, &checksum.to_le_bytes());
        if frame.payload.len() <= COPIED {
            self.small.extend_from_slice(&frame.payload);
        } else {
            self.pieces.push(self.small.split().freeze());
            self.pieces.push(frame.payload.clone());
        }
        let at = self.length;
        self.length += frame.size();
        self.frames.push(Placed { frame, at, epoch });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}
