//! Reading: a connection's bytes, through the shard's one buffer, to its session.
//!
//! In come what a socket gave; out go frames to the session and what is left of an unfinished one back to the connection.
//! Always: only whole frames (and WebSocket pings and pongs) are signs of life, and a WebSocket message holds whole frames.

use bytes::{Bytes, BytesMut};
use tidegate_core::clock::Clock as _;
use tidegate_core::delivery::ConnectionKey;
use tidegate_core::ids::Millis;
use tidegate_proto::v1::CloseCode;
use tidegate_proto::{OPENING_BYTES, Opening, frame, websocket};

use super::{State, count_close, seconds};
use crate::clock::SystemClock;
use crate::shard::connection::{Phase, Transport};
use crate::shard::index::Slot;

/// Bytes of one read at most. Large, because the buffer is the shard's: it costs once, not per connection.
const READ_BYTES: usize = 64 * 1024;

/// Replies of one read beyond this leave before more of its frames are handled; a WebSocket message of them stays far
/// below the largest frame.
const REPLIES_BYTES: usize = 16 * 1024;

impl State {
    /// The shard's buffer, with what the connection has of an unfinished frame in front. `None` if it is gone.
    pub fn begin_read(&mut self, slot: Slot) -> Option<BytesMut> {
        let connection = self.connections.get_mut(slot as usize)?;
        let mut buffer = std::mem::take(&mut self.read_buffer);
        // Behind an earlier split only the rest of the block is left; a new one is taken, or the old one again if all
        // slices of it are gone.
        if buffer.capacity() < READ_BYTES / 2 + connection.partial.len() {
            buffer.reserve(READ_BYTES + connection.partial.len());
        }
        buffer.extend_from_slice(&connection.partial);
        Some(buffer)
    }

    /// Nothing came: the buffer goes back, the connection keeps what it had.
    pub fn cancel_read(&mut self, mut buffer: BytesMut) {
        buffer.clear();
        self.read_buffer = buffer;
    }

    /// The socket ended or failed.
    pub fn end_of_stream(&mut self, slot: Slot, mut buffer: BytesMut) {
        let is_truncated = !buffer.is_empty();
        buffer.clear();
        self.read_buffer = buffer;
        if let Some(connection) = self.connections.get(slot as usize)
            && connection.phase == Phase::Open
        {
            count_close(if is_truncated { "truncated" } else { "peer_left" });
        }
    }

