//! Many of a thing: channels, connections, streams.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kubemq_proto::kubemq::subscribe::SubscribeType;
use kubemq_proto::kubemq::{Event, QueuesDownstreamRequest, QueuesDownstreamRequestType, Subscribe};
use kubemq_runtime::sync::mpsc;
use kubemq_server::cli::bench::{Load, Mode, grouped, grouped_rate, time};
use tokio_stream::wrappers::ReceiverStream;

use super::backlog::as_number;
use super::row::text;
use super::stage::Stage;
use super::traffic;
use crate::table::median;

/// Files that a process opens beside its connections.
const BESIDE: u64 = 200;

/// How many connections or streams are opened at the same time.
const OPENING: usize = 64;

/// A hundred thousand channels, ten messages in each.
pub(super) async fn channels(stage: &mut Stage) -> anyhow::Result<()> {
    let count = stage.plan.scaled(100_000);
    let channels = usize::try_from(count)?;
    let before = stage.resident()?;
    let load = Load { channels, size: 100, messages: Some(count), ..stage.load(Mode::Upstream, "many")? };
    let first = stage.run(&load).await?;
    let grown = stage.resident()?.saturating_sub(before) / count;
    let rest = stage.run(&Load { messages: Some(9 * count), ..load.clone() }).await?;
    let time = Duration::from_secs_f64(first.seconds + rest.seconds);
    stage.pushed(format!("{} channels, 10 × 100 B in each", grouped(count)), time);
    let found = stage.metric("kubemq_channels")?;
    stage.demand("channels", format!("{found:.0}"), found >= as_number(count));
    stage.demand("RSS for each channel with one message", format!("{grown} B"), true);
    let restart = stage.kill_and_restart(Some(&load.channel(channels / 2))).await?;
    let pending = stage.metric("kubemq_messages_pending")?;
    stage.demand("none lost by a restart", format!("{pending:.0}"), pending == as_number(10 * count - 1));
    let bound = Duration::from_secs(5);
    stage.demand(format!("ready ≤ {}", text(bound)), text(restart.ready), restart.ready <= bound);
    Ok(())
}

/// Twenty thousand connections, each with a subscription.
pub(super) async fn connections(stage: &mut Stage) -> anyhow::Result<()> {
    let wanted = stage.plan.scaled(20_000);
    let count = wanted.min(open_files(wanted + BESIDE)?.saturating_sub(BESIDE));
    stage.demand(format!("{} connections", grouped(wanted)), allowed(count, wanted), true);
    // The broker takes its limit of open files from this process.
    stage.start_over()?;
    let quiet = others(stage).await?;
    let before = stage.resident()?;
    let begin = stage.runtime.clock.now();
    let address = stage.address()?.to_owned();
    let opening = stream::iter(0..count).map(|number| {
        let address = address.clone();
        async move {
            let mut client = traffic::connect(&address).await?;
            let events = client.subscribe_to_events(subscription(&format!("connection.{number}"))).await?;
            anyhow::Ok((number, client, events.into_inner()))
        }
    });
    let mut connected: Vec<_> = opening.buffer_unordered(OPENING).try_collect().await?;
    let time = stage.runtime.clock.now().since(begin);
    stage.pushed(format!("{} connections with a subscription each", grouped(count)), time);
    let each = stage.resident()?.saturating_sub(before) / count;
    stage.demand("RSS for each connection ≤ 64 KiB", format!("{} B", grouped(each)), each <= 64 * 1024);
    let busy = others(stage).await?;
    judge_others(stage, quiet, busy, 2.0);
    let (number, client, events) = connected.last_mut().context("no connection")?;
    client.send_event(event(&format!("connection.{number}"))).await?;
    let got = stage.runtime.clock.timeout(Duration::from_secs(10), events.message()).await;
    let got = matches!(got, Ok(Ok(Some(_))));
    stage.demand("the last one is served", if got { "yes" } else { "no" }, got);
    Ok(())
}

