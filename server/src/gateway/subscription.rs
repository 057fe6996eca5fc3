//! Subscribing to stored events: from the log to a connection, at the connection's pace.
//!
//! There is no task between the log and a connection. What the connection takes next is read when it has taken what
//! was read before, or a little earlier when it has to come from a file; who lags therefore slows nobody but itself.
//! The place of a reader follows what its connections took (see [`readers`](crate::desk)).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::future::BoxFuture;
use kubemq_broker::{Channel, ChannelId, Kind, Lookup, Name, Operation, Outcome, Reader, Start, Stretch};
use kubemq_proto::frame::Frame;
use kubemq_proto::kubemq::Subscribe;
use kubemq_proto::strings::Refusal;
use kubemq_proto::subscribe::{self, Position};
use kubemq_storage::Error as StorageError;
use kubemq_storage::log::Log;

use super::{Gateway, Unavailable, send};
use crate::damage::{Damage, Place, Unreadable};
use crate::desk::{Leave, Member, ReaderKey, StoredEvent, Want};
use crate::traffic::{Of, Row, Side};

/// What a subscription asks for at a time.
const WANT: Want = Want { events: 1024, bytes: 512 * 1024 };
/// With fewer events than this left, the next ones are read from the file already.
const READ_AHEAD: usize = 256;
/// How long a client that is still registered may take to go: its end may have been noticed elsewhere first.
const LEAVING: Duration = Duration::from_millis(500);
/// How often a place is asked for of which it did not become known whether it was given.
const ATTEMPTS: usize = 5;

/// Whether a client's connection is lost, as opposed to a stream that it ended. Clones are the same connection.
#[derive(Clone, Debug, Default)]
pub struct Connection(Arc<AtomicBool>);

