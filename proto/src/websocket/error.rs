//! How a peer can break RFC 6455, and the close code each offence is answered with.

use super::close_code::{INVALID_DATA, MESSAGE_TOO_BIG, PROTOCOL_ERROR, UNSUPPORTED_DATA};
use crate::limits::WEBSOCKET_FRAGMENTS_MAX;

/// Why a WebSocket connection fails. All are the peer's fault; each ends the connection with [`WsError::close_code`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WsError {
    /// RSV1 to RSV3 are set, though no extension was agreed on (section 5.2).
    #[error("reserved bits are set and no extension was agreed on")]
    ReservedBits,
    /// Opcodes 3 to 7 and 11 to 15 (section 5.2).
    #[error("opcode {opcode:#x} is reserved")]
    ReservedOpcode {
        /// The four bits as received.
        opcode: u8,
    },
    /// A client's frame without a mask (section 5.1).
    #[error("a frame from a client is not masked")]
    Unmasked,
    /// A server's frame with a mask (section 5.1).
    #[error("a frame from a server is masked")]
    Masked,
    /// Close, ping and pong are whole (section 5.5).
    #[error("a control frame is fragmented")]
    FragmentedControl,
    /// Close, ping and pong carry at most 125 bytes (section 5.5).
    #[error("a control frame carries more than 125 bytes")]
    LongControl,
    /// A length that fits a shorter form must use it (section 5.2).
    #[error("a length is not in its shortest form")]
    LongLength,
    /// The top bit of a 64-bit length is zero (section 5.2).
    #[error("the top bit of a 64-bit length is set")]
    LengthTopBit,
    /// A continuation frame without a message to continue (section 5.4).
    #[error("a continuation without a beginning")]
    StrayContinuation,
    /// A new message before the last fragment of another (section 5.4).
    #[error("a new message within a fragmented one")]
    InterruptedMessage,
    /// Text messages are not part of our protocol (section 7.4.1, code 1003).
    #[error("text messages are not taken, only binary")]
    Text,
    /// The message would exceed the largest; known from its header.
    #[error("a message of {message_bytes} bytes exceeds the largest of {message_bytes_max}")]
    MessageTooBig {
        /// With all fragments so far.
        message_bytes: u64,
        /// The bound in force.
        message_bytes_max: usize,
    },
    /// One message in more fragments than a sane peer uses.
    #[error("a message in more than {WEBSOCKET_FRAGMENTS_MAX} fragments")]
    TooManyFragments,
    /// A close code has two bytes or is absent (section 5.5.1).
    #[error("a close frame with half a close code")]
    HalfCloseCode,
    /// A close code that must not appear on the wire (section 7.4).
    #[error("close code {code} is not valid")]
    InvalidCloseCode {
        /// As received.
        code: u16,
    },
    /// The reason of a close frame is UTF-8 (section 5.5.1).
    #[error("a close reason is not UTF-8")]
    InvalidCloseReason,
}

impl WsError {
    /// The close code to answer with (RFC 6455, section 7.4.1).
    #[must_use]
    pub const fn close_code(self) -> u16 {
        match self {
            Self::Text => UNSUPPORTED_DATA,
            Self::InvalidCloseReason => INVALID_DATA,
            Self::MessageTooBig { .. } | Self::TooManyFragments => MESSAGE_TOO_BIG,
            Self::ReservedBits
            | Self::ReservedOpcode { .. }
            | Self::Unmasked
            | Self::Masked
            | Self::FragmentedControl
            | Self::LongControl
            | Self::LongLength
            | Self::LengthTopBit
            | Self::StrayContinuation
            | Self::InterruptedMessage
            | Self::HalfCloseCode
            | Self::InvalidCloseCode { .. } => PROTOCOL_ERROR,
        }
    }
}

/// True if `code` may appear in a close frame: what RFC 6455, section 7.4, allows and what the IANA registry added since
/// (1012 to 1014). 1005, 1006 and 1015 stand for closes without a close frame and never travel.
#[must_use]
pub const fn is_close_code_valid(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_codes_are_valid_in_the_allowed_ranges_only() {
        let invalid = [0..=999, 1004..=1006, 1015..=2999, 5000..=u16::MAX];
        for code in 0..=u16::MAX {
            let expected = !invalid.iter().any(|range| range.contains(&code));
            assert_eq!(is_close_code_valid(code), expected, "{code}");
        }
    }
}
