//! openraft's state machine over ours.
//!
//! It drains what is ready of the committed entries into one call of [`StateMachine::apply`], keeps by itself
//! what openraft wants to know (the last entry applied, the membership), and answers proposers afterwards.
//! Snapshots are written outside of openraft (see `maintenance`), which only hears of those that exist.

use std::collections::BTreeMap;
use std::io;
use std::marker::PhantomData;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{FutureExt, Stream, StreamExt};
use kubemq_runtime::{Instant, OnFailure, Runtime, chain, sync};
use kubemq_storage::log::Log;
use kubemq_storage::snapshot::{HeldSnapshot, Snapshots};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{AsyncRuntime, EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot};
use parking_lot::Mutex;

use crate::error::Error;
use crate::snapshot::{Incoming, Outgoing};
use crate::snapshot_file;
use crate::state_machine::{Committed, Living, RestoreError, Restoring, SnapshotSource, StateMachine};
use crate::status::Member;
use crate::types::{self, Entry, LeaderId, LogId, Malformed, SnapshotMeta, StoredMembership, Types};
use crate::walk::Walk;

/// Entries applied under one lock at most.
const CHUNK_ENTRIES: usize = 1024;
/// Bytes of entries applied under one lock at most, unless it is a single entry.
const CHUNK_BYTES: usize = 16 << 20;

/// What is kept beside the state, and in a snapshot's metadata.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meta {
    pub(crate) raft: SnapshotMeta,
    /// The greatest LogTime that was applied.
    pub(crate) time: u64,
}

const META_VERSION: u8 = 1;

impl Meta {
    pub(crate) fn index(&self) -> u64 {
        self.raft.last_log_id.as_ref().map_or(0, |id| id.index)
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_u8(META_VERSION);
        bytes.put_u64_le(self.time);
        let membership = &self.raft.last_membership;
        for id in [&self.raft.last_log_id, membership.log_id()] {
            bytes.put_u8(u8::from(id.is_some()));
            let id = id.as_ref().map(types::stored_id).unwrap_or_default();
            bytes.put_u64_le(id.term);
            bytes.put_u64_le(id.node);
            bytes.put_u64_le(id.index);
        }
        bytes.put_slice(&types::encode_membership(membership.membership()));
        bytes.freeze()
    }

    pub(crate) fn decode(mut bytes: Bytes) -> Result<Self, Malformed> {
        if bytes.try_get_u8()? != META_VERSION {
            return Err(Malformed);
        }
        let time = bytes.try_get_u64_le()?;
        let (last_log_id, log_id) = (decode_id(&mut bytes)?, decode_id(&mut bytes)?);
        let membership = types::decode_membership(&mut bytes)?;
        let last_membership = StoredMembership::new(log_id, membership);
        Ok(Self { raft: SnapshotMeta { last_log_id, last_membership }, time })
    }
}

/// Returns the last entry that a snapshot covers, from what stands in the file beside the state.
#[must_use]
pub fn snapshot_index(meta: &Bytes) -> Option<u64> {
    Meta::decode(meta.clone()).ok().map(|meta| meta.index())
}

fn decode_id(bytes: &mut Bytes) -> Result<Option<LogId>, Malformed> {
    let some = bytes.try_get_u8()? == 1;
    let id = kubemq_storage::LogId {
        term: bytes.try_get_u64_le()?,
        node: bytes.try_get_u64_le()?,
        index: bytes.try_get_u64_le()?,
    };
    Ok(some.then(|| types::raft_id(id)))
}

/// What was written since the last snapshot.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Written {
    /// Bytes of entries.
    pub(crate) bytes: u64,
    /// Whether there was more than beats.
    pub(crate) operations: bool,
    /// When the last operation was applied.
    pub(crate) last: Instant,
}

/// What of the machine does not depend on its type.
pub(crate) struct Shared {
    pub(crate) log: Log,
    pub(crate) snapshots: Snapshots,
    pub(crate) runtime: Runtime,
    pub(crate) facts: Mutex<Facts>,
    /// Held while a snapshot is written or installed, so that the pointer never goes back.
    pub(crate) writing: sync::Mutex<()>,
}

