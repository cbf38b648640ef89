//! Who is at the other end of the Unix socket.

use std::io::Read;
use std::path::Path;

use tokio::net::UnixStream;

/// How much of the accounts file is read, in bytes.
const ACCOUNTS_BYTES_MAX: u64 = 1 << 20;
/// The longest name of a user that is kept, in bytes.
const USER_NAME_BYTES_MAX: usize = 64;

/// The user at the other end of a Unix socket, as the kernel tells it.
#[derive(Debug, Clone)]
pub(super) struct SocketUser {
    /// By number.
    pub(super) uid: u32,
    /// By name, where this machine knows one.
    pub(super) name: Option<String>,
}

impl SocketUser {
    /// Who connected.
    pub(super) fn of(stream: &UnixStream) -> Self {
        // The kernel knows of every connected socket; of one that it did not it would be nobody.
        let uid = stream.peer_cred().map_or(u32::MAX, |peer| peer.uid());
        Self { uid, name: user_name(Path::new("/etc/passwd"), uid) }
    }
}

/// What a user is called by the accounts file, passwd(5), when it says.
fn user_name(accounts: &Path, uid: u32) -> Option<String> {
    let mut text = Vec::new();
    let read = std::fs::File::open(accounts).ok()?.take(ACCOUNTS_BYTES_MAX).read_to_end(&mut text);
    read.ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let name = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(uid)).then(|| name.to_owned())
    });
    name.filter(|name| (1..=USER_NAME_BYTES_MAX).contains(&name.len()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::user_name;

    #[test]
    fn users_are_called_as_the_accounts_file_says() {
        let directory = tempfile::tempdir().expect("a directory");
        let accounts = directory.path().join("passwd");
        let text = format!(
            "root:x:0:0:root:/root:/bin/sh\nbroken\nana:x:1000:1000::/:\n{}:x:7:7::/:\n",
            "x".repeat(65)
        );
        std::fs::write(&accounts, text).expect("a file");
        let check =
            |uid, expect: Option<&str>| assert_eq!(user_name(&accounts, uid).as_deref(), expect, "{uid}");
        check(0, Some("root"));
        check(1_000, Some("ana"));
        check(7, None);
        check(8, None);
        assert_eq!(user_name(Path::new("/nowhere/passwd"), 0), None);
    }

    #[test]
    fn accounts_survive_every_damage() {
        let directory = tempfile::tempdir().expect("a directory");
        let accounts = directory.path().join("passwd");
        let text = b"root:x:0:0:root:/root:/bin/sh\nana:x:1000:1000::/:\n".to_vec();
        damage::survives("accounts of the machine", &[text], |input| {
            std::fs::write(&accounts, input).expect("a file");
            let name = user_name(&accounts, 1_000).ok_or("nobody has this number")?;
            assert!((1..=super::USER_NAME_BYTES_MAX).contains(&name.len()) && !name.contains([':', '\n']));
            Ok(())
        });
    }
}
