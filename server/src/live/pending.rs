//! Requests that wait for their answer, by the token that came with them to their responders.
//!
//! Only a token that this table made leads to a requester; it is too long to be guessed, and good for one answer.

use std::sync::Arc;

use kubemq_proto::id;
use kubemq_proto::kubemq::Response;
use kubemq_runtime::sync::oneshot;
use kubemq_runtime::{FixedHashMap, Random};
use parking_lot::Mutex;

/// What tokens begin with: responders see them, and those of the original begin so.
const PREFIX: &str = "_INBOX.";

/// The requests that wait.
#[derive(Debug)]
pub(super) struct Pending {
    most: usize,
    waiting: Mutex<FixedHashMap<Arc<str>, oneshot::Sender<Response>>>,
}

impl Pending {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, waiting: Mutex::default() })
    }

    /// Waits for an answer from now on; nothing when as many wait as may.
    pub(super) fn wait(self: &Arc<Self>, random: &Random) -> Option<Waiting> {
        let token: Arc<str> = format!("{PREFIX}{}", id::nuid(random)).into();
        let (sender, answer) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        if waiting.len() >= self.most {
            return None;
        }
        waiting.insert(Arc::clone(&token), sender);
        drop(waiting);
        Some(Waiting { pending: Arc::clone(self), token, answer })
    }

    /// Hands `response` to whoever waits under `token`; returns whether somebody did.
    pub(super) fn answer(&self, token: &str, response: Response) -> bool {
        let sender = self.waiting.lock().remove(token);
        sender.is_some_and(|sender| sender.send(response).is_ok())
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.lock().len()
    }
}

/// One request that waits. Dropping it gives up.
#[derive(Debug)]
pub(super) struct Waiting {
    pending: Arc<Pending>,
    token: Arc<str>,
    answer: oneshot::Receiver<Response>,
}

impl Waiting {
    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// Waits for the first answer. Cancel safe.
    pub(super) async fn answer(&mut self) -> Option<Response> {
        // The sender goes with an answer, never without.
        (&mut self.answer).await.ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.pending.waiting.lock().remove(&self.token);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn response(text: &str) -> Response {
        Response { error: text.to_owned(), ..Response::default() }
    }

    #[test]
    fn the_first_answer_counts() {
        let (pending, random) = (Pending::new(10), Random::from_seed(1));
        let (mut one, mut two) = (pending.wait(&random).unwrap(), pending.wait(&random).unwrap());
        assert_ne!(one.token(), two.token());
        let token = one.token().to_owned();
        assert!(pending.answer(&token, response("first")));
        assert!(!pending.answer(&token, response("second")));
        assert!(!pending.answer("_EVENTS_.x", response("nobody")));
        assert_eq!(one.answer().now_or_never(), Some(Some(response("first"))));
        assert_eq!(two.answer().now_or_never(), None);
        assert_eq!(pending.len(), 1);
    }

    #[test]
    fn who_gives_up_leaves_nothing_behind() {
        let (pending, random) = (Pending::new(10), Random::from_seed(1));
        let waiting = pending.wait(&random).unwrap();
        let token = waiting.token().to_owned();
        drop(waiting);
        assert_eq!(pending.len(), 0);
        assert!(!pending.answer(&token, response("late")));
    }

    #[test]
    fn the_table_is_bounded() {
        let (pending, random) = (Pending::new(3), Random::from_seed(1));
        let all: Vec<Waiting> = std::iter::from_fn(|| pending.wait(&random)).take(10).collect();
        assert_eq!(all.len(), 3);
        drop(all);
        assert!(pending.wait(&random).is_some());
    }
}
