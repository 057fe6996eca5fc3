//! A number for the content of a state, to compare replicas by. It needs nothing that may have left the memory, and
//! costs a walk over everything else.

use crate::channel::Channel;
use crate::codec::Checksum;
use crate::snapshot::{outcome_as_numbers, totals_as_list};
use crate::state::State;

/// The digest of a state.
pub(crate) fn digest(state: &State) -> u64 {
    let mut sum = Checksum::new();
    for number in [state.limits.channels, state.limits.origins, state.entry, state.time] {
        sum.word(number);
    }
    sum.word(state.channels.len() as u64);
    for channel in state.channels.values() {
        add_channel(&mut sum, channel);
    }
    sum.word(state.timers.count());
    sum.word(state.timers.sum());
    for (node, origin) in state.origins.iter() {
        for number in [node, origin.epoch, origin.last, origin.entry, origin.kept.len() as u64] {
            sum.word(number);
        }
        for results in &origin.kept {
            sum.word(results.len() as u64);
            for outcome in results.iter() {
                let (tag, first, second) = outcome_as_numbers(*outcome);
                sum.word(u64::from(tag));
                sum.word(first);
                sum.word(second);
            }
        }
    }
    sum.value()
}

fn add_channel(sum: &mut Checksum, channel: &Channel) {
    sum.word(channel.id().0);
    sum.word(u64::from(channel.kind().number()));
    sum.word(u64::from(channel.is_explicit()));
    sum.slice(channel.name().as_bytes());
    let numbers = [channel.next_sequence(), channel.waiting(), channel.waiting_bytes(), channel.last_activity()];
    for number in numbers.into_iter().chain(totals_as_list(channel.totals())) {
        sum.word(number);
    }
    sum.word(channel.settled.floor());
    for (first, end) in channel.settled.full() {
        sum.word(first);
        sum.word(end);
    }
    for (block, bits) in channel.settled.partial() {
        sum.word(block);
        bits.iter().for_each(|word| sum.word(*word));
    }
    for (first, block) in channel.runs.sealed() {
        for number in [*first, block.last_entry(), block.bytes(), u64::from(block.alive()), u64::from(block.sum())] {
            sum.word(number);
        }
    }
    let (open, alive) = channel.runs.open();
    sum.word(u64::from(alive));
    for run in open {
        let counts = [u64::from(run.first_part), u64::from(run.count), u64::from(run.bytes)];
        [run.first_sequence, run.entry].into_iter().chain(counts).for_each(|number| sum.word(number));
    }
    sum.word(channel.cursors.len() as u64);
    for (reader, cursor) in channel.cursors.iter() {
        sum.slice(reader);
        sum.word(cursor.after);
        sum.word(cursor.used);
    }
    for copy in channel.copies.iter() {
        let flags = u64::from(copy.cleared_policy) | u64::from(copy.fresh) << 1;
        let numbers = [copy.sequence, copy.body.word(), copy.time, copy.expires_at, u64::from(copy.receive_count)];
        for number in numbers.into_iter().chain([u64::from(copy.bytes), flags]) {
            sum.word(number);
        }
        sum.slice(copy.rerouted_from.as_deref().unwrap_or_default().as_bytes());
    }
}
