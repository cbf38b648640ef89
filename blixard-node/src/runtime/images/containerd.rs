//! containerd's services as the image store uses them: requests in one namespace, perhaps under a
//! lease that keeps what they make from garbage collection.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use blixard_core::time::UtcMs;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{
    AddResourceRequest, CreateImageRequest, CreateRequest, DeleteImageRequest, DeleteRequest,
    GetImageRequest, Image, ListImagesRequest, ListRequest, Resource, UpdateImageRequest,
};
use containerd_client::types::Descriptor as ImageTarget;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::manifest::Descriptor;
use crate::platform::RuntimeError;

/// The snapshotter that images are unpacked into and containers start from.
pub const SNAPSHOTTER: &str = "overlayfs";

/// How long a call to containerd may take. Generous: a loaded disk syncs slowly.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// How long an unfinished pull's blobs are kept for the next try.
const LEASE_TTL: Duration = Duration::from_secs(24 * 3600);
/// A lease this old is replaced rather than used again, so that it does not end during a pull.
const LEASE_REUSE_MAX: Duration = Duration::from_secs(12 * 3600);
/// Every lease of ours starts so.
pub(super) const LEASE_PREFIX: &str = "blixard-";

/// The label of an image that somebody imported, rather than that a registry gave.
const IMPORTED: &str = "blixard.imported";

/// An image's name and what it stands for.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) root: Descriptor,
    /// Whether somebody imported it under this name: then no registry is asked what the name means.
    pub(super) imported: bool,
}

/// A connection to containerd in one namespace.
#[derive(Clone)]
pub(super) struct Containerd {
    pub(super) channel: Channel,
    namespace: MetadataValue<Ascii>,
    lease: Option<(String, MetadataValue<Ascii>)>,
}

