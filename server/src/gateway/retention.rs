//! How long stored events are kept: by age, by number and by size, for all channels and for some by name. And how long
//! the places of their readers are.
//!
//! The leader looks every ten seconds and proposes what goes. It removes whole ranges, oldest first, and reads only
//! to find out how old events are.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kubemq_broker::{Channel, ChannelId, Kind, Operation};

use super::{Gateway, Unavailable, management};

/// How often is looked.
const EVERY: Duration = Duration::from_secs(10);

/// What is kept of a channel; nothing is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Events that were stored longer ago go.
    pub age: Option<Duration>,
    /// So many events stay.
    pub events: Option<u64>,
    /// So many bytes stay.
    pub bytes: Option<u64>,
}

/// What is kept of which channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Of every channel, where its rule says nothing else.
    pub all: Keep,
    /// Of channels whose names match a pattern: the first that matches counts.
    pub rules: Vec<(String, Keep)>,
    /// Places of readers that were not used for longer go, when they are of no use any more; none are kept for ever.
    pub places: Option<Duration>,
}

impl Default for Retention {
    fn default() -> Self {
        let week = Duration::from_secs(7 * 24 * 3600);
        let month = Duration::from_secs(30 * 24 * 3600);
        Self { all: Keep { age: Some(week), ..Keep::default() }, rules: Vec::new(), places: Some(month) }
    }
}

impl Retention {
    /// Returns what is kept of the channel with this name.
    #[must_use]
    pub fn of(&self, channel: &str) -> Keep {
        let rule = self.rules.iter().find(|(pattern, _)| management::matches_wildcard(pattern, channel));
        let own = rule.map(|(_, keep)| *keep).unwrap_or_default();
        Keep {
            age: own.age.or(self.all.age),
            events: own.events.or(self.all.events),
            bytes: own.bytes.or(self.all.bytes),
        }
    }
}

/// A channel with what is to be known of it to decide what goes.
struct Seen {
    id: ChannelId,
    /// The oldest event.
    first: u64,
    /// What goes by number or size.
    upto: u64,
    age: Option<Duration>,
}

impl Seen {
    fn of(channel: &Channel, keep: Keep) -> Option<Self> {
        let first = channel.first_sequence()?;
        let by_number = keep.events.map_or(0, |events| channel.next_sequence().saturating_sub(events + 1));
        let by_size = keep.bytes.map_or(0, |bytes| channel.excess_over(bytes));
        Some(Self { id: channel.id(), first, upto: by_number.max(by_size), age: keep.age })
    }
}

/// Removes what is not to be kept, for as long as the node lives. Only the proposals of a leader have an effect.
pub(crate) async fn trim_what_is_old(gateway: Gateway) {
    let clock = gateway.runtime().clock.clone();
    let mut oldest = Oldest::default();
    loop {
        gateway.lead().await;
        let retention = gateway.retention();
        let seen: Vec<Seen> = gateway.with_core(|core| {
            let channels = core.state.channels(Kind::EventsStore);
            channels.filter_map(|channel| Seen::of(channel, retention.of(channel.name()))).collect()
        });
        oldest.forget_all_but(&seen);
        let mut trims = Vec::new();
        for channel in &seen {
            let by_age = oldest.older(&gateway, channel).await.unwrap_or_else(|error| {
                tracing::warn!(channel = channel.id.0, %error, "could not find out how old stored events are");
                0
            });
            let upto = channel.upto.max(by_age);
            if upto >= channel.first {
                trims.push(Operation::Trim { channel: channel.id, upto }.to_bytes());
            }
        }
        trims.extend(forgotten(&gateway));
        if !trims.is_empty()
            && let Err(error) = gateway.submit(trims).await
        {
            tracing::debug!(%error, "could not trim channels yet");
        }
        clock.sleep(EVERY).await;
    }
}

/// Returns what forgets the places of readers who did not come for too long.
fn forgotten(gateway: &Gateway) -> Vec<Bytes> {
    let Some(places) = gateway.retention().places else { return Vec::new() };
    let before = gateway.time().0.saturating_sub(u64::try_from(places.as_nanos()).unwrap_or(u64::MAX));
    gateway.with_core(|core| {
        let channels = core.state.channels(Kind::EventsStore).filter(|channel| channel.stale_cursors(before) > 0);
        channels.map(|channel| Operation::ForgetCursors { channel: channel.id(), before }.to_bytes()).collect()
    })
}

/// The oldest event of each channel and when it was stored, so that nothing is read while nothing grows old.
#[derive(Default)]
struct Oldest(BTreeMap<ChannelId, (u64, u64)>);

