//! How the log's tasks are given work.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use kubemq_runtime::sync::Notify;
use parking_lot::Mutex;

use super::Done;
use super::entry::{Entry, LogId};
use super::frame::Frame;
use crate::Error;

/// Work for any of several tasks, first come, first served. Bounded by its callers, who wait for answers.
pub(crate) struct Queue<T> {
    state: Mutex<(VecDeque<T>, bool)>,
    changed: Notify,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::new((VecDeque::new(), false)), changed: Notify::new() }
    }

    /// Adds work; drops it when the queue is closed, which the caller sees by its answer channel.
    pub(crate) fn push(&self, work: T) {
        let mut state = self.state.lock();
        if !state.1 {
            state.0.push_back(work);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Waits for work; returns nothing once the queue is closed and empty.
    pub(crate) async fn pop(&self) -> Option<T> {
        loop {
            {
                let mut state = self.state.lock();
                if let Some(work) = state.0.pop_front() {
                    return Some(work);
                }
                if state.1 {
                    // The next task that waits has to learn it, too.
                    self.changed.notify_one();
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    /// Lets the tasks end when they have done what is queued.
    pub(crate) fn close(&self) {
        self.state.lock().1 = true;
        self.changed.notify_one();
    }
}

/// What the writer is asked to do. Everything that changes the log passes through here, in one order.
pub(crate) enum Command {
    Append { entries: Vec<Entry>, epoch: u64, done: Done },
    Frame { frame: Frame, epoch: Option<u64>, done: Done },
    Close { done: Done },
}

/// The writer's inbox: it takes all of it at once, and is woken only when it waits.
pub(crate) struct Inbox(Mutex<InboxState>);

#[derive(Default)]
struct InboxState {
    commands: Vec<Command>,
    committed: Option<LogId>,
    waker: Option<Waker>,
    closed: Option<Error>,
    /// No handle of the log is left.
    abandoned: bool,
}

/// A command that came too late, and why.
pub(crate) struct TooLate(pub(crate) Command, pub(crate) Error);

impl Inbox {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(InboxState::default()))
    }

    /// Adds a command. The caller wakes the returned waker when it has released its locks.
    pub(crate) fn push(&self, command: Command) -> Result<Option<Waker>, Box<TooLate>> {
        let mut state = self.0.lock();
        if let Some(error) = &state.closed {
            return Err(Box::new(TooLate(command, error.clone())));
        }
        state.commands.push(command);
        Ok(state.waker.take())
    }

    /// Notes how far entries are committed; rides on the next group.
    pub(crate) fn set_committed(&self, id: LogId) {
        self.0.lock().committed = Some(id);
    }

    pub(crate) fn committed(&self) -> Option<LogId> {
        self.0.lock().committed
    }

    /// Moves the commands to `into` when there are any. Ready with false when none will come.
    pub(crate) fn poll_take(&self, cx: &mut Context<'_>, into: &mut Vec<Command>) -> Poll<bool> {
        let mut state = self.0.lock();
        if !state.commands.is_empty() {
            into.append(&mut state.commands);
            return Poll::Ready(true);
        }
        if state.abandoned {
            return Poll::Ready(false);
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Moves the commands that are there to `into`.
    pub(crate) fn take(&self, into: &mut Vec<Command>) {
        into.append(&mut self.0.lock().commands);
    }

    /// Answers every later command with `error`; returns the commands that came before.
    pub(crate) fn close(&self, error: Error) -> Vec<Command> {
        let mut state = self.0.lock();
        state.closed.get_or_insert(error);
        std::mem::take(&mut state.commands)
    }

    /// Lets the writer end when it has done what is queued.
    pub(crate) fn abandon(&self) {
        let waker = {
            let mut state = self.0.lock();
            state.abandoned = true;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
