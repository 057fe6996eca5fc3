//! The table of configuration keys: the one place that knows their names, meanings, defaults and bounds.
//!
//! Loading, checking, `config print`, `config example` and the command line are driven by it. A key that is not
//! in it does not exist; a key of the original product that has no meaning here yet is in [`super::legacy`].

use std::fmt;

use super::retention;

/// One configuration key.
#[derive(Debug)]
pub struct Key {
    /// Its dotted path in a file. Case does not matter there.
    pub name: &'static str,
    /// Other paths by which files name it; the first that is given wins over `name`.
    pub aliases: &'static [&'static str],
    /// Environment variables, strongest first.
    pub env: &'static [&'static str],
    /// What values it takes.
    pub kind: Kind,
    /// Its value when nobody gives one.
    pub default: &'static str,
    /// What it means.
    pub doc: &'static str,
    /// The version it appeared in.
    pub since: &'static str,
}

/// What values a key takes.
#[derive(Debug)]
pub enum Kind {
    /// A number of a TCP port, 0 for any free one.
    Port,
    /// The address of a network interface.
    Address,
    /// A whole number.
    Number {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
        /// What is counted.
        unit: &'static str,
    },
    /// A size: a number of bytes, or one with KiB, MiB or GiB.
    Bytes {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// A size as [`Kind::Bytes`], or `auto`.
    BytesOrAuto {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// Any text that is not empty.
    Text,
    /// A directory.
    Directory,
    /// One of several words.
    Word(&'static [&'static str]),
    /// Rules by which the stored events of single channels are kept.
    Retention,
    /// A log level, as a word or as the number by which commercial versions know it.
    Level,
}

/// Leaves a size to the program; its number is 0.
pub(super) const AUTO: &str = "auto";

/// Log levels by their number.
pub(super) const LEVELS: [&str; 6] = ["trace", "debug", "info", "warn", "error", "fatal"];

/// A value that its key takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Number(u64),
    Text(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// The name of this node.
pub static HOST: Key = Key {
    name: "host",
    aliases: &[],
    env: &["HOST", "KUBEMQ_HOST"],
    kind: Kind::Text,
    default: "",
    doc: "Name of this node in answers, metrics and logs. Dots become underscores. Without it the name of the \
          machine is used.",
    since: "0.1",
};

/// Where everything is kept.
pub static DATA: Key = Key {
    name: "store.storePath",
    aliases: &["data"],
    env: &["STORE_STORE_PATH", "KUBEMQ_DATA"],
    kind: Kind::Directory,
    default: "./kubemq-data",
    doc: "Directory in which everything durable is kept. One process at a time uses it.",
    since: "0.1",
};

/// How large a file of the log becomes.
pub static SEGMENT: Key = Key {
    name: "store.segmentSize",
    aliases: &[],
    env: &["STORE_SEGMENT_SIZE"],
    kind: Kind::Bytes { min: MIB, max: GIB },
    default: "64MiB",
    doc: "Size of one file of the log, preallocated. Disk is given back in files of this size.",
    since: "0.1",
};

/// How long after the last write a snapshot is written.
pub static SNAPSHOT_IDLE: Key = Key {
    name: "store.snapshotIdle",
    aliases: &[],
    env: &["STORE_SNAPSHOT_IDLE"],
    kind: Kind::Number { min: 1, max: 3600, unit: "seconds" },
    default: "60",
    doc: "How long after the last write a snapshot of the index is written, which lets the next start read less of the \
          log and room on the disk be given back. Under load it is written whenever the log has grown enough.",
    since: "0.1",
};

/// How often everything that is stored is read again.
pub static SCRUB_EVERY: Key = Key {
    name: "store.scrubInterval",
    aliases: &[],
    env: &["STORE_SCRUB_INTERVAL"],
    kind: Kind::Number { min: 1, max: 366 * 24 * 3600, unit: "seconds" },
    default: "86400",
    doc: "Time between two passes over the files of the log in which every byte is read and checked. The first begins \
          five minutes after the start, or earlier when this is less.",
    since: "0.1",
};

/// What an acknowledgement promises.
pub static DURABILITY: Key = Key {
    name: "durability",
    aliases: &["store.durability"],
    env: &["KUBEMQ_DURABILITY"],
    kind: Kind::Word(&["group", "interval"]),
    default: "group",
    doc: "What an acknowledged message has survived. group: it is flushed to the disks of a majority before the \
          acknowledgement; what arrives meanwhile shares the next flush. interval: it is with the operating system \
          and is flushed soon after, so the process may die, but the loss of power may take what was acknowledged in \
          the last moments.",
    since: "0.1",
};

/// How long a node that flushes now and then may be behind.
pub static FLUSH_INTERVAL: Key = Key {
    name: "store.flushIntervalMilliseconds",
    aliases: &[],
    env: &["STORE_FLUSH_INTERVAL_MILLISECONDS"],
    kind: Kind::Number { min: 10, max: 60_000, unit: "milliseconds" },
    default: "1000",
    doc: "With durability interval: after how long what was acknowledged is flushed. With group it says nothing.",
    since: "0.1",
};

/// How long stored events are kept.
pub static RETENTION: Key = Key {
    name: "store.maxRetention",
    aliases: &[],
    env: &["STORE_MAX_RETENTION"],
    kind: Kind::Number { min: 0, max: 52_704_000, unit: "minutes" },
    default: "10080",
    doc: "How long stored events are kept; 0: for ever. Queues keep their messages until they are consumed, whatever \
          stands here.",
    since: "0.1",
};

/// How many stored events are kept.
pub static RETENTION_EVENTS: Key = Key {
    name: "store.maxMessages",
    aliases: &[],
    env: &["STORE_MAX_MESSAGES"],
    kind: Kind::Number { min: 0, max: I64, unit: "events" },
    default: "0",
    doc: "How many stored events a channel keeps; 0: all. Beyond it the oldest go, within ten seconds. Nothing is \
          taken from queues.",
    since: "0.1",
};

/// How many bytes of stored events are kept.
pub static RETENTION_BYTES: Key = Key {
    name: "store.maxQueueSize",
    aliases: &[],
    env: &["STORE_MAX_QUEUE_SIZE"],
    kind: Kind::Bytes { min: 0, max: I64 },
    default: "0",
    doc: "How many bytes of stored events a channel keeps; 0: all. Beyond it the oldest go, within ten seconds. \
          Nothing is taken from queues.",
    since: "0.1",
};

/// What is kept of single channels.
pub static RETENTION_RULES: Key = Key {
    name: "store.retention",
    aliases: &[],
    env: &["STORE_RETENTION"],
    kind: Kind::Retention,
    default: "",
    doc: "What is kept of channels by name, in rules like `orders.*: age=90m, events=1000; audit.>: bytes=10GiB`. * \
          stands for one part of a name, a final > for all that follow; the first rule that matches counts, and what \
          it leaves out is as for all channels. Ages are in s, m, h or d.",
    since: "0.1",
};

/// How long the places of readers are kept.
pub static READER_RETENTION: Key = Key {
    name: "store.readerRetention",
    aliases: &[],
    env: &["STORE_READER_RETENTION"],
    kind: Kind::Number { min: 0, max: 52_704_000, unit: "minutes" },
    default: "43200",
    doc: "How long the place of a client or group in a channel of stored events is kept after its last use; 0: for \
          ever. A place from which it could still go on without a gap is kept however old it is. A channel keeps \
          at most 100000 places; beyond it new clients and groups are refused.",
    since: "0.1",
};

/// Where gRPC clients connect.
pub static GRPC_PORT: Key = Key {
    name: "grpc.port",
    aliases: &["connectors.grpc.port"],
    env: &["CONNECTORS_GRPC_PORT", "GRPC_PORT", "KUBEMQ_GRPC_PORT"],
    kind: Kind::Port,
    default: "50000",
    doc: "Port of the gRPC interface, which the SDKs use. 0 takes any free port.",
    since: "0.1",
};

/// On which interfaces gRPC clients connect.
pub static GRPC_BIND: Key = Key {
    name: "grpc.bindAddress",
    aliases: &["connectors.grpc.bindAddress"],
    env: &["CONNECTORS_GRPC_BIND_ADDRESS", "GRPC_BIND_ADDRESS"],
    kind: Kind::Address,
    default: "0.0.0.0",
    doc: "Address of the network interface on which gRPC listens; 0.0.0.0 means all, 127.0.0.1 this machine only.",
    since: "0.1",
};

/// How large a request may be.
pub static GRPC_BODY: Key = Key {
    name: "grpc.bodyLimit",
    aliases: &["connectors.grpc.bodyLimit"],
    env: &["CONNECTORS_GRPC_BODY_LIMIT", "GRPC_BODY_LIMIT"],
    kind: Kind::Bytes { min: KIB, max: GIB },
    default: "104857600",
    doc: "The largest gRPC message in either direction.",
    since: "0.1",
};

/// Where health and metrics are.
pub static API_PORT: Key = Key {
    name: "api.port",
    aliases: &[],
    env: &["API_PORT", "KUBEMQ_API_PORT"],
    kind: Kind::Port,
    default: "8080",
    doc: "Port of the HTTP interface with /health, /ready and /metrics. 0 takes any free port.",
    since: "0.1",
};

/// On which interfaces health and metrics are.
pub static API_BIND: Key = Key {
    name: "api.bindAddress",
    aliases: &[],
    env: &["API_BIND_ADDRESS"],
    kind: Kind::Address,
    default: "0.0.0.0",
    doc: "Address of the network interface on which HTTP listens; 0.0.0.0 means all, 127.0.0.1 this machine only.",
    since: "0.1",
};

/// Clients that the metrics name.
pub static CLIENT_LABELS: Key = Key {
    name: "metrics.clientLabels",
    aliases: &[],
    env: &["METRICS_CLIENT_LABELS"],
    kind: Kind::Number { min: 0, max: 100_000, unit: "clients" },
    default: "1000",
    doc: "Clients that /metrics names as client_id, each counted once for each channel and direction. What other clients \
          send and receive is summed up under _other. 0: client_id is always empty.",
    since: "0.1",
};

/// How much is logged.
pub static LOG_LEVEL: Key = Key {
    name: "log.level",
    aliases: &[],
    env: &["LOG_LEVEL", "KUBEMQ_LOG_LEVEL"],
    kind: Kind::Level,
    default: "info",
    doc: "The least important lines that are logged: trace, debug, info, warn, error or fatal, or a number from 0 \
          to 5 in that order. Bodies of messages and tokens are never logged.",
    since: "0.1",
};

/// How log lines look.
pub static LOG_FORMAT: Key = Key {
    name: "log.format",
    aliases: &[],
    env: &["LOG_FORMAT", "KUBEMQ_LOG_FORMAT"],
    kind: Kind::Word(&["auto", "text", "json"]),
    default: "auto",
    doc: "How log lines look. auto is text on a terminal and JSON elsewhere.",
    since: "0.1",
};

/// The most messages of one receive.
pub static QUEUE_MESSAGES: Key = queue(
    "queue.maxNumberOfMessages",
    &["QUEUE_MAX_NUMBER_OF_MESSAGES"],
    Kind::Number { min: 0, max: I32, unit: "messages" },
    "1024",
    "The most messages that one receive or peek may ask for.",
);

/// The longest wait.
pub static QUEUE_MAX_WAIT: Key = queue(
    "queue.maxWaitTimeoutSeconds",
    &["QUEUE_MAX_WAIT_TIMEOUT_SECONDS"],
    Kind::Number { min: 0, max: I32, unit: "seconds" },
    "3600",
    "The longest time that a receive, an ack-all or a stream may ask to wait.",
);

/// The wait of who gives none.
pub static QUEUE_DEFAULT_WAIT: Key = queue(
    "queue.defaultWaitTimeoutSeconds",
    &["QUEUE_DEFAULT_WAIT_TIMEOUT_SECONDS"],
    Kind::Number { min: 0, max: I32, unit: "seconds" },
    "1",
    "How long a receive waits that gives no time.",
);

/// The longest expiration.
pub static QUEUE_EXPIRATION: Key = queue(
    "queue.maxExpirationSeconds",
    &["QUEUE_MAX_EXPIRATION_SECONDS"],
    Kind::Number { min: 0, max: I32, unit: "seconds" },
    "43200",
    "The longest expiration that a message may ask for.",
);

/// The longest delay.
pub static QUEUE_DELAY: Key = queue(
    "queue.maxDelaySeconds",
    &["QUEUE_MAX_DELAY_SECONDS"],
    Kind::Number { min: 0, max: I32, unit: "seconds" },
    "43200",
    "The longest delay that a message may ask for.",
);

/// The highest receive count.
pub static QUEUE_RECEIVES: Key = queue(
    "queue.maxReceiveCount",
    &["QUEUE_MAX_RECEIVE_COUNT"],
    Kind::Number { min: 0, max: I32, unit: "deliveries" },
    "1024",
    "The highest receive count that a message may ask for, and the one of a message that asks for none.",
);

/// The longest visibility.
pub static QUEUE_MAX_VISIBILITY: Key = queue(
    "queue.maxVisibilitySeconds",
    &["QUEUE_MAX_VISIBILITY_SECONDS"],
    Kind::Number { min: 0, max: I32, unit: "seconds" },
    "43200",
    "The longest visibility that a stream may ask for.",
);

/// The visibility of who gives none.
pub static QUEUE_DEFAULT_VISIBILITY: Key = queue(
    "queue.defaultVisibilitySeconds",
    &["QUEUE_DEFAULT_VISIBILITY_SECONDS"],
    Kind::Number { min: 0, max: I32, unit: "seconds" },
    "60",
    "How long a stream's message stays hidden when the stream gives no time.",
);

/// Bytes of the log's tail in memory.
pub static TAIL_CACHE: Key = Key {
    name: "limits.tailCache",
    aliases: &[],
    env: &["LIMITS_TAIL_CACHE"],
    kind: Kind::Bytes { min: MIB, max: 64 * GIB },
    default: "64MiB",
    doc: "Memory for the newest part of the log, from which messages are delivered without touching the disk.",
    since: "0.1",
};

/// Bytes of the log's files in the page cache.
pub static PAGE_CACHE: Key = Key {
    name: "limits.pageCache",
    aliases: &[],
    env: &["LIMITS_PAGE_CACHE"],
    kind: Kind::Bytes { min: MIB, max: 1024 * GIB },
    default: "256MiB",
    doc: "What was written to the log last and is to stay in the system's page cache, for consumers that lag: older messages are read from the disk. More helps where the disk is slow and memory is not.",
    since: "0.1",
};

/// Bytes of requests that are gathered.
pub static INGEST: Key = Key {
    name: "limits.ingest",
    aliases: &[],
    env: &["LIMITS_INGEST"],
    kind: Kind::Bytes { min: MIB, max: 1024 * GIB },
    default: "256MiB",
    doc: "Memory for large requests that are on their way in. A message of more than 64 KiB that does not fit waits \
          for its turn, and its connection is not read meanwhile. A message that is larger than all of it takes all.",
    since: "0.1",
};

/// Bytes of the index in memory.
pub static INDEX: Key = Key {
    name: "limits.index",
    aliases: &[],
    env: &["LIMITS_INDEX"],
    kind: Kind::BytesOrAuto { min: MIB, max: 1024 * GIB },
    default: "auto",
    doc: "Memory for the index of stored messages, 24 bytes for each run of them and 34 for each delayed one; `auto` is an \
          eighth of the memory that the process may have, and at least 256 MiB. What is not read soon, or not due \
          soon, is kept on the disk instead. Sends are refused, and settlements are not, when what must be in memory \
          (channels, messages that were given back or released after a delay) does not fit. Delayed messages are \
          released later than they are due while those that were released before leave no room for them.",
    since: "0.1",
};

/// Bytes of the disk that stay free.
pub static FREE_DISK: Key = Key {
    name: "limits.freeDisk",
    aliases: &[],
    env: &["LIMITS_FREE_DISK"],
    kind: Kind::Bytes { min: 64 * MIB, max: 1024 * GIB },
    default: "1GiB",
    doc: "With less of the disk free, or a twentieth of it when that is less, sends are refused and settlements are not, \
          until there is room again. Four segments stay free in any case.",
    since: "0.1",
};

/// Bytes a second at which the disk is read again.
pub static SCRUB: Key = Key {
    name: "limits.scrub",
    aliases: &[],
    env: &["LIMITS_SCRUB"],
    kind: Kind::Bytes { min: 0, max: GIB },
    default: "4MiB",
    doc: "Bytes a second at which the files of the log are read and checked in the background, a tenth of it while the \
          disk has other work; 0: never. Damage is logged and shown in the metrics; what can be read is served.",
    since: "0.1",
};

/// Bytes that wait for one subscriber.
pub static SUBSCRIBER: Key = Key {
    name: "limits.subscriber",
    aliases: &[],
    env: &["LIMITS_SUBSCRIBER"],
    kind: Kind::Bytes { min: 64 * KIB, max: 64 * GIB },
    default: "64MiB",
    doc: "Memory for what waits for one subscriber to events, commands or queries, each message counted with 128 \
          bytes more. What does not fit is dropped for this subscriber alone.",
    since: "0.1",
};

/// Bytes that wait for all subscribers.
pub static SUBSCRIBERS: Key = Key {
    name: "limits.subscribers",
    aliases: &[],
    env: &["LIMITS_SUBSCRIBERS"],
    kind: Kind::Bytes { min: MIB, max: 1024 * GIB },
    default: "512MiB",
    doc: "Memory for what waits for subscribers of this node, a message for many counted once. Beyond it each \
          subscriber may still hold its share of it.",
    since: "0.1",
};

/// Requests that wait for their answer.
pub static PENDING_REQUESTS: Key = Key {
    name: "limits.pendingRequests",
    aliases: &[],
    env: &["LIMITS_PENDING_REQUESTS"],
    kind: Kind::Number { min: 1, max: 16 * 1024 * 1024, unit: "requests" },
    default: "65536",
    doc: "Commands and queries that may wait for their answer at a time. Beyond it they are refused.",
    since: "0.1",
};

/// Bytes of kept answers.
pub static QUERY_CACHE: Key = Key {
    name: "queries.cacheSize",
    aliases: &[],
    env: &["QUERIES_CACHE_SIZE"],
    kind: Kind::Bytes { min: 0, max: 64 * GIB },
    default: "64MiB",
    doc: "Memory for answers to queries that name a cache key; those that were used last stay. 0: every query is \
          answered by a responder.",
    since: "0.1",
};

/// The longest life of a kept answer.
pub static QUERY_CACHE_LIFE: Key = Key {
    name: "queries.cacheMaxSeconds",
    aliases: &[],
    env: &["QUERIES_CACHE_MAX_SECONDS"],
    kind: Kind::Number { min: 1, max: I32, unit: "seconds" },
    default: "86400",
    doc: "The longest time that an answer is kept, whatever its query asks for: some clients give milliseconds \
          where seconds are meant.",
    since: "0.1",
};

/// How long stopping may take.
pub static GRACE: Key = Key {
    name: "shutdown.graceSeconds",
    aliases: &[],
    env: &["SHUTDOWN_GRACE_SECONDS", "KUBEMQ_TERMINATION_GRACE_PERIOD_SECONDS"],
    kind: Kind::Number { min: 1, max: 600, unit: "seconds" },
    default: "10",
    doc: "How long stopping may take altogether. What is under way then is cut off; what was acknowledged is safe.",
    since: "0.1",
};

/// Every key, in the order in which they are shown.
pub static KEYS: &[&Key] = &[
    &HOST,
    &DATA,
    &SEGMENT,
    &SNAPSHOT_IDLE,
    &SCRUB_EVERY,
    &DURABILITY,
    &FLUSH_INTERVAL,
    &RETENTION,
    &RETENTION_EVENTS,
    &RETENTION_BYTES,
    &RETENTION_RULES,
    &READER_RETENTION,
    &GRPC_PORT,
    &GRPC_BIND,
    &GRPC_BODY,
    &API_PORT,
    &API_BIND,
    &CLIENT_LABELS,
    &LOG_LEVEL,
    &LOG_FORMAT,
    &QUEUE_MESSAGES,
    &QUEUE_MAX_WAIT,
    &QUEUE_DEFAULT_WAIT,
    &QUEUE_EXPIRATION,
    &QUEUE_DELAY,
    &QUEUE_RECEIVES,
    &QUEUE_MAX_VISIBILITY,
    &QUEUE_DEFAULT_VISIBILITY,
    &TAIL_CACHE,
    &PAGE_CACHE,
    &INGEST,
    &INDEX,
    &FREE_DISK,
    &SCRUB,
    &SUBSCRIBER,
    &SUBSCRIBERS,
    &PENDING_REQUESTS,
    &QUERY_CACHE,
    &QUERY_CACHE_LIFE,
    &GRACE,
];

const I32: u64 = i32::MAX as u64;
const I64: u64 = i64::MAX as u64;

const fn queue(
    name: &'static str,
    env: &'static [&'static str],
    kind: Kind,
    default: &'static str,
    doc: &'static str,
) -> Key {
    Key { name, aliases: &[], env, kind, default, doc, since: "0.1" }
}

impl Key {
    /// Returns every path by which a file may name the key, strongest first.
    pub(super) fn paths(&self) -> impl Iterator<Item = &'static str> {
        self.aliases.iter().copied().chain(std::iter::once(self.name))
    }

