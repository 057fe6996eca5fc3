//! The network between simulated nodes: everything that the raft crate may ask of its peers, with delay, loss,
//! duplicates and partitions.
//!
//! Frames cross it encoded, as they cross a real one. A single call may be lost, doubled or overtaken; a stream is
//! ordered like a TCP connection: loss only delays it, or breaks it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use kubemq_raft::PeerError;
use kubemq_raft::network::{Call, Channel, Frame, Peer, Peers, Replies, Requests};
use kubemq_runtime::Random;
use kubemq_runtime::sync::{mpsc, oneshot, watch};
use parking_lot::Mutex;

use crate::world::{Fingerprint, Place, World};

/// Frames that a stream holds in each direction.
const WINDOW: usize = 64;
/// How long a connection attempt waits for somebody who does not answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// After this long without its peer a connection is given up.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// What a node does with what arrives.
#[async_trait]
pub trait Endpoint: Send + Sync + 'static {
    /// Answers a single call.
    async fn call(&self, call: Call, request: Frame) -> Result<Frame, PeerError>;
    /// Takes a stream of frames and gives one back.
    fn open(&self, channel: Channel, requests: Replies) -> Replies;
}

/// How bad the network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkFaults {
    /// The least time that a message takes, in microseconds.
    pub least_micros: u64,
    /// The most time that a message takes, unless it is late.
    pub most_micros: u64,
    /// Of a thousand messages, this many are late by 5 to 200 ms.
    pub late: u64,
    /// Of a thousand messages, this many are lost.
    pub lost: u64,
    /// Of a thousand calls, this many arrive twice.
    pub doubled: u64,
}

impl NetworkFaults {
    /// A good local network.
    pub const NONE: Self = Self { least_micros: 50, most_micros: 400, late: 0, lost: 0, doubled: 0 };
}

struct End {
    place: Arc<Place>,
    endpoint: Arc<dyn Endpoint>,
}

struct State {
    ends: BTreeMap<usize, End>,
    /// Pairs between which nothing passes, from and to.
    cut: BTreeSet<(usize, usize)>,
    /// Nodes whose death their peers do not notice.
    silent: BTreeSet<usize>,
    faults: NetworkFaults,
    delivered: u64,
    /// Frames of snapshots that arrived.
    snapshot_frames: u64,
    /// What happens when so many have.
    then: Option<(u64, Box<dyn FnOnce() + Send>)>,
}

/// The network of one world. Clones are the same network.
#[derive(Clone)]
pub struct Network {
    world: World,
    harness: Arc<Place>,
    random: Random,
    state: Arc<Mutex<State>>,
}

/// The address of a node in the membership.
#[must_use]
pub fn address(node: usize) -> String {
    format!("sim-{node}")
}

fn node_at(address: &str) -> usize {
    address.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or(usize::MAX)
}

