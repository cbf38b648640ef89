//! What a service is asked to be: the checked form of a bundle.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::{ServiceName, VolumeName};
use crate::limits::PIDS_LIMIT;
use crate::security::SecuritySpec;

/// The desired form of a service, as its bundle says. Two equal specs are one version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceSpec {
    /// The service's name.
    pub name: ServiceName,
    /// What runs.
    pub image: ImageSpec,
    /// Which container ports are published.
    #[serde(default)]
    pub ports: Vec<PortSpec>,
    /// What of outside is in the container: host paths and volumes.
    #[serde(default)]
    pub volumes: Vec<MountSpec>,
    /// Environment variables added to the image's own.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// How a running container is probed.
    #[serde(default)]
    pub healthcheck: Option<HealthSpec>,
    /// How many replicas the cluster keeps.
    #[serde(default)]
    pub replicas: ReplicaBounds,
    /// What a container may use at most.
    #[serde(default)]
    pub limits: ResourceLimits,
    /// What a node must have free for one replica.
    #[serde(default)]
    pub reservations: Reservations,
    /// What happens when the container's process ends.
    #[serde(default)]
    pub restart: RestartSpec,
    /// Services that must run before this one starts.
    #[serde(default)]
    pub depends_on: Vec<ServiceName>,
    /// How long a stopping container has before SIGKILL, in seconds.
    #[serde(default = "stop_timeout")]
    pub stop_timeout_s: u32,
    /// Which nodes may run it.
    #[serde(default)]
    pub placement: PlacementSpec,
    /// Which network its containers live in.
    #[serde(default)]
    pub network: NetworkMode,
    /// How long a replica must be ready at a stretch before it counts as proven, in milliseconds;
    /// absent: [`MIN_HEALTHY_MS`]. Of the second feature level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_healthy_ms: Option<u64>,
    /// What its processes may do. Of the second feature level.
    #[serde(default, skip_serializing_if = "SecuritySpec::is_default")]
    pub security: SecuritySpec,
}

impl ServiceSpec {
    /// This specification with the defaults of the second feature level written out. They are not
    /// those that a missing field has: specifications stored before go on without.
    pub fn completed(mut self) -> Self {
        self.limits.pids.get_or_insert(PIDS_LIMIT);
        for mount in &mut self.volumes {
            mount.checked |= mount.kind == MountKind::HostPath;
        }
        self
    }

    /// Whether [`Self::completed`] changes nothing.
    pub fn is_complete(&self) -> bool {
        let is_checked = |mount: &MountSpec| mount.checked || mount.kind != MountKind::HostPath;
        self.limits.pids.is_some() && self.volumes.iter().all(is_checked)
    }

    /// Whether its replicas can only run where its host paths are: on the node it was submitted on.
    pub fn is_pinned(&self) -> bool {
        self.volumes.iter().any(|mount| mount.kind == MountKind::HostPath)
    }

    /// The volumes that its containers mount, in the bundle's order.
    pub fn mounted_volumes(&self) -> impl Iterator<Item = &VolumeName> {
        self.volumes.iter().filter_map(|mount| match &mount.kind {
            MountKind::HostPath => None,
            MountKind::Volume(name) => Some(name),
        })
    }

    /// Whether `other` differs in the bounds of replicas and in nothing that a container depends on.
    pub fn differs_in_replicas_only(&self, other: &Self) -> bool {
        self.replicas != other.replicas && Self { replicas: other.replicas, ..self.clone() } == *other
    }

    /// Whether a container of `other` is one of this: only how many there are, and how long they take
    /// to be proven, may differ.
    pub fn same_containers(&self, other: &Self) -> bool {
        let Self { replicas, min_healthy_ms, .. } = *other;
        Self { replicas, min_healthy_ms, ..self.clone() } == *other
    }

    /// How long a replica must be ready at a stretch before it counts as proven, in milliseconds.
    pub fn min_healthy_ms(&self) -> u64 {
        self.min_healthy_ms.unwrap_or(MIN_HEALTHY_MS)
    }
}

/// [`ServiceSpec::min_healthy_ms`] when a bundle does not say.
pub const MIN_HEALTHY_MS: u64 = 5_000;

fn stop_timeout() -> u32 {
    crate::limits::STOP_TIMEOUT_S
}

/// What runs in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageSpec {
    /// The reference as the user wrote it: `nginx`, `registry.lan:5000/app:1`, `app@sha256:…`.
    pub reference: String,
    /// The digest of the index or manifest the reference stood for at submission, `sha256:…`, so
    /// that a failover runs the same bytes. Absent when no node could resolve it then.
    #[serde(default)]
    pub digest: Option<String>,
    /// Replaces ENTRYPOINT and CMD together when present.
    #[serde(default)]
    pub command: Option<Vec<String>>,
    /// Replaces WORKDIR when present.
    #[serde(default)]
    pub workdir: Option<String>,
}

/// A transport protocol.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortSpec {
    /// The port inside the container, 1 to 65535.
    pub container_port: u16,
    /// The port on the node, 1 to 65535; absent: the container's port is reachable on the
    /// container network only.
    #[serde(default)]
    pub host_port: Option<u16>,
    /// TCP or UDP.
    #[serde(default)]
    pub protocol: Protocol,
    /// The address of the node that `host_port` is on; absent: all of its IPv4 addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub host_ip: Option<Ipv4Addr>,
    /// Which nodes answer on `host_port`.
    #[serde(default, skip_serializing_if = "Publish::is_default")]
    pub publish: Publish,
}

impl PortSpec {
    /// Whether every member answers on its `host_port`, rather than the nodes that run a replica.
    pub fn is_everywhere(&self) -> bool {
        self.publish == Publish::Cluster && self.host_ip.is_none()
    }
}

