//! `kubemq events`: send events and watch them, from a shell.

use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use kubemq_proto::id;
use kubemq_proto::kubemq as proto;
use kubemq_proto::kubemq::subscribe::SubscribeType;
use kubemq_runtime::Runtime;

use super::attach::Attach;
use super::channels::Kind;
use super::client::{self, Client, Connection, answer, refused};
use super::event_json::EventView;
use super::output::{self, Ending, Failure, Format};
use super::queues::{parse_tag, read_body};

/// Send and receive events, which are not stored
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq events receive 'orders.*'
  kubemq events send orders.new 'one espresso'

An event reaches whoever is subscribed when it is sent, and nobody else.

Exit codes: 0 done, 1 refused or unreachable, 2 wrong usage, 3 nothing was received in time.")]
pub struct Events {
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
    #[command(visible_aliases = ["a", "att", "at"])]
    Attach(Attach),
}

/// Send events to a channel
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq events send orders hello
  kubemq events send orders @order.json --metadata application/json
  echo hello | kubemq events send orders -
  kubemq events send orders hello --messages 1000 --stream")]
struct Send {
    /// The channel
    channel: String,
    /// The body: text, @FILE for a file, - for standard input (@@ for a text that begins with @)
    body: String,
    /// Text that travels beside the body
    #[arg(long, default_value = "", hide_default_value = true)]
    metadata: String,
    /// A tag, may be given more than once
    #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
    /// How many copies to send
    #[arg(short, long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    messages: u32,
    /// Send them on one stream instead of one call each
    #[arg(short, long)]
    stream: bool,
}

/// Receive events until interrupted
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq events receive orders
  kubemq events receive 'orders.>' --group audit
  kubemq events receive orders --messages 1 --timeout 30 --output json | jq .body_json

Exit code 3 when --timeout passed before as many came as --messages says.")]
struct Receive {
    /// The channel, or a pattern: * stands for one part of a name, > for the rest of it
    channel: String,
    /// Share the events with the other members of this group
    #[arg(short, long, default_value = "", hide_default_value = true)]
    group: String,
    /// End after so many events
    #[arg(short, long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    messages: Option<u64>,
    /// End after so many seconds
    #[arg(short, long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: Option<u32>,
}

impl Events {
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
                Command::Attach(attach) => {
                    attach.run(Kind::Events, session.client, &session.connection, &session.runtime).await
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
        let mut events = Vec::new();
        for _ in 0..send.messages {
            events.push(proto::Event {
                event_id: id::nuid(&self.runtime.random),
                client_id: self.connection.client_id.clone(),
                channel: send.channel.clone(),
                metadata: send.metadata.clone(),
                body: body.clone(),
                store: false,
                tags: send.tags.iter().cloned().collect(),
            });
        }
        if self.for_people() {
            output::line("Sending Events:")?;
        }
        if send.stream {
            self.send_stream(events).await?;
            return Ok(Ending::Done);
        }
        for event in events {
            self.show_sent(&event)?;
            let result = answer(&self.runtime, Duration::ZERO, self.client.send_event(event)).await?;
            if !result.sent {
                return Err(Failure::Refused(result.error));
            }
        }
        Ok(Ending::Done)
    }

    async fn send_stream(&mut self, events: Vec<proto::Event>) -> Result<(), Failure> {
        for event in &events {
            self.show_sent(event)?;
        }
        let mut results =
            answer(&self.runtime, Duration::ZERO, self.client.send_events_stream(stream::iter(events))).await?;
        // Only what is refused is answered; the end says that everything was taken.
        match results.next().await {
            None => Ok(()),
            Some(Ok(result)) => Err(Failure::Refused(result.error)),
            Some(Err(status)) => Err(refused(&status)),
        }
    }

    fn show_sent(&self, event: &proto::Event) -> std::io::Result<()> {
        let view = EventView::sent(event);
        if self.for_people() { output::pretty(&view) } else { output::json(&view) }
    }

    async fn receive(mut self, receive: &Receive) -> Result<Ending, Failure> {
        let subscribe = proto::Subscribe {
            subscribe_type_data: SubscribeType::Events.into(),
            client_id: self.connection.client_id.clone(),
            channel: receive.channel.clone(),
            group: receive.group.clone(),
            ..proto::Subscribe::default()
        };
        let call = self.client.subscribe_to_events(subscribe);
        let mut events = answer(&self.runtime, Duration::ZERO, call).await?;
        if self.for_people() {
            output::line("Waiting for 'events' messages...")?;
        }
        let deadline = receive.timeout.map(|seconds| self.runtime.clock.now() + Duration::from_secs(seconds.into()));
        let mut left = receive.messages;
        while left != Some(0) {
            let event = match deadline {
                None => events.next().await,
                Some(deadline) => match self.runtime.clock.timeout_at(deadline, events.next()).await {
                    Ok(event) => event,
                    Err(_) => return Ok(if left.is_none() { Ending::Done } else { Ending::Nothing }),
                },
            };
            let event = event.unwrap_or_else(|| Err(tonic::Status::aborted("Server disconnected")));
            let event = event.map_err(|status| refused(&status))?;
            let view = EventView::received(&event);
            if self.for_people() { output::pretty(&view) } else { output::json(&view) }?;
            left = left.map(|left| left - 1);
        }
        Ok(Ending::Done)
    }
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
        Events(Events),
    }

    fn parse(line: &str) -> Command {
        let RootCommand::Events(events) = Root::parse_from(line.split(' ')).command;
        events.command
    }

    #[test]
    fn every_alias_of_the_kubemq_tool_is_understood() {
        for alias in ["receive", "r", "rec", "subscribe", "sub"] {
            assert!(matches!(parse(&format!("kubemq events {alias} a.* -g g")), Command::Receive(_)));
        }
        for alias in ["attach", "a", "att", "at"] {
            assert!(matches!(parse(&format!("kubemq events {alias} all -e x")), Command::Attach(_)));
        }
        assert!(matches!(parse("kubemq events s a b -m 3 --metadata meta -s"), Command::Send(_)));
    }
}
