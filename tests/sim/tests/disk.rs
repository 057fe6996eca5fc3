//! The simulated disk: what is not flushed may be lost, and faults are faults.

#![expect(clippy::unwrap_used, reason = "helpers of tests; a failure names its line")]

use std::path::Path;
use std::time::Duration;

use kubemq_sim::disk::{DiskFaults, SimDisk};
use kubemq_sim::world::{Order, Simulation};
use kubemq_storage::fs::{Disk, MemoryDisk};

/// Writes and syncs `a`, writes `b` without a sync, and loses power. Returns what is there afterwards.
fn two_writes(seed: u64, faults: DiskFaults) -> (Vec<bool>, Vec<u8>, u64) {
    let mut simulation = Simulation::new(seed, Order::Any, Duration::from_secs(60), false);
    let world = simulation.world();
    simulation
        .run(async move {
            let disk = SimDisk::new(world.clone(), 1, MemoryDisk::new(), world.random("disk"), faults);
            let path = Path::new("d/f");
            let file = disk.create(path).await.unwrap();
            disk.sync_dir(Path::new("d")).await.unwrap();
            let mut done = Vec::new();
            for text in ["aaaa", "bbbb"] {
                let offset = file.len().await.unwrap();
                done.push(file.write_at(offset, &[text.into()]).await.is_ok());
                if text == "aaaa" {
                    done.push(file.sync_data().await.is_ok());
                }
            }
            let after = disk.memory().power_loss(&world.random("power"));
            let left = after.open(path).await.unwrap().read_at(0, 100).await.unwrap();
            (done, left.to_vec(), world.now())
        })
        .unwrap()
}

#[test]
fn only_what_was_flushed_surely_survives() {
    let good = DiskFaults::default();
    let runs: Vec<_> = (0..60).map(|seed| two_writes(seed, good)).collect();
    assert!(runs.iter().all(|(done, left, _)| *done == [true; 3] && left.starts_with(b"aaaa")));
    assert!(runs.iter().any(|(_, left, _)| left == b"aaaabbbb") && runs.iter().any(|(_, left, _)| left == b"aaaa"));
    assert!(runs.iter().all(|(_, _, took)| (150_000..4_000_000).contains(took)));
    assert_eq!(two_writes(3, good), runs[3]);
}

#[test]
fn faults_are_reported_or_are_lies() {
    let failing = DiskFaults { fail_sync: true, ..DiskFaults::default() };
    assert!((0..20).all(|seed| two_writes(seed, failing).0 == [true, false, true]));
    let short = DiskFaults { short_write: true, ..DiskFaults::default() };
    assert!((0..20).all(|seed| two_writes(seed, short).0 == [false, true, true]));
    let lying = DiskFaults { lying_sync: true, ..DiskFaults::default() };
    let lied: Vec<_> = (0..60).map(|seed| two_writes(seed, lying)).collect();
    assert!(lied.iter().all(|(done, ..)| *done == [true; 3]));
    assert!(lied.iter().any(|(_, left, _)| !left.starts_with(b"aaaa")));
    let slow = DiskFaults { stalls: 1000, ..DiskFaults::default() };
    assert!((0..20).all(|seed| two_writes(seed, slow).2 >= 60_000_000));
}
