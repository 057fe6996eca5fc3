//! A node that reads the system's clock or randomness is noticed, with its stack.

#![expect(clippy::unwrap_used, reason = "helpers of tests; a failure names its line")]

use std::time::Duration;

use kubemq_sim::tripwire;
use kubemq_sim::world::{Order, Simulation};

fn run_at(node: usize, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    tripwire::arm();
    let mut simulation = Simulation::new(1, Order::Any, Duration::from_secs(1), false);
    let world = simulation.world();
    simulation
        .run(async move {
            let place = world.place(node);
            world.spawn(&place, "work", Box::pin(async move { work() }));
            world.sleep(Duration::from_nanos(1)).await;
        })
        .unwrap();
    tripwire::check()
}

#[inline(never)]
#[expect(clippy::disallowed_methods, reason = "planted")]
fn read_the_clock() {
    std::hint::black_box(std::time::Instant::now());
}

#[inline(never)]
#[expect(clippy::disallowed_types, reason = "planted")]
fn draw_randomness() {
    // Every test runs on a thread of its own, so its first map asks the system for keys.
    std::hint::black_box(std::hash::RandomState::new());
}

#[test]
fn a_clock_read_is_noticed_only_inside_a_node() {
    assert_eq!(run_at(0, read_the_clock), Ok(()));
    let noticed = run_at(1, read_the_clock).unwrap_err();
    assert!(noticed.contains("clock 1 times") && noticed.contains("read_the_clock"), "{noticed}");
}

#[test]
fn randomness_is_counted() {
    assert_eq!(run_at(1, draw_randomness), Ok(()), "one draw is known");
    let noticed = run_at(1, || {
        for _ in 0..2 {
            let mut bytes = [0_u8; 8];
            // SAFETY: eight writable bytes.
            #[expect(unsafe_code, reason = "called as a dependency would")]
            let drawn = unsafe { tripwire::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
            assert_eq!(drawn, 8);
            assert_ne!(bytes, [0; 8]);
        }
    })
    .unwrap_err();
    assert!(noticed.contains("drew randomness 2 times"), "{noticed}");
}
