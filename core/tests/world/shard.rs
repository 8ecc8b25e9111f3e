//! A shard as small as it can be and still keep the gateway's promises: it drives real sessions, knows who watches what,
//! holds pushes back until the login reply is out, and bounds its outboxes.
//!
//! In go clients' bytes and the mailbox, out go frames and what sessions accept and ask. It follows
//! `gateway/src/shard/state.rs`.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tidegate_core::accept::AcceptQueues;
use tidegate_core::clock::Clock as _;
use tidegate_core::delivery::{
    Accepting, ConnectionKey, Mailboxes, Recipients, Request, Settled, ShardId, ShardInput, Ticket,
};
use tidegate_core::event::Membership;
use tidegate_core::ids::{ConversationId, Epoch, Seq, Span, UserId};
use tidegate_core::limits::{FRAME_BYTES_MAX, SHARD_TURN_INPUTS_MAX};
use tidegate_core::ports::PresenceChange;
use tidegate_core::push::routes::Routes;
use tidegate_core::queue::Queue;
use tidegate_core::session::{Actions, Departed, Interest, Session, SessionContext};
use tidegate_proto::v1::{self, CloseCode, Code};
use tidegate_proto::{Kind, OPENING_BYTES, frame};
use tokio::sync::Notify;

use crate::sim::Sim;
use crate::wire::Wire;

/// Bytes that wait for one client; small, so that slow ones are met.
const OUTBOX_BYTES_MAX: usize = 16 * 1024;

/// The ways into a gateway's shards.
#[derive(Clone)]
pub struct SimMailboxes(pub Arc<[Queue<ShardInput>]>);

impl Mailboxes for SimMailboxes {
    fn shards(&self) -> u8 {
        u8::try_from(self.0.len()).expect("few")
    }

    async fn post(&self, shard: ShardId, inputs: Vec<ShardInput>) {
        let mut inputs = VecDeque::from(inputs);
        let _ = self.0[usize::from(shard.0)].push(&mut inputs).await;
    }
}

/// What a shard hands over to.
#[derive(Clone)]
pub struct Links {
    pub accept: AcceptQueues,
    pub requests: Arc<Queue<Request>>,
    pub departures: Arc<Queue<PresenceChange>>,
    pub routes: Arc<Routes>,
    pub mailboxes: SimMailboxes,
}

type Slot = u32;

struct Connection {
    wire: Wire,
    generation: u32,
    session: Session,
    outbox: VecDeque<Bytes>,
    outbox_bytes: usize,
    /// What passed it by because it did not keep up, and how far.
    behind: BTreeMap<ConversationId, (Epoch, Seq)>,
    is_closing: bool,
}

/// See the module. A handle; the task in [`Shard::run`] owns the turns.
#[derive(Clone)]
pub struct Shard {
    state: Rc<RefCell<State>>,
    bell: Rc<Notify>,
}

struct State {
    id: ShardId,
    sim: Sim,
    links: Links,
    context: SessionContext,
    connections: BTreeMap<Slot, Connection>,
    generation: u32,
    users: BTreeMap<UserId, Vec<Slot>>,
    conversations: BTreeMap<ConversationId, Vec<Slot>>,
    actions: Actions,
    accepted: VecDeque<Accepting>,
    lanes: Vec<VecDeque<Accepting>>,
}

impl Shard {
    pub fn new(id: ShardId, sim: &Sim, links: Links, context: SessionContext) -> Self {
        let state = State {
            id,
            sim: sim.clone(),
            links,
            context,
            connections: BTreeMap::new(),
            generation: 0,
            users: BTreeMap::new(),
            conversations: BTreeMap::new(),
            actions: Actions::default(),
            accepted: VecDeque::new(),
            lanes: Vec::new(),
        };
        Self { state: Rc::new(RefCell::new(state)), bell: Rc::default() }
    }

    pub fn connect(&self) -> Wire {
        let mut state = self.state.borrow_mut();
        state.generation += 1;
        let slot = (0..).find(|slot| !state.connections.contains_key(slot)).expect("few connections");
        let wire = Wire::new(Rc::clone(&self.bell));
        let connection = Connection {
            wire: wire.clone(),
            generation: state.generation,
            session: Session::default(),
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            behind: BTreeMap::new(),
            is_closing: false,
        };
        state.connections.insert(slot, connection);
        wire
    }

    /// Turns, until the task is dropped.
    pub async fn run(self) {
        let (id, mailbox) = {
            let state = self.state.borrow();
            (usize::from(state.id.0), state.links.mailboxes.clone())
        };
        let mut inputs = Vec::new();
        loop {
            tokio::select! {
                biased;
                taken = mailbox.0[id].take(SHARD_TURN_INPUTS_MAX, &mut inputs) => taken.expect("nobody closes it"),
                () = self.bell.notified() => {}
            }
            let mut state = self.state.borrow_mut();
            inputs.drain(..).for_each(|input| state.handle_input(input));
            state.read();
            state.end_turn();
        }
    }

