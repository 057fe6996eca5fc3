//! `kubemq bench`: loads for any server that speaks this API, measured without coordinated omission.
//!
//! Start reading in [`load`]. A load is a number of connections, each with a [`flow`] that says when the next
//! request may go and from when it is charged; [`upstream`], [`unary`], [`stored`] and [`events`]
//! send, [`end_to_end`], [`events`] and [`responder`] are at the other end.
//! The same code is the client of the measurements in `tests/bench`.

mod end_to_end;
mod events;
mod flow;
mod live;
mod load;
mod meter;
pub mod process;
mod report;
mod responder;
mod stored;
mod unary;
mod upstream;
mod wire;

use std::process::ExitCode;
use std::time::Duration;

use kubemq_runtime::Runtime;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

pub use load::{Load, Mode, Progress};
pub use report::{Latency, Report, grouped, grouped_rate, time};

use super::client::{self, Connection, LARGEST_MESSAGE, Token};
use super::output::{self, Ending, Failure, Format};

/// What a load calls.
type Service = InterceptedService<Channel, Token>;

/// How many messages an open loop may have unanswered unless it says otherwise.
const OPEN_LOOP_IN_FLIGHT: u64 = 16_384;

/// How long a load may take that ends with a number of messages.
const LONGEST: Duration = Duration::from_secs(86_400);

/// How many a closed loop has.
const CLOSED_LOOP_IN_FLIGHT: u64 = 64;

/// Measure what a broker can do
#[derive(Debug, clap::Args)]
pub struct Bench {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    #[command(visible_aliases = ["queues", "q"])]
    Queue(Queue),
    #[command(name = "events_store", visible_aliases = ["es", "events-store"])]
    EventsStore(EventsStore),
    #[command(visible_aliases = ["event", "e"])]
    Events(live::Events),
    #[command(visible_aliases = ["command", "cmd"])]
    Commands(live::Requests),
    #[command(visible_aliases = ["query", "qry"])]
    Queries(live::Requests),
}

/// Measure stored events: storing them, or reading them from the first on
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq bench events_store --in-flight 1024
  kubemq bench events_store --rate 20000 --duration 30   open loop: latency under a given load
  kubemq bench events_store --replay --events 1000000    store a million events, then read them again and again

The events stay in the channels <prefix>.0, <prefix>.1, … unless --delete is given. A replay needs channels that
are empty before.

Exit codes: 0 measured, 1 unreachable or something was refused, 2 wrong usage.")]
struct EventsStore {
    /// Read what is stored instead of storing
    #[arg(long)]
    replay: bool,
    /// Events that a replay stores before, on each connection, and reads again and again
    #[arg(long, value_name = "COUNT", default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..))]
    events: u64,
    /// Channels that the events go to in turn; a replay reads one on each connection
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    channels: u32,
    /// What the names of the channels begin with
    #[arg(long, value_name = "NAME", default_value = "bench.events_store")]
    prefix: String,
    #[command(flatten)]
    pace: Pace,
}

/// Measure queues: throughput, and latency from the time at which each message was meant to be sent
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq bench queue                                     64 in flight on one stream
  kubemq bench queue --in-flight 1024 --connections 4
  kubemq bench queue --rate 20000 --duration 30          open loop: latency under a given load
  kubemq bench queue --mode unary --in-flight 64
  kubemq bench queue --mode end-to-end --in-flight 1024 --channels 16
  kubemq bench queue --output json > result.json         progress still goes to the terminal

With --rate the load is an open loop: it does not slow down with the broker, and a message that had to wait
for its turn is charged for the wait. Without, it is a closed loop of --in-flight messages.
The messages stay in the channels <prefix>.0, <prefix>.1, … unless --delete is given; end to end, whatever is
in these channels is consumed.

