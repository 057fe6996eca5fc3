//! The loads that are measured, on the floor and on the broker, by the same client.

use std::path::Path;
use std::time::Duration;

use anyhow::{anyhow, bail};
use kubemq_runtime::Runtime;
use kubemq_server::cli::bench::process::resident_bytes;
use kubemq_server::cli::bench::{Load, Mode, Progress, Report};
use kubemq_server::cli::client::Token;

use crate::floor::KEPT;
use crate::flushes;
use crate::process::Server;

/// Bytes of a body, unless the work says otherwise.
const BODY: u32 = 1024;

/// Events that a replay reads again and again: three times what the broker keeps in memory.
pub(crate) const REPLAYED: u64 = 200_000;

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    /// What it is called in the table.
    pub(crate) name: &'static str,
    pub(crate) mode: Mode,
    pub(crate) in_flight: u64,
    pub(crate) channels: usize,
    pub(crate) connections: usize,
    /// Subscribers of each event.
    pub(crate) receivers: usize,
    /// Bytes of a body.
    pub(crate) body: u32,
    /// What must be reached.
    pub(crate) target: Target,
}

/// What must be reached: all that is said. Shares are of the floor of the same run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// Messages per second.
    pub(crate) rate: Option<f64>,
    /// A share of the floor's rate.
    pub(crate) of_floor: Option<f64>,
    /// The median latency.
    pub(crate) p50_us: Option<f64>,
    /// The 99th percentile of the latencies.
    pub(crate) p99_us: Option<f64>,
    /// The median latency: that of an fdatasync, of the floor's round trip, and this many microseconds.
    pub(crate) over_floors_us: Option<f64>,
    /// Messages per fdatasync of the broker's log.
    pub(crate) per_sync: Option<f64>,
    /// A share of the rate of the row before, whose flushes per second differ by this share at most.
    pub(crate) of_row_before: Option<(f64, f64)>,
}

/// Shown, not judged.
pub(crate) const NONE: Target = Target {
    rate: None,
    of_floor: None,
    p50_us: None,
    p99_us: None,
    over_floors_us: None,
    per_sync: None,
    of_row_before: None,
};

/// The rows of the issues, and some that show how the engine scales.
pub(crate) const WORKS: [Work; 17] = [
    work(
        "one synchronous sender",
        Mode::Upstream,
        1,
        Target { p50_us: Some(180.0), over_floors_us: Some(40.0), ..NONE },
    ),
    work(
        "upstream stream, 64 in flight",
        Mode::Upstream,
        64,
        Target { rate: Some(80_000.0), of_floor: Some(0.2), p99_us: Some(1700.0), ..NONE },
    ),
    work(
        "upstream stream, 1024 in flight",
        Mode::Upstream,
        1024,
        Target { rate: Some(250_000.0), of_floor: Some(0.3), ..NONE },
    ),
    Work {
        channels: 10_000,
        ..work(
            "upstream stream, 1024, 10,000 channels",
            Mode::Upstream,
            1024,
            Target { of_row_before: Some((0.8, 0.2)), ..NONE },
        )
    },
    Work {
        channels: 16,
        ..work("upstream stream, 1024, 16 channels", Mode::Upstream, 1024, Target { rate: Some(250_000.0), ..NONE })
    },
    // Of what is in flight about half is on its way at any moment: a log that has more to do than it can is seen here.
    work("upstream stream, 4096 in flight", Mode::Upstream, 4096, Target { per_sync: Some(500.0), ..NONE }),
    work("publish + get + ack, 64 in flight", Mode::EndToEnd, 64, Target { rate: Some(60_000.0), ..NONE }),
    work(
        "publish + get + ack, 1024 in flight",
        Mode::EndToEnd,
        1024,
        Target { rate: Some(120_000.0), of_floor: Some(0.3), ..NONE },
    ),
    Work {
        channels: 16,
        connections: 4,
        ..work(
            "publish + get + ack, 64, 16 channels, 4 connections",
            Mode::EndToEnd,
            64,
            Target { rate: Some(60_000.0), ..NONE },
        )
    },
    Work {
        channels: 16,
        connections: 4,
        ..work(
            "publish + get + ack, 1024, 16 channels, 4 connections",
            Mode::EndToEnd,
            1024,
            Target { rate: Some(120_000.0), ..NONE },
        )
    },
    work("unary send, 64 in flight", Mode::Unary, 64, share(0.65)),
    work("events-store publish, 1024 in flight", Mode::EventsStore, 1024, Target { rate: Some(200_000.0), ..NONE }),
    work("events-store replay", Mode::Replay, 1, share(0.65)),
    Work { body: 128, ..work("events 1→1, 4096 in flight, 128 B", Mode::Events, 4096, share(0.6)) },
    Work {
        body: 128,
        receivers: 8,
        ..work("events 1→8, deliveries, 8192 in flight, 128 B", Mode::Events, 8192, share(0.6))
    },
    Work { body: 256, ..work("commands, 150 concurrent, 256 B", Mode::Commands, 150, share(0.95)) },
    Work { body: 256, ..work("commands, one after another, 256 B", Mode::Commands, 1, share(0.85)) },
];

