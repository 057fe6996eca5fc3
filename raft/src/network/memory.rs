//! A network in memory: for tests, and under the simulation.
//!
//! Every frame is written to bytes and read back. Links can be cut, with a reset or in silence, and a
//! [`Weather`] may delay or lose what passes. A stream that lost a frame never delivers a later one. What a node
//! does for others runs as tasks of that node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use kubemq_runtime::sync::mpsc;
use kubemq_runtime::{OnFailure, Runtime};
use parking_lot::Mutex;

use super::{Call, Channel, Frame, Peer, Peers, Replies, Requests};
use crate::error::PeerError;
use crate::node::Node;

/// Frames between two ends of a stream.
const IN_FLIGHT: usize = 16;

/// What passes between two nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Traffic {
    /// A call, or its answer.
    Call(Call),
    /// A frame of a stream, in either direction.
    Stream(Channel),
}

/// Decides about everything that passes.
#[async_trait]
pub trait Weather: Send + Sync + 'static {
    /// Waits as long as the passage of `bytes` takes.
    ///
    /// # Errors
    ///
    /// When it is lost: a call ends with the error, a stream too.
    async fn pass(&self, from: u64, to: u64, traffic: Traffic, bytes: usize) -> Result<(), PeerError>;
}

/// How a cut link behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// Whoever uses it is told.
    Reset,
    /// Nothing comes through.
    Silence,
}

/// A network of nodes in one process. Cheap to clone.
#[derive(Clone, Default)]
pub struct MemoryNetwork(Arc<Mutex<World>>);

#[derive(Default)]
struct World {
    nodes: BTreeMap<u64, (Node, Runtime)>,
    cuts: BTreeMap<(u64, u64), Cut>,
    weather: Option<Arc<dyn Weather>>,
}

impl MemoryNetwork {
    /// Returns a network without nodes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns how node `from`, whose doors are `runtime`, reaches the others.
    #[must_use]
    pub fn peers(&self, from: u64, runtime: Runtime) -> Arc<dyn Peers> {
        Arc::new(From { network: self.clone(), from, runtime })
    }

    /// Makes `node` reachable. Its work for others runs as tasks of `runtime`.
    pub fn join(&self, id: u64, node: Node, runtime: Runtime) {
        self.0.lock().nodes.insert(id, (node, runtime));
    }

    /// Makes node `id` unreachable, as when its process ended.
    pub fn leave(&self, id: u64) {
        let gone = self.0.lock().nodes.remove(&id);
        drop(gone);
    }

    /// Cuts the link from `a` to `b` and back.
    pub fn cut(&self, a: u64, b: u64, cut: Cut) {
        let mut world = self.0.lock();
        world.cuts.insert((a, b), cut);
        world.cuts.insert((b, a), cut);
    }

    /// Cuts every link of node `id`.
    pub fn isolate(&self, id: u64, others: impl IntoIterator<Item = u64>, cut: Cut) {
        for other in others {
            if other != id {
                self.cut(id, other, cut);
            }
        }
    }

    /// Mends every link.
    pub fn heal(&self) {
        self.0.lock().cuts.clear();
    }

    /// Sets what decides about everything that passes.
    pub fn set_weather(&self, weather: Option<Arc<dyn Weather>>) {
        self.0.lock().weather = weather;
    }

    fn target(&self, to: u64) -> Result<(Node, Runtime), PeerError> {
        let found = self.0.lock().nodes.get(&to).cloned();
        found.ok_or_else(|| PeerError::Unreachable(format!("node {to} is down")))
    }

    /// Takes a frame from one node to another.
    async fn carry(&self, from: u64, to: u64, traffic: Traffic, frame: Frame) -> Result<Frame, PeerError> {
        let bytes = frame.to_bytes();
        let weather = self.0.lock().weather.clone();
        if let Some(weather) = weather {
            weather.pass(from, to, traffic, bytes.len()).await?;
        }
        let cut = self.0.lock().cuts.get(&(from, to)).copied();
        match cut {
            None => Frame::from_bytes(bytes),
            Some(Cut::Reset) => Err(PeerError::Network("reset".to_owned())),
            Some(Cut::Silence) => std::future::pending().await,
        }
    }
}

struct From {
    network: MemoryNetwork,
    from: u64,
    runtime: Runtime,
}

#[async_trait]
impl Peers for From {
    async fn call(&self, peer: &Peer, call: Call, request: Frame, limit: Duration) -> Result<Frame, PeerError> {
        let (from, to) = (self.from, peer.id);
        let asked = async {
            let request = self.network.carry(from, to, Traffic::Call(call), request).await?;
            let (node, runtime) = self.network.target(to)?;
            let answer =
                runtime.tasks.spawn("peer-call", OnFailure::Log, async move { node.handle(call, request).await });
            let answer = answer.await.map_err(|_| PeerError::Network("the peer went away".to_owned()))??;
            self.network.carry(to, from, Traffic::Call(call), answer).await
        };
        self.runtime.clock.timeout(limit, asked).await?
    }

    async fn open(&self, peer: &Peer, channel: Channel, requests: Requests) -> Result<Replies, PeerError> {
        let (from, to) = (self.from, peer.id);
        let (node, runtime) = self.network.target(to)?;
        let (there, arriving) = mpsc::channel(IN_FLIGHT);
        let (back, replies) = mpsc::channel(IN_FLIGHT);
        let out = {
            let (network, back) = (self.network.clone(), back.clone());
            pump(network, from, to, channel, requests.map(Ok).boxed(), there, Some(back))
        };
        let out = self.runtime.tasks.spawn("peer-requests", OnFailure::Log, out).abort_on_drop();
        let answer = {
            let network = self.network.clone();
            async move {
                let replies = node.handle_stream(channel, from_channel(arriving));
                pump(network, to, from, channel, replies, back, None).await;
            }
        };
        let answer = runtime.tasks.spawn("peer-answers", OnFailure::Log, answer).abort_on_drop();
        let guards = (out, answer);
        Ok(from_channel(replies)
            .map(move |reply| {
                // Dropping the replies ends both tasks.
                let _ = &guards;
                reply
            })
            .boxed())
    }
}

/// Carries the frames of one direction until the end, or the first error.
async fn pump(
    network: MemoryNetwork,
    from: u64,
    to: u64,
    channel: Channel,
    mut frames: Replies,
    sink: mpsc::Sender<Result<Frame, PeerError>>,
    tell: Option<mpsc::Sender<Result<Frame, PeerError>>>,
) {
    while let Some(frame) = frames.next().await {
        let carried = match frame {
            Ok(frame) => network.carry(from, to, Traffic::Stream(channel), frame).await,
            error => error,
        };
        if let Err(error) = &carried
            && let Some(tell) = &tell
        {
            // The other direction may be gone already.
            tell.send(Err(error.clone())).await.ok();
        }
        let ends = carried.is_err();
        if sink.send(carried).await.is_err() || ends {
            return;
        }
    }
}

fn from_channel(receiver: mpsc::Receiver<Result<Frame, PeerError>>) -> Replies {
    stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|frame| (frame, receiver)) }).boxed()
}
