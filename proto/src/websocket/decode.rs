//! [`Decoder`]: WebSocket bytes of one direction to messages and control frames.

use bytes::{Buf, Bytes, BytesMut};

use super::mask::apply_mask;
use super::{Header, Opcode, Role, WsError, is_close_code_valid};
use crate::limits::WEBSOCKET_FRAGMENTS_MAX;

/// What a peer said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A whole binary message, unmasked. It is a slice of the input unless it came in fragments.
    Message(BytesMut),
    /// To be answered with a pong of the same payload, at most 125 bytes.
    Ping(Bytes),
    /// At most 125 bytes. A pong without a ping is a heartbeat and needs no answer (RFC 6455, section 5.5.3).
    Pong(Bytes),
    /// To be answered with a close frame unless one was sent already; nothing follows.
    Close {
        /// Absent if the frame was empty; valid on the wire otherwise.
        code: Option<u16>,
        /// For people, at most 123 bytes.
        reason: String,
    },
}

/// Takes the frames of one connection apart. Without a fragmented message in progress it owns no memory.
///
/// The caller owns the unread bytes: it calls [`Decoder::next`] until that returns `None`, then keeps what is left of the
/// input, less than one frame, and puts the next bytes behind it. What it keeps is bounded: a frame whose message would be too
/// large is refused when its header is read.
#[derive(Debug)]
pub struct Decoder {
    role: Role,
    state: State,
    /// Fragments of the message in progress, unmasked.
    assembly: Option<Box<Assembly>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// A close frame or an offence was seen: the rest of the input is thrown away (RFC 6455, sections 1.4 and 7.1.7).
    Closed,
}

#[derive(Debug, Default)]
struct Assembly {
    message: BytesMut,
    fragments: u32,
}

impl Decoder {
    /// A decoder for what a peer of `role`'s opposite sends.
    #[must_use]
    pub const fn new(role: Role) -> Self {
        Self { role, state: State::Open, assembly: None }
    }

    /// Cuts the next message or control frame off the front of `input`. `None` means that more bytes are needed; what is
    /// left in `input` is the beginning of a frame. After a close frame or an error the input is discarded, and the answer is
    /// always `None`.
    ///
    /// A message of up to `message_bytes_max` bytes is accepted.
    ///
    /// # Errors
    /// [`WsError`] if the peer breaks RFC 6455 or sends what is not taken here. The connection is to be closed with
    /// [`WsError::close_code`]. A text frame is refused when its header is read, so its UTF-8 is never looked at: section 8.1
    /// asks for that only where the text is used.
    pub fn next(&mut self, input: &mut BytesMut, message_bytes_max: usize) -> Result<Option<Event>, WsError> {
        let result = match self.state {
            State::Open => self.next_open(input, message_bytes_max),
            State::Closed => Ok(None),
        };
        if matches!(result, Err(_) | Ok(Some(Event::Close { .. }))) {
            self.state = State::Closed;
            self.assembly = None;
        }
        if self.state == State::Closed {
            input.clear();
        }
        result
    }

    fn next_open(&mut self, input: &mut BytesMut, message_bytes_max: usize) -> Result<Option<Event>, WsError> {
        // A turn of the loop takes one fragment that does not complete its message.
        loop {
            let Some((header, header_bytes)) = Header::parse(input, self.role)? else {
                return Ok(None);
            };
            if !header.opcode.is_control() {
                self.check_data(&header, message_bytes_max)?;
            }
            // Control frames are short by definition and data has just been bounded, so this cannot truncate.
            let payload_bytes = header.payload_bytes as usize;
            if input.len() - header_bytes < payload_bytes {
                return Ok(None);
            }
            input.advance(header_bytes);
            let mut payload = input.split_to(payload_bytes);
            if let Some(mask) = header.mask {
                apply_mask(&mut payload, mask);
            }
            match header.opcode {
                Opcode::Close => return parse_close(&payload).map(Some),
                Opcode::Ping => return Ok(Some(Event::Ping(payload.freeze()))),
                Opcode::Pong => return Ok(Some(Event::Pong(payload.freeze()))),
                Opcode::Continuation | Opcode::Text | Opcode::Binary => {
                    if let Some(message) = self.take_fragment(header.is_final, payload) {
                        return Ok(Some(Event::Message(message)));
                    }
                }
            }
        }
    }

