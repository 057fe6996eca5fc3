//! `attach`: watches what goes through channels, from a shell, without taking part in it.
//!
//! Events and requests are watched by a subscription; a request is shown and never answered here. A queue is looked at:
//! its first messages stay where they are, and what is taken between two looks is not seen.

use std::time::Duration;

use futures_util::stream::{self, BoxStream, SelectAll};
use futures_util::{StreamExt as _, TryStreamExt as _};
use kubemq_proto::id;
use kubemq_proto::kubemq as proto;
use kubemq_proto::kubemq::subscribe::{EventsStoreType, SubscribeType};
use kubemq_runtime::Runtime;
use regex::Regex;
use serde::Serialize;

use super::channels::{self, Kind};
use super::client::{Client, Connection, accepted, answer, refused};
use super::event_json::EventView;
use super::output::{self, Ending, Failure, Format};
use super::queue_json::MessageView;
use super::request_json::RequestView;

/// How often a queue is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// The first messages of a queue that are looked at: the broker's own default limit.
const FIRST: i32 = 1024;

/// Watch what goes through channels, without taking part in it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq events attach 'orders.*'
  kubemq commands attach all --exclude heartbeat
  kubemq queues attach orders --output json | jq .body_json

Requests are shown and not answered. Of a queue the first 1024 messages are looked at twice a second and left there.")]
pub(super) struct Attach {
    /// The channels, or all; of what is not stored also patterns
    #[arg(required = true, value_name = "CHANNEL")]
    channels: Vec<String>,
    /// Show only what matches this regular expression, or one of several
    #[arg(short, long, value_name = "REGEX", value_parser = Regex::new)]
    include: Vec<Regex>,
    /// Do not show what matches this regular expression
    #[arg(short, long, value_name = "REGEX", value_parser = Regex::new)]
    exclude: Vec<Regex>,
    /// End after so many
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    messages: Option<u64>,
}

/// What was seen: a channel, and what went through it, as JSON.
type Seen = Result<(String, String), Failure>;

impl Attach {
    /// Shows what goes through channels of `kind` until there was enough, or for ever.
    pub(super) async fn run(
        &self,
        kind: Kind,
        client: Client,
        connection: &Connection,
        runtime: &Runtime,
    ) -> Result<Ending, Failure> {
        let watcher = Watcher { kind, client, runtime: runtime.clone(), client_id: connection.client_id.clone() };
        let mut seen: SelectAll<BoxStream<'static, Seen>> = SelectAll::new();
        for channel in watcher.channels(&self.channels).await? {
            seen.push(watcher.clone().watch(channel).await?);
        }
        let mut left = self.messages;
        while left != Some(0) {
            let Some(one) = seen.next().await else { return Ok(Ending::Nothing) };
            let (channel, json) = one?;
            if !self.shows(&json) {
                continue;
            }
            match connection.output {
                Format::Table => output::line(format_args!("[{}]\t[{channel}]\t{json}", kind.name()))?,
                Format::Json => output::line(&json)?,
            }
            left = left.map(|left| left - 1);
        }
        Ok(Ending::Done)
    }

    fn shows(&self, json: &str) -> bool {
        let matches = |some: &[Regex]| some.iter().any(|one| one.is_match(json));
        (self.include.is_empty() || matches(&self.include)) && !matches(&self.exclude)
    }
}

/// Whoever watches channels of one kind.
#[derive(Clone)]
struct Watcher {
    kind: Kind,
    client: Client,
    runtime: Runtime,
    client_id: String,
}

impl Watcher {
    /// Returns what is to be watched: `all` is every channel that is stored now, and a pattern of what is not stored.
    async fn channels(&self, named: &[String]) -> Result<Vec<String>, Failure> {
        if named != ["all"] {
            return Ok(named.to_vec());
        }
        if !matches!(self.kind, Kind::Queues | Kind::EventsStore) {
            return Ok(vec![">".to_owned()]);
        }
        let (mut client, runtime) = (self.client.clone(), &self.runtime);
        channels::names(&mut client, runtime, &self.client_id, self.kind).await
    }

    async fn watch(mut self, channel: String) -> Result<BoxStream<'static, Seen>, Failure> {
        let (kind, events_store_type_data) = match self.kind {
            Kind::Queues => return Ok(self.look_at(channel)),
            Kind::Events => (SubscribeType::Events, EventsStoreType::Undefined),
            Kind::EventsStore => (SubscribeType::EventsStore, EventsStoreType::StartNewOnly),
            Kind::Commands => (SubscribeType::Commands, EventsStoreType::Undefined),
            Kind::Queries => (SubscribeType::Queries, EventsStoreType::Undefined),
        };
        let subscribe = proto::Subscribe {
            subscribe_type_data: kind.into(),
            // A reader of its own, which nobody else's place is taken from.
            client_id: format!("attach-{}", id::nuid(&self.runtime.random)),
            channel,
            events_store_type_data: events_store_type_data.into(),
            ..proto::Subscribe::default()
        };
        let over = stream::once(std::future::ready(Err(Failure::Refused("Server disconnected".to_owned()))));
        if matches!(self.kind, Kind::Commands | Kind::Queries) {
            let call = self.client.subscribe_to_requests(subscribe);
            let requests = answer(&self.runtime, Duration::ZERO, call).await?.map_err(|status| refused(&status));
            let seen = requests.and_then(async |request| seen(&request.channel, &RequestView::request(&request)));
            return Ok(seen.chain(over).boxed());
        }
        let call = self.client.subscribe_to_events(subscribe);
        let events = answer(&self.runtime, Duration::ZERO, call).await?.map_err(|status| refused(&status));
        let seen = events.and_then(async |event| seen(&event.channel, &EventView::received(&event)));
        Ok(seen.chain(over).boxed())
    }

    /// Looks at a queue again and again. Sequences ascend, so what is new is behind what was seen.
    fn look_at(self, channel: String) -> BoxStream<'static, Seen> {
        let looks = stream::try_unfold((self, channel, 0), async |(mut watcher, channel, mut last)| {
            if last > 0 {
                watcher.runtime.clock.sleep(LOOK).await;
            }
            let call = watcher.client.receive_queue_messages(proto::ReceiveQueueMessagesRequest {
                client_id: watcher.client_id.clone(),
                channel: channel.clone(),
                max_number_of_messages: FIRST,
                wait_time_seconds: i32::from(last == 0),
                is_peak: true,
                ..proto::ReceiveQueueMessagesRequest::default()
            });
            let looked = answer(&watcher.runtime, Duration::ZERO, call).await?;
            accepted(looked.is_error, &looked.error)?;
            let mut new = Vec::new();
            for message in &looked.messages {
                let sequence = message.attributes.as_ref().map_or(0, |attributes| attributes.sequence);
                if sequence > last {
                    last = sequence;
                    new.push(seen(&channel, &MessageView::new(message)));
                }
            }
            Ok::<_, Failure>(Some((stream::iter(new), (watcher, channel, last))))
        });
        looks.try_flatten().boxed()
    }
}

fn seen(channel: &str, view: &impl Serialize) -> Seen {
    let json = serde_json::to_string(view).map_err(|error| Failure::Refused(error.to_string()))?;
    Ok((channel.to_owned(), json))
}
