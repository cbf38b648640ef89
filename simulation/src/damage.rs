//! The last act of a history: a state that is wrong although every checksum is right.
//!
//! A machine's snapshot is changed while its daemon is off, as memory does that loses a bit before the
//! snapshot is encoded. When nothing else goes wrong: the others must be a majority whose states are
//! right, and none of them be sent the wrong one.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use blixard_core::cluster::ClusterState;
use blixard_core::id::NodeId;
use blixard_core::time::UtcMs;
use http::{Request, StatusCode};

use crate::clients::call;
use crate::disk::Loss;
use crate::machine::Running;
use crate::random::Stream;
use crate::world::World;

/// How long the cluster has to find out, and to give the member the right state: a state in rest is
/// looked at every minute.
const MENDED_WITHIN: Duration = Duration::from_secs(90);
/// How often it is looked at what the member answers.
const LOOK: Duration = Duration::from_millis(20);
/// How often it is looked whether the member runs: it may be found, and mended, within milliseconds of its
/// start, since digests are made of what it applies again.
const LOOK_FOR_START: Duration = Duration::from_millis(1);
/// How long a member has been right that nobody saw wrong, until it counts as mended before anybody looked.
const UNSEEN: Duration = Duration::from_secs(20);

/// Damages a follower's state in a cluster at rest, and watches it be found and mended; false where no
/// follower has a snapshot to damage, too few members are there to know which is right, or it was mended
/// before it could be seen that it was wrong.
///
/// # Errors
/// When it is not found in time, or the member answers wrongly once it was.
pub(crate) async fn damaged_state_is_mended(world: &Arc<World>) -> Result<bool, String> {
    let random = Stream::new(world.seed, "damage");
    let leader = world.leader();
    let followers: Vec<_> = world.machines.iter().filter(|machine| Some(machine.number) != leader).collect();
    let place = usize::try_from(random.below(followers.len().max(1) as u64)).expect("small");
    let (Some(machine), 3..) = (followers.get(place), world.machines.len()) else { return Ok(false) };
    let newest = world.checks.newest();
    let Some((node, right)) = newest.and_then(|state| {
        let (id, row) = state.nodes.get_min()?;
        Some((*id, row.joined_at))
    }) else {
        return Ok(false);
    };

    machine.crash(Loss::Process);
    world.checks.set_wrong(machine.number, true);
    let mut altered = false;
    machine.disk.alter_snapshot(|state| altered = alter(state, node));
    world.start(machine.number);
    let ended = if altered { watch(world, machine.number, node, right).await } else { Ok(false) };
    world.checks.set_wrong(machine.number, false);
    ended
}

/// What differs afterwards: something that no decision is made by. False when the node joined later.
fn alter(state: &mut ClusterState, node: NodeId) -> bool {
    let Some(row) = state.nodes.get_mut(&node) else { return false };
    row.joined_at = UtcMs(row.joined_at.0 + 1);
    true
}

/// Looks at the machine's node and asks it, over and over, until it has the right state and nobody says
/// any more that it has not. Whether it was seen that it was wrong.
async fn watch(world: &World, number: u64, node: NodeId, right: UtcMs) -> Result<bool, String> {
    let begun = tokio::time::Instant::now();
    let end = tokio::time::Instant::now() + MENDED_WITHIN;
    let (mut found, mut was_wrong) = (false, false);
    while tokio::time::Instant::now() < end {
        if let Some(running) = world.machine(number).running() {
            found |= running.handle.differs().is_some();
            // Before anything is waited for: it may be mended within a second of its start.
            let held = running.handle.state().nodes.get(&node).map(|row| row.joined_at);
            was_wrong |= held.is_some_and(|held| held != right);
            let shown = joined_at(&running, node).await;
            if found && shown.is_some_and(|shown| shown != right) {
                return Err(format!("machine {number} answers wrongly although it was found to differ"));
            }
            let member = world.machine(number).member();
            let accused = world.running().iter().any(|other| other.handle.difference_of(member).is_some());
            let unseen = begun.elapsed() > UNSEEN;
            if (was_wrong || unseen) && shown == Some(right) && !accused {
                return Ok(was_wrong);
            }
            tokio::time::sleep(LOOK).await;
        } else {
            tokio::time::sleep(LOOK_FOR_START).await;
        }
    }
    Err(format!("machine {number} has another state (seen: {was_wrong}) and is not mended (found: {found})"))
}

/// When a node joined, by an answer that a majority confirmed.
async fn joined_at(running: &Running, node: NodeId) -> Option<UtcMs> {
    let request = Request::get(format!("/v1/nodes/{node}")).body(Body::empty()).expect("it is well formed");
    let answer = call(running, request).await?;
    let confirmed = answer.status == StatusCode::OK && !answer.stale;
    Some(UtcMs(answer.body["joined_at"].as_u64()?)).filter(|_| confirmed)
}
