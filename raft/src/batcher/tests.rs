use bytes::Bytes;

use super::*;
use crate::batch::{Envelope, Origin};

/// What was proposed and has not ended.
type Proposed = Arc<Mutex<VecDeque<(Proposal, Done)>>>;

struct Fake {
    proposed: Proposed,
    /// Ends when a proposal that could not be handed over at once may be.
    gate: Option<Arc<tokio::sync::Semaphore>>,
}

impl Proposer for Fake {
    fn propose(&self, proposal: Proposal, done: Done) -> Option<BoxFuture<'static, ()>> {
        let Some(gate) = self.gate.clone() else {
            self.proposed.lock().push_back((proposal, done));
            return None;
        };
        let proposed = Arc::clone(&self.proposed);
        Some(Box::pin(async move {
            gate.acquire().await.unwrap().forget();
            proposed.lock().push_back((proposal, done));
        }))
    }
}

struct Bench {
    batcher: Batcher,
    proposed: Proposed,
    refused: Arc<Mutex<Vec<(u64, Refused)>>>,
    clock: kubemq_runtime::Clock,
    next: Mutex<u64>,
}

fn bench(gate: Option<Arc<tokio::sync::Semaphore>>) -> Bench {
    let runtime = Runtime::real();
    let proposed = Proposed::default();
    let time = ClusterTime::new(runtime.clock.clone(), 0);
    let clock = runtime.clock.clone();
    let fake = Fake { proposed: Arc::clone(&proposed), gate };
    let batcher = Batcher::new(Box::new(fake), time, runtime);
    Bench { batcher, proposed, refused: Arc::default(), clock, next: Mutex::new(1) }
}

impl Bench {
    /// Submits a batch of `count` operations of `bytes` bytes each; its number counts from 1.
    fn submit_within(&self, count: usize, bytes: usize, patience: Duration) -> Result<(), Refused> {
        let number = {
            let mut next = self.next.lock();
            *next += 1;
            *next - 1
        };
        // Zeros: so long as nobody reads them they take no memory.
        let operations = vec![Bytes::from(vec![0; bytes]); count];
        let batch = Batch { origin: Origin { node: 1, epoch: 1 }, number, operations };
        let refused = Arc::clone(&self.refused);
        let deadline = self.clock.now() + patience;
        self.batcher.submit(batch, deadline, Box::new(move |why| refused.lock().push((number, why))))
    }

    fn submit(&self, count: usize) {
        self.submit_within(count, 10, Duration::from_secs(60)).unwrap();
    }

    /// Ends the oldest entry and returns the numbers of the batches in it.
    fn end(&self, outcome: Outcome) -> Vec<u64> {
        let (proposal, done) = self.proposed.lock().pop_front().expect("an entry in flight");
        let numbers = Envelope::of(&proposal.parts).unwrap().batches.iter().map(|batch| batch.number).collect();
        done.tell(outcome);
        numbers
    }

    fn commit(&self) -> Vec<u64> {
        self.end(Outcome::Committed(LogId::default()))
    }

    fn in_flight(&self) -> usize {
        self.proposed.lock().len()
    }

