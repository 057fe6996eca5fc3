//! The transactions of this node's downstream streams, and what a settlement may do to them.
//!
//! A transaction belongs to the stream that opened it and ends with it. The table of the node exists for one
//! case: a client that settles on a stream of its own and says by its id that the transaction is its own.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use kubemq_broker::{ChannelId, Outcome};
use kubemq_proto::kubemq::{QueuesDownstreamRequest, QueuesDownstreamRequestType as Type};
use kubemq_proto::strings::{Refusal, Verb};
use kubemq_proto::validate;
use parking_lot::Mutex;

use super::{Gateway, Held, Submitted, Unavailable, send};

/// Transactions of one stream that are remembered, closed ones included; beyond it the oldest closed ones are
/// unknown again.
const REMEMBERED: usize = 4096;

/// The open transactions of this node, by id. Clones are the same table.
#[derive(Clone, Debug, Default)]
pub struct Transactions(Arc<Mutex<BTreeMap<Arc<str>, Shared>>>);

type Shared = Arc<Mutex<Transaction>>;

/// What one Get returned, until it is settled.
#[derive(Debug)]
pub(super) struct Transaction {
    client_id: String,
    /// Gone once everything is settled or the transaction was closed.
    held: Option<Held>,
}

impl Transaction {
    fn is_closed(&self) -> bool {
        self.held.as_ref().is_none_or(Held::is_settled)
    }
}

/// The transactions of one stream. Dropping it closes them all: what is unsettled returns.
pub(super) struct Own {
    node: Transactions,
    known: BTreeMap<Arc<str>, Shared>,
    /// In the order in which they were opened.
    order: VecDeque<Arc<str>>,
    /// How many may be known before closed ones are looked for.
    forget_at: usize,
}

impl Own {
    pub(super) fn new(node: Transactions) -> Self {
        Self { node, known: BTreeMap::new(), order: VecDeque::new(), forget_at: REMEMBERED }
    }

    /// Remembers a transaction; one without messages is closed from the start.
    pub(super) fn open(&mut self, id: &str, client_id: String, held: Option<Held>) {
        if self.known.len() >= self.forget_at {
            self.forget_some();
        }
        let id: Arc<str> = id.into();
        let is_open = held.is_some();
        let transaction = Arc::new(Mutex::new(Transaction { client_id, held }));
        if is_open {
            self.node.0.lock().insert(Arc::clone(&id), Arc::clone(&transaction));
        }
        self.known.insert(Arc::clone(&id), transaction);
        self.order.push_back(id);
    }

    /// Returns how many are remembered: the open ones and some that are closed.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.known.len()
    }

    /// Finds a transaction of this stream, or one of another stream of this node that belongs to the client.
    pub(super) fn find(&self, id: &str, client_id: &str) -> Option<Found> {
        if let Some((id, transaction)) = self.known.get_key_value(id) {
            return Some(Found { node: self.node.clone(), id: Arc::clone(id), transaction: Arc::clone(transaction) });
        }
        let table = self.node.0.lock();
        let (id, transaction) = table.get_key_value(id)?;
        let owned = !client_id.is_empty() && transaction.lock().client_id == client_id;
        owned.then(|| Found { node: self.node.clone(), id: Arc::clone(id), transaction: Arc::clone(transaction) })
    }

    /// Returns whether as many as `most` are open.
    pub(super) fn is_full(&mut self, most: usize) -> bool {
        if self.known.len() >= most {
            self.forget_some();
        }
        self.known.len() >= most
    }

    /// Forgets the oldest closed ones, a part of those that are remembered at most.
    fn forget_some(&mut self) {
        let mut spare = REMEMBERED / 2;
        let known = &mut self.known;
        self.order.retain(|id| {
            let closed = known.get(id).is_none_or(|transaction| transaction.lock().is_closed());
            if !closed || spare == 0 {
                return true;
            }
            spare -= 1;
            known.remove(id);
            false
        });
        // Where nearly all are open, the next look is worth its while only after many more.
        self.forget_at = REMEMBERED.max(self.known.len() * 2);
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let mut table = self.node.0.lock();
        for id in self.known.keys() {
            table.remove(id);
        }
        drop(table);
        for transaction in self.known.values() {
            // Another stream may be settling it at this moment and keeps it alive for as long.
            let held = transaction.lock().held.take();
            drop(held);
        }
    }
}

/// A transaction that a request names.
#[derive(Debug)]
pub(super) struct Found {
    node: Transactions,
    id: Arc<str>,
    transaction: Shared,
}

