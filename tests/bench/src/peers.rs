//! Other brokers beside this one: the same payload, the same number under way, each with a client of its own.
//!
//! The other brokers are measured by a program of its own, `kubemq-peers`, which `tests/bench/peers/install` builds
//! and gives its servers; neither is part of the workspace's build. What is not there is listed with the reason.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use kubemq_runtime::Runtime;
use kubemq_server::cli::bench::{Mode, grouped_rate, time};
use kubemq_server::cli::output;

use crate::machine::conditions;
use crate::process::Server;
use crate::table::{Plan, middle};
use crate::work::{NONE, Sample, Work, work};

/// The works that every broker has, in the words of `kubemq-peers`.
const WORKS: [(&str, &str, u64, usize); 9] = [
    ("publish, 1 in flight", "publish", 1, 1),
    ("publish, 64 in flight", "publish", 64, 1),
    ("publish, 64 in flight, 16 channels", "publish", 64, 16),
    ("publish, 1024 in flight", "publish", 1024, 1),
    ("publish, 1024 in flight, 16 channels", "publish", 1024, 16),
    ("publish + get + ack, 64 in flight", "end-to-end", 64, 1),
    ("publish + get + ack, 64 in flight, 16 channels", "end-to-end", 64, 16),
    ("publish + get + ack, 1024 in flight", "end-to-end", 1024, 1),
    ("publish + get + ack, 1024 in flight, 16 channels", "end-to-end", 1024, 16),
];

/// Another broker in one of its modes.
struct Peer {
    name: &'static str,
    /// In the words of `kubemq-peers` and `install`.
    system: &'static str,
    /// Whether it flushes before it acknowledges.
    synced: bool,
    durability: &'static str,
    /// How long it runs before it is measured, in seconds: Java compiles what is hot at first.
    warm_up: u64,
}

const PEERS: [Peer; 7] = [
    peer("NATS JetStream", "nats", true, "`sync_interval: always`"),
    peer("RabbitMQ quorum queue", "rabbitmq", true, "flushed before the confirm"),
    peer("Redis Streams", "redis", true, "`appendfsync always`"),
    Peer { warm_up: 8, ..peer("Kafka", "kafka", true, "`log.flush.interval.messages=1`") },
    peer("NATS JetStream", "nats", false, "default: flushed every 2 min"),
    peer("Redis Streams", "redis", false, "`appendfsync everysec`"),
    Peer { warm_up: 8, ..peer("Kafka", "kafka", false, "default: flushed by the system") },
];

const fn peer(name: &'static str, system: &'static str, synced: bool, durability: &'static str) -> Peer {
    Peer { name, system, synced, durability, warm_up: 1 }
}

/// One line: a broker under one work.
struct Line {
    name: &'static str,
    durability: &'static str,
    /// Whether it flushes before it acknowledges.
    synced: bool,
    /// What was measured, or why nothing was.
    sample: Result<Sample, String>,
}

/// Where `install` puts everything: beside the directory of this program.
fn installed() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("this program has no path")?;
    let target = program.parent().and_then(Path::parent).context("this program is not in a target directory")?;
    Ok(target.join("peers"))
}

/// Returns whether any work has a name that contains this.
pub(crate) fn have(only: &str) -> bool {
    WORKS.iter().any(|work| work.0.contains(only))
}

/// Returns whether there is a program to measure others with.
pub(crate) fn are_installed() -> bool {
    installed().is_ok_and(|place| program(&place).is_file())
}

fn program(place: &Path) -> PathBuf {
    place.join("build/release/kubemq-peers")
}

/// Measures every broker under every work and returns the section of the results.
pub(crate) async fn run(plan: &Plan<'_>, runtime: &Runtime) -> anyhow::Result<String> {
    let place = installed()?;
    if !program(&place).is_file() {
        bail!("other brokers are not installed: run tests/bench/peers/install");
    }
    let conditions = conditions(plan.directory, plan.broker);
    let mut sections = Vec::new();
    for (name, word, in_flight, channels) in WORKS.into_iter().filter(|work| work.0.contains(plan.only)) {
        output::note(format_args!("{name}"));
        let mode = if word == "publish" { Mode::Upstream } else { Mode::EndToEnd };
        // Several connections where the consumers of one would wait for each other.
        let connections = if mode == Mode::EndToEnd && channels > 1 { 4 } else { 1 };
        let own = Work { channels, connections, ..work(name, mode, in_flight, NONE) };
        let mut lines = Vec::new();
        for (durability, synced) in [("group", true), ("interval", false)] {
            let sample = broker(&own, durability, plan, runtime).await.map_err(|error| format!("{error:#}"));
            lines.push(Line { name: "**KubeMQ**", durability, synced, sample });
        }
        for peer in &PEERS {
            let (durability, synced) = (peer.durability, peer.synced);
            let sample = measure(peer, &place, word, in_flight, channels, plan).map_err(|error| format!("{error:#}"));
            lines.push(Line { name: peer.name, durability, synced, sample });
        }
        sections.push((name, lines));
    }
    Ok(render(&conditions, &versions(&place), plan, &sections))
}

