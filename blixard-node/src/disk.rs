//! The Linux disk: files in the node's data directory, one thread for each writer.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use redb::backends::FileBackend;

use crate::platform::{Disk, DurableWriter};

/// Database files in a directory.
#[derive(Debug, Clone)]
pub struct LinuxDisk {
    directory: PathBuf,
}

impl LinuxDisk {
    /// The disk of the node whose data directory is `directory`, which exists.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }
}

impl Disk for LinuxDisk {
    fn open(&self, name: &str) -> io::Result<Box<dyn redb::StorageBackend>> {
        let path = self.directory.join(name);
        let file =
            // The identity holds the node's secret key: nobody else reads these files.
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(
                |error| io::Error::new(error.kind(), format!("cannot open {}: {error}", path.display())),
            )?;
        let backend = FileBackend::new(file)
            .map_err(|error| io::Error::other(format!("cannot open {}: {error}", path.display())))?;
        Ok(Box::new(backend))
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.directory.join(name).try_exists()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.directory.join(from), self.directory.join(to))?;
        File::open(&self.directory)?.sync_all()
    }

    fn start_writer(&self, name: &'static str, mut writer: Box<dyn DurableWriter>) -> io::Result<()> {
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while writer.wait() {
                for complete in writer.commit() {
                    complete();
                }
                writer.rest();
            }
        })?;
        Ok(())
    }
}
