//! Files into and out of running containers, through the root of a container's process: mounts and
//! volumes are where the container has them.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blixard_core::id::ContainerId;
use blixard_core::limits::EXEC_SESSIONS_MAX;
use bytes::Bytes;
use containerd_client::types::v1::Status as ProcessStatus;
use futures_util::StreamExt;
use rustix::fs::{FileType, Mode, OFlags};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::containers::Containers;
use crate::platform::{Chunks, RuntimeError};
use crate::tree::{self, ChunkReader, ChunkWriter, Target};

/// How many chunks wait for whoever takes them.
const QUEUE: usize = 4;
/// Which permissions are kept on the way into a container.
const MODE_MASK: u32 = 0o7777;

impl Containers {
    /// What is at `path` in a running container, as a stream.
    pub(crate) async fn read_tree(&self, id: &ContainerId, path: String) -> Result<Chunks, RuntimeError> {
        let permit = self.copy_permit()?;
        let root = self.root(id).await?;
        let shown = path.clone();
        let (chunks, receiver) = mpsc::channel::<Bytes>(QUEUE);
        let opened = super::blocking(move || {
            tree::open_in_root(&root, Path::new(&path)).map_err(|error| told(&path, &error))
        });
        let top = opened.await?;
        let packing = super::blocking(move || {
            let packed = tree::pack(&top, &mut ChunkWriter::new(chunks));
            drop(permit);
            packed.map_err(|error| told(&shown, &error))
        });
        begun(packing, receiver).await
    }

    /// Makes what a stream says at `path` in a running container: in it, under `name`, when it is a
    /// directory.
    pub(crate) async fn write_tree(
        &self,
        id: &ContainerId,
        path: String,
        name: Option<String>,
        mut chunks: Chunks,
    ) -> Result<(), RuntimeError> {
        let permit = self.copy_permit()?;
        let root = self.root(id).await?;
        let shown = path.clone();
        let (sender, receiver) = mpsc::channel::<Bytes>(QUEUE);
        let unpacking = super::blocking(move || {
            let _permit: OwnedSemaphorePermit = permit;
            let target =
                target(&root, &path, name.map(OsString::from)).map_err(|error| told(&path, &error))?;
            tree::unpack(&target, &mut ChunkReader::new(receiver)).map_err(|error| told(&shown, &error))
        });
        let feeding = async move {
            loop {
                // Cancel safe: when nothing more is taken, what is left of the stream is for nobody.
                let chunk = tokio::select! {
                    biased;
                    () = sender.closed() => return,
                    chunk = chunks.next() => chunk,
                };
                let Some(Ok(chunk)) = chunk else { return };
                if sender.send(chunk).await.is_err() {
                    return;
                }
            }
        };
        let (unpacked, ()) = tokio::join!(unpacking, feeding);
        unpacked
    }

    fn copy_permit(&self) -> Result<OwnedSemaphorePermit, RuntimeError> {
        Arc::clone(&self.exec_sessions).try_acquire_owned().map_err(|_| {
            RuntimeError::Unavailable(format!(
                "{EXEC_SESSIONS_MAX} programs and copies are under way on this node, and no more are at a time"
            ))
        })
    }

    /// The root directory of a running container, as its process sees it.
    async fn root(&self, id: &ContainerId) -> Result<OwnedFd, RuntimeError> {
        let running = async || {
            let process = self.client.process(&id.0).await?;
            let running = process.filter(|process| process.status == ProcessStatus::Running as i32);
            running.map(|process| process.pid).ok_or_else(|| {
                RuntimeError::Invalid(format!(
                    "container {} does not run: its files can be copied only while it does",
                    id.short()
                ))
            })
        };
        let pid = running().await?;
        let opened = super::blocking(move || {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(format!("/proc/{pid}/root"), flags, Mode::empty())
                .map_err(|error| told("/", &error.into()))
        });
        let root = opened.await?;
        // The number may have become another process's between the two.
        if running().await? == pid {
            return Ok(root);
        }
        Err(RuntimeError::Unavailable(format!("container {} has just ended", id.short())))
    }
}

/// Where `path` says: in it, when it is a directory, else in its place.
fn target(root: &OwnedFd, path: &str, name: Option<OsString>) -> io::Result<Target> {
    let is_directory =
        |fd: &OwnedFd| rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir());
    match tree::open_in_root(root, Path::new(path)) {
        Ok(directory) if is_directory(&directory) => {
            return Ok(Target { directory, name, mode_mask: MODE_MASK });
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ if path.ends_with('/') => return Err(io::Error::other("there is no such directory")),
        _ => {}
    }
    let whole = PathBuf::from(path);
    let last = whole.file_name().filter(|name| !name.as_bytes().is_empty());
    let last = last.ok_or_else(|| io::Error::other("it names nothing"))?.to_owned();
    let parent = whole.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("/"));
    let directory = tree::open_in_root(root, parent)?;
    Ok(Target { directory, name: Some(last), mode_mask: MODE_MASK })
}

