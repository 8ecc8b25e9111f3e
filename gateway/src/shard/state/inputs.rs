//! The mailbox's side: what engines and the reception say to this shard's connections.
//!
//! In come batches of inputs; out go frames into outboxes, which leave with the turn. Always: an input for a connection that
//! is gone does nothing, and a shared frame is queued as a slice, never copied.

use bytes::Bytes;
use tidegate_core::delivery::{Encoded, Recipients, Settled, ShardInput, Ticket};
use tidegate_core::event::Membership;
use tidegate_core::ids::{RoomId, UserId};
use tidegate_core::ports::PresenceChange;

use super::{State, seconds};
use crate::shard::connection::{Phase, Transport};
use crate::shard::index::{Edge, Slot};

impl State {
    /// Applies a batch; what it causes leaves with [`State::end_turn`].
    pub fn handle_inputs(&mut self, inputs: impl Iterator<Item = ShardInput>) {
        for input in inputs {
            match input {
                ShardInput::Deliver { recipients, frame } => self.deliver(recipients, &frame),
                ShardInput::Membership { room, user, change, frame } => {
                    self.change_membership(room, user, change, &frame)
                }
                ShardInput::Settled(settled) => settled.into_iter().for_each(|settled| self.settle(&settled)),
                ShardInput::Bind { connection, identity, bound } => {
                    let mut interests = Vec::new();
                    let is_bound = self.of_key(connection).is_some_and(|connection| {
                        connection.phase == Phase::Open && connection.session.handle_bind(&identity, &mut interests)
                    });
                    if is_bound {
                        self.apply_interests(connection.slot, &mut interests);
                        if self.index.add_user(identity.user, connection.slot) == Edge::Yes {
                            self.links.routes.add(identity.user, self.id);
                        }
                    }
                    let _ = bound.send(is_bound);
                }
                ShardInput::Welcome { ticket, reply, identity } => {
                    if !self.welcome(ticket, &reply) {
                        let (user, session) = (identity.user, identity.session);
                        self.tell_departure(PresenceChange::Gone { user, device: identity.device, session });
                    }
                }
                ShardInput::Refused { ticket, code, close } => {
                    if let Some(connection) = self.connections.get_mut(ticket.connection.slot as usize)
                        && connection.generation == ticket.connection.generation
                        && connection.phase == Phase::Open
                    {
                        let session = &mut connection.session;
                        let departed = session.handle_refused(ticket.correlation, code, close, &mut self.actions);
                        self.depart(ticket.connection.slot, departed);
                        self.end_if_drained(ticket.connection.slot);
                        self.apply_actions(ticket.connection.slot);
                    }
                }
                ShardInput::Answer { ticket, reply } => {
                    if let Some(connection) = self.connections.get_mut(ticket.connection.slot as usize)
                        && connection.generation == ticket.connection.generation
                    {
                        connection.session.handle_answer(&reply, &mut self.actions);
                        self.end_if_drained(ticket.connection.slot);
                        self.apply_actions(ticket.connection.slot);
                    }
                }
                ShardInput::Drain => self.drain(),
            }
        }
    }

    fn deliver(&mut self, recipients: Recipients, frame: &Encoded) {
        match recipients {
            Recipients::Users(one, other) => {
                self.deliver_to_user(one, frame);
                self.deliver_to_user(other, frame);
            }
            Recipients::Conversation(conversation) => {
                let slots = self.index.take(&conversation);
                let mut slow = Vec::new();
                for slot in &slots {
                    if !self.deliver_to_slot(*slot, frame) {
                        slow.push(*slot);
                    }
                }
                self.index.put_back(&conversation, slots);
                slow.into_iter().for_each(|slot| self.end_slow_consumer(slot));
            }
            Recipients::Session(user, session) => {
                let is_it = |slot: &&Slot| self.connections[**slot as usize].session.session() == Some(session);
                let slot = self.index.of_user(user).iter().find(is_it).copied();
                if let Some(slot) = slot
                    && !self.deliver_to_slot(slot, frame)
                {
                    self.end_slow_consumer(slot);
                }
            }
        }
    }

    fn deliver_to_user(&mut self, user: UserId, frame: &Encoded) {
        let slots: smallvec::SmallVec<[Slot; 4]> = self.index.of_user(user).into();
        for slot in slots {
            if !self.deliver_to_slot(slot, frame) {
                self.end_slow_consumer(slot);
            }
        }
    }

    /// Queues a shared frame. `false` if the outbox is full.
    fn deliver_to_slot(&mut self, slot: Slot, frame: &Encoded) -> bool {
        let connection = &mut self.connections[slot as usize];
        if connection.phase == Phase::Closing {
            return true;
        }
        let bytes = match connection.transport {
            Transport::Tcp => frame.tcp(),
            Transport::WebSocket(_) => frame.websocket(),
        };
        self.counts.written_frames += 1;
        if connection.outbox.enqueue(bytes, self.config.outbox_bytes_max).is_err() {
            return false;
        }
        self.touch(slot);
        true
    }

    fn change_membership(&mut self, room: RoomId, user: UserId, change: Membership, frame: &Encoded) {
        let conversation = tidegate_core::ids::ConversationId::Room(room);
        let slots: smallvec::SmallVec<[Slot; 4]> = self.index.of_user(user).into();
        let mut interests = Vec::new();
        // Whoever leaves still hears of it.
        if change == Membership::Left {
            self.deliver(Recipients::Conversation(conversation), frame);
        }
        for slot in slots {
            if let Some(connection) = self.connections.get_mut(slot as usize) {
                connection.session.handle_membership(room, change, &mut interests);
                self.apply_interests(slot, &mut interests);
            }
        }
        if change == Membership::Joined {
            self.deliver(Recipients::Conversation(conversation), frame);
        }
    }

    pub(super) fn settle(&mut self, settled: &Settled) {
        let key = settled.ticket.connection;
        if self.of_key(key).is_none() {
            return;
        }
        self.connections[key.slot as usize].session.handle_settled(settled, &mut self.actions);
        self.end_if_drained(key.slot);
        self.apply_actions(key.slot);
    }

    /// Whether the connection was still there.
    fn welcome(&mut self, ticket: Ticket, reply: &Bytes) -> bool {
        let slot = ticket.connection.slot;
        let deadline_s = self.wheel.now_s() + seconds(self.config.idle_timeout);
        if self.of_key(ticket.connection).is_none_or(|connection| connection.phase != Phase::Open) {
            return false;
        }
        let mut actions = std::mem::take(&mut self.actions);
        let connection = &mut self.connections[slot as usize];
        connection.session.handle_welcome(reply, &mut actions);
        // The wheel looks at the entry of the handshake's deadline; one that is nearer needs an entry of its own.
        if deadline_s < connection.deadline_s {
            self.wheel.insert((slot, ticket.connection.generation), deadline_s);
        }
        connection.deadline_s = deadline_s;
        let first = connection.wrap(actions.replies.split());
        connection.outbox.enqueue_first(first);
        self.actions = actions;
        self.touch(slot);
        true
    }
}
