//! Records on disk: a version to be made of a copy, and what a copy holds. Each ends with a hash of all
//! that is before it; what lacks it, or does not match, was never finished.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use blixard_core::cluster::volume::VolumeVersion;
use blixard_core::volume::{Index, Step};
use blixard_core::wire;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The largest record read, in bytes: an index.
const RECORD_BYTES_MAX: usize = blixard_core::limits::VOLUME_INDEX_BYTES_MAX;
const HASH_BYTES: usize = 32;

/// What a journal begins with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Head {
    /// What the steps lead to.
    pub(super) version: VolumeVersion,
}

/// What a copy holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Held {
    pub(super) version: VolumeVersion,
    pub(super) index: Index,
}

/// A file of records that takes its name only once it is durable.
pub(super) struct Writer {
    out: BufWriter<File>,
    hash: blake3::Hasher,
    path: PathBuf,
}

impl Writer {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(unfinished(path))?;
        Ok(Self { out: BufWriter::new(file), hash: blake3::Hasher::new(), path: path.to_owned() })
    }

    pub(super) fn put<T: Serialize>(&mut self, record: &T) -> io::Result<()> {
        let bytes = wire::encode(record);
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(io::Error::other("what it holds takes too much to write down"));
        }
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?.to_le_bytes();
        for part in [&length[..], &bytes] {
            self.hash.update(part);
            self.out.write_all(part)?;
        }
        Ok(())
    }

    /// Makes it durable under its name.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&0_u32.to_le_bytes())?;
        self.hash.update(&0_u32.to_le_bytes());
        self.out.write_all(self.hash.finalize().as_bytes())?;
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        std::fs::rename(unfinished(&self.path), &self.path)?;
        sync_directory(&self.path)
    }
}

fn unfinished(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// Makes the names in the directory of `path` durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// Reads such a file.
pub(super) struct Reader {
    file: BufReader<File>,
}

impl Reader {
    /// Opens a file whose hash is right; none when there is no such file.
    ///
    /// # Errors
    /// When it cannot be read, or was damaged.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        check(&file).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        Ok(Some(Self { file: BufReader::new(File::open(path)?) }))
    }

    /// The next record; none at the end.
    pub(super) fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let mut length = [0; 4];
        self.file.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_le_bytes(length)).map_err(io::Error::other)?;
        if length == 0 {
            return Ok(None);
        }
        if length > RECORD_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = vec![0; length];
        self.file.read_exact(&mut bytes)?;
        wire::decode(&bytes).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// The rest of a journal.
    pub(super) fn steps(&mut self) -> impl Iterator<Item = io::Result<Step>> {
        std::iter::from_fn(|| self.next().transpose())
    }
}

fn check(file: &File) -> io::Result<()> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it is damaged");
    let length = file.metadata()?.len().checked_sub(HASH_BYTES as u64).ok_or_else(damaged)?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut hash = blake3::Hasher::new();
    io::copy(&mut (&mut reader).take(length), &mut hash)?;
    let mut known = [0; HASH_BYTES];
    reader.read_exact(&mut known)?;
    if hash.finalize() == known { Ok(()) } else { Err(damaged()) }
}
