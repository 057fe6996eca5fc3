//! The log on the memory disk, run by an executor of one thread whose clock moves when nothing else does.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::future::BoxFuture;
use kubemq_runtime::clock::TimeSource;
use kubemq_runtime::task::{Abort, Spawner};
use kubemq_runtime::{Clock, Instant, Random, Runtime, Tasks, UnixNanos};
use parking_lot::Mutex;

use super::*;
use crate::fs::MemoryDisk;
use crate::{EntryKind, Parts};

mod crashes;
mod damage;
mod faults;
mod reads;
mod real;
mod segments;
mod writes;

/// Runs tasks one after the other; time jumps to the next timer when all wait.
#[derive(Clone, Default)]
pub(super) struct World(Arc<WorldState>);

#[derive(Default)]
struct WorldState {
    tasks: Mutex<Vec<TestTask>>,
    timers: Mutex<BTreeSet<u64>>,
    now: AtomicU64,
}

struct TestTask {
    future: BoxFuture<'static, ()>,
    ready: Arc<Ready>,
}

struct Ready(AtomicBool);

impl Wake for Ready {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Spawner for World {
    fn spawn(&self, name: &'static str, future: BoxFuture<'static, ()>) -> Box<dyn Abort> {
        self.dedicated(name, future);
        Box::new(NoAbort)
    }

    fn dedicated(&self, _name: &'static str, future: BoxFuture<'static, ()>) {
        let ready = Arc::new(Ready(AtomicBool::new(true)));
        self.0.tasks.lock().push(TestTask { future, ready });
    }

    fn compute(&self, _name: &'static str, work: Box<dyn FnOnce() + Send>) {
        work();
    }
}

struct NoAbort;

impl Abort for NoAbort {
    fn abort(&self) {}
}

struct Sleep {
    world: World,
    until: u64,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<()> {
        if self.world.0.now.load(Ordering::SeqCst) >= self.until {
            return Poll::Ready(());
        }
        // Everything is polled again when time moves, so the waker is not needed.
        self.world.0.timers.lock().insert(self.until);
        Poll::Pending
    }
}

impl TimeSource for World {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.now.load(Ordering::SeqCst))
    }

    fn wall(&self) -> UnixNanos {
        UnixNanos(self.0.now.load(Ordering::SeqCst))
    }

    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        Box::pin(Sleep { world: self.clone(), until: deadline.as_nanos() })
    }
}

impl World {
    pub(super) fn runtime(&self) -> Runtime {
        Runtime { clock: Clock::new(self.clone()), random: Random::from_seed(0), tasks: Tasks::new(self.clone()) }
    }

    /// Runs everything until `main` ends. Panics when nothing can go on.
    pub(super) fn run<T>(&self, main: impl Future<Output = T>) -> T {
        let mut main = pin!(main);
        let ready = Arc::new(Ready(AtomicBool::new(true)));
        let waker = Waker::from(Arc::clone(&ready));
        loop {
            let mut worked = false;
            if ready.0.swap(false, Ordering::SeqCst) {
                worked = true;
                if let Poll::Ready(value) = main.as_mut().poll(&mut Context::from_waker(&waker)) {
                    return value;
                }
            }
            worked |= self.poll_tasks();
            if !worked {
                assert!(self.next_instant(&ready), "all tasks wait for ever");
            }
        }
    }

    /// Runs the tasks until all wait, without letting time pass.
    pub(super) fn settle(&self) {
        while self.poll_tasks() {}
    }

    /// Drops all tasks, as a crash does.
    pub(super) fn crash(&self) {
        let tasks = std::mem::take(&mut *self.0.tasks.lock());
        drop(tasks);
    }

    pub(super) fn tasks(&self) -> usize {
        self.0.tasks.lock().len()
    }

