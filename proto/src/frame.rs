//! Frames: a head and a payload, cut from a byte stream without copying.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use crate::head::{HEAD_BYTES, Head};
use crate::v1::Kind;

/// One frame. The payload is a slice of the buffer it was read into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The eight bytes in front.
    pub head: Head,
    /// The Protobuf message of the head's kind, still encoded.
    pub payload: Bytes,
}

impl Frame {
    /// A frame whose payload is `message`; zero `correlation` in pushes.
    #[must_use]
    pub fn from_message(kind: Kind, correlation: u16, message: &impl Message) -> Self {
        let payload = Bytes::from(message.encode_to_vec());
        Self { head: new_head(kind, correlation, payload.len()), payload }
    }

    /// The kind, unless this version does not know it.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        Kind::try_from(i32::from(self.head.kind)).ok().filter(|kind| *kind != Kind::Unspecified)
    }

    /// Decodes the payload as `M`; bytes fields of the result are slices of the payload.
    ///
    /// # Errors
    /// [`prost::DecodeError`] if the payload is not such a message.
    pub fn decode<M: Message + Default>(&self) -> Result<M, prost::DecodeError> {
        M::decode(self.payload.clone())
    }
}

/// Why a byte stream cannot be cut into frames any further. All are the peer's fault and end the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A reserved flag is set.
    #[error("reserved flags {flags:#04x} are set")]
    Flags {
        /// The byte as received.
        flags: u8,
    },
    /// The frame would exceed the largest frame.
    #[error("a frame of {frame_bytes} bytes exceeds the largest of {frame_bytes_max}")]
    TooLarge {
        /// Head and payload together.
        frame_bytes: u64,
        /// The bound in force.
        frame_bytes_max: usize,
    },
}

/// Looks at the head of the next frame without consuming anything. `None` means that more bytes are needed for the head.
///
/// # Errors
/// [`FrameError`] as soon as the head shows that the frame is invalid.
pub fn peek_head(bytes: &[u8], frame_bytes_max: usize) -> Result<Option<Head>, FrameError> {
    let Some(first) = bytes.first_chunk::<HEAD_BYTES>() else {
        return Ok(None);
    };
    let head = Head::parse(*first)?;
    let frame_bytes = HEAD_BYTES as u64 + u64::from(head.payload_bytes);
    if frame_bytes > frame_bytes_max as u64 {
        return Err(FrameError::TooLarge { frame_bytes, frame_bytes_max });
    }
    Ok(Some(head))
}

/// Cuts the next whole frame off the front of `bytes`. `None` means that more bytes are needed; `bytes` is then untouched.
///
/// # Errors
/// [`FrameError`] if the stream is invalid from here on.
pub fn next_frame(bytes: &mut Bytes, frame_bytes_max: usize) -> Result<Option<Frame>, FrameError> {
    let Some(head) = peek_head(bytes, frame_bytes_max)? else {
        return Ok(None);
    };
    let frame_bytes = HEAD_BYTES + head.payload_bytes as usize;
    if bytes.len() < frame_bytes {
        return Ok(None);
    }
    let mut payload = bytes.split_to(frame_bytes);
    payload.advance(HEAD_BYTES);
    Ok(Some(Frame { head, payload }))
}

/// Appends a frame whose payload is `message`.
pub fn put_message(out: &mut BytesMut, kind: Kind, correlation: u16, message: &impl Message) {
    let payload_bytes = message.encoded_len();
    out.reserve(HEAD_BYTES + payload_bytes);
    put_head(out, kind, correlation, payload_bytes);
    message.encode(out).expect("BytesMut grows as needed");
}

/// Appends a frame around an already encoded payload.
pub fn put_payload(out: &mut BytesMut, kind: Kind, correlation: u16, payload: &[u8]) {
    out.reserve(HEAD_BYTES + payload.len());
    put_head(out, kind, correlation, payload.len());
    out.put_slice(payload);
}

/// Appends the head of a frame whose payload, of so many bytes, follows in other hands.
pub fn put_head(out: &mut BytesMut, kind: Kind, correlation: u16, payload_bytes: usize) {
    out.put_slice(&new_head(kind, correlation, payload_bytes).encode());
}

fn new_head(kind: Kind, correlation: u16, payload_bytes: usize) -> Head {
    let kind = u8::try_from(kind as i32).expect("every Kind is one byte, see schema");
    let payload_bytes = u32::try_from(payload_bytes).expect("payloads are bounded far below 4 GiB");
    Head { kind, flags: 0, correlation, payload_bytes }
}
