//! The table of the README: targets, what was measured, and the floors of the same run beside it.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use kubemq_runtime::{Clock, Runtime};
use kubemq_server::cli::bench::process::{cpu_time, resident_bytes};
use kubemq_server::cli::bench::{grouped_rate, time};
use kubemq_server::cli::output;

use crate::disk;
use crate::log;
use crate::machine::conditions;
use crate::process::Server;
use crate::work::{Sample, Target, Times, WORKS, Work};

/// How long an idle broker is watched, after it has settled.
const IDLE: Duration = Duration::from_secs(10);

/// How long it settles.
const SETTLE: Duration = Duration::from_secs(3);

/// How often a start is timed.
const STARTS: usize = 7;

/// What to measure.
pub(crate) struct Plan<'a> {
    pub(crate) broker: &'a Path,
    pub(crate) directory: &'a Path,
    pub(crate) rounds: usize,
    pub(crate) times: Times,
    /// Only rows whose name contains this.
    pub(crate) only: &'a str,
}

/// A line of the table.
pub(crate) struct Row {
    work: String,
    target: String,
    measured: String,
    floor: String,
    met: Option<bool>,
}

/// Measures everything and returns the text of the results.
pub(crate) async fn run(plan: &Plan<'_>, runtime: &Runtime) -> anyhow::Result<String> {
    let conditions = conditions(plan.directory, plan.broker);
    let sync = sync_latency(plan, &runtime.clock).await?;
    let cached = disk::page_cache(plan.directory, &runtime.clock).await?;
    let mut rows = Vec::new();
    // First: the disk is slow for a while after the gigabytes that the brokers wrote are removed.
    if "log alone".contains(plan.only) {
        rows.extend(log_rows(plan, runtime).await?);
    }
    let mut before = None;
    for work in WORKS.iter().filter(|work| work.name.contains(plan.only)) {
        output::note(format_args!("{}", work.name));
        let (floor, broker) = measure(work, plan, runtime).await?;
        rows.push(row(work, &Measured { floor, broker, before, sync_us: sync.p50_us }));
        before = Some(broker);
    }
    if "program".contains(plan.only) {
        rows.extend(program_rows(plan, &runtime.clock).await?);
    }
    Ok(render(&conditions, &sync, cached, plan, &rows))
}

/// How long one fdatasync of a 4 KiB append takes on this machine.
struct Sync {
    p50_us: f64,
    p99_us: f64,
    rate: f64,
}

async fn sync_latency(plan: &Plan<'_>, clock: &Clock) -> anyhow::Result<Sync> {
    let mut samples = Vec::new();
    for _ in 0..plan.rounds {
        let latencies = disk::synced_appends(plan.directory, clock, disk::SMALL, Duration::from_secs(1)).await?;
        samples.push((
            micros(latencies.value_at_quantile(0.5)),
            micros(latencies.value_at_quantile(0.99)),
            1e9 / latencies.mean(),
        ));
    }
    let of = |pick: fn(&(f64, f64, f64)) -> f64| median(samples.iter().map(pick));
    Ok(Sync { p50_us: of(|sample| sample.0), p99_us: of(|sample| sample.1), rate: of(|sample| sample.2) })
}

/// Measures floor and broker in turns, each time in a fresh process, and returns the medians.
async fn measure(work: &Work, plan: &Plan<'_>, runtime: &Runtime) -> anyhow::Result<(Sample, Sample)> {
    let (mut floors, mut brokers) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        let server = Server::floor(&runtime.clock)?;
        floors.push(work.measure(&server, plan.directory, plan.times, runtime).await?);
        drop(server);
        let server = Server::broker(plan.broker, plan.directory, "group", &runtime.clock)?;
        brokers.push(work.measure(&server, plan.directory, plan.times, runtime).await?);
    }
    Ok((middle(&floors), middle(&brokers)))
}

