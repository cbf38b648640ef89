//! How a stream is compressed, told by its first bytes alone: what media types and file names say
//! is often wrong. And its decompression, on a thread beside the async ones.

use std::io::{self, Chain, Cursor, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use flate2::read::MultiGzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

/// How many first bytes tell.
pub(super) const MAGIC_BYTES: usize = 6;
/// The most memory that decompressing xz may take, in KiB: what its highest level needs, and more.
const XZ_MEMORY_KIB: u32 = 128 << 10;
/// How many pieces wait on each side of the thread that decompresses, and their size in bytes.
const PIECES: usize = 4;
const PIECE_BYTES: usize = 64 << 10;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    /// Not, as far as its first bytes tell.
    Plain,
    Gzip,
    Zstd,
    Xz,
    /// In a way that is not understood here, by name.
    Unknown(&'static str),
}

impl Compression {
    /// Tells it by a stream's first [`MAGIC_BYTES`], or all of it when it is shorter.
    pub(super) fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Unknown("bzip2"),
            [0x04, 0x22, 0x4d, 0x18, ..] => Self::Unknown("lz4"),
            [0x1f, 0x9d, ..] => Self::Unknown("compress"),
            [b'L', b'Z', b'I', b'P', ..] => Self::Unknown("lzip"),
            [b'P', b'K', 3, 4, ..] => Self::Unknown("zip"),
            _ => Self::Plain,
        }
    }

    /// Reads what `source` is the compressed form of.
    fn decoder<R: Read + Send + 'static>(self, source: R) -> Box<dyn Read + Send> {
        match self {
            Self::Plain | Self::Unknown(_) => Box::new(source),
            Self::Gzip => Box::new(MultiGzDecoder::new(source)),
            Self::Zstd => Box::new(Zstd::Between(source)),
            Self::Xz => Box::new(XzReader::new_mem_limit(source, true, XZ_MEMORY_KIB)),
        }
    }
}

/// Decompresses zstd's frames one after another, and passes over those that hold no content.
enum Zstd<R: Read> {
    Between(R),
    Within(Box<StreamingDecoder<Begun<R>, FrameDecoder>>),
    Ended,
}

/// A frame whose first bytes were read already.
type Begun<R> = Chain<Cursor<[u8; 4]>, R>;

impl<R: Read> Zstd<R> {
    /// Goes to the next frame with content, or the end.
    fn next_frame(mut source: R) -> io::Result<Self> {
        loop {
            let mut magic = [0; 4];
            match read_up_to(&mut source, &mut magic)? {
                0 => return Ok(Self::Ended),
                4 => {}
                _ => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
            if matches!(magic, [0x50..=0x5f, 0x2a, 0x4d, 0x18]) {
                let mut length = [0; 4];
                source.read_exact(&mut length)?;
                let length = u64::from(u32::from_le_bytes(length));
                if io::copy(&mut source.by_ref().take(length), &mut io::sink())? < length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                continue;
            }
            let decoder = StreamingDecoder::new(Read::chain(Cursor::new(magic), source));
            return Ok(Self::Within(Box::new(decoder.map_err(io::Error::other)?)));
        }
    }
}

fn read_up_to(source: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match source.read(&mut buf[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while !buf.is_empty() {
            if let Self::Within(decoder) = self {
                let read = decoder.read(buf)?;
                if read > 0 {
                    return Ok(read);
                }
            }
            *self = match std::mem::replace(self, Self::Ended) {
                Self::Ended => return Ok(0),
                Self::Between(source) => Self::next_frame(source)?,
                Self::Within(decoder) => Self::Between(decoder.into_inner().into_inner().1),
            };
        }
        Ok(0)
    }
}

/// What a compressed stream is the compressed form of. Its thread ends when it is dropped, whatever
/// the source does.
pub(super) struct Decompressed {
    source: Pin<Box<dyn AsyncRead + Send>>,
    /// Where the thread gets its input; none once the source ended.
    feed: Option<PollSender<Bytes>>,
    output: mpsc::Receiver<io::Result<Bytes>>,
    /// The rest of the last piece of output.
    piece: Bytes,
    input: Box<[u8]>,
}

impl Decompressed {
    pub(super) fn new(compression: Compression, source: Pin<Box<dyn AsyncRead + Send>>) -> Self {
        let (feed, fed) = mpsc::channel(PIECES);
        let (sender, output) = mpsc::channel(PIECES);
        tokio::task::spawn_blocking(move || decompress(compression, fed, &sender));
        let input = vec![0; PIECE_BYTES].into_boxed_slice();
        Self { source, feed: Some(PollSender::new(feed)), output, piece: Bytes::new(), input }
    }

    /// What was not read yet of the compressed stream.
    pub(super) fn into_source(self) -> Pin<Box<dyn AsyncRead + Send>> {
        self.source
    }
}

fn decompress(
    compression: Compression,
    fed: mpsc::Receiver<Bytes>,
    output: &mpsc::Sender<io::Result<Bytes>>,
) {
    let ended = Arc::new(AtomicBool::new(false));
    let mut decoder = compression.decoder(Fed { fed, piece: Bytes::new(), ended: ended.clone() });
    let mut buf = vec![0; PIECE_BYTES];
    loop {
        let piece = match decoder.read(&mut buf) {
            Ok(0) => return,
            Ok(read) => Ok(Bytes::copy_from_slice(&buf[..read])),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
            // Each decoder has words of its own for a stream that was cut.
            Err(_) if ended.load(Ordering::Relaxed) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(err) => Err(io::Error::new(io::ErrorKind::InvalidData, err)),
        };
        let failed = piece.is_err();
        if output.blocking_send(piece).is_err() || failed {
            return;
        }
    }
}

/// The thread's side of the input.
struct Fed {
    fed: mpsc::Receiver<Bytes>,
    piece: Bytes,
    /// Whether more was asked for than there is.
    ended: Arc<AtomicBool>,
}

impl Read for Fed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.fed.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => {
                    self.ended.store(true, Ordering::Relaxed);
                    return Ok(0);
                }
            }
        }
        let part = buf.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buf[..part]);
        Ok(part)
    }
}

