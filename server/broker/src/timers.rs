//! Delayed messages: they have a due time and no sequence yet. Near ones are kept in order, a second at a time; far ones
//! lie unsorted in buckets of ten minutes, in blocks of 64, until their bucket comes near. Nothing fires by itself: the
//! leader asks what is due and proposes its release.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::channel::ChannelId;
use crate::codec::Checksum;
use crate::limits::TIMERS_PER_BLOCK;
use crate::operation::TimerRef;
use crate::reference::Reference;

const SECOND: u64 = 1_000_000_000;

/// The span of a far bucket.
const BUCKET: u64 = 600 * SECOND;

/// Layout of a far block in the index on disk.
const BLOCK_VERSION: u8 = 1;

/// What a near timer costs in RAM, its share of tree nodes included.
const NEAR_BYTES: u64 = 56;

/// What a far timer costs in RAM.
const FAR_BYTES: u64 = size_of::<Timer>() as u64;

/// What a block of far timers costs besides them.
const BLOCK_BYTES: u64 = 56;

/// A delayed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Timer {
    /// When it is due, in nanoseconds.
    pub(crate) due: u64,
    /// Where its body lies.
    pub(crate) body: Reference,
    /// The channel that it will be stored in.
    pub(crate) channel: ChannelId,
    /// Its time to live from its release on.
    pub(crate) expiration: Expiration,
    /// Its size.
    pub(crate) bytes: u32,
}

const _: () = assert!(size_of::<Timer>() == 32, "the memory budget counts 32 bytes per far timer");

/// A time to live in half a word: milliseconds up to 24 days, whole seconds (rounded up) beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Expiration(pub(crate) u32);

const IN_SECONDS: u32 = 1 << 31;

impl Expiration {
    /// A time to live; 0 is for ever.
    pub(crate) fn from_ms(ms: u64) -> Self {
        match u32::try_from(ms) {
            Ok(ms) if ms < IN_SECONDS => Self(ms),
            _ => Self(IN_SECONDS | u32::try_from(ms.div_ceil(1000)).unwrap_or(u32::MAX)),
        }
    }

    /// When something expires that became visible at `time`; 0 for never.
    pub(crate) fn from(self, time: u64) -> u64 {
        if self.0 == 0 {
            return 0;
        }
        let nanos = if self.0 & IN_SECONDS == 0 {
            u64::from(self.0) * 1_000_000
        } else {
            u64::from(self.0 & !IN_SECONDS) * SECOND
        };
        time.saturating_add(nanos)
    }
}

/// What is kept of a near timer besides its key.
#[derive(Clone, Copy, Debug)]
struct Near {
    channel: ChannelId,
    expiration: Expiration,
    bytes: u32,
}

impl Near {
    fn timer(self, (due, body): (u64, Reference)) -> Timer {
        Timer { due, body, channel: self.channel, expiration: self.expiration, bytes: self.bytes }
    }
}

type Second = BTreeMap<(u64, Reference), Near>;

/// A block of far timers that is full.
#[derive(Debug)]
pub(crate) struct SealedTimers {
    pub(crate) bucket: u64,
    pub(crate) number: u64,
    pub(crate) bytes: Bytes,
}

/// All delayed messages.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timers {
    /// By due second; in it by due time and body.
    near: BTreeMap<u64, Arc<Second>>,
    near_count: u64,
    /// By bucket; blocks of at most 64.
    far: BTreeMap<u64, Vec<Arc<Vec<Timer>>>>,
    far_count: u64,
    far_blocks: u64,
    /// Buckets below this one are near.
    horizon: u64,
}

impl Timers {
    /// Lets time go on to `time`: buckets that end within ten minutes or more become near. Names the full blocks that
    /// are needed no more.
    pub(crate) fn advance(&mut self, time: u64, dropped: &mut Vec<(u64, u64)>) {
        let horizon = time / BUCKET + 2;
        if horizon <= self.horizon {
            return;
        }
        self.horizon = horizon;
        while let Some(first) = self.far.first_entry().filter(|first| *first.key() < horizon) {
            let (bucket, blocks) = first.remove_entry();
            self.far_blocks -= blocks.len() as u64;
            for (number, block) in blocks.into_iter().enumerate() {
                self.far_count -= block.len() as u64;
                if block.len() == TIMERS_PER_BLOCK {
                    dropped.push((bucket, number as u64));
                }
                for timer in block.iter() {
                    self.add_near(*timer);
                }
            }
        }
    }

