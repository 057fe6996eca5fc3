//! One delayed message, and a block of 64 of them as bytes for the index on disk.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::channel::ChannelId;
use crate::codec::{Checksum, close_block, open_block};
use crate::limits::TIMERS_PER_BLOCK;
use crate::operation::TimerRef;
use crate::reference::Reference;

const SECOND: u64 = 1_000_000_000;

/// The span of time that one bucket is for.
pub(crate) const BUCKET: u64 = 60 * SECOND;

/// Layout of a block in the index on disk.
const BLOCK_VERSION: u8 = 2;

/// When a delayed message is due, and where its body lies: they are released in this order.
pub(crate) type Key = (u64, Reference);

/// 64 delayed messages.
pub(crate) type TimerBlock = [Timer; TIMERS_PER_BLOCK];

/// A delayed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timer {
    /// When it is due, in nanoseconds.
    pub(crate) due: u64,
    /// Where its body lies.
    pub(crate) body: Reference,
    /// What becomes of it then.
    pub(crate) scheduled: Scheduled,
}

const _: () = assert!(size_of::<Timer>() == 32, "the memory budget counts 32 bytes per timer");

impl Timer {
    pub(crate) fn key(&self) -> Key {
        (self.due, self.body)
    }

    /// The bucket that it lies in.
    pub(crate) fn bucket(&self) -> u64 {
        self.due / BUCKET
    }

    /// A number for all of its content.
    pub(crate) fn digest(&self) -> u64 {
        let Scheduled { channel, expiration, bytes } = self.scheduled;
        let mut sum = Checksum::new();
        for number in [self.due, self.body.word(), channel.0, u64::from(expiration.0), u64::from(bytes)] {
            sum.word(number);
        }
        sum.value()
    }
}

/// What becomes of a delayed message when it is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scheduled {
    pub(crate) channel: ChannelId,
    pub(crate) expiration: Expiration,
    pub(crate) bytes: u32,
}

impl Scheduled {
    /// It will be stored in `channel`, expires so many milliseconds later (0 for never), and has this size.
    #[must_use]
    pub fn new(channel: ChannelId, expiration_ms: u64, bytes: u32) -> Self {
        Self { channel, expiration: Expiration::from_ms(expiration_ms), bytes }
    }

    /// The delayed message of which this is said, as a release names it.
    pub(crate) fn reference(self, (due, body): Key) -> TimerRef {
        TimerRef { due, entry: body.entry(), part: body.part(), scheduled: Some(self) }
    }
}

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

/// A block as bytes for the index on disk: version, timers, checksum. With it comes the half of the checksum that is
/// kept in memory.
pub(crate) fn encode_timer_block(timers: &TimerBlock) -> (Bytes, u32) {
    let mut out = BytesMut::with_capacity(1 + size_of::<TimerBlock>() + 8);
    out.put_u8(BLOCK_VERSION);
    for timer in timers {
        out.put_u64_le(timer.due);
        out.put_u64_le(timer.body.word());
        out.put_u64_le(timer.scheduled.channel.0);
        out.put_u32_le(timer.scheduled.expiration.0);
        out.put_u32_le(timer.scheduled.bytes);
    }
    close_block(out)
}

/// Reads a block back. `None` when its bytes are damaged or of another version.
pub(crate) fn decode_timer_block(block: &Bytes) -> Option<Box<TimerBlock>> {
    let mut rest = open_block(block, BLOCK_VERSION)?;
    let mut timers = Vec::with_capacity(TIMERS_PER_BLOCK);
    for _ in 0..TIMERS_PER_BLOCK {
        timers.push(take_timer(&mut rest)?);
    }
    let timers: Box<TimerBlock> = timers.into_boxed_slice().try_into().ok()?;
    rest.is_empty().then_some(timers)
}

fn take_timer(from: &mut Bytes) -> Option<Timer> {
    let due = from.try_get_u64_le().ok()?;
    let body = Reference::from_word(from.try_get_u64_le().ok()?);
    let channel = ChannelId(from.try_get_u64_le().ok()?);
    let expiration = Expiration(from.try_get_u32_le().ok()?);
    let bytes = from.try_get_u32_le().ok()?;
    Some(Timer { due, body, scheduled: Scheduled { channel, expiration, bytes } })
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_block_comes_back_and_no_damaged_one_does() {
        let scheduled = Scheduled::new(ChannelId(7), 9_000, 12);
        let timers: TimerBlock =
            std::array::from_fn(|place| Timer { due: 5, body: Reference::new(place as u64 + 1, 2), scheduled });
        let (block, _) = encode_timer_block(&timers);
        assert_eq!(decode_timer_block(&block).as_deref(), Some(&timers));
        for bit in 0..block.len() * 8 {
            let mut damaged = block.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_timer_block(&damaged.into()), None, "bit {bit}");
        }
        for length in 0..block.len() {
            assert_eq!(decode_timer_block(&block.slice(..length)), None, "{length} bytes");
        }
    }
}
