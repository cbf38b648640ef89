//! One redb database with one writer. Reads see the last commit.

use std::io;
use std::ops::Bound;
use std::ops::Deref;
use std::sync::Arc;

use redb::{
    BackendError, Database, Durability, ReadTransaction, ReadableDatabase as _, StorageBackend,
    WriteTransaction,
};

use super::queue::{self, Closing, Completion, Open, Queue, Sink};
use crate::database::{self, Mark, Opened, Values, guarded, io_error};
use crate::platform::Disk;
use crate::watch;

/// How much of a database is cached in memory, in bytes. Recent log entries have a cache of their
/// own, so this only serves the B-tree's inner pages and lagging followers.
const CACHE_BYTES: usize = 8 << 20;

/// What a write does to the database.
pub(super) type Write = Box<dyn FnOnce(&WriteTransaction) -> Result<(), redb::Error> + Send>;

/// A database to read from. Cloning shares it.
#[derive(Clone)]
pub(super) struct Reader {
    database: Arc<OpenDatabase>,
}

/// A database that its writer and whoever reads it have open together: redb writes to its file once more
/// when the last of them lets go of it.
struct OpenDatabase {
    database: Database,
    /// Dropped after the database: [`Closing`] waits for it.
    _open: Open,
}

impl Deref for OpenDatabase {
    type Target = Database;

    fn deref(&self) -> &Database {
        &self.database
    }
}

impl Reader {
    /// Reads the last commit.
    ///
    /// # Errors
    /// `read`'s; [`io::ErrorKind::InvalidData`] when what is there is damaged.
    pub(super) fn read<T>(&self, read: impl FnOnce(&ReadTransaction) -> io::Result<T>) -> io::Result<T> {
        guarded(|| read(&self.database.begin_read().map_err(io_error)?))
    }
}

/// The files of a store: a database, the mark beside it, and the database's table of named values.
#[derive(Clone, Copy)]
pub(super) struct Files {
    pub(super) name: &'static str,
    pub(super) mark: &'static str,
    pub(super) values: Values,
}

/// Opens a store's database, making it when absent, and starts its writer. `failure` gets the
/// words of the first failed commit; the last part returned ends when the database has closed.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when someone else has the file open, [`io::ErrorKind::InvalidData`]
/// when it is damaged; else what failed.
pub(super) fn open(
    disk: &dyn Disk,
    files: Files,
    failure: watch::Sender<Option<Arc<str>>>,
) -> io::Result<(Reader, Queue<Write>, Closing)> {
    let Files { name, mark, values } = files;
    let Opened { database, commits, mark } = database::open(disk, name, mark, values, CACHE_BYTES)?;
    let (open, closing) = Open::new();
    let database = Arc::new(OpenDatabase { database, _open: open });
    let reader = Reader { database: Arc::clone(&database) };
    let writer = Writer { name, values, commits, mark: Arc::new(mark), database };
    Ok((reader, queue::start(disk, writer, failure)?, closing))
}

struct Writer {
    name: &'static str,
    values: Values,
    /// How many commits were made, since the database was.
    commits: u64,
    mark: Arc<Mark>,
    database: Arc<OpenDatabase>,
}

impl Writer {
    /// Commits what is written. Returns how many commits there are now.
    fn write_all(&self, writes: Vec<Write>) -> Result<u64, redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        for write in writes {
            write(&transaction)?;
        }
        let commits = database::count(&transaction, self.values, self.commits)?;
        transaction.commit()?;
        Ok(commits)
    }
}

impl Sink for Writer {
    type Write = Write;

    fn name(&self) -> &'static str {
        self.name
    }

    fn commit(&mut self, writes: Vec<Write>) -> io::Result<Completion> {
        let commits = self.write_all(writes).map_err(io_error)?;
        self.commits = commits;
        let mark = Arc::clone(&self.mark);
        // Before anyone is told: what was acknowledged is marked.
        Ok(Box::new(move || mark.write(commits)))
    }
}

/// A boxed backend, which redb itself does not take.
#[derive(Debug)]
pub(crate) struct Backend(pub(crate) Box<dyn StorageBackend>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}
