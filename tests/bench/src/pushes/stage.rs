//! What every push stands on: a fresh broker below a ceiling of memory, what it uses, its restarts, its row.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use kubemq_runtime::{Instant, Runtime};
use kubemq_server::cli::bench::process::{peak_resident_bytes, resident_bytes};
use kubemq_server::cli::bench::{Load, Mode, Progress, Report, grouped, grouped_rate};
use kubemq_server::cli::client::Token;
use kubemq_server::cli::output::note;
use tempfile::TempDir;

use super::cgroup::Cgroup;
use super::row::{Restart, Row};
use super::traffic;
use crate::process::{Server, serving};

/// Bytes.
pub(crate) const MIB: u64 = 1 << 20;

/// The longest that a load of a push may take; a push has a limit of its own besides.
const LONGEST: Duration = Duration::from_secs(86_400);

/// How often a state is looked for.
const LOOK: Duration = Duration::from_millis(250);

/// What all pushes are told.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The broker's program.
    pub(crate) broker: PathBuf,
    /// A directory on the disk that is used.
    pub(crate) directory: PathBuf,
    /// What share of the full size is pushed.
    pub(crate) scale: f64,
    /// How long a soak takes.
    pub(crate) soak: Duration,
}

impl Plan {
    /// Returns how many of `full` are pushed.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts are far below 2^52 and not negative"
    )]
    pub(crate) fn scaled(&self, full: u64) -> u64 {
        ((full as f64 * self.scale).round() as u64).max(1)
    }
}

/// A broker that is pushed.
pub(crate) struct Stage {
    pub(crate) plan: Plan,
    pub(crate) runtime: Runtime,
    // In this order they are dropped: the process leaves its group and its files first.
    server: Option<Server>,
    group: Option<Cgroup>,
    data: TempDir,
    settings: &'static [&'static str],
    begin: Instant,
    row: Row,
}

