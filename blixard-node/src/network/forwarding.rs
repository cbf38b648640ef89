//! Whether the node forwards packets, which containers need.
//!
//! Linux decides it by the interface that a packet comes in by. Where forwarding was off it is turned
//! on interface by interface, and `ip_forward`, which stands for all of them, is left as it is: that
//! it reads 1 later tells that somebody else wants the node to be a router.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::NetworkError;

const INTERFACES: &str = "/proc/sys/net/ipv4/conf";
/// The interface that stands for all, and the one that does not forward.
const ALL: &str = "all";
const LOOPBACK: &str = "lo";
/// What stands for those to come.
const DEFAULT: &str = "default";
/// The file that says that forwarding was turned on here: one line for each interface that did
/// forward before.
const MARK: &str = "forwarding";

/// What is forwarded beside containers' packets where forwarding was turned on for those.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Forwarded {
    /// Interfaces that forwarded before: what comes in there is somebody else's to judge.
    pub(super) routers: BTreeSet<String>,
    /// The others. Of them a bridge's own frames, which come and go by it, are forwarded by no router:
    /// the kernel shows them to the rules of routers where `br_netfilter` is there.
    pub(super) others: BTreeSet<String>,
}

/// Lets packets pass between the bridge and the world, and from the node's localhost to containers.
/// Where the node is no router otherwise: what else is to be forwarded.
pub(super) fn enable(directory: &Path, bridge: &str) -> Result<Option<Forwarded>, NetworkError> {
    set(bridge, "route_localnet", "1")?;
    no_ipv6(bridge)?;
    if is_router()? {
        return Ok(None);
    }
    let interfaces = interfaces()?;
    let mut forwarding = BTreeSet::new();
    for interface in &interfaces {
        if get(interface)? {
            forwarding.insert(interface.as_str());
        }
    }
    let mark = directory.join(MARK);
    if !mark.exists() {
        let before: String = forwarding.iter().map(|interface| format!("{interface}\n")).collect();
        std::fs::write(&mark, before).map_err(NetworkError::io(format!("write {}", mark.display())))?;
    }
    for interface in interfaces.iter().filter(|interface| !forwarding.contains(interface.as_str())) {
        set(interface, "forwarding", "1")?;
    }
    let before =
        std::fs::read_to_string(&mark).map_err(NetworkError::io(format!("read {}", mark.display())))?;
    let ours = |name: &str| name == bridge || name.starts_with(super::VETH);
    let known = interfaces.iter().filter(|name| *name != DEFAULT && !ours(name) && is_plain(name)).cloned();
    let (routers, others) = known.partition(|name| before.lines().any(|line| line == name));
    Ok(Some(Forwarded { routers, others }))
}

/// Whether a name can stand in a rule as it is: the kernel takes nearly everything for one.
fn is_plain(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:@-".contains(&byte))
}

/// Turns forwarding off again where [`enable`] turned it on, unless somebody else wants it since.
pub(super) fn restore(directory: &Path) -> Result<(), NetworkError> {
    let Ok(before) = std::fs::read_to_string(directory.join(MARK)) else { return Ok(()) };
    if is_router()? {
        return Ok(());
    }
    let before: BTreeSet<&str> = before.lines().collect();
    for interface in interfaces()?.iter().filter(|interface| !before.contains(interface.as_str())) {
        set(interface, "forwarding", "0")?;
    }
    Ok(())
}

/// Whether forwarding is on for all interfaces.
fn is_router() -> Result<bool, NetworkError> {
    get(ALL)
}

/// Every interface but loopback, and `default`, from which those to come have it.
fn interfaces() -> Result<Vec<String>, NetworkError> {
    let listing = std::fs::read_dir(INTERFACES).map_err(NetworkError::io(format!("list {INTERFACES}")))?;
    let names = listing.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| name != ALL && name != LOOPBACK).collect())
}

fn path(interface: &str, key: &str) -> PathBuf {
    Path::new(INTERFACES).join(interface).join(key)
}

/// Whether an interface forwards; one that is gone does not.
fn get(interface: &str) -> Result<bool, NetworkError> {
    let path = path(interface, "forwarding");
    match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        text => Ok(text.map_err(NetworkError::io(format!("read {}", path.display())))?.trim() != "0"),
    }
}

fn set(interface: &str, key: &str, value: &str) -> Result<(), NetworkError> {
    let path = path(interface, key);
    match std::fs::write(&path, value) {
        // It went meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound && key == "forwarding" => Ok(()),
        written => written.map_err(NetworkError::io(format!("write {value} to {}", path.display()))),
    }
}

/// The container network has IPv4 alone: with an address of IPv6 on its bridge, everything that the
/// node serves would be in reach. A kernel without IPv6 has nothing to turn off.
fn no_ipv6(bridge: &str) -> Result<(), NetworkError> {
    let path = format!("/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6");
    match std::fs::write(&path, "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written.map_err(NetworkError::io(format!("write 1 to {path}"))),
    }
}
