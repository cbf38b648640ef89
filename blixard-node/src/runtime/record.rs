//! What a node writes onto a container, so that it knows it again after a restart.

use std::collections::HashMap;

use blixard_core::id::{ClusterId, ContainerId, NodeId, ReplicaId, ServiceName};
use blixard_core::spec::PortSpec;
use containerd_client::services::v1::Container;
use prost_types::Any;

use crate::platform::ContainerConfig;

const CLUSTER: &str = "blixard.cluster";
const NODE: &str = "blixard.node";
const REPLICA: &str = "blixard.replica";
const ATTEMPT: &str = "blixard.attempt";
const SERVICE: &str = "blixard.service";
const SLOT: &str = "blixard.slot";
const VERSION: &str = "blixard.version";
const IMAGE_DIGEST: &str = "blixard.image-digest";
const STOP_SIGNAL: &str = "blixard.stop-signal";
/// An extension, since containerd bounds a label to 4096 bytes.
const PORTS: &str = "blixard.ports";

/// SIGTERM, what a container is stopped with when its image names no signal.
const SIGTERM: u32 = 15;

/// What is written on a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) id: ContainerId,
    pub(crate) replica: ReplicaId,
    pub(crate) attempt: u32,
    /// The service's name; absent where none is written that is one.
    pub(crate) service: Option<ServiceName>,
    pub(crate) slot: u32,
    /// The service's version; 0 on a container of a daemon that did not write it.
    pub(crate) version: u64,
    /// The full reference of its image.
    pub(crate) image: String,
    /// The digest of its image's manifest.
    pub(crate) image_digest: String,
    /// The number of the signal that asks it to end.
    pub(crate) stop_signal: u32,
    pub(crate) ports: Vec<PortSpec>,
}

impl Record {
    /// The labels of a new container.
    pub(crate) fn labels(
        &self,
        cluster: ClusterId,
        node: NodeId,
        config: &ContainerConfig,
    ) -> HashMap<String, String> {
        [
            (CLUSTER, cluster.to_string()),
            (NODE, node.to_string()),
            (REPLICA, self.replica.to_string()),
            (ATTEMPT, self.attempt.to_string()),
            (SERVICE, config.spec.name.to_string()),
            (SLOT, config.slot.to_string()),
            (VERSION, config.version.to_string()),
            (IMAGE_DIGEST, self.image_digest.clone()),
            (STOP_SIGNAL, self.stop_signal.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    /// The extensions of a new container.
    pub(crate) fn extensions(&self) -> HashMap<String, Any> {
        let ports = serde_json::to_vec(&self.ports).unwrap_or_default();
        [(PORTS.to_owned(), Any { type_url: "blixard/ports+json".to_owned(), value: ports })].into()
    }

    /// Reads a container back; nothing when it is none of ours.
    pub(crate) fn read(container: &Container) -> Option<Self> {
        let label = |key: &str| container.labels.get(key);
        Some(Self {
            id: ContainerId(container.id.clone()),
            replica: label(REPLICA)?.parse().ok()?,
            attempt: label(ATTEMPT)?.parse().ok()?,
            service: label(SERVICE).and_then(|name| name.parse().ok()),
            slot: label(SLOT).and_then(|slot| slot.parse().ok()).unwrap_or_default(),
            version: label(VERSION).and_then(|version| version.parse().ok()).unwrap_or_default(),
            image: container.image.clone(),
            image_digest: label(IMAGE_DIGEST).cloned().unwrap_or_default(),
            stop_signal: label(STOP_SIGNAL).and_then(|text| text.parse().ok()).unwrap_or(SIGTERM),
            ports: container
                .extensions
                .get(PORTS)
                .and_then(|any| serde_json::from_slice(&any.value).ok())
                .unwrap_or_default(),
        })
    }
}

/// Signals by name. `IOT`, `CLD` and `POLL` are other names of some.
const SIGNALS: [(&str, u32); 34] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];
const RTMIN: u32 = 34;
const RTMAX: u32 = 64;

/// The number of an image's STOPSIGNAL: `SIGQUIT`, `QUIT`, `3`, `SIGRTMIN+3`. SIGTERM for what
/// names none.
pub(crate) fn signal_number(name: Option<&str>) -> u32 {
    name.and_then(signal_of).unwrap_or(SIGTERM)
}

/// What [`signal_of`] takes, for people.
pub(crate) fn signal_names() -> String {
    let names: Vec<&str> = SIGNALS.iter().map(|(name, _)| *name).collect();
    format!(
        "{}, RTMIN, RTMIN+1 to RTMAX, with or without SIG, or a number from 1 to {RTMAX}",
        names.join(", ")
    )
}

/// The number of a signal by its name or number, if it is one.
pub(crate) fn signal_of(name: &str) -> Option<u32> {
    let name = name.trim().to_ascii_uppercase();
    let bare = name.strip_prefix("SIG").unwrap_or(&name);
    let named = SIGNALS.iter().find(|(known, _)| *known == bare).map(|(_, number)| *number);
    let real_time = || {
        if let Some(rest) = bare.strip_prefix("RTMIN") {
            let above: u32 = if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse().ok()? };
            RTMIN.checked_add(above)
        } else {
            let rest = bare.strip_prefix("RTMAX")?;
            let below: u32 = if rest.is_empty() { 0 } else { rest.strip_prefix('-')?.parse().ok()? };
            RTMAX.checked_sub(below)
        }
    };
    let number = named.or_else(|| bare.parse().ok()).or_else(real_time);
    number.filter(|number| (1..=RTMAX).contains(number))
}

#[cfg(test)]
mod tests {
    use containerd_client::services::v1::Container;
    use prost_types::Any;

