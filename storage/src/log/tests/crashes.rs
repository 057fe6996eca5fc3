//! Crash points: random runs are cut after every write, sync and change of a name, and every cut is opened.
//!
//! What a cut shows must be what the log held after some prefix of the requests, and that prefix must contain
//! everything that was answered. So no synced frame is lost, no vote goes backwards, nothing half-written is
//! seen. Power losses keep any subset of what was not flushed.
//!
//! A log that flushes now and then loses nothing with its process; with the power it may lose entries that were
//! answered since something else was, and shows a prefix all the same.

use super::*;
use crate::fs::memory::Step;

/// One request, as fine as the log can split it.
#[derive(Clone, Debug)]
enum Request {
    Entry(Entry),
    NodeId(u64),
    Vote(Vote),
    Truncate(Option<LogId>),
    Purge(LogId),
    Snapshot(LogId, String),
}

/// What a log must hold after a prefix of the requests.
#[derive(Clone, Default, PartialEq, Debug)]
struct Model {
    node_id: Option<u64>,
    vote: Vote,
    purged: Option<LogId>,
    last: Option<LogId>,
    snapshot: Option<(LogId, String)>,
    entries: Vec<Entry>,
}

impl Model {
    fn apply(&mut self, request: &Request) {
        match request {
            Request::Entry(entry) => {
                self.last = Some(entry.id);
                self.entries.push(entry.clone());
            }
            Request::NodeId(node) => self.node_id = Some(*node),
            Request::Vote(vote) => self.vote = *vote,
            Request::Truncate(last) => {
                self.entries.retain(|entry| last.is_some_and(|last| entry.id.index <= last.index));
                self.last = last.or(self.purged);
            }
            Request::Purge(upto) => {
                self.entries.retain(|entry| entry.id.index > upto.index);
                self.purged = Some(*upto);
                if self.last.is_none_or(|last| last.index < upto.index) {
                    self.last = Some(*upto);
                }
            }
            Request::Snapshot(id, name) => self.snapshot = Some((*id, name.clone())),
        }
    }

    fn of(log: &Log, world: &World) -> Self {
        let state = log.state();
        let entries = world.run(log.all()).unwrap();
        assert!(state.committed.map(|id| id.index) <= state.last.map(|id| id.index), "{state:?}");
        let State { node_id, vote, purged, last, snapshot, .. } = state;
        Self { node_id, vote, purged, last, snapshot, entries }
    }
}

/// What was asked for and what was answered, up to a cut.
#[derive(Clone, Default)]
struct History {
    requests: Vec<Request>,
    answered: usize,
    /// As many were on the disk at the last answer to something else than entries.
    flushed: usize,
    bodies: Vec<Body>,
}

impl History {
    /// Returns how many requests `found` shows, if that is a prefix of at least `surely`.
    fn explains(&self, found: &Model, surely: usize) -> Option<usize> {
        let mut model = Model::default();
        for request in &self.requests[..surely] {
            model.apply(request);
        }
        let mut shown = surely;
        while model != *found {
            model.apply(self.requests.get(shown)?);
            shown += 1;
        }
        Some(shown)
    }
}

struct Cut {
    step: Step,
    disk: MemoryDisk,
    history: History,
}

/// A random run that is cut everywhere.
struct Run {
    seed: u64,
    options: Options,
    random: Random,
    bench: Bench,
    history: Arc<Mutex<History>>,
    cuts: Arc<Mutex<Vec<Cut>>>,
    model: Model,
    points: usize,
    steps: [usize; 4],
}

fn tiny() -> Options {
    Options { segment_bytes: 1500, tail_cache_bytes: 600, group_bytes: 700, ..Options::default() }
}

/// Flushes now and then.
fn lazy() -> Options {
    Options { flush: Flush::Interval(std::time::Duration::from_millis(200)), ..tiny() }
}

impl Run {
    fn new(seed: u64, options: Options) -> Self {
        let bench = Bench::new(options);
        let mut run = Self {
            seed,
            options,
            random: Random::from_seed(seed),
            bench,
            history: Arc::default(),
            cuts: Arc::default(),
            model: Model::default(),
            points: 0,
            steps: [0; 4],
        };
        run.observe();
        run
    }

    fn observe(&mut self) {
        let (history, cuts) = (Arc::clone(&self.history), Arc::clone(&self.cuts));
        self.bench.disk.observe(Arc::new(move |step, disk: &MemoryDisk| {
            let history = history.lock().clone();
            cuts.lock().push(Cut { step, disk: disk.copy(), history });
        }));
    }

    fn ask(&mut self, request: Request) {
        self.model.apply(&request);
        self.history.lock().requests.push(request);
    }

    /// Notes the answer to everything asked so far, at the moment when the log gives it.
    fn mark(&self) {
        let history = Arc::clone(&self.history);
        let asked = history.lock().requests.len();
        self.bench.log.append(
            Vec::new(),
            Box::new(move |result| {
                if result.is_ok() {
                    let mut history = history.lock();
                    history.answered = history.answered.max(asked);
                    let other = history.requests[..asked].iter().rposition(|it| !matches!(it, Request::Entry(_)));
                    history.flushed = history.flushed.max(other.map_or(0, |at| at + 1));
                }
            }),
        );
    }

