//! `kubemq channels`: list, create and delete channels of any type, through the reserved channel that the SDKs
//! use for it.

use std::process::ExitCode;
use std::time::Duration;

use kubemq_proto::kubemq as proto;
use kubemq_runtime::Runtime;
use serde::Deserialize;

use super::client::{self, Client, Connection, answer};
use super::output::{self, Ending, Failure, Format};

/// Where the broker takes management requests.
const MANAGEMENT_CHANNEL: &str = "kubemq.cluster.internal.requests";

/// How long the broker may take for one, in milliseconds.
const TIMEOUT_MILLIS: i32 = 10_000;

/// List, create and delete channels
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq channels list
  kubemq channels list --type queues --filter orders --output json
  kubemq channels create orders --type queues
  kubemq channels delete orders --type queues

Exit codes: 0 done, 1 refused or unreachable, 2 wrong usage.")]
pub struct Channels {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List channels and what went through them
    #[command(visible_alias = "l")]
    List {
        /// Only channels of this type
        #[arg(short = 't', long = "type", value_enum)]
        kind: Option<Kind>,
        /// Only channels whose name contains this or matches it as a regular expression
        #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        filter: String,
    },
    /// Create a channel; it may exist already
    #[command(visible_alias = "c")]
    Create {
        /// The name
        channel: String,
        /// The type
        #[arg(short = 't', long = "type", value_enum)]
        kind: Kind,
    },
    /// Delete a channel with everything that is in it
    #[command(visible_alias = "d")]
    Delete {
        /// The name
        channel: String,
        /// The type
        #[arg(short = 't', long = "type", value_enum)]
        kind: Kind,
    },
}

/// The type of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// Events that are not stored.
    Events,
    /// Stored events.
    #[value(name = "events_store", alias = "events-store")]
    EventsStore,
    /// Commands.
    Commands,
    /// Queries.
    Queries,
    /// Queues.
    Queues,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Events, Self::EventsStore, Self::Commands, Self::Queries, Self::Queues];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Events => kubemq_broker::Kind::Events.name(),
            Self::EventsStore => kubemq_broker::Kind::EventsStore.name(),
            Self::Commands => kubemq_broker::Kind::Commands.name(),
            Self::Queries => kubemq_broker::Kind::Queries.name(),
            Self::Queues => kubemq_broker::Kind::Queue.name(),
        }
    }
}

/// What a listed channel is read for; the rest is passed through.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    is_active: bool,
    incoming: Traffic,
    outgoing: Traffic,
}

#[derive(Deserialize)]
struct Traffic {
    messages: i64,
    volume: i64,
    #[serde(default)]
    waiting: i64,
}

impl Channels {
    /// Runs the command and returns the exit code of the process.
    #[must_use]
    pub fn run(self) -> ExitCode {
        output::finish(client::run(|runtime| async move {
            let mut client = self.connection.connect().await?;
            match &self.command {
                Command::List { kind, filter } => {
                    let kinds = kind.as_ref().map_or(&Kind::ALL[..], std::slice::from_ref);
                    list(&mut client, &runtime, &self.connection, kinds, filter).await
                }
                Command::Create { channel, kind } => {
                    self.change(&mut client, &runtime, "create-channel", *kind, channel).await?;
                    self.report("Created", "created", *kind, channel)
                }
                Command::Delete { channel, kind } => {
                    self.change(&mut client, &runtime, "delete-channel", *kind, channel).await?;
                    self.report("Deleted", "deleted", *kind, channel)
                }
            }
        }))
    }

    async fn change(
        &self,
        client: &mut Client,
        runtime: &Runtime,
        operation: &str,
        kind: Kind,
        channel: &str,
    ) -> Result<(), Failure> {
        let tags = [("channel_type", kind.name()), ("channel", channel)];
        manage(client, runtime, &self.connection.client_id, operation, &tags).await.map(drop)
    }

    fn report(&self, text: &str, key: &str, kind: Kind, channel: &str) -> Result<Ending, Failure> {
        match self.connection.output {
            Format::Json => output::json(&serde_json::json!({ key: channel, "type": kind.name() }))?,
            Format::Table => output::line(format_args!("{text} '{channel}' '{}' channel", kind.name()))?,
        }
        Ok(Ending::Done)
    }
}

