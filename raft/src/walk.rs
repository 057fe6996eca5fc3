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
