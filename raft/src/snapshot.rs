//! A snapshot's way from one node to another.
//!
//! The state goes first, piece by piece, and neither side ever has all of it in memory. Then the sender names what
//! the state refers to, some ranges at a time, in no order that means anything; the receiver, which keeps its own
//! segments as a cache, answers what it lacks; those bodies follow, each checked, and are in the receiver's files
//! before the next ranges. Last comes the installation, whose last step is the pointer: an end before that leaves the
//! receiver as it was. A transfer that stands still is given up.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use kubemq_runtime::clock::Elapsed;
use kubemq_runtime::sync::mpsc;
use kubemq_runtime::{Clock, Tasks, chain};
use kubemq_storage::log::{Body, Log};
use kubemq_storage::snapshot::{SnapshotWriter, Snapshots};
use parking_lot::Mutex;

use crate::error::PeerError;
use crate::machine::{Lease, Meta, Moment};
use crate::network::frame::{Kind, Reader, Writer};
use crate::network::{Channel, Frame, Peer, Peers, Replies};
use crate::state_machine::Living;
use crate::types::{self, Malformed, Vote};
use crate::walk::Apart;

/// Bytes of state or bodies in one frame, unless it is a single piece.
const FRAME_BYTES: usize = 1 << 20;
/// Pieces of state or bodies in one frame.
const FRAME_PIECES: usize = 1024;
/// Ranges of living parts in one frame.
const FRAME_RANGES: usize = 4096;
/// Frames that wait for the network.
const FRAMES: usize = 4;

/// A snapshot to be sent: the state of one moment, and what keeps its bodies.
pub(crate) struct Outgoing {
    pub(crate) moment: Moment,
    pub(crate) lease: Lease,
}

/// A snapshot that was received with all its bodies, and is not installed.
pub(crate) struct Incoming {
    pub(crate) meta: Meta,
    /// Taken by who installs it; what nobody takes is removed.
    pub(crate) writer: Arc<Mutex<Option<SnapshotWriter>>>,
}

impl From<Malformed> for PeerError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl From<Elapsed> for PeerError {
    fn from(_: Elapsed) -> Self {
        Self::Timeout
    }
}

/// What the sender needs.
pub(crate) struct Sender {
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) peer: Peer,
    pub(crate) log: Log,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
    pub(crate) stall: Duration,
}

/// Both directions of a transfer, each watched for standing still.
struct Link {
    requests: mpsc::Sender<Frame>,
    replies: Replies,
    clock: Clock,
    stall: Duration,
}

impl Link {
    async fn send(&mut self, frame: Frame) -> Result<(), PeerError> {
        let sent = self.clock.timeout(self.stall, self.requests.send(frame)).await?;
        sent.map_err(|_| PeerError::Network("the peer ended the transfer".to_owned()))
    }

    /// Returns what a walk came to next. It may read for long without coming to anything; the receiver sees that this
    /// node is at work.
    async fn walked<T>(&mut self, walk: &mut Apart<T>) -> Result<Option<T>, PeerError> {
        loop {
            match self.clock.timeout(self.stall / 4, walk.next()).await {
                Ok(next) => {
                    return next.map_err(|error| {
                        tracing::error!(error = %chain(&error), "the state cannot be sent");
                        PeerError::Refused("the state cannot be read".to_owned())
                    });
                }
                // No pieces of state.
                Err(Elapsed) => self.send(Writer::new(Kind::SnapshotState).finish()).await?,
            }
        }
    }

    /// Returns the next answer that is more than a sign of life.
    async fn reply(&mut self) -> Result<Frame, PeerError> {
        loop {
            let Some(reply) = self.clock.timeout(self.stall, self.replies.next()).await? else {
                return Err(PeerError::Network("the peer ended the transfer".to_owned()));
            };
            let frame = reply?;
            if Reader::of(frame.clone(), Kind::SnapshotAlive).is_err() {
                return Ok(frame);
            }
        }
    }
}

