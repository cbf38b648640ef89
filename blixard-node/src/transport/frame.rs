//! How messages lie in a QUIC stream: a header of fixed size, then the payload.
//!
//! The decoder never allocates for a length it was only promised, and never panics: a frame out
//! of bounds is an error, on which the link is closed.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// What a stream begins with: what it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum StreamKind {
    /// The hello that opens a link, and its answer.
    Hello = 1,
    /// Many small calls, answered in any order.
    Lane = 2,
    /// One large call and its answer.
    Call = 3,
    /// A header, then bytes both ways.
    Stream = 4,
}

impl StreamKind {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Hello, Self::Lane, Self::Call, Self::Stream].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// The first byte of an answer: whether what follows is the answer or why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Answered = 0,
    Refused = 1,
}

impl Status {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Answered, Self::Refused].into_iter().find(|status| *status as u8 == byte)
    }
}

/// One message. The tag is a channel's byte in a request and a status in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    /// Which call, among those of one link and direction.
    pub(super) id: u64,
    pub(super) tag: u8,
    pub(super) payload: Bytes,
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a frame of {bytes} bytes exceeds the bound of {bytes_max}")]
    TooLong { bytes: usize, bytes_max: usize },
}

/// Length (4 bytes), id (8), tag (1), big-endian.
pub(super) const HEADER_BYTES: usize = 13;

impl Frame {
    /// Appends the header to `out`; the payload is the caller's to send after it.
    ///
    /// # Panics
    /// Never: payloads are bounded by `MESSAGE_BYTES_MAX`, which fits the length field.
    pub(super) fn encode_header(&self, out: &mut BytesMut) {
        let length = u32::try_from(self.payload.len()).expect("payloads are bounded before they are framed");
        out.put_u32(length);
        out.put_u64(self.id);
        out.put_u8(self.tag);
    }

    /// Takes the next whole frame from `bytes`; none when more bytes are needed.
    ///
    /// # Errors
    /// When the frame is longer than `bytes_max`, as soon as its header is here.
    pub(super) fn decode(bytes: &mut BytesMut, bytes_max: usize) -> Result<Option<Self>, FrameError> {
        let Some(mut header) = bytes.get(..HEADER_BYTES) else { return Ok(None) };
        let length = usize::try_from(header.get_u32()).unwrap_or(usize::MAX);
        let (id, tag) = (header.get_u64(), header.get_u8());
        if length > bytes_max {
            return Err(FrameError::TooLong { bytes: length, bytes_max });
        }
        if bytes.len() - HEADER_BYTES < length {
            return Ok(None);
        }
        bytes.advance(HEADER_BYTES);
        Ok(Some(Self { id, tag, payload: bytes.split_to(length).freeze() }))
    }
}

#[cfg(test)]
mod tests {
    use super::{Frame, FrameError, HEADER_BYTES};
    use bytes::{Bytes, BytesMut};
    use proptest::prelude::*;

    fn encode(frame: &Frame) -> Vec<u8> {
        let mut out = BytesMut::new();
        frame.encode_header(&mut out);
        out.extend_from_slice(&frame.payload);
        out.to_vec()
    }

    #[test]
    fn a_frame_out_of_bounds_is_refused_by_its_header_alone() {
        let frame = Frame { id: 1, tag: 2, payload: Bytes::from_static(b"12345") };
        let mut header = BytesMut::from(&encode(&frame)[..HEADER_BYTES]);
        assert_eq!(Frame::decode(&mut header, 5), Ok(None));
        assert_eq!(Frame::decode(&mut header, 4), Err(FrameError::TooLong { bytes: 5, bytes_max: 4 }));
    }

    proptest! {
        #[test]
        fn frames_survive_any_split(
            frames in prop::collection::vec((any::<u64>(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..50)), 0..8),
            piece in 1_usize..40,
        ) {
            let frames: Vec<Frame> = frames
                .into_iter()
                .map(|(id, tag, payload)| Frame { id, tag, payload: payload.into() })
                .collect();
            let bytes: Vec<u8> = frames.iter().flat_map(encode).collect();
            let mut buffer = BytesMut::new();
            let mut decoded = Vec::new();
            for piece in bytes.chunks(piece) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = Frame::decode(&mut buffer, 50).unwrap() {
                    decoded.push(frame);
                }
            }
            prop_assert_eq!(decoded, frames);
            prop_assert!(buffer.is_empty());
        }

    }

    #[test]
    fn frames_survive_every_damage() {
        let frame =
            |id, payload: &'static [u8]| encode(&Frame { id, tag: 3, payload: Bytes::from_static(payload) });
        let seeds = [[frame(1, b""), frame(u64::MAX, b"payload")].concat(), frame(2, &[7; 60])];
        damage::survives("frames", &seeds, |input| {
            let mut buffer = BytesMut::from(input);
            let (mut taken, mut decoded) = (0, Vec::new());
            while let Some(frame) = Frame::decode(&mut buffer, 64).map_err(|error| error.to_string())? {
                assert!(frame.payload.len() <= 64);
                taken += HEADER_BYTES + frame.payload.len();
                decoded.extend(encode(&frame));
            }
            assert_eq!(decoded, input[..taken]);
            assert_eq!(buffer, input[taken..]);
            Ok(())
        });
    }
}
