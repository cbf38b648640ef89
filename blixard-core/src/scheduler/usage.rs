//! What the nodes hold: reserved resources and replicas, node by node.
//!
//! Built once from a state and kept up to date replica by replica, so that placing many replicas
//! never counts the whole cluster again. A copy costs nothing.

use std::collections::BTreeSet;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

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
}

impl Used {
    /// Addresses of its container network that are free.
    pub fn free_addresses(&self) -> u32 {
        NODE_ADDRESSES.saturating_sub(self.addresses)
    }

    fn leaves_more_than(&self, other: &Self) -> bool {
        self.cpu_millis < other.cpu_millis
            || self.memory_bytes < other.memory_bytes
            || self.addresses < other.addresses
    }

    fn add(&mut self, claim: &Claim) {
        self.cpu_millis = self.cpu_millis.saturating_add(claim.cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_add(claim.memory_bytes);
        self.addresses += u32::from(claim.address);
        self.replicas += u32::from(claim.live);
    }

    fn remove(&mut self, claim: &Claim) {
        self.cpu_millis = self.cpu_millis.saturating_sub(claim.cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_sub(claim.memory_bytes);
        self.addresses -= u32::from(claim.address);
        self.replicas -= u32::from(claim.live);
    }
}

/// What every node holds.
///
/// # Invariants
/// Each node's [`Used`] is the sum of the claims on it; a node without claims has no row. So it is with
/// the counting replicas of each service on each node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeUsage {
    claims: OrdMap<ReplicaId, Claim>,
    nodes: OrdMap<NodeId, Used>,
    services: OrdMap<(ServiceName, NodeId), u32>,
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

    /// What each node holds that holds anything, in the order of their ids.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Used)> {
        self.nodes.iter().map(|(id, used)| (*id, used))
    }

    /// The nodes that have counting replicas of a service, in the order of their ids, and how many.
    pub fn of_service(&self, service: &ServiceName) -> impl Iterator<Item = (NodeId, u32)> {
        let bounds = (service.clone(), NodeId(0))..=(service.clone(), NodeId(u64::MAX));
        self.services.range(bounds).map(|((_, node), count)| (*node, *count))
    }

    /// How many counting replicas of a service a node has.
    pub fn of_service_on(&self, service: &ServiceName, node: NodeId) -> u32 {
        self.services.get(&(service.clone(), node)).copied().unwrap_or(0)
    }

    /// The nodes that have more of something free than `earlier`.
    pub fn with_more_room_than(&self, earlier: &Self) -> BTreeSet<NodeId> {
        let change = |change: DiffItem<'_, '_, NodeId, Used>| match change {
            DiffItem::Add(..) => None,
            DiffItem::Remove(id, _) => Some(*id),
            DiffItem::Update { old: (id, old), new: (_, new) } => new.leaves_more_than(old).then_some(*id),
        };
        earlier.nodes.diff(&self.nodes).filter_map(change).collect()
    }

    /// Counts a replica as it is now, in place of how it was counted before. Answers its node, when
    /// that changes what it holds.
    pub fn set(&mut self, id: ReplicaId, replica: &Replica, spec: Option<&ServiceSpec>) -> Option<NodeId> {
        let claim = Claim::of(replica, spec);
        if self.claims.get(&id) == Some(&claim) {
            return None;
        }
        self.remove(id);
        Some(self.add(id, claim))
    }

    /// Counts a replica as superseded: it holds what it held, and spreading disregards it.
    pub fn supersede(&mut self, id: ReplicaId) {
        if self.claims.get(&id).is_some_and(|claim| claim.counts)
            && let Some(claim) = self.take(id)
        {
            self.add(id, Claim { counts: false, ..claim });
        }
    }

    /// Counts a replica no more. Answers its node, when it was counted.
    pub fn remove(&mut self, id: ReplicaId) -> Option<NodeId> {
        self.take(id).map(|claim| claim.node)
    }

    fn add(&mut self, id: ReplicaId, claim: Claim) -> NodeId {
        let node = claim.node;
        self.nodes.entry(node).or_default().add(&claim);
        if claim.counts {
            *self.services.entry((claim.service.clone(), node)).or_default() += 1;
        }
        self.claims.insert(id, claim);
        node
    }

    fn take(&mut self, id: ReplicaId) -> Option<Claim> {
        let claim = self.claims.remove(&id)?;
        if let Some(used) = self.nodes.get_mut(&claim.node) {
            used.remove(&claim);
            if *used == Used::default() {
                self.nodes.remove(&claim.node);
            }
        }
        if claim.counts {
            let key = (claim.service.clone(), claim.node);
            match self.services.get_mut(&key) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.services.remove(&key)),
            }
        }
        Some(claim)
    }
}
