//! Which paths of the host containers may be given. It is a right: whoever may submit a service would
//! else be root on the node by binding `/etc`.

use std::io;
use std::path::{Component, Path, PathBuf};

use blixard_core::spec::{MountKind, MountSpec};

use super::client::disk;
use crate::platform::RuntimeError;

/// Refused with all below them, unless allowed.
const REFUSED: [&str; 7] = ["/etc", "/proc", "/sys", "/dev", "/boot", "/root", "/run"];
/// Given read-only all the same: containers take the node's time zone from them.
const READ_ONLY: [&str; 2] = ["/etc/localtime", "/etc/timezone"];

/// What one node gives to containers. All paths are real ones.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostPaths {
    /// Directories of the system.
    system: Vec<PathBuf>,
    /// Directories of blixard itself.
    own: Vec<PathBuf>,
    /// What `--allow-path` adds.
    allowed: Vec<PathBuf>,
}

impl HostPaths {
    /// The rules of a node whose own directories are `own`, and that allows `allowed` besides.
    pub(crate) fn new<'a>(own: &[&Path], allowed: impl Iterator<Item = &'a Path>) -> Self {
        let real = |path: &Path| real_path(path).unwrap_or_else(|_| path.to_path_buf());
        Self {
            system: REFUSED.iter().map(|path| real(Path::new(path))).collect(),
            own: own.iter().map(|path| real(path)).collect(),
            allowed: allowed.map(real).collect(),
        }
    }

    /// Why the volumes that a new service asks for are not for containers.
    pub(crate) fn refusals(&self, volumes: &[MountSpec]) -> Vec<String> {
        let why = |volume: &MountSpec| {
            let real = real_path(Path::new(&volume.source)).ok()?;
            Some(why(&volume.source, &real, &self.refusal(volume, &real)?))
        };
        volumes.iter().filter(|mount| mount.kind == MountKind::HostPath).filter_map(why).collect()
    }

    /// Where a volume's source really is, links resolved: that is what is checked, and what is to be
    /// bound, so that nobody changes it in between.
    ///
    /// # Errors
    /// `Invalid` when it is not for containers. One that was stored before sources were checked is
    /// told and given.
    pub(crate) fn source_of(&self, volume: &MountSpec) -> Result<PathBuf, RuntimeError> {
        let source = &volume.source;
        let real = real_path(Path::new(source)).map_err(|error| disk(&format!("find {source}"), &error))?;
        let Some(refused) = self.refusal(volume, &real) else { return Ok(real) };
        let why = why(source, &real, &refused);
        if volume.checked {
            return Err(RuntimeError::Invalid(format!(
                "{why}: this node gives it to no container; `blixard node --allow-path {}` would",
                real.display()
            )));
        }
        tracing::warn!(
            source,
            reason = why,
            "a service of an earlier version gets a path of the host that a new one would not"
        );
        Ok(real)
    }

    /// Why a volume, whose source really is `real`, is not for containers. A link counts as what it
    /// leads to and as where it is.
    fn refusal(&self, volume: &MountSpec, real: &Path) -> Option<String> {
        if self.allowed.iter().any(|allowed| real.starts_with(allowed)) {
            return None;
        }
        let named = place_of(Path::new(&volume.source)).unwrap_or_else(|| real.to_path_buf());
        if READ_ONLY.iter().any(|path| named == Path::new(path)) {
            return (!volume.read_only).then(|| "given read-only alone (`mode: ro` in a bundle)".to_owned());
        }
        self.reserved(real).or_else(|| self.reserved(&named))
    }

    /// What a real path is, holds or is below of that is not for containers.
    fn reserved(&self, real: &Path) -> Option<String> {
        if real == Path::new("/") {
            return Some("the whole root file system".to_owned());
        }
        let own = self.own.iter().map(|path| (path, "blixard's own"));
        let system = self.system.iter().map(|path| (path, "the system's"));
        own.chain(system).find_map(|(path, whose)| {
            let shown = path.display();
            if real == path {
                Some(format!("{whose} {shown}"))
            } else if real.starts_with(path) {
                Some(format!("below {whose} {shown}"))
            } else if path.starts_with(real) {
                Some(format!("above {whose} {shown}"))
            } else {
                None
            }
        })
    }
}

fn why(source: &str, real: &Path, refused: &str) -> String {
    let real = real.display().to_string();
    if real == source {
        return format!("the volume's source {source} is {refused}");
    }
    format!("the volume's source {source}, which is {real}, is {refused}")
}

/// Where the last part of a path is: links before it are resolved, and it is not.
fn place_of(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?;
    Some(real_path(path.parent()?).ok()?.join(name))
}

