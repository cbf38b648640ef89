//! What a machine loses with its power besides its processes: mounts, cgroups, `/run`.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};
use sha2::{Digest, Sha256};

/// Where the node whose data are in `data` keeps sockets and running state.
pub fn run_directory(data: &Path) -> PathBuf {
    let data = data.canonicalize().unwrap_or_else(|_| data.to_path_buf());
    let digest = hex::encode(Sha256::digest(data.as_os_str().as_encoded_bytes()));
    Path::new("/run/blixard").join(&digest[..12])
}

/// Removes what a reboot clears of the node whose data are in `data`. Its processes must be gone.
pub fn forget_running_state(data: &Path) {
    let run = run_directory(data);
    remove_cgroups(&run);
    unmount_below(&run);
    unmount_below(data);
    // What is not there need not be removed.
    fs::remove_dir_all(&run).ok();
}

/// Unmounts all below `folder`, the youngest mount first, but not `folder` itself.
pub fn unmount_below(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let places: Vec<PathBuf> =
        mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from).collect();
    for place in places.iter().rev().filter(|place| place.starts_with(folder) && place.as_path() != folder) {
        unmount(place, UnmountFlags::DETACH).ok();
    }
}

/// Removes the cgroups of the containers whose bundles are still under `run`.
fn remove_cgroups(run: &Path) {
    let root = Path::new("/sys/fs/cgroup");
    let groups: Vec<PathBuf> = std::iter::once(root.to_owned())
        .chain(entries(root))
        .flat_map(|hierarchy| entries(&hierarchy.join("blixard")))
        .collect();
    let namespaces = entries(&run.join("state/io.containerd.runtime.v2.task"));
    for container in namespaces.iter().flat_map(|namespace| entries(namespace)) {
        let Some(id) = container.file_name() else { continue };
        // Most do not exist. A group in which something still runs does not go.
        groups.iter().for_each(|group| drop(fs::remove_dir(group.join(id))));
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
