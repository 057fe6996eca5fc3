//! Counts what a node must not do: read the system's clock, or ask the system for randomness.
//!
//! The two functions take the place of libc's in every program that links this crate. They pass the call on, and
//! count it when the code of a simulated node made it.

#![expect(unsafe_code, reason = "the C library's functions can be replaced in no other way")]

use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_long, c_uint, c_void};

use crate::world::inside_a_node;

#[cfg(target_arch = "x86_64")]
const CLOCK_GETTIME: c_long = 228;
#[cfg(target_arch = "x86_64")]
const GETRANDOM: c_long = 318;
#[cfg(not(target_arch = "x86_64"))]
const CLOCK_GETTIME: c_long = 113;
#[cfg(not(target_arch = "x86_64"))]
const GETRANDOM: c_long = 278;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

/// openraft keeps an unused hash map per node; its keys come from the system once per thread.
pub const KNOWN_RANDOMNESS: u64 = 1;

/// openraft writes the wall clock into the text of an error, which nobody reads.
const KNOWN_CLOCK: &str = "display_instant";

thread_local! {
    static CLOCK: Cell<u64> = const { Cell::new(0) };
    static RANDOMNESS: Cell<u64> = const { Cell::new(0) };
    static BUSY: Cell<bool> = const { Cell::new(false) };
    static STACK: RefCell<Option<String>> = const { RefCell::new(None) };
}

fn count(counter: &'static std::thread::LocalKey<Cell<u64>>, known: u64) {
    if !inside_a_node() || BUSY.try_with(|busy| busy.replace(true)).unwrap_or(true) {
        return;
    }
    let before = counter.try_with(Cell::get).unwrap_or(0);
    // While BUSY is set, what capturing a stack does itself is not counted.
    let stack = (before >= known).then(|| Backtrace::force_capture().to_string());
    if !stack.as_ref().is_some_and(|stack| stack.contains(KNOWN_CLOCK)) {
        counter.try_with(|counter| counter.set(before + 1)).ok();
        if let Some(stack) = stack {
            STACK.try_with(|slot| slot.borrow_mut().get_or_insert(stack).len()).ok();
        }
    }
    BUSY.try_with(|busy| busy.set(false)).ok();
}

/// libc's `clock_gettime`.
///
/// # Safety
///
/// As the system's: `time` points to room for a `timespec`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut c_void) -> c_int {
    count(&CLOCK, 0);
    // SAFETY: the arguments are passed on as they came.
    c_int::try_from(unsafe { syscall(CLOCK_GETTIME, c_long::from(clock), time) }).unwrap_or(-1)
}

/// libc's `getrandom`.
///
/// # Safety
///
/// As the system's: `buffer` points to `length` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    count(&RANDOMNESS, KNOWN_RANDOMNESS);
    // SAFETY: the arguments are passed on as they came.
    isize::try_from(unsafe { syscall(GETRANDOM, buffer, length, c_long::from(flags)) }).unwrap_or(-1)
}

/// Starts counting anew on this thread.
pub fn arm() {
    CLOCK.set(0);
    RANDOMNESS.set(0);
    STACK.take();
}

/// Checks what was counted on this thread since [`arm`].
///
/// # Errors
///
/// What was called too often, with the stack of the first such call.
pub fn check() -> Result<(), String> {
    let (clock, randomness) = (CLOCK.get(), RANDOMNESS.get());
    if clock == 0 && randomness <= KNOWN_RANDOMNESS {
        return Ok(());
    }
    let stack = STACK.take().unwrap_or_default();
    Err(format!("a node read the system's clock {clock} times and drew randomness {randomness} times:\n{stack}"))
}
