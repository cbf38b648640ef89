//! Gets an image onto this node: it is here, or another member has it, or its registry does.

use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::id::ReplicaId;
use blixard_core::limits::{IMAGE_ASK_DEADLINE, PULL_STALL, WRITE_DEADLINE};
use tokio::io::AsyncRead;
use tokio::sync::Semaphore;
use tokio_util::io::InspectReader;

use super::Pulls;
use super::actions::{answer, within};
use crate::platform::{LinkError, OnProgress, Platform, PullProgress};

/// Where images come from that no registry gives: the other members.
#[async_trait]
pub trait ImageSource: Send + Sync + 'static {
    /// An OCI archive of the image; `None` when nobody has it. Each member has `within` to say so.
    ///
    /// # Errors
    /// When a member that may have it could not be asked.
    async fn fetch(
        &self,
        reference: &str,
        digest: Option<&str>,
        within: Duration,
    ) -> Result<Option<Pin<Box<dyn AsyncRead + Send>>>, LinkError>;
}

/// An image to have here, by its digest where that is known.
struct Wanted<'a> {
    reference: &'a str,
    digest: Option<&'a str>,
}

/// One node's way to its images.
pub(super) struct Images {
    platform: Platform,
    members: Arc<dyn ImageSource>,
    pulls: Pulls,
    /// One permit a download.
    downloads: Semaphore,
}

impl Images {
    pub(super) fn new(
        platform: Platform,
        members: Arc<dyn ImageSource>,
        pulls: Pulls,
        downloads_max: usize,
    ) -> Self {
        Self { platform, members, pulls, downloads: Semaphore::new(downloads_max) }
    }

    /// Makes sure that the image is here. The error is for people.
    pub(super) async fn ensure(
        &self,
        replica: ReplicaId,
        reference: &str,
        digest: Option<&str>,
    ) -> Result<(), String> {
        let image = &Wanted { reference, digest };
        if self.is_here(image).await? {
            return Ok(());
        }
        // The semaphore is never closed; were it, downloads would only lose their bound.
        let _permit = self.downloads.acquire().await.ok();
        let shown = Shown::new(&self.pulls, replica);
        // Members are near, answer at once, and may have what no registry has.
        let near = self.fetch(&shown, image, IMAGE_ASK_DEADLINE).await;
        if let Ok(true) = near {
            return Ok(());
        }
        shown.set(PullProgress::default());
        let Err(registry) = self.pull(&shown, image).await else { return Ok(()) };
        if let Ok(false) = near {
            return Err(registry);
        }
        shown.set(PullProgress::default());
        match self.fetch(&shown, image, WRITE_DEADLINE).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(registry),
            Err(members) => Err(format!("{registry}; from another member: {members}")),
        }
    }

    async fn is_here(&self, image: &Wanted<'_>) -> Result<bool, String> {
        let asked = self.platform.containers.has_image(image.reference, image.digest);
        answer(&*self.platform.clock, asked).await.map_err(|error| error.to_string())
    }

    async fn pull(&self, shown: &Shown, image: &Wanted<'_>) -> Result<(), String> {
        let on_progress: OnProgress = {
            let (pulls, replica) = (self.pulls.clone(), shown.replica);
            Arc::new(move |progress| set(&pulls, replica, progress))
        };
        let pull = self.platform.containers.pull(image.reference, image.digest, on_progress);
        let pulled = self.unless_stalled(shown, pull).await?;
        pulled.map(drop).map_err(|error| error.to_string())
    }

    /// Takes the image from another member; false when none has it.
    async fn fetch(&self, shown: &Shown, image: &Wanted<'_>, limit: Duration) -> Result<bool, String> {
        let asked = self.members.fetch(image.reference, image.digest, limit);
        let Some(archive) = self.unless_stalled(shown, asked).await?.map_err(|error| error.to_string())?
        else {
            return Ok(false);
        };
        let (pulls, replica) = (self.pulls.clone(), shown.replica);
        let mut progress = PullProgress::default();
        let counted = InspectReader::new(archive, move |bytes: &[u8]| {
            progress.bytes = progress.bytes.saturating_add(bytes.len() as u64);
            set(&pulls, replica, progress);
        });
        let import = self.platform.containers.import(Box::pin(counted), None);
        self.unless_stalled(shown, import).await?.map_err(|error| error.to_string())?;
        if self.is_here(image).await? {
            Ok(true)
        } else {
            Err("the archive received does not hold the image".to_owned())
        }
    }

    /// Gives `work` up once its shown progress stands still for [`PULL_STALL`].
    async fn unless_stalled<T>(&self, shown: &Shown, work: impl Future<Output = T>) -> Result<T, String> {
        let mut work = std::pin::pin!(work);
        let mut seen = shown.get();
        loop {
            if let Some(done) = within(&*self.platform.clock, PULL_STALL, &mut work).await {
                return Ok(done);
            }
            let now = shown.get();
            if now == seen {
                return Err(format!("no progress for {} s", PULL_STALL.as_secs()));
            }
            seen = now;
        }
    }
}

fn set(pulls: &Pulls, replica: ReplicaId, progress: PullProgress) {
    pulls.lock().unwrap_or_else(PoisonError::into_inner).insert(replica, progress);
}

/// A download's place among those shown, until it is dropped.
struct Shown {
    pulls: Pulls,
    replica: ReplicaId,
}

impl Shown {
    fn new(pulls: &Pulls, replica: ReplicaId) -> Self {
        let shown = Self { pulls: pulls.clone(), replica };
        shown.set(PullProgress::default());
        shown
    }

    fn set(&self, progress: PullProgress) {
        set(&self.pulls, self.replica, progress);
    }

    fn get(&self) -> Option<PullProgress> {
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner).get(&self.replica).copied()
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.replica);
    }
}
