//! The client's side of this node: everything below the wire handlers, and the only way to the broker.
//!
//! Handlers, the simulation's clients and the shell's requests all call [`Gateway`]. It holds what belongs
//! to a client's call or stream; what belongs to a channel is at the [`desk`](crate::desk), and what must
//! survive goes through the [`outbox`]. It does not decode or encode wire messages.
//!
//! Start reading in [`take`], then [`held`].

mod cursors;
pub mod downstream;
pub mod events;
mod held;
mod lanes;
mod management;
mod numbers;
mod outbox;
mod publishing;
pub mod queue_stream;
mod receive;
mod requests;
pub mod retention;
mod send;
mod store;
pub mod stream;
pub mod subscription;
mod take;
mod transactions;
pub mod upstream;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kubemq_broker::{Channel, ChannelId, Kind, Lookup, Name, Operation, Outcome, State};
use kubemq_proto::validate::QueueLimits;
use kubemq_raft::Node;
use kubemq_runtime::sync::watch;
use kubemq_runtime::{Runtime, UnixNanos};
use kubemq_storage::log::Log;
use parking_lot::Mutex;

use crate::damage::Damage;
use crate::desk::Core;
use crate::index_memory::IndexMemory;
use crate::live::Live;
use crate::metrics::Latency;
use crate::scrub::Scrubber;
use crate::traffic::Traffic;

use self::retention::Retention;

pub(crate) use cursors::keep_places;
pub use held::{Delivery, Held};
pub(crate) use numbers::{Numbers, Sender};
pub(crate) use outbox::Outbox;
pub use outbox::Submitted;
pub use receive::Client;
pub(crate) use retention::trim_what_is_old;
pub use take::{Peeked, Take};
pub use transactions::Transactions;

/// How long a call waits for a leader before it says that there is none.
const WAIT_FOR_LEADER: Duration = Duration::from_secs(10);
/// How long to wait before asking again whether this node may lead.
const LEAD_RETRY: Duration = Duration::from_millis(2);

/// How long a call waits for a part of the index that is not in memory.
const FETCH: Duration = Duration::from_secs(30);

/// Why a call could not be carried out now. None of these is the client's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// Nothing was done: this node does not lead, or there is no leader yet.
    #[error("this node does not lead the cluster")]
    NotLeader,
    /// It may or may not have been done: leadership moved before the outcome was known here.
    #[error("the outcome is not known: leadership moved while the call was under way")]
    Unknown,
    /// What is stored could not be read, and it is nothing that can be passed over.
    #[error("a stored message could not be read: {0}")]
    Unreadable(String),
}

/// The gateway of this node; clones are the same gateway.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    runtime: Runtime,
    raft: Node,
    log: Log,
    core: Arc<Mutex<Core>>,
    outbox: Arc<Outbox>,
    leading: watch::Sender<bool>,
    numbers: Numbers,
    live: Live,
    limits: QueueLimits,
    retention: Retention,
    damage: Arc<Damage>,
    scrubber: Scrubber,
    memory: IndexMemory,
    node: u64,
}

impl Gateway {
    pub(crate) fn new(parts: Parts) -> Self {
        let (leading, _) = watch::channel(false);
        let numbers = Numbers::default();
        let Parts { runtime, raft, log, core, outbox, live, limits, retention, memory, node } = parts;
        let (damage, scrubber) = (Arc::default(), Scrubber::default());
        Self(Arc::new(Inner {
            runtime,
            raft,
            log,
            core,
            outbox,
            leading,
            numbers,
            live,
            limits,
            retention,
            damage,
            scrubber,
            memory,
            node,
        }))
    }

    /// Returns the doors of this node.
    #[must_use]
    pub fn runtime(&self) -> &Runtime {
        &self.0.runtime
    }

    /// Returns the limits that requests are checked against.
    #[must_use]
    pub fn limits(&self) -> &QueueLimits {
        &self.0.limits
    }

    /// Returns what is not stored: events, commands and queries.
    #[must_use]
    pub fn live(&self) -> &Live {
        &self.0.live
    }

    /// Returns how long stored events are kept.
    #[must_use]
    pub fn retention(&self) -> &Retention {
        &self.0.retention
    }

    /// Returns cluster time.
    #[must_use]
    pub fn time(&self) -> UnixNanos {
        UnixNanos(self.0.raft.time().now())
    }

