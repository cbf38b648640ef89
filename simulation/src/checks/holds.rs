//! `holds_are_kept`: while the absence that a node announced lasts, it does not go Down and none of
//! its replicas is lost.
//!
//! The rule of planned stops (docs/architecture.md). Shows a daemon's upgrade that moves what runs
//! on its machine.

use blixard_core::cluster::{ClusterState, Node, NodeStatus};

/// Checks one entry's work.
pub(super) fn check(before: &ClusterState, after: &ClusterState) -> Result<(), String> {
    let held = |node: &Node| node.hold_until.is_some_and(|until| until > after.time);
    for (id, old) in before.nodes.iter().filter(|(_, node)| held(node)) {
        let Some(new) = after.nodes.get(id).filter(|node| held(node)) else { continue };
        if new.status == NodeStatus::Down && old.status != NodeStatus::Down {
            return Err(format!("node {id} went Down at {}, held until {:?}", after.time, new.hold_until));
        }
        let lost = after.replicas_on(*id).find(|(replica, row)| {
            row.lost_since.is_some()
                && before.replicas.get(replica).is_some_and(|known| known.lost_since.is_none())
        });
        if let Some((replica, _)) = lost {
            return Err(format!("replica {replica} is lost on node {id}, held until {:?}", new.hold_until));
        }
    }
    Ok(())
}
