//! Placements: whether a replica may be made where the leader wants it, as the state is now.

use super::plan::Step;
use crate::cluster::index::claims;
use crate::cluster::volume::Home;
use crate::cluster::{
    Availability, ClusterState, Desired, EventKind, Node, NodeStatus, Replica, ReplicaStatus,
};
use crate::id::{NodeId, ReplicaId, ServiceName};
use crate::spec::{NetworkMode, ServiceSpec};

/// A replica to be made.
pub(super) struct Placement<'a> {
    pub(super) service: &'a ServiceName,
    pub(super) slot: u32,
    pub(super) version: u64,
    pub(super) node: NodeId,
    pub(super) after: Option<ReplicaId>,
    /// Whether it is of a version older than the current one, and meant to be.
    pub(super) older: bool,
}

impl ClusterState {
    pub(super) fn place(&mut self, placement: &Placement<'_>) -> Step {
        let Placement { service, slot, version, node, .. } = *placement;
        let after = self.check_placement(placement)?;
        let id = self.next_replica;
        self.next_replica = ReplicaId(id.0 + 1);
        let row = Replica {
            service: service.clone(),
            slot,
            version,
            node,
            desired: Desired::Run,
            lost_since: None,
            after,
            stop_timeout_s: None,
            status: ReplicaStatus::assigned(),
            created_at: self.time,
        };
        self.insert_replica(id, row);
        let spec = self.services.get(service).and_then(|service| service.spec_of(version)).cloned();
        if let Some(spec) = spec {
            self.settle_volumes(&spec, node);
        }
        self.clear_pending(service, slot);
        self.tell_replica(EventKind::ReplicaPlaced, id, &format!("is placed, version {version}"));
        Ok(())
    }

    /// Checks a placement and answers which replica it is to wait for, if that is still there.
    fn check_placement(&self, placement: &Placement<'_>) -> Result<Option<ReplicaId>, String> {
        let Placement { service: name, slot, version, node: node_id, after, older } = *placement;
        let service = self.wanted_slot(name, slot)?;
        let current = service.current().version;
        if (version != current) != older || version > current {
            return Err(format!("`{name}` is at version {current}, not {version}"));
        }
        let Some(spec) = service.spec_of(version) else {
            return Err(format!("version {version} of `{name}` is no longer kept"));
        };
        if let Some((holder, _)) = self.counting_in(name, slot) {
            return Err(format!("slot {slot} of `{name}` is held by replica {holder}"));
        }
        let node = self.placeable(node_id)?;
        if spec.is_pinned() && node_id != service.origin {
            return Err(format!("the host volumes of `{name}` are on node {}", service.origin));
        }
        match self.home_of(spec, service.origin) {
            Home::Nowhere(why) => return Err(why),
            Home::At(home) if home != node_id => {
                return Err(format!("what `{name}` mounts is on node {home}"));
            }
            Home::At(_) | Home::Anywhere => {}
        }
        self.check_fits(node_id, node, spec)?;
        let after = self.check_after(placement, after)?;
        self.check_ports(placement, spec, after)?;
        Ok(after)
    }

    fn placeable(&self, id: NodeId) -> Result<&Node, String> {
        let node = self.nodes.get(&id).ok_or_else(|| format!("there is no node {id}"))?;
        if node.status != NodeStatus::Up {
            return Err(format!("node {id} is not up"));
        }
        if node.availability != Availability::Active {
            return Err(format!("node {id} takes no replicas"));
        }
        Ok(node)
    }

    fn check_fits(&self, id: NodeId, node: &Node, spec: &ServiceSpec) -> Step {
        let (reserved, asked, facts) = (self.reserved_on(id), spec.reservations, &node.facts);
        let check = |what: &str, reserved: u64, asked: u64, capacity: u64| {
            let free = capacity.saturating_sub(reserved);
            if asked > free {
                return Err(format!("node {id} has {free} {what} free, `{}` reserves {asked}", spec.name));
            }
            Ok(())
        };
        check("thousandths of a CPU", reserved.cpu_millis, asked.cpu_millis, facts.cpu_millis)?;
        check("bytes of memory", reserved.memory_bytes, asked.memory_bytes, facts.memory_bytes)
    }

