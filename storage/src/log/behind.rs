//! What was written and answered before it is flushed, when the log is told to flush now and then.
//!
//! Only groups of entries are answered so. Whatever else a group holds, votes above all, is flushed with it, and with
//! it everything before; so is the end of each segment, and thereby at most one segment is ever behind.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use kubemq_runtime::{Instant, Task};

use super::frame::Kind;
use super::group::Gathered;
use super::types::Flush;
use crate::Error;

/// A segment, and an offset in it.
pub(crate) type Place = (u64, u64);

/// How far the disk is behind what was answered.
pub(crate) struct Behind {
    flush: Flush,
    /// Everything in the active segment up to here is flushed.
    pub(crate) flushed: u64,
    /// When the first group was written that no flush covers.
    since: Option<Instant>,
    flushing: Option<(Place, Task<Result<Duration, Error>>)>,
}

impl Behind {
    /// Returns that nothing is behind, in a segment that is flushed up to `flushed`.
    pub(crate) fn new(flush: Flush, flushed: u64) -> Self {
        Self { flush, flushed, since: None, flushing: None }
    }

    /// Returns whether a group may be answered before it is flushed.
    pub(crate) fn is_allowed(&self, group: &Gathered) -> bool {
        let may = |kind| matches!(kind, Kind::Entry(_) | Kind::Mark | Kind::Committed);
        self.flush != Flush::Group
            && group.close.is_none()
            && group.frames.iter().all(|placed| may(placed.frame.head.kind))
    }

    /// Notes that a group was written and not flushed.
    pub(crate) fn wrote(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// Returns when to flush next.
    pub(crate) fn due(&self) -> Option<Instant> {
        let Flush::Interval(interval) = self.flush else { return None };
        // The next one begins when this one has ended.
        if self.flushing.is_some() { None } else { self.since.map(|since| since + interval) }
    }

    /// Returns whether something was answered that is not flushed.
    pub(crate) fn is_behind(&self) -> bool {
        self.since.is_some() || self.flushing.is_some()
    }

    /// Returns how many bytes of a segment that ends at `end` were answered and are not flushed.
    pub(crate) fn bytes(&self, end: u64) -> u64 {
        if self.is_behind() { end - self.flushed } else { 0 }
    }

    /// Waits for the flush under way: of two at a time, either may be told of an error of the other.
    pub(crate) async fn finish(&mut self) -> Result<(), Error> {
        match self.flushing.take() {
            Some((_, flush)) => flush.await.unwrap_or(Err(Error::Closed)).map(drop),
            None => Ok(()),
        }
    }

    /// Notes that everything written so far, up to `upto`, is being flushed.
    pub(crate) fn begin(&mut self, upto: Place, flush: Task<Result<Duration, Error>>) {
        self.since = None;
        self.flushing = Some((upto, flush));
    }

    /// Returns how long the flush under way took, when it has ended, and up to where it went.
    pub(crate) fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Duration, Place), Error>> {
        let Some((upto, flush)) = &mut self.flushing else { return Poll::Pending };
        let (upto, took) = (*upto, ready!(Pin::new(flush).poll(cx)));
        self.flushing = None;
        Poll::Ready(took.unwrap_or(Err(Error::Closed)).map(|took| (took, upto)))
    }

    /// Notes that the active segment is flushed up to `upto`.
    pub(crate) fn reached(&mut self, upto: u64) {
        self.flushed = self.flushed.max(upto);
    }

    /// Notes that the active segment is flushed up to `upto`, its end.
    pub(crate) fn caught_up(&mut self, upto: u64) {
        (self.flushed, self.since) = (upto, None);
    }
}