/// What a request did to a transaction.
#[derive(Debug)]
pub(super) enum Did {
    /// Nothing that is answered.
    Nothing,
    /// It lists what is unsettled.
    Offsets(Vec<i64>),
    /// It says whether everything is settled, and lists what is not.
    Status { complete: bool, offsets: Vec<i64> },
    /// A settlement is on its way, all that was asked for or what came before a mistake.
    Settling { settling: Option<Settling>, refusal: Option<Refusal> },
    /// Nothing but a refusal.
    Refused(Refusal),
    /// Nothing: the type means nothing here.
    Unknown,
}

/// A settlement on its way to its commit.
#[derive(Debug)]
pub(super) struct Settling {
    pub(super) submitted: Submitted,
    found: Found,
    channel: Option<ChannelId>,
    verb: Verb,
    sequences: Vec<u64>,
}

impl Found {
    /// Carries out one request, in the observable order of its checks.
    pub(super) fn request(self, request: &QueuesDownstreamRequest) -> Did {
        match Type::try_from(request.request_type_data) {
            Ok(Type::CloseByClient) => {
                self.close();
                Did::Nothing
            }
            Ok(Type::ActiveOffsets) => match self.offsets() {
                Some(offsets) => Did::Offsets(offsets),
                None => Did::Refused(Refusal::ClosedOffsets),
            },
            Ok(Type::TransactionStatus) => {
                let offsets = self.offsets();
                Did::Status { complete: offsets.is_none(), offsets: offsets.unwrap_or_default() }
            }
            Ok(Type::AckAll) => self.settle(Verb::Ack, None, request),
            Ok(Type::AckRange) => self.settle(Verb::Ack, Some(&request.sequence_range), request),
            Ok(Type::NAckAll) => self.settle(Verb::Nack, None, request),
            Ok(Type::NAckRange) => self.settle(Verb::Nack, Some(&request.sequence_range), request),
            Ok(Type::ReQueueAll) => self.settle(Verb::Requeue, None, request),
            Ok(Type::ReQueueRange) => self.settle(Verb::Requeue, Some(&request.sequence_range), request),
            Ok(Type::PollRequestTypeUnknown | Type::Get | Type::CloseByServer) | Err(_) => Did::Unknown,
        }
    }

    fn close(&self) {
        let held = self.transaction.lock().held.take();
        self.node.0.lock().remove(&self.id);
        // Gives back what is unsettled, outside the locks.
        drop(held);
    }

    /// Returns what is unsettled, nothing when the transaction is closed.
    fn offsets(&self) -> Option<Vec<i64>> {
        let transaction = self.transaction.lock();
        let held = transaction.held.as_ref().filter(|held| !held.is_settled())?;
        Some(held.unsettled().map(|sequence| i64::try_from(sequence).unwrap_or(i64::MAX)).collect())
    }

    /// Settles everything, or the listed sequences up to the first that is wrong.
    fn settle(self, verb: Verb, range: Option<&[i64]>, request: &QueuesDownstreamRequest) -> Did {
        let mut transaction = self.transaction.lock();
        let Some(held) = transaction.held.as_mut().filter(|held| !held.is_settled()) else {
            // A requeue of everything names the wrong verb; clients compare it all the same.
            let named = if verb == Verb::Requeue && range.is_none() { Verb::Ack } else { verb };
            return Did::Refused(Refusal::ClosedTransaction(named));
        };
        let to = request.re_queue_channel.as_str();
        if verb == Verb::Requeue && to.is_empty() {
            return Did::Refused(Refusal::EmptyDestination);
        }
        let destination = if verb == Verb::Requeue { validate::queue_destination(to).err() } else { None };
        let (sequences, refusal) = match range {
            Some([]) => return Did::Refused(Refusal::EmptyRange(verb)),
            Some(range) => pick(held, verb, range, destination),
            None => match (held.unsettled().next(), destination) {
                (Some(first), Some(refusal)) => (Vec::new(), Some(Refusal::RequeueFailed(first, Box::new(refusal)))),
                _ => (held.unsettled().collect(), None),
            },
        };
        if sequences.is_empty() {
            return Did::Settling { settling: None, refusal };
        }
        let submitted = match verb {
            Verb::Ack => held.ack(&sequences),
            Verb::Nack => held.nack(&sequences),
            Verb::Requeue => held.requeue(&sequences, to),
        };
        let channel = held.channel_id();
        drop(transaction);
        Did::Settling { settling: Some(Settling { submitted, found: self, channel, verb, sequences }), refusal }
    }
}

