use futures_util::FutureExt as _;
use kubemq_broker::{Kind, Name, Operation};
use kubemq_storage::fs::MemoryDisk;

use super::*;
use crate::node::tests::start;

const SOON: Duration = Duration::from_secs(60);

fn publish(bytes: usize) -> Bytes {
    let message = vec![7; bytes].into();
    Operation::Publish { kind: Kind::Queue, channel: Name::new("q").unwrap(), delay_ms: 0, expiration_ms: 0, message }
        .to_bytes()
}

/// All tasks but the log's writer share one thread, so nothing is confirmed before something is awaited.
#[tokio::test]
async fn who_publishes_waits_for_room() {
    let node = start(&MemoryDisk::default()).await;
    node.ready().await;
    let (clock, outbox) = (&node.gateway().runtime().clock, &node.gateway().0.outbox);
    for (operations, under_way, batches) in [
        (vec![publish(1); MAX_OPERATIONS], DEEP_WINDOW, PENDING_OPERATIONS / MAX_OPERATIONS),
        (vec![publish(16 << 20)], WINDOW, PENDING_BYTES / (16 << 20)),
    ] {
        let mut submitted = Vec::new();
        for _ in 0..under_way + batches {
            assert!(outbox.room().now_or_never().is_some(), "after {}", submitted.len());
            submitted.push(outbox.submit(operations.clone(), COMMON, None));
        }
        assert!(outbox.room().now_or_never().is_none());
        assert_eq!(outbox.inner.lock().unconfirmed.len(), under_way);
        let [waiting, bytes] = outbox.fill();
        assert!(waiting.0 == waiting.1 || bytes.0 >= bytes.1, "{waiting:?} {bytes:?}");
        clock.timeout(SOON, outbox.room()).await.unwrap();
        for submitted in submitted {
            let outcomes = clock.timeout(SOON, submitted).await.unwrap().unwrap();
            assert!(outcomes.iter().all(|outcome| !matches!(outcome, Outcome::Refused(_))), "{outcomes:?}");
        }
    }
    node.stop().await;
}

#[tokio::test]
async fn little_gathers_while_two_are_under_way() {
    let node = start(&MemoryDisk::default()).await;
    node.ready().await;
    let (clock, outbox) = (&node.gateway().runtime().clock, &node.gateway().0.outbox);
    let submitted: Vec<_> = (0..100).map(|_| outbox.submit(vec![publish(1)], COMMON, None)).collect();
    assert_eq!(outbox.inner.lock().unconfirmed.len(), WINDOW);
    for submitted in submitted {
        clock.timeout(SOON, submitted).await.unwrap().unwrap();
    }
    node.stop().await;
}

/// Two of them at the same time would be more than the leader has room for.
#[tokio::test]
async fn large_batches_go_one_after_another() {
    let node = start(&MemoryDisk::default()).await;
    node.ready().await;
    let (clock, outbox) = (&node.gateway().runtime().clock, &node.gateway().0.outbox);
    for size in [40 << 20, UNCONFIRMED_BYTES + 1] {
        let submitted: Vec<_> = (0..4).map(|_| outbox.submit(vec![publish(size)], COMMON, None)).collect();
        assert_eq!(outbox.inner.lock().unconfirmed.len(), 1, "of {size} bytes");
        for submitted in submitted {
            let outcomes = clock.timeout(SOON, submitted).await.unwrap().unwrap();
            assert!(matches!(outcomes[..], [Outcome::Stored { .. }]), "{outcomes:?}");
        }
    }
    node.stop().await;
}