/// Measures this broker as often as is planned, each time in a fresh process, and returns the medians.
async fn broker(work: &Work, durability: &str, plan: &Plan<'_>, runtime: &Runtime) -> anyhow::Result<Sample> {
    let mut samples = Vec::new();
    for _ in 0..plan.rounds {
        let server = Server::broker(plan.broker, plan.directory, durability, &runtime.clock)?;
        samples.push(work.measure(&server, plan.directory, plan.times, runtime).await?);
    }
    Ok(middle(&samples))
}

/// The same for another broker. Its program bounds its own time and ends its server.
fn measure(
    peer: &Peer,
    place: &Path,
    word: &str,
    in_flight: u64,
    channels: usize,
    plan: &Plan<'_>,
) -> anyhow::Result<Sample> {
    if let Ok(reason) = std::fs::read_to_string(place.join(peer.system).join("missing")) {
        bail!("not to be had here: {}", reason.trim());
    }
    if !place.join(peer.system).is_dir() {
        bail!("not installed");
    }
    let mut samples = Vec::new();
    for _ in 0..plan.rounds {
        let mut command = Command::new(program(place));
        command.args([peer.system, word, "--in-flight", &in_flight.to_string(), "--channels", &channels.to_string()]);
        command.args(["--seconds", &plan.times.duration.as_secs().to_string()]);
        command.args(["--warm-up", &peer.warm_up.to_string()]);
        command.arg("--directory").arg(plan.directory).arg("--servers").arg(place);
        if peer.synced {
            command.arg("--synced");
        }
        let output = command.output().context("could not start kubemq-peers")?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("it failed"));
        }
        samples.push(sample(&output.stdout)?);
    }
    Ok(middle(&samples))
}

/// Reads what `kubemq-peers` prints.
fn sample(line: &[u8]) -> anyhow::Result<Sample> {
    let line: serde_json::Value = serde_json::from_slice(line).context("kubemq-peers printed something else")?;
    let number = |name: &str| line.get(name).and_then(serde_json::Value::as_f64).with_context(|| format!("no {name}"));
    Ok(Sample {
        rate: number("rate")?,
        p50_us: number("p50_us")?,
        p99_us: number("p99_us")?,
        client_us: number("client_us")?,
        server_us: number("server_us")?,
        amplification: f64::NAN,
        resident_bytes: number("resident_bytes")?,
        syncs: f64::NAN,
        flushes: number("flushes")?,
    })
}

/// Returns what was measured, one line per server.
fn versions(place: &Path) -> Vec<String> {
    let first_line = |command: &mut Command| {
        let output = command.output().ok()?;
        String::from_utf8_lossy(&output.stdout).lines().next().map(ToOwned::to_owned)
    };
    let file = |name: &str| {
        let text = std::fs::read_to_string(place.join(name).join("version")).ok()?;
        Some(text.lines().collect::<Vec<_>>().join(", "))
    };
    let kafka = std::fs::read_dir(place.join("kafka/lib")).ok().and_then(|mut entries| {
        entries.find_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            name.starts_with("kafka_").then(|| name.trim_end_matches(".jar").to_owned())
        })
    });
    let found = [
        ("NATS", first_line(Command::new(place.join("nats/nats-server")).arg("--version"))),
        ("RabbitMQ", file("rabbitmq")),
        ("Redis", file("redis")),
        (
            "Kafka",
            kafka
                .zip(first_line(Command::new("java").arg("--version")))
                .map(|(kafka, java)| format!("{kafka} on {java}")),
        ),
    ];
    found.into_iter().map(|(name, version)| format!("{name}: {}", version.as_deref().unwrap_or("not here"))).collect()
}

/// How each broker is loaded, for the reader who doubts a figure.
const CLIENTS: [&str; 5] = [
    "KubeMQ: `kubemq bench`; one upstream stream; a downstream stream per channel, one Get open, the transaction acknowledged with the next Get; four connections end to end over 16 channels. Stored messages are deleted when acknowledged.",
    "NATS: async-nats 0.51; `publish` with an awaited acknowledgement each, one stream per channel; end to end work-queue streams, a pull consumer each, every message acknowledged.",
    "RabbitMQ: lapin 4.12; persistent messages with publisher confirms; one consumer per queue, up to 1000 messages acknowledged at once.",
    "Redis: redis 1.8; one `XADD` per message, pipelined on 64 connections when synced (the server reads 16 KiB of each per flush) and 4 otherwise; `XREADGROUP` with `XACK` and `XDEL` of what came before in one round trip. No rewrite of the file meanwhile.",
    "Kafka: rdkafka 0.39 (librdkafka: Java's own client would share the processors while it warms up); acks=all, no linger, one request under way so that batches form; one topic of one partition per channel; end to end commits after each half of what is in flight. Measured after 8 s, the others after 1 s. Java with 1 GiB of heap.",
];

