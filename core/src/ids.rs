//! Names of things. Every id is a type of its own, so that a user is never taken for a room.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;

use crate::limits::{CLIENT_MSG_ID_BYTES_MAX, GATEWAY_ID_BYTES_MAX, LATE_LOGIN_MS, LOBBY_ID_BYTES_MAX};

/// A registered user; numbered by the archive from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(pub u64);

impl UserId {
    /// Writes what no user wrote: announcements. It has no account and no connection.
    pub const SYSTEM: Self = Self(0);
}

/// A room; numbered by the archive from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoomId(pub u64);

/// One device's logical presence. Random, unique over all gateways; zero means "no session".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// One engine's numbered batches of pushes for one target, for one life of that engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// One connection's hold on its session, new with every login: whoever resumes a session takes it over. Of two, the later
/// login's is greater, as far as the gateways' clocks agree: so a hot store that went back to an earlier state is told from
/// a device that another connection has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attachment(pub u64);

impl Attachment {
    /// Bits below the time, which tell apart logins of one millisecond. The rest lasts until the year 2527.
    const RANDOM_BITS: u32 = 20;

    /// The hold of a login at that time.
    #[must_use]
    pub fn new(now: Millis, random: u64) -> Self {
        Self((now.0 << Self::RANDOM_BITS) | (random & ((1 << Self::RANDOM_BITS) - 1)))
    }

    /// Whether this login was later than the other by more than chance and the gateways' clocks account for.
    #[must_use]
    pub fn is_well_after(self, other: Self) -> bool {
        (self.0 >> Self::RANDOM_BITS) > (other.0 >> Self::RANDOM_BITS) + LATE_LOGIN_MS
    }
}

/// Position of a message in its conversation: 1, 2, 3 and so on. Zero stands before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

impl Seq {
    /// The sequence that follows.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Identity of a conversation's storage life: sequences are comparable only within one epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

/// Where a message is in its conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The conversation's epoch.
    pub epoch: Epoch,
    /// The sequence.
    pub seq: Seq,
}

/// Messages of a conversation that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The conversation's epoch.
    pub epoch: Epoch,
    /// The first one's sequence.
    pub first: Seq,
    /// The last one's.
    pub last: Seq,
}

impl From<Place> for Span {
    fn from(Place { epoch, seq }: Place) -> Self {
        Self { epoch, first: seq, last: seq }
    }
}

/// Milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

/// An independent slice of the ingest leg; a conversation lives wholly in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(pub u32);

/// One running gateway instance: 1 to 32 bytes of `[A-Za-z0-9._-]`, part of a queue's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayId(Arc<str>);

impl GatewayId {
    /// The id's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GatewayId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if text.is_empty() || text.len() > GATEWAY_ID_BYTES_MAX || !text.bytes().all(legal) {
            return Err(IdError::Gateway);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A message's identity, the same for every repetition of (sender, `client_msg_id`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub [u8; 16]);

impl MessageId {
    /// Derives the id: the first 16 bytes of BLAKE3 over the sender (8 bytes, big-endian) and the client's id.
    #[must_use]
    pub fn derive(sender: UserId, client_msg_id: &ClientMsgId) -> Self {
        let mut input = [0; 8 + CLIENT_MSG_ID_BYTES_MAX];
        let (head, tail) = input.split_at_mut(8);
        head.copy_from_slice(&sender.0.to_be_bytes());
        let client = client_msg_id.as_bytes();
        tail[..client.len()].copy_from_slice(client);
        let digest = blake3::hash(&input[..8 + client.len()]);
        let (id, _) = digest.as_bytes().split_at(16);
        Self(id.try_into().expect("split at 16"))
    }

    /// Reads the sixteen bytes of the wire. `None` for any other length.
    #[must_use]
    pub fn from_wire(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageId({self})")
    }
}

/// The sender's idempotency key: 1 to 64 bytes of its choice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientMsgId(Bytes);

impl ClientMsgId {
    /// Takes the bytes of the wire.
    ///
    /// # Errors
    /// [`IdError::ClientMsgId`] if there are none or too many.
    pub fn new(bytes: Bytes) -> Result<Self, IdError> {
        if bytes.is_empty() || bytes.len() > CLIENT_MSG_ID_BYTES_MAX {
            return Err(IdError::ClientMsgId);
        }
        Ok(Self(bytes))
    }

    /// The bytes as the client sent them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A lobby's name: `lobby_` and 1 to 25 bytes of `[a-z0-9_-]`. Kept inline, so that a conversation id is plain data.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LobbyName {
    bytes: [u8; LOBBY_ID_BYTES_MAX],
    len: u8,
}

impl LobbyName {
    /// The whole name, prefix included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).expect("checked to be ASCII when made")
    }
}

impl FromStr for LobbyName {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let rest = text.strip_prefix("lobby_").ok_or(IdError::Conversation)?;
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
        if rest.is_empty() || text.len() > LOBBY_ID_BYTES_MAX || !rest.bytes().all(legal) {
            return Err(IdError::Conversation);
        }
        let mut bytes = [0; LOBBY_ID_BYTES_MAX];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self { bytes, len: u8::try_from(text.len()).expect("bounded by LOBBY_ID_BYTES_MAX") })
    }
}

