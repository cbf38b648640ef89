//! Opens a redb database, making it when it is absent, and tells a damaged one from a disk in
//! trouble.
//!
//! A disk may give back other bytes than it took. So a database is read through when it opens, and
//! whatever is wrong with it is an error of the kind [`io::ErrorKind::InvalidData`], whether redb
//! says so or panics: whoever opens it decides what that means.
//!
//! redb goes back to the commit before when the last one is damaged, which is right after a loss of
//! power and wrong for a log that acknowledged it. The [`Mark`], a file beside the database, says how
//! many commits were durable; with fewer, something is lost.
//!
//! redb writes its magic number last, once the rest of a new file is on the disk, and takes a file
//! without one for no database. So a machine that loses power, or a disk that fails, while a node
//! makes a file for the first time would leave one that keeps it from ever starting. Nothing was
//! ever committed to such a file, and its mark says so: it is made anew. Called by the identity and
//! by Raft's stores.

use std::any::Any;
use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use redb::{
    Database, ReadableDatabase as _, StorageBackend, Table, TableDefinition, TableError, WriteTransaction,
};

use crate::platform::Disk;
use crate::raft::Backend;

/// How many bytes redb's magic number has.
const MAGIC_BYTES: usize = 9;
/// How many bytes hold what redb writes about a new file, the magic number first.
const HEADER_BYTES: usize = 64;
/// How much of a file is looked at at once, in bytes.
const CHUNK_BYTES: usize = 64 << 10;
/// A file that is larger than this, in bytes, and mostly empty is made smaller when it opens.
const COMPACT_BYTES_MIN: u64 = 16 << 20;
/// How many times larger than what it holds.
const COMPACT_FACTOR: u64 = 4;
/// What a mark begins with.
const MARK_MAGIC: [u8; 8] = *b"bxmark1\n";
/// The magic, the count of commits and the checksum of both.
const MARK_BYTES: usize = 20;
/// The count of a database that was found damaged: none has so many commits, so it stays refused.
const CONDEMNED: u64 = u64::MAX;

/// A table of named values, as each of the databases has one.
pub(crate) type Values = TableDefinition<'static, &'static str, &'static [u8]>;
/// The value that counts commits.
const COMMITS: &str = "commits";

/// An open database.
pub(crate) struct Opened {
    pub(crate) database: Database,
    /// How many commits it holds.
    pub(crate) commits: u64,
    pub(crate) mark: Mark,
}

/// Opens the database file `name` with a cache of so many bytes. Its commits are counted in `values`
/// and marked in the file `mark`.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when someone else has the file, [`io::ErrorKind::InvalidData`] when
/// what is there is damaged, [`io::ErrorKind::NotFound`] when there was something and there is nothing
/// any more; else the disk refuses.
pub(crate) fn open(
    disk: &dyn Disk,
    name: &str,
    mark: &str,
    values: Values,
    cache_bytes: usize,
) -> io::Result<Opened> {
    let create = || {
        guarded(|| {
            let backend = Backend(disk.open(name)?);
            Database::builder().set_cache_size(cache_bytes).create_with_backend(backend).map_err(io_error)
        })
    };
    let mark = Mark::open(disk, mark)?;
    let length = disk.open(name)?.len()?;
    if mark.commits.is_some_and(|commits| commits > 0) && length == 0 {
        return Err(io::Error::new(io::ErrorKind::NotFound, "it is missing or empty"));
    }
    let database = match create() {
        Err(error)
            if error.kind() == io::ErrorKind::InvalidData
                && mark.commits.is_none()
                && clear_unfinished(disk, name)? =>
        {
            tracing::warn!(store = name, "the file was never finished; making it anew");
            create()?
        }
        opened => opened?,
    };
    let mut opened = Opened { database, commits: 0, mark };
    let verified = guarded(|| verify(&mut opened, values));
    let verified = verified.and_then(|()| guarded(|| compact(&mut opened.database, name, length)));
    if verified.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidData) {
        // What redb has mended meanwhile must not pass for whole at the next start.
        opened.mark.write(CONDEMNED);
    }
    let result = verified.map(|()| opened.commits);
    match result {
        Ok(_) => Ok(opened),
        Err(error) => {
            // What is damaged may also panic when it closes.
            let _ = guarded(|| {
                drop(opened);
                Ok(())
            });
            Err(error)
        }
    }
}

