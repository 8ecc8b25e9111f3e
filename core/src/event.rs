//! Internal facts, in the past tense, and their encoding for a broker.
//!
//! Sessions produce [`IngestEvent`]s, the ingest engine turns them into [`PushEvent`]s. In one process they travel as
//! these types; over a broker as the Protobuf batches of `schema/tidegate/event/v1/event.proto`.

use bytes::Bytes;
use prost::Message as _;
use tidegate_proto::v1::Gear;
use tidegate_proto::{event::v1 as wire, v1};

use crate::ids::{
    Attachment, ConversationId, Epoch, GatewayId, MessageId, Millis, Place, RoomId, Seq, SessionId, StreamId, UserId,
};

/// A session accepted a message for a conversation it is a member of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Derived from sender and `client_msg_id`.
    pub message_id: MessageId,
    /// Where it belongs.
    pub conversation: ConversationId,
    /// Who wrote it.
    pub sender: UserId,
    /// The connection it came in by; zero if none.
    pub session: SessionId,
    /// The gateway of that connection.
    pub gateway: GatewayId,
    /// When the gateway took it.
    pub accepted_at: Millis,
    /// What the body is.
    pub content_type: v1::ContentType,
    /// The body, at most [`crate::limits::BODY_BYTES_MAX`].
    pub body: Bytes,
}

/// A user's watermarks moved forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiptMoved {
    /// The conversation read.
    pub conversation: ConversationId,
    /// Who read.
    pub user: UserId,
    /// Highest sequence received; zero if unchanged.
    pub delivered: Seq,
    /// Highest sequence read; zero if unchanged.
    pub read: Seq,
}

impl ReceiptMoved {
    /// Whether archives keep it: lobbies have no watermarks, and a private conversation has those of its two users.
    #[must_use]
    pub fn has_standing(&self) -> bool {
        match self.conversation {
            ConversationId::Private { .. } => self.conversation.peer_of(self.user).is_some(),
            ConversationId::Room(_) => true,
            ConversationId::Lobby(_) => false,
        }
    }
}

/// What enters the ingest leg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IngestEvent {
    /// A message to be sequenced, kept and pushed.
    Accepted(Accepted),
    /// A receipt to be kept and shown to others.
    ReceiptMoved(ReceiptMoved),
}

impl IngestEvent {
    /// The conversation whose partition the event belongs to.
    #[must_use]
    pub fn conversation(&self) -> ConversationId {
        match self {
            Self::Accepted(accepted) => accepted.conversation,
            Self::ReceiptMoved(receipt) => receipt.conversation,
        }
    }

    /// Bytes the event holds on to, for bounds: its body and a flat rate for the rest.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        const REST: usize = 96;
        match self {
            Self::Accepted(accepted) => accepted.body.len() + REST,
            Self::ReceiptMoved(_) => REST,
        }
    }
}

/// A message with its place: what the archive keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMessage {
    /// Where it belongs.
    pub conversation: ConversationId,
    /// Its place there.
    pub seq: Seq,
    /// Its identity.
    pub message_id: MessageId,
    /// Who wrote it.
    pub sender: UserId,
    /// When the gateway accepted it.
    pub sent_at: Millis,
    /// What the body is.
    pub content_type: v1::ContentType,
    /// The body.
    pub body: Bytes,
}

impl StoredMessage {
    /// The message as clients see it.
    #[must_use]
    pub fn to_wire(&self, epoch: Epoch) -> v1::Message {
        v1::Message {
            conversation_id: self.conversation.to_string(),
            seq: self.seq.0,
            epoch: epoch.0,
            message_id: Bytes::copy_from_slice(&self.message_id.0),
            sender_id: self.sender.0,
            sent_at_ms: self.sent_at.0,
            content_type: self.content_type.into(),
            body: self.body.clone(),
        }
    }
}

