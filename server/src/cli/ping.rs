//! `kubemq ping`: is somebody there, who is it, and how far away.

use std::process::ExitCode;
use std::time::Duration;

use kubemq_proto::kubemq as proto;

use super::client::{self, Connection, answer};
use super::output::{self, Ending, Failure, Format};

/// Ask a broker who it is and how long an answer takes
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq ping
  kubemq ping --address broker.example:50000 --count 5
  kubemq ping --output json

Exit codes: 0 answered, 1 unreachable or refused, 2 wrong usage.")]
pub struct Ping {
    /// How often to ask, once a second
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    #[command(flatten)]
    connection: Connection,
}

impl Ping {
    /// Runs the command and returns the exit code of the process.
    #[must_use]
    pub fn run(self) -> ExitCode {
        output::finish(client::run(|runtime| async move {
            let mut client = self.connection.connect().await?;
            for round in 0..self.count {
                if round > 0 {
                    runtime.clock.sleep(Duration::from_secs(1)).await;
                }
                let start = runtime.clock.now();
                let result = answer(&runtime, Duration::ZERO, client.ping(proto::Empty {})).await?;
                self.show(&result, runtime.clock.now().since(start))?;
            }
            Ok(Ending::Done)
        }))
    }

    fn show(&self, result: &proto::PingResult, took: Duration) -> Result<(), Failure> {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        match self.connection.output {
            Format::Json => output::json(&serde_json::json!({
                "host": result.host, "version": result.version, "server_start_time": result.server_start_time,
                "server_up_time_seconds": result.server_up_time_seconds, "round_trip_us": micros,
            }))?,
            Format::Table => output::line(format_args!(
                "Answer from {} ({}), up {} s: {:.3} ms",
                result.host,
                result.version,
                result.server_up_time_seconds,
                took.as_secs_f64() * 1000.0
            ))?,
        }
        Ok(())
    }
}
