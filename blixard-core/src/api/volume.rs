//! Volumes, as the API shows them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::cluster::volume::VolumeVersion;
use crate::id::{NodeId, ServiceName, VolumeId, VolumeName};
use crate::time::UtcMs;

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeRow {
    /// Its name.
    pub name: VolumeName,
    /// Its number: the name of its directory on the nodes that hold it.
    pub id: VolumeId,
    /// The node whose copy is written to; absent before a replica is placed that mounts it, and when that
    /// node was removed.
    pub primary: Option<NodeId>,
    /// Rises with each change of the primary.
    pub epoch: u64,
    /// How many nodes should hold it.
    pub wanted: u32,
    /// The newest version that was published.
    pub version: Option<VolumeVersion>,
    /// The nodes that hold it or are to.
    pub copies: Vec<VolumeCopyRow>,
    /// The services that mount it.
    pub services: Vec<ServiceName>,
    /// When it was made.
    pub created_at: UtcMs,
}

/// What a node holds of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeCopyRow {
    /// The node.
    pub node: NodeId,
    /// The version that is on its disk in full.
    pub version: Option<VolumeVersion>,
    /// What is wrong there, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}
