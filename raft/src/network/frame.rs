//! How openraft's messages are written: a head of fixed-width fields, and the parts of entries as they are.
//!
//! No serde per hop: the receiver checks every part once and keeps slices of what arrived.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kubemq_storage::{self as storage, EntryKind, Parts};
use openraft::AsyncRuntime;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};

use super::Frame;
use crate::types::{self, LogId, Malformed, Types, Vote};

const VERSION: u8 = 1;

/// What a frame is. The numbers are on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    Append = 1,
    Appended = 2,
    Vote = 3,
    Voted = 4,
    Transfer = 5,
    Transferred = 6,
    ReadIndex = 7,
    ReadIndexed = 8,
    SnapshotBegin = 9,
    SnapshotState = 10,
    SnapshotLiving = 11,
    SnapshotLacking = 12,
    SnapshotBodies = 13,
    SnapshotEnd = 14,
    SnapshotAlive = 15,
}

pub(crate) struct Writer(BytesMut);

impl Writer {
    pub(crate) fn new(kind: Kind) -> Self {
        let mut bytes = BytesMut::with_capacity(128);
        bytes.put_u8(VERSION);
        bytes.put_u8(kind as u8);
        Self(bytes)
    }

    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.0.put_u8(value);
        self
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.0.put_u16_le(value);
        self
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.0.put_u32_le(value);
        self
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.0.put_u64_le(value);
        self
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) -> &mut Self {
        types::put_bytes(&mut self.0, value);
        self
    }

    pub(crate) fn vote(&mut self, vote: &Vote) -> &mut Self {
        self.u64(vote.leader_id.term).u64(vote.leader_id.node_id).u8(u8::from(vote.committed))
    }

    pub(crate) fn id(&mut self, id: Option<&LogId>) -> &mut Self {
        match id {
            None => self.u8(0),
            Some(id) => self.u8(1).u64(id.leader_id.term).u64(id.leader_id.node_id).u64(id.index),
        }
    }

    pub(crate) fn finish(&mut self) -> Frame {
        self.with(Vec::new())
    }

    pub(crate) fn with(&mut self, bodies: Vec<Bytes>) -> Frame {
        Frame { head: std::mem::take(&mut self.0).freeze(), bodies }
    }
}

pub(crate) struct Reader {
    pub(crate) head: Bytes,
    pub(crate) bodies: std::vec::IntoIter<Bytes>,
}

impl Reader {
    /// Reads the version and kind of `frame`, which must be `kind`.
    pub(crate) fn of(frame: Frame, kind: Kind) -> Result<Self, Malformed> {
        let (found, reader) = Self::any(frame)?;
        if found == kind as u8 { Ok(reader) } else { Err(Malformed) }
    }

    /// Reads the version and kind of `frame`.
    pub(crate) fn any(frame: Frame) -> Result<(u8, Self), Malformed> {
        let mut head = frame.head;
        if head.try_get_u8()? != VERSION {
            return Err(Malformed);
        }
        let kind = head.try_get_u8()?;
        Ok((kind, Self { head, bodies: frame.bodies.into_iter() }))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.head.try_get_u8()?)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(self.head.try_get_u16_le()?)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(self.head.try_get_u32_le()?)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(self.head.try_get_u64_le()?)
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, Malformed> {
        types::get_bytes(&mut self.head)
    }

    pub(crate) fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    pub(crate) fn vote(&mut self) -> Result<Vote, Malformed> {
        let vote = storage::Vote { term: self.u64()?, node: self.u64()?, committed: self.flag()? };
        Ok(types::raft_vote(vote))
    }

    pub(crate) fn id(&mut self) -> Result<Option<LogId>, Malformed> {
        if !self.flag()? {
            return Ok(None);
        }
        let id = storage::LogId { term: self.u64()?, node: self.u64()?, index: self.u64()? };
        Ok(Some(types::raft_id(id)))
    }

    pub(crate) fn body(&mut self) -> Result<Bytes, Malformed> {
        self.bodies.next().ok_or(Malformed)
    }

    /// Checks that nothing is left over.
    pub(crate) fn end(mut self) -> Result<(), Malformed> {
        if self.head.is_empty() && self.bodies.next().is_none() { Ok(()) } else { Err(Malformed) }
    }
}

fn kind_number(kind: EntryKind) -> u8 {
    match kind {
        EntryKind::Blank => 0,
        EntryKind::Normal => 1,
        EntryKind::Membership => 2,
    }
}

pub(crate) fn append<R: AsyncRuntime>(request: AppendEntriesRequest<Types<R>>) -> Frame {
    let mut writer = Writer::new(Kind::Append);
    writer.vote(&request.vote).id(request.prev_log_id.as_ref()).id(request.leader_commit.as_ref());
    writer.u32(types::length(request.entries.len()));
    let mut bodies = Vec::with_capacity(request.entries.len());
    for entry in request.entries {
        let entry = types::stored_entry(entry);
        writer.u64(entry.id.term).u64(entry.id.node).u64(entry.id.index).u64(entry.time).u8(kind_number(entry.kind));
        bodies.push(entry.parts.as_bytes().clone());
    }
    writer.with(bodies)
}

