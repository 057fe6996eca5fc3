//! The list of bounds against the sources, the tests and the metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::*;
use crate::config::keys::{KEYS, Kind};

/// Where a bound may stand. The commands of the program that are clients bound nobody but themselves.
const CRATES: [&str; 6] =
    ["proto/src", "storage/src", "raft/src", "server/src", "server/runtime/src", "server/broker/src"];

/// Constants that bound nothing that grows, and why. Everything else of these types has to be in the list.
const OTHERS: &[(&str, &str)] = &[
    // Layouts: what is written, and how large its parts are.
    ("proto/src/frame.rs", "EVENT_BODY EVENT_CHANNEL EVENT_TIME EVENT_SEQUENCE REQUEST_BODY LARGE_BODY"),
    ("proto/src/id.rs", "NUID_LENGTH DIGITS_PER_DRAW"),
    ("proto/src/validate.rs", "ENVELOPE_BYTES"),
    ("raft/src/batch.rs", "VERSION HEADER_BYTES"),
    ("raft/src/machine.rs", "META_VERSION"),
    ("raft/src/network/frame.rs", "VERSION"),
    ("raft/src/types.rs", "MEMBERSHIP_VERSION"),
    ("server/broker/src/operation.rs", "*"),
    ("server/broker/src/snapshot.rs", "*"),
    ("server/broker/src/limits.rs", "RUNS_PER_BLOCK COPIES_PER_BLOCK TIMERS_PER_BLOCK BITMAP_BLOCK SNAPSHOT_CHUNK"),
    ("server/broker/src/cursors.rs", "CLIENT GROUP"),
    ("server/broker/src/restore.rs", "SEQUENCE_BOUND HEADS"),
    ("server/broker/src/runs.rs", "BLOCK_VERSION"),
    ("server/broker/src/settled.rs", "WORDS"),
    ("server/broker/src/timer.rs", "BLOCK_VERSION"),
    ("server/src/data_dir.rs", "FORMAT_VERSION FORMAT_BYTES"),
    ("server/src/grpc/connection.rs", "PREFACE FRAME_HEADER GOAWAY"),
    ("server/src/grpc/ingest.rs", "UNIT PREFIX INFLATION"),
    ("server/src/grpc/server.rs", "MAX_FRAME"),
    ("server/src/power.rs", "BYTES"),
    ("storage/src/log/segment.rs", "*"),
    ("storage/src/log/frame.rs", "*"),
    ("storage/src/log/entry.rs", "*"),
    (
        "storage/src/snapshot/files.rs",
        "FORMAT_VERSION HEADER CHUNK_HEADER END TRAILER WRITE_BYTES WRITE_PIECES READ_BYTES",
    ),
    ("storage/src/fs/real.rs", "PIECES_PER_CALL"),
    ("storage/src/fs/memory.rs", "SECTOR"),
    ("storage/src/fs/pages.rs", "PAGE"),
    ("storage/src/index/sled.rs", "CHECKSUM"),
    // What something costs, to be counted against a bound.
    ("server/broker/src/channel.rs", "CHANNEL_BYTES"),
    ("server/broker/src/copies.rs", "*"),
    ("server/broker/src/cursors.rs", "CURSOR_BYTES TREE_BYTES"),
    ("server/broker/src/runs.rs", "LIST_BYTES SEALED_BYTES SEALED_LIST_BYTES TREE_BYTES RUN_BYTES"),
    ("server/broker/src/settled.rs", "BLOCK_BYTES RANGE_BYTES"),
    ("server/broker/src/timers.rs", "TIMER_BYTES SEALED_TIMERS_BYTES SEALED_BYTES BUCKET_BYTES RELEASED_BYTES"),
    ("server/src/gateway/take.rs", "ENVELOPE_BYTES"),
    ("server/src/live/cache.rs", "OVERHEAD"),
    ("server/src/live/inbox.rs", "OVERHEAD"),
    ("storage/src/log/tail.rs", "OVERHEAD"),
    // What follows from a bound that is listed.
    ("server/src/live/numbers.rs", "MOST_NAMED"),
    ("server/src/live/routes.rs", "MOST_KEPT"),
    // Units, and values that mean something else.
    ("proto/src/subscribe.rs", "NANOS_PER_SECOND"),
    ("server/broker/src/queue.rs", "NANOS_PER_MS"),
    ("server/broker/src/timer.rs", "SECOND BUCKET IN_SECONDS"),
    ("server/src/config/keys.rs", "*"),
    ("server/src/config/retention.rs", "LONGEST"),
    ("server/src/gateway/management.rs", "MOST ACTIVE_FOR"),
    ("server/src/gateway/lanes.rs", "COMMON"),
    ("server/src/gateway/outbox.rs", "NOBODY"),
    ("server/src/grpc/management.rs", "NANOS_PER_SECOND"),
    ("server/src/live/subjects.rs", "ROOT"),
    ("server/src/metrics.rs", "CLASSES"),
    ("server/src/metrics/process.rs", "TICKS_PER_SECOND"),
    ("storage/src/log/stats.rs", "CLASSES"),
    ("storage/src/log/position.rs", "SAMPLE_BYTES"),
    ("raft/src/time.rs", "*"),
    // How much is done at a time, or how often something is done: nothing waits in it.
    ("raft/src/batcher.rs", "LEASE_RETRY"),
    ("raft/src/log_store.rs", "APPLY_BYTES"),
    ("raft/src/machine.rs", "CHUNK_ENTRIES CHUNK_BYTES"),
    ("raft/src/maintenance.rs", "TICK NOTE AFTER_FAILURE WANTED"),
    ("raft/src/node.rs", "CONFIRM_RETRY LOOK_BACK"),
    ("raft/src/reclaim.rs", "SPARSE COPIED_TOGETHER"),
    ("raft/src/snapshot.rs", "FRAME_PIECES FRAME_RANGES"),
    ("server/src/desk/timers.rs", "RELEASE_BATCH AHEAD RETRY LONGEST_SLEEP"),
    ("server/broker/src/soon.rs", "BLOCKS_WANTED"),
    ("server/src/gateway/cursors.rs", "EVERY REFRESH"),
    ("server/src/gateway/retention.rs", "EVERY"),
    ("server/src/gateway/mod.rs", "LEAD_RETRY"),
    ("server/src/gateway/lanes.rs", "TURN"),
    ("server/src/desk/away.rs", "SOON"),
    ("server/src/index_memory.rs", "*"),
    ("server/src/index_memory/lost.rs", "*"),
    ("server/broker/src/living.rs", "PER_PIECE"),
    ("server/src/gateway/publishing.rs", "TOGETHER_OPERATIONS TOGETHER_BYTES TURN"),
    ("server/src/gateway/events.rs", "TURN"),
    ("server/src/gateway/upstream.rs", "TURN"),
    ("server/src/gateway/send.rs", "SHARED_BYTES OWN_BYTES HEAD_BYTES"),
    ("server/src/gateway/subscription.rs", "READ_AHEAD LEAVING ATTEMPTS"),
    ("server/src/gateway/outbox.rs", "MANY"),
    ("server/src/gateway/take.rs", "PEEK_STEP"),
    ("server/src/grpc/connection.rs", "HELD_BACK"),
    ("server/src/grpc/server.rs", "KEEP_ALIVE_WITHIN"),
    ("server/src/index_feed.rs", "*"),
    ("server/src/serve/memory.rs", "*"),
    // Ends a wait only where index and snapshot are damaged both, for which node and doctor have words of their own.
    ("server/src/gateway/mod.rs", "FETCH"),
    ("server/src/live/inbox.rs", "BATCH BATCH_BYTES KEPT_CAPACITY"),
    ("server/src/metrics/ages.rs", "READS"),
    ("server/src/scrub.rs", "FIRST PIECE BUSY_READS BUSY_PAUSES"),
    ("storage/src/log/group.rs", "COPIED"),
    ("storage/src/log/reader.rs", "NEAR IN_ORDER LEAST_SHARE"),
    ("storage/src/log/mod.rs", "READERS"),
    ("storage/src/log/scan.rs", "WINDOW"),
    ("storage/src/log/page_cache.rs", "STRETCH"),
    ("storage/src/fs/real.rs", "LARGEST_PIECE"),
    ("storage/src/log/writer.rs", "IDLE SMALL PAVED"),
    ("storage/src/index/writer.rs", "DISK_BYTES_EVERY"),
    ("storage/src/index/sled.rs", "SHRINK_FROM SHRINK_SHARE"),
    // The start and the end of a node, each waited for once.
    ("raft/src/node.rs", "HAND_OVER CONFIRM"),
    ("server/src/node.rs", "DRAIN RECOVERY"),
    ("server/src/serve/mod.rs", "LAST"),
    ("storage/src/index/sled.rs", "LOCK_TRIES LOCK_WAIT"),
    // What HTTP/2 asks for: a number so large that other bounds are met first, and what protects from a hostile client.
    ("server/src/grpc/server.rs", "MAX_STREAMS CANCELLED_STREAMS"),
    // Inboxes of one caller each, who waits for the answer before it asks again, and the kernel's queue.
    ("raft/src/node.rs", "REPLIES REQUESTS"),
    ("raft/src/snapshot.rs", "FRAMES"),
    ("raft/src/network/memory.rs", "IN_FLIGHT"),
    ("raft/src/walk.rs", "AHEAD"),
    ("storage/src/snapshot.rs", "INBOX"),
    ("storage/src/index/writer.rs", "READS"),
    ("server/src/serve/listen.rs", "BACKLOG"),
];

