//! The state's tables by other keys, and the questions that both the planner and the API ask.
//!
//! An index says nothing that the tables do not: it is not encoded, [`ClusterState::reindex`]
//! rebuilds it, and [`super::invariants`] compares the two. It keeps the cost of a command
//! independent of how many services and replicas there are. Rows of replicas are added, changed
//! in what is indexed, and removed here only.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::{ClusterState, Desired, Replica, Volume};
use crate::id::{NodeId, ReplicaId, ServiceName, VolumeId, VolumeName};
use crate::limits;
use crate::spec::{NetworkMode, Protocol, Reservations, ServiceSpec};

/// The state's tables by other keys.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Index {
    by_service: OrdSet<(ServiceName, u32, ReplicaId)>,
    by_node: OrdSet<(NodeId, ReplicaId)>,
    reserved: OrdMap<NodeId, Reservations>,
    version_rows: OrdMap<(ServiceName, u64), u32>,
    ports: OrdMap<(u16, Protocol), ServiceName>,
    volumes: OrdMap<VolumeId, VolumeName>,
}

impl Index {
    /// The name of a volume.
    pub(super) fn volume_name(&self, id: VolumeId) -> Option<&VolumeName> {
        self.volumes.get(&id)
    }

    fn add(&mut self, id: ReplicaId, row: &Replica, reservations: Reservations) {
        self.by_service.insert((row.service.clone(), row.slot, id));
        self.by_node.insert((row.node, id));
        *self.version_rows.entry((row.service.clone(), row.version)).or_insert(0) += 1;
        if row.desired != Desired::Stop {
            self.reserve(row.node, reservations);
        }
    }

    fn reserve(&mut self, node: NodeId, reservations: Reservations) {
        if reservations == Reservations::default() {
            return;
        }
        let sum = self.reserved.entry(node).or_default();
        sum.cpu_millis = sum.cpu_millis.saturating_add(reservations.cpu_millis);
        sum.memory_bytes = sum.memory_bytes.saturating_add(reservations.memory_bytes);
    }

    fn release(&mut self, node: NodeId, reservations: Reservations) {
        let Some(sum) = self.reserved.get_mut(&node) else { return };
        sum.cpu_millis = sum.cpu_millis.saturating_sub(reservations.cpu_millis);
        sum.memory_bytes = sum.memory_bytes.saturating_sub(reservations.memory_bytes);
        if *sum == Reservations::default() {
            self.reserved.remove(&node);
        }
    }

    /// Takes a row out and answers whether it was the last of its version.
    fn remove(&mut self, id: ReplicaId, row: &Replica, reservations: Reservations) -> bool {
        self.by_service.remove(&(row.service.clone(), row.slot, id));
        self.by_node.remove(&(row.node, id));
        if row.desired != Desired::Stop {
            self.release(row.node, reservations);
        }
        let key = (row.service.clone(), row.version);
        let left = self.version_rows.get(&key).map_or(0, |rows| rows.saturating_sub(1));
        if left == 0 {
            self.version_rows.remove(&key);
        } else {
            self.version_rows.insert(key, left);
        }
        left == 0
    }
}

/// The ports of a node that a replica of `spec` takes: the published ones, or on the node's own
/// network whatever it listens on.
pub fn claims(spec: &ServiceSpec) -> impl Iterator<Item = (u16, Protocol)> {
    let network = spec.network;
    spec.ports.iter().filter_map(move |port| {
        let taken = match network {
            NetworkMode::Bridge => port.host_port?,
            NetworkMode::Host => port.container_port,
        };
        Some((taken, port.protocol))
    })
}

impl ClusterState {
    /// The replicas of a service, by slot, then id.
    pub fn replicas_of(&self, service: &ServiceName) -> impl Iterator<Item = (ReplicaId, &Replica)> {
        self.replicas_from(service, 0, u32::MAX)
    }

    /// The replicas in one slot of a service, by id: at most one counts.
    pub fn replicas_in(
        &self,
        service: &ServiceName,
        slot: u32,
    ) -> impl Iterator<Item = (ReplicaId, &Replica)> {
        self.replicas_from(service, slot, slot)
    }

    /// The replicas of a service in the slots `from..=to`, by slot, then id.
    pub(super) fn replicas_from(
        &self,
        service: &ServiceName,
        from: u32,
        to: u32,
    ) -> impl Iterator<Item = (ReplicaId, &Replica)> {
        let bounds = (service.clone(), from, ReplicaId(0))..=(service.clone(), to, ReplicaId(u64::MAX));
        self.index.by_service.range(bounds).filter_map(|(_, _, id)| Some((*id, self.replicas.get(id)?)))
    }

    /// The replicas on a node, by id.
    pub fn replicas_on(&self, node: NodeId) -> impl Iterator<Item = (ReplicaId, &Replica)> {
        let bounds = (node, ReplicaId(0))..=(node, ReplicaId(u64::MAX));
        self.index.by_node.range(bounds).filter_map(|(_, id)| Some((*id, self.replicas.get(id)?)))
    }

    /// The replica that counts in a slot.
    pub fn counting_in(&self, service: &ServiceName, slot: u32) -> Option<(ReplicaId, &Replica)> {
        self.replicas_in(service, slot).find(|(_, replica)| replica.counts())
    }