    fn add_near(&mut self, timer: Timer) {
        let second = Arc::make_mut(self.near.entry(timer.due / SECOND).or_default());
        let near = Near { channel: timer.channel, expiration: timer.expiration, bytes: timer.bytes };
        if second.insert((timer.due, timer.body), near).is_none() {
            self.near_count += 1;
        }
    }

    /// Adds a delayed message.
    pub(crate) fn add(&mut self, timer: Timer) -> Option<SealedTimers> {
        let bucket = timer.due / BUCKET;
        if bucket < self.horizon {
            self.add_near(timer);
            return None;
        }
        let blocks = self.far.entry(bucket).or_default();
        self.far_count += 1;
        let number = blocks.len() as u64;
        match blocks.last_mut() {
            Some(last) if last.len() < TIMERS_PER_BLOCK => {
                let timers = Arc::make_mut(last);
                timers.push(timer);
                if timers.len() == TIMERS_PER_BLOCK {
                    return Some(SealedTimers { bucket, number: number - 1, bytes: encode_timer_block(timers) });
                }
            }
            _ => {
                blocks.push(Arc::new(vec![timer]));
                self.far_blocks += 1;
            }
        }
        None
    }

    /// Takes a near one out.
    pub(crate) fn take(&mut self, due: u64, body: Reference) -> Option<Timer> {
        let second = self.near.get_mut(&(due / SECOND))?;
        if !second.contains_key(&(due, body)) {
            return None;
        }
        let timers = Arc::make_mut(second);
        let near = timers.remove(&(due, body))?;
        self.near_count -= 1;
        if timers.is_empty() {
            self.near.remove(&(due / SECOND));
        }
        Some(near.timer((due, body)))
    }

    /// At most `max` of those that are due at `now`, in the order of their due times.
    pub(crate) fn due(&self, now: u64, max: usize) -> Vec<TimerRef> {
        let to = (now, Reference::from_word(u64::MAX));
        let seconds = self.near.range(..=now / SECOND);
        let due = seconds.flat_map(|(_, second)| second.range(..=to));
        due.take(max).map(|((due, body), _)| TimerRef { due: *due, entry: body.entry(), part: body.part() }).collect()
    }

    /// When the first one is due, or a little before while all of them are far.
    pub(crate) fn next_due(&self) -> Option<u64> {
        let near = self.near.first_key_value().and_then(|(_, second)| second.first_key_value());
        let far = || self.far.first_key_value().map(|(bucket, _)| bucket * BUCKET);
        near.map(|((due, _), _)| *due).or_else(far)
    }

    /// Takes some out, at least `wanted` while there are as many, in the order of [`Timers::iter`]; false when none was
    /// left. It does not keep the counts: what is left is only good for being taken.
    pub(crate) fn take_some(&mut self, wanted: usize, out: &mut Vec<Timer>) -> bool {
        while out.len() < wanted {
            if let Some((_, second)) = self.near.pop_first() {
                out.extend(second.iter().map(|(key, near)| near.timer(*key)));
            } else if let Some((_, blocks)) = self.far.pop_first() {
                out.extend(blocks.iter().flat_map(|block| block.iter().copied()));
            } else {
                break;
            }
        }
        !out.is_empty()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.near_count + self.far_count
    }

    /// What they cost in RAM.
    pub(crate) fn index_bytes(&self) -> u64 {
        self.near_count * NEAR_BYTES + self.far_count * FAR_BYTES + self.far_blocks * BLOCK_BYTES
    }