    /// Waits until this node can carry out calls.
    ///
    /// # Errors
    ///
    /// [`Unavailable::NotLeader`] when it cannot within ten seconds.
    pub async fn available(&self) -> Result<(), Unavailable> {
        if *self.0.leading.borrow() {
            return Ok(());
        }
        let clock = &self.0.runtime.clock;
        clock.timeout(WAIT_FOR_LEADER, self.lead()).await.map_err(|_| Unavailable::NotLeader)
    }

    /// Waits until this node leads.
    pub(crate) async fn lead(&self) {
        let mut leading = self.0.leading.subscribe();
        // The sender lives as long as this gateway.
        leading.wait_for(|leading| *leading).await.ok();
    }

    /// Waits until there is room for more publishes: the bound of what waits to be sent. Cancel safe.
    pub async fn room(&self) {
        self.0.outbox.room().await;
    }

    /// Waits until nothing that was submitted is under way. Cancel safe.
    pub(crate) async fn drained(&self) {
        self.0.outbox.idle().await;
    }

    /// Submits encoded operations, ordered with every other call of this function. They are in the queue when
    /// this returns; the outcomes, aligned with them, come after they were committed and applied.
    pub fn submit(&self, operations: Vec<Bytes>) -> Submitted {
        self.0.outbox.submit(operations, lanes::COMMON, None)
    }

    /// Submits operations that must not pass by those that were given to the leadership `epoch`: they are not taken
    /// when that is over.
    pub(crate) fn submit_behind(&self, operations: Vec<Bytes>, lane: u64, epoch: Option<u64>) -> Submitted {
        self.0.outbox.submit(operations, lane, epoch)
    }

    /// Returns a lane for one sender, in which its operations keep their order; lanes take turns.
    pub(crate) fn lane(&self) -> u64 {
        self.0.outbox.lane()
    }

    /// Reads the replicated state as it is after everything acknowledged before this call.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] when that cannot be established.
    pub async fn read<T>(&self, read: impl FnOnce(&State) -> T) -> Result<T, Unavailable> {
        self.barrier().await?;
        Ok(read(&self.0.core.lock().state))
    }

    /// Settles everything in queue `channel` that nobody holds, and returns how many messages that were. What is known to
    /// be damaged here stays: another node may have it whole.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] when it may not have been done.
    pub async fn ack_all(&self, channel: &str) -> Result<u64, Unavailable> {
        self.barrier().await?;
        let (upto, held) = {
            let core = self.0.core.lock();
            let Some(queue) = core.state.channel(Kind::Queue, channel) else { return Ok(0) };
            (queue.next_sequence().saturating_sub(1), core.not_to_be_settled(queue.id()))
        };
        let Ok(name) = Name::new(channel) else { return Ok(0) };
        let held = held.into_iter().collect();
        let purge = Operation::Purge { kind: Kind::Queue, channel: name, upto, held };
        match self.submit(vec![purge.to_bytes()]).await?.first() {
            Some(Outcome::Purged { count }) => Ok(*count),
            _ => Ok(0),
        }
    }

    /// Returns whether somebody polls the channel, holds a message of it or reads its stored events.
    #[must_use]
    pub fn is_used(&self, channel: ChannelId) -> bool {
        let core = self.0.core.lock();
        let read =
            |channel: &Channel| channel.kind() == Kind::EventsStore && core.desk.readers.count(channel.name()) > 0;
        core.desk.is_used(channel) || core.state.channel_by_id(channel).is_some_and(read)
    }

    /// Returns how long batches took from being formed here to being committed and applied.
    pub(crate) fn commit_latency(&self) -> Arc<Latency> {
        Arc::clone(self.0.outbox.latency())
    }

    /// Returns how many operations were committed and applied here on behalf of this gateway.
    pub(crate) fn operations(&self) -> u64 {
        self.0.outbox.confirmed()
    }

    /// Returns how many operations wait to be sent to the leader and their bytes, each with its bound.
    pub(crate) fn outbox_fill(&self) -> [(usize, usize); 2] {
        self.0.outbox.fill()
    }

    /// Returns what clients sent and received.
    pub(crate) fn traffic(&self) -> &Traffic {
        self.0.live.traffic()
    }

    /// Returns what is counted here.
    pub(crate) fn numbers(&self) -> &Numbers {
        &self.0.numbers
    }

