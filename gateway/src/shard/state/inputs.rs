//! The mailbox's side: what engines and the reception say to this shard's connections.
//!
//! In come batches of inputs; out go frames into outboxes, which leave with the turn. Always: an input for a connection that
//! is gone does nothing, and a shared frame is queued as a slice, never copied.

use bytes::{Bytes, BytesMut};
use tidegate_core::clock::Clock as _;
use tidegate_core::delivery::{ConnectionView, Encoded, Ground, News, Recipients, Settled, ShardInput, Ticket};
use tidegate_core::event::Membership;
use tidegate_core::ids::{ConversationId, RoomId, Span, UserId};
use tidegate_core::limits::DEPARTURES_MAX;
use tidegate_core::ports::PresenceChange;
use tidegate_proto::Kind;
use tidegate_proto::v1::CloseCode;

use super::{State, seconds};
use crate::clock::SystemClock;
use crate::shard::behind;
use crate::shard::connection::{Phase, Transport};
use crate::shard::index::{Edge, Slot};
use crate::shard::outbox::OutboxFull;

impl State {
    /// Applies a batch; what it causes leaves with [`State::end_turn`].
    pub fn handle_inputs(&mut self, inputs: impl Iterator<Item = ShardInput>) {
        for input in inputs {
            match input {
                ShardInput::Deliver { recipients, span, news, frame } => self.deliver(recipients, span, &news, &frame),
                ShardInput::PushesMissed { of: None } => self.has_missed_pushes = true,
                ShardInput::PushesMissed { of: Some(users) } => self.tell_missed(&users),
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
                        self.change_ground(connection.slot, identity.ground);
                        self.apply_interests(connection.slot, &mut interests);
                        if self.index.add_user(identity.user, connection.slot) == Edge::Yes {
                            self.links.routes.add(identity.user, self.id);
                        }
                    }
                    let _ = bound.send(is_bound);
                }
                ShardInput::Rooms { connection: key, look_up, rooms, known } => {
                    let mut interests = Vec::new();
                    if let Some(connection) = self.of_key(key).filter(|connection| connection.phase == Phase::Open) {
                        connection.session.handle_rooms(look_up, &rooms, &mut interests);
                        self.apply_interests(key.slot, &mut interests);
                        // The reception may have given up.
                        let _ = known.send(());
                    }
                }
                ShardInput::Welcome { ticket, reply, identity } => {
                    if !self.welcome(ticket, &reply) {
                        let (user, attachment) = (identity.user, identity.attachment);
                        self.tell_presence(PresenceChange::Gone { user, device: identity.device, attachment });
                    }
                }
                ShardInput::Refused { ticket, code, close } => {
                    if let Some(connection) = self.connections.get_mut(ticket.connection.slot as usize)
                        && connection.generation == ticket.connection.generation
                        && connection.phase == Phase::Open
                    {
                        let session = &mut connection.session;
                        let departed = session.handle_refused(ticket.correlation, code, close, &mut self.actions);
                        if departed.is_some() {
                            connection.outbox.drop_held();
                            self.behind_connections -= usize::from(connection.behind.take().is_some());
                            self.change_ground(ticket.connection.slot, Ground::Foreground);
                        }
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
                ShardInput::Tail { conversation, tail } => self.set_tail(conversation, tail),
                ShardInput::Pulled { ticket, payload } => {
                    if self.of_key(ticket.connection).is_some() {
                        self.answer_pull(ticket, payload);
                        self.end_if_drained(ticket.connection.slot);
                    }
                }
                ShardInput::Replaced { user, attachment } => {
                    let is_it =
                        |slot: &&Slot| self.connections[**slot as usize].session.attachment() == Some(attachment);
                    if let Some(slot) = self.index.of_user(user).iter().find(is_it).copied() {
                        self.end_session(slot, CloseCode::Replaced);
                    }
                }
                ShardInput::Inspect { limit, found } => {
                    // Whoever asked may have given up.
                    let _ = found.send(self.fullest(limit));
                }
                ShardInput::RenewPresence => {
                    self.renew_from = Some(0);
                    self.renew_presence();
                }
                ShardInput::Drain => self.drain(),
            }
        }
    }

