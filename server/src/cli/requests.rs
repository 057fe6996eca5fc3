//! `kubemq commands` and `kubemq queries`: ask, and answer what is asked, from a shell.

use std::io::{self, BufRead as _};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use kubemq_proto::id;
use kubemq_proto::kubemq as proto;
use kubemq_proto::kubemq::request::RequestType;
use kubemq_proto::kubemq::subscribe::SubscribeType;
use kubemq_proto::stored;
use kubemq_proto::strings::Refusal;
use kubemq_runtime::Runtime;

use super::attach::Attach;
use super::channels;
use super::client::{self, Client, Connection, answer, refused};
use super::output::{self, Ending, Failure, Format};
use super::queues::{parse_tag, read_body};
use super::request_json::RequestView;

/// Send commands and answer them: whether something was done
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq commands receive lights --auto-response
  kubemq commands send lights on --timeout 5

Exit codes: 0 executed, 1 refused, not executed or unreachable, 2 wrong usage, 3 nobody answered in time.")]
pub struct Commands {
    #[command(subcommand)]
    command: CommandsCommand,
    #[command(flatten)]
    connection: Connection,
}

/// Send queries and answer them: what something is
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq queries receive prices --auto-response
  kubemq queries send prices espresso --cache-key espresso

Exit codes: 0 executed, 1 refused, not executed or unreachable, 2 wrong usage, 3 nobody answered in time.")]
pub struct Queries {
    #[command(subcommand)]
    command: QueriesCommand,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Subcommand)]
enum CommandsCommand {
    #[command(visible_alias = "s")]
    Send(Send),
    #[command(visible_aliases = ["r", "rec", "subscribe", "sub"])]
    Receive(Receive),
    #[command(visible_aliases = ["a", "att", "at"])]
    Attach(Attach),
}

#[derive(Debug, clap::Subcommand)]
enum QueriesCommand {
    #[command(visible_alias = "s")]
    Send(SendQuery),
    #[command(visible_aliases = ["r", "rec", "subscribe", "sub"])]
    Receive(Receive),
    #[command(visible_aliases = ["a", "att", "at"])]
    Attach(Attach),
}

/// Ask, and print the first answer
#[derive(Debug, clap::Args)]
struct Send {
    /// The channel
    channel: String,
    /// The body: text, @FILE for a file, - for standard input (@@ for a text that begins with @)
    body: String,
    /// Text that travels beside the body
    #[arg(short, long, default_value = "", hide_default_value = true)]
    metadata: String,
    /// A tag, may be given more than once
    #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
    /// Seconds to wait for the answer
    #[arg(short = 'o', long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(i32).range(1..=2_000_000))]
    timeout: i32,
}

/// Ask, and print the first answer
#[derive(Debug, clap::Args)]
struct SendQuery {
    #[command(flatten)]
    send: Send,
    /// Take a kept answer to this key, or have the answer kept under it
    #[arg(short, long, value_name = "KEY", default_value = "", hide_default_value = true)]
    cache_key: String,
    /// Seconds that the answer is kept
    #[arg(short = 'd', long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(i32).range(1..))]
    cache_duration: i32,
}

/// Receive what is asked, and answer, until interrupted
#[derive(Debug, clap::Args)]
#[command(after_help = "Without --auto-response each request is shown and a line is read: y says that it was executed,
anything else that it was not.")]
struct Receive {
    /// The channel, or a pattern: * stands for one part of a name, > for the rest of it
    channel: String,
    /// Share the requests with the other members of this group
    #[arg(short, long, default_value = "", hide_default_value = true)]
    group: String,
    /// Answer everything at once as executed
    #[arg(short, long)]
    auto_response: bool,
    /// End after so many requests
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    messages: Option<u64>,
}

impl Commands {
    /// Runs the command and returns the exit code of the process.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let work = match self.command {
            CommandsCommand::Send(send) => Work::Send(send, None),
            CommandsCommand::Receive(receive) => Work::Receive(receive),
            CommandsCommand::Attach(attach) => Work::Attach(attach),
        };
        run(Kind::Command, work, self.connection)
    }
}

impl Queries {
    /// Runs the command and returns the exit code of the process.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let work = match self.command {
            QueriesCommand::Send(SendQuery { send, cache_key, cache_duration }) => {
                Work::Send(send, Some((cache_key, cache_duration)).filter(|(key, _)| !key.is_empty()))
            }
            QueriesCommand::Receive(receive) => Work::Receive(receive),
            QueriesCommand::Attach(attach) => Work::Attach(attach),
        };
        run(Kind::Query, work, self.connection)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Command,
    Query,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Query => "query",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Command => "Command",
            Self::Query => "Query",
        }
    }
}

enum Work {
    /// With the key and the life of a kept answer.
    Send(Send, Option<(String, i32)>),
    Receive(Receive),
    Attach(Attach),
}

fn run(kind: Kind, work: Work, connection: Connection) -> ExitCode {
    output::finish(client::run(|runtime| async move {
        // Read before connecting: a wrong path is the user's mistake whether or not a broker is there.
        let body = if let Work::Send(send, _) = &work { read_body(&send.body)? } else { Bytes::new() };
        let client = connection.connect().await?;
        let session = Session { kind, client, connection, runtime };
        match work {
            Work::Send(send, cache) => session.send(send, body, cache).await,
            Work::Receive(receive) => session.receive(&receive).await,
            Work::Attach(attach) => {
                let kind = match kind {
                    Kind::Command => channels::Kind::Commands,
                    Kind::Query => channels::Kind::Queries,
                };
                attach.run(kind, session.client, &session.connection, &session.runtime).await
            }
        }
    }))
}

