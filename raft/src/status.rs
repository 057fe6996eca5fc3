//! What a node knows of its group.

use std::collections::BTreeMap;

use kubemq_storage::LogId;

/// What a node is at this moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Role {
    /// Receives entries and has no vote.
    #[default]
    Learner,
    /// Receives entries and votes.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Proposes entries.
    Leader,
    /// Consensus has stopped on this node.
    Stopped,
}

/// One member of the group.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Member {
    /// Where its peers reach it; not interpreted here.
    pub address: String,
}

/// What a node knows of its group at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// This node's id.
    pub node: u64,
    /// The present term.
    pub term: u64,
    /// Who leads, where that is known.
    pub leader: Option<u64>,
    /// What this node is.
    pub role: Role,
    /// The index of the last entry of the log here.
    pub last: Option<u64>,
    /// The last entry known here to be committed.
    pub committed: Option<LogId>,
    /// The last entry applied here.
    pub applied: Option<LogId>,
    /// The last entry that the newest snapshot here contains.
    pub snapshot: Option<LogId>,
    /// The last entry purged here.
    pub purged: Option<LogId>,
    /// The voters of the present membership.
    pub voters: BTreeMap<u64, Member>,
    /// The members without a vote.
    pub learners: BTreeMap<u64, Member>,
    /// Whether this node leads and a majority confirmed that within the lease.
    pub quorum_contact: bool,
    /// On the leader: the last index known to be on each member.
    pub matched: BTreeMap<u64, Option<u64>>,
    /// Why consensus stopped, if it did by itself.
    pub failure: Option<String>,
}

impl Status {
    /// Returns whether this node leads.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.role == Role::Leader
    }
}
