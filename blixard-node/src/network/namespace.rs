//! Network namespaces that outlive the process that made them.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rtnetlink::Handle;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::NetworkError;

/// A namespace just made: a descriptor to move links into it, and netlink inside it.
pub(super) struct Namespace {
    pub(super) descriptor: OwnedFd,
    pub(super) netlink: Handle,
}

/// Makes a namespace and keeps it alive by mounting it on a file at `path`.
pub(super) async fn create(path: &Path) -> Result<Namespace, NetworkError> {
    let path = path.to_owned();
    let failed = NetworkError::io(format!("make the network namespace {}", path.display()));
    // Before the thread: it cannot mount on a file that was removed since, so one whose start was cut
    // off leaves nothing that nobody finds.
    let placed = remove_mount(&path).and_then(|()| File::create(&path));
    placed.map_err(NetworkError::io(format!("make {}", path.display())))?;
    let runtime = tokio::runtime::Handle::current();
    let (done, made) = tokio::sync::oneshot::channel();
    // The thread ends in the new namespace, so it cannot be one of the runtime's.
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            let _context = runtime.enter();
            // A receiver that went away leaves the namespace to the next `remove` of its path.
            done.send(enter_new(&path)).ok();
        })
        .map_err(NetworkError::io("start a thread"))?;
    let made = made.await.unwrap_or_else(|_| Err(std::io::Error::other("the thread ended early")));
    let (descriptor, connection, netlink) = made.map_err(failed)?;
    spawn(connection);
    Ok(Namespace { descriptor, netlink })
}

type Made = (OwnedFd, rtnetlink::proto::Connection<rtnetlink::packet_route::RouteNetlinkMessage>, Handle);

#[expect(
    deprecated,
    reason = "its replacement is unsafe for CLONE_FILES and CLONE_FS, which are not asked for"
)]
fn enter_new(path: &PathBuf) -> std::io::Result<Made> {
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET)?;
    mount_bind("/proc/thread-self/ns/net", path)?;
    let descriptor = File::open("/proc/thread-self/ns/net")?.into();
    let (connection, netlink, _) = rtnetlink::new_connection()?;
    Ok((descriptor, connection, netlink))
}

#[expect(clippy::disallowed_methods, reason = "this is the Linux implementation of a seam")]
pub(super) fn spawn(connection: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(connection);
}

/// Whether the file at `path` keeps a namespace alive.
pub(super) fn exists(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == NSFS_MAGIC)
}

/// The type of the file system that namespaces are files of (linux/magic.h).
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// Lets a namespace go: the last process or mount that holds it ends it and its links.
pub(super) fn remove(path: &Path) -> Result<(), NetworkError> {
    remove_mount(path).map_err(NetworkError::io(format!("remove the network namespace {}", path.display())))
}

fn remove_mount(path: &Path) -> std::io::Result<()> {
    if exists(path) {
        unmount(path, UnmountFlags::DETACH)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
