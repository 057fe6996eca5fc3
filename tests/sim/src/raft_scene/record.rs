//! What a machine of the scene holds, and how a snapshot of it is written and read: what a durable snapshot holds goes
//! into the next one from there, never from memory.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kubemq_raft::{Living, Piece, Pieces, RestoreError, Restoring, SnapshotSource};

use crate::world::Fingerprint;

/// Writes whose bodies stay referred to.
pub(super) const LIVING: usize = 300;

/// Writes in one chunk of a snapshot.
const CHUNK: usize = 512;

/// One write as it was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) number: u64,
    pub(super) entry: u64,
    pub(super) part: u16,
    pub(super) print: u64,
}

/// What a machine holds.
#[derive(Clone, Default)]
pub(super) struct Record {
    pub(super) last: u64,
    /// All of them, for the comparison at the end; what stands in the newest durable snapshot is never given to another.
    pub(super) writes: Vec<Write>,
    /// How many of them stand there.
    pub(super) durable: usize,
    pub(super) digest: Fingerprint,
}

impl Record {
    pub(super) fn push(&mut self, write: Write) {
        for word in [write.number, write.entry, u64::from(write.part), write.print] {
            self.digest.word(word);
        }
        self.writes.push(write);
    }
}

/// What was read of a snapshot.
#[derive(Default)]
pub(super) struct Reading(pub(super) Record);

impl Restoring for Reading {
    fn push(&mut self, mut chunk: Bytes) -> Result<(), RestoreError> {
        let short = |_| RestoreError("a chunk ends too early".to_owned());
        self.0.last = chunk.try_get_u64_le().map_err(short)?;
        while chunk.has_remaining() {
            let (number, entry) = (chunk.try_get_u64_le().map_err(short)?, chunk.try_get_u64_le().map_err(short)?);
            let (part, print) = (chunk.try_get_u16_le().map_err(short)?, chunk.try_get_u64_le().map_err(short)?);
            self.0.push(Write { number, entry, part, print });
        }
        Ok(())
    }
}

/// The state of one moment: what stands in no durable snapshot, and how much stands in one.
pub(super) struct Picture {
    pub(super) last: u64,
    pub(super) durable: usize,
    pub(super) writes: Vec<Write>,
}

impl Picture {
    fn walk(&self) -> Merge {
        Merge { last: self.last, missing: self.durable, writes: self.writes.clone(), given: false, fed: None }
    }
}

fn encode(last: u64, writes: &[Write]) -> Bytes {
    let mut chunk = BytesMut::new();
    chunk.put_u64_le(last);
    for write in writes {
        chunk.put_u64_le(write.number);
        chunk.put_u64_le(write.entry);
        chunk.put_u16_le(write.part);
        chunk.put_u64_le(write.print);
    }
    chunk.freeze()
}

impl SnapshotSource for Picture {
    fn chunks(&self) -> Box<dyn Pieces<Bytes>> {
        Box::new(Encoded(self.walk()))
    }

    fn living(&self) -> Box<dyn Pieces<Vec<Living>>> {
        let walk = self.walk();
        Box::new(Referring { dead: (self.durable + self.writes.len()).saturating_sub(LIVING), walk })
    }
}

/// Walks through all writes: first those that stand in the previous snapshot, then those in memory.
struct Merge {
    last: u64,
    /// Writes that the previous snapshot must still give.
    missing: usize,
    writes: Vec<Write>,
    given: bool,
    fed: Option<Vec<Write>>,
}

impl Merge {
    fn step(&mut self) -> Result<Piece<Vec<Write>>, RestoreError> {
        if let Some(writes) = self.fed.take() {
            if writes.is_empty() {
                return Err(RestoreError(format!("{} writes are not in the previous snapshot", self.missing)));
            }
            self.given = true;
            return Ok(Piece::Next(writes));
        }
        if self.missing > 0 {
            return Ok(Piece::Previous);
        }
        let rest = self.writes.split_off(self.writes.len().min(CHUNK));
        let writes = std::mem::replace(&mut self.writes, rest);
        // A state without writes has a chunk, too.
        let over = writes.is_empty() && self.given;
        self.given = true;
        Ok(if over { Piece::End } else { Piece::Next(writes) })
    }

    fn feed(&mut self, chunk: Option<Bytes>) {
        let mut read = Reading::default();
        // What cannot be read gives nothing, which is an error at the next step.
        chunk.map_or(Ok(()), |chunk| read.push(chunk)).ok();
        let Reading(Record { mut writes, .. }) = read;
        writes.truncate(self.missing);
        self.missing -= writes.len();
        self.fed = Some(writes);
    }
}

struct Encoded(Merge);

impl Pieces<Bytes> for Encoded {
    fn next(&mut self) -> Result<Piece<Bytes>, RestoreError> {
        Ok(match self.0.step()? {
            Piece::Next(writes) => Piece::Next(encode(self.0.last, &writes)),
            Piece::Previous => Piece::Previous,
            Piece::End => Piece::End,
        })
    }

    fn feed(&mut self, chunk: Option<Bytes>) {
        self.0.feed(chunk);
    }
}

struct Referring {
    /// The first so many are not referred to any more.
    dead: usize,
    walk: Merge,
}

impl Pieces<Vec<Living>> for Referring {
    fn next(&mut self) -> Result<Piece<Vec<Living>>, RestoreError> {
        Ok(match self.walk.step()? {
            Piece::Next(writes) => {
                let dead = self.dead.min(writes.len());
                self.dead -= dead;
                let living = writes.iter().skip(dead).rev();
                Piece::Next(living.map(|write| Living { entry: write.entry, first: write.part, count: 1 }).collect())
            }
            Piece::Previous => Piece::Previous,
            Piece::End => Piece::End,
        })
    }

    fn feed(&mut self, chunk: Option<Bytes>) {
        self.walk.feed(chunk);
    }
}