/// What leaves the ingest leg for the gateways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushEvent {
    /// A message got its sequence. Goes to everybody in the conversation, the sender's devices included.
    Sequenced {
        /// Decides who gets it.
        conversation: ConversationId,
        /// The conversation's epoch.
        epoch: Epoch,
        /// For logs and positions.
        seq: Seq,
        /// Who wrote it.
        sender: UserId,
        /// The conversation's gear when it was sequenced: [`Gear::Direct`] or [`Gear::Merged`], or any for the system's.
        gear: Gear,
        /// The encoded `tidegate.v1.Message`, ready to be framed.
        payload: Bytes,
    },
    /// An acknowledged message repeats a `client_msg_id` with other content. Goes to the session that sent it.
    Rejected {
        /// The sender.
        user: UserId,
        /// The session that sent it.
        session: SessionId,
        /// The encoded `tidegate.v1.SendRejected`.
        payload: Bytes,
    },
    /// Somebody's watermark moved. Goes to everybody in the conversation.
    ReceiptMoved(ReceiptMoved),
    /// A room's membership changed. Goes to its members and changes who they are.
    MembershipChanged {
        /// The room.
        conversation: ConversationId,
        /// Who came or went.
        user: UserId,
        /// Which of the two.
        change: Membership,
    },
    /// Something of a room but its members changed: its slow mode. Goes to all gateways, which forget what they know of it.
    RoomChanged(RoomId),
    /// Another connection has taken a user's device over. Goes to the gateway of the one that had it.
    Replaced {
        /// The user.
        user: UserId,
        /// The connection to be closed.
        attachment: Attachment,
    },
    /// The lobby cache holds messages up to a place, to be pulled. Goes to everybody in the conversation.
    Noticed {
        /// Whose messages.
        conversation: ConversationId,
        /// The newest of them.
        latest: Place,
        /// The time over which clients spread their pulls.
        spread_ms: u32,
    },
    /// The conversation's owner has changed how its messages travel. Goes to everybody in the conversation.
    GearChanged {
        /// The conversation.
        conversation: ConversationId,
        /// How they travel now.
        gear: Gear,
        /// The first message it counts for.
        from: Place,
    },
    /// How many batches came before this one; see [`crate::streams`].
    Marked(StreamMark),
}

/// A batch's place in its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamMark {
    /// The stream.
    pub stream: StreamId,
    /// Batches sent before.
    pub before: u64,
    /// Batches sent with this one; the same as `before` if the mark stands alone.
    pub after: u64,
}

impl PushEvent {
    /// Bytes the event holds on to, for bounds: its payload and a flat rate for the rest.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        const REST: usize = 96;
        match self {
            Self::Sequenced { payload, .. } | Self::Rejected { payload, .. } => payload.len() + REST,
            Self::ReceiptMoved(_)
            | Self::MembershipChanged { .. }
            | Self::RoomChanged(_)
            | Self::Replaced { .. }
            | Self::Noticed { .. }
            | Self::GearChanged { .. }
            | Self::Marked(_) => REST,
        }
    }
}

/// Which way a membership changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// The user is a member now.
    Joined,
    /// The user is a member no more.
    Left,
}

