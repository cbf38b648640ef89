//! Pulls an image: documents from the root down, then what is missing of its blobs, then unpacks.
//!
//! Everything is done under a lease named after the image, so that an interrupted pull's bytes
//! wait a day for the next try, and nothing stays of pulls that are given up. The lease is this
//! store's own: another process that pulls the same image cannot end it.

use std::sync::Mutex;
use std::time::Duration;

use blixard_core::image_reference::ImageReference;
use bytes::BytesMut;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::containerd::Containerd;
use super::content::{FRAME_BYTES_MAX, Ingest, Opened};
use super::manifest::{Descriptor, Document, Roots};
use super::registry::RegistrySession;
use super::tree::Documents;
use super::{ImageStore, digest_of};
use crate::platform::{OnProgress, PullProgress, RuntimeError};

/// How many blobs are fetched at once: more than one hides latency, many slow each other down.
const DOWNLOADS_MAX: usize = 3;
/// How often a broken download is taken up again before the pull fails.
const RESUMES_MAX: u32 = 3;
const RESUME_BACKOFF: Duration = Duration::from_millis(300);

impl ImageStore {
    /// Fetches an image and makes its name stand for it. Returns the root's digest.
    pub(super) async fn pull_image(
        &self,
        reference: &ImageReference,
        digest: Option<&str>,
        on_progress: OnProgress,
    ) -> Result<String, RuntimeError> {
        let by_digest = digest.is_some();
        let name = reference.to_string();
        let _alone = self.locks.hold(&name).await;
        let session = RegistrySession::new(&self.registries, reference)?.patient();
        let digest = match digest.or(reference.digest()) {
            Some(digest) => digest.to_owned(),
            None => session.digest().await?,
        };
        let hash = digest_of(name.as_bytes());
        let lease = format!("pull-{}-{}", &hash["sha256:".len()..][..16], self.instance);
        let containerd = self.containerd.with_lease(&lease).await?;

        let documents = Documents { containerd: &containerd, registry: Some(&session) };
        // What cannot run here shows in the documents, before the layers are fetched.
        let found = documents.walk(Roots::one(digest.clone(), false), &self.platform).await?;
        let blobs = found.manifest.blobs();
        // The sum was bounded when the manifest was read.
        let progress = Progress::new(blobs.iter().map(|blob| blob.size).sum(), on_progress);
        let mut downloads = Vec::with_capacity(blobs.len());
        for blob in blobs {
            downloads.push(self.fetch_blob(&containerd, &session, blob, &progress));
        }
        stream::iter(downloads).buffer_unordered(DOWNLOADS_MAX).try_collect::<()>().await?;

        let root = self.root(&containerd, &digest).await?;
        let tree = self.tree(&containerd, &root).await?;
        self.install(&containerd, &tree).await?;
        containerd.name_image(&name, &root, false, by_digest).await?;
        if let Err(err) = containerd.release(false).await {
            tracing::warn!(%err, "a pull's lease stays until it expires");
        }
        tracing::info!(image = name, digest, "image pulled");
        Ok(digest)
    }

    /// Describes a root document that is here.
    pub(super) async fn root(
        &self,
        containerd: &Containerd,
        digest: &str,
    ) -> Result<Descriptor, RuntimeError> {
        let bytes = containerd.read_document(digest).await?;
        Ok(Descriptor {
            media_type: Document::parse(&bytes)?.media_type().to_owned(),
            digest: digest.to_owned(),
            size: bytes.len() as u64,
            platform: None,
            annotations: None,
        })
    }

    async fn fetch_blob(
        &self,
        containerd: &Containerd,
        session: &RegistrySession,
        blob: &Descriptor,
        progress: &Progress,
    ) -> Result<(), RuntimeError> {
        let _alone = self.locks.hold(&blob.digest).await;
        let mut resumes = 0;
        let mut counted = Counted { progress, bytes: 0 };
        loop {
            match download(containerd, session, blob, &mut counted).await {
                Err(RuntimeError::Unavailable(err)) if resumes < RESUMES_MAX => {
                    tracing::debug!(blob = blob.digest, err, "download broke off, resuming");
                    tokio::time::sleep(RESUME_BACKOFF * 2_u32.pow(resumes)).await;
                    resumes += 1;
                }
                ended => return ended,
            }
        }
    }
}

