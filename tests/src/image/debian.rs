//! Debian's packages as files: which ones a program needs, and getting them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use crate::command::{output, run};

/// Packages that a container does without: they serve installation, administration or, in the case
/// of LLVM, PostgreSQL's just-in-time compiler, which the image turns off.
const LEFT_OUT: [&str; 20] = [
    "adduser",
    "cdebconf",
    "debconf",
    "dpkg",
    "gcc-12-base",
    "init-system-helpers",
    "iproute2",
    "libllvm14",
    "libpam-runtime",
    "locales",
    "lsb-base",
    "passwd",
    "perl",
    "perl-base",
    "postgresql-client-common",
    "postgresql-common",
    "ssl-cert",
    "sysvinit-utils",
    "ucf",
    "usrmerge",
];

/// `packages` and all they depend on, each as `NAME=VERSION`.
pub(super) fn closure(packages: &[&str]) -> Result<BTreeSet<String>> {
    let mut wanted: Vec<String> = packages.iter().map(|name| (*name).to_owned()).collect();
    let (mut seen, mut found) = (BTreeSet::new(), BTreeSet::new());
    while let Some(name) = wanted.pop() {
        if LEFT_OUT.contains(&name.as_str()) || !seen.insert(name.clone()) {
            continue;
        }
        let record = record(&name)?;
        let field = |key: &str| record.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let version = field("Version:").with_context(|| format!("{name} has no version"))?;
        found.insert(format!("{name}={version}"));
        for key in ["Depends:", "Pre-Depends:"] {
            let needed = field(key).unwrap_or_default().split(',').filter_map(first_choice);
            wanted.extend(needed.map(str::to_owned));
        }
    }
    Ok(found)
}

/// The first package of `a (>= 1) | b`.
fn first_choice(alternatives: &str) -> Option<&str> {
    let name = alternatives.split('|').next()?.split('(').next()?.trim();
    let name = name.split(':').next()?;
    (!name.is_empty()).then_some(name)
}

/// What apt knows of the newest version of a package.
fn record(name: &str) -> Result<String> {
    let show = || output("apt-cache", &["show", "--no-all-versions", name]);
    let mut shown = show()?;
    if shown.stdout.is_empty() {
        refresh()?;
        shown = show()?;
    }
    ensure!(!shown.stdout.is_empty(), "apt knows no package {name}: {}", String::from_utf8_lossy(&shown.stderr));
    Ok(String::from_utf8_lossy(&shown.stdout).into_owned())
}

/// Fetches apt's lists, at most once in a process.
fn refresh() -> Result<()> {
    static DONE: OnceLock<Result<String, String>> = OnceLock::new();
    let done = DONE.get_or_init(|| run("apt-get", &["update", "-qq"]).map_err(|error| format!("{error:#}")));
    done.as_ref().map(|_| ()).map_err(|error| anyhow::anyhow!("{error}"))
}

/// The file of `package`, `NAME=VERSION`, fetched into `folder` unless it is there.
pub(super) fn download(package: &str, folder: &Path) -> Result<PathBuf> {
    let (name, version) = package.split_once('=').context("a package is NAME=VERSION")?;
    // As apt names files: the epoch's colon is escaped.
    let prefix = format!("{name}_{}_", version.replace(':', "%3a"));
    fs::create_dir_all(folder)?;
    if let Some(path) = find(folder, &prefix)? {
        return Ok(path);
    }
    let unfinished = tempfile::tempdir_in(folder)?;
    let fetch = || {
        let mut command = std::process::Command::new("apt-get");
        command.args(["download", "-qq", "-o", "APT::Sandbox::User=root", package]);
        command.current_dir(unfinished.path()).output()
    };
    let mut fetched = fetch()?;
    if !fetched.status.success() {
        // The lists are older than the archive.
        refresh()?;
        fetched = fetch()?;
    }
    let path = find(unfinished.path(), &prefix)?;
    let path = path.with_context(|| {
        format!("cannot download {package}: {}", String::from_utf8_lossy(&fetched.stderr).trim())
    })?;
    let kept = folder.join(path.file_name().context("a file has a name")?);
    fs::rename(path, &kept)?;
    Ok(kept)
}

fn find(folder: &Path, prefix: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}
