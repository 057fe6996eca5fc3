//! Damaged and invented bytes for everything that reads bytes which it did not make just now.
//!
//! A seed is a sample that the program itself wrote, changed in a few places, and given to the one who reads such
//! bytes. That one may refuse it or take it; it may not panic, and what it takes must be good for what follows. There
//! is no guidance by coverage: samples are valid and small, so that changes come through to every field.
//!
//! `cargo test -p kubemq-fuzz` runs the same seeds each time and those that have found something.
//! `cargo run --release -p kubemq-fuzz -- --minutes 60` runs new ones.

mod change;
mod samples;
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use kubemq_runtime::Random;
use targets::Read;

pub use targets::{TARGETS, Target};

/// Panics of all threads: a reader may have threads of its own.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Runs one seed. Returns whether the reader held.
pub fn run(target: &Target, seed: u64) -> bool {
    static COUNTED: Once = Once::new();
    COUNTED.call_once(|| {
        let say = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            say(panic);
        }));
    });
    let before = PANICS.load(Ordering::SeqCst);
    let random = Random::from_seed(seed);
    let mut bytes = (target.sample)(&random);
    // Now and then as it was written: what is valid must be taken.
    let is_valid = random.below(64) == 0;
    if !is_valid {
        let other = (target.sample)(&random);
        change::some(&mut bytes, &other, &random);
    }
    let read = catch_unwind(AssertUnwindSafe(|| (target.read)(&bytes)));
    let holds = match read {
        Ok(Read::Taken) => true,
        Ok(Read::Refused) => !is_valid,
        Ok(Read::Wrong) | Err(_) => false,
    };
    holds && PANICS.load(Ordering::SeqCst) == before
}
