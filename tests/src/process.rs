//! The real program as a process: start, stop, kill, restart on the same directory and ports, logs.
//!
//! A [`Server`] always ends its process when it is dropped. Its output goes to files, so nothing here can
//! block on a pipe. It refuses to share an environment with the caller: the program sees a clean one.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tempfile::TempDir;

use crate::http::http_get;
use crate::wait::{SOON, now, wait_until};

/// How to start the program.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where the data goes; a directory inside the server's own temporary one when not given.
    pub data: Option<PathBuf>,
    /// The gRPC port; any free one when not given.
    pub grpc_port: Option<u16>,
    /// More arguments after `server`.
    pub arguments: Vec<String>,
    /// The environment on top of `PATH` and `HOME`.
    pub environment: BTreeMap<String, String>,
    /// Whether lines of level ERROR are expected in the log.
    pub errors_expected: bool,
}

/// How a process ended that was expected not to serve.
#[derive(Debug)]
pub struct Refusal {
    /// The exit status.
    pub status: ExitStatus,
    /// Everything it printed.
    pub output: String,
}

/// A running (or killed, and to be restarted) server with a directory of its own.
pub struct Server {
    child: Option<Child>,
    directory: TempDir,
    options: Options,
    grpc_port: u16,
    http_port: u16,
    starts: usize,
}

/// Returns the path of the program under test: `KUBEMQ_BIN`, or the one built beside the tests.
///
/// # Panics
///
/// Panics when there is none.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("KUBEMQ_BIN") {
        return PathBuf::from(path);
    }
    let here = std::env::current_exe().expect("the path of this test");
    let found = here.ancestors().skip(1).take(3).map(|dir| dir.join("kubemq")).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no kubemq beside {}: run `cargo build -p kubemq-server`", here.display()))
}

impl Server {
    /// Starts a server with default options and waits until it is ready.
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    /// Starts a server and waits until it is ready.
    ///
    /// # Panics
    ///
    /// Panics with its log when it ends or stays silent instead.
    pub async fn start_with(options: Options) -> Self {
        let mut server = Self::prepare(options);
        server.launch();
        server.wait_ready().await;
        server
    }

    /// Starts a server without waiting until it is ready. Its gRPC port is known all the same.
    pub fn start_without_waiting(mut options: Options) -> Self {
        options.grpc_port.get_or_insert_with(free_port);
        let mut server = Self::prepare(options);
        server.launch();
        server
    }

    /// Starts a process that is expected to refuse, and returns how it ended.
    ///
    /// # Panics
    ///
    /// Panics when it serves instead.
    pub async fn expect_refusal(options: Options) -> Refusal {
        let mut server = Self::prepare(Options { errors_expected: true, ..options });
        server.launch();
        let status = server.wait_exit(SOON).await;
        Refusal { status, output: server.log() }
    }

    /// Starts a process that may serve or refuse, and returns what it does.
    ///
    /// # Errors
    ///
    /// How it ended.
    ///
    /// # Panics
    ///
    /// Panics when it stays silent.
    pub async fn serve_or_refuse(options: Options) -> Result<Self, Refusal> {
        let mut server = Self::prepare(Options { errors_expected: true, ..options });
        server.launch();
        let ended = wait_until("a ready line or an end", SOON, async || {
            let ended = server.child.as_mut().and_then(|child| child.try_wait().expect("a status"));
            if ended.is_none() && ready_line(&server.output()).is_none() { None } else { Some(ended) }
        });
        match ended.await {
            Some(status) => {
                server.wait_exit(SOON).await;
                Err(Refusal { status, output: server.log() })
            }
            None => {
                server.wait_ready().await;
                Ok(server)
            }
        }
    }

