//! The program as its operator sees it: one line when ready, one process per directory, configuration that is
//! refused when misspelt, and an orderly end on SIGTERM.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kubemq_runtime::OnFailure;
use kubemq_tests::client::{bodies, counts, message, old_receive};
use kubemq_tests::http::http_get;
use kubemq_tests::process::binary;
use kubemq_tests::wait::{SOON, runtime, timeout};
use kubemq_tests::{Client, Options, Server, connected, get, sleep, wait_until};
use tonic::{Code, Status};

/// Within this a server has to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn one_line_says_that_it_is_ready_and_where() {
    let server = Server::start().await;
    let log = server.log();
    let ready: Vec<&str> = log.lines().filter(|line| line.contains("\"message\":\"ready\"")).collect();
    assert_eq!(ready.len(), 1, "{log}");
    let line = server.ready().unwrap();
    for key in ["version", "grpc", "http", "data", "durability"] {
        assert!(line[key].as_str().is_some_and(|value| !value.is_empty()), "no {key} in {line}");
    }
    assert_eq!(line["durability"], "group");
    assert!(log.lines().filter(|line| !line.starts_with("---")).count() <= 4, "quiet by default: {log}");
    Client::connect(&server.grpc()).await;
}

#[tokio::test]
async fn health_readiness_and_metrics_are_served() {
    let (server, client) = connected().await;
    client.fill("metrics", ["1"]).await;
    assert_eq!(http_get(&server.http(), "/health").unwrap().0, 200);
    let (status, body) = http_get(&server.http(), "/ready").unwrap();
    assert_eq!(status, 200);
    let state: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((state["is_healthy"].as_bool(), state["is_ready"].as_bool()), (Some(true), Some(true)));
    let (status, body) = http_get(&server.http(), "/metrics").unwrap();
    assert_eq!(status, 200);
    assert!(body.lines().any(|line| line.starts_with("# TYPE kubemq_")), "{body}");
    assert_eq!(http_get(&server.http(), "/no/such/path").unwrap().0, 404);
}

#[tokio::test]
async fn a_directory_has_one_process() {
    let server = Server::start().await;
    let refusal = Server::expect_refusal(Options { data: Some(server.data()), ..Options::default() }).await;
    assert_eq!(refusal.status.code(), Some(1), "{}", refusal.output);
    let directory = server.data().display().to_string();
    assert!(refusal.output.contains(&directory), "it does not name the directory: {}", refusal.output);
    assert!(!refusal.output.contains("panicked"), "{}", refusal.output);
    let client = Client::connect(&server.grpc()).await;
    client.fill("undisturbed", ["1"]).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let (server, _client) = connected().await;
    let options = Options { grpc_port: Some(server.grpc_port()), ..Options::default() };
    let refusal = Server::expect_refusal(options).await;
    assert_eq!(refusal.status.code(), Some(1), "{}", refusal.output);
    assert!(refusal.output.contains(&server.grpc_port().to_string()), "{}", refusal.output);
}

#[tokio::test]
async fn an_unknown_format_is_refused_by_name() {
    let mut server = Server::start().await;
    server.terminate();
    server.wait_exit(GRACE).await;
    let version = format_file(&server.data());
    let known = std::fs::read_to_string(&version).unwrap();
    let unknown: String = known.chars().map(|char| if char.is_ascii_digit() { '9' } else { char }).collect();
    assert_ne!(known, unknown);
    std::fs::write(&version, &unknown).unwrap();
    let refusal = Server::expect_refusal(Options { data: Some(server.data()), ..Options::default() }).await;
    assert_eq!(refusal.status.code(), Some(1), "{}", refusal.output);
    let number: String = unknown.chars().filter(char::is_ascii_digit).collect();
    assert!(refusal.output.contains(&number), "it does not name the version: {}", refusal.output);
    assert_eq!(std::fs::read_to_string(&version).unwrap(), unknown, "a refused directory is left alone");
    std::fs::write(&version, known).unwrap();
    server.restart().await;
}