    fn check_after(
        &self,
        placement: &Placement<'_>,
        after: Option<ReplicaId>,
    ) -> Result<Option<ReplicaId>, String> {
        let Some((id, row)) = after.and_then(|id| Some((id, self.replicas.get(&id)?))) else {
            return Ok(None);
        };
        if row.service != *placement.service || row.slot != placement.slot {
            return Err(format!("replica {id} is in another slot than the one that is to follow it"));
        }
        Ok(Some(id))
    }

    /// Replicas of one service share a published port on a node, unless one of them listens on
    /// the node's own network: then the other must have ended, or be the one it waits for.
    fn check_ports(&self, placement: &Placement<'_>, spec: &ServiceSpec, after: Option<ReplicaId>) -> Step {
        let Placement { service: name, node, .. } = *placement;
        for (port, protocol) in claims(spec) {
            if self.port_claim(port, protocol) != Some(name) {
                return Err(format!("port {port}/{protocol} is not `{name}`'s"));
            }
        }
        let apart = self.services.get(name).is_some_and(|service| !service.knows_host_network());
        if apart || claims(spec).next().is_none() {
            return Ok(());
        }
        let rival = self.replicas_of(name).find(|(id, row)| {
            row.node == node
                && Some(*id) != after
                && !row.status.phase.is_final()
                && self.spec_of(row).is_some_and(|other| collide(spec, other))
        });
        match rival {
            Some((id, _)) => Err(format!("replica {id} listens on node {node} itself, on the same port")),
            None => Ok(()),
        }
    }
}