    /// The connections with the fullest outboxes.
    fn fullest(&self, limit: usize) -> Vec<ConnectionView> {
        let ready = self.connections.iter().filter(|(_, connection)| connection.session.is_ready());
        let mut slots: Vec<(usize, u64, usize)> = ready
            .map(|(slot, connection)| {
                let skipped = connection.behind.as_ref().map_or(0, |behind| behind.skipped());
                (connection.outbox.pending_bytes(), skipped, slot)
            })
            .collect();
        // Not sorted as a whole: a shard of many connections has better things to do.
        if limit < slots.len() {
            slots.select_nth_unstable_by_key(limit, |entry| std::cmp::Reverse(*entry));
            slots.truncate(limit);
        }
        let view = |(outbox_bytes, skipped_pushes, slot): (usize, u64, usize)| {
            let connection = &self.connections[slot];
            let hold = connection.session.hold()?;
            Some(ConnectionView {
                shard: self.id,
                transport: match connection.transport {
                    Transport::Tcp => "tcp",
                    Transport::WebSocket(_) => "websocket",
                },
                user: hold.user,
                device: hold.device,
                session: hold.session,
                outbox_bytes,
                is_blocked: connection.is_draining_outbox,
                skipped_pushes,
                behind_in: connection.behind.iter().flat_map(|behind| behind.conversations()).collect(),
                in_flight: connection.session.in_flight(),
            })
        };
        slots.into_iter().filter_map(view).collect()
    }

    /// Tells the hot store about a part of the sessions; the rest follows with the next ticks, so that a shard of many
    /// connections neither stops for it nor floods the queue.
    pub(super) fn renew_presence(&mut self) {
        /// A quarter of the queue, for all that other shards and endings need of it.
        const RENEWALS_AT_ONCE: usize = DEPARTURES_MAX / 4;
        let Some(from) = self.renew_from.take() else { return };
        let mut left = RENEWALS_AT_ONCE;
        for slot in from as usize..self.connections.capacity() {
            if left == 0 {
                self.renew_from = Some(Slot::try_from(slot).expect("slots are u32"));
                return;
            }
            let Some(hold) = self.connections.get(slot).and_then(|connection| connection.session.hold()) else {
                continue;
            };
            self.tell_presence(PresenceChange::Renewed(hold));
            left -= 1;
        }
    }

    fn deliver(&mut self, recipients: Recipients, span: Option<Span>, news: &News, frame: &Encoded) {
        match recipients {
            Recipients::Users(one, other) => {
                let conversation = ConversationId::Private { low: one.min(other), high: one.max(other) };
                for user in [one, other] {
                    let slots: smallvec::SmallVec<[Slot; 4]> = self.index.of_user(user).into();
                    for slot in slots {
                        if !self.passes_by(slot, conversation, span, news) {
                            self.deliver_to_slot(slot, frame);
                        }
                    }
                }
            }
            Recipients::Conversation(conversation) => {
                let slots = self.index.take(&conversation);
                // Who pulls on by itself has no use for a notice; in a storm those are most.
                let told_at = matches!(news, News::UpTo(_)).then(|| SystemClock.now());
                for slot in &slots {
                    let session = &self.connections[*slot as usize].session;
                    let pulls_on = told_at.is_some_and(|now| session.pulls_on(now, &conversation));
                    if !pulls_on && !self.passes_by(*slot, conversation, span, news) {
                        self.deliver_of_many(*slot, conversation, span, frame);
                    }
                }
                self.index.put_back(&conversation, slots);
            }
            Recipients::Session(user, session) => {
                let is_it = |slot: &&Slot| self.connections[**slot as usize].session.session() == Some(session);
                if let Some(slot) = self.index.of_user(user).iter().find(is_it).copied() {
                    self.deliver_to_slot(slot, frame);
                }
            }
        }
    }

    fn deliver_to_user(&mut self, user: UserId, frame: &Encoded) {
        let slots: smallvec::SmallVec<[Slot; 4]> = self.index.of_user(user).into();
        for slot in slots {
            self.deliver_to_slot(slot, frame);
        }
    }

