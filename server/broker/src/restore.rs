//! Reads a state back that [`crate::snapshot`] wrote. Total on any bytes: whatever is damaged, cut off, put together
//! wrongly or of another version is a [`RestoreError`], and nothing is taken that would break the state later.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::{Buf, Bytes};

use crate::channel::{Channel, ChannelId, Totals};
use crate::codec::{
    Checksum, Malformed, take_byte, take_bytes, take_number, take_number_u16, take_number_u32, take_word,
};
use crate::copies::Copy;
use crate::effect::{Outcome, Refusal};
use crate::limits::{BITMAP_BLOCK, COPIES_PER_BLOCK, CURSORS_PER_CHANNEL, Limits, RUNS_PER_BLOCK, TIMERS_PER_BLOCK};
use crate::memory::ChannelMemory;
use crate::name::{Kind, Name, NameKey};
use crate::origins::Origin;
use crate::previous::Records;
use crate::reference::Reference;
use crate::runs::{Run, Runs, SEALED_LIST_BYTES, Seal};
use crate::settled::{Bits, Settled};
use crate::snapshot::{
    CHANNEL, COPIES, CURSORS, END, FULL, HEADER, MAGIC, OLDEST_VERSION, ORIGIN, PARTIAL, RESULTS, RUNS, TIMER_BLOCK,
    TIMERS, VERSION, WITHOUT_SIZES, WITHOUT_TIMER_BLOCKS, WITHOUT_USE,
};
use crate::state::State;
use crate::timer::{BUCKET, Expiration, Scheduled, Timer};
use crate::timers::{RestoredTimers, SEALED_TIMERS_BYTES};

/// Sequences stay below this bound, so that counting on never overflows.
const SEQUENCE_BOUND: u64 = 1 << 62;

/// Blocks of a channel that are read first after the start: half of the room is kept for them.
const HEADS: usize = 2;

/// Why bytes are no snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The bytes end too early.
    #[error("the snapshot ends too early")]
    Truncated,
    /// It does not begin like a snapshot.
    #[error("this is not a snapshot")]
    NotASnapshot,
    /// It was written by a version that this one does not know.
    #[error("the snapshot has the unknown version {0}")]
    UnknownVersion(u8),
    /// Its checksum does not fit.
    #[error("the snapshot is damaged: its checksum does not fit")]
    Checksum,
    /// A record cannot be read.
    #[error("the snapshot is damaged: a record with tag {0} cannot be read")]
    Record(u8),
    /// What its records say does not fit together.
    #[error("the snapshot contradicts itself: {0}")]
    Contradiction(&'static str),
    /// Bytes follow its end.
    #[error("the snapshot is followed by bytes that do not belong to it")]
    Trailing,
}

/// A channel of which not everything was read yet.
struct Building {
    head: Head,
    full: Vec<(u64, u64)>,
    partial: Vec<(u64, Box<Bits>)>,
    /// Once the first block came, the marks are complete.
    channel: Option<Channel>,
}

/// What the head of a channel says.
pub(crate) struct Head {
    pub(crate) id: ChannelId,
    pub(crate) kind: Kind,
    pub(crate) explicit: bool,
    pub(crate) name: Arc<str>,
    pub(crate) next: u64,
    pub(crate) floor: u64,
    pub(crate) last_activity: u64,
    pub(crate) totals: Totals,
}

/// An origin of which not all results were read yet.
struct BuildingOrigin {
    node: u64,
    origin: Origin,
    batches: u64,
    results: Vec<Outcome>,
}

/// What was read so far.
struct Reader {
    version: u8,
    state: State,
    building: Option<Building>,
    origin: Option<BuildingOrigin>,
    /// Timers per channel, to be compared with what the channels say.
    delayed: BTreeMap<ChannelId, u64>,
    /// Timers that stand one by one.
    timers: Vec<Timer>,
    /// Channel names that copies repeat.
    names: BTreeMap<NameKey, ()>,
    /// Bytes of the first sealed blocks of channels that may still stay in memory.
    heads: u64,
    /// The same of all other sealed blocks.
    room: u64,
}

