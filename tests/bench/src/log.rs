//! The storage log by itself: no network, no Raft, no queues.
//!
//! One caller appends a group, waits until it is synced, and appends the next, as the engine does with what
//! arrived during the previous sync; encoding and checksums are part of it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;
use kubemq_runtime::sync::oneshot;
use kubemq_runtime::{Instant, Runtime};
use kubemq_server::cli::bench::process::Usage;
use kubemq_server::cli::bench::{grouped_rate, time};
use kubemq_storage::fs::RealDisk;
use kubemq_storage::log::{Log, Options};
use kubemq_storage::{Entry, EntryKind, LogId, Parts};
use tempfile::TempDir;

/// Messages of a group.
const GROUP: u16 = 64;

/// Bytes of a message.
const MESSAGE: usize = 1024;

/// Bytes of a group's messages.
pub(crate) const GROUP_BYTES: usize = GROUP as usize * MESSAGE;

/// What the log reached.
pub(crate) struct Figures {
    /// In groups of 64 messages, one fdatasync each.
    pub(crate) messages_per_second: f64,
    /// Bytes that the process caused to be written per byte of the messages.
    pub(crate) amplification: f64,
    /// Groups per fdatasync: one when the log does what it says.
    pub(crate) groups_per_sync: f64,
    /// From append to synced, one message at a time.
    pub(crate) single_p50_us: f64,
    /// The same.
    pub(crate) single_p99_us: f64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "groups of {GROUP} × {MESSAGE} B: {}/s, {:.3} bytes written per byte, {:.2} groups per fdatasync; one append at a time: p50 {}, p99 {}",
            grouped_rate(self.messages_per_second),
            self.amplification,
            self.groups_per_sync,
            time(self.single_p50_us),
            time(self.single_p99_us)
        )
    }
}

/// Measures a log in a fresh directory below `directory`, groups and single appends for `duration` each.
pub(crate) async fn groups(directory: &Path, runtime: &Runtime, duration: Duration) -> anyhow::Result<Figures> {
    let directory = TempDir::new_in(directory).context("could not make a directory")?;
    let path = directory.path().join("log");
    let log =
        Log::open(Arc::new(RealDisk), path, Options::default(), runtime).await.context("could not open the log")?;
    let mut writer = Writer { log, runtime: runtime.clone(), next: 1 };
    // The first appends find cold caches and a segment that is just being made.
    writer.run(GROUP, Duration::from_millis(500)).await?;
    let (before, stats_before) = (Usage::of(None), writer.log.stats());
    let groups = writer.run(GROUP, duration).await?;
    let (after, stats_after) = (Usage::of(None), writer.log.stats());
    let singles = writer.run(1, duration).await?;
    writer.log.close().await.context("could not close the log")?;
    let Some(used) = after.zip(before).map(|(after, before)| after.since(before)) else {
        bail!("this system does not count what a process writes");
    };
    let messages = float(groups.latencies.len()) * f64::from(GROUP);
    Ok(Figures {
        messages_per_second: messages / groups.seconds,
        amplification: float(used.written_bytes) / (messages * float(MESSAGE as u64)),
        groups_per_sync: float(stats_after.groups - stats_before.groups)
            / float(stats_after.fdatasyncs - stats_before.fdatasyncs),
        single_p50_us: float(singles.latencies.value_at_quantile(0.5)) / 1000.0,
        single_p99_us: float(singles.latencies.value_at_quantile(0.99)) / 1000.0,
    })
}

struct Run {
    latencies: Histogram<u64>,
    seconds: f64,
}

/// Appends to a log.
struct Writer {
    log: Log,
    runtime: Runtime,
    next: u64,
}

impl Writer {
    /// Appends `messages` at a time, each when the one before is synced, for `duration`.
    async fn run(&mut self, messages: u16, duration: Duration) -> anyhow::Result<Run> {
        let clock = self.runtime.clock.clone();
        let mut latencies = Histogram::new_with_bounds(1000, 60_000_000_000, 3)?;
        let body = vec![0x5A; MESSAGE];
        let begin = clock.now();
        loop {
            let start = clock.now();
            if start.since(begin) >= duration {
                let seconds = start.since(begin).as_secs_f64();
                return Ok(Run { latencies, seconds });
            }
            self.append(messages, &body, start).await?;
            latencies.saturating_record(u64::try_from(clock.now().since(start).as_nanos()).unwrap_or(u64::MAX));
        }
    }

    async fn append(&mut self, messages: u16, body: &[u8], now: Instant) -> anyhow::Result<()> {
        let mut parts = Parts::builder();
        for _ in 0..messages {
            parts.push(body);
        }
        let id = LogId { term: 1, node: 1, index: self.next };
        let entry = Entry { id, time: now.as_nanos(), kind: EntryKind::Normal, parts: parts.finish() };
        let (done, synced) = oneshot::channel();
        // The receiver waits below.
        self.log.append(vec![entry], Box::new(move |result| drop(done.send(result))));
        synced.await.context("the log is gone")?.context("could not append")?;
        self.log.applied(self.next);
        self.next += 1;
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a run are far below 2^52")]
fn float(number: u64) -> f64 {
    number as f64
}