/// Keys with a number that bounds nothing: what holds where a client says nothing.
const DEFAULTS: [&str; 2] = ["queue.defaultWaitTimeoutSeconds", "queue.defaultVisibilitySeconds"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn source(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Returns what follows the equals sign or colon of the constant or field `name`.
fn expression(text: &str, name: &str) -> Option<String> {
    for line in text.lines() {
        let words: Vec<&str> = line.split(|letter: char| !(letter.is_alphanumeric() || letter == '_')).collect();
        if words.windows(2).any(|pair| pair == ["const", name])
            && let Some((_, value)) = line.split_once(" = ")
        {
            return Some(value.trim_end_matches(';').to_owned());
        }
    }
    // A field of a literal, which may be one of several on its line.
    let field = format!("{name}: ");
    text.match_indices(&field).find_map(|(at, _)| {
        let value = text[at + field.len()..].split([',', '}', '\n']).next()?.trim();
        (value.starts_with(|first: char| first.is_ascii_digit()) || value.starts_with("Duration::"))
            .then(|| value.to_owned())
    })
}

/// Returns the number that `expression` comes to, durations in milliseconds. `text` holds what it names.
fn evaluate(text: &str, expression: &str) -> Option<u64> {
    let expression = expression.trim();
    if let Some((left, right)) = expression.split_once(" - ") {
        return evaluate(text, left)?.checked_sub(evaluate(text, right)?);
    }
    if let Some((left, right)) = expression.split_once("<<") {
        return evaluate(text, left)?.checked_shl(u32::try_from(evaluate(text, right)?).ok()?);
    }
    if let Some((left, right)) = expression.split_once('*') {
        return evaluate(text, left)?.checked_mul(evaluate(text, right)?);
    }
    for (unit, factor) in [("secs", 1000), ("millis", 1)] {
        if let Some(rest) = expression.strip_prefix(&format!("Duration::from_{unit}(")) {
            return evaluate(text, rest.strip_suffix(')')?)?.checked_mul(factor);
        }
    }
    match expression.replace('_', "").parse() {
        Ok(number) => Some(number),
        Err(_) => evaluate(text, &self::expression(text, expression)?),
    }
}

/// Returns the number that people wrote, durations in milliseconds.
fn read(is: &str) -> Option<u64> {
    let (number, unit) = is.split_once(' ').unwrap_or((is, ""));
    let factor = match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "s" => 1000,
        "ms" => 1,
        _ => return None,
    };
    number.replace(',', "").parse::<u64>().ok()?.checked_mul(factor)
}

#[test]
fn values_are_those_of_the_sources() {
    for limit in LIMITS {
        if let Value::Fixed { place: (file, name), is } = limit.value {
            let text = source(file);
            let expression = expression(&text, name).unwrap_or_else(|| panic!("there is no {name} in {file}"));
            let value = evaluate(&text, &expression);
            assert!(value.is_some() && value == read(is), "{name} in {file} is {expression}, not {is}");
        }
    }
}

#[test]
fn every_constant_that_may_be_a_bound_is_listed_or_named_as_something_else() {
    let mut listed: BTreeSet<(String, String)> = BTreeSet::new();
    for limit in LIMITS {
        if let Value::Fixed { place: (file, name), .. } = limit.value {
            assert!(listed.insert((file.to_owned(), name.to_owned())), "{name} of {file} is listed twice");
        }
    }
    let mut others: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (file, names) in OTHERS {
        others.entry(file).or_default().extend(names.split(' '));
    }
    let mut missing = Vec::new();
    let mut known = listed.clone();
    let mut seen = BTreeSet::new();
    for directory in CRATES {
        let mut files = Vec::new();
        sources(&root().join(directory), &mut files);
        for path in files {
            let file = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            if file.contains("/cli/") || file.contains("/tests") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            for line in text.lines() {
                let Some((_, rest)) = line.split_once("const ").filter(|(before, _)| {
                    let before = before.trim();
                    before.is_empty() || before.starts_with("pub")
                }) else {
                    continue;
                };
                let Some((name, kind)) = rest.split_once(": ") else { continue };
                let kind = kind.split([' ', ';']).next().unwrap();
                if !["usize", "u64", "u32", "u16", "u8", "i32", "i64", "Duration"].contains(&kind) {
                    continue;
                }
                seen.insert((file.clone(), name.to_owned()));
                let other = others.get(&*file).is_some_and(|names| names.contains("*") || names.contains(name));
                match (known.remove(&(file.clone(), name.to_owned())), other) {
                    (true, true) => {
                        missing.push(format!("{name} of {file} is listed as a bound and as something else"))
                    }
                    (false, false) => missing.push(format!("{name} of {file} is neither a bound nor something else")),
                    _ => {}
                }
            }
        }
    }
    assert!(seen.len() > 100, "the sources are not where this test looks for them");
    for (file, names) in others {
        let gone = |name: &&&str| **name != "*" && !seen.contains(&(file.to_owned(), (**name).to_owned()));
        missing.extend(names.iter().filter(gone).map(|name| format!("there is no {name} in {file}")));
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn every_key_that_bounds_is_listed() {
    let listed: Vec<&str> = LIMITS
        .iter()
        .filter_map(|limit| match limit.value {
            Value::Configured(key) => Some(key.name),
            Value::Fixed { .. } => None,
        })
        .collect();
    for key in KEYS {
        let bounds = matches!(key.kind, Kind::Number { .. } | Kind::Bytes { .. } | Kind::BytesOrAuto { .. })
            && !DEFAULTS.contains(&key.name);
        assert_eq!(listed.iter().filter(|name| **name == key.name).count(), usize::from(bounds), "{}", key.name);
    }
}

#[test]
fn every_test_exists() {
    for limit in LIMITS {
        let (file, name) = limit.test;
        let text = source(file);
        let found = text.split(&format!("fn {name}(")).next().filter(|before| before.len() < text.len());
        let before = found.unwrap_or_else(|| panic!("{}: there is no {name} in {file}", limit.what));
        let attributes = before.rsplit("\n\n").next().unwrap_or_default();
        assert!(attributes.contains("test"), "{name} in {file} is no test");
    }
}

#[test]
fn every_metric_is_one_of_the_readme() {
    let readme = source("README.md");
    let section = readme.split("\n## Metrics\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let buffers = source("server/src/metrics/buffers.rs");
    for limit in LIMITS.iter().filter(|limit| !limit.metric.is_empty()) {
        let (name, label) = limit.metric.split_once('{').unwrap_or((limit.metric, ""));
        assert!(section.contains(&format!("`{name}`")), "{name} is not in the list of metrics");
        if let Some(buffer) = label.strip_prefix("buffer=\"") {
            let buffer = buffer.trim_end_matches("\"}");
            assert!(buffers.contains(&format!("\"{buffer}\"")), "there is no buffer {buffer}");
        }
    }
}

#[test]
fn numbers_are_read_as_they_are_written() {
    let text = "const A: usize = 4 * B;\nconst B: u64 = 1 << 10;\nWant { events: 1_024, bytes: 512 * 1024 }";
    assert_eq!(evaluate(text, "A"), Some(4096));
    assert_eq!(evaluate(text, "2 * A - 3 * 1024"), Some(5 * 1024));
    assert_eq!(expression(text, "events").and_then(|found| evaluate(text, &found)), Some(1024));
    assert_eq!(evaluate(text, "Duration::from_secs(5)"), Some(5000));
    assert_eq!(evaluate(text, "C"), None);
    assert_eq!([read("4 KiB"), read("65,536"), read("2 s"), read("2 m")], [Some(4096), Some(65536), Some(2000), None]);
}
