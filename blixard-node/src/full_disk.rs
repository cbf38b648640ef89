//! Starting on a disk that takes no writes: waits for room instead of ending. Containers go on
//! meanwhile, and a daemon that ended would only be started again into the same trouble.
//!
//! What goes wrong after the start is the composition root's: it reopens Raft's stores.

use std::error::Error as StdError;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use crate::linux::LinuxClock;
use crate::platform::Clock;

/// The first wait before what failed is tried again; doubled up to the last.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// The longest such wait.
const RETRY_MAX: Duration = Duration::from_secs(15);
/// With less room than this, in bytes, a failure is the disk's: stores grow by less at a time.
const PROBE_BYTES: usize = 1 << 20;
/// The probe's file in the data directory.
const PROBE_FILE: &str = ".room";

/// Does `work`, and again with back-off while it fails and the disk that holds `directory` takes
/// nothing. Cancel safe if `work` is.
///
/// # Errors
/// The last of `work`'s, once the disk is not to blame.
pub(crate) async fn while_full<T, E>(
    directory: &Path,
    mut work: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, Box<dyn StdError + Send + Sync>>
where
    E: Into<Box<dyn StdError + Send + Sync>>,
{
    let mut wait = RETRY_MIN;
    loop {
        let error = match work().await {
            Ok(done) => return Ok(done),
            Err(error) => error.into(),
        };
        let Err(full) = probe(directory) else { return Err(error) };
        tracing::error!(
            err = %error, disk = %full, directory = %directory.display(), retry_in = ?wait,
            "cannot start while the disk takes no writes; trying again, containers go on",
        );
        LinuxClock.sleep_until(LinuxClock.now() + wait).await;
        wait = (wait * 2).min(RETRY_MAX);
    }
}

/// Writes a little to the disk, and removes it again.
///
/// # Errors
/// Why the disk takes nothing. Other faults, such as a missing directory, are none of the disk's.
fn probe(directory: &Path) -> io::Result<()> {
    let path = directory.join(PROBE_FILE);
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(&vec![0; PROBE_BYTES])?;
        file.sync_all()
    };
    let written = write();
    // What could not be made need not be removed.
    std::fs::remove_file(&path).ok();
    written.or_else(|error| if is_the_disks(&error) { Err(error) } else { Ok(()) })
}

fn is_the_disks(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::ReadOnlyFilesystem];
    kinds.contains(&error.kind()) || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::while_full;

    #[tokio::test]
    async fn what_is_not_the_disks_fault_fails_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let mut tries = 0;
        let failed = while_full(directory.path(), async || {
            tries += 1;
            Err::<(), _>("the port is taken")
        });
        assert_eq!(failed.await.unwrap_err().to_string(), "the port is taken");
        assert_eq!(tries, 1);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left");
    }
}
