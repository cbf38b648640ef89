//! What the processes of a container may do: less, or more, than the defaults.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The capabilities of Linux, without `CAP_`.
pub const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];
/// Stands for every capability in [`SecuritySpec::cap_drop`].
pub const ALL_CAPABILITIES: &str = "ALL";
/// The longest user, in bytes.
pub const USER_BYTES_MAX: usize = 256;

/// What a container's processes may do. The default is what an image is given that says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecuritySpec {
    /// Whether the root file system cannot be written to; volumes, `/dev/shm` and `/proc` stay as
    /// they are.
    #[serde(default)]
    pub read_only: bool,
    /// Whether no program gives its user more rights than who starts it: set-user-id bits and file
    /// capabilities do nothing.
    #[serde(default)]
    pub no_new_privileges: bool,
    /// Replaces USER: `user[:group]`, each a name of the image or a number.
    #[serde(default)]
    pub user: Option<String>,
    /// Capabilities taken from the default ones, without `CAP_`; `ALL` is all of them.
    #[serde(default)]
    pub cap_drop: Vec<String>,
    /// Capabilities given besides what is left, without `CAP_`.
    #[serde(default)]
    pub cap_add: Vec<String>,
}

impl SecuritySpec {
    /// Whether it says nothing.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A capability's name as it is stored: upper-case, without `CAP_`. None when there is none.
pub fn capability(text: &str) -> Option<String> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    CAPABILITIES.contains(&name).then(|| name.to_owned())
}

/// Checks that a text may be a user.
///
/// # Errors
/// Why it is none.
pub fn check_user(text: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.@+$".contains(c);
    let part = |part: &str| !part.is_empty() && part.chars().all(fits);
    let valid = match text.split_once(':') {
        Some((user, group)) => part(user) && part(group),
        None => part(text),
    };
    if valid && text.len() <= USER_BYTES_MAX {
        return Ok(());
    }
    let shown: String = text.chars().take(40).collect();
    Err(format!("takes a user as NAME, UID, or either with :GROUP, not {shown:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_in_the_forms_people_write() {
        let check = |text: &str, expect: Option<&str>| {
            assert_eq!(capability(text).as_deref(), expect, "{text}");
        };
        check("NET_ADMIN", Some("NET_ADMIN"));
        check("cap_net_admin", Some("NET_ADMIN"));
        check("CAP_CHOWN", Some("CHOWN"));
        check("ALL", None);
        check("", None);
        check("CAP_CAP_CHOWN", None);
    }

    #[test]
    fn a_user_is_a_name_or_a_number_with_a_group_or_without() {
        let check = |text: &str, expect: bool| assert_eq!(check_user(text).is_ok(), expect, "{text}");
        check("1000", true);
        check("www-data:1000", true);
        check("a b", false);
        check(":", false);
        check("a:", false);
        check("", false);
        check(&"u".repeat(USER_BYTES_MAX + 1), false);
    }
}
