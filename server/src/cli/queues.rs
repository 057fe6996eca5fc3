//! `kubemq queues`: send, receive, look, empty and list, from a shell.
//!
//! Receiving here takes messages for good (the broker's plain receive): who needs to settle each message uses
//! an SDK. Shapes and aliases are those of the KubeMQ tool; what it shows decoded from base64 is shown raw.

use std::io::{self, Read};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use kubemq_proto::kubemq as proto;
use kubemq_runtime::Runtime;

use super::attach::Attach;
use super::channels::Kind;
use super::client::{self, Client, Connection, LARGEST_MESSAGE, accepted, answer};
use super::output::{self, Ending, Failure, Format};
use super::queue_json::{MessageView, ResultView};

/// The most messages that one receive asks for: the broker's own default limit.
const MOST_AT_ONCE: i32 = 1024;

/// Send, receive and inspect messages of queues
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq queues send orders 'one espresso'
  kubemq queues receive orders --messages 10
  kubemq queues list --output json

Exit codes: 0 done, 1 refused or unreachable, 2 wrong usage, 3 no message there.")]
pub struct Queues {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    #[command(visible_alias = "s")]
    Send(Send),
    #[command(visible_aliases = ["r", "rec", "subscribe", "sub"])]
    Receive(Receive),
    #[command(visible_alias = "p")]
    Peek(Peek),
    #[command(visible_alias = "ac")]
    Ack(Ack),
    #[command(visible_alias = "l")]
    List(List),
    #[command(visible_aliases = ["a", "att", "at"])]
    Attach(Attach),
}

/// Send messages to a queue
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq queues send orders hello
  kubemq queues send orders @order.json --metadata application/json
  echo hello | kubemq queues send orders -
  kubemq queues send orders hello --delay 60 --expiration 3600
  kubemq queues send orders hello --max-receive 3 --dead-letter-queue orders.dead")]
struct Send {
    /// The queue
    channel: String,
    /// The body: text, @FILE for a file, - for standard input (@@ for a text that begins with @)
    body: String,
    /// Text that travels beside the body
    #[arg(short, long, default_value = "", hide_default_value = true)]
    metadata: String,
    /// A tag, may be given more than once
    #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
    /// Seconds until the message may no longer be received, 0 for never
    #[arg(short, long, value_name = "SECONDS", default_value_t = 0)]
    expiration: i32,
    /// Seconds until the message may be received
    #[arg(short, long, value_name = "SECONDS", default_value_t = 0)]
    delay: i32,
    /// How often the message may be received, 0 for the broker's limit
    #[arg(short = 'r', long, value_name = "TIMES", default_value_t = 0)]
    max_receive: i32,
    /// The queue for a message that was received too often
    #[arg(short = 'q', long, value_name = "CHANNEL", default_value = "", hide_default_value = true)]
    dead_letter_queue: String,
    /// How many copies to send
    #[arg(short = 'i', long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    messages: u32,
}

/// Receive messages from a queue and remove them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq queues receive orders
  kubemq queues receive orders --messages 100 --wait-timeout 10
  kubemq queues receive orders --watch --output json | jq .body_json

Exit code 3 when no message came.")]
struct Receive {
    /// The queue
    channel: String,
    /// How many messages to receive at most
    #[arg(short, long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..))]
    messages: i32,
    /// Seconds to wait for them
    #[arg(short = 't', long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(i32).range(0..))]
    wait_timeout: i32,
    /// Go on receiving until interrupted
    #[arg(short, long)]
    watch: bool,
}

/// Look at the first messages of a queue and leave them there
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  kubemq queues peek orders --messages 5

Exit code 3 when the queue is empty.")]
struct Peek {
    /// The queue
    channel: String,
    /// How many messages to look at
    #[arg(short, long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..))]
    messages: i32,
    /// Seconds to wait for them
    #[arg(short, long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(i32).range(0..))]
    wait: i32,
}

/// Remove every message that waits in a queue
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  kubemq queues ack orders")]
struct Ack {
    /// The queue
    channel: String,
    /// Seconds that the broker may take
    #[arg(short, long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(i32).range(0..))]
    wait: i32,
}

/// List queues and what they hold
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq queues list
  kubemq queues list --filter orders --output json")]
struct List {
    /// Only queues whose name contains this
    #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    filter: String,
}

impl Queues {
    /// Runs the command and returns the exit code of the process.
    #[must_use]
    pub fn run(self) -> ExitCode {
        output::finish(client::run(|runtime| async move {
            // Read before connecting: a wrong path is the user's mistake whether or not a broker is there.
            let body = if let Command::Send(send) = &self.command { read_body(&send.body)? } else { Bytes::new() };
            let client = self.connection.connect().await?;
            let session = Session { client, connection: self.connection, runtime };
            match self.command {
                Command::Send(send) => session.send(&send, body).await,
                Command::Receive(receive) => session.receive(&receive).await,
                Command::Peek(peek) => session.peek(&peek).await,
                Command::Ack(ack) => session.ack(ack).await,
                Command::List(list) => session.list(&list).await,
                Command::Attach(attach) => {
                    attach.run(Kind::Queues, session.client, &session.connection, &session.runtime).await
                }
            }
        }))
    }
}

