//! Keeps what this node holds of volumes in line with the replicated state.
//!
//! One task a volume. On the node of its primary copy it looks for changes and publishes them as versions;
//! on the others it fetches what is newer from there. Either way it tells the cluster what is here, durable,
//! whenever the state says something else. It decides nothing about where volumes are.

mod transfer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blixard_core::cluster::level::SECOND_LEVEL;
use blixard_core::cluster::volume::{Volume, VolumeCopy, VolumeStatus, VolumeVersion};
use blixard_core::cluster::{ClusterState, Command, Outcome};
use blixard_core::id::{NodeId, VolumeId};
use blixard_core::limits::{VOLUME_SCAN, WRITE_DEADLINE};
use blixard_core::spec::ServiceSpec;
use blixard_core::text;
use blixard_core::wire::{self, Channel, Heartbeat};
use bytes::Bytes;

pub(crate) use self::transfer::serve;
use crate::context::NodeContext;
use crate::handle::NodeHandle;
use crate::platform::VolumeError;
use crate::shared::Shared;

/// How long a copy that is as it should be waits until it looks again.
const LOOK: Duration = Duration::from_secs(30);
/// How long it waits after something failed; doubled up to the last.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How long a report may take.
const REPORT_DEADLINE: Duration = Duration::from_secs(5);

/// Runs a task for each volume that this node holds, for as long as the node runs.
pub(crate) async fn run(context: NodeContext, shared: Shared) {
    let followed: Arc<Mutex<BTreeSet<VolumeId>>> = Arc::default();
    let mut states = shared.watch_state();
    // What no row names is removed: by a state that holds everything that was committed before.
    let mut confirmed = false;
    loop {
        let state = Arc::clone(&states.borrow_and_update());
        if state.knows(SECOND_LEVEL) && !confirmed {
            confirmed = remove_strangers(&context, &shared).await;
        }
        for (id, _) in held_by(&state, shared.id) {
            let new = followed.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
            if new {
                let (followed, shared) = (Arc::clone(&followed), shared.clone());
                context.spawn("volume", async move {
                    Follower { id, shared, context: NodeContext::current() }.run().await;
                    followed.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                });
            }
        }
        // The sender lives as long as `shared`. A state that was missed is seen with the next.
        let changed = states.changed();
        if confirmed {
            changed.await.ok();
        } else {
            // Cancel safe: it only watches.
            shared.within(LOOK, changed).await;
        }
    }
}

/// The volumes of which a node is to hold a copy.
fn held_by(state: &ClusterState, node: NodeId) -> impl Iterator<Item = (VolumeId, &Volume)> {
    let held = state.volumes.values().filter(move |volume| volume.copies.contains_key(&node));
    held.map(|volume| (volume.id, volume))
}

/// Removes what is here of volumes that are no more; true once that is done.
async fn remove_strangers(context: &NodeContext, shared: &Shared) -> bool {
    let store = Arc::clone(&shared.platform.volumes);
    let Ok(here) = context.blocking(move || store.list()).await else { return true };
    if here.is_empty() {
        return true;
    }
    let Ok(state) = NodeHandle::new(shared.clone()).state_latest(WRITE_DEADLINE).await else { return false };
    // A node that was removed from its cluster keeps what it has: nobody may have another copy.
    if !state.nodes.contains_key(&shared.id) {
        return true;
    }
    for id in here.into_iter().filter(|id| state.volume_by_id(*id).is_none()) {
        remove(context, shared, id).await;
    }
    true
}

async fn remove(context: &NodeContext, shared: &Shared, id: VolumeId) {
    let store = Arc::clone(&shared.platform.volumes);
    match context.blocking(move || store.remove(id)).await {
        Ok(()) => tracing::info!(volume.id = id.0, "removed what was here of a volume that is no more"),
        Err(error) => {
            tracing::warn!(volume.id = id.0, err = %error, "cannot remove a volume that is no more")
        }
    }
}

/// The task of one volume.
struct Follower {
    id: VolumeId,
    shared: Shared,
    context: NodeContext,
}

impl Follower {
    async fn run(self) {
        let mut retry = RETRY_MIN;
        let mut states = self.shared.watch_state();
        loop {
            // Nothing is moved or removed by a state that is known to be wrong.
            self.shared.digests.wait_right().await;
            let state = Arc::clone(&states.borrow_and_update());
            let Some((_, volume)) = state.volume_by_id(self.id) else {
                if state.nodes.contains_key(&self.shared.id) {
                    remove(&self.context, &self.shared, self.id).await;
                }
                return;
            };
            if !volume.copies.contains_key(&self.shared.id) {
                return;
            }
            let is_primary = volume.primary == Some(self.shared.id);
            // What is still written to here is not touched before that ends.
            if !is_primary && self.is_mounted(&state) {
                self.idle(&state, LOOK, false).await;
                continue;
            }
            let began = self.shared.platform.clock.now();
            let mut demoted = true;
            let worked = if is_primary {
                self.publish(volume).await
            } else {
                match self.demote(volume).await {
                    Ok(()) => self.follow(volume).await,
                    Err(error) => {
                        demoted = false;
                        Err(error)
                    }
                }
            };
            if let Err(error) = &worked {
                tracing::warn!(volume.id = self.id.0, err = %error, "a volume is not as it should be here");
            }
            let took = self.shared.platform.clock.now().since(began);
            let told = self.tell(&state, demoted, worked.as_ref().err()).await;
            let wait = if worked.is_err() || !told {
                let wait = retry;
                retry = (retry * 2).min(RETRY_MAX);
                wait
            } else {
                retry = RETRY_MIN;
                // Of a large tree the looking takes a tenth of the time at most.
                if is_primary { VOLUME_SCAN.max(took * 9) } else { LOOK }
            };
            self.idle(&state, wait, is_primary || worked.is_err()).await;
        }
    }

