//! A value that many tasks watch: each sees the latest, none sees every one. Waiters wake in FIFO order.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::task::{Poll, Waker};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

/// Returns a sender and a receiver of a value that begins as `initial`. The receiver has seen `initial`.
pub fn channel<T>(initial: T) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        value: RwLock::new(initial),
        state: Mutex::new(State { version: 0, senders: 1, receivers: 1, next_waiter: 0, waiters: Vec::new() }),
    });
    (Sender { shared: Arc::clone(&shared) }, Receiver { shared, seen: 0 })
}

/// The last sender is gone; the value will not change any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the watched value has no sender any more")]
pub struct Closed;

struct Shared<T> {
    value: RwLock<T>,
    state: Mutex<State>,
}

struct State {
    version: u64,
    senders: usize,
    receivers: usize,
    next_waiter: u64,
    /// In the order in which they began to wait.
    waiters: Vec<(u64, Waker)>,
}

impl State {
    fn take_waiters(&mut self) -> Vec<(u64, Waker)> {
        std::mem::take(&mut self.waiters)
    }
}

fn wake(waiters: Vec<(u64, Waker)>) {
    for (_, waker) in waiters {
        waker.wake();
    }
}

/// Changes the value.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Sender<T> {
    /// Replaces the value and wakes every waiter.
    pub fn send(&self, value: T) {
        *self.shared.value.write() = value;
        self.changed();
    }

    /// Changes the value in place; wakes the waiters when `change` returns true.
    pub fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let modified = change(&mut self.shared.value.write());
        if modified {
            self.changed();
        }
        modified
    }

    /// Returns the value, locked: the guard must be dropped soon and not be held across an await.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.value.read())
    }

    /// Returns a receiver that has seen the present value.
    #[must_use]
    pub fn subscribe(&self) -> Receiver<T> {
        let mut state = self.shared.state.lock();
        state.receivers += 1;
        Receiver { shared: Arc::clone(&self.shared), seen: state.version }
    }

    /// Returns whether no receiver is left.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.state.lock().receivers == 0
    }

    fn changed(&self) {
        let waiters = {
            let mut state = self.shared.state.lock();
            state.version += 1;
            state.take_waiters()
        };
        wake(waiters);
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.state.lock().senders += 1;
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let waiters = {
            let mut state = self.shared.state.lock();
            state.senders -= 1;
            if state.senders > 0 {
                return;
            }
            state.take_waiters()
        };
        wake(waiters);
    }
}

impl<T: fmt::Debug> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sender").field(&*self.borrow()).finish()
    }
}

/// Watches the value.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

impl<T> Receiver<T> {
    /// Returns the value, locked, without marking it seen: see [`Sender::borrow`].
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.value.read())
    }

    /// Returns the value, locked, and marks it seen: see [`Sender::borrow`].
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let value = self.shared.value.read();
        self.seen = self.shared.state.lock().version;
        Ref(value)
    }

    /// Waits until the value differs from the one last seen, and marks it seen. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Closed`] when the last sender is gone and the last value was seen.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        let mut waiting = Waiting { shared: &self.shared, id: None };
        let seen = self.seen;
        let version = std::future::poll_fn(|cx| {
            let mut state = waiting.shared.state.lock();
            if state.version != seen {
                return Poll::Ready(Ok(state.version));
            }
            if state.senders == 0 {
                return Poll::Ready(Err(Closed));
            }
            let waker = cx.waker().clone();
            if let Some(id) = waiting.id
                && let Some(waiter) = state.waiters.iter_mut().find(|(waiter, _)| *waiter == id)
            {
                waiter.1 = waker;
                return Poll::Pending;
            }
            let id = state.next_waiter;
            state.next_waiter += 1;
            state.waiters.push((id, waker));
            waiting.id = Some(id);
            Poll::Pending
        })
        .await?;
        drop(waiting);
        self.seen = version;
        Ok(())
    }

    /// Waits until `condition` holds for the value. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Closed`] when the last sender is gone and the condition does not hold.
    pub async fn wait_for(&mut self, mut condition: impl FnMut(&T) -> bool) -> Result<(), Closed> {
        while !condition(&self.borrow_and_update()) {
            self.changed().await?;
        }
        Ok(())
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.shared.state.lock().receivers += 1;
        Self { shared: Arc::clone(&self.shared), seen: self.seen }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.state.lock().receivers -= 1;
    }
}

impl<T: fmt::Debug> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receiver").field(&*self.borrow()).finish()
    }
}

/// A waiter that leaves the list when it is dropped.
struct Waiting<'a, T> {
    shared: &'a Shared<T>,
    id: Option<u64>,
}

impl<T> Drop for Waiting<'_, T> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.shared.state.lock().waiters.retain(|(waiter, _)| *waiter != id);
        }
    }
}

/// The value, locked for reading.
pub struct Ref<'a, T>(RwLockReadGuard<'a, T>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_waiter_sees_the_latest_value_and_the_end() {
        let (sender, mut receiver) = channel(0);
        let waiter = async {
            receiver.wait_for(|value| *value == 2).await?;
            receiver.changed().await
        };
        let writer = async {
            sender.send(1);
            sender.send(2);
            drop(sender);
        };
        let (seen, ()) = tokio::join!(waiter, writer);
        assert_eq!(seen, Err(Closed));
    }

    #[tokio::test]
    async fn a_cancelled_waiter_leaves_nothing_behind() {
        let (sender, mut receiver) = channel(0);
        assert!(futures_util::FutureExt::now_or_never(receiver.changed()).is_none());
        assert!(sender.shared.state.lock().waiters.is_empty());
    }
}
