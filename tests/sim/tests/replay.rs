//! A seed is a run: twice in a process, after another seed, and in another process; and planted bugs are found.

#![expect(clippy::unwrap_used, reason = "helpers of tests; a failure names its line")]

use std::process::Command;

use kubemq_sim::run::{Asked, Plant, Scene, run};

const SECONDS: u64 = 5;

/// Runs on a thread of its own, as the program does.
fn hash(scene: Scene, seed: u64) -> u64 {
    #[expect(clippy::disallowed_methods, reason = "nothing of the test is simulated")]
    let ended = std::thread::spawn(move || run(&Asked::of(scene, seed, SECONDS))).join().unwrap();
    assert!(ended.failure.is_none(), "{:?}", ended.failure);
    ended.hash
}

fn hash_elsewhere(scene: Scene, seed: u64) -> u64 {
    let arguments =
        ["run", "--seed", &seed.to_string(), "--seconds", &SECONDS.to_string(), "--scene", &scene.to_string()];
    let output = Command::new(env!("CARGO_BIN_EXE_kubemq-sim")).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let hash = text.split("hash ").nth(1).and_then(|rest| rest.split(',').next());
    u64::from_str_radix(hash.unwrap(), 16).unwrap()
}

#[test]
fn consensus_replays() {
    let first = hash(Scene::Raft, 21);
    for _ in 0..4 {
        assert_eq!(hash(Scene::Raft, 21), first);
    }
    assert_ne!(hash(Scene::Raft, 22), first);
    assert_eq!(hash(Scene::Raft, 21), first, "another seed in between left something behind");
    assert_eq!(hash_elsewhere(Scene::Raft, 21), first);
}

#[test]
fn whole_nodes_replay() {
    let first = hash(Scene::Nodes, 21);
    assert_eq!(hash(Scene::Nodes, 21), first);
    assert_ne!(hash(Scene::Nodes, 22), first);
    assert_eq!(hash(Scene::Nodes, 21), first, "another seed in between left something behind");
    for _ in 0..2 {
        assert_eq!(hash_elsewhere(Scene::Nodes, 21), first);
    }
}

/// Returns what is found within `seeds` seeds.
fn found(plant: Plant, scene: Scene, seeds: u64, seconds: u64) -> Option<(u64, String)> {
    (1..=seeds).find_map(|seed| {
        let asked = Asked { plant, ..Asked::of(scene, seed, seconds) };
        #[expect(clippy::disallowed_methods, reason = "nothing of the test is simulated")]
        let ended = std::thread::spawn(move || run(&asked)).join().unwrap();
        ended.failure.map(|failure| (seed, failure.reason))
    })
}

#[test]
fn an_ack_before_the_sync_is_found() {
    let (seed, reason) = found(Plant::AckBeforeSync, Scene::Raft, 20, 20).unwrap();
    // The log itself may notice that what it had synced is not there.
    assert!(
        ["damaged", "lost", "back", "differ", "other content"].iter().any(|word| reason.contains(word)),
        "{seed}: {reason}"
    );
}

#[test]
fn the_order_of_a_hash_map_is_found() {
    let (seed, reason) = found(Plant::HashOrder, Scene::Raft, 5, 5).unwrap();
    assert!(reason.contains("differ"), "{seed}: {reason}");
}

#[test]
fn a_leader_that_goes_on_in_its_old_term_is_found() {
    let (seed, reason) = found(Plant::LeaderRestore, Scene::Raft, 60, 20).unwrap();
    assert!(reason.contains("leads in term") || reason.contains("other content"), "{seed}: {reason}");
}

#[test]
fn a_place_that_is_noted_before_events_are_taken_is_found() {
    let (seed, reason) = found(Plant::EarlyPlace, Scene::Nodes, 10, 20).unwrap();
    assert!(reason.contains("the place of") || reason.contains("has none after"), "{seed}: {reason}");
}
