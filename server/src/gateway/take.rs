//! Taking messages from a queue: collect until there are enough, or until the deadline.
//!
//! A message whose body cannot be read is passed over, and goes out of the way of everybody (see
//! [`damage`](crate::damage)); it is nobody's, and so nobody settles it.

use std::sync::Arc;
use std::time::Duration;

use kubemq_broker::{ChannelId, Operation, Sequences};
use kubemq_runtime::Instant;

use super::held::{Delivery, Held};
use super::{Gateway, LEAD_RETRY, Submitted, Unavailable};
use crate::damage::{Place, Unreadable};
use crate::desk::{Poll, Reserved};

/// Messages looked at in one step of a peek, at most.
const PEEK_STEP: usize = 1024;

/// A call that does not wait, or not for long, waits so long for a leader all the same: a change of leaders takes less.
/// Some clients give up half a second after the wait that they asked for.
const LEADERLESS: Duration = Duration::from_millis(400);

/// What an answer holds besides the stored bytes of a message: its channel and its attributes.
const ENVELOPE_BYTES: u64 = 96;

/// What a reader wants.
#[derive(Clone, Debug)]
pub struct Take {
    /// The queue, which need not exist yet.
    pub channel: String,
    /// Messages, at most.
    pub max: usize,
    /// Bytes of messages at which to stop, after at least one message.
    pub max_bytes: u64,
    /// When to end with what there is.
    pub deadline: Instant,
}

/// What a peek saw.
#[derive(Debug, Default)]
pub struct Peeked {
    /// The messages, lowest sequence first.
    pub deliveries: Vec<Delivery>,
    /// Messages that had expired and were removed.
    pub expired: u32,
}

impl Gateway {
    /// Takes messages from a queue: ends when it has `max` of them or enough bytes, or at the deadline with
    /// what there is. What had expired is removed and counted on the way.
    ///
    /// Only a leader hands out, and only within its lease: one that was replaced meanwhile gives everything back
    /// and waits to lead again. When nobody leads until the deadline there was nothing to be had: clients poll on.
    ///
    /// Cancel safe: dropping the future gives everything back.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] when this node cannot hand out messages; nothing is taken then.
    pub async fn take(&self, take: Take) -> Result<Held, Unavailable> {
        let clock = &self.0.runtime.clock;
        let patience = self.patience(take.deadline);
        while self.leads_by(patience).await {
            if let Some(mut held) = self.take_as_leader(&take).await? {
                // What was given back while this poll waited came behind what it had already.
                held.deliveries.sort_unstable_by_key(|delivery| delivery.sequence);
                return Ok(held);
            }
            if clock.now() >= patience {
                break;
            }
            // Who follows leadership must get to run before it is asked again.
            clock.sleep(LEAD_RETRY).await;
        }
        Ok(Held::new(self.clone(), &take.channel))
    }

    /// Returns until when a poll with this deadline waits for a leader.
    fn patience(&self, deadline: Instant) -> Instant {
        deadline.max(self.0.runtime.clock.now() + LEADERLESS)
    }

    /// Waits until this node leads. Returns whether it does before `deadline`. Cancel safe.
    async fn leads_by(&self, deadline: Instant) -> bool {
        self.leads_now() || self.0.runtime.clock.timeout_at(deadline, self.lead()).await.is_ok()
    }

    /// Returns nothing when this node does not surely lead; nothing is taken then.
    async fn take_as_leader(&self, take: &Take) -> Result<Option<Held>, Unavailable> {
        let mut poll = Poll::new(Arc::clone(&self.0.core), &take.channel);
        let mut held = Held::new(self.clone(), &take.channel);
        let mut bytes = 0;
        while self.0.raft.leads() {
            let want = take.max.saturating_sub(held.deliveries.len());
            if want == 0 {
                return Ok(Some(held));
            }
            let reserved = Reservation::new(self, poll.next(want));
            if !reserved.messages.is_empty() {
                if self.read_into(reserved, take.max_bytes, &mut bytes, &mut held).await? == Fill::Full {
                    return Ok(self.0.raft.leads().then_some(held));
                }
                continue;
            }
            if self.0.runtime.clock.timeout_at(take.deadline, poll.changed()).await.is_err() {
                // What was reserved at the last moment is taken, not sent round again.
                let reserved = Reservation::new(self, poll.next(want));
                if reserved.messages.is_empty() && self.with_core(|core| core.waits_for_index(&take.channel)) {
                    // There is more: it is only being fetched.
                    self.fetched(poll.changed()).await?;
                    continue;
                }
                drop(poll);
                self.read_into(reserved, take.max_bytes, &mut bytes, &mut held).await?;
                return Ok(self.0.raft.leads().then_some(held));
            }
        }
        Ok(None)
    }

