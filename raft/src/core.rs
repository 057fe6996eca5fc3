//! openraft behind a door without its type parameters.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::task::noop_waker;
use futures_util::{FutureExt, StreamExt};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, ForwardReason, ForwardToLeader, InitializeError, RaftError};
use openraft::raft::TransferLeaderRequest;
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{AsyncRuntime, Instant as _, Raft, RaftMetrics, ReadPolicy, ServerState, Snapshot};

use crate::batcher::{Done, Outcome, Proposer};
use crate::error::{Error, PeerError, Unavailable};
use crate::machine::{Durable, Handle, Machine, Moment, State};
use crate::network::{Call, Frame, Replies, frame};
use crate::options::{Options, Reads};
use crate::snapshot::Install;
use crate::state_machine::StateMachine;
use crate::status::{Member, Role, Status};
use crate::types::{self, Callback, Proposal, Types, Written};

/// How far a node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mark {
    /// Entries are applied.
    Applied,
    /// Consensus knows of a snapshot.
    Snapshot,
    /// Entries are purged.
    Purged,
}

/// Consensus, whatever runtime it runs on.
#[async_trait]
pub(crate) trait Engine: Send + Sync + 'static {
    fn status(&self) -> Status;
    fn has_lease(&self) -> bool;
    /// Publishes the status on each change of role, leader, term or membership; ends when consensus stops.
    async fn follow(&self, publish: &(dyn Fn(Status) + Send + Sync));
    /// Returns up to where must be applied before a read is served, after a majority confirmed this leader.
    async fn read_index(&self) -> Result<u64, Unavailable>;
    /// Waits until this node has come to `index`.
    async fn reached(&self, mark: Mark, index: u64, limit: Duration) -> Result<(), Unavailable>;
    async fn initialize(&self, members: BTreeMap<u64, Member>) -> Result<(), Error>;
    async fn add_learner(&self, id: u64, member: Member, wait: bool) -> Result<(), Error>;
    async fn change_voters(&self, voters: BTreeSet<u64>, retain: bool) -> Result<(), Error>;
    async fn elect(&self) -> Result<(), Error>;
    /// Campaigns at once, whatever was heard of a leader: for the only voter.
    async fn elect_alone(&self) -> Result<(), Error>;
    async fn transfer_leader(&self, to: u64) -> Result<(), Error>;
    async fn snapshot(&self) -> Result<(), Error>;
    async fn purge(&self, upto: u64) -> Result<(), Error>;
    async fn recovered(&self, limit: Duration) -> Result<(), Error>;
    async fn shutdown(&self);
    async fn call(&self, call: Call, request: Frame) -> Result<Frame, PeerError>;
    fn append(&self, requests: Replies) -> Replies;
    fn install(&self) -> Install;
    fn moment(&self) -> Moment;
    /// Notes the newest durable snapshot, and tells the machine.
    fn is_durable(&self, durable: Durable);
    /// Returns whether the machine would give memory back if a snapshot were written.
    fn wants_snapshot(&self) -> bool;
    fn digest(&self) -> (u64, u64);
    /// Returns whether this node leads and holds the lease.
    fn leads(&self) -> bool;
    /// Returns the index of the last entry applied.
    fn applied(&self) -> u64;
}

/// openraft with our types over the runtime `R`.
pub(crate) struct Core<R: AsyncRuntime, M: StateMachine> {
    raft: Raft<Types<R>, Machine<R, M>>,
    machine: Machine<R, M>,
    metrics: WatchReceiverOf<Types<R>, RaftMetrics<Types<R>>>,
    reads: Reads,
    lease: Duration,
}

impl<R: AsyncRuntime, M: StateMachine> Core<R, M> {
    pub(crate) fn new(raft: Raft<Types<R>, Machine<R, M>>, machine: Machine<R, M>, options: &Options) -> Self {
        let metrics = raft.metrics();
        Self { raft, machine, metrics, reads: options.reads, lease: options.election_most }
    }