    /// The process is gone: every client sees the end of its stream.
    pub fn crash(&self) {
        self.state.borrow().connections.values().for_each(|connection| connection.wire.close());
    }
}

impl Connection {
    fn flush(&mut self) {
        while let Some(bytes) = self.outbox.front().filter(|bytes| self.wire.write(bytes)) {
            self.outbox_bytes -= bytes.len();
            self.outbox.pop_front();
        }
    }

    fn tell_behind(&mut self) {
        for (conversation, (epoch, last)) in std::mem::take(&mut self.behind) {
            let (conversation_id, epoch, last_seq) = (conversation.to_string(), epoch.0, last.0);
            let frame = framed(&v1::Behind { conversation_id, epoch, last_seq, ..v1::Behind::default() });
            self.outbox_bytes += frame.len();
            self.outbox.push_back(frame);
        }
    }

    /// Whoever is refused, or replaced before, gets nothing that was held back for the login reply.
    fn drop_pushes(&mut self) {
        self.outbox.retain(|frame| frame[0] < Kind::Message as u8);
        self.outbox_bytes = self.outbox.iter().map(Bytes::len).sum();
    }
}

impl State {
    // ---- reading

    fn read(&mut self) {
        let slots: Vec<Slot> = self.connections.keys().copied().collect();
        for slot in slots {
            while let Some(bytes) = self.connections[&slot].wire.take() {
                self.feed(slot, bytes);
            }
            if self.connections[&slot].wire.is_left() {
                self.leave(slot);
                self.connections.remove(&slot);
            }
        }
    }

    fn feed(&mut self, slot: Slot, mut bytes: Bytes) {
        let connection = self.connections.get_mut(&slot).expect("listed a moment ago");
        if connection.is_closing {
            return;
        }
        let key = ConnectionKey { shard: self.id, slot, generation: connection.generation };
        if connection.session.expects_opening() {
            let opening = *bytes.first_chunk::<OPENING_BYTES>().expect("clients send it whole");
            connection.session.handle_opening(opening, &mut self.actions);
            drop(bytes.split_to(OPENING_BYTES));
        }
        while let Some(frame) = frame::next_frame(&mut bytes, FRAME_BYTES_MAX).expect("clients send whole frames") {
            let session = &mut self.connections.get_mut(&slot).expect("as above").session;
            session.handle_frame(self.sim.now(), key, frame, &self.context, &mut self.actions);
            self.apply_actions(slot);
        }
    }

    // ---- what sessions want

    fn apply_actions(&mut self, slot: Slot) {
        self.accepted.append(&mut self.actions.accepted);
        self.links.requests.offer(&mut self.actions.requests);
        while let Some(request) = self.actions.requests.pop_front() {
            let session = &mut self.connections.get_mut(&slot).expect("it asked").session;
            session.handle_refused(request.ticket.correlation, Code::Overloaded, None, &mut self.actions);
        }
        let interests = std::mem::take(&mut self.actions.interests);
        self.follow(slot, interests);
        if std::mem::take(&mut self.actions.is_hold_changed)
            && let Some(hold) = self.connections.get(&slot).and_then(|connection| connection.session.hold())
        {
            self.tell(PresenceChange::Renewed(hold));
        }
        if !self.actions.replies.is_empty() {
            let replies = self.actions.replies.split().freeze();
            self.enqueue(slot, replies);
        }
        if self.actions.close.take().is_some() {
            self.leave(slot);
        }
    }

    fn follow(&mut self, slot: Slot, interests: Vec<Interest>) {
        for interest in interests {
            match interest {
                Interest::Begins(conversation) => {
                    self.links.routes.watch(conversation, self.id);
                    self.conversations.entry(conversation).or_default().push(slot);
                }
                Interest::Ends(conversation) => {
                    self.links.routes.unwatch(conversation, self.id);
                    self.conversations.entry(conversation).or_default().retain(|other| *other != slot);
                }
            }
        }
    }

    fn enqueue(&mut self, slot: Slot, bytes: Bytes) {
        let Some(connection) = self.connections.get_mut(&slot).filter(|connection| !connection.is_closing) else {
            return;
        };
        if connection.outbox_bytes + bytes.len() > OUTBOX_BYTES_MAX {
            self.sim.trace(|| "a slow consumer is cut".into());
            self.sim.count("slow consumer cut");
            connection.outbox.clear();
            connection.session.handle_end(CloseCode::SlowConsumer, "", &mut self.actions);
            let close = self.actions.replies.split().freeze();
            self.actions.close = None;
            connection.outbox_bytes = close.len();
            connection.outbox.push_back(close);
            return self.leave(slot);
        }
        connection.outbox_bytes += bytes.len();
        connection.outbox.push_back(bytes);
    }