impl Network {
    /// Returns a network without nodes.
    #[must_use]
    pub fn new(world: &World, harness: &Arc<Place>) -> Self {
        let state = State {
            ends: BTreeMap::new(),
            cut: BTreeSet::new(),
            silent: BTreeSet::new(),
            faults: NetworkFaults::NONE,
            delivered: 0,
            snapshot_frames: 0,
            then: None,
        };
        Self {
            world: world.clone(),
            harness: Arc::clone(harness),
            random: world.random("network"),
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Connects one life of a node.
    pub fn attach(&self, place: &Arc<Place>, endpoint: Arc<dyn Endpoint>) {
        let mut state = self.state.lock();
        state.silent.remove(&place.node);
        let old = state.ends.insert(place.node, End { place: Arc::clone(place), endpoint });
        drop(state);
        drop(old);
    }

    /// Disconnects a node. When `silent`, its peers hear nothing; otherwise their connections are reset.
    pub fn detach(&self, node: usize, silent: bool) {
        let mut state = self.state.lock();
        if silent {
            state.silent.insert(node);
        }
        let old = state.ends.remove(&node);
        drop(state);
        drop(old);
    }

    /// Returns what `node` sends through.
    #[must_use]
    pub fn peers(&self, place: &Arc<Place>) -> Arc<dyn Peers> {
        Arc::new(SimPeers { network: self.clone(), place: Arc::clone(place) })
    }

    /// Lets nothing pass from `from` to `to`.
    pub fn cut(&self, from: usize, to: usize) {
        self.state.lock().cut.insert((from, to));
    }

    /// Lets everything pass again.
    pub fn heal(&self) {
        self.state.lock().cut.clear();
    }

    /// Changes how bad the network is.
    pub fn set_faults(&self, faults: NetworkFaults) {
        self.state.lock().faults = faults;
    }

    /// Returns how many messages arrived.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.state.lock().delivered
    }

    /// Returns how many frames of snapshots arrived, either way.
    #[must_use]
    pub fn snapshot_frames(&self) -> u64 {
        self.state.lock().snapshot_frames
    }

    /// Has something happen at the moment when `frames` frames of snapshots have arrived.
    pub fn when_snapshot_frames(&self, frames: u64, then: impl FnOnce() + Send + 'static) {
        self.state.lock().then = Some((frames, Box::new(then)));
    }

    fn count(&self, channel: Channel) {
        let then = {
            let mut state = self.state.lock();
            state.snapshot_frames += u64::from(channel == Channel::Snapshot);
            let frames = state.snapshot_frames;
            state.then.take_if(|(at, _)| frames >= *at)
        };
        if let Some((_, then)) = then {
            then();
        }
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.state.lock().cut.contains(&(from, to))
    }

    fn is_silent(&self, node: usize) -> bool {
        self.state.lock().silent.contains(&node)
    }

    fn target(&self, node: usize) -> Option<(Arc<Place>, Arc<dyn Endpoint>)> {
        let state = self.state.lock();
        let end = state.ends.get(&node)?;
        Some((Arc::clone(&end.place), Arc::clone(&end.endpoint)))
    }

    fn per_mille(&self, share: u64) -> bool {
        share > 0 && self.random.below(1000) < share
    }

    /// Draws how long one message takes.
    fn delay(&self) -> Duration {
        let faults = self.state.lock().faults;
        let spread = 1000 * (faults.most_micros - faults.least_micros) + 1;
        let mut nanos = 1000 * faults.least_micros + self.random.below(spread);
        if self.per_mille(faults.late) {
            nanos += 5_000_000 + self.random.below(195_000_000);
        }
        Duration::from_nanos(nanos)
    }

    /// Carries one message; returns whether it arrived.
    async fn leg(&self, from: usize, to: usize) -> bool {
        let lost = self.per_mille(self.state.lock().faults.lost);
        if lost || self.is_cut(from, to) {
            return false;
        }
        self.world.sleep(self.delay()).await;
        let arrived = !self.is_cut(from, to);
        self.state.lock().delivered += u64::from(arrived);
        arrived
    }

    /// Carries a call and its answer. Nothing means silence.
    async fn carry(&self, from: usize, to: usize, call: Call, request: Frame) -> Option<Result<Frame, PeerError>> {
        self.world.trace(from, format_args!("send {call:?} to {to} {:x}", fingerprint(&request)));
        if !self.leg(from, to).await {
            return None;
        }
        let doubled = self.per_mille(self.state.lock().faults.doubled);
        if doubled {
            let (network, request) = (self.clone(), request.clone());
            let again = async move {
                network.world.sleep(network.delay()).await;
                drop(network.deliver(from, to, call, request).await);
            };
            self.world.spawn(&self.harness, "network double", Box::pin(again));
        }
        let answer = self.deliver(from, to, call, request).await?;
        if !self.leg(to, from).await {
            return None;
        }
        self.world.trace(from, format_args!("answer {call:?} of {to} {}", outcome(&answer)));
        Some(answer)
    }

    async fn deliver(&self, from: usize, to: usize, call: Call, request: Frame) -> Option<Result<Frame, PeerError>> {
        let reset = || (!self.is_silent(to)).then(|| Err(PeerError::Unreachable(format!("node {to} is down"))));
        let Some((place, endpoint)) = self.target(to) else { return reset() };
        self.world.trace(to, format_args!("receive {call:?} from {from} {:x}", fingerprint(&request)));
        let (sender, receiver) = oneshot::channel();
        let task = async move {
            // Nobody may wait any more.
            sender.send(endpoint.call(call, request).await).ok();
        };
        self.world.spawn(&place, "peer call", Box::pin(task));
        match receiver.await {
            Ok(answer) => Some(answer),
            Err(_) => reset(),
        }
    }
}

fn fingerprint(frame: &Frame) -> u64 {
    let mut fingerprint = Fingerprint::default();
    fingerprint.bytes(&frame.head);
    for body in &frame.bodies {
        fingerprint.bytes(body);
    }
    fingerprint.value()
}

fn outcome(answer: &Result<Frame, PeerError>) -> String {
    match answer {
        Ok(frame) => format!("{:x}", fingerprint(frame)),
        Err(error) => error.to_string(),
    }
}

struct SimPeers {
    network: Network,
    place: Arc<Place>,
}

#[async_trait]
impl Peers for SimPeers {
    async fn call(&self, peer: &Peer, call: Call, request: Frame, limit: Duration) -> Result<Frame, PeerError> {
        let (sender, receiver) = oneshot::channel();
        let (network, from, to) = (self.network.clone(), self.place.node, node_at(&peer.address));
        let task = async move {
            if let Some(answer) = network.carry(from, to, call, request).await {
                // The caller may have given up.
                sender.send(answer).ok();
            }
        };
        self.network.world.spawn(&self.network.harness, "network call", Box::pin(task));
        let answer = async {
            match receiver.await {
                Ok(answer) => answer,
                Err(_) => std::future::pending().await,
            }
        };
        let clock = self.network.world.runtime_clock(&self.place);
        clock.timeout(limit, answer).await.unwrap_or(Err(PeerError::Timeout))
    }

