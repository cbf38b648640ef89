//! Members and the cluster as `node ls` and `cluster status` show them.

use std::collections::BTreeSet;

use blixard_core::api::node::{ClusterStatus, NodeView, PeerRow, Role};
use blixard_core::cluster::{ClusterState, Desired, Node, NodeStatus, Phase, Replica};
use blixard_core::id::{ClusterId, NodeId, ReplicaId};
use blixard_core::orchestrator::membership::quorum_of;

use super::replica::is_lost;
use crate::handle::RaftStatus;

/// Every member's name and addresses, by id.
pub fn peers(state: &ClusterState) -> Vec<PeerRow> {
    let row = |(&id, member): (&NodeId, &Node)| PeerRow {
        id,
        name: member.facts.name.clone(),
        addresses: member.facts.addresses.iter().map(ToString::to_string).collect(),
    };
    state.nodes.iter().map(row).collect()
}

/// Every member, by id.
pub fn nodes(state: &ClusterState, raft: &RaftStatus) -> Vec<NodeView> {
    state.nodes.iter().map(|(&id, member)| view(state, raft, id, member)).collect()
}

/// The state as a node shows it that no quorum answers: members that it cannot reach are down and
/// what they had is lost, as a leader would say if there were one.
pub fn without(state: &ClusterState, missing: &[NodeId]) -> ClusterState {
    let mut shown = state.clone();
    for id in missing {
        if let Some(node) = shown.nodes.get_mut(id) {
            node.status = NodeStatus::Down;
        }
        let there: Vec<ReplicaId> = state.replicas_on(*id).map(|(replica, _)| replica).collect();
        for replica in there {
            if let Some(row) = shown.replicas.get_mut(&replica).filter(|row| !row.is_over()) {
                row.lost_since = row.lost_since.or(Some(state.time));
            }
        }
    }
    shown
}

/// One member; `None` when there is no such.
pub fn node(state: &ClusterState, raft: &RaftStatus, id: NodeId) -> Option<NodeView> {
    state.nodes.get(&id).map(|member| view(state, raft, id, member))
}

fn view(state: &ClusterState, raft: &RaftStatus, id: NodeId, node: &Node) -> NodeView {
    let runs = |replica: &Replica| !replica.status.phase.is_final() && !is_lost(Some(node), replica);
    let replicas = state.replicas_on(id).filter(|(_, replica)| runs(replica)).count();
    let reserved = state.reserved_on(id);
    NodeView {
        id,
        name: node.facts.name.clone(),
        role: role(raft, id),
        status: node.status,
        status_since: node.status_since,
        availability: node.availability,
        hold_until: node.hold_until,
        key: node.key,
        addresses: node.facts.addresses.iter().map(ToString::to_string).collect(),
        subnet: format!("{}/24", node.subnet),
        labels: node.facts.labels.clone(),
        replicas: u32::try_from(replicas).unwrap_or(u32::MAX),
        cpu_millis: node.facts.cpu_millis,
        cpu_millis_reserved: reserved.cpu_millis,
        memory_bytes: node.facts.memory_bytes,
        memory_bytes_reserved: reserved.memory_bytes,
        arch: node.facts.arch.clone(),
        os: node.facts.os.clone(),
        version: node.facts.version.clone(),
        joined_at: node.joined_at,
        warnings: Vec::new(),
        stale: false,
    }
}

fn role(raft: &RaftStatus, id: NodeId) -> Role {
    match () {
        () if raft.leader == Some(id) => Role::Leader,
        () if raft.voters().contains(&id) => Role::Voter,
        () if raft.learners.contains(&id) => Role::Learner,
        () => Role::Joining,
    }
}

