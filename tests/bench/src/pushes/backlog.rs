//! Many messages that wait, and how long a broker takes to come back to them.

use std::time::Duration;

use kubemq_server::cli::bench::{Load, Mode, grouped};

use super::row::text;
use super::stage::{MIB, Stage, mebibytes};
use super::traffic;

/// A hundred million messages of 100 B wait in one channel; a thousand come with each request.
pub(super) async fn in_batches(stage: &mut Stage) -> anyhow::Result<()> {
    let count = stage.plan.scaled(100_000_000);
    let load = stage.load(Mode::Upstream, "backlog")?;
    let load = Load { messages: Some(count), size: 100, batch: 1000, in_flight: 16_000, ..load };
    waiting(stage, &load, "one channel, 1,000 in each request").await
}

/// Ten million messages come one by one to a thousand channels.
pub(super) async fn one_by_one(stage: &mut Stage) -> anyhow::Result<()> {
    let count = stage.plan.scaled(10_000_000);
    let load = Load { messages: Some(count), size: 100, channels: 1000, ..stage.load(Mode::Upstream, "backlog")? };
    waiting(stage, &load, "1,000 channels in turn, one in each request").await
}

async fn waiting(stage: &mut Stage, load: &Load, how: &str) -> anyhow::Result<()> {
    let count = load.messages.unwrap_or(0);
    let report = stage.run(load).await?;
    let time = Duration::from_secs_f64(report.seconds);
    stage.pushed(format!("{} × {} B, {how}", grouped(count), load.size), time);
    let pending = stage.metric("kubemq_messages_pending")?;
    stage.demand("all wait", format!("{pending:.0}"), pending == as_number(report.messages));
    let index = stage.metric("kubemq_index_memory_bytes")?;
    stage.demand("index in memory ≤ 256 MiB", mebibytes(index as u64), index <= as_number(256 * MIB));
    // The next start reads what was written since the last snapshot: this is the worst that may happen.
    stage.kill_and_restart(Some(&load.channel(load.channels - 1))).await?;
    let pending = stage.metric("kubemq_messages_pending")?;
    stage.demand("none lost by a restart", format!("{pending:.0}"), pending == as_number(report.messages - 1));
    let (channel, all) = (load.channel(0), report.messages / load.channels as u64);
    let some = all.min(100_000);
    let received = traffic::drain(stage.address()?, &channel, some, |_| Ok(())).await?;
    stage.demand(format!("{} received at once", grouped(some)), grouped(received), received >= some);
    Ok(())
}

/// One GiB of messages that wait.
pub(super) async fn restart_with_one(stage: &mut Stage) -> anyhow::Result<()> {
    restart(stage, 1, Duration::from_secs(1)).await
}

/// Ten GiB of messages that wait.
pub(super) async fn restart_with_ten(stage: &mut Stage) -> anyhow::Result<()> {
    restart(stage, 10, Duration::from_secs(5)).await
}

async fn restart(stage: &mut Stage, gibibytes: u64, bound: Duration) -> anyhow::Result<()> {
    let count = stage.plan.scaled(gibibytes << 20);
    let load = Load { messages: Some(count), channels: 16, batch: 16, ..stage.load(Mode::Upstream, "living")? };
    let report = stage.run(&load).await?;
    let time = Duration::from_secs_f64(report.seconds);
    stage.pushed(format!("{} × 1 KiB wait in 16 channels", grouped(report.messages)), time);
    let restart = stage.kill_and_restart(Some(&load.channel(0))).await?;
    stage.demand(format!("ready ≤ {}", text(bound)), text(restart.ready), restart.ready <= bound);
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub(super) fn as_number(count: u64) -> f64 {
    count as f64
}
