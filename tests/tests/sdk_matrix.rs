//! The scenarios of `tests/sdk/scenarios.json`, played by real SDKs, unmodified, against the real program.
//!
//! Each SDK has a runner in `tests/sdk`: a script `install`, which gets a directory of its own and puts there
//! what the runner needs, in the versions that its lock file names, and a script `start`, which gets that
//! directory, an address and the scenarios to play, and prints one JSON line per scenario. All SDKs play at
//! once, each against a server of its own. What an SDK cannot do, and an SDK that cannot be had, is left out by
//! name and with the reason that stands in the file. A line per SDK and scenario is kept for `tests/run`.
#![expect(clippy::unwrap_used, reason = "whatever is not as the files of tests/sdk say fails the test")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use kubemq_tests::wait::{SOON, now, runtime};
use kubemq_tests::{Options, Server};
use serde_json::Value;
use tokio::sync::mpsc::{Receiver, channel};

/// A whole run of one SDK takes less, unless it hangs.
const PATIENCE_SECONDS: &str = "600";

/// What became of a scenario: a word, and the time or the reason.
#[derive(Clone)]
struct Outcome {
    word: String,
    detail: String,
}

/// An SDK of the file, with what it is to play.
#[derive(Clone)]
struct Sdk {
    name: String,
    package: String,
    runner: String,
    arguments: Vec<String>,
    /// Why this SDK plays nothing at all.
    left_out: Option<String>,
    /// The scenarios that this SDK can play, in the order of the file.
    scenarios: Vec<String>,
    /// The reasons why it does not play the others.
    outcomes: BTreeMap<String, Outcome>,
}

impl Outcome {
    fn new(word: &str, detail: &str) -> Self {
        Self { word: word.to_owned(), detail: detail.to_owned() }
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk")
}

/// Where runners are installed and results are kept: beside the tests' own build.
fn workplace() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let target = here.ancestors().nth(3).unwrap();
    target.join("sdk")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// Why `sdk` does not play the scenario: for one of its own, or for one of its group.
fn reason<'a>(group: &'a Value, scenario: &'a Value, sdk: &str) -> Option<&'a str> {
    scenario["cannot"][sdk].as_str().or_else(|| group["cannot"][sdk].as_str())
}

/// A misspelt name would excuse nobody.
fn check_names(data: &Value) {
    let groups = list(data, "groups").iter();
    for excused in groups.flat_map(|group| list(group, "scenarios").iter().chain([group])) {
        for name in excused["cannot"].as_object().into_iter().flat_map(|reasons| reasons.keys()) {
            assert!(data["sdks"][name].is_object(), "{name} is no SDK of the file");
        }
    }
}

fn is_on_this_machine(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn read_sdk(name: &str, entry: &Value, data: &Value) -> Sdk {
    let mut sdk = Sdk {
        name: name.to_owned(),
        package: text(entry, "package").to_owned(),
        runner: text(entry, "runner").to_owned(),
        arguments: list(entry, "arguments").iter().map(|one| one.as_str().unwrap().to_owned()).collect(),
        left_out: None,
        scenarios: Vec::new(),
        outcomes: BTreeMap::new(),
    };
    let mut absent = list(entry, "needs").iter().map(|program| program.as_str().unwrap());
    let absent = absent.find(|program| !is_on_this_machine(program)).map(|program| format!("no {program} here"));
    sdk.left_out = entry["left_out"].as_str().map(str::to_owned).or(absent);
    if sdk.left_out.is_some() {
        return sdk;
    }
    assert_ne!(sdk.runner, "", "{name} has neither a runner nor a reason");
    for group in list(data, "groups") {
        for scenario in list(group, "scenarios") {
            let id = text(scenario, "id").to_owned();
            match reason(group, scenario, name) {
                Some(reason) => drop(sdk.outcomes.insert(id, Outcome::new("left out", reason))),
                None => sdk.scenarios.push(id),
            }
        }
    }
    sdk
}

fn install(runner: &str) {
    let place = workplace().join(runner);
    std::fs::create_dir_all(&place).unwrap();
    let started = now();
    let script = directory().join(runner).join("install");
    let status = Command::new("timeout").arg(PATIENCE_SECONDS).arg(script).arg(place).status();
    let status = status.unwrap_or_else(|error| unreachable!("could not install {runner}: {error}"));
    assert!(status.success(), "the runner {runner} could not be installed");
    eprintln!("{runner}: installed in {:.0} s", now().since(started).as_secs_f64());
}

/// Ends the server as the runner asks for, starts it again, and tells the runner.
async fn start_again(server: &mut Server, how: &str, input: &mut ChildStdin) {
    match how {
        "kill" => server.kill(),
        "stop" => {
            server.terminate();
            assert!(server.wait_exit(SOON).await.success(), "the server did not stop as asked");
        }
        _ => unreachable!("a runner asks for {how:?}"),
    }
    server.restart().await;
    writeln!(input, "started").unwrap();
}

/// Reads lines away from the tasks that wait for something else.
fn read_lines(output: ChildStdout) -> Receiver<String> {
    let (sender, lines) = channel(16);
    let read = move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    };
    drop(runtime().tasks.compute("lines", read));
    lines
}

/// Plays what an SDK can play against a server of its own.
async fn play(mut sdk: Sdk) -> Sdk {
    if sdk.scenarios.is_empty() {
        return sdk;
    }
    let mut server = Server::start_with(Options::default()).await;
    let mut command = Command::new("timeout");
    command.arg(PATIENCE_SECONDS).arg(directory().join(&sdk.runner).join("start"));
    command.arg(workplace().join(&sdk.runner)).args(&sdk.arguments).arg(server.grpc()).args(&sdk.scenarios);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| unreachable!("could not start {}: {error}", sdk.name));
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        unreachable!("both ends are piped")
    };
    let mut lines = read_lines(output);
    while let Some(line) = lines.recv().await {
        // SDKs print what they like to the standard output, too.
        let Ok(said) = serde_json::from_str::<Value>(&line) else { continue };
        if let Some(how) = said["request"].as_str() {
            start_again(&mut server, how, &mut input).await;
        } else if let Some(scenario) = said["scenario"].as_str() {
            let outcome = Outcome::new(text(&said, "result"), text(&said, "detail"));
            eprintln!("{:9} {scenario:32} {:8} {}", sdk.name, outcome.word, outcome.detail);
            sdk.outcomes.insert(scenario.to_owned(), outcome);
        }
    }
    let status = child.wait().unwrap();
    for scenario in &sdk.scenarios {
        let missing = || Outcome::new("failed", &format!("the runner ended with {status} before it"));
        sdk.outcomes.entry(scenario.clone()).or_insert_with(missing);
    }
    sdk
}

