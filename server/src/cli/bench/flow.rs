//! When the next request may go: the window of a closed loop, the schedule of an open one.
//!
//! The time that a request is charged from is the time at which it was meant to go. In a closed loop that is
//! when its place in the window became free; in an open loop it is a fixed point of the schedule, so that a
//! server that stalls is charged for every request that it kept waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use kubemq_runtime::{Clock, Instant};

use super::wire::Id;

/// How many bits of a number count messages; the rest say which flow made it.
const COUNTER_BITS: u32 = 40;

/// Hands out the requests of one connection.
pub(super) struct Flow {
    clock: Clock,
    /// Distinguishes this flow's messages from those of others and of earlier runs.
    tag: u64,
    /// How many messages may be unanswered.
    window: u64,
    /// Messages per request.
    batch: u64,
    schedule: Option<Schedule>,
    /// How many messages it lets go altogether, but for the rest of the last request.
    limit: u64,
    sent: AtomicU64,
    answered: AtomicU64,
    stopped: AtomicBool,
    ended: AtomicBool,
    waker: AtomicWaker,
}

/// The points in time at which the requests of an open loop are meant to go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    pub(super) start: Instant,
    pub(super) nanos_per_request: f64,
}

impl Schedule {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a run has far fewer than 2^52 requests or nanoseconds"
    )]
    fn time_of(&self, request: u64) -> Instant {
        Instant::from_nanos(self.start.as_nanos() + (request as f64 * self.nanos_per_request) as u64)
    }
}

impl Flow {
    /// Without a `limit` it goes on until it is stopped.
    pub(super) fn new(
        clock: Clock,
        tag: u64,
        window: u64,
        batch: u64,
        schedule: Option<Schedule>,
        limit: Option<u64>,
    ) -> Arc<Self> {
        Arc::new(Self {
            clock,
            tag: tag & (u64::MAX >> COUNTER_BITS),
            window: window.max(batch),
            batch,
            schedule,
            limit: limit.unwrap_or(u64::MAX),
            sent: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        })
    }

    /// Returns the id of the next request when it may go, or nothing after [`Flow::end`]. Between [`Flow::stop`] and that
    /// it is never ready: the stream stays open for answers.
    pub(super) fn poll_next(&self, context: &mut Context<'_>) -> Poll<Option<Id>> {
        if let Some(id) = self.next() {
            return Poll::Ready(Some(id));
        }
        self.waker.register(context.waker());
        // An answer or the end may have come between the look and the registration.
        match self.next() {
            None if !self.ended.load(Ordering::Relaxed) => Poll::Pending,
            next => Poll::Ready(next),
        }
    }

    fn next(&self) -> Option<Id> {
        let number = self.sent.load(Ordering::Relaxed);
        let unanswered = number - self.answered.load(Ordering::Acquire);
        if unanswered + self.batch > self.window || number >= self.limit || self.is_stopped() {
            return None;
        }
        let now = self.clock.now();
        let intended = self.schedule.map_or(now, |schedule| schedule.time_of(number / self.batch));
        if intended > now {
            return None;
        }
        self.sent.store(number + self.batch, Ordering::Relaxed);
        Some(Id { intended, number: (self.tag << COUNTER_BITS) | number })
    }

    /// Returns whether this flow made `id`.
    pub(super) fn made(&self, id: Id) -> bool {
        id.number >> COUNTER_BITS == self.tag
    }

    /// Returns how long until the schedule lets the next request go, nothing when the window is full.
    pub(super) fn time_to_next(&self) -> Option<Duration> {
        let schedule = self.schedule?;
        let number = self.sent.load(Ordering::Acquire);
        let has_room = self.unanswered() + self.batch <= self.window && number < self.limit;
        has_room.then(|| schedule.time_of(number / self.batch).since(self.clock.now()))
    }

    /// Counts `messages` as answered. The sender learns of it by [`Flow::wake`].
    pub(super) fn answered(&self, messages: u64) {
        self.answered.fetch_add(messages, Ordering::Release);
    }

    /// Lets the sender look again.
    pub(super) fn wake(&self) {
        self.waker.wake();
    }

    /// Lets no further request go.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.waker.wake();
    }

    /// Ends the streams of requests: one that is held open keeps its connection.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.stop();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Returns how many messages were sent and not answered.
    pub(super) fn unanswered(&self) -> u64 {
        self.sent.load(Ordering::Acquire).saturating_sub(self.answered.load(Ordering::Acquire))
    }

    /// Returns whether every message was answered and no further one will go.
    pub(super) fn is_drained(&self) -> bool {
        (self.is_stopped() || self.sent.load(Ordering::Acquire) >= self.limit) && self.unanswered() == 0
    }

    /// Returns whether only [`Flow::stop`] ends it.
    pub(super) fn is_endless(&self) -> bool {
        self.limit == u64::MAX
    }
}

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker_ref;

    use super::*;

    fn ready(flow: &Flow) -> Option<Id> {
        match flow.poll_next(&mut Context::from_waker(noop_waker_ref())) {
            Poll::Ready(id) => Some(id.expect("it has not ended")),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_window_is_kept() {
        let flow = Flow::new(Clock::real(), 0, 4, 2, None, None);
        assert_eq!(
            [ready(&flow), ready(&flow), ready(&flow)].map(|id| id.map(|id| id.number)),
            [Some(0), Some(2), None]
        );
        flow.answered(2);
        assert_eq!(ready(&flow).map(|id| id.number), Some(4));
        assert_eq!(flow.unanswered(), 4);
        flow.stop();
        flow.answered(4);
        assert!(ready(&flow).is_none() && flow.is_drained());
        flow.end();
        assert!(flow.poll_next(&mut Context::from_waker(noop_waker_ref())) == Poll::Ready(None));
    }

    #[test]
    fn a_flow_with_a_limit_ends_by_itself() {
        let flow = Flow::new(Clock::real(), 0, 8, 2, None, Some(3));
        assert_eq!([ready(&flow), ready(&flow), ready(&flow)].map(|id| id.is_some()), [true, true, false]);
        flow.answered(3);
        assert!(!flow.is_drained(), "the rest of the last request counts, too");
        flow.answered(1);
        assert!(flow.is_drained() && !flow.is_endless());
    }

    #[test]
    fn a_flow_knows_its_own_messages() {
        let flows = [7, 8].map(|tag| Flow::new(Clock::real(), tag, 4, 1, None, None));
        let id = ready(&flows[0]).unwrap();
        assert!(flows[0].made(id) && !flows[1].made(id));
    }

    #[test]
    fn a_late_request_is_charged_from_its_place_in_the_schedule() {
        let clock = Clock::real();
        let start = clock.now();
        let flow = Flow::new(clock.clone(), 0, 1, 1, Some(Schedule { start, nanos_per_request: 1.0 }), None);
        assert_eq!(ready(&flow).map(|id| id.intended), Some(start));
        // The window holds the second one back; its time does not move.
        assert!(ready(&flow).is_none());
        flow.answered(1);
        assert_eq!(ready(&flow).map(|id| id.intended), Some(start + Duration::from_nanos(1)));

        let later = Schedule { start: clock.now() + Duration::from_secs(3600), nanos_per_request: 1.0 };
        assert!(ready(&Flow::new(clock, 0, 1, 1, Some(later), None)).is_none());
    }
}
