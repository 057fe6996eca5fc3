//! The command: new seeds for some minutes, or one again.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use kubemq_fuzz::{TARGETS, Target, run};
use kubemq_runtime::{Clock, Random};

const USAGE: &str = "usage: kubemq-fuzz [--minutes 60] [--target NAME] [--seed N]";

fn main() -> ExitCode {
    match fuzz() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::from(2)
        }
    }
}

/// Returns whether every reader held.
fn fuzz() -> anyhow::Result<bool> {
    let (mut minutes, mut only, mut seed) = (60.0, None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().context(USAGE)?;
        match name.as_str() {
            "--minutes" => minutes = value.parse().context(USAGE)?,
            "--target" => only = Some(value),
            "--seed" => seed = Some(value.parse().context(USAGE)?),
            _ => bail!(USAGE),
        }
    }
    let targets: Vec<&Target> =
        TARGETS.iter().filter(|target| only.as_ref().is_none_or(|only| only == target.name)).collect();
    if targets.is_empty() {
        bail!("there is no such target, only {}", TARGETS.map(|target| target.name).join(", "));
    }
    if let Some(seed) = seed {
        return Ok(targets.iter().all(|target| held(target, seed)));
    }
    let (clock, from) = (Clock::real(), Random::from_system().u64() >> 16);
    let (began, share) = (clock.now(), Duration::from_secs_f64(minutes * 60.0 / targets.len() as f64));
    for (n, target) in (1..).zip(targets) {
        let mut seeds = 0;
        while clock.now().since(began) < share * n {
            if !held(target, from + seeds) {
                return Ok(false);
            }
            seeds += 1;
        }
        say(&format!("{}: {seeds} seeds from {from}, all held", target.name));
    }
    Ok(true)
}

fn held(target: &Target, seed: u64) -> bool {
    let held = run(target, seed);
    if !held {
        say(&format!(
            "{} did not hold; again: cargo run --release -p kubemq-fuzz -- --target {} --seed {seed}",
            target.name, target.name
        ));
    }
    held
}

fn say(line: &str) {
    // Nobody listens: the exit code says it all the same.
    writeln!(std::io::stderr(), "{line}").ok();
}