    /// Returns whether this node leads and a majority, or nobody but itself, confirmed that within the lease.
    fn confirmed(&self, metrics: &RaftMetrics<Types<R>>) -> bool {
        if metrics.state != ServerState::Leader || metrics.running_state.is_err() {
            return false;
        }
        metrics.last_quorum_acked.is_some_and(|at| at.elapsed() < self.lease)
            || metrics.membership_config.membership().voter_ids().eq([metrics.id])
    }

    pub(crate) fn run(&self) {
        self.raft.run();
    }
}

fn stopped<R: AsyncRuntime>(fatal: &Fatal<Types<R>>) -> Error {
    Error::Stopped(kubemq_runtime::chain(fatal).to_string())
}

fn changed<R: AsyncRuntime, T>(
    result: Result<T, RaftError<Types<R>, ClientWriteError<Types<R>>>>,
) -> Result<(), Error> {
    match result {
        Ok(_) => Ok(()),
        Err(RaftError::Fatal(fatal)) => Err(stopped(&fatal)),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
            Err(Error::NotLeader { leader: forward.leader_id })
        }
        Err(RaftError::APIError(error)) => Err(Error::Membership(error.to_string())),
    }
}

fn outcome<R: AsyncRuntime>(written: Written<R>) -> Outcome {
    match written {
        Ok(response) => Outcome::Committed(types::stored_id(&response.log_id)),
        Err(ClientWriteError::ForwardToLeader(ForwardToLeader { reason: ForwardReason::LeaseExpired, .. })) => {
            Outcome::NoLease
        }
        Err(ClientWriteError::ForwardToLeader(forward)) => Outcome::NotLeader(forward.leader_id),
        // Neither a change of members nor a precondition is in these proposals.
        Err(_) => Outcome::Unknown,
    }
}

/// Proposes to openraft.
pub(crate) struct Proposals<R: AsyncRuntime, M: StateMachine>(pub(crate) Arc<Core<R, M>>);

impl<R: AsyncRuntime, M: StateMachine> Proposer for Proposals<R, M> {
    fn propose(&self, proposal: Proposal, done: Done) -> Option<BoxFuture<'static, ()>> {
        let responder = Callback::new(move |written: Written<R>| done.tell(outcome::<R>(written)));
        let raft = self.0.raft.clone();
        // An error means that consensus has stopped; `done` was dropped with the message, which says so.
        let mut write = async move {
            raft.client_write_ff(proposal, Some(responder)).await.ok();
        }
        .boxed();
        // The channel is bounded at far more than is ever in flight, so one poll hands the message over. The
        // poll is not charged to the budget of the task that happens to submit.
        let waker = noop_waker();
        let mut context = std::task::Context::from_waker(&waker);
        let mut once = std::pin::pin!(tokio::task::unconstrained(&mut write));
        if once.as_mut().poll(&mut context).is_ready() { None } else { Some(write) }
    }
}

#[async_trait]
impl<R: AsyncRuntime, M: StateMachine> Engine for Core<R, M> {
    fn status(&self) -> Status {
        let metrics = self.metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let (mut voting, mut learning) = (BTreeMap::new(), BTreeMap::new());
        for (id, member) in membership.nodes() {
            let to = if voters.contains(id) { &mut voting } else { &mut learning };
            to.insert(*id, member.clone());
        }
        let role = match (&metrics.running_state, metrics.state) {
            (Err(_), _) | (_, ServerState::Shutdown) => Role::Stopped,
            (_, ServerState::Learner) => Role::Learner,
            (_, ServerState::Follower) => Role::Follower,
            (_, ServerState::Candidate) => Role::Candidate,
            (_, ServerState::Leader) => Role::Leader,
        };
        let matched = metrics.replication.iter().flatten();
        Status {
            node: metrics.id,
            term: metrics.current_term,
            leader: metrics.current_leader,
            role,
            last: metrics.last_log_index,
            committed: metrics.local_committed.as_ref().map(types::stored_id),
            applied: metrics.last_applied.as_ref().map(types::stored_id),
            snapshot: metrics.snapshot.as_ref().map(types::stored_id),
            purged: metrics.purged.as_ref().map(types::stored_id),
            voters: voting,
            learners: learning,
            quorum_contact: self.confirmed(&metrics),
            matched: matched.map(|(id, matched)| (*id, matched.as_ref().map(|id| id.index))).collect(),
            failure: metrics.running_state.as_ref().err().map(|fatal| kubemq_runtime::chain(fatal).to_string()),
        }
    }

