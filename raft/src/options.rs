//! The settings of consensus, and why each has its value.

use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};

use crate::error::Error;

/// How a read barrier makes sure that this node still leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Reads {
    /// It asks a majority.
    #[default]
    ReadIndex,
    /// It trusts its lease: right while clocks drift by little.
    Lease,
}

/// The settings of one node.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node's id. It is written to the log when the log has none.
    pub node: u64,
    /// The name of the group, for the log lines.
    pub group: String,
    /// How often a leader shows that it lives.
    pub heartbeat: Duration,
    /// The least time without a leader, beyond its lease, before an election.
    pub election_least: Duration,
    /// The most such time. It is also the leader's lease.
    pub election_most: Duration,
    /// How read barriers are passed.
    pub reads: Reads,
    /// Bytes of entries read at once for one peer.
    pub append_bytes: u64,
    /// Bytes sent to one peer and not yet acknowledged.
    pub window_bytes: usize,
    /// How long a stream of entries may stand still before it is opened anew.
    pub append_stall: Duration,
    /// How long a snapshot's transfer may stand still before it is given up.
    pub snapshot_stall: Duration,
    /// A snapshot is due when so many bytes of log were applied since the last.
    pub snapshot_bytes: u64,
    /// And when so many times the size of the last snapshot were.
    pub snapshot_factor: u64,
    /// Or when so long nothing was written, and something was since the last.
    pub snapshot_idle: Duration,
    /// Bytes of log that may be kept for a slow peer, or a quarter of the log where that is more.
    pub keep_bytes: u64,
    /// How often a leader of more than one voter puts the time into the log when it has nothing else to put.
    pub beat: Duration,
    /// Lets a leader that comes back go on in its old term, which loses acknowledged writes after a power loss. It is
    /// never set but by the simulation, to show that it would notice.
    #[doc(hidden)]
    pub leader_restore: bool,
}

impl Options {
    /// Returns the settings of node `node`, as the measurements recommend them.
    #[must_use]
    pub fn new(node: u64) -> Self {
        Self {
            node,
            group: "kubemq".to_owned(),
            heartbeat: Duration::from_millis(100),
            election_least: Duration::from_millis(300),
            election_most: Duration::from_millis(500),
            reads: Reads::ReadIndex,
            append_bytes: 4 << 20,
            window_bytes: 16 << 20,
            append_stall: Duration::from_secs(1),
            snapshot_stall: Duration::from_secs(30),
            snapshot_bytes: 256 << 20,
            snapshot_factor: 4,
            snapshot_idle: Duration::from_secs(60),
            keep_bytes: 1 << 30,
            beat: Duration::from_secs(1),
            leader_restore: false,
        }
    }

    /// Returns openraft's settings.
    pub(crate) fn config(&self) -> Result<Arc<Config>, Error> {
        let config = Config {
            cluster_name: self.group.clone(),
            heartbeat_interval: milliseconds(self.heartbeat),
            election_timeout_min: milliseconds(self.election_least),
            election_timeout_max: milliseconds(self.election_most),
            // A partitioned node must not raise the term; the network implements the call.
            enable_pre_vote: Some(true),
            // A leader that comes back in its old term may have lost entries that its followers hold: it would
            // put other content under their log ids.
            enable_leader_restore: Some(self.leader_restore),
            // A follower that lost its log comes back under a new id instead.
            allow_log_reversion: Some(false),
            // Snapshots and purges are triggered here, by bytes; a snapshot is sent exactly when a needed entry
            // was purged, never because a follower is some number of entries behind.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            replication_lag_threshold: u64::MAX,
            // Bytes are bounded where entries are read.
            max_payload_entries: 4096,
            // There is no time limit around a transfer but our own.
            install_snapshot_timeout: milliseconds(self.snapshot_stall),
            ..Config::default()
        };
        let config = config.validate().map_err(|error| Error::Settings(error.to_string()))?;
        Ok(Arc::new(config))
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_that_safety_rests_on() {
        let config = Options::new(1).config().unwrap();
        assert_eq!(config.enable_leader_restore, Some(false), "loses acknowledged writes after a power loss");
        assert_eq!(config.enable_pre_vote, Some(true));
        assert_eq!(config.allow_log_reversion, Some(false));
        assert_eq!(config.snapshot_policy, SnapshotPolicy::Never);
        assert_eq!(config.max_in_snapshot_log_to_keep, u64::MAX);
        assert_eq!(config.max_payload_entries, 4096);
        assert_eq!(
            (config.heartbeat_interval, config.election_timeout_min, config.election_timeout_max),
            (100, 300, 500)
        );
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        let mut options = Options::new(1);
        options.heartbeat = Duration::from_secs(1);
        assert!(matches!(options.config(), Err(Error::Settings(_))));
    }
}
