//! Promise: wherever a bit flips in the files of a stopped server, the doctor names the file, and the next start either
//! refuses by name or serves every message that it can read: none of them changed, and those that it cannot are counted.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking with what it saw")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use kubemq_tests::client::bodies;
use kubemq_tests::http::http_get;
use kubemq_tests::process::{Options, binary};
use kubemq_tests::wait::SOON;
use kubemq_tests::{Client, Server, wait_until};

const MESSAGES: usize = 150;

type Files = BTreeMap<PathBuf, Vec<u8>>;

fn options(data: Option<PathBuf>) -> Options {
    let set = ["store.segmentSize=1MiB", "limits.tailCache=1MiB", "store.snapshotIdle=1"];
    let arguments = set.into_iter().flat_map(|set| ["--set".to_owned(), set.to_owned()]).collect();
    Options { data, arguments, errors_expected: true, ..Options::default() }
}

fn body(number: usize) -> String {
    format!("<message {number}>{}", "x".repeat(10_000))
}

/// Reads a directory with all that is in it.
fn read(dir: &Path) -> Files {
    let mut files = Files::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                files.insert(path.strip_prefix(dir).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

fn write(dir: &Path, files: &Files) {
    for (path, bytes) in files {
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// The files of a server that was stopped after it had written messages and a snapshot.
async fn stopped() -> Files {
    let mut server = Server::start_with(options(None)).await;
    let client = Client::connect(&server.grpc()).await;
    client.fill("q", (1..MESSAGES).map(body)).await;
    let snapshots = server.data().join("snapshots");
    let written = async || {
        let names = std::fs::read_dir(&snapshots).map(|names| names.flatten().map(|entry| entry.file_name()).collect());
        let names: Vec<_> = names.unwrap_or_default();
        names.iter().any(|name| name.to_string_lossy().ends_with(".snapshot")).then_some(())
    };
    wait_until("a snapshot", SOON, written).await;
    client.fill("q", [body(MESSAGES)]).await;
    server.terminate();
    assert_eq!(server.wait_exit(SOON).await.code(), Some(0));
    let mut files = read(&server.data());
    files.retain(|path, bytes| !bytes.is_empty() && path.extension().is_none_or(|extension| extension != "free"));
    files
}

/// Places in a file at which a bit is flipped: of the log in each kind of region, of others near both ends and between.
fn places(path: &Path, bytes: &[u8]) -> Vec<usize> {
    let len = bytes.len();
    if path.starts_with("index") {
        return vec![len / 2];
    }
    if !path.starts_with("log") {
        return [3, 30, len / 2, len - 3].into_iter().filter(|place| *place < len).collect();
    }
    // Header, head of the first group, frame, parts, trailer.
    let mut places = vec![9, 70, 110, len / 3, len * 2 / 3, len - 10];
    if let Some(trailer) = bytes.len().checked_sub(32).map(|at| &bytes[at..])
        && trailer.starts_with(b"kmq-end\n")
    {
        let footer = u64::from_le_bytes(trailer[16..24].try_into().unwrap());
        places.push(usize::try_from(footer).unwrap() + 60);
    }
    places
}

/// Receives until all is accounted for, or nothing more comes.
async fn receive_all(server: &Server) -> Vec<String> {
    let client = Client::connect(&server.grpc()).await;
    let mut received = Vec::new();
    while received.len() + passed_over(server) < MESSAGES {
        let answer = client.receive("q", 1000, 1).await;
        assert!(!answer.is_error, "{}", answer.error);
        if answer.messages.is_empty() {
            break;
        }
        received.extend(bodies(&answer.messages));
    }
    received
}

fn passed_over(server: &Server) -> usize {
    let (_, text) = http_get(&server.http(), "/metrics").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("kubemq_damaged_messages_total "));
    line.unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn a_bit_that_flips_anywhere_in_the_files_of_a_stopped_server_is_named_and_never_served() {
    let files = stopped().await;
    let sent: Vec<String> = (1..=MESSAGES).map(body).collect();
    let (mut named, mut refused, mut served, mut lost) = (0, 0, 0, 0);
    for (path, bytes) in &files {
        for place in places(path, bytes) {
            let what = format!("byte {place} of {}", path.display());
            let mut flipped = bytes.clone();
            flipped[place] ^= 1;
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), &files);
            std::fs::write(dir.path().join(path), flipped).unwrap();
            let doctor =
                Command::new(binary()).args(["doctor", "--files-only", "--data"]).arg(dir.path()).output().unwrap();
            let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
            let file = path.file_name().unwrap().to_string_lossy().into_owned();
            let is_named = doctor.status.code() != Some(0);
            let in_index = path.starts_with("index");
            let names_it = said.contains(&file) || said.contains("format version");
            assert!(!is_named || in_index || names_it, "{what}: {said}");
            named += usize::from(is_named);
            match Server::serve_or_refuse(options(Some(dir.path().to_owned()))).await {
                Err(refusal) => {
                    refused += 1;
                    assert!(is_named, "{what}: the start refuses, and the doctor said nothing: {}", refusal.output);
                    let names = ["damaged", "FORMAT", "format version", "snapshot"];
                    assert!(names.iter().any(|name| refusal.output.contains(name)), "{what}: {}", refusal.output);
                }
                Ok(server) => {
                    let received = receive_all(&server).await;
                    let mut rest = sent.iter();
                    let in_order = received.iter().all(|body| rest.any(|sent| sent == body));
                    assert!(in_order, "{what}: something else, or in another order, was served");
                    let missing = sent.len() - received.len();
                    assert_eq!(passed_over(&server), missing, "{what}: what is not served is counted");
                    assert!(missing == 0 || is_named, "{what}: {missing} are not served, and the doctor said nothing");
                    (served, lost) = (served + 1, lost + missing);
                }
            }
        }
    }
    assert!(named > 10 && refused > 2 && served > 5, "{named} {refused} {served} {lost}");
}
