//! The seam of volumes: what one machine holds of them.

use std::path::PathBuf;
use std::sync::Arc;

use blixard_core::cluster::volume::{VersionId, VolumeRoot, VolumeVersion};
use blixard_core::id::VolumeId;
use blixard_core::time::UtcMs;
use blixard_core::volume::{Index, Step};

/// Why something about a volume failed, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct VolumeError(pub String);

/// Takes the steps of a version, one by one.
pub type StepSink<'a> = dyn FnMut(Step) -> Result<(), VolumeError> + 'a;
/// Gives the steps of a version, one by one, then none.
pub type StepSource<'a> = dyn FnMut() -> Result<Option<Step>, VolumeError> + 'a;

/// What one machine holds of volumes. Every method may block on the disk, and may be called again after an
/// unknown outcome. A machine that keeps none has no more to say than the defaults.
pub trait VolumeStore: Send + Sync + 'static {
    /// The volumes of which anything is here.
    fn list(&self) -> Result<Vec<VolumeId>, VolumeError> {
        Ok(Vec::new())
    }

    /// The version that is here in full, durable.
    fn held(&self, _id: VolumeId) -> Result<Option<VolumeVersion>, VolumeError> {
        Ok(None)
    }

    /// Makes sure that the primary copy of `epoch` is here to be written to: the copy that is here becomes
    /// it, or where nothing of the volume was ever published (`fresh`) an empty one.
    fn prepare(&self, _id: VolumeId, _epoch: u64, _fresh: bool) -> Result<(), VolumeError> {
        Err(VolumeError("this machine keeps no volumes".to_owned()))
    }

    /// Puts an end to a primary copy: another node has it. Answers where it is kept, unless it holds nothing
    /// but `delivered`: the version of this node's that the other took over, or one before it. What was only
    /// published here is not delivered.
    fn demote(
        &self,
        _id: VolumeId,
        _delivered: Option<VolumeVersion>,
    ) -> Result<Option<PathBuf>, VolumeError> {
        Ok(None)
    }

    /// Makes a version, later than `newest`, of what the primary copy of `epoch` holds now, if it has
    /// changed. A copy that lost nearly all of its files is not published unless `accept_deletes`.
    fn publish(
        &self,
        _id: VolumeId,
        _epoch: u64,
        _newest: Option<VersionId>,
        _now: UtcMs,
        _accept_deletes: bool,
    ) -> Result<Option<VolumeVersion>, VolumeError> {
        Ok(None)
    }

    /// What the version holds that is here; an empty tree where there is none.
    fn index(&self, _id: VolumeId) -> Result<Arc<Index>, VolumeError> {
        Ok(Arc::new(Index::empty()))
    }

    /// A tree that a version here holds or held, by its root.
    fn knows(&self, _id: VolumeId, _root: VolumeRoot) -> Option<Arc<Index>> {
        None
    }

    /// Gives the steps that make the version that is here of `base`, after `begin` was told which it is.
    fn send(
        &self,
        _id: VolumeId,
        _base: &Index,
        _begin: &mut dyn FnMut(VolumeVersion) -> Result<(), VolumeError>,
        _sink: &mut StepSink<'_>,
    ) -> Result<(), VolumeError> {
        Err(VolumeError("this machine keeps no volumes".to_owned()))
    }

    /// Makes `version` of what is here by the steps that `source` gives, in full or not at all.
    fn receive(
        &self,
        _id: VolumeId,
        _version: VolumeVersion,
        _source: &mut StepSource<'_>,
    ) -> Result<(), VolumeError> {
        Err(VolumeError("this machine keeps no volumes".to_owned()))
    }

    /// Removes everything of a volume.
    fn remove(&self, _id: VolumeId) -> Result<(), VolumeError> {
        Ok(())
    }
}