pub(crate) fn read_append<R: AsyncRuntime>(frame: Frame) -> Result<AppendEntriesRequest<Types<R>>, Malformed> {
    let mut reader = Reader::of(frame, Kind::Append)?;
    let (vote, prev_log_id, leader_commit) = (reader.vote()?, reader.id()?, reader.id()?);
    let count = reader.u32()?;
    if usize::try_from(count).map_err(|_| Malformed)? != reader.bodies.len() {
        return Err(Malformed);
    }
    let mut entries = Vec::with_capacity(reader.bodies.len());
    for _ in 0..count {
        let id = storage::LogId { term: reader.u64()?, node: reader.u64()?, index: reader.u64()? };
        let time = reader.u64()?;
        let kind = match reader.u8()? {
            0 => EntryKind::Blank,
            1 => EntryKind::Normal,
            2 => EntryKind::Membership,
            _ => return Err(Malformed),
        };
        let parts = Parts::decode(reader.body()?).map_err(|_| Malformed)?;
        entries.push(types::raft_entry(storage::Entry { id, time, kind, parts })?);
    }
    reader.end()?;
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

pub(crate) fn appended<R: AsyncRuntime>(result: &StreamAppendResult<Types<R>>) -> Frame {
    let mut writer = Writer::new(Kind::Appended);
    match result {
        Ok(upto) => writer.u8(0).id(upto.as_ref()),
        Err(StreamAppendError::Conflict(id)) => writer.u8(1).id(Some(id)),
        Err(StreamAppendError::HigherVote(vote)) => writer.u8(2).vote(vote),
    };
    writer.finish()
}

pub(crate) fn read_appended<R: AsyncRuntime>(frame: Frame) -> Result<StreamAppendResult<Types<R>>, Malformed> {
    let mut reader = Reader::of(frame, Kind::Appended)?;
    let result = match reader.u8()? {
        0 => Ok(reader.id()?),
        1 => Err(StreamAppendError::Conflict(reader.id()?.ok_or(Malformed)?)),
        2 => Err(StreamAppendError::HigherVote(reader.vote()?)),
        _ => return Err(Malformed),
    };
    reader.end()?;
    Ok(result)
}

pub(crate) fn vote<R: AsyncRuntime>(request: &VoteRequest<Types<R>>) -> Frame {
    let mut writer = Writer::new(Kind::Vote);
    writer.vote(&request.vote).id(request.last_log_id.as_ref()).u8(u8::from(request.leadership_transfer)).finish()
}

pub(crate) fn read_vote<R: AsyncRuntime>(frame: Frame) -> Result<VoteRequest<Types<R>>, Malformed> {
    let mut reader = Reader::of(frame, Kind::Vote)?;
    let mut request = VoteRequest::new(reader.vote()?, reader.id()?);
    request.leadership_transfer = reader.flag()?;
    reader.end()?;
    Ok(request)
}

pub(crate) fn voted<R: AsyncRuntime>(response: &VoteResponse<Types<R>>) -> Frame {
    let mut writer = Writer::new(Kind::Voted);
    writer.vote(&response.vote).id(response.last_log_id.as_ref()).u8(u8::from(response.vote_granted)).finish()
}

pub(crate) fn read_voted<R: AsyncRuntime>(frame: Frame) -> Result<VoteResponse<Types<R>>, Malformed> {
    let mut reader = Reader::of(frame, Kind::Voted)?;
    let response = VoteResponse::new(reader.vote()?, reader.id()?, reader.flag()?);
    reader.end()?;
    Ok(response)
}

pub(crate) fn transfer<R: AsyncRuntime>(request: &TransferLeaderRequest<Types<R>>) -> Frame {
    let mut writer = Writer::new(Kind::Transfer);
    writer.vote(request.from_leader()).u64(*request.to_node_id()).id(request.last_log_id()).finish()
}

pub(crate) fn read_transfer<R: AsyncRuntime>(frame: Frame) -> Result<TransferLeaderRequest<Types<R>>, Malformed> {
    let mut reader = Reader::of(frame, Kind::Transfer)?;
    let request = TransferLeaderRequest::new(reader.vote()?, reader.u64()?, reader.id()?);
    reader.end()?;
    Ok(request)
}

pub(crate) fn transferred<R: AsyncRuntime>(response: &TransferLeaderResponse<Types<R>>) -> Frame {
    let mut writer = Writer::new(Kind::Transferred);
    match response {
        Ok(()) => writer.u8(0),
        Err(TransferLeaderError::VoteChanged { expected, actual }) => writer.u8(1).vote(expected).vote(actual),
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            writer.u8(2).id(expected.as_ref()).id(actual.as_ref())
        }
    };
    writer.finish()
}

