//! Log lines: structured, quiet by default, text for people and JSON for programs.
//!
//! They go to standard error; standard output belongs to what was asked for. Our own crates speak at the
//! configured level, the libraries below them only when something is wrong. Bodies and tokens are never logged.

use std::io::{self, IsTerminal as _};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

use crate::config::{LogFormat, Logging};

/// Begins to write log lines. Does nothing when this process writes them already.
pub fn start(logging: &Logging) {
    let text = is_text(logging.format, io::stderr().is_terminal());
    let lines = if text {
        fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).boxed()
    } else {
        fmt::layer().with_writer(io::stderr).json().flatten_event(true).with_current_span(false).boxed()
    };
    // Another subscriber is there only in tests.
    tracing_subscriber::registry().with(lines.with_filter(filter(&logging.level))).try_init().ok();
}

/// Returns whether lines are text, given where they go.
#[must_use]
pub fn is_text(format: LogFormat, terminal: bool) -> bool {
    match format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    }
}

fn filter(level: &str) -> Targets {
    let (ours, libraries) = match level {
        "trace" => (LevelFilter::TRACE, LevelFilter::DEBUG),
        "debug" => (LevelFilter::DEBUG, LevelFilter::INFO),
        "info" => (LevelFilter::INFO, LevelFilter::ERROR),
        "warn" => (LevelFilter::WARN, LevelFilter::ERROR),
        _ => (LevelFilter::ERROR, LevelFilter::ERROR),
    };
    Targets::new().with_default(libraries).with_target("kubemq", ours)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn libraries_are_quiet_and_we_speak_at_the_level_that_was_asked_for() {
        let rows = [
            ("info", "kubemq_server::node", Level::INFO, true),
            ("info", "kubemq_storage", Level::DEBUG, false),
            ("info", "openraft::core", Level::WARN, false),
            ("info", "openraft::core", Level::ERROR, true),
            ("debug", "kubemq_raft", Level::DEBUG, true),
            ("debug", "h2::proto", Level::DEBUG, false),
            ("trace", "h2::proto", Level::DEBUG, true),
            ("warn", "kubemq_server", Level::INFO, false),
            ("error", "kubemq_server", Level::ERROR, true),
            ("fatal", "kubemq_server", Level::WARN, false),
        ];
        for (level, target, line, expected) in rows {
            assert_eq!(filter(level).would_enable(target, &line), expected, "{line} of {target} at {level}");
        }
    }

    #[test]
    fn format_follows_the_terminal_unless_it_is_said() {
        assert!(is_text(LogFormat::Auto, true) && !is_text(LogFormat::Auto, false));
        assert!(is_text(LogFormat::Text, false) && !is_text(LogFormat::Json, true));
    }
}
