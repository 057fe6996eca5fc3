//! openraft's network over [`Peers`].
//!
//! Heartbeats and votes are single calls with a time limit. Entries go through one stream per peer: any number
//! of requests is under way, but no more than a window of bytes that the peer has not acknowledged. A stream on
//! which nothing comes back although something should is given up and opened anew.

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use kubemq_runtime::{Clock, Tasks};
use kubemq_storage::log::Log;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption, RPCTypes,
    RaftNetworkFactory,
};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AsyncRuntime, OptionalSend, Snapshot};

use super::window::Window;
use super::{Call, Channel, Frame, Peer, Peers, Replies, frame};
use crate::error::PeerError;
use crate::machine::Handle;
use crate::options::Options;
use crate::snapshot::Sender;
use crate::status::Member;
use crate::types::{LeaderId, Types, Vote};

/// Makes a [`Client`] for each peer.
pub(crate) struct Clients<R> {
    pub(crate) node: u64,
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) log: Log,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
    pub(crate) options: Arc<Options>,
    pub(crate) runtime: PhantomData<fn() -> R>,
}

/// Talks to one peer.
pub(crate) struct Client<R> {
    node: u64,
    peer: Peer,
    peers: Arc<dyn Peers>,
    log: Log,
    clock: Clock,
    tasks: Tasks,
    options: Arc<Options>,
    heartbeat: bool,
    runtime: PhantomData<fn() -> R>,
}

impl<R> Clients<R> {
    fn client(&self, target: u64, member: &Member, heartbeat: bool) -> Client<R> {
        Client {
            node: self.node,
            peer: Peer { id: target, address: member.address.as_str().into() },
            peers: Arc::clone(&self.peers),
            log: self.log.clone(),
            clock: self.clock.clone(),
            tasks: self.tasks.clone(),
            options: Arc::clone(&self.options),
            heartbeat,
            runtime: PhantomData,
        }
    }
}

impl<R: AsyncRuntime> RaftNetworkFactory<Types<R>> for Clients<R> {
    type Network = Client<R>;

    async fn new_client(&mut self, target: u64, member: &Member) -> Client<R> {
        self.client(target, member, false)
    }

    async fn new_heartbeat_client(&mut self, target: u64, member: &Member) -> Client<R> {
        self.client(target, member, true)
    }
}

impl<R: AsyncRuntime> Client<R> {
    async fn call(&self, call: Call, request: Frame, limit: Duration) -> Result<Frame, PeerError> {
        self.clock.timeout(limit, self.peers.call(&self.peer, call, request, limit)).await?
    }

    fn failed(&self, error: PeerError, action: RPCTypes, timeout: Duration) -> RPCError<Types<R>> {
        match error {
            PeerError::Timeout => RPCError::Timeout(Timeout { action, id: self.node, target: self.peer.id, timeout }),
            PeerError::Unreachable(_) => RPCError::Unreachable(Unreachable::new(&error)),
            _ => RPCError::Network(NetworkError::new(&error)),
        }
    }

    async fn heartbeat<S>(&self, mut input: S, limit: Duration) -> Result<Vec<StreamAppendResult<Types<R>>>, PeerError>
    where
        S: Stream<Item = AppendEntriesRequest<Types<R>>> + Unpin + Send,
    {
        let mut results = Vec::new();
        while let Some(request) = input.next().await {
            let reply = self.call(Call::Heartbeat, frame::append(request), limit).await?;
            results.push(frame::read_appended(reply)?);
        }
        Ok(results)
    }
}