/// Five thousand streams on which a receiver waits.
pub(super) async fn idle_streams(stage: &mut Stage) -> anyhow::Result<()> {
    const CONNECTIONS: u64 = 50;
    let count = stage.plan.scaled(5_000).max(CONNECTIONS);
    let before = stage.resident()?;
    let begin = stage.runtime.clock.now();
    let mut open = Vec::new();
    for connection in 0..CONNECTIONS {
        let client = traffic::connect(stage.address()?).await?;
        let opening = stream::iter(0..count / CONNECTIONS).map(|number| {
            let mut client = client.clone();
            async move {
                let (requests, outbox) = mpsc::channel(1);
                requests.try_send(waiting(&format!("idle.{connection}.{number}"))).ok();
                let answers = client.queues_downstream(ReceiverStream::new(outbox)).await?.into_inner();
                anyhow::Ok((requests, answers))
            }
        });
        open.push(opening.buffer_unordered(OPENING).try_collect::<Vec<_>>().await?);
    }
    stage.pushed(format!("{} streams with an open Get", grouped(count)), stage.runtime.clock.now().since(begin));
    stage.until(Duration::from_secs(20), |stage| Ok(stage.metric("kubemq_queue_polls")? >= as_number(count))).await?;
    let polls = stage.metric("kubemq_queue_polls")?;
    stage.demand("all wait", format!("{polls:.0}"), polls >= as_number(count));
    let each = stage.resident()?.saturating_sub(before) / count;
    stage.demand("RSS for each ≤ 32 KiB", format!("{} B", grouped(each)), each <= 32 * 1024);
    Ok(())
}

/// The same load over one channel and over ten thousand, three times in turns, each on a fresh broker.
pub(super) async fn against_one_channel(stage: &mut Stage) -> anyhow::Result<()> {
    const ROUNDS: usize = 3;
    let many = usize::try_from(stage.plan.scaled(10_000))?;
    let (mut one, mut all) = (Vec::new(), Vec::new());
    let begin = stage.runtime.clock.now();
    for _ in 0..ROUNDS {
        for (channels, samples) in [(1, &mut one), (many, &mut all)] {
            stage.start_over()?;
            let load = Load { channels, ..stage.load(Mode::Upstream, "wide")? };
            // Each of them exists before anything is measured.
            stage.run(&Load { messages: Some(channels as u64), ..load.clone() }).await?;
            let before = [stage.metric("kubemq_log_fdatasync_total")?, stage.metric("kubemq_operations_total")?];
            let report = stage.run(&Load { duration: Duration::from_secs(5), ..load }).await?;
            let flushes = stage.metric("kubemq_log_fdatasync_total")? - before[0];
            let operations = stage.metric("kubemq_operations_total")? - before[1];
            samples.push([report.rate, flushes / report.seconds, operations / flushes.max(1.0)]);
        }
    }
    // As many in flight as it takes: what is gathered during a flush is what the next one makes durable.
    let (gathered, gathered_small) = (gathered(stage, 1024).await?, gathered(stage, 100).await?);
    let time = stage.runtime.clock.now().since(begin);
    stage.pushed(format!("1,024 in flight of 1 KiB to 1 channel and to {}", grouped(many as u64)), time);
    let [one_rate, one_flushes, gathered_in_one] = middle(&one);
    let [rate, flushes, gathered_in_many] = middle(&all);
    stage.demand(
        "throughput ≥ 0.8 ×",
        format!("{} against {} = {:.2}", grouped_rate(rate), grouped_rate(one_rate), rate / one_rate),
        rate >= 0.8 * one_rate,
    );
    stage.demand(
        "fdatasync per second within 20 %",
        format!("{} against {}", grouped_rate(flushes), grouped_rate(one_flushes)),
        (flushes / one_flushes - 1.0).abs() <= 0.2,
    );
    stage.demand(
        "messages per fdatasync at saturation (16,384 in flight) ≥ 500",
        format!(
            "{gathered:.0}; of 100 B {gathered_small:.0}; with 1,024 in flight {gathered_in_one:.0} and {gathered_in_many:.0}"
        ),
        gathered >= 500.0,
    );
    Ok(())
}

