//! The door to what is replicated: committed entries go in, snapshots come out.
//!
//! The machine itself lives elsewhere (it is the broker core). Nothing here knows what an operation means.
//!
//! A machine may keep less in memory than its state is: what it has dropped stands in the newest durable snapshot of
//! this node. A new snapshot is therefore made of both, and so is everything else that walks through all of the state:
//! see [`Pieces`]. No snapshot is ever in memory as a whole, neither when it is written nor when it is read.

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
    /// What a snapshot is read into, beside the state.
    type Restoring: Restoring;

    /// Applies one committed chunk. No I/O; results leave by the machine's own means.
    fn apply(&mut self, entries: Vec<Committed>);

    /// Returns the state of this moment. Cheap: it must not copy what it can share. What is not in memory any more
    /// stands in the newest snapshot of which [`Self::snapshot_is_durable`] was told, or from which the state was
    /// restored, at this moment.
    fn snapshot(&mut self) -> Box<dyn SnapshotSource>;

    /// Begins to read a snapshot. The state goes on as it is meanwhile; what was read in part is dropped when the rest
    /// cannot be.
    fn restoring(&self) -> Self::Restoring;

    /// Replaces the state by a snapshot of which all chunks were pushed.
    ///
    /// What is restored may leave out of memory what stands in that snapshot.
    ///
    /// # Errors
    ///
    /// [`RestoreError`] when the chunks ended before the state did. The node stops then.
    fn restore(&mut self, read: Self::Restoring) -> Result<(), RestoreError>;

    /// Notes that a snapshot of the state after entry `index` is durable here, the newest one now: what it holds need
    /// not stay in memory. Told after each write, after a start, and after an installation. Cheap, as [`Self::apply`]
    /// waits for it.
    fn snapshot_is_durable(&mut self, index: u64);

    /// Returns whether a snapshot now would let memory be given back, although none is due for what was written since
    /// the last. Asked about once a second; cheap.
    fn wants_snapshot(&self) -> bool;

    /// Returns a number that is equal on nodes with equal state.
    fn digest(&self) -> u64;
}

/// A snapshot that is being read.
pub trait Restoring: Send + 'static {
    /// Takes the next chunk. Total on any bytes. The chunk should not be kept: a snapshot is larger than memory.
    ///
    /// # Errors
    ///
    /// [`RestoreError`] when the chunks are not what [`SnapshotSource::chunks`] of a known version gives.
    fn push(&mut self, chunk: Bytes) -> Result<(), RestoreError>;
}

/// The state of one moment.
pub trait SnapshotSource: Send + 'static {
    /// Returns a walk through the state, encoded chunk by chunk. It may be called again, for the same chunks.
    fn chunks(&self) -> Box<dyn Pieces<Bytes>>;

    /// Returns a walk through what of the log's entries the state refers to, some ranges at a time. Their order means
    /// nothing, and a range may be named twice.
    fn living(&self) -> Box<dyn Pieces<Vec<Living>>>;
}

/// A walk through a state that may lie in part in the previous snapshot. It does no I/O of its own: it says when it
/// needs the next chunk of that snapshot, from the first on, and whoever drives it reads the file. A walk that never
/// says so costs no reading.
pub trait Pieces<T>: Send {
    /// Goes on.
    ///
    /// # Errors
    ///
    /// [`RestoreError`] when the previous snapshot does not hold what it must: that is damage. The walk is over then.
    fn next(&mut self) -> Result<Piece<T>, RestoreError>;

    /// Hands over the next chunk of the previous snapshot, or nothing at its end: once after each
    /// [`Piece::Previous`], and never otherwise.
    fn feed(&mut self, chunk: Option<Bytes>);
}

/// One step of a walk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Piece<T> {
    /// What the walk came to.
    Next(T),
    /// The next chunk of the previous snapshot is needed.
    Previous,
    /// Everything was named.
    End,
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

impl Living {
    /// Sorts ranges as they lie in the log, and joins those that overlap or touch: each part is in one of them.
    pub(crate) fn put_in_order(ranges: &mut Vec<Self>) {
        ranges.sort_unstable();
        ranges.dedup_by(|range, before| {
            let (end, before_end) = (range.end(), before.end());
            let joined = range.entry == before.entry
                && u32::from(range.first) <= before_end
                && end.max(before_end) - u32::from(before.first) <= u32::from(u16::MAX);
            if joined {
                before.count = u16::try_from(end.max(before_end) - u32::from(before.first)).unwrap_or(u16::MAX);
            }
            joined
        });
    }

    /// Returns the part behind the last.
    fn end(&self) -> u32 {
        u32::from(self.first) + u32::from(self.count)
    }
}

/// A snapshot could not be read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot restore the state: {0}")]
pub struct RestoreError(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_in_order_name_each_part_once() {
        let range = |entry, first, count| Living { entry, first, count };
        let mut ranges = vec![
            range(7, 5, 2),
            range(3, 9, 1),
            range(7, 1, 2),
            range(7, 5, 2),
            range(7, 6, 4),
            range(7, 3, 1),
            range(8, 1, u16::MAX),
            range(8, 2, 1),
        ];
        Living::put_in_order(&mut ranges);
        assert_eq!(ranges, [range(3, 9, 1), range(7, 1, 3), range(7, 5, 5), range(8, 1, u16::MAX)]);
    }
}