impl Sender {
    /// Sends a snapshot and returns the vote of the peer after it was installed there.
    pub(crate) async fn send(&self, vote: &Vote, outgoing: Outgoing) -> Result<Vote, PeerError> {
        let Outgoing { moment, lease } = outgoing;
        let (requests, receiver) = mpsc::channel(FRAMES);
        let frames = stream::unfold(receiver, |mut receiver: mpsc::Receiver<Frame>| async move {
            receiver.recv().await.map(|frame| (frame, receiver))
        });
        let replies = self.peers.open(&self.peer, Channel::Snapshot, frames.boxed()).await?;
        let mut link = Link { requests, replies, clock: self.clock.clone(), stall: self.stall };
        link.send(Writer::new(Kind::SnapshotBegin).vote(vote).bytes(&moment.meta.encode()).finish()).await?;
        let mut frames = StateFrames::new(Kind::SnapshotState);
        let mut chunks = moment.chunks().apart(&self.tasks, "snapshot-send");
        while let Some(chunk) = link.walked(&mut chunks).await? {
            if let Some(frame) = frames.push(chunk) {
                link.send(frame).await?;
            }
        }
        if let Some(frame) = frames.finish() {
            link.send(frame).await?;
        }
        let mut living = moment.living().apart(&self.tasks, "snapshot-living");
        drop(moment);
        let mut ranges = Vec::new();
        while let Some(more) = link.walked(&mut living).await? {
            ranges.extend(more);
            if ranges.len() >= FRAME_RANGES {
                self.send_living(&mut link, std::mem::take(&mut ranges)).await?;
            }
        }
        self.send_living(&mut link, ranges).await?;
        link.send(Writer::new(Kind::SnapshotEnd).finish()).await?;
        let mut reader = Reader::of(link.reply().await?, Kind::SnapshotEnd)?;
        let vote = reader.vote()?;
        drop(lease);
        Ok(vote)
    }

    /// Names ranges that live, and sends what of them the receiver lacks.
    async fn send_living(&self, link: &mut Link, mut ranges: Vec<Living>) -> Result<(), PeerError> {
        Living::put_in_order(&mut ranges);
        for ranges in ranges.chunks(FRAME_RANGES) {
            link.send(write_ranges(Kind::SnapshotLiving, ranges)).await?;
            let lacking = read_ranges(Reader::of(link.reply().await?, Kind::SnapshotLacking)?)?;
            self.send_bodies(link, &lacking).await?;
        }
        Ok(())
    }

    async fn send_bodies(&self, link: &mut Link, lacking: &[Living]) -> Result<(), PeerError> {
        let mut bodies = Bodies::default();
        for range in lacking {
            for part in range.first..range.first.saturating_add(range.count) {
                let read = self.log.read_part(range.entry, part).await;
                let read = read.map_err(|error| {
                    tracing::error!(entry = range.entry, part, error = %chain(&error), "living body cannot be read");
                    PeerError::Refused("a living body cannot be read".to_owned())
                })?;
                let body = Body { entry: range.entry, part, time: read.time, bytes: read.bytes };
                if let Some(frame) = bodies.push(body) {
                    link.send(frame).await?;
                }
            }
        }
        match bodies.finish() {
            Some(frame) => link.send(frame).await,
            None => Ok(()),
        }
    }
}

/// Gathers pieces into frames.
struct StateFrames {
    kind: Kind,
    pieces: Vec<Bytes>,
    bytes: usize,
}

impl StateFrames {
    fn new(kind: Kind) -> Self {
        Self { kind, pieces: Vec::new(), bytes: 0 }
    }

    fn push(&mut self, piece: Bytes) -> Option<Frame> {
        self.bytes += piece.len();
        self.pieces.push(piece);
        if self.bytes >= FRAME_BYTES || self.pieces.len() >= FRAME_PIECES { self.finish() } else { None }
    }

    fn finish(&mut self) -> Option<Frame> {
        if self.pieces.is_empty() {
            return None;
        }
        self.bytes = 0;
        Some(Writer::new(self.kind).with(std::mem::take(&mut self.pieces)))
    }
}

/// Gathers bodies into frames.
#[derive(Default)]
struct Bodies {
    bodies: Vec<Body>,
    bytes: usize,
}

impl Bodies {
    fn push(&mut self, body: Body) -> Option<Frame> {
        self.bytes += body.bytes.len();
        self.bodies.push(body);
        if self.bytes >= FRAME_BYTES || self.bodies.len() >= FRAME_PIECES { self.finish() } else { None }
    }

    fn finish(&mut self) -> Option<Frame> {
        if self.bodies.is_empty() {
            return None;
        }
        self.bytes = 0;
        let mut writer = Writer::new(Kind::SnapshotBodies);
        writer.u32(types::length(self.bodies.len()));
        let mut pieces = Vec::with_capacity(self.bodies.len());
        for body in self.bodies.drain(..) {
            writer.u64(body.entry).u16(body.part).u64(body.time).u32(checksum(&body));
            pieces.push(body.bytes);
        }
        Some(writer.with(pieces))
    }
}

