//! Whole nodes under one seed: an executor, faults, a workload and invariants, so that a failure replays bit for bit.
//!
//! Start reading in [`world`], then [`openraft_runtime`].

pub mod cluster;
pub mod disk;
pub mod faults;
pub mod membership;
pub mod network;
pub mod nodes_scene;
pub mod openraft_runtime;
pub mod oracle;
pub mod raft_scene;
pub mod run;
pub mod stored_events;
pub mod tripwire;
pub mod world;
