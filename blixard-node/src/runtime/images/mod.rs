//! Images already in containerd, by reference: what a container starts from.

use std::pin::Pin;

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{GetImageRequest, ReadContentRequest};
use containerd_client::tonic::transport::Channel;
use oci_spec::image::{ImageConfiguration, ImageIndex, ImageManifest};
use sha2::{Digest, Sha256};
use tokio::io::AsyncRead;

use super::client::{Client, failed};
use crate::platform::{ImageInfo, OnProgress, RuntimeError};

/// How registries are reached.
#[derive(Debug, Clone, Default)]
pub struct Registries {}

/// The images in one containerd namespace.
pub struct ImageStore {
    client: Client,
}

/// What a container of an image starts from.
#[derive(Debug, Clone)]
pub struct ImageRootfs {
    /// The snapshot to prepare the container's from.
    pub chain_id: String,
    /// The image's configuration.
    pub config: ImageConfiguration,
    /// The digest of this platform's manifest.
    pub manifest_digest: String,
    /// The full reference.
    pub reference: String,
}

fn registry() -> RuntimeError {
    RuntimeError::Unavailable("this build reaches no registries".to_owned())
}

#[expect(missing_docs, reason = "as in the seam")]
impl ImageStore {
    pub fn new(channel: Channel, namespace: String, _registries: Registries) -> Result<Self, RuntimeError> {
        Ok(Self { client: Client::new(channel, &namespace)? })
    }

    pub async fn resolve(&self, _reference: &str) -> Result<String, RuntimeError> {
        Err(registry())
    }

    pub async fn has_image(&self, reference: &str, digest: Option<&str>) -> Result<bool, RuntimeError> {
        match self.rootfs(reference, digest).await {
            Err(RuntimeError::NotFound(_)) => Ok(false),
            result => result.map(|_| true),
        }
    }

    pub async fn pull(
        &self,
        _reference: &str,
        _digest: Option<&str>,
        _progress: OnProgress,
    ) -> Result<String, RuntimeError> {
        Err(registry())
    }

    pub async fn import(
        &self,
        _archive: Pin<Box<dyn AsyncRead + Send>>,
    ) -> Result<Vec<ImageInfo>, RuntimeError> {
        Err(registry())
    }

    pub async fn export(
        &self,
        _reference: &str,
        _digest: Option<&str>,
    ) -> Result<Pin<Box<dyn AsyncRead + Send>>, RuntimeError> {
        Err(registry())
    }

    pub async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        Err(registry())
    }

    pub async fn remove_all(&self) -> Result<(), RuntimeError> {
        Err(registry())
    }

    async fn blob(&self, digest: &str) -> Result<Vec<u8>, RuntimeError> {
        let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        let mut content = ContentClient::new(self.client.channel());
        let mut stream = content
            .read(self.client.request(request))
            .await
            .map_err(|status| failed("read a blob", &status))?
            .into_inner();
        let mut bytes = Vec::new();
        while let Some(part) = stream.message().await.map_err(|status| failed("read a blob", &status))? {
            bytes.extend(part.data);
        }
        Ok(bytes)
    }

    pub async fn rootfs(&self, reference: &str, _digest: Option<&str>) -> Result<ImageRootfs, RuntimeError> {
        let request = self.client.request(GetImageRequest { name: reference.to_owned() });
        let answer = ImagesClient::new(self.client.channel())
            .get(request)
            .await
            .map_err(|status| failed(&format!("find image {reference}"), &status))?;
        let target = answer.into_inner().image.and_then(|image| image.target).unwrap_or_default();
        let mut digest = target.digest;
        let mut manifest = self.blob(&digest).await?;
        if let Ok(index) = serde_json::from_slice::<ImageIndex>(&manifest) {
            if let Some(first) = index.manifests().first() {
                digest = first.digest().to_string();
                manifest = self.blob(&digest).await?;
            }
        }
        let bad = |error: serde_json::Error| RuntimeError::Invalid(error.to_string());
        let manifest: ImageManifest = serde_json::from_slice(&manifest).map_err(bad)?;
        let config = self.blob(manifest.config().digest().as_ref()).await?;
        let config: ImageConfiguration = serde_json::from_slice(&config).map_err(bad)?;
        let mut chain = String::new();
        for diff in config.rootfs().diff_ids() {
            chain = if chain.is_empty() {
                diff.to_string()
            } else {
                format!("sha256:{}", hex::encode(Sha256::digest(format!("{chain} {diff}"))))
            };
        }
        Ok(ImageRootfs { chain_id: chain, config, manifest_digest: digest, reference: reference.to_owned() })
    }
}
