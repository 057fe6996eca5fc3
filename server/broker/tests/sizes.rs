//! What the budgets promise, measured at the allocator: bytes per channel, per run, per copy, per delayed message, and
//! that the count that limits them is near the truth.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::print_stdout, reason = "shows what it measured to whoever runs it by hand")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use kubemq_broker::{
    BatchView, Coldest, Kind, MoveItem, MoveMode, Name, Operation, Reader, Run, Sequences, Start, State,
};

/// Counts what is allocated and not yet given back.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "an allocator cannot be written without")]
// SAFETY: every call goes on to the system's allocator unchanged; only sizes are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the promises of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the promises of `dealloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SECOND: u64 = 1_000_000_000;

struct Broker {
    state: State,
    time: u64,
}

impl Broker {
    fn new() -> Self {
        Self { state: State::default(), time: 1_700_000_000 * SECOND }
    }

    fn apply(&mut self, operations: impl IntoIterator<Item = Operation>) {
        let operations: Vec<Bytes> = operations.into_iter().map(|operation| operation.to_bytes()).collect();
        let entry = self.state.entry() + 1;
        let batch = BatchView { origin: 1, epoch: 1, number: entry, first_part: 1, operations: &operations };
        self.time += 1_000_000;
        let applied = self.state.apply(entry, self.time, &[batch]);
        assert_eq!(applied.answers.len(), 1);
    }
}

fn publish(channel: &str, delay_ms: u64) -> Operation {
    let (channel, message) = (Name::new(channel).unwrap(), Bytes::from_static(b"message"));
    Operation::Publish { kind: Kind::Queue, channel, delay_ms, expiration_ms: 0, message }
}

/// What `grow` adds, per one of `count`: bytes at the allocator, bytes as the state counts them.
fn measure(broker: &mut Broker, count: usize, grow: impl FnOnce(&mut Broker)) -> (usize, usize) {
    // Results of earlier batches are no part of this.
    let settle = |broker: &mut Broker| (0..8).for_each(|_| broker.apply([Operation::Beat]));
    settle(broker);
    let (before, counted) = (ALLOCATED.load(Ordering::Relaxed), broker.state.index_bytes());
    grow(broker);
    settle(broker);
    let after = ALLOCATED.load(Ordering::Relaxed);
    ((after - before) / count, (broker.state.index_bytes() - counted) as usize / count)
}

/// The count may be somewhat above or below what the allocator sees.
fn assert_near(what: &str, (real, counted): (usize, usize)) {
    println!("{what}: {real} bytes at the allocator, {counted} counted");
    assert!(counted * 10 >= real * 8, "{what}: {real} bytes are counted as {counted}");
    assert!(counted * 10 <= real * 14, "{what}: {real} bytes are counted as {counted}");
}

