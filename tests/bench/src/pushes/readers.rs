//! Who does not read, and who sends more than fits: what they cost, and what others notice.

use std::pin::pin;
use std::time::Duration;

use anyhow::bail;
use futures_util::StreamExt as _;
use futures_util::future::{self, Either};
use futures_util::stream::FuturesUnordered;
use kubemq_server::cli::bench::{Load, Mode, grouped};

use super::backlog::as_number;
use super::many::{judge_others, subscription};
use super::row::text;
use super::stage::{MIB, Stage, mebibytes};
use super::{traffic, upload};

/// Bytes: 1.25 times what is configured for large requests, the tail of the log that is not flushed, and the one that
/// is kept in memory.
pub(super) const BUDGETS: u64 = 480 * MIB;

/// Between two small messages beside the uploads.
const BETWEEN: Duration = Duration::from_millis(10);

/// The longest that one of them may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// One hundred subscribers that do not read, beside others that do.
pub(super) async fn stalled(stage: &mut Stage) -> anyhow::Result<()> {
    const STALLED: usize = 100;
    let before = stage.resident()?;
    let events = |stage: &Stage, seconds| -> anyhow::Result<Load> {
        let load = stage.load(Mode::Events, "stalled")?;
        let duration = Duration::from_secs(seconds);
        let warm_up = Duration::from_secs(2);
        Ok(Load { channels: STALLED, rate: Some(8000.0), size: 8192, in_flight: 8192, warm_up, duration, ..load })
    };
    let quiet = stage.run(&events(stage, 10)?).await?.latency.p99_us;
    let mut stalled = Vec::new();
    for number in 0..STALLED {
        let mut client = traffic::connect(stage.address()?).await?;
        let events = client.subscribe_to_events(subscription(&format!("stalled.{number}"))).await?.into_inner();
        stalled.push((client, events));
    }
    let begin = stage.runtime.clock.now();
    let busy = stage.run(&events(stage, 30)?).await?.latency.p99_us;
    let what =
        format!("8,000 events of 8 KiB a second to {STALLED} channels, in each one who reads and one who does not");
    stage.pushed(what, stage.runtime.clock.now().since(begin));
    let dropped = stage.metric("kubemq_subscribers_dropped_total")?;
    stage.demand("what they cannot hold is dropped for them", format!("{dropped:.0}"), dropped > 0.0);
    let waiting = stage.metric("kubemq_subscribers_waiting_bytes")?;
    stage.demand("waiting ≤ limits.subscribers = 512 MiB", mebibytes(waiting as u64), waiting <= as_number(512 * MIB));
    let grown = stage.resident()?.saturating_sub(before);
    stage.demand("RSS grown ≤ 512 + 128 MiB", mebibytes(grown), grown <= 640 * MIB);
    judge_others(stage, quiet, busy, 2.0);
    Ok(())
}

/// Sixty-four uploads of 100 MB at once, each on a connection of its own, beside small messages one after another.
pub(super) async fn uploads(stage: &mut Stage) -> anyhow::Result<()> {
    const UPLOADS: u64 = 64;
    // With its name and the length of its fields it is just as large as a message may be.
    let size = usize::try_from(stage.plan.scaled(100_000_000))?;
    let (address, clock) = (stage.address()?.to_owned(), stage.runtime.clock.clone());
    let begin = clock.now();
    let mut uploads: FuturesUnordered<_> =
        (0..UPLOADS).map(|number| upload::send(&address, format!("large.{}", number % 8), size)).collect();
    let (mut sent, mut slowest) = (0_u64, Duration::ZERO);
    {
        let stored = pin!(async {
            while let Some(stored) = uploads.next().await {
                stored?;
            }
            anyhow::Ok(())
        });
        let others = pin!(async {
            let mut client = traffic::connect(&address).await?;
            loop {
                let asked = clock.now();
                let answer = client.send_queue_message(traffic::message("small", "small")).await?.into_inner();
                if answer.is_error {
                    bail!("a small message was refused: {}", answer.error);
                }
                sent += 1;
                slowest = slowest.max(clock.now().since(asked));
                clock.sleep(BETWEEN).await;
            }
        });
        match future::select(stored, others).await {
            Either::Left((stored, _)) => stored?,
            Either::Right((refused, _)) => refused?,
        }
    }
    let time = clock.now().since(begin);
    stage.pushed(format!("{UPLOADS} × {} B at once, each on its own connection", grouped(size as u64)), time);
    let peak = stage.peak()?;
    stage.demand(
        format!("RSS ≤ 1.25 × (256 + 64 + 64 MiB) = {}", mebibytes(BUDGETS)),
        mebibytes(peak),
        peak <= BUDGETS,
    );
    let found = format!("{}, the slowest {}", grouped(sent), text(slowest));
    stage.demand("others served meanwhile, none after more than 5 s", found, sent > 0 && slowest <= PATIENCE);
    let pending = stage.metric("kubemq_messages_pending")?;
    stage.demand("all stored", format!("{pending:.0}"), pending == as_number(UPLOADS + sent));
    Ok(())
}
