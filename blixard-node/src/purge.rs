//! `blixard node purge`: removes from this machine all that a node left there, also where its own
//! files no longer say who it was.
//!
//! Whose containers there are is read from the identity; when that is damaged or gone, from the
//! registry file beside it; else from containerd, whose namespaces carry the node's name. A private
//! containerd that keeps its directory below the data directory is found by it, ended, and so is
//! what it started when it does not answer any more.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use blixard_core::discovery::file;
use blixard_core::id::{ClusterId, NodeId};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use tokio::net::UnixStream;

use crate::config::{Containerd, NodeConfig, NodeOptions};
use crate::daemon::{Error, checked, choice};
use crate::discovery::registry::REGISTRY_FILE;
use crate::disk::LinuxDisk;
use crate::identity::{IDENTITY_FILE, Identity, IdentityError};
use crate::linux::LinuxRandom;
use crate::node::NO_SUBNET;
use crate::platform::{ContainerRuntime, RuntimeError};
use crate::runtime::images::Registries;
use crate::runtime::{ContainerdRuntime, RuntimeConfig, mounts_below};

/// The largest registry file read, in bytes.
const REGISTRY_BYTES_MAX: u64 = 1 << 20;
/// What a file system keeps in its root for itself.
const LOST_AND_FOUND: &str = "lost+found";

/// Whose containers are on this machine.
type Owner = (ClusterId, NodeId);

/// Removes everything a node left on this machine: containers, networks, rules, mounts, data. With
/// `images`, also the images. The daemon must not run. A data directory that is a mount point is
/// emptied and stays.
///
/// # Errors
/// When the daemon runs, or something cannot be removed.
pub fn purge(options: NodeOptions, images: bool) -> Result<(), Error> {
    let config = checked(options)?;
    let data = &config.data_dir;
    if !data.exists() {
        return Err(format!("there is no data directory {}: nothing to remove", data.display()).into());
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        if UnixStream::connect(config.socket()).await.is_ok() {
            return Err(IdentityError::InUse.into());
        }
        // Holding the identity keeps a daemon from starting meanwhile, and fails while one runs.
        let identity = identity(data)?;
        let known = identity.as_ref().and_then(Identity::membership);
        let known = known.map(|membership| (membership.cluster, membership.node));
        remove_containers(&config, known.or_else(|| registered(data)), images).await?;
        drop(identity);
        let stays = remove_tree(data)?;
        let what = if stays { " (a mount point: the directory itself stays, empty)" } else { "" };
        println!("removed everything of {}{what}", data.display());
        Ok(())
    })
}

/// The identity in the data directory; absent when it is gone or damaged, which is told.
///
/// # Errors
/// When another process has it.
fn identity(data: &Path) -> Result<Option<Identity>, Error> {
    if !data.join(IDENTITY_FILE).exists() {
        return Ok(None);
    }
    match Identity::load_or_create(&LinuxDisk::new(data), &LinuxRandom) {
        Ok(identity) => Ok(Some(identity)),
        Err(IdentityError::InUse) => Err(IdentityError::InUse.into()),
        Err(error) => {
            eprintln!("{error}; going by what else says whose containers these are");
            Ok(None)
        }
    }
}

/// Who the node was, by the registry file that it wrote.
fn registered(data: &Path) -> Option<Owner> {
    let path = data.join(REGISTRY_FILE);
    if fs::metadata(&path).ok()?.len() > REGISTRY_BYTES_MAX {
        return None;
    }
    let entries = file::parse(REGISTRY_FILE, &fs::read_to_string(path).ok()?).ok()?;
    let entry = entries.into_iter().next()?;
    Some((entry.cluster?, entry.node?))
}

