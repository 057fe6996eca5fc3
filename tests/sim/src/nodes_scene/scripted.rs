//! What random runs have found, as short scripts with fixed faults at fixed points.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kubemq_proto::kubemq::{QueueMessagesBatchRequest, SendQueueMessageResult};
use kubemq_runtime::OnFailure;
use kubemq_server::gateway::Take;
use kubemq_storage::fs::Disk;
use parking_lot::Mutex;

use super::clients::{identify, to_wire};
use super::{CHANNELS, NODES, Nodes, Running, Scene, Sizes};
use crate::cluster::{Cluster, End};
use crate::oracle::Sent;
use crate::run::Plant;
use crate::world::{Order, Simulation};

const SIZES: Sizes = Sizes { segment: 1 << 20, tail: 1 << 20, snapshot: 64 << 20, keep: 64 << 20, index: 128 << 20 };

/// Runs a script on three nodes that agree on a leader. Returns why it failed.
fn scripted(
    script: impl FnOnce(Scene, usize) -> BoxFuture<'static, Result<(), String>> + Send + 'static,
) -> Option<String> {
    scripted_with(SIZES, script)
}

pub(super) fn scripted_with(
    sizes: Sizes,
    script: impl FnOnce(Scene, usize) -> BoxFuture<'static, Result<(), String>> + Send + 'static,
) -> Option<String> {
    let mut simulation = Simulation::new(1, Order::Any, Duration::from_secs(300), false);
    let cluster = Cluster::new(&simulation, NODES, Nodes { sizes });
    let scene = Scene::new(cluster.clone(), Plant::Nothing);
    let result = simulation.run(async move {
        for node in scene.cluster.nodes() {
            scene.cluster.start(node);
        }
        let leader = scene.leader().await?;
        script(scene, leader).await
    });
    cluster.conclude(simulation, result, String::new()).failure.map(|failure| failure.reason)
}

async fn send(scene: &Scene, node: usize) -> Result<(), String> {
    send_sized(scene, node, 0).await
}

async fn send_sized(scene: &Scene, node: usize, size: usize) -> Result<(), String> {
    let message = to_wire(7, &Sent { size, ..Sent::default() });
    let sent = scene
        .cluster
        .call(node, Duration::from_secs(15), move |running| async move { running.node.gateway().send(message).await });
    match sent.await {
        Some(Ok(result)) if !result.is_error => Ok(()),
        other => Err(format!("not stored: {other:?}")),
    }
}

/// Takes and acks one message; returns how many it got, which may be none.
async fn take(running: Running, wait: Duration) -> usize {
    let deadline = running.runtime.clock.now() + wait;
    let take = Take { channel: CHANNELS[0].to_owned(), max: 1, max_bytes: u64::MAX, deadline };
    let Ok(mut held) = running.node.gateway().take(take).await else { return 0 };
    let sequences: Vec<u64> = held.unsettled().collect();
    held.ack(&sequences).await.ok();
    sequences.len()
}

/// Returns a leader other than `old`.
async fn next_leader(scene: &Scene, old: usize) -> usize {
    loop {
        match scene.cluster.leader() {
            Some(leader) if leader != old => return leader,
            _ => scene.cluster.world().sleep(Duration::from_millis(20)).await,
        }
    }
}

#[test]
fn readers_that_wait_at_a_replaced_leader_are_handed_nothing() {
    let failure = scripted(|scene, old| {
        Box::pin(async move {
            let (cluster, world) = (scene.cluster.clone(), scene.cluster.world().clone());
            let got = Arc::new(Mutex::new(None));
            let (waiting, slot) = (cluster.clone(), Arc::clone(&got));
            let reader = async move {
                let took = waiting.call(old, Duration::from_secs(60), |running| take(running, Duration::from_secs(20)));
                *slot.lock() = took.await;
            };
            let tasks = world.runtime(cluster.harness()).tasks;
            let reader = tasks.spawn("reader", OnFailure::StopNode, reader);
            world.sleep(Duration::from_millis(100)).await;
            for other in cluster.nodes().into_iter().filter(|other| *other != old) {
                cluster.network().cut(old, other);
                cluster.network().cut(other, old);
            }
            let new = next_leader(&scene, old).await;
            cluster.network().heal();
            // The old leader applies it as a follower, with a reader waiting.
            send(&scene, new).await?;
            reader.await.ok();
            assert_eq!(*got.lock(), Some(0));
            let took = cluster.call(new, Duration::from_secs(60), |running| take(running, Duration::from_secs(1)));
            assert_eq!(took.await, Some(1));
            Ok(())
        })
    });
    assert_eq!(failure, None);
}