    /// Returns the value that `text` stands for.
    ///
    /// # Errors
    ///
    /// What is wrong with it, to be read after the name of the key.
    pub(super) fn parse(&self, text: &str) -> Result<Value, String> {
        let text = text.trim();
        match &self.kind {
            Kind::Port => port(text).map(Value::Number),
            Kind::Address => match text.parse::<std::net::IpAddr>() {
                Ok(address) => Ok(Value::Text(address.to_string())),
                Err(_) => Err(format!("{text:?} is not the address of a network interface, such as 127.0.0.1")),
            },
            Kind::Number { min, max, unit } => number(self, text, *min, *max, unit).map(Value::Number),
            Kind::Bytes { min, max } => bytes(text, *min, *max).map(Value::Number),
            Kind::BytesOrAuto { .. } if text == AUTO => Ok(Value::Number(0)),
            Kind::BytesOrAuto { min, max } => bytes(text, *min, *max).map(Value::Number),
            Kind::Text | Kind::Directory if text.is_empty() => Err("cannot be empty".to_owned()),
            Kind::Text | Kind::Directory => Ok(Value::Text(text.to_owned())),
            Kind::Word(words) => word(text, words).map(Value::Text),
            Kind::Retention => retention::parse(text).map(|_| Value::Text(text.to_owned())),
            Kind::Level => match text.parse::<usize>() {
                Ok(number) if number < LEVELS.len() => Ok(Value::Text(LEVELS[number].to_owned())),
                Ok(number) => Err(format!("{number} is not a log level: 0 to 5")),
                Err(_) => word(text, &LEVELS).map(Value::Text),
            },
        }
    }