/// A snapshot that is being read, chunk by chunk.
pub struct Restoring {
    records: Records,
    sum: Checksum,
    room: u64,
    /// Once the header was read.
    reader: Option<Reader>,
    ended: bool,
}

impl std::fmt::Debug for Restoring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Restoring").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Restoring {
    /// Begins. At most about `room` bytes of sealed blocks stay in memory: those who have a smaller one must be able to
    /// bring the others back.
    #[must_use]
    pub fn new(room: u64) -> Self {
        Self { records: Records::default(), sum: Checksum::new(), room, reader: None, ended: false }
    }

    /// Takes the next chunk; how the bytes are cut into chunks does not matter.
    ///
    /// # Errors
    ///
    /// What was taken so far is not the beginning of a snapshot.
    pub fn push(&mut self, chunk: Bytes) -> Result<(), RestoreError> {
        self.records.push(chunk);
        while !self.ended {
            let next = self.records.next_record();
            let next = if self.reader.is_some() { next } else { next.map_err(|_| RestoreError::NotASnapshot) };
            let Some(record) = next? else { return Ok(()) };
            self.record(record)?;
        }
        if self.records.is_empty() { Ok(()) } else { Err(RestoreError::Trailing) }
    }

    fn record(&mut self, record: Bytes) -> Result<(), RestoreError> {
        let before = self.sum.value();
        self.sum.slice(&record);
        let mut content = record.slice(1..);
        let tag = record[0];
        let Some(reader) = &mut self.reader else {
            if tag != HEADER || !content.starts_with(MAGIC) {
                return Err(RestoreError::NotASnapshot);
            }
            content.advance(MAGIC.len());
            let (version, state) = read_header(&mut content)?;
            self.reader = Some(Reader {
                version,
                state,
                building: None,
                origin: None,
                delayed: BTreeMap::new(),
                timers: Vec::new(),
                names: BTreeMap::new(),
                heads: self.room / 2,
                room: self.room - self.room / 2,
            });
            return Ok(());
        };
        if tag == END {
            let written = take_word(&mut content).map_err(|_| RestoreError::Record(END))?;
            if written != before || !content.is_empty() {
                return Err(RestoreError::Checksum);
            }
            self.ended = true;
            return Ok(());
        }
        reader.record(tag, &mut content)?;
        if content.is_empty() { Ok(()) } else { Err(RestoreError::Record(tag)) }
    }

    /// The state that the snapshot was taken of.
    ///
    /// # Errors
    ///
    /// Something is missing, or does not fit together.
    pub fn finish(self) -> Result<State, RestoreError> {
        match self.reader {
            Some(reader) if self.ended => reader.finish(),
            _ => Err(RestoreError::Truncated),
        }
    }
}

fn read_header(header: &mut Bytes) -> Result<(u8, State), RestoreError> {
    let unreadable = |_| RestoreError::Record(HEADER);
    let version = take_byte(header).map_err(unreadable)?;
    if !(OLDEST_VERSION..=VERSION).contains(&version) {
        return Err(RestoreError::UnknownVersion(version));
    }
    let mut number = || take_number(header).map_err(unreadable);
    let channels = number()?;
    if version <= WITHOUT_SIZES {
        // A limit of the index, which was a part of the state.
        number()?;
    }
    let (origins, entry, time) = (number()?, number()?, number()?);
    if !header.is_empty() {
        return Err(RestoreError::Record(HEADER));
    }
    let mut state = State::new(Limits { channels, origins });
    state.entry = entry;
    state.time = time;
    if version <= WITHOUT_TIMER_BLOCKS {
        state.timers.without_blocks(entry);
    }
    Ok((version, state))
}

