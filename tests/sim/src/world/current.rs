//! Which world and which place the running code belongs to.
//!
//! openraft's runtime has static functions only, so the executor leaves word here before each poll.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::{Place, World};

thread_local! {
    static CURRENT: RefCell<Option<(World, Arc<Place>)>> = const { RefCell::new(None) };
    /// The number of the world that this thread runs at the moment; zero outside.
    static WORLD: Cell<u64> = const { Cell::new(0) };
    /// Whether code of a node (not of the harness) is being polled: the trip wires count only then.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Restores what was current before, so that a kill inside a poll nests.
pub(super) struct Entered {
    before: Option<(World, Arc<Place>)>,
    world: u64,
    inside: bool,
}

/// Makes `world` and `place` current until the guard is dropped.
pub(super) fn enter(world: &World, place: &Arc<Place>) -> Entered {
    let before = CURRENT.with(|current| current.borrow_mut().replace((world.clone(), Arc::clone(place))));
    Entered { before, world: WORLD.replace(world.number()), inside: INSIDE.replace(place.node != 0) }
}

impl Drop for Entered {
    fn drop(&mut self) {
        INSIDE.set(self.inside);
        WORLD.set(self.world);
        let mine = CURRENT.with(|current| std::mem::replace(&mut *current.borrow_mut(), self.before.take()));
        // Dropped only now: the last handle of a world must not be dropped under the borrow.
        drop(mine);
    }
}

/// Returns the world and the place of the code that runs.
///
/// # Panics
///
/// Panics outside a simulated world: something waits for simulated time where there is none.
#[expect(clippy::expect_used, reason = "openraft's runtime has no way to report this, and it is a bug of the harness")]
pub(crate) fn here() -> (World, Arc<Place>) {
    CURRENT.with(|current| current.borrow().clone()).expect("called outside the simulated world")
}

/// Returns the number of the world that this thread runs, zero outside.
pub(super) fn world_number() -> u64 {
    WORLD.get()
}

/// Returns whether code of a node is being polled on this thread. Neither allocates nor locks: the trip wires
/// call it from inside system calls.
#[must_use]
pub fn inside_a_node() -> bool {
    INSIDE.try_with(Cell::get).unwrap_or(false)
}
