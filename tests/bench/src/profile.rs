//! What a message costs the broker: calls into the kernel, allocations, wake-ups, and the functions that the time
//! goes to.
//!
//! The kernel counts: `perf stat` for the calls (trace points) and the allocations (probes at the C library's
//! functions, which Rust's allocator calls), `/proc` for the wake-ups, `perf record` for the functions. Each kind in a
//! run of its own, because a probe slows down what it counts; the figures are per message, so that matters little.
//! It needs root and `perf` (Debian: linux-perf), changes no program, and leaves no probe behind. Functions have names
//! when the broker was built with `CARGO_PROFILE_RELEASE_STRIP=none CARGO_PROFILE_RELEASE_DEBUG=line-tables-only`.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use kubemq_runtime::Runtime;
use kubemq_server::cli::bench::{Mode, Progress, grouped_rate};
use kubemq_server::cli::output;
use tempfile::TempDir;

use crate::machine::conditions;
use crate::process::Server;
use crate::table::Plan;
use crate::work::{NONE, Work, work};

/// The hot paths.
const WORKS: [Work; 4] = [
    work("upstream stream, 1024 in flight", Mode::Upstream, 1024, NONE),
    work("publish + get + ack, 1024 in flight", Mode::EndToEnd, 1024, NONE),
    work("unary send, 64 in flight", Mode::Unary, 64, NONE),
    Work { body: 128, ..work("events 1→1, 4096 in flight, 128 B", Mode::Events, 4096, NONE) },
];

/// The calls that are counted by name; all of them are counted, too.
const CALLS: [&str; 13] = [
    "epoll_wait",
    "futex",
    "read",
    "readv",
    "recvfrom",
    "recvmsg",
    "write",
    "writev",
    "sendto",
    "sendmsg",
    "pwrite64",
    "pwritev",
    "fdatasync",
];

/// The functions of the C library that give memory.
const ALLOCATIONS: [&str; 4] = ["malloc", "calloc", "realloc", "posix_memalign"];

/// How much shorter than the load the counting is: perf needs a moment to begin.
const MARGIN: Duration = Duration::from_millis(500);

/// How many functions are listed.
const FUNCTIONS: usize = 25;

/// Profiles the hot paths and returns the section of the results.
pub(crate) async fn run(plan: &Plan<'_>, runtime: &Runtime) -> anyhow::Result<String> {
    if plan.times.duration <= 2 * MARGIN {
        bail!("too short to count anything: raise --seconds");
    }
    let mut costs = Vec::new();
    for work in WORKS.iter().filter(|work| work.name.contains(plan.only)) {
        output::note(format_args!("{}", work.name));
        costs.push(cost(work, plan, runtime).await?);
    }
    Ok(render(&conditions(plan.directory, plan.broker), plan, &costs))
}

/// What one message costs.
struct Cost {
    work: &'static str,
    rate: f64,
    server_us: f64,
    calls: f64,
    /// The calls by name, the most frequent first.
    by_name: Vec<(String, f64)>,
    wake_ups: f64,
    preemptions: f64,
    allocations: f64,
    functions: Vec<String>,
}

async fn cost(work: &Work, plan: &Plan<'_>, runtime: &Runtime) -> anyhow::Result<Cost> {
    let names: Vec<String> = CALLS.iter().map(|call| format!("syscalls:sys_enter_{call}")).collect();
    let mut events = vec!["raw_syscalls:sys_enter".to_owned()];
    events.extend(names.iter().cloned());
    let calls = watched(work, plan, runtime, &["stat", "-x", ",", "-e", &events.join(",")]).await?;
    let counted = counts(&calls.said);
    let per_message =
        |name: &str| counted.iter().find(|(event, _)| event == name).map_or(0.0, |(_, count)| count / calls.messages);
    let mut by_name: Vec<(String, f64)> =
        CALLS.iter().zip(&names).map(|(call, event)| ((*call).to_owned(), per_message(event))).collect();
    by_name.sort_by(|one, other| other.1.total_cmp(&one.1));
    Ok(Cost {
        work: work.name,
        rate: calls.rate,
        server_us: calls.server_us,
        calls: per_message("raw_syscalls:sys_enter"),
        by_name,
        wake_ups: calls.switches.0,
        preemptions: calls.switches.1,
        allocations: allocations(work, plan, runtime).await?,
        functions: functions(work, plan, runtime).await?,
    })
}