impl<R: AsyncRuntime> NetStreamAppend<Types<R>> for Client<R> {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Types<R>>, RPCError<Types<R>>>>, RPCError<Types<R>>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types<R>>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            if self.heartbeat {
                let limit = option.soft_ttl();
                let results = self.heartbeat(input, limit).await;
                let results = results.map_err(|error| self.failed(error, RPCTypes::AppendEntries, limit))?;
                return Ok(stream::iter(results.into_iter().map(Ok)).boxed());
            }
            let window = Arc::new(Window::new(self.options.window_bytes));
            let requests = window.requests(input.map(frame::append), &self.clock);
            let stall = self.options.append_stall;
            let opened = self.clock.timeout(stall, self.peers.open(&self.peer, Channel::Append, requests)).await;
            let replies = opened.unwrap_or(Err(PeerError::Timeout));
            let replies = replies.map_err(|error| self.failed(error, RPCTypes::AppendEntries, stall))?;
            let this = &*self;
            let state = Some((replies, window));
            let results = stream::unfold(state, move |state| async move {
                let (mut replies, window) = state?;
                let next = next_reply(&mut replies, &window, stall, &this.clock).await?;
                match next.and_then(|reply| Ok(frame::read_appended(reply)?)) {
                    Ok(result) => {
                        window.acknowledged(&this.clock);
                        let rest = result.is_ok().then_some((replies, window));
                        Some((Ok(result), rest))
                    }
                    Err(error) => Some((Err(this.failed(error, RPCTypes::AppendEntries, stall)), None)),
                }
            });
            Ok(results.boxed())
        })
    }
}

/// Returns what comes back next, or nothing when that is the end.
///
/// When all that was sent is acknowledged, the end is no error. openraft may by then have scheduled the next request
/// to this peer, and an error would be taken for an error of that one: the entries that it needs would be purged.
async fn next_reply(
    replies: &mut Replies,
    window: &Window,
    stall: Duration,
    clock: &Clock,
) -> Option<Result<Frame, PeerError>> {
    tokio::select! {
        biased;
        reply = replies.next() => match reply {
            Some(Err(error)) if window.is_settled() => {
                tracing::debug!(%error, "stream of entries broke with nothing under way");
                None
            }
            reply => reply,
        },
        () = window.finished() => None,
        () = window.stalled(stall, clock) => Some(Err(PeerError::Timeout)),
    }
}

