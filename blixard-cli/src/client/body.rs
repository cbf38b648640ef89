//! Request bodies.

use std::io;
use std::path::Path;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

/// The body of a request.
pub(crate) type Upload = UnsyncBoxBody<Bytes, io::Error>;

/// How much of a file is sent at once, in bytes.
const CHUNK_BYTES: usize = 256 << 10;

pub(super) fn empty() -> Upload {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub(super) fn json(body: Option<Vec<u8>>) -> Upload {
    match body {
        None => empty(),
        Some(bytes) => Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync(),
    }
}

/// What comes out of a channel.
pub(crate) fn chunks(receiver: mpsc::Receiver<Bytes>) -> Upload {
    let frames = stream::unfold(receiver, async |mut receiver| {
        let chunk = receiver.recv().await?;
        Some((Ok::<_, io::Error>(Frame::data(chunk)), receiver))
    });
    BodyExt::boxed_unsync(StreamBody::new(frames))
}

/// The file at `path`, or standard input for `-`, and its size when it has one. `progress` is told
/// how many bytes were sent so far.
///
/// # Errors
/// When the file cannot be opened.
pub(crate) async fn file(
    path: &Path,
    progress: impl Fn(u64) + Send + 'static,
) -> io::Result<(Upload, Option<u64>)> {
    if path == Path::new("-") {
        return Ok((file_chunks(tokio::io::stdin(), progress), None));
    }
    let file = tokio::fs::File::open(path).await?;
    let metadata = file.metadata().await?;
    if metadata.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory, not a file"));
    }
    let bytes = metadata.is_file().then_some(metadata.len());
    Ok((file_chunks(file, progress), bytes))
}

fn file_chunks(
    source: impl AsyncRead + Send + Unpin + 'static,
    progress: impl Fn(u64) + Send + 'static,
) -> Upload {
    let frames = stream::try_unfold((source, 0), move |(mut source, sent)| {
        progress(sent);
        async move {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            let read = (&mut source).take(CHUNK_BYTES as u64).read_to_end(&mut chunk).await?;
            let next = (source, sent + read as u64);
            Ok::<_, io::Error>((read > 0).then(|| (Frame::data(Bytes::from(chunk)), next)))
        }
    });
    BodyExt::boxed_unsync(StreamBody::new(frames))
}
