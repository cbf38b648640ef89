//! A container's limits as cgroup settings, for the hierarchies of this machine: cgroup v1, v2, or
//! both mounted side by side.

use std::path::{Path, PathBuf};

use blixard_core::spec::ResourceLimits;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxBlockIoBuilder, LinuxCpuBuilder, LinuxDeviceCgroupBuilder, LinuxMemoryBuilder, LinuxPidsBuilder,
    LinuxResources, LinuxResourcesBuilder,
};
use rustix::process::{Pid, Signal, kill_process};

use super::client::disk;
use crate::platform::RuntimeError;

/// The cgroup under which every container of every node of this machine lives.
pub(crate) const PARENT: &str = "blixard";

const MOUNT: &str = "/sys/fs/cgroup";
/// The period that a CPU quota counts for, in microseconds: the bundle's unit.
const CPU_PERIOD_US: u64 = 100_000;

/// Which limits this machine's kernel can enforce. Setting one that it cannot makes runc fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CgroupSupport {
    /// CPU weights and quotas.
    pub(crate) cpu: bool,
    /// Memory.
    pub(crate) memory: bool,
    /// Memory and swap together.
    pub(crate) swap: bool,
    /// Weights for block I/O.
    pub(crate) blkio_weight: bool,
    /// Numbers of processes.
    pub(crate) pids: bool,
    /// Namespaces of cgroups.
    pub(crate) namespace: bool,
}

impl CgroupSupport {
    /// Asks the kernel. Makes the parent cgroup, since some settings show in no root cgroup.
    pub(crate) fn detect() -> Self {
        let mount = Path::new(MOUNT);
        let namespace = Path::new("/proc/self/ns/cgroup").exists();
        if let Ok(controllers) = std::fs::read_to_string(mount.join("cgroup.controllers")) {
            let has = |name: &str| controllers.split_whitespace().any(|controller| controller == name);
            let parent = mount.join(PARENT);
            // Both fail harmlessly where the cgroup or its controllers are there already or are
            // not ours to make: what can be set is then read off below.
            let _ = std::fs::create_dir(&parent);
            let _ = std::fs::write(mount.join("cgroup.subtree_control"), "+io +memory");
            return Self {
                cpu: has("cpu"),
                memory: has("memory"),
                swap: parent.join("memory.swap.max").exists(),
                blkio_weight: parent.join("io.weight").exists() || parent.join("io.bfq.weight").exists(),
                pids: has("pids"),
                namespace,
            };
        }
        let blkio = mount.join("blkio").join(PARENT);
        if mount.join("blkio").is_dir() {
            let _ = std::fs::create_dir(&blkio);
        }
        Self {
            cpu: mount.join("cpu/cpu.cfs_quota_us").exists(),
            memory: mount.join("memory/memory.limit_in_bytes").exists(),
            swap: mount.join("memory/memory.memsw.limit_in_bytes").exists(),
            blkio_weight: blkio.join("blkio.weight").exists() || blkio.join("blkio.bfq.weight").exists(),
            pids: mount.join("pids").is_dir(),
            namespace,
        }
    }
}

/// Checks that containers can be made here: runc puts each into a cgroup.
///
/// # Errors
/// [`RuntimeError::Invalid`] when no cgroup file system is mounted.
pub(crate) fn check_mounted() -> Result<(), RuntimeError> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo");
    let mounts = mounts.map_err(|error| disk("read the mounts", &error))?;
    if has_cgroups(&mounts) {
        return Ok(());
    }
    Err(RuntimeError::Invalid(format!(
        "no cgroup file system is mounted under {MOUNT}, which containers need: `ip netns exec` hides it, \
         `nsenter --net=/run/netns/NAME blixard node` does not"
    )))
}

