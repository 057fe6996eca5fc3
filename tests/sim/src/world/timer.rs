//! Sleeping on the clock of a node.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::{HARNESS, State, World};

/// A future that ends when the clock of its node shows the deadline.
pub struct Sleep {
    world: World,
    node: usize,
    deadline: u64,
    timer: Option<(u64, u64)>,
}

impl Sleep {
    /// Returns a sleep until the monotonic clock of `node` shows `deadline`.
    pub(crate) fn new(world: World, node: usize, deadline: u64) -> Self {
        Self { world, node, deadline, timer: None }
    }

    fn cancel(&mut self) {
        if let Some(timer) = self.timer.take() {
            let waker = self.world.0.state.lock().timers.remove(&timer);
            drop(waker);
        }
    }
}

impl State {
    fn add_timer(&mut self, at: u64, waker: Waker) -> (u64, u64) {
        let key = (at, self.next_timer);
        self.next_timer += 1;
        self.timers.insert(key, waker);
        key
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut guard = this.world.0.state.lock();
        let state = &mut *guard;
        let now = state.now;
        let (shows, truth) = if this.node == HARNESS {
            (now, this.deadline)
        } else {
            let clock = state.node(this.node).clock();
            (clock.monotonic(now), clock.truth(this.deadline))
        };
        let old = this.timer.take().and_then(|timer| state.timers.remove(&timer));
        if shows < this.deadline {
            this.timer = Some(state.add_timer(truth.max(now + 1), cx.waker().clone()));
        }
        drop(guard);
        drop(old);
        if this.timer.is_some() { Poll::Pending } else { Poll::Ready(()) }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.cancel();
    }
}
