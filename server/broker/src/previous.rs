//! Reads a snapshot's bytes as they come, chunk by chunk: cuts them into records, and finds blocks in them that are
//! not in memory any more. It reads no file, and it never holds more than a chunk and a record.

use bytes::{Bytes, BytesMut};

use crate::channel::ChannelId;
use crate::codec::take_number;
use crate::effect::BlockKey;
use crate::limits::SNAPSHOT_RECORD;
use crate::reference::Reference;
use crate::restore::{RestoreError, read_runs, read_timers};
use crate::runs::{Run, Seal, encode_run_block};
use crate::snapshot::{CHANNEL, END, HEADER, MAGIC, RUNS, TIMER_BLOCK};
use crate::timer::{TimerBlock, encode_timer_block};

/// One step of a walk that does no reading of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece<T> {
    /// The next piece.
    Next(T),
    /// First the next chunk of the newest durable snapshot must be handed over.
    Previous,
    /// There are no more.
    End,
}

/// Cuts chunks into records, however they are cut themselves.
#[derive(Debug, Default)]
pub(crate) struct Records {
    left: Bytes,
}

impl Records {
    /// Takes the next chunk.
    pub(crate) fn push(&mut self, chunk: Bytes) {
        if self.left.is_empty() {
            self.left = chunk;
        } else {
            let mut both = BytesMut::with_capacity(self.left.len() + chunk.len());
            both.extend_from_slice(&self.left);
            both.extend_from_slice(&chunk);
            self.left = both.freeze();
        }
    }

    /// The next record, tag and content, once all of it is there.
    pub(crate) fn next_record(&mut self) -> Result<Option<Bytes>, RestoreError> {
        let mut length = 0_usize;
        for place in 0..4 {
            let Some(byte) = self.left.get(place) else { return Ok(None) };
            length |= usize::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 != 0 && place < 3 {
                continue;
            }
            if length == 0 || length > SNAPSHOT_RECORD {
                return Err(RestoreError::Record(0));
            }
            if self.left.len() < place + 1 + length {
                return Ok(None);
            }
            let mut record = self.left.split_to(place + 1 + length);
            return Ok(Some(record.split_off(place + 1)));
        }
        Ok(None)
    }

    /// Whether everything that came was cut into records.
    pub(crate) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }
}

/// A block as it stands in a snapshot.
#[derive(Debug)]
enum Block {
    Runs(Seal, Vec<Run>),
    /// A sealed one; which of them are released is not asked for.
    Timers(Box<TimerBlock>),
}

/// The blocks of a snapshot, in the order in which they stand there: by key.
#[derive(Debug, Default)]
struct Blocks {
    records: Records,
    version: u8,
    channel: ChannelId,
    ended: bool,
}

impl Blocks {
    /// The next block, once all of it is there.
    fn next_block(&mut self) -> Result<Option<(BlockKey, Block)>, RestoreError> {
        while let Some(mut record) = self.records.next_record()? {
            match record.split_to(1)[..] {
                [HEADER] => self.version = record.get(MAGIC.len()).copied().unwrap_or_default(),
                [CHANNEL] => {
                    let id = take_number(&mut record).map_err(|_| RestoreError::Record(CHANNEL))?;
                    self.channel = ChannelId(id);
                }
                [RUNS] => {
                    let (seal, runs) = read_runs(&mut record, self.version).ok_or(RestoreError::Record(RUNS))?;
                    let first_sequence = runs.first().map_or(0, |run| run.first_sequence);
                    let key = BlockKey::Runs { channel: self.channel, first_sequence };
                    return Ok(Some((key, Block::Runs(seal, runs))));
                }
                [TIMER_BLOCK] => {
                    let unreadable = RestoreError::Record(TIMER_BLOCK);
                    let (bucket, is_sealed, block) = read_timers(&mut record).ok_or(unreadable)?;
                    if !is_sealed {
                        continue;
                    }
                    let timers =
                        Box::<TimerBlock>::try_from(block.timers.into_boxed_slice()).map_err(|_| unreadable)?;
                    let first = timers.first().map_or(0, |timer| timer.body.word());
                    return Ok(Some((BlockKey::Timers { bucket, first }, Block::Timers(timers))));
                }
                [END] => self.ended = true,
                _ => {}
            }
        }
        Ok(None)
    }
}

/// Finds blocks in a snapshot.
#[derive(Debug, Default)]
pub(crate) struct Previous(Blocks);

impl Previous {
    /// Takes the next chunk, or learns that there is none.
    pub(crate) fn feed(&mut self, chunk: Option<Bytes>) {
        match chunk {
            Some(chunk) => self.0.records.push(chunk),
            None => self.0.ended = true,
        }
    }

    /// The runs of the block of `channel` that was begun with `first_sequence`; nothing when more chunks are needed. What
    /// is asked for must lie behind what was asked for before.
    pub(crate) fn runs(
        &mut self,
        channel: ChannelId,
        first_sequence: u64,
        sum: u32,
    ) -> Result<Option<Vec<Run>>, RestoreError> {
        self.block(BlockKey::Runs { channel, first_sequence }, |block| match block {
            Block::Runs(_, runs) if encode_run_block(&runs).1 == sum => Some(runs),
            _ => None,
        })
    }

    /// The same for a block of delayed messages.
    pub(crate) fn timers(
        &mut self,
        bucket: u64,
        first: Reference,
        sum: u32,
    ) -> Result<Option<Box<TimerBlock>>, RestoreError> {
        self.block(BlockKey::Timers { bucket, first: first.word() }, |block| match block {
            Block::Timers(timers) if encode_timer_block(&timers).1 == sum => Some(timers),
            _ => None,
        })
    }

    fn block<T>(&mut self, key: BlockKey, take: impl Fn(Block) -> Option<T>) -> Result<Option<T>, RestoreError> {
        while let Some((found, block)) = self.0.next_block()? {
            if found < key {
                continue;
            }
            let taken = if found == key { take(block) } else { None };
            let missing = RestoreError::Contradiction("a block that left the memory is not in the snapshot before");
            return taken.map(Some).ok_or(missing);
        }
        if self.0.ended {
            return Err(RestoreError::Contradiction("a block that left the memory is in no snapshot"));
        }
        Ok(None)
    }
}

/// The sealed blocks of a snapshot whose bytes come chunk by chunk, as the index on disk holds them.
#[derive(Debug, Default)]
pub struct SnapshotBlocks(Blocks);

impl SnapshotBlocks {
    /// Takes the next chunk.
    pub fn push(&mut self, chunk: Bytes) {
        self.0.records.push(chunk);
    }

    /// The next block of the chunks so far.
    ///
    /// # Errors
    ///
    /// The chunks are no snapshot, or damaged.
    pub fn next_block(&mut self) -> Result<Option<(BlockKey, Bytes)>, RestoreError> {
        while let Some((key, block)) = self.0.next_block()? {
            match block {
                Block::Runs(Seal::Open, _) => {}
                Block::Runs(Seal::Sealed { .. }, runs) => return Ok(Some((key, encode_run_block(&runs).0))),
                Block::Timers(timers) => return Ok(Some((key, encode_timer_block(&timers).0))),
            }
        }
        Ok(None)
    }
}
