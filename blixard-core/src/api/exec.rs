//! The frames of `exec`.
//!
//! `POST /v1/replicas/{id}/exec` with an [`ExecRequest`] and `Upgrade: blixard-exec-1` answers 101
//! and turns the connection into two streams of frames: one byte of [`FrameKind`], four bytes of
//! payload length (big endian), the payload. The client sends `Stdin`, `Eof` and `Resize`; the
//! server sends `Stdout`, `Stderr` and, last, `Exit` or `Error`. A frame of an unknown kind is
//! skipped.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The largest payload, in bytes. A longer one ends the session.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// The size of what precedes a payload, in bytes.
pub const HEADER_BYTES: usize = 5;

/// What to run in a running container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecRequest {
    /// The program and its arguments; not empty.
    pub command: Vec<String>,
    /// Whether it gets a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Whether its standard input is connected.
    #[serde(default)]
    pub stdin: bool,
    /// The terminal's width when the program starts; 0 when it is not known yet.
    #[serde(default)]
    pub columns: u16,
    /// The terminal's height when the program starts; 0 when it is not known yet.
    #[serde(default)]
    pub rows: u16,
    /// Environment variables added to the container's, `K=V`.
    #[serde(default)]
    pub environment: Vec<String>,
    /// The directory it starts in; the container's when absent.
    #[serde(default)]
    pub workdir: Option<String>,
    /// The user it runs as, `uid[:gid]`; the container's when absent.
    #[serde(default)]
    pub user: Option<String>,
}

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum FrameKind {
    /// Bytes for the process's standard input.
    Stdin = 0,
    /// Bytes of its standard output, or of its terminal.
    Stdout = 1,
    /// Bytes of its standard error.
    Stderr = 2,
    /// The terminal's size: columns, rows, each two bytes, big endian.
    Resize = 3,
    /// Its exit code, four bytes, big endian. Ends the session.
    Exit = 4,
    /// No more standard input. No payload.
    Eof = 5,
    /// Why the session ended without an exit code, in UTF-8.
    Error = 6,
}

impl FrameKind {
    const ALL: [Self; 7] =
        [Self::Stdin, Self::Stdout, Self::Stderr, Self::Resize, Self::Exit, Self::Eof, Self::Error];
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// [`FrameKind::Stdin`]
    Stdin(Vec<u8>),
    /// [`FrameKind::Stdout`]
    Stdout(Vec<u8>),
    /// [`FrameKind::Stderr`]
    Stderr(Vec<u8>),
    /// [`FrameKind::Resize`]
    Resize {
        /// Its width.
        columns: u16,
        /// Its height.
        rows: u16,
    },
    /// [`FrameKind::Exit`]
    Exit(u32),
    /// [`FrameKind::Eof`]
    Eof,
    /// [`FrameKind::Error`]
    Error(String),
}

/// Why bytes are not frames.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The payload is longer than [`PAYLOAD_BYTES_MAX`].
    #[error("a frame of {bytes} bytes is longer than the {PAYLOAD_BYTES_MAX} allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The payload does not fit the kind.
    #[error("a frame of kind {kind} cannot have {bytes} bytes")]
    Malformed {
        /// Its kind.
        kind: u8,
        /// Its length.
        bytes: usize,
    },
}

