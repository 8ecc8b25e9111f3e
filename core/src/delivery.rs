//! What engines and shards say to each other: tickets up, deliveries and answers down.
//!
//! A shard is known here by a number and a mailbox only. Everything that goes to it travels in batches, and what is the
//! same for many connections is encoded once and shared.

use std::future::Future;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tidegate_proto::v1::{CloseCode, Code};
use tidegate_proto::websocket::{self, Opcode};
use tidegate_proto::{HEAD_BYTES, Kind, frame};
use tokio::sync::oneshot;

use crate::event::{IngestEvent, Membership};
use crate::ids::{
    Attachment, ConversationId, Epoch, LobbyName, MessageId, Millis, Place, RoomId, Seq, SessionId, Span, UserId,
};
use crate::queue::Weigh;
use crate::storm::LiveTail;

/// A shard's number, from 0. At most 64, so that a set of them is one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u8);

/// Which shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardSet(pub u64);

impl ShardSet {
    /// The shards in it, ascending.
    pub fn iter(self) -> impl Iterator<Item = ShardId> {
        (0..64_u8).filter(move |n| self.0 & (1 << n) != 0).map(ShardId)
    }

    /// The set that holds just `shard`.
    #[must_use]
    pub fn only(shard: ShardId) -> Self {
        Self(1 << shard.0)
    }
}

/// One connection: its shard, its slot there, and the slot's generation, so that an answer to a connection that is gone
/// never reaches its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionKey {
    /// Who owns it.
    pub shard: ShardId,
    /// Its place there.
    pub slot: u32,
    /// How often the place was taken before.
    pub generation: u32,
}

/// Who waits for an answer, and under which correlation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The connection.
    pub connection: ConnectionKey,
    /// The command's.
    pub correlation: u16,
}

/// An event on its way into MQ1, with who waits for the confirm.
#[derive(Debug)]
pub struct Accepting {
    /// Who gets the `SendAck`.
    pub ticket: Ticket,
    /// The event.
    pub event: IngestEvent,
    /// The other side of a private conversation, whose existence the session cannot know.
    pub peer: Option<UserId>,
}

impl Weigh for Accepting {
    fn weight_bytes(&self) -> usize {
        self.event.weight_bytes()
    }
}

/// The end of an [`Accepting`].
#[derive(Debug)]
pub struct Settled {
    /// Who waits.
    pub ticket: Ticket,
    /// Confirmed, or why not.
    pub outcome: Result<Confirmed, Refused>,
}

/// Why a command was not carried out, and when to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The code to answer.
    pub code: Code,
    /// How long the client should wait before it repeats the command; 0 where it should not, or at once.
    pub retry_after_ms: u32,
}

impl From<Code> for Refused {
    /// With the wait that is right for most refusals of this code.
    fn from(code: Code) -> Self {
        let retry_after_ms = match code {
            Code::Unavailable | Code::Draining => 1000,
            Code::Overloaded | Code::SlowDown => 100,
            Code::Uncertain => 200,
            _ => 0,
        };
        Self { code, retry_after_ms }
    }
}

/// What was confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmed {
    /// A message is durable.
    Message {
        /// Its id.
        message_id: MessageId,
        /// When it was accepted.
        accepted_at: Millis,
    },
    /// A receipt is durable.
    Receipt,
}

/// A command that needs a backend's answer.
#[derive(Debug)]
pub struct Request {
    /// Who waits.
    pub ticket: Ticket,
    /// For what.
    pub ask: Ask,
}

/// What a [`Request`] asks.
#[derive(Debug)]
pub enum Ask {
    /// Who is this token?
    Login {
        /// The token. A secret.
        token: String,
        /// The device.
        device: String,
        /// Lobbies to watch from the start.
        watch: Vec<LobbyName>,
        /// Where the client stands.
        positions: Vec<SyncFrom>,
        /// The session to go on with; zero if none.
        resume: SessionId,
        /// Where it begins.
        ground: Ground,
    },
    /// What is missing in these conversations?
    Sync {
        /// Who asks.
        user: UserId,
        /// Where the client stands, with what it may read.
        positions: Vec<(SyncFrom, Access)>,
        /// Whether to name the conversations that the positions do not.
        others: Others,
    },
    /// What is newest in a room or lobby the session may read, or what fills a gap in it?
    Pull(Pull),
    /// A page of a conversation the session may read.
    History {
        /// The conversation.
        conversation: ConversationId,
        /// Which page.
        page: crate::ports::Page,
        /// Messages at most.
        size: u32,
        /// Whether to say how far everybody is.
        watermarks: Watermarks,
    },
}

/// Whether somebody looks at what a session is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ground {
    /// Somebody may: it gets every push.
    #[default]
    Foreground,
    /// Nobody does: it gets counts instead of most pushes.
    Background,
}

