//! `kubemq server`: the broker itself.

use std::num::NonZeroUsize;
use std::process::ExitCode;

use kubemq_runtime::{Runtime, chain};

use super::output;
use super::settings::{self, Settings};
use crate::serve::{self, Stopped};
use crate::telemetry;

/// The exit code after the state of the node failed.
const STATE_FAILED: u8 = 70;
/// The exit code after a second signal.
const INTERRUPTED: u8 = 130;

/// Run the broker
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq server
  kubemq server --data /var/lib/kubemq --grpc-port 50001
  kubemq server --config kubemq.yaml --set queue.maxDelaySeconds=86400

One line on standard output says when it is ready and where; log lines go to standard error.
SIGTERM, SIGINT and SIGQUIT stop it: calls under way are finished, a second signal ends it at once.

Exit codes: 0 stopped as asked, 1 the configuration, a port or the data directory cannot be used, 2 wrong usage,
70 its stored state or its disk failed, 130 ended by a second signal.")]
pub struct Server {
    #[command(flatten)]
    settings: Settings,
}

impl Server {
    /// Runs the server until it is told to stop, and returns the exit code of the process.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let config = match self.settings.load() {
            Ok(config) => config,
            Err(invalid) => {
                settings::complain(&invalid);
                return ExitCode::FAILURE;
            }
        };
        telemetry::start(&config.log);
        // One core is left to the thread that writes the log: where the network takes all of them, what an entry
        // does in small steps on either side wakes threads that find no core (measured on two cores: a quarter more
        // messages a second with 64 in flight, a seventh less latency for a single sender).
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let workers = cores.saturating_sub(1).max(1);
        let mut executor = tokio::runtime::Builder::new_multi_thread();
        let executor = executor.enable_all().worker_threads(workers).thread_name("kubemq").build();
        let executor = match executor {
            Ok(executor) => executor,
            Err(error) => {
                output::note(format_args!("error: could not start: {error}"));
                return ExitCode::from(STATE_FAILED);
            }
        };
        let result = executor.block_on(async { Box::pin(serve::run(config, Runtime::real())).await });
        // Whatever still runs has nothing left to save.
        executor.shutdown_background();
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(stopped) => {
                output::note(format_args!("error: {}", chain(&stopped)));
                if matches!(stopped, Stopped::Start(_)) && !stopped.is_refusal() {
                    output::note(format_args!(
                        "`kubemq doctor` says what is wrong with the files and saves what they hold"
                    ));
                }
                exit_code(&stopped)
            }
        }
    }
}

fn exit_code(stopped: &Stopped) -> ExitCode {
    match stopped {
        Stopped::Interrupted => ExitCode::from(INTERRUPTED),
        stopped if stopped.is_refusal() => ExitCode::FAILURE,
        _ => ExitCode::from(STATE_FAILED),
    }
}
