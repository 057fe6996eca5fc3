//! What waits for a batch, each sender's in a lane of its own: who sends all he can gets his turn like any other.
//!
//! Within a lane the order of submission stays. Lanes take turns, of so many bytes each; an item that is larger is
//! taken whole.

use std::collections::{BTreeMap, VecDeque};

/// The lane of all who wait for each answer before they go on, or send nothing whose order counts.
pub(super) const COMMON: u64 = 0;

/// Bytes that one lane gives before the next one does.
const TURN: usize = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    /// The lanes that have something, with the bytes of each item.
    waiting: BTreeMap<u64, VecDeque<(usize, T)>>,
    /// The same lanes in the order of their turns.
    turns: VecDeque<u64>,
    /// What the first one has given in this turn.
    given: usize,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), turns: VecDeque::new(), given: 0 }
    }
}

impl<T> Lanes<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Puts an item behind the others of its lane.
    pub(super) fn push(&mut self, lane: u64, bytes: usize, item: T) {
        let waiting = self.waiting.entry(lane).or_insert_with(|| {
            self.turns.push_back(lane);
            VecDeque::new()
        });
        waiting.push_back((bytes, item));
    }

    /// Returns what [`Lanes::pop`] will take.
    pub(super) fn front(&self) -> Option<&T> {
        let (_, item) = self.waiting.get(self.turns.front()?)?.front()?;
        Some(item)
    }

    /// Takes the first item of the lane whose turn it is.
    pub(super) fn pop(&mut self) -> Option<T> {
        let lane = *self.turns.front()?;
        let waiting = self.waiting.get_mut(&lane)?;
        let (bytes, item) = waiting.pop_front()?;
        self.given += bytes;
        if waiting.is_empty() {
            self.waiting.remove(&lane);
            self.turns.pop_front();
            self.given = 0;
        } else if self.given >= TURN {
            self.turns.rotate_left(1);
            self.given = 0;
        }
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut lanes: Lanes<&'static str>) -> Vec<&'static str> {
        let mut taken = Vec::new();
        while let Some(next) = lanes.front().copied() {
            assert_eq!(lanes.pop(), Some(next));
            taken.push(next);
        }
        assert!(lanes.is_empty() && lanes.pop().is_none());
        taken
    }

    #[test]
    fn a_flood_leaves_every_other_its_turn() {
        let mut lanes = Lanes::default();
        for item in ["a1", "a2", "a3", "a4"] {
            lanes.push(1, TURN, item);
        }
        lanes.push(2, 10, "b1");
        lanes.push(COMMON, 10, "c1");
        lanes.push(2, 10, "b2");
        assert_eq!(all(lanes), ["a1", "b1", "b2", "c1", "a2", "a3", "a4"]);
    }

    #[test]
    fn a_turn_is_worth_so_many_bytes() {
        let mut lanes = Lanes::default();
        for (item, bytes) in [("a1", TURN / 2), ("a2", TURN / 2), ("a3", 1)] {
            lanes.push(1, bytes, item);
        }
        for item in ["b1", "b2"] {
            lanes.push(2, 2 * TURN, item);
        }
        assert_eq!(all(lanes), ["a1", "a2", "b1", "a3", "b2"]);
    }
}
