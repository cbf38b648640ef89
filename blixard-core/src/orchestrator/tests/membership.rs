use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{MembershipChange, PROMOTION_LAG_MAX, RaftMembers, leave_blocker, next_change, quorum_of};
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
        configurations: vec![ids(voters)],
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
fn change_that_its_leader_did_not_finish_is_finished() {
    let check = |letters: &str, before: &[u64], after: &[u64], leader: u64, expect: MembershipChange| {
        let all: BTreeSet<u64> = before.iter().chain(after).copied().collect();
        let learners: Vec<u64> = (1..=letters.len() as u64).filter(|id| !all.contains(id)).collect();
        let half_done = RaftMembers {
            leader: NodeId(leader),
            configurations: vec![ids(before), ids(after)],
            ..raft(after, &learners)
        };
        assert_eq!(
            next_change(&nodes(letters).nodes, &half_done),
            expect,
            "{letters}: {before:?} to {after:?}"
        );
    };
    use MembershipChange::{ChangeVoters, Nothing};
    check("+++", &[1], &[1, 2, 3], 1, ChangeVoters(ids(&[1, 2, 3])));
    check("+++", &[1], &[1, 2, 3], 2, ChangeVoters(ids(&[1, 2, 3])));
    // Back to what was, when that is what the members call for now.
    check("++l", &[1], &[1, 2, 3], 1, ChangeVoters(ids(&[1])));
    check("+++++", &[1, 2, 3], &[1, 2, 4], 2, ChangeVoters(ids(&[1, 2, 3, 4, 5])));
    // What was before has to agree as well.
    check("-++", &[1], &[1, 2, 3], 2, Nothing);
    check("+--+++", &[1, 2, 3], &[1, 4, 5], 1, Nothing);
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
    fn membership_comes_to_rest(letters in "[+l?x-]{1,9}", voting in proptest::collection::vec(any::<bool>(), 10), lagging in proptest::collection::vec(any::<bool>(), 10), finished in proptest::collection::vec(any::<bool>(), 10)) {
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
        for finished in finished.into_iter().chain([true; 10]) {
            let change = next_change(&state.nodes, &members);
            match change {
                // Who lacked entries has them now.
                MembershipChange::Nothing if members.lag.len() < all.len() => {}
                MembershipChange::Nothing => break,
                MembershipChange::AddLearner(ids) => members.learners.extend(ids),
                MembershipChange::TransferLeader(to) => {
                    prop_assert!(members.voters().contains(&to) && up(&to));
                    members.leader = to;
                }
                MembershipChange::RemoveFromRaft(ids) => {
                    prop_assert!(!ids.contains(&members.leader) && ids.is_subset(&members.learners));
                    members.learners.retain(|id| !ids.contains(id));
                }
                MembershipChange::ChangeVoters(voters) => {
                    let stays = voters.contains(&members.leader) || !members.voters().contains(&members.leader);
                    prop_assert!(stays, "the leader votes until it has handed over");
                    prop_assert!(voters.iter().filter(|id| up(id)).count() >= quorum_of(voters.len()));
                    let may_agree = |id: &&NodeId| up(id) || !state.nodes.contains_key(*id);
                    for before in &members.configurations {
                        prop_assert!(before.iter().filter(may_agree).count() >= quorum_of(before.len()));
                    }
                    let voted = members.voters();
                    let before = members.configurations.pop().filter(|before| !finished && *before != voters);
                    members.configurations = before.into_iter().chain([voters]).collect();
                    let votes = members.voters();
                    members.learners = members.learners.union(&voted).filter(|id| !votes.contains(id)).copied().collect();
                }
            }
            let lag: BTreeMap<NodeId, u64> = members.learners.iter().map(|id| (*id, 0)).collect();
            members.lag.extend(lag);
        }
        prop_assert_eq!(next_change(&state.nodes, &members), MembershipChange::Nothing);
        let sets = &members.configurations;
        let quorum_is_up = |set: &BTreeSet<NodeId>| set.iter().filter(|id| up(id)).count() >= quorum_of(set.len());
        prop_assert!(sets.len() == 1 || !sets.iter().all(quorum_is_up), "half done: {sets:?}");
        let all_up = !letters.contains(['?', '-', 'l', 'x']);
        if all_up {
            let nodes = letters.len() + 1;
            let odd = if nodes % 2 == 0 { nodes - 1 } else { nodes };
            let quorum_up = members.voters().len() == odd.min(VOTERS_TARGET);
            prop_assert!(quorum_up, "{members:?}");
        }
    }
}