const fn share(of_floor: f64) -> Target {
    Target { of_floor: Some(of_floor), ..NONE }
}

/// Returns a work on one channel and one connection.
pub(crate) const fn work(name: &'static str, mode: Mode, in_flight: u64, target: Target) -> Work {
    Work { name, mode, in_flight, channels: 1, connections: 1, receivers: 1, body: BODY, target }
}

/// How long each measurement takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) warm_up: Duration,
    pub(crate) duration: Duration,
}

/// What one measurement showed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Messages per second.
    pub(crate) rate: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Processor time of the client per message, in microseconds.
    pub(crate) client_us: f64,
    /// Processor time of the server per message, in microseconds.
    pub(crate) server_us: f64,
    /// Bytes that the server had written to the disk per byte of the bodies.
    pub(crate) amplification: f64,
    /// Memory that the server had resident at the end.
    pub(crate) resident_bytes: f64,
    /// Flushes of the broker's log per second; not a number for others.
    pub(crate) syncs: f64,
    /// Flushes of the disk per second, whoever caused them.
    pub(crate) flushes: f64,
}

/// What is counted beside a load, from the end of its warm-up to its last look.
#[derive(Default)]
struct Counted {
    first: Option<Counts>,
    last: Option<Counts>,
}

#[derive(Clone, Copy)]
struct Counts {
    at: Duration,
    syncs: Option<f64>,
    flushes: Option<f64>,
}

impl Counted {
    fn look(&mut self, progress: &Progress, server: &Server, directory: &Path) {
        #[expect(clippy::cast_precision_loss, reason = "a disk has completed far fewer than 2^52 flushes")]
        let flushes = flushes::completed(directory).map(|count| count as f64);
        let counts = Counts { at: progress.elapsed, syncs: server.metric("kubemq_log_fdatasync_total").ok(), flushes };
        // The look that ends the warm-up is the last one of it.
        if progress.warming_up { self.first = Some(counts) } else { self.last = Some(counts) }
    }

    /// Returns how much one of the counts rose per second, or not a number.
    fn per_second(&self, of: fn(&Counts) -> Option<f64>) -> f64 {
        let (Some(first), Some(last)) = (self.first, self.last) else { return f64::NAN };
        let rise = of(&last).zip(of(&first)).map(|(last, first)| last - first);
        rise.unwrap_or(f64::NAN) / (last.at - first.at).as_secs_f64()
    }
}

impl Work {
    /// Runs this load at `server`; `look` is called about every second, at the end of the warm-up and at the end. A
    /// message that is refused or lost makes the measurement void.
    pub(crate) async fn run(
        &self,
        server: &Server,
        times: Times,
        runtime: &Runtime,
        look: impl FnMut(&Progress),
    ) -> anyhow::Result<Report> {
        let load = Load {
            address: server.address.clone(),
            token: Token::default(),
            client_id: "kubemq-bench".to_owned(),
            mode: self.mode,
            rate: None,
            in_flight: self.in_flight,
            size: self.body as usize,
            channels: self.channels,
            prefix: if matches!(self.mode, Mode::EndToEnd | Mode::Replay) { KEPT } else { "bench" }.to_owned(),
            connections: self.connections,
            batch: 1,
            items: None,
            events: REPLAYED,
            receivers: self.receivers,
            messages: None,
            duration: times.duration,
            warm_up: times.warm_up,
            broker_process: Some(server.id()),
        };
        let report = load.run(runtime, look).await.map_err(|failure| anyhow!("{}: {failure}", self.name))?;
        if report.refused > 0 || report.unanswered > 0 {
            bail!("{}: {} refused, {} unanswered", self.name, report.refused, report.unanswered);
        }
        Ok(report)
    }

    /// Measures this load at `server`, and the disk under `directory` meanwhile.
    pub(crate) async fn measure(
        &self,
        server: &Server,
        directory: &Path,
        times: Times,
        runtime: &Runtime,
    ) -> anyhow::Result<Sample> {
        let mut counted = Counted::default();
        let look = |progress: &Progress| counted.look(progress, server, directory);
        let report = self.run(server, times, runtime, look).await?;
        let per_message = |used: Option<f64>| used.unwrap_or(f64::NAN) / (report.rate * report.seconds);
        #[expect(clippy::cast_precision_loss, reason = "bytes of a run are far below 2^52")]
        let written = report.broker_written_bytes.map(|bytes| bytes as f64);
        Ok(Sample {
            rate: report.rate,
            p50_us: report.latency.p50_us,
            p99_us: report.latency.p99_us,
            client_us: 1e6 * per_message(report.client_cpu_seconds),
            server_us: 1e6 * per_message(report.broker_cpu_seconds),
            amplification: per_message(written) / f64::from(self.body),
            #[expect(clippy::cast_precision_loss, reason = "a process has far fewer than 2^52 bytes")]
            resident_bytes: resident_bytes(Some(server.id())).map_or(f64::NAN, |bytes| bytes as f64),
            syncs: counted.per_second(|counts| counts.syncs),
            flushes: counted.per_second(|counts| counts.flushes),
        })
    }
}
