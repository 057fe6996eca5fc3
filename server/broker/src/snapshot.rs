//! Writes a state down: a stream of records, made block by block while the state itself goes on. What left the memory
//! is taken over from the snapshot before. It writes no bodies and no files, and it never holds more than about one
//! chunk of what it has written.
//!
//! A record is its length, its tag and its content. The stream opens with a header and ends with a checksum of
//! everything before. A channel is its head, then its marks, its readers' places, its blocks of runs and its blocks of
//! copies. Delayed messages follow, by the minute, in their blocks.

use std::collections::btree_map;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::channel::{Channel, ChannelId, Totals};
use crate::codec::{Checksum, put_number, put_text};
use crate::copies::Copy;
use crate::cursors::{Cursor, put_place};
use crate::effect::{BlockKey, Outcome, Refusal};
use crate::limits::{SNAPSHOT_CHUNK, SNAPSHOT_RECORD};
use crate::living::LivingWalk;
use crate::origins::Origin;
use crate::previous::{Piece, Previous};
use crate::reference::Reference;
use crate::restore::RestoreError;
use crate::runs::Run;
use crate::state::State;
use crate::timer::{BUCKET, Timer};

pub(crate) const MAGIC: &[u8; 4] = b"KMQB";
pub(crate) const VERSION: u8 = 5;
/// Up to this version delayed messages stand one by one, and not in their blocks.
pub(crate) const WITHOUT_TIMER_BLOCKS: u8 = 4;
/// Up to this version a limit of the index stands in the header, and a sealed block does not say its size.
pub(crate) const WITHOUT_SIZES: u8 = 3;
/// Up to this version places of readers do not say when they were used.
pub(crate) const WITHOUT_USE: u8 = 2;
/// Version 1 had no places of readers and is like version 2 otherwise.
pub(crate) const OLDEST_VERSION: u8 = 1;

pub(crate) const HEADER: u8 = 1;
pub(crate) const CHANNEL: u8 = 2;
pub(crate) const FULL: u8 = 3;
pub(crate) const PARTIAL: u8 = 4;
pub(crate) const RUNS: u8 = 5;
pub(crate) const COPIES: u8 = 6;
pub(crate) const TIMERS: u8 = 7;
pub(crate) const ORIGIN: u8 = 8;
pub(crate) const RESULTS: u8 = 9;
pub(crate) const END: u8 = 10;
pub(crate) const CURSORS: u8 = 11;
pub(crate) const TIMER_BLOCK: u8 = 12;

/// Things of one sort in one record.
const PER_RECORD: usize = 1024;

/// Places of readers in one record.
const CURSORS_PER_RECORD: usize = 512;

/// Bitmap blocks in one record.
const BITS_PER_RECORD: usize = 64;

/// A state as it was at one entry. Making one is cheap, and the state may change freely afterwards.
#[derive(Clone, Debug)]
pub struct Snapshot {
    state: State,
}

impl Snapshot {
    pub(crate) fn new(state: State) -> Self {
        Self { state }
    }

    /// Index of the last entry in it.
    #[must_use]
    pub fn entry(&self) -> u64 {
        self.state.entry
    }

    /// The digest of the state that was taken.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.state.digest()
    }

    /// Every body that it refers to.
    #[must_use]
    pub fn living(&self) -> LivingWalk {
        LivingWalk::new(self.state.clone())
    }

    /// Every block that is in memory and that the index on disk should hold, as [`crate::Effect::Sealed`] named them
    /// one by one.
    pub fn sealed_blocks(&self) -> impl Iterator<Item = (BlockKey, Bytes)> + '_ {
        let runs = self.state.channels.values().flat_map(|channel| {
            let sealed = channel.runs.sealed_blocks();
            sealed.map(|(first_sequence, block)| (BlockKey::Runs { channel: channel.id(), first_sequence }, block))
        });
        runs.chain(self.state.timers.sealed_blocks())
    }

    /// Its bytes, in chunks of at most 1 MiB, each made when it is asked for.
    #[must_use]
    pub fn chunks(&self) -> SnapshotChunks {
        SnapshotChunks::new(self.state.clone())
    }
}

/// What is written next.
#[derive(Debug)]
enum Stage {
    Header,
    Channels,
    /// Blocks of runs from this sequence on.
    Runs(Arc<Channel>, u64),
    /// Blocks of copies from this sequence on.
    Copies(Arc<Channel>, u64),
    /// Blocks of delayed messages from this bucket, and from this one in it on.
    Timers(u64, Reference),
    Origins,
    End,
    Done,
}

