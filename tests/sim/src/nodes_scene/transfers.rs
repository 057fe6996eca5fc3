//! A snapshot's transfer that is cut at each of its steps, by the death of the sender or of the receiver.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::clients::to_wire;
use super::scripted::scripted_with;
use super::{Scene, Sizes};
use crate::cluster::End;
use crate::oracle::{Sent, Told};

/// Segments and what is kept for slow followers are small, so that the log is purged; snapshots are made by the script.
const SIZES: Sizes = Sizes { segment: 256 << 10, tail: 64 << 10, snapshot: 64 << 20, keep: 16 << 10, index: 0 };
/// Messages that the late node has, and all that are sent. Their bodies fill several frames.
const EARLY: u64 = 3;
const MESSAGES: u64 = 40;
const SIZE: usize = 60_000;

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Nobody,
    Sender,
    Receiver,
}

async fn send(scene: &Scene, node: usize, id: u64) -> Result<(), String> {
    let sent = Sent { size: SIZE, ..Sent::default() };
    scene.oracle.lock().sending(id, sent);
    let message = to_wire(id, &sent);
    let limit = Duration::from_secs(15);
    let stored = scene.cluster.call(node, limit, |running| async move { running.node.gateway().send(message).await });
    match stored.await {
        Some(Ok(result)) if !result.is_error => scene.oracle.lock().sent(id, Told::Done),
        other => Err(format!("not stored: {other:?}")),
    }
}

/// Has a snapshot sent to a node that was away. The victim loses power when so many frames of it have arrived, and
/// comes back. Every body must come to be on the disk of the late node. Returns how many frames there were.
fn transfer(victim: Victim, frames: u64) -> u64 {
    let counted = Arc::new(Mutex::new(0));
    let count = Arc::clone(&counted);
    let failure = scripted_with(SIZES, move |scene, leader| {
        Box::pin(async move {
            let (cluster, world) = (scene.cluster.clone(), scene.cluster.world().clone());
            let late = cluster.nodes().into_iter().find(|node| *node != leader).unwrap();
            for id in 1..=EARLY {
                send(&scene, leader, id).await?;
            }
            cluster.agreed().await?;
            cluster.end(late, None, End::Crash, false);
            for id in EARLY + 1..=MESSAGES {
                send(&scene, leader, id).await?;
            }
            for node in cluster.nodes().into_iter().filter(|node| *node != late) {
                let written = cluster.call(node, Duration::from_secs(60), |running| async move {
                    let raft = running.node.raft();
                    raft.snapshot().await.unwrap();
                    // What the late node lacks goes soon.
                    while raft.status().purged.is_none() {
                        running.runtime.clock.sleep(Duration::from_millis(100)).await;
                    }
                });
                written.await.ok_or("the log was not purged")?;
            }
            let dies = if victim == Victim::Sender { leader } else { late };
            if victim != Victim::Nobody {
                let (then, world) = (cluster.clone(), world.clone());
                cluster.network().when_snapshot_frames(frames, move || {
                    then.end(dies, None, End::PowerLoss, false);
                    let harness = Arc::clone(then.harness());
                    let back = async move {
                        then.world().sleep(Duration::from_millis(500)).await;
                        then.start(dies);
                    };
                    world.spawn(&harness, "back", Box::pin(back));
                });
            }
            cluster.start(late);
            while cluster.network().snapshot_frames() < frames {
                world.sleep(Duration::from_millis(20)).await;
            }
            while cluster.place(dies).is_none() {
                world.sleep(Duration::from_millis(20)).await;
            }
            scene.look_everywhere(late).await?;
            assert_eq!(scene.oracle.lock().tally.peeked, MESSAGES, "messages that can be read at the late node");
            *count.lock() = cluster.network().snapshot_frames();
            Ok(())
        })
    });
    assert_eq!(failure, None, "{victim:?} dies after {frames} frames");
    *counted.lock()
}

#[test]
fn a_transfer_that_is_cut_anywhere_is_completed_later() {
    let all = transfer(Victim::Nobody, 1);
    assert!(all > 6, "the beginning, the state, what lives and is lacking, bodies, the end: {all}");
    for frames in 1..=all {
        for victim in [Victim::Sender, Victim::Receiver] {
            transfer(victim, frames);
        }
    }
}
