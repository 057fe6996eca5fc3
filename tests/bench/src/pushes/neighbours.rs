//! One who takes all there is, and what is left for another.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future;
use kubemq_server::cli::bench::{Load, Mode, grouped, grouped_rate};

use super::many::judge_others;
use super::stage::{MIB, Stage, mebibytes};
use super::traffic;

/// A load in a process of its own, so that it does not hold up what is measured here; killed when dropped.
struct Noise(Child);

impl Noise {
    fn start(stage: &Stage, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(&stage.plan.broker);
        command.args(["bench", "queue", "--address", stage.address()?, "--duration", "600"]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn().context("could not start the load beside")?))
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// One channel saturated with bodies of 64 KiB, another with 100 messages of 1 KiB a second.
pub(super) async fn noisy(stage: &mut Stage) -> anyhow::Result<()> {
    let load = Load {
        rate: Some(100.0),
        warm_up: Duration::from_secs(3),
        duration: Duration::from_secs(30),
        ..stage.load(Mode::EndToEnd, "quiet")?
    };
    let quiet = stage.run(&load).await?.latency.p99_us;
    let begin = stage.runtime.clock.now();
    let before = stage.metric("kubemq_log_written_bytes_total")?;
    let noise = Noise::start(stage, &["--mode", "end-to-end", "--size", "65536", "--prefix", "noise"])?;
    let busy = stage.run(&load).await?.latency.p99_us;
    let time = stage.runtime.clock.now().since(begin);
    let written = (stage.metric("kubemq_log_written_bytes_total")? - before) / time.as_secs_f64();
    drop(noise);
    let rate = mebibytes(written as u64);
    stage.pushed(
        format!("64 in flight of 64 KiB in and out of one channel ({rate}/s), 100/s of 1 KiB through another"),
        time,
    );
    judge_others(stage, quiet, busy, 2.0);
    Ok(())
}

/// Ten million messages are drained while others are published.
pub(super) async fn drain_while_publishing(stage: &mut Stage) -> anyhow::Result<()> {
    let count = stage.plan.scaled(10_000_000);
    let load = Load { messages: Some(count), size: 100, batch: 100, ..stage.load(Mode::Upstream, "drained")? };
    stage.run(&load).await?;
    let publishing = |stage: &Stage, rate| -> anyhow::Result<Load> {
        let (warm_up, duration) = (Duration::from_secs(1), Duration::from_secs(15));
        Ok(Load { rate, warm_up, duration, ..stage.load(Mode::Upstream, "published")? })
    };
    let alone = stage.run(&publishing(stage, None)?).await?.rate;
    // As many as leave half of the machine to those who receive: a closed loop takes all there is, whoever is beside.
    let half = alone / 2.0;
    let before = stage.resident()?;
    let begin = stage.runtime.clock.now();
    let address = stage.address()?.to_owned();
    let draining = traffic::drain(&address, "drained.0", count, |_| Ok(()));
    let load = publishing(stage, Some(half))?;
    let publishing_open = publishing(stage, None)?;
    let published = async {
        let paced = stage.run(&load).await?.rate;
        let closed = stage.run(&publishing_open).await?.rate;
        anyhow::Ok((paced, closed, stage.resident()?))
    };
    let (drained, published) = future::join(draining, published).await;
    let (drained, (paced, closed, during)) = (drained?, published?);
    let time = stage.runtime.clock.now().since(begin);
    stage.pushed(format!("{} × 100 B drained while others are published", grouped(count)), time);
    stage.demand("all drained", grouped(drained), drained == count);
    let found = format!("{} of {}", grouped_rate(paced), grouped_rate(half));
    stage.demand("half of the publisher's own rate falls ≤ 10 %", found, paced >= 0.9 * half);
    let found = format!("{} of {} = {:.2}", grouped_rate(closed), grouped_rate(alone), closed / alone);
    stage.demand("publishing all it can, beside it", found, true);
    let grown = during.max(stage.resident()?).saturating_sub(before);
    stage.demand("RSS grown ≤ 128 MiB", mebibytes(grown), grown <= 128 * MIB);
    Ok(())
}
