//! The executor: one thread, one seed, simulated time, tasks that belong to nodes.
//!
//! A ready task is picked by the seed; when none is ready, time jumps to the next timer. There is no tokio runtime
//! here, so that a stray `tokio::spawn`, timer or socket panics, and a wake-up from another thread panics too.

mod clock;
mod current;
mod doors;
mod run;
mod timer;
mod trace;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use futures_util::future::BoxFuture;
use kubemq_runtime::Random;
use parking_lot::Mutex;

use clock::NodeClock;
pub(crate) use current::here;
pub use current::inside_a_node;
pub use run::{Failure, Simulation};
pub use timer::Sleep;
pub use trace::{Fingerprint, Trace};

/// The node of the harness: clients, faults and the network itself. Its clock is the true time.
pub const HARNESS: usize = 0;

/// Returns the stream of random numbers for `purpose` under `seed`. The streams are independent: a change in what
/// one purpose draws leaves the others in place.
#[must_use]
pub fn random(seed: u64, purpose: &str) -> Random {
    let mut fingerprint = Fingerprint::default();
    fingerprint.word(seed);
    fingerprint.bytes(purpose.as_bytes());
    Random::from_seed(fingerprint.value())
}

/// A poll that reads the clock more often than this does not end: time stands still in it.
const MOST_LOOKS_IN_ONE_POLL: u64 = 1_000_000;

/// One life of one node: what is spawned at a place dies with it.
pub struct Place {
    /// The node, from 1; 0 is the harness.
    pub node: usize,
    /// Which life of the node this is, from 1.
    pub life: u64,
    /// The node's monotonic time at which this life began.
    pub(crate) origin: u64,
    alive: AtomicBool,
    /// openraft's randomness in this life.
    pub(crate) openraft: Random,
}

impl Place {
    /// Returns whether this life goes on.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}.{}", self.node, self.life)
    }
}

/// How the next ready task is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Always the one that has been ready longest.
    Fifo,
    /// Any, evenly.
    Any,
    /// Mostly the one that became ready last: starves the others while it can.
    MostlyLast,
}

struct Task {
    place: Arc<Place>,
    name: &'static str,
    /// Absent while it is polled.
    future: Option<BoxFuture<'static, ()>>,
    ready: Arc<Ready>,
    waker: Waker,
    aborted: bool,
}

#[derive(Default)]
struct NodeState {
    clock: Option<NodeClock>,
    lives: u64,
    frozen: bool,
    /// Ready tasks that wait for the thaw.
    parked: Vec<u64>,
}

impl NodeState {
    fn clock(&mut self) -> &mut NodeClock {
        self.clock.get_or_insert_with(NodeClock::new)
    }
}

pub(crate) struct State {
    now: u64,
    /// How often the clock was read since the last poll began.
    looks: u64,
    polls: u64,
    next_task: u64,
    tasks: BTreeMap<u64, Task>,
    runnable: Vec<u64>,
    next_timer: u64,
    timers: BTreeMap<(u64, u64), Waker>,
    nodes: Vec<NodeState>,
    trace: Trace,
    failure: Option<String>,
}

struct Shared {
    number: u64,
    seed: u64,
    order: Order,
    state: Mutex<State>,
    /// Tasks woken since the run loop last looked, in order.
    woken: Mutex<Vec<u64>>,
    closed: AtomicBool,
}

/// A handle to the simulated world, cheap to clone.
#[derive(Clone)]
pub struct World(Arc<Shared>);

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "World({})", self.0.seed)
    }
}

struct Ready {
    world: World,
    task: u64,
    queued: AtomicBool,
}

impl Wake for Ready {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    #[expect(clippy::panic, reason = "the thread that does this must not go on")]
    fn wake_by_ref(self: &Arc<Self>) {
        let shared = &self.world.0;
        if shared.closed.load(Ordering::Relaxed) {
            return;
        }
        if current::world_number() != shared.number {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or("without name").to_owned();
            self.world.fail(format!("task {} was woken from outside the world, by thread {name}", self.task));
            panic!("a simulated task was woken from outside its world");
        }
        if !self.queued.swap(true, Ordering::Relaxed) {
            shared.woken.lock().push(self.task);
        }
    }
}

static WORLDS: AtomicU64 = AtomicU64::new(1);

impl World {
    fn new(seed: u64, order: Order, keep_trace: bool) -> Self {
        Self(Arc::new(Shared {
            number: WORLDS.fetch_add(1, Ordering::Relaxed),
            seed,
            order,
            state: Mutex::new(State {
                now: 0,
                looks: 0,
                polls: 0,
                next_task: 0,
                tasks: BTreeMap::new(),
                runnable: Vec::new(),
                next_timer: 0,
                timers: BTreeMap::new(),
                nodes: Vec::new(),
                trace: Trace::new(keep_trace),
                failure: None,
            }),
            woken: Mutex::new(Vec::new()),
            closed: AtomicBool::new(false),
        }))
    }

    fn number(&self) -> u64 {
        self.0.number
    }

    /// Returns the seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// Returns the stream of random numbers for `purpose`.
    #[must_use]
    pub fn random(&self, purpose: &str) -> Random {
        random(self.0.seed, purpose)
    }

