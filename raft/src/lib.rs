//! How nodes agree.
//!
//! One group of nodes keeps one log in the same order, and applies it to equal machines. The consensus itself
//! is openraft's; this crate is the door to it: [`start`] gives a [`Node`] that takes [`batch`]es, gathers them
//! into entries, and tells a [`StateMachine`] what was committed. The log is `kubemq_storage`'s, other nodes are
//! reached through [`network`].
//!
//! This crate knows entries and nodes. It does not know what a queue is.
//!
//! Start reading in [`node`].

pub mod batch;
mod batcher;
mod core;
pub mod error;
mod log_store;
mod machine;
mod maintenance;
pub mod network;
pub mod node;
mod options;
mod reclaim;
mod restore;
mod snapshot;
mod snapshot_file;
mod state_machine;
mod status;
#[cfg(test)]
mod suite;
mod time;
mod types;
mod walk;
mod watch;

pub use batch::{Batch, Envelope, Origin};
pub use error::{Error, PeerError, Refused, Unavailable};
pub use machine::snapshot_index;
pub use network::Peers;
pub use node::{Node, start};
pub use openraft::AsyncRuntime;
pub use openraft::impls::TokioRuntime;
pub use options::{Options, Reads};
pub use state_machine::{Committed, Living, Piece, Pieces, RestoreError, Restoring, SnapshotSource, StateMachine};
pub use status::{Member, Role, Status};
pub use time::ClusterTime;
pub use watch::{FifoReceiver, FifoSender, FifoWatch};
