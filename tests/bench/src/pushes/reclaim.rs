//! Disk that is given back: what is left when everything, nearly everything, or only what is beside it is settled.

use std::time::Duration;

use kubemq_server::cli::bench::{Load, Mode, grouped};

use super::backlog::as_number;
use super::stage::{MIB, Stage, mebibytes};
use super::traffic;

/// Bytes of a segment, as configured unless said otherwise.
const SEGMENT: u64 = 64 * MIB;

/// Bytes that the index and two snapshots may take besides the log.
const BESIDE: u64 = 4 * MIB;

/// How long the disk may take to come back: a snapshot is written a minute after the last write, and frees it.
const RECLAIMED: Duration = Duration::from_secs(240);

/// A million messages of 1 KiB go in and out.
pub(super) async fn in_and_out(stage: &mut Stage) -> anyhow::Result<()> {
    let count = stage.plan.scaled(1_000_000);
    let load = Load { messages: Some(count), ..stage.load(Mode::EndToEnd, "through")? };
    let report = stage.run(&load).await?;
    let time = Duration::from_secs_f64(report.seconds);
    stage.pushed(format!("{} × 1 KiB in and out", grouped(report.messages)), time);
    stage.until(RECLAIMED, |stage| Ok(stage.metric("kubemq_store_segments")? <= 2.0)).await?;
    let segments = stage.metric("kubemq_store_segments")?;
    stage.demand("segments left ≤ 2", format!("{segments:.0}"), segments <= 2.0);
    stage.kill_and_restart(None).await?;
    Ok(())
}

/// One message in each segment is not received.
pub(super) async fn one_in_each_segment(stage: &mut Stage) -> anyhow::Result<()> {
    let segments = stage.plan.scaled(32);
    let mut client = traffic::connect(stage.address()?).await?;
    let begin = stage.runtime.clock.now();
    for _ in 0..segments {
        let mut kept = Some(vec![traffic::message("kept", vec![7; 1024])]);
        traffic::send(&mut client, move || kept.take().unwrap_or_default(), |_| {}).await?;
        // A little more than a segment of settled messages between two living ones.
        let load = Load { messages: Some(SEGMENT / 1024), ..stage.load(Mode::EndToEnd, "through")? };
        stage.run(&load).await?;
    }
    let time = stage.runtime.clock.now().since(begin);
    stage.pushed(format!("{segments} segments written, in each 1 message of 1 KiB that nobody receives"), time);
    left_over(stage, "kept", segments, 1024).await
}

/// One message in fifty goes to a channel that nobody reads.
pub(super) async fn unread_beside_busy(stage: &mut Stage) -> anyhow::Result<()> {
    const ROUNDS: u64 = 40;
    let busy = stage.plan.scaled(2 << 20) / ROUNDS;
    let unread = busy / 50;
    let begin = stage.runtime.clock.now();
    for _ in 0..ROUNDS {
        let load = stage.load(Mode::Upstream, "unread")?;
        stage.run(&Load { messages: Some(unread), ..load }).await?;
        let load = stage.load(Mode::EndToEnd, "busy")?;
        stage.run(&Load { messages: Some(busy), ..load }).await?;
    }
    let time = stage.runtime.clock.now().since(begin);
    let (busy, kept) = (ROUNDS * busy, ROUNDS * unread);
    stage.pushed(format!("{} × 1 KiB through one channel, {} into another", grouped(busy), grouped(kept)), time);
    left_over(stage, "unread.0", kept, 1024).await
}

/// Waits for the disk that `kept` messages of so many bytes may keep, and receives them after a restart.
async fn left_over(stage: &mut Stage, channel: &str, kept: u64, size: u64) -> anyhow::Result<()> {
    let bound = 4 * kept * size + 2 * SEGMENT + BESIDE;
    stage.until(RECLAIMED, |stage| Ok(stage.disk() <= bound)).await?;
    let disk = stage.disk();
    let demand = format!("disk ≤ 4 × living + 2 segments + 4 MiB of index and snapshots = {}", mebibytes(bound));
    stage.demand(demand, mebibytes(disk), disk <= bound);
    stage.kill_and_restart(Some(channel)).await?;
    let received = traffic::drain(stage.address()?, channel, kept - 1, |_| Ok(())).await?;
    stage.demand("all of them received", grouped(received + 1), as_number(received + 1) == as_number(kept));
    Ok(())
}
