//! What the domain needs from outside, as traits. Every call takes and gives a batch.
//!
//! Each port has an in-process twin in [`crate::twins`] and a real service behind an adapter in the gateway; both run the
//! suite in [`crate::contract`]. Calls answer within a bound of their own (adapters set command timeouts), and an error
//! says whether repeating the same call can help.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;

use crate::event::{IngestEvent, PushEvent, ReceiptMoved, StoredMessage};
use crate::ids::{
    Attachment, ConversationId, Epoch, GatewayId, LobbyName, MessageId, Millis, Partition, RoomId, Seq, SessionId,
    UserId,
};

/// Why a port did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// The service is away, hung or overloaded; nothing is known to have happened. The same call may succeed later.
    #[error("{service} is unavailable: {detail}")]
    Unavailable {
        /// `rabbitmq`, `redis`, `mysql`, `sqlite`, ...
        service: &'static str,
        /// For the log; never shown to clients, never holds a secret.
        detail: String,
    },
    /// The service answered and will answer the same again: a broken schema, a wrong type.
    #[error("{service} refused: {detail}")]
    Refused {
        /// As above.
        service: &'static str,
        /// As above.
        detail: String,
    },
    /// The service works, and takes neither now nor later a value of this call: too long, out of range, against a rule of
    /// the database. Other calls it takes.
    #[error("{service} takes no such value: {detail}")]
    Unfit {
        /// As above.
        service: &'static str,
        /// As above.
        detail: String,
    },
    /// What was to be written contradicts what somebody else has written meanwhile: nothing was done, and the same call
    /// will not succeed. The caller is not the only writer it took itself for.
    #[error("{service} has it otherwise: {detail}")]
    Conflict {
        /// As above.
        service: &'static str,
        /// As above.
        detail: String,
    },
    /// The other side of an in-process queue is gone: the process is ending.
    #[error("closed")]
    Closed,
}

/// The result of a port call.
pub type PortResult<T> = Result<T, PortError>;

// ---------------------------------------------------------------------------------------------------------------------
// MQ1

/// The first leg: accepted events on their way to the ingest engine. Order holds within a partition.
pub trait IngestQueue: Send + Sync + 'static {
    /// Completes when the batch is durable: the broker's confirm, or in the embedded twin the consumer's acknowledgement
    /// (which follows the archive's commit). An error leaves it open whether the batch will be consumed.
    type Confirm: Future<Output = PortResult<()>> + Send + 'static;
    /// One partition's consumer.
    type Consumer: IngestConsumer;

    /// How many partitions there are; fixed for the life of the process.
    fn partitions(&self) -> u32;

    /// Hands one batch over, in call order, and returns its confirm. All events belong to `partition`; the caller keeps
    /// to [`crate::limits::PUBLISH_EVENTS_MAX`] and [`crate::limits::PUBLISH_BYTES_MAX`].
    ///
    /// # Errors
    /// [`PortError::Unavailable`] if the batch was not handed over; it will then not be consumed.
    fn publish(
        &self,
        partition: Partition,
        events: Vec<IngestEvent>,
    ) -> impl Future<Output = PortResult<Self::Confirm>> + Send;

    /// Puts events that can never be processed to the dead letters, where people find them with their reasons and can give
    /// them back to MQ1. Durable, as far as the queue is, when it returns.
    ///
    /// # Errors
    /// [`PortError::Unavailable`] if any of them is not known to be there; repeating may put some there twice.
    fn bury(&self, partition: Partition, letters: Vec<DeadLetter>) -> impl Future<Output = PortResult<()>> + Send;

    /// Becomes a consumer of `partition`. With several gateway instances one of them is active at a time, the others
    /// wait inside [`IngestConsumer::next_batch`].
    ///
    /// # Errors
    /// [`PortError::Unavailable`] if the broker cannot be reached.
    fn consume(&self, partition: Partition) -> impl Future<Output = PortResult<Self::Consumer>> + Send;
}

/// An event that can never be processed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// What was to be processed.
    pub event: IngestEvent,
    /// Why it cannot be, for the operator.
    pub reason: String,
}

impl DeadLetter {
    /// Bytes the letter holds on to, for bounds.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        self.event.weight_bytes() + self.reason.len()
    }
}

/// Events taken from MQ1 that wait for their acknowledgement.
#[derive(Debug)]
pub struct IngestBatch {
    /// In queue order.
    pub events: Vec<IngestEvent>,
    /// Acknowledges these events and all before them.
    pub up_to: DeliveryTag,
}

/// A consumer's name for a position in its stream of deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeliveryTag(pub u64);

