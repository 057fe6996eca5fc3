//! Who reads bytes that may be damaged, and what must hold of what they take.
#![expect(clippy::expect_used, clippy::panic, reason = "a reader that does not hold is told by a panic")]

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use kubemq_broker::{Operation, State, decode_run_block};
use kubemq_raft::batch::Envelope;
use kubemq_raft::network::Frame;
use kubemq_runtime::{Random, Runtime};
use kubemq_server::config::{Config, Sources};
use kubemq_storage::fs::{Disk, MemoryDisk};
use kubemq_storage::log::{self, Log};
use kubemq_storage::{Entry, EntryKind, LogId, Parts, Vote};

use crate::samples;

/// What became of bytes that were read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Read {
    /// They were refused.
    Refused,
    /// They were taken, and what was made of them holds.
    Taken,
    /// They were taken, and what was made of them does not hold.
    Wrong,
}

impl Read {
    fn taken(holds: bool) -> Self {
        if holds { Self::Taken } else { Self::Wrong }
    }
}

/// A reader of bytes.
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// How many seeds a test run gives it.
    pub seeds: u64,
    /// Returns valid bytes.
    pub(crate) sample: fn(&Random) -> Vec<u8>,
    /// Reads bytes. May panic where what it took does not hold.
    pub(crate) read: fn(&[u8]) -> Read,
}

/// All of them.
pub const TARGETS: [Target; 7] = [
    Target { name: "operation", seeds: 30_000, sample: operation, read: read_operation },
    Target { name: "snapshot", seeds: 10_000, sample: samples::snapshot, read: read_snapshot },
    Target { name: "runs", seeds: 5_000, sample: samples::runs, read: read_runs },
    Target { name: "envelope", seeds: 20_000, sample: samples::envelope, read: read_envelope },
    Target { name: "frame", seeds: 20_000, sample: samples::frame, read: read_frame },
    Target { name: "config", seeds: 1_000, sample: samples::config, read: read_config },
    Target { name: "log", seeds: 300, sample: log_sample, read: read_log },
];

fn operation(random: &Random) -> Vec<u8> {
    samples::operation(random).to_bytes().to_vec()
}

/// What is taken is written as it was read, is applied by any state, and leaves one that can be written down.
fn read_operation(bytes: &[u8]) -> Read {
    let bytes = Bytes::copy_from_slice(bytes);
    let decoded = Operation::decode(&bytes);
    if let Ok(operation) = &decoded {
        assert_eq!(Operation::decode(&operation.to_bytes()).as_ref(), Ok(operation));
    }
    let state = samples::state(&Random::from_seed(bytes.len() as u64 % 16));
    // A state passes over what it cannot read.
    let goes_on = samples::goes_on(state, &[bytes]);
    if goes_on && decoded.is_err() { Read::Refused } else { Read::taken(goes_on) }
}

/// A state that is taken goes on like any other.
fn read_snapshot(bytes: &[u8]) -> Read {
    let chunks = bytes.chunks(700).map(Bytes::copy_from_slice);
    let Ok(state) = State::restore(chunks) else { return Read::Refused };
    let random = Random::from_seed(bytes.len() as u64);
    let operations: Vec<Bytes> = (0..20).map(|_| samples::operation(&random).to_bytes()).collect();
    Read::taken(samples::goes_on(state, &operations))
}

fn read_runs(bytes: &[u8]) -> Read {
    let block = Bytes::copy_from_slice(bytes);
    decode_run_block(&block).map_or(Read::Refused, |runs| Read::taken(runs.len() <= block.len()))
}

fn read_envelope(bytes: &[u8]) -> Read {
    let Ok(envelope) = Envelope::decode(bytes) else { return Read::Refused };
    Read::taken(Envelope::decode(&envelope.encode()) == Ok(envelope))
}

fn read_frame(bytes: &[u8]) -> Read {
    let Ok(frame) = Frame::from_bytes(Bytes::copy_from_slice(bytes)) else { return Read::Refused };
    Read::taken(frame.to_bytes() == bytes)
}