impl<R: AsyncRuntime> NetVote<Types<R>> for Client<R> {
    async fn vote(
        &mut self,
        request: VoteRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<R>>, RPCError<Types<R>>> {
        let limit = option.soft_ttl();
        let reply = self.call(Call::Vote, frame::vote(&request), limit).await;
        let response = reply.and_then(|reply| Ok(frame::read_voted(reply)?));
        response.map_err(|error| self.failed(error, RPCTypes::Vote, limit))
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<R>>, RPCError<Types<R>>> {
        let limit = option.soft_ttl();
        let reply = self.call(Call::PreVote, frame::vote(&request), limit).await;
        let response = reply.and_then(|reply| Ok(frame::read_voted(reply)?));
        response.map_err(|error| self.failed(error, RPCTypes::Vote, limit))
    }
}

impl<R: AsyncRuntime> NetTransferLeader<Types<R>> for Client<R> {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types<R>>, RPCError<Types<R>>> {
        let limit = option.soft_ttl();
        let reply = self.call(Call::TransferLeader, frame::transfer(&request), limit).await;
        let response = reply.and_then(|reply| Ok(frame::read_transferred(reply)?));
        response.map_err(|error| self.failed(error, RPCTypes::TransferLeader, limit))
    }
}

impl<R: AsyncRuntime> NetSnapshot<Types<R>> for Client<R> {
    type SnapshotData = Handle;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<LeaderId, u64, Member, Handle>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types<R>>, StreamingError<Types<R>>> {
        let Handle::Outgoing(outgoing) = snapshot.snapshot else {
            return Err(StreamingError::Network(NetworkError::from_string("not a snapshot to be sent")));
        };
        let sender = Sender {
            peers: Arc::clone(&self.peers),
            peer: self.peer.clone(),
            log: self.log.clone(),
            clock: self.clock.clone(),
            tasks: self.tasks.clone(),
            stall: self.options.snapshot_stall,
        };
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = sender.send(&vote, *outgoing) => match sent {
                Ok(vote) => Ok(SnapshotResponse::new(vote)),
                Err(error) => Err(self.failed(error, RPCTypes::InstallSnapshot, self.options.snapshot_stall).into()),
            },
        }
    }
}

impl<R: AsyncRuntime> NetBackoff<Types<R>> for Client<R> {
    fn backoff(&self) -> Option<Backoff> {
        // An unreachable peer is tried again soon, so that one that comes back is not late for elections.
        Some(Backoff::new(std::iter::repeat(Duration::from_millis(100))))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use async_trait::async_trait;
    use kubemq_runtime::Runtime;
    use kubemq_storage::fs::MemoryDisk;
    use kubemq_storage::log;
    use openraft::impls::TokioRuntime;

    use super::*;
    use crate::network::Requests;

    /// What a peer does with a stream of entries.
    #[derive(Clone, Copy)]
    enum Peering {
        /// It acknowledges so many requests and is gone.
        Breaks(usize),
        /// It acknowledges everything, and never says goodbye.
        FallsSilent,
    }

    #[async_trait]
    impl Peers for Peering {
        async fn call(&self, _: &Peer, _: Call, _: Frame, _: Duration) -> Result<Frame, PeerError> {
            Err(PeerError::Timeout)
        }

        async fn open(&self, _: &Peer, _: Channel, requests: Requests) -> Result<Replies, PeerError> {
            let acknowledged = requests.map(|_| Ok(frame::appended::<TokioRuntime>(&Ok(None))));
            let reset = stream::once(async { Err(PeerError::Network("reset".to_owned())) });
            Ok(match *self {
                Self::Breaks(after) => acknowledged.take(after).chain(reset).boxed(),
                Self::FallsSilent => acknowledged.chain(stream::pending()).boxed(),
            })
        }
    }

    /// Sends a probe, which is one request, or the first of an endless row, and returns how the stream to the peer
    /// ended: how much was acknowledged, and the error.
    async fn ending(peering: Peering, probe: bool) -> (usize, Option<RPCError<Types<TokioRuntime>>>) {
        let runtime = Runtime::real();
        let disk = Arc::new(MemoryDisk::new());
        let log = Log::open(disk, PathBuf::from("/log"), log::Options::default(), &runtime).await.unwrap();
        let clients = Clients {
            node: 1,
            peers: Arc::new(peering),
            log,
            clock: runtime.clock.clone(),
            tasks: runtime.tasks.clone(),
            options: Arc::new(Options::new(1)),
            runtime: PhantomData,
        };
        let mut client: Client<TokioRuntime> = clients.client(2, &Member { address: "two".to_owned() }, false);
        let request = AppendEntriesRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: None,
            entries: vec![],
            leader_commit: None,
        };
        let first = stream::iter([request]);
        let input = if probe { first.boxed() } else { first.chain(stream::pending()).boxed() };
        let ended = async {
            let mut results = client.stream_append(input, RPCOption::new(Duration::from_secs(1))).await.unwrap();
            let mut acknowledged = 0;
            while let Some(result) = results.next().await {
                match result {
                    Ok(_) => acknowledged += 1,
                    Err(error) => return (acknowledged, Some(error)),
                }
            }
            (acknowledged, None)
        };
        runtime.clock.timeout(Duration::from_secs(20), ended).await.unwrap()
    }

    /// An error would let the leader purge what the next request to this peer, already scheduled, begins with. Found
    /// by the simulation: the leader stopped over an entry that it could not read any more.
    #[tokio::test]
    async fn a_stream_that_breaks_after_all_was_acknowledged_ends_without_an_error() {
        for probe in [true, false] {
            let (acknowledged, error) = ending(Peering::Breaks(1), probe).await;
            assert!(acknowledged == 1 && error.is_none(), "{acknowledged} {error:?}");
        }
    }

    #[tokio::test]
    async fn a_probe_does_not_wait_for_the_goodbye_of_a_peer_that_died() {
        let (acknowledged, error) = ending(Peering::FallsSilent, true).await;
        assert!(acknowledged == 1 && error.is_none(), "{acknowledged} {error:?}");
    }

    #[tokio::test]
    async fn a_stream_that_breaks_with_something_under_way_ends_with_the_error() {
        let (acknowledged, error) = ending(Peering::Breaks(0), true).await;
        assert!(acknowledged == 0 && matches!(error, Some(RPCError::Network(_))), "{acknowledged} {error:?}");
    }
}