impl Stage {
    /// Starts a broker with `settings` (as `key=value`) that may use so many bytes of memory.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub(crate) fn open(
        name: &'static str,
        ceiling: u64,
        settings: &'static [&'static str],
        plan: &Plan,
        runtime: &Runtime,
    ) -> anyhow::Result<Self> {
        let group = match Cgroup::new(ceiling) {
            Ok(group) => Some(group),
            Err(error) => {
                note(format_args!("{name}: no cgroup, the ceiling is only watched: {error:#}"));
                None
            }
        };
        let data = fresh(&plan.directory)?;
        let mut stage = Self {
            plan: plan.clone(),
            runtime: runtime.clone(),
            server: None,
            data,
            settings,
            begin: runtime.clock.now(),
            row: Row::new(name, plan.scale, ceiling, group.is_some()),
            group,
        };
        stage.launch()?;
        Ok(stage)
    }

    fn launch(&mut self) -> anyhow::Result<()> {
        let program = &self.plan.broker;
        let command = self.group.as_ref().map_or_else(|| Command::new(program), |group| group.command(program));
        let mut command = serving(command, &self.data.path().join("data"));
        for setting in self.settings {
            command.args(["--set", setting]);
        }
        self.server = Some(Server::start(command, None, &self.runtime.clock)?);
        Ok(())
    }

    /// Returns the broker's gRPC address.
    pub(crate) fn address(&self) -> anyhow::Result<&str> {
        Ok(&self.server()?.address)
    }

    /// Returns the broker's process.
    pub(crate) fn server(&self) -> anyhow::Result<&Server> {
        self.server.as_ref().context("no broker runs")
    }

    /// Returns a closed loop of 1024 messages of 1 KiB in flight to one channel, to be changed.
    pub(crate) fn load(&self, mode: Mode, prefix: &str) -> anyhow::Result<Load> {
        let server = self.server()?;
        Ok(Load {
            address: server.address.clone(),
            token: Token::default(),
            client_id: "kubemq-bench".to_owned(),
            mode,
            rate: None,
            in_flight: 1024,
            size: 1024,
            channels: 1,
            prefix: prefix.to_owned(),
            connections: 1,
            batch: 1,
            items: None,
            events: 0,
            receivers: 1,
            messages: None,
            duration: LONGEST,
            warm_up: Duration::ZERO,
            broker_process: Some(server.id()),
        })
    }

    /// Runs a load to its end and tells on the way how it goes.
    ///
    /// # Errors
    ///
    /// When the broker ends it, or refuses or forgets a message.
    pub(crate) async fn run(&self, load: &Load) -> anyhow::Result<Report> {
        let process = Some(self.server()?.id());
        let mut seconds = 0;
        let show = |progress: &Progress| {
            seconds += 1;
            if seconds % 10 == 0 {
                let rate = grouped_rate(progress.rate);
                let resident = mebibytes(resident_bytes(process).unwrap_or(0));
                note(format_args!("  {:>4.0} s  {rate:>9} msg/s  RSS {resident}", progress.elapsed.as_secs_f64()));
            }
        };
        self.run_showing(load, show).await
    }

    /// As [`Stage::run`], and shows with `show` how it goes.
    pub(crate) async fn run_showing(&self, load: &Load, show: impl FnMut(&Progress)) -> anyhow::Result<Report> {
        let report = load.run(&self.runtime, show).await.map_err(|failure| anyhow!("{failure}"))?;
        if report.refused > 0 || report.unanswered > 0 {
            let reason = report.first_refusal.unwrap_or_default();
            bail!("{} refused, {} unanswered {reason}", report.refused, report.unanswered);
        }
        Ok(report)
    }

    /// Returns the broker's resident memory in bytes.
    pub(crate) fn resident(&self) -> anyhow::Result<u64> {
        resident_bytes(Some(self.server()?.id())).context("the broker is gone")
    }

    /// Returns the most memory that this process of the broker ever had resident, in bytes.
    pub(crate) fn peak(&self) -> anyhow::Result<u64> {
        peak_resident_bytes(Some(self.server()?.id())).context("the broker is gone")
    }

    /// Returns the sum of a metric over all its labels, 0 where there is no such metric.
    pub(crate) fn metric(&self, name: &str) -> anyhow::Result<f64> {
        self.server()?.metric(name)
    }

    /// Returns how many messages the broker has, delayed or waiting.
    pub(crate) fn living(&self) -> anyhow::Result<f64> {
        self.server()?.metrics(&["kubemq_messages_delayed", "kubemq_messages_pending"])
    }

    /// Waits until `holds` says so of the broker, at most for `longest`; returns whether it did.
    pub(crate) async fn until(
        &self,
        longest: Duration,
        mut holds: impl FnMut(&Self) -> anyhow::Result<bool>,
    ) -> anyhow::Result<bool> {
        let deadline = self.runtime.clock.now() + longest;
        while self.runtime.clock.now() < deadline {
            if holds(self)? {
                return Ok(true);
            }
            self.runtime.clock.sleep(LOOK).await;
        }
        Ok(false)
    }

    /// Returns the bytes that the broker's files take on the disk.
    pub(crate) fn disk(&self) -> u64 {
        allocated(self.data.path())
    }

    /// Kills the broker, starts it on the same files, and receives a message of `channel`, when one is named.
    ///
    /// # Errors
    ///
    /// When it does not start, or has no message.
    pub(crate) async fn kill_and_restart(&mut self, channel: Option<&str>) -> anyhow::Result<Restart> {
        self.kill()?;
        let begin = self.runtime.clock.now();
        self.launch()?;
        let server = self.server()?;
        let ready = server.start_up;
        let mut first = None;
        if let Some(channel) = channel {
            let mut client = traffic::connect(&server.address).await?;
            traffic::receive_one(&mut client, channel).await?;
            first = Some(self.runtime.clock.now().since(begin));
        }
        let restart = Restart { ready, first };
        self.row.restart = Some(restart);
        Ok(restart)
    }

    /// Goes on with a broker that has no files.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub(crate) fn start_over(&mut self) -> anyhow::Result<()> {
        self.kill()?;
        self.data = fresh(&self.plan.directory)?;
        self.launch()
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        self.row.peak = self.row.peak.max(self.peak()?);
        self.server = None;
        Ok(())
    }

    /// Writes down what was pushed, and how long that took.
    pub(crate) fn pushed(&mut self, what: String, time: Duration) {
        self.row.pushed = what;
        self.row.time = time;
    }

    /// Writes down what is demanded and what was found.
    pub(crate) fn demand(&mut self, demand: impl Into<String>, found: impl Into<String>, held: bool) {
        let (demand, found) = (demand.into(), found.into());
        note(format_args!("  {demand}: {found}{}", if held { "" } else { " (does not hold)" }));
        self.row.demands.push((demand, found, held));
    }

    /// Ends the push with its row. A push that failed has one, too.
    pub(crate) fn finish(mut self, result: anyhow::Result<()>) -> Row {
        let kills = self.group.as_ref().map_or(0, Cgroup::kills);
        let ended = self.server.as_mut().is_none_or(Server::has_ended);
        if kills > 0 {
            let at = mebibytes(self.row.ceiling);
            self.demand("survives below the ceiling", format!("killed by the kernel at {at}"), false);
        } else if ended {
            self.demand("runs to the end", "the broker ended", false);
        }
        if let Err(error) = result {
            self.demand("runs to the end", format!("{error:#}"), false);
        }
        if self.row.time.is_zero() {
            self.row.time = self.runtime.clock.now().since(self.begin);
        }
        self.row.peak = self.row.peak.max(self.peak().unwrap_or(0));
        self.row.end = self.resident().unwrap_or(0);
        self.row.disk = self.disk();
        if self.group.is_none() {
            let found = mebibytes(self.row.peak);
            let ceiling = self.row.ceiling;
            self.demand(format!("RSS ≤ {}", mebibytes(ceiling)), found, self.row.peak <= ceiling);
        }
        self.row
    }
}

fn fresh(directory: &Path) -> anyhow::Result<TempDir> {
    TempDir::new_in(directory).context("could not make a data directory")
}

/// Returns what lies on the disk below `path`. What vanishes meanwhile counts nothing.
fn allocated(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => allocated(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

/// Returns bytes as text.
pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", grouped(bytes.div_ceil(MIB)))
}