/// Finds the file of the data directory that tells the version of its format.
fn format_file(data: &Path) -> PathBuf {
    let names = ["format", "FORMAT", "version", "VERSION"];
    let found = names.iter().map(|name| data.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        let files: Vec<_> = std::fs::read_dir(data).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        unreachable!("no format version in {files:?}")
    })
}

async fn refused_with_configuration(text: &str) -> String {
    let directory = tempfile::tempdir().unwrap_or_else(|error| unreachable!("{error}"));
    let path = directory.path().join("config.yaml");
    std::fs::write(&path, text).unwrap_or_else(|error| unreachable!("{error}"));
    let arguments = vec!["--config".to_owned(), path.display().to_string()];
    let refusal = Server::expect_refusal(Options { arguments, ..Options::default() }).await;
    assert_eq!(refusal.status.code(), Some(1), "{}", refusal.output);
    refusal.output
}

#[tokio::test]
async fn a_misspelt_key_is_refused_with_the_nearest_one() {
    let output = refused_with_configuration("queue:\n  maxNumberOfMesages: 10\n").await;
    let plain: String = output.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    assert!(plain.contains("maxnumberofmesages"), "it does not name the key: {output}");
    assert!(plain.contains("maxnumberofmessages"), "it does not name the nearest one: {output}");
}

#[tokio::test]
async fn values_out_of_bounds_are_refused_by_name() {
    let output = refused_with_configuration("queue:\n  maxDelaySeconds: -7\n").await;
    assert!(output.contains("maxDelaySeconds"), "it does not name the key: {output}");
    let output = refused_with_configuration("queue:\n  maxNumberOfMessages: many\n  maxDelaySeconds: -7\n").await;
    let both = output.contains("maxNumberOfMessages") && output.contains("maxDelaySeconds");
    assert!(both, "only one of two mistakes is told: {output}");
}

#[tokio::test]
async fn a_limit_of_the_file_is_obeyed_and_the_environment_stands_above_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.yaml");
    std::fs::write(&path, "queue:\n  maxNumberOfMessages: 10\n").unwrap();
    let arguments = vec!["--config".to_owned(), path.display().to_string()];
    let variable = ("QUEUE_MAX_NUMBER_OF_MESSAGES".to_owned(), "20".to_owned());
    for (environment, allowed) in [(BTreeMap::new(), 10), (BTreeMap::from([variable]), 20)] {
        let server =
            Server::start_with(Options { arguments: arguments.clone(), environment, ..Options::default() }).await;
        let client = Client::connect(&server.grpc()).await;
        assert!(!client.receive("limits", allowed, 1).await.is_error);
        assert!(client.receive("limits", allowed + 1, 1).await.is_error);
    }
}

#[tokio::test]
async fn configuration_is_printed_with_origins() {
    let mut command = Command::new(binary());
    command.args(["config", "print"]).env_clear().env("QUEUE_MAX_NUMBER_OF_MESSAGES", "33");
    let directory = tempfile::tempdir().unwrap();
    command.current_dir(directory.path());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).to_lowercase();
    let line = text.lines().find(|line| line.contains("maxnumberofmessages")).unwrap_or_else(|| unreachable!("{text}"));
    assert!(line.contains("33") && line.contains("env"), "{line}");
    assert!(text.lines().any(|line| line.contains("50000") && line.contains("default")), "{text}");
}

