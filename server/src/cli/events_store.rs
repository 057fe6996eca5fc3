//! `kubemq events_store`: store events and read them, from a shell. Aliases and flags are those of the KubeMQ tool.

use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use kubemq_proto::kubemq as proto;
use kubemq_proto::kubemq::subscribe::{EventsStoreType, SubscribeType};
use kubemq_runtime::{Instant, Runtime};

use super::attach::Attach;
use super::channels::{self, Kind};
use super::client::{self, Client, Connection, DEFAULT_CLIENT_ID, answer, refused};
use super::event_json::EventView;
use super::output::{self, Ending, Failure, Format};
use super::queues::{parse_tag, read_body};
use crate::config::age;

/// Store events and read them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq events_store send orders 'one espresso'
  kubemq events_store receive orders --start-first
  kubemq es receive orders --start-duration 1h --output json
  kubemq es list

Exit codes: 0 done, 1 refused or unreachable, 2 wrong usage, 3 no event came.")]
pub struct EventsStore {
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
    /// List channels of stored events and what went through them
    #[command(visible_alias = "l")]
    List {
        /// Only channels whose name contains this or matches it as a regular expression
        #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        filter: String,
    },
}

/// Store events in a channel
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq events_store send orders hello
  kubemq events_store send orders @order.json --metadata application/json
  echo hello | kubemq events_store send orders -")]
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
    /// How many copies to store
    #[arg(short, long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    messages: u32,
}

/// Read the events of a channel, and go on with what comes
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq events_store receive orders --start-first
  kubemq events_store receive orders --start-time '2026-01-31 12:00:00' --messages 10
  kubemq events_store receive orders --group workers --client-id worker-1

The broker remembers how far each --client-id, or each --group, came: it goes on there, and the start counts only
for one that was never here. Without --client-id and --group each run is a new reader.
Exit code 3 when --wait-timeout passed and no event came.")]
struct Receive {
    /// The channel
    channel: String,
    /// Share the events with the other members of this group
    #[arg(short, long, value_name = "NAME", default_value = "", hide_default_value = true)]
    group: String,
    #[command(flatten)]
    start: StartFlags,
    /// Stop after so many events, 0 for never
    #[arg(short, long, value_name = "COUNT", default_value_t = 0)]
    messages: u64,
    /// Stop when no event came for so many seconds, 0 for never
    #[arg(short = 't', long, value_name = "SECONDS", default_value_t = 0)]
    wait_timeout: u64,
}

/// Where to begin; behind everything that is stored when nothing is said.
#[derive(Debug, Default, clap::Args)]
#[group(multiple = false)]
struct StartFlags {
    /// Only events that are stored from now on (the default)
    #[arg(long)]
    start_new: bool,
    /// From the first event on
    #[arg(long)]
    start_first: bool,
    /// From the last event on
    #[arg(long)]
    start_last: bool,
    /// From this sequence on
    #[arg(long, value_name = "SEQUENCE", value_parser = clap::value_parser!(i64).range(1..))]
    start_sequence: Option<i64>,
    /// From this time on, in UTC
    #[arg(long, value_name = "YYYY-MM-DD HH:MM:SS", value_parser = parse_time)]
    start_time: Option<i64>,
    /// From so long ago on: 90s, 15m, 12h, 7d
    #[arg(long, value_name = "DURATION", value_parser = parse_seconds)]
    start_duration: Option<i64>,
}

impl StartFlags {
    fn position(&self) -> (EventsStoreType, i64) {
        match self {
            Self { start_first: true, .. } => (EventsStoreType::StartFromFirst, 0),
            Self { start_last: true, .. } => (EventsStoreType::StartFromLast, 0),
            Self { start_sequence: Some(sequence), .. } => (EventsStoreType::StartAtSequence, *sequence),
            Self { start_time: Some(nanos), .. } => (EventsStoreType::StartAtTime, *nanos),
            Self { start_duration: Some(seconds), .. } => (EventsStoreType::StartAtTimeDelta, *seconds),
            Self { .. } => (EventsStoreType::StartNewOnly, 0),
        }
    }
}