/// Removes the containers of `known`, or when that is not known, of whoever's they are, and then a
/// private containerd. One that does not work any more is ended with all that it started.
async fn remove_containers(config: &NodeConfig, known: Option<Owner>, images: bool) -> Result<(), Error> {
    let private = has_private(config);
    let runtime = RuntimeConfig {
        data: config.data_dir.clone(),
        containerd: choice(if private { &Containerd::Private } else { &config.containerd }),
        registries: Registries::default(),
        allow_paths: Vec::new(),
        logger: None,
        networks: None,
    };
    match remove_by_containerd(&runtime, known, images).await {
        Err(error) if private => {
            eprintln!("{error}; ending what containerd started without it");
            ContainerdRuntime::remove_broken(&runtime, known).await
        }
        removed => removed,
    }
    .map_err(Into::into)
}

async fn remove_by_containerd(
    config: &RuntimeConfig,
    known: Option<Owner>,
    images: bool,
) -> Result<(), RuntimeError> {
    let connected = ContainerdRuntime::connect(config.clone()).await?;
    let owners = match known {
        Some(owner) => BTreeSet::from([owner]),
        None => connected.owners().await?,
    };
    for (cluster, node) in owners {
        // One runtime has the containers of one node.
        let runtime = ContainerdRuntime::connect(config.clone()).await?;
        runtime.attach(cluster, node, NO_SUBNET).await?;
        runtime.purge(images).await?;
    }
    connected.remove_containerd().await
}

/// Whether the node's containerd is, or was, one of its own.
fn has_private(config: &NodeConfig) -> bool {
    match config.containerd {
        Containerd::Private => true,
        Containerd::Auto => config.data_dir.join("containerd/config.toml").exists(),
        Containerd::Socket(_) => false,
    }
}

/// Removes a directory and all below it. What containerd mounted there is unmounted first; other
/// mount points are emptied and stay. Answers whether the directory itself stays.
fn remove_tree(directory: &Path) -> Result<bool, Error> {
    let directory = directory.canonicalize()?;
    for (path, _) in mounts_below(&directory).into_iter().rev().filter(|(_, kind)| kind == "overlay") {
        unmount(&path, UnmountFlags::DETACH)
            .map_err(|error| format!("cannot unmount {}: {error}", path.display()))?;
    }
    let kept: Vec<PathBuf> = mounts_below(&directory).into_iter().map(|(path, _)| path).collect();
    remove(&directory, &kept)
        .map_err(|error| format!("cannot remove {}: {error}", directory.display()).into())
}

/// Removes `directory`; true when it stays because it, or something below it, is among `kept`.
fn remove(directory: &Path, kept: &[PathBuf]) -> io::Result<bool> {
    let is_kept = kept.iter().any(|path| path == directory);
    let mut stays = is_kept;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if is_kept && entry.file_name() == LOST_AND_FOUND {
            continue;
        }
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            stays |= remove(&path, kept)?;
        } else {
            fs::remove_file(&path).map_err(|error| named(&path, &error))?;
        }
    }
    if !stays {
        match fs::remove_dir(directory) {
            // Mounted in another mount namespace, or meanwhile.
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => return Ok(true),
            removed => removed.map_err(|error| named(directory, &error))?,
        }
    }
    Ok(stays)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::remove;

    #[test]
    fn a_mount_point_is_emptied_and_stays_with_what_leads_to_it() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let fill = || {
            for directory in ["logs/1", "containerd/disk/lost+found", "lost+found"] {
                fs::create_dir_all(path(directory)).unwrap();
            }
            for file in ["node.redb", "logs/1/0.log", "containerd/disk/meta.db"] {
                fs::write(path(file), "x").unwrap();
            }
            std::os::unix::fs::symlink("/etc", path("link")).unwrap();
        };
        fill();
        let kept: Vec<PathBuf> = vec![path("containerd/disk")];
        assert!(remove(root.path(), &kept).unwrap());
        assert!(path("containerd/disk/lost+found").exists());
        for gone in ["node.redb", "logs", "containerd/disk/meta.db", "lost+found", "link"] {
            assert!(!path(gone).exists(), "{gone}");
        }
        fill();
        assert!(!remove(root.path(), &[]).unwrap());
        assert!(!root.path().exists() && fs::metadata("/etc").is_ok());
    }
}
