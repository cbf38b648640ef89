//! Finds and ends processes by pid: a host's daemon, its containerd, shims and containers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// The environment variable that marks every process started for a test host. Children inherit
/// it, so containerd and its shims carry it too.
pub const MARK: &str = "BLIXARD_TEST_HOST";

/// Every running process that carries `mark`, and all their descendants.
pub fn of_host(mark: &str) -> BTreeSet<u32> {
    matching(|found| found == mark)
}

/// Every running process whose mark starts with `prefix`, and all their descendants.
pub fn of_prefix(prefix: &str) -> BTreeSet<u32> {
    matching(|found| found.starts_with(prefix))
}

fn matching(wanted: impl Fn(&str) -> bool) -> BTreeSet<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let mut found = Vec::new();
    for pid in all() {
        if let Some(parent) = parent_of(pid) {
            children.entry(parent).or_default().push(pid);
        }
        if mark_of(pid).is_some_and(|mark| wanted(&mark)) {
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

fn mark_of(pid: u32) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let prefix = format!("{MARK}=");
    let entry =
        environment.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(prefix.as_bytes()))?;
    Some(String::from_utf8_lossy(entry).into_owned())
}

fn all() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// What follows the name in /proc/PID/stat: the state, the parent, and so on.
fn stat(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so the fields are counted from its end.
    Some(stat.rsplit_once(')')?.1.trim_start().to_owned())
}

fn parent_of(pid: u32) -> Option<u32> {
    stat(pid)?.split_whitespace().nth(1)?.parse().ok()
}

/// The name of a process's program; absent once it ended.
pub fn name_of(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned())
}

/// Whether a process exists and has not ended.
pub fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| !stat.starts_with('Z') && !stat.starts_with('X'))
}

/// Sends `signal`; a process that has ended is none of its business.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        kill_process(pid, signal).ok();
    }
}

/// Ends every process of a host at once, as a power failure would, until none is left.
pub fn power_off(mark: &str) {
    end(|| of_host(mark));
}

/// Ends every process that `find` gives until it gives none. All are halted before the first is
/// killed: a child whose parent is gone could not be found any more.
pub fn end(find: impl Fn() -> BTreeSet<u32>) {
    let mut halted = BTreeSet::new();
    loop {
        let alive: BTreeSet<u32> = find().into_iter().filter(|pid| is_alive(*pid)).collect();
        if alive.is_empty() && halted.iter().all(|pid| !is_alive(*pid)) {
            return;
        }
        let fresh: Vec<u32> = alive.difference(&halted).copied().collect();
        for pid in &fresh {
            signal(*pid, Signal::STOP);
        }
        halted.extend(&fresh);
        if fresh.is_empty() {
            halted.iter().for_each(|pid| signal(*pid, Signal::KILL));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
