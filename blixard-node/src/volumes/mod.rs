//! The volumes of one machine, as directories below its data directory.
//!
//! `volumes/ID` holds what a node has of a volume:
//!
//! - `live`: the primary copy, which containers write to; `epoch` says since which epoch;
//! - `copy` and `index`: the newest version that is here in full, and what it holds. On the primary's node
//!   that is what was last published: versions are read and sent from it, never from what is being
//!   written to;
//! - `journal`: a version that `copy` is being made into. It is durable before the first file changes, so
//!   that whatever ends the process or the machine, the version is either made in full or not begun;
//! - `aside`: primary copies of earlier epochs, kept when another node took over: nothing of them is ever
//!   written to or removed but by a person, or with the volume.
//!
//! What a container writes and what a member sends are not trusted: no path is followed through a symbolic
//! link or out of its tree.

mod files;
mod journal;
mod scan;
mod slot;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use blixard_core::cluster::volume::{VersionId, VolumeRoot, VolumeVersion};
use blixard_core::id::VolumeId;
use blixard_core::time::UtcMs;
use blixard_core::volume::{Index, Step};

use self::slot::Slot;
use crate::platform::{StepSink, StepSource, VolumeError, VolumeStore};

/// Where volumes are in the data directory.
const DIRECTORY: &str = "volumes";

/// The primary copy of a volume in a node's data directory, which containers mount.
pub(crate) fn live(data: &std::path::Path, id: VolumeId) -> PathBuf {
    data.join(DIRECTORY).join(id.to_string()).join(slot::LIVE)
}

/// The volumes in a node's data directory.
pub(crate) struct LinuxVolumes {
    directory: PathBuf,
    slots: Mutex<BTreeMap<VolumeId, Arc<Slot>>>,
}

impl LinuxVolumes {
    /// The volumes of the node whose data directory is `data`.
    pub(crate) fn new(data: impl Into<PathBuf>) -> Self {
        Self { directory: data.into().join(DIRECTORY), slots: Mutex::default() }
    }

    fn slot(&self, id: VolumeId) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot =
            slots.entry(id).or_insert_with(|| Arc::new(Slot::new(self.directory.join(id.to_string()))));
        Arc::clone(slot)
    }
}

impl VolumeStore for LinuxVolumes {
    fn list(&self) -> Result<Vec<VolumeId>, VolumeError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list the volumes", error)),
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        Ok(names.collect())
    }

    fn held(&self, id: VolumeId) -> Result<Option<VolumeVersion>, VolumeError> {
        self.slot(id).held()
    }

    fn prepare(&self, id: VolumeId, epoch: u64, fresh: bool) -> Result<(), VolumeError> {
        self.slot(id).prepare(epoch, fresh)
    }

    fn demote(&self, id: VolumeId, delivered: Option<VolumeVersion>) -> Result<Option<PathBuf>, VolumeError> {
        self.slot(id).demote(delivered)
    }

    fn publish(
        &self,
        id: VolumeId,
        epoch: u64,
        newest: Option<VersionId>,
        now: UtcMs,
        accept_deletes: bool,
    ) -> Result<Option<VolumeVersion>, VolumeError> {
        self.slot(id).publish(epoch, newest, now, accept_deletes)
    }

    fn index(&self, id: VolumeId) -> Result<Arc<Index>, VolumeError> {
        self.slot(id).index()
    }

    fn knows(&self, id: VolumeId, root: VolumeRoot) -> Option<Arc<Index>> {
        self.slot(id).knows(root)
    }

    fn send(
        &self,
        id: VolumeId,
        base: &Index,
        begin: &mut dyn FnMut(VolumeVersion) -> Result<(), VolumeError>,
        sink: &mut StepSink<'_>,
    ) -> Result<(), VolumeError> {
        self.slot(id).send(base, begin, sink)
    }

    fn receive(
        &self,
        id: VolumeId,
        version: VolumeVersion,
        source: &mut StepSource<'_>,
    ) -> Result<(), VolumeError> {
        self.slot(id).receive(version, source)
    }

    fn remove(&self, id: VolumeId) -> Result<(), VolumeError> {
        let removed = self.slot(id).remove();
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        removed
    }
}

/// Something of a volume's directory that failed.
fn failed(what: impl std::fmt::Display, error: impl Into<io::Error>) -> VolumeError {
    let error = error.into();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            VolumeError(format!("cannot {what}: the disk is full; it goes on once there is room"))
        }
        _ => VolumeError(format!("cannot {what}: {error}")),
    }
}

/// Does a step of a sequence; `Err` ends it.
type Take<'a> = dyn FnMut(Step) -> Result<(), VolumeError> + 'a;