impl Reader {
    fn record(&mut self, tag: u8, record: &mut Bytes) -> Result<(), RestoreError> {
        if tag != RESULTS {
            self.finish_origin()?;
        }
        if !matches!(tag, FULL | PARTIAL | CURSORS | RUNS | COPIES) {
            self.finish_channel()?;
        }
        let unreadable = |_: Malformed| RestoreError::Record(tag);
        match tag {
            CHANNEL => {
                let head = read_head(record).ok_or(RestoreError::Record(tag))?;
                self.building = Some(Building { head, full: Vec::new(), partial: Vec::new(), channel: None });
                Ok(())
            }
            FULL => self.marks(|building| read_full(record, &mut building.full).map_err(unreadable)),
            PARTIAL => self.marks(|building| read_partial(record, &mut building.partial).map_err(unreadable)),
            CURSORS => {
                let version = self.version;
                let channel = self.channel()?;
                read_cursors(record, version, channel).ok_or(RestoreError::Record(tag))
            }
            RUNS => {
                let (seal, runs) = read_runs(record, self.version).ok_or(RestoreError::Record(tag))?;
                self.runs(seal, runs)
            }
            COPIES => {
                let copies = read_copies(record, &mut self.names).ok_or(RestoreError::Record(tag))?;
                let channel = self.channel()?;
                let next = channel.next_sequence();
                let taken = channel.copies.restore_block(copies, next);
                taken.ok_or(RestoreError::Contradiction("copies are out of order"))
            }
            TIMERS if self.version <= WITHOUT_TIMER_BLOCKS => {
                read_single_timers(record, &mut self.timers).ok_or(RestoreError::Record(tag))
            }
            TIMER_BLOCK if self.version > WITHOUT_TIMER_BLOCKS => {
                let (bucket, is_sealed, block) = read_timers(record).ok_or(RestoreError::Record(tag))?;
                self.timers(bucket, is_sealed, block)
            }
            ORIGIN => {
                self.origin = Some(read_origin(record).map_err(unreadable)?);
                Ok(())
            }
            RESULTS => self.results(record).ok_or(RestoreError::Record(tag)),
            other => Err(RestoreError::Record(other)),
        }
    }

    /// Takes marks of the channel that is being read; they come before its blocks.
    fn marks(&mut self, take: impl FnOnce(&mut Building) -> Result<(), RestoreError>) -> Result<(), RestoreError> {
        match &mut self.building {
            Some(building) if building.channel.is_none() => take(building),
            _ => Err(RestoreError::Contradiction("marks belong to no channel")),
        }
    }

    /// The channel that is being read, with all its marks.
    fn channel(&mut self) -> Result<&mut Channel, RestoreError> {
        let building = self.building.as_mut().ok_or(RestoreError::Contradiction("a block belongs to no channel"))?;
        let channel = match building.channel.take() {
            Some(channel) => channel,
            None => {
                let (full, partial) = (std::mem::take(&mut building.full), std::mem::take(&mut building.partial));
                let (floor, next) = (building.head.floor, building.head.next);
                let settled = Settled::restore(floor, next, partial, full);
                let settled = settled.ok_or(RestoreError::Contradiction("marks are not in their one form"))?;
                Channel::restore(&building.head, settled)
            }
        };
        Ok(building.channel.insert(channel))
    }

    fn runs(&mut self, mut seal: Seal, runs: Vec<Run>) -> Result<(), RestoreError> {
        let is_head = self.channel()?.runs.sealed_from(0).nth(HEADS - 1).is_none();
        // Only what says its size can be without its runs.
        if let Seal::Sealed { bytes: Some(_), stays } = &mut seal {
            let room = if is_head && self.heads >= SEALED_LIST_BYTES { &mut self.heads } else { &mut self.room };
            *stays = *room >= SEALED_LIST_BYTES;
            *room -= if *stays { SEALED_LIST_BYTES } else { 0 };
        }
        let channel = self.channel()?;
        let mut all: Runs = std::mem::take(&mut channel.runs);
        let taken = all.restore_block(runs, seal, channel.next_sequence(), |run| channel.alive_in(run));
        channel.runs = all;
        taken.ok_or(RestoreError::Contradiction("runs are out of order, or nothing in a block is alive"))
    }

