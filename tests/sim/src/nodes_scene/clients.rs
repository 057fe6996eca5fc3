//! The clients: producers, readers, and one that cleans up.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use kubemq_broker::{Kind, Name, Operation, Outcome};
use kubemq_proto::kubemq::{QueueMessage, QueueMessagePolicy, QueueMessagesBatchRequest, SendQueueMessageResult};
use kubemq_runtime::Random;
use kubemq_server::gateway::{Delivery, Held, Take, Unavailable};
use prost::Message as _;

use super::{CHANNELS, DEAD, DEPOSED_MAY_HAND_OUT, Running, SCRAP, SOLO, Scene, events};
use crate::oracle::{ChannelNumber, Id, Leadership, Sent, Settle, Sight, Told, Trying, body, id_of};

/// Returns all clients of a run.
pub(super) fn all(scene: &Scene, until: u64) -> Vec<BoxFuture<'static, ()>> {
    let mut clients: Vec<BoxFuture<'static, ()>> = Vec::new();
    for number in 1..=3 {
        clients.push(Box::pin(Client::new(scene, "producer", number, until).produce()));
    }
    for number in 0..4 {
        clients.push(Box::pin(Client::new(scene, "reader", number, until).read(None)));
    }
    for channel in [SOLO, DEAD] {
        clients.push(Box::pin(Client::new(scene, "reader of", channel as u64, until).read(Some(channel))));
    }
    clients.push(Box::pin(Client::new(scene, "cleaner", 1, until).clean()));
    clients.extend(events::all(scene, until));
    clients
}

#[derive(Clone)]
pub(super) struct Client {
    pub(super) scene: Scene,
    pub(super) draw: Random,
    pub(super) number: u64,
    until: u64,
}

/// What a reader does with what it took, drawn before it is taken.
#[derive(Clone, Copy)]
struct Manners {
    ack: u64,
    nack: u64,
    requeue: u64,
    think: Duration,
}

impl Client {
    pub(super) fn new(scene: &Scene, role: &str, number: u64, until: u64) -> Self {
        let draw = scene.cluster.world().random(&format!("{role} {number}"));
        Self { scene: scene.clone(), draw, number, until }
    }

    pub(super) fn below(&self, bound: u64) -> usize {
        usize::try_from(self.draw.below(bound)).unwrap_or(0)
    }

    /// Returns the node to talk to: mostly the one that leads.
    pub(super) fn node(&self) -> usize {
        let any = self.scene.cluster.any(&self.draw);
        if self.draw.below(20) == 0 { any } else { self.scene.cluster.leader().unwrap_or(any) }
    }

    pub(super) fn goes_on(&self) -> bool {
        self.scene.cluster.world().now() < self.until
    }

    pub(super) async fn pause(&self, most: u64) {
        let pause = Duration::from_micros(self.draw.below(1000 * most) + 1);
        self.scene.cluster.world().sleep(pause).await;
    }

    async fn produce(self) {
        let mut next = 1;
        while self.goes_on() {
            let count = match self.draw.below(12) {
                0 => 2 + self.draw.below(20),
                _ => 1,
            };
            let channel = match self.draw.below(10) {
                0..6 => self.below(3),
                6..9 => SOLO,
                _ => SCRAP,
            };
            // Now and then a request that does not fit into one batch.
            let large = self.draw.below(60) == 0;
            let mut sent: Vec<(Id, Sent)> =
                (0..count).map(|number| (self.number << 32 | (next + number), self.message(channel, large))).collect();
            // Now and then so many that are delayed for so long that they leave the memory meanwhile.
            if channel < SOLO && self.draw.below(40) == 0 {
                let delay = 8 + self.draw.below(12);
                let id = |number| self.number << 32 | (next + count + number);
                let more = (0..130).map(|number| (id(number), Sent { delay, ..self.message(channel, false) }));
                sent.extend(more);
            }
            let count = sent.len() as u64;
            next += count;
            let told = self.send(self.node(), sent).await;
            self.pause(if told { 25 } else { 100 }).await;
        }
    }

    fn message(&self, channel: ChannelNumber, large: bool) -> Sent {
        let draw = |share, value| if self.draw.below(share) == 0 { value } else { 0 };
        let plain = channel == SOLO;
        let max_receive = u32::try_from(1 + self.draw.below(3)).unwrap_or(1);
        Sent {
            channel,
            at: self.scene.cluster.world().now(),
            delay: if plain { 0 } else { draw(6, 1 + self.draw.below(6)) },
            expiration: if plain { 0 } else { draw(8, 1 + self.draw.below(20)) },
            max_receive: if plain || self.draw.below(2) == 0 { 0 } else { max_receive },
            dead_letter: (!plain && self.draw.below(2) == 0).then_some(DEAD),
            size: if large { 20_000 + self.below(150_000) } else { self.below(300) },
        }
    }

