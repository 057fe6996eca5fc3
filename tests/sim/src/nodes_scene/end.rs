//! After the faults: the cluster must agree, serve, hold every body on every node, and drain.

use std::collections::BTreeSet;
use std::time::Duration;

use kubemq_broker::Kind;
use kubemq_server::gateway::{Held, Take};

use super::clients::{fresh_at, identify, sight, to_wire};
use super::{CHANNELS, Running, SCRAP, Scene};
use crate::oracle::{ChannelNumber, Sent, Settle, Told};

impl Scene {
    /// Checks that clients got on while there was a leader for so long: otherwise the run shows nothing.
    pub(super) fn check_done(&self, served: Duration) -> Result<(), String> {
        let tally = self.oracle.lock().tally;
        let done = tally.stored.min(tally.acked);
        if done < served.as_secs() {
            return Err(format!("only {done} messages were stored and acked in {} s with a leader", served.as_secs()));
        }
        let events = self.shelf.lock().tally;
        let done = events.stored.min(events.read);
        if done < served.as_secs() {
            return Err(format!("only {done} events were stored and read in {} s with a leader", served.as_secs()));
        }
        Ok(())
    }

    /// Checks what must hold once nothing goes wrong any more.
    pub(super) async fn check_end(&self) -> Result<(), String> {
        let world = self.cluster.world().clone();
        self.cluster.agreed().await?;
        // What the cleaner had asked for last is done or will never be.
        self.oracle.lock().vanishing(SCRAP);
        self.send_fresh().await?;
        let latest = self.finish_events().await?;
        // What was sent long ago may have been stored only now, by a leader that had waited for others since.
        let longest = Duration::from_millis(self.oracle.lock().longest_delay() * 1020 + 2000);
        world.sleep(longest).await;
        for node in self.cluster.nodes() {
            self.look_everywhere(node).await?;
            self.read_all_events(node, &latest).await?;
        }
        self.shelf.lock().check_read()?;
        self.drain().await?;
        let left = self.left().await?;
        if left > 0 {
            return Err(format!("{left} messages wait in drained channels"));
        }
        self.cluster.agreed().await?;
        self.check_equal()?;
        self.oracle.lock().check_drained(world.now())
    }

    pub(super) async fn leader(&self) -> Result<usize, String> {
        self.cluster.agreed().await?;
        self.cluster.leader().ok_or_else(|| "nobody leads after agreement".to_owned())
    }

    /// Sends to every channel: each must be stored.
    async fn send_fresh(&self) -> Result<(), String> {
        let node = self.leader().await?;
        for channel in 0..CHANNELS.len() {
            let id = 99 << 32 | channel as u64;
            let sent = Sent { channel, at: self.cluster.world().now(), size: 10, ..Sent::default() };
            self.oracle.lock().sending(id, sent);
            let message = to_wire(id, &sent);
            let answer = self.cluster.call(node, Duration::from_secs(12), move |running| async move {
                running.node.gateway().send(message).await
            });
            match answer.await {
                Some(Ok(result)) if !result.is_error => self.oracle.lock().sent(id, Told::Done)?,
                other => return Err(format!("a fresh message was not stored after the faults ended: {other:?}")),
            }
        }
        Ok(())
    }

    /// Gives leadership to `node` and looks at every message there: its bodies must be on its own disk.
    pub(super) async fn look_everywhere(&self, node: usize) -> Result<(), String> {
        let mut tries = 0;
        while self.leader().await? != node {
            tries += 1;
            if tries > 20 {
                return Err(format!("node {node} never came to lead, although leadership was given to it"));
            }
            let leader = self.leader().await?;
            let handed = self.cluster.call(leader, Duration::from_secs(5), move |running| async move {
                running.node.raft().transfer_leader(node as u64).await.ok();
            });
            handed.await;
            self.cluster.world().sleep(Duration::from_millis(700)).await;
        }
        for channel in 0..CHANNELS.len() {
            let scene = self.clone();
            let looked = self
                .cluster
                .call(node, Duration::from_secs(30), move |running| async move { scene.look(&running, channel).await });
            looked.await.ok_or_else(|| format!("node {node} did not answer a peek"))??;
        }
        Ok(())
    }

