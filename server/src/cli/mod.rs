//! The commands of the program, one file each.
//!
//! All but `server` and `doctor` are clients: they speak the public API and nothing else, so they work with any
//! broker that does.

pub mod bench;
pub mod channels;
pub mod client;
pub mod output;
pub mod ping;
mod queue_json;
pub mod queues;
