//! What can go wrong, as kinds that a caller can branch on.

/// The node could not start, or has stopped.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The log or the snapshots could not be read or written.
    #[error("storage failed")]
    Storage(#[from] kubemq_storage::Error),
    /// A snapshot's content could not be understood.
    #[error("the snapshot cannot be used")]
    Snapshot(#[from] crate::state_machine::RestoreError),
    /// The settings contradict each other.
    #[error("invalid settings: {0}")]
    Settings(String),
    /// The log belongs to another node.
    #[error("the log belongs to node {found}, not to node {asked}")]
    WrongNode {
        /// The id in the log.
        found: u64,
        /// The id that was asked for.
        asked: u64,
    },
    /// This node leads no more, or never did.
    #[error("not the leader")]
    NotLeader {
        /// Who leads, where that is known.
        leader: Option<u64>,
    },
    /// The cluster has members already.
    #[error("the cluster has been formed already")]
    AlreadyFormed,
    /// The change of members was refused.
    #[error("the change of members was refused: {0}")]
    Membership(String),
    /// It took too long.
    #[error("timed out: {0}")]
    Timeout(&'static str),
    /// Consensus has stopped, and the node must.
    #[error("consensus has stopped: {0}")]
    Stopped(String),
}

/// Why a batch was not proposed, or is not known to be committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// This node does not lead. The batch was not proposed.
    #[error("not the leader")]
    NotLeader {
        /// Who leads, where that is known.
        leader: Option<u64>,
    },
    /// Leadership was lost after the batch was proposed: it may or may not be committed. Send it again, with its
    /// number, to the new leader.
    #[error("leadership was lost before the outcome was known")]
    Unknown,
    /// Too much waits already. The batch was not taken.
    #[error("too many operations are waiting")]
    Overloaded,
    /// The batch breaks the bounds of [`Batch`](crate::batch::Batch). It was not taken.
    #[error("a batch outside its bounds")]
    Malformed,
    /// The deadline passed while the leader had no lease. The batch was not proposed.
    #[error("the deadline passed before the leader was confirmed")]
    Deadline,
    /// The node has stopped; whether the batch was committed is not known.
    #[error("the node has stopped")]
    Stopped,
}

/// A read barrier could not be passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// There is no leader that a majority confirms.
    #[error("no confirmed leader")]
    NoLeader {
        /// Who leads, where that is known.
        leader: Option<u64>,
    },
    /// The node has stopped.
    #[error("the node has stopped")]
    Stopped,
}

/// A call to a peer failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The peer cannot be reached: wait before trying again.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// The call broke on the way.
    #[error("network: {0}")]
    Network(String),
    /// No answer in time.
    #[error("timed out")]
    Timeout,
    /// What arrived is not a frame of a known version.
    #[error("malformed frame")]
    Malformed,
    /// The peer has stopped, or could not do it.
    #[error("refused by the peer: {0}")]
    Refused(String),
}
