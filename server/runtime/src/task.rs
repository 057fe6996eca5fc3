//! Tasks and threads: each has a name, an owner, and says what its failure means.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use crate::sync::watch;

/// What the failure of a task means for its node. A task fails when it panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// State may be wrong: the whole node must stop.
    StopNode,
    /// Only one client or request is concerned: it is logged.
    Log,
}

/// What stands behind [`Tasks`].
pub trait Spawner: Send + Sync + 'static {
    /// Runs `future` beside others.
    fn spawn(&self, name: &'static str, future: BoxFuture<'static, ()>) -> Box<dyn Abort>;
    /// Runs `future` on a thread of its own, where it may block.
    fn dedicated(&self, name: &'static str, future: BoxFuture<'static, ()>);
    /// Runs `work`, which may block for a while, away from the tasks that serve the network.
    fn compute(&self, name: &'static str, work: Box<dyn FnOnce() + Send>);
}

/// Ends a task at its next await.
pub trait Abort: Send + Sync {
    /// Ends the task; does nothing when it has ended.
    fn abort(&self);
}

/// Starts tasks and threads.
#[derive(Clone)]
pub struct Tasks {
    spawner: Arc<dyn Spawner>,
    failed: watch::Sender<Option<&'static str>>,
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tasks")
    }
}

impl Tasks {
    /// Returns tasks over `spawner`.
    pub fn new(spawner: impl Spawner) -> Self {
        let (failed, _) = watch::channel(None);
        Self { spawner: Arc::new(spawner), failed }
    }

    /// Returns tasks of the tokio runtime that the caller runs in.
    ///
    /// # Panics
    ///
    /// Panics when called outside a tokio runtime.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the door to tasks")]
    pub fn tokio() -> Self {
        Self::new(Tokio(tokio::runtime::Handle::current()))
    }

    /// Runs `future` beside others. Dropping the returned [`Task`] leaves it running.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &'static str,
        on_failure: OnFailure,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Task<T> {
        let (guarded, result) = self.guard(name, on_failure, future);
        Task { result, abort: Some(self.spawner.spawn(name, guarded)) }
    }

    /// Runs `future` on a thread of its own, where it may block. It cannot be aborted.
    pub fn dedicated<T: Send + 'static>(
        &self,
        name: &'static str,
        on_failure: OnFailure,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Task<T> {
        let (guarded, result) = self.guard(name, on_failure, future);
        self.spawner.dedicated(name, guarded);
        Task { result, abort: None }
    }

    /// Runs `work`, which may block for a while, away from the tasks that serve the network.
    pub fn compute<T: Send + 'static>(&self, name: &'static str, work: impl FnOnce() -> T + Send + 'static) -> Task<T> {
        let (sender, result) = oneshot::channel();
        self.spawner.compute(
            name,
            Box::new(move || {
                // The receiver may be gone; the work was asked for all the same.
                sender.send(work()).ok();
            }),
        );
        Task { result, abort: None }
    }

    /// Waits until a task whose failure means [`OnFailure::StopNode`] has failed, and returns its name.
    pub async fn failure(&self) -> &'static str {
        let mut failed = self.failed.subscribe();
        loop {
            if let Some(name) = *failed.borrow_and_update() {
                return name;
            }
            if failed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Reports a failure that no panic shows: the node must stop because of `name`.
    pub fn fail(&self, name: &'static str) {
        self.failed.send_if_modified(|failed| failed.replace(name).is_none());
    }

    fn guard<T: Send + 'static>(
        &self,
        name: &'static str,
        on_failure: OnFailure,
        future: impl Future<Output = T> + Send + 'static,
    ) -> (BoxFuture<'static, ()>, oneshot::Receiver<T>) {
        let (sender, result) = oneshot::channel();
        let tasks = self.clone();
        let guarded = async move {
            match AssertUnwindSafe(future).catch_unwind().await {
                Ok(value) => {
                    // The owner may not care for the value.
                    sender.send(value).ok();
                }
                Err(panic) => {
                    tracing::error!(task = name, panic = text(&*panic), "task panicked");
                    if on_failure == OnFailure::StopNode {
                        tasks.fail(name);
                    }
                }
            }
        };
        (Box::pin(guarded), result)
    }
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let static_text = panic.downcast_ref::<&'static str>().copied();
    static_text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

/// The task did not end with a value: it panicked or was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the task ended without a result")]
pub struct TaskGone;

/// A running task. Dropping it leaves the task running.
pub struct Task<T> {
    result: oneshot::Receiver<T>,
    abort: Option<Box<dyn Abort>>,
}

impl<T> Task<T> {
    /// Ends the task at its next await. Does nothing to a dedicated thread.
    pub fn abort(&self) {
        if let Some(abort) = &self.abort {
            abort.abort();
        }
    }

    /// Returns a guard that ends the task when it is dropped.
    #[must_use]
    pub fn abort_on_drop(self) -> AbortOnDrop<T> {
        AbortOnDrop(self)
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, TaskGone>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.result).poll(cx).map_err(|_| TaskGone)
    }
}

/// Ends its task when dropped.
pub struct AbortOnDrop<T>(Task<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Tokio(tokio::runtime::Handle);

#[expect(clippy::disallowed_methods, reason = "this is the door to tasks")]
impl Spawner for Tokio {
    fn spawn(&self, _name: &'static str, future: BoxFuture<'static, ()>) -> Box<dyn Abort> {
        Box::new(self.0.spawn(future).abort_handle())
    }

    fn dedicated(&self, name: &'static str, future: BoxFuture<'static, ()>) {
        let handle = self.0.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || handle.block_on(future));
        if let Err(error) = thread {
            // The future was dropped with its result channel, which its owner sees as `TaskGone`.
            tracing::error!(task = name, %error, "could not start a thread");
        }
    }

    fn compute(&self, _name: &'static str, work: Box<dyn FnOnce() + Send>) {
        drop(self.0.spawn_blocking(work));
    }
}

impl Abort for tokio::task::AbortHandle {
    fn abort(&self) {
        tokio::task::AbortHandle::abort(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_of_an_owner_of_state_is_reported() {
        let tasks = Tasks::tokio();
        let task = tasks.spawn("harmless", OnFailure::Log, async { panic!("one request") });
        assert_eq!(task.await, Err::<(), _>(TaskGone));
        let task = tasks.dedicated("log-writer", OnFailure::StopNode, async { panic!("state") });
        assert_eq!(task.await, Err::<(), _>(TaskGone));
        assert_eq!(tasks.failure().await, "log-writer");
    }

    #[tokio::test]
    async fn results_come_back() {
        let tasks = Tasks::tokio();
        assert_eq!(tasks.spawn("a", OnFailure::Log, async { 1 }).await, Ok(1));
        assert_eq!(tasks.dedicated("b", OnFailure::Log, async { 2 }).await, Ok(2));
        assert_eq!(tasks.compute("c", || 3).await, Ok(3));
    }
}
