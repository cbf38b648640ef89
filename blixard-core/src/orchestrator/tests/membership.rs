use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{
    MembershipChange, PROMOTION_LAG_MAX, RaftMembers, leave_blocker, next_change, quorum_of, survives,
};
use crate::cluster::{Availability, ClusterState, Node, NodeStatus, Phase};
use crate::id::NodeId;
use crate::limits::VOTERS_TARGET;
use crate::orchestrator::tests::world::{World, spec};

fn ids(of: &[u64]) -> BTreeSet<NodeId> {
    of.iter().copied().map(NodeId).collect()
}

/// `+` up, `?` unknown, `-` down, `l` leaving: one letter a node, from 1 on; `x` is no member.
fn nodes(letters: &str) -> ClusterState {
    let mut world = World::new(letters.len() as u64);
    for (id, letter) in (1..).zip(letters.chars()) {
        let node: &mut Node = world.node(id);
        match letter {
            '+' => {}
            '?' => node.status = NodeStatus::Unknown,
            '-' => node.status = NodeStatus::Down,
            'l' => node.availability = Availability::Leaving,
            'x' => {
                world.state.nodes.remove(&NodeId(id));
            }
            other => panic!("no meaning of {other}"),
        }
    }
    world.state
}

/// Raft's configuration, led by the first voter, in which all have the whole log.
fn raft(voters: &[u64], learners: &[u64]) -> RaftMembers {
    let all = voters.iter().chain(learners);
    RaftMembers {
        leader: NodeId(voters[0]),
        voters: ids(voters),
        learners: ids(learners),
        lag: all.map(|id| (NodeId(*id), 0)).collect(),
    }
}

#[test]
fn membership_moves_one_change_at_a_time() {
    use MembershipChange::{AddLearner, ChangeVoters, Nothing, RemoveFromRaft, TransferLeader};
    let check = |letters: &str, voters: &[u64], learners: &[u64], expect: MembershipChange| {
        let found = next_change(&nodes(letters).nodes, &raft(voters, learners));
        assert_eq!(found, expect, "{letters} with voters {voters:?} and learners {learners:?}");
    };
    check("+", &[1], &[], Nothing);
    check("++", &[1], &[], AddLearner(ids(&[2])));
    check("++", &[1], &[2], Nothing);
    check("+++", &[1], &[2, 3], ChangeVoters(ids(&[1, 2, 3])));
    check("+++", &[3], &[1, 2], ChangeVoters(ids(&[1, 2, 3])));
    check("++-", &[1], &[2, 3], Nothing);
    check("++++", &[1, 2, 3], &[4], Nothing);
    check("+++++", &[1, 2, 3], &[4, 5], ChangeVoters(ids(&[1, 2, 3, 4, 5])));
    check("+++++++", &[1], &[2, 3, 4, 5, 6, 7], ChangeVoters(ids(&[1, 2, 3, 4, 5])));
    check("++-", &[1, 2, 3], &[], Nothing);
    check("++-+", &[1, 2, 3], &[4], ChangeVoters(ids(&[1, 2, 4])));
    check("++?+", &[1, 2, 3], &[4], Nothing);
    check("++-?", &[1, 2, 3], &[4], Nothing);
    check("+--+", &[1, 2, 3], &[4], Nothing);
    check("++l", &[1, 2, 3], &[], ChangeVoters(ids(&[1])));
    check("++l+", &[1, 2, 3], &[4], ChangeVoters(ids(&[1, 2, 4])));
    check("++l?", &[1, 2, 3], &[4], Nothing);
    check("++l", &[1], &[2, 3], Nothing);
    check("l++", &[1, 2, 3], &[], TransferLeader(NodeId(2)));
    check("l+", &[1], &[2], ChangeVoters(ids(&[1, 2])));
    check("l+", &[1, 2], &[], TransferLeader(NodeId(2)));
    check("l+", &[2, 1], &[], ChangeVoters(ids(&[2])));
    check("l-", &[1], &[2], Nothing);
    check("l", &[1], &[], Nothing);
    check("+x", &[1], &[2], RemoveFromRaft(ids(&[2])));
    check("++x", &[1, 2, 3], &[], ChangeVoters(ids(&[1])));
    check("x++", &[1, 2, 3], &[], TransferLeader(NodeId(2)));
    check("++", &[2, 1], &[], ChangeVoters(ids(&[2])));
    check("x+", &[2, 1], &[], ChangeVoters(ids(&[2])));
    check("x+-", &[2, 1, 3], &[], ChangeVoters(ids(&[2])));
    check("-+", &[2, 1], &[], Nothing);

    // A voter of the configuration before the newest can be elected.
    let led_by_learner = |letters: &str, voters: &[u64], learners: &[u64], expect: MembershipChange| {
        let members = RaftMembers { leader: NodeId(learners[0]), ..raft(voters, learners) };
        assert_eq!(next_change(&nodes(letters).nodes, &members), expect, "{letters} with voters {voters:?}");
    };
    led_by_learner("+++x+", &[1, 2, 3], &[4, 5], TransferLeader(NodeId(1)));
    led_by_learner("-+++", &[1, 2, 3], &[4], ChangeVoters(ids(&[2, 3, 4])));
    led_by_learner("l+", &[1], &[2], ChangeVoters(ids(&[2])));
    led_by_learner("-+", &[1], &[2], Nothing);
}