    /// Looks at messages without taking them: ends when it saw `max` of them, or at the deadline with what
    /// there is; nothing when nobody leads until then. What had expired is removed and counted. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] when this node cannot read the queue.
    pub async fn peek(&self, take: Take) -> Result<Peeked, Unavailable> {
        if !self.leads_by(self.patience(take.deadline)).await {
            return Ok(Peeked::default());
        }
        let mut expired = 0;
        loop {
            let changed = self.with_core(|core| core.watch(&take.channel));
            let (mut peeked, fill) = self.look(&take).await?;
            expired += peeked.expired;
            peeked.expired = expired;
            if fill == Fill::Full || self.0.runtime.clock.timeout_at(take.deadline, changed.notified()).await.is_err() {
                return Ok(peeked);
            }
        }
    }

    async fn look(&self, take: &Take) -> Result<(Peeked, Fill), Unavailable> {
        let mut peeked = Peeked::default();
        let mut bytes = 0;
        let mut from = 0;
        loop {
            let want = (take.max - peeked.deliveries.len()).min(PEEK_STEP);
            let ((visible, is_away), came) =
                self.with_core(|core| (core.visible(&take.channel, from, want), core.desk.away.came()));
            let Some(last) = visible.last() else {
                if !is_away {
                    return Ok((peeked, Fill::Room));
                }
                self.fetched(came).await?;
                continue;
            };
            from = last.sequence + 1;
            let channel = last.channel;
            let mut gone = Vec::new();
            let mut fill = Fill::Room;
            for message in visible {
                let Some(delivery) = self.read_message(&take.channel, &message, false).await? else { continue };
                if delivery.has_expired(self.time()) {
                    gone.push(message.sequence);
                    continue;
                }
                let size = delivery.message.len() as u64 + ENVELOPE_BYTES;
                if !peeked.deliveries.is_empty() && bytes + size > take.max_bytes {
                    fill = Fill::Full;
                    break;
                }
                bytes += size;
                peeked.deliveries.push(delivery);
            }
            peeked.expired += count(&gone);
            if let Some(dropped) = self.drop_expired(channel, gone) {
                // Nobody holds them, so only their removal keeps the next peek from counting them again.
                dropped.await.ok();
            }
            if fill == Fill::Full || peeked.deliveries.len() >= take.max {
                return Ok((peeked, Fill::Full));
            }
        }
    }

    async fn read_into(
        &self,
        mut reserved: Reservation<'_>,
        max_bytes: u64,
        bytes: &mut u64,
        held: &mut Held,
    ) -> Result<Fill, Unavailable> {
        let mut fill = Fill::Room;
        let now = self.time();
        while let Some(message) = reserved.messages.front() {
            let Some(delivery) = self.read_message(held.channel(), message, true).await? else {
                reserved.messages.pop_front();
                continue;
            };
            let (channel, sequence) = (message.channel, message.sequence);
            let size = delivery.message.len() as u64 + ENVELOPE_BYTES;
            let is_expired = delivery.has_expired(now);
            let is_first = held.deliveries.is_empty();
            // Of a channel that was deleted and made anew, the later one waits: one transaction is of one channel.
            if !held.is_of(channel) || (!is_expired && !is_first && *bytes + size > max_bytes) {
                fill = Fill::Full;
                break;
            }
            reserved.messages.pop_front();
            if is_expired {
                reserved.gone.push(sequence);
            } else {
                *bytes += size;
                held.push(channel, delivery);
            }
        }
        let gone = std::mem::take(&mut reserved.gone);
        held.expired += count(&gone);
        if let Some(channel) = held.channel_id().or(reserved.channel)
            && let Some(dropped) = self.drop_expired(channel, gone)
        {
            // What cannot be removed now is found expired again by the next reader.
            dropped.forget();
        }
        Ok(fill)
    }

