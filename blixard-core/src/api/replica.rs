//! Replicas and their containers.

use std::borrow::Cow;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::cluster::{Desired, Phase};
use crate::id::{ContainerId, NodeId, ReplicaId, ServiceName};
use crate::spec::PortSpec;
use crate::time::UtcMs;

/// One line of `ps`: a replica, or a slot that waits for one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReplicaRow {
    /// Its container; absent for a slot that waits.
    pub container_id: Option<ContainerId>,
    /// The service's name and the slot: `web-0`.
    pub name: String,
    /// The replica's number; absent for a slot that waits.
    pub replica: Option<ReplicaId>,
    /// Whose instance it is.
    pub service: ServiceName,
    /// Its number within the service, from 0.
    pub slot: u32,
    /// Which version of the service it runs.
    pub version: u64,
    /// Where it runs; absent for a slot that waits.
    pub node: Option<NodeId>,
    /// That node's name.
    pub node_name: Option<String>,
    /// Its image as the bundle names it.
    pub image: String,
    /// How far it is; absent for a slot that waits.
    pub phase: Option<Phase>,
    /// Whether it should run.
    pub desired: Option<Desired>,
    /// Whether it is ready: it runs and does not fail its probe, or completed.
    pub ready: bool,
    /// Whether it is ready and proven: it has been ready for `min_healthy_time` at a stretch.
    #[serde(default)]
    pub proven: bool,
    /// Whether it runs what the service's current version asks for.
    #[serde(default)]
    pub current: bool,
    /// Whether it ended for good, well or not: nothing starts it again by itself.
    #[serde(default)]
    pub over: bool,
    /// Whether its probe passes; absent without a probe or before the first result.
    pub healthy: Option<bool>,
    /// Whether it is away with its node, and so counts no more.
    pub lost: bool,
    /// How often its container was started again in place.
    pub attempt: u32,
    /// The code its process ended with.
    pub exit_code: Option<u32>,
    /// Whether the kernel killed its process for want of memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
    /// What is waited for or went wrong; for a slot that waits, why it does.
    pub message: String,
    /// Why it is not moved or replaced although it should be; absent when it need not be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked: Option<String>,
    /// When the phase began, by its node's clock.
    pub since: Option<UtcMs>,
    /// When it was placed.
    pub created_at: Option<UtcMs>,
    /// Its address on the container network.
    pub address: Option<String>,
    /// The address its node answers on.
    pub node_address: Option<String>,
    /// Its published ports.
    pub ports: Vec<PortSpec>,
    /// How far its image is, while it is being pulled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}

/// A replica in full.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReplicaDetail {
    /// The replica in short.
    #[serde(flatten)]
    pub row: ReplicaRow,
    /// What its node's runtime knows of the container; absent when it could not be asked.
    pub container: Option<ContainerView>,
    /// Why `container` is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_error: Option<String>,
    /// Whether this is what one node last knew, for want of a quorum.
    #[serde(default)]
    pub stale: bool,
}

/// What a node's runtime knows of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContainerView {
    /// Its process on the node; absent when it ended.
    pub pid: Option<u32>,
    /// The code its process ended with.
    pub exit_code: Option<u32>,
    /// Its address on the container network.
    pub address: Option<String>,
    /// The full reference of its image.
    pub image: String,
    /// The digest of its image's manifest.
    pub image_digest: String,
    /// Where its log is on the node.
    pub log_path: String,
}

/// How far a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Bytes here so far.
    pub bytes: u64,
    /// Bytes in all; 0 while unknown.
    pub bytes_total: u64,
}

/// One pull going on at the answering node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PullRow {
    /// For which replica.
    pub replica: ReplicaId,
    /// How far it is.
    pub progress: Progress,
}

/// One line of `logs`, or a piece of a long one, as newline-delimited JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// When it was written, RFC 3339, by the container's node; empty in a line that reports `error`.
    pub at: String,
    /// Whether to stderr rather than stdout.
    pub stderr: bool,
    /// The line, without its end. What is not UTF-8 is U+FFFD here, and as it was written in `base64`.
    pub text: String,
    /// The bytes of the line, in base64; absent when they are `text`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
    /// Whether the line goes on in the next object of the same stream: long lines come in pieces.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// Whether it is said of the log and the container did not write it: how much of it was removed by
    /// rotation before it was read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub note: bool,
    /// Why the stream ends early; always in the last line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl LogLine {
    /// What a container wrote.
    pub fn new(at: String, stderr: bool, bytes: Vec<u8>, partial: bool) -> Self {
        let (text, base64) = match String::from_utf8(bytes) {
            Ok(text) => (text, None),
            Err(error) => {
                let bytes = error.as_bytes();
                (String::from_utf8_lossy(bytes).into_owned(), Some(BASE64.encode(bytes)))
            }
        };
        Self { at, stderr, text, base64, partial, note: false, error: None }
    }

    /// What is said of the log at this place of it; an older reader shows it as a line to stderr.
    pub fn note(at: String, text: String) -> Self {
        Self { at, stderr: true, text, base64: None, partial: false, note: true, error: None }
    }

    /// Why the stream ends early.
    pub fn failed(error: String) -> Self {
        let error = Some(error);
        Self { note: false, error, ..Self::note(String::new(), String::new()) }
    }

    /// What the container wrote, byte for byte.
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        let decoded = self.base64.as_ref().and_then(|base64| BASE64.decode(base64.as_bytes()).ok());
        decoded.map_or(Cow::Borrowed(self.text.as_bytes()), Cow::Owned)
    }
}

#[cfg(test)]
mod tests {
    use super::LogLine;

    #[test]
    fn a_line_keeps_its_bytes_and_says_what_an_older_reader_can_show() {
        let check = |bytes: &[u8], expect: &str| {
            let line = LogLine::new("T".into(), false, bytes.to_vec(), true);
            let json = serde_json::to_string(&line).unwrap();
            assert_eq!(json, expect);
            let read: LogLine = serde_json::from_str(&json).unwrap();
            assert_eq!((read.bytes().as_ref(), read.partial), (bytes, true));
        };
        let rest = r#","partial":true}"#;
        check(b"", &format!(r#"{{"at":"T","stderr":false,"text":""{rest}"#));
        check("é\0".as_bytes(), &format!(r#"{{"at":"T","stderr":false,"text":"é\u0000"{rest}"#));
        check(b"\xffa", &format!(r#"{{"at":"T","stderr":false,"text":"�a","base64":"/2E="{rest}"#));
        let old: LogLine = serde_json::from_str(r#"{"at":"T","stderr":true,"text":"a"}"#).unwrap();
        assert_eq!((old.bytes().as_ref(), old.partial), (&b"a"[..], false));
    }
}
