//! What a shard owns, and what happens in a turn.

use std::collections::VecDeque;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use slab::Slab;
use tidegate_core::clock::Clock as _;
use tidegate_core::delivery::{Accepting, ConnectionKey, Encoded, Recipients, Settled, ShardId, ShardInput, Ticket};
use tidegate_core::event::Membership;
use tidegate_core::ids::{Millis, RoomId, UserId};
use tidegate_core::ports::PresenceChange;
use tidegate_core::session::{Actions, Departed, Interest, SessionContext};
use tidegate_proto::v1::{CloseCode, Code};
use tidegate_proto::{OPENING_BYTES, Opening, frame, websocket};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::connection::{Connection, Phase, Transport};
use super::index::{Edge, Index, Slot};
use super::outbox::Flushed;
use super::wheel::Wheel;
use super::{ShardConfig, ShardLinks};
use crate::clock::SystemClock;
use crate::telemetry;

/// Bytes of one read at most. Large, because the buffer is the shard's: it costs once, not per connection.
const READ_BYTES: usize = 64 * 1024;

/// Replies of one read beyond this leave before more of its frames are handled; a WebSocket message of them stays far
/// below the largest frame.
const REPLIES_BYTES: usize = 16 * 1024;

/// How long a connection may take to read its Close frame, in seconds.
const CLOSE_LINGER_S: u32 = 2;

/// A socket whose outbox is blocked, for a task that waits until it takes more.
type Blocked = (Slot, u32, Rc<OwnedWriteHalf>);

/// See the module.
pub struct State {
    id: ShardId,
    config: ShardConfig,
    context: SessionContext,
    links: ShardLinks,
    connections: Slab<Connection>,
    generation: u32,
    index: Index,
    wheel: Wheel<(Slot, u32)>,
    read_buffer: BytesMut,
    actions: Actions,
    /// Accepted in this turn, and the acceptors' lanes they are sorted into.
    accepted: VecDeque<Accepting>,
    lanes: Vec<VecDeque<Accepting>>,
    touched: Vec<Slot>,
    turn_begun: Rc<Notify>,
    drained: Rc<Notify>,
    is_draining: bool,
    /// The read in progress brought a whole frame, or a WebSocket ping or pong.
    was_heard: bool,
    counts: Counts,
}

/// What happened since the last tick.
#[derive(Default)]
struct Counts {
    read_bytes: u64,
    frames: u64,
    written_frames: u64,
}

impl State {
    pub fn new(id: ShardId, config: ShardConfig, context: SessionContext, links: ShardLinks) -> Self {
        Self {
            id,
            config,
            context,
            links,
            connections: Slab::new(),
            generation: 0,
            index: Index::default(),
            wheel: Wheel::default(),
            read_buffer: BytesMut::new(),
            actions: Actions::default(),
            accepted: VecDeque::new(),
            lanes: Vec::new(),
            touched: Vec::new(),
            turn_begun: Rc::default(),
            drained: Rc::default(),
            is_draining: false,
            was_heard: false,
            counts: Counts::default(),
        }
    }

    pub fn id(&self) -> ShardId {
        self.id
    }

    pub fn is_draining(&self) -> bool {
        self.is_draining
    }

    /// Told when something waits for the turn's end.
    pub fn turn_begun(&self) -> Rc<Notify> {
        Rc::clone(&self.turn_begun)
    }

    /// Told when the last connection of a draining shard is gone.
    pub fn drained(&self) -> Rc<Notify> {
        Rc::clone(&self.drained)
    }

    // ---- connections come and go

    /// Takes a socket in. `None` if there are too many: it has been told, as far as it takes it.
    pub fn adopt(&mut self, writer: OwnedWriteHalf, transport: Transport, early: &[u8]) -> Option<(Slot, u32)> {
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let deadline_s = self.wheel.now_s() + seconds(self.config.handshake_timeout);
        let mut connection = Connection::new(writer, transport, generation, deadline_s);
        if self.connections.len() >= self.config.connections_max || self.is_draining {
            let code = if self.is_draining { CloseCode::Draining } else { CloseCode::Overloaded };
            connection.outbox.end_with(connection.last_words(code));
            let _ = connection.flush();
            count_close(code.label());
            return None;
        }
        connection.partial = early.into();
        let slot = Slot::try_from(self.connections.insert(connection)).expect("connections_max is far below 2^32");
        self.wheel.insert((slot, generation), deadline_s);
        if !early.is_empty() {
            let bytes = BytesMut::from(&*std::mem::take(&mut self.connections[slot as usize].partial));
            self.feed(slot, bytes);
        }
        Some((slot, generation))
    }

    /// The task that reads from a connection, to be ended with it.
    pub fn set_reading(&mut self, slot: Slot, generation: u32, reading: AbortHandle) {
        match self.get(slot, generation) {
            Some(connection) => connection.reading = Some(reading),
            None => reading.abort(),
        }
    }

