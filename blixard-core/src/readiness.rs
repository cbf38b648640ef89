//! Whether a replica does its work: decided here once, for the planner, for what is routed to, and
//! for what people are shown.
//!
//! Two answers. A replica is *ready* when it runs, is healthy where that is checked, and its node is
//! there: it is routed to and counted. It is *proven* once it has been ready for its
//! `min_healthy_time` at a stretch: an update goes on, and `run` succeeds, by proof. Its agent measures
//! that ([`crate::cluster::ReplicaStatus::proven`]), by the clock of the replica's own node, so that no
//! change of leader and no jump of a clock begins it anew.

use crate::cluster::level::SECOND_LEVEL;
use crate::cluster::{ClusterState, Desired, NodeStatus, Phase, Replica};

/// Whether a replica does its work, as far as the cluster knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It runs, and its probe passes where it has one.
    Ready,
    /// It was ready when its node was last heard of.
    Unsure,
    /// It ran to its successful end.
    Ended,
    /// Not now.
    No,
}

/// Whether `replica` does its work.
pub fn readiness(state: &ClusterState, replica: &Replica) -> Readiness {
    let probed = state.spec_of(replica).is_some_and(|spec| spec.healthcheck.is_some());
    let healthy = replica.status.healthy.unwrap_or(!probed);
    let up = state.nodes.get(&replica.node).is_some_and(|node| node.status == NodeStatus::Up);
    match replica.status.phase {
        Phase::Completed => Readiness::Ended,
        Phase::Running if healthy && up => Readiness::Ready,
        Phase::Running if healthy => Readiness::Unsure,
        _ => Readiness::No,
    }
}

/// Whether `replica` takes requests: it is ready, and neither lost nor told to stop.
pub fn serves(state: &ClusterState, replica: &Replica) -> bool {
    replica.desired != Desired::Stop
        && replica.lost_since.is_none()
        && readiness(state, replica) == Readiness::Ready
}

/// Whether a replica that is ready is proven. Before the second feature level nobody tells, and
/// whatever is ready is.
pub fn is_proven(state: &ClusterState, replica: &Replica) -> bool {
    replica.status.proven || !state.knows(SECOND_LEVEL)
}

/// Whether `replica` has done what it was placed for: it is ready and proven, or it ran to its
/// successful end. An end before its proof counts only where no replica of another version serves:
/// what ends takes the place of nothing that serves.
pub fn has_arrived(state: &ClusterState, replica: &Replica) -> bool {
    match readiness(state, replica) {
        Readiness::Ready => is_proven(state, replica),
        Readiness::Ended => is_proven(state, replica) || !others_serve(state, replica),
        Readiness::Unsure | Readiness::No => false,
    }
}

/// Whether a replica of the same service that runs something else is there and serves.
fn others_serve(state: &ClusterState, replica: &Replica) -> bool {
    let Some(service) = state.services.get(&replica.service) else { return false };
    state
        .replicas_of(&replica.service)
        .any(|(_, other)| !service.same_containers(other.version, replica.version) && serves(state, other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::ReplicaStatus;
    use crate::id::{NodeId, ReplicaId};
    use crate::orchestrator::tests::world::{World, probe, replicas, spec};
    use crate::spec::ServiceSpec;

    #[test]
    fn a_replica_is_ready_when_it_runs_is_healthy_and_its_node_is_there() {
        use NodeStatus::{Down, Unknown, Up};
        let check = |probed: bool, phase, healthy, node, expect: Readiness| {
            let mut world = World::new(1);
            let probe = |spec: &mut ServiceSpec| {
                if probed {
                    probe(spec)
                }
            };
            world.submit(spec("web", probe)).settle();
            let status = ReplicaStatus { phase, healthy, ..ReplicaStatus::assigned() };
            world.replica(1).status = status;
            world.node(1).status = node;
            let row = &world.state.replicas[&ReplicaId(1)];
            assert_eq!(readiness(&world.state, row), expect, "{probed} {phase:?} {healthy:?} {node:?}");
            assert_eq!(serves(&world.state, row), expect == Readiness::Ready);
        };
        check(false, Phase::Running, None, Up, Readiness::Ready);
        check(false, Phase::Running, None, Unknown, Readiness::Unsure);
        check(false, Phase::Running, None, Down, Readiness::Unsure);
        check(false, Phase::Starting, None, Up, Readiness::No);
        check(true, Phase::Running, None, Up, Readiness::No);
        check(true, Phase::Running, Some(false), Up, Readiness::No);
        check(true, Phase::Running, Some(true), Up, Readiness::Ready);
        check(true, Phase::Waiting, Some(true), Up, Readiness::No);
        check(false, Phase::Completed, None, Up, Readiness::Ended);
        check(false, Phase::Failed, None, Up, Readiness::No);
    }

    #[test]
    fn what_is_lost_or_to_stop_serves_nobody() {
        let mut world = World::new(1);
        world.submit(spec("web", |spec| spec.replicas = replicas(1))).converge();
        let serves = |world: &World| serves(&world.state, &world.state.replicas[&ReplicaId(1)]);
        assert!(serves(&world));
        world.replica(1).desired = Desired::Retire;
        assert!(serves(&world), "a superseded replica serves until it is to stop");
        world.replica(1).desired = Desired::Stop;
        assert!(!serves(&world));
        world.replica(1).desired = Desired::Run;
        world.replica(1).lost_since = Some(world.now);
        assert!(!serves(&world));
        world.replica(1).lost_since = None;
        world.state.nodes.remove(&NodeId(1));
        assert!(!serves(&world));
    }
}
