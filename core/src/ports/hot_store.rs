//! Sequences, lobby caches, presence, sessions, inboxes and unread counts: Redis, or its twin.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;

use crate::ids::{Attachment, ConversationId, Epoch, GatewayId, LobbyName, Place, Seq, SessionId, UserId};

#[cfg(doc)]
use super::PortError;
use super::{End, PortResult, Spend};

/// The messages of a batch that belong to one conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceRun {
    /// The conversation.
    pub conversation: ConversationId,
    /// Where the archive ends, as the caller read it there or has committed it.
    pub end: End,
    /// How many messages there are.
    pub count: u32,
}

/// The answer for one [`SequenceRun`], in the request's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceGrant {
    /// The first of as many sequences as were asked for, without a gap: it follows the run's `end`. What was given before
    /// and is not in the archive is given again; nobody has seen it.
    Given(Seq),
    /// The archive has been further than the run's `end`: nothing was given. Either the caller does not know the newest,
    /// or the archive went back and others may have seen what it lost.
    Discontinuous {
        /// What was committed once.
        kept: End,
    },
}

/// Where a user is connected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Presence {
    /// Gateways that hold at least one of the user's sessions, without duplicates. Empty: the user is away.
    pub gateways: Vec<GatewayId>,
    /// The store lost its memory a moment ago, and not every gateway may have told it yet whom it holds: the user may be
    /// elsewhere as well.
    pub uncertain: bool,
}

/// What a connected session says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The user.
    pub user: UserId,
    /// The device within the user; held by one connection at a time.
    pub device: String,
    /// The session.
    pub session: SessionId,
    /// The connection that has it.
    pub attachment: Attachment,
    /// Lobbies it watches, to be kept for whoever resumes it.
    pub watching: Vec<LobbyName>,
}

/// A session came, stays or goes. Applied in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PresenceChange {
    /// The device is here. Takes it from whatever connection had it.
    Here(Hold),
    /// The session is still connected to this gateway: its record must not expire. If the store lost it, this makes it
    /// present again.
    Renewed(Hold),
    /// The connection ended. The user is away if it has no other, and the session waits [`crate::limits::SESSION_GRACE`]
    /// to be resumed. Does nothing if the device has another connection by now.
    Gone {
        /// The user.
        user: UserId,
        /// The device within the user.
        device: String,
        /// The connection that held it.
        attachment: Attachment,
    },
}

/// What a [`PresenceChange`] met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PresenceOutcome {
    /// What was to be expected.
    Done,
    /// [`PresenceChange::Here`]: this connection had the device until now.
    TakenFrom {
        /// The gateway it is connected to.
        gateway: GatewayId,
        /// The connection.
        attachment: Attachment,
    },
    /// [`PresenceChange::Renewed`]: the store did not know the session any more, or only an earlier connection of the device:
    /// it lost something, or went back to an earlier state. Pushes may have passed the session by.
    Lost,
    /// A later connection has the device. Nothing was changed. For a [`PresenceChange::Here`] this means that it came late, or
    /// that the gateways' clocks disagree by more than the time between the two logins.
    HeldByAnother,
}

/// What the store says to a gateway's sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// It has heard of this process before.
    Known,
    /// It has not, or may have forgotten something since, everything or the last seconds: the gateway's sessions are to be
    /// renewed now.
    Unknown,
}

/// What a batch means for one recipient in one conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filing {
    /// The recipient; never the sender of any of the messages counted here.
    pub user: UserId,
    /// The conversation.
    pub conversation: ConversationId,
    /// Sequences of the messages from others, ascending.
    pub seqs: Vec<Seq>,
    /// The encoded `tidegate.v1.Message`s for the inbox, one for each of `seqs`, if the user is away; else empty.
    pub inbox: Vec<Bytes>,
}

/// The time in which the store remembers what is filed for a user until its counts are handed in. Never the same again, even
/// if the store has lost everything meanwhile; logins that meet one under way share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeding(pub u64);

/// A user's unread counts and inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Conversations with at least one unread message. `Err` if the store does not know this user's counts: they are
    /// computed from the archive then and handed back by [`HotStore::seed_unread`], for this seeding.
    pub unread: Result<Vec<(ConversationId, u32)>, Seeding>,
    /// Encoded `tidegate.v1.Message`s that arrived while the user was away, oldest first.
    pub inbox: Vec<Bytes>,
}

