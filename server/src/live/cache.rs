//! Answers to queries that named a cache key: the most recently used, within so many bytes.
//!
//! An answer belongs to its channel and key and lives for the seconds that its query gave, at most for as long as
//! the configuration allows: some clients count in milliseconds without saying so. What is kept is copied out of
//! the connection's buffers, so that it costs what it is charged. Expired answers leave when they are asked for
//! or when room is needed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kubemq_proto::kubemq::Response;
use kubemq_runtime::{FixedHashMap, Instant};
use parking_lot::Mutex;
use prost::Message as _;

/// What an answer costs beside its bytes.
const OVERHEAD: usize = 256;

/// The kept answers of a node.
#[derive(Debug)]
pub(super) struct Cache {
    most: usize,
    longest: Duration,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    answers: FixedHashMap<Arc<str>, Answer>,
    /// Keys by when they were used last.
    used: BTreeMap<u64, Arc<str>>,
    uses: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Answer {
    response: Response,
    until: Instant,
    used: u64,
    bytes: usize,
}

impl Cache {
    /// Returns a cache of at most so many bytes, none for zero, in which no answer lives longer than `longest`.
    pub(super) fn new(most: usize, longest: Duration) -> Self {
        Self { most, longest, kept: Mutex::default() }
    }

    /// Returns the answer that is kept for `key` on `channel`.
    pub(super) fn get(&self, channel: &str, key: &str, now: Instant) -> Option<Response> {
        if self.most == 0 {
            return None;
        }
        let mut kept = self.kept.lock();
        let key = name(channel, key);
        if kept.answers.get(&*key)?.until <= now {
            kept.remove(&key);
            return None;
        }
        Some(kept.touch(&key)?.response.clone())
    }

    /// Keeps `response` for `key` on `channel` from now on for so many seconds.
    pub(super) fn put(&self, channel: &str, key: &str, response: &Response, seconds: i32, now: Instant) {
        let name = name(channel, key);
        let bytes = name.len() + response.encoded_len() + OVERHEAD;
        if bytes > self.most {
            return;
        }
        let life = Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).min(self.longest);
        let response = Response {
            body: Bytes::copy_from_slice(&response.body),
            span: Bytes::copy_from_slice(&response.span),
            ..response.clone()
        };
        let mut kept = self.kept.lock();
        kept.remove(&name);
        while kept.bytes + bytes > self.most && kept.remove_oldest() {}
        kept.insert(name.into(), Answer { response, until: now + life, used: 0, bytes });
    }

    /// Returns how many answers are kept and what they cost.
    pub(super) fn size(&self) -> (usize, usize) {
        let kept = self.kept.lock();
        (kept.answers.len(), kept.bytes)
    }
}

/// No channel has a NUL in its name, so that no two pairs have the same name.
fn name(channel: &str, key: &str) -> String {
    format!("{channel}\0{key}")
}

impl Kept {
    fn insert(&mut self, key: Arc<str>, answer: Answer) {
        self.bytes += answer.bytes;
        self.answers.insert(Arc::clone(&key), answer);
        self.touch(&key);
    }

    /// Makes `key` the one that was used last.
    fn touch(&mut self, key: &str) -> Option<&Answer> {
        let (kept_key, _) = self.answers.get_key_value(key)?;
        let kept_key = Arc::clone(kept_key);
        let answer = self.answers.get_mut(key)?;
        self.used.remove(&answer.used);
        self.uses += 1;
        answer.used = self.uses;
        self.used.insert(self.uses, kept_key);
        Some(answer)
    }

    fn remove(&mut self, key: &str) {
        if let Some(answer) = self.answers.remove(key) {
            self.used.remove(&answer.used);
            self.bytes -= answer.bytes;
        }
    }

    /// Removes the answer that was not used for the longest time; false when there is none.
    fn remove_oldest(&mut self) -> bool {
        let Some((_, key)) = self.used.first_key_value() else { return false };
        let key = Arc::clone(key);
        self.remove(&key);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn response(text: &str) -> Response {
        Response { executed: true, body: Bytes::from(text.to_owned()), ..Response::default() }
    }

    fn at(seconds: u64) -> Instant {
        Instant::default() + Duration::from_secs(seconds)
    }

    #[test]
    fn an_answer_is_that_of_its_channel_and_key_until_it_expires() {
        let cache = Cache::new(1 << 20, HOUR);
        cache.put("a", "k", &response("1"), 2, at(0));
        cache.put("b", "k", &response("2"), 10, at(0));
        assert_eq!(cache.get("a", "k", at(1)), Some(response("1")));
        assert_eq!(cache.get("b", "k", at(1)), Some(response("2")));
        assert_eq!(cache.get("a", "other", at(1)), None);
        assert_eq!(cache.get("a", "k", at(2)), None);
        assert_eq!(cache.size().0, 1, "an expired answer leaves when it is asked for");
        cache.put("b", "k", &response("3"), 10, at(5));
        assert_eq!(cache.get("b", "k", at(14)), Some(response("3")), "the life begins when it is stored");
    }

    #[test]
    fn a_life_time_is_clamped() {
        let cache = Cache::new(1 << 20, HOUR);
        cache.put("a", "k", &response("1"), 900_000, at(0));
        assert!(cache.get("a", "k", at(3599)).is_some());
        assert!(cache.get("a", "k", at(3600)).is_none());
    }

    #[test]
    fn what_was_not_used_for_the_longest_time_makes_room() {
        let text = "x".repeat(1000);
        let cache = Cache::new(5000, HOUR);
        for key in ["1", "2", "3"] {
            cache.put("a", key, &response(&text), 100, at(0));
        }
        assert!(cache.get("a", "1", at(1)).is_some());
        cache.put("a", "4", &response(&text), 100, at(1));
        let there = ["1", "2", "3", "4"].map(|key| cache.get("a", key, at(1)).is_some());
        assert_eq!(there, [true, false, true, true]);
        assert!(cache.size().1 <= 5000);
        cache.put("a", "5", &response(&"x".repeat(5000)), 100, at(1));
        assert_eq!(cache.get("a", "5", at(1)), None, "what is larger than the cache is not kept");
        assert_eq!(cache.size().0, 3);
    }

    #[test]
    fn no_room_keeps_nothing() {
        let cache = Cache::new(0, HOUR);
        cache.put("a", "k", &response("1"), 100, at(0));
        assert_eq!((cache.get("a", "k", at(0)), cache.size()), (None, (0, 0)));
    }

    #[test]
    fn what_is_kept_holds_no_buffer_of_a_connection() {
        let buffer = Bytes::from(vec![7; 100_000]);
        let cache = Cache::new(1 << 20, HOUR);
        cache.put("a", "k", &Response { body: buffer.slice(..10), ..Response::default() }, 100, at(0));
        let kept = cache.get("a", "k", at(0)).unwrap();
        assert!(!buffer.as_ptr_range().contains(&kept.body.as_ptr()));
    }
}