    /// The rules of a data frame that depend on the frames before it. Nothing is changed: the payload may still be missing,
    /// and the same header is then checked again.
    fn check_data(&self, header: &Header, message_bytes_max: usize) -> Result<(), WsError> {
        let assembled_bytes = match (&self.assembly, header.opcode) {
            (None, Opcode::Continuation) => return Err(WsError::StrayContinuation),
            (Some(assembly), Opcode::Continuation) => {
                if assembly.fragments == WEBSOCKET_FRAGMENTS_MAX {
                    return Err(WsError::TooManyFragments);
                }
                assembly.message.len()
            }
            (Some(_), _) => return Err(WsError::InterruptedMessage),
            (None, Opcode::Text) => return Err(WsError::Text),
            (None, _) => 0,
        };
        // Cannot overflow: a header's length is below 2^63, and what is assembled fits memory.
        let message_bytes = assembled_bytes as u64 + header.payload_bytes;
        if message_bytes > message_bytes_max as u64 {
            return Err(WsError::MessageTooBig { message_bytes, message_bytes_max });
        }
        Ok(())
    }

    /// Takes a data frame that passed [`Self::check_data`] and hands out the message it completes.
    fn take_fragment(&mut self, is_final: bool, payload: BytesMut) -> Option<BytesMut> {
        if is_final && self.assembly.is_none() {
            return Some(payload);
        }
        // Fragments are copied: a slice kept here would pin the whole buffer that many connections are read into.
        let assembly = self.assembly.get_or_insert_default();
        assembly.message.extend_from_slice(&payload);
        assembly.fragments += 1;
        if is_final { self.assembly.take().map(|assembly| assembly.message) } else { None }
    }
}

