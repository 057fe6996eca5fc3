//! How channels reach the outside world: bindings of a channel to a target, with middleware between them.
//!
//! Reaches the node through one trait and never sees Raft or files. Nothing is here yet: queues come first,
//! and no part of the program depends on this crate.