impl EventsStore {
    /// Runs the command and returns the exit code of the process.
    #[must_use]
    pub fn run(self) -> ExitCode {
        output::finish(client::run(|runtime| async move {
            // Read before connecting: a wrong path is the user's mistake whether or not a broker is there.
            let body = if let Command::Send(send) = &self.command { read_body(&send.body)? } else { Bytes::new() };
            let client = self.connection.connect().await?;
            let mut session = Session { client, connection: self.connection, runtime };
            match self.command {
                Command::Send(send) => session.send(send, body).await,
                Command::Receive(receive) => session.receive(receive).await,
                Command::Attach(attach) => {
                    attach.run(Kind::EventsStore, session.client, &session.connection, &session.runtime).await
                }
                Command::List { filter } => {
                    let Session { client, connection, runtime } = &mut session;
                    channels::list(client, runtime, connection, &[Kind::EventsStore], &filter).await
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

    async fn send(mut self, send: Send, body: Bytes) -> Result<Ending, Failure> {
        let event = proto::Event {
            client_id: self.connection.client_id.clone(),
            channel: send.channel,
            metadata: send.metadata,
            body,
            store: true,
            tags: send.tags.into_iter().collect(),
            ..proto::Event::default()
        };
        for _ in 0..send.messages {
            let call = self.client.send_event(event.clone());
            let result = answer(&self.runtime, Duration::ZERO, call).await?;
            client::accepted(!result.sent, &result.error)?;
            let sent = proto::Event { event_id: result.event_id, ..event.clone() };
            if self.for_people() {
                output::line("Sending Events Store:")?;
                output::pretty(&EventView::sent(&sent))?;
            } else {
                output::json(&EventView::sent(&sent))?;
            }
        }
        Ok(Ending::Done)
    }

    async fn receive(mut self, receive: Receive) -> Result<Ending, Failure> {
        let (start, value) = receive.start.position();
        let client_id = match self.connection.client_id.as_str() {
            // Somebody who is nobody in particular has read nothing yet.
            DEFAULT_CLIENT_ID => kubemq_proto::id::nuid(&self.runtime.random),
            given => given.to_owned(),
        };
        let subscribe = proto::Subscribe {
            subscribe_type_data: SubscribeType::EventsStore as i32,
            client_id,
            channel: receive.channel,
            group: receive.group,
            events_store_type_data: start as i32,
            events_store_type_value: value,
        };
        let call = self.client.subscribe_to_events(subscribe);
        let mut events = answer(&self.runtime, Duration::ZERO, call).await?;
        if self.for_people() {
            output::line("Waiting for 'events_store' messages...")?;
        }
        let mut received = 0;
        loop {
            let wait = Duration::from_secs(receive.wait_timeout);
            let deadline = (receive.wait_timeout > 0).then(|| self.runtime.clock.now() + wait);
            let Some(event) = self.next(&mut events, deadline).await? else {
                return Ok(if received == 0 { Ending::Nothing } else { Ending::Done });
            };
            received += 1;
            if self.for_people() {
                output::pretty(&EventView::received(&event))?;
            } else {
                output::json(&EventView::received(&event))?;
            }
            if received == receive.messages {
                return Ok(Ending::Done);
            }
        }
    }

    /// Returns nothing when none came in time.
    async fn next(
        &self,
        events: &mut tonic::Streaming<proto::EventReceive>,
        deadline: Option<Instant>,
    ) -> Result<Option<proto::EventReceive>, Failure> {
        let next = match deadline {
            None => events.message().await,
            Some(deadline) => match self.runtime.clock.timeout_at(deadline, events.message()).await {
                Ok(next) => next,
                Err(_) => return Ok(None),
            },
        };
        match next {
            Ok(Some(event)) => Ok(Some(event)),
            Ok(None) => Err(Failure::Refused("Server disconnected".to_owned())),
            Err(status) => Err(refused(&status)),
        }
    }
}

/// Returns the nanoseconds since 1970 of a time in UTC.
fn parse_time(text: &str) -> Result<i64, String> {
    let malformed = || format!("{text:?} is not of the form YYYY-MM-DD HH:MM:SS");
    let numbers: Result<Vec<i64>, _> = text.split(['-', ' ', ':']).map(str::parse).collect();
    let numbers = numbers.map_err(|_| malformed())?;
    let &[year, month, day, hour, minute, second] = numbers.as_slice() else { return Err(malformed()) };
    let is_time = (0..24).contains(&hour) && (0..60).contains(&minute) && (0..60).contains(&second);
    if !(1970..2262).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) || !is_time {
        return Err(malformed());
    }
    // Years counted from March on, so that the day that comes every four years is the last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Ok(((days * 24 + hour) * 60 + minute) * 60_000_000_000 + second * 1_000_000_000)
}

/// Returns the seconds of a duration.
fn parse_seconds(text: &str) -> Result<i64, String> {
    age(text).map(|age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Root {
        #[command(flatten)]
        store: EventsStore,
    }

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Root::try_parse_from(line.split(' ')).map(|root| root.store.command)
    }

    #[test]
    fn starts_are_those_of_the_kubemq_tool() {
        let rows = [
            ("", (EventsStoreType::StartNewOnly, 0)),
            (" --start-new", (EventsStoreType::StartNewOnly, 0)),
            (" --start-first", (EventsStoreType::StartFromFirst, 0)),
            (" --start-last", (EventsStoreType::StartFromLast, 0)),
            (" --start-sequence 7", (EventsStoreType::StartAtSequence, 7)),
            (" --start-duration 2h", (EventsStoreType::StartAtTimeDelta, 7200)),
        ];
        for (flags, expected) in rows {
            for alias in ["receive", "r", "rec", "subscribe", "sub"] {
                let Ok(Command::Receive(receive)) = parse(&format!("es {alias} a{flags}")) else { panic!("{flags}") };
                assert_eq!(receive.start.position(), expected, "{flags}");
            }
        }
        assert!(parse("es receive a --start-first --start-last").is_err(), "one start only");
        assert!(parse("es receive a --start-sequence 0").is_err());
        for alias in ["attach", "a", "att", "at"] {
            assert!(matches!(parse(&format!("es {alias} all -i x")), Ok(Command::Attach(_))));
        }
        assert!(matches!(parse("es l -f a"), Ok(Command::List { filter }) if filter == "a"));
        assert!(matches!(parse("es s a b -m 3 --metadata x --tag k=v"), Ok(Command::Send(_))));
    }

    #[test]
    fn times_and_durations_are_read() {
        let second = 1_000_000_000;
        for (text, expected) in [
            ("1970-01-01 00:00:00", 0),
            ("2000-02-29 11:59:59", 951_825_599 * second),
            ("2023-12-31 23:59:59", 1_704_067_199 * second),
            ("2100-03-01 00:00:00", 4_107_542_400 * second),
        ] {
            assert_eq!(parse_time(text), Ok(expected), "{text}");
        }
        for wrong in
            ["", "2000-01-01", "2000-13-01 00:00:00", "2000-01-01 24:00:00", "x-01-01 00:00:00", "3000-01-01 00:00:00"]
        {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
        assert_eq!((parse_seconds("90s"), parse_seconds("2d")), (Ok(90), Ok(172_800)));
        for wrong in ["", "5", "0s", "-1s", "1w", "9223372036854775807d"] {
            assert!(parse_seconds(wrong).is_err(), "{wrong}");
        }
    }
}
