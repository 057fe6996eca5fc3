//! openraft's watch channel over ours, whose waiters wake in the order in which they began to wait.
//!
//! For runtimes that must replay; production uses openraft's tokio runtime as it comes.

use kubemq_runtime::sync::watch;
use openraft::async_runtime::watch::{RecvError, SendError, Watch, WatchReceiver, WatchSender};

/// The kind of watch channel. See [`Watch`].
pub struct FifoWatch;

/// The sending half. See [`WatchSender`].
pub struct FifoSender<T>(watch::Sender<T>);

/// The receiving half. See [`WatchReceiver`].
pub struct FifoReceiver<T>(watch::Receiver<T>);

impl<T> Clone for FifoSender<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Clone for FifoReceiver<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl Watch for FifoWatch {
    type Sender<T: Send + Sync> = FifoSender<T>;
    type Receiver<T: Send + Sync> = FifoReceiver<T>;
    type Ref<'a, T: Send + 'a> = watch::Ref<'a, T>;

    fn channel<T: Send + Sync>(init: T) -> (FifoSender<T>, FifoReceiver<T>) {
        let (sender, receiver) = watch::channel(init);
        (FifoSender(sender), FifoReceiver(receiver))
    }
}

impl<T: Send + Sync> WatchSender<FifoWatch, T> for FifoSender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        if self.0.is_closed() {
            return Err(SendError(value));
        }
        self.0.send(value);
        Ok(())
    }

    fn send_if_modified<F>(&self, modify: F) -> bool
    where
        F: FnOnce(&mut T) -> bool,
    {
        self.0.send_if_modified(modify)
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.0.borrow()
    }

    fn subscribe(&self) -> FifoReceiver<T> {
        FifoReceiver(self.0.subscribe())
    }
}

impl<T: Send + Sync> WatchReceiver<FifoWatch, T> for FifoReceiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        self.0.changed().await.map_err(|_| RecvError(()))
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.0.borrow()
    }

    fn borrow_and_update(&mut self) -> watch::Ref<'_, T> {
        self.0.borrow_and_update()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_behaves_as_openraft_expects() {
        let (sender, mut receiver) = FifoWatch::channel(1);
        assert!(sender.send_if_greater(2));
        assert!(!sender.send_if_greater(2));
        assert_eq!(receiver.wait_until_ge(&2).await, Ok(2));
        assert_eq!(*receiver.borrow_and_update(), 2);
        drop(receiver);
        assert_eq!(sender.send(3), Err(SendError(3)));
        let mut late = sender.subscribe();
        assert_eq!(*late.borrow_watched(), 2, "a value that nobody can see is not kept");
        drop(sender);
        assert_eq!(late.changed().await, Err(RecvError(())));
    }
}