/// Takes events from one partition of MQ1. What is not acknowledged when it is dropped, or its connection ends, is
/// delivered again, in order.
///
/// What cannot be decoded never comes out of here: the adapter moves it to the dead-letter queue with its reason.
pub trait IngestConsumer: Send + 'static {
    /// Waits until there is an event, then takes all that has piled up, up to `events_max` (a broker message is taken
    /// whole, so a batch may exceed it by one message).
    ///
    /// # Errors
    /// [`PortError::Unavailable`] if the connection ended; the consumer is then useless and another is made.
    /// [`PortError::Closed`] if there will never be another event.
    fn next_batch(&mut self, events_max: usize) -> impl Future<Output = PortResult<IngestBatch>> + Send;

    /// Acknowledges everything up to and including `up_to`.
    ///
    /// # Errors
    /// [`PortError::Unavailable`] if the connection ended; the events will come again.
    fn ack(&mut self, up_to: DeliveryTag) -> impl Future<Output = PortResult<()>> + Send;
}

// ---------------------------------------------------------------------------------------------------------------------
// MQ2

/// Which gateways a push goes to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PushTarget {
    /// Every running instance: rooms and lobbies.
    All,
    /// The one that holds a recipient of a private message.
    Gateway(GatewayId),
}

/// The second leg: sequenced events on their way to gateways.
pub trait PushQueue: Send + Sync + 'static {
    /// This gateway's consumer.
    type Consumer: PushConsumer;

    /// Publishes and waits until the broker has confirmed everything. Returns the targets that do not exist (any more):
    /// a gateway that went away without taking its presence back.
    ///
    /// # Errors
    /// [`PortError::Unavailable`] if any part was not confirmed; the whole call is repeated then, receivers tolerate
    /// repetition by sequence.
    fn publish(
        &self,
        batches: Vec<(PushTarget, Vec<PushEvent>)>,
    ) -> impl Future<Output = PortResult<Vec<GatewayId>>> + Send;

    /// Becomes the consumer of this gateway's own queue.
    ///
    /// # Errors
    /// [`PortError::Unavailable`] if the broker cannot be reached.
    fn consume(&self) -> impl Future<Output = PortResult<Self::Consumer>> + Send;
}

/// Takes pushes for this gateway. What was taken counts as delivered: a client that misses something resyncs by sequence.
pub trait PushConsumer: Send + 'static {
    /// Waits until there is an event, then takes what has piled up, up to about `events_max`.
    ///
    /// # Errors
    /// As for [`IngestConsumer::next_batch`].
    fn next_batch(&mut self, events_max: usize) -> impl Future<Output = PortResult<Vec<PushEvent>>> + Send;
}

// ---------------------------------------------------------------------------------------------------------------------
// Hot store

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

/// A user's unread counts and inbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Conversations with at least one unread message. `None` if the store does not know this user's counts: they are
    /// computed from the archive then and handed back by [`HotStore::seed_unread`].
    pub unread: Option<Vec<(ConversationId, u32)>>,
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

/// Redis: recent and fast. It may lose everything; the archive is then asked again.
pub trait HotStore: Send + Sync + 'static {
    /// Gives sequences to the messages of one batch; a conversation has one run. The archive's end is the floor, whatever the
    /// store remembers or has lost. What it does remember ([`HotStore::settle`], and the ends of former runs) only shows
    /// whether the archive is still as far as it was: by epoch, then by sequence.
    ///
    /// # Errors
    /// [`PortError`]; repeating repeats the answer.
    fn sequence(&self, runs: &[SequenceRun]) -> impl Future<Output = PortResult<Vec<SequenceGrant>>> + Send;

    /// The archive has committed these conversations up to here. An end below what the store knows changes nothing.
    ///
    /// # Errors
    /// [`PortError`]; repeating is harmless.
    fn settle(&self, ends: &[(ConversationId, End)]) -> impl Future<Output = PortResult<()>> + Send;

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

    /// Sets the exact counts of a user after [`HotStore::take_summary`] said that they are unknown. What was filed in the
    /// meantime above `counted_to` is added. Stays without effect where the counts are known by now, since those of another
    /// login came first; and where exactness cannot be proven, because the store lost its memory meanwhile or too much was
    /// filed: the counts then remain unknown.
    ///
    /// # Errors
    /// [`PortError`]; repeating is harmless.
    fn seed_unread(&self, user: UserId, counts: &[UnreadCount]) -> impl Future<Output = PortResult<()>> + Send;

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

// ---------------------------------------------------------------------------------------------------------------------
// Archive

/// A registered user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its id.
    pub id: UserId,
    /// Its unique name, as registered.
    pub name: String,
}

/// A room as lists show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// Its id; its conversation is `r_<id>`.
    pub id: RoomId,
    /// Its name; not unique.
    pub name: String,
    /// Who made it.
    pub owner: UserId,
    /// Most members it takes.
    pub capacity: u32,
    /// Members now.
    pub members: u32,
    /// When it was made.
    pub created_at: Millis,
}

