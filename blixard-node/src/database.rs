//! Opens a redb database, making it when it is absent.
//!
//! redb writes its magic number last, once the rest of a new file is on the disk, and takes a file
//! without one for no database. So a machine that loses power, or a disk that fails, while a node
//! makes a file for the first time would leave one that keeps it from ever starting. Nothing was
//! ever committed to such a file: it is made anew. Called by the identity and by Raft's stores.

use std::io;

use redb::{Database, DatabaseError, StorageBackend, StorageError};

use crate::platform::Disk;
use crate::raft::Backend;

/// How many bytes redb's magic number has.
const MAGIC_BYTES: usize = 9;
/// How many bytes hold what redb writes about a new file, the magic number first.
const HEADER_BYTES: usize = 64;
/// How much of a file is looked at at once, in bytes.
const CHUNK_BYTES: usize = 64 << 10;

/// Opens the database file `name` with a cache of so many bytes.
///
/// # Errors
/// When the disk refuses, someone else has the file, or what is there is damaged.
pub(crate) fn open(disk: &dyn Disk, name: &str, cache_bytes: usize) -> Result<Database, DatabaseError> {
    let create = || {
        let backend = Backend(disk.open(name).map_err(StorageError::Io)?);
        Database::builder().set_cache_size(cache_bytes).create_with_backend(backend)
    };
    match create() {
        Err(DatabaseError::Storage(StorageError::Io(error)))
            if error.kind() == io::ErrorKind::InvalidData
                && clear_unfinished(disk, name).map_err(StorageError::Io)? =>
        {
            tracing::warn!(store = name, "the file was never finished; making it anew");
            create()
        }
        opened => opened,
    }
}

/// Empties a file whose making did not come to its end; false when it did. Such a file is empty, or
/// has a header without a magic number. One without any header before other data is damaged: it may
/// have held something.
fn clear_unfinished(disk: &dyn Disk, name: &str) -> io::Result<bool> {
    let backend = disk.open(name)?;
    let mut start = [0; HEADER_BYTES];
    let held = usize::try_from(backend.len()?).map_or(HEADER_BYTES, |bytes| bytes.min(HEADER_BYTES));
    backend.read(0, &mut start[..held])?;
    let (magic, rest) = start.split_at(MAGIC_BYTES);
    let unfinished = is_zero(magic) && (!is_zero(rest) || holds_nothing(&*backend)?);
    if unfinished {
        backend.set_len(0)?;
    }
    Ok(unfinished)
}

/// Whether a file is empty or all zeros.
fn holds_nothing(backend: &dyn StorageBackend) -> io::Result<bool> {
    let length = backend.len()?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut from = 0;
    while from < length {
        let held = usize::try_from(length - from).map_or(CHUNK_BYTES, |bytes| bytes.min(CHUNK_BYTES));
        backend.read(from, &mut chunk[..held])?;
        if !is_zero(&chunk[..held]) {
            return Ok(false);
        }
        from += held as u64;
    }
    Ok(true)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use redb::{ReadableDatabase as _, TableDefinition};

    use super::open;
    use crate::disk::LinuxDisk;

    const TABLE: TableDefinition<'_, u64, u64> = TableDefinition::new("table");

    #[test]
    fn a_file_that_was_never_finished_is_made_anew_and_a_damaged_one_is_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = LinuxDisk::new(dir.path());
        let path = dir.path().join("x.redb");
        let database = open(&disk, "x.redb", 1 << 20).expect("a new one");
        let transaction = database.begin_write().expect("a transaction");
        transaction.open_table(TABLE).expect("a table").insert(1, 2).expect("room");
        transaction.commit().expect("a commit");
        drop(database);
        let good = std::fs::read(&path).expect("the file");

        for unfinished in [vec![0; 5], vec![0; 65_536], [&[0; 9], &good[9..]].concat()] {
            std::fs::write(&path, unfinished).expect("room");
            let database = open(&disk, "x.redb", 1 << 20).expect("it is made anew");
            assert!(database.begin_read().expect("a transaction").open_table(TABLE).is_err(), "it is empty");
        }
        std::fs::write(&path, &good).expect("room");
        let mut file = std::fs::OpenOptions::new().read(true).write(true).open(&path).expect("the file");
        file.write_all(b"other").expect("room");
        assert!(open(&disk, "x.redb", 1 << 20).is_err());
        file.rewind().expect("a file");
        let mut kept = Vec::new();
        file.read_to_end(&mut kept).expect("a file");
        assert_eq!(kept.len(), good.len(), "what is damaged is not touched");
    }
}