/// A snapshot's bytes, piece by piece.
#[derive(Debug)]
pub struct SnapshotChunks {
    state: State,
    channels: btree_map::IntoIter<ChannelId, Arc<Channel>>,
    stage: Stage,
    previous: Previous,
    out: BytesMut,
    sum: Checksum,
}

impl SnapshotChunks {
    fn new(mut state: State) -> Self {
        let channels = std::mem::take(&mut state.channels).into_iter();
        Self {
            state,
            channels,
            stage: Stage::Header,
            previous: Previous::default(),
            out: BytesMut::new(),
            sum: Checksum::new(),
        }
    }

    /// The next chunk.
    ///
    /// # Errors
    ///
    /// What left the memory is not in the chunks that were handed over.
    pub fn next_piece(&mut self) -> Result<Piece<Bytes>, RestoreError> {
        while self.out.len() < SNAPSHOT_CHUNK && !matches!(self.stage, Stage::Done) {
            let (stage, needs_more) = match std::mem::replace(&mut self.stage, Stage::Done) {
                Stage::Runs(channel, from) => self.runs(channel, from)?,
                Stage::Timers(bucket, from) => self.timers(bucket, from)?,
                stage => (self.step(stage), false),
            };
            self.stage = stage;
            if needs_more {
                return Ok(Piece::Previous);
            }
        }
        if self.out.is_empty() {
            return Ok(Piece::End);
        }
        let length = self.out.len().min(SNAPSHOT_CHUNK);
        Ok(Piece::Next(self.out.split_to(length).freeze()))
    }

    /// Hands over the next chunk of the newest durable snapshot; nothing when there is none.
    pub fn feed(&mut self, chunk: Option<Bytes>) {
        self.previous.feed(chunk);
    }

    /// All chunks at once, of a state of which nothing left the memory.
    ///
    /// # Errors
    ///
    /// Something did.
    pub fn all(mut self) -> Result<Vec<Bytes>, RestoreError> {
        let mut chunks = Vec::new();
        loop {
            match self.next_piece()? {
                Piece::Next(chunk) => chunks.push(chunk),
                Piece::Previous => self.feed(None),
                Piece::End => return Ok(chunks),
            }
        }
    }

    fn record(&mut self, tag: u8, write: impl FnOnce(&mut BytesMut)) {
        let mut content = BytesMut::new();
        content.put_u8(tag);
        write(&mut content);
        debug_assert!(content.len() <= SNAPSHOT_RECORD, "a record is read back only up to its limit");
        self.sum.slice(&content);
        put_number(&mut self.out, content.len() as u64);
        self.out.put_slice(&content);
    }

    /// Writes what needs nothing from before, and says what comes next.
    fn step(&mut self, stage: Stage) -> Stage {
        match stage {
            Stage::Header => {
                self.header();
                Stage::Channels
            }
            Stage::Channels => match self.channels.next() {
                Some((_, channel)) => {
                    self.channel_head(&channel);
                    self.marks(&channel);
                    self.cursors(&channel);
                    Stage::Runs(channel, 0)
                }
                None => Stage::Timers(0, Reference::default()),
            },
            Stage::Runs(channel, _) => Stage::Copies(channel, 0),
            Stage::Copies(channel, from) => match channel.copies.block_from(from) {
                Some((first, block)) => {
                    self.record(COPIES, |out| put_copies(out, block));
                    Stage::Copies(Arc::clone(&channel), first + 1)
                }
                None => Stage::Channels,
            },
            Stage::Timers(bucket, from) => Stage::Timers(bucket, from),
            Stage::Origins => {
                self.origins();
                Stage::End
            }
            Stage::End => {
                let sum = self.sum.value();
                self.record(END, |out| out.put_u64_le(sum));
                Stage::Done
            }
            Stage::Done => Stage::Done,
        }
    }

    /// Writes the next block of runs; says what comes next, and whether more of the snapshot before is needed first.
    fn runs(&mut self, channel: Arc<Channel>, from: u64) -> Result<(Stage, bool), RestoreError> {
        let Some((first, block)) = channel.runs.sealed_from(from).next() else {
            let (open, _) = channel.runs.open();
            if !open.is_empty() {
                self.record(RUNS, |out| put_runs(out, open, None));
            }
            return Ok((Stage::Copies(channel, 0), false));
        };
        match block.runs() {
            Some(runs) => self.record(RUNS, |out| put_runs(out, runs, Some(block.bytes()))),
            None => match self.previous.runs(channel.id(), *first, block.sum())? {
                Some(runs) => self.record(RUNS, |out| put_runs(out, &runs, Some(block.bytes()))),
                None => return Ok((Stage::Runs(channel, from), true)),
            },
        }
        let next = first + 1;
        Ok((Stage::Runs(channel, next), false))
    }

