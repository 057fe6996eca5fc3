//! Requests are paid for before they are buffered.
//!
//! The gRPC library puts a message together before anybody here sees it. What one call may gather is bounded by the
//! largest message, but many calls at once are not: so whoever is about to gather a message of more than
//! [`FREE`] bytes takes its bytes from a budget of the node first, in the order in which calls ask, and as long as
//! there are none its connection is not read. A message takes all its bytes at once, so that calls cannot wait for
//! each other. Small messages, and those that have arrived whole, pay nothing: the windows of their connections
//! bound them.
//!
//! The bytes are given back when the message is out of the caller's hands: on a stream when the next one is asked
//! for, elsewhere when the call ends.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::{Body as HttpBody, Frame, SizeHint};
use kubemq_proto::strings::Refusal;
use kubemq_runtime::Clock;
use kubemq_runtime::sync::{OwnedSemaphorePermit, Semaphore};
use parking_lot::Mutex;
use tonic::Status;
use tonic::body::Body;

/// A message up to this size, in bytes, is never waited for.
const FREE: usize = 64 * 1024;
/// Bytes are counted in units of this, rounded up.
const UNIT: usize = 1024;
/// How long a message that has paid may bring no byte while others wait for the budget.
const STALL: Duration = Duration::from_secs(30);
/// In front of each message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// How much larger a message may be than its compressed form, by the nature of that form.
const INFLATION: usize = 1032;

/// The budget of a node. Clones share it.
#[derive(Clone)]
pub struct Ingest(Arc<Budget>);

struct Budget {
    units: Arc<Semaphore>,
    total: usize,
    waiting: AtomicUsize,
    stall: Duration,
}

impl Ingest {
    /// Returns a budget of `bytes`. A message that is larger takes all of it.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self::with_stall(bytes, STALL)
    }

    fn with_stall(bytes: usize, stall: Duration) -> Self {
        let total = bytes.div_ceil(UNIT).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        let units = Arc::new(Semaphore::new(total));
        Self(Arc::new(Budget { units, total, waiting: AtomicUsize::new(0), stall }))
    }

    /// Returns the bytes that there are.
    #[must_use]
    pub fn total(&self) -> usize {
        self.0.total * UNIT
    }

    /// Returns the bytes that are taken.
    #[must_use]
    pub fn used(&self) -> usize {
        (self.0.total - self.0.units.available_permits()) * UNIT
    }

    /// Returns how many calls wait for bytes.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }

    async fn take(self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(UNIT).min(self.0.total)).unwrap_or(u32::MAX);
        let _waiting = Waiting::count(&self.0);
        Arc::clone(&self.0.units).acquire_many_owned(units).await.ok()
    }
}

/// One call that waits for bytes.
struct Waiting(Arc<Budget>);

