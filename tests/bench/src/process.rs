//! Servers as processes: started in a fresh directory, ready when they say so, killed when dropped.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use kubemq_runtime::Clock;
use tempfile::TempDir;

/// A server that runs.
pub(crate) struct Server {
    child: Child,
    /// Where it listens for gRPC.
    pub(crate) address: String,
    /// From the start of the process to the line that says it is ready.
    pub(crate) start_up: Duration,
    /// Removed when the server is gone.
    _data: Option<TempDir>,
}

impl Server {
    /// Starts the floor server: this program with another command.
    pub(crate) fn floor(clock: &Clock) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("this program has no path")?;
        Self::start(Command::new(program).arg("serve-floor"), None, clock)
    }

    /// Starts the broker with an empty data directory below `directory`.
    pub(crate) fn broker(program: &Path, directory: &Path, clock: &Clock) -> anyhow::Result<Self> {
        let data = TempDir::new_in(directory).context("could not make a data directory")?;
        let mut command = Command::new(program);
        command.arg("server").arg("--data").arg(data.path().join("data"));
        command.args(["--grpc-port", "0", "--http-port", "0"]);
        // Its logs would stand between the results; a failure to start is shown by running it by hand.
        command.stderr(Stdio::null());
        Self::start(&mut command, Some(data), clock)
    }

    fn start(command: &mut Command, data: Option<TempDir>, clock: &Clock) -> anyhow::Result<Self> {
        let begin = clock.now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("could not start {}", command.get_program().display()))?;
        let Some(stdout) = child.stdout.take() else { bail!("the server has no standard output") };
        let mut server = Self { child, address: String::new(), start_up: Duration::ZERO, _data: data };
        for line in BufReader::new(stdout).lines() {
            let line = line.context("could not read what the server says")?;
            if let Some(address) = ready_address(&line) {
                server.start_up = clock.now().since(begin);
                server.address = address;
                return Ok(server);
            }
        }
        bail!("{} ended before it was ready", command.get_program().display())
    }

    /// The number of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn ready_address(line: &str) -> Option<String> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    if line.get("message")?.as_str()? != "ready" {
        return None;
    }
    Some(line.get("grpc")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_ready_line_has_the_address() {
        let ready = r#"{"message":"ready","grpc":"127.0.0.1:7","http":"127.0.0.1:8"}"#;
        assert_eq!(ready_address(ready).as_deref(), Some("127.0.0.1:7"));
        assert_eq!(ready_address(r#"{"message":"loaded","grpc":"127.0.0.1:7"}"#), None);
        assert_eq!(ready_address("ready"), None);
    }
}