/// Covers what names the body, too, so that none is taken for another.
fn checksum(body: &Body) -> u32 {
    let mut sum = crc32c::crc32c(&body.entry.to_le_bytes());
    sum = crc32c::crc32c_append(sum, &body.part.to_le_bytes());
    sum = crc32c::crc32c_append(sum, &body.time.to_le_bytes());
    crc32c::crc32c_append(sum, &body.bytes)
}

fn read_bodies(mut reader: Reader) -> Result<Vec<Body>, Malformed> {
    let count = reader.u32()?;
    let mut bodies = Vec::new();
    for _ in 0..count {
        let (entry, part, time, sum) = (reader.u64()?, reader.u16()?, reader.u64()?, reader.u32()?);
        let body = Body { entry, part, time, bytes: reader.body()? };
        if checksum(&body) != sum {
            return Err(Malformed);
        }
        bodies.push(body);
    }
    reader.end()?;
    Ok(bodies)
}

fn write_ranges(kind: Kind, ranges: &[Living]) -> Frame {
    let mut writer = Writer::new(kind);
    writer.u32(types::length(ranges.len()));
    for range in ranges {
        writer.u64(range.entry).u16(range.first).u16(range.count);
    }
    writer.finish()
}

fn read_ranges(mut reader: Reader) -> Result<Vec<Living>, Malformed> {
    let count = reader.u32()?;
    let mut ranges = Vec::new();
    for _ in 0..count {
        ranges.push(Living { entry: reader.u64()?, first: reader.u16()?, count: reader.u16()? });
    }
    reader.end()?;
    Ok(ranges)
}

/// Installs what was received and returns this node's vote.
pub(crate) type Install = Box<dyn FnOnce(Vote, Incoming) -> BoxFuture<'static, Result<Vote, PeerError>> + Send + Sync>;

/// What the receiver needs.
pub(crate) struct Receiver {
    pub(crate) log: Log,
    pub(crate) snapshots: Snapshots,
    pub(crate) clock: Clock,
    pub(crate) stall: Duration,
    pub(crate) replies: mpsc::Sender<Result<Frame, PeerError>>,
    pub(crate) install: Install,
    /// Up to here this node's own entries are those of the group.
    pub(crate) committed: u64,
    /// Keeps this node's own segments as they are until the end.
    pub(crate) lease: Lease,
}

impl Receiver {
    /// Receives one snapshot.
    pub(crate) async fn run(self, requests: Replies) {
        let replies = self.replies.clone();
        if let Err(error) = self.receive(requests).await {
            tracing::warn!(error = %chain(&error), "snapshot was not received");
            // The sender may be gone; it learns from the end of the stream, too.
            replies.try_send(Err(error)).ok();
        }
    }

    async fn receive(self, mut requests: Replies) -> Result<(), PeerError> {
        let mut begin = Reader::of(self.next(&mut requests).await?, Kind::SnapshotBegin)?;
        let (vote, meta) = (begin.vote()?, Meta::decode(begin.bytes()?)?);
        let writer = self.snapshots.begin(meta.encode()).await.map_err(|error| refused(&error))?;
        let writer = Arc::new(Mutex::new(Some(writer)));
        let incoming = Incoming { meta, writer: Arc::clone(&writer) };
        let result = self.fill_and_install(vote, incoming, &mut requests).await;
        let left = writer.lock().take();
        if let Some(left) = left {
            left.abandon().await;
        }
        result
    }

    async fn fill_and_install(self, vote: Vote, incoming: Incoming, requests: &mut Replies) -> Result<(), PeerError> {
        loop {
            let (kind, mut reader) = Reader::any(self.next(requests).await?)?;
            if kind == Kind::SnapshotState as u8 {
                for chunk in reader.bodies.by_ref() {
                    self.write(&incoming, chunk).await?;
                }
                reader.end()?;
            } else if kind == Kind::SnapshotLiving as u8 {
                let lacking = self.lacking(&read_ranges(reader)?);
                self.reply(write_ranges(Kind::SnapshotLacking, &lacking)).await?;
            } else if kind == Kind::SnapshotBodies as u8 {
                let bodies = read_bodies(reader)?;
                self.log.insert_bodies(bodies).await.map_err(|error| refused(&error))?;
            } else if kind == Kind::SnapshotEnd as u8 {
                reader.end()?;
                break;
            } else {
                return Err(PeerError::Malformed);
            }
        }
        let Self { clock, stall, replies, install, lease, .. } = self;
        let mut installing = install(vote, incoming);
        let vote = loop {
            // While the state is read back nothing else shows the sender that this node is at work.
            match clock.timeout(stall / 4, &mut installing).await {
                Ok(vote) => break vote?,
                Err(Elapsed) => send(&replies, Writer::new(Kind::SnapshotAlive).finish()).await?,
            }
        };
        drop(lease);
        send(&replies, Writer::new(Kind::SnapshotEnd).vote(&vote).finish()).await
    }

