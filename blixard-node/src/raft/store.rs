//! One redb database with one writer, which commits what waits as one durable group.
//!
//! Callers queue writes and are told when they are durable; reads see the last commit. The first
//! commit that fails (disk full, I/O error) ends the store: redb refuses work after it, every later
//! write fails with the same words, and the composition root reopens Raft.

use std::io;
use std::ops::Bound;
use std::ops::Deref;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use redb::{
    BackendError, Database, Durability, ReadTransaction, ReadableDatabase as _, StorageBackend,
    WriteTransaction,
};
use tokio::sync::{mpsc, oneshot};

use crate::database::{self, Mark, Opened, Values, guarded, io_error};
use crate::platform::{Disk, DurableWriter};
use crate::watch;

/// How many writes wait for the writer at most; whoever queues more waits.
const QUEUE_MAX: usize = 4_096;
/// How much of a database is cached in memory, in bytes. Recent log entries have a cache of their
/// own, so this only serves the B-tree's inner pages and lagging followers.
const CACHE_BYTES: usize = 8 << 20;

/// What a write does to the database.
pub(super) type Write = Box<dyn FnOnce(&WriteTransaction) -> Result<(), redb::Error> + Send>;
/// Who is told how a write ended.
type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

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
    _open: watch::Sender<()>,
}

impl Deref for OpenDatabase {
    type Target = Database;

    fn deref(&self) -> &Database {
        &self.database
    }
}

impl Reader {
    /// Starts to read the last commit. Later commits do not show in it. What is read of it is read
    /// in [`guarded`].
    pub(super) fn begin(&self) -> io::Result<ReadTransaction> {
        guarded(|| self.database.begin_read().map_err(io_error))
    }

    /// Reads the last commit.
    pub(super) fn read<T>(&self, read: impl FnOnce(&ReadTransaction) -> io::Result<T>) -> io::Result<T> {
        guarded(|| read(&self.database.begin_read().map_err(io_error)?))
    }
}

/// The queue of a database's writer. The database closes when every clone is gone and what waited
/// is written.
#[derive(Clone)]
pub(super) struct Queue {
    jobs: mpsc::Sender<Job>,
}

impl Queue {
    /// Queues `write`; `done` is told when it is durable, or why it never will be. `done` runs on
    /// the writer's thread and must not block. Writes are committed in the order of the calls.
    pub(super) async fn push(&self, write: Write, done: impl FnOnce(io::Result<()>) + Send + 'static) {
        let job = Job { write: Some(write), done: Some(Box::new(done)) };
        // A job that finds no writer is dropped, which tells `done`.
        let _ = self.jobs.send(job).await;
    }

    /// Queues `write` when there is room, without waiting for it.
    pub(super) fn try_push(&self, write: Write) {
        let _ = self.jobs.try_send(Job { write: Some(write), done: None });
    }

    /// Queues `write` and waits until it is durable.
    pub(super) async fn write(&self, write: Write) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        self.push(write, move |outcome| {
            // The caller may have given up waiting.
            let _ = sender.send(outcome);
        })
        .await;
        receiver.await.unwrap_or_else(|_| Err(writer_gone()))
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
) -> io::Result<(Reader, Queue, Closing)> {
    let Files { name, mark, values } = files;
    let Opened { database, commits, mark } = database::open(disk, name, mark, values, CACHE_BYTES)?;
    let (jobs, queued) = mpsc::channel(QUEUE_MAX);
    let (open, closing) = watch::channel(());
    let database = Arc::new(OpenDatabase { database, _open: open });
    let reader = Reader { database: Arc::clone(&database) };
    let writer = Writer {
        name,
        values,
        commits,
        mark: Arc::new(mark),
        waiting: Vec::new(),
        queued,
        database,
        failed: None,
        failure,
    };
    disk.start_writer(name, Box::new(writer))?;
    Ok((reader, Queue { jobs }, Closing(closing)))
}

/// Tells when a database has closed: its writer is gone, and nobody reads it any more.
#[derive(Clone)]
pub(super) struct Closing(watch::Receiver<()>);

impl Closing {
    /// Waits until everything queued is written and the file is as it stays.
    pub(super) async fn closed(mut self) {
        while self.0.changed().await.is_ok() {}
    }
}

fn writer_gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the store is closed")
}

struct Job {
    write: Option<Write>,
    done: Option<Done>,
}

impl Drop for Job {
    /// Whoever waits for a write learns of its end, also when the writer panicked or is gone.
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            done(Err(writer_gone()));
        }
    }
}

struct Writer {
    name: &'static str,
    values: Values,
    /// How many commits were made, since the database was.
    commits: u64,
    mark: Arc<Mark>,
    waiting: Vec<Job>,
    queued: mpsc::Receiver<Job>,
    database: Arc<OpenDatabase>,
    failed: Option<Arc<str>>,
    failure: watch::Sender<Option<Arc<str>>>,
}

impl Writer {
    /// Commits what `jobs` write. Returns how many commits there are now.
    fn write_all(&self, jobs: &mut [Job]) -> Result<u64, redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        for write in jobs.iter_mut().filter_map(|job| job.write.take()) {
            write(&transaction)?;
        }
        let commits = database::count(&transaction, self.values, self.commits)?;
        transaction.commit()?;
        Ok(commits)
    }

    /// Ends the store: it takes no more writes.
    fn fail(&mut self, error: &io::Error) {
        let words: Arc<str> = format!("cannot write {}: {error}", self.name).into();
        tracing::error!(store = self.name, err = %error, "the store failed and takes no more writes");
        self.failed = Some(Arc::clone(&words));
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert(words);
            first
        });
    }
}

impl DurableWriter for Writer {
    fn wait(&mut self) -> bool {
        self.waiting.extend(self.queued.blocking_recv());
        !self.waiting.is_empty()
    }

    fn wait_async<'a>(&'a mut self) -> BoxFuture<'a, bool> {
        async {
            self.waiting.extend(self.queued.recv().await);
            !self.waiting.is_empty()
        }
        .boxed()
    }

    fn commit(&mut self) -> Vec<Box<dyn FnOnce() + Send>> {
        while let Ok(job) = self.queued.try_recv() {
            self.waiting.push(job);
        }
        let mut jobs = std::mem::take(&mut self.waiting);
        let mut completions: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
        if self.failed.is_none() {
            match guarded(|| self.write_all(&mut jobs).map_err(io_error)) {
                Ok(commits) => {
                    self.commits = commits;
                    let mark = Arc::clone(&self.mark);
                    // Before anyone is told: what was acknowledged is marked.
                    completions.push(Box::new(move || mark.write(commits)));
                }
                Err(error) => self.fail(&error),
            }
        }
        let failed = self.failed.clone();
        completions.extend(jobs.iter_mut().filter_map(|job| job.done.take()).map(|done| {
            let failed = failed.clone();
            let completion: Box<dyn FnOnce() + Send> =
                Box::new(move || done(failed.map_or(Ok(()), |words| Err(io::Error::other(&*words)))));
            completion
        }));
        completions
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
