//! A reader's place in the line of a channel.

use std::sync::Arc;

use kubemq_broker::Kind;
use kubemq_runtime::sync::Notify;
use parking_lot::Mutex;

use super::{Core, Reserved, WaitingPoll};

/// A reader of one channel, which need not exist. Dropping it leaves the line and gives back what was
/// reserved for it and not yet taken.
pub(crate) struct Poll {
    core: Arc<Mutex<Core>>,
    channel: Arc<str>,
    /// Its number at the desk, once it had to wait.
    id: Option<u64>,
    notify: Arc<Notify>,
}

impl Poll {
    pub(crate) fn new(core: Arc<Mutex<Core>>, channel: &str) -> Self {
        Self { core, channel: channel.into(), id: None, notify: Arc::new(Notify::new()) }
    }

    /// Returns up to `want` messages, now reserved for the caller. When it returns none, the poll stands in
    /// line and [`Poll::changed`] ends when there are some.
    pub(crate) fn next(&mut self, want: usize) -> Vec<Reserved> {
        let mut core = self.core.lock();
        let core = &mut *core;
        if let Some(poll) = self.id.and_then(|id| core.desk.polls.get_mut(&id)) {
            let reserved = std::mem::take(&mut poll.reserved);
            poll.want = want.saturating_sub(reserved.len());
            if !reserved.is_empty() || poll.queued {
                return reserved;
            }
        }
        let channel = core.state.channel(Kind::Queue, &self.channel);
        let mut reserved = Vec::new();
        if let Some(channel) = channel {
            let desk = core.desk.channels.entry(channel.id()).or_default();
            if desk.queue.is_empty() {
                let room = core.desk.hands.room(want);
                let away = desk.reserve(channel, channel.id(), room, &mut reserved);
                core.desk.away.want(channel.id(), away);
                core.desk.hands.take(reserved.len());
            }
            if !reserved.is_empty() {
                return reserved;
            }
            if core.desk.hands.is_full() {
                core.desk.hands.wants_room(channel.id());
            }
        }
        let next_poll = &mut core.desk.next_poll;
        let id = *self.id.get_or_insert_with(|| {
            *next_poll += 1;
            *next_poll
        });
        let waiting = core.desk.polls.entry(id).or_insert_with(|| WaitingPoll {
            channel: Arc::clone(&self.channel),
            want,
            queued: false,
            reserved: Vec::new(),
            notify: Arc::clone(&self.notify),
        });
        waiting.want = want;
        waiting.queued = true;
        match channel {
            Some(channel) => core.desk.channels.entry(channel.id()).or_default().queue.push_back(id),
            None => core.desk.absent.entry(Arc::clone(&self.channel)).or_default().push_back(id),
        }
        reserved
    }

    /// Ends when messages were reserved for this poll since it last looked. Cancel safe.
    pub(crate) async fn changed(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Poll {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let mut core = self.core.lock();
        let core = &mut *core;
        let Some(poll) = core.desk.polls.remove(&id) else { return };
        if poll.queued {
            if let Some(queue) = core.desk.absent.get_mut(&self.channel) {
                queue.retain(|other| *other != id);
                if queue.is_empty() {
                    core.desk.absent.remove(&self.channel);
                }
            }
            if let Some(channel) = core.state.channel(Kind::Queue, &self.channel)
                && let Some(desk) = core.desk.channels.get_mut(&channel.id())
            {
                desk.queue.retain(|other| *other != id);
                core.desk.tidy(channel.id());
            }
        }
        // All of them are of one channel, unless it was deleted in between.
        for message in poll.reserved {
            core.give_back(message.channel, [message.sequence]);
        }
    }
}
