//! openraft's types, as this crate fills them in, and the way between them and what the log stores.
//!
//! Written by hand because they are generic over the runtime; `R` never leaves this crate.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kubemq_storage::{self as storage, EntryKind, Parts};
use openraft::impls::leader_id_adv;
use openraft::raft::ClientWriteResult;
use openraft::raft::responder::Responder;
use openraft::{AsyncRuntime, EntryPayload, Membership, RaftTypeConfig};

use crate::status::Member;

pub(crate) type LeaderId = leader_id_adv::LeaderId<u64, u64>;
pub(crate) type LogId = openraft::LogId<LeaderId>;
pub(crate) type Vote = openraft::Vote<LeaderId>;
pub(crate) type Payload = EntryPayload<Proposal, u64, Member>;
pub(crate) type Entry = openraft::Entry<LeaderId, Payload>;
pub(crate) type StoredMembership = openraft::StoredMembership<LeaderId, u64, Member>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<LeaderId, u64, Member>;

/// openraft's type configuration over the runtime `R`.
pub(crate) struct Types<R>(PhantomData<fn() -> R>);

impl<R> fmt::Debug for Types<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Types")
    }
}

impl<R> Clone for Types<R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Types<R> {}

impl<R> Default for Types<R> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<R> PartialEq for Types<R> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<R> Eq for Types<R> {}

impl<R> PartialOrd for Types<R> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<R> Ord for Types<R> {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl<R: AsyncRuntime> RaftTypeConfig for Types<R> {
    type D = Proposal;
    type R = ();
    type NodeId = u64;
    type Node = Member;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = R;
    type Responder<T>
        = Callback<T>
    where
        T: Send + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: Send + 'static;
    type ErrorSource = openraft::AnyError;
}

/// What is proposed: operations that are encoded already, and the time they were proposed at.
#[derive(Clone, PartialEq)]
pub(crate) struct Proposal {
    pub(crate) time: u64,
    pub(crate) parts: Parts,
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} parts at {}", self.parts.count(), self.time)
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Runs a function with the outcome where the outcome is known: no channel and no task between.
pub(crate) struct Callback<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Callback<T> {
    pub(crate) fn new(function: impl FnOnce(T) + Send + 'static) -> Self {
        Self(Box::new(function))
    }
}

impl<R: AsyncRuntime, T: Send + 'static> Responder<Types<R>, T> for Callback<T> {
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}

pub(crate) type Written<R> = ClientWriteResult<Types<R>>;

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

pub(crate) fn stored_id(id: &LogId) -> storage::LogId {
    storage::LogId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

pub(crate) fn raft_id(id: storage::LogId) -> LogId {
    LogId { leader_id: LeaderId { term: id.term, node_id: id.node }, index: id.index }
}

pub(crate) fn stored_vote(vote: &Vote) -> storage::Vote {
    storage::Vote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

pub(crate) fn raft_vote(vote: storage::Vote) -> Vote {
    Vote { leader_id: LeaderId { term: vote.term, node_id: vote.node }, committed: vote.committed }
}

/// Returns what the log stores for `entry`. The operations' bytes are shared, not copied.
pub(crate) fn stored_entry(entry: Entry) -> storage::Entry {
    let id = stored_id(&entry.log_id);
    match entry.payload {
        EntryPayload::Blank => storage::Entry { id, time: 0, kind: EntryKind::Blank, parts: Parts::empty() },
        EntryPayload::Normal(proposal) => {
            storage::Entry { id, time: proposal.time, kind: EntryKind::Normal, parts: proposal.parts }
        }
        EntryPayload::Membership(membership) => {
            let mut builder = Parts::builder();
            builder.push(&encode_membership(&membership));
            storage::Entry { id, time: 0, kind: EntryKind::Membership, parts: builder.finish() }
        }
    }
}

/// Returns openraft's form of what the log stores.
pub(crate) fn raft_entry(entry: storage::Entry) -> Result<Entry, Malformed> {
    let payload = match entry.kind {
        EntryKind::Blank => EntryPayload::Blank,
        EntryKind::Normal => EntryPayload::Normal(Proposal { time: entry.time, parts: entry.parts }),
        EntryKind::Membership => {
            let mut bytes = entry.parts.get(0).ok_or(Malformed)?;
            EntryPayload::Membership(decode_membership(&mut bytes)?)
        }
    };
    Ok(Entry { log_id: raft_id(entry.id), payload })
}

/// The bytes are not what this program writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("malformed bytes")]
pub(crate) struct Malformed;

impl From<bytes::TryGetError> for Malformed {
    fn from(_: bytes::TryGetError) -> Self {
        Self
    }
}

const MEMBERSHIP_VERSION: u8 = 1;

pub(crate) fn encode_membership(membership: &Membership<u64, Member>) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(MEMBERSHIP_VERSION);
    let configurations = membership.get_joint_config();
    bytes.put_u32_le(length(configurations.len()));
    for voters in configurations {
        bytes.put_u32_le(length(voters.len()));
        for voter in voters {
            bytes.put_u64_le(*voter);
        }
    }
    let nodes: Vec<_> = membership.nodes().collect();
    bytes.put_u32_le(length(nodes.len()));
    for (id, member) in nodes {
        bytes.put_u64_le(*id);
        put_bytes(&mut bytes, member.address.as_bytes());
    }
    bytes.freeze()
}

pub(crate) fn decode_membership(bytes: &mut Bytes) -> Result<Membership<u64, Member>, Malformed> {
    if bytes.try_get_u8()? != MEMBERSHIP_VERSION {
        return Err(Malformed);
    }
    let mut configurations = Vec::new();
    for _ in 0..bytes.try_get_u32_le()? {
        let mut voters = BTreeSet::new();
        for _ in 0..bytes.try_get_u32_le()? {
            voters.insert(bytes.try_get_u64_le()?);
        }
        configurations.push(voters);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..bytes.try_get_u32_le()? {
        let id = bytes.try_get_u64_le()?;
        let address = String::from_utf8(get_bytes(bytes)?.to_vec()).map_err(|_| Malformed)?;
        nodes.insert(id, Member { address });
    }
    if configurations.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configurations, nodes).map_err(|_| Malformed)
}

pub(crate) fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

pub(crate) fn put_bytes(to: &mut BytesMut, bytes: &[u8]) {
    to.put_u32_le(length(bytes.len()));
    to.put_slice(bytes);
}

pub(crate) fn get_bytes(from: &mut Bytes) -> Result<Bytes, Malformed> {
    let length = usize::try_from(from.try_get_u32_le()?).map_err(|_| Malformed)?;
    if from.len() < length { Err(Malformed) } else { Ok(from.split_to(length)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_membership_survives_its_encoding() {
        let nodes: BTreeMap<_, _> = (1..=4).map(|id| (id, Member { address: format!("node-{id}:1") })).collect();
        let joint = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3])];
        for membership in [Membership::new(joint, nodes).unwrap(), Membership::default()] {
            let encoded = encode_membership(&membership);
            assert_eq!(decode_membership(&mut encoded.clone()), Ok(membership));
            for cut in 0..encoded.len() {
                assert_eq!(decode_membership(&mut encoded.slice(..cut)), Err(Malformed), "cut at {cut}");
            }
        }
    }
}