/// Reads all of the database and counts its commits.
fn verify(opened: &mut Opened, values: Values) -> io::Result<()> {
    let whole = opened.database.check_integrity().map_err(io_error)?;
    if !whole {
        return Err(damaged("its pages contradict their checksums".to_owned()));
    }
    let transaction = opened.database.begin_read().map_err(io_error)?;
    opened.commits = match transaction.open_table(values) {
        Ok(table) => match table.get(COMMITS).map_err(io_error)? {
            Some(count) => {
                let bytes = count.value().try_into();
                u64::from_be_bytes(bytes.map_err(|_| damaged("it does not count its commits".to_owned()))?)
            }
            None => 0,
        },
        Err(TableError::TableDoesNotExist(_)) => 0,
        Err(error) => return Err(io_error(error)),
    };
    match opened.mark.commits {
        Some(CONDEMNED) => Err(damaged("it was found damaged before".to_owned())),
        Some(marked) if marked > opened.commits => Err(damaged(format!(
            "it holds {} of {marked} commits: the last are lost, or it is an old copy",
            opened.commits
        ))),
        _ => Ok(()),
    }
}

/// Gives back what a database took at a peak: redb reuses its pages and keeps its file.
fn compact(database: &mut Database, name: &str, length: u64) -> io::Result<()> {
    if length < COMPACT_BYTES_MIN {
        return Ok(());
    }
    let transaction = database.begin_write().map_err(io_error)?;
    let stats = transaction.stats().map_err(io_error)?;
    transaction.abort().map_err(io_error)?;
    if (stats.stored_bytes() + stats.metadata_bytes()) * COMPACT_FACTOR < length {
        database.compact().map_err(io_error)?;
        tracing::info!(store = name, before_bytes = length, "the file was mostly empty and is made smaller");
    }
    Ok(())
}

/// Counts one more commit in the database's table of values. Returns the count.
pub(crate) fn count(
    transaction: &WriteTransaction,
    values: Values,
    commits: u64,
) -> Result<u64, redb::Error> {
    count_in(&mut transaction.open_table(values)?, commits)
}

/// The same in the table, which is open.
pub(crate) fn count_in(table: &mut Table<'_, &str, &[u8]>, commits: u64) -> Result<u64, redb::Error> {
    let commits = commits.saturating_add(1);
    table.insert(COMMITS, &commits.to_be_bytes()[..])?;
    Ok(commits)
}

/// How many commits of a database are durable: a file of its own, written after each without waiting
/// for the disk. After a loss of power it may say too little, never too much.
pub(crate) struct Mark {
    file: Box<dyn StorageBackend>,
    /// What it said when it was opened, if it said anything.
    commits: Option<u64>,
}

impl Mark {
    /// The mark in a file, which is made when there is none.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn open(disk: &dyn Disk, name: &str) -> io::Result<Self> {
        let file = disk.open(name)?;
        let mut bytes = [0; MARK_BYTES];
        if file.len()? < MARK_BYTES as u64 {
            return Ok(Self { file, commits: None });
        }
        file.read(0, &mut bytes)?;
        let commits = read_mark(&bytes);
        if commits.is_none() && !is_zero(&bytes) {
            tracing::warn!(file = name, "the mark is damaged and passed over; it is written anew");
        }
        Ok(Self { file, commits })
    }

    /// What it said when it was opened; absent when nothing was ever marked, or it is damaged.
    pub(crate) fn commits(&self) -> Option<u64> {
        self.commits
    }

    /// Makes what was noted durable.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Notes that so many commits are durable. It is only a precaution: a disk that does not take it
    /// shows with the next commit.
    pub(crate) fn write(&self, commits: u64) {
        let mut bytes = [0; MARK_BYTES];
        bytes[..8].copy_from_slice(&MARK_MAGIC);
        bytes[8..16].copy_from_slice(&commits.to_be_bytes());
        let checksum = crc32fast::hash(&bytes[..16]);
        bytes[16..].copy_from_slice(&checksum.to_be_bytes());
        let written = match self.file.len() {
            Ok(length) if length < MARK_BYTES as u64 => self.file.set_len(MARK_BYTES as u64),
            other => other.map(drop),
        };
        if let Err(error) = written.and_then(|()| self.file.write(0, &bytes)) {
            tracing::debug!(err = %error, "the mark is not written");
        }
    }
}