    /// Returns its bounds and unit as a person reads them.
    #[must_use]
    pub fn bounds(&self) -> String {
        match &self.kind {
            Kind::Port => "a port, 0 to 65535".to_owned(),
            Kind::Address => "an IP address".to_owned(),
            Kind::Number { min, max, unit } => format!("{min} to {max} {unit}"),
            Kind::Bytes { min, max } => format!("{} to {}", size(*min), size(*max)),
            Kind::BytesOrAuto { min, max } => format!("{AUTO}, or {} to {}", size(*min), size(*max)),
            Kind::Text => "text".to_owned(),
            Kind::Directory => "a directory".to_owned(),
            Kind::Word(words) => words.join(", "),
            Kind::Retention => "rules of the form channel: age=7d, events=1000, bytes=1GiB; …".to_owned(),
            Kind::Level => LEVELS.join(", "),
        }
    }
}

fn port(text: &str) -> Result<u64, String> {
    match text.parse::<i64>() {
        Ok(number) => match u16::try_from(number) {
            Ok(port) => Ok(u64::from(port)),
            Err(_) => Err(format!("port {number} is invalid, it must be 1 to 65535, or 0 for any free port")),
        },
        Err(_) => Err(format!("port {text:?} is invalid, it must be a number")),
    }
}

