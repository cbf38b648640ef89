//! Keeps the local network told of this node and of the containers that run on it, by its own state.

use std::collections::BTreeSet;
use std::time::Duration;

use blixard_core::discovery::announce;

use crate::handle::NodeHandle;

/// How long at most until the announcements are looked at again, although nothing changed: what could
/// not be said is said then.
const LOOK: Duration = Duration::from_secs(30);

/// The task: tells for as long as the node runs. `port` is the one that links are accepted on.
pub async fn run(handle: NodeHandle, port: u16) {
    let key = handle.platform.transport.key();
    let own = announce::node(handle.id, key, handle.cluster, port, env!("CARGO_PKG_VERSION"));
    loop {
        let state = handle.state();
        let mut all: BTreeSet<_> =
            announce::containers(&state, handle.cluster, handle.id).into_iter().collect();
        // A node that was removed has nothing to offer to who would join.
        if state.nodes.contains_key(&handle.id) {
            all.insert(own.clone());
        }
        handle.platform.announcer.announce(all);
        handle.state_after(state.applied, LOOK).await;
    }
}
