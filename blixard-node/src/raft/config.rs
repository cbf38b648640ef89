//! How Raft is tuned.

use std::sync::Arc;
use std::time::Duration;

use blixard_core::limits;
use openraft::{Config, ConfigError, SnapshotPolicy};

/// How long a follower has to take a snapshot once it is sent, at most, in milliseconds.
const SNAPSHOT_MS_MAX: u64 = 60_000;

/// Timings and sizes of one member's Raft. Timings must be the same on every member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftConfig {
    /// How often a leader shows that it lives.
    pub heartbeat: Duration,
    /// The shortest random part of the wait for a leader before an election.
    pub election_min: Duration,
    /// The longest random part of that wait; also its fixed part, and how long a quorum's
    /// acknowledgement lets a leader lead.
    pub election_max: Duration,
    /// Entries applied since the last snapshot before the next is taken.
    pub snapshot_entries: u64,
    /// Bytes of commands applied since the last snapshot before the next is taken.
    pub snapshot_bytes: u64,
    /// Entries kept behind a snapshot.
    pub log_keep: u64,
    /// How large the parts are in which the log's file grows and is written anew, in bytes: some blocks
    /// of 4 KiB, two at least. A log that is there has the size that it was made with.
    pub log_place_bytes: u64,
}

impl Default for RaftConfig {
    fn default() -> Self {
        Self {
            heartbeat: limits::RAFT_HEARTBEAT,
            election_min: limits::RAFT_ELECTION_MIN,
            election_max: limits::RAFT_ELECTION_MAX,
            snapshot_entries: limits::RAFT_SNAPSHOT_ENTRIES,
            snapshot_bytes: limits::RAFT_SNAPSHOT_BYTES,
            log_keep: limits::RAFT_LOG_KEEP,
            log_place_bytes: limits::RAFT_LOG_PLACE_BYTES,
        }
    }
}

impl RaftConfig {
    pub(super) fn openraft(&self) -> Result<Arc<Config>, ConfigError> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let config = Config {
            cluster_name: "blixard".to_owned(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: millis(self.election_max),
            max_payload_entries: limits::RAFT_BATCH_ENTRIES_MAX,
            install_snapshot_timeout: SNAPSHOT_MS_MAX,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_entries),
            max_in_snapshot_log_to_keep: self.log_keep,
            // A member that is this far behind gets a snapshot; there is always one less far behind.
            replication_lag_threshold: self.snapshot_entries.saturating_mul(2).saturating_add(self.log_keep),
            purge_batch_size: 64,
            enable_pre_vote: Some(true),
            // A leader whose own log lost what its followers flushed would, restored in the same
            // term, give an index a second meaning. It must win an election again.
            enable_leader_restore: Some(false),
            // A leader that hears no quorum while the others hear it falls silent for a while, so
            // that they elect another (openraft issue 2080).
            quorum_loss_probe_interval: Some(millis(self.election_max) * 3),
            ..Config::default()
        };
        config.validate().map(Arc::new)
    }
}
