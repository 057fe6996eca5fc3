//! Delayed messages: they have a due time and no sequence yet. They lie in buckets of a minute, in the order in which
//! they came, in blocks of 64. Nothing fires by itself: the leader asks what is due and proposes its release.
//!
//! A block that is full is sealed: it keeps its place until the last of its timers is released, and which ones are is
//! told beside it. Its timers may leave the memory while the index on disk and a durable snapshot have them; whether
//! they are here is no part of the state. That is why a release says all that is needed of what it releases, and why
//! the order in which timers are due is known only to [`Soon`], which asks for what it needs.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::sync::Arc;

use bytes::Bytes;

use crate::effect::BlockKey;
use crate::limits::{ENTRY_BOUND, TIMERS_PER_BLOCK};
use crate::operation::TimerRef;
use crate::reference::Reference;
use crate::soon::Soon;
use crate::timer::{BUCKET, Key, Timer, TimerBlock, encode_timer_block};

/// What a timer costs in RAM.
const TIMER_BYTES: u64 = size_of::<Timer>() as u64;

/// What leaves the memory with the timers of a sealed block: they, and the counters of what shares them.
pub(crate) const SEALED_TIMERS_BYTES: u64 = TIMERS_PER_BLOCK as u64 * TIMER_BYTES + 16;

/// What a sealed block costs in RAM besides its timers: what is told of it, and its places in two trees.
const SEALED_BYTES: u64 = 128;

/// What a bucket costs in RAM besides its timers and blocks: itself, its place, and room for timers to come.
const BUCKET_BYTES: u64 = 384;

/// What it costs in RAM to tell that a timer of a sealed block is released.
const RELEASED_BYTES: u64 = size_of::<Reference>() as u64;

/// A block of timers that is full.
#[derive(Clone, Debug)]
pub(crate) struct Sealed {
    /// Its timers, while they are in memory.
    timers: Option<Arc<TimerBlock>>,
    /// The body of its last timer.
    last: Reference,
    /// The due times of its timers lie from here …
    earliest: u64,
    /// … to here.
    latest: u64,
    /// Those that are released, ascending; never all.
    released: Vec<Reference>,
    /// Tells its timers from all others.
    sum: u32,
}

impl Sealed {
    fn new(timers: &TimerBlock) -> Self {
        let dues = || timers.iter().map(|timer| timer.due);
        let last = timers.last().map_or(Reference::default(), |timer| timer.body);
        let (earliest, latest) = (dues().min().unwrap_or_default(), dues().max().unwrap_or_default());
        Self { timers: None, last, earliest, latest, released: Vec::new(), sum: encode_timer_block(timers).1 }
    }

    /// Its timers, while they are in memory.
    pub(crate) fn timers(&self) -> Option<&TimerBlock> {
        self.timers.as_deref()
    }

    /// Which of them are released.
    pub(crate) fn released(&self) -> &[Reference] {
        &self.released
    }

    /// Tells its timers from all others.
    pub(crate) fn sum(&self) -> u32 {
        self.sum
    }

    /// Those of `timers`, which must be its own, that are not released.
    pub(crate) fn alive<'a>(&self, timers: &'a TimerBlock) -> impl Iterator<Item = &'a Timer> {
        alive(timers, &self.released)
    }
}

fn alive<'a>(timers: &'a [Timer], released: &[Reference]) -> impl Iterator<Item = &'a Timer> {
    timers.iter().filter(|timer| released.binary_search(&timer.body).is_err())
}

/// What is due within one minute.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bucket {
    /// Full blocks, by the body of the first timer of each. Bodies come in the order of the log, so what they span does
    /// not overlap.
    sealed: BTreeMap<Reference, Sealed>,
    /// The same blocks by their earliest due time: none of their timers comes before that.
    order: BTreeSet<Key>,
    /// Fewer than 64 behind them. Those that are released stay, so that what a block spans tells which timers were in it.
    open: Vec<Timer>,
    /// Those of them that are released, ascending; never all.
    open_released: Vec<Reference>,
    /// Sealed blocks whose timers are in memory.
    here: u32,
}

/// Where a timer lies.
enum Place {
    Open(usize),
    Sealed(Reference),
}

