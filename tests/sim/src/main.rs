//! The command of the simulation: one seed, the fixed seeds, or as many new ones as fit in some minutes.

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use kubemq_sim::run::{Asked, Ended, Plant, Scene, run};
use parking_lot::Mutex;

const USAGE: &str = "usage:
  kubemq-sim run --seed N [--seconds 60] [--scene nodes|raft] [--plant BUG] [--trace FILE]
  kubemq-sim fixed [--seconds 30]
  kubemq-sim sweep [--minutes 3] [--from N] [--count N] [--seconds 30] [--scene nodes|raft] [--jobs 1] [--failures 1]";

/// Seeds that every test run repeats: the first ones, and those that have found something.
const FIXED: [u64; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
/// Every so many seeds of a sweep, one is run twice and must give the same trace.
const TWICE: u64 = 16;

struct Arguments {
    command: String,
    seed: Option<u64>,
    seconds: Option<u64>,
    scene: Option<Scene>,
    plant: Plant,
    trace: Option<String>,
    minutes: f64,
    from: Option<u64>,
    count: Option<u64>,
    jobs: u64,
    failures: usize,
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut given = std::env::args().skip(1);
    let command = given.next().context(USAGE)?;
    let mut arguments = Arguments {
        command,
        seed: None,
        seconds: None,
        scene: None,
        plant: Plant::Nothing,
        trace: None,
        minutes: 3.0,
        from: None,
        count: None,
        jobs: 1,
        failures: 1,
    };
    while let Some(name) = given.next() {
        let value = given.next().with_context(|| format!("{name} needs a value\n{USAGE}"))?;
        match name.as_str() {
            "--seed" => arguments.seed = Some(value.parse()?),
            "--seconds" => arguments.seconds = Some(value.parse()?),
            "--scene" => arguments.scene = Some(Scene::named(&value).context("a scene is nodes or raft")?),
            "--plant" => arguments.plant = Plant::named(&value).context("no such planted bug")?,
            "--trace" => arguments.trace = Some(value),
            "--minutes" => arguments.minutes = value.parse()?,
            "--from" => arguments.from = Some(value.parse()?),
            "--count" => arguments.count = Some(value.parse()?),
            "--failures" => arguments.failures = value.parse()?,
            "--jobs" => arguments.jobs = value.parse()?,
            _ => bail!("unknown argument {name}\n{USAGE}"),
        }
    }
    Ok(arguments)
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = arguments()?;
    let good = match arguments.command.as_str() {
        "run" => one(&arguments)?,
        "fixed" => fixed(&arguments)?,
        "sweep" => sweep(&arguments)?,
        _ => bail!("{USAGE}"),
    };
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs on a thread of its own: what a thread keeps between runs must not reach the next one.
#[expect(clippy::disallowed_methods, reason = "the simulation itself is the program here, nothing of it is simulated")]
fn alone(asked: &Asked) -> anyhow::Result<Ended> {
    let asked = asked.clone();
    let thread = std::thread::Builder::new().name(format!("seed {}", asked.seed)).stack_size(64 << 20);
    let thread = thread.spawn(move || run(&asked))?;
    thread.join().map_err(|_| anyhow::anyhow!("the run loop itself panicked"))
}

#[expect(clippy::disallowed_methods, reason = "how long the runs take in reality is what is measured")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

fn say(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

fn report(asked: &Asked, ended: &Ended, took: Duration) -> anyhow::Result<bool> {
    let simulated = Duration::from_nanos(ended.simulated);
    let speed = simulated.as_secs_f64() / took.as_secs_f64().max(1e-9);
    say(&format!(
        "{} seed {}: hash {:016x}, {simulated:.1?} simulated in {took:.2?} ({speed:.0} s/s), {} polls, {}",
        asked.scene, asked.seed, ended.hash, ended.polls, ended.tally
    ))?;
    let Some(failure) = &ended.failure else { return Ok(true) };
    say(&format!("FAILED: {failure}"))?;
    say(&format!("  faults: {}", asked.plan()))?;
    say(&format!("  commit {}, {}", commit(), toolchain()))?;
    say(&format!("  replay: {}", asked.command()))?;
    Ok(false)
}

/// Returns the commit of the working tree that this was built in.
fn commit() -> String {
    if let Ok(commit) = std::env::var("KUBEMQ_COMMIT") {
        return commit;
    }
    let git = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.git");
    let read = |name: &str| std::fs::read_to_string(git.join(name)).ok();
    let head = read("HEAD").unwrap_or_default();
    let commit = head.trim().strip_prefix("ref: ").map_or(Some(head.clone()), read);
    commit.map_or_else(|| "unknown".to_owned(), |commit| commit.trim().chars().take(12).collect())
}

fn toolchain() -> String {
    let profile = if cfg!(debug_assertions) { "with debug assertions" } else { "without debug assertions" };
    format!("rust {}, {profile}", env!("CARGO_PKG_RUST_VERSION"))
}

fn one(arguments: &Arguments) -> anyhow::Result<bool> {
    let seed = arguments.seed.context("--seed is needed")?;
    let mut asked = Asked::of(arguments.scene.unwrap_or_default(), seed, arguments.seconds.unwrap_or(60));
    asked.trace = arguments.trace.is_some();
    asked.plant = arguments.plant;
    let start = now();
    let ended = alone(&asked)?;
    if let Some(path) = &arguments.trace {
        std::fs::write(path, &ended.trace).with_context(|| format!("cannot write {path}"))?;
    }
    say(&format!("faults: {}", asked.plan()))?;
    report(&asked, &ended, start.elapsed())
}

fn fixed(arguments: &Arguments) -> anyhow::Result<bool> {
    for scene in [Scene::Raft, Scene::Nodes] {
        if arguments.scene.is_some_and(|only| only != scene) {
            continue;
        }
        for seed in FIXED {
            let asked = Asked::of(scene, seed, arguments.seconds.unwrap_or(30));
            let start = now();
            let ended = alone(&asked)?;
            if !report(&asked, &ended, start.elapsed())? {
                return Ok(false);
            }
            if seed % 4 == 0 && alone(&asked)?.hash != ended.hash {
                say(&format!("FAILED: seed {seed} gave another trace the second time\n  replay: {}", asked.command()))?;
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// What the threads of a sweep add up.
#[derive(Default)]
struct Sum {
    seeds: AtomicU64,
    simulated: AtomicU64,
    polls: AtomicU64,
    failed: Mutex<Vec<u64>>,
}

#[expect(clippy::disallowed_methods, reason = "the simulation itself is the program here, nothing of it is simulated")]
fn sweep(arguments: &Arguments) -> anyhow::Result<bool> {
    let from = match arguments.from {
        Some(from) => from,
        None => std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs() * 1000,
    };
    say(&format!("seeds from {from} on"))?;
    let start = now();
    let limit = Duration::from_secs_f64(arguments.minutes * 60.0);
    let (next, sum) = (AtomicU64::new(from), Sum::default());
    let most = arguments.count.map_or(u64::MAX, |count| from.saturating_add(count));
    let work = || -> anyhow::Result<()> {
        while sum.failed.lock().len() < arguments.failures && (arguments.count.is_some() || start.elapsed() < limit) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= most {
                break;
            }
            // Every fourth run is of consensus alone: it is faster, and its machine shows more.
            let scene = arguments.scene.unwrap_or(if seed % 4 == 3 { Scene::Raft } else { Scene::Nodes });
            let asked = Asked::of(scene, seed, arguments.seconds.unwrap_or(30));
            let began = now();
            let ended = alone(&asked)?;
            sum.seeds.fetch_add(1, Ordering::Relaxed);
            sum.simulated.fetch_add(ended.simulated, Ordering::Relaxed);
            sum.polls.fetch_add(ended.polls, Ordering::Relaxed);
            if ended.failure.is_some() {
                report(&asked, &ended, began.elapsed())?;
                sum.failed.lock().push(seed);
            } else if seed % TWICE == 0 && alone(&asked)?.hash != ended.hash {
                say(&format!("FAILED: seed {seed} gave another trace the second time\n  replay: {}", asked.command()))?;
                sum.failed.lock().push(seed);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..arguments.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a sweep panicked"))?)
    })?;
    let failed = sum.failed.lock();
    let simulated = Duration::from_nanos(sum.simulated.into_inner());
    say(&format!(
        "{} seeds from {from}, {:.0} simulated s in {:.0} s ({:.0} s/s), {} polls, {} failed",
        sum.seeds.into_inner(),
        simulated.as_secs_f64(),
        start.elapsed().as_secs_f64(),
        simulated.as_secs_f64() / start.elapsed().as_secs_f64(),
        sum.polls.into_inner(),
        failed.len()
    ))?;
    Ok(failed.is_empty())
}