    async fn until(&self, condition: impl Fn(&Self) -> bool) {
        let deadline = self.clock.now() + Duration::from_secs(20);
        while !condition(self) {
            assert!(self.clock.now() < deadline, "it did not come about");
            self.clock.sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn an_entry_holds_what_arrived_during_the_commits_before_it() {
    let bench = bench(None);
    for _ in 0..6 {
        bench.submit(1);
    }
    assert_eq!(bench.in_flight(), 2, "two entries at once, no more");
    assert_eq!(bench.commit(), [1]);
    assert_eq!(bench.commit(), [2]);
    assert_eq!(bench.in_flight(), 1, "a completion proposes the next");
    assert_eq!(bench.commit(), [3, 4, 5, 6]);
    assert_eq!(bench.batcher.fill().map(|(waiting, _)| waiting), [0, 0]);
    assert!(bench.refused.lock().is_empty());
}

#[tokio::test]
async fn full_entries_do_not_wait_for_those_before_them() {
    let bench = bench(None);
    for _ in 0..10 {
        bench.submit(1000);
    }
    assert_eq!(bench.in_flight(), FULL_IN_FLIGHT);
    bench.submit(1);
    assert_eq!(bench.commit(), [1]);
    assert_eq!(bench.in_flight(), FULL_IN_FLIGHT, "the next");
    for entry in 2..=9 {
        assert_eq!(bench.commit(), [entry]);
    }
    assert_eq!(bench.commit(), [10, 11]);
}

#[tokio::test]
async fn entries_are_bounded_and_stamps_increase() {
    let bench = bench(None);
    bench.submit(1);
    bench.submit(1);
    for _ in 0..3 {
        bench.submit(500);
    }
    bench.submit_within(1, 2 * batch::MAX_BYTES, Duration::from_secs(60)).unwrap();
    bench.submit(1);
    let mut times = Vec::new();
    let mut entries = Vec::new();
    while bench.in_flight() > 0 {
        times.push(bench.proposed.lock()[0].0.time);
        entries.push(bench.commit());
    }
    assert_eq!(entries, [vec![1], vec![2], vec![3, 4], vec![5], vec![6], vec![7]]);
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
}

#[tokio::test]
async fn a_batch_outside_its_bounds_is_not_taken() {
    let bench = bench(None);
    let patience = Duration::from_secs(1);
    assert_eq!(bench.submit_within(0, 0, patience), Err(Refused::Malformed));
    assert_eq!(bench.submit_within(batch::MAX_OPERATIONS + 1, 1, patience), Err(Refused::Malformed));
    assert_eq!(bench.submit_within(2, batch::MAX_BYTES, patience), Err(Refused::Malformed));
    assert_eq!(bench.submit_within(1, MOST_OPERATION_BYTES + 1, patience), Err(Refused::Malformed));
    assert_eq!(bench.in_flight(), 0);
}

#[tokio::test]
async fn too_much_is_refused_and_what_was_taken_goes_on() {
    let bench = bench(None);
    let taken = (0..).take_while(|_| bench.submit_within(1000, 1, Duration::from_secs(60)).is_ok()).count();
    assert_eq!(taken, FULL_IN_FLIGHT + MOST_OPERATIONS / 1000);
    assert_eq!(bench.submit_within(1000, 1, Duration::from_secs(60)), Err(Refused::Overloaded));
    bench.commit();
    bench.submit_within(1000, 1, Duration::from_secs(60)).expect("there is room again");
    let bench = self::bench(None);
    for large in 0..=IN_FLIGHT {
        let taken = bench.submit_within(1, MOST_BYTES + 1, Duration::from_secs(60));
        assert_eq!(taken, Ok(()), "a large one is taken when none waits: {large}");
    }
    assert_eq!(bench.submit_within(1, 1, Duration::from_secs(60)), Err(Refused::Overloaded));
}

#[tokio::test]
async fn a_refusal_goes_to_who_submitted() {
    let bench = bench(None);
    bench.submit(1);
    bench.submit(1);
    bench.submit(1);
    bench.end(Outcome::NotLeader(Some(3)));
    bench.end(Outcome::Unknown);
    assert_eq!(bench.commit(), [3]);
    assert_eq!(*bench.refused.lock(), [(1, Refused::NotLeader { leader: Some(3) }), (2, Refused::Unknown)]);
}

#[tokio::test]
async fn without_a_lease_everything_is_proposed_again_in_order() {
    let bench = bench(None);
    for _ in 0..4 {
        bench.submit(1);
    }
    assert_eq!(bench.end(Outcome::NoLease), [1]);
    assert_eq!(bench.end(Outcome::NoLease), [2]);
    bench.until(|bench| bench.in_flight() == 1).await;
    assert_eq!(bench.commit(), [1, 2, 3, 4]);
    assert!(bench.refused.lock().is_empty());
    assert_eq!(bench.batcher.fill().map(|(waiting, _)| waiting), [0, 0]);
}

#[tokio::test]
async fn without_a_lease_the_deadline_ends_it() {
    let bench = bench(None);
    bench.submit_within(1, 1, Duration::ZERO).unwrap();
    bench.submit(1);
    bench.end(Outcome::NoLease);
    assert_eq!(*bench.refused.lock(), [(1, Refused::Deadline)]);
    bench.end(Outcome::NoLease);
    bench.until(|bench| bench.in_flight() == 1).await;
    assert_eq!(bench.commit(), [2]);
}

#[tokio::test]
async fn a_proposal_that_must_wait_is_not_overtaken() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let bench = bench(Some(Arc::clone(&gate)));
    bench.submit(1);
    bench.submit(1);
    bench.submit(1);
    assert_eq!(bench.in_flight(), 0);
    gate.add_permits(3);
    bench.until(|bench| bench.in_flight() == 2).await;
    assert_eq!(bench.commit(), [1]);
    assert_eq!(bench.commit(), [2, 3]);
}

#[tokio::test]
async fn stopping_refuses_all_and_so_does_the_end_of_consensus() {
    let bench = bench(None);
    for _ in 0..4 {
        bench.submit(1);
    }
    // Consensus drops what it was given when it ends.
    let entry = bench.proposed.lock().pop_front();
    drop(entry);
    let mut refused = bench.refused.lock().clone();
    refused.sort_by_key(|(number, _)| *number);
    assert_eq!(refused, [(1, Refused::Stopped), (3, Refused::Stopped), (4, Refused::Stopped)]);
    assert_eq!(bench.submit_within(1, 1, Duration::from_secs(1)), Err(Refused::Stopped));
    assert_eq!(bench.end(Outcome::NoLease), [2], "what is put back now has nowhere to go");
    assert!(bench.refused.lock().contains(&(2, Refused::Stopped)));
}

#[tokio::test]
async fn a_beat_goes_out_only_when_idle() {
    let bench = bench(None);
    bench.batcher.beat(Duration::from_secs(3600));
    assert_eq!(bench.in_flight(), 0, "an entry was proposed lately enough");
    bench.batcher.beat(Duration::ZERO);
    assert_eq!(bench.in_flight(), 1);
    bench.batcher.beat(Duration::ZERO);
    assert_eq!(bench.in_flight(), 1, "something is under way");
    assert_eq!(bench.proposed.lock()[0].0.parts.count(), 1, "nothing but an envelope");
    assert!(bench.commit().is_empty());
}
