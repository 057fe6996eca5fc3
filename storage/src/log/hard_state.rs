//! What a node must never forget: it is part of the log, folded from its frames in their order.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::entry::{LogId, Vote};
use super::frame::{Frame, Kind};

/// The hard state after some frame of the log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct HardState {
    pub(crate) node_id: Option<u64>,
    pub(crate) vote: Vote,
    /// The last entry, or the purge point when it lies beyond all entries.
    pub(crate) last: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    pub(crate) committed: Option<LogId>,
    pub(crate) snapshot: Option<(LogId, String)>,
}

impl HardState {
    /// Takes over what `frame` says.
    pub(crate) fn fold(&mut self, frame: &Frame) -> Result<(), &'static str> {
        let id = frame.head.id;
        match frame.head.kind {
            Kind::Entry(_) => self.last = Some(id),
            Kind::State => *self = Self::decode(&frame.payload).ok_or("hard state is malformed")?,
            Kind::Vote => self.vote = Vote { term: id.term, node: id.node, committed: frame.head.flag },
            Kind::NodeId => self.node_id = Some(id.node),
            Kind::Truncate => {
                let last = frame.head.flag.then_some(id);
                self.last =
                    last.filter(|last| self.purged.is_none_or(|purged| purged.index < last.index)).or(self.purged);
            }
            Kind::Purge => {
                self.purged = Some(id);
                if self.last.is_none_or(|last| last.index < id.index) {
                    self.last = Some(id);
                }
            }
            Kind::Committed => self.committed = Some(id),
            Kind::Snapshot => {
                let name = std::str::from_utf8(&frame.payload).map_err(|_| "the name of a snapshot is no text")?;
                self.snapshot = Some((id, name.to_owned()));
            }
            Kind::Mark | Kind::Body | Kind::Footer => {}
        }
        Ok(())
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_u8(u8::from(self.node_id.is_some()));
        out.put_u64_le(self.node_id.unwrap_or_default());
        out.put_u64_le(self.vote.term);
        out.put_u64_le(self.vote.node);
        out.put_u8(u8::from(self.vote.committed));
        let name = self.snapshot.as_ref().map_or("", |(_, name)| name);
        for id in [self.last, self.purged, self.committed, self.snapshot.as_ref().map(|(id, _)| *id)] {
            out.put_u8(u8::from(id.is_some()));
            let id = id.unwrap_or_default();
            out.put_u64_le(id.term);
            out.put_u64_le(id.node);
            out.put_u64_le(id.index);
        }
        // Names of snapshots are made by this crate and are short.
        out.put_u32_le(u32::try_from(name.len()).unwrap_or(0));
        out.put_slice(name.as_bytes());
    }

    pub(crate) fn to_frame(&self) -> Frame {
        let mut out = BytesMut::new();
        self.encode(&mut out);
        Frame::new(Kind::State, LogId::default(), out.freeze())
    }

    fn decode(payload: &Bytes) -> Option<Self> {
        Self::take(&mut payload.clone())
    }

    /// Reads a state from the front of `bytes`.
    pub(crate) fn take(bytes: &mut Bytes) -> Option<Self> {
        let has_node = bytes.try_get_u8().ok()? != 0;
        let node = bytes.try_get_u64_le().ok()?;
        let vote = Vote {
            term: bytes.try_get_u64_le().ok()?,
            node: bytes.try_get_u64_le().ok()?,
            committed: bytes.try_get_u8().ok()? != 0,
        };
        let [last, purged, committed, snapshot] = [take_id(bytes)?, take_id(bytes)?, take_id(bytes)?, take_id(bytes)?];
        let length = bytes.try_get_u32_le().ok()? as usize;
        if bytes.len() < length {
            return None;
        }
        let name = String::from_utf8(bytes.split_to(length).to_vec()).ok()?;
        let snapshot = snapshot.map(|id| (id, name));
        Some(Self { node_id: has_node.then_some(node), vote, last, purged, committed, snapshot })
    }
}

#[expect(clippy::option_option, reason = "the outer one says that bytes are missing")]
fn take_id(bytes: &mut Bytes) -> Option<Option<LogId>> {
    let there = bytes.try_get_u8().ok()? != 0;
    let id = LogId {
        term: bytes.try_get_u64_le().ok()?,
        node: bytes.try_get_u64_le().ok()?,
        index: bytes.try_get_u64_le().ok()?,
    };
    Some(there.then_some(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_comes_back_as_it_was() {
        let id = |index| LogId { term: 1, node: 2, index };
        let state = HardState {
            node_id: Some(7),
            vote: Vote { term: 3, node: 7, committed: true },
            last: Some(id(9)),
            purged: Some(id(4)),
            committed: None,
            snapshot: Some((id(4), "4-1-2".to_owned())),
        };
        let mut folded = HardState::default();
        folded.fold(&state.to_frame()).unwrap();
        assert_eq!(folded, state);
        folded.fold(&Frame::truncate(None)).unwrap();
        assert_eq!(folded.last, Some(id(4)), "a truncation does not go below the purge point");
    }
}
