//! The session: one device's logical presence, as a state machine without I/O.
//!
//! In go a connection's frames and the engines' answers, with the time; out come [`Actions`]: replies for this connection,
//! events for the ingest leg, requests for the backends, changes of interest for the shard's index. The states and what
//! each input gets in them are the table of `proto/PROTOCOL.md`, "States".
//!
//! Always: bytes of a client never panic it; every command gets exactly one reply; nothing is accepted before a login or
//! for a conversation the user is not in.

mod command;
mod pulling;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tidegate_proto::v1::{self, CloseCode, Code};
use tidegate_proto::{Frame, FrameError, Kind, OPENING_BYTES, Opening, frame};

use crate::delivery::{
    Accepting, Confirmed, ConnectionKey, Ground, Identity, Pull, Refused, Request, RoomsLookUp, Settled, Ticket,
};
use crate::event::Membership;
use crate::ids::{Attachment, ConversationId, GatewayId, LobbyName, Millis, RoomId, SessionId, UserId};
use crate::limits;
use crate::ports::Hold;

pub use pulling::Brought;
use pulling::Pulling;

/// What every session of a gateway shares.
#[derive(Clone, Debug)]
pub struct SessionContext {
    /// This gateway.
    pub gateway: GatewayId,
    /// Lobbies there are.
    pub lobbies: Vec<LobbyName>,
    /// Largest body in bytes, at most [`limits::BODY_BYTES_MAX`].
    pub body_bytes_max: usize,
    /// Commands without a reply per connection.
    pub in_flight_max: u16,
}

/// One connection's session.
#[derive(Debug, Default)]
pub struct Session {
    state: State,
    protocol_errors: u8,
}

#[derive(Debug, Default)]
enum State {
    /// The eight bytes of the opening have not come yet.
    #[default]
    Opening,
    /// Waits for a Login.
    Anonymous,
    /// A Login is with the backends. `bound`: the user is known and pushes are being held back for the reply.
    LoggingIn { bound: Option<Box<Member>> },
    /// Logged in.
    Ready(Box<Member>),
    /// Nothing more is read.
    Closed,
}

/// What a logged-in session knows about itself. Boxed: a connection that has not logged in does not pay for it.
#[derive(Debug)]
struct Member {
    user: UserId,
    session: SessionId,
    attachment: Attachment,
    device: Box<str>,
    in_flight: u16,
    /// Ascending. As the archive said at the latest look-up, and as events have said since.
    rooms: Vec<RoomId>,
    /// The latest look-up, and the rooms that events told of since it began: an answer does not know these changes.
    look_up: RoomsLookUp,
    changed_rooms: Vec<RoomId>,
    watching: Vec<LobbyName>,
    ground: Ground,
    pulling: Pulling,
}

/// A change of what a connection is told about; the shard's index follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// The connection begins to get the conversation's pushes.
    Begins(ConversationId),
    /// It no longer gets them.
    Ends(ConversationId),
}

/// Whose presence ends with a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departed {
    /// The user.
    pub user: UserId,
    /// The device.
    pub device: Box<str>,
    /// The connection that held it.
    pub attachment: Attachment,
}

/// What an input led to. One value is reused for all connections of a shard and emptied after each.
#[derive(Debug, Default)]
pub struct Actions {
    /// Frames for this connection, in order.
    pub replies: BytesMut,
    /// Events for the ingest leg.
    pub accepted: VecDeque<Accepting>,
    /// Questions to the backends.
    pub requests: VecDeque<Request>,
    /// What the shard answers from its memory, if it has it there.
    pub pulls: VecDeque<(Ticket, Pull)>,
    /// Changes for the shard's index.
    pub interests: Vec<Interest>,
    /// What is kept for whoever resumes the session changed.
    pub is_hold_changed: bool,
    /// The session went to the background, or came back, or stays where it was.
    pub ground: Option<Ground>,
    /// Ends the connection after the replies went out; the Close frame is already among them.
    pub close: Option<CloseCode>,
}

impl Actions {
    /// Appends a reply.
    pub fn reply(&mut self, kind: Kind, correlation: u16, message: &impl prost::Message) {
        frame::put_message(&mut self.replies, kind, correlation, message);
    }

    /// Appends an Error reply.
    pub fn refuse(&mut self, correlation: u16, code: Code, text: &str) {
        self.refuse_for(correlation, code, text, Refused::from(code).retry_after_ms);
    }

    /// Appends an Error reply that says how long to wait.
    pub fn refuse_for(&mut self, correlation: u16, code: Code, text: &str, retry_after_ms: u32) {
        let error = v1::Error { code: code.into(), text: text.to_owned(), retry_after_ms };
        self.reply(Kind::Error, correlation, &error);
    }

