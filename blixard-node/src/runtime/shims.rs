//! Shims that containerd has forgotten.
//!
//! A call that creates a process and is cut off, as its daemon is killed, may be so while
//! `containerd-shim-runc-v2 start` has made the shim and containerd has not heard of it. containerd
//! then removes the shim's working directory and forgets it, but the shim goes on and holds the
//! socket whose name follows from the container's. The next shim of this container would listen
//! there too; finding an answer there, containerd takes the forgotten one for it. That one cannot
//! work any more: it waits for ever for a reader of its log, which went with the directory, and
//! answers no call; or it answers that its files are not there.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use blixard_core::id::ContainerId;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::cgroups;
use super::inventory::is_container_id;
use super::remains::owner;

const PROGRAM: &[u8] = b"containerd-shim-runc-v2";
/// The program's name as the kernel keeps it: 15 bytes.
const COMM: &str = "containerd-shim\n";

/// The containers of a containerd namespace with a shim whose working directory is gone.
pub(crate) fn forgotten(namespace: &str) -> Vec<ContainerId> {
    every_process().filter_map(|pid| forgotten_by(pid, namespace)).collect()
}

/// Ends the shims of a container whose working directory is gone, and says how many there were.
/// What still runs in the container's cgroup goes first: a containerd that lost its records forgets
/// shims of running containers, too.
pub(crate) fn end_forgotten(namespace: &str, id: &ContainerId, cgroup: &Path) -> usize {
    let is_forgotten = |pid: &Pid| forgotten_by(*pid, namespace).as_ref() == Some(id);
    let end = |pid: &Pid| {
        // Held and looked at again, so that it cannot become another's number in between.
        let Ok(process) = pidfd_open(*pid, PidfdFlags::empty()) else { return false };
        if !is_forgotten(pid) {
            return false;
        }
        cgroups::kill(cgroup);
        pidfd_send_signal(process, Signal::KILL).is_ok()
    };
    every_process().filter(is_forgotten).filter(end).count()
}

/// Ends every shim of the containerd that listens on `socket`, and before each what runs in its
/// container. Answers the namespaces they were of.
pub(crate) fn end_all(socket: &Path) -> BTreeSet<String> {
    let mut namespaces = BTreeSet::new();
    for pid in every_process().filter(|pid| comm(*pid).as_deref() == Some(COMM)) {
        // Held first, so that it cannot become another's number in between.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        let Ok(line) = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())) else { continue };
        let value = |option: &[u8]| {
            let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            let at = arguments.iter().position(|argument| *argument == option)?;
            arguments.get(at + 1).and_then(|value| String::from_utf8(value.to_vec()).ok())
        };
        if value(b"-address").is_none_or(|address| Path::new(&address) != socket) {
            continue;
        }
        let Some(namespace) = value(b"-namespace") else { continue };
        if let (Some((_, node)), Some(id)) = (owner(&namespace), shim_of(&line, &namespace)) {
            cgroups::kill(Path::new(&format!("/{}/{node}/{id}", cgroups::PARENT)));
        }
        namespaces.insert(namespace);
        // One that has ended meanwhile needs no signal.
        let _ = pidfd_send_signal(process, Signal::KILL);
    }
    namespaces
}

/// A process's name as the kernel keeps it, with a line end. Safe of one that hangs in the kernel,
/// of which reading the command line may hang.
pub(super) fn comm(pid: Pid) -> Option<String> {
    fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero())).ok()
}

pub(super) fn every_process() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
}

/// Whose shim a process is, when it is one of the namespace and its working directory is gone.
fn forgotten_by(pid: Pid, namespace: &str) -> Option<ContainerId> {
    let process = format!("/proc/{}", pid.as_raw_nonzero());
    // First: reading the command line of a process that hangs in the kernel may hang.
    if fs::read_to_string(format!("{process}/comm")).ok()? != COMM || fs::metadata(&process).ok()?.uid() != 0
    {
        return None;
    }
    let command_line = fs::read(format!("{process}/cmdline")).ok()?;
    let id = shim_of(&command_line, namespace)?;
    let directory = fs::metadata(format!("{process}/cwd")).ok()?;
    (directory.nlink() == 0).then_some(id)
}

/// Whose shim a command line is, when it is one of the namespace; any process can have any.
fn shim_of(command_line: &[u8], namespace: &str) -> Option<ContainerId> {
    let mut arguments = command_line.split(|byte| *byte == 0).filter(|argument| !argument.is_empty());
    if !arguments.next()?.ends_with(PROGRAM) {
        return None;
    }
    let arguments: Vec<&[u8]> = arguments.collect();
    // Those that make a shim, or clear up after one, are no shims.
    if matches!(arguments.last().copied(), Some(b"start" | b"delete")) {
        return None;
    }
    let value = |option: &[u8]| {
        let at = arguments.iter().position(|argument| *argument == option)?;
        std::str::from_utf8(arguments.get(at + 1)?).ok()
    };
    let id = value(b"-id").filter(|id| is_container_id(id))?;
    (value(b"-namespace")? == namespace).then(|| ContainerId(id.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shims_of_the_namespace_are_told_from_others() {
        let id = "c0ffee".repeat(11)[..64].to_owned();
        let of = |program: &str, id: &str, action: &str| {
            let line = format!("{program}\0-namespace\0ours\0-id\0{id}\0-address\0/run/c.sock\0{action}");
            (shim_of(line.as_bytes(), "ours"), shim_of(line.as_bytes(), "theirs"))
        };
        let shim = "/usr/bin/containerd-shim-runc-v2";
        assert_eq!(of(shim, &id, ""), (Some(ContainerId(id.clone())), None));
        for (program, id, action) in [
            ("/usr/bin/less", id.as_str(), ""),
            (shim, &id, "start\0"),
            (shim, &id, "delete\0"),
            (shim, "/etc", ""),
            (shim, "../../etc", ""),
            (shim, "", ""),
        ] {
            assert_eq!(of(program, id, action), (None, None), "{program} {id} {action}");
        }
        assert_eq!(shim_of(b"", "ours"), None);
        assert_eq!(shim_of(b"containerd-shim-runc-v2\0-id", "ours"), None);
    }

    #[test]
    fn command_lines_survive_every_damage() {
        let id = "c0".repeat(32);
        let line =
            format!("/usr/bin/containerd-shim-runc-v2\0-namespace\0ours\0-id\0{id}\0-address\0/run/c.sock\0");
        damage::survives("command line of a shim", &[line.into_bytes()], |input| {
            let id = shim_of(input, "ours").ok_or("it is no shim")?;
            assert!(is_container_id(&id.0), "{id:?}");
            Ok(())
        });
    }
}
