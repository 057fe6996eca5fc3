//! The same seeds in each run, and those that have found something.

use kubemq_fuzz::{TARGETS, run};

/// Target and seed.
const FOUND: [(&str, u64); 0] = [];

#[test]
fn readers_hold_whatever_they_are_given() {
    for target in &TARGETS {
        let found = FOUND.iter().filter(|(name, _)| *name == target.name).map(|(_, seed)| *seed);
        for seed in (0..target.seeds).chain(found) {
            assert!(run(target, seed), "{}, seed {seed}", target.name);
        }
    }
}
