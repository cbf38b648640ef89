//! Whether the kernel killed a container's process for want of memory.
//!
//! The kernel counts such kills in the container's cgroup, which stays until the container is removed. A
//! kill need not be of the container's own process: one of its children may have been killed, and the
//! container have gone on. So the count at a time when it did is remembered, and only later kills are said
//! to be why the container ended, and only when it ended as by SIGKILL.

use std::sync::Arc;
use std::time::Duration;

use blixard_core::id::ContainerId;
use containerd_client::types::v1::Status as ProcessStatus;

use super::cgroups;
use super::containers::Containers;

/// The code of a process that SIGKILL ended.
const KILLED: u32 = 137;
/// How long after a kill a container that runs still has survived it.
const SURVIVED_AFTER: Duration = Duration::from_secs(1);

impl Containers {
    /// Whether a container that ended with `code` was killed for want of memory.
    pub(crate) async fn oom_killed(&self, id: &ContainerId, code: u32) -> bool {
        if code != KILLED {
            return false;
        }
        let survived = self.survived().get(id).copied().unwrap_or(0);
        self.oom_kills(id).await > survived
    }

    /// Takes in that a process of a container was killed; if the container still runs soon after, that
    /// was not its end.
    pub(crate) fn survives_oom(self: &Arc<Self>, id: ContainerId) {
        let containers = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(SURVIVED_AFTER).await;
            let kills = containers.oom_kills(&id).await;
            let process = containers.client.process(&id.0).await.ok().flatten();
            if process.is_some_and(|process| process.status == ProcessStatus::Running as i32) {
                containers.survived().insert(id, kills);
            }
        });
    }

    async fn oom_kills(&self, id: &ContainerId) -> u64 {
        let cgroup = self.cgroup(id);
        super::blocking(move || Ok(cgroups::oom_kills(&cgroup))).await.unwrap_or(0)
    }
}