/// RFC 6455, section 5.5.1.
fn parse_close(payload: &[u8]) -> Result<Event, WsError> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return match payload {
            [] => Ok(Event::Close { code: None, reason: String::new() }),
            _ => Err(WsError::HalfCloseCode),
        };
    };
    let code = u16::from_be_bytes(*code);
    if !is_close_code_valid(code) {
        return Err(WsError::InvalidCloseCode { code });
    }
    match std::str::from_utf8(reason) {
        Ok(reason) => Ok(Event::Close { code: Some(code), reason: reason.to_owned() }),
        Err(_) => Err(WsError::InvalidCloseReason),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{put_close, put_header, put_masked, put_masked_close};
    use super::*;

    const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

    fn put_fragment(out: &mut BytesMut, is_final: bool, opcode: Opcode, payload: &[u8]) {
        let start = out.len();
        put_masked(out, opcode, MASK, payload);
        if !is_final {
            out[start] &= 0x7F;
        }
    }

    /// All events until the input is exhausted or refused.
    fn decode_all(input: &mut BytesMut, message_bytes_max: usize) -> (Vec<Event>, Option<WsError>) {
        let mut decoder = Decoder::new(Role::Server);
        let mut events = Vec::new();
        loop {
            match decoder.next(input, message_bytes_max) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => return (events, None),
                Err(offence) => return (events, Some(offence)),
            }
        }
    }

    fn refusal(input: &[u8]) -> Option<WsError> {
        decode_all(&mut input.into(), 1024).1
    }

    #[test]
    fn an_idle_decoder_is_small() {
        assert!(size_of::<Decoder>() <= 32, "{}", size_of::<Decoder>());
    }

    #[test]
    fn a_whole_message_is_a_slice_of_the_input() {
        let mut input = BytesMut::new();
        put_masked(&mut input, Opcode::Binary, MASK, &[7; 300]);
        let payload_start = input[8..].as_ptr();
        let (events, _) = decode_all(&mut input, 1024);
        let [Event::Message(message)] = &events[..] else { panic!("{events:?}") };
        assert_eq!((message.as_ptr(), &message[..]), (payload_start, &[7; 300][..]));
    }

    #[test]
    fn fragments_become_one_message_with_a_ping_between_them() {
        let mut input = BytesMut::new();
        put_fragment(&mut input, false, Opcode::Binary, b"one ");
        put_fragment(&mut input, true, Opcode::Ping, b"alive?");
        put_fragment(&mut input, false, Opcode::Continuation, b"");
        put_fragment(&mut input, true, Opcode::Continuation, b"message");
        put_fragment(&mut input, true, Opcode::Binary, b"");
        let events = vec![
            Event::Ping("alive?".into()),
            Event::Message(b"one message"[..].into()),
            Event::Message(BytesMut::new()),
        ];
        assert_eq!(decode_all(&mut input, 11), (events, None));
    }

    #[test]
    fn fragmentation_rules_are_kept() {
        let mut input = BytesMut::new();
        put_fragment(&mut input, true, Opcode::Continuation, b"");
        assert_eq!(refusal(&input), Some(WsError::StrayContinuation));

        for opcode in [Opcode::Binary, Opcode::Text] {
            input.clear();
            put_fragment(&mut input, false, Opcode::Binary, b"");
            put_fragment(&mut input, true, opcode, b"");
            assert_eq!(refusal(&input), Some(WsError::InterruptedMessage));
        }

        input.clear();
        put_fragment(&mut input, false, Opcode::Binary, b"");
        for _ in 0..WEBSOCKET_FRAGMENTS_MAX {
            put_fragment(&mut input, false, Opcode::Continuation, b"");
        }
        assert_eq!(refusal(&input), Some(WsError::TooManyFragments));
    }

    #[test]
    fn too_much_is_refused_before_it_arrives() {
        let mut input = BytesMut::new();
        put_masked(&mut input, Opcode::Binary, MASK, &[0; 1025]);
        input.truncate(8);
        let offence = WsError::MessageTooBig { message_bytes: 1025, message_bytes_max: 1024 };
        assert_eq!(refusal(&input), Some(offence));
        assert_eq!(offence.close_code(), 1009);

        input.clear();
        put_fragment(&mut input, false, Opcode::Binary, &[0; 1000]);
        put_fragment(&mut input, true, Opcode::Continuation, &[0; 25]);
        input.truncate(input.len() - 25);
        assert_eq!(refusal(&input), Some(offence));
    }

    #[test]
    fn text_is_refused_by_its_header() {
        assert_eq!(refusal(&[0x81, 0x85, 1, 2, 3, 4]), Some(WsError::Text));
        assert_eq!(WsError::Text.close_code(), 1003);
    }

    #[test]
    fn close_frames_are_checked() {
        let closing = |payload: &[u8]| {
            let mut input = BytesMut::new();
            put_masked(&mut input, Opcode::Close, MASK, payload);
            put_masked(&mut input, Opcode::Binary, MASK, b"too late");
            let outcome = decode_all(&mut input, 1024);
            assert!(input.is_empty(), "what follows a close is discarded");
            outcome
        };
        let close = |code, reason: &str| (vec![Event::Close { code, reason: reason.to_owned() }], None);
        assert_eq!(closing(b""), close(None, ""));
        assert_eq!(closing(b"\x03\xE8"), close(Some(1000), ""));
        assert_eq!(closing(b"\x0F\xA1bye"), close(Some(4001), "bye"));
        assert_eq!(closing(b"\x03"), (vec![], Some(WsError::HalfCloseCode)));
        assert_eq!(closing(b"\x03\xED"), (vec![], Some(WsError::InvalidCloseCode { code: 1005 })));
        assert_eq!(closing(b"\x03\xE8\xFF"), (vec![], Some(WsError::InvalidCloseReason)));
        assert_eq!(WsError::InvalidCloseReason.close_code(), 1007);
    }

    #[test]
    fn after_an_offence_nothing_is_decoded() {
        let mut decoder = Decoder::new(Role::Server);
        let mut input = BytesMut::from(&[0x82, 0x00][..]);
        assert_eq!(decoder.next(&mut input, 1024), Err(WsError::Unmasked));
        put_masked(&mut input, Opcode::Binary, MASK, b"too late");
        assert_eq!(decoder.next(&mut input, 1024), Ok(None));
        assert!(input.is_empty());
    }

    #[test]
    fn a_client_decodes_what_a_server_encodes() {
        let mut input = BytesMut::new();
        put_header(&mut input, Opcode::Binary, 2);
        input.extend_from_slice(b"hi");
        put_close(&mut input, 4001, "bye");
        let mut decoder = Decoder::new(Role::Client);
        assert_eq!(decoder.next(&mut input, 1024), Ok(Some(Event::Message(b"hi"[..].into()))));
        let close = Event::Close { code: Some(4001), reason: "bye".to_owned() };
        assert_eq!(decoder.next(&mut input, 1024), Ok(Some(close)));

        put_masked_close(&mut input, MASK, 1000, "");
        assert_eq!(Decoder::new(Role::Client).next(&mut input, 1024), Err(WsError::Masked));
    }
}
