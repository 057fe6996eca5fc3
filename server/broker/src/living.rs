//! Which bodies are still referred to, in the order of the log: what may not be removed from disk. It merges channels
//! as it goes and never lists all of their messages at once.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::channel::Channel;
use crate::reference::Reference;
use crate::state::State;

/// Parts of one entry that follow each other.
type Stretch = (u64, u32);

type Stretches<'a> = Box<dyn Iterator<Item = Stretch> + Send + 'a>;

/// Walks over `(entry, first part, how many parts)`, ascending; neighbours are joined.
pub struct Living<'a> {
    /// Each ascending.
    sources: Vec<Stretches<'a>>,
    /// The next stretch of each source that has one.
    next: BinaryHeap<Reverse<(Stretch, usize)>>,
}

impl std::fmt::Debug for Living<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Living").field("sources", &self.sources.len()).finish_non_exhaustive()
    }
}

/// Every body that `state` refers to.
pub(crate) fn living(state: &State) -> Living<'_> {
    let mut sources: Vec<Stretches<'_>> = Vec::new();
    let mut single: Vec<u64> = Vec::new();
    for channel in state.channels.values() {
        if channel.runs.count() > 0 {
            sources.push(Box::new(of_runs(channel)));
        }
        single.extend(channel.copies.iter().map(|copy| copy.body.word()));
    }
    // A timer of a deleted channel will be ignored, so its body is not needed.
    let timers = state.timers.iter().filter(|timer| state.channels.contains_key(&timer.channel));
    single.extend(timers.map(|timer| timer.body.word()));
    single.sort_unstable();
    sources.push(Box::new(single.into_iter().map(|word| (word, 1))));

    let mut next = BinaryHeap::with_capacity(sources.len());
    for (place, source) in sources.iter_mut().enumerate() {
        next.extend(source.next().map(|stretch| Reverse((stretch, place))));
    }
    Living { sources, next }
}

fn of_runs(channel: &Channel) -> impl Iterator<Item = Stretch> + '_ {
    let runs = channel.runs.blocks().flat_map(|(_, block)| block.runs());
    runs.flat_map(|run| {
        let ranges = channel.alive_ranges(run.first_sequence, run.end());
        ranges.map(|(first, end)| (run.reference(first).word(), (end - first) as u32))
    })
}

impl Living<'_> {
    fn take(&mut self) -> Option<Stretch> {
        let Reverse((stretch, place)) = self.next.pop()?;
        let following = self.sources.get_mut(place).and_then(Iterator::next);
        self.next.extend(following.map(|stretch| Reverse((stretch, place))));
        Some(stretch)
    }
}

impl Iterator for Living<'_> {
    type Item = (u64, u16, u32);

    fn next(&mut self) -> Option<Self::Item> {
        let (start, mut count) = self.take()?;
        let entry = Reference::from_word(start).entry();
        while let Some(Reverse(((following, more), _))) = self.next.peek().copied() {
            let end = start + u64::from(count);
            if following > end || Reference::from_word(following).entry() != entry {
                break;
            }
            // Joined; or named twice, which would be harmless.
            count = count.max((following - start) as u32 + more);
            self.take();
        }
        Some((entry, Reference::from_word(start).part(), count))
    }
}