/// Whether a list of mounts, as of proc_pid_mountinfo(5), has a cgroup file system in its place.
fn has_cgroups(mounts: &str) -> bool {
    mounts.lines().any(|mount| {
        let in_place = mount.split(' ').nth(4).is_some_and(|point| point.starts_with(MOUNT));
        in_place && (mount.contains(" - cgroup ") || mount.contains(" - cgroup2 "))
    })
}

/// Translates limits. The second part names those this machine cannot enforce, which are left out.
pub(crate) fn resources(
    limits: &ResourceLimits,
    support: CgroupSupport,
) -> Result<(LinuxResources, Vec<&'static str>), OciSpecError> {
    let mut missing = Vec::new();
    let mut supported = |set: bool, can: bool, name: &'static str| {
        if set && !can {
            missing.push(name);
        }
        set && can
    };
    // Nothing is allowed but the few devices every container has, which runc adds.
    let devices = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?;
    let mut resources = LinuxResourcesBuilder::default().devices(vec![devices]);

    let cpu_set = limits.cpu_shares.is_some() || limits.cpu_quota_us.is_some();
    if supported(cpu_set, support.cpu, "cpu") {
        let mut cpu = LinuxCpuBuilder::default();
        if let Some(shares) = limits.cpu_shares {
            cpu = cpu.shares(shares);
        }
        if let Some(quota) = limits.cpu_quota_us {
            cpu = cpu.quota(quota).period(CPU_PERIOD_US);
        }
        resources = resources.cpu(cpu.build()?);
    }
    if supported(limits.memory_bytes.is_some(), support.memory, "memory") {
        let bytes = limits.memory_bytes.unwrap_or(u64::MAX);
        let mut memory = LinuxMemoryBuilder::default().limit(i64::try_from(bytes).unwrap_or(i64::MAX));
        if supported(limits.memory_swap_bytes.is_some(), support.swap, "memory_swap") {
            memory = memory.swap(limits.memory_swap_bytes.unwrap_or(-1));
        }
        resources = resources.memory(memory.build()?);
    }
    if supported(limits.blkio_weight.is_some(), support.blkio_weight, "blkio_weight") {
        let weight = limits.blkio_weight.unwrap_or_default();
        resources = resources.block_io(LinuxBlockIoBuilder::default().weight(weight).build()?);
    }
    if supported(limits.pids.is_some(), support.pids, "pids") {
        let limit = limits.pids.unwrap_or(-1);
        resources = resources.pids(LinuxPidsBuilder::default().limit(limit).build()?);
    }
    Ok((resources.build()?, missing))
}

/// How many processes of the cgroup `path` the kernel killed for want of memory; 0 where it does not count.
pub(crate) fn oom_kills(path: &Path) -> u64 {
    let path = path.strip_prefix("/").unwrap_or(path);
    let files = ["memory.events", "memory.oom_control"];
    let counted = hierarchies().into_iter().flat_map(|root| files.map(|file| root.join(path).join(file)));
    counted.filter_map(|file| oom_kills_in(&std::fs::read_to_string(file).ok()?)).max().unwrap_or(0)
}