    use super::{PORTS, Record, SIGNALS, signal_names, signal_number, signal_of};

    #[test]
    fn stop_signals_are_read_in_every_spelling() {
        let check = |name: &str, expect: u32| assert_eq!(signal_number(Some(name)), expect, "{name}");
        check("SIGQUIT", 3);
        check("quit", 3);
        check("3", 3);
        check("SIGWINCH", 28);
        check("SIGRTMIN+3", 37);
        check("RTMAX-1", 63);
        check("RTMAX-99", 15);
        check("0", 15);
        check("nonsense", 15);
        assert_eq!(signal_number(None), 15);
        assert_eq!(
            ["hup", "SIGTRAP", "iot", "ILL", "BUS", "64"].map(signal_of),
            [1, 5, 6, 4, 7, 64].map(Some)
        );
        let named = signal_names();
        assert!(SIGNALS.iter().all(|(name, _)| named.contains(name)), "{named}");
        assert_eq!(["", "SIG", "nonsense", "-1", "65", "RTMAX+1"].map(signal_of), [None; 6]);
    }

    #[test]
    fn labels_of_a_container_survive_every_damage() {
        // A label a line, as containerd gives them; ports after them.
        let text = "blixard.replica=7\nblixard.attempt=2\nblixard.service=web\nblixard.slot=1\nblixard.version=3\n\
                    blixard.stop-signal=3\nblixard.image-digest=sha256:00\n\n\
                    [{\"container_port\":80,\"host_port\":8080,\"protocol\":\"tcp\"}]";
        damage::survives("labels of a container", &[text.as_bytes().to_vec()], |input| {
            let text = String::from_utf8_lossy(input);
            let (labels, ports) = text.split_once("\n\n").unwrap_or((&text, ""));
            let labels = labels.lines().filter_map(|line| line.split_once('='));
            let ports = Any { type_url: String::new(), value: ports.as_bytes().to_vec() };
            let container = Container {
                labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
                extensions: [(PORTS.to_owned(), ports)].into(),
                ..Container::default()
            };
            Record::read(&container).map(drop).ok_or("it is none of ours".to_owned())
        });
        damage::survives(
            "STOPSIGNAL",
            &["SIGRTMIN+3", "QUIT", "9"].map(|text| text.as_bytes().to_vec()),
            |input| {
                let number = signal_of(&String::from_utf8_lossy(input)).ok_or("there is no such signal")?;
                assert!((1..=64).contains(&number));
                Ok(())
            },
        );
    }
}