    fn header(&mut self) {
        let (limits, entry, time) = (self.state.limits, self.state.entry, self.state.time);
        self.record(HEADER, |out| {
            out.put_slice(MAGIC);
            out.put_u8(VERSION);
            for number in [limits.channels, limits.origins, entry, time] {
                put_number(out, number);
            }
        });
    }

    fn channel_head(&mut self, channel: &Channel) {
        self.record(CHANNEL, |out| {
            put_number(out, channel.id().0);
            out.put_u8(channel.kind().number());
            out.put_u8(u8::from(channel.is_explicit()));
            put_text(out, channel.name());
            put_number(out, channel.next_sequence());
            put_number(out, channel.settled.floor());
            put_number(out, channel.last_activity());
            for total in totals_as_list(channel.totals()) {
                put_number(out, total);
            }
        });
    }

    fn marks(&mut self, channel: &Channel) {
        let full: Vec<(u64, u64)> = channel.settled.full().collect();
        for ranges in full.chunks(PER_RECORD) {
            self.record(FULL, |out| {
                put_number(out, ranges.len() as u64);
                for (first, end) in ranges {
                    put_number(out, *first);
                    put_number(out, *end);
                }
            });
        }
        let partial: Vec<_> = channel.settled.partial().collect();
        for blocks in partial.chunks(BITS_PER_RECORD) {
            self.record(PARTIAL, |out| {
                put_number(out, blocks.len() as u64);
                for (block, bits) in blocks {
                    put_number(out, *block);
                    for word in *bits {
                        out.put_u64_le(*word);
                    }
                }
            });
        }
    }

    fn cursors(&mut self, channel: &Channel) {
        let places: Vec<(&[u8], Cursor)> = channel.cursors.iter().collect();
        for places in places.chunks(CURSORS_PER_RECORD) {
            self.record(CURSORS, |out| {
                put_number(out, places.len() as u64);
                for (reader, after) in places {
                    put_place(out, reader, *after);
                }
            });
        }
    }

    /// Writes the next block of delayed messages; says what comes next, and whether more of the snapshot before is needed
    /// first.
    fn timers(&mut self, wanted: u64, from: Reference) -> Result<(Stage, bool), RestoreError> {
        let none = Reference::default();
        let Some((number, bucket)) = self.state.timers.bucket_from(wanted) else {
            return Ok((Stage::Origins, false));
        };
        let (bucket, from) = (Arc::clone(bucket), if number == wanted { from } else { none });
        let Some((first, block)) = bucket.sealed_from(from).next() else {
            let (open, released) = bucket.open();
            if !open.is_empty() {
                self.record(TIMER_BLOCK, |out| put_timers(out, number, false, open, released));
            }
            let next = number.checked_add(1).map_or(Stage::Origins, |next| Stage::Timers(next, none));
            return Ok((next, false));
        };
        match block.timers() {
            Some(timers) => self.record(TIMER_BLOCK, |out| put_timers(out, number, true, timers, block.released())),
            None => match self.previous.timers(number, *first, block.sum())? {
                Some(timers) => {
                    self.record(TIMER_BLOCK, |out| put_timers(out, number, true, &*timers, block.released()));
                }
                None => return Ok((Stage::Timers(number, from), true)),
            },
        }
        Ok((Stage::Timers(number, Reference::from_word(first.word().saturating_add(1))), false))
    }

    fn origins(&mut self) {
        let origins: Vec<(u64, Origin)> =
            self.state.origins.iter().map(|(node, origin)| (node, origin.clone())).collect();
        for (node, origin) in origins {
            self.record(ORIGIN, |out| {
                for number in [node, origin.epoch, origin.last, origin.entry, origin.kept.len() as u64] {
                    put_number(out, number);
                }
            });
            for results in &origin.kept {
                self.results(results);
            }
        }
    }

    /// The results of one batch: records that say whether another one follows.
    fn results(&mut self, results: &[Outcome]) {
        let mut rest = results;
        loop {
            let (now, later) = rest.split_at(rest.len().min(PER_RECORD));
            self.record(RESULTS, |out| {
                out.put_u8(u8::from(!later.is_empty()));
                put_number(out, now.len() as u64);
                for outcome in now {
                    put_outcome(out, *outcome);
                }
            });
            if later.is_empty() {
                return;
            }
            rest = later;
        }
    }
}

