//! Three voters in one process: what a group promises.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod harness;

use std::path::PathBuf;
use std::time::Duration;

use harness::Cluster;
use kubemq_raft::network::memory::Cut;
use kubemq_raft::{Error, Node, Options, Role};
use kubemq_storage::fs::Disk as _;

fn as_recommended(_: &mut Options) {}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_elects_replicates_and_reads() {
    let cluster = Cluster::form(3, as_recommended).await;
    let leader = cluster.leader().await;
    cluster.write(0..50).await;
    cluster.settle().await;
    let orders: Vec<_> = cluster.running.values().map(|voter| voter.recorder.0.lock().order.clone()).collect();
    assert_eq!(orders[0], (1..=50).collect::<Vec<_>>());
    assert!(orders.iter().all(|order| *order == orders[0]));
    for id in 1..=3 {
        cluster.check_bodies(id).await;
    }
    assert_eq!(cluster.roles().iter().filter(|role| **role == Role::Leader).count(), 1);

    // What was committed before a barrier is seen after it, on every node.
    let number = cluster.write([7]).await[0];
    for voter in cluster.running.values() {
        let (first, second) = tokio::join!(voter.node.read_barrier(), voter.node.read_barrier());
        first.and(second).unwrap();
        assert!(voter.recorder.0.lock().order.contains(&number));
    }
    let follower = cluster.running.iter().find(|(id, _)| **id != leader).unwrap().1;
    assert!(matches!(
        follower.node.initialize([(9, kubemq_raft::Member::default())].into()).await,
        Err(Error::AlreadyFormed)
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_and_comes_back() {
    let mut cluster = Cluster::form(3, as_recommended).await;
    let first = cluster.leader().await;
    let term = cluster.running[&first].node.status().term;
    cluster.write(0..20).await;
    cluster.kill(first).await;
    let second = cluster.leader().await;
    assert_ne!(first, second);
    cluster.write(20..40).await;
    cluster.open(first).await;
    cluster.write(40..60).await;
    cluster.settle().await;
    assert!(cluster.running[&second].node.status().term > term);
    for voter in cluster.running.values() {
        let known = voter.recorder.0.lock();
        let mut order = known.order.clone();
        order.dedup();
        assert_eq!(order, (1..=60).collect::<Vec<_>>(), "in order, and none lost");
        assert!(!known.disorder, "LogTime increases across leaders and restarts");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_leader_hands_over() {
    let mut cluster = Cluster::form(3, |options| {
        // Time-outs that the test would not live to see: only a transfer gives it another leader.
        options.election_least = Duration::from_secs(200);
        options.election_most = Duration::from_secs(300);
    })
    .await;
    cluster.running[&1].node.elect().await.unwrap();
    let first = cluster.leader().await;
    cluster.write(0..5).await;
    let voter = cluster.running.remove(&first).unwrap();
    voter.node.shutdown().await;
    cluster.network.leave(first);
    assert_eq!(voter.node.status().role, Role::Stopped);
    let second = cluster.until("another leader", || {
        cluster.running.iter().find(|(_, voter)| voter.node.status().leads()).map(|(id, _)| *id)
    });
    assert_ne!(second.await, first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_isolated_node_does_not_raise_the_term() {
    let cluster = Cluster::form(3, as_recommended).await;
    let leader = cluster.leader().await;
    cluster.write(0..3).await;
    let lone = (1..=3).find(|id| *id != leader).unwrap();
    let term = cluster.running[&lone].node.status().term;
    cluster.network.isolate(lone, 1..=3, Cut::Reset);
    // Long enough for several elections: the lease and the time-out are a second together.
    let end = cluster.runtime.clock.now() + Duration::from_secs(5);
    while cluster.runtime.clock.now() < end {
        assert_eq!(cluster.running[&lone].node.status().term, term, "the pre-vote was granted by nobody");
        cluster.runtime.clock.sleep(Duration::from_millis(20)).await;
    }
    cluster.network.heal();
    assert_eq!(cluster.leader().await, leader, "nobody was disturbed");
    assert_eq!(cluster.running[&lone].node.status().term, term);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_off_leader_knows_that_it_may_not_lead() {
    let cluster = Cluster::form(3, as_recommended).await;
    let first = cluster.leader().await;
    cluster.network.isolate(first, 1..=3, Cut::Silence);
    let lonely = &cluster.running[&first].node;
    cluster.until("an expired lease", || (!lonely.status().quorum_contact).then_some(())).await;
    assert!(lonely.read_barrier().await.is_err());
    let others = || cluster.running.iter().find(|(id, voter)| **id != first && voter.node.status().quorum_contact);
    let second = cluster.until("another leader", || others().map(|(id, _)| *id)).await;
    cluster.network.heal();
    cluster.until("one leader", || (!lonely.status().leads()).then_some(())).await;
    assert_eq!(cluster.leader().await, second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_behind_the_purge_point_gets_the_snapshot_with_its_bodies() {
    let mut cluster = Cluster::form(3, |options| options.keep_bytes = 0).await;
    let leader = cluster.leader().await;
    cluster.write(0..20).await;
    cluster.settle().await;
    let late = (1..=3).find(|id| *id != leader).unwrap();
    cluster.kill(late).await;
    // Old values die, so that there is something to purge and to give back; others live on below the purge point.
    cluster.write((0..200).map(|n| 100 + n % 20)).await;
    cluster.settle().await;
    let mut least = u64::MAX;
    // Both, so that it does not matter who leads later.
    for (id, voter) in &cluster.running {
        let before = voter.log.segments().len();
        voter.node.snapshot().await.unwrap();
        let purged = voter.node.status().purged.expect("the log was purged").index;
        assert!(purged > 25, "the late follower needs what is gone: {purged}");
        least = least.min(purged);
        let after = voter.log.segments().len();
        assert!(after < before, "segments in which nothing lives were given back: {before} before, {after} after");
        cluster.check_bodies(*id).await;
    }

    cluster.open(late).await;
    cluster.write(300..310).await;
    cluster.settle().await;
    let late_node = &cluster.running[&late].node;
    let installed = cluster.until("an installed snapshot", || late_node.status().snapshot).await;
    assert!(installed.index >= least);
    for id in 1..=3 {
        cluster.check_bodies(id).await;
    }
    // It is its own after a restart, too.
    cluster.kill(late).await;
    cluster.open(late).await;
    cluster.settle().await;
    cluster.check_bodies(late).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_member_gets_everything() {
    let mut cluster = Cluster::start(2, |options| options.keep_bytes = 0).await;
    let first = cluster.running[&1].node.clone();
    first.stand_alone(harness::PATIENCE).await.unwrap();
    for key in 0..100 {
        // Only node 1 is a member yet; the other must not be asked.
        let other = cluster.running.remove(&2).unwrap();
        cluster.write([key]).await;
        cluster.running.insert(2, other);
    }
    first.snapshot().await.unwrap();
    let member = kubemq_raft::Member { address: "memory:2".to_owned() };
    first.add_learner(2, member, true).await.unwrap();
    first.change_voters([1, 2].into(), false).await.unwrap();
    cluster.settle().await;
    // The log alone was not enough.
    cluster.until("an installed snapshot", || cluster.running[&2].node.status().snapshot).await;
    cluster.check_bodies(2).await;
    assert_eq!(cluster.running[&2].node.status().voters.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_come_back_with_the_same_state() {
    let mut cluster = Cluster::form(3, as_recommended).await;
    cluster.write(0..60).await;
    let leader = cluster.leader().await;
    cluster.running[&leader].node.snapshot().await.unwrap();
    cluster.write(30..90).await;
    let before = cluster.settle().await;
    for id in 1..=3 {
        cluster.kill(id).await;
    }
    for id in 1..=3 {
        cluster.open(id).await;
    }
    cluster.leader().await;
    for voter in cluster.running.values() {
        voter.node.recovered(harness::PATIENCE).await.unwrap();
    }
    for voter in cluster.running.values() {
        assert_eq!(voter.recorder.0.lock().keys().len(), 90);
    }
    for id in 1..=3 {
        cluster.check_bodies(id).await;
    }
    // Beats go on, and with them time: only the values are compared with those before.
    assert_ne!(before, 0);
    cluster.write([1000]).await;
    assert!(cluster.running.values().all(|voter| !voter.recorder.0.lock().disorder));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_written_when_nothing_was_written_for_a_while() {
    let cluster = Cluster::start(1, |options| options.snapshot_idle = std::time::Duration::from_millis(300)).await;
    let node = cluster.running[&1].node.clone();
    node.stand_alone(harness::PATIENCE).await.unwrap();
    cluster.write(0..30).await;
    let last = node.status().applied.unwrap().index;
    cluster.until("a snapshot of all of it", || node.status().snapshot.filter(|written| written.index >= last)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_voter_is_ready_at_once_and_gives_disk_back() {
    let mut cluster = Cluster::start(1, as_recommended).await;
    cluster.running[&1].node.stand_alone(harness::PATIENCE).await.unwrap();
    assert!(cluster.running[&1].node.status().quorum_contact);
    cluster.write((0..300).map(|n| n % 3)).await;
    assert!(cluster.running[&1].log.segments().len() > 5);
    cluster.running[&1].node.snapshot().await.unwrap();
    assert!(cluster.running[&1].log.segments().len() <= 2, "{:?}", cluster.running[&1].log.segments());
    cluster.check_bodies(1).await;
    let before = cluster.running[&1].node.digest().1;
    for _ in 0..3 {
        cluster.kill(1).await;
        cluster.open(1).await;
        let node = cluster.running[&1].node.clone();
        node.stand_alone(harness::PATIENCE).await.unwrap();
        assert_eq!(node.digest().1, before);
        node.read_barrier().await.unwrap();
    }
    cluster.check_bodies(1).await;
    cluster.write(0..3).await;
    assert!(!cluster.running[&1].recorder.0.lock().disorder);
}

/// Changes a byte in the middle of snapshot file `number`, or changes it back.
fn spoil(cluster: &Cluster, id: u64, number: usize) {
    assert!(cluster.disks[&id].flip_bit(&snapshot_path(number), 8 * 100), "there is such a file");
}

fn snapshot_path(number: usize) -> PathBuf {
    PathBuf::from(format!("/data/snapshots/{number:020}.snapshot"))
}

async fn alone() -> (Cluster, Node) {
    let cluster = Cluster::start(1, as_recommended).await;
    let node = cluster.running[&1].node.clone();
    node.stand_alone(harness::PATIENCE).await.unwrap();
    (cluster, node)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_dropped_from_memory_goes_from_snapshot_to_snapshot() {
    let (mut cluster, mut node) = alone().await;
    let dropped = |cluster: &Cluster| cluster.running[&1].recorder.0.lock().dropped();
    assert!(node.durable_snapshot().is_none());
    cluster.write(0..50).await;
    assert_eq!(dropped(&cluster), 0);
    node.snapshot().await.unwrap();
    assert_eq!(dropped(&cluster), 50);
    let first = node.durable_snapshot().unwrap();
    for round in 1..5 {
        cluster.write((round * 10)..(50 + round * 10)).await;
        assert_eq!(dropped(&cluster), usize::try_from(round * 10).unwrap());
        cluster.check_bodies(1).await;
        node.snapshot().await.unwrap();
        cluster.check_bodies(1).await;
        if round == 3 {
            cluster.kill(1).await;
            cluster.open(1).await;
            node = cluster.running[&1].node.clone();
            node.stand_alone(harness::PATIENCE).await.unwrap();
        }
        assert_eq!(dropped(&cluster), usize::try_from(50 + round * 10).unwrap());
        cluster.check_bodies(1).await;
    }
    // What was held all the time can still be read, and the newest holds everything.
    for (held, keys) in [(first, 50), (node.durable_snapshot().unwrap(), 90)] {
        let mut reader = held.reader().await.unwrap();
        let mut chunks = 0;
        while reader.next_chunk().await.unwrap().is_some() {
            chunks += 1;
        }
        assert_eq!(chunks, keys + 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_needs_a_damaged_one_fails_and_nothing_is_purged() {
    let (cluster, node) = alone().await;
    cluster.write(0..20).await;
    node.snapshot().await.unwrap();
    cluster.write((0..300).map(|n| 100 + n % 20)).await;
    let (purged, segments) = (node.status().purged, cluster.running[&1].log.segments().len());
    assert!(segments > 2);
    spoil(&cluster, 1, 1);
    for _ in 0..2 {
        let failed = node.snapshot().await;
        assert!(matches!(&failed, Err(Error::Storage(error)) if error.is_damage()), "{failed:?}");
        assert_eq!(node.status().purged, purged);
        assert_eq!(cluster.running[&1].log.segments().len(), segments);
    }
    assert!(
        !cluster.disks[&1].list(&PathBuf::from("/data/snapshots")).await.unwrap().iter().any(|n| n.contains("temp"))
    );
    // The node goes on, and has forgotten nothing once the file can be read again.
    cluster.write(200..210).await;
    spoil(&cluster, 1, 1);
    node.snapshot().await.unwrap();
    assert!(cluster.running[&1].log.segments().len() < segments);
    assert_eq!(cluster.running[&1].recorder.0.lock().dropped(), 50);
    cluster.check_bodies(1).await;
}

/// Leaves node 1 stopped, with two snapshots, and its log reaching back to before the older one.
async fn with_two_snapshots() -> Cluster {
    let mut cluster = Cluster::form(3, as_recommended).await;
    cluster.leader().await;
    cluster.running[&1].node.elect().await.unwrap();
    cluster.until("node 1 leads", || cluster.running[&1].node.status().quorum_contact.then_some(())).await;
    cluster.write(0..20).await;
    cluster.settle().await;
    // It keeps the log for one that is behind.
    cluster.kill(3).await;
    for keys in [10..30, 20..40, 30..50] {
        cluster.write(keys.clone()).await;
        if keys.start < 30 {
            cluster.running[&1].node.snapshot().await.unwrap();
        }
    }
    cluster.kill(1).await;
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_newest_snapshot_is_damaged_starts_from_the_one_before() {
    let mut cluster = with_two_snapshots().await;
    spoil(&cluster, 1, 2);
    cluster.open(1).await;
    cluster.open(3).await;
    cluster.leader().await;
    let recorder = &cluster.running[&1].recorder;
    cluster.until("all keys", || (recorder.0.lock().keys().len() == 50).then_some(())).await;
    let held = cluster.running[&1].node.durable_snapshot().unwrap();
    assert_eq!(held.file().number, 1);
    assert!(recorder.0.lock().dropped() > 0);
    cluster.check_bodies(1).await;
    cluster.running[&1].node.snapshot().await.unwrap();
    assert_eq!(recorder.0.lock().dropped(), 50);
    cluster.check_bodies(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_readable_snapshot_does_not_start() {
    let mut cluster = with_two_snapshots().await;
    spoil(&cluster, 1, 1);
    spoil(&cluster, 1, 2);
    let failed = cluster.try_open(1).await;
    assert!(matches!(&failed, Err(Error::Storage(error)) if error.is_damage()), "{failed:?}");
    // A file of a newer program is no damage, and nothing older goes for it.
    spoil(&cluster, 1, 1);
    spoil(&cluster, 1, 2);
    assert!(cluster.disks[&1].flip_bit(&snapshot_path(2), 8 * 8 + 3));
    let failed = cluster.try_open(1).await;
    assert!(
        matches!(failed, Err(Error::Storage(kubemq_storage::Error::UnknownVersion { found: 9, .. }))),
        "{failed:?}"
    );
}
