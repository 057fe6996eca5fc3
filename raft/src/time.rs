//! Cluster time: one time line that survives its leaders.
//!
//! It goes on from the last LogTime that was heard, by the boot time that passed here since. It never goes
//! back where it is stamped, on the leader, and the stamps along the log strictly increase. What a node alone believed
//! to be the time ends when it hears another leader: otherwise it would jump there when this node leads again, and
//! delays would end early. The wall clock is read where nobody
//! kept time running: when the log is empty, and when a whole group starts again (a single voter's process, or
//! the first leader that heard of no other since its process began). There it can only move time forward.
//! Afterwards the leader's time approaches its wall clock by at most 0.1 % of what passes.

use std::sync::Arc;
use std::time::Duration;

use kubemq_runtime::{Clock, Instant};
use parking_lot::Mutex;

/// Time moves towards the wall clock by one part in so many.
const SLEW: u64 = 1000;
/// How many of its own latest stamps a node recognises when they come back; at most two entries are in flight.
const OWN: usize = 4;
/// The least time between two moves towards the wall clock.
const SLEW_EVERY: Duration = Duration::from_millis(1);

/// Cluster time, in nanoseconds since the Unix epoch, as this node knows it. Cheap to clone.
#[derive(Clone)]
pub struct ClusterTime {
    clock: Clock,
    line: Arc<Mutex<Line>>,
}

struct Line {
    /// The time that was heard last, and when that was.
    base: u64,
    heard: Instant,
    /// The greatest LogTime in the log, or given to an entry that may still come into it.
    stamped: u64,
    /// The latest stamps that were given here, the newest last.
    own: [u64; OWN],
    /// The greatest time that was shown to anybody since another leader was heard.
    shown: u64,
    /// Whether a running node kept time: then the wall clock has no say but to slew.
    running: bool,
    /// Since when this node's wall clock steers, if it does.
    steering: Option<Instant>,
}

impl ClusterTime {
    /// Returns the time line of a node whose log's last LogTime is `last`, zero when it has none.
    #[must_use]
    pub fn new(clock: Clock, last: u64) -> Self {
        let heard = clock.now();
        let line =
            Line { base: last, heard, stamped: last, own: [0; OWN], shown: last, running: false, steering: None };
        Self { clock, line: Arc::new(Mutex::new(line)) }
    }

    /// Returns the present cluster time. It goes back only where another leader's time lies behind what this node
    /// believed.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.line.lock().show(&self.clock)
    }

    /// Returns a time for a new entry: greater than that of every entry that this node knows.
    #[must_use]
    pub fn stamp(&self) -> u64 {
        let mut line = self.line.lock();
        if !line.running {
            // It may lead without knowing yet. Should it not, the stamp is refused with its entry.
            line.start(&self.clock);
        }
        let stamp = line.show(&self.clock).max(line.stamped.saturating_add(1));
        line.stamped = stamp;
        line.own.rotate_left(1);
        line.own[OWN - 1] = stamp;
        line.shown = stamp;
        stamp
    }

    /// Takes note of the time of the last entry of a snapshot that a running leader sent: it may be a while ago.
    pub fn remember(&self, time: u64) {
        let mut line = self.line.lock();
        if time > line.base {
            line.base = time;
            line.heard = self.clock.now();
        }
        line.stamped = line.stamped.max(time);
        line.shown = line.shown.max(time);
        // Somebody keeps time: this node must not begin anew from its wall clock, even if it hears nothing else.
        line.running = true;
    }

    /// Takes note of the time of an entry that a running leader put at the end of this node's log.
    pub fn hear(&self, time: u64) {
        let mut line = self.line.lock();
        // A leader hears its own stamps, each a little late, the first ones even before it knows that it leads: going
        // on from them would slow time down, and the wall clock of the next start would make up for it at once.
        if line.own.contains(&time) || (line.steering.is_some() && time <= line.stamped) {
            return;
        }
        line.base = time;
        line.heard = self.clock.now();
        // Nothing later is left in the log: what this node had given to entries of its own was never committed.
        line.stamped = time;
        line.shown = time;
        line.running = true;
    }

    /// Says whether this node leads, so that its wall clock steers. A leader that heard no running leader
    /// before it starts from its wall clock, unless that lies behind.
    pub fn lead(&self, leads: bool) {
        let mut line = self.line.lock();
        if !leads {
            line.steering = None;
            return;
        }
        if !line.running {
            line.start(&self.clock);
            line.running = true;
        }
        if line.steering.is_none() {
            line.steering = Some(self.clock.now());
        }
    }
}

