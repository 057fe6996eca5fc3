//! `kubemq events|commands|queries` as scripts use them: JSON on standard output, and exit codes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking with what it saw")]

use std::io::Write as _;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use kubemq_proto::kubemq::subscribe::SubscribeType;
use kubemq_tests::http::http_get;
use kubemq_tests::live::{executed, texts};
use kubemq_tests::process::binary;
use kubemq_tests::{Server, connected, wait_until};
use serde_json::Value;

fn command(server: &Server, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).args(["--address", &server.grpc(), "--output", "json"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a command to its end with `input` as its standard input, without holding up the tests' own tasks.
async fn run(server: &Server, arguments: &[&str], input: &str) -> Output {
    let child = command(server, arguments).spawn().unwrap();
    finish(child, input.to_owned()).await
}

async fn finish(mut child: Child, input: String) -> Output {
    let tasks = kubemq_tests::wait::runtime().tasks;
    let waiting = tasks.compute("command", move || {
        // A command that does not read it has closed it.
        child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
        child.wait_with_output().unwrap()
    });
    waiting.await.unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits until somebody is subscribed to `channel`.
async fn subscribed(server: &Server, kind: &str, channel: &str) {
    subscriptions(server, kind, channel, 1).await;
}

/// Waits until so many are subscribed to `channel`.
async fn subscriptions(server: &Server, kind: &str, channel: &str, count: u32) {
    let line = format!("type=\"{kind}\",side=\"receive\",channel=\"{channel}\"}} {count}");
    wait_until("a subscription", Duration::from_secs(20), async || {
        let (_, text) = http_get(&server.http(), "/metrics").unwrap();
        text.lines().any(|metric| metric.starts_with("kubemq_clients_count") && metric.ends_with(&line)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn events_are_sent_from_an_argument_standard_input_and_on_a_stream() {
    let (server, client) = connected().await;
    let mut events = client.events("cli.events", "").await;
    let output = run(&server, &["events", "send", "cli.events", "{\"a\":1}", "--tag", "k=v"], "").await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(lines(&output)[0]["body_json"]["a"], 1);
    assert_eq!(run(&server, &["e", "s", "cli.events", "-"], "piped").await.status.code(), Some(0));
    let output = run(&server, &["events", "send", "cli.events", "x", "--messages", "3", "--stream"], "").await;
    assert_eq!((output.status.code(), lines(&output).len()), (Some(0), 3));
    let received = events.take(5).await;
    assert_eq!(texts(&received), ["{\"a\":1}", "piped", "x", "x", "x"]);
    assert_eq!(received[0].tags["k"], "v");
    for stream in [&[][..], &["--stream"]] {
        let output = run(&server, &[&["events", "send", "a b", "x"], stream].concat(), "").await;
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("error: Error 108"), "{text}");
    }
}

#[tokio::test]
async fn events_are_received_until_there_were_enough() {
    let (server, client) = connected().await;
    let receiving = ["events", "receive", "cli.watch.*", "--messages", "2", "--timeout", "60"];
    let child = command(&server, &receiving).spawn().unwrap();
    subscribed(&server, "events", "cli.watch.*").await;
    client.publish("cli.watch.a", ["1", "2", "3"]).await;
    let output = finish(child, String::new()).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let shown = lines(&output);
    assert_eq!(shown.iter().map(|event| event["body_json"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(2)]);
    assert_eq!(shown[0]["channel"], "cli.watch.a");
    let nothing = run(&server, &["events", "receive", "cli.silent", "--messages", "1", "--timeout", "1"], "").await;
    assert_eq!((nothing.status.code(), lines(&nothing).len()), (Some(3), 0));
}

#[tokio::test]
async fn a_query_from_a_shell_is_answered_by_a_shell() {
    let (server, _client) = connected().await;
    let child = command(&server, &["queries", "receive", "cli.prices", "-a", "-n", "1"]).spawn().unwrap();
    subscribed(&server, "queries", "cli.prices").await;
    let output = run(&server, &["queries", "send", "cli.prices", "espresso", "--timeout", "20"], "").await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let answer = &lines(&output)[0];
    assert_eq!((&answer["executed"], &answer["body_string"]), (&"true".into(), &"executed your query".into()));
    let asked = finish(child, String::new()).await;
    assert_eq!((asked.status.code(), &lines(&asked)[0]["body_string"]), (Some(0), &"espresso".into()));
}

#[tokio::test]
async fn a_command_is_executed_refused_or_not_answered() {
    let (server, client) = connected().await;
    for (line, code) in [("y\n", 0), ("n\n", 1), ("", 1)] {
        let child = command(&server, &["commands", "receive", "cli.lights", "-n", "1"]).spawn().unwrap();
        subscribed(&server, "commands", "cli.lights").await;
        let asking = run(&server, &["commands", "send", "cli.lights", "on", "--timeout", "30"], "");
        let (asked, answered) = tokio::join!(asking, finish(child, line.to_owned()));
        assert_eq!((asked.status.code(), answered.status.code()), (Some(code), Some(0)), "{line:?}: {asked:?}");
        // The next command is not for the one that has gone.
        subscriptions(&server, "commands", "cli.lights", 0).await;
    }
    let nobody = run(&server, &["commands", "send", "cli.nobody", "on", "--timeout", "1"], "").await;
    assert_eq!(nobody.status.code(), Some(3), "{nobody:?}");
    let _responder = client.respond(SubscribeType::Commands, "cli.mine", "", |request| executed(&request)).await;
    assert_eq!(run(&server, &["cmd", "s", "cli.mine", "on"], "").await.status.code(), Some(0));
    assert_eq!(run(&server, &["commands", "send", "a", "on", "--timeout", "0"], "").await.status.code(), Some(2));
}

#[tokio::test]
async fn loads_that_store_nothing_are_measured() {
    let (server, _client) = connected().await;
    let short = ["--duration", "0.3", "--warmup", "0.1"];
    for load in [&["events", "--receivers", "3", "--in-flight", "60"][..], &["commands"], &["queries", "--rate", "200"]]
    {
        let output = run(&server, &[&["bench"], load, &short].concat(), "").await;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let report = &lines(&output)[0];
        assert!(report["messages"].as_u64() > Some(0), "{report}");
        assert_eq!((report["refused"].as_u64(), report["unanswered"].as_u64()), (Some(0), Some(0)), "{report}");
    }
}

#[tokio::test]
async fn channels_of_stored_events_are_listed() {
    let (server, client) = connected().await;
    client.store("cli.listed.a", 1..=3).await;
    client.store("cli.listed.b", [1]).await;
    client.publish("cli.listed.c", ["not stored"]).await;
    let output = run(&server, &["es", "l", "--filter", "cli.listed"], "").await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let listed: Vec<_> = lines(&output)
        .iter()
        .map(|channel| (channel["name"].clone(), channel["type"].clone(), channel["incoming"]["messages"].clone()))
        .collect();
    let row = |name: &str, count: u64| (Value::from(name), Value::from("events_store"), Value::from(count));
    assert_eq!(listed, [row("cli.listed.a", 3), row("cli.listed.b", 1)]);
}

#[tokio::test]
async fn whoever_attaches_sees_what_goes_by_and_takes_nothing() {
    let (server, client) = connected().await;
    let attach = |pattern: &str, channel: &str, count: &str| {
        command(&server, &[pattern, "attach", channel, "-n", count, "--exclude", "never shown"]).spawn().unwrap()
    };
    let events = attach("events", "cli.attach.>", "2");
    subscribed(&server, "events", "cli.attach.>").await;
    for body in ["1", "never shown", "2"] {
        run(&server, &["events", "send", "cli.attach.a", body], "").await;
    }
    let shown: Vec<Value> = lines(&finish(events, String::new()).await);
    assert_eq!(shown.iter().map(|line| line["body_json"].clone()).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(shown[0]["channel"], "cli.attach.a");

    let stored = attach("events_store", "cli.attach.es", "1");
    subscribed(&server, "events_store", "cli.attach.es").await;
    run(&server, &["events_store", "send", "cli.attach.es", "3"], "").await;
    assert_eq!(lines(&finish(stored, String::new()).await)[0]["body_json"], 3);

    // Who watches does not answer: the responder does.
    let asked = attach("queries", "all", "1");
    subscribed(&server, "queries", ">").await;
    let responder = command(&server, &["queries", "receive", "cli.attach.q", "-a", "-n", "1"]).spawn().unwrap();
    subscribed(&server, "queries", "cli.attach.q").await;
    let answered = run(&server, &["queries", "send", "cli.attach.q", "4"], "").await;
    assert_eq!(answered.status.code(), Some(0), "{answered:?}");
    assert_eq!(lines(&finish(asked, String::new()).await)[0]["body_json"], 4);
    finish(responder, String::new()).await;

    client.fill("cli.attach.queue", ["5"]).await;
    let queue = attach("queues", "cli.attach.queue", "2");
    client.fill("cli.attach.queue", ["never shown", "6"]).await;
    let shown: Vec<Value> = lines(&finish(queue, String::new()).await);
    assert_eq!(shown.iter().map(|line| line["body_json"].clone()).collect::<Vec<_>>(), [5, 6]);
    assert_eq!(client.take("cli.attach.queue", 3).await.len(), 3, "nothing was taken");
}