    fn finish_channel(&mut self) -> Result<(), RestoreError> {
        if self.building.is_none() {
            return Ok(());
        }
        self.channel()?;
        let Some(mut channel) = self.building.take().and_then(|building| building.channel) else { return Ok(()) };
        channel.restored().ok_or(RestoreError::Contradiction("what is alive is not what is stored"))?;
        let id = channel.id();
        if self.state.channels.last_key_value().is_some_and(|(before, _)| *before >= id) {
            return Err(RestoreError::Contradiction("channels are out of order"));
        }
        let names = self.state.names.get_mut(channel.kind().place());
        let names = names.ok_or(RestoreError::Contradiction("a channel has no kind"))?;
        if names.insert(NameKey(Arc::clone(channel.name())), id).is_some() {
            return Err(RestoreError::Contradiction("two channels have one name"));
        }
        self.state.channel_memory.replace(ChannelMemory::default(), ChannelMemory::of(&channel));
        self.state.channels.insert(id, Arc::new(channel));
        Ok(())
    }

    fn timers(&mut self, bucket: u64, is_sealed: bool, block: RestoredTimers) -> Result<(), RestoreError> {
        for timer in &block.timers {
            if block.released.binary_search(&timer.body).is_err() {
                *self.delayed.entry(timer.scheduled.channel).or_default() += 1;
            }
        }
        let taken = if is_sealed {
            let stays = self.room >= SEALED_TIMERS_BYTES;
            self.room -= if stays { SEALED_TIMERS_BYTES } else { 0 };
            self.state.timers.restore_sealed(bucket, block, stays)
        } else {
            self.state.timers.restore_open(bucket, block)
        };
        taken.ok_or(RestoreError::Contradiction("delayed messages are out of order"))
    }

    /// Puts those that stood one by one into blocks.
    fn finish_timers(&mut self) -> Result<(), RestoreError> {
        let mut timers = std::mem::take(&mut self.timers);
        timers.sort_unstable_by_key(|timer| timer.body);
        for timer in timers {
            if !self.state.timers.is_behind(&timer) {
                return Err(RestoreError::Contradiction("a delayed message is there twice"));
            }
            *self.delayed.entry(timer.scheduled.channel).or_default() += 1;
            self.state.timers.add(timer);
        }
        Ok(())
    }

    fn results(&mut self, record: &mut Bytes) -> Option<()> {
        let building = self.origin.as_mut()?;
        let more = take_flag(record)?;
        for _ in 0..take_number(record).ok()? {
            building.results.push(read_outcome(record)?);
        }
        if !more {
            building.batches = building.batches.checked_sub(1)?;
            building.origin.kept.push_back(std::mem::take(&mut building.results).into());
        }
        Some(())
    }

    fn finish_origin(&mut self) -> Result<(), RestoreError> {
        let Some(building) = self.origin.take() else { return Ok(()) };
        let complete = building.batches == 0 && building.results.is_empty();
        let limit = self.state.limits.origins;
        let taken = complete.then(|| self.state.origins.restore(building.node, building.origin, limit)).flatten();
        taken.ok_or(RestoreError::Contradiction("an origin is not complete"))
    }

    fn finish(mut self) -> Result<State, RestoreError> {
        self.finish_origin()?;
        self.finish_channel()?;
        self.finish_timers()?;
        for channel in self.state.channels.values() {
            let delayed = self.delayed.get(&channel.id()).copied().unwrap_or_default();
            if channel.totals.delayed != delayed {
                return Err(RestoreError::Contradiction("a channel counts other delayed messages than there are"));
            }
        }
        Ok(self.state)
    }
}

