//! `kubemq-bench`: what the broker reaches, beside what the machine would allow.
//!
//! [`floor`] and [`disk`] measure the machine, [`log`] the storage log by itself, [`table`] the program, with
//! the loads of `kubemq bench` (the library `kubemq_server::cli::bench`), [`pushes`] what it does at its bounds. Figures without the floors of the same
//! run say little: everything here prints both. Nothing here is a test; no speed is ever asserted.

mod disk;
mod floor;
mod flushes;
mod log;
mod machine;
mod peers;
mod process;
mod profile;
mod pushes;
mod results;
mod table;
mod work;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use kubemq_runtime::Runtime;
use kubemq_server::cli::output;

use work::{Times, WORKS};

/// Measures the broker beside the floors of the machine
#[derive(clap::Parser)]
#[command(after_help = "Examples (release builds; nothing else should run on the machine):
  cargo build --release -p kubemq-server -p kubemq-bench
  target/release/kubemq-bench table --write
  target/release/kubemq-bench table --only 'upstream stream, 64' --rounds 1
  tests/bench/peers/install && target/release/kubemq-bench peers --write
  target/release/kubemq-bench push --list
  target/release/kubemq-bench push backlog-in-batches --scale 0.1
  target/release/kubemq-bench push --write
  target/release/kubemq-bench profile --seconds 5
  target/release/kubemq-bench floors
  target/release/kubemq-bench log")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// A directory on the disk that is to be measured
    #[arg(long, global = true, default_value = ".")]
    directory: PathBuf,
    /// How often everything is measured; medians are shown
    #[arg(long, global = true, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
    /// Seconds of each measurement
    #[arg(long, global = true, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    seconds: u8,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Measure the machine: a bare gRPC server that stores nothing, and fdatasync
    Floors,
    /// Measure the storage log by itself
    Log,
    /// Measure everything and print the table
    Table {
        /// The broker's program [default: `kubemq` beside this one]
        #[arg(long)]
        broker: Option<PathBuf>,
        /// Only rows whose name contains this
        #[arg(long, default_value = "", hide_default_value = true)]
        only: String,
        /// Keep the tables in their sections of RESULTS.md beside the code
        #[arg(long, conflicts_with = "only")]
        write: bool,
    },
    /// Measure other brokers beside this one; `table` does it, too, where they are installed
    Peers {
        /// The broker's program [default: `kubemq` beside this one]
        #[arg(long)]
        broker: Option<PathBuf>,
        /// Only works whose name contains this
        #[arg(long, default_value = "", hide_default_value = true)]
        only: String,
        /// Keep the table in its section of RESULTS.md beside the code
        #[arg(long, conflicts_with = "only")]
        write: bool,
    },
    /// Count what a message costs the broker on the hot paths: calls, wake-ups, allocations, functions
    Profile {
        /// The broker's program [default: `kubemq` beside this one]
        #[arg(long)]
        broker: Option<PathBuf>,
        /// Only works whose name contains this
        #[arg(long, default_value = "", hide_default_value = true)]
        only: String,
        /// Keep the table in its section of RESULTS.md beside the code
        #[arg(long, conflicts_with = "only")]
        write: bool,
    },
    /// Give a broker far more of something than is usual, below a ceiling of memory
    Push {
        /// The pushes to run [default: all]
        names: Vec<String>,
        /// Print what pushes there are
        #[arg(long)]
        list: bool,
        /// The share of the full size that is pushed
        #[arg(long, default_value_t = 1.0, value_parser = scale)]
        scale: f64,
        /// How long the soak takes, in minutes
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=1440))]
        minutes: u16,
        /// The broker's program [default: `kubemq` beside this one]
        #[arg(long)]
        broker: Option<PathBuf>,
        /// Keep the rows in RESULTS.md beside the code
        #[arg(long)]
        write: bool,
    },
    /// Serve as the floor until killed; the other commands start this by themselves
    #[command(hide = true)]
    ServeFloor,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let serves = matches!(arguments.command, Command::ServeFloor);
    // The floor has the threads that the broker has; the client needs one.
    let executor = if serves {
        tokio::runtime::Builder::new_multi_thread().enable_all().build()
    } else {
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    };
    executor.context("could not start")?.block_on(async { command(arguments, Runtime::real()).await })
}