    /// Sends messages, and tells the oracle how it ended. Returns whether they are stored.
    async fn send(&self, node: usize, sent: Vec<(Id, Sent)>) -> bool {
        {
            let mut oracle = self.scene.oracle.lock();
            for (id, sent) in &sent {
                oracle.sending(*id, *sent);
            }
        }
        let messages: Vec<QueueMessage> = sent.iter().map(|(id, sent)| to_wire(*id, sent)).collect();
        let single = messages.len() == 1;
        // A gateway waits ten seconds for a leader.
        let limit = Duration::from_secs(if self.draw.below(4) == 0 { 12 } else { 3 });
        let answer = self.scene.cluster.call(node, limit, move |running| async move {
            let gateway = running.node.gateway();
            if single {
                let message = messages.into_iter().next().unwrap_or_default();
                return gateway.send(message).await.map(|result| vec![result]);
            }
            let batch = QueueMessagesBatchRequest { messages, ..Default::default() };
            let answer = gateway.send_batch(batch).await?;
            Ok(answer.map(|answer| answer.results).unwrap_or_default())
        });
        let told: Vec<Told> = match answer.await {
            Some(Ok(results)) if results.len() == sent.len() => results.iter().map(told_by).collect(),
            Some(Ok(results)) => {
                let text = format!("{} messages were sent, {} answers came", sent.len(), results.len());
                self.scene.cluster.world().fail(text);
                return false;
            }
            Some(Err(Unavailable::NotLeader)) => vec![Told::NotDone; sent.len()],
            Some(Err(_)) | None => vec![Told::Unknown; sent.len()],
        };
        let mut oracle = self.scene.oracle.lock();
        for ((id, _), told) in sent.iter().zip(&told) {
            self.scene.cluster.world().trace(0, format_args!("sent {id:x}: {told:?}"));
            self.scene.check(oracle.sent(*id, *told));
        }
        told.iter().all(|told| *told == Told::Done)
    }

    async fn read(self, only: Option<ChannelNumber>) {
        while self.goes_on() {
            let channel = only.unwrap_or_else(|| self.below(3));
            let solo = channel == SOLO;
            let manners = Manners {
                ack: if solo { 80 } else { 55 },
                nack: if solo { 0 } else { 20 },
                requeue: if solo { 0 } else { 8 },
                think: match self.draw.below(20) {
                    0 => Duration::from_millis(self.draw.below(3_000)),
                    _ => Duration::from_micros(self.draw.below(20_000)),
                },
            };
            let (max, wait) = (1 + self.below(12), Duration::from_millis(self.draw.below(1_500)));
            if self.draw.below(15) == 0 {
                self.peek(channel, max).await;
            }
            self.take(channel, max, wait, manners).await;
            self.pause(15).await;
        }
    }

    async fn take(&self, channel: ChannelNumber, max: usize, wait: Duration, manners: Manners) {
        let (client, cluster) = (self.clone(), &self.scene.cluster);
        let node = self.node();
        let handled = cluster.call(node, Duration::from_secs(30), move |running| async move {
            client.handle(&running, node, channel, max, wait, manners).await;
        });
        handled.await;
    }

    /// One transaction, as the handler of a stream does it: take, think, settle some, give back the rest.
    async fn handle(
        &self,
        running: &Running,
        node: usize,
        channel: ChannelNumber,
        max: usize,
        wait: Duration,
        manners: Manners,
    ) {
        let gateway = running.node.gateway();
        let deadline = running.runtime.clock.now() + wait;
        let take = Take { channel: CHANNELS[channel].to_owned(), max, max_bytes: 400_000, deadline };
        let asked = gateway.time().0;
        let Ok(mut held) = gateway.take(take).await else { return };
        if held.deliveries.is_empty() {
            return;
        }
        let leadership: Leadership = (node, running.node.raft().status().term);
        let deliveries = std::mem::take(&mut held.deliveries);
        let fresh_at = fresh_at(running, asked);
        let Some(ids) = self.delivered(channel, &deliveries, leadership, fresh_at) else { return };
        // Dropped before `held`: who is handed a message next finds it free.
        let _guard = Released { client: self.clone(), ids: ids.iter().map(|(id, _)| *id).collect(), leadership };
        running.runtime.clock.sleep(manners.think).await;
        let (mut ack, mut nack, mut requeue) = (Vec::new(), Vec::new(), Vec::new());
        for message in ids {
            let drawn = self.draw.below(100);
            if drawn < manners.ack {
                ack.push(message);
            } else if drawn < manners.ack + manners.nack {
                nack.push(message);
            } else if drawn < manners.ack + manners.nack + manners.requeue {
                requeue.push(message);
            }
        }
        let to = self.below(3);
        for (settle, messages) in [(Settle::Ack, ack), (Settle::Nack, nack), (Settle::Requeue(to), requeue)] {
            if messages.is_empty() {
                continue;
            }
            let told = self.settle(running, &mut held, settle, &messages, leadership).await;
            if told != Told::Done {
                return;
            }
        }
    }

