//! Writes a node's own snapshot: the file first, then the pointer in the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Error;
use crate::machine::{Meta, Moment, Shared};
use crate::reclaim::Marks;
use crate::types;

/// What was written.
pub(crate) struct Wrote {
    pub(crate) meta: Meta,
    /// Bytes of the state.
    pub(crate) bytes: u64,
    /// The segments in which nothing or little of the state lies.
    pub(crate) marks: Marks,
}

/// Writes `moment`, whose entries must be synced here.
pub(crate) async fn write(shared: &Shared, moment: Moment) -> Result<Wrote, Error> {
    let Moment { meta, chunks, living } = moment;
    let marks = Marks::of(shared, meta.index(), living).await?;
    let bytes = Arc::new(AtomicU64::new(0));
    let counted = {
        let bytes = Arc::clone(&bytes);
        chunks.chunks().inspect(move |chunk| {
            bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        })
    };
    let file = shared.snapshots.write(meta.encode(), counted).await?;
    if let Some(id) = &meta.raft.last_log_id {
        shared.log.save_snapshot_pointer(types::stored_id(id), &file.name).await?;
    }
    let bytes = bytes.load(Ordering::Relaxed);
    let mut facts = shared.facts.lock();
    facts.durable = Some(meta.clone());
    facts.durable_bytes = bytes;
    drop(facts);
    Ok(Wrote { meta, bytes, marks })
}
