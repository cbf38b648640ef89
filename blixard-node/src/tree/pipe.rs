//! A few chunks of bytes between a thread that may block and a task that must not.

use std::io::{self, Read, Write};

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

/// How many bytes are collected before they are handed over.
const CHUNK_BYTES: usize = 64 << 10;

/// Hands what is written to a task; blocks while that does not take it.
pub struct ChunkWriter {
    buffer: BytesMut,
    chunks: mpsc::Sender<Bytes>,
}

impl ChunkWriter {
    /// Writes into `chunks`.
    pub fn new(chunks: mpsc::Sender<Bytes>) -> Self {
        Self { buffer: BytesMut::new(), chunks }
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = self.buffer.split().freeze();
        self.chunks.blocking_send(chunk).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Reads what a task sends; blocks until there is more.
pub struct ChunkReader {
    chunk: Bytes,
    chunks: mpsc::Receiver<Bytes>,
}

impl ChunkReader {
    /// Reads from `chunks`.
    pub fn new(chunks: mpsc::Receiver<Bytes>) -> Self {
        Self { chunk: Bytes::new(), chunks }
    }
}

impl Read for ChunkReader {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let length = self.chunk.len().min(bytes.len());
        let taken = self.chunk.split_to(length);
        if let Some(place) = bytes.get_mut(..length) {
            place.copy_from_slice(&taken);
        }
        Ok(length)
    }
}