    /// Tells the oracle what was handed out; nothing when that cannot be.
    fn delivered(
        &self,
        channel: ChannelNumber,
        deliveries: &[Delivery],
        leadership: Leadership,
        fresh_at: u64,
    ) -> Option<Vec<(Id, u64)>> {
        let world = self.scene.cluster.world();
        let now = world.now();
        let stale = self.scene.established.lock().note(leadership, now);
        if let Some(stale) = stale.filter(|stale| *stale > DEPOSED_MAY_HAND_OUT) {
            let (node, term) = leadership;
            world.fail(format!(
                "node {node} hands out in term {term}, {stale} ns after another began to in a later one"
            ));
            return None;
        }
        let mut ids = Vec::new();
        for delivery in deliveries {
            let Some(id) = identify(delivery) else {
                world.fail(format!("sequence {} of {} is not what anybody sent", delivery.sequence, CHANNELS[channel]));
                return None;
            };
            world.trace(
                leadership.0,
                format_args!("take {id:x} of {channel} as {} count {}", delivery.sequence, delivery.receive_count),
            );
            let sight = sight(id, channel, delivery, now, fresh_at);
            let mut oracle = self.scene.oracle.lock();
            let fits = oracle.delivered(&sight, leadership);
            let ordered = channel == SOLO && !self.scene.cluster.was_damaged();
            let fits = if ordered { fits.and_then(|()| oracle.in_order(&sight)) } else { fits };
            drop(oracle);
            if let Err(reason) = fits {
                world.fail(reason);
                return None;
            }
            ids.push((id, delivery.sequence));
        }
        Some(ids)
    }

    /// Settles messages, and tells the oracle how it ended.
    async fn settle(
        &self,
        running: &Running,
        held: &mut Held,
        settle: Settle,
        messages: &[(Id, u64)],
        leadership: Leadership,
    ) -> Told {
        let world = self.scene.cluster.world();
        let trying: Vec<Trying> = {
            let mut oracle = self.scene.oracle.lock();
            let now = world.now();
            messages.iter().filter_map(|(id, _)| oracle.settling(*id, settle, now, leadership)).collect()
        };
        let sequences: Vec<u64> = messages.iter().map(|(_, sequence)| *sequence).collect();
        let submitted = match settle {
            Settle::Ack => held.ack(&sequences),
            Settle::Nack => held.nack(&sequences),
            Settle::Requeue(to) => held.requeue(&sequences, CHANNELS[to]),
        };
        let told = match submitted.await {
            Ok(outcomes) => {
                let done: u64 = outcomes.iter().map(count).sum();
                let same = running.node.raft().status().term == leadership.1;
                if same && done != messages.len() as u64 {
                    world.fail(format!("{settle:?} of {} messages settled {done}: {outcomes:?}", messages.len()));
                }
                // Another leader may have handed them out in between: then some may have been settled before.
                if same { Told::Done } else { Told::Unknown }
            }
            Err(Unavailable::NotLeader) => Told::NotDone,
            Err(_) => Told::Unknown,
        };
        let mut oracle = self.scene.oracle.lock();
        let tally = &mut oracle.tally;
        match settle {
            Settle::Ack => tally.acked += messages.len() as u64,
            Settle::Nack => tally.nacked += messages.len() as u64,
            Settle::Requeue(_) => tally.requeued += messages.len() as u64,
        }
        for trying in trying {
            self.scene.check(oracle.settled(trying, told));
        }
        drop(oracle);
        for (id, _) in messages {
            world.trace(leadership.0, format_args!("{settle:?} {id:x}: {told:?}"));
        }
        told
    }

    async fn peek(&self, channel: ChannelNumber, max: usize) {
        let client = self.clone();
        let peeked = self.scene.cluster.call(self.node(), Duration::from_secs(10), move |running| async move {
            client.look(&running, channel, max).await;
        });
        peeked.await;
    }