/// The totals in the order in which they are written.
pub(crate) fn totals_as_list(totals: &Totals) -> [u64; 8] {
    [
        totals.sent,
        totals.sent_bytes,
        totals.settled,
        totals.settled_bytes,
        totals.expired,
        totals.dead_lettered,
        totals.redelivered,
        totals.delayed,
    ]
}

/// Writes a block: an open one, or a sealed one with the size of what is not settled in it.
fn put_runs(out: &mut BytesMut, runs: &[Run], sealed: Option<u64>) {
    out.put_u8(u8::from(sealed.is_some()));
    if let Some(bytes) = sealed {
        put_number(out, bytes);
    }
    put_number(out, runs.len() as u64);
    let mut before = Run { first_sequence: 0, entry: 0, first_part: 0, count: 0, bytes: 0 };
    for run in runs {
        put_number(out, run.first_sequence - before.end());
        put_number(out, run.entry - before.entry);
        put_number(out, u64::from(run.first_part));
        put_number(out, u64::from(run.count));
        put_number(out, u64::from(run.bytes));
        before = *run;
    }
}

fn put_copies(out: &mut BytesMut, copies: &[Copy]) {
    put_number(out, copies.len() as u64);
    for copy in copies {
        put_number(out, copy.sequence);
        put_number(out, copy.body.word());
        put_number(out, copy.time);
        put_number(out, copy.expires_at);
        put_number(out, u64::from(copy.receive_count));
        put_number(out, u64::from(copy.bytes));
        let rerouted = u8::from(copy.rerouted_from.is_some());
        out.put_u8(u8::from(copy.cleared_policy) | u8::from(copy.fresh) << 1 | rerouted << 2);
        if let Some(name) = &copy.rerouted_from {
            put_text(out, name);
        }
    }
}

/// Writes a block of delayed messages, sealed or open, and which of them are released.
fn put_timers(out: &mut BytesMut, bucket: u64, is_sealed: bool, timers: &[Timer], released: &[Reference]) {
    out.put_u8(u8::from(is_sealed));
    put_number(out, bucket);
    put_number(out, timers.len() as u64);
    let (mut body, mut channel) = (0, 0);
    for timer in timers {
        put_number(out, timer.due - bucket * BUCKET);
        put_number(out, timer.body.word() - body);
        // Most of them go to the channel that the one before goes to.
        put_number(out, timer.scheduled.channel.0 ^ channel);
        put_number(out, u64::from(timer.scheduled.expiration.0));
        put_number(out, u64::from(timer.scheduled.bytes));
        (body, channel) = (timer.body.word(), timer.scheduled.channel.0);
    }
    put_number(out, released.len() as u64);
    for (place, timer) in timers.iter().enumerate() {
        if released.binary_search(&timer.body).is_ok() {
            out.put_u8(place as u8);
        }
    }
}

/// An outcome as three numbers: which one, and its values.
pub(crate) fn outcome_as_numbers(outcome: Outcome) -> (u8, u64, u64) {
    match outcome {
        Outcome::Stored { sequence, time } => (1, sequence, time),
        Outcome::Scheduled { time, due } => (2, time, due),
        Outcome::Settled { count } => (3, count, 0),
        Outcome::Moved { count } => (4, count, 0),
        Outcome::Purged { count } => (5, count, 0),
        Outcome::Released { count } => (6, count, 0),
        Outcome::Created { channel, new } => (7, channel.0, u64::from(new)),
        Outcome::Deleted { existed } => (8, u64::from(existed), 0),
        Outcome::Kept => (9, 0, 0),
        Outcome::Noted => (10, 0, 0),
        Outcome::Refused(refusal) => (11, refusal_number(refusal), 0),
        Outcome::Trimmed { count } => (12, count, 0),
        Outcome::Opened { channel, after } => (13, channel.0, after),
        Outcome::Advanced { after } => (14, after, 0),
        Outcome::Forgotten { count } => (15, count, 0),
    }
}

fn refusal_number(refusal: Refusal) -> u64 {
    match refusal {
        Refusal::Malformed => 1,
        Refusal::Name => 2,
        Refusal::TooManyChannels => 3,
        // 4 was used up to version 3.
        Refusal::NotStored => 5,
        Refusal::Exhausted => 6,
        Refusal::TooManyCursors => 7,
    }
}

fn put_outcome(out: &mut BytesMut, outcome: Outcome) {
    let (tag, first, second) = outcome_as_numbers(outcome);
    out.put_u8(tag);
    put_number(out, first);
    put_number(out, second);
}
