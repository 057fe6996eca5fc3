//! A long run of all five patterns together: what grows shows here.

use std::time::Duration;

use futures_util::future;
use kubemq_server::cli::bench::{Load, Mode, Report, time};
use kubemq_server::cli::output::note;

use super::stage::{MIB, Stage, mebibytes};

/// How long the loads run before they are looked at and begin again.
const SLICE: Duration = Duration::from_secs(20);

/// What a slice showed.
struct Slice {
    resident: u64,
    disk: u64,
    /// Files and connections.
    open: u64,
    /// Microseconds, of each pattern.
    p99: Vec<f64>,
}

/// All five patterns at a moderate rate, for as long as the plan says.
pub(super) async fn all_patterns(stage: &mut Stage) -> anyhow::Result<()> {
    let begin = stage.runtime.clock.now();
    let end = begin + stage.plan.soak;
    let mut slices = Vec::new();
    while stage.runtime.clock.now() < end || slices.len() < 3 {
        let slice = slice(stage).await?;
        let [resident, disk] = [slice.resident, slice.disk].map(mebibytes);
        note(format_args!(
            "  {:>4.0} s  RSS {resident}  disk {disk}",
            stage.runtime.clock.now().since(begin).as_secs_f64()
        ));
        slices.push(slice);
    }
    let time = stage.runtime.clock.now().since(begin);
    stage.pushed(PATTERNS.map(|(mode, rate)| format!("{} {rate}/s", mode.name())).join(", "), time);
    // The first third has the growth of a fresh start in it: memory that is used once, and the first snapshots.
    let third = slices.len() / 3;
    let (early, late) = (&slices[third..slices.len() - third], &slices[slices.len() - third..]);
    let most = |slices: &[Slice], pick: fn(&Slice) -> u64| slices.iter().map(pick).max().unwrap_or(0);
    let [before, after] = [early, late].map(|slices| most(slices, |slice| slice.resident));
    let found = format!("{} and {}", mebibytes(before), mebibytes(after));
    stage.demand("RSS of the last third ≤ that of the second + 16 MiB", found, after <= before + 16 * MIB);
    let [before, after] = [early, late].map(|slices| most(slices, |slice| slice.disk));
    let found = format!("{} and {}", mebibytes(before), mebibytes(after));
    stage.demand("disk of the last third ≤ that of the second + 2 segments", found, after <= before + 128 * MIB);
    let [before, after] = [early, late].map(|slices| most(slices, |slice| slice.open));
    let found = format!("{before} and {after}");
    stage.demand("files and connections of the last third ≤ those of the second + 8", found, after <= before + 8);
    for (pattern, (mode, _)) in PATTERNS.iter().enumerate() {
        let [before, after] = [early, late].map(|slices| middle(slices, pattern));
        let found = format!("{} and {}", self::time(before), self::time(after));
        stage.demand(format!("p99 of {} ≤ 1.5 × that of the second", mode.name()), found, after <= 1.5 * before);
    }
    Ok(())
}

/// Channels of each pattern: one consumer that takes messages one by one is not to be what is measured.
const CHANNELS: usize = 4;

/// The patterns, with messages a second.
const PATTERNS: [(Mode, u32); 5] = [
    (Mode::EndToEnd, 2000),
    (Mode::Events, 2000),
    (Mode::EventsStore, 500),
    (Mode::Commands, 200),
    (Mode::Queries, 200),
];

async fn slice(stage: &Stage) -> anyhow::Result<Slice> {
    let loads = PATTERNS.map(|(mode, rate)| {
        anyhow::Ok(Load {
            rate: Some(f64::from(rate)),
            duration: SLICE,
            channels: CHANNELS,
            ..stage.load(mode, mode.name())?
        })
    });
    let loads: Vec<Load> = loads.into_iter().collect::<anyhow::Result<_>>()?;
    let reports = future::try_join_all(loads.iter().map(|load| stage.run_showing(load, |_| {}))).await?;
    let p99 = |report: &Report| report.latency.p99_us;
    let open = stage.metric("process_open_fds")? as u64;
    Ok(Slice { resident: stage.resident()?, disk: stage.disk(), open, p99: reports.iter().map(p99).collect() })
}

/// Returns the median of a pattern's 99th percentiles.
fn middle(slices: &[Slice], pattern: usize) -> f64 {
    crate::table::median(slices.iter().filter_map(|slice| slice.p99.get(pattern).copied()))
}