    /// The session is over; what is in the outbox still leaves.
    fn leave(&mut self, slot: Slot) {
        let connection = self.connections.get_mut(&slot).expect("it is there until it hangs up");
        if std::mem::replace(&mut connection.is_closing, true) {
            return;
        }
        let mut interests = Vec::new();
        let departed = connection.session.handle_gone(&mut interests);
        self.follow(slot, interests);
        self.depart(slot, departed);
    }

    fn depart(&mut self, slot: Slot, departed: Option<Departed>) {
        let Some(Departed { user, device, attachment }) = departed else { return };
        let slots = self.users.entry(user).or_default();
        slots.retain(|other| *other != slot);
        if slots.is_empty() {
            self.links.routes.remove(user, self.id);
        }
        self.tell(PresenceChange::Gone { user, device: device.into(), attachment });
    }

    fn tell(&self, change: PresenceChange) {
        self.links.departures.offer(&mut VecDeque::from([change]));
    }

    // ---- the mailbox

    fn of_key(&mut self, key: ConnectionKey) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(&key.slot)?;
        (connection.generation == key.generation && !connection.is_closing).then_some(connection)
    }

    fn handle_input(&mut self, input: ShardInput) {
        match input {
            ShardInput::Deliver { recipients, span, frame, .. } => self.deliver(recipients, span, &frame.tcp()),
            ShardInput::PushesMissed { of } => self.tell_missed(of.as_deref()),
            ShardInput::Membership { room, user, change, frame } => {
                let everybody = Recipients::Conversation(ConversationId::Room(room));
                if change == Membership::Left {
                    self.deliver(everybody, None, &frame.tcp());
                }
                for slot in self.users.get(&user).cloned().unwrap_or_default() {
                    let mut interests = Vec::new();
                    if let Some(connection) = self.connections.get_mut(&slot) {
                        connection.session.handle_membership(room, change, &mut interests);
                    }
                    self.follow(slot, interests);
                }
                if change == Membership::Joined {
                    self.deliver(everybody, None, &frame.tcp());
                }
            }
            ShardInput::Settled(settled) => settled.iter().for_each(|settled| self.settle(settled)),
            ShardInput::Bind { connection: key, identity, bound } => {
                let mut interests = Vec::new();
                let is_bound = self
                    .of_key(key)
                    .is_some_and(|connection| connection.session.handle_bind(&identity, &mut interests));
                if is_bound {
                    self.follow(key.slot, interests);
                    self.users.entry(identity.user).or_default().push(key.slot);
                    self.links.routes.add(identity.user, self.id);
                }
                let _ = bound.send(is_bound);
            }
            ShardInput::Rooms { connection: key, look_up, rooms, known } => {
                let mut interests = Vec::new();
                if let Some(connection) = self.of_key(key) {
                    connection.session.handle_rooms(look_up, &rooms, &mut interests);
                    self.follow(key.slot, interests);
                    let _ = known.send(());
                }
            }
            ShardInput::Welcome { ticket, reply, identity } => {
                if !self.welcome(ticket, &reply) {
                    let (user, device, attachment) = (identity.user, identity.device, identity.attachment);
                    self.tell(PresenceChange::Gone { user, device, attachment });
                }
            }
            ShardInput::Refused { ticket, code, close } => {
                let Some(connection) = self.connections.get_mut(&ticket.connection.slot) else { return };
                if connection.generation == ticket.connection.generation && !connection.is_closing {
                    let session = &mut connection.session;
                    let departed = session.handle_refused(ticket.correlation, code, close, &mut self.actions);
                    if departed.is_some() {
                        connection.drop_pushes();
                    }
                    self.depart(ticket.connection.slot, departed);
                    self.apply_actions(ticket.connection.slot);
                }
            }
            ShardInput::Answer { ticket, reply } => {
                let mut actions = std::mem::take(&mut self.actions);
                if let Some(connection) = self.of_key(ticket.connection) {
                    connection.session.handle_answer(&reply, &mut actions);
                }
                self.actions = actions;
                self.apply_actions(ticket.connection.slot);
            }
            ShardInput::Replaced { user, attachment } => {
                let slots = self.users.get(&user).cloned().unwrap_or_default();
                let is_it = |slot: &Slot| self.connections[slot].session.attachment() == Some(attachment);
                if let Some(slot) = slots.into_iter().find(is_it) {
                    self.sim.count("device taken over");
                    let connection = self.connections.get_mut(&slot).expect("in the index");
                    if connection.session.holds_pushes() {
                        connection.drop_pushes();
                    }
                    connection.session.handle_end(CloseCode::Replaced, "", &mut self.actions);
                    self.apply_actions(slot);
                }
            }
            ShardInput::RenewPresence => {
                let holds = self.connections.values().filter_map(|connection| connection.session.hold());
                holds.for_each(|hold| self.tell(PresenceChange::Renewed(hold)));
            }
            // These clients ask by Sync.
            ShardInput::Tail { .. } => {}
            ShardInput::Pulled { .. } => unreachable!("nobody pulls here"),
            ShardInput::Inspect { .. } => unreachable!("nobody looks"),
            ShardInput::Drain => unreachable!("nobody drains here"),
        }
    }

    fn settle(&mut self, settled: &Settled) {
        let mut actions = std::mem::take(&mut self.actions);
        if let Some(connection) = self.of_key(settled.ticket.connection) {
            connection.session.handle_settled(settled, &mut actions);
        }
        self.actions = actions;
        self.apply_actions(settled.ticket.connection.slot);
    }

    /// The reply goes in front of everything that was held back.
    fn welcome(&mut self, ticket: Ticket, reply: &Bytes) -> bool {
        let mut actions = Actions::default();
        let Some(connection) = self.of_key(ticket.connection) else { return false };
        connection.session.handle_welcome(reply, &mut actions);
        let first = actions.replies.freeze();
        connection.outbox_bytes += first.len();
        connection.outbox.push_front(first);
        true
    }

    fn deliver(&mut self, recipients: Recipients, span: Option<Span>, frame: &Bytes) {
        let of = |users: &BTreeMap<UserId, Vec<Slot>>, user: &UserId| users.get(user).cloned().unwrap_or_default();
        let slots = match recipients {
            Recipients::Users(one, other) => [of(&self.users, &one), of(&self.users, &other)].concat(),
            Recipients::Conversation(conversation) => {
                let slots = self.conversations.get(&conversation).cloned().unwrap_or_default();
                return slots.into_iter().for_each(|slot| self.deliver_of_many(slot, conversation, span, frame));
            }
            Recipients::Session(user, session) => {
                let mut slots = of(&self.users, &user);
                slots.retain(|slot| self.connections[slot].session.session() == Some(session));
                slots
            }
        };
        slots.into_iter().for_each(|slot| self.enqueue(slot, frame.clone()));
    }

    /// One of many receivers that has no room goes without, and is told so later.
    fn deliver_of_many(&mut self, slot: Slot, conversation: ConversationId, span: Option<Span>, frame: &Bytes) {
        let connection = self.connections.get_mut(&slot).expect("in the index until it leaves");
        let is_full = connection.outbox_bytes + frame.len() > OUTBOX_BYTES_MAX;
        if is_full || connection.behind.contains_key(&conversation) {
            self.sim.count("push passed by");
            let last = connection.behind.entry(conversation).or_default();
            *last = span.map_or(*last, |span| (*last).max((span.epoch, span.last)));
            return;
        }
        self.enqueue(slot, frame.clone());
    }

    /// Whoever is logged in, or about to be, is told to sync.
    fn tell_missed(&mut self, of: Option<&[UserId]>) {
        self.sim.count("told to sync");
        let frame = framed(&v1::Behind { spread_ms: 100, ..v1::Behind::default() });
        let is_meant = |user: UserId| of.is_none_or(|of| of.contains(&user));
        let slots: Vec<Slot> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.session.user().is_some_and(is_meant))
            .map(|(slot, _)| *slot)
            .collect();
        slots.into_iter().for_each(|slot| self.enqueue(slot, frame.clone()));
    }

    // ---- the turn

    fn end_turn(&mut self) {
        self.links.accept.offer(&mut self.accepted, &mut self.lanes);
        while let Some(accepting) = self.accepted.pop_front() {
            self.settle(&Settled { ticket: accepting.ticket, outcome: Err(Code::Overloaded.into()) });
        }
        for connection in self.connections.values_mut() {
            if connection.session.holds_pushes() && !connection.is_closing {
                continue;
            }
            connection.flush();
            if !connection.behind.is_empty() && connection.outbox_bytes <= OUTBOX_BYTES_MAX / 2 {
                connection.tell_behind();
                connection.flush();
            }
            if connection.is_closing && connection.outbox.is_empty() {
                connection.wire.close();
            }
        }
    }
}

fn framed(behind: &v1::Behind) -> Bytes {
    let mut bytes = BytesMut::new();
    frame::put_message(&mut bytes, Kind::Behind, 0, behind);
    bytes.freeze()
}