    async fn open(&self, peer: &Peer, channel: Channel, requests: Requests) -> Result<Replies, PeerError> {
        let to = node_at(&peer.address);
        Connection::open(self.network.clone(), Arc::clone(&self.place), to, channel, requests).await
    }
}

/// One stream between two nodes.
#[derive(Clone)]
struct Connection {
    network: Network,
    from: Arc<Place>,
    to: Arc<Place>,
    channel: Channel,
    /// Set once when the connection is gone.
    broken: watch::Sender<bool>,
}

/// One direction of a stream.
struct Way {
    source: Arc<Place>,
    target: usize,
    input: mpsc::Receiver<(Duration, Item)>,
    output: mpsc::Sender<Item>,
}

type Item = Result<Frame, PeerError>;

impl Connection {
    async fn open(
        network: Network,
        from: Arc<Place>,
        to: usize,
        channel: Channel,
        requests: Requests,
    ) -> Result<Replies, PeerError> {
        let unreachable = || PeerError::Unreachable(format!("node {to} does not answer"));
        if network.is_cut(from.node, to) || network.is_cut(to, from.node) || network.is_silent(to) {
            network.world.sleep(CONNECT_LIMIT).await;
            return Err(unreachable());
        }
        network.world.sleep(network.delay() + network.delay()).await;
        let Some((place, endpoint)) = network.target(to) else { return Err(unreachable()) };
        network.world.trace(from.node, format_args!("connect {channel:?} to {to}"));
        let (broken, _) = watch::channel(false);
        let connection = Self { network: network.clone(), from, to: Arc::clone(&place), channel, broken };

        let (request_in, request_input) = mpsc::channel(WINDOW);
        let (request_output, request_out) = mpsc::channel(WINDOW);
        let (reply_in, reply_input) = mpsc::channel(WINDOW);
        let (reply_output, reply_out) = mpsc::channel(WINDOW);
        let requests = requests.map(Ok).boxed();
        connection.spawn(&connection.from, "stream out", connection.clone().pump(requests, request_in));
        let way =
            Way { source: Arc::clone(&connection.from), target: to, input: request_input, output: request_output };
        connection.spawn(&network.harness, "stream there", connection.clone().carry(way));
        let way = Way {
            source: Arc::clone(&connection.to),
            target: connection.from.node,
            input: reply_input,
            output: reply_output,
        };
        connection.spawn(&network.harness, "stream back", connection.clone().carry(way));
        let serving = connection.clone();
        connection.spawn(&place, "stream server", async move {
            let requests = serving.clone().arriving(request_out, None);
            let replies = endpoint.open(channel, requests);
            serving.pump(replies, reply_in).await;
        });
        let guard = Guard(connection.clone());
        Ok(connection.arriving(reply_out, Some(guard)))
    }

