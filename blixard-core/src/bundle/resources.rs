//! `resources`: what a container may use, and what a node must have free for it.

use super::diagnostic::Fault;
use super::number::{cpu, memory, whole};
use super::walk::{Section, Walk};
use crate::limits::MEMORY_LIMIT_MIN;
use crate::spec::{Reservations, ResourceLimits};

const KEYS: [&str; 8] =
    ["cpu", "memory", "cpu_shares", "cpu_quota", "memory_limit", "memory_swap", "blkio_weight", "pids_limit"];

/// A limit of 0 is none: so tools write bundles that set only some.
pub(super) fn read(walk: &mut Walk<'_>, root: &Section<'_>) -> (ResourceLimits, Reservations) {
    let nothing = (ResourceLimits::default(), Reservations::default());
    let Some(field) = root.get("resources") else { return nothing };
    let Some(section) = walk.section(&field, &KEYS, "{memory_limit: 512MiB}") else { return nothing };
    let memory_limit = walk.key(&section, "memory_limit", memory_limit);
    let limits = ResourceLimits {
        cpu_shares: walk.key(&section, "cpu_shares", cpu_shares).flatten(),
        cpu_quota_us: walk.key(&section, "cpu_quota", cpu_quota).flatten(),
        memory_bytes: memory_limit.flatten(),
        memory_swap_bytes: walk.key(&section, "memory_swap", memory_swap).flatten(),
        blkio_weight: walk.key(&section, "blkio_weight", blkio_weight).flatten(),
        pids: walk.key(&section, "pids_limit", pids).flatten(),
    };
    let reservations = Reservations {
        cpu_millis: walk.key(&section, "cpu", cpu).unwrap_or_default(),
        memory_bytes: walk.key(&section, "memory", memory).unwrap_or_default(),
    };
    // A limit that is there and faulty is told of already.
    let told = section.get("memory_limit").is_some() && memory_limit.is_none();
    for (key, fault) in check(&limits, reservations) {
        if let Some(field) = section.get(key).filter(|_| !told) {
            walk.fail(&field, fault);
        }
    }
    (limits, reservations)
}

/// What is wrong with the limits and reservations beside each other, by their keys.
pub(super) fn check(limits: &ResourceLimits, reservations: Reservations) -> Vec<(&'static str, Fault)> {
    let mut faults = Vec::new();
    match (limits.memory_swap_bytes, limits.memory_bytes.map(i64::try_from)) {
        (Some(_), None) => {
            let fault = Fault::new("needs `resources.memory_limit`, of which it is the larger");
            faults.push(("memory_swap", fault));
        }
        (Some(swap), Some(Ok(limit))) if swap != -1 && swap < limit => {
            let message = format!("is {swap} bytes, less than `resources.memory_limit` with {limit}");
            let hint = "it counts memory and swap together; -1 is unlimited swap";
            faults.push(("memory_swap", Fault::new(message).hint(hint)));
        }
        _ => {}
    }
    if let Some(limit) = limits.memory_bytes.filter(|limit| reservations.memory_bytes > *limit) {
        let reserved = reservations.memory_bytes;
        let message =
            format!("reserves {reserved} bytes, more than `resources.memory_limit` allows with {limit}");
        faults.push(("memory", Fault::new(message)));
    }
    faults
}

fn limit(text: &str, min: i64, max: i64) -> Result<Option<i64>, Fault> {
    if text == "0" { Ok(None) } else { whole(text, min..=max).map(Some) }
}

pub(super) fn cpu_shares(text: &str) -> Result<Option<u64>, Fault> {
    Ok(limit(text, 2, 262_144)?.and_then(|shares| u64::try_from(shares).ok()))
}

pub(super) fn pids(text: &str) -> Result<Option<i64>, Fault> {
    Ok(Some(whole(text, -1..=i64::MAX)?).filter(|pids| *pids != 0))
}

pub(super) fn cpu_quota(text: &str) -> Result<Option<i64>, Fault> {
    if text == "-1" {
        return Ok(None);
    }
    limit(text, 1_000, i64::MAX)
        .map_err(|fault| fault.hint("microseconds for each 100 ms: 50000 is half a CPU, 200000 two"))
}

pub(super) fn blkio_weight(text: &str) -> Result<Option<u16>, Fault> {
    Ok(limit(text, 10, 1_000)?.and_then(|weight| u16::try_from(weight).ok()))
}

pub(super) fn memory_limit(text: &str) -> Result<Option<u64>, Fault> {
    match memory(text)? {
        0 => Ok(None),
        bytes if bytes < MEMORY_LIMIT_MIN => Err(Fault::new(format!(
            "is {bytes} bytes, less than a container needs to start: {MEMORY_LIMIT_MIN}"
        ))),
        bytes => Ok(Some(bytes)),
    }
}

pub(super) fn memory_swap(text: &str) -> Result<Option<i64>, Fault> {
    if text == "-1" {
        return Ok(Some(-1));
    }
    let bytes = memory(text)?;
    Ok(i64::try_from(bytes).ok().filter(|bytes| *bytes != 0))
}