fn render(
    conditions: &[(&str, String)],
    versions: &[String],
    plan: &Plan<'_>,
    sections: &[(&str, Vec<Line>)],
) -> String {
    let mut text = String::from("# Peers\n\n");
    writeln!(
        text,
        "Written by `kubemq-bench table` and `kubemq-bench peers`, with the servers that `tests/bench/peers/install` fetches. Messages of 1 KiB, a closed loop; server and client share the machine. Medians of {}; each measured for {} s in a fresh process and directory on the same disk.",
        plan.rounds,
        plan.times.duration.as_secs_f64()
    )
    .ok();
    text.push_str("Flushes are those that the disk counted, whoever caused them: a mode that says it is synced and flushes less often than once per message with one in flight is not.\nAhead: of every other broker with the same promise. Demanded of `group` with 1024 in flight and wherever messages are consumed, of `interval` with 1024 in flight.\n\n");
    for (name, value) in conditions {
        writeln!(text, "- {name}: {value}").ok();
    }
    for line in versions {
        writeln!(text, "- {line}").ok();
    }
    text.push_str("\nClients:\n\n");
    for line in CLIENTS {
        writeln!(text, "- {line}").ok();
    }
    for (name, lines) in sections {
        write!(text, "\n## {name}\n\n| Broker | Durability | Messages/s | p50 | p99 | Server µs | Client µs | Server RSS | Flushes/s | Messages per flush | Ahead |\n|---|---|---|---|---|---|---|---|---|---|---|\n").ok();
        for line in lines {
            write_line(&mut text, line, lines);
        }
    }
    text
}

fn write_line(text: &mut String, line: &Line, all: &[Line]) {
    let Line { name, durability, synced, sample } = line;
    let sample = match sample {
        Ok(sample) => sample,
        Err(reason) => {
            writeln!(text, "| {name} | {durability} | {} | | | | | | | | |", reason.replace('|', "/")).ok();
            return;
        }
    };
    // This broker's own lines come first of each kind.
    let own = all.iter().find(|other| other.synced == *synced).and_then(|own| own.sample.as_ref().ok());
    let is_own = own.is_some_and(|own| std::ptr::eq(own, sample));
    let ahead = match (is_own, ahead(all, *synced)) {
        (true, Some(true)) => "yes",
        (true, Some(false)) => "**no**",
        _ => "",
    };
    let flushes = if sample.flushes > 0.0 { format!("{:.1}", sample.rate / sample.flushes) } else { "–".to_owned() };
    writeln!(
        text,
        "| {name} | {durability} | {} | {} | {} | {:.1} | {:.1} | {:.0} MiB | {:.0} | {flushes} | {ahead} |",
        grouped_rate(sample.rate),
        time(sample.p50_us),
        time(sample.p99_us),
        sample.server_us,
        sample.client_us,
        sample.resident_bytes / f64::from(1 << 20),
        sample.flushes,
    )
    .ok();
}

/// Returns whether this broker, whose line is the first of its kind, is faster than every other that could be
/// measured with the same promise; nothing when there is none.
fn ahead(lines: &[Line], synced: bool) -> Option<bool> {
    let mut rates = lines.iter().filter(|line| line.synced == synced).map(|line| Some(line.sample.as_ref().ok()?.rate));
    let own = rates.next()??;
    let best = rates.flatten().max_by(f64::total_cmp)?;
    Some(own > best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(synced: bool, rate: Option<f64>) -> Line {
        let text = rate.map(|rate| {
            format!(
                r#"{{"rate":{rate},"p50_us":1,"p99_us":2,"client_us":3,"server_us":4,"resident_bytes":5,"flushes":6}}"#
            )
        });
        let sample = text.ok_or_else(|| "not here".to_owned()).map(|text| sample(text.as_bytes()).unwrap());
        Line { name: "", durability: "", synced, sample }
    }

    #[test]
    fn a_broker_is_ahead_of_those_with_the_same_promise() {
        let lines =
            |own, other, apart| vec![line(true, own), line(false, Some(1.0)), line(true, other), line(false, apart)];
        assert_eq!(ahead(&lines(Some(2.0), Some(1.0), Some(9.0)), true), Some(true));
        assert_eq!(ahead(&lines(Some(2.0), Some(1.0), Some(9.0)), false), Some(false));
        assert_eq!(ahead(&lines(Some(1.0), Some(2.0), None), true), Some(false));
        assert_eq!(ahead(&lines(Some(1.0), Some(2.0), None), false), None);
        assert_eq!(ahead(&lines(None, Some(2.0), None), true), None);
    }

    #[test]
    fn what_is_not_there_is_listed_with_its_reason() {
        let section = ("publish", vec![line(true, Some(7.0)), line(true, None)]);
        let plan = Plan {
            broker: Path::new("kubemq"),
            directory: Path::new("."),
            rounds: 1,
            times: crate::work::Times { warm_up: std::time::Duration::ZERO, duration: std::time::Duration::ZERO },
            only: "",
        };
        let text = render(&[], &[], &plan, &[section]);
        assert!(text.contains("| not here |"), "{text}");
    }
}
