//! The one line on standard output that says that the server is ready, and where.

use std::io::{self, IsTerminal as _};
use std::net::SocketAddr;

use kubemq_runtime::{Instant, Runtime};
use serde::Serialize;

use crate::cli::output;
use crate::config::{Config, LogFormat};
use crate::telemetry;

/// What the line says.
#[derive(Serialize)]
pub(super) struct Ready {
    level: &'static str,
    message: &'static str,
    version: &'static str,
    grpc: SocketAddr,
    http: SocketAddr,
    data: String,
    durability: String,
    host: String,
    started_in_ms: u128,
}

impl Ready {
    pub(super) fn new(config: &Config, grpc: SocketAddr, http: SocketAddr, runtime: &Runtime) -> Self {
        let data = std::path::absolute(&config.data).unwrap_or_else(|_| config.data.clone());
        Self {
            level: "INFO",
            message: "ready",
            version: env!("CARGO_PKG_VERSION"),
            grpc,
            http,
            data: data.display().to_string(),
            durability: config.durability(),
            host: config.host.clone(),
            started_in_ms: runtime.clock.now().since(Instant::default()).as_millis(),
        }
    }

    pub(super) fn print(&self, format: LogFormat) {
        let printed = if telemetry::is_text(format, io::stdout().is_terminal()) {
            output::line(format_args!(
                "kubemq {} is ready: gRPC {}, HTTP {}, data in {}, durability {}",
                self.version, self.grpc, self.http, self.data, self.durability
            ))
        } else {
            output::json(self)
        };
        if let Err(error) = printed {
            // Nobody reads it; the node serves all the same.
            tracing::warn!(%error, "the ready line could not be printed");
        }
    }
}