/// What became of a wish to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// The user is a member now.
    Now,
    /// It was one before.
    Already,
    /// The room is full.
    Full,
    /// There is no such room.
    NoRoom,
}

/// Where a conversation ends. Of two ends the one of the greater epoch is further, then the one of the greater sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    /// What its sequences are comparable within.
    pub epoch: Epoch,
    /// Its newest sequence; zero if there is none.
    pub last: Seq,
}

/// A user's place in one of its conversations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The conversation.
    pub conversation: ConversationId,
    /// What its sequences are comparable within.
    pub epoch: Epoch,
    /// Its newest sequence.
    pub last: Seq,
    /// The user's delivered watermark.
    pub delivered: Seq,
    /// The user's read watermark.
    pub read: Seq,
    /// Messages from others after the watermark.
    pub unread: u32,
}

/// How far a member of a conversation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermark {
    /// The member.
    pub user: UserId,
    /// Up to which sequence messages have reached one of its devices.
    pub delivered: Seq,
    /// Up to which sequence it has read.
    pub read: Seq,
}

/// Which page of history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// The newest messages.
    Newest,
    /// The newest ones below this sequence.
    Before(Seq),
    /// The oldest ones above this sequence.
    After(Seq),
}

/// What one turn of the ingest engine commits.
#[derive(Clone, Debug, Default)]
pub struct PersistBatch {
    /// Messages, in ascending order within each conversation.
    pub messages: Vec<StoredMessage>,
    /// Watermarks, merged by maximum with what is stored.
    pub receipts: Vec<ReceiptMoved>,
}

/// What makes a user's name unique: two names that differ in case alone have the same key. Archives store it beside the
/// name, so that no database's idea of letters decides who can register.
#[must_use]
pub fn name_key(name: &str) -> String {
    name.to_lowercase()
}

