//! What a shard owns, and what happens in a turn.
//!
//! Here: connections come and go, what a session's actions lead to, the turn's end and the second's tick. In
//! [`reading`]: bytes to sessions; in [`inputs`]: the mailbox; in [`pulling`]: pulls; in [`background`]: who is only told how
//! many; in [`ending`]: how connections end.

mod background;
mod ending;
mod inputs;
mod pulling;
mod reading;

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use rustc_hash::FxHashMap;
use slab::Slab;
use tidegate_core::delivery::{Accepting, ConnectionKey, Settled, ShardId};
use tidegate_core::ids::ConversationId;
use tidegate_core::meter;
use tidegate_core::ports::PresenceChange;
use tidegate_core::session::{Actions, Departed, Interest, SessionContext};
use tidegate_core::storm::LiveTail;
use tidegate_proto::v1::{CloseCode, Code};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::connection::{Connection, Phase, Transport};
use super::index::{Edge, Index, Slot};
use super::outbox::Flushed;
use super::wheel::Wheel;
use super::{ShardConfig, ShardLinks};
use crate::telemetry;

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
    /// What pulls of conversations in signal gear are answered with.
    tails: FxHashMap<ConversationId, LiveTail>,
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
    /// The slot from which on sessions are still to be renewed in this round.
    renew_from: Option<Slot>,
    /// Pushes may have been lost on their way here; the next tick says so to everybody.
    has_missed_pushes: bool,
    /// Connections that are behind in a conversation.
    behind_connections: usize,
    /// Connections in the background whose counts are still to be told, and their generations.
    uncounted: VecDeque<(Slot, u32)>,
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
    skipped_frames: u64,
    pulls: u64,
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
            tails: FxHashMap::default(),
            wheel: Wheel::default(),
            read_buffer: BytesMut::new(),
            actions: Actions::default(),
            accepted: VecDeque::new(),
            lanes: Vec::new(),
            touched: Vec::new(),
            turn_begun: Rc::default(),
            drained: Rc::default(),
            is_draining: false,
            renew_from: None,
            has_missed_pushes: false,
            behind_connections: 0,
            uncounted: VecDeque::new(),
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

    pub fn stall_timeout(&self) -> std::time::Duration {
        self.config.stall_timeout
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
        self.behind_connections -= usize::from(connection.behind.is_some());
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
        let Some(Departed { user, device, attachment }) = departed else {
            return;
        };
        if self.index.remove_user(user, slot) == Edge::Yes {
            self.links.routes.remove(user, self.id);
        }
        self.tell_presence(PresenceChange::Gone { user, device: device.into(), attachment });
    }

    /// If the queue is full the user's presence expires instead, or is renewed with the next round: late, not never.
    fn tell_presence(&self, change: PresenceChange) {
        let mut change = VecDeque::from([change]);
        self.links.departures.offer(&mut change);
        if !change.is_empty() {
            metrics::counter!(telemetry::SHARD_DEPARTURES_DROPPED).increment(1);
        }
    }

    // ---- what a session's actions lead to

    /// Carries out and empties `self.actions`, which came of the connection in `slot`.
    fn apply_actions(&mut self, slot: Slot) {
        self.accepted.append(&mut self.actions.accepted);
        while let Some((ticket, pull)) = self.actions.pulls.pop_front() {
            self.pull(slot, ticket, pull);
        }
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
        if std::mem::take(&mut self.actions.is_hold_changed)
            && let Some(hold) = self.connections[slot as usize].session.hold()
        {
            self.tell_presence(PresenceChange::Renewed(hold));
        }
        if let Some(ground) = self.actions.ground.take() {
            self.change_ground(slot, ground);
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
                Interest::Begins(conversation) => {
                    self.index.begin(conversation, slot);
                    self.links.routes.watch(conversation, self.id);
                }
                Interest::Ends(conversation) => {
                    self.links.routes.unwatch(conversation, self.id);
                    if self.index.end(conversation, slot) == Edge::Yes {
                        self.tails.remove(&conversation);
                    }
                }
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
        if !connection.is_touched && !connection.is_draining_outbox {
            connection.is_touched = true;
            self.touched.push(slot);
        }
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
                self.settle(&Settled { ticket: accepting.ticket, outcome: Err(Code::Overloaded.into()) });
            }
        }
        let mut blocked = Vec::new();
        let mut touched = std::mem::take(&mut self.touched);
        for slot in touched.drain(..) {
            let Some(connection) = self.connections.get_mut(slot as usize) else {
                continue;
            };
            connection.is_touched = false;
            let (generation, writer) = (connection.generation, connection.writer.clone());
            match self.flush(slot) {
                Ok(Flushed::Empty) => {}
                Ok(Flushed::Blocked) => {
                    self.connections[slot as usize].is_draining_outbox = true;
                    blocked.extend(writer.map(|writer| (slot, generation, writer)));
                }
                Err(_) => {
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
        if self.get(slot, generation).is_none() {
            return false;
        }
        match self.flush(slot) {
            Ok(Flushed::Blocked) => true,
            Ok(Flushed::Empty) => {
                self.connections[slot as usize].is_draining_outbox = false;
                false
            }
            Err(_) => {
                count_close("write_failed");
                self.remove(slot, generation);
                false
            }
        }
    }

    /// Writes what the socket takes, and tells a connection that was behind as soon as it has caught up half-way.
    fn flush(&mut self, slot: Slot) -> io::Result<Flushed> {
        loop {
            let flushed = self.connections[slot as usize].flush()?;
            if !self.tell_behind(slot) {
                return Ok(flushed);
            }
        }
    }

    /// Whether there was something to tell.
    fn tell_behind(&mut self, slot: Slot) -> bool {
        let bytes_max = self.config.outbox_bytes_max;
        let connection = &mut self.connections[slot as usize];
        let has_room = connection.outbox.pending_bytes() <= bytes_max / 2 && !connection.session.holds_pushes();
        let Some(behind) = connection.behind.take_if(|_| has_room) else { return false };
        self.behind_connections -= 1;
        if connection.phase == Phase::Closing {
            return false;
        }
        tracing::info!(
            shard = self.id.0,
            user = connection.session.user().map(|user| user.0),
            session = connection.session.session().map(|session| session.0),
            skipped = behind.skipped(),
            "a connection that was behind takes pushes again"
        );
        let frames = connection.wrap(behind.frames());
        if connection.outbox.enqueue(frames, bytes_max).is_err() {
            self.end_slow_consumer(slot);
        }
        true
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
        if std::mem::take(&mut self.has_missed_pushes) {
            self.tell_everybody_missed();
        }
        self.tell_counts();
        self.renew_presence();
        self.report();
    }

    fn report(&mut self) {
        let shard = self.id.0.to_string();
        let counts = std::mem::take(&mut self.counts);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 connections")]
        metrics::gauge!(telemetry::SHARD_CONNECTIONS, "shard" => shard.clone()).set(self.connections.len() as f64);
        metrics::counter!(telemetry::SHARD_READ_BYTES, "shard" => shard.clone()).increment(counts.read_bytes);
        metrics::counter!(telemetry::SHARD_READ_FRAMES, "shard" => shard.clone()).increment(counts.frames);
        metrics::gauge!(telemetry::SHARD_BEHIND, "shard" => shard.clone()).set(self.behind_connections as f64);
        metrics::counter!(telemetry::SHARD_WRITTEN_FRAMES, "shard" => shard.clone()).increment(counts.written_frames);
        metrics::counter!(meter::PULL_ANSWERS, "from" => "shard").increment(counts.pulls);
        metrics::counter!(telemetry::SHARD_SKIPPED_FRAMES, "shard" => shard).increment(counts.skipped_frames);
    }
}

fn count_close(reason: &'static str) {
    metrics::counter!(telemetry::SHARD_CLOSES, "reason" => reason).increment(1);
}

fn seconds(duration: std::time::Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX / 2).max(1)
}