impl Waiting {
    fn count(budget: &Arc<Budget>) -> Self {
        budget.waiting.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(budget))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a call has paid for the message that it gathers or works on. Clones are the same call.
#[derive(Clone, Default)]
pub(crate) struct Paid(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Paid {
    fn give_back(&self) {
        drop(self.0.lock().take());
    }
}

/// The request of one call.
pub(crate) struct Metered {
    inner: Body,
    ingest: Ingest,
    clock: Clock,
    /// The largest message, in bytes.
    largest: usize,
    /// Whether several messages may come.
    is_stream: bool,
    paid: Paid,
    has_paid: bool,
    framing: Framing,
    paying: Option<BoxFuture<'static, Option<OwnedSemaphorePermit>>>,
    /// Ends when a message that has paid has stalled.
    stall: Option<BoxFuture<'static, ()>>,
}

impl Metered {
    /// Meters `inner`. What was paid stays with `paid` until the call drops it or, on a stream, until the next
    /// message.
    pub(crate) fn new(inner: Body, ingest: Ingest, clock: Clock, largest: usize, is_stream: bool, paid: Paid) -> Self {
        Self {
            inner,
            ingest,
            clock,
            largest,
            is_stream,
            paid,
            has_paid: false,
            framing: Framing::default(),
            paying: None,
            stall: None,
        }
    }

    /// Takes the bytes for the message that is being gathered, if it has to pay.
    fn poll_pay(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_paid {
            if self.framing.rest > 0 {
                return Poll::Ready(());
            }
            // It is complete, and more is asked for.
            self.has_paid = false;
            self.stall = None;
            if self.is_stream {
                self.paid.give_back();
            }
        }
        if self.framing.rest == 0 || self.framing.length <= FREE {
            return Poll::Ready(());
        }
        let (ingest, bytes) = (&self.ingest, self.framing.cost(self.largest));
        let paying = self.paying.get_or_insert_with(|| Box::pin(ingest.clone().take(bytes)));
        let permit = ready!(paying.as_mut().poll(cx));
        self.paying = None;
        *self.paid.0.lock() = permit;
        self.has_paid = true;
        Poll::Ready(())
    }

    /// Returns whether a message that has paid has brought nothing for too long.
    fn has_stalled(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            let (clock, allowed) = (&self.clock, self.ingest.0.stall);
            let stall = self.stall.get_or_insert_with(|| {
                let clock = clock.clone();
                Box::pin(async move { clock.sleep(allowed).await })
            });
            if stall.as_mut().poll(cx).is_pending() {
                return false;
            }
            self.stall = None;
            if self.ingest.waiting() > 0 {
                return true;
            }
        }
    }
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        ready!(this.poll_pay(cx));
        let frame = Pin::new(&mut this.inner).poll_frame(cx);
        match &frame {
            Poll::Pending if this.has_paid && this.has_stalled(cx) => {
                this.paid.give_back();
                return Poll::Ready(Some(Err(Refusal::UploadStalled.into())));
            }
            Poll::Ready(Some(Ok(frame))) => {
                this.stall = None;
                if let Some(data) = frame.data_ref() {
                    this.framing.pass(data);
                }
            }
            Poll::Pending | Poll::Ready(_) => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Where a request is in its messages.
#[derive(Default)]
struct Framing {
    prefix: [u8; PREFIX],
    filled: usize,
    /// The length of the message that came last, in bytes as they come.
    length: usize,
    /// Bytes of it that are to come.
    rest: usize,
}

impl Framing {
    fn pass(&mut self, mut bytes: &[u8]) {
        loop {
            let passed = self.rest.min(bytes.len());
            self.rest -= passed;
            bytes = &bytes[passed..];
            if bytes.is_empty() {
                return;
            }
            let (more, later) = bytes.split_at(bytes.len().min(PREFIX - self.filled));
            self.prefix[self.filled..self.filled + more.len()].copy_from_slice(more);
            self.filled += more.len();
            bytes = later;
            if self.filled == PREFIX {
                let [_, length @ ..] = self.prefix;
                self.length = u32::from_be_bytes(length) as usize;
                self.rest = self.length;
                self.filled = 0;
            }
        }
    }

    /// Returns what the message may take when it is whole. One above the limit is refused before it is gathered.
    fn cost(&self, largest: usize) -> usize {
        let [compressed, ..] = self.prefix;
        let length = if compressed == 0 { self.length } else { self.length.saturating_mul(INFLATION) };
        length.min(largest)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{FutureExt as _, StreamExt as _};
    use http_body_util::{BodyExt as _, StreamBody};
    use kubemq_runtime::sync::mpsc;

    use super::*;

    const LARGE: usize = 100 * UNIT;

    fn message(length: usize, compressed: u8) -> Vec<u8> {
        let mut bytes = vec![compressed];
        bytes.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
        bytes.resize(PREFIX + length, 7);
        bytes
    }

    /// A call, and where its bytes come from.
    struct Call {
        body: Metered,
        paid: Paid,
        bytes: mpsc::Sender<Vec<u8>>,
    }

    fn call(ingest: &Ingest, is_stream: bool) -> Call {
        let (bytes, mut received) = mpsc::channel::<Vec<u8>>(64);
        let frames = futures_util::stream::poll_fn(move |cx| received.poll_recv(cx))
            .map(|bytes| Ok::<_, Infallible>(Frame::data(Bytes::from(bytes))));
        let paid = Paid::default();
        let body = Body::new(StreamBody::new(frames));
        let body = Metered::new(body, ingest.clone(), Clock::real(), 4 * LARGE, is_stream, paid.clone());
        Call { body, paid, bytes }
    }

    impl Call {
        fn send(&self, bytes: &[u8]) {
            self.bytes.try_send(bytes.to_vec()).unwrap();
        }

        /// Returns how many bytes come now.
        fn take(&mut self) -> Option<usize> {
            let frame = self.body.frame().now_or_never()??;
            Some(frame.unwrap().into_data().unwrap().len())
        }
    }

    #[tokio::test]
    async fn a_large_message_pays_before_it_is_gathered_and_small_ones_do_not() {
        let ingest = Ingest::new(LARGE);
        let mut calls = [call(&ingest, false), call(&ingest, false)];
        for call in &mut calls {
            let bytes = message(LARGE, 0);
            call.send(&bytes[..10]);
            call.send(&bytes[10..]);
            assert_eq!(call.take(), Some(10));
        }
        let [mut first, mut second] = calls;
        assert_eq!(first.take(), Some(LARGE - 5));
        assert_eq!(ingest.used(), LARGE);
        assert_eq!((second.take(), ingest.waiting()), (None, 1));

        let mut small = call(&ingest, true);
        for (length, cut) in [(FREE, 8), (17, 3), (LARGE, LARGE + PREFIX)] {
            let bytes = message(length, 0);
            small.send(&bytes[..cut]);
            small.send(&bytes[cut..]);
            assert_eq!((small.take(), small.take()), (Some(cut), Some(bytes.len() - cut)), "{length} bytes");
        }

        // Asking for more gives nothing back while the call works on its message.
        assert_eq!(first.take(), None);
        assert_eq!((second.take(), ingest.used()), (None, LARGE));
        drop(first);
        assert_eq!((second.take(), ingest.waiting()), (Some(LARGE - 5), 0));
        drop(second);
        assert_eq!(ingest.used(), 0);
    }

    #[tokio::test]
    async fn a_stream_gives_back_when_it_asks_for_the_next_message() {
        let ingest = Ingest::new(LARGE);
        let mut stream = call(&ingest, true);
        let bytes = message(LARGE, 0);
        for _ in 0..3 {
            stream.send(&bytes[..3]);
            stream.send(&bytes[3..9]);
            stream.send(&bytes[9..]);
            assert_eq!((stream.take(), stream.take()), (Some(3), Some(6)));
            assert_eq!((stream.take(), ingest.used()), (Some(LARGE - 4), LARGE));
        }
        assert_eq!((stream.take(), ingest.used()), (None, 0));
        assert!(stream.paid.0.lock().is_none());
    }

    #[tokio::test]
    async fn one_message_is_always_taken_and_a_compressed_one_pays_for_what_it_may_become() {
        let ingest = Ingest::new(2 * LARGE);
        for (length, compressed, cost) in
            [(3 * LARGE, 0, 2 * LARGE), (FREE + 1, 1, 2 * LARGE), (FREE + 1, 0, FREE + UNIT)]
        {
            let mut call = call(&ingest, false);
            let bytes = message(length, compressed);
            call.send(&bytes[..PREFIX + 1]);
            call.send(&bytes[PREFIX + 1..]);
            assert_eq!((call.take(), call.take()), (Some(PREFIX + 1), Some(length - 1)));
            assert_eq!(ingest.used(), cost, "{length} bytes");
        }
    }

    #[tokio::test]
    async fn who_stalls_is_ended_only_when_others_wait() {
        let clock = Clock::real();
        let stall = Duration::from_millis(20);
        let ingest = Ingest::with_stall(LARGE, stall);
        let mut slow = call(&ingest, false);
        slow.send(&message(LARGE, 0)[..10]);
        assert_eq!(slow.take(), Some(10));
        assert!(clock.timeout(4 * stall, slow.body.frame()).await.is_err(), "nobody waits");
        let mut other = call(&ingest, false);
        other.send(&message(LARGE, 0)[..10]);
        other.send(&[7; 10]);
        assert_eq!((other.take(), other.take()), (Some(10), None));
        let ended = slow.body.frame().await.unwrap().unwrap_err();
        assert_eq!(ended.message(), Refusal::UploadStalled.to_string());
        assert_eq!((other.take(), ingest.waiting()), (Some(10), 0));
    }
}
