//! The flags that say how a server is configured; every command that needs a configuration has them.

use std::path::PathBuf;

use super::output;
use crate::config::{Config, Invalid, Sources, keys};

/// How the server is configured
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Settings {
    /// Configuration file: .yaml, .yml or .toml; without it the variable CONFIG or ./config.yaml is read
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory in which everything durable is kept [default: ./kubemq-data]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Port of the gRPC interface, 0 for any free one [default: 50000]
    #[arg(long, value_name = "PORT", allow_hyphen_values = true)]
    grpc_port: Option<String>,
    /// Port of the HTTP interface, 0 for any free one [default: 8080]
    #[arg(long, value_name = "PORT", allow_hyphen_values = true)]
    http_port: Option<String>,
    /// The least important lines that are logged: trace, debug, info, warn, error, fatal [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// How log lines look: auto, text, json [default: auto]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Any key of the configuration, as often as needed; `kubemq config print` shows them
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Settings {
    /// Returns settings of which only the data directory is given on the command line, if at all.
    #[must_use]
    pub fn for_data(data: Option<String>) -> Self {
        Self { data, ..Self::default() }
    }

    /// Returns the configuration of flags, environment and file together.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn load(self) -> Result<Config, Invalid> {
        let mut sources = Sources::of_process();
        sources.file = self.config;
        sources.flag(&keys::DATA, "--data", self.data);
        sources.flag(&keys::GRPC_PORT, "--grpc-port", self.grpc_port);
        sources.flag(&keys::API_PORT, "--http-port", self.http_port);
        sources.flag(&keys::LOG_LEVEL, "--log-level", self.log_level);
        sources.flag(&keys::LOG_FORMAT, "--log-format", self.log_format);
        let mut problems = Vec::new();
        for text in &self.set {
            problems.extend(sources.assignment("--set", text).err());
        }
        match Config::load(&sources) {
            Ok(config) if problems.is_empty() => Ok(config),
            Ok(_) => Err(Invalid { problems }),
            Err(invalid) => {
                problems.extend(invalid.problems);
                Err(Invalid { problems })
            }
        }
    }
}

/// Prints everything that is wrong with a configuration to standard error.
pub fn complain(invalid: &Invalid) {
    output::note(format_args!("{invalid}"));
}
