//! Applies committed entries to the [`ClusterState`] and publishes it.
//!
//! The state lives in memory only; what makes it durable is the log and, now and then, a snapshot.
//! At a start it is the snapshot with the log after it applied again. An entry that cannot be
//! understood halts this member with a clear error: skipping it would make its state another than
//! the other members'.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blixard_core::cluster::ClusterState;
use blixard_core::cluster::snapshot::{DecodeError, decode_entry, decode_state};
use blixard_core::id::ClusterId;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};

use super::digests::Points;
use super::owner::StoreError;
use super::snapshot::{SnapshotBuilder, SnapshotStore};
use super::types::{LogEntry, LogId, Outcomes, Snapshot, SnapshotMeta, StoredMembership, Types};
use crate::database::damaged;
use crate::watch;

/// How many entries are applied at most before their outcomes are answered.
const BATCH_MAX: usize = 1_024;

/// The state and how it came about. openraft owns it.
pub(super) struct StateMachine {
    state: ClusterState,
    applied: Option<LogId>,
    membership: Arc<StoredMembership>,
    snapshots: SnapshotStore,
    published: watch::Sender<Arc<ClusterState>>,
    digests: Arc<Points>,
    /// How many bytes of commands were applied since the last snapshot began.
    since_snapshot: watch::Sender<u64>,
    failure: watch::Sender<Option<Arc<str>>>,
    /// About how many bytes the state takes encoded: the last snapshot's, and what came since.
    size: Arc<AtomicU64>,
}

impl StateMachine {
    /// Starts from the latest snapshot of `cluster`, or from an empty state when there is none.
    ///
    /// # Errors
    /// When the snapshot is damaged or another cluster's, or cannot be read.
    pub(super) async fn open(
        snapshots: SnapshotStore,
        cluster: ClusterId,
        since_snapshot: watch::Sender<u64>,
        failure: watch::Sender<Option<Arc<str>>>,
    ) -> Result<Self, StoreError> {
        let (published, _) = watch::channel(Arc::new(ClusterState::new()));
        let mut machine = Self {
            state: ClusterState::new(),
            applied: None,
            membership: Arc::default(),
            snapshots,
            published,
            digests: Arc::default(),
            since_snapshot,
            failure,
            size: Arc::default(),
        };
        if let Some(snapshot) = machine.snapshots.load().await? {
            let state = decode_state(&snapshot.snapshot).map_err(|error| match error {
                DecodeError::Corrupt { .. } => damaged(error.to_string()),
                DecodeError::Format { .. } | DecodeError::Level { .. } => io::Error::other(error),
            })?;
            let last = snapshot.meta.last_log_id.map_or(0, |last| last.index);
            if state.applied != last {
                let reason = format!("it holds the state at {} as that at {last}", state.applied);
                return Err(damaged(reason).into());
            }
            // What the first release wrote names its cluster nowhere else.
            if let Some(other) = state.cluster.filter(|other| *other != cluster) {
                return Err(StoreError::Other { found: format!("cluster {other}") });
            }
            machine.replace(&snapshot.meta, state);
            machine.size.store(snapshot.snapshot.len() as u64, Ordering::Relaxed);
        }
        Ok(machine)
    }

    /// The last entry that the state holds.
    pub(super) fn applied(&self) -> Option<LogId> {
        self.applied
    }

    /// About how many bytes the state takes encoded.
    pub(super) fn size(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.size)
    }

    /// Where every applied state is published.
    pub(super) fn published(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.published.subscribe()
    }

    /// Digests of the states that were applied.
    pub(super) fn digests(&self) -> Arc<Points> {
        Arc::clone(&self.digests)
    }

    fn decode(&self, data: &[u8]) -> io::Result<ClusterState> {
        decode_state(data).map_err(|error| self.halt(error.to_string()))
    }

    fn replace(&mut self, meta: &SnapshotMeta, state: ClusterState) {
        self.state = state;
        self.applied = meta.last_log_id;
        self.membership = Arc::new(meta.last_membership.clone());
        self.digests.replaced();
        self.publish();
    }

    fn publish(&self) {
        self.digests.published(&self.state, self.applied, &self.membership);
        self.published.send(Arc::new(self.state.clone()));
    }

    /// The error that stops this member; the composition root shows its words.
    fn halt(&self, words: String) -> io::Error {
        tracing::error!(err = words, "this member cannot go on");
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert_with(|| words.as_str().into());
            first
        });
        io::Error::new(io::ErrorKind::InvalidData, words)
    }

    fn apply_one(&mut self, entry: LogEntry) -> io::Result<Outcomes> {
        let (index, before) = (entry.log_id.index, self.state.time);
        let outcomes = match entry.payload {
            EntryPayload::Blank => self.apply_blank(index),
            EntryPayload::Membership(membership) => {
                self.membership = Arc::new(StoredMembership::new(Some(entry.log_id), membership));
                self.apply_blank(index)
            }
            EntryPayload::Normal(proposal) => {
                let bytes = proposal.0.len() as u64;
                let entry = decode_entry(&proposal.0)
                    .map_err(|error| self.halt(format!("cannot apply log index {index}: {error}")))?;
                let outcomes = self.state.apply(index, &entry);
                self.size.fetch_add(bytes, Ordering::Relaxed);
                self.since_snapshot.send_if_modified(|applied| {
                    *applied += bytes;
                    true
                });
                outcomes
            }
        };
        self.applied = Some(entry.log_id);
        self.digests.applied(before, &self.state, entry.log_id, &self.membership);
        Ok(outcomes)
    }

    fn apply_blank(&mut self, index: u64) -> Outcomes {
        // Index 0 is the membership that a cluster starts with; an empty state is already there.
        if index > 0 {
            self.state.apply_blank(index);
        }
        Outcomes::new()
    }

    fn builder(&self) -> SnapshotBuilder {
        self.since_snapshot.send(0);
        SnapshotBuilder {
            store: self.snapshots.clone(),
            meta: SnapshotMeta { last_log_id: self.applied, last_membership: (*self.membership).clone() },
            state: self.state.clone(),
            size: self.size(),
        }
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, (*self.membership).clone()))
    }

    async fn apply<Entries>(&mut self, entries: Entries) -> Result<(), io::Error>
    where
        Entries: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut entries = entries.ready_chunks(BATCH_MAX);
        while let Some(batch) = entries.next().await {
            let mut answers = Vec::with_capacity(batch.len());
            for item in batch {
                let (entry, responder) = item?;
                let outcomes = self.apply_one(entry)?;
                answers.extend(responder.map(|responder| (responder, outcomes)));
            }
            // Whoever is answered finds what was applied in the published state.
            self.publish();
            for (responder, outcomes) in answers {
                responder.send(outcomes);
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        // The log after the majority's state must stay, and nobody be sent this one.
        (force || !self.digests.differs()).then(|| self.builder())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        self.builder()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Bytes) -> Result<(), io::Error> {
        let state = self.decode(&snapshot)?;
        self.snapshots.save(meta, snapshot.clone()).await?;
        self.replace(meta, state);
        self.size.store(snapshot.len() as u64, Ordering::Relaxed);
        self.since_snapshot.send(0);
        tracing::info!(raft.index = self.state.applied, bytes = snapshot.len(), "snapshot installed");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        self.snapshots.load().await
    }
}