/// Returns the median of each figure by itself.
pub(crate) fn middle(samples: &[Sample]) -> Sample {
    let of = |pick: fn(&Sample) -> f64| median(samples.iter().map(pick));
    Sample {
        rate: of(|sample| sample.rate),
        p50_us: of(|sample| sample.p50_us),
        p99_us: of(|sample| sample.p99_us),
        client_us: of(|sample| sample.client_us),
        server_us: of(|sample| sample.server_us),
        amplification: of(|sample| sample.amplification),
        resident_bytes: of(|sample| sample.resident_bytes),
        syncs: of(|sample| sample.syncs),
        flushes: of(|sample| sample.flushes),
    }
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What a row is made of.
struct Measured {
    floor: Sample,
    broker: Sample,
    /// The broker in the row before.
    before: Option<Sample>,
    /// How long an fdatasync takes.
    sync_us: f64,
}

fn row(work: &Work, measured: &Measured) -> Row {
    let Measured { floor, broker, .. } = measured;
    let demands = demands(&work.target, measured);
    let texts: Vec<&str> = demands.iter().map(|(text, _)| text.as_str()).collect();
    Row {
        work: work.name.to_owned(),
        target: if texts.is_empty() { "–".to_owned() } else { texts.join(", ") },
        measured: format!("{} = {:.2} × floor", figures(broker), broker.rate / floor.rate),
        floor: figures(floor),
        met: (!demands.is_empty()).then(|| demands.iter().all(|(_, met)| *met)),
    }
}

/// Returns each demand as text, and whether it is met.
fn demands(target: &Target, measured: &Measured) -> Vec<(String, bool)> {
    let Measured { floor, broker, before, sync_us } = measured;
    let mut demands = Vec::new();
    if let Some(least) = target.rate {
        demands.push((format!("≥ {}/s", grouped_rate(least)), broker.rate >= least));
    }
    if let Some(share) = target.of_floor {
        let least = share * floor.rate;
        demands.push((format!("≥ {share} × floor = {}", grouped_rate(least)), broker.rate >= least));
    }
    if let Some(bound) = target.p50_us {
        demands.push((format!("p50 ≤ {}", time(bound)), broker.p50_us <= bound));
    }
    if let Some(more) = target.over_floors_us {
        let bound = sync_us + floor.p50_us + more;
        let text = format!("p50 ≤ {} ({sync_us:.0} + {:.0} + {more:.0} µs)", time(bound), floor.p50_us);
        demands.push((text, broker.p50_us <= bound));
    }
    if let Some(bound) = target.p99_us {
        demands.push((format!("p99 ≤ {}", time(bound)), broker.p99_us <= bound));
    }
    if let Some(least) = target.per_sync {
        demands.push((format!("≥ {least:.0} messages per fdatasync"), broker.rate / broker.syncs >= least));
    }
    if let Some(((share, apart), before)) = target.of_row_before.zip(*before) {
        let least = share * before.rate;
        demands.push((format!("≥ {share} × the row before = {}", grouped_rate(least)), broker.rate >= least));
        let text = format!("fdatasync per second within {:.0} % of its {:.0}", 100.0 * apart, before.syncs);
        demands.push((text, (broker.syncs / before.syncs - 1.0).abs() <= apart));
    }
    demands
}

/// Returns a sample as text.
pub(crate) fn figures(sample: &Sample) -> String {
    let mut text = format!(
        "{}/s, p50 {}, p99 {}, server {:.1} µs and client {:.1} µs of processor per message",
        grouped_rate(sample.rate),
        time(sample.p50_us),
        time(sample.p99_us),
        sample.server_us,
        sample.client_us
    );
    if sample.amplification > 0.0 {
        write!(text, ", {:.2} bytes written per byte", sample.amplification).ok();
    }
    if sample.syncs > 0.0 {
        write!(text, ", {:.0} messages per fdatasync", sample.rate / sample.syncs).ok();
    }
    text
}

async fn log_rows(plan: &Plan<'_>, runtime: &Runtime) -> anyhow::Result<Vec<Row>> {
    let mut runs = Vec::new();
    for _ in 0..plan.rounds {
        runs.push(log::groups(plan.directory, runtime, plan.times.duration).await?);
    }
    let of = |pick: fn(&log::Figures) -> f64| median(runs.iter().map(pick));
    let (rate, amplification) = (of(|run| run.messages_per_second), of(|run| run.amplification));
    let (p50, p99) = (of(|run| run.single_p50_us), of(|run| run.single_p99_us));
    let group = Row {
        work: "log alone, 64 × 1 KiB per group".to_owned(),
        target: "≥ 200,000/s, ≤ 1.1 bytes written per byte".to_owned(),
        measured: format!("{}/s, {amplification:.3} bytes written per byte", grouped_rate(rate)),
        floor: "–".to_owned(),
        met: Some(rate >= 200_000.0 && amplification <= 1.1),
    };
    let single = Row {
        work: "log alone, one 1 KiB append at a time".to_owned(),
        target: "–".to_owned(),
        measured: format!("p50 {}, p99 {}", time(p50), time(p99)),
        floor: "–".to_owned(),
        met: None,
    };
    Ok(vec![group, single])
}

async fn program_rows(plan: &Plan<'_>, clock: &Clock) -> anyhow::Result<Vec<Row>> {
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        starts.push(Server::broker(plan.broker, plan.directory, "group", clock)?.start_up.as_secs_f64() * 1e3);
    }
    let start = median(starts.into_iter());
    let server = Server::broker(plan.broker, plan.directory, "group", clock)?;
    let process = Some(server.id());
    clock.sleep(SETTLE).await;
    let before = cpu_time(process).context("the broker is gone")?;
    clock.sleep(IDLE).await;
    let used = cpu_time(process).context("the broker is gone")?.saturating_sub(before);
    let share = 100.0 * used.as_secs_f64() / IDLE.as_secs_f64();
    let resident = mebibytes(resident_bytes(process).context("the broker is gone")?);
    let megabytes = file_megabytes(plan.broker)?;
    let plain = |work: &str, target: &str, measured: String, met| Row {
        work: work.to_owned(),
        target: target.to_owned(),
        measured,
        floor: "–".to_owned(),
        met: Some(met),
    };
    Ok(vec![
        plain("start to ready, empty directory", "≤ 24 ms", format!("{start:.1} ms"), start <= 24.0),
        plain("idle: resident memory", "≤ 15 MiB", format!("{resident:.1} MiB"), resident <= 15.0),
        plain("idle: processor", "≤ 0.5 % of a core", format!("{share:.2} %"), share <= 0.5),
        plain("release binary, stripped", "≤ 20 MB", format!("{megabytes:.1} MB"), megabytes <= 20.0),
    ])
}

