//! Unpacks an image's layers into snapshots, one on another, named by their chain ids.
//!
//! Several images, and several calls at once, share layers: whoever commits a chain id first wins,
//! the others use what is there.

use std::collections::HashMap;
use std::time::Duration;

use blixard_core::limits::{
    IMAGE_RATIO_FREE_BYTES, IMAGE_RATIO_MAX, IMAGE_UNPACKED_BYTES_MAX, IMAGE_UNPACKED_FILES_MAX,
};
use bytes::{Bytes, BytesMut};
use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, UsageRequest,
};
use containerd_client::types::{Descriptor as LayerDescriptor, Mount};
use futures_util::TryStreamExt as _;
use tokio::io::AsyncReadExt as _;
use tokio_util::io::StreamReader;
use tonic::{Code, Status};

use super::compression::{Compression, Decompressed};
use super::containerd::{Containerd, SNAPSHOTTER, fault, reason};
use super::content::{FRAME_BYTES_MAX, Opened};
use super::manifest::{Descriptor, OCI_LAYER};
use super::{ImageStore, tree::Tree};
use crate::platform::RuntimeError;

/// How long unpacking one layer may take.
const APPLY_DEADLINE: Duration = Duration::from_secs(1800);
/// How often it is looked how large a layer has become that is being unpacked.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// What unpacked layers take on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Unpacked {
    pub(super) bytes: u64,
    pub(super) files: u64,
}

impl Unpacked {
    fn with(self, more: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(more.bytes), files: self.files.saturating_add(more.files) }
    }

    /// Whether so much, of which the layer itself has `own` bytes, is within what an image may be.
    fn check(self, layer: &Descriptor, own: u64) -> Result<(), RuntimeError> {
        let digest = &layer.digest;
        let why = if self.bytes > IMAGE_UNPACKED_BYTES_MAX {
            format!("with it the image has more than the {IMAGE_UNPACKED_BYTES_MAX} bytes that work")
        } else if self.files > IMAGE_UNPACKED_FILES_MAX {
            format!("with it the image has more than the {IMAGE_UNPACKED_FILES_MAX} files that work")
        } else if own > IMAGE_RATIO_FREE_BYTES && own / IMAGE_RATIO_MAX > layer.size {
            format!("it unpacks to more than {IMAGE_RATIO_MAX} times its {} bytes", layer.size)
        } else {
            return Ok(());
        };
        Err(RuntimeError::Invalid(format!("layer {digest} is too large unpacked: {why}")))
    }
}

/// A layer about to be unpacked.
struct Applied<'a> {
    layer: &'a Descriptor,
    /// The digest of its plain form.
    diff: &'a str,
    /// What containerd is given.
    plain: LayerDescriptor,
    /// The snapshot it is unpacked into.
    key: &'a str,
    /// What lies below it.
    below: Unpacked,
}

