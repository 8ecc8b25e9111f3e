//! Users, rooms, messages and watermarks for good: MySQL, SQLite, or the twin in memory.

use std::future::Future;

use crate::event::{ReceiptMoved, StoredMessage};
use crate::ids::{ConversationId, Epoch, MessageId, Millis, RoomId, Seq, UserId};

#[cfg(doc)]
use super::PortError;
use super::PortResult;

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
    /// Seconds a user waits between two messages; 0: none. At most [`crate::limits::SLOW_MODE_S_MAX`].
    pub slow_mode_s: u32,
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

    /// Those of the rooms that exist, in any order.
    ///
    /// # Errors
    /// [`PortError`].
    fn rooms_by_id(&self, ids: &[RoomId]) -> impl Future<Output = PortResult<Vec<Room>>> + Send;

    /// Sets how long a user waits between two messages in a room, in seconds; 0: not at all. Returns whether there is such
    /// a room.
    ///
    /// # Errors
    /// [`PortError`]; repeating is harmless.
    fn set_slow_mode(&self, room: RoomId, slow_mode_s: u32) -> impl Future<Output = PortResult<bool>> + Send;

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