    /// Waits for so long, or until the state says something else of the volume than `seen` does.
    async fn idle(&self, seen: &ClusterState, wait: Duration, ignores_versions: bool) {
        let of = |state: &ClusterState| {
            let (_, volume) = state.volume_by_id(self.id)?;
            let held = volume.copies.contains_key(&self.shared.id);
            let place = (volume.primary, volume.epoch, held, self.is_mounted(state));
            Some((place, volume.version.filter(|_| !ignores_versions)))
        };
        let mut states = self.shared.watch_state();
        let before = of(seen);
        let changed =
            async { while of(&states.borrow_and_update()) == before && states.changed().await.is_ok() {} };
        // Cancel safe: it only watches.
        self.shared.within(wait, changed).await;
    }

    /// Whether a replica on this node mounts it.
    fn is_mounted(&self, state: &ClusterState) -> bool {
        let Some((name, _)) = state.volume_by_id(self.id) else { return false };
        let mounts = |spec: &ServiceSpec| spec.mounted_volumes().any(|mounted| mounted == name);
        let here = state.replicas_on(self.shared.id);
        here.filter_map(|(_, row)| state.spec_of(row)).map(AsRef::as_ref).any(mounts)
    }

    async fn publish(&self, volume: &Volume) -> Result<(), VolumeError> {
        publish(&self.shared, &self.context, volume, false).await.map(drop)
    }

    /// Takes what was written here as primary out of the way of what is to be fetched.
    async fn demote(&self, volume: &Volume) -> Result<(), VolumeError> {
        let (store, id) = (Arc::clone(&self.shared.platform.volumes), self.id);
        let delivered = volume.copies.get(&self.shared.id).and_then(|copy| copy.version);
        let aside = self.context.blocking(move || store.demote(id, delivered)).await?;
        if let Some(path) = aside {
            tracing::warn!(
                volume.id = id.0,
                path = %path.display(),
                "another node took over the volume: what was written here and not delivered is kept aside"
            );
        }
        Ok(())
    }

    /// Fetches what is newer than what is here.
    async fn follow(&self, volume: &Volume) -> Result<(), VolumeError> {
        let (Some(primary), Some(newest)) = (volume.primary, volume.version) else { return Ok(()) };
        if self.held().await?.is_some_and(|held| held == newest) {
            return Ok(());
        }
        transfer::fetch(&self.shared, &self.context, self.id, primary, volume.epoch).await
    }

    async fn held(&self) -> Result<Option<VolumeVersion>, VolumeError> {
        let (store, id) = (Arc::clone(&self.shared.platform.volumes), self.id);
        self.context.blocking(move || store.held(id)).await
    }

    /// Tells the cluster what is here, unless it knows; false when it could not be told. Before it is
    /// `demoted` an earlier primary says nothing new of what it holds: what the cluster knows of that is what
    /// was delivered.
    async fn tell(&self, state: &ClusterState, demoted: bool, trouble: Option<&VolumeError>) -> bool {
        let Ok(held) = self.held().await else { return false };
        let mut trouble = trouble.map(ToString::to_string);
        if let Some(text) = &mut trouble {
            text::cut(text);
        }
        let Some((_, volume)) = state.volume_by_id(self.id) else { return true };
        let known = volume.copies.get(&self.shared.id);
        let version = if demoted { held } else { known.and_then(|known| known.version) };
        let copy = VolumeCopy { version, trouble };
        let is_primary = volume.primary == Some(self.shared.id);
        // A primary that took over holds what it took over until it has published anew.
        let same = known.is_some_and(|known| {
            known.trouble == copy.trouble
                && (known.version == copy.version || is_primary && version.is_none())
        });
        same || report(&self.shared, self.id, VolumeStatus { epoch: volume.epoch, copy }).await
    }
}

/// Looks for changes of the primary copy of a volume here, and publishes them. Answers the version that was
/// published, if there was a change.
pub(crate) async fn publish(
    shared: &Shared,
    context: &NodeContext,
    volume: &Volume,
    accept_deletes: bool,
) -> Result<Option<VolumeVersion>, VolumeError> {
    let (store, id, epoch) = (Arc::clone(&shared.platform.volumes), volume.id, volume.epoch);
    let (newest, now) = (volume.version.map(|version| version.id), shared.platform.clock.utc());
    let published = context.blocking(move || store.publish(id, epoch, newest, now, accept_deletes)).await?;
    if let Some(version) = published {
        tracing::debug!(volume.id = id.0, version = %version.id, files = version.files, "published");
    }
    Ok(published)
}

/// Tells the leader of one volume; true once it is in the log.
pub(crate) async fn report(shared: &Shared, id: VolumeId, status: VolumeStatus) -> bool {
    let statuses = BTreeMap::from([(id, status)]);
    match shared.status().leader {
        Some(leader) if leader == shared.id => {
            let command = Command::Volumes { node: shared.id, statuses };
            matches!(shared.propose_here(command).await, Ok((_, Outcome::Done)))
        }
        Some(leader) => {
            let Some(node) = shared.state().nodes.get(&shared.id).cloned() else { return false };
            let beat = Heartbeat {
                boot: 0,
                facts: node.facts,
                statuses: BTreeMap::new(),
                generation: 0,
                volumes: statuses,
                twice: BTreeMap::new(),
                digests: Vec::new(),
            };
            let request = Bytes::from(wire::encode(&beat));
            let call = shared.platform.transport.call(leader, Channel::Heartbeat, request, REPORT_DEADLINE);
            call.await.is_ok()
        }
        None => false,
    }
}
