//! Writes the registry file, by which others join.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use blixard_core::api::token::Secret;
use blixard_core::discovery::file::Registry;
use blixard_core::wire::Peer;

use crate::daemon::Error;
use crate::node::Membership;
use crate::platform::{Platform, Transport};

/// The registry file's name in the data directory.
pub const REGISTRY_FILE: &str = "node-registry.json";

/// What this node says of itself.
pub(crate) fn own(token: Option<Secret>, membership: &Membership, platform: &Platform) -> Registry {
    let Membership { node, cluster, .. } = *membership;
    Registry { node, peer: own_peer(&*platform.transport), cluster, token }
}

/// Whom others link to who link to this node.
pub(crate) fn own_peer(transport: &dyn Transport) -> Peer {
    Peer { key: transport.key(), addresses: transport.addresses(), relay_url: None }
}

/// Writes the registry file of this node.
///
/// # Errors
/// When it cannot be written, in words.
pub(crate) fn write_own(
    data_dir: &Path,
    token: Option<Secret>,
    membership: &Membership,
    platform: &Platform,
) -> Result<(), Error> {
    write(data_dir, &own(token, membership, platform))
        .map_err(|error| format!("cannot write {}: {error}", data_dir.join(REGISTRY_FILE).display()).into())
}

/// Replaces the registry file in `data_dir` with one of `registry`, all at once. Only its owner
/// may read it: it holds the join token. Blocks on the disk.
///
/// # Errors
/// When the file cannot be written; the old one, if any, is then still whole.
pub fn write(data_dir: &Path, registry: &Registry) -> io::Result<()> {
    let temporary = data_dir.join(format!(".{REGISTRY_FILE}.new"));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(registry.to_json().as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, data_dir.join(REGISTRY_FILE))?;
    fs::File::open(data_dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::{REGISTRY_FILE, write};
    use blixard_core::api::token::Secret;
    use blixard_core::discovery::file::{Registry, parse};
    use blixard_core::id::{ClusterId, NodeId, NodeKey, TokenId};
    use blixard_core::wire::Peer;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_file_is_replaced_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        for node in [1, 2] {
            let registry = Registry {
                node: NodeId(node),
                peer: Peer { key: NodeKey([8; 32]), addresses: vec![], relay_url: None },
                cluster: ClusterId([3; 16]),
                token: Some(Secret { id: TokenId([1; 8]), secret: [2; 32] }),
            };
            write(dir.path(), &registry).unwrap();
            let path = dir.path().join(REGISTRY_FILE);
            let read = parse("f", &std::fs::read_to_string(&path).unwrap()).unwrap();
            assert_eq!(read[0].node, Some(NodeId(node)));
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
        }
    }
}