/// MySQL: complete. What it has committed is never lost.
pub trait Archive: Send + Sync + 'static {
    /// Identity of this archive's life: non-zero, drawn when it was created. The epoch of every conversation that has not
    /// begun one of its own.
    fn epoch(&self) -> Epoch;

    /// Rises whenever a connection to the store broke. Another server may have taken over since, one that is behind: where
    /// conversations end must be read again.
    fn breaks(&self) -> u64 {
        0
    }

    /// Those of the messages that are stored, in any order. For deduplication.
    ///
    /// # Errors
    /// [`PortError`].
    fn find(&self, messages: &[MessageId]) -> impl Future<Output = PortResult<Vec<StoredMessage>>> + Send;

    /// The epoch and the newest sequence of each conversation, in their order.
    ///
    /// # Errors
    /// [`PortError`].
    fn ends(&self, conversations: &[ConversationId]) -> impl Future<Output = PortResult<Vec<End>>> + Send;

    /// Begins a new epoch of each conversation: greater than the one it had and than the one named with it. Returns the
    /// new ones, in their order, when they are durable. The messages stay, and are read under the new epoch from now on.
    ///
    /// # Errors
    /// [`PortError`]; a repeated call may find the epoch raised already and raises it again, which is harmless.
    fn begin_epoch(
        &self,
        conversations: &[(ConversationId, Epoch)],
    ) -> impl Future<Output = PortResult<Vec<Epoch>>> + Send;

    /// Commits a batch, all or nothing. A message that is stored already under the same (conversation, seq,
    /// `message_id`) is left as it is, so that a repeated call succeeds. The first message of a private conversation makes
    /// both users its members.
    ///
    /// # Errors
    /// [`PortError::Unavailable`]: it may or may not have been committed, repeat it. [`PortError::Conflict`] if a
    /// different message holds a sequence of the batch, or the archive has one of its messages in another place.
    /// [`PortError::Unfit`] if it will never take a value in the batch.
    fn persist(&self, batch: &PersistBatch) -> impl Future<Output = PortResult<()>> + Send;

    /// One page, ascending, at most `size` messages.
    ///
    /// # Errors
    /// [`PortError`].
    fn history(
        &self,
        conversation: ConversationId,
        page: Page,
        size: u32,
    ) -> impl Future<Output = PortResult<Vec<StoredMessage>>> + Send;

    /// What each reader of a conversation misses: for every entry, in order, the oldest messages above its sequence,
    /// ascending, at most `max_each`. One round trip for all.
    ///
    /// # Errors
    /// [`PortError`].
    fn missing(
        &self,
        after: &[(ConversationId, Seq)],
        max_each: u32,
    ) -> impl Future<Output = PortResult<Vec<Vec<StoredMessage>>>> + Send;

    /// How far the members of each conversation are, in the conversations' order and then by ascending user. Members that
    /// have not received anything are left out. Lobbies have no members.
    ///
    /// # Errors
    /// [`PortError`].
    fn watermarks(
        &self,
        conversations: &[ConversationId],
    ) -> impl Future<Output = PortResult<Vec<Vec<Watermark>>>> + Send;

    /// The user's conversations with a message in them or a room membership, those with the newest messages first, at
    /// most `max`. Lobbies are not among them.
    ///
    /// # Errors
    /// [`PortError`].
    fn standings(&self, user: UserId, max: usize) -> impl Future<Output = PortResult<Vec<Standing>>> + Send;

    /// The standing of each (user, conversation), in their order, whether or not the user is a member.
    ///
    /// # Errors
    /// [`PortError`].
    fn standings_of(
        &self,
        pairs: &[(UserId, ConversationId)],
    ) -> impl Future<Output = PortResult<Vec<Standing>>> + Send;

    /// Registers a user. `None` if the name is taken; names differ by more than case.
    ///
    /// # Errors
    /// [`PortError`].
    fn create_user(
        &self,
        name: &str,
        password_hash: &str,
        at: Millis,
    ) -> impl Future<Output = PortResult<Option<UserId>>> + Send;

    /// The user of that name (in any case) and its password hash.
    ///
    /// # Errors
    /// [`PortError`].
    fn user_by_name(&self, name: &str) -> impl Future<Output = PortResult<Option<(User, String)>>> + Send;

    /// Those of the users that exist, in any order.
    ///
    /// # Errors
    /// [`PortError`].
    fn users(&self, ids: &[UserId]) -> impl Future<Output = PortResult<Vec<User>>> + Send;

    /// Makes a room with its owner as the only member.
    ///
    /// # Errors
    /// [`PortError`].
    fn create_room(
        &self,
        name: &str,
        owner: UserId,
        capacity: u32,
        at: Millis,
    ) -> impl Future<Output = PortResult<Room>> + Send;

    /// A room by its id.
    ///
    /// # Errors
    /// [`PortError`].
    fn room(&self, room: RoomId) -> impl Future<Output = PortResult<Option<Room>>> + Send;

    /// Rooms with ids below `before` (all if `None`), newest first, at most `size`.
    ///
    /// # Errors
    /// [`PortError`].
    fn rooms(&self, before: Option<RoomId>, size: u32) -> impl Future<Output = PortResult<Vec<Room>>> + Send;

    /// Adds a member. The capacity holds under concurrent joins. What was written before the join does not count as
    /// unread: the read watermark starts at the newest sequence.
    ///
    /// # Errors
    /// [`PortError`].
    fn join_room(&self, room: RoomId, user: UserId, at: Millis) -> impl Future<Output = PortResult<Joined>> + Send;

    /// Removes a member. Returns whether it was one.
    ///
    /// # Errors
    /// [`PortError`].
    fn leave_room(&self, room: RoomId, user: UserId) -> impl Future<Output = PortResult<bool>> + Send;

    /// The members of each room, in the rooms' order.
    ///
    /// # Errors
    /// [`PortError`].
    fn members(&self, rooms: &[RoomId]) -> impl Future<Output = PortResult<Vec<Vec<UserId>>>> + Send;

    /// The rooms a user is a member of, in any order.
    ///
    /// # Errors
    /// [`PortError`].
    fn rooms_of(&self, user: UserId) -> impl Future<Output = PortResult<Vec<RoomId>>> + Send;

    /// Answers if the archive does; for readiness.
    ///
    /// # Errors
    /// [`PortError`].
    fn ping(&self) -> impl Future<Output = PortResult<()>> + Send;
}

// ---------------------------------------------------------------------------------------------------------------------
// Passwords

/// Hashing that takes tens of milliseconds on purpose: the gateway runs it off its hot threads, a bounded number at a time.
pub trait PasswordHasher: Send + Sync + 'static {
    /// Hashes with a fresh salt (PHC string).
    ///
    /// # Errors
    /// [`PortError::Unavailable`] if too many are waiting.
    fn hash(&self, password: String) -> impl Future<Output = PortResult<String>> + Send;

    /// Whether the password is the one of `hash`.
    ///
    /// # Errors
    /// As for [`PasswordHasher::hash`].
    fn verify(&self, password: String, hash: String) -> impl Future<Output = PortResult<bool>> + Send;
}

// ---------------------------------------------------------------------------------------------------------------------

/// One set of backends, chosen in the wiring: everything else is generic over it once.
pub trait Backend: Send + Sync + 'static {
    /// MQ1.
    type Ingest: IngestQueue;
    /// MQ2.
    type Push: PushQueue;
    /// Redis or its twin.
    type Hot: HotStore;
    /// MySQL, SQLite or the in-memory archive.
    type Archive: Archive;

    /// MQ1.
    fn ingest(&self) -> &Self::Ingest;
    /// MQ2.
    fn push(&self) -> &Self::Push;
    /// The hot store.
    fn hot(&self) -> &Self::Hot;
    /// The archive.
    fn archive(&self) -> &Self::Archive;
}