impl Frame {
    /// The frame as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, payload): (FrameKind, &[u8]) = match self {
            Self::Stdin(bytes) => (FrameKind::Stdin, bytes),
            Self::Stdout(bytes) => (FrameKind::Stdout, bytes),
            Self::Stderr(bytes) => (FrameKind::Stderr, bytes),
            Self::Resize { columns, rows } => {
                let [a, b] = columns.to_be_bytes();
                let [c, d] = rows.to_be_bytes();
                return encode(FrameKind::Resize, &[a, b, c, d]);
            }
            Self::Exit(code) => return encode(FrameKind::Exit, &code.to_be_bytes()),
            Self::Eof => (FrameKind::Eof, &[]),
            Self::Error(text) => (FrameKind::Error, text.as_bytes()),
        };
        encode(kind, payload)
    }

    /// The first frame in `buffer` and how many bytes it took, or nothing while it is incomplete.
    /// A frame of an unknown kind is `None` with its length.
    ///
    /// # Errors
    /// When the bytes cannot be the start of a frame.
    pub fn decode(buffer: &[u8]) -> Result<Option<(Option<Self>, usize)>, FrameError> {
        let Some((header, rest)) = buffer.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let [kind, length @ ..] = *header;
        let bytes = u32::from_be_bytes(length) as usize;
        if bytes > PAYLOAD_BYTES_MAX {
            return Err(FrameError::TooLong { bytes });
        }
        let Some(payload) = rest.get(..bytes) else { return Ok(None) };
        let frame = Self::from_payload(kind, payload).ok_or(FrameError::Malformed { kind, bytes })?;
        Ok(Some((frame, HEADER_BYTES + bytes)))
    }

    /// `None` when the payload does not fit the kind; `Some(None)` when the kind is unknown.
    fn from_payload(kind: u8, payload: &[u8]) -> Option<Option<Self>> {
        let Some(kind) = FrameKind::ALL.into_iter().find(|known| *known as u8 == kind) else {
            return Some(None);
        };
        Some(Some(match kind {
            FrameKind::Stdin => Self::Stdin(payload.to_vec()),
            FrameKind::Stdout => Self::Stdout(payload.to_vec()),
            FrameKind::Stderr => Self::Stderr(payload.to_vec()),
            FrameKind::Resize => {
                let [a, b, c, d] = payload.try_into().ok()?;
                Self::Resize { columns: u16::from_be_bytes([a, b]), rows: u16::from_be_bytes([c, d]) }
            }
            FrameKind::Exit => Self::Exit(u32::from_be_bytes(payload.try_into().ok()?)),
            FrameKind::Eof if payload.is_empty() => Self::Eof,
            FrameKind::Eof => return None,
            FrameKind::Error => Self::Error(String::from_utf8_lossy(payload).into_owned()),
        }))
    }
}

fn encode(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("payloads are cut to PAYLOAD_BYTES_MAX");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.push(kind as u8);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Frame, FrameError, PAYLOAD_BYTES_MAX};

    fn frame() -> impl Strategy<Value = Frame> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..64);
        prop_oneof![
            bytes().prop_map(Frame::Stdin),
            bytes().prop_map(Frame::Stdout),
            bytes().prop_map(Frame::Stderr),
            any::<(u16, u16)>().prop_map(|(columns, rows)| Frame::Resize { columns, rows }),
            any::<u32>().prop_map(Frame::Exit),
            Just(Frame::Eof),
            "[a-z ]{0,20}".prop_map(Frame::Error),
        ]
    }

    proptest! {
        #[test]
        fn frames_read_back_and_every_prefix_is_incomplete(frame in frame()) {
            let bytes = frame.encode();
            for cut in 0..bytes.len() {
                prop_assert_eq!(Frame::decode(&bytes[..cut]), Ok(None));
            }
            prop_assert_eq!(Frame::decode(&bytes), Ok(Some((Some(frame), bytes.len()))));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some((_, taken))) = Frame::decode(&bytes) {
                prop_assert!(taken <= bytes.len());
            }
        }
    }

    #[test]
    fn unknown_kinds_are_skipped_and_bad_lengths_refused() {
        assert_eq!(Frame::decode(&[99, 0, 0, 0, 1, 7]), Ok(Some((None, 6))));
        assert_eq!(
            Frame::decode(&[4, 0, 0, 0, 1, 7]),
            Err(FrameError::Malformed { kind: 4, bytes: 1 }),
            "an exit code has four bytes",
        );
        assert_eq!(
            Frame::decode(&[0, 0, 0x20, 0, 0]),
            Err(FrameError::TooLong { bytes: 0x20_0000 }),
            "longer than {PAYLOAD_BYTES_MAX}",
        );
    }
}