async fn command(arguments: &Arguments, runtime: Runtime) -> anyhow::Result<()> {
    let Arguments { command, directory, rounds, seconds } = arguments;
    let times = Times { warm_up: Duration::from_secs(1), duration: Duration::from_secs(u64::from(*seconds)) };
    let rounds = usize::from(*rounds);
    match command {
        Command::Floors => floors(directory, rounds, times, &runtime).await,
        Command::Log => {
            for _ in 0..rounds {
                sync_floor(directory, disk::SMALL, times, &runtime).await?;
                sync_floor(directory, log::GROUP_BYTES, times, &runtime).await?;
                let figures = log::groups(directory, &runtime, times.duration).await?;
                output::line(&figures)?;
            }
            Ok(())
        }
        Command::Table { broker, only, write } => {
            let broker = broker.clone().map_or_else(beside_this_program, Ok)?;
            let plan = table::Plan { broker: &broker, directory, rounds, times, only };
            show(&table::run(&plan, &runtime).await?, *write)?;
            if !peers::have(only) {
                return Ok(());
            }
            if !peers::are_installed() {
                output::note(format_args!("other brokers are not installed: run tests/bench/peers/install"));
                return Ok(());
            }
            show(&peers::run(&plan, &runtime).await?, *write)
        }
        Command::Peers { broker, only, write } => {
            let broker = broker.clone().map_or_else(beside_this_program, Ok)?;
            let plan = table::Plan { broker: &broker, directory, rounds, times, only };
            show(&peers::run(&plan, &runtime).await?, *write)
        }
        Command::Profile { broker, only, write } => {
            let broker = broker.clone().map_or_else(beside_this_program, Ok)?;
            let plan = table::Plan { broker: &broker, directory, rounds, times, only };
            show(&profile::run(&plan, &runtime).await?, *write)
        }
        Command::Push { list: true, .. } => pushes::list(),
        Command::Push { names, list: _, scale, minutes, broker, write } => {
            let plan = pushes::Plan {
                broker: broker.clone().map_or_else(beside_this_program, Ok)?,
                directory: directory.clone(),
                scale: *scale,
                soak: Duration::from_secs(60 * u64::from(*minutes)),
            };
            if !pushes::run(names, &plan, *write, &runtime).await? {
                anyhow::bail!("not everything holds that is demanded");
            }
            Ok(())
        }
        Command::ServeFloor => {
            let tell = |address: std::net::SocketAddr| {
                Ok(output::json(&serde_json::json!({ "message": "ready", "grpc": address.to_string() }))?)
            };
            floor::serve(runtime, tell).await
        }
    }
}

/// Prints a section of the results, and keeps it when that is wanted.
fn show(section: &str, write: bool) -> anyhow::Result<()> {
    output::line(section)?;
    if write { results::keep(section) } else { Ok(()) }
}

async fn sync_floor(directory: &Path, size: usize, times: Times, runtime: &Runtime) -> anyhow::Result<()> {
    let latencies = disk::synced_appends(directory, &runtime.clock, size, times.duration).await?;
    output::line(format_args!(
        "fdatasync after an append of {size} bytes to a preallocated file: {}",
        disk::text(&latencies)
    ))?;
    Ok(())
}

async fn floors(directory: &Path, rounds: usize, times: Times, runtime: &Runtime) -> anyhow::Result<()> {
    sync_floor(directory, disk::SMALL, times, runtime).await?;
    for work in WORKS {
        let mut samples = Vec::new();
        for _ in 0..rounds {
            let server = process::Server::floor(&runtime.clock)?;
            samples.push(work.measure(&server, directory, times, runtime).await?);
        }
        output::line(format_args!("{}: {}", work.name, table::figures(&table::middle(&samples))))?;
    }
    Ok(())
}

fn scale(text: &str) -> Result<f64, String> {
    let scale: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0001..=10.0).contains(&scale) { Ok(scale) } else { Err("not between 0.0001 and 10".to_owned()) }
}

fn beside_this_program() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("this program has no path")?;
    Ok(program.with_file_name("kubemq"))
}