/// The cluster, as the member `node` knows it.
pub fn cluster_status(
    state: &ClusterState,
    raft: &RaftStatus,
    cluster: ClusterId,
    node: NodeId,
) -> ClusterStatus {
    let up: BTreeSet<NodeId> =
        state.nodes.iter().filter(|(_, node)| node.status == NodeStatus::Up).map(|(&id, _)| id).collect();
    let (failures_survived, survives) = survives(&raft.configurations, &raft.learners, &up);
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let replicas = |is: fn(&Replica, bool) -> bool| {
        let lost = |replica: &Replica| is_lost(state.nodes.get(&replica.node), replica);
        count(state.replicas.values().filter(|replica| is(replica, lost(replica))).count())
    };
    ClusterStatus {
        id: cluster,
        node,
        leader: raft.leader,
        term: raft.term,
        voters: raft.voters().into_iter().collect(),
        learners: raft.learners.clone(),
        failures_survived,
        survives,
        level: state.level,
        last_log: raft.last_log,
        applied: state.applied,
        snapshot: raft.snapshot,
        nodes: count(state.nodes.len()),
        nodes_up: count(up.len()),
        services: count(state.services.len()),
        replicas_running: replicas(|replica, lost| !lost && replica.status.phase == Phase::Running),
        replicas_lost: replicas(|replica, lost| lost && replica.desired != Desired::Stop),
        warnings: Vec::new(),
        stale: false,
    }
}

/// The same status without a quorum: what the members last told is no promise any more.
pub fn unconfirmed(mut status: ClusterStatus) -> ClusterStatus {
    status.stale = true;
    status.failures_survived = 0;
    status.survives =
        "nothing more: no majority of the voters answers; containers run on but nothing can change"
            .to_owned();
    status
}