    fn has_lease(&self) -> bool {
        self.confirmed(&self.metrics.borrow_watched())
    }

    async fn follow(&self, publish: &(dyn Fn(Status) + Send + Sync)) {
        let mut changes = self.raft.server_metrics();
        loop {
            // Marked as seen before it is read: a change in between is seen again, never lost.
            drop(changes.borrow_and_update());
            publish(self.status());
            if changes.changed().await.is_err() {
                let mut last = self.status();
                if let Some(failure) = &last.failure {
                    tracing::error!(error = failure, "consensus stopped");
                }
                last.role = Role::Stopped;
                last.quorum_contact = false;
                publish(last);
                return;
            }
        }
    }

    async fn read_index(&self) -> Result<u64, Unavailable> {
        let policy = match self.reads {
            Reads::ReadIndex => ReadPolicy::ReadIndex,
            Reads::Lease => ReadPolicy::LeaseRead,
        };
        match self.raft.get_read_linearizer(policy).await {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(RaftError::Fatal(_)) => Err(Unavailable::Stopped),
            Err(error) => {
                Err(Unavailable::NoLeader { leader: error.forward_to_leader().and_then(|forward| forward.leader_id) })
            }
        }
    }

    async fn reached(&self, mark: Mark, index: u64, limit: Duration) -> Result<(), Unavailable> {
        let reached = |metrics: &RaftMetrics<Types<R>>| {
            let id = match mark {
                Mark::Applied => &metrics.last_applied,
                Mark::Snapshot => &metrics.snapshot,
                Mark::Purged => &metrics.purged,
            };
            id.as_ref().is_some_and(|id| id.index >= index)
        };
        if reached(&self.metrics.borrow_watched()) {
            return Ok(());
        }
        let waited = self.raft.wait(Some(limit)).metrics(reached, "reach an index").await;
        waited.map(drop).map_err(|error| match error {
            openraft::metrics::WaitError::ShuttingDown => Unavailable::Stopped,
            openraft::metrics::WaitError::Timeout(..) => Unavailable::NoLeader { leader: self.status().leader },
        })
    }

    async fn initialize(&self, members: BTreeMap<u64, Member>) -> Result<(), Error> {
        match self.raft.initialize(members).await {
            Ok(()) => Ok(()),
            Err(RaftError::Fatal(fatal)) => Err(stopped(&fatal)),
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Err(Error::AlreadyFormed),
            Err(RaftError::APIError(error)) => Err(Error::Membership(error.to_string())),
        }
    }

    async fn add_learner(&self, id: u64, member: Member, wait: bool) -> Result<(), Error> {
        changed(self.raft.add_learner(id, member, wait).await)
    }

    async fn change_voters(&self, voters: BTreeSet<u64>, retain: bool) -> Result<(), Error> {
        changed(self.raft.change_membership(voters, retain).await)
    }

    async fn elect(&self) -> Result<(), Error> {
        self.raft.trigger().elect(true).await.map_err(|fatal| stopped(&fatal))
    }

    async fn elect_alone(&self) -> Result<(), Error> {
        // After a start openraft waits out the lease of the leader it remembers, a second in all, although that
        // was this very node. A request that names somebody else as the next leader ends the lease.
        let vote = self.raft.with_raft_state(|state| *state.vote_ref()).await.map_err(|fatal| stopped(&fatal))?;
        let request = TransferLeaderRequest::new(vote, u64::MAX, None);
        self.raft.handle_transfer_leader(request).await.map_err(|fatal| stopped(&fatal))?.ok();
        self.elect().await
    }

    async fn transfer_leader(&self, to: u64) -> Result<(), Error> {
        self.raft.trigger().transfer_leader(to).await.map_err(|fatal| stopped(&fatal))
    }

    async fn snapshot(&self) -> Result<(), Error> {
        self.raft.trigger().snapshot().await.map_err(|fatal| stopped(&fatal))
    }

