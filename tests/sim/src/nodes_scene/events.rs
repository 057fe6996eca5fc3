//! The publishers and readers of stored events, and one that looks at the places that are noted.
//!
//! A reader stays the same through all its subscriptions. Between its node and itself is a connection on which events
//! are under way for a while; it ends in good order, or breaks with what is under way.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream;
use kubemq_broker::{Kind, Name, Operation};
use kubemq_proto::frame::Frame;
use kubemq_proto::kubemq::subscribe::{EventsStoreType, SubscribeType};
use kubemq_proto::kubemq::{Event, EventReceive, Result as EventResult, Subscribe};
use kubemq_proto::strings::Refusal;
use kubemq_runtime::sync::mpsc;
use kubemq_server::gateway::retention::{Keep, Retention};
use kubemq_server::gateway::stream::Stop;
use kubemq_server::gateway::subscription::{Connection, StoredSubscription};
use kubemq_server::gateway::{Unavailable, events};
use prost::Message as _;

use super::clients::Client;
use super::{Running, Scene};
use crate::oracle::{ChannelNumber, Id, Told, body, id_of};
use crate::run::Plant;
use crate::stored_events::{Reader, Seen};

/// The channels: one that keeps everything, and one that keeps its last events.
const CHANNELS: [&str; 2] = ["feed", "trail"];
/// The channel that keeps its last events.
pub(super) const TRAIL: ChannelNumber = 1;
/// How many it keeps.
pub(super) const KEPT: u64 = 150;

/// Who reads. Of the groups, several members at a time.
const READERS: [Reader; 5] = [
    Reader { channel: 0, number: 1, group: false, first: true },
    Reader { channel: 0, number: 2, group: false, first: false },
    Reader { channel: 0, number: 3, group: true, first: true },
    Reader { channel: TRAIL, number: 4, group: false, first: true },
    Reader { channel: TRAIL, number: 5, group: true, first: true },
];

/// The most that an event is under way to its reader, in nanoseconds.
const UNDER_WAY: u64 = 300_000_000;
/// Events under way on one connection.
const CONNECTION: usize = 4096;
/// How long a reader may take to read everything once nothing goes wrong any more.
const CATCHING_UP: Duration = Duration::from_secs(60);

/// Returns what is kept of the channels.
pub(super) fn retention() -> Retention {
    let trail = Keep { events: Some(KEPT), ..Keep::default() };
    Retention { rules: vec![(CHANNELS[TRAIL].to_owned(), trail)], ..Retention::default() }
}

/// Returns all clients of stored events.
pub(super) fn all(scene: &Scene, until: u64) -> Vec<BoxFuture<'static, ()>> {
    let mut clients: Vec<BoxFuture<'static, ()>> = Vec::new();
    for number in 1..=2 {
        clients.push(Box::pin(Client::new(scene, "publisher", number, until).publish()));
    }
    for reader in READERS {
        for member in 0..if reader.group { 2 } else { 1 } {
            let client = Client::new(scene, "reader of events", 10 * reader.number + member, until);
            clients.push(Box::pin(client.follow(reader)));
        }
    }
    clients.push(Box::pin(Client::new(scene, "watcher of places", 1, until).watch_places()));
    clients
}

/// An event on its way to a reader: when it arrives, and its sequence.
type Passage = (u64, u64);

/// How a subscription goes, drawn before it begins.
#[derive(Clone, Copy)]
struct Course {
    /// How long it lasts.
    lasts: Duration,
    /// It ends by a broken connection.
    breaks: bool,
    /// Of a thousand events, before this many the connection takes nothing for a while.
    slow: u64,
}

impl Client {
    async fn publish(self) {
        let mut next = 1;
        while self.goes_on() {
            let count = if self.draw.below(8) == 0 { 2 + self.draw.below(20) } else { 1 };
            let channel = self.below(2);
            let large = self.draw.below(60) == 0;
            let events: Vec<(Id, usize)> = (0..count)
                .map(|number| {
                    let size = if large { 20_000 + self.below(80_000) } else { self.below(300) };
                    ((100 + self.number) << 32 | (next + number), size)
                })
                .collect();
            next += count;
            let told = self.scene.store(self.node(), channel, events).await;
            self.pause(if told { 60 } else { 150 }).await;
        }
    }