    /// Appends the Close frame and ends the connection. The first reason stands.
    pub fn close(&mut self, code: CloseCode, text: &str) {
        if self.close.is_none() {
            let close = v1::Close { code: code.into(), text: text.to_owned() };
            self.reply(Kind::Close, 0, &close);
            self.close = Some(code);
        }
    }
}

/// Whether the kind is a command of those who are logged in.
fn is_command(kind: Kind) -> bool {
    matches!(kind, Kind::Send | Kind::Receipt | Kind::History | Kind::Watch | Kind::Sync | Kind::Pull)
}

impl Session {
    /// Takes the first eight bytes of a connection.
    pub fn handle_opening(&mut self, bytes: [u8; OPENING_BYTES], actions: &mut Actions) {
        match Opening::parse(bytes) {
            Ok(_) => self.state = State::Anonymous,
            Err(error) => self.end(error.close_code(), &error.to_string(), actions),
        }
    }

    /// Whether the opening is still to come.
    #[must_use]
    pub fn expects_opening(&self) -> bool {
        matches!(self.state, State::Opening)
    }

    /// Whether the login is complete.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready(_))
    }

    /// Whether pushes have to wait for the reply to Login.
    #[must_use]
    pub fn holds_pushes(&self) -> bool {
        matches!(self.state, State::LoggingIn { .. })
    }

    /// The byte stream can no longer be cut into frames.
    pub fn handle_frame_error(&mut self, error: FrameError, actions: &mut Actions) {
        self.end(error.close_code(), &error.to_string(), actions);
    }

    /// Takes one frame. `key` goes into the tickets of what it starts.
    pub fn handle_frame(
        &mut self,
        now: Millis,
        key: ConnectionKey,
        frame: Frame,
        context: &SessionContext,
        actions: &mut Actions,
    ) {
        let ticket = Ticket { connection: key, correlation: frame.head.correlation };
        let kind = Kind::try_from(i32::from(frame.head.kind)).unwrap_or(Kind::Unspecified);
        let outcome = match (kind, &mut self.state) {
            (_, State::Opening | State::Closed) => return,
            (Kind::Ping, _) => {
                actions.reply(Kind::Pong, ticket.correlation, &v1::Pong { server_time_ms: now.0 });
                return;
            }
            (Kind::Login, State::Anonymous) => command::login(&frame.payload, context).map(|ask| {
                actions.requests.push_back(Request { ticket, ask });
                self.state = State::LoggingIn { bound: None };
            }),
            (Kind::Login, _) => Err(Refusal::new(Code::AlreadyLoggedIn, "this connection is logged in")),
            (command, State::Ready(member)) if is_command(command) => {
                member.handle_command(now, command, ticket, frame.payload, context, actions)
            }
            (command, _) if is_command(command) => {
                Err(Refusal::new(Code::NotLoggedIn, "log in first and wait for the reply"))
            }
            _ => Err(Refusal::new(Code::UnknownKind, "not a command of this version")),
        };
        if let Err(refusal) = outcome {
            actions.refuse(ticket.correlation, refusal.code, refusal.text);
            if refusal.is_protocol_error() {
                self.protocol_errors += 1;
                if self.protocol_errors >= limits::PROTOCOL_ERRORS_MAX {
                    self.end(CloseCode::TooManyErrors, "too many invalid frames on one connection", actions);
                }
            }
        }
    }

    /// The token's user is known; pushes may arrive from now on and are held back. `false` if no login is going on.
    pub fn handle_bind(&mut self, identity: &Identity, interests: &mut Vec<Interest>) -> bool {
        let State::LoggingIn { bound: bound @ None } = &mut self.state else {
            return false;
        };
        interests.extend(identity.watch.iter().map(|lobby| Interest::Begins(ConversationId::Lobby(*lobby))));
        *bound = Some(Box::new(Member {
            user: identity.user,
            session: identity.session,
            attachment: identity.attachment,
            device: identity.device.as_str().into(),
            in_flight: 0,
            rooms: Vec::new(),
            look_up: RoomsLookUp::default(),
            changed_rooms: Vec::new(),
            watching: identity.watch.clone(),
            ground: identity.ground,
            pulling: Pulling::default(),
        }));
        true
    }

    /// The login is complete; its reply is already encoded.
    pub fn handle_welcome(&mut self, reply: &[u8], actions: &mut Actions) {
        if let State::LoggingIn { bound: bound @ Some(_) } = &mut self.state {
            let member = bound.take().expect("matched Some");
            self.state = State::Ready(member);
            actions.replies.extend_from_slice(reply);
        }
    }

    /// A request failed. A failed Login gives back what `handle_bind` registered and may be tried again.
    pub fn handle_refused(
        &mut self,
        correlation: u16,
        code: Code,
        close: Option<CloseCode>,
        actions: &mut Actions,
    ) -> Option<Departed> {
        let mut departed = None;
        match &mut self.state {
            State::LoggingIn { bound } => {
                departed = bound.take().map(|member| (*member).depart(&mut actions.interests));
                self.state = State::Anonymous;
            }
            State::Ready(member) => member.in_flight = member.in_flight.saturating_sub(1),
            _ => return None,
        }
        actions.refuse(correlation, code, refusal_text(code));
        if let Some(close) = close {
            self.end(close, close.text(), actions);
        }
        departed
    }

    /// A request was answered.
    pub fn handle_answer(&mut self, reply: &[u8], actions: &mut Actions) {
        if let State::Ready(member) = &mut self.state {
            member.in_flight = member.in_flight.saturating_sub(1);
            actions.replies.extend_from_slice(reply);
        }
    }

    /// A pull is about to be answered from memory.
    ///
    /// # Errors
    /// How long the client has to wait, if it comes too early.
    pub fn charge_pull(
        &mut self,
        now: Millis,
        conversation: ConversationId,
        spread: Duration,
        brought: Brought,
    ) -> Result<(), Duration> {
        let State::Ready(member) = &mut self.state else { return Ok(()) };
        member.pulling.charge(now, conversation, spread, brought)
    }

    /// Whether the client pulls the conversation again without being told that there is something.
    #[must_use]
    pub fn pulls_on(&self, now: Millis, conversation: &ConversationId) -> bool {
        let State::Ready(member) = &self.state else { return false };
        member.pulling.goes_on(now, conversation)
    }

    /// A pull was answered; `true` if the answer is still wanted.
    pub fn handle_pulled(&mut self) -> bool {
        let State::Ready(member) = &mut self.state else { return false };
        member.in_flight = member.in_flight.saturating_sub(1);
        true
    }

    /// An event this session started was confirmed, or was not.
    pub fn handle_settled(&mut self, settled: &Settled, actions: &mut Actions) {
        let State::Ready(member) = &mut self.state else {
            return;
        };
        member.in_flight = member.in_flight.saturating_sub(1);
        let correlation = settled.ticket.correlation;
        match settled.outcome {
            Ok(Confirmed::Message { message_id, accepted_at }) => {
                let message_id = Bytes::copy_from_slice(&message_id.0);
                let ack = v1::SendAck { message_id, accepted_at_ms: accepted_at.0 };
                actions.reply(Kind::SendAck, correlation, &ack);
            }
            Ok(Confirmed::Receipt) => actions.reply(Kind::ReceiptAck, correlation, &v1::ReceiptAck {}),
            Err(refused) => {
                actions.refuse_for(correlation, refused.code, refusal_text(refused.code), refused.retry_after_ms);
            }
        }
    }

    /// The rooms of the user, `rooms` ascending, as the archive had them when the look-up was made. Events that came
    /// meanwhile are newer. An answer to any but the latest look-up is void.
    pub fn handle_rooms(&mut self, look_up: RoomsLookUp, rooms: &[RoomId], interests: &mut Vec<Interest>) {
        let (State::Ready(member) | State::LoggingIn { bound: Some(member) }) = &mut self.state else {
            return;
        };
        if look_up != member.look_up {
            return;
        }
        let mut now: Vec<RoomId> = rooms.iter().copied().filter(|room| !member.changed_rooms.contains(room)).collect();
        now.extend(member.changed_rooms.iter().filter(|room| member.rooms.binary_search(room).is_ok()));
        now.sort_unstable();
        now.dedup();
        let ended = member.rooms.iter().filter(|room| now.binary_search(room).is_err());
        interests.extend(ended.map(|room| Interest::Ends(ConversationId::Room(*room))));
        let begun = now.iter().filter(|room| member.rooms.binary_search(room).is_err());
        interests.extend(begun.map(|room| Interest::Begins(ConversationId::Room(*room))));
        member.rooms = now;
    }

    /// A room's membership changed, and this user is the one who came or went.
    pub fn handle_membership(&mut self, room: RoomId, change: Membership, interests: &mut Vec<Interest>) {
        let (State::Ready(member) | State::LoggingIn { bound: Some(member) }) = &mut self.state else {
            return;
        };
        member.note_changed(room);
        match (change, member.rooms.binary_search(&room)) {
            (Membership::Joined, Err(at)) => {
                member.rooms.insert(at, room);
                interests.push(Interest::Begins(ConversationId::Room(room)));
            }
            (Membership::Left, Ok(at)) => {
                member.rooms.remove(at);
                interests.push(Interest::Ends(ConversationId::Room(room)));
            }
            _ => {}
        }
    }

    /// Ends the session for a reason of the gateway's: idle, drain, slow consumer.
    pub fn handle_end(&mut self, code: CloseCode, text: &str, actions: &mut Actions) {
        self.end(code, text, actions);
    }

    /// The connection is gone: gives back what the shard has registered for it, and whose presence ends.
    pub fn handle_gone(&mut self, interests: &mut Vec<Interest>) -> Option<Departed> {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Ready(member) | State::LoggingIn { bound: Some(member) } => Some((*member).depart(interests)),
            _ => None,
        }
    }

    /// Commands that have no reply yet.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.member().map_or(0, |member| member.in_flight)
    }

    /// The user, once known.
    #[must_use]
    pub fn user(&self) -> Option<UserId> {
        self.member().map(|member| member.user)
    }

    /// The session's id, once known.
    #[must_use]
    pub fn session(&self) -> Option<SessionId> {
        self.member().map(|member| member.session)
    }

    /// The connection's hold on the session, once known.
    #[must_use]
    pub fn attachment(&self) -> Option<Attachment> {
        self.member().map(|member| member.attachment)
    }

    /// Where the session is; in the foreground as long as there is none.
    #[must_use]
    pub fn ground(&self) -> Ground {
        self.member().map_or_else(Ground::default, |member| member.ground)
    }

    /// What the hot store knows of a session that is logged in.
    #[must_use]
    pub fn hold(&self) -> Option<Hold> {
        let State::Ready(member) = &self.state else { return None };
        Some(Hold {
            user: member.user,
            device: member.device.as_ref().to_owned(),
            session: member.session,
            attachment: member.attachment,
            watching: member.watching.clone(),
        })
    }

    fn member(&self) -> Option<&Member> {
        match &self.state {
            State::Ready(member) | State::LoggingIn { bound: Some(member) } => Some(member),
            _ => None,
        }
    }

    /// The state stays as it is, for `handle_gone`; the connection reads no more once `actions.close` is set.
    fn end(&mut self, code: CloseCode, text: &str, actions: &mut Actions) {
        actions.close(code, text);
        if self.member().is_none() {
            self.state = State::Closed;
        }
    }
}