impl Line {
    /// Goes on from the wall clock, unless that lies behind.
    fn start(&mut self, clock: &Clock) {
        let time = self.show(clock);
        self.base = time.max(clock.wall().0);
        self.heard = clock.now();
    }

    fn show(&mut self, clock: &Clock) -> u64 {
        let now = clock.now();
        self.steer(clock, now);
        let passed = u64::try_from(now.since(self.heard).as_nanos()).unwrap_or(u64::MAX);
        self.shown = self.shown.max(self.base.saturating_add(passed));
        self.shown
    }

    /// Moves the base towards the wall clock by at most one [`SLEW`]th of what passed since the last move.
    fn steer(&mut self, clock: &Clock, now: Instant) {
        let Some(since) = self.steering else { return };
        let passed = now.since(since);
        if passed < SLEW_EVERY {
            return;
        }
        self.steering = Some(now);
        let most = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX) / SLEW;
        let elapsed = u64::try_from(now.since(self.heard).as_nanos()).unwrap_or(u64::MAX);
        let time = self.base.saturating_add(elapsed);
        let wall = clock.wall().0;
        self.base = if wall > time {
            self.base.saturating_add(most.min(wall - time))
        } else {
            self.base.saturating_sub(most.min(time - wall))
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures_util::future::BoxFuture;
    use kubemq_runtime::UnixNanos;
    use kubemq_runtime::clock::TimeSource;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[derive(Clone, Default)]
    struct Manual {
        boot: Arc<AtomicU64>,
        wall: Arc<AtomicU64>,
    }

    impl TimeSource for Manual {
        fn now(&self) -> Instant {
            Instant::from_nanos(self.boot.load(Ordering::Relaxed))
        }

        fn wall(&self) -> UnixNanos {
            UnixNanos(self.wall.load(Ordering::Relaxed))
        }

        fn sleep_until(&self, _: Instant) -> BoxFuture<'static, ()> {
            Box::pin(std::future::pending())
        }
    }

    impl Manual {
        fn at(wall: u64) -> Self {
            let clock = Self::default();
            clock.wall.store(wall, Ordering::Relaxed);
            clock
        }

        fn pass(&self, nanos: u64) {
            self.boot.fetch_add(nanos, Ordering::Relaxed);
            self.wall.fetch_add(nanos, Ordering::Relaxed);
        }

        fn step(&self, wall: u64) {
            self.wall.store(wall, Ordering::Relaxed);
        }

        fn time(&self, last: u64) -> ClusterTime {
            ClusterTime::new(Clock::new(self.clone()), last)
        }
    }

    #[test]
    fn where_time_starts() {
        // (last LogTime, a running leader's LogTime, wall clock, expected when this node begins to lead)
        let table = [
            (0, None, 500 * SECOND, 500 * SECOND),
            (400 * SECOND, None, 500 * SECOND, 500 * SECOND),
            (600 * SECOND, None, 500 * SECOND, 600 * SECOND),
            (400 * SECOND, Some(401 * SECOND), 500 * SECOND, 401 * SECOND),
            (400 * SECOND, Some(401 * SECOND), 100 * SECOND, 401 * SECOND),
        ];
        for (last, heard, wall, expected) in table {
            let time = Manual::at(wall).time(last);
            if let Some(heard) = heard {
                time.hear(heard);
            }
            time.lead(true);
            assert_eq!(time.now(), expected, "log {last}, heard {heard:?}, wall {wall}");
        }
    }

    #[test]
    fn a_new_leader_goes_on_where_the_last_one_was() {
        let clock = Manual::at(5 * SECOND);
        let time = clock.time(0);
        time.hear(1000 * SECOND);
        clock.pass(2 * SECOND);
        assert_eq!(time.now(), 1002 * SECOND);
        time.lead(true);
        assert_eq!(time.stamp(), 1002 * SECOND);
    }

    #[test]
    fn stamps_strictly_increase_even_when_no_time_passes() {
        let time = Manual::at(SECOND).time(7 * SECOND);
        time.lead(true);
        let stamps: Vec<_> = (0..4).map(|_| time.stamp()).collect();
        assert!(stamps.windows(2).all(|pair| pair[0] < pair[1]), "{stamps:?}");
        assert!(stamps[0] > 7 * SECOND);
    }