    async fn look(&self, running: &Running, channel: ChannelNumber) -> Result<(), String> {
        let gateway = running.node.gateway();
        let deadline = running.runtime.clock.now();
        let take = Take { channel: CHANNELS[channel].to_owned(), max: 1_000_000, max_bytes: u64::MAX, deadline };
        let asked = gateway.time().0;
        let peeked = gateway.peek(take).await;
        let peeked = peeked
            .map_err(|error| format!("node {}: a peek of {} failed: {error}", running.node.id(), CHANNELS[channel]))?;
        let now = self.cluster.world().now();
        for delivery in &peeked.deliveries {
            let id = identify(delivery).ok_or_else(|| format!("sequence {} is damaged", delivery.sequence))?;
            let mut oracle = self.oracle.lock();
            oracle.tally.peeked += 1;
            oracle.seen(&sight(id, channel, delivery, now, asked))?;
        }
        Ok(())
    }

    /// Takes and acks everything that is left.
    async fn drain(&self) -> Result<(), String> {
        let node = self.leader().await?;
        for channel in 0..CHANNELS.len() {
            loop {
                let scene = self.clone();
                let drained = self.cluster.call(node, Duration::from_secs(60), move |running| async move {
                    scene.drain_some(&running, node, channel).await
                });
                let drained = drained.await.ok_or_else(|| format!("node {node} did not answer a take"))??;
                self.oracle.lock().tally.drained += drained;
                if drained == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn drain_some(&self, running: &Running, node: usize, channel: ChannelNumber) -> Result<u64, String> {
        let gateway = running.node.gateway();
        let deadline = running.runtime.clock.now() + Duration::from_millis(100);
        let take = Take { channel: CHANNELS[channel].to_owned(), max: 500, max_bytes: 4 << 20, deadline };
        let asked = gateway.time().0;
        let mut held: Held = gateway.take(take).await.map_err(|error| format!("a take failed: {error}"))?;
        let deliveries = std::mem::take(&mut held.deliveries);
        let leadership = (node, running.node.raft().status().term);
        let (now, fresh_at) = (self.cluster.world().now(), fresh_at(running, asked));
        let (mut trying, mut sequences) = (Vec::new(), Vec::new());
        for delivery in &deliveries {
            let id = identify(delivery).ok_or_else(|| format!("sequence {} is damaged", delivery.sequence))?;
            self.cluster.world().trace(node, format_args!("drain {id:x} of {channel} as {}", delivery.sequence));
            let mut oracle = self.oracle.lock();
            oracle.delivered(&sight(id, channel, delivery, now, fresh_at), leadership)?;
            trying.extend(oracle.settling(id, Settle::Ack, now, leadership));
            sequences.push(delivery.sequence);
        }
        let outcomes = held.ack(&sequences).await.map_err(|error| format!("an ack failed: {error}"))?;
        if !sequences.is_empty() && outcomes.is_empty() {
            return Err("an ack was answered without an outcome".to_owned());
        }
        let mut oracle = self.oracle.lock();
        for trying in trying {
            oracle.settled(trying, Told::Done)?;
        }
        Ok(sequences.len() as u64 + u64::from(held.expired))
    }

    /// Checks that all nodes have the same state, and that nothing is left in it.
    fn check_equal(&self) -> Result<(), String> {
        let mut digests = BTreeSet::new();
        for node in self.cluster.nodes() {
            let running = self.cluster.running(node).ok_or("a node is gone")?;
            digests.insert(running.node.raft().digest());
            let (left, came_back) = running.node.gateway().index_blocks_moved();
            let tally = &mut self.oracle.lock().tally;
            tally.left_memory += left;
            tally.came_back += came_back;
        }
        if digests.len() != 1 {
            return Err(format!("the nodes differ after the same entries: {digests:x?}"));
        }
        Ok(())
    }

    /// Returns how many messages the state of the leader still has.
    async fn left(&self) -> Result<u64, String> {
        let node = self.leader().await?;
        let left = self.cluster.call(node, Duration::from_secs(10), |running| async move {
            running
                .node
                .gateway()
                .read(|state| {
                    state.channels(Kind::Queue).map(|channel| channel.waiting() + channel.totals().delayed).sum()
                })
                .await
        });
        left.await.and_then(Result::ok).ok_or_else(|| "the state cannot be read".to_owned())
    }
}
