//! Writes a node's own snapshot: the file first, then the pointer in the log.

use kubemq_storage::snapshot::SnapshotWriter;

use crate::error::Error;
use crate::machine::{Durable, Moment, Shared};
use crate::reclaim::Marks;
use crate::types;
use crate::walk::Apart;

/// Writes `moment`, whose entries must be synced here. Returns what was written, and the segments in which nothing or
/// little of the state lies; what is durable now is for the caller to note. Only one is written at a time.
///
/// # Errors
///
/// What the disk says, and damage of the snapshot before this one where it is needed: then nothing has changed.
pub(crate) async fn write(shared: &Shared, moment: Moment) -> Result<(Durable, Marks), Error> {
    let marks = Marks::of(shared, moment.meta.index(), [moment.living(), moment.living()]).await?;
    let chunks = moment.chunks().apart(&shared.runtime.tasks, "snapshot-write");
    let meta = moment.meta;
    // What of the state the walk has passed need not be kept for it.
    drop(moment.source);
    let mut writer = shared.snapshots.begin(meta.encode()).await?;
    let bytes = match copy(chunks, &mut writer).await {
        Ok(bytes) => bytes,
        Err(error) => {
            writer.abandon().await;
            return Err(error);
        }
    };
    let file = writer.finish().await?;
    let held = shared.snapshots.hold(&file).await?;
    if let Some(id) = &meta.raft.last_log_id {
        shared.log.save_snapshot_pointer(types::stored_id(id), &file.name).await?;
    }
    Ok((Durable { meta, bytes, held }, marks))
}

/// Writes all chunks and returns their bytes.
async fn copy(mut chunks: Apart<bytes::Bytes>, writer: &mut SnapshotWriter) -> Result<u64, Error> {
    let mut bytes = 0;
    while let Some(chunk) = chunks.next().await? {
        bytes += chunk.len() as u64;
        writer.push(chunk).await?;
    }
    Ok(bytes)
}