    #[test]
    fn a_stepped_wall_clock_pulls_by_a_thousandth() {
        for step in [3600 * SECOND, 100_000 * SECOND - 3600 * SECOND] {
            let clock = Manual::at(50_000 * SECOND);
            let time = clock.time(0);
            time.lead(true);
            let start = time.now();
            clock.step(step);
            let mut last = start;
            for _ in 0..100 {
                clock.pass(SECOND / 10);
                let now = time.now();
                let passed = now - last;
                assert!((SECOND / 10 - SECOND / 10_000..=SECOND / 10 + SECOND / 10_000).contains(&passed), "{passed}");
                last = now;
            }
            assert_ne!(last - start, 10 * SECOND, "it does approach");
        }
    }

    #[test]
    fn it_reaches_the_wall_clock_and_stays() {
        let clock = Manual::at(1000 * SECOND);
        let time = clock.time(0);
        time.lead(true);
        clock.step(1000 * SECOND + SECOND / 100);
        for _ in 0..200 {
            clock.pass(SECOND / 10);
            assert!(time.now() > 0);
        }
        assert_eq!(time.now(), 1000 * SECOND + SECOND / 100 + 20 * SECOND);
    }

    #[test]
    fn a_leader_that_hears_its_own_stamps_late_keeps_pace() {
        let clock = Manual::at(100 * SECOND);
        let time = clock.time(0);
        time.lead(true);
        for _ in 0..1000 {
            let stamp = time.stamp();
            clock.pass(SECOND / 1000);
            time.hear(stamp);
            clock.pass(SECOND / 1000);
        }
        assert_eq!(time.now(), 102 * SECOND);
    }

    #[test]
    fn stamps_that_come_back_before_the_leader_knows_cost_no_time() {
        let clock = Manual::at(100 * SECOND);
        let time = clock.time(0);
        let stamp = time.stamp();
        assert_eq!(stamp, 100 * SECOND);
        clock.pass(SECOND / 10);
        time.hear(stamp);
        time.lead(true);
        assert_eq!(time.now(), 100 * SECOND + SECOND / 10);
    }

    #[test]
    fn a_follower_keeps_the_time_of_its_leader() {
        let clock = Manual::at(0);
        let time = clock.time(0);
        time.hear(100 * SECOND);
        clock.pass(10 * SECOND);
        assert_eq!(time.now(), 110 * SECOND);
        time.hear(109 * SECOND);
        assert_eq!(time.now(), 109 * SECOND, "the group's time is its leader's");
        clock.pass(SECOND);
        time.lead(true);
        assert_eq!((time.now(), time.stamp()), (110 * SECOND, 110 * SECOND));
        clock.pass(SECOND);
        time.hear(110 * SECOND);
        assert_eq!(time.now(), 111 * SECOND - SECOND / 1000, "a leader goes its own pace, towards its wall clock");
    }

    #[test]
    fn what_a_leader_alone_believed_is_forgotten_with_its_leadership() {
        let clock = Manual::at(5000 * SECOND);
        let time = clock.time(90 * SECOND);
        time.lead(true);
        // Nobody takes the entries that it stamps.
        assert_eq!((time.now(), time.stamp()), (5000 * SECOND, 5000 * SECOND));
        time.lead(false);
        time.hear(100 * SECOND);
        clock.pass(SECOND);
        time.lead(true);
        assert_eq!((time.now(), time.stamp()), (101 * SECOND, 101 * SECOND));
    }

    #[test]
    fn after_a_snapshot_time_goes_on_from_it_and_never_back() {
        let clock = Manual::at(5000 * SECOND);
        let time = clock.time(50 * SECOND);
        time.remember(80 * SECOND);
        assert_eq!(time.now(), 80 * SECOND);
        time.remember(60 * SECOND);
        clock.pass(SECOND);
        time.lead(true);
        assert_eq!(time.stamp(), 81 * SECOND);
    }

    #[test]
    fn what_was_read_from_the_own_log_is_not_a_running_leader() {
        let time = Manual::at(900 * SECOND).time(300 * SECOND);
        time.lead(true);
        assert_eq!(time.now(), 900 * SECOND);
    }
}