/// A path with its links resolved; what is not there yet counts as written, without `..`.
pub(crate) fn real_path(path: &Path) -> io::Result<PathBuf> {
    let mut missing = Vec::new();
    let mut at = path;
    loop {
        match at.canonicalize() {
            Ok(real) => return Ok(missing.into_iter().rev().fold(real, |real, part| real.join(part))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        match (at.components().next_back(), at.parent()) {
            // A link that leads nowhere is no place for a directory.
            _ if at.is_symlink() => return Err(io::ErrorKind::NotFound.into()),
            (Some(Component::Normal(part)), Some(parent)) => {
                missing.push(part.to_owned());
                at = parent;
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use blixard_core::spec::MountSpec;

    use super::HostPaths;

    fn volume(source: &Path, read_only: bool, checked: bool) -> MountSpec {
        let source = source.to_str().expect("UTF-8").to_owned();
        MountSpec { checked, ..MountSpec::host_path(source, "/t".into(), read_only) }
    }

    #[test]
    fn real_paths_decide_what_containers_get() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let base = directory.path().canonicalize().expect("real");
        let at = |name: &str| base.join(name);
        fs::create_dir_all(at("data/logs")).expect("directory");
        fs::create_dir_all(at("free/deep")).expect("directory");
        symlink("/etc", at("free/link")).expect("link");
        symlink("/", at("free/root")).expect("link");
        symlink(at("data"), at("free/own")).expect("link");
        symlink("/nonexistent/x", at("free/dangling")).expect("link");
        symlink("/run", at("free/var-run")).expect("link");
        let paths = HostPaths::new(&[&at("data")], [Path::new("/etc/ssl")].into_iter());
        let check = |source: &Path, read_only: bool, expect: Result<&Path, &str>| match (
            paths.source_of(&volume(source, read_only, true)),
            expect,
        ) {
            (Ok(real), Ok(expect)) => assert_eq!(real, expect, "{}", source.display()),
            (Err(error), Err(part)) => {
                let text = error.to_string();
                assert!(text.contains(part), "{text}");
            }
            (found, expect) => panic!("{}: {found:?}, not {expect:?}", source.display()),
        };
        check(&at("free/deep"), false, Ok(&at("free/deep")));
        check(&at("free/not/there"), false, Ok(&at("free/not/there")));
        check(&at("data"), true, Err("blixard's own"));
        check(&at("data/logs"), true, Err("below blixard's own"));
        check(&base, true, Err("above blixard's own"));
        check(&at("free/../data/"), true, Err("is blixard's own"));
        check(&at("free/own"), true, Err("blixard's own"));
        check(Path::new("/"), true, Err("the whole root"));
        check(&at("free/root"), true, Err("the whole root"));
        check(&at("free/link"), true, Err("which is /etc, is the system's /etc"));
        check(&at("free/link/shadow-absent"), true, Err("below the system's /etc"));
        for etc in
            ["/etc", "/etc/", "//etc", "/etc/../etc", "/./etc/.", "/usr/../etc/passwd", "/proc/self/root/etc"]
        {
            check(Path::new(etc), true, Err("the system's /etc"));
        }
        check(&at("free/var-run"), true, Err("the system's /run"));
        for path in ["/proc", "/sys/fs/cgroup", "/dev/shm", "/boot", "/root", "/var/../root", "/run"] {
            check(Path::new(path), true, Err("the system's"));
        }
        check(Path::new("/etc/ssl/certs-absent"), true, Ok(Path::new("/etc/ssl/certs-absent")));
        check(Path::new("/dev/null"), false, Err("--allow-path /dev/null"));
        check(&at("free/dangling"), false, Err("find"));
        let before = volume(&at("free/link"), true, false);
        assert_eq!(paths.source_of(&before).expect("kept"), Path::new("/etc"));
    }

    #[test]
    fn the_time_zone_is_given_read_only() {
        let paths = HostPaths::new(&[], std::iter::empty());
        let check = |source: &str, read_only: bool, expect: bool| {
            let refused = paths.refusals(&[volume(Path::new(source), read_only, true)]);
            assert_eq!(refused.is_empty(), expect, "{refused:?}");
        };
        for path in ["/etc/localtime", "/etc/../etc/timezone"] {
            check(path, true, true);
            check(path, false, false);
        }
        // By the key that a bundle has for it.
        let refused = paths.refusals(&[volume(Path::new("/etc/localtime"), false, true)]);
        assert!(refused[0].contains("`mode: ro`"), "{refused:?}");
        check("/etc/localtime.d", true, false);
        check("/etcetera", false, true);
    }

    #[test]
    fn a_source_is_judged_by_what_it_is_when_it_is_used() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let source = directory.path().canonicalize().expect("real").join("source");
        fs::create_dir(&source).expect("directory");
        let paths = HostPaths::new(&[], std::iter::empty());
        let volume = volume(&source, false, true);
        assert_eq!(paths.source_of(&volume).expect("given"), source);
        fs::remove_dir(&source).expect("removed");
        symlink("/etc", &source).expect("link");
        assert!(paths.source_of(&volume).is_err());
    }
}