    async fn write(&self, incoming: &Incoming, chunk: Bytes) -> Result<(), PeerError> {
        let writer = incoming.writer.lock().take();
        let mut writer = writer.ok_or_else(|| PeerError::Refused("the snapshot is being installed".to_owned()))?;
        let pushed = writer.push(chunk).await;
        *incoming.writer.lock() = Some(writer);
        pushed.map_err(|error| refused(&error))
    }

    /// Returns what of `ranges`, which name no part twice, is not in this node's segments.
    fn lacking(&self, ranges: &[Living]) -> Vec<Living> {
        let mut lacking: Vec<Living> = Vec::new();
        for range in ranges {
            for part in range.first..range.first.saturating_add(range.count) {
                // What is not committed here may be another entry under the same index. Bodies beside the log are always
                // of what was committed; those that were named before, perhaps by this very sender, are not asked for
                // again.
                if self.log.has_body(range.entry, part)
                    || (range.entry <= self.committed && self.log.has_part(range.entry, part))
                {
                    continue;
                }
                match lacking.last_mut() {
                    Some(last) if last.entry == range.entry && last.first + last.count == part => last.count += 1,
                    _ => lacking.push(Living { entry: range.entry, first: part, count: 1 }),
                }
            }
        }
        lacking
    }

    async fn next(&self, requests: &mut Replies) -> Result<Frame, PeerError> {
        match self.clock.timeout(self.stall, requests.next()).await? {
            Some(frame) => frame,
            None => Err(PeerError::Network("the sender ended the transfer".to_owned())),
        }
    }

    async fn reply(&self, frame: Frame) -> Result<(), PeerError> {
        send(&self.replies, frame).await
    }
}

async fn send(replies: &mpsc::Sender<Result<Frame, PeerError>>, frame: Frame) -> Result<(), PeerError> {
    replies.send(Ok(frame)).await.map_err(|_| PeerError::Network("the sender ended the transfer".to_owned()))
}

fn refused(error: &kubemq_storage::Error) -> PeerError {
    PeerError::Refused(chain(error).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_arrive_as_they_were_sent_or_not_at_all() {
        let body = |entry, bytes: &'static [u8]| Body { entry, part: 3, time: 9, bytes: Bytes::from_static(bytes) };
        let mut gathered = Bodies::default();
        assert!(gathered.push(body(1, b"one")).is_none());
        assert!(gathered.push(body(2, b"")).is_none());
        let frame = gathered.finish().unwrap();
        let read = |frame: Frame| read_bodies(Reader::of(frame, Kind::SnapshotBodies)?);
        assert_eq!(read(frame.clone()), Ok(vec![body(1, b"one"), body(2, b"")]));
        for bit in 16..frame.head.len() * 8 {
            let mut head = frame.head.to_vec();
            head[bit / 8] ^= 1 << (bit % 8);
            let damaged = Frame { head: head.into(), bodies: frame.bodies.clone() };
            assert_eq!(read(damaged), Err(Malformed), "bit {bit} of the head");
        }
        let mut exchanged = frame;
        exchanged.bodies.swap(0, 1);
        assert_eq!(read(exchanged), Err(Malformed), "a body is not taken for another");
    }

    #[test]
    fn large_bodies_go_in_frames_of_their_own() {
        let mut gathered = Bodies::default();
        let large = Body { entry: 1, part: 1, time: 1, bytes: vec![1; FRAME_BYTES].into() };
        assert_eq!(gathered.push(large).unwrap().bodies.len(), 1);
        assert!(gathered.finish().is_none());
    }

    #[test]
    fn ranges_survive_their_encoding() {
        let ranges = [Living { entry: 7, first: 1, count: 3 }, Living { entry: u64::MAX, first: 9, count: 1 }];
        let frame = write_ranges(Kind::SnapshotLacking, &ranges);
        assert_eq!(read_ranges(Reader::of(frame.clone(), Kind::SnapshotLacking).unwrap()), Ok(ranges.to_vec()));
        assert!(Reader::of(frame, Kind::SnapshotLiving).is_err());
    }
}
