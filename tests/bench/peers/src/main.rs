//! `kubemq-peers`: one measurement of another broker, under the load that `kubemq-bench` gives to this project's.
//!
//! Each run starts a server in a fresh directory on free ports, loads it with a client that is common for it, and
//! prints one line of JSON: messages per second, latencies, and what client, server and disk used meanwhile.
//! `kubemq-bench peers` calls it for every row and makes the table. It installs nothing (`install` does), and it
//! judges nothing: a message that is refused, or a server that does not come up, makes the measurement void.

#[path = "../../src/flushes.rs"]
mod flushes;
mod kafka;
mod meter;
mod nats;
#[path = "../../../../server/src/cli/bench/process.rs"]
#[allow(dead_code, unreachable_pub, reason = "another program's file; it uses more of it")]
mod process;
mod rabbitmq;
mod redis_streams;
mod server;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use meter::Meter;
use serde::Serialize;
use server::Server;

/// Measures another broker once and prints the result as JSON
#[derive(Clone, clap::Parser)]
struct Arguments {
    /// Which broker
    system: System,
    /// What to do with each message
    work: Work,
    /// Flush to the disk before an acknowledgement, instead of what is the default
    #[arg(long)]
    synced: bool,
    /// Messages that are under way at a time
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    in_flight: u32,
    /// Streams, queues or topics that the messages go to in turn
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    channels: u32,
    /// Bytes of a message
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(16..=1 << 20))]
    size: u32,
    /// Seconds to measure
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Seconds to run before
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=600))]
    warm_up: u64,
    /// Where the server's data goes
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    /// Where `install` put the servers
    #[arg(long)]
    servers: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum System {
    /// NATS JetStream, file storage
    Nats,
    /// RabbitMQ, quorum queues
    Rabbitmq,
    /// Redis Streams, append-only file
    Redis,
    /// Kafka in KRaft mode
    Kafka,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Work {
    /// Publish; a message is done when it is confirmed
    Publish,
    /// Publish, receive and settle at once; a message is done when its consumer has it
    EndToEnd,
}

/// What one measurement showed.
#[derive(Serialize)]
struct Sample {
    /// Messages per second.
    rate: f64,
    p50_us: f64,
    p99_us: f64,
    /// Processor time of this program per message.
    client_us: f64,
    /// Processor time of the server per message.
    server_us: f64,
    /// Memory that the server had resident at the end.
    resident_bytes: u64,
    /// Flushes of the disk per second, whoever caused them.
    flushes: f64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let measured = executor.map_err(anyhow::Error::from).and_then(|executor| executor.block_on(measure(&arguments)));
    match measured.and_then(|sample| Ok(serde_json::to_string(&sample)?)) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            writeln!(std::io::stderr(), "error: {error:#}").ok();
            ExitCode::FAILURE
        }
    }
}

async fn measure(arguments: &Arguments) -> anyhow::Result<Sample> {
    let start = match arguments.system {
        System::Nats => nats::start(arguments)?,
        System::Rabbitmq => rabbitmq::start(arguments)?,
        System::Redis => redis_streams::start(arguments)?,
        System::Kafka => kafka::start(arguments)?,
    };
    let meter = Meter::new(arguments.in_flight)?;
    let (address, load) = (start.address(), Load { arguments, meter: meter.clone() });
    let running = async {
        match arguments.system {
            System::Nats => nats::run(&address, &load).await,
            System::Rabbitmq => rabbitmq::run(&address, &load).await,
            System::Redis => redis_streams::run(&address, &load).await,
            System::Kafka => kafka::run(&address, &load).await,
        }
    };
    tokio::select! {
        biased;
        sample = watch(arguments, &start, &meter) => sample,
        ended = running => match ended {
            Ok(()) => anyhow::bail!("the load ended by itself"),
            Err(error) => Err(error),
        },
    }
}

/// Waits for the first message, the warm-up and the measurement, and says what was seen.
async fn watch(arguments: &Arguments, server: &Server, meter: &Meter) -> anyhow::Result<Sample> {
    meter.begun().await?;
    tokio::time::sleep(Duration::from_secs(arguments.warm_up)).await;
    let before = Used::of(server, &arguments.directory)?;
    meter.start_over();
    tokio::time::sleep(Duration::from_secs(arguments.seconds)).await;
    let seen = meter.seen();
    let after = Used::of(server, &arguments.directory)?;
    anyhow::ensure!(seen.messages > 0, "no message was done in {} s", arguments.seconds);
    let per_message = |time: Duration| 1e6 * time.as_secs_f64() / seen.messages as f64;
    Ok(Sample {
        rate: seen.messages as f64 / seen.seconds,
        p50_us: seen.latencies.value_at_quantile(0.5) as f64 / 1e3,
        p99_us: seen.latencies.value_at_quantile(0.99) as f64 / 1e3,
        client_us: per_message(after.client.saturating_sub(before.client)),
        server_us: per_message(after.server.saturating_sub(before.server)),
        resident_bytes: after.resident,
        flushes: (after.flushes - before.flushes) as f64 / seen.seconds,
    })
}

struct Used {
    client: Duration,
    server: Duration,
    resident: u64,
    flushes: u64,
}

impl Used {
    fn of(server: &Server, directory: &Path) -> anyhow::Result<Self> {
        let gone = || anyhow::anyhow!("the server is gone");
        Ok(Self {
            client: process::cpu_time(None).ok_or_else(gone)?,
            server: process::cpu_time(Some(server.id())).ok_or_else(gone)?,
            resident: process::resident_bytes(Some(server.id())).ok_or_else(gone)?,
            flushes: flushes::completed(directory).unwrap_or(0),
        })
    }
}

/// What a client is told.
struct Load<'a> {
    arguments: &'a Arguments,
    meter: Meter,
}

impl Load<'_> {
    fn channels(&self) -> Vec<String> {
        (0..self.arguments.channels).map(|number| format!("bench-{number}")).collect()
    }

    fn consumes(&self) -> bool {
        self.arguments.work == Work::EndToEnd
    }

    /// A channel's part of what may be under way, at least one.
    fn share(&self) -> usize {
        (self.arguments.in_flight / self.arguments.channels).max(1) as usize
    }
}