    /// Returns the server that the tests of this process share, started by whoever comes first.
    pub async fn shared() -> Arc<Self> {
        // A weak reference, so that the last test to end also ends the process: statics are never dropped.
        static SHARED: tokio::sync::Mutex<Weak<Server>> = tokio::sync::Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(server) = shared.upgrade() {
            return server;
        }
        let server = Arc::new(Self::start().await);
        *shared = Arc::downgrade(&server);
        server
    }

    fn prepare(options: Options) -> Self {
        let directory = tempfile::Builder::new().prefix("kubemq-test-").tempdir().expect("a temporary directory");
        let grpc_port = options.grpc_port.unwrap_or(0);
        Self { child: None, directory, options, grpc_port, http_port: 0, starts: 0 }
    }

    /// Returns where the data lies.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.options.data.clone().unwrap_or_else(|| self.directory.path().join("data"))
    }

    /// Returns the address of the gRPC API, as `host:port`.
    #[must_use]
    pub fn grpc(&self) -> String {
        format!("127.0.0.1:{}", self.grpc_port)
    }

    /// Returns the gRPC port.
    #[must_use]
    pub fn grpc_port(&self) -> u16 {
        self.grpc_port
    }

    /// Returns the address of the HTTP port, as `host:port`.
    #[must_use]
    pub fn http(&self) -> String {
        format!("127.0.0.1:{}", self.http_port)
    }

    /// Returns the memory that is resident now, in bytes.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// Returns the most memory that was ever resident since the start, in bytes.
    #[must_use]
    pub fn peak_memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// Returns the sum of a metric over all its labels; 0 where there is no such metric.
    #[must_use]
    pub fn metric(&self, name: &str) -> f64 {
        let (_, text) = http_get(&self.http(), "/metrics").expect("the metrics");
        let lines = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    fn status(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("the status of the process");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of KiB") * 1024
    }

    /// Returns the process id.
    ///
    /// # Panics
    ///
    /// Panics when no process runs.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.as_ref().expect("a running process").id()
    }

    fn launch(&mut self) {
        assert!(self.child.is_none(), "the process runs already");
        self.starts += 1;
        let output = output_file(&self.output_path());
        let errors = output.try_clone().expect("a second handle");
        let mut command = Command::new(binary());
        command.arg("server").arg("--data").arg(self.data());
        command.arg("--grpc-port").arg(self.grpc_port.to_string());
        command.arg("--http-port").arg(self.http_port.to_string());
        command.args(&self.options.arguments).current_dir(self.directory.path());
        command.env_clear().envs(&self.options.environment);
        for name in ["PATH", "HOME", "RUST_BACKTRACE"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = command.spawn().unwrap_or_else(|error| panic!("could not start {:?}: {error}", binary()));
        remember(child.id());
        self.child = Some(child);
    }

    /// Waits until the ready line of the latest start was printed.
    ///
    /// # Panics
    ///
    /// Panics with the log when the process ended or stayed silent.
    pub async fn wait_ready(&mut self) {
        let started = now();
        loop {
            if let Some(line) = ready_line(&self.output()) {
                self.grpc_port = port(&line, "grpc");
                self.http_port = port(&line, "http");
                return;
            }
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().expect("a status")) {
                panic!("the server ended ({status}) before it was ready:\n{}", self.log());
            }
            assert!(now().since(started) < SOON, "the server is not ready after {SOON:?}:\n{}", self.log());
            crate::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Returns the ready line of the latest start, when it has been printed.
    #[must_use]
    pub fn ready(&self) -> Option<serde_json::Value> {
        ready_line(&self.output())
    }

    /// Kills the process at once, as `kill -9` does, and reaps it.
    ///
    /// # Panics
    ///
    /// Panics when it had ended by itself.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("a running process");
        let before = child.try_wait().expect("a status");
        assert!(before.is_none(), "the server had ended by itself ({before:?}):\n{}", self.log());
        child.kill().expect("to kill the process");
        child.wait().expect("to reap the process");
        forget(child.id());
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let status = Command::new("kill").arg("-TERM").arg(self.id().to_string()).status().expect("to run kill");
        assert!(status.success(), "kill -TERM failed: {status}");
    }

    /// Waits until the process has ended and returns its status.
    pub async fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        let mut child = self.child.take().expect("a running process");
        let id = child.id();
        let waited = wait_until("the process to end", deadline, async || child.try_wait().expect("a status"));
        let status = futures_util::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(waited)).await;
        forget(id);
        status.unwrap_or_else(|_| {
            child.kill().ok();
            child.wait().ok();
            panic!("the process did not end within {deadline:?}:\n{}", self.log())
        })
    }

    /// Starts the program again on the same directory and ports, and waits until it is ready.
    pub async fn restart(&mut self) {
        self.launch();
        self.wait_ready().await;
    }

    /// Starts the program again and kills it after `life`, ready or not.
    pub async fn start_and_kill(&mut self, life: Duration) {
        self.launch();
        crate::sleep(life).await;
        self.kill();
    }

    /// Returns what all starts have printed, each under a headline.
    #[must_use]
    pub fn log(&self) -> String {
        let mut log = String::new();
        for start in 1..=self.starts {
            let path = self.directory.path().join(format!("output-{start}.log"));
            log += &format!("--- start {start}\n{}", std::fs::read_to_string(path).unwrap_or_default());
        }
        log
    }

    fn output_path(&self) -> PathBuf {
        self.directory.path().join(format!("output-{}.log", self.starts))
    }

    fn output(&self) -> String {
        std::fs::read_to_string(self.output_path()).unwrap_or_default()
    }

    /// Returns the lines of level ERROR, and those that tell of a panic.
    #[must_use]
    pub fn error_lines(&self) -> Vec<String> {
        let marks = ["\"level\":\"ERROR\"", "\"level\":\"error\"", " ERROR ", "panicked at"];
        let is_error = |line: &&str| marks.iter().any(|mark| line.contains(mark));
        self.log().lines().filter(is_error).map(str::to_owned).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
            forget(child.id());
        }
        let errors = self.error_lines();
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.char_indices().rev().nth(6000).map_or(0, |(at, _)| at);
            #[expect(clippy::print_stderr, reason = "what the server said belongs to the failure")]
            {
                eprintln!("the server's log ends with:\n{}", &log[tail..]);
            }
        } else if !self.options.errors_expected {
            assert!(errors.is_empty(), "the server logged errors:\n{}", errors.join("\n"));
        }
    }
}

