//! Finds and ends processes by pid: a host's daemon, its containerd, shims and containers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use rustix::process::{Pid, Signal, kill_process};

/// The environment variable that marks every process started for a test host. Children inherit
/// it, so containerd and its shims carry it too.
pub const MARK: &str = "BLIXARD_TEST_HOST";

/// Every running process that carries `mark`, and all their descendants.
pub fn of_host(mark: &str) -> BTreeSet<u32> {
    let wanted = format!("{MARK}={mark}").into_bytes();
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let mut found = Vec::new();
    for pid in all() {
        if let Some(parent) = parent_of(pid) {
            children.entry(parent).or_default().push(pid);
        }
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|entry| entry == wanted) {
            found.push(pid);
        }
    }
    let mut all = BTreeSet::new();
    while let Some(pid) = found.pop() {
        if all.insert(pid) {
            found.extend(children.remove(&pid).unwrap_or_default());
        }
    }
    all
}

fn all() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so the fields are counted from its end.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The name of a process's program; absent once it ended.
pub fn name_of(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned())
}

/// Whether a process exists and has not ended.
pub fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(')').map(|(_, rest)| rest.trim_start().starts_with('Z')))
        .is_some_and(|zombie| !zombie)
}

/// Sends `signal`; a process that has ended is none of its business.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        kill_process(pid, signal).ok();
    }
}

/// Ends every process of a host at once, as a power failure would, until none is left.
pub fn power_off(mark: &str) {
    loop {
        let alive: Vec<u32> = of_host(mark).into_iter().filter(|pid| is_alive(*pid)).collect();
        if alive.is_empty() {
            return;
        }
        for pid in alive {
            signal(pid, Signal::KILL);
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
