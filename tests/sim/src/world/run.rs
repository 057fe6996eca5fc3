//! The run loop, and what ends it.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Once};
use std::task::{Context, Poll};
use std::time::Duration;

use kubemq_runtime::Random;
use parking_lot::Mutex;

use super::{HARNESS, Order, Place, Task, World, current};

/// More polls than this at one instant are a livelock.
const MOST_POLLS_AT_ONE_INSTANT: u64 = 3_000_000;

/// Why a run failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed of the run.
    pub seed: u64,
    /// The simulated nanosecond.
    pub at: u64,
    /// What happened.
    pub reason: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {} failed after {:?}: {}", self.seed, Duration::from_nanos(self.at), self.reason)
    }
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Panics of simulated tasks are noted for the run loop instead of printed; they fail the run even when the code
/// under test catches them, because that code would only log them.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if current::world_number() == 0 {
                before(info);
                return;
            }
            let mut text = info.to_string();
            if std::env::var_os("KUBEMQ_SIM_BACKTRACE").is_some() {
                text = format!("{text}\n{}", std::backtrace::Backtrace::force_capture());
            }
            // Inside a destructor of the thread's storage there is nobody left to tell.
            PANICS.try_with(|panics| panics.borrow_mut().push(text)).ok();
        }));
    });
}

fn noted_panic() -> Option<String> {
    PANICS.with(|panics| {
        let mut panics = panics.borrow_mut();
        let text = (!panics.is_empty()).then(|| panics.join("; then "));
        panics.clear();
        text
    })
}

/// One run of a world. Dropping it drops every task while the world still exists.
pub struct Simulation {
    world: World,
    harness: Arc<Place>,
    schedule: Random,
    longest: u64,
    inspect: Option<Box<dyn FnMut() -> Result<(), String>>>,
}

impl Simulation {
    /// Returns a world under `seed` that ends with a failure after `longest` of simulated time.
    #[must_use]
    pub fn new(seed: u64, order: Order, longest: Duration, keep_trace: bool) -> Self {
        note_panics();
        let world = World::new(seed, order, keep_trace);
        let harness = world.place(HARNESS);
        let schedule = world.random("schedule");
        let longest = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
        Self { world, harness, schedule, longest, inspect: None }
    }

    /// Returns the world.
    #[must_use]
    pub fn world(&self) -> World {
        self.world.clone()
    }

    /// Returns the place of the harness.
    #[must_use]
    pub fn harness(&self) -> Arc<Place> {
        Arc::clone(&self.harness)
    }

    /// Calls `inspect` whenever time is about to pass; its error fails the run.
    pub fn at_each_instant(&mut self, inspect: impl FnMut() -> Result<(), String> + 'static) {
        self.inspect = Some(Box::new(inspect));
    }

    /// Returns the kept trace and forgets it.
    #[must_use]
    pub fn take_trace(&self) -> String {
        self.world.take_trace()
    }

