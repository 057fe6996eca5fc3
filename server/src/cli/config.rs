//! `kubemq config`: what holds here, where it comes from, and what could be said.

use std::process::ExitCode;

use super::output::{self, Ending, Failure, Format};
use super::settings::{self, Settings};
use crate::config::{example, listing};
use crate::reference;

/// Show the configuration
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq config print
  GRPC_PORT=50001 kubemq config print --set queue.maxDelaySeconds=60
  kubemq config print --config production.yaml --output json
  kubemq config example > config.yaml
  kubemq config reference > reference.md

Exit codes: 0 the configuration can be used, 1 it cannot, 2 wrong usage.")]
pub struct Configuration {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show each key with the value that holds and where it came from
    #[command(visible_alias = "p")]
    Print {
        #[command(flatten)]
        settings: Settings,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        output: Format,
    },
    /// Show a configuration file with every key, its meaning, bounds and default
    Example,
    /// Show every key and every bound of the program, with what happens at it, as a page in Markdown
    Reference,
}

impl Configuration {
    /// Runs the command and returns the exit code of the process.
    #[must_use]
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Print { settings, output } => match settings.load() {
                Ok(config) => output::finish(print(&listing(&config), &config.warnings, output)),
                Err(invalid) => {
                    settings::complain(&invalid);
                    ExitCode::FAILURE
                }
            },
            Command::Example => text(&example()),
            Command::Reference => text(&reference::page()),
        }
    }
}

fn text(text: &str) -> ExitCode {
    output::finish(output::line(text.trim_end()).map_or_else(failed, |()| done()))
}

fn print(lines: &[crate::config::Line], warnings: &[String], format: Format) -> Result<Ending, Failure> {
    for warning in warnings {
        output::note(format_args!("warning: {warning}"));
    }
    match format {
        Format::Json => output::json(&lines)?,
        Format::Table => {
            let rows: Vec<_> =
                lines.iter().map(|line| vec![line.key.to_owned(), line.value.clone(), line.origin.clone()]).collect();
            output::table(&["KEY", "VALUE", "ORIGIN"], &rows)?;
        }
    }
    done()
}

fn done() -> Result<Ending, Failure> {
    Ok(Ending::Done)
}

fn failed(error: std::io::Error) -> Result<Ending, Failure> {
    Err(error.into())
}