/// A connection with what the commands need beside it.
struct Session {
    client: Client,
    connection: Connection,
    runtime: Runtime,
}

impl Session {
    fn for_people(&self) -> bool {
        self.connection.output == Format::Table
    }

    async fn send(mut self, send: &Send, body: Bytes) -> Result<Ending, Failure> {
        let message = proto::QueueMessage {
            client_id: self.connection.client_id.clone(),
            channel: send.channel.clone(),
            metadata: send.metadata.clone(),
            body,
            tags: send.tags.iter().cloned().collect(),
            policy: Some(proto::QueueMessagePolicy {
                expiration_seconds: send.expiration,
                delay_seconds: send.delay,
                max_receive_count: send.max_receive,
                max_receive_queue: send.dead_letter_queue.clone(),
            }),
            ..proto::QueueMessage::default()
        };
        for _ in 0..send.messages {
            if self.for_people() {
                output::line("Sending Queue Message:")?;
                output::pretty(&MessageView::new(&message))?;
            }
            let call = self.client.send_queue_message(message.clone());
            let result = answer(&self.runtime, Duration::ZERO, call).await?;
            if self.for_people() {
                output::line("Response:")?;
                output::pretty(&ResultView::new(&result))?;
            } else {
                output::json(&ResultView::new(&result))?;
            }
            accepted(result.is_error, &result.error)?;
        }
        Ok(Ending::Done)
    }

    async fn receive(mut self, receive: &Receive) -> Result<Ending, Failure> {
        let Receive { channel, messages, wait_timeout, watch } = receive;
        if self.for_people() && *watch {
            output::line(format_args!("Watching '{channel}' 'queues' channel, until interrupted..."))?;
        } else if self.for_people() {
            output::line(format_args!(
                "Pulling {messages} messages from '{channel}' 'queues' channel, waiting for {wait_timeout} seconds..."
            ))?;
        }
        let mut left = *messages;
        loop {
            // A watcher asks for one message at a time, so that each is shown as soon as it is there.
            let at_once = if *watch { 1 } else { left.min(MOST_AT_ONCE) };
            let wait = if *watch { (*wait_timeout).max(1) } else { *wait_timeout };
            let received = self.fetch(channel, at_once, wait, false).await?;
            let count = i32::try_from(received.len()).unwrap_or(i32::MAX);
            self.show(&received)?;
            left = left.saturating_sub(count);
            if *watch || (count == at_once && left > 0) {
                continue;
            }
            if left < *messages {
                return Ok(Ending::Done);
            }
            if self.for_people() {
                output::line("No new messages in queue")?;
            }
            return Ok(Ending::Nothing);
        }
    }

    async fn peek(mut self, peek: &Peek) -> Result<Ending, Failure> {
        if self.for_people() {
            output::line(format_args!("Peeking {} messages", peek.messages))?;
        }
        let seen = self.fetch(&peek.channel, peek.messages, peek.wait, true).await?;
        self.show(&seen)?;
        if !seen.is_empty() {
            return Ok(Ending::Done);
        }
        if self.for_people() {
            output::line("No messages in queue to peek")?;
        }
        Ok(Ending::Nothing)
    }

    async fn fetch(
        &mut self,
        channel: &str,
        most: i32,
        wait: i32,
        peek: bool,
    ) -> Result<Vec<proto::QueueMessage>, Failure> {
        let call = self.client.receive_queue_messages(proto::ReceiveQueueMessagesRequest {
            client_id: self.connection.client_id.clone(),
            channel: channel.to_owned(),
            max_number_of_messages: most,
            wait_time_seconds: wait,
            is_peak: peek,
            ..proto::ReceiveQueueMessagesRequest::default()
        });
        let response = answer(&self.runtime, seconds(wait), call).await?;
        accepted(response.is_error, &response.error)?;
        Ok(response.messages)
    }

    fn show(&self, messages: &[proto::QueueMessage]) -> io::Result<()> {
        messages
            .iter()
            .map(MessageView::new)
            .try_for_each(|message| if self.for_people() { output::pretty(&message) } else { output::json(&message) })
    }

    async fn ack(mut self, ack: Ack) -> Result<Ending, Failure> {
        let call = self.client.ack_all_queue_messages(proto::AckAllQueueMessagesRequest {
            client_id: self.connection.client_id.clone(),
            channel: ack.channel,
            wait_time_seconds: ack.wait,
            ..proto::AckAllQueueMessagesRequest::default()
        });
        let response = answer(&self.runtime, seconds(ack.wait), call).await?;
        accepted(response.is_error, &response.error)?;
        if self.for_people() {
            output::line(format_args!("Acked {} messages", response.affected_messages))?;
        } else {
            output::json(&serde_json::json!({ "acked": response.affected_messages }))?;
        }
        Ok(Ending::Done)
    }

