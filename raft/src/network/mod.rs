//! The only door to other nodes.
//!
//! What crosses it is encoded: a [`Frame`] of one small head and of bodies that are the very bytes that the log
//! holds. Heartbeats and votes are single calls, so that they never wait behind entries; entries and snapshots
//! are streams. The gRPC network and the simulation implement [`Peers`]; what arrives at the other end goes to
//! [`Node::handle`](crate::Node::handle) and [`Node::handle_stream`](crate::Node::handle_stream).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::stream::BoxStream;

use crate::error::PeerError;

pub(crate) mod client;
pub mod frame;
pub mod memory;
mod window;

/// What is sent in one piece.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Frame {
    /// Kind and fields.
    pub head: Bytes,
    /// What the head refers to, in order: the parts of entries, or pieces of a snapshot.
    pub bodies: Vec<Bytes>,
}

impl Frame {
    /// Returns how many bytes the frame has.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.head.len() + self.bodies.iter().map(Bytes::len).sum::<usize>()
    }

    /// Returns the frame in one piece, for networks that do not carry several.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let length = |bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut bytes = BytesMut::with_capacity(self.bytes() + 4 * (self.bodies.len() + 1));
        for piece in std::iter::once(&self.head).chain(&self.bodies) {
            bytes.put_u32_le(length(piece));
            bytes.put_slice(piece);
        }
        bytes.freeze()
    }

    /// Reads what [`Frame::to_bytes`] wrote.
    ///
    /// # Errors
    ///
    /// [`PeerError::Malformed`] when the lengths do not fit.
    pub fn from_bytes(mut bytes: Bytes) -> Result<Self, PeerError> {
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            let length = bytes.try_get_u32_le().map_err(|_| PeerError::Malformed)?;
            let length = usize::try_from(length).map_err(|_| PeerError::Malformed)?;
            if bytes.len() < length {
                return Err(PeerError::Malformed);
            }
            pieces.push(bytes.split_to(length));
        }
        let mut pieces = pieces.into_iter();
        let head = pieces.next().ok_or(PeerError::Malformed)?;
        Ok(Self { head, bodies: pieces.collect() })
    }
}

/// What a single call asks for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Call {
    /// A leader shows that it lives.
    Heartbeat,
    /// A candidate asks for a vote.
    Vote,
    /// A candidate-to-be asks whether it would be given a vote.
    PreVote,
    /// A leader hands over.
    TransferLeader,
    /// A follower asks up to where it must have applied before it may serve a read.
    ReadIndex,
}

/// What a stream carries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Channel {
    /// Entries one way, how far they are flushed the other.
    Append,
    /// A snapshot one way, what is missing and the end the other.
    Snapshot,
}

/// Another node, and where to reach it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its id.
    pub id: u64,
    /// Its address, as the membership names it.
    pub address: Arc<str>,
}

/// Frames that this node sends.
pub type Requests = BoxStream<'static, Frame>;
/// Frames that come back. The first error is the last item.
pub type Replies = BoxStream<'static, Result<Frame, PeerError>>;

/// Reaches other nodes. Each call ends by itself: with an answer, an error, or at its limit.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// Asks `peer` and waits for its answer, at most for `limit`.
    async fn call(&self, peer: &Peer, call: Call, request: Frame, limit: Duration) -> Result<Frame, PeerError>;

    /// Opens a stream to `peer`. Dropping the replies ends it. The caller watches over its progress.
    async fn open(&self, peer: &Peer, channel: Channel, requests: Requests) -> Result<Replies, PeerError>;
}

/// The peers of a node that has none.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPeers;

#[async_trait]
impl Peers for NoPeers {
    async fn call(&self, peer: &Peer, _: Call, _: Frame, _: Duration) -> Result<Frame, PeerError> {
        Err(PeerError::Unreachable(format!("no network to node {}", peer.id)))
    }

    async fn open(&self, peer: &Peer, _: Channel, _: Requests) -> Result<Replies, PeerError> {
        Err(PeerError::Unreachable(format!("no network to node {}", peer.id)))
    }
}