fn read_mark(bytes: &[u8; MARK_BYTES]) -> Option<u64> {
    let (said, checksum) = bytes.split_at(16);
    let (magic, commits) = said.split_at(8);
    let whole = crc32fast::hash(said).to_be_bytes() == checksum && magic == MARK_MAGIC;
    whole.then(|| u64::from_be_bytes(commits.try_into().expect("eight bytes are left")))
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside of [`guarded`]: its panic becomes an error and is not to be shown.
pub(crate) fn is_guarded() -> bool {
    GUARDED.get()
}

/// Does `work` on a database. redb takes what it reads for what it wrote: a panic is damage.
///
/// # Errors
/// `work`'s; [`io::ErrorKind::InvalidData`] when it panicked.
pub(crate) fn guarded<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let before = GUARDED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(before);
    done.unwrap_or_else(|panic| Err(damaged(format!("redb stumbles over it: {}", words_of(&*panic)))))
}

/// The first line of what a panic says.
fn words_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
    text.lines().next().unwrap_or(text)
}

/// An error that says that what is on the disk is damaged.
pub(crate) fn damaged(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// Any of redb's errors: one about what it read is [`io::ErrorKind::InvalidData`], one about who else
/// reads it [`io::ErrorKind::WouldBlock`], the rest is the disk's.
pub(crate) fn io_error(error: impl Into<redb::Error>) -> io::Error {
    match error.into() {
        redb::Error::Io(error) if is_short(&error) => damaged(error.to_string()),
        redb::Error::Io(error) => error,
        redb::Error::DatabaseAlreadyOpen => {
            io::Error::new(io::ErrorKind::WouldBlock, "it is in use by another process")
        }
        redb::Error::Corrupted(reason) => damaged(reason),
        redb::Error::UpgradeRequired(version) => damaged(format!("it has the database format {version}")),
        error @ (redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TableIsNotMultimap(_)
        | redb::Error::TypeDefinitionChanged { .. }
        | redb::Error::TableDoesNotExist(_)
        | redb::Error::RepairAborted) => damaged(error.to_string()),
        other => io::Error::other(other),
    }
}

/// Whether a file ends before what should be in it; not the disk's own word, which has a number.
fn is_short(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof && error.raw_os_error().is_none()
}

/// Whether a file begins as a database does.
pub(crate) fn is_begun(disk: &dyn Disk, name: &str) -> io::Result<bool> {
    let file = disk.open(name)?;
    let mut magic = [0; MAGIC_BYTES];
    if file.len()? < MAGIC_BYTES as u64 {
        return Ok(false);
    }
    file.read(0, &mut magic)?;
    Ok(!is_zero(&magic))
}

/// Empties a database, which nobody has open, and its mark: it is made anew when it opens.
pub(crate) fn reset(disk: &dyn Disk, name: &str, mark: &str) -> io::Result<()> {
    // In this order: what is emptied half-way is refused, and emptied again.
    for file in [name, mark] {
        let file = disk.open(file)?;
        file.set_len(0)?;
        file.sync_data()?;
    }
    Ok(())
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
    use std::io::{self, Read, Seek, Write};
    use std::path::Path;

    use redb::{ReadableDatabase as _, TableDefinition};

    use super::{Mark, Opened, Values, count, guarded, open, read_mark};
    use crate::disk::LinuxDisk;

    const TABLE: TableDefinition<'_, u64, u64> = TableDefinition::new("table");
    const VALUES: Values = TableDefinition::new("values");

    fn opened(dir: &Path) -> io::Result<Opened> {
        open(&LinuxDisk::new(dir), "x.redb", "x.mark", VALUES, 1 << 20)
    }

    /// Commits `value` and marks it.
    fn commit(dir: &Path, value: u64) {
        let Opened { database, commits, mark } = opened(dir).expect("it opens");
        let transaction = database.begin_write().expect("a transaction");
        transaction.open_table(TABLE).expect("a table").insert(1, value).expect("room");
        let commits = count(&transaction, VALUES, commits).expect("room");
        transaction.commit().expect("a commit");
        mark.write(commits);
    }

    #[test]
    fn a_file_that_was_never_finished_is_made_anew_and_a_damaged_one_is_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        let path = dir.join("x.redb");
        commit(dir, 2);
        let good = std::fs::read(&path).expect("the file");
        let headless = [&[0; 9], &good[9..]].concat();

        for unfinished in [vec![0; 5], vec![0; 65_536], headless.clone()] {
            std::fs::remove_file(dir.join("x.mark")).expect("a mark");
            std::fs::write(&path, unfinished).expect("room");
            let transaction = opened(dir).expect("it is made anew").database.begin_read();
            assert!(transaction.expect("a transaction").open_table(TABLE).is_err(), "it is empty");
            commit(dir, 2);
        }
        let check = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("room");
            let error = opened(dir).err().expect("it is damaged");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            let mut kept = Vec::new();
            std::fs::File::open(&path).expect("the file").read_to_end(&mut kept).expect("a file");
            assert_eq!(kept, bytes, "what is damaged is not touched");
        };
        // Something was committed to it, as the mark says.
        check(&headless);
        let mut other = good;
        other[..5].copy_from_slice(b"other");
        check(&other);
    }

    #[test]
    fn a_database_that_lost_commits_is_refused_for_ever() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        let path = dir.join("x.redb");
        let check = |expect: &str| {
            let error = opened(dir).err().expect("it is refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains(expect), "{error}");
        };
        commit(dir, 1);
        let old = std::fs::read(&path).expect("the file");
        commit(dir, 2);
        let new = std::fs::read(&path).expect("the file");
        std::fs::write(&path, &old).expect("room");
        check("it holds 1 of 2 commits");
        std::fs::write(&path, &new).expect("room");
        check("it was found damaged before");
        std::fs::remove_file(&path).expect("a file");
        let error = opened(dir).err().expect("it is lost");
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
        std::fs::write(&path, &new).expect("room");
        // A mark that is damaged says nothing.
        let mut mark = std::fs::OpenOptions::new().write(true).open(dir.join("x.mark")).expect("a mark");
        mark.rewind().expect("a file");
        mark.write_all(b"x").expect("room");
        assert_eq!(opened(dir).expect("it opens").commits, 2);
    }

    #[test]
    fn a_file_shrinks_again_after_a_peak() {
        const LARGE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("large");
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        commit(dir, 1);
        let length = || std::fs::metadata(dir.join("x.redb")).expect("the file").len();
        let Opened { database, .. } = opened(dir).expect("it opens");
        let value = vec![7; 1 << 20];
        for number in 0..48 {
            let transaction = database.begin_write().expect("a transaction");
            transaction.open_table(LARGE).expect("a table").insert(number, &value[..]).expect("room");
            transaction.commit().expect("a commit");
        }
        drop(database);
        let peak = length();
        let Opened { database, .. } = opened(dir).expect("it opens");
        let transaction = database.begin_write().expect("a transaction");
        transaction.open_table(LARGE).expect("a table").retain(|number, _| number == 47).expect("room");
        transaction.commit().expect("a commit");
        drop(database);
        commit(dir, 2);
        assert!(peak > 48 << 20 && length() < peak / 4, "{peak} bytes became {}", length());
    }

    #[test]
    fn a_panic_over_a_database_is_damage() {
        let error = guarded::<()>(|| panic!("index {} is out of bounds", 7)).expect_err("it panicked");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(error.to_string(), "redb stumbles over it: index 7 is out of bounds");
        assert!(!super::is_guarded());
    }

    #[test]
    fn marks_survive_every_damage() {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = crate::disk::LinuxDisk::new(directory.path());
        let commits = 1 << 40;
        Mark::open(&disk, "mark").expect("a mark").write(commits);
        let seed = std::fs::read(directory.path().join("mark")).expect("it is there");
        damage::survives("mark of a database", &[seed], |input| {
            let mark = input.try_into().ok().and_then(read_mark).ok_or("it is no mark")?;
            assert_eq!(mark, commits, "a checksum that fits by chance");
            Ok(())
        });
    }
}
