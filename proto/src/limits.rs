//! Every bound of the byte protocol, each with its reason. `PROTOCOL.md` states the same numbers for client authors.
//!
//! What a deployment may tune (the body limit, commands in flight, rates) is told to the client in its `LoginReply` and is
//! owned by the crates that enforce it; here is what both sides must know before the first byte.

use crate::head::HEAD_BYTES;
use crate::opening::OPENING_BYTES;

/// Largest frame, head and payload together, unless configured otherwise: a history page of a screen or two fits, and a
/// thousand connections that each leave a frame unfinished cost 64 MiB, not more.
pub const FRAME_BYTES_MAX_DEFAULT: usize = 64 * 1024;

/// Smallest value the largest frame may be configured to: an error reply with its text must always fit.
pub const FRAME_BYTES_MAX_LEAST: usize = 4 * 1024;

/// Largest value the largest frame may be configured to: beyond it one frame would delay its neighbours noticeably.
pub const FRAME_BYTES_MAX_MOST: usize = 16 * 1024 * 1024;

/// `Login.device_id`: a UUID in any notation fits.
pub const DEVICE_ID_BYTES_MAX: usize = 64;

/// `Login.device_class`: one word.
pub const DEVICE_CLASS_BYTES_MAX: usize = 32;

/// `Login.client`: a name and a version for the server's log.
pub const CLIENT_NAME_BYTES_MAX: usize = 64;

/// `Send.client_msg_id`: a UUID in any notation, or a hash, fits.
pub const CLIENT_MSG_ID_BYTES_MAX: usize = 64;

/// `message_id` everywhere: 128 bits of BLAKE3, so that two of them never meet by chance.
pub const MESSAGE_ID_BYTES: usize = 16;

/// `conversation_id` everywhere: `p_` and two of the longest user ids, which fit 63 bits.
pub const CONVERSATION_ID_BYTES_MAX: usize = 2 + 19 + 1 + 19;

/// A lobby's `conversation_id`, `lobby_` included: it is also a part of Redis keys and metric labels.
pub const LOBBY_ID_BYTES_MAX: usize = 31;

/// Lobbies one connection may watch: nobody reads more at once, and each costs an entry in the shard's index.
pub const WATCHES_MAX: usize = 16;

/// Positions in one Login or Sync: as many as a LoginReply names, and with the longest names they fill half a frame.
pub const SYNC_POSITIONS_MAX: usize = 500;

/// Messages that Sync brings for one conversation; a client that misses more pages through History.
pub const SYNC_MESSAGES_MAX: u32 = 200;

/// Messages in one `HistoryReply`; it also ends where the frame would grow too large.
pub const HISTORY_PAGE_MAX: u32 = 200;

/// Messages in a `HistoryReply` when the client does not say how many.
pub const HISTORY_PAGE_DEFAULT: u32 = 50;

/// Invalid commands on one connection before it is closed with `TOO_MANY_ERRORS`: enough for a client that tries out which
/// kinds a server knows, too few to keep a server busy with writing errors.
pub const PROTOCOL_ERRORS_MAX: u8 = 16;

/// Payload of a WebSocket control frame (RFC 6455, section 5.5).
pub const WEBSOCKET_CONTROL_BYTES_MAX: usize = 125;

/// Longest WebSocket frame header: two bytes, a 64-bit length and a mask (RFC 6455, section 5.2).
pub const WEBSOCKET_HEADER_BYTES_MAX: usize = 2 + 8 + 4;

/// Frames one WebSocket message may be fragmented into. Real clients send one, browsers a few; a stream of empty fragments
/// would cost no memory, but it would be work without an end.
pub const WEBSOCKET_FRAGMENTS_MAX: u32 = 1024;

const _: () =
    assert!(FRAME_BYTES_MAX_LEAST <= FRAME_BYTES_MAX_DEFAULT && FRAME_BYTES_MAX_DEFAULT <= FRAME_BYTES_MAX_MOST);
// An opening and any frame fit the smallest largest frame, so that both may share one WebSocket message.
const _: () = assert!(OPENING_BYTES + HEAD_BYTES < FRAME_BYTES_MAX_LEAST);
const _: () = assert!(LOBBY_ID_BYTES_MAX <= CONVERSATION_ID_BYTES_MAX);
// Payload lengths travel in 32 bits.
const _: () = assert!(FRAME_BYTES_MAX_MOST <= u32::MAX as usize);