/// How many more voters may fail at the same time before writes stop, and a sentence that says so.
/// Of every configuration a majority has to agree.
pub fn survives(
    configurations: &[BTreeSet<NodeId>],
    learners: &[NodeId],
    up: &BTreeSet<NodeId>,
) -> (u32, String) {
    let list = |ids: &BTreeSet<NodeId>| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let present = |voters: &BTreeSet<NodeId>| voters.intersection(up).count();
    let spare = |voters: &BTreeSet<NodeId>| present(voters).checked_sub(quorum_of(voters.len()));
    let Some(voters) = configurations.iter().min_by_key(|voters| spare(voters)) else {
        return (0, "unknown: this node knows no voters yet".to_owned());
    };
    let Some(spare) = spare(voters) else {
        let missing: BTreeSet<NodeId> = voters.difference(up).copied().collect();
        let text = format!(
            "nothing more: {} of {} voters are up and {} are needed; missing: {}",
            present(voters),
            voters.len(),
            quorum_of(voters.len()),
            list(&missing)
        );
        return (0, text);
    };
    let only = voters.first().filter(|_| voters.len() == 1);
    let text = match (spare, configurations, only) {
        (0, [before, after], _) => format!(
            "no failure of a voter until the change of voters from {} to {} is done: of both a majority is needed",
            list(before),
            list(after)
        ),
        (0, _, Some(only)) if learners.is_empty() => {
            format!("no failure: node {only} is the only member; join a second and a third")
        }
        (0, _, Some(only)) => format!(
            "the loss of any member but node {only}, the only voter; without it containers run on but nothing can change"
        ),
        (0, _, None) => format!(
            "no failure of a voter: all of the {} voters that are up are needed; without one containers run on but nothing can change",
            present(voters)
        ),
        (1, ..) => format!("the loss of any 1 of the voters {}", list(voters)),
        _ => format!("the loss of any {spare} of the voters {}", list(voters)),
    };
    (u32::try_from(spare).unwrap_or(u32::MAX), text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use blixard_core::api::node::Role;
    use blixard_core::cluster::{ClusterState, Desired, NodeStatus, Phase};
    use blixard_core::id::NodeId;
    use blixard_core::time::UtcMs;

    use super::super::fixture;
    use super::{cluster_status, nodes, survives, without};
    use crate::handle::RaftStatus;

    #[test]
    fn what_a_cluster_survives_counts_the_voters_that_are_up() {
        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
        let check_all = |sets: &[&[u64]], learners: &[u64], up: &[u64], expect: u32, phrase: &str| {
            let sets: Vec<_> = sets.iter().map(|set| ids(set)).collect();
            let learners: Vec<_> = ids(learners).into_iter().collect();
            let (failures, text) = survives(&sets, &learners, &ids(up));
            assert_eq!(failures, expect, "{text}");
            assert!(text.contains(phrase), "`{phrase}` in `{text}`");
        };
        let check = |voters: &[u64], learners: &[u64], up: &[u64], expect: u32, phrase: &str| {
            check_all(&[voters], learners, up, expect, phrase);
        };
        check(&[1], &[], &[1], 0, "only member");
        check(&[1], &[2], &[1, 2], 0, "any member but node 1");
        check(&[1, 2], &[], &[1, 2], 0, "all of the 2");
        check(&[1, 2, 3], &[], &[1, 2, 3], 1, "any 1 of the voters 1, 2, 3");
        check(&[1, 2, 3], &[], &[1, 2], 0, "all of the 2");
        check(&[1, 2, 3], &[], &[1], 0, "missing: 2, 3");
        check(&[1, 2, 3, 4, 5], &[6], &[1, 2, 3, 4, 5, 6], 2, "any 2");
        check_all(&[], &[], &[], 0, "unknown");
        check_all(&[&[1], &[1, 2, 3]], &[], &[1, 2, 3], 0, "change of voters from 1 to 1, 2, 3");
        check_all(&[&[1], &[1, 2, 3]], &[], &[2, 3], 0, "0 of 1 voters are up");
        check_all(&[&[1, 2, 3, 4, 5], &[1, 2, 3]], &[], &[1, 2, 3, 4, 5], 1, "any 1 of the voters 1, 2, 3");
    }

    #[test]
    fn nodes_show_their_part_and_their_replicas() {
        let mut state = fixture::state();
        for id in 2..=4 {
            fixture::add_node(&mut state, id, NodeStatus::Up);
        }
        fixture::add_service(&mut state, "web", 2);
        fixture::add_replica(&mut state, 1, "web", 0, Phase::Running, Desired::Run);
        fixture::add_replica(&mut state, 2, "web", 1, Phase::Failed, Desired::Run);
        fixture::add_replica(&mut state, 3, "web", 1, Phase::Stopping, Desired::Stop);
        fixture::add_replica(&mut state, 4, "web", 0, Phase::Starting, Desired::Run);
        fixture::edit_replica(&mut state, 4, |replica| replica.lost_since = Some(UtcMs(1)));
        let raft = RaftStatus {
            leader: Some(NodeId(1)),
            configurations: vec![BTreeSet::from([NodeId(1), NodeId(2)])],
            learners: vec![NodeId(3)],
            ..RaftStatus::default()
        };
        let views = nodes(&state, &raft);
        let roles: Vec<_> = views.iter().map(|view| view.role).collect();
        assert_eq!(roles, [Role::Leader, Role::Voter, Role::Learner, Role::Joining]);
        assert_eq!((views[0].replicas, views[1].replicas), (2, 0));
        let status = cluster_status(&state, &raft, fixture::CLUSTER, NodeId(1));
        assert_eq!((status.nodes, status.nodes_up, status.replicas_running), (4, 4, 1));
        assert_eq!(status.replicas_lost, 1);
    }

    #[test]
    fn without_a_quorum_what_cannot_be_reached_is_lost() {
        let mut state = fixture::state();
        fixture::add_node(&mut state, 2, NodeStatus::Up);
        fixture::add_service(&mut state, "web", 2);
        for slot in 0..2 {
            fixture::add_replica(&mut state, u64::from(slot) + 1, "web", slot, Phase::Running, Desired::Run);
        }
        let here = state.replicas.values().filter(|row| row.node == NodeId(1)).count();
        let raft = RaftStatus::default();
        let status = |state: &ClusterState| {
            let status = cluster_status(state, &raft, fixture::CLUSTER, NodeId(2));
            (status.nodes_up, status.replicas_running as usize, status.replicas_lost as usize)
        };
        assert_eq!(status(&state), (2, 2, 0));
        assert_eq!(status(&without(&state, &[NodeId(1)])), (1, 2 - here, here));
        assert_eq!(status(&without(&state, &[])), (2, 2, 0));
    }
}
