//! What is published, on disk: a daemon that starts again goes on with it until it knows better.

use std::collections::BTreeSet;
use std::path::Path;

use blixard_core::id::ContainerId;
use blixard_core::spec::Protocol;
use serde::{Deserialize, Serialize};

use super::NetworkError;

const FILE: &str = "published";

/// Whom published ports lead to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Published {
    pub(super) containers: BTreeSet<ContainerId>,
    /// Ports of the node itself that containers may reach.
    pub(super) served: BTreeSet<(Protocol, u16)>,
}

impl Published {
    /// What was last saved in `directory`. A release that kept no such file published `all`.
    pub(super) fn load(directory: &Path, all: impl FnOnce() -> BTreeSet<ContainerId>) -> Self {
        let text = std::fs::read(directory.join(FILE)).ok();
        let read = text.and_then(|text| serde_json::from_slice(&text).ok());
        read.unwrap_or_else(|| Self { containers: all(), served: BTreeSet::new() })
    }

    pub(super) fn save(&self, directory: &Path) -> Result<(), NetworkError> {
        let text = serde_json::to_vec(self)
            .map_err(|error| NetworkError::io("encode what is published")(error.into()))?;
        let path = directory.join(FILE);
        std::fs::write(&path, text).map_err(NetworkError::io(format!("write {}", path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_survives_every_damage() {
        let directory = tempfile::tempdir().expect("a directory");
        let containers = [ContainerId("ab".repeat(32))].into();
        let published = Published { containers, served: [(Protocol::Udp, 53)].into() };
        published.save(directory.path()).expect("room");
        let seed = std::fs::read(directory.path().join(FILE)).expect("it is there");
        let all = || BTreeSet::from([ContainerId("all".to_owned())]);
        damage::survives("what is published", &[seed], |input| {
            std::fs::write(directory.path().join(FILE), input).expect("room");
            let read = Published::load(directory.path(), all);
            read.save(directory.path()).expect("room");
            assert_eq!(Published::load(directory.path(), BTreeSet::new), read);
            Ok(())
        });
    }
}
