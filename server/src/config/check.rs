//! From what was given to what is meant: every value parsed and within its bounds, or all problems at once.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use kubemq_proto::validate::QueueLimits;
use kubemq_storage::log::Flush;

use super::keys::{self, KEYS, Key, Value};
use super::load::{Origin, Problem, Raw};
use super::{Api, Config, Grpc, Invalid, LogFormat, Logging, Memory, Setting, retention};
use crate::gateway::retention::{Keep, Retention};
use crate::live;
use crate::scrub::Pace;

/// Returns the configuration that `raw` means. `machine` is the name of the machine.
pub(super) fn check(raw: Raw, machine: &str) -> Result<Config, Invalid> {
    let Raw { values, warnings, mut problems, file } = raw;
    let mut settings = Vec::with_capacity(KEYS.len());
    for key in KEYS {
        let given = values.get(key.name);
        let (text, origin) = match given {
            Some(given) => (given.text.as_str(), given.origin.clone()),
            None if key.name == keys::HOST.name => (machine, Origin::Default),
            None => (key.default, Origin::Default),
        };
        match key.parse(text) {
            Ok(value) => settings.push(Setting { key, value, origin }),
            Err(text) => problems.push(Problem { place: format!("`{}` ({origin})", key.name), text }),
        }
    }
    let checked = Checked { settings };
    if !problems.is_empty() {
        return Err(Invalid { problems });
    }
    Ok(checked.config(warnings, file))
}

struct Checked {
    settings: Vec<Setting>,
}

impl Checked {
    fn config(self, warnings: Vec<String>, file: Option<String>) -> Config {
        let (mut host, data) = (self.text(&keys::HOST), PathBuf::from(self.text(&keys::DATA)));
        host = node_name(&host);
        let format = match self.text(&keys::LOG_FORMAT).as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            _ => LogFormat::Auto,
        };
        Config {
            host,
            data,
            segment_bytes: self.number(&keys::SEGMENT),
            snapshot_idle: Duration::from_secs(self.number(&keys::SNAPSHOT_IDLE)),
            scrub: Pace {
                bytes_per_second: self.number(&keys::SCRUB),
                every: Duration::from_secs(self.number(&keys::SCRUB_EVERY)),
            },
            flush: self.flush(),
            grpc: Grpc {
                address: self.address(&keys::GRPC_BIND, &keys::GRPC_PORT),
                body_limit: self.size(&keys::GRPC_BODY),
            },
            api: Api { address: self.address(&keys::API_BIND, &keys::API_PORT) },
            log: Logging { level: self.text(&keys::LOG_LEVEL), format },
            queue: self.queue(),
            live: self.live(),
            retention: self.retention(),
            memory: Memory {
                tail_cache_bytes: self.number(&keys::TAIL_CACHE),
                page_cache_bytes: self.number(&keys::PAGE_CACHE),
                ingest_bytes: self.size(&keys::INGEST),
                index_bytes: Some(self.number(&keys::INDEX)).filter(|bytes| *bytes > 0),
                free_disk_bytes: self.number(&keys::FREE_DISK),
            },
            grace: Duration::from_secs(self.number(&keys::GRACE)),
            warnings,
            file,
            settings: self.settings,
        }
    }

    fn flush(&self) -> Flush {
        match self.text(&keys::DURABILITY).as_str() {
            "interval" => Flush::Interval(Duration::from_millis(self.number(&keys::FLUSH_INTERVAL))),
            _ => Flush::Group,
        }
    }

    fn queue(&self) -> QueueLimits {
        let number = |key| i32::try_from(self.number(key)).unwrap_or(i32::MAX);
        QueueLimits {
            max_number_of_messages: number(&keys::QUEUE_MESSAGES),
            max_wait_timeout_seconds: number(&keys::QUEUE_MAX_WAIT),
            default_wait_timeout_seconds: number(&keys::QUEUE_DEFAULT_WAIT),
            max_expiration_seconds: number(&keys::QUEUE_EXPIRATION),
            max_delay_seconds: number(&keys::QUEUE_DELAY),
            max_receive_count: number(&keys::QUEUE_RECEIVES),
            max_visibility_seconds: number(&keys::QUEUE_MAX_VISIBILITY),
            default_visibility_seconds: number(&keys::QUEUE_DEFAULT_VISIBILITY),
            max_message_bytes: self.size(&keys::GRPC_BODY),
            ..QueueLimits::default()
        }
    }

    fn retention(&self) -> Retention {
        let some = |key| Some(self.number(key)).filter(|bound| *bound > 0);
        let minutes = |minutes| Duration::from_secs(minutes * 60);
        let all = Keep {
            age: some(&keys::RETENTION).map(minutes),
            events: some(&keys::RETENTION_EVENTS),
            bytes: some(&keys::RETENTION_BYTES),
        };
        // What cannot be read was refused already.
        let rules = retention::parse(&self.text(&keys::RETENTION_RULES)).unwrap_or_default();
        Retention { all, rules, places: some(&keys::READER_RETENTION).map(minutes) }
    }

    fn live(&self) -> live::Limits {
        live::Limits {
            subscriber_bytes: self.size(&keys::SUBSCRIBER),
            subscribers_bytes: self.size(&keys::SUBSCRIBERS),
            pending_requests: self.size(&keys::PENDING_REQUESTS),
            cache_bytes: self.size(&keys::QUERY_CACHE),
            cache_life: Duration::from_secs(self.number(&keys::QUERY_CACHE_LIFE)),
            named_clients: self.size(&keys::CLIENT_LABELS),
        }
    }

    fn value(&self, key: &Key) -> Option<&Value> {
        self.settings.iter().find(|setting| setting.key.name == key.name).map(|setting| &setting.value)
    }

    fn text(&self, key: &Key) -> String {
        self.value(key).map(ToString::to_string).unwrap_or_default()
    }

    fn number(&self, key: &Key) -> u64 {
        match self.value(key) {
            Some(Value::Number(number)) => *number,
            _ => 0,
        }
    }

    fn size(&self, key: &Key) -> usize {
        usize::try_from(self.number(key)).unwrap_or(usize::MAX)
    }

    fn address(&self, bind: &Key, port: &Key) -> SocketAddr {
        let bind: IpAddr = self.text(bind).parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        SocketAddr::new(bind, u16::try_from(self.number(port)).unwrap_or_default())
    }
}

