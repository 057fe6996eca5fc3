//! Servers as processes: started in a fresh directory, ready when they say so, killed when dropped.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use kubemq_runtime::Clock;
use kubemq_tests::http::http_get;
use tempfile::TempDir;

/// A server that runs.
pub(crate) struct Server {
    child: Child,
    /// Where it listens for gRPC.
    pub(crate) address: String,
    /// Where it listens for HTTP; the floor does not.
    pub(crate) http: String,
    /// From the start of the process to the line that says it is ready.
    pub(crate) start_up: Duration,
    /// Removed when the server is gone.
    _data: Option<TempDir>,
}

impl Server {
    /// Starts the floor server: this program with another command.
    pub(crate) fn floor(clock: &Clock) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("this program has no path")?;
        let mut command = Command::new(program);
        command.arg("serve-floor");
        Self::start(command, None, clock)
    }

    /// Starts the broker with an empty data directory below `directory`; `durability` is `group` or `interval`.
    pub(crate) fn broker(program: &Path, directory: &Path, durability: &str, clock: &Clock) -> anyhow::Result<Self> {
        let data = TempDir::new_in(directory).context("could not make a data directory")?;
        let directory = data.path().join("data");
        let mut command = serving(Command::new(program), &directory);
        command.env("KUBEMQ_DURABILITY", durability);
        Self::start(command, Some(data), clock)
    }

    /// Runs `command`, which says when it is ready, and keeps `data` until it has ended.
    pub(crate) fn start(mut command: Command, data: Option<TempDir>, clock: &Clock) -> anyhow::Result<Self> {
        let begin = clock.now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("could not start {}", command.get_program().display()))?;
        let Some(stdout) = child.stdout.take() else { bail!("the server has no standard output") };
        let (address, http) = (String::new(), String::new());
        let mut server = Self { child, address, http, start_up: Duration::ZERO, _data: data };
        for line in BufReader::new(stdout).lines() {
            let line = line.context("could not read what the server says")?;
            if let Some(ready) = ready_line(&line) {
                server.start_up = clock.now().since(begin);
                server.address = named(&ready, "grpc").unwrap_or_default();
                server.http = named(&ready, "http").unwrap_or_default();
                return Ok(server);
            }
        }
        bail!("{} ended before it was ready", command.get_program().display())
    }

    /// The number of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the sum of a metric over all its labels, 0 where there is no such metric.
    pub(crate) fn metric(&self, name: &str) -> anyhow::Result<f64> {
        self.metrics(&[name])
    }

    /// Returns the sum of several metrics over all their labels, as they are at one moment.
    pub(crate) fn metrics(&self, names: &[&str]) -> anyhow::Result<f64> {
        let (_, text) = http_get(&self.http, "/metrics").context("could not read the metrics")?;
        let lines = text.lines().filter(|line| line.split(['{', ' ']).next().is_some_and(|name| names.contains(&name)));
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// Returns whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Returns `command`, which is the broker's program, with what makes it serve `data` on any ports.
pub(crate) fn serving(mut command: Command, data: &Path) -> Command {
    command.arg("server").arg("--data").arg(data);
    command.args(["--grpc-port", "0", "--http-port", "0"]);
    // Its logs would stand between the results; a failure to start is shown by running it by hand.
    command.stderr(Stdio::null());
    command
}

fn ready_line(line: &str) -> Option<serde_json::Value> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    (line.get("message")?.as_str()? == "ready").then_some(line)
}

fn named(line: &serde_json::Value, name: &str) -> Option<String> {
    Some(line.get(name)?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_ready_line_has_the_address() {
        let ready = ready_line(r#"{"message":"ready","grpc":"127.0.0.1:7","http":"127.0.0.1:8"}"#).unwrap();
        assert_eq!(named(&ready, "grpc").as_deref(), Some("127.0.0.1:7"));
        assert_eq!(named(&ready, "http").as_deref(), Some("127.0.0.1:8"));
        assert_eq!(ready_line(r#"{"message":"loaded","grpc":"127.0.0.1:7"}"#), None);
        assert_eq!(ready_line("ready"), None);
    }
}