    /// Bytes came. Whether the connection is still there.
    pub fn finish_read(&mut self, slot: Slot, mut buffer: BytesMut) -> bool {
        let bytes = buffer.split();
        self.read_buffer = buffer;
        let now_s = self.wheel.now_s();
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return false;
        };
        self.counts.read_bytes += (bytes.len() - connection.partial.len()) as u64;
        connection.partial = Box::default();
        if connection.phase == Phase::Closing {
            return true;
        }
        self.was_heard = false;
        self.feed(slot, bytes);
        let connection = &mut self.connections[slot as usize];
        // A part of a frame is no sign of life: a client could hold a connection with a byte now and then.
        if self.was_heard && connection.phase == Phase::Open && connection.session.is_ready() {
            connection.deadline_s = now_s + seconds(self.config.idle_timeout);
        }
        true
    }

    /// Takes a connection's bytes apart and hands frames to its session.
    pub(super) fn feed(&mut self, slot: Slot, mut bytes: BytesMut) {
        let now = SystemClock.now();
        match self.connections[slot as usize].transport {
            Transport::Tcp => {
                let mut bytes = bytes.freeze();
                self.feed_stream(slot, now, &mut bytes);
                self.connections[slot as usize].partial = bytes.as_ref().into();
            }
            Transport::WebSocket(_) => {
                self.feed_websocket(slot, now, &mut bytes);
                self.connections[slot as usize].partial = bytes.as_ref().into();
            }
        }
        self.begin_turn();
    }

    /// The opening and frames; what is left in `bytes` is the beginning of a frame.
    fn feed_stream(&mut self, slot: Slot, now: Millis, bytes: &mut Bytes) {
        let connection = &mut self.connections[slot as usize];
        let actions = &mut self.actions;
        if connection.session.expects_opening() {
            match bytes.first_chunk::<OPENING_BYTES>() {
                Some(opening) => {
                    connection.session.handle_opening(*opening, actions);
                    drop(bytes.split_to(OPENING_BYTES));
                }
                // A stranger is not waited for.
                None if Opening::is_hopeless(bytes) => connection.session.handle_opening([0; 8], actions),
                None => return,
            }
        }
        while self.feed_frames(slot, now, bytes) {
            self.flush_early(slot);
        }
    }

    /// Frames until none is whole any more, or their replies are worth a write of their own: `true` then.
    fn feed_frames(&mut self, slot: Slot, now: Millis, bytes: &mut Bytes) -> bool {
        let connection = &mut self.connections[slot as usize];
        let key = ConnectionKey { shard: self.id, slot, generation: connection.generation };
        let actions = &mut self.actions;
        let mut is_full = false;
        while actions.close.is_none() && !is_full {
            match frame::next_frame(bytes, self.config.frame_bytes_max) {
                Ok(Some(frame)) => {
                    self.counts.frames += 1;
                    self.was_heard = true;
                    connection.session.handle_frame(now, key, frame, &self.context, actions);
                    is_full = actions.replies.len() >= REPLIES_BYTES;
                }
                Ok(None) => break,
                Err(error) => connection.session.handle_frame_error(error, actions),
            }
        }
        let is_ended = actions.close.is_some();
        if is_ended {
            bytes.clear();
        }
        self.apply_actions(slot);
        is_full && !is_ended
    }

    /// Writes before the turn's end: one turn may hold more for a connection than its outbox, which is for clients that do
    /// not read.
    pub(super) fn flush_early(&mut self, slot: Slot) {
        let connection = &mut self.connections[slot as usize];
        if !connection.is_draining_outbox {
            // What is left, and an error, shows again at the turn's end.
            let _ = connection.flush();
        }
    }

    fn feed_websocket(&mut self, slot: Slot, now: Millis, bytes: &mut BytesMut) {
        // The opening may share the first message with a largest frame.
        let message_bytes_max = self.config.frame_bytes_max + OPENING_BYTES;
        loop {
            let connection = &mut self.connections[slot as usize];
            let Transport::WebSocket(decoder) = &mut connection.transport else {
                return;
            };
            if connection.phase == Phase::Closing {
                bytes.clear();
                return;
            }
            let mut raw = BytesMut::new();
            match decoder.next(bytes, message_bytes_max) {
                Ok(None) => return,
                Ok(Some(websocket::Event::Message(message))) => {
                    let mut message = message.freeze();
                    self.feed_stream(slot, now, &mut message);
                    if !message.is_empty() {
                        // PROTOCOL.md, "WebSocket": a message holds whole frames.
                        self.actions.close(CloseCode::BadFrame, "a WebSocket message ends inside a frame");
                        self.apply_actions(slot);
                    }
                }
                Ok(Some(websocket::Event::Ping(payload))) => {
                    self.was_heard = true;
                    websocket::put_pong(&mut raw, &payload);
                    self.enqueue(slot, raw.freeze());
                }
                Ok(Some(websocket::Event::Pong(_))) => self.was_heard = true,
                Ok(Some(websocket::Event::Close { code, .. })) => {
                    websocket::put_close(&mut raw, code.unwrap_or(websocket::close_code::NORMAL), "");
                    self.end_websocket(slot, raw.freeze(), "peer_left");
                }
                Err(error) => {
                    websocket::put_close(&mut raw, error.close_code(), &error.to_string());
                    self.end_websocket(slot, raw.freeze(), "websocket_violation");
                }
            }
        }
    }
}
