//! The queue before the only writer of a file, which commits what waits as one durable group.
//!
//! Callers queue writes and are told when they are durable. The first commit that fails (disk full, I/O
//! error) ends the store: every later write fails with the same words, and the composition root
//! reopens Raft.

use std::io;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use crate::database::guarded;
use crate::platform::{Disk, DurableWriter};
use crate::watch;

/// How many writes wait for the writer at most; whoever queues more waits.
const QUEUE_MAX: usize = 4_096;

/// Who is told how a write ended.
type Done = Box<dyn FnOnce(io::Result<()>) + Send>;
/// What is to be done once a group is durable, before anyone is told.
pub(super) type Completion = Box<dyn FnOnce() + Send>;

/// A file's only writer.
pub(super) trait Sink: Send + 'static {
    /// What it writes.
    type Write: Send + 'static;

    /// The file's name.
    fn name(&self) -> &'static str;

    /// Writes all of this durably, in order.
    ///
    /// # Errors
    /// The disk's. It is not asked again.
    fn commit(&mut self, writes: Vec<Self::Write>) -> io::Result<Completion>;

    /// Does what nobody waits for, after those who waited have been told.
    fn rest(&mut self) {}
}

/// The queue of a file's writer. The file closes when every clone is gone and what waited is written.
pub(super) struct Queue<W> {
    jobs: mpsc::Sender<Job<W>>,
}

impl<W> Clone for Queue<W> {
    fn clone(&self) -> Self {
        Self { jobs: self.jobs.clone() }
    }
}

impl<W: Send + 'static> Queue<W> {
    /// Queues `write`; `done` is told when it is durable, or why it never will be. `done` runs on
    /// the writer's thread and must not block. Writes are committed in the order of the calls.
    pub(super) async fn push(&self, write: W, done: impl FnOnce(io::Result<()>) + Send + 'static) {
        let job = Job { write: Some(write), done: Some(Box::new(done)) };
        // A job that finds no writer is dropped, which tells `done`.
        let _ = self.jobs.send(job).await;
    }

    /// Queues `write` when there is room, without waiting for it.
    pub(super) fn try_push(&self, write: W) {
        let _ = self.jobs.try_send(Job { write: Some(write), done: None });
    }

    /// Queues `write` and waits until it is durable.
    pub(super) async fn write(&self, write: W) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        self.push(write, move |outcome| {
            // The caller may have given up waiting.
            let _ = sender.send(outcome);
        })
        .await;
        receiver.await.unwrap_or_else(|_| Err(writer_gone()))
    }
}

/// Starts a file's writer. `failure` gets the words of the first failed commit.
///
/// # Errors
/// When the writer cannot be started.
pub(super) fn start<S: Sink>(
    disk: &dyn Disk,
    sink: S,
    failure: watch::Sender<Option<Arc<str>>>,
) -> io::Result<Queue<S::Write>> {
    let (jobs, queued) = mpsc::channel(QUEUE_MAX);
    let name = sink.name();
    disk.start_writer(name, Box::new(Writer { sink, waiting: Vec::new(), queued, failed: None, failure }))?;
    Ok(Queue { jobs })
}

/// That a file is open: held by all that use it.
pub(super) struct Open {
    _open: watch::Sender<()>,
}

impl Open {
    pub(super) fn new() -> (Self, Closing) {
        let (open, closing) = watch::channel(());
        (Self { _open: open }, Closing(closing))
    }
}

/// Tells when a file has closed: its writer is gone, and nobody reads it any more.
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

struct Job<W> {
    write: Option<W>,
    done: Option<Done>,
}

impl<W> Drop for Job<W> {
    /// Whoever waits for a write learns of its end, also when the writer panicked or is gone.
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            done(Err(writer_gone()));
        }
    }
}

struct Writer<S: Sink> {
    sink: S,
    waiting: Vec<Job<S::Write>>,
    queued: mpsc::Receiver<Job<S::Write>>,
    failed: Option<Arc<str>>,
    failure: watch::Sender<Option<Arc<str>>>,
}

impl<S: Sink> Writer<S> {
    /// Ends the store: it takes no more writes.
    fn fail(&mut self, error: &io::Error) {
        let name = self.sink.name();
        let words: Arc<str> = format!("cannot write {name}: {error}").into();
        tracing::error!(store = name, err = %error, "the store failed and takes no more writes");
        self.failed = Some(Arc::clone(&words));
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert(words);
            first
        });
    }
}

impl<S: Sink> DurableWriter for Writer<S> {
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
            let writes = jobs.iter_mut().filter_map(|job| job.write.take()).collect();
            match guarded(|| self.sink.commit(writes)) {
                Ok(completion) => completions.push(completion),
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

    fn rest(&mut self) {
        if self.failed.is_none() {
            self.sink.rest();
        }
    }
}