/// Changes that a look-up in progress is held against; with more of them its answer is void.
const CHANGED_ROOMS_MAX: usize = 64;

impl Member {
    /// A look-up of the rooms begins.
    fn begin_look_up(&mut self) -> RoomsLookUp {
        self.look_up = RoomsLookUp(self.look_up.0.wrapping_add(1));
        self.changed_rooms.clear();
        self.look_up
    }

    fn note_changed(&mut self, room: RoomId) {
        if self.changed_rooms.contains(&room) {
            return;
        }
        if self.changed_rooms.len() >= CHANGED_ROOMS_MAX {
            self.begin_look_up();
        }
        self.changed_rooms.push(room);
    }

    fn depart(self, interests: &mut Vec<Interest>) -> Departed {
        interests.extend(self.rooms.iter().map(|room| Interest::Ends(ConversationId::Room(*room))));
        interests.extend(self.watching.iter().map(|lobby| Interest::Ends(ConversationId::Lobby(*lobby))));
        Departed { user: self.user, device: self.device, attachment: self.attachment }
    }

    fn may_use(&self, conversation: ConversationId, context: &SessionContext) -> bool {
        match conversation {
            ConversationId::Private { low, high } => self.user == low || self.user == high,
            ConversationId::Room(room) => self.rooms.binary_search(&room).is_ok(),
            ConversationId::Lobby(lobby) => context.lobbies.contains(&lobby),
        }
    }
}

/// Why a command is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refusal {
    code: Code,
    text: &'static str,
}

impl Refusal {
    const fn new(code: Code, text: &'static str) -> Self {
        Self { code, text }
    }

    /// A client that sends these is broken, not unlucky.
    fn is_protocol_error(self) -> bool {
        matches!(self.code, Code::BadPayload | Code::UnknownKind)
    }
}

/// What an engine's code says to people.
fn refusal_text(code: Code) -> &'static str {
    match code {
        Code::Unavailable => "a service is not available, try again",
        Code::Overloaded => "too much at once, try again",
        Code::SlowDown => "more than may be sent here, wait as long as stated",
        Code::Uncertain => "it may or may not have happened, repeat it with the same client_msg_id",
        Code::Draining => "this gateway is going away, reconnect",
        Code::UnknownUser => "there is no such user",
        Code::TokenInvalid => "the token is not known",
        Code::TokenExpired => "the token's time is over",
        Code::NotMember => "the conversation is none of yours",
        _ => "the server failed",
    }
}

#[cfg(test)]
mod tests;