    /// Reads a message that is reserved for the caller (`is_held`) or looked at. Returns nothing when it cannot be read or
    /// is gone; it is reserved no more then.
    async fn read_message(
        &self,
        channel: &str,
        message: &Reserved,
        is_held: bool,
    ) -> Result<Option<Delivery>, Unavailable> {
        let why = match self.try_to_read(message).await {
            Ok(delivery) => return Ok(Some(delivery)),
            Err(why) if !why.is_lasting() => return Err(Unavailable::Unreadable(why.to_string())),
            Err(_) => match self.try_to_read(message).await {
                // It was moved to another file between being looked up and being read.
                Ok(delivery) => return Ok(Some(delivery)),
                Err(why) => why,
            },
        };
        if self.with_core(|core| core.note_damaged(message, is_held)) {
            let Reserved { sequence, entry, part, .. } = *message;
            self.0.damage.pass_over(&Place { channel, sequence, entry, part }, &why);
        }
        Ok(None)
    }

    async fn try_to_read(&self, message: &Reserved) -> Result<Delivery, Unreadable> {
        let log = &self.0.log;
        let part = match log.cached_part(message.entry, message.part) {
            Some(part) => part,
            None => log.read_part(message.entry, message.part).await?,
        };
        Delivery::decode(message, part.time, &part.bytes)
    }

    /// Removes what was found expired; until that is applied nobody is handed it.
    fn drop_expired(&self, channel: ChannelId, sequences: Vec<u64>) -> Option<Submitted> {
        if sequences.is_empty() {
            return None;
        }
        self.with_core(|core| core.settling(channel, sequences.iter().copied()));
        let sequences: Sequences = sequences.into_iter().collect();
        let pieces = sequences.split().into_iter();
        let operations = pieces.map(|sequences| Operation::Drop { channel, sequences }.to_bytes());
        Some(self.submit(operations.collect()))
    }
}

fn count(sequences: &[u64]) -> u32 {
    u32::try_from(sequences.len()).unwrap_or(u32::MAX)
}

/// Whether a reader may have more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fill {
    Room,
    Full,
}

/// Messages reserved and not yet read; dropping it gives them back.
struct Reservation<'a> {
    gateway: &'a Gateway,
    channel: Option<ChannelId>,
    messages: std::collections::VecDeque<Reserved>,
    /// Found expired and not yet removed.
    gone: Vec<u64>,
}

impl<'a> Reservation<'a> {
    fn new(gateway: &'a Gateway, messages: Vec<Reserved>) -> Self {
        let channel = messages.first().map(|message| message.channel);
        Self { gateway, channel, messages: messages.into(), gone: Vec::new() }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.messages.is_empty() && self.gone.is_empty() {
            return;
        }
        self.gateway.with_core(|core| {
            if let Some(channel) = self.channel {
                core.give_back(channel, self.gone.drain(..));
            }
            for message in self.messages.drain(..) {
                core.give_back(message.channel, [message.sequence]);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use kubemq_proto::kubemq::ReceiveQueueMessagesRequest;
    use kubemq_storage::fs::MemoryDisk;

    use super::*;
    use crate::gateway::Client;
    use crate::gateway::stream::Stop;
    use crate::node::tests::start;

    #[tokio::test(flavor = "multi_thread")]
    async fn who_asks_while_nobody_leads_gets_nothing_when_the_wait_is_over() {
        let node = start(&MemoryDisk::default()).await;
        node.ready().await;
        let (gateway, clock) = (node.gateway(), &node.gateway().runtime().clock);
        let take = |wait: u64| {
            let deadline = clock.now() + Duration::from_millis(wait);
            Take { channel: "q".to_owned(), max: 1, max_bytes: u64::MAX, deadline }
        };
        gateway.depose();
        for wait in [0, 600] {
            let begin = clock.now();
            assert_eq!(gateway.take(take(wait)).await.unwrap().unsettled().count(), 0);
            assert!(clock.now().since(begin) >= Duration::from_millis(wait).max(LEADERLESS));
            assert!(gateway.peek(take(wait)).await.unwrap().deliveries.is_empty());
        }
        let asked = ReceiveQueueMessagesRequest {
            client_id: "c".to_owned(),
            channel: "q".to_owned(),
            max_number_of_messages: 1,
            wait_time_seconds: 1,
            ..ReceiveQueueMessagesRequest::default()
        };
        for is_peak in [false, true] {
            let asked = ReceiveQueueMessagesRequest { is_peak, ..asked.clone() };
            let answer = gateway.receive(asked, Client::default(), &Stop::new()).await.unwrap();
            assert!(!answer.is_error && answer.messages.is_empty(), "{answer:?}");
        }
        node.stop().await;
    }
}