    /// Returns how many messages readers hold or are settling.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.0.core.lock().desk.in_flight()
    }

    /// Returns how many stored messages could not be read here and were passed over.
    #[must_use]
    pub fn passed_over(&self) -> u64 {
        self.0.damage.passed_over()
    }

    /// Returns how many blocks of the index left the memory since the start, and how many came back.
    #[must_use]
    pub fn index_blocks_moved(&self) -> (u64, u64) {
        self.0.memory.moved()
    }

    /// Returns the state's digest and the index of the last entry applied here.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.0.core.lock().state.digest()
    }

    pub(crate) fn log(&self) -> &Log {
        &self.0.log
    }

    pub(crate) fn raft(&self) -> &Node {
        &self.0.raft
    }

    pub(crate) fn index_memory(&self) -> &IndexMemory {
        &self.0.memory
    }

    pub(crate) fn scrubber(&self) -> &Scrubber {
        &self.0.scrubber
    }

    pub(crate) fn with_core<T>(&self, read: impl FnOnce(&mut Core) -> T) -> T {
        read(&mut self.0.core.lock())
    }

    /// Waits until a part of the index is in memory, as `came` tells.
    async fn fetched(&self, came: impl Future<Output = ()>) -> Result<(), Unavailable> {
        let late = |_| Unavailable::Unreadable("a part of the index cannot be fetched".to_owned());
        self.0.runtime.clock.timeout(FETCH, came).await.map_err(late)
    }

    /// Asks the state; where it answers that a block of the index is away, asks again when that is back.
    async fn look_up<T>(
        &self,
        channel: ChannelId,
        ask: impl Fn(&Channel) -> Lookup<T>,
    ) -> Result<Option<T>, Unavailable> {
        loop {
            let came = {
                let mut core = self.0.core.lock();
                let Some(found) = core.state.channel_by_id(channel) else { return Ok(None) };
                match ask(found) {
                    Lookup::Here(found) => return Ok(Some(found)),
                    Lookup::Nothing => return Ok(None),
                    Lookup::Away(block) => {
                        core.desk.away.want(channel, Some(block));
                        core.desk.away.came()
                    }
                }
            };
            self.fetched(came).await?;
        }
    }

    async fn barrier(&self) -> Result<(), Unavailable> {
        self.available().await?;
        self.0.raft.read_barrier().await.map_err(|error| {
            tracing::debug!(%error, "read barrier failed");
            Unavailable::NotLeader
        })
    }

    /// Opens the outbox whenever this node comes to lead and closes it when it leads no more, for as long as
    /// the node lives.
    pub(crate) async fn follow_leadership(self) {
        let mut status = self.0.raft.watch();
        let mut epoch = 0;
        loop {
            let (leads, term) = {
                let status = status.borrow_and_update();
                (status.leads(), status.term)
            };
            if !leads {
                self.depose();
                if status.changed().await.is_err() {
                    return;
                }
                continue;
            }
            // Everything of earlier leaders is applied here before this one begins.
            if let Err(error) = self.0.raft.read_barrier().await {
                tracing::debug!(%error, "not yet leading");
                self.0.runtime.clock.sleep(LEAD_RETRY).await;
                continue;
            }
            {
                let mut core = self.0.core.lock();
                core.lead();
                // Greater than every epoch used before: a batch of an earlier one may still wait to be proposed, and
                // must not be taken for a batch of this one.
                epoch = epoch.max(core.state.origin_epoch(self.0.node).unwrap_or(0)) + 1;
            }
            self.0.outbox.open(epoch);
            self.0.leading.send(true);
            self.0.numbers.lead();
            tracing::info!(term, "this node leads");
            let moved = status.wait_for(|status| !status.leads() || status.term != term);
            tokio::select! {
                biased;
                () = self.0.outbox.broken() => {}
                closed = moved => if closed.is_err() { return },
            }
            self.depose();
        }
    }

    /// Carries out nothing more; who waits for messages looks again.
    fn depose(&self) {
        self.0.leading.send(false);
        self.0.outbox.close(&Unavailable::NotLeader);
        self.with_core(|core| core.desk.wake_polls());
    }
}

/// What a [`Gateway`] is made of.
pub(crate) struct Parts {
    pub(crate) runtime: Runtime,
    pub(crate) raft: Node,
    pub(crate) log: Log,
    pub(crate) core: Arc<Mutex<Core>>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) live: Live,
    pub(crate) limits: QueueLimits,
    pub(crate) retention: Retention,
    pub(crate) memory: IndexMemory,
    pub(crate) node: u64,
}
