//! Images.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::replica::Progress;
use crate::id::NodeId;

/// An image and the members that have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageRow {
    /// The full reference, `docker.io/library/nginx:latest`.
    pub reference: String,
    /// The digest of its index or manifest.
    pub digest: String,
    /// The size of its blobs, in bytes.
    pub bytes: u64,
    /// The members that have it.
    pub nodes: Vec<NodeId>,
    /// Whether somebody imported it under this name: then no registry is asked what the name means.
    #[serde(default)]
    pub imported: bool,
}

/// The images of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageList {
    /// The images, by reference.
    pub items: Vec<ImageRow>,
    /// Members that could not be asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreachable: Vec<NodeId>,
}

/// What became of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImportAnswer {
    /// The images that were imported.
    pub images: Vec<ImageRow>,
    /// What became of them at each member.
    pub members: Vec<ImportMember>,
    /// The images of the archive that were not imported, since they are for other platforms; absent
    /// when there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passed_over: Vec<PassedOverImage>,
}

/// An image of an archive that is for other platforms than the node's to which it was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PassedOverImage {
    /// Its full reference; where the archive names it only by a tag, or not at all, the tag or `<none>`.
    pub name: String,
    /// The platforms it is for, `linux/arm64`; of more than 16 the first.
    pub platforms: Vec<String>,
    /// The node's platform.
    pub node_platform: String,
}

/// What became of an import at one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImportMember {
    /// The member.
    pub node: NodeId,
    /// Why it does not have all of the images; absent when it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// An image to fetch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PullRequest {
    /// The reference as the user wrote it.
    pub reference: String,
}

/// One line of a pull's progress, as newline-delimited JSON. The last line has `digest` or `error`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PullLine {
    /// How far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// What the reference stands for, once the image is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Which images were removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageRemoval {
    /// The images removed, and the members that had them.
    pub items: Vec<ImageRow>,
    /// How many bytes of disk this freed, of all members together.
    pub bytes_freed: u64,
    /// Members that could not be asked, and why: they keep what they have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<ImportMember>,
}

/// What a member has on disk. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskUsageRow {
    /// The member.
    pub node: NodeId,
    /// How many images it has.
    pub images: u64,
    /// Its images as registries send them.
    pub image_bytes: u64,
    /// Their layers unpacked, which containers share.
    pub unpacked_bytes: u64,
    /// How many containers it has.
    pub containers: u64,
    /// What containers wrote onto their own root file systems.
    pub container_bytes: u64,
    /// Logs of containers.
    pub log_bytes: u64,
    /// The rest of its data directory: the stores.
    pub data_bytes: u64,
}

/// What the members have on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskUsageList {
    /// One row a member.
    pub items: Vec<DiskUsageRow>,
    /// Members that could not be asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreachable: Vec<NodeId>,
}

#[cfg(test)]
mod tests {
    use super::{ImportAnswer, PassedOverImage};

    #[test]
    fn images_that_were_passed_over_are_told_only_when_there_are_any() {
        let old = r#"{"images":[],"members":[{"node":1}]}"#;
        let mut answer: ImportAnswer = serde_json::from_str(old).expect("an older node's answer");
        assert_eq!(serde_json::to_string(&answer).expect("JSON"), old);
        answer.passed_over.push(PassedOverImage {
            name: "docker.io/test/app:1".into(),
            platforms: vec!["linux/arm64".into()],
            node_platform: "linux/amd64".into(),
        });
        let text = serde_json::to_string(&answer).expect("JSON");
        assert!(text.ends_with(
            r#""passed_over":[{"name":"docker.io/test/app:1","platforms":["linux/arm64"],"node_platform":"linux/amd64"}]}"#
        ));
        assert_eq!(serde_json::from_str::<ImportAnswer>(&text).expect("its own"), answer);
    }
}