#[test]
fn learner_votes_only_once_it_has_caught_up() {
    let mut members = raft(&[1], &[2, 3]);
    members.lag.insert(NodeId(3), PROMOTION_LAG_MAX + 1);
    assert_eq!(next_change(&nodes("+++").nodes, &members), MembershipChange::Nothing);
    members.lag.insert(NodeId(3), PROMOTION_LAG_MAX);
    assert_eq!(next_change(&nodes("+++").nodes, &members), MembershipChange::ChangeVoters(ids(&[1, 2, 3])));
}

#[test]
fn what_is_survived_is_said() {
    let check =
        |voters: &[u64], up: &[u64], expect: &str| assert_eq!(survives(&ids(voters), &ids(up)), expect);
    check(&[1], &[1, 2], "does not survive the loss of its only voter");
    check(&[1, 2, 3], &[1, 2, 3, 4], "survives the loss of 1 of 3 voters");
    check(&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5], "survives the loss of 2 of 5 voters");
    check(&[1, 2, 3, 4, 5], &[1, 2, 3, 4], "survives the loss of 1 more of 5 voters, of which 4 are up");
    check(&[1, 2, 3], &[1, 2], "does not survive the loss of a voter: 2 of 3 up, 2 needed");
    check(&[1, 2, 3], &[1], "has no quorum: 1 of 3 voters up, 2 needed; writes wait");
}

#[test]
fn leaving_node_goes_once_it_is_empty_and_does_not_vote() {
    let mut world = World::new(1);
    world.submit(spec("web", |_| {})).converge();
    let blocker = |world: &World, voters: &[u64]| leave_blocker(&world.state, &ids(voters), NodeId(1));
    assert_eq!(blocker(&world, &[]).as_deref(), Some("1 replica is still on it"));
    world.phase(1, Phase::Completed);
    assert_eq!(blocker(&world, &[1]).as_deref(), Some("it still votes"));
    assert_eq!(blocker(&world, &[2]), None);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    /// Following the decisions always comes to rest, never loses the quorum, and ends with what
    /// the members call for.
    #[test]
    fn membership_comes_to_rest(letters in "[+l?x-]{1,9}", voting in proptest::collection::vec(any::<bool>(), 10), lagging in proptest::collection::vec(any::<bool>(), 10)) {
        let state = nodes(&format!("+{letters}"));
        let all: Vec<u64> = (1..=letters.len() as u64 + 1).collect();
        let mut voters: Vec<u64> = all.iter().copied().filter(|id| voting[*id as usize - 1]).collect();
        if voters.is_empty() {
            voters.push(1);
        }
        let learners: Vec<u64> = all.iter().copied().filter(|id| !voters.contains(id)).collect();
        let mut members = RaftMembers { leader: NodeId(1), ..raft(&voters, &learners) };
        members.lag.retain(|id, _| *id == NodeId(1) || lagging[id.0 as usize - 1]);
        let up = |id: &NodeId| state.nodes.get(id).is_some_and(|node| node.status == NodeStatus::Up);
        for _ in 0..10 {
            let change = next_change(&state.nodes, &members);
            match change {
                // Who lacked entries has them now.
                MembershipChange::Nothing if members.lag.len() < all.len() => {}
                MembershipChange::Nothing => break,
                MembershipChange::AddLearner(ids) => members.learners.extend(ids),
                MembershipChange::TransferLeader(to) => {
                    prop_assert!(members.voters.contains(&to) && up(&to));
                    members.leader = to;
                }
                MembershipChange::RemoveFromRaft(ids) => {
                    prop_assert!(!ids.contains(&members.leader) && ids.is_subset(&members.learners));
                    members.learners.retain(|id| !ids.contains(id));
                }
                MembershipChange::ChangeVoters(voters) => {
                    let stays = voters.contains(&members.leader) || !members.voters.contains(&members.leader);
                    prop_assert!(stays, "the leader votes until it has handed over");
                    prop_assert!(voters.iter().filter(|id| up(id)).count() >= quorum_of(voters.len()));
                    let may_agree = |id: &&NodeId| up(id) || !state.nodes.contains_key(*id);
                    prop_assert!(members.voters.iter().filter(may_agree).count() >= quorum_of(members.voters.len()));
                    let demoted: BTreeSet<NodeId> = members.voters.difference(&voters).copied().collect();
                    members.learners = members.learners.union(&demoted).filter(|id| !voters.contains(id)).copied().collect();
                    members.voters = voters;
                }
            }
            let lag: BTreeMap<NodeId, u64> = members.learners.iter().map(|id| (*id, 0)).collect();
            members.lag.extend(lag);
        }
        prop_assert_eq!(next_change(&state.nodes, &members), MembershipChange::Nothing);
        let all_up = !letters.contains(['?', '-', 'l', 'x']);
        if all_up {
            let nodes = letters.len() + 1;
            let odd = if nodes % 2 == 0 { nodes - 1 } else { nodes };
            let quorum_up = members.voters.len() == odd.min(VOTERS_TARGET);
            prop_assert!(quorum_up, "{members:?}");
        }
    }
}
