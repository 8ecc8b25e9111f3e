//! Appends WebSocket frames to a buffer: unmasked ones for a server, masked ones for a client.

use bytes::{BufMut, BytesMut};

use super::mask::apply_mask;
use super::{Header, Opcode};
use crate::limits::WEBSOCKET_CONTROL_BYTES_MAX;

/// Bytes that [`put_header`] writes for a payload of this size: 2, 4 or 10.
#[must_use]
pub const fn header_bytes(payload_bytes: usize) -> usize {
    match payload_bytes {
        0..126 => 2,
        126..=0xFFFF => 4,
        _ => 10,
    }
}

/// Appends a server's header of an unfragmented message or control frame. The payload is the caller's to append: a buffer
/// of `[header][frame]` is encoded once, and its tail from [`header_bytes`] on is the same frame for TCP.
pub fn put_header(out: &mut BytesMut, opcode: Opcode, payload_bytes: usize) {
    Header { is_final: true, opcode, mask: None, payload_bytes: payload_bytes as u64 }.put(out);
}

/// Appends a server's close frame. `reason` is cut at a character's boundary to the 123 bytes there is room for.
pub fn put_close(out: &mut BytesMut, code: u16, reason: &str) {
    let reason = fitting_reason(reason);
    put_header(out, Opcode::Close, 2 + reason.len());
    out.put_u16(code);
    out.put_slice(reason.as_bytes());
}

/// Appends a server's ping. At most 125 bytes of `payload` are sent.
pub fn put_ping(out: &mut BytesMut, payload: &[u8]) {
    put_control(out, Opcode::Ping, payload);
}

/// Appends a server's pong; it repeats the ping's payload. At most 125 bytes of `payload` are sent.
pub fn put_pong(out: &mut BytesMut, payload: &[u8]) {
    put_control(out, Opcode::Pong, payload);
}

/// Appends a client's frame with its payload, masked. `mask` should be unpredictable for what runs in a browser
/// (RFC 6455, section 10.3); any will do for a test or a load generator.
pub fn put_masked(out: &mut BytesMut, opcode: Opcode, mask: [u8; 4], payload: &[u8]) {
    Header { is_final: true, opcode, mask: Some(mask), payload_bytes: payload.len() as u64 }.put(out);
    let start = out.len();
    out.put_slice(payload);
    apply_mask(&mut out[start..], mask);
}

/// Appends a client's close frame. `reason` is cut like [`put_close`]'s.
pub fn put_masked_close(out: &mut BytesMut, mask: [u8; 4], code: u16, reason: &str) {
    let mut payload = BytesMut::with_capacity(WEBSOCKET_CONTROL_BYTES_MAX);
    payload.put_u16(code);
    payload.put_slice(fitting_reason(reason).as_bytes());
    put_masked(out, Opcode::Close, mask, &payload);
}

fn put_control(out: &mut BytesMut, opcode: Opcode, payload: &[u8]) {
    let payload = &payload[..payload.len().min(WEBSOCKET_CONTROL_BYTES_MAX)];
    put_header(out, opcode, payload.len());
    out.put_slice(payload);
}

/// What is left of a control frame's payload when the code is in it.
fn fitting_reason(reason: &str) -> &str {
    let mut end = reason.len().min(WEBSOCKET_CONTROL_BYTES_MAX - 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_bytes_is_what_put_header_writes() {
        for payload_bytes in [0, 125, 126, 0xFFFF, 0x1_0000] {
            let mut out = BytesMut::new();
            put_header(&mut out, Opcode::Binary, payload_bytes);
            assert_eq!(out.len(), header_bytes(payload_bytes));
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let mut out = BytesMut::new();
        put_close(&mut out, 4001, &"é".repeat(100));
        assert_eq!(&out[..4], [0x88, 2 + 122, 0x0F, 0xA1]);
        assert_eq!(std::str::from_utf8(&out[4..]).unwrap(), "é".repeat(61));
    }
}
