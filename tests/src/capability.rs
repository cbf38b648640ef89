//! What a machine must offer before anything real can be tested on it.

use std::path::Path;

use anyhow::{Result, bail, ensure};

use crate::cleanup;
use crate::command::run;

/// Programs, and the Debian packages that have them.
const PROGRAMS: [(&str, &str); 10] = [
    ("containerd", "containerd"),
    ("containerd-shim-runc-v2", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("setsid", "util-linux"),
    ("busybox", "busybox-static"),
    ("docker-registry", "docker-registry"),
];

/// Tries everything that tests and demo need.
///
/// # Errors
/// With all that is missing, and what to do about it.
pub fn check() -> Result<()> {
    let mut missing = Vec::new();
    if !rustix::process::geteuid().is_root() {
        bail!("this needs root: it makes network namespaces, mounts and containers; run it with sudo");
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    for (program, package) in PROGRAMS {
        if !std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
            missing.push(format!("`{program}` is not installed: apt-get install {package}"));
        }
    }
    let mut probe = |what: &str, outcome: Result<()>| {
        if let Err(error) = outcome {
            missing.push(format!("{what}: {error:#}"));
        }
    };
    probe("network namespaces, bridges, veth pairs and nftables", network());
    probe("overlayfs", overlay());
    probe("cgroups", cgroups());
    ensure!(missing.is_empty(), "this machine lacks what is needed:\n  {}", missing.join("\n  "));
    Ok(())
}

fn network() -> Result<()> {
    let name = format!("{}probe", cleanup::prefix(std::process::id()));
    run("ip", &["netns", "add", &name])?;
    let try_all = || {
        run("ip", &["-n", &name, "link", "add", "bridge0", "type", "bridge"])?;
        run("ip", &["-n", &name, "link", "add", "veth0", "type", "veth", "peer", "name", "veth1"])?;
        let namespace = format!("--net=/run/netns/{name}");
        let rule = "add table ip probe; add chain ip probe nat { type nat hook prerouting priority -100; }; \
                    add rule ip probe nat tcp dport 80 dnat to numgen inc mod 2 map { 0 : 10.0.0.1, 1 : 10.0.0.2 }";
        run("nsenter", &[&namespace, "nft", rule]).map(drop)
    };
    let outcome = try_all();
    run("ip", &["netns", "delete", &name])?;
    outcome
}

fn overlay() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let at = |name: &str| directory.path().join(name);
    for name in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir(at(name))?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        at("lower").display(),
        at("upper").display(),
        at("work").display()
    );
    let place = at("merged").display().to_string();
    run("mount", &["-t", "overlay", "-o", &options, "overlay", &place])?;
    run("umount", &[&place]).map(drop)
}

fn cgroups() -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    let mounted = root.join("cgroup.controllers").exists() || root.join("memory").is_dir();
    ensure!(mounted, "nothing is mounted at /sys/fs/cgroup");
    Ok(())
}