fn number(key: &Key, text: &str, min: u64, max: u64, unit: &str) -> Result<u64, String> {
    let Ok(number) = text.parse::<i128>() else {
        return Err(format!("{text:?} is not a whole number of {unit}"));
    };
    if number < 0 {
        let leaf = key.name.rsplit('.').next().unwrap_or(key.name);
        let mut letters = leaf.chars();
        let field: String = letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect();
        return Err(format!("{field} cannot be negative, it is {number}"));
    }
    match u64::try_from(number) {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(format!("{number} is out of bounds, it must be {min} to {max} {unit}")),
    }
}

pub(super) fn bytes(text: &str, min: u64, max: u64) -> Result<u64, String> {
    let malformed = || format!("{text:?} is not a size, such as 1048576, 512KiB, 64MiB or 2GiB");
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let factor = match text[digits.len()..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => KIB,
        "m" | "mb" | "mib" => MIB,
        "g" | "gb" | "gib" => GIB,
        _ => return Err(malformed()),
    };
    let number: u64 = digits.parse().map_err(|_| malformed())?;
    match number.checked_mul(factor) {
        Some(bytes) if (min..=max).contains(&bytes) => Ok(bytes),
        _ => Err(format!("{text} is out of bounds, it must be {} to {}", size(min), size(max))),
    }
}

