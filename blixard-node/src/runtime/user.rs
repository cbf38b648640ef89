//! Who a container runs as: the image's USER, resolved through the image's own `/etc/passwd` and
//! `/etc/group` the way Docker does it.

use blixard_core::text::printable;

use super::client::disk;
use super::rootfs::Rootfs;
use crate::platform::RuntimeError;

/// The largest id of a user or group: what lies beyond means "none" to some system calls.
const ID_MAX: u32 = i32::MAX as u32;

/// The most groups of a process: the kernel's own bound.
const GROUPS_MAX: usize = 65_536;

/// The ids of a process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ResolvedUser {
    /// The user.
    pub(crate) uid: u32,
    /// Its primary group.
    pub(crate) gid: u32,
    /// All its groups, the primary one first.
    pub(crate) groups: Vec<u32>,
}

/// Why a user is not known in an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UserError {
    #[error("the image has no user `{}` in its /etc/passwd", printable(.0))]
    User(String),
    #[error("the image has no group `{}` in its /etc/group", printable(.0))]
    Group(String),
    #[error("the id {0} is beyond {ID_MAX}")]
    Range(u32),
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Resolves `user[:group]` through the files of a root file system, as [`resolve`] does.
pub(crate) fn in_rootfs(wanted: &str, rootfs: Option<&Rootfs>) -> Result<ResolvedUser, RuntimeError> {
    let read = |path: &str| match rootfs.map(|rootfs| rootfs.read(path)) {
        None => Ok(String::new()),
        Some(Ok(bytes)) => Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()),
        Some(Err(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
            Err(RuntimeError::Invalid(format!("of the image, {error}")))
        }
        Some(Err(error)) => Err(disk(&format!("read {path} of the image"), &error)),
    };
    resolve(wanted, &read("/etc/passwd")?, &read("/etc/group")?)
        .map_err(|error| RuntimeError::Invalid(error.to_string()))
}

/// Resolves `user[:group]`, each a name or a number; empty is root.
///
/// A number needs no entry; without one its group is 0. Supplementary groups are those that list
/// the user, and only when no group is named.
pub(crate) fn resolve(wanted: &str, passwd: &str, group: &str) -> Result<ResolvedUser, UserError> {
    let (user, named_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number: Option<u32> = user.parse().ok();
    let account = accounts(passwd).find(|account| account.name == user || Some(account.uid) == number);
    let (uid, mut gid) = match (&account, number) {
        (Some(account), _) => (account.uid, account.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => return Err(UserError::User(user.to_owned())),
    };
    let mut supplementary = Vec::new();
    if let Some(wanted) = named_group {
        let number: Option<u32> = wanted.parse().ok();
        let found = groups(group).find(|group| group.name == wanted || Some(group.gid) == number);
        gid = match (found, number) {
            (Some(group), _) => group.gid,
            (None, Some(gid)) => gid,
            (None, None) => return Err(UserError::Group(wanted.to_owned())),
        };
    } else if let Some(account) = account {
        supplementary = groups(group)
            .filter(|group| group.members.split(',').any(|member| member.trim() == account.name))
            .map(|group| group.gid)
            .collect();
    }
    let mut all = vec![gid];
    for gid in supplementary {
        if !all.contains(&gid) && all.len() < GROUPS_MAX {
            all.push(gid);
        }
    }
    if let Some(&id) = all.iter().chain([&uid]).find(|id| **id > ID_MAX) {
        return Err(UserError::Range(id));
    }
    Ok(ResolvedUser { uid, gid, groups: all })
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account { name, uid, gid })
    })
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Group { name, gid, members: fields.next().unwrap_or_default() })
    })
}

#[cfg(test)]
mod tests {
    use super::{ID_MAX, ResolvedUser, UserError, resolve};

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\nwww:x:33:34::/:/bin/false\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:root,www\nwww:x:34:\nssl:x:101:www\n";

    #[test]
    fn users_and_groups_resolve_through_the_image() {
        let check = |wanted: &str, uid: u32, gid: u32, groups: &[u32]| {
            let expect = ResolvedUser { uid, gid, groups: groups.to_vec() };
            assert_eq!(resolve(wanted, PASSWD, GROUP), Ok(expect), "{wanted}");
        };
        check("", 0, 0, &[0, 4]);
        check("root", 0, 0, &[0, 4]);
        check("www", 33, 34, &[34, 4, 101]);
        check("33", 33, 34, &[34, 4, 101]);
        check("www:ssl", 33, 101, &[101]);
        check("www:7", 33, 7, &[7]);
        check("1000", 1000, 0, &[0]);
        check("1000:1001", 1000, 1001, &[1001]);
        check(":adm", 0, 4, &[4]);
        check("70000:70001", 70_000, 70_001, &[70_001]);
        assert_eq!(resolve("4294967295", PASSWD, GROUP), Err(UserError::Range(u32::MAX)));
        assert_eq!(resolve("-1", PASSWD, GROUP), Err(UserError::User("-1".into())));
        assert_eq!(resolve("nobody", PASSWD, GROUP), Err(UserError::User("nobody".into())));
        assert_eq!(resolve("www:none", PASSWD, GROUP), Err(UserError::Group("none".into())));
    }

    #[test]
    fn an_image_without_accounts_runs_as_root() {
        assert_eq!(resolve("", "", ""), Ok(ResolvedUser { uid: 0, gid: 0, groups: vec![0] }));
    }

    #[test]
    fn accounts_survive_every_damage() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/srv:\n";
        let group = "root:x:0:\napp:x:1001:\nweb:x:33:app,root\n";
        let seeds = [format!("app\n\n{passwd}\n\n{group}"), format!("1000:web\n\n{passwd}\n\n{group}")];
        damage::survives("USER, passwd and group", &seeds.map(String::into_bytes), |input| {
            let text = String::from_utf8_lossy(input);
            let mut parts = text.splitn(3, "\n\n");
            let mut part = || parts.next().unwrap_or_default();
            let user = resolve(part(), part(), part()).map_err(|error| error.to_string())?;
            assert_eq!(user.groups.first(), Some(&user.gid));
            assert!(user.groups.iter().chain([&user.uid]).all(|id| *id <= ID_MAX), "{user:?}");
            Ok(())
        });
    }
}