/// What `packing` sends, once it has sent something. What fails before that is an error.
async fn begun(
    packing: impl Future<Output = Result<(), RuntimeError>> + Send + 'static,
    receiver: mpsc::Receiver<Bytes>,
) -> Result<Chunks, RuntimeError> {
    // The stream ends when the thread does, which has said in it what failed, unless it could not begin.
    let mut packing = Box::pin(packing);
    let mut receiver = ReceiverStream::new(receiver);
    // Cancel safe: what the packing has sent stays in the receiver. Once it has ended it must not be polled.
    tokio::select! {
        biased;
        first = receiver.next() => match first {
            Some(first) => {
                tokio::spawn(packing);
                Ok(futures_util::stream::iter([first]).chain(receiver).map(Ok).boxed())
            }
            None => packing.await.map(|()| futures_util::stream::empty().boxed()),
        },
        packed = &mut packing => packed.map(|()| receiver.map(Ok).boxed()),
    }
}

fn told(path: &str, error: &io::Error) -> RuntimeError {
    match error.kind() {
        io::ErrorKind::NotFound => RuntimeError::NotFound(format!("the container has no {path}")),
        _ => RuntimeError::Invalid(format!("cannot copy {path}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use rustix::fs::{Mode, OFlags};
    use tokio::sync::mpsc;

    use super::{Bytes, ChunkWriter, Path, QUEUE, RuntimeError, StreamExt, begun, told, tree};

    /// How many times a tree is read.
    const ROUNDS: usize = 300;

    type Packing = Pin<Box<dyn Future<Output = Result<(), RuntimeError>> + Send>>;

    /// Says whether it is polled after its end, instead of the panic that nobody would see in a task.
    struct Watched {
        packing: Option<Packing>,
        polled_after_its_end: mpsc::UnboundedSender<()>,
    }

    impl Future for Watched {
        type Output = Result<(), RuntimeError>;

        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
            let Some(packing) = &mut self.packing else {
                self.polled_after_its_end.send(()).ok();
                return Poll::Ready(Ok(()));
            };
            let polled = packing.as_mut().poll(context);
            if polled.is_ready() {
                self.packing = None;
            }
            polled
        }
    }

    async fn read(packing: Packing, receiver: mpsc::Receiver<Bytes>) -> Result<Vec<u8>, RuntimeError> {
        let (polled_after_its_end, mut told) = mpsc::unbounded_channel();
        let watched = Watched { packing: Some(packing), polled_after_its_end };
        let mut chunks = begun(watched, receiver).await?;
        let mut stream = Vec::new();
        while let Some(chunk) = chunks.next().await {
            stream.extend_from_slice(&chunk.expect("it says in it what fails"));
        }
        // Nothing comes once it is dropped, wherever it went.
        assert!(told.recv().await.is_none(), "it is polled after its end");
        Ok(stream)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_small_tree_arrives_however_soon_it_is_read() {
        let root = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(root.path().join("etc")).expect("directory");
        fs::write(root.path().join("etc/hostname"), "web-0").expect("file");
        let mut expect = Vec::new();
        tree::pack_path(root.path(), &mut expect).expect("a stream");
        for _ in 0..ROUNDS {
            let top = rustix::fs::open(root.path(), OFlags::PATH, Mode::empty()).expect("a directory");
            let (chunks, receiver) = mpsc::channel(QUEUE);
            let packing = super::super::blocking(move || {
                tree::pack(&top, &mut ChunkWriter::new(chunks)).map_err(|error| told("/", &error))
            });
            assert_eq!(read(Box::pin(packing), receiver).await.expect("a stream"), expect);
        }
        let nothing =
            rustix::fs::open(Path::new("/dev/null"), OFlags::PATH, Mode::empty()).expect("a device");
        let (chunks, receiver) = mpsc::channel(QUEUE);
        let packing = super::super::blocking(move || {
            tree::pack(&nothing, &mut ChunkWriter::new(chunks)).map_err(|error| told("/dev/null", &error))
        });
        let error = read(Box::pin(packing), receiver).await.expect_err("it is no file");
        assert!(error.to_string().contains("neither a file nor a directory"), "{error}");
    }

    #[tokio::test]
    async fn what_is_packed_before_it_is_waited_for_arrives_with_its_result() {
        let packed = async |chunk: Option<&'static [u8]>, result: Result<(), RuntimeError>| {
            let (chunks, receiver) = mpsc::channel(QUEUE);
            // Is ready at the first poll, when the receiver was asked already and had nothing.
            let packing = async move {
                if let Some(chunk) = chunk {
                    chunks.try_send(Bytes::from_static(chunk)).expect("there is room");
                }
                result
            };
            read(Box::pin(packing), receiver).await
        };
        let failed = || Err(RuntimeError::Invalid("the disk broke".to_owned()));
        assert_eq!(packed(Some(b"all"), Ok(())).await.expect("a stream"), b"all");
        assert_eq!(packed(None, Ok(())).await.expect("a stream"), b"");
        for chunk in [None, Some(b"some".as_slice())] {
            let error = packed(chunk, failed()).await.expect_err("it failed");
            assert!(error.to_string().contains("the disk broke"), "{error}");
        }
    }
}