/// Writes a line per SDK and scenario, and one per SDK.
fn report(sdks: &[Sdk], scenarios: &[&str]) -> String {
    let mut report = String::new();
    for sdk in sdks.iter().filter(|sdk| sdk.left_out.is_none()) {
        for scenario in scenarios {
            let Outcome { word, detail } = &sdk.outcomes[*scenario];
            let detail = detail.lines().next().unwrap_or_default();
            writeln!(report, "{:9} {scenario:32} {word:8} {detail}", sdk.name).unwrap();
        }
    }
    for sdk in sdks {
        let Sdk { name, package, left_out, .. } = sdk;
        let count = |word: &str| sdk.outcomes.values().filter(|outcome| outcome.word == word).count();
        let counts =
            || format!("{} passed, {} failed, {} left out", count("passed"), count("failed"), count("left out"));
        let outcome = left_out.as_ref().map_or_else(counts, |reason| format!("left out: {reason}"));
        writeln!(report, "{name:9} {package}: {outcome}").unwrap();
    }
    report
}

#[tokio::test]
#[ignore = "needs the toolchains of the SDKs: run `tests/run sdk`"]
async fn sdk_matrix() {
    let file = std::fs::read_to_string(directory().join("scenarios.json")).unwrap();
    let data: Value = serde_json::from_str(&file).unwrap();
    check_names(&data);
    let only = std::env::var("KUBEMQ_SDKS").unwrap_or_default();
    let chosen = |name: &str| only.is_empty() || only.split(',').any(|one| one == name);
    let sdks = data["sdks"].as_object().unwrap().iter().filter(|(name, _)| chosen(name));
    let sdks: Vec<Sdk> = sdks.map(|(name, entry)| read_sdk(name, entry, &data)).collect();
    let mut runners: Vec<&str> = sdks.iter().filter(|sdk| !sdk.scenarios.is_empty()).map(|sdk| &*sdk.runner).collect();
    runners.dedup();
    runners.into_iter().for_each(install);

    let sdks = futures_util::future::join_all(sdks.into_iter().map(play)).await;
    let scenarios = list(&data, "groups").iter().flat_map(|group| list(group, "scenarios"));
    let scenarios: Vec<&str> = scenarios.map(|scenario| text(scenario, "id")).collect();
    let report = report(&sdks, &scenarios);
    std::fs::write(workplace().join("results"), &report).unwrap();
    eprintln!("\n{report}");
    let failed =
        sdks.iter().flat_map(|sdk| sdk.outcomes.iter().map(move |(scenario, outcome)| (sdk, scenario, outcome)));
    let failed = failed.filter(|(_, _, outcome)| outcome.word != "passed" && outcome.word != "left out");
    let failed: Vec<_> = failed.map(|(sdk, id, outcome)| format!("{} {id}: {}", sdk.name, outcome.detail)).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
