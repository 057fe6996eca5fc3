//! Which sequences of a channel are settled: everything below a floor, and above it whatever is marked. Marks are bits
//! in blocks of 1024; a block with every bit set becomes part of a range and its bits are dropped. It does not know
//! which sequences were given out: its owner keeps marks below the next one.
//!
//! There is one representation for each set, so two sets are equal when their fields are.

use std::collections::BTreeMap;

use crate::limits::BITMAP_BLOCK;

const WORDS: usize = (BITMAP_BLOCK / 64) as usize;

/// One bit for each sequence of a block.
pub(crate) type Bits = [u64; WORDS];

/// What a bitmap block costs in RAM: bits, box and place in the tree.
const BLOCK_BYTES: u64 = BITMAP_BLOCK / 8 + 40;

/// What a range of full blocks costs in RAM.
const RANGE_BYTES: u64 = 32;

/// The set of settled sequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    /// Everything below is settled. The sequence itself is not, if it was given out at all.
    floor: u64,
    /// Marks above the floor; most channels have none.
    above: Option<Box<Above>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Above {
    /// Blocks with some bits set, but not all; bits below the floor are clear.
    partial: BTreeMap<u64, Box<Bits>>,
    /// Blocks with all bits set: first block to the one after the last.
    full: BTreeMap<u64, u64>,
}

impl Above {
    /// The end of the range of full blocks around `block`, as a block number.
    fn full_end(&self, block: u64) -> Option<u64> {
        self.full.range(..=block).next_back().map(|(_, end)| *end).filter(|end| block < *end)
    }

    /// The start of the range of full blocks around `block`.
    fn full_start(&self, block: u64) -> Option<u64> {
        self.full.range(..=block).next_back().filter(|(_, end)| block < **end).map(|(start, _)| *start)
    }

    fn add_full(&mut self, first: u64, end: u64) {
        let mut from = first;
        let mut to = end;
        if let Some((start, before)) = self.full.range(..first).next_back().map(|(start, end)| (*start, *end))
            && before == first
        {
            self.full.remove(&start);
            from = start;
        }
        if let Some(after) = self.full.remove(&end) {
            to = after;
        }
        self.full.insert(from, to);
    }

    /// Sets the bits of `[first, end)` inside one block.
    fn set_bits(&mut self, block: u64, first: usize, end: usize) {
        let bits = self.partial.entry(block).or_insert_with(|| Box::new([0; WORDS]));
        for (place, word) in bits.iter_mut().enumerate() {
            *word |= word_mask(place, first, end);
        }
        if bits.iter().all(|word| *word == u64::MAX) {
            self.partial.remove(&block);
            self.add_full(block, block + 1);
        }
    }

    /// Drops every mark below `floor`.
    fn trim(&mut self, floor: u64) {
        let block = floor / BITMAP_BLOCK;
        while let Some(first) = self.full.first_entry().filter(|first| *first.key() < block) {
            first.remove();
        }
        while let Some(first) = self.partial.first_entry().filter(|first| *first.key() < block) {
            first.remove();
        }
        if let Some(bits) = self.partial.get_mut(&block) {
            for (place, word) in bits.iter_mut().enumerate() {
                *word &= !word_mask(place, 0, (floor % BITMAP_BLOCK) as usize);
            }
            if bits.iter().all(|word| *word == 0) {
                self.partial.remove(&block);
            }
        }
    }
}

/// The bits of word `place` that lie in `[first, end)` of its block.
fn word_mask(place: usize, first: usize, end: usize) -> u64 {
    let low = first.saturating_sub(place * 64).min(64);
    let high = end.saturating_sub(place * 64).min(64);
    if low >= high {
        return 0;
    }
    let width = high - low;
    if width == 64 { u64::MAX } else { ((1_u64 << width) - 1) << low }
}

/// First bit at or after `from` that is `wanted`.
fn find_bit(bits: &Bits, from: usize, wanted: bool) -> Option<usize> {
    for (place, word) in bits.iter().enumerate().skip(from / 64) {
        let mut candidates = if wanted { *word } else { !*word };
        if place == from / 64 {
            candidates &= u64::MAX << (from % 64);
        }
        if candidates != 0 {
            return Some(place * 64 + candidates.trailing_zeros() as usize);
        }
    }
    None
}

/// Last clear bit at or before `from`.
fn find_clear_back(bits: &Bits, from: usize) -> Option<usize> {
    for (place, word) in bits.iter().enumerate().take(from / 64 + 1).rev() {
        let mut candidates = !*word;
        if place == from / 64 {
            candidates &= u64::MAX >> (63 - from % 64);
        }
        if candidates != 0 {
            return Some(place * 64 + 63 - candidates.leading_zeros() as usize);
        }
    }
    None
}

impl Settled {
    /// Nothing was given out yet.
    pub(crate) fn new() -> Self {
        Self { floor: 1, above: None }
    }

