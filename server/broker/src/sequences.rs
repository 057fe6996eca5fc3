//! A compact set of sequences: ascending ranges that neither touch nor overlap. It does not know whether the messages
//! that it names exist.

use bytes::{Buf, BytesMut};

use crate::codec::{put_number, take_number};
use crate::limits::SEQUENCE_RANGES;
use crate::operation::DecodeError;

/// A set of sequences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequences {
    /// First and last of each range, both included.
    ranges: Vec<(u64, u64)>,
}

impl Sequences {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A set of one.
    #[must_use]
    pub fn one(sequence: u64) -> Self {
        Self { ranges: vec![(sequence, sequence)] }
    }

    /// All from `first` to `last`, both included; empty when `last` comes before `first`.
    #[must_use]
    pub fn range(first: u64, last: u64) -> Self {
        let mut set = Self::new();
        set.add_range(first, last);
        set
    }

    /// The ranges, ascending, first and last included.
    #[must_use]
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }

    /// Every sequence, ascending. A range may be long: take only as many as are needed.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.ranges.iter().flat_map(|(first, last)| *first..=*last)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.ranges.iter().fold(0_u64, |sum, (first, last)| sum.saturating_add(last - first).saturating_add(1))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether `sequence` is one of them.
    #[must_use]
    pub fn contains(&self, sequence: u64) -> bool {
        let after = self.ranges.partition_point(|(first, _)| *first <= sequence);
        after.checked_sub(1).and_then(|place| self.ranges.get(place)).is_some_and(|(_, last)| sequence <= *last)
    }

    /// Adds a range. In ascending order this costs nothing; otherwise the set is put in order again.
    pub fn add_range(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        match self.ranges.last_mut() {
            Some((low, high)) if *low <= first && first <= high.saturating_add(1) => *high = last.max(*high),
            Some((_, high)) if first <= *high => {
                self.ranges.push((first, last));
                self.put_in_order();
            }
            _ => self.ranges.push((first, last)),
        }
    }

    /// Adds one sequence.
    pub fn add(&mut self, sequence: u64) {
        self.add_range(sequence, sequence);
    }

    fn put_in_order(&mut self) {
        self.ranges.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::with_capacity(self.ranges.len());
        for (first, last) in self.ranges.drain(..) {
            match joined.last_mut() {
                Some((_, high)) if first <= high.saturating_add(1) => *high = last.max(*high),
                _ => joined.push((first, last)),
            }
        }
        self.ranges = joined;
    }

    /// Splits into sets of at most [`SEQUENCE_RANGES`] ranges, as many as one operation may carry.
    #[must_use]
    pub fn split(self) -> Vec<Self> {
        if self.ranges.len() <= SEQUENCE_RANGES {
            return vec![self];
        }
        self.ranges.chunks(SEQUENCE_RANGES).map(|ranges| Self { ranges: ranges.to_vec() }).collect()
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        put_number(out, self.ranges.len() as u64);
        let mut from = 0;
        for (first, last) in &self.ranges {
            put_number(out, first - from);
            put_number(out, last - first);
            from = *last;
        }
    }

    pub(crate) fn decode(from: &mut impl Buf) -> Result<Self, DecodeError> {
        let count = take_number(from)?;
        // Each range takes two bytes or more, so a long list must bring its bytes along.
        if count > SEQUENCE_RANGES as u64 {
            return Err(DecodeError::TooMany);
        }
        let mut ranges: Vec<(u64, u64)> = Vec::with_capacity((count as usize).min(from.remaining() / 2));
        let mut from_sequence = 0_u64;
        for _ in 0..count {
            let first = from_sequence.checked_add(take_number(from)?).ok_or(DecodeError::Unsorted)?;
            let last = first.checked_add(take_number(from)?).ok_or(DecodeError::Unsorted)?;
            if ranges.last().is_some_and(|(_, high)| first <= high.saturating_add(1)) {
                return Err(DecodeError::Unsorted);
            }
            ranges.push((first, last));
            from_sequence = last;
        }
        Ok(Self { ranges })
    }
}

impl FromIterator<u64> for Sequences {
    /// Takes sequences in any order; repeated ones count once.
    fn from_iter<I: IntoIterator<Item = u64>>(sequences: I) -> Self {
        let mut all: Vec<u64> = sequences.into_iter().collect();
        all.sort_unstable();
        let mut set = Self::new();
        for sequence in all {
            set.add(sequence);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_and_stay_in_order() {
        for (adds, expected) in [
            (vec![(1, 1), (2, 2), (3, 5)], vec![(1, 5)]),
            (vec![(5, 6), (1, 2)], vec![(1, 2), (5, 6)]),
            (vec![(5, 6), (1, 4)], vec![(1, 6)]),
            (vec![(5, 6), (1, 9)], vec![(1, 9)]),
            (vec![(5, 9), (6, 7)], vec![(5, 9)]),
            (vec![(3, 2)], vec![]),
            (vec![(u64::MAX, u64::MAX), (u64::MAX, u64::MAX)], vec![(u64::MAX, u64::MAX)]),
            (vec![(1, 2), (5, 6), (3, 4)], vec![(1, 6)]),
        ] {
            let mut set = Sequences::new();
            for (first, last) in &adds {
                set.add_range(*first, *last);
            }
            assert_eq!(set.ranges(), expected, "{adds:?}");
            let mut out = BytesMut::new();
            set.encode(&mut out);
            assert_eq!(Sequences::decode(&mut out.freeze()), Ok(set));
        }
    }

    #[test]
    fn membership_and_length() {
        let set: Sequences = [9, 1, 2, 3, 7, 7].into_iter().collect();
        assert_eq!(set.ranges(), [(1, 3), (7, 7), (9, 9)]);
        assert_eq!(set.len(), 5);
        for sequence in 0..12 {
            assert_eq!(set.contains(sequence), set.iter().any(|one| one == sequence), "{sequence}");
        }
    }

    #[test]
    fn a_list_that_is_not_in_order_is_refused() {
        let mut out = BytesMut::new();
        for number in [2_u64, 5, 0, 1, 0] {
            put_number(&mut out, number);
        }
        assert_eq!(Sequences::decode(&mut out.freeze()), Err(DecodeError::Unsorted), "5 and 6 must be one range");
    }
}
