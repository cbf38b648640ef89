//! The AppArmor profile of containers, loaded into the kernel where it has AppArmor.
//!
//! What it denies is what Docker's default profile denies: writing below `/proc` and `/sys`, mounting,
//! and tracing what is not confined alike. It adds a second fence to the capabilities, the masked
//! paths and the seccomp profile.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// The profile's name.
const PROFILE: &str = "blixard-default";
/// Says `Y` where the kernel enforces profiles.
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// Where profiles are loaded. runc takes a kernel without it for one that has no AppArmor, and then
/// starts nothing that names a profile.
const SECURITYFS: &str = "/sys/kernel/security/apparmor";
/// Loads profiles.
const PARSER: &str = "apparmor_parser";

const TEXT: &str = r#"
abi <abi/3.0>,
#include <tunables/global>

profile blixard-default flags=(attach_disconnected,mediate_deleted) {
  #include <abstractions/base>
  network,
  capability,
  file,
  umount,
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (send,receive) peer=blixard-default,
  deny @{PROC}/* w,
  deny @{PROC}/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9]*}/** w,
  deny @{PROC}/sys/[^k]** w,
  deny @{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w,
  deny @{PROC}/sysrq-trigger rwklx,
  deny @{PROC}/kcore rwklx,
  deny mount,
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
  ptrace (trace,read,tracedby,readby) peer=blixard-default,
}
"#;

/// Loads the profile and gives its name; nothing where the kernel has no AppArmor, or the profile
/// cannot be loaded, which is told.
pub(super) fn load() -> Option<String> {
    load_where(Path::new(ENABLED), Path::new(SECURITYFS), PARSER)
}

fn load_where(enabled: &Path, securityfs: &Path, parser: &str) -> Option<String> {
    if std::fs::read_to_string(enabled).ok()?.trim() != "Y" || !securityfs.exists() {
        return None;
    }
    match run(parser) {
        Ok(()) => Some(PROFILE.to_owned()),
        Err(error) => {
            tracing::warn!(
                err = error,
                "containers run without an AppArmor profile: install the package apparmor"
            );
            None
        }
    }
}

/// Hands the profile to the parser.
fn run(parser: &str) -> Result<(), String> {
    let mut child = Command::new(parser)
        .args(["--replace", "--skip-cache", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{parser}: {error}"))?;
    let written = child.stdin.take().map(|mut input| input.write_all(TEXT.as_bytes()));
    let output = child.wait_with_output().map_err(|error| format!("{parser}: {error}"))?;
    if output.status.success() && matches!(written, Some(Ok(()))) {
        return Ok(());
    }
    let said: String = String::from_utf8_lossy(&output.stderr).chars().take(300).collect();
    Err(format!("{parser} ended with {}: {}", output.status, said.trim()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::{TEXT, load_where};

    #[test]
    fn the_profile_is_loaded_where_the_kernel_has_apparmor() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (enabled, parser) = (directory.path().join("enabled"), directory.path().join("parser"));
        let loaded = directory.path().join("loaded");
        let script = format!("#!/bin/sh\ncat > {}\n", loaded.display());
        std::fs::write(&parser, script).expect("script");
        std::fs::set_permissions(&parser, std::fs::Permissions::from_mode(0o755)).expect("mode");
        let program = parser.to_str().expect("UTF-8");
        assert_eq!(load_where(&enabled, directory.path(), program), None);
        std::fs::write(&enabled, "N\n").expect("file");
        assert_eq!(load_where(&enabled, directory.path(), program), None);
        assert!(!loaded.exists());
        std::fs::write(&enabled, "Y\n").expect("file");
        assert_eq!(load_where(&enabled, Path::new("/nonexistent"), program), None);
        assert!(!loaded.exists());
        assert_eq!(load_where(&enabled, directory.path(), program).as_deref(), Some("blixard-default"));
        assert_eq!(std::fs::read_to_string(&loaded).expect("loaded"), TEXT);
        std::fs::write(&parser, "#!/bin/sh\ncat > /dev/null; echo broken >&2; exit 3\n").expect("script");
        assert_eq!(load_where(&enabled, directory.path(), program), None);
        assert_eq!(load_where(&enabled, directory.path(), "/nonexistent/apparmor_parser"), None);
    }
}
