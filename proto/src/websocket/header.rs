//! The header of one WebSocket frame (RFC 6455, section 5.2).
//!
//! ```text
//! 0                 1                  2 or 2..10    4
//! | FIN RSV opcode | MASK length (7) | length (16 or 64) | mask |
//! ```

use bytes::{BufMut, BytesMut};

use super::{Role, WsError};
use crate::limits::WEBSOCKET_CONTROL_BYTES_MAX;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0F;
const MASK: u8 = 0x80;
const LENGTH: u8 = 0x7F;
/// In the 7-bit length: the length is in the next two bytes.
const LENGTH_16: u8 = 126;
/// In the 7-bit length: the length is in the next eight bytes.
const LENGTH_64: u8 = 127;

/// What a frame is (RFC 6455, section 11.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// A further fragment of the message begun before.
    Continuation = 0x0,
    /// A message of UTF-8 text, or its first fragment.
    Text = 0x1,
    /// A message of bytes, or its first fragment.
    Binary = 0x2,
    /// The last frame of one direction.
    Close = 0x8,
    /// Asks for a pong with the same payload.
    Ping = 0x9,
    /// Answers a ping, or a heartbeat of its own.
    Pong = 0xA,
}

impl Opcode {
    const fn parse(bits: u8) -> Result<Self, WsError> {
        Ok(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            opcode => return Err(WsError::ReservedOpcode { opcode }),
        })
    }

    /// Close, ping and pong; they may stand between the fragments of a message (RFC 6455, section 5.5).
    #[must_use]
    pub const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// One frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// FIN: this is the last fragment of its message, or the only one.
    pub is_final: bool,
    /// What the payload is.
    pub opcode: Opcode,
    /// XORed over the payload; set by clients, absent from servers.
    pub mask: Option<[u8; 4]>,
    /// Bytes of payload that follow the header; below 2^63.
    pub payload_bytes: u64,
}

impl Header {
    /// Reads the header at the front of `bytes` and says how long it is. `None` means that more bytes are needed.
    ///
    /// An offence is reported as soon as the byte that shows it is there, so that nobody waits for the rest.
    ///
    /// # Errors
    /// [`WsError`] if the header breaks a rule of section 5 of RFC 6455 that does not depend on the frames before it.
    pub fn parse(bytes: &[u8], role: Role) -> Result<Option<(Self, usize)>, WsError> {
        let Some(&[first, second]) = bytes.first_chunk::<2>() else {
            return Ok(None);
        };
        if first & RESERVED != 0 {
            return Err(WsError::ReservedBits);
        }
        let is_final = first & FIN != 0;
        let opcode = Opcode::parse(first & OPCODE)?;
        let is_masked = second & MASK != 0;
        match role {
            Role::Server if !is_masked => return Err(WsError::Unmasked),
            Role::Client if is_masked => return Err(WsError::Masked),
            Role::Server | Role::Client => {}
        }
        let length = second & LENGTH;
        if opcode.is_control() {
            if !is_final {
                return Err(WsError::FragmentedControl);
            }
            if usize::from(length) > WEBSOCKET_CONTROL_BYTES_MAX {
                return Err(WsError::LongControl);
            }
        }

        let rest = &bytes[2..];
        let (payload_bytes, rest) = match length {
            LENGTH_16 => match rest.split_first_chunk::<2>() {
                Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest),
                None => return Ok(None),
            },
            LENGTH_64 => match rest.split_first_chunk::<8>() {
                Some((length, rest)) => (u64::from_be_bytes(*length), rest),
                None => return Ok(None),
            },
            _ => (u64::from(length), rest),
        };
        if payload_bytes >> 63 != 0 {
            return Err(WsError::LengthTopBit);
        }
        if length >= LENGTH_16 && length != length_form(payload_bytes) {
            return Err(WsError::LongLength);
        }

        let (mask, rest) = if is_masked {
            let Some((mask, rest)) = rest.split_first_chunk::<4>() else {
                return Ok(None);
            };
            (Some(*mask), rest)
        } else {
            (None, rest)
        };
        let header = Self { is_final, opcode, mask, payload_bytes };
        Ok(Some((header, bytes.len() - rest.len())))
    }

    /// Appends this header.
    pub fn put(&self, out: &mut BytesMut) {
        let fin = if self.is_final { FIN } else { 0 };
        let masked = if self.mask.is_some() { MASK } else { 0 };
        let length = length_form(self.payload_bytes);
        out.put_slice(&[fin | self.opcode as u8, masked | length]);
        let length_be = self.payload_bytes.to_be_bytes();
        match length {
            LENGTH_16 => out.put_slice(&length_be[6..]),
            LENGTH_64 => out.put_slice(&length_be),
            _ => {}
        }
        if let Some(mask) = self.mask {
            out.put_slice(&mask);
        }
    }
}

/// The 7-bit length of the shortest form for `payload_bytes`, the only valid one.
const fn length_form(payload_bytes: u64) -> u8 {
    match payload_bytes {
        0..126 => payload_bytes as u8,
        126..=0xFFFF => LENGTH_16,
        _ => LENGTH_64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_survive_the_way_there_and_back_and_nothing_is_read_early() {
        for payload_bytes in [0, 1, 125, 126, 127, 0xFFFF, 0x1_0000, u64::MAX >> 1] {
            for (role, mask) in [(Role::Server, Some([1, 2, 3, 4])), (Role::Client, None)] {
                let header = Header { is_final: true, opcode: Opcode::Binary, mask, payload_bytes };
                let mut wire = BytesMut::new();
                header.put(&mut wire);
                assert_eq!(Header::parse(&wire, role), Ok(Some((header, wire.len()))));
                for cut in 0..wire.len() {
                    assert_eq!(Header::parse(&wire[..cut], role), Ok(None), "cut at {cut}");
                }
            }
        }
    }

    #[test]
    fn offences_are_seen_in_the_byte_that_commits_them() {
        let offences: [(&[u8], WsError); 9] = [
            (&[0xC2, 0x80], WsError::ReservedBits),
            (&[0x92, 0x80], WsError::ReservedBits),
            (&[0x83, 0x80], WsError::ReservedOpcode { opcode: 3 }),
            (&[0x8F, 0x80], WsError::ReservedOpcode { opcode: 15 }),
            (&[0x82, 0x00], WsError::Unmasked),
            (&[0x09, 0x80], WsError::FragmentedControl),
            (&[0x89, 0xFE], WsError::LongControl),
            (&[0x82, 0xFE, 0x00, 0x7D], WsError::LongLength),
            (&[0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0], WsError::LengthTopBit),
        ];
        for (bytes, offence) in offences {
            assert_eq!(Header::parse(bytes, Role::Server), Err(offence), "{bytes:02x?}");
        }
        let long_64 = [0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF];
        assert_eq!(Header::parse(&long_64, Role::Server), Err(WsError::LongLength));
        assert_eq!(Header::parse(&[0x82, 0x80], Role::Client), Err(WsError::Masked));
    }
}