impl Connection {
    /// Notes that the connection is lost.
    pub fn lose(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Gateway {
    /// Subscribes to stored events. A reader that was here before goes on where it was; the position counts only for
    /// one that was not, and is fixed when this returns.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] when this node cannot serve the subscription now; the refusal when it never can.
    pub async fn subscribe_stored(
        &self,
        subscribe: &Subscribe,
        connection: Connection,
    ) -> Result<Result<StoredSubscription, Refusal>, Unavailable> {
        let position = match subscribe::stored_events(subscribe) {
            Ok(position) => position,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let reader = if subscribe.group.is_empty() {
            Name::new(&subscribe.client_id).map(|client| Reader::client(&client))
        } else {
            Name::new(&subscribe.group).map(|group| Reader::group(&group))
        };
        let (Ok(name), Ok(reader)) = (Name::new(&subscribe.channel), reader) else {
            return Ok(Err(Refusal::EmptyChannel));
        };
        let key = ReaderKey { channel: name.as_str().into(), reader };
        let Some(announced) = self.announce(&key).await else { return Ok(Err(Refusal::StoreClientRegistered)) };
        let start = self.start(&key, position).await?;
        if !self.has_place(&key)
            && let Some(refusal) = self.refuses_to_store()
        {
            return Ok(Err(refusal));
        }
        let open = Operation::OpenCursor { channel: name, reader: key.reader.clone(), start }.to_bytes();
        let mut outcomes = Err(Unavailable::Unknown);
        for _ in 0..ATTEMPTS {
            outcomes = self.commit(vec![open.clone()]).await;
            if outcomes != Err(Unavailable::Unknown) {
                break;
            }
        }
        match outcomes?.first() {
            Some(Outcome::Opened { channel, after }) => {
                let member = announced.join(*channel, *after).ok_or(Unavailable::Unknown)?;
                let row = self.traffic().of(Of::EventsStore, Side::Receive, &subscribe.channel, &subscribe.client_id);
                Ok(Ok(StoredSubscription {
                    gateway: self.clone(),
                    key,
                    member,
                    connection,
                    reading: None,
                    lags: false,
                    left: 0,
                    row,
                    uncounted: (0, 0),
                }))
            }
            Some(Outcome::Refused(reason)) => Ok(Err(send::refusal(*reason))),
            _ => Err(Unavailable::Unknown),
        }
    }

    /// Returns nothing when the same client reads the channel alone and stays.
    async fn announce(&self, key: &ReaderKey) -> Option<Announced> {
        let clock = &self.runtime().clock;
        let deadline = clock.now() + LEAVING;
        loop {
            // Told of leaving from before the lock is given up.
            let left = match self.with_core(|core| core.desk.readers.announce(key)) {
                Ok(()) => return Some(Announced { gateway: self.clone(), key: Some(key.clone()) }),
                Err(left) => left,
            };
            let mut notified = std::pin::pin!(left.notified());
            notified.as_mut().enable();
            if self.with_core(|core| core.desk.readers.is_free(key)) {
                continue;
            }
            clock.timeout_at(deadline, notified).await.ok()?;
        }
    }

    async fn start(&self, key: &ReaderKey, position: Position) -> Result<Start, Unavailable> {
        let time = match position {
            Position::New => return Ok(Start::New),
            Position::First => return Ok(Start::First),
            Position::Last => return Ok(Start::Last),
            Position::Sequence(sequence) => return Ok(Start::At(sequence)),
            Position::Time(time) => time,
            Position::Ago(ago) => self.time().0.saturating_sub(ago),
        };
        self.barrier().await?;
        if self.has_place(key) {
            return Ok(Start::New);
        }
        match self.with_core(|core| core.state.channel(Kind::EventsStore, &key.channel).map(Channel::id)) {
            Some(channel) => Ok(Start::At(self.first_event_from(channel, time).await?)),
            // There is nothing before the subscription.
            None => Ok(Start::New),
        }
    }

    /// Returns whether a reader was here before and goes on where it was.
    fn has_place(&self, key: &ReaderKey) -> bool {
        self.with_core(|core| {
            let channel = core.state.channel(Kind::EventsStore, &key.channel);
            channel.is_some_and(|channel| channel.cursor(&key.reader).is_some())
        })
    }

    /// Returns the sequence of the first event that was stored at `time` or later; the next one when there is none.
    pub(crate) async fn first_event_from(&self, channel: ChannelId, time: u64) -> Result<u64, Unavailable> {
        let moment = self.0.log.moment(time);
        let low = self.look_up(channel, |channel| channel.first_from_entry(moment.before.unwrap_or(0))).await?;
        let high = match moment.from {
            Some(entry) => self.look_up(channel, |channel| channel.first_from_entry(entry)).await?,
            None => self.look_up(channel, |channel| Lookup::Here(channel.next_sequence())).await?,
        };
        let Some((mut low, mut high)) = low.zip(high) else { return Ok(1) };
        while low < high {
            let middle = low + (high - low) / 2;
            // What was trimmed meanwhile is older.
            if self.stored_at(channel, middle).await?.is_some_and(|stored| stored >= time) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(low)
    }

    /// Returns when an event or a queue message was sent; nothing when it is gone.
    pub(crate) async fn stored_at(&self, channel: ChannelId, sequence: u64) -> Result<Option<u64>, Unavailable> {
        let place = self.look_up(channel, |channel| place_of(channel, sequence)).await?;
        let Some((entry, part)) = place else { return Ok(None) };
        match self.0.log.read_part(entry, part).await {
            Ok(read) => Ok(Some(read.time)),
            // Damage at one event must not keep the others from being found, or kept for as long as they should be.
            Err(error) => match self.0.log.time_of(entry).await {
                Some(time) => Ok(Some(time)),
                None => Err(Unavailable::Unreadable(error.to_string())),
            },
        }
    }

    /// Returns whether the sparse index of the log says that an event was stored at `time` or later.
    pub(crate) fn is_surely_from(&self, channel: ChannelId, sequence: u64, time: u64) -> bool {
        let from = self.0.log.moment(time).from;
        let place = self.with_core(|core| place_of(core.state.channel_by_id(channel)?, sequence).here());
        from.zip(place).is_some_and(|(from, (entry, _))| entry >= from)
    }

    pub(super) fn leads_now(&self) -> bool {
        *self.0.leading.borrow()
    }
}

/// Where an event stands in the log.
fn place_of(channel: &Channel, sequence: u64) -> Lookup<(u64, u16)> {
    channel.locate(sequence).map(|location| (location.entry, location.part))
}

/// A subscription that is about to begin; dropping it gives up.
struct Announced {
    gateway: Gateway,
    key: Option<ReaderKey>,
}

impl Announced {
    fn join(mut self, channel: ChannelId, after: u64) -> Option<Arc<Member>> {
        let key = self.key.take()?;
        self.gateway.with_core(|core| core.desk.readers.join(&key, channel, after))
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.gateway.with_core(|core| core.desk.readers.give_up(&key));
        }
    }
}

/// The events of one subscription. Dropping it ends the subscription; what its connection took is noted at once,
/// unless the connection is lost.
pub struct StoredSubscription {
    gateway: Gateway,
    key: ReaderKey,
    member: Arc<Member>,
    connection: Connection,
    reading: Option<BoxFuture<'static, Result<(), Unavailable>>>,
    /// Since there was last nothing to read, something had to be read from a file.
    lags: bool,
    /// Events that waited for the connection when it last took one.
    left: usize,
    /// Where is counted what the client received, and the events and bytes that are not counted there yet.
    row: Arc<Row>,
    uncounted: (u64, u64),
}

impl StoredSubscription {
    /// Returns the next event as its receiver is sent it.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, Refusal>> {
        loop {
            if self.left < READ_AHEAD {
                if self.lags && self.reading.is_none() {
                    self.fetch(cx.waker());
                }
                if let Some(reading) = &mut self.reading
                    && let Poll::Ready(read) = reading.as_mut().poll(cx)
                {
                    self.reading = None;
                    if let Err(error) = read {
                        return Poll::Ready(Err(error.refusal()));
                    }
                }
            }
            if let Some((event, left)) = self.member.take() {
                self.left = left;
                let StoredEvent { sequence, time, event } = event;
                let Some(event) = event else { continue };
                let frame = Frame::stored_event(&self.key.channel, time, sequence, event);
                self.uncounted = (self.uncounted.0 + 1, self.uncounted.1 + frame.len() as u64);
                return Poll::Ready(Ok(frame));
            }
            if std::mem::take(&mut self.left) >= READ_AHEAD {
                // They were given back meanwhile.
                continue;
            }
            self.count();
            if self.reading.is_some() || !self.fetch(cx.waker()) {
                return Poll::Pending;
            }
        }
    }

    /// Counts what the connection took: now and then, not for each event.
    fn count(&mut self) {
        let (events, bytes) = std::mem::take(&mut self.uncounted);
        self.row.add(events, bytes, self.gateway.runtime().clock.wall());
    }

    /// Gets the next events from memory, or begins to read them. Returns whether there are any; if not, `waker` is
    /// woken when there are.
    fn fetch(&mut self, waker: &Waker) -> bool {
        // A group is served by one node, the one that leads; it wakes its members when it comes to lead.
        let want =
            if self.key.reader.is_group() && !self.gateway.leads_now() { Want { events: 0, ..WANT } } else { WANT };
        let given = self.gateway.with_core(|core| core.give_events(&self.key, &self.member, want, waker));
        let Some((generation, stretches)) = given else {
            self.lags = false;
            return false;
        };
        let log = &self.gateway.0.log;
        let mut rest = stretches.as_slice();
        while let Some((stretch, later)) = rest.split_first()
            && let Some(parts) = log.cached_parts(stretch.entry, parts(stretch))
        {
            self.member.add(generation, events(stretch, parts.time, parts.bytes));
            rest = later;
        }
        if !rest.is_empty() {
            self.lags = true;
            let (log, member, stretches) = (log.clone(), Arc::clone(&self.member), rest.to_vec());
            let (channel, damage) = (Arc::clone(&self.key.channel), Arc::clone(&self.gateway.0.damage));
            self.reading = Some(Box::pin(async move {
                for stretch in stretches {
                    let events = read_stretch(&log, &channel, &stretch, &damage).await?;
                    member.add(generation, events);
                }
                Ok(())
            }));
        }
        true
    }
}

impl Drop for StoredSubscription {
    fn drop(&mut self) {
        self.count();
        let leave = if self.connection.is_lost() { Leave::Lost } else { Leave::Clean };
        let note = self.gateway.with_core(|core| core.leave_reader(&self.key, &self.member, leave));
        if let Some(note) = note {
            // Ordered before whatever this client asks for next.
            self.gateway.submit(vec![note.operation.to_bytes()]).forget();
        }
    }
}

fn parts(stretch: &Stretch) -> std::ops::Range<u16> {
    stretch.first_part..stretch.first_part + stretch.count
}

/// Reads a stretch. Events that are damaged are passed over, each for itself.
async fn read_stretch(
    log: &Log,
    channel: &str,
    stretch: &Stretch,
    damage: &Damage,
) -> Result<Vec<StoredEvent>, Unavailable> {
    match log.read_parts(stretch.entry, parts(stretch)).await {
        Ok(read) => return Ok(events(stretch, read.time, read.bytes).collect()),
        Err(error @ StorageError::Closed) => return Err(Unavailable::Unreadable(error.to_string())),
        Err(_) => {}
    }
    let mut all = Vec::with_capacity(usize::from(stretch.count));
    for (sequence, part) in (stretch.first_sequence..).zip(parts(stretch)) {
        let (time, event) = match log.read_part(stretch.entry, part).await {
            Ok(read) => (read.time, message(&read.bytes)),
            // It was trimmed since it was given out; what is not trimmed is missed by those who mark what lives.
            Err(StorageError::NotFound { .. }) => (0, None),
            Err(error) => {
                let place = Place { channel, sequence, entry: stretch.entry, part };
                damage.pass_over(&place, &Unreadable::from(error));
                (0, None)
            }
        };
        all.push(StoredEvent { sequence, time, event });
    }
    Ok(all)
}

fn events(stretch: &Stretch, time: u64, parts: Vec<bytes::Bytes>) -> impl Iterator<Item = StoredEvent> {
    (stretch.first_sequence..).zip(parts).map(move |(sequence, operation)| StoredEvent {
        sequence,
        time,
        event: message(&operation),
    })
}

fn message(operation: &bytes::Bytes) -> Option<bytes::Bytes> {
    match Operation::decode(operation) {
        Ok(Operation::Publish { message, .. }) => Some(message),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use futures_util::task::noop_waker_ref;
    use kubemq_proto::kubemq::Event;
    use kubemq_proto::kubemq::subscribe::{EventsStoreType, SubscribeType};
    use kubemq_storage::fs::MemoryDisk;

    use super::*;
    use crate::node::tests::start;

    #[tokio::test(flavor = "multi_thread")]
    async fn so_many_events_are_read_ahead_for_a_connection() {
        let node = start(&MemoryDisk::default()).await;
        let gateway = node.gateway();
        let events = 3 * WANT.events;
        let store = (0..events).map(|_| {
            let (client_id, channel) = ("c".to_owned(), "e".to_owned());
            gateway.store_event(Event { client_id, channel, body: "x".into(), store: true, ..Event::default() })
        });
        assert!(join_all(store).await.into_iter().all(|stored| stored.unwrap().sent));
        let subscribe = Subscribe {
            subscribe_type_data: SubscribeType::EventsStore.into(),
            client_id: "r".to_owned(),
            channel: "e".to_owned(),
            events_store_type_data: EventsStoreType::StartFromFirst.into(),
            ..Subscribe::default()
        };
        let mut reading = gateway.subscribe_stored(&subscribe, Connection::default()).await.unwrap().unwrap();
        let waiting = || gateway.with_core(|core| core.desk.readers.waiting_events()) as u64;
        let mut most = 0;
        for taken in 1..=events {
            assert!(reading.poll_next(&mut Context::from_waker(noop_waker_ref())).is_ready(), "after {taken}");
            most = most.max(waiting());
            assert!(waiting() < WANT.events, "one of them was taken");
        }
        assert_eq!(most, WANT.events - 1);
        drop(reading);
        node.stop().await;
    }
}
