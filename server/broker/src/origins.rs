//! Who sent which batches. A batch is applied when it is the next one of its origin, answered again from memory when it
//! is one of the last four, and refused otherwise, so that a retry never takes effect twice and never overtakes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::effect::{Answer, Outcome};
use crate::limits::BATCHES_KEPT;

/// A batch inside an entry.
#[derive(Clone, Copy, Debug)]
pub struct BatchView<'a> {
    /// Node that the batch came from.
    pub origin: u64,
    /// Epoch of that node's process; a later one retires the earlier.
    pub epoch: u64,
    /// Number of the batch; an epoch begins with 1.
    pub number: u64,
    /// Part of the entry that carries the first operation; the others follow it.
    pub first_part: u16,
    /// The operations, encoded.
    pub operations: &'a [Bytes],
}

/// What is known of one node's batches.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) epoch: u64,
    /// Number of the last batch that was applied.
    pub(crate) last: u64,
    /// Results of the last batches, the newest at the end.
    pub(crate) kept: VecDeque<Arc<[Outcome]>>,
    /// Entry that last carried a batch of it.
    pub(crate) entry: u64,
}

/// All nodes that sent batches.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origins {
    nodes: BTreeMap<u64, Origin>,
}

impl Origins {
    /// The latest epoch of a node of which a batch was applied.
    pub(crate) fn epoch(&self, node: u64) -> Option<u64> {
        self.nodes.get(&node).map(|origin| origin.epoch)
    }

    /// What to answer without applying the batch; `None` when it is to be applied.
    pub(crate) fn answer(&self, batch: &BatchView<'_>) -> Option<Answer> {
        let known = self.nodes.get(&batch.origin);
        if let Some(known) = known.filter(|known| known.epoch > batch.epoch) {
            return Some(Answer::Retired { epoch: known.epoch });
        }
        let (last, kept) = match known.filter(|known| known.epoch == batch.epoch) {
            Some(known) => (known.last, Some(&known.kept)),
            None => (0, None),
        };
        let expected = last.saturating_add(1);
        if batch.number == expected && last < u64::MAX {
            return None;
        }
        // The newest result is that of batch `last`.
        let results = kept.and_then(|kept| {
            let back = usize::try_from(last.checked_sub(batch.number)?).ok()?;
            kept.get(kept.len().checked_sub(back + 1)?)
        });
        Some(results.map_or(Answer::Gap { expected }, |results| Answer::Results(Arc::clone(results))))
    }

    /// Keeps the results of a batch that was applied.
    pub(crate) fn keep(&mut self, batch: &BatchView<'_>, results: Arc<[Outcome]>, entry: u64, limit: u64) {
        let known = self.nodes.get_mut(&batch.origin).filter(|known| known.epoch == batch.epoch);
        if let Some(known) = known {
            known.last = batch.number;
            known.entry = entry;
            if known.kept.len() >= BATCHES_KEPT {
                known.kept.pop_front();
            }
            known.kept.push_back(results);
            return;
        }
        let origin = Origin { epoch: batch.epoch, last: batch.number, kept: VecDeque::from([results]), entry };
        self.nodes.insert(batch.origin, origin);
        while self.nodes.len() as u64 > limit.max(1) {
            let idle = self.nodes.iter().filter(|(node, _)| **node != batch.origin);
            let Some(oldest) = idle.min_by_key(|(_, origin)| origin.entry).map(|(node, _)| *node) else { break };
            self.nodes.remove(&oldest);
        }
    }

    /// All of them, by node.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Origin)> {
        self.nodes.iter().map(|(node, origin)| (*node, origin))
    }

    /// Takes back an origin that was written down; `None` when it cannot be one.
    pub(crate) fn restore(&mut self, node: u64, origin: Origin, limit: u64) -> Option<()> {
        let fits = origin.kept.len() <= BATCHES_KEPT && origin.kept.len() as u64 <= origin.last;
        if !fits || self.nodes.len() as u64 >= limit.max(1) || self.nodes.insert(node, origin).is_some() {
            return None;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(origin: u64, epoch: u64, number: u64) -> BatchView<'static> {
        BatchView { origin, epoch, number, first_part: 1, operations: &[] }
    }

    fn result(sequence: u64) -> Arc<[Outcome]> {
        Arc::from([Outcome::Stored { sequence, time: 0 }])
    }

    /// Offers a batch and keeps its number as its result when it is to be applied.
    fn offer(origins: &mut Origins, origin: u64, epoch: u64, number: u64) -> Option<Answer> {
        let batch = batch(origin, epoch, number);
        let answer = origins.answer(&batch);
        if answer.is_none() {
            origins.keep(&batch, result(number), number, 2);
        }
        answer
    }

    #[test]
    fn only_the_next_one_is_taken_and_the_last_four_are_answered_again() {
        let mut origins = Origins::default();
        assert_eq!(offer(&mut origins, 1, 1, 2), Some(Answer::Gap { expected: 1 }));
        for number in 1..=6 {
            assert_eq!(offer(&mut origins, 1, 1, number), None);
        }
        for (number, expected) in [
            (0, Answer::Gap { expected: 7 }),
            (2, Answer::Gap { expected: 7 }),
            (3, Answer::Results(result(3))),
            (6, Answer::Results(result(6))),
            (8, Answer::Gap { expected: 7 }),
        ] {
            assert_eq!(offer(&mut origins, 1, 1, number), Some(expected), "{number}");
        }
    }

    #[test]
    fn a_later_epoch_retires_the_earlier() {
        let mut origins = Origins::default();
        assert_eq!(offer(&mut origins, 1, 5, 1), None);
        assert_eq!(offer(&mut origins, 1, 7, 2), Some(Answer::Gap { expected: 1 }));
        assert_eq!(offer(&mut origins, 1, 5, 2), None, "a gap of a later epoch retires nobody");
        assert_eq!(offer(&mut origins, 1, 7, 1), None);
        assert_eq!(offer(&mut origins, 1, 5, 3), Some(Answer::Retired { epoch: 7 }));
        assert_eq!(offer(&mut origins, 1, 7, 1), Some(Answer::Results(result(1))));
    }

    #[test]
    fn the_one_that_was_idle_longest_is_forgotten() {
        let mut origins = Origins::default();
        assert_eq!(offer(&mut origins, 1, 1, 1), None);
        assert_eq!(offer(&mut origins, 2, 1, 1), None);
        assert_eq!(offer(&mut origins, 1, 1, 2), None);
        assert_eq!(offer(&mut origins, 3, 1, 1), None);
        assert_eq!(origins.iter().map(|(node, _)| node).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(offer(&mut origins, 2, 1, 2), Some(Answer::Gap { expected: 1 }), "it must begin a new epoch");
    }
}