Exit codes: 0 measured, 1 unreachable or something was refused, 2 wrong usage.")]
struct Queue {
    /// What to do with each message
    #[arg(long, value_enum, default_value = "upstream")]
    mode: Mode,
    /// Channels that the messages go to in turn
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    channels: u32,
    /// What the names of the channels begin with
    #[arg(long, value_name = "NAME", default_value = "bench.queue")]
    prefix: String,
    /// Messages per request
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    batch: u64,
    /// Messages per Get, end to end [default: half of a channel's share of --in-flight, with --rate 1]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    items: Option<u32>,
    #[command(flatten)]
    pace: Pace,
}

/// What all loads are told.
#[derive(Debug, clap::Args)]
struct Pace {
    /// Messages per second (open loop); without it the next message goes when one is answered (closed loop)
    #[arg(long, value_name = "PER_SECOND", value_parser = positive_rate)]
    rate: Option<f64>,
    /// Messages that may be unanswered at a time, over all connections [default: 64, with --rate 16384]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    in_flight: Option<u64>,
    /// Bytes of a message's body
    #[arg(long, value_name = "BYTES", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=LARGEST_MESSAGE as u64 / 2))]
    size: u64,
    /// Connections that send; end to end, as many more receive
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Seconds to measure
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = some_seconds)]
    duration: Duration,
    /// Messages to send, or a few more to fill the last request, instead of measuring for a time
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..), conflicts_with_all = ["duration", "warmup"])]
    messages: Option<u64>,
    /// Seconds to run before measuring
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    warmup: Duration,
    /// Threads of this client
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// The broker's process when it is on this machine: its processor time and disk writes are reported, too
    #[arg(long, value_name = "PID")]
    broker_pid: Option<u32>,
    /// Delete the channels afterwards
    #[arg(long)]
    delete: bool,
}

impl Bench {
    /// Runs the command and returns the exit code of the process.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let threads = usize::from(self.command.pace().threads);
        output::finish(client::run_on(threads, |runtime| async move {
            let load = match &self.command {
                Command::Queue(queue) => queue.load(&self.connection)?,
                Command::EventsStore(events) => events.load(&self.connection)?,
                Command::Events(events) => events.load(&self.connection)?,
                Command::Commands(requests) => requests.load(Mode::Commands, &self.connection)?,
                Command::Queries(requests) => requests.load(Mode::Queries, &self.connection)?,
            };
            self.command.pace().run(load, &self.connection, &runtime).await
        }))
    }
}

impl Command {
    fn pace(&self) -> &Pace {
        match self {
            Self::Queue(queue) => &queue.pace,
            Self::EventsStore(events) => &events.pace,
            Self::Events(events) => &events.pace,
            Self::Commands(requests) | Self::Queries(requests) => &requests.pace,
        }
    }
}

impl Pace {
    async fn run(&self, load: Load, connection: &Connection, runtime: &Runtime) -> Result<Ending, Failure> {
        let for_people = connection.output == Format::Table;
        if for_people {
            output::line(heading(&load))?;
        }
        let report = load.run(runtime, |progress| output::note(format_args!("{}", progress_line(progress)))).await;
        if self.delete {
            delete_channels(&load, connection, runtime).await?;
        }
        let report = report?;
        if for_people {
            output::line(report.text())?;
        } else {
            output::json(&report)?;
        }
        match report.first_refusal {
            None => Ok(Ending::Done),
            Some(text) => Err(Failure::Refused(format!("the broker refused {} messages: {text}", report.refused))),
        }
    }

