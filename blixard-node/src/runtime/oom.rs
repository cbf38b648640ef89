//! Whether the kernel killed a process in a container for want of memory shortly before it ended.
//!
//! The kernel counts such kills in the container's cgroup, which stays until the container is removed. A
//! kill need not be of the container's own process: one of its children may have been killed, and the
//! container have ended for that with a code of its own, or gone on. So the count at a time after which it
//! went on is remembered, and only later kills are told with the container's end. Whether it was the
//! container's own process, the code it ended with says.

use std::sync::Arc;
use std::time::Duration;

use blixard_core::id::ContainerId;
use containerd_client::types::v1::Status as ProcessStatus;

use super::cgroups;
use super::containers::Containers;

/// How long after a kill a container that runs still has survived it.
const SURVIVED_AFTER: Duration = Duration::from_secs(1);

impl Containers {
    /// Whether a process in a container was killed for want of memory, and the container has not
    /// survived that.
    pub(crate) async fn oom_killed(&self, id: &ContainerId) -> bool {
        let survived = self.survived().get(id).copied().unwrap_or(0);
        self.oom_kills(id).await > survived
    }

    /// Takes in that a process of a container was killed; if the container still runs soon after, that
    /// was not its end. Kills are counted a while before it is looked whether it runs: the kernel tells
    /// of a kill before it counts it, and what is killed later is not survived yet.
    pub(crate) fn survives_oom(self: &Arc<Self>, id: ContainerId) {
        let containers = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(SURVIVED_AFTER).await;
            let kills = containers.oom_kills(&id).await;
            tokio::time::sleep(SURVIVED_AFTER).await;
            let process = containers.client.process(&id.0).await.ok().flatten();
            if process.is_some_and(|process| process.status == ProcessStatus::Running as i32) {
                let mut survived = containers.survived();
                let known = survived.entry(id).or_default();
                *known = kills.max(*known);
            }
        });
    }

    async fn oom_kills(&self, id: &ContainerId) -> u64 {
        let cgroup = self.cgroup(id);
        super::blocking(move || Ok(cgroups::oom_kills(&cgroup))).await.unwrap_or(0)
    }
}