    /// Runs `root` as a task of the harness, and everything that it starts, until it ends.
    ///
    /// # Errors
    ///
    /// The first failure: a reported one, a panic, a deadlock, a livelock, or the limit of simulated time.
    pub fn run<T: Send + 'static>(&mut self, root: impl Future<Output = T> + Send + 'static) -> Result<T, Failure> {
        let result = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&result);
        let task = async move {
            let value = root.await;
            *slot.lock() = Some(value);
        };
        self.world.spawn(&self.harness, "root", Box::pin(task));
        let mut at_this_instant = 0_u64;
        loop {
            if let Some(panic) = noted_panic() {
                self.world.fail(panic);
            }
            if let Some(failure) = self.failure() {
                return Err(failure);
            }
            if let Some(value) = result.lock().take() {
                return Ok(value);
            }
            if let Some(task) = self.pick() {
                at_this_instant += 1;
                if at_this_instant > MOST_POLLS_AT_ONE_INSTANT {
                    self.world
                        .fail(format!("livelock: {at_this_instant} polls at one instant, now of {}", self.name(task)));
                    continue;
                }
                self.poll(task);
            } else {
                at_this_instant = 0;
                if let Some(inspect) = &mut self.inspect
                    && let Err(reason) = inspect()
                {
                    self.world.fail(reason);
                    continue;
                }
                self.advance();
            }
        }
    }

    fn failure(&self) -> Option<Failure> {
        let state = self.world.0.state.lock();
        let reason = state.failure.clone()?;
        Some(Failure { seed: self.world.seed(), at: state.now, reason })
    }

    fn name(&self, task: u64) -> String {
        let state = self.world.0.state.lock();
        state
            .tasks
            .get(&task)
            .map_or_else(|| "a finished task".to_owned(), |task| format!("{} at {:?}", task.name, task.place))
    }

    /// Takes a ready task of a node that is not frozen.
    fn pick(&self) -> Option<u64> {
        let mut guard = self.world.0.state.lock();
        let state = &mut *guard;
        for id in self.world.0.woken.lock().drain(..) {
            let Some(task) = state.tasks.get(&id) else { continue };
            let node = task.place.node;
            let frozen = state.nodes.get(node).is_some_and(|node| node.frozen);
            if frozen {
                state.nodes[node].parked.push(id);
            } else {
                state.runnable.push(id);
            }
        }
        let ready = state.runnable.len();
        if ready == 0 {
            return None;
        }
        let index = match self.world.0.order {
            _ if ready == 1 => 0,
            Order::Fifo => 0,
            Order::MostlyLast if self.schedule.below(4) != 0 => ready - 1,
            Order::Any | Order::MostlyLast => usize::try_from(self.schedule.below(ready as u64)).unwrap_or(0),
        };
        Some(state.runnable.remove(index))
    }

    fn poll(&self, id: u64) {
        let mut state = self.world.0.state.lock();
        let Some(task) = state.tasks.get_mut(&id) else { return };
        if task.aborted {
            let place = Arc::clone(&task.place);
            let task = state.tasks.remove(&id);
            drop(state);
            let entered = current::enter(&self.world, &place);
            if let Some(task) = task {
                self.world.drop_caught(task, "while a task was aborted");
            }
            drop(entered);
            return;
        }
        let Some(mut future) = task.future.take() else { return };
        let (place, waker) = (Arc::clone(&task.place), task.waker.clone());
        task.ready.queued.store(false, Ordering::Relaxed);
        if state.nodes.get(place.node).is_some_and(|node| node.frozen) {
            // Frozen after it was queued.
            task_back(&mut state.tasks, id, future);
            state.nodes[place.node].parked.push(id);
            return;
        }
        state.polls += 1;
        state.looks = 0;
        state.trace.word(id);
        drop(state);
        let entered = current::enter(&self.world, &place);
        let mut context = Context::from_waker(&waker);
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context)));
        match polled {
            Ok(Poll::Pending) => {
                let mut state = self.world.0.state.lock();
                let left = task_back(&mut state.tasks, id, future);
                drop(state);
                // Killed by itself: dropped here, outside the lock.
                drop(left);
            }
            Ok(Poll::Ready(())) | Err(_) => {
                // A panic's text was noted by the hook.
                let task = self.world.0.state.lock().tasks.remove(&id);
                let dropped = std::panic::catch_unwind(AssertUnwindSafe(|| drop(future)));
                if dropped.is_err() {
                    self.world.fail("a task panicked while it was dropped");
                }
                drop(task);
            }
        }
        drop(entered);
    }

    /// Jumps to the next timer and fires all of that time.
    fn advance(&self) {
        let entered = current::enter(&self.world, &self.harness);
        let mut due = Vec::new();
        {
            let mut state = self.world.0.state.lock();
            if let Some(((next, _), _)) = state.timers.first_key_value() {
                state.now = state.now.max(*next);
            }
            let now = state.now;
            while let Some(entry) = state.timers.first_entry() {
                if entry.key().0 > now {
                    break;
                }
                due.push(entry.remove());
            }
        }
        if due.is_empty() {
            self.world.fail(format!("deadlock: no task is ready and no timer is set; tasks: {}", self.waiting()));
        }
        for waker in due {
            waker.wake();
        }
        drop(entered);
        if self.world.now() > self.longest {
            self.world.fail(format!("the run did not end; tasks: {}", self.waiting()));
        }
    }

    fn waiting(&self) -> String {
        let state = self.world.0.state.lock();
        let names: Vec<_> = state.tasks.values().map(|task| format!("{}@{:?}", task.name, task.place)).collect();
        names.join(" ")
    }
}

fn task_back(
    tasks: &mut std::collections::BTreeMap<u64, Task>,
    id: u64,
    future: futures_util::future::BoxFuture<'static, ()>,
) -> Option<futures_util::future::BoxFuture<'static, ()>> {
    match tasks.get_mut(&id) {
        Some(task) => {
            task.future = Some(future);
            None
        }
        None => Some(future),
    }
}

impl World {
    pub(super) fn drop_caught(&self, task: Task, when: &str) {
        let name = task.name;
        if std::panic::catch_unwind(AssertUnwindSafe(|| drop(task))).is_err() {
            self.fail(format!("task {name} panicked {when}"));
        }
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        // In place order of tasks, with the world still there; wake-ups are of no interest any more.
        self.world.0.closed.store(true, Ordering::Relaxed);
        let entered = current::enter(&self.world, &self.harness);
        loop {
            let mut state = self.world.0.state.lock();
            let task = state.tasks.pop_first();
            drop(state);
            let Some((_, task)) = task else { break };
            let place = Arc::clone(&task.place);
            place.alive.store(false, Ordering::Relaxed);
            let entered = current::enter(&self.world, &place);
            self.world.drop_caught(task, "at the end");
            drop(entered);
        }
        let timers = std::mem::take(&mut self.world.0.state.lock().timers);
        drop(timers);
        drop(entered);
        // What panicked while it was dropped at the end concerns no later run.
        noted_panic();
    }
}
