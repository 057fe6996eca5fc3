//! Which bodies are still referred to: what may not be removed from disk. It goes from channel to channel and lists some
//! thousand ranges at a time, in no order that means anything; a body may be named twice.

use std::sync::Arc;

use bytes::Bytes;

use crate::channel::{Channel, ChannelId};
use crate::previous::{Piece, Previous};
use crate::reference::Reference;
use crate::restore::RestoreError;
use crate::runs::Run;
use crate::state::State;
use crate::timer::Timer;

/// Ranges in one piece, and some more.
const PER_PIECE: usize = 4096;

/// An entry, the first part of it, and how many parts from there.
pub type LivingRange = (u64, u16, u16);

/// Where the walk goes on.
#[derive(Debug)]
enum Stage {
    /// The first channel behind this one.
    After(Option<ChannelId>),
    /// Sealed blocks of a channel from this sequence on.
    Runs(Arc<Channel>, u64),
    /// Blocks of delayed messages from this bucket, and from this one in it on.
    Timers(u64, Reference),
    Done,
}

/// Walks over every body that a state refers to.
#[derive(Debug)]
pub struct LivingWalk {
    state: State,
    stage: Stage,
    previous: Previous,
    out: Vec<LivingRange>,
}

impl LivingWalk {
    pub(crate) fn new(state: State) -> Self {
        Self { state, stage: Stage::After(None), previous: Previous::default(), out: Vec::new() }
    }

    /// The next ranges: an entry, the first part of it, and how many parts from there.
    ///
    /// # Errors
    ///
    /// What left the memory is not in the chunks that were handed over.
    pub fn next_piece(&mut self) -> Result<Piece<Vec<LivingRange>>, RestoreError> {
        while self.out.len() < PER_PIECE {
            match std::mem::replace(&mut self.stage, Stage::Done) {
                Stage::After(before) => self.stage = self.channel_after(before),
                Stage::Runs(channel, from) => {
                    let (stage, needs_more) = self.runs(channel, from)?;
                    self.stage = stage;
                    if needs_more {
                        return Ok(Piece::Previous);
                    }
                }
                Stage::Timers(bucket, from) => {
                    let (stage, needs_more) = self.timers(bucket, from)?;
                    self.stage = stage;
                    if needs_more {
                        return Ok(Piece::Previous);
                    }
                }
                Stage::Done => break,
            }
        }
        if self.out.is_empty() { Ok(Piece::End) } else { Ok(Piece::Next(std::mem::take(&mut self.out))) }
    }

    /// Hands over the next chunk of the newest durable snapshot; nothing when there is none.
    pub fn feed(&mut self, chunk: Option<Bytes>) {
        self.previous.feed(chunk);
    }

    /// All ranges at once, of a state of which nothing left the memory.
    ///
    /// # Errors
    ///
    /// Something did.
    pub fn all(mut self) -> Result<Vec<LivingRange>, RestoreError> {
        let mut ranges = Vec::new();
        loop {
            match self.next_piece()? {
                Piece::Next(some) => ranges.extend(some),
                Piece::Previous => self.feed(None),
                Piece::End => return Ok(ranges),
            }
        }
    }

    fn channel_after(&mut self, before: Option<ChannelId>) -> Stage {
        let from = before.map_or(0, |id| id.0.saturating_add(1));
        match self.state.channels.range(ChannelId(from)..).next() {
            Some((_, channel)) => Stage::Runs(Arc::clone(channel), 0),
            None => Stage::Timers(0, Reference::default()),
        }
    }

    /// Lists the next block of a channel; says what comes next, and whether more of the snapshot before is needed first.
    fn runs(&mut self, channel: Arc<Channel>, from: u64) -> Result<(Stage, bool), RestoreError> {
        let Some((first, block)) = channel.runs.sealed_from(from).next() else {
            self.list(&channel, channel.runs.open().0);
            self.out.extend(channel.copies.iter().map(|copy| (copy.body.entry(), copy.body.part(), 1)));
            return Ok((Stage::After(Some(channel.id())), false));
        };
        let next = first + 1;
        match block.runs() {
            Some(runs) => self.list(&channel, runs),
            None => match self.previous.runs(channel.id(), *first, block.sum())? {
                Some(runs) => self.list(&channel, &runs),
                None => return Ok((Stage::Runs(channel, from), true)),
            },
        }
        Ok((Stage::Runs(channel, next), false))
    }

    fn list(&mut self, channel: &Channel, runs: &[Run]) {
        for run in runs {
            for (first, end) in channel.alive_ranges(run.first_sequence, run.end()) {
                let body: Reference = run.reference(first);
                self.out.push((body.entry(), body.part(), (end - first) as u16));
            }
        }
    }

    /// Lists the next block of delayed messages; says what comes next, and whether more of the snapshot before is needed
    /// first.
    fn timers(&mut self, wanted: u64, from: Reference) -> Result<(Stage, bool), RestoreError> {
        let none = Reference::default();
        let Some((number, bucket)) = self.state.timers.bucket_from(wanted) else { return Ok((Stage::Done, false)) };
        let (bucket, from) = (Arc::clone(bucket), if number == wanted { from } else { none });
        let Some((first, block)) = bucket.sealed_from(from).next() else {
            self.list_timers(bucket.open_alive());
            let next = number.checked_add(1).map_or(Stage::Done, |next| Stage::Timers(next, none));
            return Ok((next, false));
        };
        match block.timers() {
            Some(timers) => self.list_timers(block.alive(timers)),
            None => match self.previous.timers(number, *first, block.sum())? {
                Some(timers) => self.list_timers(block.alive(&timers)),
                None => return Ok((Stage::Timers(number, from), true)),
            },
        }
        Ok((Stage::Timers(number, Reference::from_word(first.word().saturating_add(1))), false))
    }

    fn list_timers<'a>(&mut self, timers: impl Iterator<Item = &'a Timer>) {
        // A timer of a deleted channel will be ignored, so its body is not needed.
        let needed = timers.filter(|timer| self.state.channels.contains_key(&timer.scheduled.channel));
        self.out.extend(needed.map(|timer| (timer.body.entry(), timer.body.part(), 1)));
    }
}
