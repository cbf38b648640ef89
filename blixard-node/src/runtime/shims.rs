//! Shims that containerd has forgotten.
//!
//! A call that creates a process and is cut off, as its daemon is killed, may be so while
//! `containerd-shim-runc-v2 start` has made the shim and containerd has not heard of it. containerd
//! then removes the shim's working directory and forgets it, but the shim goes on and holds the
//! socket whose name follows from the container's. The next shim of this container would listen
//! there too; finding an answer there, containerd takes the forgotten one for it. That one cannot
//! work any more: it waits for ever for a reader of its log, which went with the directory, and
//! answers no call; or it answers that its files are not there.

use std::fs;
use std::os::unix::fs::MetadataExt;

use blixard_core::id::ContainerId;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

const PROGRAM: &[u8] = b"containerd-shim-runc-v2";

/// The containers of a containerd namespace with a shim whose working directory is gone.
pub(crate) fn forgotten(namespace: &str) -> Vec<ContainerId> {
    every_process().filter_map(|pid| forgotten_by(pid, namespace)).collect()
}

/// Ends the shims of a container whose working directory is gone, and says how many there were.
pub(crate) fn end_forgotten(namespace: &str, id: &ContainerId) -> usize {
    let end = |pid: &Pid| {
        // Held before it is looked at, so that it cannot become another's number in between.
        let Ok(process) = pidfd_open(*pid, PidfdFlags::empty()) else { return false };
        forgotten_by(*pid, namespace).as_ref() == Some(id) && pidfd_send_signal(process, Signal::KILL).is_ok()
    };
    every_process().filter(end).count()
}

fn every_process() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
}

/// Whose shim a process is, when it is one of the namespace and its working directory is gone.
fn forgotten_by(pid: Pid, namespace: &str) -> Option<ContainerId> {
    let process = format!("/proc/{}", pid.as_raw_nonzero());
    let command_line = fs::read(format!("{process}/cmdline")).ok()?;
    let id = shim_of(&command_line, namespace)?;
    let directory = fs::metadata(format!("{process}/cwd")).ok()?;
    (directory.nlink() == 0).then_some(id)
}

/// Whose shim a command line is, when it is one of the namespace.
fn shim_of(command_line: &[u8], namespace: &str) -> Option<ContainerId> {
    let mut arguments = command_line.split(|byte| *byte == 0);
    if !arguments.next()?.ends_with(PROGRAM) {
        return None;
    }
    let arguments: Vec<&[u8]> = arguments.collect();
    let value = |option: &[u8]| {
        let at = arguments.iter().position(|argument| *argument == option)?;
        arguments.get(at + 1).copied()
    };
    if value(b"-namespace")? != namespace.as_bytes() {
        return None;
    }
    String::from_utf8(value(b"-id")?.to_vec()).ok().map(ContainerId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shims_of_the_namespace_are_told_from_others() {
        let line =
            |program: &str| format!("{program}\0-namespace\0ours\0-id\0c0ffee\0-address\0/run/c.sock\0");
        let ours = line("/usr/bin/containerd-shim-runc-v2");
        assert_eq!(shim_of(ours.as_bytes(), "ours"), Some(ContainerId("c0ffee".into())));
        assert_eq!(shim_of(ours.as_bytes(), "our"), None);
        assert_eq!(shim_of(line("/usr/bin/less").as_bytes(), "ours"), None);
        assert_eq!(shim_of(b"", "ours"), None);
        assert_eq!(
            shim_of(b"containerd-shim-runc-v2\0-namespace\0ours\0-id\0", "ours"),
            Some(ContainerId("".into()))
        );
        assert_eq!(shim_of(b"containerd-shim-runc-v2\0-namespace", "ours"), None);
    }
}
