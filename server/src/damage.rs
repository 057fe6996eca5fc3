//! Stored messages that this node cannot read: told once each, counted, passed over.
//!
//! Nothing is deleted for it. The message stays in the replicated state, and another node may have its body: once that
//! one leads, it hands the message out.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use kubemq_runtime::chain;
use kubemq_storage::Error as StorageError;
use parking_lot::Mutex;

/// Messages of which it is remembered that they were told of; those that are found beyond it are counted and not logged.
const TOLD: usize = 64 * 1024;

/// Why a stored message cannot be handed out here.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    /// The log does not give it back.
    #[error("the log does not give it back")]
    Log(#[from] StorageError),
    /// What the log gives back, whole, is no message.
    #[error("the log holds {0} in its place")]
    Content(String),
}

impl Unreadable {
    /// Returns whether this is about what lies on the disk, and not about a log that is closed.
    pub(crate) fn is_lasting(&self) -> bool {
        !matches!(self, Self::Log(StorageError::Closed))
    }
}

/// Names a stored message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    /// Its channel.
    pub(crate) channel: &'a str,
    /// Its sequence there.
    pub(crate) sequence: u64,
    /// The entry that carries its body.
    pub(crate) entry: u64,
    /// The part of that entry.
    pub(crate) part: u16,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Damage {
    passed_over: AtomicU64,
    told: Mutex<BTreeSet<(u64, u16, u64)>>,
}

impl Damage {
    /// Counts and tells of a message that is passed over, unless that was done.
    pub(crate) fn pass_over(&self, place: &Place<'_>, why: &Unreadable) {
        let Place { channel, sequence, entry, part } = *place;
        let room = {
            let mut told = self.told.lock();
            if told.contains(&(entry, part, sequence)) {
                return;
            }
            told.len() < TOLD && told.insert((entry, part, sequence))
        };
        self.passed_over.fetch_add(1, Ordering::Relaxed);
        if room {
            let error = chain(why);
            tracing::error!(channel, sequence, entry, part, %error, "a stored message is damaged here and passed over");
        }
    }

    /// Returns how many messages were passed over since the node started.
    pub(crate) fn passed_over(&self) -> u64 {
        self.passed_over.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
pub(crate) mod tests;
