//! Promise: a message whose body was damaged on the disk is found, named, counted and never served, and costs no other
//! message anything; what damage a start cannot go on from is refused by name.
#![expect(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking with what it saw")]

use std::path::{Path, PathBuf};
use std::process::Command;

use kubemq_tests::client::{bodies, sequences};
use kubemq_tests::http::http_get;
use kubemq_tests::process::{Options, binary};
use kubemq_tests::wait::SOON;
use kubemq_tests::{Client, Server, wait_until};

const MESSAGES: usize = 300;
/// In the first file of the log, which is full long before the last message.
const HIT: usize = 20;

fn options() -> Options {
    let set = ["store.segmentSize=1MiB", "limits.tailCache=1MiB", "store.snapshotIdle=1", "store.scrubInterval=1"];
    let arguments = set.into_iter().flat_map(|set| ["--set".to_owned(), set.to_owned()]).collect();
    Options { arguments, errors_expected: true, ..Options::default() }
}

fn body(number: usize) -> String {
    format!("<message {number}>{}", "x".repeat(10_000))
}

/// The bodies of all messages but those.
fn all_but(gone: &[usize]) -> Vec<String> {
    (1..=MESSAGES).filter(|number| !gone.contains(number)).map(body).collect()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).map(|entries| entries.flatten().map(|entry| entry.path()).collect());
    let mut files: Vec<PathBuf> = entries.unwrap_or_default();
    files.sort();
    files
}

/// Flips a bit in the body of a message, where it lies in a file; returns the file.
#[expect(clippy::disallowed_types, reason = "a disk that rots stands outside the program, whose disk has one door")]
fn flip(server: &Server, number: usize) -> PathBuf {
    let wanted = format!("<message {number}>");
    for path in files(&server.data().join("log")) {
        let mut bytes = std::fs::read(&path).unwrap_or_default();
        if let Some(at) = bytes.windows(wanted.len()).position(|window| window == wanted.as_bytes()) {
            bytes[at + 100] ^= 1;
            // In place: the server has the file open.
            let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            std::io::Seek::seek(&mut file, std::io::SeekFrom::Start((at + 100) as u64)).unwrap();
            std::io::Write::write_all(&mut file, &[bytes[at + 100]]).unwrap();
            return path;
        }
    }
    panic!("{wanted} is in no file");
}

fn metric(server: &Server, name: &str) -> u64 {
    let (_, text) = http_get(&server.http(), "/metrics").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}"));
    line.trim().parse().unwrap_or_else(|error| panic!("{name}{line}: {error}"))
}

/// Waits until a snapshot was written that is not among `before`.
async fn snapshot(server: &Server, before: &[PathBuf]) {
    let dir = server.data().join("snapshots");
    let is_new = |path: &PathBuf| !before.contains(path) && path.extension().is_some_and(|it| it == "snapshot");
    wait_until("a snapshot", SOON, async || files(&dir).iter().any(is_new).then_some(())).await;
}

async fn filled() -> (Server, Client) {
    let server = Server::start_with(options()).await;
    let client = Client::connect(&server.grpc()).await;
    client.fill("q", (1..=MESSAGES).map(body)).await;
    snapshot(&server, &[]).await;
    (server, client)
}

/// Receives everything there is.
async fn receive_all(client: &Client) -> Vec<String> {
    let mut received = Vec::new();
    loop {
        let answer = client.receive("q", 100, 1).await;
        assert!(!answer.is_error, "{}", answer.error);
        if answer.messages.is_empty() {
            return received;
        }
        received.extend(bodies(&answer.messages));
    }
}