    /// Subscribes again and again as one member of `reader`.
    async fn follow(self, reader: Reader) {
        while self.goes_on() {
            let course = Course {
                lasts: match self.draw.below(8) {
                    0 => Duration::from_millis(self.draw.below(300)),
                    _ => Duration::from_millis(500 + self.draw.below(6_000)),
                },
                breaks: self.draw.below(2) == 0,
                slow: if self.draw.below(4) == 0 { 20 } else { 0 },
            };
            let node = self.node();
            let (sender, passages) = mpsc::channel(CONNECTION);
            let broken = Arc::new(AtomicBool::new(false));
            let (client, at) = (self.clone(), Arc::clone(&broken));
            let serve = self.scene.cluster.call(node, Duration::from_secs(60), move |running| async move {
                client.serve(&running, node, reader, course, sender, &at).await;
            });
            let dies_with_it = self.draw.below(2) == 0;
            let serve = async {
                if serve.await.is_none() && dies_with_it {
                    broken.store(true, Ordering::Relaxed);
                }
            };
            futures_util::join!(serve, self.scene.receive(reader, passages, &broken));
            self.pause(600).await;
        }
    }

    /// What the node does: it subscribes, and gives events to the connection as the connection takes them.
    async fn serve(
        &self,
        running: &Running,
        node: usize,
        reader: Reader,
        course: Course,
        sender: mpsc::Sender<Passage>,
        broken: &AtomicBool,
    ) {
        let connection = Connection::default();
        let Some(mut subscription) = self.scene.subscribe(running, reader, connection.clone()).await else { return };
        if self.scene.plant == Plant::EarlyPlace {
            note_early(running, reader).await;
        }
        let clock = &running.runtime.clock;
        let end = clock.now() + course.lasts;
        let mut arrives = 0;
        while let Ok(next) = clock.timeout_at(end, poll_fn(|cx| subscription.poll_next(cx))).await {
            let Ok(frame) = next else { break };
            let Some(sequence) = self.scene.take(node, reader, &frame) else { return };
            arrives = arrives.max(self.scene.cluster.world().now() + self.draw.below(UNDER_WAY));
            if sender.send((arrives, sequence)).await.is_err() {
                break;
            }
            if self.draw.below(1000) < course.slow {
                clock.sleep(Duration::from_millis(self.draw.below(3_000))).await;
            }
        }
        if course.breaks {
            connection.lose();
            broken.store(true, Ordering::Relaxed);
        }
    }

    /// Reads the places that are noted: none may lie beyond what its reader was sent.
    async fn watch_places(self) {
        while self.goes_on() {
            self.pause(1_000).await;
            let scene = self.scene.clone();
            let read = self.scene.cluster.call(self.node(), Duration::from_secs(12), |running| async move {
                let noted = running.node.gateway().read(|state| {
                    let mut shelf = scene.shelf.lock();
                    READERS.into_iter().try_for_each(|reader| {
                        let channel = state.channel(Kind::EventsStore, CHANNELS[reader.channel]);
                        let place = channel.zip(broker_reader(reader)).and_then(|(channel, it)| channel.cursor(&it));
                        place.map_or(Ok(()), |place| shelf.noted(reader, place))
                    })
                });
                scene.check(noted.await.unwrap_or(Ok(())));
            });
            read.await;
        }
    }
}