/// Which nodes answer on a published port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Publish {
    /// Every member: one that runs no replica leads connections to one that does.
    #[default]
    Cluster,
    /// Those that run a replica.
    Node,
}

impl Publish {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl std::fmt::Display for Publish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster",
            Self::Node => "node",
        })
    }
}

/// Whether a port can be published on `address`: one that a single host has. (0.0.0.0 is all of them,
/// which a specification says by naming none.)
pub fn is_host_address(address: Ipv4Addr) -> bool {
    !(address.is_unspecified() || address.is_multicast() || address.is_broadcast())
}

/// Something of outside that is in the container: a host path, which pins the replicas to the node that the
/// service was submitted on, or a volume, which follows them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MountSpec {
    /// An absolute path on the host; of a volume, its name.
    pub source: String,
    /// An absolute path in the container.
    pub target: String,
    /// Whether the container may not write to it.
    #[serde(default)]
    pub read_only: bool,
    /// Whether nodes check that the source is a path they give to containers: so since the second
    /// feature level, which sets it where a specification is submitted.
    #[serde(default, skip_serializing_if = "is_false")]
    pub checked: bool,
    /// What it is. Of the second feature level.
    #[serde(default, skip_serializing_if = "MountKind::is_host_path")]
    pub kind: MountKind,
}

impl MountSpec {
    /// A host path as a bundle names it.
    pub fn host_path(source: String, target: String, read_only: bool) -> Self {
        Self { source, target, read_only, checked: false, kind: MountKind::HostPath }
    }

    /// A volume.
    pub fn volume(name: VolumeName, target: String, read_only: bool) -> Self {
        Self { source: name.to_string(), target, read_only, checked: false, kind: MountKind::Volume(name) }
    }
}

/// What a mount is of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MountKind {
    /// A path of the host.
    #[default]
    HostPath,
    /// A volume of the cluster.
    Volume(VolumeName),
}

impl MountKind {
    fn is_host_path(&self) -> bool {
        *self == Self::HostPath
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_false(value: &bool) -> bool {
    !value
}

/// How a running container is probed: HTTP GET on its first TCP port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthSpec {
    /// The path asked for.
    pub path: String,
    /// Milliseconds between probes.
    pub interval_ms: u64,
    /// Milliseconds a probe may take.
    pub timeout_ms: u64,
    /// Consecutive failures that make a container unhealthy.
    pub retries: u32,
}

/// How many replicas a service keeps: `1 <= min <= max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReplicaBounds {
    /// Never fewer than this.
    pub min: u32,
    /// Never more than this.
    pub max: u32,
}

impl Default for ReplicaBounds {
    fn default() -> Self {
        Self { min: 1, max: 1 }
    }
}

/// What a container may use at most; absent means no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResourceLimits {
    /// Relative CPU weight, 2 to 262144; 1024 is the default weight.
    #[serde(default)]
    pub cpu_shares: Option<u64>,
    /// CPU time in microseconds for each 100 ms.
    #[serde(default)]
    pub cpu_quota_us: Option<i64>,
    /// Memory in bytes.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Memory and swap together in bytes; -1 is unlimited swap.
    #[serde(default)]
    pub memory_swap_bytes: Option<i64>,
    /// Block I/O weight, 10 to 1000.
    #[serde(default)]
    pub blkio_weight: Option<u16>,
    /// Processes and threads; -1 is no limit.
    #[serde(default)]
    pub pids: Option<i64>,
}

/// What a node must have free for one replica.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reservations {
    /// Thousandths of a CPU.
    #[serde(default)]
    pub cpu_millis: u64,
    /// Bytes of memory.
    #[serde(default)]
    pub memory_bytes: u64,
}

/// When an ended container is started again, in place, by the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// The bundle says nothing: the service is kept within its bounds. Exit 0 is Completed, another
    /// code is Failed and the slot is filled anew. Written `no`, which is what the first feature
    /// level called it.
    #[default]
    #[serde(rename = "no")]
    Unsaid,
    /// Never: whatever ended stays ended. A bundle says `no`. Of the second feature level.
    Never,
    /// However it ended.
    Always,
    /// When it ended with a code other than 0, at most `maximum_retry_count` times.
    OnFailure,
    /// However it ended, unless a user stopped it.
    UnlessStopped,
}

/// The restart policy and its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct RestartSpec {
    /// When to start again.
    pub policy: RestartPolicy,
    /// How often in a row, for `on-failure`; absent means without end.
    #[serde(default)]
    pub maximum_retry_count: Option<u32>,
}

/// Which nodes may run a replica, and how replicas are spread.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlacementSpec {
    /// All must hold.
    #[serde(default)]
    pub constraints: Vec<Constraint>,
    /// The node label whose values replicas are spread over; absent spreads over nodes.
    #[serde(default)]
    pub spread: Option<String>,
}

/// One condition on a node. The labels `node.id`, `node.name`, `node.arch` and `node.os` are
/// built in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Constraint {
    /// The label's key.
    pub label: String,
    /// Whether the label must equal or differ.
    pub operator: ConstraintOperator,
    /// The value compared with. A node without the label has no value: it differs from any.
    pub value: String,
}

impl std::fmt::Display for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let operator = match self.operator {
            ConstraintOperator::Equal => "==",
            ConstraintOperator::NotEqual => "!=",
        };
        write!(f, "{}{operator}{}", self.label, self.value)
    }
}

/// How a constraint compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ConstraintOperator {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
}

/// Which network a container lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// A namespace of its own with an address from the node's subnet.
    #[default]
    Bridge,
    /// The node's own network.
    Host,
}