impl Containerd {
    /// # Errors
    /// `Invalid` when the namespace has characters that containerd does not allow.
    pub(super) fn new(channel: Channel, namespace: &str) -> Result<Self, RuntimeError> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let namespace: MetadataValue<Ascii> = Some(namespace)
            .filter(|name| !name.is_empty() && name.len() <= 76 && name.bytes().all(fits))
            .and_then(|name| name.parse().ok())
            .ok_or_else(|| RuntimeError::Invalid(format!("{namespace:?} is no containerd namespace")))?;
        Ok(Self { channel, namespace, lease: None })
    }

    /// A request in the namespace, under the lease, with the usual deadline.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        self.request_within(message, CALL_DEADLINE)
    }

    pub(super) fn request_within<T>(&self, message: T, deadline: Duration) -> Request<T> {
        let mut request = self.stream_request(message);
        request.set_timeout(deadline);
        request
    }

    /// A request without a deadline, for streams.
    pub(super) fn stream_request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        if let Some((_, lease)) = &self.lease {
            request.metadata_mut().insert("containerd-lease", lease.clone());
        }
        request
    }

    /// The id of the lease that requests are made under.
    pub(super) fn lease_id(&self) -> &str {
        self.lease.as_ref().map_or("", |(id, _)| id)
    }

    /// This connection under a lease of that id, made when there is none.
    pub(super) async fn with_lease(&self, id: &str) -> Result<Self, RuntimeError> {
        let id = format!("{LEASE_PREFIX}{id}");
        let value = id.parse().map_err(|_| RuntimeError::Invalid(format!("{id:?} is no lease id")))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if let Some(lease) = self.leases().await?.into_iter().find(|lease| lease.id == id) {
            let created = lease.created_at.map_or(0, |at| u64::try_from(at.seconds).unwrap_or(0));
            if now.as_secs().saturating_sub(created) > LEASE_REUSE_MAX.as_secs() {
                self.delete_lease(&id, true).await?;
            }
        }
        let expire = UtcMs(u64::try_from((now + LEASE_TTL).as_millis()).unwrap_or(u64::MAX)).to_string();
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), expire)]);
        let request = self.request(CreateRequest { id: id.clone(), labels });
        match LeasesClient::new(self.channel.clone()).create(request).await {
            Ok(_) => {}
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => return Err(fault("create a lease", &status)),
        }
        Ok(Self { lease: Some((id, value)), ..self.clone() })
    }

    /// Ends this connection's lease. With `collect`, waits until what it alone kept is gone.
    pub(super) async fn release(&self, collect: bool) -> Result<(), RuntimeError> {
        let Some((id, _)) = &self.lease else { return Ok(()) };
        Self { lease: None, ..self.clone() }.delete_lease(id, collect).await
    }

    pub(super) async fn delete_lease(&self, id: &str, collect: bool) -> Result<(), RuntimeError> {
        let request = self.request(DeleteRequest { id: id.to_owned(), sync: collect });
        match LeasesClient::new(self.channel.clone()).delete(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(fault("delete a lease", &status)),
        }
    }

    pub(super) async fn leases(&self) -> Result<Vec<containerd_client::services::v1::Lease>, RuntimeError> {
        let request = self.request(ListRequest { filters: Vec::new() });
        let answer = LeasesClient::new(self.channel.clone()).list(request).await;
        Ok(answer.map_err(|status| fault("list leases", &status))?.into_inner().leases)
    }

    /// Keeps something that is already there for as long as the lease: `kind` is `content` or
    /// `snapshots/` and the snapshotter.
    pub(super) async fn keep(&self, kind: &str, id: &str) -> Result<(), RuntimeError> {
        let Some((lease, _)) = &self.lease else { return Ok(()) };
        let resource = Some(Resource { id: id.to_owned(), r#type: kind.to_owned() });
        let request = self.request(AddResourceRequest { id: lease.clone(), resource });
        match LeasesClient::new(self.channel.clone()).add_resource(request).await {
            Ok(_) => Ok(()),
            Err(status) => Err(fault("keep content", &status)),
        }
    }

    /// The image of a name; none when there is none.
    pub(super) async fn image(&self, name: &str) -> Result<Option<Named>, RuntimeError> {
        let request = self.request(GetImageRequest { name: name.to_owned() });
        match ImagesClient::new(self.channel.clone()).get(request).await {
            Ok(answer) => Ok(answer.into_inner().image.and_then(named)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(fault("look up an image", &status)),
        }
    }

    /// Every image, by name.
    pub(super) async fn images(&self) -> Result<Vec<Named>, RuntimeError> {
        let request = self.request(ListImagesRequest { filters: Vec::new() });
        let answer = ImagesClient::new(self.channel.clone()).list(request).await;
        let images = answer.map_err(|status| fault("list images", &status))?.into_inner().images;
        let mut images: Vec<Named> = images.into_iter().filter_map(named).collect();
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    async fn set_image(&self, name: &str, root: &Descriptor, imported: bool) -> Result<(), RuntimeError> {
        let target = ImageTarget {
            media_type: root.media_type.clone(),
            digest: root.digest.clone(),
            size: i64::try_from(root.size).unwrap_or(i64::MAX),
            annotations: HashMap::new(),
        };
        let labels =
            if imported { [(IMPORTED.to_owned(), "true".to_owned())].into() } else { HashMap::new() };
        let image = Image { name: name.to_owned(), target: Some(target), labels, ..Image::default() };
        let mut client = ImagesClient::new(self.channel.clone());
        let create = CreateImageRequest { image: Some(image.clone()), source_date_epoch: None };
        match client.create(self.request(create)).await {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => return Err(fault("name an image", &status)),
        }
        let update_mask = Some(prost_types::FieldMask { paths: vec!["target".into(), "labels".into()] });
        let update = UpdateImageRequest { image: Some(image), update_mask, source_date_epoch: None };
        client.update(self.request(update)).await.map_err(|status| fault("name an image", &status))?;
        Ok(())
    }

    /// Gives an image its name. What the name stood for until now stays, under its digest as well: a
    /// service may run it. With `yields` a name that somebody imported stays as it is, and the image
    /// is here under its digest alone.
    pub(super) async fn name_image(
        &self,
        name: &str,
        root: &Descriptor,
        imported: bool,
        yields: bool,
    ) -> Result<(), RuntimeError> {
        let by_digest = |digest: &str| format!("{}@{digest}", name.split('@').next().unwrap_or(name));
        match self.image(name).await?.filter(|before| before.root.digest != root.digest) {
            Some(before) if before.imported && yields => {
                return self.set_image(&by_digest(&root.digest), root, imported).await;
            }
            Some(before) => {
                self.set_image(&by_digest(&before.root.digest), &before.root, before.imported).await?;
            }
            None => {}
        }
        self.set_image(name, root, imported).await
    }

    pub(super) async fn delete_image(&self, name: &str) -> Result<(), RuntimeError> {
        let delete = DeleteImageRequest { name: name.to_owned(), sync: false, target: None };
        match ImagesClient::new(self.channel.clone()).delete(self.request(delete)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(fault("remove an image", &status)),
        }
    }
}

fn named(image: Image) -> Option<Named> {
    let target = image.target?;
    let root = Descriptor {
        media_type: target.media_type,
        digest: target.digest,
        size: u64::try_from(target.size).unwrap_or(0),
        platform: None,
        annotations: None,
    };
    Some(Named { name: image.name, root, imported: image.labels.contains_key(IMPORTED) })
}

/// An answer of containerd as the error it means to callers.
pub(super) fn fault(doing: &str, status: &Status) -> RuntimeError {
    let text = format!("containerd cannot {doing}: {}", reason(status));
    match status.code() {
        Code::NotFound => RuntimeError::NotFound(text),
        Code::InvalidArgument | Code::Unimplemented => RuntimeError::Invalid(text),
        _ => RuntimeError::Unavailable(text),
    }
}

/// What a status says, with its causes.
pub(super) fn reason(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