    /// The lowest sequence that is not settled.
    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    /// The first sequence at or after `from` that is not settled.
    pub(crate) fn next_unsettled(&self, from: u64) -> u64 {
        let mut sequence = from.max(self.floor);
        let Some(above) = &self.above else { return sequence };
        loop {
            let block = sequence / BITMAP_BLOCK;
            if let Some(end) = above.full_end(block) {
                sequence = end * BITMAP_BLOCK;
            } else if let Some(bits) = above.partial.get(&block) {
                match find_bit(bits, (sequence % BITMAP_BLOCK) as usize, false) {
                    Some(bit) => return block * BITMAP_BLOCK + bit as u64,
                    None => sequence = (block + 1) * BITMAP_BLOCK,
                }
            } else {
                return sequence;
            }
        }
    }

    /// The first settled sequence in `[from, end)`, or `end`; `from` is not below the floor.
    pub(crate) fn next_settled(&self, from: u64, end: u64) -> u64 {
        let Some(above) = &self.above else { return end };
        let mut sequence = from;
        while sequence < end {
            let block = sequence / BITMAP_BLOCK;
            if above.full_end(block).is_some() {
                return sequence;
            }
            if let Some(bits) = above.partial.get(&block)
                && let Some(bit) = find_bit(bits, (sequence % BITMAP_BLOCK) as usize, true)
            {
                return end.min(block * BITMAP_BLOCK + bit as u64);
            }
            let partial = above.partial.range(block + 1..).next().map(|(next, _)| *next);
            let full = above.full.range(block + 1..).next().map(|(next, _)| *next);
            let Some(next) = partial.into_iter().chain(full).min() else { return end };
            sequence = next * BITMAP_BLOCK;
        }
        end
    }

    /// The last sequence at or before `from` that is not settled.
    pub(crate) fn previous_unsettled(&self, from: u64) -> Option<u64> {
        let mut sequence = from;
        while sequence >= self.floor {
            let Some(above) = &self.above else { return Some(sequence) };
            let block = sequence / BITMAP_BLOCK;
            if let Some(start) = above.full_start(block) {
                sequence = (start * BITMAP_BLOCK).checked_sub(1)?;
            } else if let Some(bits) = above.partial.get(&block) {
                match find_clear_back(bits, (sequence % BITMAP_BLOCK) as usize) {
                    Some(bit) => return Some(block * BITMAP_BLOCK + bit as u64).filter(|found| *found >= self.floor),
                    None => sequence = (block * BITMAP_BLOCK).checked_sub(1)?,
                }
            } else {
                return Some(sequence);
            }
        }
        None
    }

    /// Whether `sequence` is settled.
    pub(crate) fn is_settled(&self, sequence: u64) -> bool {
        self.next_unsettled(sequence) != sequence
    }

    /// Settles `[first, end)`, of which nothing was settled before. `next` is the first sequence not yet given out.
    pub(crate) fn mark(&mut self, first: u64, end: u64, next: u64) {
        debug_assert!(self.floor <= first && first < end && end <= next, "settled: {first}..{end} of {next}");
        if first == self.floor {
            self.floor = self.next_unsettled(end);
            if self.floor >= next {
                self.above = None;
            }
            if let Some(above) = &mut self.above {
                above.trim(self.floor);
                if above.partial.is_empty() && above.full.is_empty() {
                    self.above = None;
                }
            }
            return;
        }
        let above = self.above.get_or_insert_default();
        let (mut block, last) = (first / BITMAP_BLOCK, (end - 1) / BITMAP_BLOCK);
        let low = (first % BITMAP_BLOCK) as usize;
        let high = ((end - 1) % BITMAP_BLOCK + 1) as usize;
        if block == last {
            above.set_bits(block, low, high);
            return;
        }
        if low > 0 {
            above.set_bits(block, low, BITMAP_BLOCK as usize);
            block += 1;
        }
        if block < last {
            above.add_full(block, last);
        }
        above.set_bits(last, 0, high);
    }

    /// What the marks cost in RAM.
    pub(crate) fn index_bytes(&self) -> u64 {
        self.above
            .as_ref()
            .map_or(0, |above| above.partial.len() as u64 * BLOCK_BYTES + above.full.len() as u64 * RANGE_BYTES + 64)
    }

    /// Blocks with some bits set.
    pub(crate) fn partial(&self) -> impl Iterator<Item = (u64, &Bits)> {
        self.above.iter().flat_map(|above| above.partial.iter().map(|(block, bits)| (*block, &**bits)))
    }

    /// Ranges of blocks with all bits set: first, and the one after the last.
    pub(crate) fn full(&self) -> impl Iterator<Item = (u64, u64)> {
        self.above.iter().flat_map(|above| above.full.iter().map(|(first, end)| (*first, *end)))
    }

