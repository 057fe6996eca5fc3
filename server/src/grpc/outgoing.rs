//! The answers of a stream, and the status that it ends with.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::Stream;
use kubemq_proto::strings::Refusal;
use kubemq_runtime::OnFailure;
use kubemq_runtime::sync::mpsc;
use kubemq_runtime::task::Task;
use tonic::{Code, Status};

use super::Door;
use crate::gateway::stream::Ended;

/// Answers as the driver of the stream produces them, in a task of its own so that reading and writing overlap.
///
/// Dropping it tells the driver that the client is gone.
pub(crate) struct Outgoing<T> {
    answers: mpsc::Receiver<T>,
    driver: Option<Task<Result<Ended, Status>>>,
}

impl<T: Send + 'static> Outgoing<T> {
    /// Runs `drive` over a channel for `capacity` answers.
    pub(crate) fn start<F, D>(door: &Arc<Door>, name: &'static str, capacity: usize, drive: D) -> Self
    where
        F: Future<Output = Result<Ended, Status>> + Send + 'static,
        D: FnOnce(mpsc::Sender<T>) -> F,
    {
        let (sender, answers) = mpsc::channel(capacity);
        let under_way = door.enter();
        let driver = drive(sender);
        let driver = door.runtime.tasks.spawn(name, OnFailure::Log, async move {
            let _under_way = under_way;
            driver.await
        });
        Self { answers, driver: Some(driver) }
    }
}

impl<T> Stream for Outgoing<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(answer) = ready!(self.answers.poll_recv(cx)) {
            return Poll::Ready(Some(Ok(answer)));
        }
        let Some(driver) = &mut self.driver else { return Poll::Ready(None) };
        let ended = ready!(Pin::new(driver).poll(cx));
        self.driver = None;
        Poll::Ready(match ended {
            Ok(Ok(Ended::Finished | Ended::Gone)) => None,
            Ok(Ok(Ended::Stopped)) => Some(Err(Refusal::StreamEndsForStop.into())),
            Ok(Err(status)) => Some(Err(with_expected_code(status))),
            Err(_) => Some(Err(Refusal::Crashed.into())),
        })
    }
}

fn with_expected_code(status: Status) -> Status {
    match status.code() {
        // What the library says of a message above the limit.
        Code::OutOfRange => Status::resource_exhausted(status.message()),
        _ => status,
    }
}