    fn spawn(&self, place: &Arc<Place>, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.network.world.spawn(place, name, Box::pin(task));
    }

    fn break_off(&self) {
        self.broken.send_if_modified(|broken| !std::mem::replace(broken, true));
    }

    async fn until_broken(&self) {
        let mut broken = self.broken.subscribe();
        // This connection holds the sender, so that waiting cannot fail.
        broken.wait_for(|broken| *broken).await.ok();
    }

    /// Takes frames from a node as long as the window has room.
    async fn pump(self, mut frames: Replies, into: mpsc::Sender<(Duration, Item)>) {
        loop {
            let frame = tokio::select! {
                biased;
                () = self.until_broken() => return,
                frame = frames.next() => frame,
            };
            let Some(frame) = frame else { return };
            let delay = self.network.delay();
            tokio::select! {
                biased;
                () = self.until_broken() => return,
                sent = into.send((delay, frame)) => if sent.is_err() { return },
            }
        }
    }

    /// Carries frames in order until the connection breaks or its source ends it.
    async fn carry(self, mut way: Way) {
        let source = way.source.node;
        loop {
            let next = tokio::select! {
                biased;
                () = self.until_broken() => return,
                next = way.input.recv() => next,
            };
            let Some((delay, frame)) = next else { break };
            let crossing = self.crosses(source, way.target, delay);
            let crossed = tokio::select! {
                biased;
                () = self.until_broken() => return,
                crossed = crossing => crossed,
            };
            if !crossed {
                self.break_off();
                return;
            }
            let print = frame.as_ref().map_or(0, fingerprint);
            self.network.world.trace(way.target, format_args!("stream {:?} from {source} {print:x}", self.channel));
            tokio::select! {
                biased;
                () = self.until_broken() => return,
                sent = way.output.send(frame) => if sent.is_err() { return },
            }
            self.network.count(self.channel);
        }
        if way.source.alive() {
            // Ended as it should: the other side sees the end of the stream.
            return;
        }
        if self.network.is_silent(source) || self.network.is_cut(source, way.target) {
            tokio::select! {
                biased;
                () = self.until_broken() => return,
                () = self.network.world.sleep(KEEPALIVE) => {}
            }
        } else {
            self.network.world.sleep(self.network.delay()).await;
        }
        self.break_off();
    }

    /// Waits as long as one frame takes. Returns false when the connection breaks on the way.
    async fn crosses(&self, from: usize, to: usize, delay: Duration) -> bool {
        let network = &self.network;
        network.world.sleep(delay).await;
        let lost = network.per_mille(network.state.lock().faults.lost);
        if lost {
            if network.random.below(8) == 0 {
                return false;
            }
            // Sent again by the transport.
            let again = Duration::from_millis(1 + network.random.below(250));
            network.world.sleep(again).await;
        }
        let mut patience = Duration::from_millis(200 + network.random.below(4000));
        while network.is_cut(from, to) {
            let step = Duration::from_millis(20);
            if patience < step {
                return false;
            }
            patience -= step;
            network.world.sleep(step).await;
        }
        network.state.lock().delivered += 1;
        true
    }

    /// What one side reads: frames, then the end or one error.
    fn arriving(self, out: mpsc::Receiver<Item>, guard: Option<Guard>) -> Replies {
        let state = Some((out, self, guard));
        Box::pin(futures_util::stream::unfold(state, |state| async move {
            let (mut out, connection, guard) = state?;
            let reset = || Err(PeerError::Network("connection reset".to_owned()));
            let frame = tokio::select! {
                biased;
                frame = out.recv() => frame,
                () = connection.until_broken() => Some(reset()),
            };
            let broken = *connection.broken.borrow();
            let frame = match frame {
                None if broken => reset(),
                frame => frame?,
            };
            let next = frame.is_ok().then_some((out, connection, guard));
            Some((frame, next))
        }))
    }
}

/// Ends a connection when its opener drops the replies.
struct Guard(Connection);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.break_off();
    }
}