/// Returns a name that may stand in places where dots and leading digits may not.
fn node_name(host: &str) -> String {
    let name = host.trim().replace('.', "_");
    if name.starts_with(|first: char| first.is_ascii_digit()) { format!("kubemq-{name}") } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;
    use crate::config::load::load;
    use std::collections::BTreeMap;

    fn with(environment: &[(&str, &str)]) -> Result<Config, Invalid> {
        let environment: BTreeMap<_, _> =
            environment.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        check(load(&Sources { environment, ..Sources::default() }), "machine.example")
    }

    #[test]
    fn without_anything_the_documented_defaults_hold() {
        let config = with(&[]).unwrap();
        assert_eq!(config.host, "machine_example");
        assert_eq!(config.data, PathBuf::from("./kubemq-data"));
        assert_eq!(config.grpc.address.to_string(), "0.0.0.0:50000");
        assert_eq!(config.api.address.to_string(), "0.0.0.0:8080");
        assert_eq!(config.grpc.body_limit, 104_857_600);
        assert_eq!(config.queue, QueueLimits::default());
        assert_eq!(config.live, live::Limits::default());
        assert_eq!(config.retention, Retention::default());
        assert_eq!(config.scrub, Pace::default());
        assert_eq!(config.snapshot_idle, kubemq_raft::Options::new(0).snapshot_idle);
        assert_eq!(config.log, Logging { level: "info".to_owned(), format: LogFormat::Auto });
        assert_eq!(config.grace, Duration::from_secs(10));
        assert!(config.settings.iter().all(|setting| setting.origin == Origin::Default));
        assert_eq!(config.settings.len(), KEYS.len());
    }

    #[test]
    fn each_variable_reaches_its_setting() {
        type Read = fn(&Config) -> String;
        let rows: [(&str, &str, Read); 18] = [
            ("HOST", "1.node", |config| config.host.clone()),
            ("STORE_STORE_PATH", "/data/x", |config| config.data.display().to_string()),
            ("STORE_SEGMENT_SIZE", "1048576", |config| config.segment_bytes.to_string()),
            ("GRPC_PORT", "50011", |config| config.grpc.address.port().to_string()),
            ("GRPC_BIND_ADDRESS", "127.0.0.1", |config| config.grpc.address.ip().to_string()),
            ("GRPC_BODY_LIMIT", "4096", |config| config.grpc.body_limit.to_string()),
            ("API_PORT", "8081", |config| config.api.address.port().to_string()),
            ("API_BIND_ADDRESS", "::1", |config| config.api.address.ip().to_string()),
            ("LOG_LEVEL", "debug", |config| config.log.level.clone()),
            ("QUEUE_MAX_NUMBER_OF_MESSAGES", "5", |config| config.queue.max_number_of_messages.to_string()),
            ("QUEUE_MAX_WAIT_TIMEOUT_SECONDS", "6", |config| config.queue.max_wait_timeout_seconds.to_string()),
            ("QUEUE_DEFAULT_WAIT_TIMEOUT_SECONDS", "7", |config| config.queue.default_wait_timeout_seconds.to_string()),
            ("QUEUE_MAX_EXPIRATION_SECONDS", "8", |config| config.queue.max_expiration_seconds.to_string()),
            ("QUEUE_MAX_DELAY_SECONDS", "9", |config| config.queue.max_delay_seconds.to_string()),
            ("QUEUE_MAX_RECEIVE_COUNT", "10", |config| config.queue.max_receive_count.to_string()),
            ("QUEUE_MAX_VISIBILITY_SECONDS", "11", |config| config.queue.max_visibility_seconds.to_string()),
            ("QUEUE_DEFAULT_VISIBILITY_SECONDS", "12", |config| config.queue.default_visibility_seconds.to_string()),
            ("SHUTDOWN_GRACE_SECONDS", "13", |config| config.grace.as_secs().to_string()),
        ];
        for (name, text, read) in rows {
            let expected = if name == "HOST" { "kubemq-1_node" } else { text };
            assert_eq!(read(&with(&[(name, text)]).unwrap()), expected, "{name}");
        }
        assert_eq!(with(&[("LIMITS_TAIL_CACHE", "1GiB")]).unwrap().memory.tail_cache_bytes, 1 << 30);
        assert_eq!(with(&[]).unwrap().durability(), "group");
        let now_and_then = [("KUBEMQ_DURABILITY", "interval"), ("STORE_FLUSH_INTERVAL_MILLISECONDS", "50")];
        let now_and_then = with(&now_and_then).unwrap();
        assert_eq!(now_and_then.flush, Flush::Interval(Duration::from_millis(50)));
        assert_eq!(now_and_then.durability(), "interval (50 ms)");
        assert_eq!(with(&[("LIMITS_INGEST", "1GiB")]).unwrap().memory.ingest_bytes, 1 << 30);
        let paced =
            with(&[("LIMITS_SCRUB", "0"), ("STORE_SCRUB_INTERVAL", "7"), ("STORE_SNAPSHOT_IDLE", "8")]).unwrap();
        assert_eq!(paced.scrub, Pace { bytes_per_second: 0, every: Duration::from_secs(7) });
        assert_eq!(paced.snapshot_idle, Duration::from_secs(8));
        assert_eq!(with(&[("LIMITS_INDEX", "2GiB")]).unwrap().memory.index_bytes, Some(2 << 30));
        assert_eq!(with(&[("LIMITS_INDEX", "auto")]).unwrap().memory.index_bytes, None);
        let kept = with(&[("STORE_MAX_RETENTION", "5"), ("STORE_MAX_MESSAGES", "6"), ("STORE_MAX_QUEUE_SIZE", "7")]);
        let keep = Keep { age: Some(Duration::from_secs(300)), events: Some(6), bytes: Some(7) };
        assert_eq!(kept.unwrap().retention.all, keep);
        assert_eq!(with(&[("STORE_MAX_RETENTION", "0")]).unwrap().retention.all, Keep::default());
        let places = |minutes| with(&[("STORE_READER_RETENTION", minutes)]).unwrap().retention.places;
        assert_eq!((places("2"), places("0")), (Some(Duration::from_secs(120)), None));
        let rules = with(&[("STORE_RETENTION", "a.*: events=5")]).unwrap().retention;
        assert_eq!((rules.of("a.b").events, rules.of("b").events), (Some(5), None));
        assert!(with(&[("STORE_RETENTION", "a.*: events=none")]).is_err());
        assert_eq!(with(&[("LOG_FORMAT", "JSON")]).unwrap().log.format, LogFormat::Json);
        assert_eq!(with(&[("LOG_LEVEL", "2")]).unwrap().log, with(&[("LOG_LEVEL", "info")]).unwrap().log);
    }

    #[test]
    fn all_errors_are_reported_at_once() {
        let environment = [
            ("GRPC_PORT", "70000"),
            ("QUEUE_MAX_DELAY_SECONDS", "-1"),
            ("STORE_FLUSH_INTERVAL_MILLISECONDS", "5"),
            ("AUTHENTICATION_ENABLE", "true"),
        ];
        let Err(invalid) = with(&environment) else { panic!("accepted") };
        let said = invalid.to_string();
        let lines: Vec<_> = said.lines().collect();
        assert_eq!(lines.len(), 4, "{said}");
        assert!(lines.iter().all(|line| line.starts_with("configuration validation error: ")), "{said}");
        for part in [
            "`grpc.port` (environment GRPC_PORT): port 70000 is invalid",
            "MaxDelaySeconds cannot be negative",
            "`store.flushIntervalMilliseconds` (environment STORE_FLUSH_INTERVAL_MILLISECONDS)",
            "`AUTHENTICATION_ENABLE` in the environment: this version cannot protect",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}