impl fmt::Debug for LobbyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An ordered stream of messages. Its text is `p_<lower user>_<higher user>`, `r_<room>` or the lobby's name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConversationId {
    /// Two users; `low < high`.
    Private {
        /// The smaller user id.
        low: UserId,
        /// The greater user id.
        high: UserId,
    },
    /// The members of a room.
    Room(RoomId),
    /// Everybody; has neither members nor unread counts.
    Lobby(LobbyName),
}

impl ConversationId {
    /// The private conversation of two users. `None` if they are the same.
    #[must_use]
    pub fn private(a: UserId, b: UserId) -> Option<Self> {
        (a != b).then(|| Self::Private { low: a.min(b), high: a.max(b) })
    }

    /// For a private conversation, the one who is not `user`. `None` if `user` is not in it, or it is not private.
    #[must_use]
    pub fn peer_of(&self, user: UserId) -> Option<UserId> {
        match *self {
            Self::Private { low, high } if user == low => Some(high),
            Self::Private { low, high } if user == high => Some(low),
            _ => None,
        }
    }

    /// The slice of the ingest leg this conversation lives in. Stable over releases: FNV-1a over the text.
    #[must_use]
    pub fn partition(&self, partitions: u32) -> Partition {
        struct Fnv(u64);
        impl fmt::Write for Fnv {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                for byte in text.bytes() {
                    self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
                }
                Ok(())
            }
        }
        let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
        fmt::write(&mut hash, format_args!("{self}")).expect("Fnv takes any text");
        let folded = hash.0 ^ (hash.0 >> 32);
        Partition(u32::try_from(folded % u64::from(partitions.max(1))).expect("a remainder of a u32"))
    }
}

impl fmt::Display for ConversationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Private { low, high } => write!(f, "p_{}_{}", low.0, high.0),
            Self::Room(room) => write!(f, "r_{}", room.0),
            Self::Lobby(name) => f.write_str(name.as_str()),
        }
    }
}

impl fmt::Debug for ConversationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for ConversationId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if let Some(rest) = text.strip_prefix("p_") {
            let (low, high) = rest.split_once('_').ok_or(IdError::Conversation)?;
            let (low, high) = (UserId(canonical_number(low)?), UserId(canonical_number(high)?));
            return if low < high { Ok(Self::Private { low, high }) } else { Err(IdError::Conversation) };
        }
        if let Some(rest) = text.strip_prefix("r_") {
            return Ok(Self::Room(RoomId(canonical_number(rest)?)));
        }
        text.parse().map(Self::Lobby)
    }
}

/// Digits without sign or leading zero, so that a conversation has one text only; above zero and within i64, as archives count.
fn canonical_number(text: &str) -> Result<u64, IdError> {
    if !text.bytes().all(|b| b.is_ascii_digit()) || text.starts_with('0') {
        return Err(IdError::Conversation);
    }
    text.parse::<i64>().ok().and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0).ok_or(IdError::Conversation)
}

/// Why a text or bytes are no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not a conversation id.
    #[error("not a conversation id")]
    Conversation,
    /// Not a gateway id.
    #[error("a gateway id is 1 to {GATEWAY_ID_BYTES_MAX} letters, digits, dots, dashes or underscores")]
    Gateway,
    /// Not a `client_msg_id`.
    #[error("a client_msg_id is 1 to {CLIENT_MSG_ID_BYTES_MAX} bytes")]
    ClientMsgId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_id_has_exactly_one_text() {
        for text in ["p_1_2", "r_7", "lobby_main", "p_10_9223372036854775807"] {
            assert_eq!(text.parse::<ConversationId>().map(|id| id.to_string()), Ok(text.to_owned()));
        }
        let wrong = ["", "p_", "p_2_1", "p_1_1", "p_01_2", "p_1_2_3", "p_0_1", "p_+1_2", "r_", "r_0", "r_-1", "lobby_"];
        let wrong =
            wrong.into_iter().chain(["lobby_MAIN", "lobby_abcdefghijklmnopqrstuvwxyz", "x", "r_9223372036854775808"]);
        for text in wrong {
            assert_eq!(text.parse::<ConversationId>(), Err(IdError::Conversation), "{text:?}");
        }
    }

    #[test]
    fn repetitions_share_a_message_id_and_senders_do_not() {
        let key = ClientMsgId::new(Bytes::from_static(b"k1")).expect("two bytes");
        assert_eq!(MessageId::derive(UserId(1), &key), MessageId::derive(UserId(1), &key));
        assert_ne!(MessageId::derive(UserId(1), &key), MessageId::derive(UserId(2), &key));
    }

    #[test]
    fn partitions_are_used_evenly() {
        let mut used = [0_u32; 4];
        for n in 1..=4000 {
            let conversation = ConversationId::private(UserId(n), UserId(n + 1)).expect("different users");
            used[conversation.partition(4).0 as usize] += 1;
        }
        assert!(used.iter().all(|n| (800..1200).contains(n)), "{used:?}");
    }
}