#[derive(Default)]
pub(crate) struct Facts {
    /// Entries are applied by openraft now, not while the node starts.
    pub(crate) running: bool,
    pub(crate) written: Written,
    /// The newest snapshot that is durable. It holds what the machine has dropped from memory, so it changes only
    /// while the state is locked.
    pub(crate) durable: Option<Durable>,
    /// A snapshot that exists and that openraft has not heard of.
    pub(crate) prepared: Option<Meta>,
    /// Transfers that are running, and the index of their snapshots.
    pub(crate) leases: BTreeMap<u64, u64>,
    pub(crate) next_lease: u64,
    /// Parts that the last snapshot refers to and that are in no file here.
    pub(crate) missing: u64,
}

/// A snapshot that this node would start from.
#[derive(Clone, Debug)]
pub(crate) struct Durable {
    pub(crate) meta: Meta,
    /// Bytes of its chunks.
    pub(crate) bytes: u64,
    /// Its file.
    pub(crate) held: HeldSnapshot,
}

impl Durable {
    pub(crate) fn index(&self) -> u64 {
        self.meta.index()
    }
}

/// The machine, and how far it is. Its lock is taken before that of the [`Facts`].
pub(crate) struct State<M> {
    pub(crate) machine: M,
    pub(crate) meta: Meta,
}

/// See the module.
pub(crate) struct Machine<R, M> {
    pub(crate) shared: Arc<Shared>,
    pub(crate) state: Arc<Mutex<State<M>>>,
    runtime: PhantomData<fn() -> R>,
}

impl<R, M> Clone for Machine<R, M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), state: Arc::clone(&self.state), runtime: PhantomData }
    }
}

/// openraft's snapshot data: never the data.
pub(crate) enum Handle {
    /// Only the metadata is asked for.
    Known,
    /// To be sent.
    Outgoing(Box<Outgoing>),
    /// Received, and to be installed.
    Incoming(Box<Incoming>),
}

/// The state of one moment.
pub(crate) struct Moment {
    pub(crate) meta: Meta,
    pub(crate) source: Box<dyn SnapshotSource>,
    /// The newest durable snapshot of that moment: it holds what of the state was not in memory.
    previous: Option<HeldSnapshot>,
}

impl Moment {
    /// Returns a walk through the encoded state.
    pub(crate) fn chunks(&self) -> Walk<Bytes> {
        Walk::new(self.source.chunks(), self.previous.clone())
    }

    /// Returns a walk through what the state refers to.
    pub(crate) fn living(&self) -> Walk<Vec<Living>> {
        Walk::new(self.source.living(), self.previous.clone())
    }
}

impl<R: AsyncRuntime, M: StateMachine> Machine<R, M> {
    pub(crate) fn new(machine: M, log: Log, snapshots: Snapshots, runtime: Runtime) -> Self {
        let facts = Mutex::new(Facts::default());
        let state = State { machine, meta: Meta::default() };
        Self {
            shared: Arc::new(Shared { log, snapshots, runtime, facts, writing: sync::Mutex::new(()) }),
            state: Arc::new(Mutex::new(state)),
            runtime: PhantomData,
        }
    }

    /// Returns the state of this moment, to be written or sent.
    pub(crate) fn moment(&self) -> Moment {
        let mut state = self.state.lock();
        // Both of one moment: what is dropped from memory later may stand only in a later snapshot.
        let previous = self.shared.facts.lock().durable.as_ref().map(|durable| durable.held.clone());
        Moment { source: state.machine.snapshot(), previous, meta: state.meta.clone() }
    }

    /// Notes the newest durable snapshot, and lets the machine drop what it holds.
    pub(crate) fn is_durable(&self, durable: Durable) {
        let index = durable.index();
        let mut state = self.state.lock();
        let before = self.shared.facts.lock().durable.replace(durable);
        state.machine.snapshot_is_durable(index);
        drop(state);
        // It may be the last to hold a file that is to be removed.
        drop(before);
    }

    /// Reads a snapshot to its end and makes it the state. Until then the state stays what it was.
    ///
    /// # Errors
    ///
    /// What the disk says, damage, and [`RestoreError`] when the content is not understood.
    pub(crate) async fn restore(&self, meta: Meta, held: HeldSnapshot) -> Result<(), Error> {
        let machine = self.clone();
        let read = async move { machine.read(meta, held).await };
        let read = self.shared.runtime.tasks.dedicated("snapshot-restore", OnFailure::Log, read);
        read.await.map_err(|_| RestoreError("it panicked".to_owned()))?
    }

