//! The floor of the disk: how long one fdatasync takes, through the same door as the log's.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use hdrhistogram::Histogram;
use kubemq_runtime::Clock;
use kubemq_storage::fs::{Disk as _, File, RealDisk};

/// Bytes of one append.
const APPEND: usize = 4096;

/// Bytes of the file, reserved before: it is written over from the start when it is full, which the log never
/// does; so no run is long enough to fill it.
const FILE: u64 = 64 << 20;

/// Latencies of `write + fdatasync`, in nanoseconds.
pub(crate) type Latencies = Histogram<u64>;

/// Appends 4 KiB at a time to a preallocated file in `directory`, each followed by an fdatasync, for about
/// `duration`.
pub(crate) async fn synced_appends(directory: &Path, clock: &Clock, duration: Duration) -> anyhow::Result<Latencies> {
    let path = directory.join("appends");
    let file: Arc<dyn File> = RealDisk.create(&path).await.context("could not create the file to append to")?;
    file.allocate(FILE).await.context("could not reserve room")?;
    file.sync_data().await.context("could not sync")?;
    let block = Bytes::from(vec![0x5A; APPEND]);
    let mut latencies = Histogram::new_with_bounds(1000, 60_000_000_000, 3)?;
    let end = clock.now() + duration;
    let mut offset = 0;
    while clock.now() < end && offset + APPEND as u64 <= FILE {
        let start = clock.now();
        file.write_at(offset, std::slice::from_ref(&block)).await.context("could not append")?;
        file.sync_data().await.context("could not sync")?;
        latencies.saturating_record(u64::try_from(clock.now().since(start).as_nanos()).unwrap_or(u64::MAX));
        offset += APPEND as u64;
    }
    RealDisk.remove(&path).await.context("could not remove the file")?;
    Ok(latencies)
}