    /// Peeks, and tells the oracle what was seen.
    async fn look(&self, running: &Running, channel: ChannelNumber, max: usize) {
        let gateway = running.node.gateway();
        let deadline = running.runtime.clock.now();
        let take = Take { channel: CHANNELS[channel].to_owned(), max, max_bytes: 400_000, deadline };
        // What a peek saw may expire before its answer comes: it also removes what had expired, and waits for that.
        let asked = gateway.time().0;
        let Ok(peeked) = gateway.peek(take).await else { return };
        let asked = asked.min(gateway.time().0);
        let now = self.scene.cluster.world().now();
        for delivery in &peeked.deliveries {
            let Some(id) = identify(delivery) else {
                let text = format!("sequence {} of {} is not what anybody sent", delivery.sequence, CHANNELS[channel]);
                self.scene.cluster.world().fail(text);
                return;
            };
            let mut oracle = self.scene.oracle.lock();
            oracle.tally.peeked += 1;
            self.scene.check(oracle.seen(&sight(id, channel, delivery, now, asked)));
        }
    }

    /// Empties, deletes and makes the scrap channel, and receives from it now and then.
    async fn clean(self) {
        while self.goes_on() {
            self.pause(1_500).await;
            self.scene.oracle.lock().vanishing(SCRAP);
            let (draw, node) = (self.draw.below(4), self.node());
            let name = CHANNELS[SCRAP];
            let done = self.scene.cluster.call(node, Duration::from_secs(5), move |running| async move {
                let gateway = running.node.gateway();
                let change = |operation: Operation| gateway.submit(vec![operation.to_bytes()]);
                let channel = Name::new(name).ok()?;
                match draw {
                    0 => return gateway.ack_all(name).await.ok(),
                    1 => drop(change(Operation::Delete { kind: Kind::Queue, channel }).await.ok()?),
                    2 => drop(change(Operation::Create { kind: Kind::Queue, channel }).await.ok()?),
                    _ => {
                        let deadline = running.runtime.clock.now() + Duration::from_millis(100);
                        let take = Take { channel: name.to_owned(), max: 20, max_bytes: 400_000, deadline };
                        let mut held = gateway.take(take).await.ok()?;
                        held.deliveries.clear();
                        let sequences: Vec<u64> = held.unsettled().collect();
                        drop(held.ack(&sequences).await.ok()?);
                    }
                }
                Some(0)
            });
            if let Some(Some(purged)) = done.await {
                self.scene.oracle.lock().tally.purged += purged;
            }
            // Whatever was sent until now may have been met.
            self.scene.oracle.lock().vanishing(SCRAP);
        }
    }
}

/// Tells the oracle, when a handler ends, that what it held is free again.
struct Released {
    client: Client,
    ids: Vec<Id>,
    leadership: Leadership,
}

impl Drop for Released {
    fn drop(&mut self) {
        let mut oracle = self.client.scene.oracle.lock();
        for id in &self.ids {
            oracle.released(*id, self.leadership);
        }
    }
}

fn count(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Settled { count } | Outcome::Moved { count } => *count,
        _ => 0,
    }
}

fn told_by(result: &SendQueueMessageResult) -> Told {
    // The only refusal that these messages can meet is that the outcome is not known.
    if result.is_error { Told::Unknown } else { Told::Done }
}

pub(super) fn to_wire(id: Id, sent: &Sent) -> QueueMessage {
    let policy = QueueMessagePolicy {
        expiration_seconds: i32::try_from(sent.expiration).unwrap_or(0),
        delay_seconds: i32::try_from(sent.delay).unwrap_or(0),
        max_receive_count: i32::try_from(sent.max_receive).unwrap_or(0),
        max_receive_queue: sent.dead_letter.map(|channel| CHANNELS[channel].to_owned()).unwrap_or_default(),
    };
    QueueMessage {
        client_id: "simulated".to_owned(),
        channel: CHANNELS[sent.channel].to_owned(),
        body: Bytes::from(body(id, sent.size)),
        tags: [("b", "2"), ("a", "1")].map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        policy: Some(policy),
        ..QueueMessage::default()
    }
}

/// Returns which message was handed out, when it is one, whole.
pub(super) fn identify(delivery: &Delivery) -> Option<Id> {
    let message = QueueMessage::decode(delivery.message.clone()).ok()?;
    id_of(&message.body).filter(|_| message.tags.len() == 2 && message.client_id == "simulated")
}

/// Returns when what a take has handed out just now may not have expired yet: when it was asked for, and until
/// shortly before it was handed out. Reading bodies takes a while after the time was looked at. A node that heard
/// another leader meanwhile may have gone back in time.
pub(super) fn fresh_at(running: &Running, asked: u64) -> u64 {
    let now = running.node.gateway().time().0;
    now.saturating_sub(3_000_000_000).max(asked).min(now)
}

pub(super) fn sight(id: Id, channel: ChannelNumber, delivery: &Delivery, now: u64, fresh_at: u64) -> Sight {
    Sight {
        id,
        channel,
        lasting: channel != SCRAP,
        sequence: delivery.sequence,
        count: delivery.receive_count,
        now,
        expires_at: delivery.expires_at,
        fresh_at,
    }
}
