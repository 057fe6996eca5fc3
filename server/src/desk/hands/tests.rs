use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kubemq_broker::{BatchView, Kind, Name, Operation, Sequences, State};
use kubemq_proto::kubemq::QueueMessage;
use kubemq_storage::fs::MemoryDisk;
use parking_lot::Mutex;

use super::*;
use crate::desk::{Core, Poll, Reserved};
use crate::gateway::Take;
use crate::node::tests::start;

/// A desk whose readers may hold few messages, of queues of ten.
struct Bench(Arc<Mutex<Core>>);

impl Bench {
    fn new(most: usize, queues: &[&str]) -> Self {
        let mut core = Core::new(State::default());
        core.desk.hands = Hands::at_most(most);
        let bench = Self(Arc::new(Mutex::new(core)));
        for queue in queues {
            let publish = Operation::Publish {
                kind: Kind::Queue,
                channel: Name::new(queue).unwrap(),
                delay_ms: 0,
                expiration_ms: 0,
                message: Bytes::from_static(b"message"),
            };
            bench.apply(&vec![publish; 10]);
        }
        bench
    }

    fn apply(&self, operations: &[Operation]) {
        let operations: Vec<Bytes> = operations.iter().map(Operation::to_bytes).collect();
        let mut core = self.0.lock();
        let entry = core.state.entry() + 1;
        let batch = BatchView { origin: 1, epoch: 1, number: entry, first_part: 1, operations: &operations };
        let applied = core.state.apply(entry, entry, &[batch]);
        core.take_effects(applied.effects);
    }

    fn poll(&self, queue: &str) -> Poll {
        Poll::new(Arc::clone(&self.0), queue)
    }

    fn ack(&self, messages: &[Reserved]) {
        let sequences: Sequences = messages.iter().map(|message| message.sequence).collect();
        self.apply(&[Operation::Ack { channel: messages[0].channel, sequences }]);
    }

    fn give_back(&self, messages: &[Reserved]) {
        self.0.lock().give_back(messages[0].channel, messages.iter().map(|message| message.sequence));
    }

    /// Returns how many are out, counted one by one as well.
    fn out(&self) -> usize {
        let core = self.0.lock();
        let counted: usize = core.desk.channels.values().map(|channel| channel.out.len()).sum();
        assert_eq!(counted, core.desk.in_flight());
        counted
    }
}

#[test]
fn at_the_bound_gets_wait_and_settlements_serve_them_in_turn() {
    let bench = Bench::new(5, &["a", "b", "c"]);
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|queue| bench.poll(queue));
    let held = a.next(10);
    assert_eq!(held.len(), 5, "it takes what is left");
    assert!(b.next(10).is_empty() && c.next(2).is_empty());
    bench.ack(&held[..2]);
    let of_b = b.next(10);
    assert_eq!((of_b.len(), bench.out()), (2, 5));
    // What is given back is room as well, and each channel has its turn.
    assert!(b.next(8).is_empty());
    bench.give_back(&held[2..]);
    assert_eq!((c.next(2).len(), b.next(8).len(), bench.out()), (2, 1, 5));
    // Nobody waits for room in vain whose queue is gone.
    bench.apply(&[Operation::Delete { kind: Kind::Queue, channel: Name::new("b").unwrap() }]);
    assert_eq!(bench.out(), 2);
    assert_eq!(a.next(10).len(), 3);
    assert_eq!(bench.out(), 5);
}

#[test]
fn a_message_that_is_damaged_is_in_nobodys_hands() {
    let bench = Bench::new(1, &["a", "b"]);
    let (mut a, mut b) = (bench.poll("a"), bench.poll("b"));
    let held = a.next(1);
    assert!(b.next(1).is_empty());
    assert!(bench.0.lock().note_damaged(&held[0], true));
    assert_eq!((b.next(1).len(), bench.out()), (1, 1));
}

#[test]
fn who_comes_to_lead_counts_anew_what_is_held() {
    let bench = Bench::new(4, &["a", "b"]);
    let (mut a, mut b) = (bench.poll("a"), bench.poll("b"));
    let held = a.next(4);
    assert!(b.next(3).is_empty());
    // The outcome of these settlements will never be known here.
    bench.0.lock().settling(held[0].channel, held[..3].iter().map(|message| message.sequence));
    bench.0.lock().lead();
    assert_eq!((b.next(3).len(), bench.out()), (3, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_hands_out_no_more_than_it_may() {
    let node = start(&MemoryDisk::default()).await;
    let gateway = node.gateway();
    gateway.with_core(|core| core.desk.hands = Hands::at_most(3));
    for _ in 0..5 {
        let message =
            QueueMessage { client_id: "c".into(), channel: "q".into(), body: "x".into(), ..Default::default() };
        assert!(!gateway.send(message).await.unwrap().is_error);
    }
    let take = async |wait: u64| {
        let deadline = gateway.runtime().clock.now() + Duration::from_millis(wait);
        let take = Take { channel: "q".to_owned(), max: 10, max_bytes: u64::MAX, deadline };
        gateway.take(take).await.unwrap()
    };
    let mut first = take(50).await;
    assert_eq!(first.deliveries.len(), 3);
    assert!(take(50).await.deliveries.is_empty(), "as if the queue were empty");
    let settle = async {
        // Once the other one waits.
        while gateway.with_core(|core| core.desk.waiting_polls()) == 0 {
            tokio::task::yield_now().await;
        }
        first.ack(&[1, 2, 3]).await.unwrap();
    };
    let (second, ()) = tokio::join!(take(2_000), settle);
    assert_eq!(second.deliveries.iter().map(|delivery| delivery.sequence).collect::<Vec<_>>(), [4, 5]);
    drop((first, second));
    node.stop().await;
}