/// Whether two replicas of a service cannot listen on one node at once.
fn collide(a: &ServiceSpec, b: &ServiceSpec) -> bool {
    let shares_network = a.network == NetworkMode::Bridge && b.network == NetworkMode::Bridge;
    !shares_network && claims(a).any(|claim| claims(b).any(|other| other == claim))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::node::NodeFacts;
    use crate::cluster::testing::{
        Cluster, desire, facts, marked, name, place, publishing, spec, two_nodes, with_volume,
    };
    use crate::cluster::{Command, PlanStep, Write};
    use crate::spec::Reservations;

    #[test]
    fn a_placement_that_no_longer_holds_is_dropped() {
        let check = |change: &dyn Fn(&mut Cluster), step: PlanStep, expect: &[&str]| {
            let mut cluster = two_nodes();
            change(&mut cluster);
            assert_eq!(cluster.plan(vec![step]), expect);
        };
        let nothing = |_: &mut Cluster| ();
        check(&nothing, place("web", 1, 1, 2), &[]);
        check(&nothing, place("api", 1, 1, 2), &["there is no service `api`"]);
        check(&nothing, place("web", 0, 1, 2), &["slot 0 of `web` is held by replica 1"]);
        check(&nothing, place("web", 2, 1, 2), &["`web` wants 2 replicas, slot 2 is not among them"]);
        check(&nothing, place("web", 1, 2, 2), &["`web` is at version 1, not 2"]);
        check(&nothing, place("web", 1, 1, 9), &["there is no node 9"]);
        let unknown = |cluster: &mut Cluster| cluster.health(2, NodeStatus::Unknown);
        check(&unknown, place("web", 1, 1, 2), &["node 2 is not up"]);
        let drain = |cluster: &mut Cluster| {
            let availability = Availability::Draining;
            cluster.write(Write::SetAvailability { node: NodeId(2), availability });
        };
        check(&drain, place("web", 1, 1, 2), &["node 2 takes no replicas"]);
        let update = |cluster: &mut Cluster| drop(cluster.submit(marked(1, spec("web", 2, 4))));
        check(&update, place("web", 1, 1, 2), &["`web` is at version 2, not 1"]);
        let stop = |cluster: &mut Cluster| {
            drop(cluster.write(Write::Stop { service: name("web"), timeout_s: None }))
        };
        check(&stop, place("web", 1, 1, 2), &["`web` is stopped"]);
        let remove = |cluster: &mut Cluster| drop(cluster.write(Write::Remove { service: name("web") }));
        check(&remove, place("web", 1, 1, 2), &["`web` is being removed"]);
    }

    #[test]
    fn replicas_fit_into_what_a_node_has() {
        let mut cluster = Cluster::of(1);
        let reservations = Reservations { cpu_millis: 1_500, memory_bytes: 1 << 30 };
        cluster.submit(ServiceSpec { reservations, ..spec("web", 3, 3) });
        let full = "node 1 has 1000 thousandths of a CPU free, `web` reserves 1500";
        assert_eq!(cluster.plan((0..3).map(|slot| place("web", slot, 1, 1)).collect()), [full]);
        cluster.planned(vec![desire(1, Desired::Retire)]);
        assert_eq!(cluster.plan(vec![place("web", 2, 1, 1)]), [full]);
        cluster.planned(vec![desire(1, Desired::Stop), place("web", 2, 1, 1)]);
        assert_eq!(cluster.state.reserved_on(NodeId(1)).cpu_millis, 3_000);
        let small = NodeFacts { memory_bytes: 1 << 30, cpu_millis: 9_000, ..facts("one") };
        cluster.command(Command::Facts { node: NodeId(1), facts: small });
        let full = "node 1 has 0 bytes of memory free, `web` reserves 1073741824";
        assert_eq!(cluster.plan(vec![place("web", 0, 1, 1)]), [full]);
    }

    #[test]
    fn host_volumes_pin_to_the_node_they_are_on() {
        let mut cluster = Cluster::of(2);
        cluster.submit_on(2, with_volume(spec("db", 1, 1)));
        assert_eq!(cluster.plan(vec![place("db", 0, 1, 1)]), ["the host volumes of `db` are on node 2"]);
        cluster.planned(vec![place("db", 0, 1, 2)]);
    }

    #[test]
    fn a_port_is_shared_in_networks_of_their_own_only() {
        let two = |network| {
            let mut cluster = Cluster::of(2);
            cluster.submit(ServiceSpec { network, ..publishing(spec("web", 2, 2), &[80]) });
            cluster.planned(vec![place("web", 0, 1, 1)]);
            cluster
        };
        two(NetworkMode::Bridge).planned(vec![place("web", 1, 1, 1)]);
        let mut cluster = two(NetworkMode::Host);
        let taken = "replica 1 listens on node 1 itself, on the same port";
        assert_eq!(cluster.plan(vec![place("web", 1, 1, 1)]), [taken]);
        cluster.planned(vec![place("web", 1, 1, 2)]);
        assert_eq!(cluster.plan(vec![desire(1, Desired::Stop), place("web", 0, 1, 1)]), [taken]);
        let after = Some(ReplicaId(1));
        let follow =
            |slot| PlanStep::Place { service: name("web"), slot, version: 1, node: NodeId(1), after };
        cluster.planned(vec![follow(0)]);
        assert_eq!(cluster.state.replicas[&ReplicaId(3)].after, after);
    }

    #[test]
    fn a_replica_follows_one_of_its_own_slot_or_nothing() {
        let mut cluster = two_nodes();
        let follow = |slot, after| PlanStep::Place {
            service: name("web"),
            slot,
            version: 1,
            node: NodeId(2),
            after: Some(ReplicaId(after)),
        };
        let other = "replica 1 is in another slot than the one that is to follow it";
        assert_eq!(cluster.plan(vec![follow(1, 1)]), [other]);
        cluster.planned(vec![follow(1, 77)]);
        assert_eq!(cluster.state.replicas[&ReplicaId(2)].after, None, "what is gone is not waited for");
    }
}