    async fn list(mut self, list: &List) -> Result<Ending, Failure> {
        let call = self.client.queues_info(proto::QueuesInfoRequest::default());
        let info = answer(&self.runtime, Duration::ZERO, call).await?.info.unwrap_or_default();
        let mut queues: Vec<_> = info.queues.into_iter().filter(|queue| queue.name.contains(&list.filter)).collect();
        queues.sort_by(|a, b| a.name.cmp(&b.name));
        if self.for_people() {
            let cells = |queue: &proto::QueueInfo| {
                let numbers =
                    [queue.subscribers, queue.messages, queue.bytes, queue.first_sequence, queue.last_sequence];
                std::iter::once(queue.name.clone()).chain(numbers.iter().map(i64::to_string)).collect()
            };
            output::line("CHANNELS:")?;
            output::table(
                &["NAME", "CLIENTS", "MESSAGES", "BYTES", "FIRST_SEQUENCE", "LAST_SEQUENCE"],
                &queues.iter().map(cells).collect::<Vec<_>>(),
            )?;
            output::line(format_args!("\nTOTAL CHANNELS: {}", queues.len()))?;
            return Ok(Ending::Done);
        }
        for queue in &queues {
            output::json(&serde_json::json!({
                "name": queue.name, "clients": queue.subscribers, "messages": queue.messages, "bytes": queue.bytes,
                "first_sequence": queue.first_sequence, "last_sequence": queue.last_sequence, "sent": queue.sent,
                "delivered": queue.delivered, "waiting": queue.waiting,
            }))?;
        }
        Ok(Ending::Done)
    }
}

fn seconds(count: i32) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0))
}

pub(super) fn parse_tag(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| "not of the form NAME=VALUE".to_owned())
}

/// Returns the body that `argument` stands for; a body larger than any message may be is refused unread.
pub(super) fn read_body(argument: &str) -> Result<Bytes, Failure> {
    let most = u64::try_from(LARGEST_MESSAGE).unwrap_or(u64::MAX);
    let read = |reader: &mut dyn Read| {
        let mut body = Vec::new();
        reader.take(most + 1).read_to_end(&mut body)?;
        Ok(body)
    };
    let (name, body) = match argument {
        "-" => ("standard input", read(&mut io::stdin().lock())),
        _ if argument.starts_with("@@") => return Ok(Bytes::from(argument[1..].to_owned())),
        _ => match argument.strip_prefix('@') {
            Some(path) => (path, read_file(path, most)),
            None => return Ok(Bytes::from(argument.to_owned())),
        },
    };
    let body =
        body.map_err(|error: io::Error| Failure::Usage(format!("could not read the body from {name}: {error}")))?;
    if body.len() > LARGEST_MESSAGE {
        return Err(Failure::Usage(format!("the body from {name} is larger than {LARGEST_MESSAGE} bytes")));
    }
    Ok(body.into())
}

fn read_file(path: &str, most: u64) -> io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.len() > most {
        return Err(io::Error::other(format!("it is larger than {most} bytes")));
    }
    std::fs::read(path)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Root {
        #[command(subcommand)]
        command: RootCommand,
    }

    #[derive(clap::Subcommand)]
    enum RootCommand {
        Queues(Queues),
    }

    fn parse(line: &str) -> Queues {
        let RootCommand::Queues(queues) = Root::parse_from(line.split(' ')).command;
        queues
    }

    #[test]
    fn every_alias_of_the_kubemq_tool_is_understood() {
        for alias in ["receive", "r", "rec", "subscribe", "sub"] {
            assert!(matches!(parse(&format!("kubemq queues {alias} a -m 3 -t 5 -w")).command, Command::Receive(_)));
        }
        assert!(matches!(parse("kubemq queues s a b -e 1 -d 2 -r 3 -q dead -i 2 -m meta").command, Command::Send(_)));
        assert!(matches!(parse("kubemq queues p a -m 2 -w 1").command, Command::Peek(_)));
        assert!(matches!(parse("kubemq queues ac a -w 1").command, Command::Ack(_)));
        assert!(matches!(parse("kubemq queues l -f a").command, Command::List(_)));
        for alias in ["attach", "a", "att", "at"] {
            let line = format!("kubemq queues {alias} a b -i x -i y -e z");
            assert!(matches!(parse(&line).command, Command::Attach(_)));
        }
    }

    #[test]
    fn the_connection_may_stand_behind_or_before_the_command() {
        for line in ["kubemq queues list --address a:1 --output json", "kubemq queues --address a:1 --output json list"]
        {
            let queues = parse(line);
            assert_eq!((queues.connection.address.as_str(), queues.connection.output), ("a:1", Format::Json));
        }
    }

    #[test]
    fn a_body_is_text_or_a_file() {
        assert_eq!(read_body("text").ok(), Some(Bytes::from("text")));
        assert_eq!(read_body("@@home").ok(), Some(Bytes::from("@home")));
        let manifest = concat!("@", env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        assert!(read_body(manifest).is_ok_and(|body| body.starts_with(b"[package]")));
        assert!(read_body("@/no/such/file").is_err());
    }
}