#[tokio::test]
async fn sigterm_ends_streams_with_a_text_and_the_process_with_zero() {
    let mut server = Server::start().await;
    let client = Client::connect(&server.grpc()).await;
    client.fill("held", ["1", "2", "3"]).await;
    client.fill("held-old", ["1"]).await;
    let (mut holding, mut waiting, mut upstream, mut old) =
        (client.downstream().await, client.downstream().await, client.upstream().await, client.stream().await);
    holding.hold("held", 2).await;
    waiting.send(get("never", 1, 3_600_000)).await;
    assert!(old.ask(old_receive("held-old", 600, 5)).await.message.is_some());
    let mut idle = client.stream().await;
    idle.send(old_receive("never", 600, 3600)).await;
    server.terminate();
    let aborted = |what: &str, status: Status| {
        assert_eq!(status.code(), Code::Aborted, "{what}: {status}");
        assert_ne!(status.message(), "", "{what}");
    };
    aborted("downstream with a transaction", holding.failure().await);
    aborted("downstream with a waiting get", waiting.failure().await);
    aborted("upstream", upstream.failure().await);
    aborted("old stream with a message", old.failure().await);
    aborted("old stream that waits", idle.failure().await);
    let status = server.wait_exit(GRACE).await;
    assert_eq!(status.code(), Some(0), "{}", server.log());
    server.restart().await;
    let client = Client::connect(&server.grpc()).await;
    let received = client.take("held", 3).await;
    assert_eq!((bodies(&received), counts(&received)), (vec!["1".into(), "2".into(), "3".into()], vec![1; 3]));
    assert_eq!(client.take("held-old", 1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_loses_nothing_that_was_acknowledged() {
    let mut server = Server::start().await;
    let tasks = runtime().tasks;
    let mut senders = Vec::new();
    for sender in 0..8 {
        let client = Client::connect(&server.grpc()).await;
        senders.push(tasks.spawn("sender", OnFailure::Log, async move {
            let mut acknowledged = Vec::new();
            for number in 0.. {
                let body = format!("{sender}-{number}");
                match client.api.clone().send_queue_message(message("load", body.clone())).await {
                    Ok(result) if !result.get_ref().is_error => acknowledged.push(body),
                    _ => break,
                }
            }
            acknowledged
        }));
    }
    let client = Client::connect(&server.grpc()).await;
    wait_until("some messages", SOON, async || (client.queues_info("load").await.sent > 200).then_some(())).await;
    server.terminate();
    let status = server.wait_exit(GRACE).await;
    assert_eq!(status.code(), Some(0), "{}", server.log());
    let mut acknowledged = Vec::new();
    for sender in senders {
        acknowledged.extend(timeout(SOON, sender).await.unwrap().unwrap());
    }
    server.restart().await;
    let client = Client::connect(&server.grpc()).await;
    let mut stored = std::collections::BTreeSet::new();
    loop {
        let answer = client.receive("load", 1024, 1).await;
        if answer.messages.is_empty() {
            break;
        }
        stored.extend(bodies(&answer.messages));
    }
    let lost: Vec<&String> = acknowledged.iter().filter(|body| !stored.contains(*body)).collect();
    assert_eq!(lost, [""; 0], "of {} acknowledged", acknowledged.len());
}

#[tokio::test]
async fn sigterm_turns_readiness_off_and_waits_for_nobody() {
    let mut server = Server::start().await;
    let client = Client::connect(&server.grpc()).await;
    let mut calls = client.api.clone();
    let waiting = calls.receive_queue_messages(kubemq_tests::client::receive_request("never", 1, 3600));
    let mut waiting = Box::pin(waiting);
    assert!(timeout(Duration::from_millis(300), &mut waiting).await.is_err());
    server.terminate();
    let http = server.http();
    wait_until("readiness to end", GRACE, async || match http_get(&http, "/ready") {
        Ok((200, _)) => None,
        Ok((status, _)) => {
            assert_eq!(status, 500);
            Some(())
        }
        Err(_) => Some(()),
    })
    .await;
    // Either an empty answer or an error, but soon.
    if let Ok(answer) = timeout(SOON, waiting).await.unwrap() {
        assert_eq!(answer.into_inner().messages.len(), 0);
    }
    assert_eq!(server.wait_exit(GRACE).await.code(), Some(0), "{}", server.log());
}

#[tokio::test]
async fn sigterm_while_starting_ends_it_too() {
    let mut server = Server::start_without_waiting(Options::default());
    sleep(Duration::from_millis(3)).await;
    server.terminate();
    let status = server.wait_exit(GRACE).await;
    // Before the handler is in place the signal itself ends the process.
    assert!(status.code() == Some(0) || status.code().is_none(), "{status}: {}", server.log());
    server.restart().await;
}
