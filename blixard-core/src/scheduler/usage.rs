//! What the nodes hold: reserved resources and replicas, node by node.
//!
//! Built once from a state and kept up to date replica by replica, so that placing many replicas
//! never counts the whole cluster again. A copy costs nothing.

use imbl::OrdMap;

use crate::cluster::replica::Desired;
use crate::cluster::{ClusterState, Replica};
use crate::id::{NodeId, ReplicaId, ServiceName};
use crate::limits::NODE_ADDRESSES;
use crate::spec::{NetworkMode, ServiceSpec};

/// What one replica takes of its node.
///
/// A replica that should run or is superseded holds its reservations, also while it is lost: it
/// may come back. One told to stop holds none. Its address it holds until its container is gone:
/// one that ended for good has none any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Whose replica.
    pub service: ServiceName,
    /// Where.
    pub node: NodeId,
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Whether it has, or is to have, an address of its node's container network.
    pub address: bool,
    /// Whether it should run or runs on for a while.
    pub live: bool,
    /// Whether it counts against its service's bounds.
    pub counts: bool,
}

impl Claim {
    /// What `replica` takes; `spec` is that of its version, when still kept.
    pub fn of(replica: &Replica, spec: Option<&ServiceSpec>) -> Self {
        let live = replica.desired != Desired::Stop;
        let reserved = spec.filter(|_| live).map(|spec| spec.reservations).unwrap_or_default();
        Self {
            service: replica.service.clone(),
            node: replica.node,
            cpu_millis: reserved.cpu_millis,
            memory_bytes: reserved.memory_bytes,
            address: spec.is_none_or(needs_address) && !replica.is_over(),
            live,
            counts: replica.counts(),
        }
    }
}

/// Whether a replica with `spec` needs an address of its node's container network.
pub(super) fn needs_address(spec: &ServiceSpec) -> bool {
    spec.network == NetworkMode::Bridge
}

/// What one node holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Used {
    /// Reserved CPU, in thousandths.
    pub cpu_millis: u64,
    /// Reserved memory, in bytes.
    pub memory_bytes: u64,
    /// Addresses of its container network that are taken: more than [`NODE_ADDRESSES`] while one replica
    /// waits for another's.
    pub addresses: u32,
    /// Replicas that should run or run on for a while.
    pub replicas: u32,
    /// Counting replicas of each service.
    services: OrdMap<ServiceName, u32>,
}

impl Used {
    /// Counting replicas of `service`.
    pub fn of_service(&self, service: &ServiceName) -> u32 {
        self.services.get(service).copied().unwrap_or(0)
    }

    /// Addresses of its container network that are free.
    pub fn free_addresses(&self) -> u32 {
        NODE_ADDRESSES.saturating_sub(self.addresses)
    }

    fn add(&mut self, claim: &Claim) {
        self.cpu_millis = self.cpu_millis.saturating_add(claim.cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_add(claim.memory_bytes);
        self.addresses += u32::from(claim.address);
        self.replicas += u32::from(claim.live);
        if claim.counts {
            *self.services.entry(claim.service.clone()).or_default() += 1;
        }
    }

    fn remove(&mut self, claim: &Claim) {
        self.cpu_millis = self.cpu_millis.saturating_sub(claim.cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_sub(claim.memory_bytes);
        self.addresses -= u32::from(claim.address);
        self.replicas -= u32::from(claim.live);
        if claim.counts {
            decrease(&mut self.services, &claim.service);
        }
    }
}

fn decrease(counts: &mut OrdMap<ServiceName, u32>, key: &ServiceName) {
    match counts.get(key).copied() {
        Some(count) if count > 1 => {
            counts.insert(key.clone(), count - 1);
        }
        _ => {
            counts.remove(key);
        }
    }
}

/// What every node holds.
///
/// # Invariants
/// Each node's [`Used`] is the sum of the claims on it; a node without claims has no row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeUsage {
    claims: OrdMap<ReplicaId, Claim>,
    nodes: OrdMap<NodeId, Used>,
}

impl NodeUsage {
    /// What the nodes of `state` hold.
    pub fn of(state: &ClusterState) -> Self {
        let mut usage = Self::default();
        for (&id, replica) in &state.replicas {
            usage.set(id, replica, state.spec_of(replica).map(AsRef::as_ref));
        }
        usage
    }

    /// What one node holds.
    pub fn node(&self, node: NodeId) -> Option<&Used> {
        self.nodes.get(&node)
    }

    /// Counts a replica as it is now, in place of how it was counted before.
    pub fn set(&mut self, id: ReplicaId, replica: &Replica, spec: Option<&ServiceSpec>) {
        let claim = Claim::of(replica, spec);
        if self.claims.get(&id) == Some(&claim) {
            return;
        }
        self.remove(id);
        self.nodes.entry(claim.node).or_default().add(&claim);
        self.claims.insert(id, claim);
    }

    /// Counts a replica as superseded: it holds what it held, and spreading disregards it.
    pub fn supersede(&mut self, id: ReplicaId) {
        let Some(claim) = self.claims.get(&id).filter(|claim| claim.counts).cloned() else { return };
        self.remove(id);
        let claim = Claim { counts: false, ..claim };
        self.nodes.entry(claim.node).or_default().add(&claim);
        self.claims.insert(id, claim);
    }

    /// Counts a replica no more.
    pub fn remove(&mut self, id: ReplicaId) {
        let Some(claim) = self.claims.remove(&id) else { return };
        let Some(used) = self.nodes.get_mut(&claim.node) else { return };
        used.remove(&claim);
        if *used == Used::default() {
            self.nodes.remove(&claim.node);
        }
    }
}