    /// Returns the true time in nanoseconds since the start.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.0.state.lock().now
    }

    /// Returns how often tasks were polled.
    #[must_use]
    pub fn polls(&self) -> u64 {
        self.0.state.lock().polls
    }

    /// Sleeps for `duration` of true time.
    #[must_use]
    pub fn sleep(&self, duration: Duration) -> Sleep {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let deadline = self.now().saturating_add(nanos);
        Sleep::new(self.clone(), HARNESS, deadline)
    }

    /// Ends the run with a failure; the first one counts.
    pub fn fail(&self, reason: impl Into<String>) {
        let mut state = self.0.state.lock();
        if state.failure.is_none() {
            state.failure = Some(reason.into());
        }
    }

    /// Returns whether the run has failed already.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.0.state.lock().failure.is_some()
    }

    /// Adds a line to the trace.
    pub fn trace(&self, node: usize, text: fmt::Arguments<'_>) {
        let mut state = self.0.state.lock();
        let (now, polls) = (state.now, state.polls);
        state.trace.line(now, polls, node, text);
    }

    /// Returns the hash of the trace so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.0.state.lock().trace.hash()
    }

    fn take_trace(&self) -> String {
        self.0.state.lock().trace.take_text()
    }

    /// Begins a life of `node`.
    #[must_use]
    pub fn place(&self, node: usize) -> Arc<Place> {
        let mut state = self.0.state.lock();
        let now = state.now;
        let slot = state.node(node);
        slot.lives += 1;
        let life = slot.lives;
        let origin = if node == HARNESS { 0 } else { slot.clock().monotonic(now) };
        drop(state);
        let openraft = self.random(&format!("openraft {node} {life}"));
        Arc::new(Place { node, life, origin, alive: AtomicBool::new(true), openraft })
    }

    /// Starts a task at `place`; returns its number, nothing when that life has ended.
    pub fn spawn(&self, place: &Arc<Place>, name: &'static str, future: BoxFuture<'static, ()>) -> Option<u64> {
        if !place.alive() {
            // Dropped outside every borrow of the world: it may hold anything.
            drop(future);
            return None;
        }
        let mut state = self.0.state.lock();
        let id = state.next_task;
        state.next_task += 1;
        let ready = Arc::new(Ready { world: self.clone(), task: id, queued: AtomicBool::new(true) });
        let waker = Waker::from(Arc::clone(&ready));
        let place = Arc::clone(place);
        state.tasks.insert(id, Task { place, name, future: Some(future), ready, waker, aborted: false });
        drop(state);
        self.0.woken.lock().push(id);
        Some(id)
    }

    /// Ends a task when it is next picked, as a runtime does.
    pub fn abort(&self, task: u64) {
        let mut state = self.0.state.lock();
        let Some(slot) = state.tasks.get_mut(&task) else { return };
        slot.aborted = true;
        let waker = slot.waker.clone();
        drop(state);
        waker.wake();
    }

    /// Ends the life of `place` at this instant: its tasks are dropped in the order of their numbers while the world
    /// still exists. Returns how many there were.
    pub fn kill(&self, place: &Arc<Place>) -> usize {
        place.alive.store(false, Ordering::Relaxed);
        let entered = current::enter(self, place);
        let mut killed = 0;
        loop {
            // One at a time and outside the lock: destructors wake others, cancel timers and try to spawn.
            let mut state = self.0.state.lock();
            let next = state.tasks.iter().find(|(_, task)| Arc::ptr_eq(&task.place, place)).map(|(id, _)| *id);
            let task = next.and_then(|id| state.tasks.remove(&id));
            drop(state);
            let Some(task) = task else { break };
            killed += 1;
            self.drop_caught(task, "while a node was killed");
        }
        drop(entered);
        self.thaw(place.node);
        killed
    }

    /// Runs `work` as code of `place`: openraft's clock is that node's.
    pub fn within<T>(&self, place: &Arc<Place>, work: impl FnOnce() -> T) -> T {
        let _entered = current::enter(self, place);
        work()
    }

    /// Returns how many tasks live at `place`.
    #[must_use]
    pub fn tasks(&self, place: &Arc<Place>) -> usize {
        self.0.state.lock().tasks.values().filter(|task| Arc::ptr_eq(&task.place, place)).count()
    }

    /// Stops picking the tasks of `node` until [`Self::thaw`]; its clocks go on.
    pub fn freeze(&self, node: usize) {
        self.0.state.lock().node(node).frozen = true;
    }

    /// Picks the tasks of `node` again.
    pub fn thaw(&self, node: usize) {
        let mut state = self.0.state.lock();
        let slot = state.node(node);
        slot.frozen = false;
        let parked = std::mem::take(&mut slot.parked);
        state.runnable.extend(parked);
    }

    /// Makes the clock of `node` run faster by `drift` parts per million than true time.
    pub fn set_drift(&self, node: usize, drift: i64) {
        let mut state = self.0.state.lock();
        let now = state.now;
        state.node(node).clock().set_drift(now, drift);
    }

    /// Moves the wall clock of `node`.
    pub fn jump_wall(&self, node: usize, forward: bool, by: Duration) {
        self.0.state.lock().node(node).clock().jump_wall(forward, by);
    }

    #[expect(clippy::panic, reason = "nothing else gets control back from a poll that does not end")]
    pub(crate) fn monotonic(&self, node: usize) -> u64 {
        let mut state = self.0.state.lock();
        let now = state.now;
        state.looks += 1;
        if state.looks > MOST_LOOKS_IN_ONE_POLL {
            state.looks = 0;
            drop(state);
            panic!("a task of node {node} looks at the clock for ever, without an await");
        }
        if node == HARNESS { now } else { state.node(node).clock().monotonic(now) }
    }

    /// Returns the wall clock of `node` in nanoseconds since the Unix epoch.
    #[must_use]
    pub fn wall(&self, node: usize) -> u64 {
        let mut state = self.0.state.lock();
        let now = state.now;
        state.node(node).clock().wall(now)
    }
}

impl State {
    fn node(&mut self, node: usize) -> &mut NodeState {
        if self.nodes.len() <= node {
            self.nodes.resize_with(node + 1, NodeState::default);
        }
        &mut self.nodes[node]
    }
}
