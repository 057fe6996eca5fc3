//! What waits for one subscriber: a queue bounded in bytes whose overflow concerns nobody else.
//!
//! A sender never waits. What does not fit is dropped for this subscriber alone, counted, and told once per
//! episode: an episode begins with the first drop and is over when half of the queue is read. The subscriber
//! takes what is there in batches, so that a wake-up pays for many frames.
//!
//! A frame is charged to its subscriber's bound in full and to the node's budget once, however many wait for it.
//! Beyond the budget each subscriber may still hold its share of it, so that those who read are not made to pay
//! for those who do not.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use kubemq_proto::frame::Frame;
use parking_lot::Mutex;

/// What a waiting frame costs beside its bytes.
pub(super) const OVERHEAD: usize = 128;
/// Frames that a subscriber takes at once.
const BATCH: usize = 512;
/// Bytes that a subscriber takes at once, and one frame more: they make no room before all of them are written.
const BATCH_BYTES: usize = 1024 * 1024;
/// A queue that held many frames gives back its memory down to this when it is empty.
const KEPT_CAPACITY: usize = 4 * BATCH;

/// Memory of what waits in all inboxes of a node.
#[derive(Debug)]
pub(super) struct Budget {
    most: usize,
    used: AtomicUsize,
    inboxes: AtomicUsize,
}

impl Budget {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, used: AtomicUsize::new(0), inboxes: AtomicUsize::new(0) })
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns how much one inbox may hold whatever the others do, and beyond it only while the budget lasts.
    fn share(&self) -> usize {
        if self.used() <= self.most {
            return usize::MAX;
        }
        self.most / self.inboxes.load(Ordering::Relaxed).max(1)
    }
}

/// A frame that waits, for one subscriber or for many. The last one to let go of it gives its memory back.
#[derive(Debug)]
pub(super) struct Held {
    frame: Frame,
    size: usize,
    budget: Arc<Budget>,
}

impl Held {
    pub(super) fn new(frame: Frame, budget: &Arc<Budget>) -> Arc<Self> {
        let size = frame.len() + OVERHEAD;
        budget.used.fetch_add(size, Ordering::Relaxed);
        Arc::new(Self { frame, size, budget: Arc::clone(budget) })
    }

    /// Returns the frame, which only the last one need not share.
    fn take(mut held: Arc<Self>) -> Frame {
        match Arc::get_mut(&mut held) {
            Some(last) => std::mem::take(&mut last.frame),
            None => held.frame.clone(),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.size, Ordering::Relaxed);
    }
}

/// Who a subscriber is, for the log.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub(super) client: Box<str>,
    pub(super) channel: Box<str>,
    pub(super) group: Box<str>,
}

/// The queue of one subscriber.
#[derive(Debug)]
pub(super) struct Inbox {
    owner: Owner,
    most: usize,
    budget: Arc<Budget>,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    frames: VecDeque<Arc<Held>>,
    /// Of all frames that are not yet written, those of the batch in the subscriber's hands included.
    bytes: usize,
    waker: Option<Waker>,
    closed: bool,
    /// Dropped in the episode that is under way.
    dropped: u64,
}

/// What became of frames that were given to an inbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) taken: u64,
    pub(super) dropped: u64,
}

impl Inbox {
    pub(super) fn new(owner: Owner, most: usize, budget: Arc<Budget>) -> Self {
        budget.inboxes.fetch_add(1, Ordering::Relaxed);
        Self { owner, most, budget, waiting: Mutex::default() }
    }

    pub(super) fn client(&self) -> &str {
        &self.owner.client
    }

    pub(super) fn group(&self) -> &str {
        &self.owner.group
    }

