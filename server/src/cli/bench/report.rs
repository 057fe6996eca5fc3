//! What a load showed, for people and for programs.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::load::{Load, Mode};
use super::process::Usage;

/// What one load showed.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The kind of load.
    pub mode: Mode,
    /// Messages per second that were asked for; nothing in a closed loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_rate: Option<f64>,
    /// How many messages might be unanswered at a time.
    pub in_flight: u64,
    /// Bytes of a body.
    pub size: usize,
    /// Channels.
    pub channels: usize,
    /// Publishing connections.
    pub connections: usize,
    /// Messages per request.
    pub batch: u64,
    /// How long was measured.
    pub seconds: f64,
    /// Messages that were done in that time.
    pub messages: u64,
    /// Messages per second.
    pub rate: f64,
    /// Bytes of bodies per second.
    pub bytes_per_second: f64,
    /// From the time at which a message was meant to be sent to the time at which it was done.
    pub latency: Latency,
    /// Messages that the broker refused.
    pub refused: u64,
    /// The first refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_refusal: Option<String>,
    /// Messages without an answer when the load ended.
    pub unanswered: u64,
    /// Processor time of this client, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cpu_seconds: Option<f64>,
    /// Processor time of the broker, in seconds, when its process is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker_cpu_seconds: Option<f64>,
    /// Bytes that the broker caused to be written to the disk, when its process is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker_written_bytes: Option<u64>,
}

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// Half of the messages were at least as fast.
    pub p50_us: f64,
    /// Nine of ten.
    pub p90_us: f64,
    /// 99 of 100.
    pub p99_us: f64,
    /// 999 of 1000.
    pub p999_us: f64,
    /// The slowest.
    pub max_us: f64,
    /// The average.
    pub mean_us: f64,
}

impl Latency {
    /// Summarises nanoseconds.
    #[must_use]
    pub fn of(nanos: &Histogram<u64>) -> Self {
        let at = |quantile| micros(nanos.value_at_quantile(quantile));
        Self {
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: micros(nanos.max()),
            mean_us: round(nanos.mean() / 1000.0),
        }
    }
}

impl Report {
    #[expect(clippy::cast_precision_loss, reason = "counts of a run are far below 2^52")]
    pub(super) fn new(load: &Load, done: &Measured) -> Self {
        let seconds = done.time.as_secs_f64();
        let rate = done.messages as f64 / seconds;
        Self {
            mode: load.mode,
            target_rate: load.rate,
            in_flight: load.in_flight,
            size: load.size,
            channels: load.channels,
            connections: load.connections,
            batch: load.batch,
            seconds,
            messages: done.messages,
            rate: round(rate),
            bytes_per_second: round(rate * load.size as f64),
            latency: Latency::of(&done.latencies),
            refused: done.refused,
            first_refusal: done.first_refusal.clone(),
            unanswered: done.unanswered,
            client_cpu_seconds: done.client.map(|used| used.cpu.as_secs_f64()),
            broker_cpu_seconds: done.broker.map(|used| used.cpu.as_secs_f64()),
            broker_written_bytes: done.broker.map(|used| used.written_bytes),
        }
    }

    /// Returns the report for people.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "bytes of a run are far below 2^52")]
    pub fn text(&self) -> String {
        let Latency { p50_us, p90_us, p99_us, p999_us, max_us, .. } = self.latency;
        let mut lines = vec![
            format!(
                "{} messages in {:.1} s: {} msg/s, {:.1} MiB/s",
                grouped(self.messages),
                self.seconds,
                grouped_rate(self.rate),
                self.bytes_per_second / f64::from(1 << 20)
            ),
            format!(
                "Latency    p50 {}  p90 {}  p99 {}  p99.9 {}  max {}",
                time(p50_us),
                time(p90_us),
                time(p99_us),
                time(p999_us),
                time(max_us)
            ),
        ];
        for (name, cpu) in [("Client", self.client_cpu_seconds), ("Broker", self.broker_cpu_seconds)] {
            if let Some(cpu) = cpu {
                let cores = cpu / self.seconds;
                lines.push(format!(
                    "{name}     {cpu:.2} s of processor time, {cores:.2} cores, {:.2} µs per message",
                    1e6 * cpu / self.seconds / self.rate
                ));
            }
        }
        if let Some(bytes) = self.broker_written_bytes {
            lines.push(format!(
                "Disk       {} bytes written, {:.2} per byte of a body",
                grouped(bytes),
                bytes as f64 / (self.bytes_per_second * self.seconds)
            ));
        }
        if self.refused > 0 {
            let reason = self.first_refusal.as_deref().unwrap_or("no reason given");
            lines.push(format!("Refused    {}, the first one: {reason}", grouped(self.refused)));
        }
        if self.unanswered > 0 {
            lines.push(format!("Unanswered {}", grouped(self.unanswered)));
        }
        lines.join("\n")
    }
}

/// What was counted in the measured time.
pub(super) struct Measured {
    pub(super) time: Duration,
    pub(super) messages: u64,
    pub(super) refused: u64,
    pub(super) first_refusal: Option<String>,
    pub(super) unanswered: u64,
    pub(super) latencies: Histogram<u64>,
    pub(super) client: Option<Usage>,
    pub(super) broker: Option<Usage>,
}

#[expect(clippy::cast_precision_loss, reason = "latencies are far below 2^52 ns")]
pub(super) fn micros(nanos: u64) -> f64 {
    round(nanos as f64 / 1000.0)
}

fn round(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// Returns microseconds with the unit that suits them.
#[must_use]
pub fn time(micros: f64) -> String {
    match micros {
        ..1000.0 => format!("{micros:.0} µs"),
        1000.0..1_000_000.0 => format!("{:.2} ms", micros / 1000.0),
        _ => format!("{:.2} s", micros / 1_000_000.0),
    }
}

/// Returns a number with its thousands apart.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns a rate as a whole number with its thousands apart.
#[must_use]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is not negative and below 2^52")]
pub fn grouped_rate(rate: f64) -> String {
    grouped(rate.round().max(0.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([12.0, 1234.0, 2_500_000.0].map(time), ["12 µs", "1.23 ms", "2.50 s"]);
    }
}