/// Prints the channels of some types whose names match `filter`.
pub(super) async fn list(
    client: &mut Client,
    runtime: &Runtime,
    connection: &Connection,
    kinds: &[Kind],
    filter: &str,
) -> Result<Ending, Failure> {
    let mut rows = Vec::new();
    for kind in kinds {
        let mut tags = vec![("channel_type", kind.name())];
        if !filter.is_empty() {
            tags.push(("channel_search", filter));
        }
        let body = manage(client, runtime, &connection.client_id, "list-channels", &tags).await?;
        let unreadable = |error| Failure::Refused(format!("could not read the broker's list: {error}"));
        if connection.output == Format::Json {
            let channels: Vec<serde_json::Value> = serde_json::from_slice(&body).map_err(unreadable)?;
            channels.iter().try_for_each(output::json)?;
        } else {
            let channels: Vec<Listed> = serde_json::from_slice(&body).map_err(unreadable)?;
            rows.extend(channels.into_iter().map(cells));
        }
    }
    if connection.output == Format::Table {
        let header = ["NAME", "TYPE", "ACTIVE", "MESSAGES_IN", "BYTES_IN", "MESSAGES_OUT", "BYTES_OUT", "WAITING"];
        output::table(&header, &rows)?;
        output::line(format_args!("\nTOTAL CHANNELS: {}", rows.len()))?;
    }
    Ok(Ending::Done)
}

/// Returns the names of the channels of one type.
pub(super) async fn names(
    client: &mut Client,
    runtime: &Runtime,
    client_id: &str,
    kind: Kind,
) -> Result<Vec<String>, Failure> {
    let body = manage(client, runtime, client_id, "list-channels", &[("channel_type", kind.name())]).await?;
    let channels: Vec<Listed> = serde_json::from_slice(&body)
        .map_err(|error| Failure::Refused(format!("could not read the broker's list: {error}")))?;
    Ok(channels.into_iter().map(|channel| channel.name).collect())
}

/// Sends one management request and returns the body of the answer.
pub(super) async fn manage(
    client: &mut Client,
    runtime: &Runtime,
    client_id: &str,
    operation: &str,
    tags: &[(&str, &str)],
) -> Result<bytes::Bytes, Failure> {
    let mut tags: std::collections::BTreeMap<String, String> =
        tags.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    tags.insert("client_id".to_owned(), client_id.to_owned());
    let call = client.send_request(proto::Request {
        request_type_data: proto::request::RequestType::Query.into(),
        client_id: client_id.to_owned(),
        channel: MANAGEMENT_CHANNEL.to_owned(),
        metadata: operation.to_owned(),
        timeout: TIMEOUT_MILLIS,
        tags,
        ..proto::Request::default()
    });
    let response = answer(runtime, Duration::ZERO, call).await?;
    if response.executed && response.error.is_empty() {
        return Ok(response.body);
    }
    let text = if response.error.is_empty() { "the broker did not do it and gave no reason" } else { &response.error };
    Err(Failure::Refused(text.to_owned()))
}

fn cells(channel: Listed) -> Vec<String> {
    let Listed { name, kind, is_active, incoming, outgoing } = channel;
    let numbers = [
        incoming.messages,
        incoming.volume,
        outgoing.messages,
        outgoing.volume,
        incoming.waiting.max(outgoing.waiting),
    ];
    let active = if is_active { "yes" } else { "no" };
    [name, kind, active.to_owned()].into_iter().chain(numbers.iter().map(i64::to_string)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_any_server_becomes_a_row() {
        let text = r#"{"name":"orders","type":"queues","lastActivity":1,"isActive":true,"more":0,
            "incoming":{"messages":3,"volume":30,"waiting":1},"outgoing":{"messages":2,"volume":20}}"#;
        let listed: Listed = serde_json::from_str(text).unwrap();
        assert_eq!(cells(listed), ["orders", "queues", "yes", "3", "30", "2", "20", "1"]);
    }
}