/// Returns the listed sequences up to the first that cannot be settled, and why it cannot.
fn pick(held: &Held, verb: Verb, range: &[i64], destination: Option<Refusal>) -> (Vec<u64>, Option<Refusal>) {
    let mut sequences = Vec::with_capacity(range.len());
    let mut picked = std::collections::BTreeSet::new();
    for sequence in range {
        let valid =
            u64::try_from(*sequence).ok().filter(|sequence| held.holds(*sequence) && !picked.contains(sequence));
        let Some(valid) = valid else {
            let refusal = match verb {
                Verb::Ack | Verb::Requeue => Refusal::InvalidAckSequence(*sequence),
                Verb::Nack => Refusal::InvalidNackSequence(*sequence),
            };
            return (sequences, Some(refusal));
        };
        if let Some(refusal) = destination {
            return (sequences, Some(Refusal::RequeueFailed(valid, Box::new(refusal))));
        }
        if range.len() > 1 {
            picked.insert(valid);
        }
        sequences.push(valid);
    }
    (sequences, None)
}

impl Settling {
    /// Returns whether it puts messages into a queue.
    pub(super) fn returns(&self) -> bool {
        self.verb != Verb::Ack
    }

    /// Takes note of what became of the settlement: closes the transaction when nothing is left, and holds again
    /// what the state refused to move. Returns what the client is told, which is nothing when all went well.
    pub(super) fn finish(self, gateway: &Gateway, outcomes: Result<Vec<Outcome>, Unavailable>) -> Option<Refusal> {
        let refused = outcomes.map(|outcomes| {
            outcomes.into_iter().find_map(|outcome| match outcome {
                Outcome::Refused(reason) => Some(send::refusal(reason)),
                _ => None,
            })
        });
        let mut transaction = self.found.transaction.lock();
        if let (Ok(Some(_)), Some(channel)) = (&refused, self.channel) {
            match &mut transaction.held {
                Some(held) => held.refused(&self.sequences),
                None => gateway.give_back_refused(channel, &self.sequences),
            }
        }
        let spent = if transaction.is_closed() { transaction.held.take() } else { None };
        drop(transaction);
        if spent.is_some() {
            self.found.node.0.lock().remove(&self.found.id);
        }
        let first = self.sequences.first().copied().unwrap_or_default();
        let reason = Box::new(refused.unwrap_or_else(|unavailable| Some(unavailable.refusal()))?);
        Some(match self.verb {
            Verb::Ack => *reason,
            Verb::Nack => Refusal::NackFailed(first, reason),
            Verb::Requeue => Refusal::RequeueFailed(first, reason),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_closed_transactions_are_remembered() {
        let mut own = Own::new(Transactions::default());
        let opened = 3 * REMEMBERED;
        for number in 0..opened {
            own.open(&format!("t{number}"), "c".to_owned(), None);
            assert!(own.len() <= REMEMBERED);
        }
        assert!(own.find("t0", "c").is_none(), "the oldest is forgotten");
        let last = own.find(&format!("t{}", opened - 1), "").expect("the newest is known");
        let request = QueuesDownstreamRequest { request_type_data: Type::AckAll.into(), ..Default::default() };
        assert!(matches!(last.request(&request), Did::Refused(Refusal::ClosedTransaction(Verb::Ack))));
    }

    #[test]
    fn a_closed_transaction_says_so_by_type() {
        let mut own = Own::new(Transactions::default());
        own.open("t", "c".to_owned(), None);
        let rows: [(Type, Option<Refusal>); 8] = [
            (Type::AckRange, Some(Refusal::ClosedTransaction(Verb::Ack))),
            (Type::NAckAll, Some(Refusal::ClosedTransaction(Verb::Nack))),
            (Type::NAckRange, Some(Refusal::ClosedTransaction(Verb::Nack))),
            (Type::ReQueueAll, Some(Refusal::ClosedTransaction(Verb::Ack))),
            (Type::ReQueueRange, Some(Refusal::ClosedTransaction(Verb::Requeue))),
            (Type::ActiveOffsets, Some(Refusal::ClosedOffsets)),
            (Type::CloseByClient, None),
            (Type::CloseByServer, None),
        ];
        for (kind, expected) in rows {
            let request = QueuesDownstreamRequest { request_type_data: kind.into(), ..Default::default() };
            let did = own.find("t", "").expect("known").request(&request);
            match expected {
                Some(refusal) => assert!(matches!(&did, Did::Refused(found) if *found == refusal), "{kind:?}: {did:?}"),
                None => assert!(matches!(did, Did::Nothing | Did::Unknown), "{kind:?}: {did:?}"),
            }
        }
        let status =
            QueuesDownstreamRequest { request_type_data: Type::TransactionStatus.into(), ..Default::default() };
        let did = own.find("t", "").expect("known").request(&status);
        assert!(matches!(did, Did::Status { complete: true, offsets } if offsets.is_empty()));
    }
}