impl Bucket {
    /// The sealed blocks from the one on that begins at `first` or behind it.
    pub(crate) fn sealed_from(&self, first: Reference) -> btree_map::Range<'_, Reference, Sealed> {
        self.sealed.range(first..)
    }

    /// The timers behind all sealed blocks, and which of them are released.
    pub(crate) fn open(&self) -> (&[Timer], &[Reference]) {
        (&self.open, &self.open_released)
    }

    /// Those behind all sealed blocks that are not released.
    pub(crate) fn open_alive(&self) -> impl Iterator<Item = &Timer> {
        alive(&self.open, &self.open_released)
    }

    fn last(&self) -> Option<Reference> {
        let open = self.open.last().map(|timer| timer.body);
        open.or_else(|| self.sealed.last_key_value().map(|(_, block)| block.last))
    }

    /// Where the timer with this key is, if it is not released. A key that never was may be taken for one of a sealed
    /// block.
    fn find(&self, (due, body): Key) -> Option<Place> {
        if self.open.first().is_some_and(|first| first.body <= body) {
            let place = self.open.binary_search_by_key(&body, |timer| timer.body).ok()?;
            let is_it = self.open.get(place).is_some_and(|timer| timer.due == due);
            return (is_it && self.open_released.binary_search(&body).is_err()).then_some(Place::Open(place));
        }
        let (first, block) = self.sealed.range(..=body).next_back()?;
        let within = body <= block.last && (block.earliest..=block.latest).contains(&due);
        (within && block.released.binary_search(&body).is_err()).then_some(Place::Sealed(*first))
    }

    fn seal(&mut self) -> Option<(Reference, Bytes)> {
        let timers: Arc<[Timer]> = std::mem::take(&mut self.open).into();
        let timers: Arc<TimerBlock> = timers.try_into().ok()?;
        let (block, _) = encode_timer_block(&timers);
        let released = std::mem::take(&mut self.open_released);
        let sealed = Sealed { timers: Some(Arc::clone(&timers)), released, ..Sealed::new(&timers) };
        Some((self.insert(timers.first()?.body, sealed), block))
    }

    fn insert(&mut self, first: Reference, block: Sealed) -> Reference {
        self.here += u32::from(block.timers.is_some());
        self.order.insert((block.earliest, first));
        self.sealed.insert(first, block);
        first
    }

    /// Notes that a timer behind all sealed blocks is released.
    fn release_open(&mut self, body: Reference) {
        if let Err(place) = self.open_released.binary_search(&body) {
            self.open_released.insert(place, body);
        }
        if self.open_released.len() == self.open.len() {
            self.open.clear();
            self.open_released.clear();
        }
    }

    /// Notes that a timer of a sealed block is released; true when it was the last one, and the block is gone.
    fn release(&mut self, first: Reference, body: Reference) -> bool {
        let Some(block) = self.sealed.get_mut(&first) else { return false };
        if let Err(place) = block.released.binary_search(&body) {
            block.released.insert(place, body);
        }
        if block.released.len() < TIMERS_PER_BLOCK {
            return false;
        }
        self.here -= u32::from(block.timers.is_some());
        self.order.remove(&(block.earliest, first));
        self.sealed.remove(&first);
        true
    }

    /// Lets blocks leave the memory of the entries up to `entry` that lie before `before`, at most `most` and the latest
    /// first. Those stay that will be looked for soon. Gives back how many left, and where to go on in this bucket.
    fn let_go(&mut self, entry: u64, most: usize, before: Key, soon: &Soon) -> (usize, Option<Key>) {
        let mut gone = 0;
        for key in self.order.range(..before).rev() {
            if gone == most {
                return (gone, Some((key.0, Reference::from_word(key.1.word().saturating_add(1)))));
            }
            let Some(block) = self.sealed.get_mut(&key.1) else { continue };
            let stays = block.last.entry() > entry || soon.needs(block.earliest, block.latest);
            if !stays && block.timers.take().is_some() {
                gone += 1;
                self.here -= 1;
            }
        }
        (gone, None)
    }

    /// Looks for what comes next.
    fn look(&self, number: u64, looking: &mut crate::soon::Looking) {
        self.open_alive().for_each(|timer| looking.offer(timer));
        for (earliest, first) in &self.order {
            if !looking.wants((*earliest, *first)) {
                return;
            }
            let Some(block) = self.sealed.get(first) else { continue };
            if looking.is_behind(block.latest) {
                continue;
            }
            match block.timers() {
                Some(timers) => block.alive(timers).for_each(|timer| looking.offer(timer)),
                None => {
                    looking.miss(BlockKey::Timers { bucket: number, first: first.word() }, (*earliest, *first));
                }
            }
        }
    }

    /// Nothing in it is due before.
    fn earliest(&self) -> Option<u64> {
        let open = self.open_alive().map(|timer| timer.due).min();
        let sealed = self.order.first().map(|(earliest, _)| *earliest);
        open.into_iter().chain(sealed).min()
    }
}