/// Reads cgroup v2's `memory.events` or v1's `memory.oom_control`.
fn oom_kills_in(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// Kills every process in the cgroup `path`, in whichever hierarchies it is.
pub(crate) fn kill(path: &Path) {
    let path = path.strip_prefix("/").unwrap_or(path);
    for root in hierarchies() {
        let Ok(processes) = std::fs::read_to_string(root.join(path).join("cgroup.procs")) else { continue };
        for pid in processes.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
            // One that has ended meanwhile needs no signal.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Removes the cgroup `path` (relative, as `blixard/1`) of every hierarchy, when nothing is in it.
pub(crate) fn remove(path: &str) {
    for root in hierarchies() {
        // A directory of a cgroup that is in use, or is none, stays.
        let _ = std::fs::remove_dir(root.join(path));
    }
}

fn hierarchies() -> Vec<PathBuf> {
    let mount = Path::new(MOUNT);
    let mut roots = vec![mount.to_path_buf()];
    if let Ok(entries) = std::fs::read_dir(mount) {
        roots.extend(entries.flatten().map(|entry| entry.path()));
    }
    roots
}

#[cfg(test)]
mod tests {
    use blixard_core::spec::ResourceLimits;

    use super::{CgroupSupport, has_cgroups, oom_kills_in, resources};

    const ALL: CgroupSupport = CgroupSupport {
        cpu: true,
        memory: true,
        swap: true,
        blkio_weight: true,
        pids: true,
        namespace: true,
    };

    fn limits() -> ResourceLimits {
        ResourceLimits {
            cpu_shares: Some(512),
            cpu_quota_us: Some(50_000),
            memory_bytes: Some(64 << 20),
            memory_swap_bytes: Some(-1),
            blkio_weight: Some(300),
            pids: Some(20),
        }
    }

    #[test]
    fn a_cgroup_file_system_is_seen_in_its_place() {
        let sys = "24 1 0:22 / /sys rw,nosuid - sysfs sysfs rw\n";
        let check = |mount: &str, expect: bool| {
            assert_eq!(has_cgroups(&format!("{sys}{mount}")), expect, "{mount}");
        };
        check("", false);
        check("30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n", true);
        check("30 24 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n", false);
        check("31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n", true);
        check("31 30 0:27 / /mnt/cgroup rw - cgroup2 cgroup2 rw\n", false);
    }

    #[test]
    fn kills_for_want_of_memory_are_counted_by_both_versions() {
        let check = |text: &str, expect: Option<u64>| assert_eq!(oom_kills_in(text), expect, "{text}");
        check("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n", Some(2));
        check("oom_kill_disable 0\nunder_oom 1\noom_kill 1\n", Some(1));
        check("oom_kill_disable 0\nunder_oom 0\n", None);
        check("", None);
    }

    #[test]
    fn every_limit_reaches_its_controller() {
        let (resources, missing) = resources(&limits(), ALL).expect("resources");
        assert!(missing.is_empty());
        let cpu = resources.cpu().as_ref().expect("cpu");
        assert_eq!((cpu.shares(), cpu.quota(), cpu.period()), (Some(512), Some(50_000), Some(100_000)));
        let memory = resources.memory().as_ref().expect("memory");
        assert_eq!((memory.limit(), memory.swap()), (Some(64 << 20), Some(-1)));
        assert_eq!(resources.block_io().as_ref().expect("block I/O").weight(), Some(300));
        assert_eq!(resources.pids().as_ref().expect("pids").limit(), 20);
    }

    #[test]
    fn what_the_kernel_lacks_is_left_out_and_named() {
        let support = CgroupSupport { swap: false, blkio_weight: false, ..ALL };
        let (resources, missing) = resources(&limits(), support).expect("resources");
        assert_eq!(missing, ["memory_swap", "blkio_weight"]);
        assert!(resources.block_io().is_none());
        assert_eq!(resources.memory().as_ref().expect("memory").swap(), None);
    }

    #[test]
    fn what_the_kernel_says_of_cgroups_survives_every_damage() {
        let seeds = ["low 0\noom 3\noom_kill 2\n", "oom_kill_disable 0\nunder_oom 1\noom_kill 1\n"];
        damage::survives("memory.events", &seeds.map(|text| text.as_bytes().to_vec()), |input| {
            let text = String::from_utf8_lossy(input);
            let count = oom_kills_in(&text).ok_or("it does not count")?;
            assert!(count == 0 || text.contains("oom_kill "), "{count}");
            Ok(())
        });
        let mounts = "24 1 0:22 / /sys rw - sysfs sysfs rw\n30 24 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n";
        damage::survives("mountinfo, for cgroups", &[mounts.as_bytes().to_vec()], |input| {
            has_cgroups(&String::from_utf8_lossy(input)).then_some(()).ok_or("there are none".to_owned())
        });
    }
}