impl Oldest {
    fn forget_all_but(&mut self, seen: &[Seen]) {
        let ids: std::collections::BTreeSet<ChannelId> = seen.iter().map(|channel| channel.id).collect();
        self.0.retain(|id, _| ids.contains(id));
    }

    /// Returns the last event that is too old; 0 when none is.
    async fn older(&mut self, gateway: &Gateway, channel: &Seen) -> Result<u64, Unavailable> {
        let Some(age) = channel.age else { return Ok(0) };
        let limit = gateway.time().0.saturating_sub(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
        let known = self.0.get(&channel.id).filter(|(first, _)| *first == channel.first);
        let oldest = match known {
            Some((_, time)) => *time,
            // The sparse index tells without reading, for nearly all.
            None if gateway.is_surely_from(channel.id, channel.first, limit) => return Ok(0),
            None => {
                let time = gateway.stored_at(channel.id, channel.first).await?;
                // It is gone already: the next look tells more.
                let Some(time) = time else { return Ok(0) };
                self.0.insert(channel.id, (channel.first, time));
                time
            }
        };
        if oldest >= limit {
            return Ok(0);
        }
        Ok(gateway.first_event_from(channel.id, limit).await? - 1)
    }
}

#[cfg(test)]
mod tests {
    use kubemq_broker::{Name, Reader};
    use kubemq_proto::kubemq::subscribe::{EventsStoreType, SubscribeType};
    use kubemq_proto::kubemq::{Event, Subscribe};
    use kubemq_storage::fs::MemoryDisk;

    use super::*;
    use crate::gateway::subscription::Connection;
    use crate::node::Options;
    use crate::node::tests::{options, start_with};

    #[test]
    fn the_first_rule_that_matches_counts_and_leaves_the_rest_to_all() {
        let keep = |age: u64, events: u64, bytes: u64| {
            let some = |value: u64| (value > 0).then_some(value);
            Keep { age: some(age).map(Duration::from_secs), events: some(events), bytes: some(bytes) }
        };
        let rules = [("a.*", keep(0, 5, 0)), ("a.b", keep(1, 1, 1)), ("x", keep(7, 0, 9))];
        let rules = rules.map(|(pattern, keep)| (pattern.to_owned(), keep)).to_vec();
        let retention = Retention { all: keep(60, 100, 0), rules, places: None };
        assert_eq!(retention.of("a.b"), keep(60, 5, 0));
        assert_eq!(retention.of("x"), keep(7, 100, 9));
        assert_eq!(retention.of("y"), keep(60, 100, 0));
    }

    fn subscribe(client: &str, from: EventsStoreType) -> Subscribe {
        Subscribe {
            subscribe_type_data: SubscribeType::EventsStore as i32,
            client_id: client.to_owned(),
            channel: "e".to_owned(),
            events_store_type_data: from as i32,
            ..Subscribe::default()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn places_of_those_who_stay_away_are_forgotten_and_of_those_who_are_there_are_not() {
        let all = Keep { events: Some(1), ..Keep::default() };
        let retention = Retention { all, rules: Vec::new(), places: Some(Duration::from_secs(4)) };
        let node = start_with(Options { retention, ..options() }, &MemoryDisk::default()).await;
        let gateway = node.gateway();
        let subscribed = async |client: &str| {
            let subscribe = subscribe(client, EventsStoreType::StartFromFirst);
            gateway.subscribe_stored(&subscribe, Connection::default()).await.unwrap().unwrap()
        };
        // Nobody takes anything: one leaves, the other stays.
        drop(subscribed("gone").await);
        let stays = subscribed("stays").await;
        for _ in 0..3 {
            let event = Event {
                client_id: "c".to_owned(),
                channel: "e".to_owned(),
                body: "x".into(),
                store: true,
                ..Event::default()
            };
            assert!(gateway.store_event(event).await.unwrap().sent);
        }
        let clock = &gateway.runtime().clock;
        let place = |client: &str| {
            let reader = Reader::client(&Name::new(client).unwrap());
            gateway.with_core(|core| core.state.channel(Kind::EventsStore, "e").unwrap().cursor(&reader))
        };
        assert_eq!((place("gone"), place("stays")), (Some(0), Some(0)));
        let forgotten = async {
            while place("gone").is_some() {
                clock.sleep(Duration::from_millis(20)).await;
            }
        };
        clock.timeout(Duration::from_secs(60), forgotten).await.unwrap();
        assert_eq!(place("stays"), Some(0), "somebody is there");
        drop(stays);
        node.stop().await;
    }
}