/// All delayed messages.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    buckets: BTreeMap<u64, Arc<Bucket>>,
    /// Those that are not released.
    count: u64,
    /// What each of them amounts to, added up.
    sum: u64,
    /// Those that lie behind all sealed blocks.
    open: u64,
    sealed: u64,
    /// Sealed blocks that are in memory.
    here: u64,
    /// Those that are released and not forgotten.
    released: u64,
    /// No snapshot up to this entry holds blocks.
    without_blocks: u64,
    soon: Soon,
}

/// A release found its timer.
pub(crate) struct Released {
    pub(crate) timer: Timer,
    /// The block of which it was the last one.
    pub(crate) dropped: Option<BlockKey>,
}

/// What to release, and what is needed to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Delayed messages that are due, in the order in which they should be released. None that is still away belongs
    /// before them.
    pub timers: Vec<TimerRef>,
    /// When to look again if nothing is due, in nanoseconds; nothing when there is no delayed message.
    pub look_at: Option<u64>,
    /// Blocks that must come back before anything behind those is released, in the order in which they are needed.
    pub away: Vec<BlockKey>,
}

/// Nobody releases from a copy.
impl Clone for Timers {
    fn clone(&self) -> Self {
        Self { buckets: self.buckets.clone(), soon: Soon::default(), ..*self }
    }
}

impl Timers {
    /// Whether this body lies behind all of the bucket that it would be added to.
    pub(crate) fn is_behind(&self, timer: &Timer) -> bool {
        self.buckets.get(&timer.bucket()).and_then(|bucket| bucket.last()).is_none_or(|last| last < timer.body)
    }

    /// Adds a delayed message, which must lie behind the others of its bucket. Gives back the block that it filled.
    pub(crate) fn add(&mut self, timer: Timer) -> Option<(BlockKey, Bytes)> {
        let number = timer.bucket();
        let bucket = Arc::make_mut(self.buckets.entry(number).or_default());
        bucket.open.push(timer);
        let sealed = if bucket.open.len() < TIMERS_PER_BLOCK { None } else { bucket.seal() };
        self.count_in(&timer);
        self.open += 1;
        self.soon.add(&timer);
        let (first, block) = sealed?;
        self.open -= TIMERS_PER_BLOCK as u64;
        self.sealed += 1;
        self.here += 1;
        Some((BlockKey::Timers { bucket: number, first: first.word() }, block))
    }

    /// Takes one out; nothing when it is not there or was taken before.
    pub(crate) fn release(&mut self, wanted: &TimerRef) -> Option<Released> {
        if wanted.entry >= ENTRY_BOUND {
            return None;
        }
        let key = (wanted.due, Reference::new(wanted.entry, wanted.part));
        let number = wanted.due / BUCKET;
        let shared = self.buckets.get_mut(&number)?;
        let (timer, dropped) = match shared.find(key)? {
            Place::Open(place) => {
                let bucket = Arc::make_mut(shared);
                let timer = *bucket.open.get(place)?;
                let count = bucket.open.len() as u64;
                self.released += 1;
                bucket.release_open(key.1);
                if bucket.open.is_empty() {
                    self.open -= count;
                    self.released -= count;
                }
                (timer, None)
            }
            Place::Sealed(first) => {
                let scheduled = match wanted.scheduled {
                    Some(scheduled) => scheduled,
                    // Only a release of version 1 does not say it, and no block leaves the memory of a state that may
                    // still get one.
                    None => shared.sealed.get(&first)?.timers()?.iter().find(|timer| timer.key() == key)?.scheduled,
                };
                let bucket = Arc::make_mut(shared);
                let here = bucket.here;
                self.released += 1;
                let emptied = bucket.release(first, key.1);
                if emptied {
                    self.sealed -= 1;
                    self.here -= u64::from(here - bucket.here);
                    self.released -= TIMERS_PER_BLOCK as u64;
                }
                let dropped = BlockKey::Timers { bucket: number, first: first.word() };
                (Timer { due: key.0, body: key.1, scheduled }, emptied.then_some(dropped))
            }
        };
        if shared.open.is_empty() && shared.sealed.is_empty() {
            self.buckets.remove(&number);
        }
        self.count -= 1;
        self.sum = self.sum.wrapping_sub(timer.digest());
        self.soon.remove(key);
        Some(Released { timer, dropped })
    }

