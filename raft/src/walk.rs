//! Drives walks through a state, and reads the previous snapshot for those that ask for it.
//!
//! A walk computes and reads a disk, so it belongs on a thread of its own: who has one uses a [`Walk`], who has none
//! takes what it gives from an [`Apart`]. The file is read from only when it is asked for, chunk by chunk.

use bytes::Bytes;
use kubemq_runtime::sync::mpsc;
use kubemq_runtime::{OnFailure, Tasks};
use kubemq_storage::snapshot::{HeldSnapshot, SnapshotReader};

use crate::error::Error;
use crate::state_machine::{Piece, Pieces, RestoreError};

/// Things that a walk is ahead of who takes them.
const AHEAD: usize = 4;

/// A walk, and the snapshot that it may ask for.
pub(crate) struct Walk<T> {
    pieces: Box<dyn Pieces<T>>,
    previous: Previous,
}

/// The snapshot that holds what is not in memory.
enum Previous {
    /// There is none, or nobody asked for it yet.
    Unread(Option<HeldSnapshot>),
    Reading(SnapshotReader),
    /// Its end was told.
    Ended,
}

impl<T: Send + 'static> Walk<T> {
    pub(crate) fn new(pieces: Box<dyn Pieces<T>>, previous: Option<HeldSnapshot>) -> Self {
        Self { pieces, previous: Previous::Unread(previous) }
    }

    /// Returns what the walk comes to next, or nothing at its end. Computes for a while. Not cancel safe.
    ///
    /// # Errors
    ///
    /// When the previous snapshot is needed and cannot be read, or does not hold what it must.
    pub(crate) async fn next(&mut self) -> Result<Option<T>, Error> {
        loop {
            match self.pieces.next()? {
                Piece::Next(next) => return Ok(Some(next)),
                Piece::End => return Ok(None),
                Piece::Previous => {
                    let chunk = self.previous.next_chunk().await?;
                    self.pieces.feed(chunk);
                }
            }
        }
    }

    /// Walks on a thread of its own, which ends when nobody takes what it gives any more.
    pub(crate) fn apart(mut self, tasks: &Tasks, name: &'static str) -> Apart<T> {
        let (sender, taken) = mpsc::channel(AHEAD);
        drop(tasks.dedicated(name, OnFailure::Log, async move {
            loop {
                let next = self.next().await;
                let goes_on = matches!(next, Ok(Some(_)));
                if sender.send(next).await.is_err() || !goes_on {
                    return;
                }
            }
        }));
        Apart(taken)
    }
}

impl Previous {
    async fn next_chunk(&mut self) -> Result<Option<Bytes>, Error> {
        if let Self::Unread(held) = self {
            let held = held.take().ok_or_else(|| RestoreError("there is no previous snapshot".to_owned()))?;
            *self = Self::Reading(held.reader().await?);
        }
        let Self::Reading(reader) = self else {
            return Err(RestoreError("the previous snapshot holds less than it must".to_owned()).into());
        };
        let chunk = reader.next_chunk().await?;
        if chunk.is_none() {
            *self = Self::Ended;
        }
        Ok(chunk)
    }
}

/// What a walk on another thread gives.
pub(crate) struct Apart<T>(mpsc::Receiver<Result<Option<T>, Error>>);

impl<T> Apart<T> {
    /// Returns what the walk came to next, or nothing at its end. Cancel safe.
    ///
    /// # Errors
    ///
    /// As [`Walk::next`], and when the walk panicked.
    pub(crate) async fn next(&mut self) -> Result<Option<T>, Error> {
        self.0.recv().await.unwrap_or_else(|| Err(Error::Stopped("a walk through the state panicked".to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use kubemq_runtime::Runtime;
    use kubemq_storage::fs::MemoryDisk;
    use kubemq_storage::snapshot::Snapshots;

    use super::*;

    /// Gives what it is told to, chunks of the previous snapshot among it.
    struct Script {
        steps: std::vec::IntoIter<Piece<Bytes>>,
        fed: Option<Bytes>,
    }

    impl Pieces<Bytes> for Script {
        fn next(&mut self) -> Result<Piece<Bytes>, RestoreError> {
            Ok(self.fed.take().map_or_else(|| self.steps.next().unwrap_or(Piece::End), Piece::Next))
        }

        fn feed(&mut self, chunk: Option<Bytes>) {
            self.fed = chunk;
        }
    }

    fn script(steps: Vec<Piece<Bytes>>) -> Box<dyn Pieces<Bytes>> {
        Box::new(Script { steps: steps.into_iter(), fed: None })
    }

    async fn held(runtime: &Runtime) -> HeldSnapshot {
        let disk = Arc::new(MemoryDisk::new());
        let snapshots = Snapshots::open(disk, PathBuf::from("/snapshots"), runtime).await.unwrap();
        let mut writer = snapshots.begin(Bytes::new()).await.unwrap();
        for chunk in [&b"one"[..], b"two"] {
            writer.push(Bytes::from_static(chunk)).await.unwrap();
        }
        let file = writer.finish().await.unwrap();
        snapshots.hold(&file).await.unwrap()
    }

    const MEMORY: Bytes = Bytes::from_static(b"memory");

    #[tokio::test]
    async fn the_previous_snapshot_is_read_as_far_as_it_is_asked_for() {
        let runtime = Runtime::real();
        let held = held(&runtime).await;
        let asks = |times: usize| {
            let mut steps = vec![Piece::Next(MEMORY)];
            steps.extend(vec![Piece::Previous; times]);
            script(steps)
        };
        for times in 0..=3 {
            let mut walked = Walk::new(asks(times), Some(held.clone())).apart(&runtime.tasks, "walk");
            let mut found = Vec::new();
            while let Some(chunk) = walked.next().await.unwrap() {
                found.push(chunk);
            }
            let all = [MEMORY, Bytes::from_static(b"one"), Bytes::from_static(b"two")];
            assert_eq!(found, all[..=times.min(2)], "asked {times} times");
        }
        // More than there is.
        let mut walk = Walk::new(asks(4), Some(held));
        for _ in 0..3 {
            walk.next().await.unwrap();
        }
        assert!(matches!(walk.next().await, Err(Error::Snapshot(_))));
    }

    #[tokio::test]
    async fn without_a_previous_snapshot_none_is_given() {
        let mut walk = Walk::new(script(vec![Piece::Next(MEMORY), Piece::Previous]), None);
        assert_eq!(walk.next().await.unwrap(), Some(MEMORY));
        assert!(matches!(walk.next().await, Err(Error::Snapshot(_))));
    }
}