/// Fetches a blob from where an earlier download of it ended.
async fn download(
    containerd: &Containerd,
    session: &RegistrySession,
    blob: &Descriptor,
    counted: &mut Counted<'_>,
) -> Result<(), RuntimeError> {
    let reference = format!("blixard-{}", blob.digest);
    let mut ingest = match containerd.open_blob(&reference, &blob.digest, blob.size).await? {
        Opened::Present => {
            counted.set(blob.size);
            return Ok(());
        }
        Opened::Writing(ingest) => ingest,
    };
    if ingest.offset() > blob.size {
        ingest.rewind();
    }
    counted.set(ingest.offset());
    if ingest.offset() < blob.size || blob.size == 0 {
        let mut source = session.blob(&blob.digest, ingest.offset()).await?;
        if source.offset != ingest.offset() {
            ingest.rewind();
            counted.set(0);
        }
        let mut frame = BytesMut::new();
        while let Some(chunk) = source.bytes.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(err) => {
                    flush(&mut ingest, &mut frame, counted).await?;
                    return Err(RuntimeError::Unavailable(err));
                }
            };
            if ingest.offset() + (frame.len() + chunk.len()) as u64 > blob.size {
                drop(ingest);
                containerd.abort(&reference).await?;
                return Err(RuntimeError::Invalid(format!(
                    "the registry sent more than the {} bytes of blob {}",
                    blob.size, blob.digest
                )));
            }
            frame.extend_from_slice(&chunk);
            if frame.len() >= FRAME_BYTES_MAX {
                flush(&mut ingest, &mut frame, counted).await?;
            }
        }
        flush(&mut ingest, &mut frame, counted).await?;
    }
    if ingest.offset() < blob.size {
        return Err(RuntimeError::Unavailable(format!(
            "the registry broke off blob {} after {} of {} bytes",
            blob.digest,
            ingest.offset(),
            blob.size
        )));
    }
    ingest.commit().await.map_err(|err| match err {
        RuntimeError::Invalid(reason) => RuntimeError::Invalid(format!(
            "the registry sent damaged content for blob {}: {reason}",
            blob.digest
        )),
        err => err,
    })
}

async fn flush(
    ingest: &mut Ingest,
    frame: &mut BytesMut,
    counted: &mut Counted<'_>,
) -> Result<(), RuntimeError> {
    while !frame.is_empty() {
        let length = frame.len().min(FRAME_BYTES_MAX);
        ingest.write(frame.split_to(length).freeze()).await?;
        counted.set(ingest.offset());
    }
    Ok(())
}

/// Adds up the parallel downloads of one pull.
struct Progress {
    bytes: Mutex<u64>,
    bytes_total: u64,
    on_progress: OnProgress,
}

impl Progress {
    fn new(bytes_total: u64, on_progress: OnProgress) -> Self {
        on_progress(PullProgress { bytes: 0, bytes_total });
        Self { bytes: Mutex::new(0), bytes_total, on_progress }
    }
}

/// One blob's part in the progress.
struct Counted<'a> {
    progress: &'a Progress,
    bytes: u64,
}

impl Counted<'_> {
    /// Says how much of the blob is here; less than before when it starts over.
    fn set(&mut self, bytes: u64) {
        let mut sum = self.progress.bytes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *sum = sum.saturating_sub(self.bytes) + bytes;
        self.bytes = bytes;
        let bytes_total = self.progress.bytes_total;
        (self.progress.on_progress)(PullProgress { bytes: (*sum).min(bytes_total), bytes_total });
    }
}
