//! WebSocket framing (RFC 6455) without input or output: the bytes after the HTTP upgrade.
//!
//! In go the bytes of one connection, out come [`Event`]s; the other way round, the `put_*` functions append frames to a
//! buffer. What must always hold: an idle connection costs [`Decoder`]'s few bytes and no buffer; a peer can make us hold no
//! more than one largest message; an error names the close code to answer with, and after it nothing is decoded any more.
//!
//! The bytes inside binary messages are those that travel over TCP: the opening first, then frames. A message holds whole
//! frames; see `PROTOCOL.md`, "WebSocket".

mod decode;
mod encode;
mod error;
mod header;
mod mask;

pub use decode::{Decoder, Event};
pub use encode::{header_bytes, put_close, put_header, put_masked, put_masked_close, put_ping, put_pong};
pub use error::{WsError, is_close_code_valid};
pub use header::{Header, Opcode};
pub use mask::apply_mask;

/// Which end of the connection we are: it decides who masks (RFC 6455, section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We serve: what arrives must be masked.
    Server,
    /// We connected: what arrives must not be masked.
    Client,
}

/// Close codes of RFC 6455, section 7.4.1, that we send ourselves.
pub mod close_code {
    /// The purpose of the connection is fulfilled.
    pub const NORMAL: u16 = 1000;
    /// The peer broke the rules of framing.
    pub const PROTOCOL_ERROR: u16 = 1002;
    /// A kind of data that is not taken here: text.
    pub const UNSUPPORTED_DATA: u16 = 1003;
    /// Data that contradicts its type: a close reason that is not UTF-8.
    pub const INVALID_DATA: u16 = 1007;
    /// A message larger than the largest, or in too many fragments.
    pub const MESSAGE_TOO_BIG: u16 = 1009;
}
