//! A process around one node: ports, data directory, node, interfaces; and the way back when it is told to stop.
//!
//! Everything that can be refused is refused before anything is written: ports first, then the data directory.
//! Nothing here knows what a queue is.

mod listen;
mod memory;
mod ready;
mod signals;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kubemq_raft::TokioRuntime;
use kubemq_raft::network::NoPeers;
use kubemq_runtime::sync::watch;
use kubemq_runtime::{OnFailure, Runtime, Task};
use kubemq_storage::Error as StorageError;
use kubemq_storage::fs::{Disk, RealDisk};
use kubemq_storage::index::{IndexWriter, SledIndex, SledOptions};
use kubemq_storage::log::Flush;

pub use self::listen::BindError;
use self::listen::Reserved;
use self::ready::Ready;
use self::signals::Signals;
use crate::admin::{self, Served, Stage};
use crate::config::Config;
use crate::data_dir::{DataDir, DataDirError};
use crate::grpc::{Durations, Ingest, Phase, server as grpc};
use crate::node::{Doors, Formation, Node, Options, StartError};
use crate::power::{self, Running};

/// What is kept back of the time for stopping, for the end of the process itself.
const LAST: Duration = Duration::from_millis(300);

/// Why the server did not serve, or no longer does.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// A port cannot be used.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The node could not start on what is in the data directory.
    #[error("the node could not start")]
    Start(#[from] StartError),
    /// Signals cannot be caught.
    #[error("signals cannot be caught")]
    Signals(#[source] io::Error),
    /// The gRPC interface ended by itself.
    #[error("the gRPC interface failed")]
    Grpc(#[source] grpc::ServeError),
    /// The HTTP interface ended by itself.
    #[error("the HTTP interface failed")]
    Http(#[source] io::Error),
    /// The log cannot be written any more.
    #[error("the log failed, nothing more is acknowledged")]
    Log(#[source] StorageError),
    /// A task without which the node cannot be trusted ended.
    #[error("the task {task} failed, nothing more is acknowledged")]
    Task {
        /// Its name.
        task: &'static str,
    },
    /// A second signal came while the node was stopping.
    #[error("a second signal ended the process before it had stopped")]
    Interrupted,
}

impl Stopped {
    /// Returns whether everything stored is whole, and only this start cannot have it.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Bind(_) => true,
            Self::DataDir(error) => !matches!(error, DataDirError::Disk { .. }),
            Self::Start(StartError::Storage { cause, .. }) => {
                matches!(cause, StorageError::Locked { .. } | StorageError::UnknownVersion { .. })
            }
            _ => false,
        }
    }
}

/// Runs a node on real files and sockets until a signal asks it to stop.
///
/// # Errors
///
/// [`Stopped`] says why it did not serve, or ended by itself.
pub async fn run(config: Config, runtime: Runtime) -> Result<(), Stopped> {
    let mut signals = Signals::catch().map_err(Stopped::Signals)?;
    announce(&config);
    let http = Reserved::take("HTTP", config.api.address, "--http-port")?;
    let grpc = Reserved::take("gRPC", config.grpc.address, "--grpc-port")?;
    let (stage, stages) = watch::channel(Stage::Starting);
    let (listener, http_address) = http.listen()?;
    let http = runtime.tasks.spawn("http", OnFailure::Log, admin::serve(listener, stages));

    let started = Box::pin(start(&config, &runtime));
    let (node, data_dir, running) = tokio::select! {
        biased;
        signal = signals.next() => {
            tracing::info!(signal, "stopped before it was ready");
            return Ok(());
        }
        started = started => started?,
    };
    let (listener, grpc_address) = grpc.listen()?;
    let ingest = Ingest::new(config.memory.ingest_bytes);
    let durations = Durations::default();
    stage.send(Stage::Serving(Served::new(&node, &ingest, &durations, &config.host)));
    let (phase, phases) = watch::channel(Phase::Serving(node.gateway().clone()));
    let options = grpc::Options {
        max_message_bytes: config.grpc.body_limit,
        ingest,
        durations,
        host: config.host.clone(),
        ..grpc::Options::default()
    };
    let grpc = grpc::serve(listener, options, runtime.clone(), phases);
    let grpc = runtime.tasks.spawn("grpc", OnFailure::StopNode, grpc);
    Ready::new(&config, grpc_address, http_address, &runtime).print(config.log.format);

    let mut process = Process { runtime, stage, phase, grpc, http };
    let signal = match process.serve(&node, &mut signals).await {
        Ok(signal) => signal,
        Err(stopped) => {
            process.stage.send(Stage::Failed);
            return Err(stopped);
        }
    };
    tracing::info!(signal, "kubemq server shutdown started");
    tokio::select! {
        biased;
        _ = signals.next() => return Err(Stopped::Interrupted),
        has_stopped = process.stop(node, config.grace) => {
            if has_stopped {
                running.end().await.map_err(Stopped::Log)?;
            }
        }
    }
    drop(data_dir);
    tracing::info!("kubemq server shutdown completed");
    Ok(())
}

fn announce(config: &Config) {
    match &config.file {
        Some(file) => tracing::info!("loaded configuration from {file}"),
        None => tracing::info!("no configuration file found, using defaults"),
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
}

/// Takes the data directory and starts a node on it, up to where it can carry out calls.
async fn start(config: &Config, runtime: &Runtime) -> Result<(Node, DataDir, Running), Stopped> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let data = std::path::absolute(&config.data).unwrap_or_else(|_| config.data.clone());
    let opening = open(Arc::clone(&disk), data.clone(), config.flush);
    let opened = runtime.tasks.dedicated("data-directory", OnFailure::Log, opening).await;
    let (data_dir, running) = opened.map_err(|_| Stopped::Task { task: "data-directory" })??;

    let index = data.join("index");
    // It may know of messages that are lost.
    let open = if running.was_cut_off { SledIndex::open_emptied } else { SledIndex::open };
    let index = IndexWriter::start(move || open(&index, SledOptions::default()), runtime);
    let doors = Doors { runtime: runtime.clone(), disk, peers: Arc::new(NoPeers), index };
    let node = Box::pin(Node::start::<TokioRuntime>(options(config, data), doors)).await?;
    tokio::select! {
        biased;
        task = runtime.tasks.failure() => return Err(Stopped::Task { task }),
        () = node.ready() => {}
    }
    Ok((node, data_dir, running))
}

/// Takes the data directory. Where a node may have lost what it acknowledged last, it says so.
async fn open(disk: Arc<dyn Disk>, data: PathBuf, flush: Flush) -> Result<(DataDir, Running), Stopped> {
    let data_dir = DataDir::open(Arc::clone(&disk), data.clone()).await?;
    let is_behind = flush != Flush::Group;
    let running = Running::begin(disk, &data, &power::boot(), is_behind).await.map_err(Stopped::Log)?;
    if running.was_cut_off {
        tracing::warn!(
            "the machine stopped while a node with durability interval ran here: what it acknowledged in its last \
             moments may be lost"
        );
    }
    Ok((data_dir, running))
}

fn options(config: &Config, data: PathBuf) -> Options {
    let index_bytes = config.memory.index_bytes.unwrap_or_else(memory::for_the_index);
    Options {
        data,
        id: None,
        formation: Formation::Alone,
        log: kubemq_storage::log::Options {
            segment_bytes: config.segment_bytes,
            tail_cache_bytes: config.memory.tail_cache_bytes,
            page_cache_bytes: config.memory.page_cache_bytes,
            reserve_bytes: config.memory.free_disk_bytes,
            flush: config.flush,
            ..kubemq_storage::log::Options::default()
        },
        raft: kubemq_raft::Options { snapshot_idle: config.snapshot_idle, ..kubemq_raft::Options::new(0) },
        queue: config.queue.clone(),
        live: config.live.clone(),
        retention: config.retention.clone(),
        index_bytes,
        index_goal_bytes: index_bytes / 2,
        state: kubemq_broker::Limits::default(),
        scrub: config.scrub,
    }
}

/// What is up around a node.
struct Process {
    runtime: Runtime,
    stage: watch::Sender<Stage>,
    phase: watch::Sender<Phase>,
    grpc: Task<Result<(), grpc::ServeError>>,
    http: Task<io::Result<()>>,
}

impl Process {
    /// Waits for the signal that stops the node, or for what stops it otherwise.
    async fn serve(&mut self, node: &Node, signals: &mut Signals) -> Result<&'static str, Stopped> {
        let mut log = node.log().failure();
        let failed = async {
            log.wait_for(Option::is_some).await.ok();
            log.borrow().clone().unwrap_or(StorageError::Closed)
        };
        tokio::select! {
            biased;
            signal = signals.next() => Ok(signal),
            error = failed => Err(Stopped::Log(error)),
            task = self.runtime.tasks.failure() => Err(Stopped::Task { task }),
            ended = &mut self.grpc => match ended {
                Ok(Err(error)) => Err(Stopped::Grpc(error)),
                _ => Err(Stopped::Task { task: "grpc" }),
            },
            ended = &mut self.http => match ended {
                Ok(Err(error)) => Err(Stopped::Http(error)),
                _ => Err(Stopped::Task { task: "http" }),
            },
        }
    }

    /// Stops the node within `grace`: no new clients, calls under way finish, everything is on disk. Returns whether
    /// that was enough time.
    async fn stop(&mut self, node: Node, grace: Duration) -> bool {
        self.stage.send(Stage::Stopping);
        self.phase.send(Phase::Stopping);
        let grpc = &mut self.grpc;
        let stopping = async {
            if let Ok(Err(error)) = grpc.await {
                tracing::warn!(error = %kubemq_runtime::chain(&error), "the gRPC interface did not close cleanly");
            }
            Box::pin(node.stop()).await;
        };
        let has_stopped = self.runtime.clock.timeout(grace.saturating_sub(LAST), stopping).await.is_ok();
        if !has_stopped {
            tracing::warn!(grace_seconds = grace.as_secs(), "stopping took too long and was cut off");
        }
        self.http.abort();
        has_stopped
    }
}
