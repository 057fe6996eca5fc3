//! What the files of a stopped node still hold: the index is made from the newest snapshot that can be read and the log
//! behind it, and then every message is looked for.
//!
//! Where a piece of the log cannot be read, what follows it is taken all the same. Then something may come out of it that
//! was settled, or with another sequence; what is in doubt is said once for all. Nothing is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use kubemq_broker::{Answer, BatchView, Copy, Kind, Limits, Operation, RestoreError, Restoring, State};
use kubemq_raft::Envelope;
use kubemq_runtime::{Runtime, chain};
use kubemq_storage::fs::Disk;
use kubemq_storage::log::{PartRead, Salvage};
use kubemq_storage::snapshot::{SnapshotFile, Snapshots};
use kubemq_storage::{Entry, EntryKind, Error};

/// Doubts that are told, at most.
const DOUBTS: usize = 1_000;
/// The origin of batches of which the sender cannot be read.
const UNKNOWN_ORIGIN: u64 = u64::MAX;

/// A stored message, or where one should be.
#[derive(Debug)]
pub(super) struct Item<'a> {
    pub(super) kind: Kind,
    pub(super) channel: &'a str,
    /// Nothing when it is delayed.
    pub(super) sequence: Option<u64>,
    /// When a delayed one is due, in nanoseconds.
    pub(super) due: Option<u64>,
    pub(super) copy: Option<&'a Copy>,
    pub(super) content: Result<Content, String>,
}

/// What could be read of a message.
#[derive(Debug)]
pub(super) struct Content {
    /// When it was stored, in nanoseconds.
    pub(super) time: u64,
    pub(super) expiration_ms: u64,
    /// As it is stored.
    pub(super) message: Bytes,
}

/// See the module.
pub(super) struct Holdings {
    salvage: Salvage,
    state: State,
    doubts: Vec<String>,
}

impl Holdings {
    /// Reads the files in `data`.
    ///
    /// # Errors
    ///
    /// What the disk says, and files of a version that is not known. Damage is no error.
    pub(super) async fn open(
        disk: &Arc<dyn Disk>,
        runtime: &Runtime,
        data: &Path,
        mut salvage: Salvage,
    ) -> Result<Self, Error> {
        let snapshots = Snapshots::open_read_only(Arc::clone(disk), data.join("snapshots"), runtime).await?;
        let mut doubts = Vec::new();
        let (state, from) = newest(&snapshots, &mut doubts).await?;
        let mut replay = Replay { state, doubts, shifts: BTreeMap::new(), sure: BTreeSet::new(), holes: 0, unknown: 0 };
        let mut next = from;
        while let Some(entry) = salvage.next_entry(next).await? {
            if entry.id.index > next {
                replay.hole(next, entry.id.index - 1);
            }
            next = entry.id.index + 1;
            replay.apply(&entry);
        }
        if let Some(last) = salvage.last_index().filter(|last| *last >= next) {
            replay.hole(next, last);
        }
        Ok(Self { salvage, state: replay.state, doubts: replay.doubts })
    }

    /// Returns what cannot be vouched for, a sentence each.
    pub(super) fn doubts(&self) -> &[String] {
        &self.doubts
    }

    /// Looks for every stored message, queues first, by channel and sequence; delayed ones come last.
    ///
    /// # Errors
    ///
    /// What `each` fails with.
    pub(super) async fn each<E>(&mut self, mut each: impl FnMut(Item<'_>) -> Result<(), E>) -> Result<(), E> {
        for kind in [Kind::Queue, Kind::EventsStore] {
            for channel in self.state.channels(kind) {
                let mut from = 1;
                while let Some(sequence) = channel.next_alive(from) {
                    from = sequence + 1;
                    let Some(location) = channel.locate(sequence).here() else { continue };
                    let content = content(&mut self.salvage, location.entry, location.part).await;
                    let (channel, sequence, copy) = (&**channel.name(), Some(sequence), location.copy);
                    each(Item { kind, channel, sequence, due: None, copy, content })?;
                }
            }
        }
        for delayed in self.state.delayed() {
            let Some(channel) = self.state.channel_by_id(delayed.channel) else { continue };
            let content = content(&mut self.salvage, delayed.entry, delayed.part).await;
            let (kind, channel, due) = (channel.kind(), &**channel.name(), Some(delayed.due));
            each(Item { kind, channel, sequence: None, due, copy: None, content })?;
        }
        Ok(())
    }
}

/// Returns the state of the newest snapshot that can be read, and the entry from which the log goes on.
async fn newest(snapshots: &Snapshots, doubts: &mut Vec<String>) -> Result<(State, u64), Error> {
    for file in snapshots.files().iter().rev() {
        let why = match read(snapshots, file).await {
            Ok((meta, state)) => match (kubemq_raft::snapshot_index(&meta), state) {
                (Some(index), Ok(state)) => return Ok((state, index + 1)),
                (_, Err(error)) => error.to_string(),
                (None, _) => "its metadata is not readable".to_owned(),
            },
            Err(error @ Error::Damaged { .. }) => chain(&error).to_string(),
            Err(error) => return Err(error),
        };
        doubts.push(format!("snapshot {} cannot be read ({why}): an older one, or the whole log, is used", file.name));
    }
    // What was refused for want of room when it was sent was refused then; nothing more is now.
    Ok((State::new(Limits::default()), 1))
}

/// Returns the metadata of a snapshot and the state in it.
async fn read(snapshots: &Snapshots, file: &SnapshotFile) -> Result<(Bytes, Result<State, RestoreError>), Error> {
    let mut reader = snapshots.hold(file).await?.reader().await?;
    let mut restoring = Restoring::new(u64::MAX);
    let mut pushed = Ok(());
    while let Some(chunk) = reader.next_chunk().await? {
        // Read to the end in any case: only then it is known whether the file is whole.
        pushed = pushed.and_then(|()| restoring.push(chunk));
    }
    Ok((reader.meta().clone(), pushed.and_then(|()| restoring.finish())))
}

async fn content(salvage: &mut Salvage, entry: u64, part: u16) -> Result<Content, String> {
    let PartRead { time, bytes } = salvage.part(entry, part).await.map_err(|error| chain(&error).to_string())?;
    match Operation::decode(&bytes) {
        Ok(Operation::Publish { expiration_ms, message, .. }) => Ok(Content { time, expiration_ms, message }),
        Ok(_) => Err(format!("part {part} of entry {entry} is no message")),
        Err(error) => Err(error.to_string()),
    }
}

/// Applies the log although pieces of it are missing.
struct Replay {
    state: State,
    doubts: Vec<String>,
    /// By how much the numbers of batches of an origin and epoch are too high, for what is missing before them.
    shifts: BTreeMap<(u64, u64), u64>,
    /// Origins and epochs of which that is known since the last hole.
    sure: BTreeSet<(u64, u64)>,
    holes: u64,
    /// Batches of which the sender could not be read.
    unknown: u64,
}

impl Replay {
    fn hole(&mut self, first: u64, last: u64) {
        self.holes += 1;
        self.sure.clear();
        self.doubt(format!(
            "entries {first} to {last} of the log cannot be read: what they stored is lost, what they settled comes out \
             again, and sequences behind them may be lower than they were"
        ));
    }