    /// A push for one user: a connection that has no room for it is closed, and its client resumes by sequence.
    fn deliver_to_slot(&mut self, slot: Slot, frame: &Encoded) {
        if self.offer(slot, frame).is_err() {
            self.end_slow_consumer(slot);
        }
    }

    /// A push of a room or lobby: one of many receivers that has no room for it goes without, and is told so later.
    fn deliver_of_many(&mut self, slot: Slot, conversation: ConversationId, span: Option<Span>, frame: &Encoded) {
        let connection = &mut self.connections[slot as usize];
        let is_behind = connection.behind.as_ref().is_some_and(|behind| behind.is_in(&conversation));
        if !is_behind && self.offer(slot, frame).is_ok() {
            return;
        }
        self.counts.skipped_frames += 1;
        let connection = &mut self.connections[slot as usize];
        if connection.behind.is_none() {
            self.behind_connections += 1;
            tracing::info!(
                shard = self.id.0,
                user = connection.session.user().map(|user| user.0),
                session = connection.session.session().map(|session| session.0),
                outbox_bytes = connection.outbox.pending_bytes(),
                %conversation,
                "a connection does not keep up, pushes pass it by"
            );
        }
        connection.behind.get_or_insert_default().skip(conversation, span);
    }

    /// Queues a shared frame. One that finds the outbox full of this very turn's frames gets it written first.
    fn offer(&mut self, slot: Slot, frame: &Encoded) -> Result<(), OutboxFull> {
        let bytes_max = self.config.outbox_bytes_max;
        let connection = &mut self.connections[slot as usize];
        if connection.phase == Phase::Closing {
            return Ok(());
        }
        let bytes = match connection.transport {
            Transport::Tcp => frame.tcp(),
            Transport::WebSocket(_) => frame.websocket(),
        };
        if connection.session.holds_pushes() {
            return connection.outbox.hold(bytes, bytes_max);
        }
        if connection.outbox.enqueue(bytes.clone(), bytes_max).is_err() {
            self.flush_early(slot);
            self.connections[slot as usize].outbox.enqueue(bytes, bytes_max)?;
        }
        self.counts.written_frames += 1;
        self.touch(slot);
        Ok(())
    }

    /// Pushes may have passed these users by.
    fn tell_missed(&mut self, users: &[UserId]) {
        let frame = self.missed_frame();
        users.iter().for_each(|user| self.deliver_to_user(*user, &frame));
    }

    /// Pushes may have passed this gateway by: everybody who is logged in, or about to be, is told.
    pub(super) fn tell_everybody_missed(&mut self) {
        let frame = self.missed_frame();
        let known: Vec<Slot> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.session.user().is_some())
            .map(|(slot, _)| Slot::try_from(slot).expect("slots are u32"))
            .collect();
        known.into_iter().for_each(|slot| self.deliver_to_slot(slot, &frame));
    }

    fn missed_frame(&self) -> Encoded {
        let payload = behind::in_any_conversation(self.connections.len());
        Encoded::push(&mut BytesMut::new(), Kind::Behind, &payload)
    }

    fn change_membership(&mut self, room: RoomId, user: UserId, change: Membership, frame: &Encoded) {
        let conversation = ConversationId::Room(room);
        let slots: smallvec::SmallVec<[Slot; 4]> = self.index.of_user(user).into();
        let mut interests = Vec::new();
        // Whoever leaves still hears of it.
        if change == Membership::Left {
            self.deliver(Recipients::Conversation(conversation), None, &News::None, frame);
        }
        for slot in slots {
            if let Some(connection) = self.connections.get_mut(slot as usize) {
                connection.session.handle_membership(room, change, &mut interests);
                // In the background as well: the client would not know what the counts of a new room are about.
                let is_in_background = connection.ground == Ground::Background;
                self.apply_interests(slot, &mut interests);
                if is_in_background {
                    self.deliver_to_slot(slot, frame);
                }
            }
        }
        if change == Membership::Joined {
            self.deliver(Recipients::Conversation(conversation), None, &News::None, frame);
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
        connection.outbox.release(first);
        self.actions = actions;
        self.touch(slot);
        true
    }
}