/// Returns a port that is free at this moment.
///
/// # Panics
///
/// Panics when the system has none.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

#[expect(clippy::disallowed_types, reason = "the harness stands outside the program, whose disk has one door")]
fn output_file(path: &Path) -> std::fs::File {
    std::fs::File::create(path).expect("a file for the output")
}

fn ready_line(output: &str) -> Option<serde_json::Value> {
    let lines = output.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.into_iter().find(|line| line["message"] == "ready")
}

fn port(line: &serde_json::Value, name: &str) -> u16 {
    let address = line[name].as_str().unwrap_or_else(|| panic!("no `{name}` in the ready line {line}"));
    let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
    port.unwrap_or_else(|| panic!("no port in `{address}`"))
}

// A test process that is killed cannot end its servers. Their ids are kept as files beside the binary, so
// that `tests/run` can.
static REMEMBER: Mutex<()> = Mutex::new(());

fn notes() -> Option<PathBuf> {
    std::env::var_os("KUBEMQ_TEST_PROCESSES").map(PathBuf::from)
}

fn remember(id: u32) {
    let _guard = REMEMBER.lock();
    if let Some(notes) = notes() {
        std::fs::write(notes.join(id.to_string()), "").expect("to note the process id");
    }
}

fn forget(id: u32) {
    let _guard = REMEMBER.lock();
    if let Some(notes) = notes() {
        std::fs::remove_file(notes.join(id.to_string())).ok();
    }
}