/// A load under which perf watched the broker.
struct Watched {
    rate: f64,
    server_us: f64,
    /// Messages while perf counted.
    messages: f64,
    /// Times that a thread went to sleep, and times that one was put aside, per message.
    switches: (f64, f64),
    /// What perf wrote.
    said: String,
}

/// Runs the load at a fresh broker, with `perf` and these arguments watching the process once it is warm.
async fn watched(work: &Work, plan: &Plan<'_>, runtime: &Runtime, arguments: &[&str]) -> anyhow::Result<Watched> {
    let server = Server::broker(plan.broker, plan.directory, "group", &runtime.clock)?;
    let seconds = plan.times.duration.checked_sub(MARGIN).unwrap_or_default().as_secs_f64();
    let (mut perf, mut before, mut after) = (None, None, None);
    let look = |progress: &Progress| {
        if !progress.warming_up {
            after = Some((progress.elapsed, switches(server.id())));
        } else if progress.elapsed >= plan.times.warm_up {
            before = Some((progress.elapsed, switches(server.id())));
            perf = Some(start_perf(arguments, server.id(), seconds));
        }
    };
    let report = work.run(&server, plan.times, runtime, look).await?;
    let perf: Child = perf.context("the load had no warm-up")??;
    let said = perf.wait_with_output().context("perf is gone")?;
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    let ((from, first), (to, last)) = before.zip(after).context("the load was too short")?;
    let messages = report.rate * (to - from).as_secs_f64();
    Ok(Watched {
        rate: report.rate,
        server_us: 1e6 * report.broker_cpu_seconds.unwrap_or(f64::NAN) / (report.rate * report.seconds),
        messages: report.rate * seconds,
        switches: ((last.0 - first.0) / messages, (last.1 - first.1) / messages),
        said,
    })
}

fn start_perf(arguments: &[&str], process: u32, seconds: f64) -> anyhow::Result<Child> {
    let mut command = Command::new("perf");
    command.args(arguments).args(["-p", &process.to_string(), "--", "sleep", &seconds.to_string()]);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("could not start perf (Debian: linux-perf)")
}

/// Returns how often the threads of a process have gone to sleep, and were put aside for others.
fn switches(process: u32) -> (f64, f64) {
    let mut sums = (0.0, 0.0);
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten();
    for task in tasks.flatten() {
        let text = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let number = |key: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(key));
            value.and_then(|value| value.trim().parse::<f64>().ok()).unwrap_or(0.0)
        };
        sums.0 += number("voluntary_ctxt_switches:");
        sums.1 += number("nonvoluntary_ctxt_switches:");
    }
    sums
}

/// Reads what `perf stat -x ,` wrote: count, unit, event, ….
fn counts(text: &str) -> Vec<(String, f64)> {
    let lines = text.lines().filter_map(|line| {
        let mut fields = line.split(',');
        let count = fields.next()?.trim().parse().ok()?;
        Some((fields.nth(1)?.to_owned(), count))
    });
    lines.collect()
}

/// Returns how often a message has the C library asked for memory.
async fn allocations(work: &Work, plan: &Plan<'_>, runtime: &Runtime) -> anyhow::Result<f64> {
    let probes = Probes::set(&library()?);
    let events = ALLOCATIONS.map(|function| format!("probe_libc:{function}")).join(",");
    let watched = watched(work, plan, runtime, &["stat", "-x", ",", "-e", &events]).await?;
    drop(probes);
    let counted = counts(&watched.said);
    if counted.is_empty() {
        bail!("perf counted no allocation: {}", watched.said.trim());
    }
    Ok(counted.iter().map(|(_, count)| count).sum::<f64>() / watched.messages)
}

