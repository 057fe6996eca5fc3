//! The loads that are measured, on the floor and on the broker, by the same client.

use std::time::Duration;

use anyhow::{anyhow, bail};
use kubemq_runtime::Runtime;
use kubemq_server::cli::bench::{Load, Mode};
use kubemq_server::cli::client::Token;

use crate::floor::KEPT;
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

/// What must be reached, beside the floors of the same run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// The median latency: that of an fdatasync, of the floor's round trip, and this many microseconds.
    Latency { more_us: f64 },
    /// A share of the floor's rate, and possibly a bound of the 99th percentile.
    Share { of_floor: f64, p99_us: Option<f64> },
    /// A rate, whatever the floor is.
    Rate { least: f64 },
    /// Shown, not judged.
    None,
}

/// The rows of the issues, and some that show how the engine scales.
pub(crate) const WORKS: [Work; 14] = [
    work("one synchronous sender", Mode::Upstream, 1, Target::Latency { more_us: 40.0 }),
    work("upstream stream, 64 in flight", Mode::Upstream, 64, Target::Share { of_floor: 0.2, p99_us: Some(1700.0) }),
    work("upstream stream, 1024 in flight", Mode::Upstream, 1024, Target::Share { of_floor: 0.3, p99_us: None }),
    work("publish + get + ack, 1024 in flight", Mode::EndToEnd, 1024, Target::Share { of_floor: 0.3, p99_us: None }),
    work("unary send, 64 in flight", Mode::Unary, 64, Target::Share { of_floor: 0.65, p99_us: None }),
    work("publish + get + ack, 64 in flight", Mode::EndToEnd, 64, Target::None),
    Work { channels: 16, ..work("upstream stream, 1024, 16 channels", Mode::Upstream, 1024, Target::None) },
    Work {
        channels: 16,
        connections: 4,
        ..work("publish + get + ack, 1024, 16 channels, 4 connections", Mode::EndToEnd, 1024, Target::None)
    },
    work("events-store publish, 1024 in flight", Mode::EventsStore, 1024, Target::Rate { least: 200_000.0 }),
    work("events-store replay", Mode::Replay, 1, share(0.65)),
    Work { body: 128, ..work("events 1→1, 4096 in flight, 128 B", Mode::Events, 4096, share(0.5)) },
    Work {
        body: 128,
        receivers: 8,
        ..work("events 1→8, deliveries, 8192 in flight, 128 B", Mode::Events, 8192, share(0.6))
    },
    Work { body: 256, ..work("commands, 150 concurrent, 256 B", Mode::Commands, 150, share(0.9)) },
    Work { body: 256, ..work("commands, one after another, 256 B", Mode::Commands, 1, share(0.85)) },
];

const fn share(of_floor: f64) -> Target {
    Target::Share { of_floor, p99_us: None }
}

const fn work(name: &'static str, mode: Mode, in_flight: u64, target: Target) -> Work {
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
}

impl Work {
    /// Measures this load at `server`. A message that is refused or lost makes the measurement void.
    pub(crate) async fn measure(&self, server: &Server, times: Times, runtime: &Runtime) -> anyhow::Result<Sample> {
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
        let report = load.run(runtime, |_| {}).await.map_err(|failure| anyhow!("{}: {failure}", self.name))?;
        if report.refused > 0 || report.unanswered > 0 {
            bail!("{}: {} refused, {} unanswered", self.name, report.refused, report.unanswered);
        }
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
        })
    }
}
