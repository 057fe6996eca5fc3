//! Bytes that survive power loss.
//!
//! [`fs`] is the only door to the disk: real files, a memory file system that knows what a power loss leaves,
//! and one that breaks things. [`log`] is the one place where durability happens: an append-only log of
//! entries and hard state in segment files, written by one task, one fdatasync per group of writes.
//!
//! This crate knows bytes and log positions. It does not know what a queue is, and it starts nothing that
//! it was not asked for.

pub mod error;
pub mod fs;
pub mod index;
pub mod log;
pub mod snapshot;

pub use error::Error;
pub use log::entry::{Entry, EntryKind, LogId, Parts, PartsBuilder, Vote};
