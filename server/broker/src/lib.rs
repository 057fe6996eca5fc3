//! The pure heart of the broker: committed operations go in, answers and effects come out.
//!
//! [`State::apply`] is a function of what it is given. It takes no clock, draws no random number, touches no file and
//! no socket, never waits, never fails and never panics, so that every node that applies the same entries reaches the
//! same state. Bodies are not kept here: a message is a reference to the entry and part that carries it.

mod channel;
mod codec;
mod copies;
mod cursors;
mod digest;
mod effect;
mod events_store;
pub mod limits;
mod living;
mod memory;
mod name;
mod operation;
mod origins;
mod previous;
mod queue;
mod reference;
mod restore;
mod runs;
mod sequences;
mod settled;
mod snapshot;
mod soon;
mod state;
mod timer;
mod timers;

pub use channel::{Channel, ChannelId, Location, Lookup, Stretch, Totals};
pub use copies::Copy;
pub use cursors::{Reader, Start};
pub use effect::{Answer, Applied, BatchAnswer, BlockKey, Effect, Outcome, Refusal};
pub use limits::Limits;
pub use living::{LivingRange, LivingWalk};
pub use memory::Coldest;
pub use name::{Kind, Name, NameError};
pub use operation::{DecodeError, MoveItem, MoveMode, Operation, Stored, TimerRef, publish_head};
pub use origins::BatchView;
pub use previous::{Piece, SnapshotBlocks};
pub use restore::{RestoreError, Restoring};
pub use runs::{Run, decode_run_block};
pub use sequences::Sequences;
pub use snapshot::{Snapshot, SnapshotChunks};
pub use state::{Delayed, State};
pub use timer::Scheduled;
pub use timers::Due;