/// Sends messages of one channel that are due within some seconds, later than in half a minute. Returns them in the order
/// in which they are.
async fn send_delayed(scene: &Scene, node: usize, count: u64) -> Result<Vec<(u64, u64)>, String> {
    let sent = |id| Sent { delay: 35 + id * 13 % 7, ..Sent::default() };
    let messages = (0..count).map(|id| to_wire(id, &sent(id))).collect();
    let batch = QueueMessagesBatchRequest { messages, ..Default::default() };
    let answer = scene.cluster.call(node, Duration::from_secs(15), move |running| async move {
        running.node.gateway().send_batch(batch).await
    });
    let Some(Ok(Ok(answer))) = answer.await else { return Err("the batch was not taken".to_owned()) };
    let due = |result: &SendQueueMessageResult| u64::try_from(result.delayed_to).unwrap_or(0);
    let mut dues: Vec<(u64, u64)> = answer.results.iter().map(due).zip(0..).collect();
    dues.sort_unstable();
    Ok(dues)
}

/// Takes and acks some messages; returns which, and when.
async fn take_some(running: Running) -> (Vec<u64>, u64) {
    let deadline = running.runtime.clock.now() + Duration::from_secs(60);
    let take = Take { channel: CHANNELS[0].to_owned(), max: 40, max_bytes: u64::MAX, deadline };
    let Ok(mut held) = running.node.gateway().take(take).await else { return (Vec::new(), 0) };
    let time = running.node.gateway().time().0;
    let ids = held.deliveries.iter().filter_map(identify).collect();
    let sequences: Vec<u64> = held.unsettled().collect();
    held.ack(&sequences).await.ok();
    (ids, time)
}

#[test]
fn delayed_messages_that_left_the_memory_are_released_in_order_by_another_leader() {
    let sizes = Sizes { index: 0, ..SIZES };
    let failure = scripted_with(sizes, |scene, old| {
        Box::pin(async move {
            let (cluster, world) = (scene.cluster.clone(), scene.cluster.world().clone());
            let dues = send_delayed(&scene, old, 500).await?;
            let blocks = |node: usize| cluster.running(node).map(|running| running.node.gateway().index_blocks_moved());
            // Nothing else is there that could leave.
            while cluster.nodes().into_iter().any(|node| blocks(node).is_none_or(|(left, _)| left < 5)) {
                world.sleep(Duration::from_millis(100)).await;
            }
            world.freeze(old);
            let new = next_leader(&scene, old).await;
            let mut received = Vec::new();
            while received.len() < dues.len() {
                let took = cluster.call(new, Duration::from_secs(90), take_some).await;
                let (ids, time) = took.ok_or("a take was not answered")?;
                for id in ids {
                    let due = dues.get(received.len()).filter(|(due, next)| *next == id && *due <= time);
                    received.push(*due.ok_or_else(|| format!("{id} is early or not in its place: {received:?}"))?);
                }
            }
            let came_back = blocks(new).map_or(0, |(_, came_back)| came_back);
            assert!(came_back >= 5, "{came_back} blocks came back");
            world.thaw(old);
            Ok(())
        })
    });
    assert_eq!(failure, None);
}

#[test]
fn a_leader_that_stood_still_hands_out_nothing() {
    let failure = scripted(|scene, old| {
        Box::pin(async move {
            let cluster = scene.cluster.clone();
            send(&scene, old).await?;
            cluster.world().freeze(old);
            let new = next_leader(&scene, old).await;
            let took = cluster.call(new, Duration::from_secs(60), |running| take(running, Duration::from_secs(5)));
            assert_eq!(took.await, Some(1));
            cluster.world().thaw(old);
            let took = cluster.call(old, Duration::from_secs(60), |running| take(running, Duration::ZERO));
            assert_eq!(took.await, Some(0));
            Ok(())
        })
    });
    assert_eq!(failure, None);
}

