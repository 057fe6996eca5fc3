//! Servers as processes: started in a fresh directory, ready when their port answers, killed when dropped.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tempfile::TempDir;

/// How long a start may take.
const START: Duration = Duration::from_secs(90);

/// A server that runs, and the helpers it needs.
pub(crate) struct Server {
    children: Vec<Child>,
    port: u16,
    /// Removed when the server is gone.
    directory: TempDir,
}

impl Server {
    /// Has a fresh directory below `parent` and a free port for a server.
    pub(crate) fn prepare(parent: &Path) -> anyhow::Result<Self> {
        let parent = parent.canonicalize().context("the directory for the data is not there")?;
        let directory = TempDir::new_in(parent).context("could not make a data directory")?;
        Ok(Self { children: Vec::new(), port: free_port()?, directory })
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The process whose use is measured: the one that was started last.
    pub(crate) fn id(&self) -> u32 {
        self.children.last().map_or(0, Child::id)
    }

    /// Writes a file into the server's directory and returns its path.
    pub(crate) fn file(&self, name: &str, text: &str) -> anyhow::Result<std::path::PathBuf> {
        let path = self.directory().join(name);
        std::fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))?;
        Ok(path)
    }

    /// Starts `command` in the server's directory; what it says goes to a file there.
    pub(crate) fn spawn(&mut self, command: &mut Command) -> anyhow::Result<()> {
        let output = std::fs::File::create(self.directory().join("output"))?;
        command.current_dir(self.directory()).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let name = command.get_program().display().to_string();
        self.children.push(command.spawn().with_context(|| format!("could not start {name}"))?);
        Ok(())
    }

    /// Waits until the port takes connections.
    pub(crate) fn wait(&mut self) -> anyhow::Result<()> {
        let begin = Instant::now();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        while TcpStream::connect(address).is_err() {
            let ended = self.children.iter_mut().any(|child| !matches!(child.try_wait(), Ok(None)));
            if ended || begin.elapsed() > START {
                let said = std::fs::read_to_string(self.directory().join("output")).unwrap_or_default();
                let last: Vec<&str> = said.lines().rev().take(5).collect();
                bail!("the server did not come up: {}", last.into_iter().rev().collect::<Vec<_>>().join(" / "));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            // It may have ended by itself.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Returns a port that nobody listens on now.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free")?;
    Ok(listener.local_addr()?.port())
}