fn take_flag(from: &mut Bytes) -> Option<bool> {
    match take_byte(from).ok()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn read_head(record: &mut Bytes) -> Option<Head> {
    let id = ChannelId(take_number(record).ok()?);
    let kind = Kind::from_number(take_byte(record).ok()?)?;
    let explicit = take_flag(record)?;
    let name = Name::from_bytes(take_bytes(record).ok()?).ok()?;
    let next = take_number(record).ok()?;
    let floor = take_number(record).ok()?;
    let last_activity = take_number(record).ok()?;
    let mut totals = [0; 8];
    for total in &mut totals {
        *total = take_number(record).ok()?;
    }
    let [sent, sent_bytes, settled, settled_bytes, expired, dead_lettered, redelivered, delayed] = totals;
    let totals = Totals { sent, sent_bytes, settled, settled_bytes, expired, dead_lettered, redelivered, delayed };
    if next == 0 || next > SEQUENCE_BOUND {
        return None;
    }
    Some(Head { id, kind, explicit, name: Arc::from(name.as_str()), next, floor, last_activity, totals })
}

fn read_full(record: &mut Bytes, full: &mut Vec<(u64, u64)>) -> Result<(), Malformed> {
    for _ in 0..take_number(record)? {
        full.push((take_number(record)?, take_number(record)?));
    }
    Ok(())
}

fn read_partial(record: &mut Bytes, partial: &mut Vec<(u64, Box<Bits>)>) -> Result<(), Malformed> {
    for _ in 0..take_number(record)? {
        let block = take_number(record)?;
        let mut bits = Box::new([0; (BITMAP_BLOCK / 64) as usize]);
        for word in bits.iter_mut() {
            *word = take_word(record)?;
        }
        partial.push((block, bits));
    }
    Ok(())
}

fn read_cursors(record: &mut Bytes, version: u8, channel: &mut Channel) -> Option<()> {
    for _ in 0..take_number(record).ok()? {
        let reader = crate::cursors::Reader::decode(record).ok()?;
        let after = take_number(record).ok().filter(|after| *after < channel.next_sequence())?;
        let used = if version > WITHOUT_USE { take_number(record).ok()? } else { channel.last_activity };
        channel.cursors.restore(reader.as_bytes(), crate::cursors::Cursor { after, used })?;
    }
    (channel.kind() == Kind::EventsStore && channel.cursors.len() <= CURSORS_PER_CHANNEL).then_some(())
}

/// Reads a block of runs of a snapshot of this version, and whether it was sealed.
pub(crate) fn read_runs(record: &mut Bytes, version: u8) -> Option<(Seal, Vec<Run>)> {
    let seal = match take_flag(record)? {
        false => Seal::Open,
        true if version <= WITHOUT_SIZES => Seal::Sealed { bytes: None, stays: true },
        true => Seal::Sealed { bytes: Some(take_number(record).ok()?), stays: true },
    };
    let count = usize::try_from(take_number(record).ok()?).ok().filter(|count| *count <= RUNS_PER_BLOCK)?;
    let mut runs = Vec::with_capacity(count);
    let (mut end, mut entry) = (0_u64, 0_u64);
    for _ in 0..count {
        let first_sequence = end.checked_add(take_number(record).ok()?)?;
        entry = entry.checked_add(take_number(record).ok()?)?;
        let first_part = take_number_u16(record).ok()?;
        let count = take_number_u16(record).ok()?;
        let bytes = take_number_u32(record).ok()?;
        end = first_sequence.checked_add(u64::from(count))?;
        runs.push(Run { first_sequence, entry, first_part, count, bytes });
    }
    Some((seal, runs))
}

/// Reads a block of delayed messages: its bucket, whether it was sealed, and what is in it.
pub(crate) fn read_timers(record: &mut Bytes) -> Option<(u64, bool, RestoredTimers)> {
    let is_sealed = take_flag(record)?;
    let bucket = take_number(record).ok()?;
    let begin = bucket.checked_mul(BUCKET)?;
    let count = usize::try_from(take_number(record).ok()?).ok().filter(|count| *count <= TIMERS_PER_BLOCK)?;
    let mut timers = Vec::with_capacity(count);
    let (mut body, mut channel) = (0_u64, 0);
    for _ in 0..count {
        let due = begin.checked_add(take_number(record).ok()?)?;
        body = body.checked_add(take_number(record).ok()?)?;
        channel ^= take_number(record).ok()?;
        let expiration = Expiration(take_number_u32(record).ok()?);
        let scheduled = Scheduled { channel: ChannelId(channel), expiration, bytes: take_number_u32(record).ok()? };
        timers.push(Timer { due, body: Reference::from_word(body), scheduled });
    }
    let mut released = Vec::new();
    for _ in 0..take_number(record).ok()? {
        released.push(timers.get(usize::from(take_byte(record).ok()?))?.body);
    }
    Some((bucket, is_sealed, RestoredTimers { timers, released }))
}

/// Reads delayed messages as they stood up to version 4.
fn read_single_timers(record: &mut Bytes, timers: &mut Vec<Timer>) -> Option<()> {
    for _ in 0..take_number(record).ok()? {
        let due = take_number(record).ok()?;
        let body = Reference::from_word(take_number(record).ok()?);
        let channel = ChannelId(take_number(record).ok()?);
        let expiration = Expiration(take_number_u32(record).ok()?);
        let bytes = take_number_u32(record).ok()?;
        timers.push(Timer { due, body, scheduled: Scheduled { channel, expiration, bytes } });
    }
    Some(())
}

fn read_copies(record: &mut Bytes, names: &mut BTreeMap<NameKey, ()>) -> Option<Vec<Copy>> {
    let count = usize::try_from(take_number(record).ok()?).ok().filter(|count| *count <= COPIES_PER_BLOCK)?;
    let mut copies = Vec::with_capacity(count);
    for _ in 0..count {
        let sequence = take_number(record).ok()?;
        let body = Reference::from_word(take_number(record).ok()?);
        let time = take_number(record).ok()?;
        let expires_at = take_number(record).ok()?;
        let receive_count = take_number_u32(record).ok()?;
        let bytes = take_number_u32(record).ok()?;
        let flags = take_byte(record).ok().filter(|flags| *flags < 8)?;
        let rerouted_from = if flags & 4 == 0 { None } else { Some(shared_name(record, names)?) };
        copies.push(Copy {
            sequence,
            time,
            expires_at,
            rerouted_from,
            body,
            receive_count,
            bytes,
            cleared_policy: flags & 1 != 0,
            fresh: flags & 2 != 0,
        });
    }
    Some(copies)
}

/// A name that many copies may share; it is kept once.
fn shared_name(record: &mut Bytes, names: &mut BTreeMap<NameKey, ()>) -> Option<Arc<str>> {
    let name = Name::from_bytes(take_bytes(record).ok()?).ok()?;
    if let Some((known, ())) = names.get_key_value(name.as_bytes()) {
        return Some(Arc::clone(&known.0));
    }
    let name: Arc<str> = Arc::from(name.as_str());
    names.insert(NameKey(Arc::clone(&name)), ());
    Some(name)
}

fn read_origin(record: &mut Bytes) -> Result<BuildingOrigin, Malformed> {
    let node = take_number(record)?;
    let epoch = take_number(record)?;
    let last = take_number(record)?;
    let entry = take_number(record)?;
    let batches = take_number(record)?;
    let origin = Origin { epoch, last, kept: VecDeque::new(), entry };
    Ok(BuildingOrigin { node, origin, batches, results: Vec::new() })
}

fn read_outcome(record: &mut Bytes) -> Option<Outcome> {
    let tag = take_byte(record).ok()?;
    let first = take_number(record).ok()?;
    let second = take_number(record).ok()?;
    let flag = |number: u64| (number < 2).then_some(number == 1);
    Some(match tag {
        1 => Outcome::Stored { sequence: first, time: second },
        2 => Outcome::Scheduled { time: first, due: second },
        3 => Outcome::Settled { count: first },
        4 => Outcome::Moved { count: first },
        5 => Outcome::Purged { count: first },
        6 => Outcome::Released { count: first },
        7 => Outcome::Created { channel: ChannelId(first), new: flag(second)? },
        8 => Outcome::Deleted { existed: flag(first)? },
        9 => Outcome::Kept,
        10 => Outcome::Noted,
        11 => Outcome::Refused(match first {
            1 => Refusal::Malformed,
            2 => Refusal::Name,
            3 => Refusal::TooManyChannels,
            5 => Refusal::NotStored,
            // Up to version 3 there was a limit of the index inside the state, and 4 was said when it was reached.
            4 | 6 => Refusal::Exhausted,
            7 => Refusal::TooManyCursors,
            _ => return None,
        }),
        12 => Outcome::Trimmed { count: first },
        13 => Outcome::Opened { channel: ChannelId(first), after: second },
        14 => Outcome::Advanced { after: first },
        15 => Outcome::Forgotten { count: first },
        _ => return None,
    })
}
