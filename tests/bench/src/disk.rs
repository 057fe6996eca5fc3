//! The floor of the disk: how long one fdatasync takes, through the same door as the log's, and what the memory costs
//! that a written file takes until it is on the disk.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use hdrhistogram::Histogram;
use kubemq_runtime::Clock;
use kubemq_server::cli::bench::time;
use kubemq_storage::fs::{Disk as _, File, RealDisk};

/// Bytes of the append that the machine's fdatasync latency is given for.
pub(crate) const SMALL: usize = 4096;

/// Bytes of the file, reserved before. A run ends when it is full: writing over it again would be another
/// measurement.
const FILE: u64 = 1 << 30;

/// Latencies of `write + fdatasync`, in nanoseconds.
pub(crate) type Latencies = Histogram<u64>;

/// Appends `size` bytes at a time to a preallocated file in `directory`, each followed by an fdatasync, for about
/// `duration`.
pub(crate) async fn synced_appends(
    directory: &Path,
    clock: &Clock,
    size: usize,
    duration: Duration,
) -> anyhow::Result<Latencies> {
    let path = directory.join("appends");
    let file: Arc<dyn File> = RealDisk.create(&path).await.context("could not create the file to append to")?;
    file.allocate(FILE).await.context("could not reserve room")?;
    file.sync_data().await.context("could not sync")?;
    let block = Bytes::from(vec![0x5A; size]);
    let mut latencies = Histogram::new_with_bounds(1000, 60_000_000_000, 3)?;
    let end = clock.now() + duration;
    let mut offset: u64 = 0;
    while clock.now() < end && offset + size as u64 <= FILE {
        let start = clock.now();
        file.write_at(offset, std::slice::from_ref(&block)).await.context("could not append")?;
        file.sync_data().await.context("could not sync")?;
        latencies.saturating_record(u64::try_from(clock.now().since(start).as_nanos()).unwrap_or(u64::MAX));
        offset += size as u64;
    }
    drop(file);
    RealDisk.remove(&path).await.context("could not remove the file")?;
    Ok(latencies)
}

/// Bytes of the file that [`page_cache`] writes, and of each of its writes.
const CACHED: u64 = 512 << 20;
const CACHED_WRITE: u64 = 256 << 10;

/// How many bytes a second can be written and not flushed: to a new file, for which the kernel must find memory, and
/// over it again. In a virtual machine whose host takes free memory back, the first may be slower than any disk.
pub(crate) async fn page_cache(directory: &Path, clock: &Clock) -> anyhow::Result<[f64; 2]> {
    let path = directory.join("cached");
    let file: Arc<dyn File> = RealDisk.create(&path).await.context("could not create the file to write")?;
    let block = Bytes::from(vec![0x5A; usize::try_from(CACHED_WRITE)?]);
    let mut rates = [0.0; 2];
    for rate in &mut rates {
        let start = clock.now();
        for offset in (0..CACHED / CACHED_WRITE).map(|number| number * CACHED_WRITE) {
            file.write_at(offset, std::slice::from_ref(&block)).await.context("could not write")?;
        }
        #[expect(clippy::cast_precision_loss, reason = "a file has far fewer than 2^52 bytes")]
        let bytes = CACHED as f64;
        *rate = bytes / clock.now().since(start).as_secs_f64();
    }
    drop(file);
    RealDisk.remove(&path).await.context("could not remove the file")?;
    Ok(rates)
}

/// Returns latencies as text.
pub(crate) fn text(latencies: &Latencies) -> String {
    #[expect(clippy::cast_precision_loss, reason = "latencies are far below 2^52 ns")]
    let at = |quantile| time(latencies.value_at_quantile(quantile) as f64 / 1000.0);
    format!("p50 {}, p99 {}, max {}, {:.0}/s", at(0.5), at(0.99), at(1.0), 1e9 / latencies.mean())
}
