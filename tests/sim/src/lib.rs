//! Whole nodes under one seed: an executor, faults, a workload and invariants, so that a failure replays bit for bit.
//!
//! Start reading in [`world`], then [`openraft_runtime`].

pub mod disk;
pub mod openraft_runtime;
pub mod tripwire;
pub mod world;
