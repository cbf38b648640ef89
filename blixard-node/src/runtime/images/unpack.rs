//! Unpacks an image's layers into snapshots, one on another, named by their chain ids.
//!
//! Several images, and several calls at once, share layers: whoever commits a chain id first wins,
//! the others use what is there.

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::types::{Descriptor as LayerDescriptor, Mount};
use tonic::{Code, Status};

use super::containerd::{Containerd, SNAPSHOTTER, fault, reason};
use super::manifest::Descriptor;
use super::{ImageStore, tree::Tree};
use crate::platform::RuntimeError;

/// How long unpacking one layer may take.
const APPLY_DEADLINE: Duration = Duration::from_secs(1800);

impl ImageStore {
    /// Unpacks what is not unpacked yet. All of it is kept by the connection's lease.
    pub(super) async fn unpack(&self, containerd: &Containerd, tree: &Tree) -> Result<(), RuntimeError> {
        if let Some(top) = tree.chains.last()
            && containerd.has_snapshot(top).await?
        {
            return containerd.keep(&format!("snapshots/{SNAPSHOTTER}"), top).await;
        }
        let diffs = tree.config.rootfs().diff_ids();
        let mut parent = "";
        for ((layer, diff), chain) in tree.manifest.layers.iter().zip(diffs).zip(&tree.chains) {
            let _alone = self.locks.hold(chain).await;
            if containerd.has_snapshot(chain).await? {
                containerd.keep(&format!("snapshots/{SNAPSHOTTER}"), chain).await?;
            } else {
                containerd.unpack_layer(layer, diff, parent, chain).await?;
            }
            parent = chain;
        }
        Ok(())
    }
}

impl Containerd {
    fn snapshots(&self) -> SnapshotsClient<tonic::transport::Channel> {
        SnapshotsClient::new(self.channel.clone())
    }

    /// Whether a snapshot is here.
    pub(super) async fn has_snapshot(&self, name: &str) -> Result<bool, RuntimeError> {
        let request = StatSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key: name.to_owned() };
        match self.snapshots().stat(self.request(request)).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(fault("look up a snapshot", &status)),
        }
    }

    async fn unpack_layer(
        &self,
        layer: &Descriptor,
        diff: &str,
        parent: &str,
        chain: &str,
    ) -> Result<(), RuntimeError> {
        // The lease's id makes the key unique among those who unpack the same layer now.
        let key = format!("extract-{} {chain}", self.lease_id());
        let mounts = self.prepare(&key, parent).await?;
        let unpacked = async {
            self.apply(layer, diff, mounts).await?;
            self.commit_snapshot(&key, chain).await
        };
        let unpacked = unpacked.await;
        if !matches!(unpacked, Ok(true)) {
            self.remove_snapshot(&key).await?;
        }
        unpacked.map(|_| ())
    }

    async fn prepare(&self, key: &str, parent: &str) -> Result<Vec<Mount>, RuntimeError> {
        let request = || {
            self.request(PrepareSnapshotRequest {
                snapshotter: SNAPSHOTTER.into(),
                key: key.to_owned(),
                parent: parent.to_owned(),
                labels: HashMap::new(),
            })
        };
        let mut prepared = self.snapshots().prepare(request()).await;
        if prepared.as_ref().is_err_and(|status| status.code() == Code::AlreadyExists) {
            // Left by a pull that was interrupted.
            self.remove_snapshot(key).await?;
            prepared = self.snapshots().prepare(request()).await;
        }
        Ok(prepared.map_err(|status| fault("prepare a snapshot", &status))?.into_inner().mounts)
    }

    async fn apply(&self, layer: &Descriptor, diff: &str, mounts: Vec<Mount>) -> Result<(), RuntimeError> {
        let descriptor = LayerDescriptor {
            media_type: layer.media_type.clone(),
            digest: layer.digest.clone(),
            size: i64::try_from(layer.size).unwrap_or(i64::MAX),
            annotations: HashMap::new(),
        };
        let request =
            ApplyRequest { diff: Some(descriptor), mounts, payloads: HashMap::new(), sync_fs: false };
        let request = self.request_within(request, APPLY_DEADLINE);
        let answer = DiffClient::new(self.channel.clone()).apply(request).await;
        let applied = answer.map_err(|status| apply_fault(layer, &status))?.into_inner().applied;
        match applied {
            Some(applied) if applied.digest == diff => Ok(()),
            applied => Err(RuntimeError::Invalid(format!(
                "layer {} unpacks to {}, the image's configuration says {diff}",
                layer.digest,
                applied.map(|applied| applied.digest).unwrap_or_default()
            ))),
        }
    }

    /// Names an unpacked layer; false when another was faster.
    async fn commit_snapshot(&self, key: &str, chain: &str) -> Result<bool, RuntimeError> {
        let request = CommitSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            name: chain.to_owned(),
            key: key.to_owned(),
            labels: HashMap::new(),
        };
        match self.snapshots().commit(self.request(request)).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::AlreadyExists => Ok(false),
            Err(status) => Err(fault("commit a snapshot", &status)),
        }
    }

    async fn remove_snapshot(&self, key: &str) -> Result<(), RuntimeError> {
        let request = RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key: key.to_owned() };
        match self.snapshots().remove(self.request(request)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(fault("remove a snapshot", &status)),
        }
    }
}

/// containerd reports every fault of unpacking as unknown. A machine in trouble is told by the
/// system's words; what remains is a layer that cannot be unpacked.
fn apply_fault(layer: &Descriptor, status: &Status) -> RuntimeError {
    let reason = reason(status);
    let text = format!("cannot unpack layer {} ({}): {reason}", layer.digest, layer.media_type);
    let machine = ["no space left", "quota exceeded", "input/output error", "read-only file system", "mount"];
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::NotFound => {
            RuntimeError::Unavailable(text)
        }
        _ if machine.iter().any(|words| reason.contains(words)) => RuntimeError::Unavailable(text),
        _ => RuntimeError::Invalid(text),
    }
}