    /// Sends a request that has an answer of its own, without waiting for it.
    fn send(&self, request: impl Future<Output = Result<(), Error>> + Send + 'static) {
        let mut request = Box::pin(request);
        // The first poll puts it into the inbox: requests keep their order.
        let waker = Waker::noop();
        if request.as_mut().poll(&mut Context::from_waker(waker)).is_pending() {
            self.bench.world.dedicated("request", Box::pin(async move { request.await.unwrap() }));
        }
    }

    fn below(&self, bound: u64) -> u64 {
        self.random.below(bound)
    }

    fn append(&mut self) {
        let (term, last) = (self.model.vote.term.max(1), self.model.last.map_or(0, |last| last.index));
        let mut added = Vec::new();
        for index in last + 1..=last + 1 + self.below(4) {
            let size = if self.below(30) == 0 { 3000 } else { self.below(250) };
            added.push(entry(term, index, usize::try_from(size).unwrap()));
        }
        for entry in &added {
            self.ask(Request::Entry(entry.clone()));
        }
        self.bench.log.append(added, Box::new(drop));
    }

    fn vote(&mut self) {
        let vote = Vote { term: self.model.vote.term + 1, node: self.below(3), committed: self.below(2) == 0 };
        self.ask(Request::Vote(vote));
        let log = self.bench.log.clone();
        self.send(async move { log.save_vote(vote).await });
    }

    fn truncate(&mut self) {
        let Some(last) = self.model.last else { return };
        let purged = self.model.purged.map_or(0, |purged| purged.index);
        let keep = purged + self.below(last.index - purged + 1);
        let found = self.model.entries.iter().find(|entry| entry.id.index == keep);
        let kept = found.map(|entry| entry.id).or(self.model.purged);
        // What follows comes from another leader.
        self.vote();
        self.ask(Request::Truncate(kept));
        let log = self.bench.log.clone();
        self.send(async move { log.truncate_after(kept).await });
    }

    fn purge(&mut self) {
        let Some(last) = self.model.last else { return };
        let upto = if self.below(8) == 0 {
            id(self.model.vote.term + 1, last.index + 1 + self.below(20))
        } else {
            let entries = &self.model.entries;
            match entries.get(usize::try_from(self.below(entries.len() as u64 + 1)).unwrap()) {
                Some(entry) => entry.id,
                None => return,
            }
        };
        self.ask(Request::Purge(upto));
        let log = self.bench.log.clone();
        self.send(async move { log.purge(upto).await });
    }

    fn snapshot(&mut self) {
        let Some(last) = self.model.last else { return };
        let name = format!("snapshot-{}", last.index);
        self.ask(Request::Snapshot(last, name.clone()));
        let log = self.bench.log.clone();
        self.send(async move { log.save_snapshot_pointer(last, &name).await });
    }

    fn remove(&mut self) {
        self.bench.world.settle();
        let purged = self.model.purged.map_or(0, |purged| purged.index);
        let segments = self.bench.log.segments();
        let free = |segment: &&SegmentInfo| {
            segment.sealed && !segment.bodies_only && segment.last.is_none_or(|last| last <= purged)
        };
        let numbers: Vec<u64> = segments.iter().filter(free).map(|segment| segment.number).collect();
        self.bench.run(self.bench.log.remove_segments(numbers)).unwrap();
    }

    fn insert(&mut self) {
        let entry = 100_000 + self.below(1000);
        let bodies: Vec<Body> = (0..1 + self.below(4))
            .map(|part| {
                let bytes = vec![u8::try_from(part).unwrap(); usize::try_from(self.below(500)).unwrap()];
                Body { entry, part: u16::try_from(part).unwrap(), time: entry, bytes: bytes.into() }
            })
            .collect();
        self.bench.run(self.bench.log.insert_bodies(bodies.clone())).unwrap();
        let mut history = self.history.lock();
        history.bodies.retain(|body| body.entry != entry);
        history.bodies.extend(bodies);
    }

    /// Kills the process, perhaps with requests in flight, and goes on with what it left.
    fn restart(&mut self) {
        let history = self.history.lock().clone();
        let disk = self.bench.disk.process_crash();
        self.bench.disk.fence();
        self.bench.world.crash();
        self.cuts.lock().clear();
        self.bench = Bench::on(disk, self.options);
        self.model = Model::of(&self.bench.log, &self.bench.world);
        let shown = history.explains(&self.model, history.answered).expect("a restart shows a prefix");
        let mut kept = self.history.lock();
        kept.requests.truncate(shown);
        (kept.answered, kept.flushed) = (shown, shown);
        drop(kept);
        self.observe();
    }