fn word(text: &str, words: &[&str]) -> Result<String, String> {
    match words.iter().find(|word| word.eq_ignore_ascii_case(text)) {
        Some(word) => Ok((*word).to_owned()),
        None => Err(format!("{text:?} is none of {}", words.join(", "))),
    }
}

/// Returns a size as a person writes it.
pub(super) fn size(bytes: u64) -> String {
    for (unit, name) in [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{}{name}", bytes / unit);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_name_stands_for_one_key_and_each_default_is_taken() {
        let mut names = BTreeSet::new();
        for key in KEYS {
            for name in key.paths().map(str::to_ascii_lowercase).chain(key.env.iter().map(|&env| env.to_owned())) {
                assert!(names.insert(name.clone()), "{name} stands for two keys");
            }
            assert!(key.default.is_empty() || key.parse(key.default).is_ok(), "{}", key.name);
            assert!(key.doc.ends_with('.') && !key.since.is_empty(), "{}", key.name);
        }
    }

    #[test]
    fn values_and_refusals() {
        let ok = |key: &Key, text: &str| key.parse(text).map(|value| value.to_string());
        let no = |text: &str| Err::<String, String>(text.to_owned());
        let yes = |text: &str| Ok::<String, String>(text.to_owned());
        let rows = [
            (&GRPC_PORT, "50001", yes("50001")),
            (&GRPC_PORT, "0", yes("0")),
            (&GRPC_PORT, "70000", no("port 70000 is invalid, it must be 1 to 65535, or 0 for any free port")),
            (&GRPC_PORT, "-1", no("port -1 is invalid, it must be 1 to 65535, or 0 for any free port")),
            (&GRPC_PORT, "x", no("port \"x\" is invalid, it must be a number")),
            (&GRPC_BIND, "::1", yes("::1")),
            (&GRPC_BIND, "localhost", no("\"localhost\" is not the address of a network interface, such as 127.0.0.1")),
            (&QUEUE_DELAY, "0", yes("0")),
            (&QUEUE_DELAY, " 7 ", yes("7")),
            (&QUEUE_DELAY, "-1", no("MaxDelaySeconds cannot be negative, it is -1")),
            (&QUEUE_DELAY, "2147483648", no("2147483648 is out of bounds, it must be 0 to 2147483647 seconds")),
            (&QUEUE_DELAY, "1.5", no("\"1.5\" is not a whole number of seconds")),
            (&TAIL_CACHE, "1048576", yes("1048576")),
            (&TAIL_CACHE, "2 MiB", yes("2097152")),
            (&TAIL_CACHE, "1gb", yes("1073741824")),
            (&TAIL_CACHE, "4KiB", no("4KiB is out of bounds, it must be 1MiB to 64GiB")),
            (
                &TAIL_CACHE,
                "99999999999999999999GiB",
                no("\"99999999999999999999GiB\" is not a size, such as 1048576, 512KiB, 64MiB or 2GiB"),
            ),
            (&TAIL_CACHE, "MiB", no("\"MiB\" is not a size, such as 1048576, 512KiB, 64MiB or 2GiB")),
            (&TAIL_CACHE, "5 parsecs", no("\"5 parsecs\" is not a size, such as 1048576, 512KiB, 64MiB or 2GiB")),
            (&LOG_LEVEL, "2", yes("info")),
            (&LOG_LEVEL, "INFO", yes("info")),
            (&LOG_LEVEL, "6", no("6 is not a log level: 0 to 5")),
            (&LOG_LEVEL, "loud", no("\"loud\" is none of trace, debug, info, warn, error, fatal")),
            (&LOG_FORMAT, "xml", no("\"xml\" is none of auto, text, json")),
            (&DATA, "", no("cannot be empty")),
        ];
        for (key, text, expected) in rows {
            assert_eq!(ok(key, text), expected, "{} = {text}", key.name);
        }
    }
}