#[expect(clippy::cast_precision_loss, reason = "a file has far fewer than 2^52 bytes")]
fn file_megabytes(path: &Path) -> anyhow::Result<f64> {
    Ok(std::fs::metadata(path).context("the broker's file is gone")?.len() as f64 / 1e6)
}

#[expect(clippy::cast_precision_loss, reason = "a process has far fewer than 2^52 bytes")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[expect(clippy::cast_precision_loss, reason = "latencies are far below 2^52 ns")]
fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1000.0
}

fn render(conditions: &[(&str, String)], sync: &Sync, [new, again]: [f64; 2], plan: &Plan<'_>, rows: &[Row]) -> String {
    let mut text = String::from("# What was reached\n\n");
    text.push_str("Written by `kubemq-bench table`. Messages of 1 KiB unless the row says otherwise, durability `group`; broker, floor and client share the machine.\n");
    let times = plan.times;
    writeln!(
        text,
        "Floor: a bare tonic server with the same API that stores nothing, under the same client. Medians of {}; each measured for {} s after {} s, in a fresh process and directory, floor and broker in turns.\n",
        plan.rounds,
        times.duration.as_secs_f64(),
        times.warm_up.as_secs_f64()
    )
    .ok();
    for (name, value) in conditions {
        writeln!(text, "- {name}: {value}").ok();
    }
    writeln!(
        text,
        "- fdatasync after a 4 KiB append to a preallocated file: p50 {}, p99 {}, {}/s",
        time(sync.p50_us),
        time(sync.p99_us),
        grouped_rate(sync.rate)
    )
    .ok();
    writeln!(
        text,
        "- writing without a flush: {:.0} MB/s to a new file, {:.0} MB/s over it again\n",
        new / 1e6,
        again / 1e6
    )
    .ok();
    text.push_str("| Work | To reach | Reached | | Floor |\n|---|---|---|---|---|\n");
    for Row { work, target, measured, floor, met } in rows {
        let mark = match met {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "",
        };
        writeln!(text, "| {work} | {target} | {measured} | {mark} | {floor} |").ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::work::NONE;

    fn sample(rate: f64, p50_us: f64, p99_us: f64) -> Sample {
        let (client_us, server_us, amplification, resident_bytes, flushes) = (0.0, 0.0, 0.0, 0.0, 0.0);
        Sample { rate, p50_us, p99_us, client_us, server_us, amplification, resident_bytes, syncs: 10.0, flushes }
    }

    fn met(target: Target, broker: Sample) -> Option<bool> {
        let (floor, before) = (sample(1000.0, 50.0, 100.0), Some(sample(100.0, 0.0, 0.0)));
        let work = crate::work::work("", kubemq_server::cli::bench::Mode::Upstream, 1, target);
        row(&work, &Measured { floor, broker, before, sync_us: 100.0 }).met
    }

    #[test]
    fn every_demand_must_be_met() {
        let target = Target { over_floors_us: Some(40.0), ..NONE };
        assert_eq!(met(target, sample(1.0, 190.0, 0.0)), Some(true));
        assert_eq!(met(target, sample(1.0, 191.0, 0.0)), Some(false));
        let target = Target { p50_us: Some(180.0), ..target };
        assert_eq!(met(target, sample(1.0, 190.0, 0.0)), Some(false));
        let target = Target { of_floor: Some(0.2), p99_us: Some(1700.0), ..NONE };
        assert_eq!(met(target, sample(200.0, 0.0, 1700.0)), Some(true));
        assert_eq!(met(target, sample(199.0, 0.0, 1700.0)), Some(false));
        assert_eq!(met(target, sample(200.0, 0.0, 1701.0)), Some(false));
        let target = Target { rate: Some(210.0), ..target };
        assert_eq!(met(target, sample(200.0, 0.0, 1700.0)), Some(false));
        assert_eq!(met(NONE, sample(1.0, 0.0, 0.0)), None);
    }

    #[test]
    fn flushes_are_judged_by_messages_and_beside_the_row_before() {
        let target = Target { per_sync: Some(20.0), ..NONE };
        assert_eq!(met(target, sample(200.0, 0.0, 0.0)), Some(true));
        assert_eq!(met(target, sample(199.0, 0.0, 0.0)), Some(false));
        let target = Target { of_row_before: Some((0.8, 0.2)), ..NONE };
        assert_eq!(met(target, sample(80.0, 0.0, 0.0)), Some(true));
        assert_eq!(met(target, sample(79.0, 0.0, 0.0)), Some(false));
        assert_eq!(met(target, Sample { syncs: 12.1, ..sample(80.0, 0.0, 0.0) }), Some(false));
    }

    #[test]
    fn medians_are_taken_figure_by_figure() {
        let middle = middle(&[sample(1.0, 9.0, 5.0), sample(3.0, 7.0, 6.0), sample(2.0, 8.0, 4.0)]);
        assert_eq!((middle.rate, middle.p50_us, middle.p99_us), (2.0, 8.0, 5.0));
    }
}
