//! What the system's page cache keeps of the log's files: what was written last, and what was read last of what is older.
//!
//! Left to itself the kernel gives new memory to all that goes through a file, until there is none: then others wait for
//! it to be taken back, and in a container it counts as the broker's. New memory is also slow to come by where a host
//! lends it. So the log says what it will hardly read again, and the kernel uses the same pages once more. What is said
//! here is a wish: nothing that is read depends on it.

use std::collections::VecDeque;
use std::ops::Range;

/// Bytes of older files that stay in the page cache after they were read: others may follow the same reader.
pub(super) const READ_BYTES: u64 = 64 << 20;
/// Bytes that leave the page cache together.
const STRETCH: u64 = 4 << 20;

/// A part of a segment's file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Stretch {
    pub(super) segment: u64,
    pub(super) range: Range<u64>,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct PageCache {
    written: Recent,
    read: Recent,
}

impl PageCache {
    /// Keeps about `written` bytes of what was written.
    pub(super) fn new(written: u64) -> Self {
        Self { written: Recent::new(written), read: Recent::new(READ_BYTES) }
    }

    /// Notes that this was written, and returns what may leave for it.
    pub(super) fn wrote(&mut self, segment: u64, range: Range<u64>) -> Vec<Stretch> {
        self.written.add(segment, range)
    }

    /// Notes that this was read, and returns what may leave for it.
    pub(super) fn read(&mut self, segment: u64, range: Range<u64>) -> Vec<Stretch> {
        // What was written lately leaves when others have been written.
        if self.written.holds(segment, range.start) { Vec::new() } else { self.read.add(segment, range) }
    }

    /// Returns how many bytes are kept.
    pub(super) fn bytes(&self) -> u64 {
        self.written.bytes + self.read.bytes
    }
}

/// The last bytes of one kind, oldest first.
#[derive(Debug)]
struct Recent {
    most: u64,
    bytes: u64,
    stretches: VecDeque<Stretch>,
}

impl Recent {
    fn new(most: u64) -> Self {
        Self { most, bytes: 0, stretches: VecDeque::new() }
    }

    fn add(&mut self, segment: u64, range: Range<u64>) -> Vec<Stretch> {
        self.bytes += range.end.saturating_sub(range.start);
        match self.stretches.back_mut() {
            Some(last)
                if last.segment == segment
                    && last.range.end == range.start
                    && last.range.end - last.range.start < STRETCH =>
            {
                last.range.end = range.end;
            }
            _ => self.stretches.push_back(Stretch { segment, range }),
        }
        let mut left = Vec::new();
        // The newest one is still growing.
        while self.bytes > self.most && self.stretches.len() > 1 {
            let Some(oldest) = self.stretches.pop_front() else { break };
            self.bytes -= oldest.range.end.saturating_sub(oldest.range.start);
            left.push(oldest);
        }
        left
    }

    fn holds(&self, segment: u64, at: u64) -> bool {
        self.stretches.iter().any(|stretch| stretch.segment == segment && stretch.range.contains(&at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_was_written_first_leaves_first_and_never_more_than_is_too_much() {
        let mut cache = PageCache::new(16 * MIB);
        let mut gone = 0;
        for at in 0..1000 {
            for left in cache.wrote(1, at * MIB / 4..(at + 1) * MIB / 4) {
                assert_eq!((left.segment, left.range.start), (1, gone), "in order and without a gap");
                gone = left.range.end;
            }
            let written = (at + 1) * MIB / 4;
            assert_eq!(cache.bytes(), written - gone);
            assert!(
                cache.bytes() <= 16 * MIB && (gone == 0 || cache.bytes() + STRETCH >= 16 * MIB),
                "{}",
                cache.bytes()
            );
        }
        assert!(gone > 200 * MIB);
    }

    #[test]
    fn the_files_are_kept_apart() {
        let mut cache = PageCache::new(8 * MIB);
        assert!(cache.wrote(1, 60 * MIB..63 * MIB).is_empty());
        assert!(cache.wrote(2, 0..4 * MIB).is_empty());
        assert_eq!(cache.wrote(2, 4 * MIB..7 * MIB), [Stretch { segment: 1, range: 60 * MIB..63 * MIB }]);
        // One that is larger than everything stays until the next.
        let left = cache.wrote(3, 0..100 * MIB);
        assert_eq!(left.iter().map(|left| left.segment).collect::<Vec<_>>(), [2, 2]);
        assert_eq!(cache.wrote(4, 0..1), [Stretch { segment: 3, range: 0..100 * MIB }]);
    }

    #[test]
    fn who_reads_what_is_old_takes_nothing_from_what_is_new() {
        let mut cache = PageCache::new(16 * MIB);
        assert!(cache.wrote(9, 0..4 * MIB).is_empty());
        let mut left = Vec::new();
        for at in 0..200 {
            left.extend(cache.read(1, at * MIB..(at + 1) * MIB));
            assert!(cache.read(9, at % 4 * MIB..(at % 4 + 1) * MIB).is_empty(), "it leaves when others are written");
        }
        assert_eq!(cache.bytes(), 4 * MIB + READ_BYTES);
        assert!(left.iter().all(|left| left.segment == 1) && left.last().unwrap().range.end == 136 * MIB, "{left:?}");
    }
}