    async fn read(self, meta: Meta, held: HeldSnapshot) -> Result<(), Error> {
        let mut reader = held.reader().await?;
        let mut restoring = self.state.lock().machine.restoring();
        let mut bytes = 0;
        while let Some(chunk) = reader.next_chunk().await? {
            bytes += chunk.len() as u64;
            restoring.push(chunk)?;
        }
        let mut state = self.state.lock();
        state.machine.restore(restoring)?;
        state.meta = meta.clone();
        // What the new state leaves out of memory stands in that file, and in no other.
        let before = self.shared.facts.lock().durable.replace(Durable { meta, bytes, held });
        drop(state);
        drop(before);
        Ok(())
    }

    fn apply_chunk(&self, chunk: &mut Chunk<R>) -> Result<(), io::Error> {
        let committed = std::mem::take(&mut chunk.committed);
        let written = Written { bytes: chunk.bytes as u64, operations: chunk.operations, last: Instant::default() };
        {
            let mut state = self.state.lock();
            let state = &mut *state;
            if !committed.is_empty() {
                let time = committed.last().map_or(0, |entry| entry.time);
                // A panic leaves the machine in an unknown state: nothing may be applied after it.
                let applied = std::panic::catch_unwind(AssertUnwindSafe(|| state.machine.apply(committed)));
                if applied.is_err() {
                    self.shared.runtime.tasks.fail("apply");
                    return Err(io::Error::other("the state machine panicked"));
                }
                state.meta.time = state.meta.time.max(time);
            }
            if let Some(membership) = chunk.membership.take() {
                state.meta.raft.last_membership = membership;
            }
            state.meta.raft.last_log_id = chunk.last.or(state.meta.raft.last_log_id);
        }
        if let Some(last) = chunk.last.take() {
            self.shared.log.applied(last.index);
        }
        self.shared.note(written);
        for responder in chunk.responders.drain(..) {
            responder.send(());
        }
        chunk.bytes = 0;
        chunk.operations = false;
        Ok(())
    }
}

impl Shared {
    fn note(&self, written: Written) {
        let mut facts = self.facts.lock();
        facts.written.bytes += written.bytes;
        if written.operations {
            facts.written.operations = true;
            facts.written.last = self.runtime.clock.now();
        }
    }

    /// Keeps what a transfer of a snapshot at `index` may need, until the lease is dropped.
    pub(crate) fn lease(self: &Arc<Self>, index: u64) -> Lease {
        let mut facts = self.facts.lock();
        let number = facts.next_lease;
        facts.next_lease += 1;
        facts.leases.insert(number, index);
        Lease { shared: Arc::clone(self), number }
    }
}

/// Keeps the bodies of a snapshot that is being sent.
pub(crate) struct Lease {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.facts.lock().leases.remove(&self.number);
    }
}

/// Entries that are applied together.
struct Chunk<R: AsyncRuntime> {
    committed: Vec<Committed>,
    responders: Vec<ApplyResponder<Types<R>>>,
    membership: Option<StoredMembership>,
    last: Option<LogId>,
    entries: usize,
    bytes: usize,
    operations: bool,
}

impl<R: AsyncRuntime> Chunk<R> {
    fn new() -> Self {
        Self {
            committed: Vec::new(),
            responders: Vec::new(),
            membership: None,
            last: None,
            entries: 0,
            bytes: 0,
            operations: false,
        }
    }

    fn push(&mut self, (entry, responder): EntryResponder<Types<R>>) {
        let Entry { log_id, payload } = entry;
        match payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(proposal) => {
                self.bytes += proposal.parts.as_bytes().len();
                self.operations |= proposal.parts.count() > 1;
                let id = types::stored_id(&log_id);
                self.committed.push(Committed { id, time: proposal.time, parts: proposal.parts });
            }
            EntryPayload::Membership(membership) => {
                self.membership = Some(StoredMembership::new(Some(log_id), membership));
            }
        }
        self.responders.extend(responder);
        self.last = Some(log_id);
        self.entries += 1;
    }

    fn full(&self) -> bool {
        self.entries >= CHUNK_ENTRIES || self.bytes >= CHUNK_BYTES
    }
}

