//! The log: the one place where durability happens.

pub mod entry;
