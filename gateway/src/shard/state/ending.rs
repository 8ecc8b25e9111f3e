//! How connections end: every way has a reason, the client is told it, and the socket is given back within a bound.

use bytes::{Bytes, BytesMut};
use tidegate_proto::v1::CloseCode;
use tidegate_proto::websocket;

use super::{State, count_close};
use crate::shard::connection::{Phase, Transport};
use crate::shard::index::Slot;

/// How long a connection may take to read its Close frame, in seconds.
const CLOSE_LINGER_S: u32 = 2;

impl State {
    /// The receiver does not keep up: what is queued is dropped, it is told, and it resumes by sequence.
    pub(super) fn end_slow_consumer(&mut self, slot: Slot) {
        let code = CloseCode::SlowConsumer;
        let connection = &mut self.connections[slot as usize];
        connection.outbox.end_with(connection.last_words(code));
        self.linger(slot, code.label());
    }

    /// The receiver takes nothing at all.
    pub fn end_stalled(&mut self, slot: Slot, generation: u32) {
        if self.get(slot, generation).is_some_and(|connection| connection.phase == Phase::Open) {
            self.end_slow_consumer(slot);
        }
    }

    /// The Close frame is queued: behind it, over WebSocket, comes the close frame of RFC 6455 section 5.5.1.
    pub(super) fn end(&mut self, slot: Slot, code: CloseCode) {
        if let Transport::WebSocket(_) = self.connections[slot as usize].transport {
            let mut raw = BytesMut::new();
            websocket::put_close(&mut raw, code.number(), code.text());
            self.enqueue(slot, raw.freeze());
        }
        self.linger(slot, code.label());
    }

    pub(super) fn end_websocket(&mut self, slot: Slot, last: Bytes, label: &'static str) {
        self.enqueue(slot, last);
        self.linger(slot, label);
    }

    /// From here on the connection is only written to and read empty, for a short time: a socket closed with unread
    /// bytes would reset, and the client would never see why.
    fn linger(&mut self, slot: Slot, label: &'static str) {
        let deadline_s = self.wheel.now_s() + CLOSE_LINGER_S;
        let connection = &mut self.connections[slot as usize];
        if connection.phase == Phase::Closing {
            return;
        }
        count_close(label);
        connection.phase = Phase::Closing;
        connection.partial = Box::default();
        connection.deadline_s = deadline_s;
        let generation = connection.generation;
        self.wheel.insert((slot, generation), deadline_s);
        let mut interests = Vec::new();
        let departed = connection.session.handle_gone(&mut interests);
        self.apply_interests(slot, &mut interests);
        self.depart(slot, departed);
        let connection = &mut self.connections[slot as usize];
        if !connection.is_touched && !connection.is_draining_outbox {
            connection.is_touched = true;
            self.touched.push(slot);
        }
    }

    pub(super) fn end_session(&mut self, slot: Slot, code: CloseCode) {
        let session = &mut self.connections[slot as usize].session;
        session.handle_end(code, code.text(), &mut self.actions);
        self.apply_actions(slot);
    }

    /// Every connection is told; one that waits for an ack gets it first.
    pub(super) fn drain(&mut self) {
        self.is_draining = true;
        let idle: Vec<usize> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.phase == Phase::Open && connection.session.in_flight() == 0)
            .map(|(slot, _)| slot)
            .collect();
        for slot in idle {
            self.end_session(Slot::try_from(slot).expect("slots are u32"), CloseCode::Draining);
        }
        if self.connections.is_empty() {
            self.drained.notify_one();
        }
    }

    /// While draining, a connection is closed with the reply to its last command.
    pub(super) fn end_if_drained(&mut self, slot: Slot) {
        let connection = &mut self.connections[slot as usize];
        if self.is_draining && connection.phase == Phase::Open && connection.session.in_flight() == 0 {
            connection.session.handle_end(CloseCode::Draining, CloseCode::Draining.text(), &mut self.actions);
        }
    }
}
