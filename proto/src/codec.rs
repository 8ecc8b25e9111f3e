//! [`FrameCodec`]: frames over a byte stream for clients that use `tokio_util::codec::Framed`.
//!
//! In go bytes, out come [`Frame`]s whose payload is a slice of the read buffer. The opening is not a frame: a client
//! writes [`crate::Opening::CURRENT`] before its first frame.

use bytes::{Buf, BufMut, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use crate::frame::{Frame, FrameError, peek_head};
use crate::head::{HEAD_BYTES, Head};
use crate::limits::FRAME_BYTES_MAX_DEFAULT;

/// Cuts frames out of a byte stream and puts them into one, without copying a payload when reading.
#[derive(Clone, Copy, Debug)]
pub struct FrameCodec {
    /// Largest frame accepted and sent, in bytes, head included.
    pub frame_bytes_max: usize,
}

impl Default for FrameCodec {
    fn default() -> Self {
        Self { frame_bytes_max: FRAME_BYTES_MAX_DEFAULT }
    }
}

/// Why a framed stream ended.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The transport failed, or ended within a frame.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The bytes are no frames, or a frame to send is too large.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl Decoder for FrameCodec {
    type Item = Frame;
    type Error = CodecError;

    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, CodecError> {
        let Some(head) = peek_head(input, self.frame_bytes_max)? else {
            return Ok(None);
        };
        let frame_bytes = HEAD_BYTES + head.payload_bytes as usize;
        if input.len() < frame_bytes {
            // Bounded by `frame_bytes_max`, which `peek_head` has checked.
            input.reserve(frame_bytes - input.len());
            return Ok(None);
        }
        let mut payload = input.split_to(frame_bytes).freeze();
        payload.advance(HEAD_BYTES);
        Ok(Some(Frame { head, payload }))
    }
}

impl Encoder<Frame> for FrameCodec {
    type Error = CodecError;

    /// The length in the head is the payload's own; `head.payload_bytes` is not trusted.
    fn encode(&mut self, frame: Frame, out: &mut BytesMut) -> Result<(), CodecError> {
        let frame_bytes = HEAD_BYTES + frame.payload.len();
        let payload_bytes = u32::try_from(frame.payload.len()).ok().filter(|_| frame_bytes <= self.frame_bytes_max);
        let Some(payload_bytes) = payload_bytes else {
            let frame_bytes_max = self.frame_bytes_max;
            return Err(FrameError::TooLarge { frame_bytes: frame_bytes as u64, frame_bytes_max }.into());
        };
        out.reserve(frame_bytes);
        out.put_slice(&Head { payload_bytes, ..frame.head }.encode());
        out.put_slice(&frame.payload);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Kind, Ping};

    #[test]
    fn a_frame_in_two_pieces_is_decoded_once_it_is_whole() {
        let mut codec = FrameCodec::default();
        let mut wire = BytesMut::new();
        let frame = Frame::from_message(Kind::Send, 7, &crate::v1::Send { body: "hello".into(), ..Default::default() });
        codec.encode(frame.clone(), &mut wire).unwrap();

        let rest = wire.split_off(HEAD_BYTES + 1);
        assert!(codec.decode(&mut wire).unwrap().is_none());
        wire.unsplit(rest);
        assert_eq!(codec.decode(&mut wire).unwrap(), Some(frame));
        assert!(wire.is_empty());
    }

    #[test]
    fn a_payload_is_a_slice_of_the_read_buffer() {
        let mut wire = BytesMut::new();
        let sent =
            Frame::from_message(Kind::Send, 7, &crate::v1::Send { body: vec![1; 400].into(), ..Default::default() });
        FrameCodec::default().encode(sent, &mut wire).unwrap();
        let payload_start = wire[HEAD_BYTES..].as_ptr();
        let frame = FrameCodec::default().decode(&mut wire).unwrap().unwrap();
        assert_eq!(frame.payload.as_ptr(), payload_start);
        let send: crate::v1::Send = frame.decode().unwrap();
        assert!(frame.payload.as_ptr_range().contains(&send.body.as_ptr()));
    }

    #[test]
    fn both_ways_refuse_a_frame_that_is_too_large() {
        let mut small = FrameCodec { frame_bytes_max: 16 };
        let frame = Frame { head: Frame::from_message(Kind::Ping, 0, &Ping {}).head, payload: vec![0; 9].into() };
        let mut wire = BytesMut::new();
        let refused = small.encode(frame.clone(), &mut wire).unwrap_err();
        assert!(matches!(refused, CodecError::Frame(FrameError::TooLarge { frame_bytes: 17, frame_bytes_max: 16 })));
        assert!(wire.is_empty());

        FrameCodec::default().encode(frame, &mut wire).unwrap();
        wire.truncate(HEAD_BYTES);
        let refused = small.decode(&mut wire).unwrap_err();
        assert!(matches!(refused, CodecError::Frame(FrameError::TooLarge { frame_bytes: 17, .. })));
    }
}