    fn step(&mut self) {
        match self.below(40) {
            0..16 => self.append(),
            16..19 => self.vote(),
            19..22 => self.truncate(),
            22..25 => self.purge(),
            25..27 => self.snapshot(),
            27 => {
                let node = self.below(1000);
                self.ask(Request::NodeId(node));
                let log = self.bench.log.clone();
                self.send(async move { log.save_node_id(node).await });
            }
            28 => self.remove(),
            29 => self.insert(),
            30..33 => {
                if let Some(last) = self.model.last {
                    self.bench.log.save_committed(last);
                    self.bench.log.applied(last.index);
                }
            }
            33 => {
                self.bench.world.settle();
                let clock = self.bench.world.runtime().clock;
                self.bench.run(clock.sleep(std::time::Duration::from_millis(150)));
            }
            34 => self.restart(),
            _ => self.bench.world.settle(),
        }
        self.mark();
        self.check_cuts();
    }

    fn check_cuts(&mut self) {
        let cuts = std::mem::take(&mut *self.cuts.lock());
        for cut in cuts {
            self.steps[match cut.step {
                Step::Write => 0,
                Step::Sync => 1,
                Step::Name => 2,
                Step::SyncDir => 3,
            }] += 1;
            for way in 0..3 {
                let disk = if way == 0 { cut.disk.process_crash() } else { cut.disk.power_loss(&self.random) };
                self.check(disk, &cut, way);
                self.points += 1;
            }
        }
    }

    fn check(&self, disk: MemoryDisk, cut: &Cut, way: u32) {
        let seed = self.seed;
        let place = format!("seed {seed}, {:?}, way {way}, {} requests", cut.step, cut.history.requests.len());
        let mut power_lost = way > 0;
        let disk = if self.below(10) == 0 {
            power_lost = true;
            self.cut_recovery(disk, &place)
        } else {
            disk
        };
        let bench = Bench::try_on(disk, tiny()).unwrap_or_else(|error| panic!("{place}: {error}"));
        let found = Model::of(&bench.log, &bench.world);
        let History { answered, flushed, .. } = cut.history;
        let surely = if power_lost && self.options.flush != Flush::Group { flushed } else { answered };
        assert!(cut.history.explains(&found, surely).is_some(), "{place}: found {found:?}, surely {surely}");
        for body in &cut.history.bodies {
            let read = bench.run(bench.log.read_part(body.entry, body.part)).expect("an inserted body stays");
            assert_eq!(read.bytes, body.bytes, "{place}");
        }
        match self.below(10) {
            0 => live_on(bench, found, &self.random, &place),
            1 | 2 => {
                // What an opened log shows is on the disk, also what was caught before its sync.
                let again = Bench::on(bench.disk.power_loss(&self.random), tiny());
                assert_eq!(Model::of(&again.log, &again.world), found, "{place}, opened and lost power");
            }
            _ => {}
        }
    }

    /// Crashes again while the log is being opened.
    fn cut_recovery(&self, disk: MemoryDisk, place: &str) -> MemoryDisk {
        let cuts = Arc::new(Mutex::new(vec![disk.copy()]));
        let seen = Arc::clone(&cuts);
        disk.observe(Arc::new(move |_, disk: &MemoryDisk| seen.lock().push(disk.copy())));
        Bench::try_on(disk, tiny()).unwrap_or_else(|error| panic!("{place}, first opening: {error}"));
        let cuts = cuts.lock();
        let chosen = usize::try_from(self.below(cuts.len() as u64)).unwrap();
        cuts[chosen].power_loss(&self.random)
    }
}

/// Uses a log that came back: it takes new entries, and they survive the next power loss.
fn live_on(bench: Bench, mut model: Model, random: &Random, place: &str) {
    let term = model.last.map_or(1, |last| last.term.max(model.vote.term) + 1);
    let next = model.last.map_or(0, |last| last.index) + 1;
    for index in next..next + 6 {
        let added = entry(term, index, 100);
        bench.run(bench.log.append_synced(vec![added.clone()])).unwrap_or_else(|error| panic!("{place}: {error}"));
        model.apply(&Request::Entry(added));
    }
    let again = Bench::on(bench.disk.power_loss(random), tiny());
    assert_eq!(Model::of(&again.log, &again.world), model, "{place}, second life");
}

/// Returns how many points were cut after each kind of step.
fn cut_everywhere(options: Options, wanted: usize) -> [usize; 4] {
    let (mut points, mut steps, mut seed) = (0, [0; 4], 0);
    while points < wanted {
        let mut run = Run::new(seed, options);
        for _ in 0..60 {
            run.step();
        }
        run.bench.world.settle();
        run.check_cuts();
        points += run.points;
        for (all, some) in steps.iter_mut().zip(run.steps) {
            *all += some;
        }
        seed += 1;
    }
    println!("{points} crash points in {seed} runs; cuts after writes, syncs, names, directory syncs: {steps:?}");
    steps
}

#[test]
fn ten_thousand_crash_points_lose_nothing_that_was_synced() {
    let steps = cut_everywhere(tiny(), 12_000);
    assert!(steps.iter().all(|count| *count > 50), "every kind of step is cut: {steps:?}");
}

#[test]
fn a_log_that_flushes_now_and_then_shows_a_prefix() {
    let steps = cut_everywhere(lazy(), 4_000);
    assert!(steps.iter().all(|count| *count > 50), "every kind of step is cut: {steps:?}");
}
