//! What the leader saw for itself and no log entry says.

use std::collections::BTreeMap;

use crate::cluster::{ClusterState, Phase, Replica};
use crate::id::{NodeId, ReplicaId, ServiceName};
use crate::limits::FAILED_NODE_AVOIDED;
use crate::time::UtcMs;

/// Since when replicas run, and where they failed, by the leader's clock, as far back as it leads. Agents
/// report their own clocks' times, which are good for display only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observations {
    running: BTreeMap<ReplicaId, (u32, UtcMs)>,
    failed: BTreeMap<ServiceName, Failures>,
}

/// By slot the nodes on which a replica failed for good before it was proven: of which version, and when last.
type Failures = BTreeMap<(u32, NodeId), (u64, UtcMs)>;

impl Observations {
    /// What a leader that begins at `now` knows: what runs, runs since now.
    pub fn new(state: &ClusterState, now: UtcMs) -> Self {
        let mut observations = Self::default();
        for (&id, replica) in &state.replicas {
            observations.note(id, replica, now);
        }
        observations
    }

    /// Takes in a replica as it is at `now`. A new attempt runs anew.
    pub fn note(&mut self, id: ReplicaId, replica: &Replica, now: UtcMs) {
        // One that was proven can run there: it keeps its place.
        if replica.status.phase == Phase::Failed && !replica.status.proven && !replica.is_over() {
            let slots = self.failed.entry(replica.service.clone()).or_default();
            slots.insert((replica.slot, replica.node), (replica.version, now));
        }
        if replica.status.phase != Phase::Running {
            self.forget(id);
        } else if self.running.get(&id).is_none_or(|(attempt, _)| *attempt != replica.status.attempt) {
            self.running.insert(id, (replica.status.attempt, now));
        }
    }

    /// Drops a replica that is gone.
    pub fn forget(&mut self, id: ReplicaId) {
        self.running.remove(&id);
    }

    /// Drops what is known of a service that is gone.
    pub(super) fn forget_service(&mut self, service: &ServiceName) {
        self.failed.remove(service);
    }

    /// The nodes on which a replica of a slot failed before it was proven, within [`FAILED_NODE_AVOIDED`] before `now`, of which
    /// version, and when.
    pub(super) fn failed(
        &self,
        service: &ServiceName,
        slot: u32,
        now: UtcMs,
    ) -> impl Iterator<Item = (NodeId, u64, UtcMs)> + '_ {
        let of_slot = self.failed.get(service).into_iter().flat_map(move |slots| {
            slots.range((slot, NodeId(0))..).take_while(move |((number, _), _)| *number == slot)
        });
        of_slot
            .map(|((_, node), (version, at))| (*node, *version, *at))
            .filter(move |(_, _, at)| at.after(FAILED_NODE_AVOIDED) > now)
    }

    /// Since when a replica's present attempt runs.
    pub fn running_since(&self, id: ReplicaId) -> Option<UtcMs> {
        self.running.get(&id).map(|&(_, since)| since)
    }
}
