//! Volumes: data that the cluster keeps for services, and where it is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ClusterState, NodeStatus};
use crate::id::{NodeId, ServiceName, VolumeId, VolumeName};
use crate::spec::ServiceSpec;
use crate::time::UtcMs;

pub use crate::id::VolumeRoot;

/// How many nodes hold a volume where the cluster has as many.
pub const COPIES: u32 = 2;

/// A volume. One copy of it is written, its primary; the others follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its number, which no other volume of the cluster had or will have.
    pub id: VolumeId,
    /// The node that holds the primary copy; absent until a replica is placed that mounts it, and after
    /// that node was removed.
    pub primary: Option<NodeId>,
    /// Rises with each change of the primary. What an earlier primary tells counts no more.
    pub epoch: u64,
    /// How many nodes should hold it.
    pub wanted: u32,
    /// The newest version that its primary published, or was made primary with.
    pub version: Option<VolumeVersion>,
    /// The nodes that hold it or are to, the primary among them.
    pub copies: BTreeMap<NodeId, VolumeCopy>,
    /// When it was made.
    pub created_at: UtcMs,
}

/// A version's place in the history of its volume.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, ToSchema,
)]
pub struct VersionId {
    /// The volume's epoch in which it was published.
    pub epoch: u64,
    /// Counts the versions of the volume.
    pub seq: u64,
}

impl std::fmt::Display for VersionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.epoch, self.seq)
    }
}

/// What a volume held at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeVersion {
    /// Its place in the history.
    #[schema(inline)]
    pub id: VersionId,
    /// Stands for all of its content.
    #[schema(value_type = String)]
    pub root: VolumeRoot,
    /// How many names it has: files, directories and links.
    pub files: u64,
    /// How many bytes its files have.
    pub bytes: u64,
    /// When it was read, by the clock of the node that did: for display.
    pub at: UtcMs,
}

/// What one node holds of a volume, as it last told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeCopy {
    /// The version that is on its disk in full, durable.
    #[serde(default)]
    pub version: Option<VolumeVersion>,
    /// What is wrong there, for people.
    #[serde(default)]
    pub trouble: Option<String>,
}

/// What a node tells of a volume that it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// The volume's epoch, as the node knows it.
    pub epoch: u64,
    /// What it holds.
    pub copy: VolumeCopy,
}

impl Volume {
    /// A volume that nobody has mounted yet.
    pub(super) fn new(id: VolumeId, created_at: UtcMs) -> Self {
        Self {
            id,
            primary: None,
            epoch: 0,
            wanted: COPIES,
            version: None,
            copies: BTreeMap::new(),
            created_at,
        }
    }

    /// The newest version that a node other than the primary holds. It may have been acknowledged to
    /// somebody, and so may no later one that only the primary had.
    pub fn acknowledged(&self) -> Option<VolumeVersion> {
        let others = self.copies.iter().filter(|(node, _)| Some(**node) != self.primary);
        others.filter_map(|(_, copy)| copy.version).max_by_key(|version| version.id)
    }

    /// Which node takes over where the primary is lost: one that is up and holds what was acknowledged.
    /// None when no such node is up: what another holds may lack what somebody was told is safe.
    pub fn heir(&self, is_up: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let newest = self.acknowledged()?;
        let holds = |copy: &VolumeCopy| copy.version.is_some_and(|version| version.id == newest.id);
        self.copies
            .iter()
            .filter(|(node, copy)| Some(**node) != self.primary && holds(copy) && is_up(**node))
            .map(|(node, _)| *node)
            .next()
    }
}

/// Where the replicas of a service can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Home {
    /// On any node.
    Anywhere,
    /// On this node only: what they mount is there.
    At(NodeId),
    /// Nowhere, and why: a sentence without a full stop.
    Nowhere(String),
}

impl ClusterState {
    /// The volume of that id and its name.
    pub fn volume_by_id(&self, id: VolumeId) -> Option<(&VolumeName, &Volume)> {
        let name = self.index.volume_name(id)?;
        Some((name, self.volumes.get(name)?))
    }

    /// Where replicas with `spec` can be; `origin` is where their service was submitted.
    pub fn home_of(&self, spec: &ServiceSpec, origin: NodeId) -> Home {
        let mut home = if spec.is_pinned() { Home::At(origin) } else { Home::Anywhere };
        for name in spec.mounted_volumes() {
            let Some(volume) = self.volumes.get(name) else {
                return Home::Nowhere(format!("volume `{name}` is not there: submit the service again"));
            };
            let node = match (volume.primary, &volume.version) {
                (Some(node), _) => node,
                (None, None) => continue,
                (None, Some(_)) => {
                    return Home::Nowhere(format!("no member holds a copy of volume `{name}`"));
                }
            };
            match home {
                Home::At(other) if other != node => {
                    return Home::Nowhere(format!(
                        "it mounts what is on node {other} and volume `{name}`, which is on node {node}"
                    ));
                }
                _ => home = Home::At(node),
            }
        }
        home
    }

    /// Whether a node that holds the primary copy of a volume has lost it: it is down, or no member.
    pub fn primary_is_lost(&self, volume: &Volume) -> bool {
        match volume.primary {
            Some(node) => self.nodes.get(&node).is_none_or(|row| row.status == NodeStatus::Down),
            None => volume.version.is_some(),
        }
    }

    /// The services that mount a volume in any version that is kept.
    pub fn services_mounting<'a>(&'a self, name: &'a VolumeName) -> impl Iterator<Item = &'a ServiceName> {
        let mounts = move |spec: &ServiceSpec| spec.mounted_volumes().any(|mounted| mounted == name);
        let services = self.services.iter();
        let mounting =
            services.filter(move |(_, service)| service.versions.iter().any(|version| mounts(&version.spec)));
        mounting.map(|(service, _)| service)
    }
}
