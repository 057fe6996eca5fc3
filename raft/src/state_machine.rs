//! The door to what is replicated: committed entries go in, snapshots come out.
//!
//! The machine itself lives elsewhere (it is the broker core). Nothing here knows what an operation means.

use bytes::Bytes;
use kubemq_storage::{LogId, Parts};

/// One committed entry that carries operations.
#[derive(Clone, Debug)]
pub struct Committed {
    /// Where the entry stands in the log.
    pub id: LogId,
    /// The cluster time that the entry carries, in nanoseconds since the Unix epoch.
    pub time: u64,
    /// Part 0 is an [`Envelope`](crate::batch::Envelope); the operations follow. A beat has an envelope without
    /// batches and nothing else.
    pub parts: Parts,
}

/// A deterministic machine: equal entries in equal order give equal state on every node.
pub trait StateMachine: Send + Sync + 'static {
    /// Applies one committed chunk. No I/O; results leave by the machine's own means.
    fn apply(&mut self, entries: Vec<Committed>);

    /// Returns the state of this moment. Cheap: it must not copy what it can share.
    fn snapshot(&mut self) -> Box<dyn SnapshotSource>;

    /// Replaces the state by what a snapshot's chunks say.
    ///
    /// # Errors
    ///
    /// [`RestoreError`] when the chunks are not what [`SnapshotSource::chunks`] of a known version gives. The
    /// state is undefined then, and the node stops.
    fn restore(&mut self, chunks: Vec<Bytes>) -> Result<(), RestoreError>;

    /// Returns a number that is equal on nodes with equal state.
    fn digest(&self) -> u64;
}

/// The state of one moment.
pub trait SnapshotSource: Send + 'static {
    /// Returns the state, encoded piece by piece.
    fn chunks(self: Box<Self>) -> Box<dyn Iterator<Item = Bytes> + Send>;

    /// Returns what of the log's entries the state refers to, in ascending order.
    fn living(&self) -> Box<dyn Iterator<Item = Living> + Send + '_>;
}

/// Parts of one entry that are still referred to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Living {
    /// The entry's index.
    pub entry: u64,
    /// The first part.
    pub first: u16,
    /// How many parts from there.
    pub count: u16,
}

/// A snapshot could not be read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot restore the state: {0}")]
pub struct RestoreError(pub String);
