//! The commands of the program, one file each.
//!
//! All but `server`, `config` and `doctor` are clients: they speak the public API and nothing else, so they work
//! with any broker that does.

mod attach;
pub mod bench;
pub mod channels;
pub mod client;
pub mod config;
pub mod doctor;
pub mod event_json;
pub mod events;
pub mod events_store;
pub mod output;
pub mod ping;
pub mod queue_json;
pub mod queues;
mod request_json;
pub mod requests;
pub mod server;
pub mod settings;

use std::process::ExitCode;

/// A message broker: durable queues, events, commands and queries from one command
#[derive(Debug, clap::Parser)]
#[command(
    name = "kubemq",
    version,
    disable_version_flag = true,
    arg_required_else_help = true,
    after_help = "Examples:
  kubemq server                                start a broker, data in ./kubemq-data
  kubemq queues send orders 'one espresso'     send a message
  kubemq queues receive orders                 receive it
  kubemq events receive 'orders.*'             watch events of these channels
  kubemq queries send prices espresso          ask, and print the answer
  kubemq doctor                                measure the disk, check a stopped node's files

Each command has its own --help with examples and exit codes."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print version
    #[arg(short, visible_short_alias = 'V', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    #[command(visible_aliases = ["s", "serve"])]
    Server(server::Server),
    #[command(visible_aliases = ["queue", "q", "qu"])]
    Queues(queues::Queues),
    #[command(visible_aliases = ["event", "e"])]
    Events(events::Events),
    #[command(name = "events_store", visible_aliases = ["es", "events-store"])]
    EventsStore(events_store::EventsStore),
    #[command(visible_aliases = ["command", "cmd"])]
    Commands(requests::Commands),
    #[command(visible_aliases = ["query", "qry"])]
    Queries(requests::Queries),
    #[command(visible_aliases = ["channel", "ch"])]
    Channels(channels::Channels),
    Ping(ping::Ping),
    Bench(bench::Bench),
    Config(config::Configuration),
    Doctor(doctor::Doctor),
}

impl Cli {
    /// Runs the command and returns the exit code of the process.
    #[must_use]
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Server(server) => server.run(),
            Command::Queues(queues) => queues.run(),
            Command::Events(events) => events.run(),
            Command::EventsStore(events) => events.run(),
            Command::Commands(commands) => commands.run(),
            Command::Queries(queries) => queries.run(),
            Command::Channels(channels) => channels.run(),
            Command::Ping(ping) => ping.run(),
            Command::Bench(bench) => bench.run(),
            Command::Config(config) => config.run(),
            Command::Doctor(doctor) => doctor.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory as _, Parser as _};

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn aliases_lead_to_their_commands() {
        for line in [
            "kubemq s",
            "kubemq serve --data d --grpc-port 0 --http-port 0",
            "kubemq server --set grpc.port=1 --set api.port=2",
            "kubemq q s orders hello",
            "kubemq queue rec orders",
            "kubemq ch l",
            "kubemq e s a hello",
            "kubemq events sub a.> -g g",
            "kubemq cmd s a hello -o 5",
            "kubemq query rec a -a",
            "kubemq bench qry --in-flight 1",
            "kubemq es s orders hello",
            "kubemq events_store rec orders --start-first",
            "kubemq config p --output json",
            "kubemq config example",
            "kubemq config reference",
            "kubemq doctor --data d --output json",
            "kubemq doctor --files-only",
            "kubemq doctor export --data d --channel a --channel b",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        assert!(Cli::try_parse_from(["kubemq", "serv"]).is_err());
        for version in ["-v", "-V", "--version"] {
            let told = Cli::try_parse_from(["kubemq", version]).unwrap_err();
            assert_eq!(told.kind(), clap::error::ErrorKind::DisplayVersion, "{version}");
        }
    }
}