    /// Lets a connection go. Does nothing if the slot has another one by now.
    pub fn remove(&mut self, slot: Slot, generation: u32) {
        if self.get(slot, generation).is_none() {
            return;
        }
        let mut connection = self.connections.remove(slot as usize);
        let mut interests = Vec::new();
        let departed = connection.session.handle_gone(&mut interests);
        self.apply_interests(slot, &mut interests);
        self.depart(slot, departed);
        if self.is_draining && self.connections.is_empty() {
            self.drained.notify_one();
        }
    }

    /// The shard ends: whoever is left is told to the hot store.
    pub fn forget_everybody(&mut self) {
        let left: Vec<(Slot, u32)> = self
            .connections
            .iter()
            .map(|(slot, connection)| (Slot::try_from(slot).expect("slots are u32"), connection.generation))
            .collect();
        left.into_iter().for_each(|(slot, generation)| self.remove(slot, generation));
    }

    fn get(&mut self, slot: Slot, generation: u32) -> Option<&mut Connection> {
        self.connections.get_mut(slot as usize).filter(|connection| connection.generation == generation)
    }

    fn of_key(&mut self, key: ConnectionKey) -> Option<&mut Connection> {
        self.get(key.slot, key.generation)
    }

    /// A session that had been bound is no more: index, routes and presence follow.
    fn depart(&mut self, slot: Slot, departed: Option<Departed>) {
        let Some(Departed { user, device, session }) = departed else {
            return;
        };
        if self.index.remove_user(user, slot) == Edge::Yes {
            self.links.routes.remove(user, self.id);
        }
        self.tell_departure(PresenceChange::Gone { user, device: device.into(), session });
    }

    /// If the queue is full the user's presence expires instead: late, not never.
    fn tell_departure(&self, change: PresenceChange) {
        let mut change = VecDeque::from([change]);
        self.links.departures.offer(&mut change);
        if !change.is_empty() {
            metrics::counter!(telemetry::SHARD_DEPARTURES_DROPPED).increment(1);
        }
    }