    /// What is due at `now`, at most `max` of them; looks `ahead` of that, in nanoseconds, for what must come back into
    /// memory.
    ///
    /// A block is needed from its earliest due time on and until its latest was looked at. Those that were sent about
    /// the same time with one delay are needed one after the other; of a bucket whose blocks all span the whole minute
    /// all are needed together, even where that takes more than the limit of the index. Until they are released again
    /// sends are refused then, so that it is the blocks of one minute at most.
    pub(crate) fn due(&mut self, now: u64, ahead: u64, max: usize) -> Due {
        let waits = self.soon.away().first().is_some_and(|block| self.is_away(*block));
        if !waits && self.soon.lacks(now, ahead) {
            let mut looking = self.soon.look(now.saturating_add(ahead));
            let from = self.soon.until().0 / BUCKET;
            for (number, bucket) in self.buckets.range(from..) {
                if !looking.wants((number * BUCKET, Reference::default())) {
                    break;
                }
                bucket.look(*number, &mut looking);
            }
            self.soon.take(looking);
        }
        let timers = self.soon.due(now, max);
        let away = self.soon.away().iter().copied().filter(|block| self.is_away(*block)).collect();
        Due { timers, look_at: self.look_at(ahead), away }
    }

    /// When the first one is due, or a while before one is that must be looked for.
    fn look_at(&self, ahead: u64) -> Option<u64> {
        let until = self.soon.until().0;
        let first = self.soon.first();
        if first.is_some() && !self.soon.has_room() {
            return first;
        }
        let beyond = self.buckets.range(until / BUCKET..).find_map(|(_, bucket)| bucket.earliest());
        let beyond = beyond.map(|earliest| earliest.max(until).saturating_sub(ahead / 2));
        first.into_iter().chain(beyond).min()
    }

    /// Lets blocks leave the memory that a durable snapshot of entry `durable` holds, at most `most` and the latest
    /// first; begins with the last one before `before` and looks at `buckets` of them. Gives back how many left, and where
    /// to go on.
    pub(crate) fn let_go(&mut self, durable: u64, most: usize, before: Key, buckets: usize) -> (usize, Option<Key>) {
        let mut gone = 0;
        if durable <= self.without_blocks {
            return (0, None);
        }
        for (looked, (number, shared)) in self.buckets.range_mut(..=before.0 / BUCKET).rev().enumerate() {
            if gone >= most || looked >= buckets {
                let end = number.saturating_add(1).saturating_mul(BUCKET) - 1;
                return (gone, Some(before.min((end, Reference::from_word(u64::MAX)))));
            }
            let can = |block: &Sealed| block.timers.is_some() && block.last.entry() <= durable;
            if shared.here > 0 && shared.sealed.values().any(can) {
                let (left, next) = Arc::make_mut(shared).let_go(durable, most - gone, before, &self.soon);
                gone += left;
                self.here -= left as u64;
                if next.is_some() {
                    return (gone, next);
                }
            }
        }
        (gone, None)
    }

    /// Whether the timers of a sealed block are not in memory.
    pub(crate) fn is_away(&self, block: BlockKey) -> bool {
        let BlockKey::Timers { bucket, first } = block else { return false };
        let bucket = self.buckets.get(&bucket);
        let block = bucket.and_then(|bucket| bucket.sealed.get(&Reference::from_word(first)));
        block.is_some_and(|block| block.timers.is_none())
    }

    /// Takes the timers of a sealed block back into memory; false when it is not there or these are not its timers.
    pub(crate) fn bring_back(&mut self, bucket: u64, first: u64, timers: Box<TimerBlock>) -> bool {
        let Some(shared) = self.buckets.get_mut(&bucket) else { return false };
        let sum = encode_timer_block(&timers).1;
        let bucket = Arc::make_mut(shared);
        let Some(block) = bucket.sealed.get_mut(&Reference::from_word(first)) else { return false };
        if timers.first().is_none_or(|timer| timer.body.word() != first) || sum != block.sum {
            return false;
        }
        if block.timers.is_none() {
            block.timers = Some(Arc::from(timers));
            bucket.here += 1;
            self.here += 1;
        }
        true
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// A number for what they are, whatever is in memory.
    pub(crate) fn sum(&self) -> u64 {
        self.sum
    }

    /// What they cost in RAM.
    pub(crate) fn index_bytes(&self) -> u64 {
        self.buckets.len() as u64 * BUCKET_BYTES
            + self.open * TIMER_BYTES
            + self.sealed * SEALED_BYTES
            + self.released * RELEASED_BYTES
            + self.here_bytes()
    }

    /// What of that could leave the memory.
    pub(crate) fn here_bytes(&self) -> u64 {
        self.here * SEALED_TIMERS_BYTES
    }

    /// Sealed blocks whose timers are in memory.
    pub(crate) fn here(&self) -> u64 {
        self.here
    }

    /// The first bucket at `from` or behind it, and its number.
    pub(crate) fn bucket_from(&self, from: u64) -> Option<(u64, &Arc<Bucket>)> {
        self.buckets.range(from..).next().map(|(number, bucket)| (*number, bucket))
    }

    /// The sealed blocks that are in memory, as the index on disk holds them.
    pub(crate) fn sealed_blocks(&self) -> impl Iterator<Item = (BlockKey, Bytes)> + '_ {
        self.buckets.iter().flat_map(|(number, bucket)| {
            let here = bucket.sealed.iter().filter_map(|(first, block)| Some((first, block.timers()?)));
            here.map(|(first, timers)| {
                (BlockKey::Timers { bucket: *number, first: first.word() }, encode_timer_block(timers).0)
            })
        })
    }

