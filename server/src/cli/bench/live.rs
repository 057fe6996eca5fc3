//! `kubemq bench events|commands|queries`: what can be asked of loads that store nothing.

use super::load::{Load, Mode};
use super::{Pace, count};
use crate::cli::client::Connection;
use crate::cli::output::Failure;

/// Measure events on a stream: throughput of all copies, and latency until each is received
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq bench events                                    64 copies in flight, one subscriber
  kubemq bench events --in-flight 4096 --receivers 8
  kubemq bench events --rate 20000 --duration 30         open loop: latency under a given load

Each copy counts as a message: with --receivers 8 one event is eight. Subscribers that do not keep up lose
events; those stay unanswered and are shown.

Exit codes: 0 measured, 1 unreachable or something was refused, 2 wrong usage.")]
pub(super) struct Events {
    /// Subscribers that get each event
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    receivers: u32,
    /// What the names of the channels begin with
    #[arg(long, value_name = "NAME", default_value = "bench.events")]
    prefix: String,
    #[command(flatten)]
    pub(super) pace: Pace,
}

/// Measure requests: throughput, and latency until each is answered by a responder of this client
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq bench commands --in-flight 1                    one after another
  kubemq bench queries --in-flight 150
  kubemq bench commands --rate 5000 --duration 30        open loop: latency under a given load

Exit codes: 0 measured, 1 unreachable or something was refused, 2 wrong usage.")]
pub(super) struct Requests {
    /// What the names of the channels begin with
    #[arg(long, value_name = "NAME", default_value = "bench.requests")]
    prefix: String,
    #[command(flatten)]
    pub(super) pace: Pace,
}

impl Events {
    pub(super) fn load(&self, connection: &Connection) -> Result<Load, Failure> {
        let load = self.pace.load(connection, Mode::Events)?;
        // Each connection publishes on a channel of its own.
        Ok(Load { channels: load.connections, prefix: self.prefix.clone(), receivers: count(self.receivers), ..load })
    }
}

impl Requests {
    pub(super) fn load(&self, mode: Mode, connection: &Connection) -> Result<Load, Failure> {
        let load = self.pace.load(connection, mode)?;
        Ok(Load { channels: load.connections, prefix: self.prefix.clone(), ..load })
    }
}