    async fn purge(&self, upto: u64) -> Result<(), Error> {
        self.raft.trigger().purge_log(upto).await.map_err(|fatal| stopped(&fatal))
    }

    async fn recovered(&self, limit: Duration) -> Result<(), Error> {
        match self.raft.wait_for_recovery(Some(limit)).await {
            Ok(_) => Ok(()),
            Err(openraft::metrics::WaitError::ShuttingDown) => Err(Error::Stopped("while it started".to_owned())),
            Err(openraft::metrics::WaitError::Timeout(..)) => Err(Error::Timeout("no leader confirmed the log")),
        }
    }

    async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(%error, "consensus did not stop cleanly");
        }
    }

    async fn call(&self, call: Call, request: Frame) -> Result<Frame, PeerError> {
        let refused = |error: Fatal<Types<R>>| PeerError::Refused(error.to_string());
        match call {
            Call::Heartbeat => {
                let request = frame::read_append::<R>(request)?;
                let before = request.prev_log_id;
                let last = request.entries.last().map(|entry| entry.log_id).or(before);
                let response = self.raft.append_entries(request).await;
                let response = response.map_err(|error| refused(error.unwrap_fatal()))?;
                Ok(frame::appended::<R>(&response.into_stream_result(before, last)))
            }
            Call::Vote => {
                let response = self.raft.vote(frame::read_vote(request)?).await;
                Ok(frame::voted(&response.map_err(|error| refused(error.unwrap_fatal()))?))
            }
            Call::PreVote => {
                let response = self.raft.pre_vote(frame::read_vote(request)?).await;
                Ok(frame::voted(&response.map_err(|error| refused(error.unwrap_fatal()))?))
            }
            Call::TransferLeader => {
                let response = self.raft.handle_transfer_leader(frame::read_transfer(request)?).await;
                Ok(frame::transferred(&response.map_err(refused)?))
            }
            Call::ReadIndex => Ok(frame::read_indexed(match self.read_index().await {
                Ok(index) => Ok(index),
                Err(Unavailable::NoLeader { leader }) => Err(leader),
                Err(Unavailable::Stopped) => return Err(PeerError::Refused("consensus has stopped".to_owned())),
            })),
        }
    }

    fn append(&self, requests: Replies) -> Replies {
        // What cannot be read ends the stream: the sender opens another.
        let requests = requests
            .map(|frame| frame.and_then(|frame| Ok(frame::read_append::<R>(frame)?)))
            .take_while(|request| {
                if let Err(error) = request {
                    tracing::debug!(%error, "stream of entries ended");
                }
                std::future::ready(request.is_ok())
            })
            .filter_map(|request| std::future::ready(request.ok()));
        let results = self.raft.stream_append(requests.boxed());
        results
            .map(|result| match result {
                Ok(result) => Ok(frame::appended::<R>(&result)),
                Err(fatal) => Err(PeerError::Refused(fatal.to_string())),
            })
            .boxed()
    }

    fn install(&self) -> Install {
        let raft = self.raft.clone();
        Box::new(move |vote, incoming| {
            async move {
                let meta = incoming.meta.raft.clone();
                let snapshot = Snapshot { meta, snapshot: Handle::Incoming(Box::new(incoming)) };
                let response = raft.install_full_snapshot(vote, snapshot).await;
                response.map(|response| response.vote).map_err(|fatal| PeerError::Refused(fatal.to_string()))
            }
            .boxed()
        })
    }

    fn moment(&self) -> Moment {
        self.machine.moment()
    }

    fn is_durable(&self, durable: Durable) {
        self.machine.is_durable(durable);
    }

    fn wants_snapshot(&self) -> bool {
        self.machine.state.lock().machine.wants_snapshot()
    }

    fn applied(&self) -> u64 {
        self.machine.state.lock().meta.index()
    }

    fn leads(&self) -> bool {
        self.confirmed(&self.metrics.borrow_watched())
    }

    fn digest(&self) -> (u64, u64) {
        let state = self.machine.state.lock();
        let State { machine, meta } = &*state;
        (meta.index(), machine.digest())
    }
}
