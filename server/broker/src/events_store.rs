//! What operations do to stored events: readers get a place and move on from it, and the oldest events go. Publishing
//! is the same as for a queue. Who reads, and how fast, is not known here.

use crate::channel::{Channel, ChannelId, Gone};
use crate::cursors::{Cursor, Reader, Start};
use crate::effect::{Outcome, Refusal};
use crate::limits::CURSORS_PER_CHANNEL;
use crate::name::{Kind, Name};
use crate::reference::Reference;
use crate::state::{Applying, State};

impl State {
    pub(crate) fn trim(&mut self, id: ChannelId, upto: u64, applying: &mut Applying) -> Outcome {
        if self.stored_events(id).is_none() {
            return Outcome::Trimmed { count: 0 };
        }
        let mut gone = Gone::default();
        // That events grow old is no use of the channel: its last activity stays.
        self.change(id, |channel| {
            channel.settle(1, upto, &mut gone);
            channel.totals.expired = channel.totals.expired.saturating_add(gone.count);
        });
        let count = gone.count;
        applying.gone(id, gone);
        Outcome::Trimmed { count }
    }

    pub(crate) fn open_cursor(
        &mut self,
        at: Reference,
        name: &Name,
        reader: &Reader,
        start: Start,
        applying: &mut Applying,
    ) -> Result<Outcome, Refusal> {
        let known = self.channel(Kind::EventsStore, name.as_str());
        let is_new = known.and_then(|channel| channel.cursor(reader)).is_none();
        if is_new && known.is_some_and(Channel::has_all_cursors) {
            return Err(Refusal::TooManyCursors);
        }
        let id = self.find_or_create(at, Kind::EventsStore, name, applying)?;
        let after = self.change(id, |channel| {
            channel.last_activity = applying.time;
            let after = channel.cursor(reader).unwrap_or_else(|| channel.place_of(start));
            // What was removed since cannot be read any more.
            let after = after.max(channel.settled.floor() - 1);
            channel.cursors.set(reader.as_bytes(), Cursor { after, used: applying.time });
            after
        });
        Ok(Outcome::Opened { channel: id, after: after.unwrap_or_default() })
    }

    pub(crate) fn move_cursor(
        &mut self,
        id: ChannelId,
        reader: &Reader,
        after: u64,
        (events, bytes): (u64, u64),
        applying: &mut Applying,
    ) -> Result<Outcome, Refusal> {
        let Some(channel) = self.stored_events(id) else { return Ok(Outcome::Advanced { after: 0 }) };
        let before = channel.cursor(reader);
        if before.is_none() && channel.has_all_cursors() {
            return Err(Refusal::TooManyCursors);
        }
        // A place that was noted later but taken earlier moves nobody back.
        let after = after.min(channel.next_sequence() - 1).max(before.unwrap_or_default());
        self.change(id, |channel| {
            channel.last_activity = applying.time;
            channel.count_settled(events, bytes);
            channel.cursors.set(reader.as_bytes(), Cursor { after, used: applying.time });
        });
        Ok(Outcome::Advanced { after })
    }

    pub(crate) fn forget_cursors(&mut self, id: ChannelId, before: u64) -> Outcome {
        let count = self.stored_events(id).map_or(0, |channel| channel.stale_cursors(before));
        if count > 0 {
            // That a reader does not come is no use of the channel.
            self.change(id, |channel| {
                let first = channel.first_to_miss();
                channel.cursors.forget(first, before);
            });
        }
        Outcome::Forgotten { count }
    }

    fn stored_events(&self, id: ChannelId) -> Option<&Channel> {
        self.channel_by_id(id).filter(|channel| channel.kind() == Kind::EventsStore)
    }
}

impl Channel {
    /// How many places of readers were not used since `before`, in nanoseconds, and are of no use any more: the event
    /// behind them is gone, or nothing is stored.
    #[must_use]
    pub fn stale_cursors(&self, before: u64) -> u64 {
        self.cursors.stale(self.first_to_miss(), before) as u64
    }

    /// The first event that a reader could miss: where nothing is stored, none.
    fn first_to_miss(&self) -> u64 {
        self.first_sequence().unwrap_or(u64::MAX)
    }

    fn has_all_cursors(&self) -> bool {
        self.cursors.len() >= CURSORS_PER_CHANNEL
    }

    /// The sequence behind which a reader begins.
    fn place_of(&self, start: Start) -> u64 {
        let (first, next) = (self.settled.floor(), self.next_sequence());
        let begin = match start {
            Start::New => next,
            Start::First => first,
            Start::Last => self.last_sequence().unwrap_or(next),
            Start::At(sequence) => sequence.clamp(first, next),
        };
        begin - 1
    }
}