/// One conversation's exact count, with the sequence up to which it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnreadCount {
    /// The conversation.
    pub conversation: ConversationId,
    /// Messages from others after the read watermark.
    pub unread: u32,
    /// The newest sequence that was looked at.
    pub counted_to: Seq,
}

/// What a login token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenState {
    /// It is this user's.
    Valid(UserId),
    /// Its time is over, or another login replaced it or an operator ended it: the store still remembers why.
    Expired,
    /// Never given, forged, logged out, or forgotten.
    Unknown,
}

/// Messages for the lobby cache: those a turn committed in a conversation that is in signal gear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheRun {
    /// The conversation, a room or lobby.
    pub conversation: ConversationId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Sequences and encoded `tidegate.v1.Message`s; ascending, without a gap.
    pub messages: Vec<(Seq, Bytes)>,
    /// How many messages the conversation's cache holds at most.
    pub messages_max: u32,
    /// How many bytes of messages it holds at most.
    pub bytes_max: u32,
    /// How long it holds a message at most.
    pub keep_for: Duration,
}

/// A part of a conversation's lobby cache that reaches to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheSlice {
    /// The epoch of the cache; zero if there is none.
    pub epoch: Epoch,
    /// The sequence of the first of `messages`; if those are none the one that would come next, or zero if there is no cache.
    pub first: Seq,
    /// Encoded `tidegate.v1.Message`s; ascending, without a gap, the last is the cache's newest.
    pub messages: Vec<Bytes>,
}

