//! Debian's packages as files: which ones a program needs, and getting them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

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

/// The files of `packages` and of all they depend on, kept in `folder`.
pub(super) fn fetch(packages: &[&str], folder: &Path) -> Result<Vec<PathBuf>> {
    if packages.is_empty() {
        return Ok(Vec::new());
    }
    fs::create_dir_all(folder)?;
    let wanted = closure(packages)?;
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|package| package.find(folder).is_none())
        .map(|package| package.spec.as_str())
        .collect();
    if !missing.is_empty() {
        download(&missing, folder)?;
    }
    let file = |package: &Package| {
        package.find(folder).with_context(|| format!("apt-get downloaded no file for {}", package.spec))
    };
    wanted.iter().map(file).collect()
}

/// One version of a package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    /// `NAME=VERSION`
    spec: String,
}

impl Package {
    /// Its file in `folder`.
    fn find(&self, folder: &Path) -> Option<PathBuf> {
        // As apt names files: the epoch's colon is escaped.
        let prefix = self.spec.replacen('=', "_", 1).replace(':', "%3a") + "_";
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path())
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
    }
}

/// `packages` and all they depend on.
fn closure(packages: &[&str]) -> Result<BTreeSet<Package>> {
    let mut wanted: BTreeSet<String> = packages.iter().map(|name| (*name).to_owned()).collect();
    let (mut seen, mut found) = (BTreeSet::new(), BTreeSet::new());
    while !wanted.is_empty() {
        let names: Vec<&str> = wanted.iter().map(String::as_str).collect();
        let records = records(&names)?;
        seen.append(&mut wanted);
        for record in records.split("\n\n").filter(|record| !record.trim().is_empty()) {
            let field = |key: &str| record.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
            let name = field("Package:").context("a package without a name")?;
            let version = field("Version:").context("a package without a version")?;
            found.insert(Package { spec: format!("{name}={version}") });
            for key in ["Depends:", "Pre-Depends:"] {
                let needed = field(key).unwrap_or_default().split(',').filter_map(first_choice);
                wanted.extend(needed.filter(|name| !LEFT_OUT.contains(name)).map(str::to_owned));
            }
        }
        wanted.retain(|name| !seen.contains(name));
    }
    Ok(found)
}

/// The first package of `a (>= 1) | b`.
fn first_choice(alternatives: &str) -> Option<&str> {
    let name = alternatives.split('|').next()?.split('(').next()?.trim();
    let name = name.split(':').next()?;
    (!name.is_empty()).then_some(name)
}

/// What apt knows of the newest versions of packages.
fn records(names: &[&str]) -> Result<String> {
    let show = || output("apt-cache", &[&["show", "--no-all-versions"], names].concat());
    let mut shown = show()?;
    if !shown.status.success() {
        run("apt-get", &["update", "-qq"])?;
        shown = show()?;
    }
    ensure!(
        shown.status.success(),
        "apt does not know all of {names:?}: {}",
        String::from_utf8_lossy(&shown.stderr)
    );
    Ok(String::from_utf8_lossy(&shown.stdout).into_owned())
}

/// Downloads `packages`, each `NAME=VERSION`, into `folder`.
fn download(packages: &[&str], folder: &Path) -> Result<()> {
    // Half a file must never be taken for a whole one, also when this process is killed.
    let unfinished = tempfile::tempdir_in(folder)?;
    let fetch = || {
        let mut command = std::process::Command::new("apt-get");
        command.args(["download", "-qq", "-o", "APT::Sandbox::User=root"]).args(packages);
        command.current_dir(unfinished.path()).output()
    };
    let mut fetched = fetch()?;
    if !fetched.status.success() {
        // The lists may be older than the archive.
        run("apt-get", &["update", "-qq"])?;
        fetched = fetch()?;
    }
    let told = String::from_utf8_lossy(&fetched.stderr);
    ensure!(fetched.status.success(), "cannot download {packages:?}: {}", told.trim());
    for entry in fs::read_dir(unfinished.path())? {
        let entry = entry?;
        fs::rename(entry.path(), folder.join(entry.file_name()))?;
    }
    Ok(())
}