/// Which messages of a conversation a client pulls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pull {
    /// A room or lobby.
    pub conversation: ConversationId,
    /// What the client has; epoch zero if it does not know it.
    pub after: Option<Place>,
    /// The end of the gap to be filled from `after` on; nothing for what is newest.
    pub before: Option<Seq>,
}

/// Whether an answer names the user's conversations that the question did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// It does, and the session's rooms are looked up anew: what told of a change may have been lost as well.
    Named(RoomsLookUp),
    /// It does not.
    LeftOut,
}

/// A session's number for a look-up of its rooms, so that an answer that is older than what it knows is told from the latest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoomsLookUp(pub u16);

/// Whether an answer says how far everybody has received and read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watermarks {
    /// It does.
    Shown,
    /// It does not.
    LeftOut,
}

/// Where a client stands in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncFrom {
    /// The conversation.
    pub conversation: ConversationId,
    /// The epoch the client knows; zero if it knows nothing of the conversation.
    pub epoch: Epoch,
    /// The last sequence it has shown.
    pub seq: Seq,
}

/// Whether a user may read a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It is in it, or it is a lobby there is.
    Granted,
    /// It is none of its.
    Denied,
}

impl Weigh for Request {
    fn weight_bytes(&self) -> usize {
        match &self.ask {
            Ask::Login { token, device, positions, .. } => {
                256 + token.len() + device.len() + size_of_val(positions.as_slice())
            }
            Ask::Sync { positions, .. } => 128 + size_of_val(positions.as_slice()),
            Ask::History { .. } | Ask::Pull(_) => 128,
        }
    }
}

/// Frames encoded once for all their receivers: a WebSocket header in front of the very bytes that go out over TCP.
#[derive(Clone, Debug)]
pub struct Encoded {
    bytes: Bytes,
    header_bytes: usize,
}

impl Encoded {
    /// Frames a push whose payload is already encoded.
    #[must_use]
    pub fn push(buffer: &mut BytesMut, kind: Kind, payload: &[u8]) -> Self {
        let frame_bytes = HEAD_BYTES + payload.len();
        websocket::put_header(buffer, Opcode::Binary, frame_bytes);
        frame::put_payload(buffer, kind, 0, payload);
        Self { bytes: buffer.split().freeze(), header_bytes: websocket::header_bytes(frame_bytes) }
    }

    /// The bytes for a TCP connection.
    #[must_use]
    pub fn tcp(&self) -> Bytes {
        self.bytes.slice(self.header_bytes..)
    }

    /// The bytes for a WebSocket connection: one binary message.
    #[must_use]
    pub fn websocket(&self) -> Bytes {
        self.bytes.clone()
    }

    /// Bytes kept alive.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never true: a frame has at least its head.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Who on a shard gets a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipients {
    /// Every connection of both users.
    Users(UserId, UserId),
    /// Every connection that is in or watches the conversation.
    Conversation(ConversationId),
    /// One session of a user, if it is here.
    Session(UserId, SessionId),
}

/// What a push tells of new messages: a session in the background is told that instead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum News {
    /// Nothing.
    #[default]
    None,
    /// It holds one, which this user wrote.
    One(UserId),
    /// It holds several: who wrote each.
    Many(Arc<[UserId]>),
    /// It holds none, and says that there are some up to here.
    UpTo(Place),
}

impl News {
    /// Of a push that holds a message by each of these.
    #[must_use]
    pub fn by(authors: &[UserId]) -> Self {
        match authors {
            [] => Self::None,
            [author] => Self::One(*author),
            authors => Self::Many(authors.into()),
        }
    }

    /// Messages in it that somebody else than `user` wrote.
    #[must_use]
    pub fn from_others_than(&self, user: UserId) -> u32 {
        match self {
            Self::None | Self::UpTo(_) => 0,
            Self::One(author) => u32::from(*author != user),
            Self::Many(authors) => {
                let others = authors.iter().filter(|author| **author != user).count();
                u32::try_from(others).expect("as many messages as fit a frame")
            }
        }
    }
}