    /// What the replicas on a node have reserved: those that run or retire, lost ones too.
    pub fn reserved_on(&self, node: NodeId) -> Reservations {
        self.index.reserved.get(&node).copied().unwrap_or_default()
    }

    /// The service that a port of every node belongs to.
    pub fn port_claim(&self, port: u16, protocol: Protocol) -> Option<&ServiceName> {
        self.index.ports.get(&(port, protocol))
    }

    /// Every claimed port and the service it belongs to.
    pub fn port_claims(&self) -> &OrdMap<(u16, Protocol), ServiceName> {
        &self.index.ports
    }

    /// What a replica runs: the specification of its version.
    pub fn spec_of(&self, replica: &Replica) -> Option<&Arc<ServiceSpec>> {
        self.services.get(&replica.service)?.spec_of(replica.version)
    }

    /// Rebuilds everything that is not encoded, from the tables.
    pub fn reindex(&mut self) {
        self.requests_by_time = self.requests.iter().map(|(id, (at, _))| ((*at, *id), ())).collect();
        let mut index = Index::default();
        for (id, row) in &self.replicas {
            index.add(*id, row, self.reservations_of(row));
        }
        for (name, service) in &self.services {
            for claim in held_claims(name, service, &index) {
                index.ports.insert(claim, name.clone());
            }
        }
        index.volumes = self.volumes.iter().map(|(name, volume)| (volume.id, name.clone())).collect();
        self.index = index;
    }

    fn reservations_of(&self, row: &Replica) -> Reservations {
        self.spec_of(row).map(|spec| spec.reservations).unwrap_or_default()
    }

    pub(super) fn insert_replica(&mut self, id: ReplicaId, row: Replica) {
        let reservations = self.reservations_of(&row);
        self.index.add(id, &row, reservations);
        self.replicas.insert(id, row);
    }

    pub(super) fn remove_replica(&mut self, id: ReplicaId) -> Option<Replica> {
        let row = self.replicas.remove(&id)?;
        let reservations = self.reservations_of(&row);
        if self.index.remove(id, &row, reservations) {
            self.settle_versions(&row.service);
        }
        Some(row)
    }

    pub(super) fn insert_volume(&mut self, name: VolumeName, volume: Volume) {
        self.index.volumes.insert(volume.id, name.clone());
        self.volumes.insert(name, volume);
    }

    pub(super) fn drop_volume(&mut self, name: &VolumeName) {
        if let Some(volume) = self.volumes.remove(name) {
            self.index.volumes.remove(&volume.id);
        }
    }

    /// Lowers `desired`; answers whether that changed it.
    pub(super) fn lower_desired(&mut self, id: ReplicaId, desired: Desired) -> bool {
        let Some(row) = self.replicas.get(&id).filter(|row| row.desired < desired) else { return false };
        let (node, reservations) = (row.node, self.reservations_of(row));
        if desired == Desired::Stop {
            self.index.release(node, reservations);
        }
        if let Some(row) = self.replicas.get_mut(&id) {
            row.desired = desired;
        }
        true
    }

    /// Brings a service's port claims in line with its versions, then drops the oldest versions
    /// above [`limits::SERVICE_VERSIONS_MAX`] that no replica runs. To be called whenever a
    /// version comes or its last replica goes.
    pub(super) fn settle_versions(&mut self, name: &ServiceName) {
        let Some(service) = self.services.get(name) else { return };
        let held = held_claims(name, service, &self.index);
        for claim in service.versions.iter().flat_map(|version| claims(&version.spec)) {
            if held.contains(&claim) {
                self.index.ports.insert(claim, name.clone());
            } else if self.index.ports.get(&claim) == Some(name) {
                self.index.ports.remove(&claim);
            }
        }
        while let Some(service) = self.services.get(name)
            && service.versions.len() > limits::SERVICE_VERSIONS_MAX
        {
            let unused = |version: u64| !self.index.version_rows.contains_key(&(name.clone(), version));
            let kept = service.versions.len() - 1;
            let oldest = service.versions.iter().take(kept).position(|version| unused(version.version));
            let (Some(oldest), Some(service)) = (oldest, self.services.get_mut(name)) else { break };
            service.versions.remove(oldest);
        }
    }

    /// Gives up the ports of a service that is about to be forgotten.
    pub(super) fn release_ports(&mut self, name: &ServiceName) {
        let Some(service) = self.services.get(name) else { return };
        for claim in service.versions.iter().flat_map(|version| claims(&version.spec)) {
            if self.index.ports.get(&claim) == Some(name) {
                self.index.ports.remove(&claim);
            }
        }
    }
}

/// The ports a service holds: its current version's, and those of versions that replicas still
/// run.
fn held_claims(name: &ServiceName, service: &super::Service, index: &Index) -> BTreeSet<(u16, Protocol)> {
    let current = service.versions.last().map(|current| current.version);
    service
        .versions
        .iter()
        .filter(|version| {
            Some(version.version) == current
                || index.version_rows.contains_key(&(name.clone(), version.version))
        })
        .flat_map(|version| claims(&version.spec))
        .collect()
}