    /// The full blocks of far ones: bucket, number in it, and bytes for the index on disk.
    pub(crate) fn sealed_blocks(&self) -> impl Iterator<Item = (u64, u64, Bytes)> + '_ {
        self.far.iter().flat_map(|(bucket, blocks)| {
            let full = blocks.iter().enumerate().filter(|(_, block)| block.len() == TIMERS_PER_BLOCK);
            full.map(|(number, block)| (*bucket, number as u64, encode_timer_block(block)))
        })
    }

    /// All of them: near ones in order, then far ones by bucket, in the order in which they came.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Timer> + '_ {
        let near = self.near.values().flat_map(|second| second.iter()).map(|(key, near)| near.timer(*key));
        near.chain(self.far.values().flatten().flat_map(|block| block.iter().copied()))
    }
}

/// A block as bytes for the index on disk: version, count, timers, checksum.
fn encode_timer_block(timers: &[Timer]) -> Bytes {
    let mut out = BytesMut::with_capacity(2 + size_of_val(timers) + 8);
    out.put_u8(BLOCK_VERSION);
    out.put_u8(timers.len() as u8);
    for timer in timers {
        out.put_u64_le(timer.due);
        out.put_u64_le(timer.body.word());
        out.put_u64_le(timer.channel.0);
        out.put_u32_le(timer.expiration.0);
        out.put_u32_le(timer.bytes);
    }
    let mut sum = Checksum::new();
    sum.slice(&out);
    out.put_u64_le(sum.value());
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timer(due: u64, entry: u64) -> Timer {
        let body = Reference::new(entry, 1);
        Timer { due, body, channel: ChannelId(1), expiration: Expiration(0), bytes: 10 }
    }

    #[test]
    fn expirations_keep_their_length() {
        for (ms, nanos) in [
            (1, 1_000_000),
            (43_200_000, 43_200 * SECOND),
            (u64::from(IN_SECONDS) - 1, (u64::from(IN_SECONDS) - 1) * 1_000_000),
            (u64::from(IN_SECONDS), 2_147_484 * SECOND),
            (u64::MAX, u64::from(IN_SECONDS - 1) * SECOND),
        ] {
            assert_eq!(Expiration::from_ms(ms).from(5), 5 + nanos, "{ms}");
        }
        assert_eq!(Expiration::from_ms(0).from(5), 0);
    }

    #[test]
    fn far_ones_come_near_and_fire_in_order() {
        let mut timers = Timers::default();
        let mut dropped = Vec::new();
        timers.advance(BUCKET, &mut dropped);
        let mut sealed = 0;
        for entry in 0..200 {
            // Two thirds of them in far buckets, later ones first.
            let due = BUCKET * (2 + entry % 3) + (200 - entry) * SECOND / 3;
            sealed += u64::from(timers.add(timer(due, entry)).is_some());
        }
        assert_eq!(sealed, 2, "two far buckets with 66 and 67 each");
        assert_eq!(timers.count(), 200);
        assert_eq!(timers.far_count, 133);
        assert!(timers.due(BUCKET * 9, 1000).len() == 67, "far ones are not due before they came near");
        timers.advance(BUCKET * 9, &mut dropped);
        assert_eq!(dropped, [(3, 0), (4, 0)]);
        let due = timers.due(BUCKET * 9, 1000);
        assert_eq!(due.len(), 200);
        assert!(due.windows(2).all(|pair| pair[0] < pair[1]));
        let middle = due[100];
        let before = timers.due(middle.due, 1000);
        assert_eq!(before.last(), Some(&middle), "up to now, now included");
        assert_eq!(timers.next_due(), Some(due[0].due));
        for one in &due {
            let body = Reference::new(one.entry, one.part);
            assert!(timers.take(one.due, body).is_some());
            assert!(timers.take(one.due, body).is_none(), "only once");
        }
        assert_eq!((timers.count(), timers.index_bytes(), timers.next_due()), (0, 0, None));
        assert!(timers.near.is_empty() && timers.far.is_empty());
    }

    #[test]
    fn a_far_one_tells_when_to_look_again() {
        let mut timers = Timers::default();
        timers.advance(BUCKET, &mut Vec::new());
        assert!(timers.add(timer(BUCKET * 7 + 5, 1)).is_none());
        assert_eq!(timers.next_due(), Some(BUCKET * 7));
        assert!(timers.due(BUCKET * 8, 10).is_empty());
    }
}