impl<R: AsyncRuntime, M: StateMachine> RaftStateMachine<Types<R>> for Machine<R, M> {
    type SnapshotData = Handle;
    type SnapshotBuilder = Builder<R, M>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let state = self.state.lock();
        Ok((state.meta.raft.last_log_id, state.meta.raft.last_membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types<R>>, io::Error>> + Unpin + OptionalSend,
    {
        let mut ended = false;
        while !ended {
            let Some(first) = entries.next().await else { break };
            let mut chunk = Chunk::new();
            chunk.push(first?);
            while !chunk.full() {
                match entries.next().now_or_never() {
                    None => break,
                    Some(Some(entry)) => chunk.push(entry?),
                    Some(None) => {
                        ended = true;
                        break;
                    }
                }
            }
            self.apply_chunk(&mut chunk)?;
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder<R, M>> {
        if force {
            return Some(self.get_snapshot_builder().await);
        }
        self.shared.facts.lock().prepared.take().map(Builder::Prepared)
    }

    async fn get_snapshot_builder(&mut self) -> Builder<R, M> {
        // Asked for only while the node starts: what is applied then was read from the files.
        Builder::Moment(self.clone(), Box::new(Mutex::new(Some(self.moment()))))
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Handle) -> Result<(), io::Error> {
        let Handle::Incoming(incoming) = snapshot else {
            return Err(io::Error::other("a snapshot that was not received cannot be installed"));
        };
        self.install(meta.clone(), *incoming).await.map_err(|error| {
            tracing::error!(error = %chain(&error), "snapshot could not be installed");
            io::Error::other(error)
        })
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<LeaderId, u64, Member, Handle>>, io::Error> {
        let (running, durable) = {
            let facts = self.shared.facts.lock();
            (facts.running, facts.durable.as_ref().map(|durable| durable.meta.clone()))
        };
        let Some(durable) = durable else { return Ok(None) };
        if !running {
            return Ok(Some(Snapshot { meta: durable.raft, snapshot: Handle::Known }));
        }
        // What is sent is the state of this moment: it is committed, and its bodies are here.
        // The lease comes first, so that nothing of this moment is removed in between.
        let lease = self.shared.lease(durable.index());
        let moment = self.moment();
        let meta = moment.meta.raft.clone();
        Ok(Some(Snapshot { meta, snapshot: Handle::Outgoing(Box::new(Outgoing { moment, lease })) }))
    }
}

impl<R: AsyncRuntime, M: StateMachine> Machine<R, M> {
    /// Makes a received snapshot this node's state. The pointer is the last step: a crash before it leaves the
    /// old state.
    async fn install(&self, raft: SnapshotMeta, incoming: Incoming) -> Result<(), Error> {
        let _writing = self.shared.writing.lock().await;
        let writer = incoming.writer.lock().take();
        let writer = writer.ok_or(kubemq_storage::Error::Closed)?;
        let file = writer.finish().await?;
        let held = self.shared.snapshots.hold(&file).await?;
        let mut meta = incoming.meta;
        meta.raft = raft;
        self.restore(meta.clone(), held).await?;
        if let Some(id) = &meta.raft.last_log_id {
            self.shared.log.save_snapshot_pointer(types::stored_id(id), &file.name).await?;
            self.shared.log.applied(id.index);
        }
        self.shared.facts.lock().written = Written::default();
        self.state.lock().machine.snapshot_is_durable(meta.index());
        Ok(())
    }
}

/// Gives openraft a snapshot.
pub(crate) enum Builder<R, M> {
    /// It was written already.
    Prepared(Meta),
    /// It is to be written.
    Moment(Machine<R, M>, Box<Mutex<Option<Moment>>>),
}

impl<R: AsyncRuntime, M: StateMachine> RaftSnapshotBuilder<Types<R>> for Builder<R, M> {
    type SnapshotData = Handle;

    async fn build_snapshot(&mut self) -> Result<Snapshot<LeaderId, u64, Member, Handle>, io::Error> {
        let meta = match self {
            Self::Prepared(meta) => meta.clone(),
            Self::Moment(machine, moment) => {
                let moment = moment.lock().take().ok_or_else(|| io::Error::other("built already"))?;
                let written = snapshot_file::write(&machine.shared, moment).await;
                let (durable, _) = written.map_err(io::Error::other)?;
                let meta = durable.meta.clone();
                machine.is_durable(durable);
                meta
            }
        };
        Ok(Snapshot { meta: meta.raft, snapshot: Handle::Known })
    }
}