impl Scene {
    /// Stores events, and tells the shelf how it ended. Returns whether they are stored.
    async fn store(&self, node: usize, channel: ChannelNumber, events: Vec<(Id, usize)>) -> bool {
        let (world, ids) = (self.cluster.world(), events.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        for id in &ids {
            self.shelf.lock().publishing(*id, channel, world.now());
        }
        let mut events: Vec<Event> = events.into_iter().map(|(id, size)| to_wire(channel, id, size)).collect();
        let answer = self.cluster.call(node, Duration::from_secs(12), move |running| async move {
            let gateway = running.node.gateway();
            match events.pop() {
                Some(event) if events.is_empty() => gateway.store_event(event).await.map(|result| vec![result]),
                last => {
                    events.extend(last);
                    let (answers, mut results) = mpsc::channel(events.len().max(1));
                    let requests = stream::iter(events.into_iter().map(Ok::<_, Infallible>));
                    // What it ended with is seen in the results: one that gave up has too few.
                    events::serve(gateway, requests, answers, Stop::new(), Arc::default()).await.ok();
                    Ok(std::iter::from_fn(|| results.try_recv().ok()).collect())
                }
            }
        });
        let told: Vec<Told> = match answer.await {
            Some(Ok(results)) if results.len() == ids.len() => results.iter().map(told_by).collect(),
            Some(Ok(results)) => {
                world.fail(format!("{} events were sent, {} answers came", ids.len(), results.len()));
                return false;
            }
            Some(Err(Unavailable::NotLeader)) => vec![Told::NotDone; ids.len()],
            Some(Err(_)) | None => vec![Told::Unknown; ids.len()],
        };
        for (id, told) in ids.iter().zip(&told) {
            world.trace(0, format_args!("stored {id:x}: {told:?}"));
            self.check(self.shelf.lock().published(*id, *told, world.now()));
        }
        told.iter().all(|told| *told == Told::Done)
    }

    async fn subscribe(&self, running: &Running, reader: Reader, connection: Connection) -> Option<StoredSubscription> {
        let start = if reader.first { EventsStoreType::StartFromFirst } else { EventsStoreType::StartNewOnly };
        let subscribe = Subscribe {
            subscribe_type_data: SubscribeType::EventsStore as i32,
            client_id: client_id(reader),
            channel: CHANNELS[reader.channel].to_owned(),
            group: if reader.group { client_id(reader) } else { String::new() },
            events_store_type_data: start as i32,
            ..Subscribe::default()
        };
        match running.node.gateway().subscribe_stored(&subscribe, connection).await {
            Ok(Ok(subscription)) => {
                self.shelf.lock().subscribed(reader, self.cluster.world().now());
                Some(subscription)
            }
            _ => None,
        }
    }

    /// Tells the shelf what the connection of a reader took at `node`; nothing when that cannot be.
    fn take(&self, node: usize, reader: Reader, frame: &Frame) -> Option<u64> {
        let world = self.cluster.world();
        let mut shelf = self.shelf.lock();
        if self.cluster.damaged() == Some(node) {
            shelf.doubt(reader);
        }
        let event = EventReceive::decode(Bytes::from(frame.encode_to_vec())).unwrap_or_default();
        let Some(id) = id_of(&event.body).filter(|_| event.channel == CHANNELS[reader.channel]) else {
            world.fail(format!("{reader:?} was sent what nobody stored: {event:?}"));
            return None;
        };
        let seen = Seen { id, sequence: event.sequence, time: u64::try_from(event.timestamp).unwrap_or(0) };
        world.trace(node, format_args!("event {id:x} as {} to {}", event.sequence, reader.number));
        let taken = shelf.taken(reader, seen);
        drop(shelf);
        let fits = taken.is_ok();
        self.check(taken);
        fits.then_some(event.sequence)
    }

    /// What the reader does: it has what arrives before its connection is broken.
    async fn receive(&self, reader: Reader, mut passages: mpsc::Receiver<Passage>, broken: &AtomicBool) {
        let world = self.cluster.world();
        while let Some((arrives, sequence)) = passages.recv().await {
            world.sleep(Duration::from_nanos(arrives.saturating_sub(world.now()))).await;
            let mut shelf = self.shelf.lock();
            if broken.load(Ordering::Relaxed) {
                shelf.lost(reader, sequence);
                continue;
            }
            let arrived = shelf.arrived(reader, sequence);
            drop(shelf);
            self.check(arrived);
        }
    }

    /// Stores one more event in each channel and has every reader read up to it. Returns those events.
    pub(super) async fn finish_events(&self) -> Result<BTreeMap<ChannelNumber, Id>, String> {
        let node = self.leader().await?;
        let latest = BTreeMap::from([(0, 199 << 32), (TRAIL, 199 << 32 | 1)]);
        for (channel, id) in &latest {
            if !self.store(node, *channel, vec![(*id, 10)]).await {
                return Err(format!("an event was not stored in {} after the faults ended", CHANNELS[*channel]));
            }
        }
        for reader in READERS {
            if !reader.first && !self.shelf.lock().is_known(reader) {
                // It would begin only now, behind everything.
                continue;
            }
            self.read_up_to(node, reader, latest.get(&reader.channel).copied().unwrap_or(0)).await?;
        }
        Ok(latest)
    }

    /// Reads every event at `node`, as a reader that was never here: their bodies must be on its own disk.
    pub(super) async fn read_all_events(
        &self,
        node: usize,
        latest: &BTreeMap<ChannelNumber, Id>,
    ) -> Result<(), String> {
        for (channel, id) in latest {
            let number = 100 + 10 * (node as u64) + *channel as u64;
            let reader = Reader { channel: *channel, number, group: false, first: true };
            self.read_up_to(node, reader, *id).await?;
        }
        Ok(())
    }

    /// Has `reader` read at `node` until it has everything up to the event `latest`.
    async fn read_up_to(&self, node: usize, reader: Reader, latest: Id) -> Result<(), String> {
        let scene = self.clone();
        let read = self.cluster.call(node, CATCHING_UP, move |running| async move {
            let mut subscription = loop {
                // The client's last subscription may have ended a moment ago.
                match scene.subscribe(&running, reader, Connection::default()).await {
                    Some(subscription) => break subscription,
                    None => running.runtime.clock.sleep(Duration::from_millis(100)).await,
                }
            };
            loop {
                {
                    let mut shelf = scene.shelf.lock();
                    let last = shelf.sequence(latest);
                    if last.is_some_and(|last| shelf.has(reader, last)) {
                        return Ok(());
                    }
                }
                let next = poll_fn(|cx| subscription.poll_next(cx)).await;
                let frame = next.map_err(|refusal| format!("a subscription ended: {refusal}"))?;
                let sequence = scene.take(node, reader, &frame).ok_or("it was sent what cannot be")?;
                scene.shelf.lock().arrived(reader, sequence)?;
            }
        });
        match read.await {
            Some(read) => read,
            None => Err(format!("{reader:?} did not come to the last event after the faults ended")),
        }
    }
}

/// The planted bug: the place of a reader is noted behind everything that is stored.
async fn note_early(running: &Running, reader: Reader) {
    let gateway = running.node.gateway();
    let end = gateway.read(|state| {
        let channel = state.channel(Kind::EventsStore, CHANNELS[reader.channel])?;
        Some((channel.id(), channel.next_sequence() - 1))
    });
    let (Ok(Some((channel, after))), Some(reader)) = (end.await, broker_reader(reader)) else { return };
    let early = Operation::MoveCursor { channel, reader, after, events: 0, bytes: 0 };
    // Whether it was noted is for others to find.
    gateway.submit(vec![early.to_bytes()]).await.ok();
}

fn client_id(reader: Reader) -> String {
    format!("reader-{}", reader.number)
}

fn broker_reader(reader: Reader) -> Option<kubemq_broker::Reader> {
    let name = Name::new(&client_id(reader)).ok()?;
    Some(if reader.group { kubemq_broker::Reader::group(&name) } else { kubemq_broker::Reader::client(&name) })
}

fn to_wire(channel: ChannelNumber, id: Id, size: usize) -> Event {
    Event {
        client_id: "simulated".to_owned(),
        channel: CHANNELS[channel].to_owned(),
        body: Bytes::from(body(id, size)),
        store: true,
        tags: [("b", "2"), ("a", "1")].map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        ..Event::default()
    }
}

fn told_by(result: &EventResult) -> Told {
    if result.sent {
        Told::Done
    } else if result.error == Refusal::NoLeader.to_string() {
        Told::NotDone
    } else {
        // The only other refusal that these events can meet is that the outcome is not known.
        Told::Unknown
    }
}