#[test]
fn what_is_kept_of_a_node_for_ever_is_noticed() {
    let failure = scripted(|scene, leader| {
        Box::pin(async move {
            std::mem::forget(scene.cluster.running(leader));
            Ok(())
        })
    });
    assert!(failure.unwrap().contains("is never freed"));
}

#[test]
fn a_damaged_node_is_replaced_by_one_with_an_empty_disk() {
    let failure = scripted(|scene, leader| {
        Box::pin(async move {
            let cluster = scene.cluster.clone();
            send(&scene, leader).await?;
            let damaged = cluster.nodes().into_iter().find(|node| *node != leader).unwrap();
            let segment = Path::new("data/log").join("000000000001.seg");
            // Inside the head of the first group, behind which others follow.
            cluster.damage(damaged, |disk| disk.flip_bit(&segment, 8 * 400));
            cluster.end(damaged, None, End::Crash, false);
            cluster.start(damaged);
            while cluster.place(damaged).is_some() {
                cluster.world().sleep(Duration::from_millis(20)).await;
            }
            assert!(cluster.summary().contains("stopped_by_damage: 1"), "{}", cluster.summary());
            cluster.changed().await?;
            assert!(!cluster.nodes().contains(&damaged));
            assert_eq!(cluster.nodes().len(), NODES);
            let leader = scene.leader().await?;
            let took = cluster.call(leader, Duration::from_secs(60), |running| take(running, Duration::from_secs(5)));
            assert_eq!(took.await, Some(1));
            Ok(())
        })
    });
    assert_eq!(failure, None);
}

#[test]
fn a_damaged_snapshot_that_the_log_needs_is_named() {
    let failure = scripted(|scene, leader| {
        Box::pin(async move {
            let cluster = scene.cluster.clone();
            let damaged = cluster.nodes().into_iter().find(|node| *node != leader).unwrap();
            for _ in 0..2 {
                send(&scene, leader).await?;
                cluster.agreed().await?;
                // It purges the log that the snapshot covers.
                let written = cluster.call(damaged, Duration::from_secs(60), |running| async move {
                    running.node.raft().snapshot().await.is_ok()
                });
                assert_eq!(written.await, Some(true));
            }
            let dir = Path::new("data/snapshots");
            cluster.damage(damaged, |disk| {
                let names = disk.list(dir).now_or_never().unwrap().unwrap();
                disk.flip_bit(&dir.join(names.iter().max().unwrap()), 8 * 100)
            });
            cluster.end(damaged, None, End::Crash, false);
            // The run fails when a node stops for a reason that does not name the damage.
            cluster.start(damaged);
            while cluster.place(damaged).is_some() {
                cluster.world().sleep(Duration::from_millis(20)).await;
            }
            assert!(cluster.summary().contains("stopped_by_damage: 1"), "{}", cluster.summary());
            Ok(())
        })
    });
    assert_eq!(failure, None);
}

#[test]
fn a_leader_that_reads_damaged_entries_stops_and_says_why() {
    let failure = scripted(|scene, leader| {
        Box::pin(async move {
            let cluster = scene.cluster.clone();
            let late = cluster.nodes().into_iter().find(|node| *node != leader).unwrap();
            cluster.end(late, None, End::Crash, false);
            // More than the tail cache holds: the entries that the late node lacks are read from the file.
            for _ in 0..40 {
                send_sized(&scene, leader, 100_000).await?;
            }
            let segment = Path::new("data/log").join("000000000001.seg");
            cluster.damage(leader, |disk| disk.flip_bit(&segment, 8 * 200_000));
            cluster.start(late);
            // The run fails when a node stops for a reason that does not name the damage.
            while !cluster.summary().contains("stopped_by_damage: 1") {
                cluster.world().sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        })
    });
    assert_eq!(failure, None);
}