/// Returns where the C library is that this program, and so the broker, uses.
fn library() -> anyhow::Result<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").context("there is no /proc")?;
    let paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    paths.into_iter().find(|path| path.contains("/libc")).map(ToOwned::to_owned).context("no C library is loaded")
}

/// Probes at the functions that give memory, taken away when dropped.
struct Probes;

impl Probes {
    fn set(library: &str) -> Self {
        for function in ALLOCATIONS {
            // One that is still there from an earlier run serves as well.
            quietly(&["probe", "-q", "-x", library, "--add", function]);
        }
        Self
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        for function in ALLOCATIONS {
            quietly(&["probe", "-q", "--del", &format!("probe_libc:{function}")]);
        }
    }
}

fn quietly(arguments: &[&str]) {
    // What failed here shows when nothing is counted.
    Command::new("perf").args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status().ok();
}

/// Returns the functions in which the broker spends its time, with their shares, the largest first.
async fn functions(work: &Work, plan: &Plan<'_>, runtime: &Runtime) -> anyhow::Result<Vec<String>> {
    let directory = TempDir::new().context("could not make a directory")?;
    let file = directory.path().join("perf.data");
    let path = file.display().to_string();
    watched(work, plan, runtime, &["record", "-q", "-F", "999", "-o", &path]).await?;
    let output = Command::new("perf")
        .args(["report", "--stdio", "--no-children", "--percent-limit", "0.7", "--sort", "symbol", "-i"])
        .arg(Path::new(&path))
        .output()
        .context("could not start perf")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    // Behind the name stand two columns that nothing is known for.
    let lines = lines.map(|line| line.trim_end_matches([' ', '-']).to_owned());
    Ok(lines.take(FUNCTIONS).collect())
}

fn render(conditions: &[(&str, String)], plan: &Plan<'_>, costs: &[Cost]) -> String {
    let mut text = String::from("# Profile\n\n");
    writeln!(
        text,
        "Written by `kubemq-bench profile`: what one message costs the broker, durability `group`, counted for {} s. Wake-ups are the times that a thread of the broker went to sleep, allocations the calls of malloc, calloc, realloc and posix_memalign.\n",
        plan.times.duration.checked_sub(MARGIN).unwrap_or_default().as_secs_f64()
    )
    .ok();
    for (name, value) in conditions {
        writeln!(text, "- {name}: {value}").ok();
    }
    text.push_str("\n| Work | Messages/s | Processor | Calls into the kernel | Wake-ups | Put aside | Allocations |\n|---|---|---|---|---|---|---|\n");
    for cost in costs {
        let named = cost.by_name.iter().filter(|(_, count)| *count >= 0.0005);
        let named: Vec<String> = named.map(|(name, count)| format!("{name} {count:.3}")).collect();
        writeln!(
            text,
            "| {} | {} | {:.2} µs | {:.3} ({}) | {:.3} | {:.3} | {:.2} |",
            cost.work,
            grouped_rate(cost.rate),
            cost.server_us,
            cost.calls,
            named.join(", "),
            cost.wake_ups,
            cost.preemptions,
            cost.allocations
        )
        .ok();
    }
    for cost in costs.iter().filter(|cost| !cost.functions.is_empty()) {
        writeln!(text, "\n{}: where the time goes\n\n```\n{}\n```", cost.work, cost.functions.join("\n")).ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_by_event() {
        let text =
            "1234,,raw_syscalls:sys_enter,100,100.00,,\n<not supported>,,cycles,0,0.00,,\n7,,probe_libc:malloc,1,1,,\n";
        assert_eq!(
            counts(text),
            [("raw_syscalls:sys_enter".to_owned(), 1234.0), ("probe_libc:malloc".to_owned(), 7.0)]
        );
    }

    #[test]
    fn a_running_process_has_been_switched() {
        assert!(switches(std::process::id()).0 + switches(std::process::id()).1 > 0.0);
        assert_eq!(switches(u32::MAX), (0.0, 0.0));
    }
}
