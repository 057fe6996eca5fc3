//! The configuration: flag beats environment beats file beats default, and each value knows where it came from.
//!
//! [`Sources`] say what was given, [`Config`] is what reaches the rest of the program: checked, typed, complete.
//! What is wrong is reported all at once, and nothing starts with a part of a configuration.
//!
//! Start reading in [`keys`], the table of everything that can be configured.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use kubemq_proto::validate::QueueLimits;
use kubemq_storage::log::Flush;

use self::keys::{Key, Value};
use crate::gateway::retention::Retention;
use crate::live;
use crate::scrub::Pace;

mod check;
pub mod keys;
mod legacy;
mod load;
mod retention;
mod show;

pub use load::{Origin, Problem, Sources};
pub(crate) use retention::age;
pub use show::{Line, example, listing};

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of this node.
    pub host: String,
    /// Where everything durable is kept.
    pub data: PathBuf,
    /// The size of one file of the log.
    pub segment_bytes: u64,
    /// How long after the last write a snapshot is written.
    pub snapshot_idle: Duration,
    /// How fast and how often what is stored is read again.
    pub scrub: Pace,
    /// When the log is flushed, and with that what an acknowledgement promises.
    pub flush: Flush,
    /// The gRPC interface.
    pub grpc: Grpc,
    /// The HTTP interface.
    pub api: Api,
    /// Log lines.
    pub log: Logging,
    /// Bounds and defaults of queue calls.
    pub queue: QueueLimits,
    /// Bounds of events, commands and queries.
    pub live: live::Limits,
    /// How long stored events are kept.
    pub retention: Retention,
    /// Bounds of memory and disk.
    pub memory: Memory,
    /// How long stopping may take altogether.
    pub grace: Duration,
    /// What was given and has no effect.
    pub warnings: Vec<String>,
    /// The file that was read.
    pub file: Option<String>,
    settings: Vec<Setting>,
}

/// The gRPC interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grpc {
    /// Where it listens.
    pub address: SocketAddr,
    /// The largest message in either direction, in bytes.
    pub body_limit: usize,
}

/// The HTTP interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// Where it listens.
    pub address: SocketAddr,
}

/// Log lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    /// The least important that are written, as a word.
    pub level: String,
    /// How they look.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Bounds of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The newest part of the log, in bytes.
    pub tail_cache_bytes: u64,
    /// What was written to the log last, in the system's page cache, in bytes.
    pub page_cache_bytes: u64,
    /// Large requests on their way in, in bytes.
    pub ingest_bytes: usize,
    /// The index of stored messages, in bytes; nothing to take a part of what there is.
    pub index_bytes: Option<u64>,
    /// What stays free of the disk, in bytes.
    pub free_disk_bytes: u64,
}

/// One value and where it came from.
#[derive(Clone, Debug)]
struct Setting {
    key: &'static Key,
    value: Value,
    origin: Origin,
}

/// A configuration that cannot be used: everything that is wrong with it, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// What is wrong, in the order in which it was found.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}

impl Config {
    /// Returns the configuration that `sources` give.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn load(sources: &Sources) -> Result<Self, Invalid> {
        check::check(load::load(sources), &machine_name(sources))
    }

    /// Returns what an acknowledgement promises, in a word or two.
    #[must_use]
    pub fn durability(&self) -> String {
        match self.flush {
            Flush::Group => "group".to_owned(),
            Flush::Interval(interval) => format!("interval ({} ms)", interval.as_millis()),
        }
    }
}

impl Sources {
    /// Returns what surrounds this process: its environment, and a file next to the program or in the current
    /// directory.
    #[must_use]
    pub fn of_process() -> Self {
        // A variable that is no text is none of ours.
        let environment = std::env::vars_os()
            .filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)))
            .collect();
        let program = std::env::current_exe().ok().and_then(|path| path.parent().map(PathBuf::from));
        let directories = program.into_iter().chain([PathBuf::from(".")]).collect();
        Self { flags: Vec::new(), environment, file: None, directories }
    }

    /// Adds a value that was given on the command line.
    pub fn flag(&mut self, key: &'static Key, flag: &str, text: Option<String>) {
        if let Some(text) = text {
            self.flags.push((key, flag.to_owned(), text));
        }
    }

    /// Adds a value that was given as `key=value` on the command line.
    ///
    /// # Errors
    ///
    /// When there is no such key, with the nearest one.
    pub fn assignment(&mut self, flag: &str, text: &str) -> Result<(), Problem> {
        let place = format!("`{flag} {text}`");
        let Some((name, value)) = text.split_once('=') else {
            return Err(Problem { place, text: "is not of the form key=value".to_owned() });
        };
        let found = keys::KEYS.iter().find(|key| key.paths().any(|path| path.eq_ignore_ascii_case(name.trim())));
        match found {
            Some(key) => {
                self.flags.push((key, format!("{flag} {name}"), value.to_owned()));
                Ok(())
            }
            None => {
                let near = load::nearest(name).map(|near| format!(", did you mean `{near}`?")).unwrap_or_default();
                Err(Problem { place, text: format!("there is no such key{near}") })
            }
        }
    }
}

/// Returns the name of the machine, as the kernel knows it.
fn machine_name(sources: &Sources) -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let variable = || sources.environment.get("HOSTNAME").cloned();
    let name = kernel.or_else(variable).map(|name| name.trim().to_owned());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "kubemq".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_name_keys() {
        let mut sources = Sources::default();
        sources.assignment("--set", "Queue.maxDelaySeconds=5").unwrap();
        sources.assignment("--set", "host=a=b").unwrap();
        let config = Config::load(&sources).unwrap();
        assert_eq!((config.queue.max_delay_seconds, config.host.as_str()), (5, "a=b"));
        let refused = sources.assignment("--set", "queue.maxDelay=5").unwrap_err();
        assert_eq!(refused.text, "there is no such key, did you mean `queue.maxDelaySeconds`?");
        assert_eq!(sources.assignment("--set", "zebra").unwrap_err().text, "is not of the form key=value");
    }
}