/// One test, so that nothing else allocates meanwhile.
#[test]
fn memory_keeps_to_its_budgets() {
    assert_eq!(size_of::<Run>(), 24);

    let mut broker = Broker::new();
    let create = |broker: &mut Broker| {
        for number in 0..20_000 {
            let channel = Name::new(&format!("channel-{number:08}")).unwrap();
            broker.apply([Operation::Create { kind: Kind::Queue, channel }]);
        }
    };
    let empty = measure(&mut broker, 20_000, create);
    assert!(empty.0 <= 400, "an empty channel takes {} bytes", empty.0);
    assert_near("empty channel", empty);

    // Used, then drained in another order than it was filled: nothing remains.
    let mut broker = Broker::new();
    let use_and_drain = |broker: &mut Broker| {
        for number in 0..2_000 {
            let name = format!("channel-{number:08}");
            broker.apply((0..40).map(|_| publish(&name, 0)));
            let channel = broker.state.channel(Kind::Queue, &name).unwrap().id();
            broker.apply([Operation::Ack { channel, sequences: (1..41).filter(|one| one % 2 == 0).collect() }]);
            broker.apply([Operation::Ack { channel, sequences: Sequences::range(1, 40) }]);
        }
    };
    let drained = measure(&mut broker, 2_000, use_and_drain);
    assert!(drained.0 <= 400, "a drained channel takes {} bytes", drained.0);
    assert_near("drained channel", drained);

    let mut broker = Broker::new();
    let one_each = |broker: &mut Broker| {
        (0..20_000).for_each(|number| broker.apply([publish(&format!("channel-{number:08}"), 0)]));
    };
    assert_near("channel with one message", measure(&mut broker, 20_000, one_each));
    let dead = |broker: &mut Broker| {
        for number in 0..20_000 {
            let name = format!("channel-{number:08}");
            let from = broker.state.channel(Kind::Queue, &name).unwrap().id();
            let items = vec![MoveItem { sequence: 1, receive_count: 1, expires_at: 0, stored: None }];
            let to = (Kind::Queue, Name::new(&name).unwrap());
            broker.apply([publish(&name, 0), Operation::Move { from, to, mode: MoveMode::Return, items }]);
        }
    };
    assert_near("a copy and a settled mark beside it", measure(&mut broker, 20_000, dead));

    let mut broker = Broker::new();
    let readers = |broker: &mut Broker| {
        for number in 0..20_000 {
            let reader = Reader::client(&Name::new(&format!("client-{number:08}")).unwrap());
            broker.apply([Operation::OpenCursor { channel: Name::new("e").unwrap(), reader, start: Start::New }]);
        }
    };
    let readers = measure(&mut broker, 20_000, readers);
    assert!(readers.0 <= 96, "a reader's place takes {} bytes", readers.0);
    assert_near("reader's place", readers);

    // The worst case: each message is a run.
    let mut broker = Broker::new();
    let runs = measure(&mut broker, 100_000, |broker| (0..100_000).for_each(|_| broker.apply([publish("q", 0)])));
    assert!(runs.0 <= 28, "a run takes {} bytes with its share of everything", runs.0);
    assert_near("run", runs);

    // The best case: a thousand messages are a run.
    let mut broker = Broker::new();
    let large = |broker: &mut Broker| (0..100).for_each(|_| broker.apply((0..1_000).map(|_| publish("q", 0))));
    let (real, _) = measure(&mut broker, 100_000, large);
    assert_eq!(real, 0, "bytes per message in long runs");

    let mut broker = Broker::new();
    (0..100).for_each(|_| broker.apply((0..1_000).map(|_| publish("q", 0))));
    let from = broker.state.channel(Kind::Queue, "q").unwrap().id();
    let to_dead = |broker: &mut Broker| {
        for thousand in 0..50 {
            let items = (1..=1_000).map(|number| MoveItem {
                sequence: thousand * 1_000 + number,
                receive_count: 1,
                expires_at: 0,
                stored: None,
            });
            let to = (Kind::Queue, Name::new("dead").unwrap());
            broker.apply([Operation::Move { from, to, mode: MoveMode::DeadLetter, items: items.collect() }]);
        }
    };
    let copies = measure(&mut broker, 50_000, to_dead);
    assert!(copies.0 <= 72, "a copy takes {} bytes", copies.0);
    assert_near("copy", copies);

    let mut broker = Broker::new();
    let near = |broker: &mut Broker| {
        (0..100)
            .for_each(|entry| broker.apply((0..1_000).map(|number| publish("q", 1 + (entry * 7 + number) % 60_000))));
    };
    let near = measure(&mut broker, 100_000, near);
    assert!(near.0 <= 64, "a near delayed message takes {} bytes", near.0);
    assert_near("near delayed message", near);

    let mut broker = Broker::new();
    let far = |broker: &mut Broker| {
        let delay = |entry: u64, number: u64| 3_600_000 + (entry * 977 + number * 31) % 36_000_000;
        (0..100).for_each(|entry| broker.apply((0..1_000).map(|number| publish("q", delay(entry, number)))));
    };
    let far = measure(&mut broker, 100_000, far);
    assert!(far.0 <= 44, "a far delayed message takes {} bytes", far.0);
    assert_near("far delayed message", far);

    // All of them are in blocks that are sealed, but some of each minute.
    let mut broker = Broker::new();
    let away = |broker: &mut Broker| {
        let delay = |entry: u64, number: u64| 3_600_000 + (entry * 977 + number * 31) % 600_000;
        (0..100).for_each(|entry| broker.apply((0..1_000).map(|number| publish("q", delay(entry, number)))));
        let (entry, mut next) = (broker.state.entry(), Some(Coldest::default()));
        while let Some(from) = next {
            next = broker.state.let_go(entry, 0, 0, from, 1_000);
        }
        assert_eq!(broker.state.sealed_bytes(), 0);
    };
    let away = measure(&mut broker, 100_000, away);
    assert!(away.0 <= 4, "a delayed message takes {} bytes that left the memory", away.0);
    assert_near("delayed message that left the memory", away);
}