/// Redis: recent and fast. It may lose everything; the archive is then asked again.
pub trait HotStore: Send + Sync + 'static {
    /// Gives sequences to the messages of one batch; a conversation has one run. The archive's end is the floor, whatever the
    /// store remembers or has lost. What it does remember ([`HotStore::settle`], and the ends of former runs) only shows
    /// whether the archive is still as far as it was: by epoch, then by sequence.
    ///
    /// # Errors
    /// [`PortError`]; repeating repeats the answer.
    fn sequence(&self, runs: &[SequenceRun]) -> impl Future<Output = PortResult<Vec<SequenceGrant>>> + Send;

    /// The archive has committed these conversations up to here, and in those that are in signal gear the messages of `cached`,
    /// which go into their lobby caches: on one way there and back.
    ///
    /// An end below what the store knows changes nothing. A cache has no gap: what it holds of a run is skipped, and a run that
    /// begins beyond its end, or is of a greater epoch, replaces it; one of a smaller epoch is ignored. It holds the newest
    /// messages, and those within the run's bounds: when something is added what is too much or too old leaves, if need be
    /// as many messages at once as came together. A cache nothing is added to for `keep_for` is gone.
    ///
    /// # Errors
    /// [`PortError`]; repeating is harmless.
    fn settle(
        &self,
        ends: &[(ConversationId, End)],
        cached: &[CacheRun],
    ) -> impl Future<Output = PortResult<()>> + Send;

    /// The newest messages of a conversation's lobby cache that fit both bounds, but none up to `after` if that is of the
    /// cache's epoch, and none that is older than it may be.
    ///
    /// # Errors
    /// [`PortError`].
    fn cached(
        &self,
        conversation: ConversationId,
        after: Option<Place>,
        messages_max: usize,
        bytes_max: usize,
    ) -> impl Future<Output = PortResult<CacheSlice>> + Send;

    /// Where each of `users` is, in their order.
    ///
    /// # Errors
    /// [`PortError`].
    fn presence(&self, users: &[UserId]) -> impl Future<Output = PortResult<Vec<Presence>>> + Send;

    /// Applies presence changes of sessions on this gateway; what each met, in their order.
    ///
    /// # Errors
    /// [`PortError`]; repeating is harmless, but does not say again whom a device was taken from.
    fn change_presence(
        &self,
        changes: &[PresenceChange],
    ) -> impl Future<Output = PortResult<Vec<PresenceOutcome>>> + Send;

    /// What the session watched, if it is the device's and its time is not over. Changes nothing.
    ///
    /// # Errors
    /// [`PortError`].
    fn resume(
        &self,
        user: UserId,
        device: &str,
        session: SessionId,
    ) -> impl Future<Output = PortResult<Option<Vec<LobbyName>>>> + Send;

    /// This gateway lives. One that says so no more, while others do, no longer holds anybody after
    /// [`crate::limits::GATEWAY_TTL`]; what a former process of the same name held, it no longer holds from the first beat
    /// or change of presence of its successor on.
    ///
    /// # Errors
    /// [`PortError`]; repeating is harmless.
    fn beat(&self) -> impl Future<Output = PortResult<Beat>> + Send;

    /// Counts unread messages and fills inboxes. Idempotent: sequences at or below what was already counted or filed for
    /// (user, conversation) are skipped. Counts of users the store does not know stay unknown; since those are computed
    /// from the archive, a message is filed only after the archive has committed it.
    ///
    /// # Errors
    /// [`PortError`]; repeating is harmless.
    fn file(&self, filings: &[Filing]) -> impl Future<Output = PortResult<()>> + Send;

    /// Reads the counts and takes the inbox (it is empty afterwards). From the answer "unknown" on, what is filed for the
    /// user is remembered for [`HotStore::seed_unread`].
    ///
    /// # Errors
    /// [`PortError`]; the inbox may have been taken all the same, its messages are in the archive.
    fn take_summary(&self, user: UserId) -> impl Future<Output = PortResult<Summary>> + Send;

    /// The newest `max` messages of the inbox, oldest first, without taking them.
    ///
    /// # Errors
    /// [`PortError`].
    fn peek_inbox(&self, user: UserId, max: usize) -> impl Future<Output = PortResult<Vec<Bytes>>> + Send;

    /// Sets the exact counts of a user after [`HotStore::take_summary`] said that they are unknown; `seeding` is what it named,
    /// and the counts were made after it. What was filed in the meantime above `counted_to` is added. Stays without effect
    /// where the counts are known by now, since those of another login came first; and where exactness cannot be proven,
    /// because the store lost its memory meanwhile, even if another seeding has begun since, or too much was filed: the
    /// counts then remain unknown.
    ///
    /// # Errors
    /// [`PortError`]; repeating is harmless.
    fn seed_unread(
        &self,
        user: UserId,
        seeding: Seeding,
        counts: &[UnreadCount],
    ) -> impl Future<Output = PortResult<()>> + Send;

    /// Replaces single counts after the user read; an entry of zero unread removes the conversation from the counts.
    /// What was filed above `counted_to` stays counted, and an entry older than what is known is ignored. Unknown counts
    /// stay unknown.
    ///
    /// # Errors
    /// [`PortError`]; repeating is harmless.
    fn set_unread(&self, counts: &[(UserId, UnreadCount)]) -> impl Future<Output = PortResult<()>> + Send;

    /// Forgets the counts of users, and up to where their inboxes were filled, because a conversation of theirs begins a new
    /// epoch: sequences that were counted and filed will be given to other messages. The counts are unknown afterwards.
    ///
    /// # Errors
    /// [`PortError`]; repeating is harmless.
    fn forget_unread(&self, users: &[UserId]) -> impl Future<Output = PortResult<()>> + Send;

    /// Adds what was let pass to allowances, and says what debt each then has, in their order, in microseconds: with what other
    /// gateways told. The new debt is the former one, or that of an allowance that was whole `age_us` ago, and `cost_us` on
    /// top; at least `debt_us`, at most `most_us`. An allowance may be forgotten [`crate::limits::ALLOWANCE_KEPT`] after it was
    /// whole, and not before: what another gateway tells of the time before comes on top.
    ///
    /// # Errors
    /// [`PortError`]. What was told may have been added; a repetition with a cost adds it again, one without repairs the debt.
    fn spend(&self, spends: &[Spend]) -> impl Future<Output = PortResult<Vec<u64>>> + Send;

    /// Remembers a login token.
    ///
    /// # Errors
    /// [`PortError`].
    fn put_token(&self, token: &str, user: UserId, ttl: Duration) -> impl Future<Output = PortResult<()>> + Send;

    /// What each token stands for, in their order.
    ///
    /// # Errors
    /// [`PortError`].
    fn token_states(&self, tokens: &[&str]) -> impl Future<Output = PortResult<Vec<TokenState>>> + Send;

    /// Forgets a token. Returns whether it was known.
    ///
    /// # Errors
    /// [`PortError`].
    fn delete_token(&self, token: &str) -> impl Future<Output = PortResult<bool>> + Send;

    /// Answers if the store does; for readiness.
    ///
    /// # Errors
    /// [`PortError`].
    fn ping(&self) -> impl Future<Output = PortResult<()>> + Send;
}
