//! What is under way to one peer on one stream of entries.
//!
//! It bounds the bytes that the peer has not acknowledged, notices when nothing comes back although something
//! should, and knows when everything was sent and acknowledged.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use kubemq_runtime::sync::Notify;
use kubemq_runtime::{Clock, Instant};
use parking_lot::Mutex;

use super::{Frame, Requests};

/// See the module.
pub(crate) struct Window {
    most: usize,
    state: Mutex<WindowState>,
    changed: Notify,
}

#[derive(Default)]
struct WindowState {
    /// The sizes of the requests under way, oldest first.
    sizes: VecDeque<usize>,
    bytes: usize,
    /// Whether anything came back.
    acknowledged: bool,
    /// Whether nothing more will be sent.
    ended: bool,
    /// When something last came back, or the first of the present requests went out.
    progress: Instant,
}

impl Window {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, state: Mutex::default(), changed: Notify::new() }
    }

    /// Returns `frames` as they may go out.
    pub(crate) fn requests(
        self: &Arc<Self>,
        frames: impl Stream<Item = Frame> + Send + Unpin + 'static,
        clock: &Clock,
    ) -> Requests {
        let state = (frames, Arc::clone(self), clock.clone());
        stream::unfold(state, |(mut frames, window, clock)| async move {
            let Some(frame) = frames.next().await else {
                window.state.lock().ended = true;
                window.changed.notify_waiters();
                return None;
            };
            window.admit(frame.bytes(), &clock).await;
            Some((frame, (frames, window, clock)))
        })
        .boxed()
    }

    /// Waits until a request of `size` bytes may go out: always when nothing is under way.
    async fn admit(&self, size: usize, clock: &Clock) {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state.lock();
                if state.sizes.is_empty() || state.bytes + size <= self.most {
                    if state.sizes.is_empty() {
                        state.progress = clock.now();
                    }
                    state.sizes.push_back(size);
                    state.bytes += size;
                    // Who watches for a stall must know that something is under way.
                    self.changed.notify_waiters();
                    return;
                }
            }
            changed.await;
        }
    }

    /// Notes that the oldest request under way was answered.
    pub(crate) fn acknowledged(&self, clock: &Clock) {
        let mut state = self.state.lock();
        state.acknowledged = true;
        if let Some(size) = state.sizes.pop_front() {
            state.bytes -= size;
        }
        state.progress = clock.now();
        self.changed.notify_waiters();
    }

    /// Returns whether something was sent, and all of it is acknowledged.
    pub(crate) fn is_settled(&self) -> bool {
        let state = self.state.lock();
        state.acknowledged && state.sizes.is_empty()
    }

    /// Ends when nothing is under way and nothing more will be sent.
    pub(crate) async fn finished(&self) {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.state.lock();
                if state.ended && state.sizes.is_empty() {
                    return;
                }
            }
            changed.await;
        }
    }

    /// Ends when something has been under way for `limit` and nothing came back.
    pub(crate) async fn stalled(&self, limit: Duration, clock: &Clock) {
        loop {
            let changed = self.changed.notified();
            let deadline = {
                let state = self.state.lock();
                (!state.sizes.is_empty()).then(|| state.progress + limit)
            };
            let Some(deadline) = deadline else {
                changed.await;
                continue;
            };
            if clock.now() >= deadline {
                return;
            }
            clock.sleep_until(deadline).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use kubemq_runtime::Runtime;

    use super::*;

    #[tokio::test]
    async fn a_slow_peer_is_sent_no_more_than_the_window() {
        let clock = Runtime::real().clock;
        let window = Window::new(100);
        window.admit(500, &clock).await;
        assert!(window.admit(1, &clock).now_or_never().is_none(), "one larger than the window goes alone");
        window.acknowledged(&clock);
        window.admit(60, &clock).await;
        window.admit(40, &clock).await;
        let third = window.admit(60, &clock);
        let acknowledge = async { window.acknowledged(&clock) };
        let both = async { tokio::join!(third, acknowledge) };
        clock.timeout(Duration::from_secs(20), both).await.unwrap();
        assert_eq!(window.state.lock().bytes, 100);
    }

    #[tokio::test]
    async fn only_a_stream_with_something_under_way_can_stall() {
        let clock = Runtime::real().clock;
        let window = Window::new(100);
        let limit = Duration::from_millis(1);
        assert!(clock.timeout(Duration::from_millis(50), window.stalled(limit, &clock)).await.is_err());
        window.admit(1, &clock).await;
        clock.timeout(Duration::from_secs(20), window.stalled(limit, &clock)).await.unwrap();
        window.acknowledged(&clock);
        assert!(window.stalled(limit, &clock).now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_stream_is_finished_when_its_last_request_is_acknowledged() {
        let clock = Runtime::real().clock;
        let window = Arc::new(Window::new(100));
        let mut requests = window.requests(stream::iter([Frame::default()]), &clock);
        assert!(!window.is_settled() && window.finished().now_or_never().is_none());
        assert!(requests.next().await.is_some());
        assert!(requests.next().await.is_none());
        assert!(!window.is_settled() && window.finished().now_or_never().is_none(), "it is still under way");
        window.acknowledged(&clock);
        assert!(window.is_settled());
        clock.timeout(Duration::from_secs(20), window.finished()).await.unwrap();
    }
}
