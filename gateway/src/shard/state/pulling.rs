//! Pulls: answered from the shard's memory where it has the tail of the conversation, else by the reception.
//!
//! In come pulls of sessions, and tails of conversations that are in signal gear; out go frames whose payload everybody at the
//! same place shares. Always: a pull of what is newest in a storm takes no lock, no round trip and no copy.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tidegate_core::clock::Clock as _;
use tidegate_core::delivery::{Ask, Pull, Request, Ticket};
use tidegate_core::ids::ConversationId;
use tidegate_core::session::Brought;
use tidegate_core::storm::{Format, LiveTail};
use tidegate_proto::v1::Code;
use tidegate_proto::{HEAD_BYTES, Kind, frame, websocket};

use super::State;
use crate::clock::SystemClock;
use crate::shard::connection::{Phase, Transport};
use crate::shard::index::Slot;

impl State {
    /// What pulls of the conversation are answered with from now on.
    pub(super) fn set_tail(&mut self, conversation: ConversationId, tail: Option<LiveTail>) {
        match tail {
            // The last of those who watched may be gone by now.
            Some(held) if self.index.has(&conversation) && !held.life.is_over() => {
                drop(self.tails.insert(conversation, held))
            }
            Some(_) => {}
            None => drop(self.tails.remove(&conversation)),
        }
    }

    /// A session asks.
    pub(super) fn pull(&mut self, slot: Slot, ticket: Ticket, pull: Pull) {
        let held = self.tails.get(&pull.conversation).filter(|held| pull.before.is_none() && !held.life.is_over());
        let Some(tail) = held.map(|held| Arc::clone(&held.tail)) else {
            self.actions.requests.push_back(Request { ticket, ask: Ask::Pull(pull) });
            return;
        };
        let number = tail.answer_for(pull.after);
        let brought = if tail.brings(number) { Brought::Something } else { Brought::Nothing };
        let (now, spread) = (SystemClock.now(), tail.rule().spread);
        let session = &mut self.connections[slot as usize].session;
        if let Err(wait) = session.charge_pull(now, pull.conversation, spread, brought) {
            session.handle_pulled();
            let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
            let text = "one pull for each spread_ms is enough";
            self.actions.refuse_for(ticket.correlation, Code::SlowDown, text, wait_ms);
            return;
        }
        self.counts.pulls += 1;
        self.answer_pull(ticket, tail.answer(number, Format::Protobuf));
    }

    /// Queues the answer: a head of the connection's own, and the payload of all.
    pub(super) fn answer_pull(&mut self, ticket: Ticket, payload: Bytes) {
        let slot = ticket.connection.slot;
        let connection = &mut self.connections[slot as usize];
        if connection.phase == Phase::Closing || !connection.session.handle_pulled() {
            return;
        }
        let mut head = BytesMut::with_capacity(16);
        if let Transport::WebSocket(_) = connection.transport {
            websocket::put_header(&mut head, websocket::Opcode::Binary, HEAD_BYTES + payload.len());
        }
        frame::put_head(&mut head, Kind::PullReply, ticket.correlation, payload.len());
        self.counts.written_frames += 1;
        if connection.outbox.enqueue_shared(head.freeze(), payload, self.config.outbox_bytes_max).is_err() {
            self.end_slow_consumer(slot);
            return;
        }
        self.touch(slot);
    }
}