    /// Appends `frames` as far as they fit.
    pub(super) fn give(&self, frames: impl Iterator<Item = Arc<Held>>) -> Given {
        let mut given = Given::default();
        let (waker, begins) = {
            let mut waiting = self.waiting.lock();
            if waiting.closed {
                return given;
            }
            for frame in frames {
                if self.append(&mut waiting, frame) {
                    given.taken += 1;
                } else {
                    given.dropped += 1;
                }
            }
            let begins = waiting.dropped == 0 && given.dropped > 0;
            waiting.dropped += given.dropped;
            (if given.taken > 0 { waiting.waker.take() } else { None }, begins)
        };
        if begins {
            let Owner { client, channel, group } = &self.owner;
            tracing::warn!(client, channel, group, "a subscriber reads too slowly, what does not fit is dropped");
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        given
    }

    fn append(&self, waiting: &mut Waiting, frame: Arc<Held>) -> bool {
        let bytes = waiting.bytes + frame.size;
        // The first always fits: a single frame may be larger than the bound.
        let fits = waiting.bytes == 0 || bytes <= self.most.min(self.budget.share());
        if fits {
            waiting.bytes = bytes;
            waiting.frames.push_back(frame);
        }
        fits
    }

    /// Returns whether so much waits that another subscriber of the group had better be chosen.
    pub(super) fn is_behind(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.closed || waiting.bytes > self.most / 2
    }

    /// Takes the frames that wait. `None` when the inbox was closed and nothing is left.
    fn poll_take(&self, batch: &mut Batch, cx: &mut Context<'_>) -> Poll<Option<()>> {
        let mut waiting = self.waiting.lock();
        waiting.bytes -= std::mem::take(&mut batch.bytes);
        if waiting.frames.is_empty() {
            if waiting.closed {
                return Poll::Ready(None);
            }
            if !waiting.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                waiting.waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        if waiting.frames.len() <= BATCH && waiting.bytes <= BATCH_BYTES {
            std::mem::swap(&mut waiting.frames, &mut batch.frames);
            batch.bytes = waiting.bytes;
        }
        while batch.frames.len() < BATCH && batch.bytes < BATCH_BYTES {
            let Some(frame) = waiting.frames.pop_front() else { break };
            batch.bytes += frame.size;
            batch.frames.push_back(frame);
        }
        if waiting.frames.is_empty() && waiting.frames.capacity() > KEPT_CAPACITY {
            waiting.frames.shrink_to(KEPT_CAPACITY);
        }
        let over = waiting.dropped > 0 && waiting.bytes <= self.most / 2;
        let dropped = if over { std::mem::take(&mut waiting.dropped) } else { 0 };
        drop(waiting);
        if over {
            let Owner { client, channel, group } = &self.owner;
            tracing::warn!(client, channel, group, dropped, "a subscriber that read too slowly has caught up");
        }
        Poll::Ready(Some(()))
    }

    /// Takes nothing more; what waits is still read.
    pub(super) fn close(&self) {
        let waker = {
            let mut waiting = self.waiting.lock();
            waiting.closed = true;
            waiting.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Forgets what waits: nobody will read it.
    fn discard(&self) {
        let frames = {
            let mut waiting = self.waiting.lock();
            waiting.closed = true;
            waiting.bytes = 0;
            std::mem::take(&mut waiting.frames)
        };
        // There may be very many: no sender is to wait for their end.
        drop(frames);
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.budget.inboxes.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a subscriber has taken and not yet written.
#[derive(Debug, Default)]
struct Batch {
    frames: VecDeque<Arc<Held>>,
    bytes: usize,
}

/// The reading end of an inbox; there is one. Dropping it discards what waits.
#[derive(Debug)]
pub(super) struct Reader {
    inbox: Arc<Inbox>,
    batch: Batch,
}

impl Reader {
    pub(super) fn new(inbox: Arc<Inbox>) -> Self {
        Self { inbox, batch: Batch::default() }
    }

    pub(super) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// Returns the next frame, `None` when the inbox was closed and read to its end.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        loop {
            if let Some(frame) = self.batch.frames.pop_front() {
                return Poll::Ready(Some(Held::take(frame)));
            }
            match self.inbox.poll_take(&mut self.batch, cx) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.inbox.discard();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::task::noop_waker_ref;
    use kubemq_proto::kubemq::Event;

    use super::*;

    fn frame(number: usize, size: usize) -> Frame {
        let body = Bytes::from(vec![7; size]);
        Frame::event(Event { event_id: number.to_string(), body, ..Event::default() })
    }

    fn inbox(most: usize, budget: &Arc<Budget>) -> Reader {
        let owner = Owner { client: "c".into(), channel: "a".into(), group: "".into() };
        Reader::new(Arc::new(Inbox::new(owner, most, Arc::clone(budget))))
    }

    fn next(reader: &mut Reader) -> Poll<Option<Frame>> {
        reader.poll_next(&mut Context::from_waker(noop_waker_ref()))
    }

    fn give(reader: &Reader, frames: impl IntoIterator<Item = Frame>) -> (u64, u64) {
        let frames = frames.into_iter().map(|frame| Held::new(frame, &reader.inbox.budget));
        let Given { taken, dropped } = reader.inbox.give(frames);
        (taken, dropped)
    }

    #[test]
    fn frames_are_read_in_order_and_give_their_memory_back() {
        let budget = Budget::new(usize::MAX);
        let mut reader = inbox(1 << 20, &budget);
        assert_eq!(next(&mut reader), Poll::Pending);
        assert_eq!(give(&reader, (0..2000).map(|number| frame(number, 10))), (2000, 0));
        for number in 0..2000 {
            assert_eq!(next(&mut reader), Poll::Ready(Some(frame(number, 10))));
        }
        assert!(reader.inbox.waiting.lock().bytes > 0, "what is not known to be written counts");
        assert_eq!(next(&mut reader), Poll::Pending);
        assert_eq!((budget.used(), reader.inbox.waiting.lock().bytes), (0, 0));
    }

    #[test]
    fn what_does_not_fit_is_dropped_here_and_nowhere_else() {
        let budget = Budget::new(usize::MAX);
        let (mut slow, mut quick) = (inbox(4096, &budget), inbox(4096, &budget));
        let mut dropped = 0;
        for number in 0..100 {
            dropped += give(&slow, [frame(number, 512)]).1;
            assert_eq!(give(&quick, [frame(number, 512)]), (1, 0));
            assert_eq!(next(&mut quick), Poll::Ready(Some(frame(number, 512))));
            assert_eq!(next(&mut quick), Poll::Pending);
        }
        let each = frame(10, 512).len() + OVERHEAD;
        assert_eq!(dropped, 100 - (4096 / each) as u64);
        assert!(slow.inbox.is_behind() && !quick.inbox.is_behind());
        assert!(slow.inbox.waiting.lock().bytes <= 4096);
        assert_eq!(next(&mut slow), Poll::Ready(Some(frame(0, 512))), "the oldest are kept");
    }

    #[test]
    fn an_episode_ends_when_half_is_read_and_then_there_is_room() {
        let budget = Budget::new(usize::MAX);
        let mut reader = inbox(4096, &budget);
        assert!(give(&reader, (0..100).map(|number| frame(number, 512))).1 > 0);
        assert!(reader.inbox.waiting.lock().dropped > 0);
        while next(&mut reader).is_ready() {}
        assert_eq!(give(&reader, [frame(1, 512)]), (1, 0));
        assert!(next(&mut reader).is_ready());
        assert_eq!(reader.inbox.waiting.lock().dropped, 0);
    }

    #[test]
    fn one_frame_fits_whatever_its_size() {
        let budget = Budget::new(usize::MAX);
        let mut reader = inbox(4096, &budget);
        assert_eq!(give(&reader, [frame(0, 100_000), frame(1, 1)]), (1, 1));
        assert_eq!(next(&mut reader), Poll::Ready(Some(frame(0, 100_000))));
    }

    #[test]
    fn beyond_the_budget_of_the_node_each_has_its_share() {
        let budget = Budget::new(40_000);
        let stalled: Vec<Reader> = (0..9).map(|_| inbox(20_000, &budget)).collect();
        let mut quick = inbox(20_000, &budget);
        let mut dropped = 0;
        for number in 0..100 {
            dropped += stalled.iter().map(|reader| give(reader, [frame(number, 512)]).1).sum::<u64>();
            assert_eq!(give(&quick, [frame(number, 512)]), (1, 0), "who reads loses nothing");
            assert!(next(&mut quick).is_ready() && next(&mut quick).is_pending());
        }
        assert!(dropped > 0);
        // The budget, and a share of a tenth for each of those that hold nothing else.
        assert!(budget.used() <= 2 * 40_000, "{}", budget.used());
        drop(stalled);
        assert_eq!(budget.used(), 0, "who leaves gives back what waited for him");
    }

    #[test]
    fn what_many_wait_for_is_in_memory_once() {
        let budget = Budget::new(100_000);
        let mut readers: Vec<Reader> = (0..1000).map(|_| inbox(1 << 20, &budget)).collect();
        let held = Held::new(frame(0, 50_000), &budget);
        for reader in &readers {
            assert_eq!(reader.inbox.give(std::iter::once(Arc::clone(&held))), Given { taken: 1, dropped: 0 });
        }
        drop(held);
        assert_eq!(budget.used(), frame(0, 50_000).len() + OVERHEAD);
        for reader in &mut readers {
            assert_eq!(next(reader), Poll::Ready(Some(frame(0, 50_000))));
        }
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_closed_inbox_is_read_to_its_end_and_takes_nothing() {
        let budget = Budget::new(usize::MAX);
        let mut reader = inbox(4096, &budget);
        give(&reader, [frame(0, 1)]);
        reader.inbox.close();
        assert_eq!(give(&reader, [frame(1, 1)]), (0, 0));
        assert_eq!(next(&mut reader), Poll::Ready(Some(frame(0, 1))));
        assert_eq!(next(&mut reader), Poll::Ready(None));
    }
}
