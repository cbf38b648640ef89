//! Writes one image as an OCI archive: the documents from its root to this platform's manifest,
//! and that manifest's blobs. The root is written whole, so the image keeps its digest even where
//! other platforms' manifests are left out.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use blixard_core::image_reference::ImageReference;
use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWriteExt as _, DuplexStream, ReadBuf};
use tokio::task::JoinHandle;

use super::ImageStore;
use super::containerd::{Containerd, fault};
use super::content::FRAME_BYTES_MAX;
use super::import::PULLED;
use super::manifest::{Descriptor, Index, OCI_INDEX, Platform};
use super::tree::Tree;
use crate::platform::RuntimeError;

const BLOCK_BYTES: u64 = 512;

impl ImageStore {
    pub(super) async fn export_image(
        &self,
        reference: &ImageReference,
        root: &Descriptor,
    ) -> Result<Pin<Box<dyn AsyncRead + Send>>, RuntimeError> {
        let tree = self.tree(&self.containerd, root).await?;
        let mut blobs = Vec::new();
        for digest in tree.digests() {
            let info = self.containerd.blob(digest).await?.ok_or_else(|| {
                RuntimeError::NotFound(format!("image {reference} is not here in full: pull it again"))
            })?;
            blobs.push((digest.to_owned(), u64::try_from(info.size).unwrap_or(0)));
        }
        let pulled = !self.is_imported(reference, root).await?;
        let index = layout_index(reference, root, &tree, pulled, &self.platform);
        let containerd = self.containerd.clone();
        let (reader, mut writer) = tokio::io::duplex(FRAME_BYTES_MAX);
        let task = tokio::spawn(async move { write(&containerd, &index, &blobs, &mut writer).await });
        Ok(Box::pin(Export { reader, task, ended: false }))
    }
}

/// The layout's `index.json`, which names the image. A root that is a manifest runs on machines like
/// this one, whatever its configuration says: that was looked at when it came here.
fn layout_index(
    reference: &ImageReference,
    root: &Descriptor,
    tree: &Tree,
    pulled: bool,
    platform: &Platform,
) -> Vec<u8> {
    let mut annotations = BTreeMap::from([("io.containerd.image.name".to_owned(), reference.to_string())]);
    if let Some(tag) = reference.tag() {
        annotations.insert("org.opencontainers.image.ref.name".to_owned(), tag.to_owned());
    }
    if pulled {
        annotations.insert(PULLED.to_owned(), "true".to_owned());
    }
    let platform = (tree.found.trail.len() == 1).then(|| platform.clone());
    let root = Descriptor { annotations: Some(annotations), platform, ..root.clone() };
    let index = Index { schema_version: 2, media_type: Some(OCI_INDEX.into()), manifests: vec![root] };
    serde_json::to_vec(&index).expect("an index has only strings and numbers")
}

async fn write(
    containerd: &Containerd,
    index: &[u8],
    blobs: &[(String, u64)],
    writer: &mut DuplexStream,
) -> io::Result<()> {
    for (path, content) in
        [("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.as_slice()), ("index.json", index)]
    {
        writer.write_all(&header(path, content.len() as u64)?).await?;
        writer.write_all(content).await?;
        writer.write_all(&padding(content.len() as u64)).await?;
    }
    for (digest, size) in blobs {
        let path = format!("blobs/{}", digest.replacen(':', "/", 1));
        writer.write_all(&header(&path, *size)?).await?;
        let mut stream = containerd.read_blob(digest, 0, 0).await.map_err(io::Error::other)?;
        let mut written = 0;
        while let Some(frame) =
            stream.message().await.map_err(|status| io::Error::other(fault("read a blob", &status)))?
        {
            writer.write_all(&frame.data).await?;
            written += frame.data.len() as u64;
        }
        if written != *size {
            return Err(io::Error::other(format!("blob {digest} gave {written} of {size} bytes")));
        }
        writer.write_all(&padding(*size)).await?;
    }
    writer.write_all(&[0; 2 * BLOCK_BYTES as usize]).await?;
    writer.shutdown().await
}

fn header(path: &str, size: u64) -> io::Result<[u8; BLOCK_BYTES as usize]> {
    let mut header = tar::Header::new_gnu();
    header.set_path(path)?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Ok(*header.as_bytes())
}

fn padding(size: u64) -> Vec<u8> {
    vec![0; usize::try_from(size.wrapping_neg() % BLOCK_BYTES).expect("less than a block")]
}

/// The archive as it is written. It ends well only when the writer did.
struct Export {
    reader: DuplexStream,
    task: JoinHandle<io::Result<()>>,
    ended: bool,
}

impl AsyncRead for Export {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ended || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.reader).poll_read(cx, buf))?;
        if buf.filled().len() == before {
            let written = ready!(this.task.poll_unpin(cx));
            this.ended = true;
            return Poll::Ready(written.unwrap_or_else(|err| Err(io::Error::other(err))));
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        self.task.abort();
    }
}
