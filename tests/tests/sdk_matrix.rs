//! The scenarios of `tests/sdk/scenarios.json`, played by real SDKs, unmodified, against the real program.
//!
//! Each SDK has a runner program in `tests/sdk`, which gets an address and the file of scenarios, and prints
//! one JSON line per scenario. What an SDK cannot do, and an SDK that cannot be had, is left out by name and
//! with the reason that stands in the file. In the end a matrix is printed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kubemq_tests::{Options, Server};
use serde_json::Value;

/// A whole run of one SDK takes less, unless it hangs.
const PATIENCE_SECONDS: &str = "900";

/// What a runner said of a scenario: its result and the detail.
type Results = BTreeMap<String, (String, String)>;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Builds the runner of an SDK and returns the command that starts it.
fn runner(name: &str) -> Command {
    let built = std::env::current_exe().map(|path| path.with_file_name(format!("sdk-{name}")));
    let built = built.unwrap_or_else(|error| unreachable!("{error}"));
    let mut build = Command::new("go");
    build.args(["build", "-o"]).arg(&built).arg(".").current_dir(directory().join(name));
    let status = build.status().unwrap_or_else(|error| unreachable!("could not run go: {error}"));
    assert!(status.success(), "the runner {name} does not build");
    let mut command = Command::new("timeout");
    command.arg(PATIENCE_SECONDS).arg(built);
    command
}

/// Plays all scenarios of one SDK against a server of its own.
async fn play(name: &str) -> Results {
    let mut server = Server::start_with(Options::default()).await;
    let mut command = runner(name);
    command.arg(server.grpc()).arg(directory().join("scenarios.json"));
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| unreachable!("could not start the runner {name}: {error}"));
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        unreachable!("both ends are piped")
    };
    let mut results = Results::new();
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        // SDKs print what they like to the standard output, too.
        let Ok(said) = serde_json::from_str::<Value>(&line) else { continue };
        if said["request"] == "restart" {
            server.kill();
            server.restart().await;
            writeln!(input, "restarted").unwrap_or_else(|error| unreachable!("{error}"));
        } else if let Some(scenario) = said["scenario"].as_str() {
            let outcome = (text(&said, "result").to_owned(), text(&said, "detail").to_owned());
            eprintln!("{name:5} {scenario:28} {:9} {}", outcome.0, outcome.1);
            results.insert(scenario.to_owned(), outcome);
        }
    }
    let status = child.wait().unwrap_or_else(|error| unreachable!("{error}"));
    assert!(status.success(), "the runner {name} ended with {status}");
    results
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the toolchains of the SDKs: run `tests/run sdk`"]
async fn sdk_matrix() {
    let file = std::fs::read_to_string(directory().join("scenarios.json")).unwrap();
    let data: Value = serde_json::from_str(&file).unwrap();
    let sdks = data["sdks"].as_object().unwrap();
    let mut matrix: BTreeMap<&str, Results> = BTreeMap::new();
    for (name, sdk) in sdks {
        if let Some(runner) = sdk["runner"].as_str() {
            eprintln!("{name}: {}", text(sdk, "package"));
            matrix.insert(name, play(runner).await);
        } else {
            let reason = text(sdk, "left_out");
            assert_ne!(reason, "", "{name} has neither a runner nor a reason");
            eprintln!("{name}: {} is left out: {reason}", text(sdk, "package"));
        }
    }
    let names: Vec<&str> = matrix.keys().copied().collect();
    eprintln!("\n{:28} {}", "scenario", names.join("       "));
    let mut failures = Vec::new();
    for scenario in data["scenarios"].as_array().unwrap() {
        let id = text(scenario, "id");
        let mut row = format!("{id:28}");
        for name in &names {
            let expected = if scenario[*name] == true { "passed" } else { "left out" };
            let missing = ("missing".to_owned(), String::new());
            let (result, detail) = matrix[name].get(id).unwrap_or(&missing);
            row += &format!(" {result:9}");
            if result != expected {
                failures.push(format!("{name} {id}: {result} {detail}"));
            }
        }
        eprintln!("{row}");
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