    /// Returns a load of this pace, to be completed.
    fn load(&self, connection: &Connection, mode: Mode) -> Result<Load, Failure> {
        let default_in_flight = if self.rate.is_some() { OPEN_LOOP_IN_FLIGHT } else { CLOSED_LOOP_IN_FLIGHT };
        Ok(Load {
            address: connection.address.clone(),
            token: connection.token()?,
            client_id: connection.client_id.clone(),
            mode,
            rate: self.rate,
            in_flight: self.in_flight.unwrap_or(default_in_flight),
            size: usize::try_from(self.size).unwrap_or(usize::MAX),
            channels: 1,
            prefix: String::new(),
            connections: count(self.connections),
            batch: 1,
            items: None,
            events: 0,
            receivers: 1,
            messages: self.messages,
            duration: if self.messages.is_some() { LONGEST } else { self.duration },
            warm_up: if self.messages.is_some() { Duration::ZERO } else { self.warmup },
            broker_process: self.broker_pid,
        })
    }
}

impl Queue {
    fn load(&self, connection: &Connection) -> Result<Load, Failure> {
        let load = self.pace.load(connection, self.mode)?;
        let (channels, prefix) = (count(self.channels), self.prefix.clone());
        Ok(Load { channels, prefix, batch: self.batch, items: self.items, ..load })
    }
}

impl EventsStore {
    fn load(&self, connection: &Connection) -> Result<Load, Failure> {
        let mode = if self.replay { Mode::Replay } else { Mode::EventsStore };
        let load = self.pace.load(connection, mode)?;
        let channels = if self.replay { load.connections } else { count(self.channels) };
        Ok(Load { channels, prefix: self.prefix.clone(), events: self.events, ..load })
    }
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn heading(load: &Load) -> String {
    let pace = load.rate.map_or_else(
        || format!("{} in flight", grouped(load.in_flight)),
        |rate| format!("{} msg/s, at most {} in flight", grouped_rate(rate), grouped(load.in_flight)),
    );
    let receivers = if load.mode == Mode::Events { format!(", receivers {}", load.receivers) } else { String::new() };
    let time = load.messages.map_or_else(
        || format!("for {} s after {} s", load.duration.as_secs_f64(), load.warm_up.as_secs_f64()),
        |messages| format!("{} messages", grouped(messages)),
    );
    format!(
        "Load {} on {}: {pace}, {} bytes, {} per request, channels {}, connections {}{receivers}, {time}",
        load.mode.name(),
        load.address,
        load.size,
        load.batch,
        load.channels,
        load.connections
    )
}

fn progress_line(progress: &Progress) -> String {
    let mut line = format!(
        "{:>4.0} s  {:>9} msg/s  p50 {:>8}  p99 {:>8}  unanswered {}",
        progress.elapsed.as_secs_f64(),
        grouped_rate(progress.rate),
        time(progress.p50_us),
        time(progress.p99_us),
        grouped(progress.unanswered)
    );
    if progress.refused > 0 {
        line.push_str(&format!("  refused {}", grouped(progress.refused)));
    }
    if progress.warming_up {
        line.push_str("  (warm-up)");
    }
    line
}

async fn delete_channels(load: &Load, connection: &Connection, runtime: &Runtime) -> Result<(), Failure> {
    let mut client = connection.connect().await?;
    for number in 0..load.channels {
        let channel = load.channel(number);
        let kind = match load.mode {
            Mode::EventsStore | Mode::Replay => "events_store",
            Mode::Events => "events",
            Mode::Commands => "commands",
            Mode::Queries => "queries",
            Mode::Upstream | Mode::Unary | Mode::EndToEnd => "queues",
        };
        let tags = [("channel_type", kind), ("channel", channel.as_str())];
        super::channels::manage(&mut client, runtime, &load.client_id, "delete-channel", &tags).await?;
    }
    Ok(())
}

fn stream_ended() -> Failure {
    Failure::Refused("the broker ended the stream".to_owned())
}

fn positive_rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.01..=1e9).contains(&rate) { Ok(rate) } else { Err("not between 0.01 and 1000000000".to_owned()) }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=86_400.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("not between 0 and 86400".to_owned())
    }
}

fn some_seconds(text: &str) -> Result<Duration, String> {
    seconds(text).and_then(|time| if time.is_zero() { Err("must be longer than 0".to_owned()) } else { Ok(time) })
}