    /// A set that was written down. `None` when it is not the one representation of a set below `next`.
    pub(crate) fn restore(
        floor: u64,
        next: u64,
        partial: Vec<(u64, Box<Bits>)>,
        full: Vec<(u64, u64)>,
    ) -> Option<Self> {
        if floor == 0 || floor > next {
            return None;
        }
        let mut above = Above::default();
        let mut before: Option<u64> = None;
        for (first, end) in full {
            let apart = before.is_none_or(|before| before < first);
            let inside = first > floor / BITMAP_BLOCK && first < end && end <= next / BITMAP_BLOCK;
            if !apart || !inside {
                return None;
            }
            before = Some(end);
            above.full.insert(first, end);
        }
        for (block, bits) in partial {
            let start = block.checked_mul(BITMAP_BLOCK)?;
            let below = floor.saturating_sub(start).min(BITMAP_BLOCK) as usize;
            let beyond = next.saturating_sub(start).min(BITMAP_BLOCK) as usize;
            let stray = bits.iter().enumerate().any(|(place, word)| word & !word_mask(place, below, beyond) != 0);
            let empty = bits.iter().all(|word| *word == 0);
            let whole = bits.iter().all(|word| *word == u64::MAX);
            if stray || empty || whole || above.full_end(block).is_some() || above.partial.insert(block, bits).is_some()
            {
                return None;
            }
        }
        let above = (!above.partial.is_empty() || !above.full.is_empty()).then(|| Box::new(above));
        let settled = Self { floor, above };
        // The floor itself must be open, or there would be another way to write the same set.
        (settled.next_unsettled(floor) == floor && (floor < next || settled.above.is_none())).then_some(settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Marks ranges in a plain list beside the set and compares every question after every step.
    fn check(next: u64, ranges: &[(u64, u64)]) -> Settled {
        let mut settled = Settled::new();
        let mut plain = vec![false; next as usize];
        plain[0] = true;
        for (first, end) in ranges.iter().copied() {
            settled.mark(first, end, next);
            plain[first as usize..end as usize].fill(true);
            let open = |from: u64| (from..next).find(|one| !plain[*one as usize]);
            assert_eq!(settled.floor(), open(0).unwrap_or(next), "after {first}..{end}");
            for from in (0..next).step_by(7).chain([next - 1]) {
                assert_eq!(settled.next_unsettled(from).min(next), open(from).unwrap_or(next), "from {from}");
                let back = (1..=from).rev().find(|one| !plain[*one as usize]);
                assert_eq!(settled.previous_unsettled(from), back, "back from {from}");
                if from >= settled.floor() {
                    let marked = (from..next).find(|one| plain[*one as usize]);
                    assert_eq!(settled.next_settled(from, next), marked.unwrap_or(next), "marked from {from}");
                }
            }
            let partial = settled.partial().map(|(block, bits)| (block, Box::new(*bits))).collect();
            let again = Settled::restore(settled.floor(), next, partial, settled.full().collect());
            assert_eq!(again.as_ref(), Some(&settled), "written down and read again");
        }
        settled
    }

    #[test]
    fn in_order_there_is_nothing_but_a_floor() {
        let settled = check(3000, &[(1, 2), (2, 3), (3, 1500), (1500, 2999)]);
        assert_eq!(settled, Settled { floor: 2999, above: None });
        assert_eq!(settled.index_bytes(), 0);
    }

    #[test]
    fn an_old_one_does_not_hold_what_came_after_it() {
        let settled = check(10_000, &[(2, 1024), (1024, 5120), (5120, 5121), (6144, 9999), (5121, 6144)]);
        assert_eq!(settled.full().collect::<Vec<_>>(), [(1, 9)]);
        assert_eq!(settled.partial().map(|(block, _)| block).collect::<Vec<_>>(), [0, 9]);
    }

    #[test]
    fn all_settled_leaves_nothing() {
        let settled = check(4097, &[(2, 4097), (1, 2)]);
        assert_eq!(settled, Settled { floor: 4097, above: None });
    }

    #[test]
    fn the_floor_stops_inside_a_block() {
        check(4000, &[(100, 200), (1, 100), (300, 2500), (202, 203), (200, 202), (203, 300)]);
        check(4000, &[(3000, 4000), (1025, 2048), (2, 1024), (1, 2), (2500, 2600), (1024, 1025), (2048, 2500)]);
    }

    #[test]
    fn what_is_no_set_is_refused() {
        let bits = |word: u64| {
            let mut bits = Box::new([0; WORDS]);
            bits[0] = word;
            bits
        };
        for (floor, next, partial, full) in [
            (0, 10, vec![], vec![]),
            (11, 10, vec![], vec![]),
            (5, 10, vec![(0, bits(1 << 5))], vec![]),
            (5, 10, vec![(0, bits(1 << 4))], vec![]),
            (5, 10, vec![(0, bits(1 << 10))], vec![]),
            (5, 10, vec![(0, bits(0))], vec![]),
            (5, 4096, vec![(1, Box::new([u64::MAX; WORDS]))], vec![]),
            (5, 4096, vec![(1, bits(1))], vec![(1, 2)]),
            (5, 4096, vec![(u64::MAX, bits(1))], vec![]),
            (5, 4096, vec![], vec![(0, 1)]),
            (5, 4096, vec![], vec![(1, 5)]),
            (5, 4096, vec![], vec![(1, 2), (2, 3)]),
            (5, 4096, vec![], vec![(2, 2)]),
            (5, 4096, vec![], vec![(3, 4), (1, 2)]),
        ] {
            assert_eq!(Settled::restore(floor, next, partial.clone(), full.clone()), None, "{floor} {next} {full:?}");
        }
    }
}