impl ImageStore {
    /// Unpacks what is not unpacked yet. All of it is kept by the connection's lease.
    pub(super) async fn unpack(&self, containerd: &Containerd, tree: &Tree) -> Result<(), RuntimeError> {
        if let Some(top) = tree.chains.last()
            && containerd.has_snapshot(top).await?
        {
            return containerd.keep(&format!("snapshots/{SNAPSHOTTER}"), top).await;
        }
        let diffs = &tree.found.config.diff_ids;
        let mut parent = "";
        let mut unpacked = Unpacked::default();
        for ((layer, diff), chain) in tree.found.manifest.layers.iter().zip(diffs).zip(&tree.chains) {
            let _alone = self.locks.hold(chain).await;
            if containerd.has_snapshot(chain).await? {
                containerd.keep(&format!("snapshots/{SNAPSHOTTER}"), chain).await?;
            } else {
                containerd.unpack_layer(layer, diff, parent, chain, unpacked).await?;
            }
            unpacked = unpacked.with(containerd.snapshot_usage(chain).await?);
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
        below: Unpacked,
    ) -> Result<(), RuntimeError> {
        let plain = self.plain(layer, diff, below).await?;
        // The lease's id makes the key unique among those who unpack the same layer now.
        let key = format!("extract-{} {chain}", self.lease_id());
        let mounts = self.prepare(&key, parent).await?;
        let unpacked = async {
            self.apply(Applied { layer, diff, plain, key: &key, below }, mounts).await?;
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

    /// What containerd can unpack of a layer: the layer itself, told by its first bytes, or what it is
    /// the compressed form of, which is what the configuration's digest names.
    async fn plain(
        &self,
        layer: &Descriptor,
        diff: &str,
        below: Unpacked,
    ) -> Result<LayerDescriptor, RuntimeError> {
        let described = |suffix: &str, digest: &str, size: u64| LayerDescriptor {
            media_type: format!("{OCI_LAYER}{suffix}"),
            digest: digest.to_owned(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            annotations: HashMap::new(),
        };
        if layer.media_type.ends_with("+encrypted") {
            return Err(RuntimeError::Invalid(format!(
                "layer {} is encrypted: push the image unencrypted",
                layer.digest
            )));
        }
        match self.compression(&layer.digest).await? {
            Compression::Plain => Ok(described("", &layer.digest, layer.size)),
            Compression::Gzip => Ok(described("+gzip", &layer.digest, layer.size)),
            Compression::Zstd => Ok(described("+zstd", &layer.digest, layer.size)),
            Compression::Xz => {
                let size = self.decompress(layer, diff, below).await?;
                Ok(described("", diff, size))
            }
            Compression::Unknown(name) => Err(RuntimeError::Invalid(format!(
                "layer {} is compressed with {name}: push the image with layers plain, or compressed with gzip, zstd or xz",
                layer.digest
            ))),
        }
    }

    /// Writes what a layer is the compressed form of into the content store, where the lease keeps it.
    /// Its size in bytes.
    async fn decompress(&self, layer: &Descriptor, diff: &str, below: Unpacked) -> Result<u64, RuntimeError> {
        let reference = format!("blixard-plain-{diff}");
        let mut ingest = match self.open_blob(&reference, diff, 0).await? {
            Opened::Present => return Ok(self.blob(diff).await?.map_or(0, |info| info.size.unsigned_abs())),
            Opened::Writing(ingest) => ingest,
        };
        ingest.rewind();
        let blob = self.read_blob(&layer.digest, 0, 0).await?;
        let blob = blob.map_ok(|frame| Bytes::from(frame.data)).map_err(std::io::Error::other);
        let source = Box::pin(StreamReader::new(blob));
        let mut source = Decompressed::new(Compression::Xz, source);
        let written: Result<(), RuntimeError> = async {
            loop {
                let mut frame = BytesMut::with_capacity(FRAME_BYTES_MAX);
                while frame.len() < FRAME_BYTES_MAX
                    && source.read_buf(&mut frame).await.map_err(|err| {
                        RuntimeError::Invalid(format!("layer {} is damaged: {err}", layer.digest))
                    })? > 0
                {}
                if frame.is_empty() {
                    return Ok(());
                }
                ingest.write(frame.freeze()).await?;
                below.with(Unpacked { bytes: ingest.offset(), files: 0 }).check(layer, ingest.offset())?;
            }
        }
        .await;
        let size = ingest.offset();
        if let Err(err) = written {
            drop(ingest);
            self.abort(&reference).await?;
            return Err(err);
        }
        ingest.commit().await.map_err(|err| match err {
            RuntimeError::Invalid(_) => RuntimeError::Invalid(format!(
                "layer {} does not unpack to {diff}, which the image's configuration names",
                layer.digest
            )),
            err => err,
        })?;
        Ok(size)
    }

    /// Unpacks a layer. Gives up when it becomes larger than what an image may be.
    async fn apply(&self, applied: Applied<'_>, mounts: Vec<Mount>) -> Result<(), RuntimeError> {
        let Applied { layer, diff, plain, key, below } = applied;
        let request = ApplyRequest { diff: Some(plain), mounts, payloads: HashMap::new(), sync_fs: false };
        let request = self.request_within(request, APPLY_DEADLINE);
        let mut client = DiffClient::new(self.channel.clone());
        let mut answer = std::pin::pin!(client.apply(request));
        let answer = loop {
            match tokio::time::timeout(WATCH_INTERVAL, &mut answer).await {
                Ok(answer) => break answer,
                Err(_) => {
                    let own = self.snapshot_usage(key).await.unwrap_or_default();
                    below.with(own).check(layer, own.bytes)?;
                }
            }
        };
        let applied = answer.map_err(|status| apply_fault(layer, &status))?.into_inner().applied;
        match applied {
            Some(applied) if applied.digest == diff => {}
            applied => {
                return Err(RuntimeError::Invalid(format!(
                    "layer {} unpacks to {}, the image's configuration says {diff}",
                    layer.digest,
                    applied.map(|applied| applied.digest).unwrap_or_default()
                )));
            }
        }
        let own = self.snapshot_usage(key).await?;
        below.with(own).check(layer, own.bytes)
    }

    /// What a snapshot takes on disk without those below it.
    pub(super) async fn snapshot_usage(&self, key: &str) -> Result<Unpacked, RuntimeError> {
        let request = UsageRequest { snapshotter: SNAPSHOTTER.into(), key: key.to_owned() };
        let usage = self.snapshots().usage(self.request(request)).await;
        let usage = usage.map_err(|status| fault("measure a snapshot", &status))?.into_inner();
        Ok(Unpacked { bytes: usage.size.unsigned_abs(), files: usage.inodes.unsigned_abs() })
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
    // What it does with a layer of which one entry removes what another is below of.
    let whiteouts = (reason.contains("mkparent") && reason.contains("not a directory"))
        || reason.contains("failed to convert whiteout file");
    // It unpacks a layer by itself, so that hard links reach nothing below.
    let lower = reason.split(' ').any(|word| word == "link") && reason.contains("no such file or directory");
    let odd = if whiteouts {
        Some("the layer removes a path and changes what is below it at once")
    } else {
        lower.then_some("the layer has a hard link to a file that is not in the layer itself")
    };
    if let Some(odd) = odd {
        return RuntimeError::Invalid(format!(
            "{text}: {odd}, which containerd cannot unpack: build the image anew, or with its layers squashed"
        ));
    }
    let machine = ["no space left", "quota exceeded", "input/output error", "read-only file system", "mount"];
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::NotFound => {
            RuntimeError::Unavailable(text)
        }
        _ if machine.iter().any(|words| reason.contains(words)) => RuntimeError::Unavailable(text),
        _ => RuntimeError::Invalid(text),
    }
}
