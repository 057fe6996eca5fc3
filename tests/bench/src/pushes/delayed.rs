//! Delayed messages by the million: memory, order, none early, none lost with a restart in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use kubemq_proto::kubemq::{QueueMessage, QueueMessagePolicy};
use kubemq_server::cli::bench::grouped;

use super::stage::{MIB, Stage, mebibytes};
use super::traffic;

const CHANNEL: &str = "delayed";

/// Messages of a request.
const BATCH: u64 = 1000;

/// The longest delay, in seconds.
const DAY: u64 = 86_400;

/// For how long after the start what comes due is looked at, when all of it is spread over a day. Less than that is
/// needed to send it and to start again.
const WATCHED: Duration = Duration::from_secs(600);

/// How much earlier than its due time a message may come by this process's clock, which is not the broker's.
const SKEW: i64 = 10_000_000;

/// Due times by the number of the message, in nanoseconds since the Unix epoch; 0 where nobody looks.
type Dues = Vec<i64>;

/// Ten million messages that come due over a day. Those of its first minutes are received.
pub(super) async fn over_a_day(stage: &mut Stage) -> anyhow::Result<()> {
    let count = stage.plan.scaled(10_000_000);
    let watched_until = wall(stage)? + i64::try_from(WATCHED.as_nanos())?;
    // Spread by a step that shares no divisor with the day, so that each minute gets its share from all of them.
    let delay = |number: u64| 30 + number.wrapping_mul(7919) % (DAY - 30);
    let (dues, half, full) = send(stage, count, delay).await?;
    stage.demand(
        "RSS with all ≤ with half + 64 MiB",
        format!("{} and {}", mebibytes(full), mebibytes(half)),
        full <= half + 64 * MIB,
    );
    stage.kill_and_restart(None).await?;
    let waiting = stage.living()?;
    stage.demand("none lost by a restart", format!("{waiting:.0}"), waiting == super::backlog::as_number(count));
    let soon = wall(stage)? + 60_000_000_000;
    let due = dues.iter().filter(|&&due| due > 0 && due <= soon.min(watched_until)).count() as u64;
    receive(stage, &dues, due).await
}

/// Ten million messages that all come due within the same second or two.
pub(super) async fn at_once(stage: &mut Stage) -> anyhow::Result<()> {
    let count = stage.plan.scaled(10_000_000);
    // Later than the last of them is sent and the broker is back.
    let due_in = Duration::from_secs(40 + count / 40_000);
    let (clock, begin) = (stage.runtime.clock.clone(), stage.runtime.clock.now());
    let delay = move |_| due_in.saturating_sub(clock.now().since(begin)).as_secs().max(1);
    let (dues, half, full) = send(stage, count, delay).await?;
    let grown = full.saturating_sub(half);
    stage.demand("RSS grown from half to all", mebibytes(grown), true);
    stage.kill_and_restart(None).await?;
    let early = stage.metric("kubemq_messages_pending")?;
    stage.demand("none released before the restart", format!("{early:.0}"), early == 0.0);
    receive(stage, &dues, count).await
}

/// Sends `count` messages whose delay in seconds `delay` gives; returns when each is due, and the resident memory with
/// half of them and with all.
async fn send(
    stage: &mut Stage,
    count: u64,
    delay: impl Fn(u64) -> u64 + Send + Sync + 'static,
) -> anyhow::Result<(Dues, u64, u64)> {
    let begin = stage.runtime.clock.now();
    let mut client = traffic::connect(stage.address()?).await?;
    let mut dues = Dues::with_capacity(usize::try_from(count)?);
    let numbers = Arc::new(AtomicU64::new(0));
    let delay = Arc::new(delay);
    let mut resident = [0, 0];
    for (half, until) in [count / 2, count].into_iter().enumerate() {
        let (numbers, delay) = (Arc::clone(&numbers), Arc::clone(&delay));
        let next = move || {
            let from = numbers.load(Ordering::Relaxed);
            let to = (from + BATCH).min(until);
            numbers.store(to, Ordering::Relaxed);
            (from..to).map(|number| delayed(number, delay(number))).collect()
        };
        traffic::send(&mut client, next, |results| dues.extend(results.iter().map(|result| result.delayed_to))).await?;
        resident[half] = stage.resident()?;
    }
    let time = stage.runtime.clock.now().since(begin);
    stage.pushed(format!("{} delayed messages", grouped(count)), time);
    Ok((dues, resident[0], resident[1]))
}

fn delayed(number: u64, seconds: u64) -> QueueMessage {
    let delay_seconds = i32::try_from(seconds).unwrap_or(i32::MAX);
    let policy = QueueMessagePolicy { delay_seconds, ..QueueMessagePolicy::default() };
    QueueMessage { policy: Some(policy), ..traffic::message(CHANNEL, number.to_be_bytes().to_vec()) }
}

/// Receives `count` messages and judges their order and their time.
async fn receive(stage: &mut Stage, dues: &Dues, count: u64) -> anyhow::Result<()> {
    let (mut disordered, mut early, mut twice) = (0_u64, 0_u64, 0_u64);
    let mut last = (0, 0);
    let mut seen = vec![false; dues.len()];
    let clock = stage.runtime.clock.clone();
    let begin = clock.now();
    // Nothing may be due yet for some time: a Get that finds nothing is asked again.
    let deadline = begin + WATCHED;
    let mut received = 0;
    while received < count && clock.now() < deadline {
        received += traffic::drain(stage.address()?, CHANNEL, count - received, |message| {
            let number =
                message.body.first_chunk().map(|bytes| u64::from_be_bytes(*bytes)).context("a foreign body")?;
            let place = usize::try_from(number)?;
            let due = dues.get(place).copied().context("a message that was never sent")?;
            let now = i64::try_from(clock.wall().0)?;
            disordered += u64::from((due, number) < last);
            early += u64::from(now + SKEW < due);
            twice += u64::from(std::mem::replace(&mut seen[place], true));
            last = (due, number);
            Ok(())
        })
        .await?;
    }
    let time = clock.now().since(begin);
    stage.demand("received", format!("{} of {}", grouped(received), grouped(count)), received >= count);
    for (what, found) in [("out of order", disordered), ("early", early), ("twice", twice)] {
        stage.demand(format!("none {what}"), grouped(found), found == 0);
    }
    stage.demand("time to receive them, waiting included", super::row::text(time), true);
    Ok(())
}

fn wall(stage: &Stage) -> anyhow::Result<i64> {
    Ok(i64::try_from(stage.runtime.clock.wall().0)?)
}