/// Whatever a file says, it is a configuration or a list of what is wrong.
fn read_config(bytes: &[u8]) -> Read {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut read = Read::Refused;
    for ending in ["toml", "json", "yaml"] {
        let file = dir.path().join(format!("config.{ending}"));
        std::fs::write(&file, bytes).expect("a file");
        match Config::load(&Sources { file: Some(file), ..Sources::default() }) {
            Ok(config) if !config.host.is_empty() => read = Read::Taken,
            Err(invalid) if !invalid.to_string().is_empty() => {}
            _ => return Read::Wrong,
        }
    }
    read
}

/// Where the one segment of the log lies.
const DIR: &str = "/log";

/// Runs `work` where a log can be opened.
fn with_runtime<T>(work: impl AsyncFnOnce(&Runtime) -> T) -> T {
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an executor");
    executor.block_on(async { work(&Runtime::real()).await })
}

fn options() -> log::Options {
    log::Options { segment_bytes: 8 << 10, ..log::Options::default() }
}

fn id(index: u64) -> LogId {
    LogId { term: 1, node: 1, index }
}

/// Returns the bytes of a segment, and its name behind them.
fn log_sample(random: &Random) -> Vec<u8> {
    let disk = MemoryDisk::new();
    with_runtime(async |runtime| {
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let log = Log::open(shared.clone(), DIR.into(), options(), runtime).await.expect("a new log");
        log.save_vote(Vote { term: 1, node: 1, committed: true }).await.expect("a vote");
        let last = 1 + random.below(8);
        for index in 1..=last {
            let mut parts = Parts::builder();
            parts.push(b"head");
            parts.push(&[7; 60]);
            let entry = Entry { id: id(index), time: index, kind: EntryKind::Normal, parts: parts.finish() };
            log.append(vec![entry], Box::new(drop));
        }
        log.synced(last).await.expect("entries");
        log.close().await.expect("an end");
        let names = shared.list(Path::new(DIR)).await.expect("names");
        let name = names.iter().filter(|name| name.ends_with(".seg")).min().expect("a segment").clone();
        let file = shared.open(&Path::new(DIR).join(&name)).await.expect("the segment");
        let mut bytes = file.read_at(0, 8 << 10).await.expect("its bytes").to_vec();
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        bytes.truncate(end);
        bytes
    })
}

/// A log that opens can be read to its end and written to, and opens again; damage is named by the check, too.
fn read_log(bytes: &[u8]) -> Read {
    with_runtime(async |runtime| {
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
        disk.create_dir_all(Path::new(DIR)).await.expect("a directory");
        let path = Path::new(DIR).join(format!("{:012}.seg", 1));
        let file = disk.create(&path).await.expect("a file");
        file.write_at(0, &[Bytes::copy_from_slice(bytes)]).await.expect("bytes");
        file.allocate(8 << 10).await.expect("room");
        log::check(Arc::clone(&disk), Path::new(DIR)).await.expect("a check ends");
        let Ok(log) = Log::open(Arc::clone(&disk), DIR.into(), options(), runtime).await else { return Read::Refused };
        let state = log.state();
        let last = state.last.map_or(0, |last| last.index);
        let purged = state.purged.map_or(0, |purged| purged.index);
        let entries = log.entries(purged + 1, last + 1, u64::MAX).await.expect("what an open log shows can be read");
        assert_eq!(entries.len() as u64, last - purged);
        if entries.is_empty() {
            // The only segment was torn at its beginning.
            return Read::Refused;
        }
        log.close().await.expect("an end");
        let again = Log::open(disk, DIR.into(), options(), runtime).await.unwrap_or_else(|error| panic!("{error}"));
        let same = again.state().last == state.last && again.state().vote == state.vote;
        again.close().await.expect("an end");
        Read::taken(same)
    })
}
