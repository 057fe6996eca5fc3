//! How long the disk takes to make a small write durable: the floor under every acknowledgement.

use std::path::Path;

use bytes::Bytes;
use kubemq_runtime::Clock;
use kubemq_storage::Error;
use kubemq_storage::fs::{Disk, File};
use serde::Serialize;

/// Flushes that are measured.
const FLUSHES: u32 = 200;
/// Flushes before that, which find caches cold.
const WARM_UP: u32 = 10;
/// What each of them makes durable.
const BLOCK: usize = 4096;
/// The file that is written and removed; one name, so that a broken-off run leaves at most one.
const NAME: &str = ".kubemq-doctor.temporary";

/// Durations of flushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Speed {
    pub(super) flushes: u32,
    pub(super) p50_us: u64,
    pub(super) p99_us: u64,
    pub(super) longest_us: u64,
}

/// Writes and flushes a temporary file in `dir`.
pub(super) async fn measure(disk: &dyn Disk, clock: &Clock, dir: &Path) -> Result<Speed, Error> {
    let path = dir.join(NAME);
    match disk.remove(&path).await {
        Err(error) if !error.is_missing() => return Err(error),
        _ => {}
    }
    let file = disk.create(&path).await?;
    let measured = flush_many(&*file, clock).await;
    disk.remove(&path).await?;
    measured
}

async fn flush_many(file: &dyn File, clock: &Clock) -> Result<Speed, Error> {
    // Like the log: preallocated, so that a flush does not have to write the file's length as well.
    file.allocate(u64::from(WARM_UP + FLUSHES) * BLOCK as u64).await?;
    let block = Bytes::from(vec![0x5a; BLOCK]);
    let mut took = Vec::with_capacity(FLUSHES as usize);
    for n in 0..WARM_UP + FLUSHES {
        let start = clock.now();
        file.write_at(u64::from(n) * BLOCK as u64, std::slice::from_ref(&block)).await?;
        file.sync_data().await?;
        if n >= WARM_UP {
            took.push(u64::try_from(clock.now().since(start).as_micros()).unwrap_or(u64::MAX));
        }
    }
    took.sort_unstable();
    Ok(summary(&took))
}

/// Returns the summary of sorted durations.
fn summary(took: &[u64]) -> Speed {
    let at = |percent: usize| took.get((took.len() * percent / 100).min(took.len().saturating_sub(1)));
    Speed {
        flushes: u32::try_from(took.len()).unwrap_or(u32::MAX),
        p50_us: at(50).copied().unwrap_or_default(),
        p99_us: at(99).copied().unwrap_or_default(),
        longest_us: took.last().copied().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kubemq_storage::fs::RealDisk;

    #[test]
    fn percentiles_are_those_of_the_list() {
        let took: Vec<u64> = (1..=200).collect();
        assert_eq!(summary(&took), Speed { flushes: 200, p50_us: 101, p99_us: 199, longest_us: 200 });
        assert_eq!(summary(&[7]), Speed { flushes: 1, p50_us: 7, p99_us: 7, longest_us: 7 });
        assert_eq!(summary(&[]).flushes, 0);
    }

    #[tokio::test]
    async fn the_file_is_gone_afterwards_also_that_of_a_broken_off_run() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(NAME), "left behind").unwrap();
        let speed = measure(&RealDisk, &Clock::real(), dir.path()).await.unwrap();
        assert_eq!(speed.flushes, FLUSHES);
        assert!(speed.p50_us <= speed.p99_us && speed.p99_us <= speed.longest_us);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
