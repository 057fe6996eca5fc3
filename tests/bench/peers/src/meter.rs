//! The closed loop: so many messages under way and no more, each timed from its start to its end.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hdrhistogram::Histogram;
use tokio::sync::{Notify, Semaphore};

/// How long the first message may take, with the connections, streams and queues before it.
const FIRST: Duration = Duration::from_secs(60);

/// Bytes at the head of a body that say when its message started, in nanoseconds since the program did.
const STAMP: usize = 8;

/// Counts and times messages. Clones are one and the same.
#[derive(Clone)]
pub(crate) struct Meter {
    shared: Arc<Shared>,
}

struct Shared {
    now: Mutex<Seen>,
    started: Mutex<Instant>,
    first: Notify,
    /// What may still go on its way.
    free: Semaphore,
    in_flight: u32,
}

/// What was seen since the meter started over.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) messages: u64,
    pub(crate) seconds: f64,
    /// In nanoseconds.
    pub(crate) latencies: Histogram<u64>,
}

impl Meter {
    pub(crate) fn new(in_flight: u32) -> anyhow::Result<Self> {
        let latencies = Histogram::new_with_bounds(1000, 60_000_000_000, 3)?;
        let now = Mutex::new(Seen { messages: 0, seconds: 0.0, latencies });
        let (started, first) = (Mutex::new(clock()), Notify::new());
        Ok(Self {
            shared: Arc::new(Shared { now, started, first, free: Semaphore::new(in_flight as usize), in_flight }),
        })
    }

    /// Waits until a message is done.
    pub(crate) async fn begun(&self) -> anyhow::Result<()> {
        tokio::time::timeout(FIRST, self.shared.first.notified()).await.context("no message was done in a minute")
    }

    /// Forgets what was seen so far.
    pub(crate) fn start_over(&self) {
        let mut now = lock(&self.shared.now);
        now.messages = 0;
        now.latencies.reset();
        *lock(&self.shared.started) = clock();
    }

    pub(crate) fn seen(&self) -> Seen {
        let seen = lock(&self.shared.now).clone();
        Seen { seconds: lock(&self.shared.started).elapsed().as_secs_f64(), ..seen }
    }

    fn done(&self, nanos: u64) {
        let mut now = lock(&self.shared.now);
        if now.messages == 0 {
            self.shared.first.notify_one();
        }
        now.messages += 1;
        now.latencies.saturating_record(nanos);
    }

    /// Publishes without end, so many at a time: `publish` is given the message's number and a body, and ends when
    /// the server has confirmed the message. With `until_received` a message is under way until [`Self::received`]
    /// is told of it, otherwise until it is confirmed.
    pub(crate) async fn publish<P>(
        &self,
        size: usize,
        until_received: bool,
        publish: impl Fn(usize, Bytes) -> P,
    ) -> anyhow::Result<()>
    where
        P: Future<Output = anyhow::Result<()>>,
    {
        let next = std::cell::Cell::new(0_usize);
        let plain = Bytes::from(vec![0x5A; size]);
        let (next, plain, publish) = (&next, &plain, &publish);
        let mut workers: FuturesUnordered<_> = (0..self.shared.in_flight)
            .map(|_| async move {
                loop {
                    if until_received {
                        self.shared.free.acquire().await?.forget();
                    }
                    let start = since_begin();
                    let body = if until_received { stamped(plain, start) } else { plain.clone() };
                    next.set(next.get() + 1);
                    publish(next.get(), body).await?;
                    if !until_received {
                        self.done(since_begin().saturating_sub(start));
                    }
                }
            })
            .collect();
        let ended: Option<anyhow::Result<()>> = workers.next().await;
        ended.context("there is nothing to publish")?
    }

    /// Says that a consumer has a message.
    pub(crate) fn received(&self, body: &[u8]) {
        let Some(stamp) = body.first_chunk::<STAMP>() else { return };
        self.done(since_begin().saturating_sub(u64::from_le_bytes(*stamp)));
        self.shared.free.add_permits(1);
    }
}

fn stamped(plain: &Bytes, nanos: u64) -> Bytes {
    let mut body = plain.to_vec();
    if let Some(head) = body.first_chunk_mut::<STAMP>() {
        *head = nanos.to_le_bytes();
    }
    Bytes::from(body)
}

fn clock() -> Instant {
    Instant::now()
}

fn since_begin() -> u64 {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    u64::try_from(BEGIN.get_or_init(clock).elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