pub(crate) fn read_transferred<R: AsyncRuntime>(frame: Frame) -> Result<TransferLeaderResponse<Types<R>>, Malformed> {
    let mut reader = Reader::of(frame, Kind::Transferred)?;
    let response = match reader.u8()? {
        0 => Ok(()),
        1 => Err(TransferLeaderError::VoteChanged { expected: reader.vote()?, actual: reader.vote()? }),
        2 => Err(TransferLeaderError::LogNotFlushed { expected: reader.id()?, actual: reader.id()? }),
        _ => return Err(Malformed),
    };
    reader.end()?;
    Ok(response)
}

pub(crate) fn read_index() -> Frame {
    Writer::new(Kind::ReadIndex).finish()
}

/// The answer: the index that must be applied, or nothing and who leads instead.
pub(crate) fn read_indexed(answer: Result<u64, Option<u64>>) -> Frame {
    let mut writer = Writer::new(Kind::ReadIndexed);
    match answer {
        Ok(index) => writer.u8(0).u64(index),
        Err(leader) => writer.u8(1).u64(leader.unwrap_or(0)).u8(u8::from(leader.is_some())),
    };
    writer.finish()
}

pub(crate) fn read_read_indexed(frame: Frame) -> Result<Result<u64, Option<u64>>, Malformed> {
    let mut reader = Reader::of(frame, Kind::ReadIndexed)?;
    let answer = match reader.u8()? {
        0 => Ok(reader.u64()?),
        1 => {
            let leader = reader.u64()?;
            Err(reader.flag()?.then_some(leader))
        }
        _ => return Err(Malformed),
    };
    reader.end()?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use openraft::impls::TokioRuntime as R;

    use super::*;
    use crate::types::{Entry, LeaderId, Proposal};

    fn id(index: u64) -> LogId {
        LogId { leader_id: LeaderId { term: 3, node_id: 2 }, index }
    }

    fn parts(operations: &[&[u8]]) -> Parts {
        let mut builder = Parts::builder();
        operations.iter().for_each(|operation| builder.push(operation));
        builder.finish()
    }

    fn request() -> AppendEntriesRequest<Types<R>> {
        let normal = Proposal { time: 99, parts: parts(&[b"", b"abc"]) };
        AppendEntriesRequest {
            vote: Vote::new_committed(3, 2),
            prev_log_id: Some(id(6)),
            entries: vec![
                Entry { log_id: id(7), payload: openraft::EntryPayload::Blank },
                Entry { log_id: id(8), payload: openraft::EntryPayload::Normal(normal) },
            ],
            leader_commit: None,
        }
    }

    #[test]
    fn an_append_shares_the_bytes_of_its_entries() {
        let request = request();
        let frame = append(request.clone());
        let openraft::EntryPayload::Normal(proposal) = &request.entries[1].payload else { panic!() };
        assert_eq!(frame.bodies[1].as_ptr(), proposal.parts.as_bytes().as_ptr(), "no copy");
        let read = read_append::<R>(frame).unwrap();
        assert_eq!(format!("{read:?}"), format!("{request:?}"));
        assert_eq!(read.entries, request.entries);
    }

    #[test]
    fn a_damaged_append_is_refused() {
        let frame = append(request());
        for cut in 0..frame.head.len() {
            let cut = Frame { head: frame.head.slice(..cut), bodies: frame.bodies.clone() };
            assert!(read_append::<R>(cut).is_err());
        }
        let mut damaged = frame.clone();
        let mut body = damaged.bodies[1].to_vec();
        *body.last_mut().unwrap() ^= 1;
        damaged.bodies[1] = body.into();
        assert!(read_append::<R>(damaged).is_err(), "every part has its own checksum");
        let mut short = frame;
        short.bodies.pop();
        assert!(read_append::<R>(short).is_err());
    }

    #[test]
    fn answers_survive_their_encoding() {
        let results: [StreamAppendResult<Types<R>>; 4] = [
            Ok(Some(id(4))),
            Ok(None),
            Err(StreamAppendError::Conflict(id(5))),
            Err(StreamAppendError::HigherVote(Vote::new(4, 1))),
        ];
        for result in results {
            assert_eq!(read_appended::<R>(appended::<R>(&result)), Ok(result));
        }
        let mut request = VoteRequest::<Types<R>>::new(Vote::new(4, 1), Some(id(9)));
        request.leadership_transfer = true;
        assert_eq!(read_vote::<R>(vote(&request)), Ok(request));
        let response = VoteResponse::<Types<R>>::new(Vote::new(4, 1), None, true);
        assert_eq!(read_voted::<R>(voted(&response)), Ok(response));
        assert_eq!(read_read_indexed(read_indexed(Ok(3))), Ok(Ok(3)));
        assert_eq!(read_read_indexed(read_indexed(Err(Some(0)))), Ok(Err(Some(0))));
        assert_eq!(read_read_indexed(read_indexed(Err(None))), Ok(Err(None)));
    }
}
