//! Where entries lie: sparse, one sample per 64 KiB, rebuilt from footers and frames at open.

use std::collections::BTreeMap;

use super::stretch::Moment;

/// Bytes of frames between two samples.
pub(crate) const SAMPLE_BYTES: u64 = 64 << 10;

/// Where the frame of an entry begins. Segment 0 is none: the entry was truncated and lies nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sample {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    /// The entry's LogTime.
    pub(crate) time: u64,
}

/// A stretch of one segment in which the entries from `from` on, before `to`, lie in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// The samples of all segments of the log.
#[derive(Debug, Default)]
pub(crate) struct Positions(BTreeMap<u64, Sample>);

impl Positions {
    pub(crate) fn insert(&mut self, index: u64, sample: Sample) {
        self.0.insert(index, sample);
    }

    /// Forgets the entries from `index` on.
    pub(crate) fn truncate_from(&mut self, index: u64) {
        self.0.split_off(&index);
        // Without this the frames behind the last sample would still be found.
        self.0.insert(index, Sample { segment: 0, offset: 0, time: 0 });
    }

    pub(crate) fn remove_segment(&mut self, number: u64) {
        self.0.retain(|_, sample| sample.segment != number);
    }

    /// Returns the stretches from the one that holds `index` on, in one segment and at most `bytes` long but
    /// for the last.
    pub(crate) fn spans(&self, index: u64, bytes: u64) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        let Some((&from, &first)) = self.0.range(..=index).next_back() else { return spans };
        if first.segment == 0 {
            return spans;
        }
        spans.push(Span { segment: first.segment, offset: first.offset, from, to: u64::MAX });
        for (&from, sample) in self.0.range(index.saturating_add(1)..) {
            if let Some(last) = spans.last_mut() {
                last.to = from;
            }
            let after = sample.offset.saturating_sub(first.offset);
            if sample.segment != first.segment || sample.offset <= first.offset || after >= bytes {
                break;
            }
            spans.push(Span { segment: sample.segment, offset: sample.offset, from, to: u64::MAX });
        }
        spans
    }

    /// Returns between which samples the entries pass `time`. Entries lie in the order of their times.
    pub(crate) fn moment(&self, time: u64) -> Moment {
        let is_alive = |(_, sample): &(&u64, &Sample)| sample.segment != 0;
        let (mut low, mut high) = match (self.0.first_key_value(), self.0.last_key_value()) {
            (Some((first, _)), Some((last, _))) => (*first, last.saturating_add(1)),
            _ => return Moment::default(),
        };
        while low < high {
            let middle = low + (high - low) / 2;
            match self.0.range(middle..high).find(is_alive) {
                Some((index, sample)) if sample.time < time => low = index + 1,
                _ => high = middle,
            }
        }
        let index = |(index, _): (&u64, &Sample)| *index;
        Moment {
            before: self.0.range(..low).rev().find(is_alive).map(index),
            from: self.0.range(low..).find(is_alive).map(index),
        }
    }

    /// Returns the time of the first sampled entry from `index` on.
    pub(crate) fn time_from(&self, index: u64) -> Option<u64> {
        self.0.range(index..).find(|(_, sample)| sample.segment != 0).map(|(_, sample)| sample.time)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Chooses which entries of a segment are sampled while it is written or scanned, and remembers those.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    pub(crate) samples: Vec<(u64, Sample)>,
    pub(crate) range: Option<(u64, u64)>,
    pub(crate) dead_from: Option<u64>,
    /// Parts but for the first of each entry.
    pub(crate) parts: u64,
    next: Option<u64>,
    sampled_at: u64,
}

impl Sampler {
    /// Notes an entry's frame at `offset`; returns its sample when it is one.
    pub(crate) fn entry(&mut self, index: u64, segment: u64, offset: u64, time: u64) -> Option<Sample> {
        let (least, greatest) = self.range.unwrap_or((index, index));
        self.range = Some((least.min(index), greatest.max(index)));
        let near = self.next == Some(index) && offset - self.sampled_at < SAMPLE_BYTES;
        self.next = Some(index + 1);
        if near {
            return None;
        }
        self.sampled_at = offset;
        let sample = Sample { segment, offset, time };
        self.samples.push((index, sample));
        Some(sample)
    }

    /// Notes that the entries from `index` on are dead.
    pub(crate) fn truncate_from(&mut self, index: u64) {
        while self.samples.last().is_some_and(|(sampled, _)| *sampled >= index) {
            self.samples.pop();
        }
        self.samples.push((index, Sample { segment: 0, offset: 0, time: 0 }));
        self.dead_from = Some(self.dead_from.map_or(index, |dead| dead.min(index)));
        self.next = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(segment: u64, offset: u64) -> Sample {
        Sample { segment, offset, time: 0 }
    }

    #[test]
    fn the_entries_of_a_stretch_are_those_between_two_samples() {
        let mut positions = Positions::default();
        positions.insert(10, sample(1, 100));
        positions.insert(20, sample(1, 1000));
        positions.insert(30, sample(2, 64));
        let span = |segment, offset, from, to| Span { segment, offset, from, to };
        assert_eq!(positions.spans(9, 9), []);
        assert_eq!(positions.spans(15, 10), [span(1, 100, 10, 20)]);
        assert_eq!(positions.spans(15, 10_000), [span(1, 100, 10, 20), span(1, 1000, 20, 30)]);
        assert_eq!(positions.spans(31, 10), [span(2, 64, 30, u64::MAX)]);
        positions.truncate_from(15);
        assert_eq!(positions.spans(14, 10_000), [span(1, 100, 10, 15)]);
        assert_eq!(positions.spans(15, 10_000), []);
        positions.insert(15, sample(2, 200));
        assert_eq!(positions.spans(16, 10), [span(2, 200, 15, u64::MAX)]);
        positions.remove_segment(1);
        assert_eq!(positions.len(), 1);
    }

    #[test]
    fn a_moment_lies_between_two_samples() {
        let mut positions = Positions::default();
        assert_eq!(positions.moment(5), Moment::default());
        for index in [10, 20, 30, 40] {
            positions.insert(index, Sample { segment: 1, offset: index, time: index * 10 });
        }
        positions.truncate_from(35);
        let rows = [
            (0, None, Some(10)),
            (100, None, Some(10)),
            (101, Some(10), Some(20)),
            (200, Some(10), Some(20)),
            (250, Some(20), Some(30)),
            (300, Some(20), Some(30)),
            (301, Some(30), None),
            (u64::MAX, Some(30), None),
        ];
        for (time, before, from) in rows {
            assert_eq!(positions.moment(time), Moment { before, from }, "{time}");
        }
    }

    #[test]
    fn a_sample_is_taken_each_64_kib_and_after_each_break() {
        let mut sampler = Sampler::default();
        assert!(sampler.entry(1, 1, 64, 0).is_some());
        assert!(sampler.entry(2, 1, 200, 0).is_none());
        assert!(sampler.entry(3, 1, 64 + SAMPLE_BYTES, 0).is_some());
        sampler.truncate_from(2);
        assert!(sampler.entry(2, 1, 70_000, 0).is_some());
        assert!(sampler.entry(9, 1, 70_100, 0).is_some(), "a jump");
        let sampled: Vec<u64> = sampler.samples.iter().map(|(index, _)| *index).collect();
        assert_eq!(sampled, [1, 2, 2, 9]);
        assert_eq!((sampler.range, sampler.dead_from), (Some((1, 9)), Some(2)));
    }
}
