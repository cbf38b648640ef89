//! What a node left on its machine when nobody knows any more whose it is, or when its containerd
//! does not answer. Only `purge` asks.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use blixard_core::id::{ClusterId, NodeId};
use rustix::mount::{UnmountFlags, unmount};

use super::client::{Client, disk};
use super::networks::Networks as _;
use super::supervise::Private;
use super::{
    Bridge, ContainerdRuntime, NAMESPACE_PREFIX, RuntimeConfig, blocking, cgroups, files, run_directory,
    shims,
};
use crate::node::NO_SUBNET;
use crate::platform::RuntimeError;

/// How many digits of the cluster's id a namespace's name has.
const CLUSTER_DIGITS: usize = 12;

impl ContainerdRuntime {
    /// Whose containers are in the containerd in use: in a private one everybody's, in another those
    /// that have a directory in this data directory. Of a cluster's id only the part that names
    /// namespaces, bridges and rules is known; the rest is zero.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`] when containerd does not answer.
    pub async fn owners(&self) -> Result<BTreeSet<(ClusterId, NodeId)>, RuntimeError> {
        let directories = self.config.data.join("containers");
        let mut owners = BTreeSet::new();
        for namespace in Client::new(self.channel.clone(), NAMESPACE_PREFIX)?.all_namespaces().await? {
            let Some(owner) = owner(&namespace) else { continue };
            let containers = Client::new(self.channel.clone(), &namespace)?.all_containers().await?;
            if self.private.is_some()
                || containers.iter().any(|container| directories.join(&container.id).exists())
            {
                owners.insert(owner);
            }
        }
        Ok(owners)
    }

    /// Ends the private containerd of a node, whose containers are `known`'s, and all that it
    /// started, without its help; removes networks, mounts and running state.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`] when something does not end or cannot be removed.
    pub async fn remove_broken(
        config: &RuntimeConfig,
        known: Option<(ClusterId, NodeId)>,
    ) -> Result<(), RuntimeError> {
        let run = run_directory(&config.data);
        let private = Private::places(&config.data, &run);
        private.stop().await?;
        let (socket, runc) = (private.socket.clone(), run.join("runc"));
        let mut owners = blocking(move || {
            let mut namespaces = shims::end_all(&socket);
            let entries = fs::read_dir(runc).into_iter().flatten().flatten();
            namespaces.extend(entries.filter_map(|entry| entry.file_name().into_string().ok()));
            Ok(namespaces.iter().filter_map(|namespace| owner(namespace)).collect::<BTreeSet<_>>())
        })
        .await?;
        if let Some(known) = known {
            owners.retain(|owner| names(*owner) != names(known));
            owners.insert(known);
        }
        for (cluster, node) in owners {
            let bridge = Bridge::new(run.join("network"));
            bridge.attach(cluster, node, NO_SUBNET).await?;
            bridge.purge().await?;
            cgroups::remove(&format!("{}/{node}", cgroups::PARENT));
        }
        blocking(move || {
            for (path, _) in mounts_below(&run).into_iter().rev() {
                unmount(&path, UnmountFlags::DETACH)
                    .map_err(|error| disk(&format!("unmount {}", path.display()), &error.into()))?;
            }
            files::absent_is_fine(fs::remove_dir_all(&run))
                .map_err(|error| disk(&format!("remove {}", run.display()), &error))
        })
        .await
    }
}

/// What tells two owners' namespaces apart.
fn names((cluster, node): (ClusterId, NodeId)) -> String {
    super::namespace(cluster, node)
}

/// Whose a containerd namespace is, by its name.
pub(super) fn owner(namespace: &str) -> Option<(ClusterId, NodeId)> {
    let (cluster, node) = namespace.strip_prefix(NAMESPACE_PREFIX)?.rsplit_once("-n")?;
    let digits = (cluster.len() == CLUSTER_DIGITS).then(|| format!("{cluster:0<32}"))?;
    Some((digits.parse().ok()?, node.parse().ok()?))
}

/// The mount points at and below a directory, and the kind of each, outer ones first.
pub(crate) fn mounts_below(directory: &Path) -> Vec<(PathBuf, String)> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<(PathBuf, String)> =
        table.lines().filter_map(mount).filter(|(path, _)| path.starts_with(directory)).collect();
    found.sort();
    found
}

/// Where a line of mountinfo mounts what kind of file system.
fn mount(line: &str) -> Option<(PathBuf, String)> {
    let (before, after) = line.split_once(" - ")?;
    let path = before.split(' ').nth(4)?;
    let path = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(path.to_owned(), |path, (code, text)| path.replace(code, text));
    Some((path.into(), after.split(' ').next()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use blixard_core::id::{ClusterId, NodeId};

    use super::super::namespace;
    use super::{mount, owner};

    #[test]
    fn an_owner_is_known_by_its_namespace_as_far_as_that_names_it() {
        let cluster: ClusterId = "0123456789abcdef0123456789abcdef".parse().expect("an id");
        let (found, node) = owner(&namespace(cluster, NodeId(12))).expect("ours");
        assert_eq!((namespace(found, node), node), (namespace(cluster, NodeId(12)), NodeId(12)));
        for other in
            ["moby", "blixard-", "blixard-0123-n1", "blixard-0123456789ab-nx", "blixard-0123456789xy-n1"]
        {
            assert_eq!(owner(other), None, "{other}");
        }
    }

    #[test]
    fn mount_points_are_read_with_their_kind() {
        let line =
            "36 35 98:0 /mnt1 /data/my\\040node rw,noatime master:1 - ext4 /dev/root rw,errors=continue";
        assert_eq!(mount(line), Some(("/data/my node".into(), "ext4".to_owned())));
        assert_eq!(mount("nonsense"), None);
    }

    #[test]
    fn namespaces_and_mounts_survive_every_damage() {
        let name = namespace(ClusterId([0xab; 16]), NodeId(12)).into_bytes();
        damage::survives("name of a namespace", &[name], |input| {
            let name = String::from_utf8_lossy(input);
            let (cluster, node) = owner(&name).ok_or("it is none of ours")?;
            // Numbers may be written in more ways than one.
            assert_eq!(owner(&namespace(cluster, node)), Some((cluster, node)));
            Ok(())
        });
        let line = b"36 35 98:0 /mnt1 /data/my\\040node rw,noatime master:1 - ext4 /dev/root rw".to_vec();
        damage::survives("line of mountinfo", &[line], |input| {
            mount(&String::from_utf8_lossy(input)).map(drop).ok_or("it is no mount".to_owned())
        });
    }
}