/// A connection with what the commands need beside it.
struct Session {
    kind: Kind,
    client: Client,
    connection: Connection,
    runtime: Runtime,
}

impl Session {
    fn for_people(&self) -> bool {
        self.connection.output == Format::Table
    }

    async fn send(mut self, send: Send, body: Bytes, cache: Option<(String, i32)>) -> Result<Ending, Failure> {
        let (cache_key, cache_ttl) = cache.unwrap_or_default();
        let kind = match self.kind {
            Kind::Command => RequestType::Command,
            Kind::Query => RequestType::Query,
        };
        let request = proto::Request {
            request_id: id::nuid(&self.runtime.random),
            request_type_data: kind.into(),
            client_id: self.connection.client_id.clone(),
            channel: send.channel,
            metadata: send.metadata,
            body,
            timeout: send.timeout.saturating_mul(1000),
            cache_key,
            cache_ttl,
            tags: send.tags.into_iter().collect(),
            ..proto::Request::default()
        };
        if self.for_people() {
            output::line(format_args!("Sending {}:", self.kind.title()))?;
            output::pretty(&RequestView::request(&request))?;
        }
        let wait = Duration::from_secs(u64::try_from(send.timeout).unwrap_or(0));
        let response = match answer(&self.runtime, wait, self.client.send_request(request)).await {
            Err(Failure::Refused(text)) if text == Refusal::RequestTimedOut.to_string() => {
                output::note(format_args!("nobody answered within {} s", wait.as_secs()));
                return Ok(Ending::Nothing);
            }
            response => response?,
        };
        let view = RequestView::answer(&response);
        if self.for_people() {
            output::line(format_args!("Getting {} Response:", self.kind.title()))?;
            output::pretty(&view)?;
        } else {
            output::json(&view)?;
        }
        if response.executed {
            return Ok(Ending::Done);
        }
        let text = if response.error.is_empty() { "it was not executed".to_owned() } else { response.error };
        Err(Failure::Refused(text))
    }

    async fn receive(mut self, receive: &Receive) -> Result<Ending, Failure> {
        let kind = match self.kind {
            Kind::Command => SubscribeType::Commands,
            Kind::Query => SubscribeType::Queries,
        };
        let subscribe = proto::Subscribe {
            subscribe_type_data: kind.into(),
            client_id: self.connection.client_id.clone(),
            channel: receive.channel.clone(),
            group: receive.group.clone(),
            ..proto::Subscribe::default()
        };
        let call = self.client.subscribe_to_requests(subscribe);
        let mut asked = answer(&self.runtime, Duration::ZERO, call).await?;
        let mut left = receive.messages;
        while left != Some(0) {
            if self.for_people() {
                output::line(format_args!("Waiting for the next {} body...", self.kind.name()))?;
            }
            let request = asked.next().await.unwrap_or_else(|| Err(tonic::Status::aborted("Server disconnected")));
            let request = request.map_err(|status| refused(&status))?;
            let view = RequestView::request(&request);
            if self.for_people() { output::pretty(&view) } else { output::json(&view) }?;
            let executed = receive.auto_response || confirmed()?;
            let response = self.response(request, executed);
            answer(&self.runtime, Duration::ZERO, self.client.send_response(response)).await?;
            left = left.map(|left| left - 1);
        }
        Ok(Ending::Done)
    }

    fn response(&self, request: proto::Request, executed: bool) -> proto::Response {
        let is_query = self.kind == Kind::Query;
        proto::Response {
            client_id: self.connection.client_id.clone(),
            request_id: request.request_id,
            reply_channel: request.reply_channel,
            executed,
            body: if executed && is_query { Bytes::from_static(b"executed your query") } else { Bytes::new() },
            error: if executed { String::new() } else { format!("{} not executed", self.kind.name()) },
            timestamp: stored::nanos(self.runtime.clock.wall().0),
            ..proto::Response::default()
        }
    }
}

/// Asks whether the request was executed. Without anybody to ask it was not.
fn confirmed() -> io::Result<bool> {
    output::note(format_args!("Set executed ? [y/n]"));
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim().to_ascii_lowercase().starts_with('y'))
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
        Commands(Commands),
        Queries(Queries),
    }

    #[test]
    fn every_alias_of_the_kubemq_tool_is_understood() {
        for pattern in ["commands", "queries"] {
            for alias in ["receive", "r", "rec", "subscribe", "sub"] {
                assert!(Root::try_parse_from(format!("kubemq {pattern} {alias} a -g g -a").split(' ')).is_ok());
            }
            for alias in ["attach", "a", "att", "at"] {
                assert!(Root::try_parse_from(format!("kubemq {pattern} {alias} a b -i x").split(' ')).is_ok());
            }
            assert!(Root::try_parse_from(format!("kubemq {pattern} s a b -m meta -o 5").split(' ')).is_ok());
        }
        assert!(Root::try_parse_from("kubemq queries send a b -c key -d 5".split(' ')).is_ok());
        assert!(Root::try_parse_from("kubemq commands send a b -c key".split(' ')).is_err());
    }
}