    fn apply(&mut self, entry: &Entry) {
        if entry.kind != EntryKind::Normal {
            return;
        }
        let index = entry.id.index;
        let operations: Vec<Bytes> = (1..entry.parts.count()).map(|part| self.operation(entry, part)).collect();
        let envelope = entry.parts.get_checked(0).and_then(|_| Envelope::of(&entry.parts).ok());
        let Some(envelope) = envelope else {
            self.hole(index, index);
            self.unknown += 1;
            let (origin, number) = (UNKNOWN_ORIGIN, self.unknown);
            let batch = BatchView { origin, epoch: 1, number, first_part: 1, operations: &operations };
            drop(self.state.apply(index, entry.time, &[batch]));
            return;
        };
        let (mut rest, mut first_part) = (operations.as_slice(), 1_u16);
        let mut batches = Vec::with_capacity(envelope.batches.len());
        for header in &envelope.batches {
            let (own, others) = rest.split_at(usize::from(header.operations).min(rest.len()));
            let (origin, epoch) = (header.origin.node, header.origin.epoch);
            let number = self.number(origin, epoch, header.number);
            batches.push(BatchView { origin, epoch, number, first_part, operations: own });
            first_part = first_part.saturating_add(header.operations);
            rest = others;
        }
        drop(self.state.apply(index, entry.time, &batches));
    }

    fn doubt(&mut self, doubt: String) {
        match self.doubts.len() {
            0..DOUBTS => self.doubts.push(doubt),
            DOUBTS => self.doubts.push("there are more such doubts".to_owned()),
            _ => {}
        }
    }

    /// Returns an operation, or what it looks like where its checksum does not fit: a message still takes its sequence.
    fn operation(&mut self, entry: &Entry, part: u16) -> Bytes {
        if let Some(whole) = entry.parts.get_checked(part) {
            return whole;
        }
        let bytes = entry.parts.get(part).unwrap_or_default();
        let looks_whole = matches!(Operation::decode(&bytes), Ok(Operation::Publish { .. }));
        let index = entry.id.index;
        self.doubt(if looks_whole {
            format!("part {part} of entry {index} is damaged: it is counted as the message that it looks like")
        } else {
            format!("part {part} of entry {index} is damaged: what it changed is not known")
        });
        if looks_whole { bytes } else { Bytes::new() }
    }

    /// Returns the number that a batch has when those that are missing before it are not counted.
    fn number(&mut self, origin: u64, epoch: u64, number: u64) -> u64 {
        if self.holes == 0 {
            return number;
        }
        let shift = self.shifts.entry((origin, epoch)).or_default();
        if self.sure.insert((origin, epoch)) {
            let shifted = number.saturating_sub(*shift);
            // An entry that is not newer changes nothing; the answer says which batch is expected.
            let probe = BatchView { origin, epoch, number: shifted, first_part: 1, operations: &[] };
            let answers = self.state.apply(self.state.entry(), 0, &[probe]).answers;
            if let Some(Answer::Gap { expected }) = answers.first().map(|answer| &answer.answer)
                && *expected < shifted
            {
                *shift += shifted - expected;
            }
        }
        number.saturating_sub(*shift)
    }
}

/// How much of one channel is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) messages: u64,
    pub(super) unreadable: u64,
}

/// Counts messages by kind and channel.
#[derive(Debug, Default)]
pub(super) struct Tallies(pub(super) BTreeMap<(&'static str, String), Tally>);

impl Tallies {
    pub(super) fn count(&mut self, item: &Item<'_>) {
        let tally = self.0.entry((item.kind.name(), item.channel.to_owned())).or_default();
        tally.messages += 1;
        tally.unreadable += u64::from(item.content.is_err());
    }

    /// Returns the channels of a kind and what they hold together.
    pub(super) fn of(&self, kind: &str) -> (u64, Tally) {
        let (mut channels, mut sum) = (0, Tally::default());
        for (_, tally) in self.0.iter().filter(|((of, _), _)| *of == kind) {
            channels += 1;
            sum.messages += tally.messages;
            sum.unreadable += tally.unreadable;
        }
        (channels, sum)
    }
}

#[cfg(test)]
mod tests;