    // ---- reading

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
    fn feed(&mut self, slot: Slot, mut bytes: BytesMut) {
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

    /// A client that sends many small commands at once gets its replies in several writes; the outbox is for clients that
    /// do not read.
    fn flush_early(&mut self, slot: Slot) {
        let connection = &mut self.connections[slot as usize];
        if !connection.is_draining_outbox && !connection.session.holds_pushes() {
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

    // ---- what a session's actions lead to

    /// Carries out and empties `self.actions`, which came of the connection in `slot`.
    fn apply_actions(&mut self, slot: Slot) {
        self.accepted.append(&mut self.actions.accepted);
        if !self.actions.requests.is_empty() {
            self.links.requests.offer(&mut self.actions.requests);
            while let Some(request) = self.actions.requests.pop_front() {
                let session = &mut self.connections[slot as usize].session;
                session.handle_refused(request.ticket.correlation, Code::Overloaded, None, &mut self.actions);
            }
        }
        if !self.actions.interests.is_empty() {
            let mut interests = std::mem::take(&mut self.actions.interests);
            self.apply_interests(slot, &mut interests);
            self.actions.interests = interests;
        }
        if !self.actions.replies.is_empty() {
            let replies = self.actions.replies.split();
            let bytes = self.connections[slot as usize].wrap(replies);
            self.enqueue(slot, bytes);
        }
        if let Some(code) = self.actions.close.take() {
            self.end(slot, code);
        }
    }

    fn apply_interests(&mut self, slot: Slot, interests: &mut Vec<Interest>) {
        for interest in interests.drain(..) {
            match interest {
                Interest::Begins(conversation) => self.index.begin(conversation, slot),
                Interest::Ends(conversation) => self.index.end(conversation, slot),
            }
        }
    }

    /// Adds bytes to a connection's outbox; they leave at the turn's end.
    fn enqueue(&mut self, slot: Slot, bytes: Bytes) {
        let connection = &mut self.connections[slot as usize];
        if connection.phase == Phase::Closing {
            return;
        }
        self.counts.written_frames += 1;
        if connection.outbox.enqueue(bytes, self.config.outbox_bytes_max).is_err() {
            self.end_slow_consumer(slot);
            return;
        }
        self.touch(slot);
    }

    fn touch(&mut self, slot: Slot) {
        let connection = &mut self.connections[slot as usize];
        let must_wait = connection.is_draining_outbox || connection.session.holds_pushes();
        if !connection.is_touched && !must_wait {
            connection.is_touched = true;
            self.touched.push(slot);
        }
    }

    /// The receiver does not keep up: what is queued is dropped, it is told, and it resumes by sequence.
    fn end_slow_consumer(&mut self, slot: Slot) {
        let code = CloseCode::SlowConsumer;
        let connection = &mut self.connections[slot as usize];
        connection.outbox.end_with(connection.last_words(code));
        self.linger(slot, code.label());
    }

    /// The Close frame is queued: behind it, over WebSocket, comes the close frame of RFC 6455 section 5.5.1.
    fn end(&mut self, slot: Slot, code: CloseCode) {
        if let Transport::WebSocket(_) = self.connections[slot as usize].transport {
            let mut raw = BytesMut::new();
            websocket::put_close(&mut raw, code.number(), code.text());
            self.enqueue(slot, raw.freeze());
        }
        self.linger(slot, code.label());
    }

    fn end_websocket(&mut self, slot: Slot, last: Bytes, label: &'static str) {
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

    // ---- the mailbox

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

    fn settle(&mut self, settled: &Settled) {
        let key = settled.ticket.connection;
        if self.of_key(key).is_none() {
            return;
        }
        self.connections[key.slot as usize].session.handle_settled(settled, &mut self.actions);
        self.end_if_drained(key.slot);
        self.apply_actions(key.slot);
    }

    /// While draining, a connection is closed with the reply to its last command.
    fn end_if_drained(&mut self, slot: Slot) {
        let connection = &mut self.connections[slot as usize];
        if self.is_draining && connection.phase == Phase::Open && connection.session.in_flight() == 0 {
            connection.session.handle_end(CloseCode::Draining, CloseCode::Draining.text(), &mut self.actions);
        }
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

    // ---- the turn

    /// Something waits for the turn's end.
    fn begin_turn(&mut self) {
        if !self.accepted.is_empty() || !self.touched.is_empty() {
            self.turn_begun.notify_one();
        }
    }

    /// Hands accepted events over and writes to every touched connection once. Returns sockets that take no more.
    pub fn end_turn(&mut self) -> Vec<Blocked> {
        if !self.accepted.is_empty() {
            self.links.accept.offer(&mut self.accepted, &mut self.lanes);
            while let Some(accepting) = self.accepted.pop_front() {
                self.settle(&Settled { ticket: accepting.ticket, outcome: Err(Code::Overloaded) });
            }
        }
        let mut blocked = Vec::new();
        let mut touched = std::mem::take(&mut self.touched);
        for slot in touched.drain(..) {
            let Some(connection) = self.connections.get_mut(slot as usize) else {
                continue;
            };
            connection.is_touched = false;
            match connection.flush() {
                Ok(Flushed::Empty) => {}
                Ok(Flushed::Blocked) => {
                    connection.is_draining_outbox = true;
                    blocked.extend(connection.writer.clone().map(|writer| (slot, connection.generation, writer)));
                }
                Err(_) => {
                    let generation = connection.generation;
                    count_close("write_failed");
                    self.remove(slot, generation);
                }
            }
        }
        self.touched = touched;
        blocked
    }

    /// The socket takes more again. Whether the task has to wait once more.
    pub fn flush_unblocked(&mut self, slot: Slot, generation: u32) -> bool {
        let Some(connection) = self.get(slot, generation) else {
            return false;
        };
        match connection.flush() {
            Ok(Flushed::Blocked) => true,
            Ok(Flushed::Empty) => {
                connection.is_draining_outbox = false;
                false
            }
            Err(_) => {
                count_close("write_failed");
                self.remove(slot, generation);
                false
            }
        }
    }

    /// A second has passed.
    pub fn tick(&mut self, now_s: u32) {
        for (slot, generation) in self.wheel.advance(now_s) {
            let Some(connection) = self.get(slot, generation) else {
                continue;
            };
            let (deadline_s, phase, is_ready) =
                (connection.deadline_s, connection.phase, connection.session.is_ready());
            if deadline_s > now_s {
                self.wheel.insert((slot, generation), deadline_s);
            } else if phase == Phase::Closing {
                self.remove(slot, generation);
            } else {
                let code = if is_ready { CloseCode::Idle } else { CloseCode::HandshakeTimeout };
                self.end_session(slot, code);
            }
        }
        self.report();
    }

    fn end_session(&mut self, slot: Slot, code: CloseCode) {
        let session = &mut self.connections[slot as usize].session;
        session.handle_end(code, code.text(), &mut self.actions);
        self.apply_actions(slot);
    }

    /// Every connection is told; one that waits for an ack gets it first.
    fn drain(&mut self) {
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

    fn report(&mut self) {
        let shard = self.id.0.to_string();
        let counts = std::mem::take(&mut self.counts);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 connections")]
        metrics::gauge!(telemetry::SHARD_CONNECTIONS, "shard" => shard.clone()).set(self.connections.len() as f64);
        metrics::counter!(telemetry::SHARD_READ_BYTES, "shard" => shard.clone()).increment(counts.read_bytes);
        metrics::counter!(telemetry::SHARD_READ_FRAMES, "shard" => shard.clone()).increment(counts.frames);
        metrics::counter!(telemetry::SHARD_WRITTEN_FRAMES, "shard" => shard).increment(counts.written_frames);
    }
}

fn count_close(reason: &'static str) {
    metrics::counter!(telemetry::SHARD_CLOSES, "reason" => reason).increment(1);
}

fn seconds(duration: std::time::Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX / 2).max(1)
}