/// Runs the doctor on the files of a stopped server; returns its exit code and what it said.
fn doctor(server: &Server) -> (Option<i32>, String) {
    let output = Command::new(binary()).args(["doctor", "--data"]).arg(server.data()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Exports what a stopped server holds; returns the exit code and the lines.
fn export(server: &Server) -> (Option<i32>, Vec<serde_json::Value>) {
    let output = Command::new(binary()).args(["doctor", "export", "--data"]).arg(server.data()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// Returns the text that a body holds, which is in base64.
fn decoded(body: &serde_json::Value) -> String {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let text = body.as_str().unwrap().trim_end_matches('=');
    let (mut bits, mut held, mut bytes) = (0_u32, 0, Vec::new());
    for byte in text.bytes() {
        (bits, held) = (bits << 6 | u32::from(digit(byte)), held + 6);
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held & 0xff) as u8);
        }
    }
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_bit_that_flips_under_a_running_server_costs_one_message() {
    let (mut server, client) = filled().await;
    let file = flip(&server, HIT);
    wait_until("the scrubber", SOON, async || (metric(&server, "kubemq_scrub_damaged ") == 1).then_some(())).await;
    let peeked = client.peek("q", 50, 1).await;
    let expected: Vec<u64> = (1..=51).filter(|number| *number != HIT as u64).collect();
    assert_eq!(sequences(&peeked.messages), expected);
    let mut stream = client.downstream().await;
    let (transaction, held) = stream.hold("q", 50).await;
    assert_eq!(sequences(&held), expected);
    assert!(!stream.active(&transaction).await.contains(&(HIT as i64)));
    drop(stream);
    let returned = async || (sequences(&client.peek("q", 50, 1).await.messages) == expected).then_some(());
    wait_until("what was held to return", SOON, returned).await;
    let snapshots = files(&server.data().join("snapshots"));
    assert!(receive_all(&client).await == all_but(&[HIT]));
    assert_eq!(client.ack_all("q", 1).await.affected_messages, 0, "what is damaged is settled by nobody");
    assert_eq!(client.queue_info("q").await.waiting, 1, "nothing is deleted");
    assert_eq!(metric(&server, "kubemq_damaged_messages_total "), 1);
    let lines = server.error_lines();
    let told = |line: &&String| line.contains("a stored message is damaged here and passed over");
    assert_eq!(lines.iter().filter(told).count(), 1, "{lines:?}");
    snapshot(&server, &snapshots).await;
    server.kill();
    assert!(file.exists());
    server.restart().await;
    let client = Client::connect(&server.grpc()).await;
    client.assert_empty("q").await;
    assert_eq!(metric(&server, "kubemq_damaged_messages_total "), 1);
    client.fill("q", ["after"]).await;
    assert_eq!(receive_all(&client).await, ["after"]);
}

#[tokio::test]
async fn a_bit_that_flips_while_the_server_is_stopped_is_named_by_the_doctor_and_costs_one_message() {
    let (mut server, _) = filled().await;
    server.terminate();
    assert_eq!(server.wait_exit(SOON).await.code(), Some(0));
    assert_eq!(doctor(&server).0, Some(0), "{}", doctor(&server).1);
    let file = flip(&server, HIT);
    let (code, said) = doctor(&server);
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    assert!(code == Some(70) && said.contains(&name) && said.contains("checksum"), "{code:?}: {said}");
    server.restart().await;
    let client = Client::connect(&server.grpc()).await;
    assert!(receive_all(&client).await == all_but(&[HIT]));
    assert_eq!(metric(&server, "kubemq_damaged_messages_total "), 1);
}

#[tokio::test]
async fn damage_from_which_a_start_cannot_go_on_is_refused_by_name() {
    let (mut server, client) = filled().await;
    // The newest file is read whole by each start.
    client.fill("q", ["<message 1000>"; 20].map(|text| format!("{text}{}", "x".repeat(200)))).await;
    client.fill("q", ["last"]).await;
    server.kill();
    flip(&server, 1000);
    let data = Some(server.data());
    let refusal = Server::expect_refusal(Options { data, ..options() }).await;
    assert_eq!(refusal.status.code(), Some(70), "{}", refusal.output);
    assert!(refusal.output.contains("is damaged at byte"), "{}", refusal.output);
    assert!(refusal.output.contains("kubemq doctor"), "{}", refusal.output);
    let (code, said) = doctor(&server);
    assert!(code == Some(70) && said.contains("checksum"), "{code:?}: {said}");
    let (code, lines) = export(&server);
    assert_eq!(code, Some(70));
    let unreadable: Vec<u64> = lines
        .iter()
        .filter(|line| line["unreadable"].is_string())
        .filter_map(|line| line["sequence"].as_u64())
        .collect();
    assert_eq!((lines.len(), unreadable), (MESSAGES + 21, vec![MESSAGES as u64 + 1]), "all but one come out");
}

#[tokio::test]
async fn what_a_stopped_server_holds_is_exported_as_it_was_sent() {
    let (mut server, client) = filled().await;
    let mut sent = kubemq_tests::message("other", "a body");
    sent.metadata = "meta".to_owned();
    sent.tags.insert("key".to_owned(), "value".to_owned());
    assert!(!client.send(sent).await.is_error);
    client.take("q", 10).await;
    server.terminate();
    assert_eq!(server.wait_exit(SOON).await.code(), Some(0));
    let (code, lines) = export(&server);
    assert_eq!(code, Some(0));
    let of = |channel: &str| lines.iter().filter(|line| line["channel"] == channel).collect::<Vec<_>>();
    let exported: Vec<_> = of("q").iter().map(|line| decoded(&line["body"])).collect();
    assert!(exported == all_but(&(1..=10).collect::<Vec<_>>()));
    let other = of("other");
    assert_eq!((other.len(), decoded(&other[0]["body"]).as_str()), (1, "a body"));
    assert_eq!((&other[0]["metadata"], &other[0]["tags"]["key"]), (&"meta".into(), &"value".into()));
    assert_eq!((&other[0]["kind"], &other[0]["sequence"]), (&"queues".into(), &1.into()));
}