/// What goes into a shard's mailbox.
#[derive(Debug)]
pub enum ShardInput {
    /// A push.
    Deliver {
        /// To whom.
        recipients: Recipients,
        /// The messages in it; nothing for other pushes.
        span: Option<Span>,
        /// What it tells of new messages.
        news: News,
        /// What.
        frame: Encoded,
    },
    /// Pushes may have been lost on their way to this gateway: those concerned are told to sync.
    PushesMissed {
        /// Whose. `None`: anybody's.
        of: Option<Vec<UserId>>,
    },
    /// A room's membership changed: the index follows, then the members are told.
    Membership {
        /// The room.
        room: RoomId,
        /// Who came or went.
        user: UserId,
        /// Which of the two.
        change: Membership,
        /// The push that says so.
        frame: Encoded,
    },
    /// Events that ended, all of one shard.
    Settled(Vec<Settled>),
    /// The user behind a token is known: from here on the connection gets pushes, held back until [`Self::Welcome`].
    Bind {
        /// The connection.
        connection: ConnectionKey,
        /// Who it is.
        identity: Identity,
        /// Says whether the connection was still there.
        bound: oneshot::Sender<bool>,
    },
    /// The rooms a session's user is a member of: it gets their pushes from here on.
    Rooms {
        /// The connection.
        connection: ConnectionKey,
        /// Which look-up this answers; the login's is the first.
        look_up: RoomsLookUp,
        /// Ascending.
        rooms: Vec<RoomId>,
        /// Told when it is so. Dropped if the connection is gone.
        known: oneshot::Sender<()>,
    },
    /// The login succeeded: the reply goes out first, then what was held back.
    Welcome {
        /// Who waits.
        ticket: Ticket,
        /// The encoded `LoginReply` frame.
        reply: Bytes,
        /// In case the connection is gone: whose presence to take back.
        identity: Identity,
    },
    /// A command failed.
    Refused {
        /// Who waits.
        ticket: Ticket,
        /// Why.
        code: Code,
        /// Also ends the connection.
        close: Option<CloseCode>,
    },
    /// A command's answer, already framed.
    Answer {
        /// Who waits.
        ticket: Ticket,
        /// The frame.
        reply: Bytes,
    },
    /// What a conversation's pulls are answered with from now on, while its storm lasts. `None`: by the reception.
    Tail {
        /// The conversation.
        conversation: ConversationId,
        /// What is newest there.
        tail: Option<LiveTail>,
    },
    /// The answer to a Pull: the same bytes for everybody at its place.
    Pulled {
        /// Who waits.
        ticket: Ticket,
        /// The encoded `PullReply`, without a head.
        payload: Bytes,
    },
    /// Another connection has taken the device over: this one is told and closed.
    Replaced {
        /// The user.
        user: UserId,
        /// The connection.
        attachment: Attachment,
    },
    /// Whose outboxes are fullest?
    Inspect {
        /// Connections at most.
        limit: usize,
        /// Where the answer goes.
        found: oneshot::Sender<Vec<ConnectionView>>,
    },
    /// Every session here is to be told to the hot store as still present.
    RenewPresence,
    /// The process is ending: tell every connection and close it.
    Drain,
}

/// What can be seen of a connection that is logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionView {
    /// Whose it is.
    pub shard: ShardId,
    /// `tcp` or `websocket`.
    pub transport: &'static str,
    /// The user.
    pub user: UserId,
    /// The device.
    pub device: String,
    /// The session.
    pub session: SessionId,
    /// Bytes that wait for the socket.
    pub outbox_bytes: usize,
    /// Whether the socket takes no more at present.
    pub is_blocked: bool,
    /// Pushes that passed it by since it was behind.
    pub skipped_pushes: u64,
    /// Conversations it is behind in.
    pub behind_in: Vec<ConversationId>,
    /// Commands without a reply.
    pub in_flight: u16,
}

/// Who a connection turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub user: UserId,
    /// The session.
    pub session: SessionId,
    /// This connection's hold on it.
    pub attachment: Attachment,
    /// The device.
    pub device: String,
    /// Lobbies to watch from the start.
    pub watch: Vec<LobbyName>,
    /// Where the session begins.
    pub ground: Ground,
}

impl Weigh for ShardInput {
    fn weight_bytes(&self) -> usize {
        const FLAT: usize = 64;
        FLAT + match self {
            Self::Deliver { frame, .. } | Self::Membership { frame, .. } => frame.len(),
            Self::Settled(settled) => settled.len() * size_of::<Settled>(),
            Self::Bind { identity, .. } => identity.device.len(),
            Self::Rooms { rooms, .. } => size_of_val(rooms.as_slice()),
            Self::Welcome { reply, .. } | Self::Answer { reply, .. } => reply.len(),
            Self::Tail { tail, .. } => tail.as_ref().map_or(0, |held| held.tail.rule().pull_bytes_max()),
            Self::Pulled { payload, .. } => payload.len(),
            Self::PushesMissed { of } => of.as_deref().map_or(0, size_of_val),
            Self::Refused { .. } | Self::Replaced { .. } | Self::Inspect { .. } | Self::RenewPresence | Self::Drain => {
                0
            }
        }
    }
}

/// The way into the shards.
pub trait Mailboxes: Clone + Send + Sync + 'static {
    /// How many shards there are.
    fn shards(&self) -> u8;

    /// Puts inputs into one shard's mailbox in order, waiting while it is full. What goes to a shard that has ended is
    /// dropped: its connections are gone.
    fn post(&self, shard: ShardId, inputs: Vec<ShardInput>) -> impl Future<Output = ()> + Send;
}