    /// Those that are in memory and not released, in no order that means anything.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Timer> {
        self.buckets.values().flat_map(|bucket| {
            let sealed = bucket.sealed.values().filter_map(|block| Some(block.alive(block.timers()?)));
            sealed.flatten().chain(bucket.open_alive())
        })
    }

    /// Notes that snapshots up to `entry` hold no blocks: what stands in them may not leave the memory before.
    pub(crate) fn without_blocks(&mut self, entry: u64) {
        self.without_blocks = entry;
    }

    /// Takes back a sealed block that was written down; `None` when it does not belong behind the others. It stays in
    /// memory only if `stays`.
    pub(crate) fn restore_sealed(&mut self, bucket: u64, block: RestoredTimers, stays: bool) -> Option<()> {
        let first = self.check(bucket, &block)?;
        let RestoredTimers { timers, released } = block;
        let timers: Arc<[Timer]> = timers.into();
        let timers: Arc<TimerBlock> = timers.try_into().ok()?;
        let kept = stays.then(|| Arc::clone(&timers));
        self.sealed += 1;
        self.here += u64::from(stays);
        self.released += released.len() as u64;
        let sealed = Sealed { timers: kept, released, ..Sealed::new(&timers) };
        sealed.alive(&timers).for_each(|timer| self.count_in(timer));
        Arc::make_mut(self.buckets.entry(bucket).or_default()).insert(first, sealed);
        Some(())
    }

    /// Takes back what lay behind all sealed blocks of a bucket.
    pub(crate) fn restore_open(&mut self, number: u64, block: RestoredTimers) -> Option<()> {
        self.check(number, &block)?;
        let RestoredTimers { timers, released } = block;
        if timers.len() >= TIMERS_PER_BLOCK {
            return None;
        }
        self.open += timers.len() as u64;
        self.released += released.len() as u64;
        alive(&timers, &released).for_each(|timer| self.count_in(timer));
        let bucket = Arc::make_mut(self.buckets.entry(number).or_default());
        (bucket.open, bucket.open_released) = (timers, released);
        Some(())
    }

    fn count_in(&mut self, timer: &Timer) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(timer.digest());
    }

    /// Whether these follow each other behind all others, and not all of them are released; gives back the body of the
    /// first one.
    fn check(&self, number: u64, RestoredTimers { timers, released }: &RestoredTimers) -> Option<Reference> {
        let is_of_it = |body: &Reference| timers.binary_search_by_key(body, |timer| timer.body).is_ok();
        let whole = released.is_sorted_by(|a, b| a < b) && released.iter().all(is_of_it);
        if !whole || released.len() >= timers.len() {
            return None;
        }
        let bucket = self.buckets.get(&number);
        // Only the last block of a bucket may still be open.
        if bucket.is_some_and(|bucket| !bucket.open.is_empty())
            || self.buckets.range(number.saturating_add(1)..).next().is_some_and(|(later, _)| *later > number)
        {
            return None;
        }
        let mut last = bucket.and_then(|bucket| bucket.last());
        for timer in timers {
            if timer.bucket() != number || last >= Some(timer.body) || timer.body.entry() >= ENTRY_BOUND {
                return None;
            }
            last = Some(timer.body);
        }
        timers.first().map(|timer| timer.body)
    }
}

/// A block as it was written down.
#[derive(Debug)]
pub(crate) struct RestoredTimers {
    pub(crate) timers: Vec<Timer>,
    /// Those of them that were released.
    pub(crate) released: Vec<Reference>,
}