    fn poll_tasks(&self) -> bool {
        let mut worked = false;
        let tasks = std::mem::take(&mut *self.0.tasks.lock());
        let mut left = Vec::with_capacity(tasks.len());
        for mut task in tasks {
            if !task.ready.0.swap(false, Ordering::SeqCst) {
                left.push(task);
                continue;
            }
            worked = true;
            let waker = Waker::from(Arc::clone(&task.ready));
            if task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
                left.push(task);
            }
        }
        let mut tasks = self.0.tasks.lock();
        left.append(&mut tasks);
        *tasks = left;
        worked
    }

    fn next_instant(&self, main: &Ready) -> bool {
        let Some(next) = self.0.timers.lock().pop_first() else { return false };
        self.0.now.fetch_max(next, Ordering::SeqCst);
        main.0.store(true, Ordering::SeqCst);
        for task in self.0.tasks.lock().iter() {
            task.ready.0.store(true, Ordering::SeqCst);
        }
        true
    }
}

pub(super) fn small() -> Options {
    Options { segment_bytes: 2048, tail_cache_bytes: 1024, group_bytes: 1024, ..Options::default() }
}

pub(super) fn dir() -> PathBuf {
    PathBuf::from("data/log/0")
}

pub(super) fn id(term: u64, index: u64) -> LogId {
    LogId { term, node: term % 3 + 1, index }
}

/// An entry whose content follows from its id: two parts, the second `size` bytes long.
pub(super) fn entry(term: u64, index: u64, size: usize) -> Entry {
    let mut parts = Parts::builder();
    parts.push(format!("{term}/{index}").as_bytes());
    parts.push(&vec![u8::try_from((term * 31 + index) % 251).unwrap(); size]);
    Entry { id: id(term, index), time: index * 1000, kind: EntryKind::Normal, parts: parts.finish() }
}

pub(super) fn entries(term: u64, indexes: std::ops::Range<u64>, size: usize) -> Vec<Entry> {
    indexes.map(|index| entry(term, index, size)).collect()
}

impl Log {
    /// Appends and waits until the entries are on the disk.
    pub(super) async fn append_synced(&self, entries: Vec<Entry>) -> Result<(), Error> {
        let (done, result) = callback();
        self.append(entries, done);
        result.await.unwrap_or(Err(Error::Closed))
    }

    /// Forgets what was read ahead, so that the next read asks the disk.
    pub(super) fn forget_read_ahead(&self) {
        self.0.shared.index.lock().forget_read_ahead(0);
    }

    /// Returns all entries above the purge point.
    pub(super) async fn all(&self) -> Result<Vec<Entry>, Error> {
        let state = self.state();
        let from = state.purged.map_or(1, |purged| purged.index + 1);
        match state.last {
            Some(last) if last.index >= from => self.entries(from, last.index + 1, u64::MAX).await,
            _ => Ok(Vec::new()),
        }
    }
}

/// A world with a log on a memory disk.
pub(super) struct Bench {
    pub(super) world: World,
    pub(super) disk: MemoryDisk,
    pub(super) log: Log,
}

impl Bench {
    pub(super) fn new(options: Options) -> Self {
        Self::on(MemoryDisk::new(), options)
    }

    pub(super) fn on(disk: MemoryDisk, options: Options) -> Self {
        Self::try_on(disk, options).unwrap()
    }

    pub(super) fn try_on(disk: MemoryDisk, options: Options) -> Result<Self, Error> {
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let (world, log) = open(shared, options)?;
        Ok(Self { world, disk, log })
    }

    pub(super) fn run<T>(&self, main: impl Future<Output = T>) -> T {
        self.world.run(main)
    }

    /// Kills the process and opens the log again.
    pub(super) fn restart(self, options: Options) -> Self {
        self.disk.fence();
        self.world.crash();
        Self::on(self.disk.process_crash(), options)
    }
}

/// Purges the log up to `last` and removes every segment that may go.
pub(super) fn free_all(bench: &Bench, last: u64) {
    bench.log.applied(last);
    bench.run(bench.log.purge(id(1, last))).unwrap();
    let segments = bench.log.segments();
    let sealed = segments.iter().filter(|info| info.sealed && info.last.is_none_or(|it| it <= last));
    bench.run(bench.log.remove_segments(sealed.map(|info| info.number).collect())).unwrap();
}

pub(super) fn open(disk: Arc<dyn Disk>, options: Options) -> Result<(World, Log), Error> {
    let world = World::default();
    let runtime = world.runtime();
    let log = world.run(Log::open(disk, dir(), options, &runtime))?;
    Ok((world, log))
}