/// A broker message that is not a batch of events. It goes to the dead-letter queue with this text as its reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// Not Protobuf of the schema.
    #[error("not a batch of events: {0}")]
    Decode(#[from] prost::DecodeError),
    /// An event without content, or of a newer schema.
    #[error("an event of unknown type")]
    Empty,
    /// A field outside its range.
    #[error("field {0} is out of range")]
    Field(&'static str),
}

/// Encodes events for a broker.
#[must_use]
pub fn encode_ingest(events: &[IngestEvent]) -> Vec<u8> {
    let events = events.iter().map(ingest_to_wire).collect();
    wire::IngestBatch { events }.encode_to_vec()
}

/// Decodes a broker message; bodies are slices of `bytes`.
///
/// # Errors
/// [`EventError`] if any part is not as the schema and the bounds say: a batch is taken whole or not at all.
pub fn decode_ingest(bytes: Bytes) -> Result<Vec<IngestEvent>, EventError> {
    wire::IngestBatch::decode(bytes)?.events.into_iter().map(ingest_from_wire).collect()
}

/// Encodes events for a broker.
#[must_use]
pub fn encode_push(events: &[PushEvent]) -> Vec<u8> {
    let events = events.iter().map(push_to_wire).collect();
    wire::PushBatch { events }.encode_to_vec()
}

/// Decodes a broker message; payloads are slices of `bytes`.
///
/// # Errors
/// [`EventError`] as for [`decode_ingest`].
pub fn decode_push(bytes: Bytes) -> Result<Vec<PushEvent>, EventError> {
    wire::PushBatch::decode(bytes)?.events.into_iter().map(push_from_wire).collect()
}

fn ingest_to_wire(event: &IngestEvent) -> wire::IngestEvent {
    let event = match event {
        IngestEvent::Accepted(a) => wire::ingest_event::Event::Accepted(wire::Accepted {
            message_id: Bytes::copy_from_slice(&a.message_id.0),
            conversation_id: a.conversation.to_string(),
            sender_id: a.sender.0,
            session_id: a.session.0,
            gateway_id: a.gateway.to_string(),
            accepted_at_ms: a.accepted_at.0,
            content_type: a.content_type.into(),
            body: a.body.clone(),
        }),
        IngestEvent::ReceiptMoved(r) => wire::ingest_event::Event::ReceiptMoved(receipt_to_wire(r)),
    };
    wire::IngestEvent { event: Some(event) }
}

fn ingest_from_wire(event: wire::IngestEvent) -> Result<IngestEvent, EventError> {
    match event.event.ok_or(EventError::Empty)? {
        wire::ingest_event::Event::Accepted(a) => {
            if a.body.len() > crate::limits::BODY_BYTES_MAX {
                return Err(EventError::Field("body"));
            }
            Ok(IngestEvent::Accepted(Accepted {
                message_id: MessageId::from_wire(&a.message_id).ok_or(EventError::Field("message_id"))?,
                conversation: conversation(&a.conversation_id)?,
                sender: author(a.sender_id)?,
                session: SessionId(a.session_id),
                gateway: a.gateway_id.parse().map_err(|_| EventError::Field("gateway_id"))?,
                accepted_at: millis(a.accepted_at_ms)?,
                content_type: v1::ContentType::try_from(a.content_type)
                    .map_err(|_| EventError::Field("content_type"))?,
                body: a.body,
            }))
        }
        wire::ingest_event::Event::ReceiptMoved(r) => receipt_from_wire(&r).map(IngestEvent::ReceiptMoved),
    }
}

fn push_to_wire(event: &PushEvent) -> wire::PushEvent {
    let event = match event {
        PushEvent::Sequenced { conversation, epoch, seq, sender, gear, payload } => {
            wire::push_event::Event::Sequenced(wire::Sequenced {
                conversation_id: conversation.to_string(),
                epoch: epoch.0,
                seq: seq.0,
                sender_id: sender.0,
                gear: (*gear).into(),
                message_payload: payload.clone(),
            })
        }
        PushEvent::Noticed { conversation, latest, spread_ms } => wire::push_event::Event::Noticed(wire::Noticed {
            conversation_id: conversation.to_string(),
            epoch: latest.epoch.0,
            latest_seq: latest.seq.0,
            spread_ms: *spread_ms,
        }),
        PushEvent::GearChanged { conversation, gear, from } => {
            wire::push_event::Event::GearChanged(wire::GearChanged {
                conversation_id: conversation.to_string(),
                epoch: from.epoch.0,
                gear: (*gear).into(),
                from_seq: from.seq.0,
            })
        }
        PushEvent::Replaced { user, attachment } => {
            wire::push_event::Event::Replaced(wire::Replaced { user_id: user.0, attachment: attachment.0 })
        }
        PushEvent::Marked(mark) => wire::push_event::Event::Marked(wire::StreamMark {
            stream_id: mark.stream.0,
            before: mark.before,
            after: mark.after,
        }),
        PushEvent::Rejected { user, session, payload } => wire::push_event::Event::Rejected(wire::Rejected {
            user_id: user.0,
            session_id: session.0,
            rejected_payload: payload.clone(),
        }),
        PushEvent::ReceiptMoved(receipt) => wire::push_event::Event::ReceiptMoved(receipt_to_wire(receipt)),
        PushEvent::MembershipChanged { conversation, user, change } => {
            wire::push_event::Event::MembershipChanged(wire::MembershipChanged {
                conversation_id: conversation.to_string(),
                user_id: user.0,
                joined: *change == Membership::Joined,
            })
        }
        PushEvent::RoomChanged(room) => {
            let conversation_id = ConversationId::Room(*room).to_string();
            wire::push_event::Event::RoomChanged(wire::RoomChanged { conversation_id })
        }
    };
    wire::PushEvent { event: Some(event) }
}

fn push_from_wire(event: wire::PushEvent) -> Result<PushEvent, EventError> {
    Ok(match event.event.ok_or(EventError::Empty)? {
        wire::push_event::Event::Sequenced(s) => PushEvent::Sequenced {
            conversation: conversation(&s.conversation_id)?,
            epoch: Epoch(s.epoch),
            seq: Seq(s.seq),
            sender: author(s.sender_id)?,
            gear: gear(s.gear)?,
            payload: s.message_payload,
        },
        wire::push_event::Event::Noticed(n) => PushEvent::Noticed {
            conversation: conversation(&n.conversation_id)?,
            latest: Place { epoch: Epoch(n.epoch), seq: Seq(n.latest_seq) },
            spread_ms: n.spread_ms,
        },
        wire::push_event::Event::GearChanged(g) => PushEvent::GearChanged {
            conversation: conversation(&g.conversation_id)?,
            gear: gear(g.gear)?,
            from: Place { epoch: Epoch(g.epoch), seq: Seq(g.from_seq) },
        },
        wire::push_event::Event::Replaced(r) => {
            PushEvent::Replaced { user: user(r.user_id)?, attachment: Attachment(r.attachment) }
        }
        wire::push_event::Event::Marked(m) => {
            PushEvent::Marked(StreamMark { stream: StreamId(m.stream_id), before: m.before, after: m.after })
        }
        wire::push_event::Event::Rejected(r) => PushEvent::Rejected {
            user: user(r.user_id)?,
            session: SessionId(r.session_id),
            payload: r.rejected_payload,
        },
        wire::push_event::Event::ReceiptMoved(r) => PushEvent::ReceiptMoved(receipt_from_wire(&r)?),
        wire::push_event::Event::RoomChanged(r) => match conversation(&r.conversation_id)? {
            ConversationId::Room(room) => PushEvent::RoomChanged(room),
            _ => return Err(EventError::Field("conversation_id")),
        },
        wire::push_event::Event::MembershipChanged(m) => PushEvent::MembershipChanged {
            conversation: conversation(&m.conversation_id)?,
            user: user(m.user_id)?,
            change: if m.joined { Membership::Joined } else { Membership::Left },
        },
    })
}

fn receipt_to_wire(receipt: &ReceiptMoved) -> wire::ReceiptMoved {
    wire::ReceiptMoved {
        conversation_id: receipt.conversation.to_string(),
        user_id: receipt.user.0,
        delivered_seq: receipt.delivered.0,
        read_seq: receipt.read.0,
    }
}

fn receipt_from_wire(receipt: &wire::ReceiptMoved) -> Result<ReceiptMoved, EventError> {
    Ok(ReceiptMoved {
        conversation: conversation(&receipt.conversation_id)?,
        user: user(receipt.user_id)?,
        delivered: Seq(receipt.delivered_seq),
        read: Seq(receipt.read_seq),
    })
}

fn conversation(text: &str) -> Result<ConversationId, EventError> {
    text.parse().map_err(|_| EventError::Field("conversation_id"))
}

/// Archives keep times in signed 64 bits.
fn millis(at: u64) -> Result<Millis, EventError> {
    if i64::try_from(at).is_err() { Err(EventError::Field("accepted_at_ms")) } else { Ok(Millis(at)) }
}

fn gear(number: i32) -> Result<Gear, EventError> {
    Gear::try_from(number).map_err(|_| EventError::Field("gear"))
}

/// A user, or the system.
fn author(id: u64) -> Result<UserId, EventError> {
    if id == UserId::SYSTEM.0 { Ok(UserId::SYSTEM) } else { user(id) }
}

/// Archives count users in signed 64 bits, from 1.
fn user(id: u64) -> Result<UserId, EventError> {
    if id == 0 || i64::try_from(id).is_err() {
        return Err(EventError::Field("user_id"));
    }
    Ok(UserId(id))
}
