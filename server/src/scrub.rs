//! The scrubber: reads again, slowly, what lies in sealed files, so that damage is known before the message is asked for.
//!
//! It reads one file after the other, at most so many bytes a second, and next to nothing while the node has other work
//! for its disk. It tells and counts what it finds; it mends nothing and deletes nothing.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kubemq_raft::Living;
use kubemq_runtime::chain;
use kubemq_storage::Error as StorageError;
use kubemq_storage::log::{Log, ScrubDamage, ScrubPlace, Scrubbed};
use parking_lot::Mutex;

use crate::gateway::Gateway;

/// When the first pass begins after a start, unless passes are to begin more often.
const FIRST: Duration = Duration::from_secs(300);
/// Bytes that are read at a time.
const PIECE: u64 = 1 << 20;
/// With more reads of files than this beside one piece the node is busy.
const BUSY_READS: u64 = 16;
/// How many times longer a pause becomes while the node is busy.
const BUSY_PAUSES: u32 = 10;
/// Damage that is remembered, so that it is told once; more is counted again by each pass.
const REMEMBERED: usize = 64 * 1024;

/// How fast and how often is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Bytes a second, at most; 0: nothing is read.
    pub bytes_per_second: u64,
    /// Time from the end of a pass to the beginning of the next.
    pub every: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { bytes_per_second: 4 << 20, every: Duration::from_secs(24 * 3600) }
    }
}

/// What the scrubber has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStats {
    /// Bytes read since the start.
    pub bytes: u64,
    /// Damaged places that are known, in files that still exist.
    pub damaged: u64,
    /// When the last pass ended, in seconds of the wall clock since 1970; 0: none has yet.
    pub last_pass: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Scrubber {
    bytes: AtomicU64,
    last_pass: AtomicU64,
    /// By segment, offset, and part if it is only that.
    known: Mutex<BTreeSet<(u64, u64, Option<u16>)>>,
}

impl Scrubber {
    pub(crate) fn stats(&self) -> ScrubStats {
        ScrubStats {
            bytes: self.bytes.load(Ordering::Relaxed),
            damaged: u64::try_from(self.known.lock().len()).unwrap_or(u64::MAX),
            last_pass: self.last_pass.load(Ordering::Relaxed),
        }
    }

    /// Returns those of a piece that are not known yet, and knows them.
    fn news(&self, segment: u64, damaged: Vec<ScrubDamage>) -> Vec<ScrubDamage> {
        let mut known = self.known.lock();
        let key = |damage: &ScrubDamage| (segment, damage.offset, damage.lost.and_then(|(_, part)| part));
        damaged.into_iter().filter(|damage| known.len() < REMEMBERED && known.insert(key(damage))).collect()
    }
}

/// Reads everything now and then, for as long as the node lives.
pub(crate) async fn scrub_now_and_then(gateway: Gateway, pace: Pace) {
    if pace.bytes_per_second == 0 {
        return;
    }
    let clock = gateway.runtime().clock.clone();
    clock.sleep(pace.every.min(FIRST)).await;
    loop {
        match pass(&gateway, pace).await {
            Ok(()) => gateway.scrubber().last_pass.store(clock.wall().0 / 1_000_000_000, Ordering::Relaxed),
            Err(StorageError::Closed) => return,
            Err(error) => tracing::error!(error = %chain(&error), "what is stored could not be read through"),
        }
        clock.sleep(pace.every).await;
    }
}

async fn pass(gateway: &Gateway, pace: Pace) -> Result<(), StorageError> {
    let log = gateway.log();
    let sealed: Vec<u64> = log.segments().iter().filter(|info| info.sealed).map(|info| info.number).collect();
    gateway.scrubber().known.lock().retain(|(segment, ..)| sealed.contains(segment));
    for segment in sealed {
        let mut next = Some(ScrubPlace::start_of(segment));
        while let Some(place) = next {
            let Scrubbed { bytes, damaged, next: following } =
                log.scrub(place, PIECE.min(pace.bytes_per_second)).await?;
            gateway.scrubber().bytes.fetch_add(bytes, Ordering::Relaxed);
            if !damaged.is_empty() {
                tell(gateway, gateway.scrubber().news(segment, damaged)).await;
            }
            pause(gateway, log, Duration::from_millis(bytes.saturating_mul(1000) / pace.bytes_per_second)).await;
            next = following;
        }
    }
    Ok(())
}

/// Waits until a piece may be read again: longer while the disk has other work.
async fn pause(gateway: &Gateway, log: &Log, pause: Duration) {
    for _ in 0..BUSY_PAUSES {
        let before = log.stats();
        gateway.runtime().clock.sleep(pause).await;
        let after = log.stats();
        if after.bytes - before.bytes <= PIECE && after.file_reads - before.file_reads <= BUSY_READS {
            return;
        }
    }
}

async fn tell(gateway: &Gateway, damaged: Vec<ScrubDamage>) {
    let lost: BTreeSet<(u64, Option<u16>)> = damaged.iter().filter_map(|damage| damage.lost).collect();
    let alive = gateway.raft().fold_living(BTreeSet::new(), move |alive, Living { entry, first, count }| {
        let near = lost.range((entry, None)..=(entry, Some(u16::MAX)));
        let is_hit = |part: Option<u16>| part.is_none_or(|part| part >= first && part - first < count);
        alive.extend(near.copied().filter(|(_, part)| is_hit(*part)));
    });
    let alive = match alive.await {
        Ok(alive) => Some(alive),
        Err(error) => {
            tracing::error!(error = %chain(&error), "whether what is damaged is still needed cannot be said");
            None
        }
    };
    for ScrubDamage { error, lost, .. } in damaged {
        let error = chain(&error);
        match lost {
            Some(lost) if alive.as_ref().is_some_and(|alive| !alive.contains(&lost)) => {
                tracing::warn!(entry = lost.0, part = ?lost.1, %error, "what nobody needs any more is damaged");
            }
            Some((entry, part)) => tracing::error!(entry, ?part, %error, "a stored message is damaged"),
            None => tracing::error!(%error, "what is stored is damaged"),
        }
    }
}

#[cfg(test)]
mod tests {
    use kubemq_storage::fs::MemoryDisk;

    use super::*;

    #[test]
    fn so_many_damaged_places_are_remembered() {
        let scrubber = Scrubber::default();
        let damage = |offset| ScrubDamage { error: StorageError::Closed, offset, lost: None };
        let many = REMEMBERED as u64 + 10;
        assert_eq!(scrubber.news(1, (0..many).map(damage).collect()).len(), REMEMBERED);
        assert_eq!(scrubber.stats().damaged, REMEMBERED as u64);
        assert!(scrubber.news(1, vec![damage(0), damage(many)]).is_empty(), "known, and too many");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_more_is_read_in_a_second_than_configured() {
        let node = crate::damage::tests::filled(&MemoryDisk::default()).await;
        let (gateway, clock) = (node.gateway(), &node.gateway().runtime().clock);
        let begin = clock.now();
        pass(gateway, Pace { bytes_per_second: 256 << 10, ..Pace::default() }).await.unwrap();
        let read = gateway.scrubber().stats().bytes;
        assert!(read >= 64 << 10, "{read}");
        // Pauses are in whole milliseconds, one for each of the files.
        let least = Duration::from_millis(read * 1000 / (256 << 10) - gateway.log().segments().len() as u64);
        assert!(clock.now().since(begin) >= least, "{read} bytes in {:?}", clock.now().since(begin));
        node.stop().await;
    }
}