impl AsyncRead for Decompressed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.piece.is_empty() {
                let part = buf.remaining().min(this.piece.len());
                buf.put_slice(&this.piece.split_to(part));
                return Poll::Ready(Ok(()));
            }
            match this.output.poll_recv(cx) {
                Poll::Ready(Some(piece)) => {
                    this.piece = piece?;
                    continue;
                }
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => {}
            }
            let Some(feed) = &mut this.feed else { return Poll::Pending };
            if ready!(feed.poll_reserve(cx)).is_err() {
                // The thread ended; its last words are in the output.
                this.feed = None;
                continue;
            }
            let mut input = ReadBuf::new(&mut this.input);
            ready!(this.source.as_mut().poll_read(cx, &mut input))?;
            let piece = Bytes::copy_from_slice(input.filled());
            if piece.is_empty() || feed.send_item(piece).is_err() {
                this.feed = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use tokio::io::AsyncReadExt as _;

    use super::*;

    async fn decompressed(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let source = Box::pin(Cursor::new(bytes.to_vec()));
        let mut plain = Vec::new();
        Decompressed::new(Compression::of(bytes), source).read_to_end(&mut plain).await?;
        Ok(plain)
    }

    fn content() -> Vec<u8> {
        (0..300_000_u32).flat_map(|number| (number / 7).to_le_bytes()).collect()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("into memory");
        encoder.finish().expect("into memory")
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder =
            lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::default()).expect("options");
        encoder.write_all(bytes).expect("into memory");
        encoder.finish().expect("into memory")
    }

    #[tokio::test]
    async fn streams_are_decompressed_by_what_they_are() {
        let content = content();
        for (compression, packed) in [
            (Compression::Gzip, gzip(&content)),
            (Compression::Zstd, zstd(&content)),
            (Compression::Xz, xz(&content)),
        ] {
            assert_eq!(Compression::of(&packed), compression);
            assert!(decompressed(&packed).await.expect("valid") == content, "{compression:?}");
            let twice = [packed.clone(), packed.clone()].concat();
            assert!(decompressed(&twice).await.expect("valid") == content.repeat(2), "{compression:?} twice");
            for length in [MAGIC_BYTES, packed.len() / 2, packed.len() - 3] {
                let error = decompressed(&packed[..length]).await.expect_err("cut");
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{compression:?} {length}: {error}");
            }
        }
        assert!(decompressed(&content).await.expect("valid") == content);
        assert_eq!(Compression::of(b"BZh91AY&SY"), Compression::Unknown("bzip2"));
        assert_eq!(Compression::of(b""), Compression::Plain);
    }

    #[tokio::test]
    async fn zstd_frames_without_content_are_passed_over() {
        let skippable = [&[0x53, 0x2a, 0x4d, 0x18, 5, 0, 0, 0][..], b"notes"].concat();
        let packed = [&skippable[..], &zstd(b"first "), &skippable, &zstd(b"second"), &skippable].concat();
        assert_eq!(decompressed(&packed).await.expect("valid"), b"first second");
        assert!(decompressed(&packed[..packed.len() - 2]).await.is_err());
    }

    #[tokio::test]
    async fn a_window_that_takes_too_much_memory_is_refused() {
        // The header of a frame with a window of 1 GiB.
        let mut packed = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 20 << 3];
        packed.extend([0x01, 0x00, 0x00]);
        let error = decompressed(&packed).await.expect_err("too large");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }

    #[tokio::test]
    async fn dropped_while_its_source_stalls_it_leaves_no_thread() {
        let (mut stalled, source) = tokio::io::duplex(64);
        let mut stream = Decompressed::new(Compression::Gzip, Box::pin(source));
        tokio::io::AsyncWriteExt::write_all(&mut stalled, &gzip(b"x")[..5]).await.expect("room");
        let mut byte = [0];
        let read = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut byte)).await;
        assert!(read.is_err(), "nothing to read yet");
        // The runtime would wait for its blocking thread for ever.
        drop(stream);
    }

    #[test]
    fn compressed_streams_survive_every_damage() {
        let text = b"what is compressed ".repeat(20);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let seeds = [gzip(&text), zstd(&text), xz(&text), text];
        damage::survives("compressed stream", &seeds, |input| {
            let decompressed = async {
                let (start, source) = (&input[..input.len().min(MAGIC_BYTES)], Cursor::new(input.to_vec()));
                let mut stream = Decompressed::new(Compression::of(start), Box::pin(source));
                // More is another's to refuse.
                let mut out = Vec::new();
                (&mut stream).take(1 << 20).read_to_end(&mut out).await
            };
            runtime.block_on(decompressed).map(drop).map_err(|error| error.to_string())
        });
    }
}