/// Returns how many messages of so many bytes one fdatasync makes durable when as many as it takes are in flight.
async fn gathered(stage: &Stage, size: usize) -> anyhow::Result<f64> {
    let load = stage.load(Mode::Upstream, "deep")?;
    let before = [stage.metric("kubemq_log_fdatasync_total")?, stage.metric("kubemq_operations_total")?];
    stage.run(&Load { size, in_flight: 16_384, duration: Duration::from_secs(5), ..load }).await?;
    let flushes = stage.metric("kubemq_log_fdatasync_total")? - before[0];
    Ok((stage.metric("kubemq_operations_total")? - before[1]) / flushes.max(1.0))
}

/// Returns the median of each figure by itself.
fn middle(samples: &[[f64; 3]]) -> [f64; 3] {
    [0, 1, 2].map(|figure| median(samples.iter().map(|sample| sample[figure])))
}

/// Returns the 99th percentile, in microseconds, of 1,000 messages a second that go in and out on connections of their
/// own.
pub(super) async fn others(stage: &Stage) -> anyhow::Result<f64> {
    let load = Load {
        rate: Some(1000.0),
        warm_up: Duration::from_secs(2),
        duration: Duration::from_secs(10),
        ..stage.load(Mode::EndToEnd, "others")?
    };
    Ok(stage.run(&load).await?.latency.p99_us)
}

/// Writes down what others notice of a push.
pub(super) fn judge_others(stage: &mut Stage, quiet: f64, busy: f64, factor: f64) {
    let found = format!("{} against {}", time(busy), time(quiet));
    stage.demand(format!("p99 of others ≤ {factor} ×"), found, busy <= factor * quiet);
}

pub(super) fn subscription(channel: &str) -> Subscribe {
    Subscribe {
        subscribe_type_data: SubscribeType::Events.into(),
        client_id: "kubemq-bench".to_owned(),
        channel: channel.to_owned(),
        ..Subscribe::default()
    }
}

fn event(channel: &str) -> Event {
    Event {
        event_id: "event".to_owned(),
        client_id: "kubemq-bench".to_owned(),
        channel: channel.to_owned(),
        body: "event".into(),
        ..Event::default()
    }
}

fn waiting(channel: &str) -> QueuesDownstreamRequest {
    QueuesDownstreamRequest {
        request_id: "get".to_owned(),
        client_id: "kubemq-bench".to_owned(),
        request_type_data: QueuesDownstreamRequestType::Get.into(),
        channel: channel.to_owned(),
        max_items: 1,
        wait_timeout: 3_600_000,
        ..QueuesDownstreamRequest::default()
    }
}

/// Lets this process, and those that it starts, open `wanted` files if that may be; returns how many they may open.
fn open_files(wanted: u64) -> anyhow::Result<u64> {
    let (soft, hard) = limits_of_open_files()?;
    if soft >= wanted {
        return Ok(soft);
    }
    // Above the hard limit only with a privilege, up to it always.
    for limit in [wanted, hard.min(wanted)] {
        let arguments = [format!("--pid={}", std::process::id()), format!("--nofile={limit}:{}", limit.max(hard))];
        let status = Command::new("prlimit").args(arguments).stderr(Stdio::null()).status();
        if status.context("could not run prlimit, which raises the limit of open files")?.success() {
            return Ok(limit);
        }
    }
    Ok(soft)
}

/// Returns the soft and the hard limit of this process.
fn limits_of_open_files() -> anyhow::Result<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/self/limits").context("could not read the limits of this process")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"));
    let mut limits = line.context("no limit of open files")?.split_whitespace().map(|limit| limit.parse());
    let mut next = || limits.next().and_then(Result::ok).unwrap_or(u64::MAX);
    Ok((next(), next()))
}

fn allowed(count: u64, wanted: u64) -> String {
    let reason = if count < wanted { ", more the limit of open files of this machine does not allow" } else { "" };
    format!("{}{reason}", grouped(count))
}
