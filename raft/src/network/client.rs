//! openraft's network over [`Peers`].
//!
//! Heartbeats and votes are single calls with a time limit. Entries go through one stream per peer: any number
//! of requests is under way, but no more than a window of bytes that the peer has not acknowledged. A stream on
//! which nothing comes back although something should is given up and opened anew.

use std::collections::VecDeque;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use kubemq_runtime::sync::Notify;
use kubemq_runtime::{Clock, Instant};
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
use parking_lot::Mutex;

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

/// Bytes that a peer has not acknowledged.
struct Window {
    most: usize,
    state: Mutex<WindowState>,
    changed: Notify,
}

#[derive(Default)]
struct WindowState {
    /// The sizes of the requests under way, oldest first.
    sizes: VecDeque<usize>,
    bytes: usize,
    /// When something last came back, or the first of the present requests went out.
    progress: Instant,
}

impl Window {
    fn new(most: usize) -> Self {
        Self { most, state: Mutex::default(), changed: Notify::new() }
    }

    /// Waits until a request of `size` bytes may go out: always when nothing is under way.
    async fn admit(&self, size: usize, clock: &Clock) {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state.lock();
                if state.sizes.is_empty() || state.bytes + size <= self.most {
                    if state.sizes.is_empty() {
                        state.progress = clock.now();
                    }
                    state.sizes.push_back(size);
                    state.bytes += size;
                    // Who watches for a stall must know that something is under way.
                    self.changed.notify_waiters();
                    return;
                }
            }
            changed.await;
        }
    }

    fn acknowledged(&self, clock: &Clock) {
        let mut state = self.state.lock();
        if let Some(size) = state.sizes.pop_front() {
            state.bytes -= size;
        }
        state.progress = clock.now();
        self.changed.notify_waiters();
    }

    /// Ends when something has been under way for `limit` and nothing came back.
    async fn stalled(&self, limit: Duration, clock: &Clock) {
        loop {
            let changed = self.changed.notified();
            let deadline = {
                let state = self.state.lock();
                (!state.sizes.is_empty()).then(|| state.progress + limit)
            };
            let Some(deadline) = deadline else {
                changed.await;
                continue;
            };
            if clock.now() >= deadline {
                return;
            }
            clock.sleep_until(deadline).await;
        }
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
            let requests = {
                let (window, clock) = (Arc::clone(&window), self.clock.clone());
                input.then(move |request| {
                    let (window, clock) = (Arc::clone(&window), clock.clone());
                    async move {
                        let frame = frame::append(request);
                        window.admit(frame.bytes(), &clock).await;
                        frame
                    }
                })
            };
            let stall = self.options.append_stall;
            let opened =
                self.clock.timeout(stall, self.peers.open(&self.peer, Channel::Append, requests.boxed())).await;
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

async fn next_reply(
    replies: &mut Replies,
    window: &Window,
    stall: Duration,
    clock: &Clock,
) -> Option<Result<Frame, PeerError>> {
    tokio::select! {
        biased;
        reply = replies.next() => reply,
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
    use futures_util::FutureExt;
    use kubemq_runtime::Runtime;

    use super::*;

    #[tokio::test]
    async fn a_slow_peer_is_sent_no_more_than_the_window() {
        let clock = Runtime::real().clock;
        let window = Window::new(100);
        window.admit(500, &clock).await;
        assert!(window.admit(1, &clock).now_or_never().is_none(), "one larger than the window goes alone");
        window.acknowledged(&clock);
        window.admit(60, &clock).await;
        window.admit(40, &clock).await;
        let third = window.admit(60, &clock);
        let acknowledge = async { window.acknowledged(&clock) };
        let both = async { tokio::join!(third, acknowledge) };
        clock.timeout(Duration::from_secs(20), both).await.unwrap();
        assert_eq!(window.state.lock().bytes, 100);
    }

    #[tokio::test]
    async fn only_a_stream_with_something_under_way_can_stall() {
        let clock = Runtime::real().clock;
        let window = Window::new(100);
        let limit = Duration::from_millis(1);
        assert!(clock.timeout(Duration::from_millis(50), window.stalled(limit, &clock)).await.is_err());
        window.admit(1, &clock).await;
        clock.timeout(Duration::from_secs(20), window.stalled(limit, &clock)).await.unwrap();
        window.acknowledged(&clock);
        assert!(window.stalled(limit, &clock).now_or_never().is_none());
    }
}
