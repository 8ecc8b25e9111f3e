//! The in-memory archive: for tests and for worlds that play out in one process.
//!
//! In come the calls of [`Archive`]; everything is kept in ordered maps behind one lock that is never held across an
//! await. Always: a call is one critical section, so it happens wholly or not at all, and clones share one archive, so
//! that an engine can be dropped and made again over what it had committed.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::event::StoredMessage;
use crate::ids::{ConversationId, Epoch, MessageId, Millis, RoomId, Seq, UserId};
use crate::ports::{
    Archive, End, Joined, Page, PersistBatch, PortError, PortResult, Room, Standing, User, Watermark, name_key,
};

/// An [`Archive`] that is gone with its last clone.
#[derive(Clone, Debug)]
pub struct MemoryArchive {
    epoch: Epoch,
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Debug, Default)]
struct State {
    messages: BTreeMap<ConversationId, BTreeMap<Seq, StoredMessage>>,
    places: HashMap<MessageId, (ConversationId, Seq)>,
    /// Of the conversations that began one of their own.
    epochs: HashMap<ConversationId, Epoch>,
    members: BTreeMap<(UserId, ConversationId), Millis>,
    watermarks: HashMap<(UserId, ConversationId), Watermarks>,
    users: BTreeMap<UserId, Registered>,
    users_by_name: HashMap<String, UserId>,
    rooms: BTreeMap<RoomId, Room>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Watermarks {
    delivered: Seq,
    read: Seq,
}

#[derive(Clone, Debug)]
struct Registered {
    name: String,
    password_hash: String,
}

impl MemoryArchive {
    /// A new, empty archive with an epoch of its own.
    #[must_use]
    pub fn new() -> Self {
        // The standard library seeds each `RandomState` differently; core has no other source of chance.
        let [a, b, c, d, ..] = RandomState::new().hash_one(0_u8).to_be_bytes();
        Self::with_epoch(Epoch(u32::from_be_bytes([a, b, c, d]).max(1)))
    }

    /// A new, empty archive of a chosen epoch, for tests that replay.
    #[must_use]
    pub fn with_epoch(epoch: Epoch) -> Self {
        Self { epoch, state: Arc::default() }
    }

    /// A copy of what is kept now, as a backup or a replica has it.
    #[must_use]
    pub fn backup(&self) -> Self {
        Self { epoch: self.epoch, state: Arc::new(Mutex::new(self.state().clone())) }
    }

    /// Goes back to a backup, for all clones: what was committed after it is lost.
    pub fn restore(&self, backup: &Self) {
        let state = backup.state().clone();
        *self.state() = state;
    }

    /// A panic elsewhere leaves the maps whole: every change is checked before its first write.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryArchive {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    fn end(&self, conversation: &ConversationId, archive: Epoch) -> End {
        let own = self.epochs.get(conversation).copied().unwrap_or_default();
        End { epoch: own.max(archive), last: self.last(conversation) }
    }

    fn last(&self, conversation: &ConversationId) -> Seq {
        self.messages.get(conversation).and_then(|all| all.last_key_value()).map_or(Seq(0), |(seq, _)| *seq)
    }

    fn standing(&self, user: UserId, conversation: ConversationId, archive: Epoch) -> Standing {
        let Watermarks { delivered, read } = self.watermarks.get(&(user, conversation)).copied().unwrap_or_default();
        let unread = self.messages.get(&conversation).map_or(0, |all| {
            let after = all.range((Bound::Excluded(read), Bound::Unbounded));
            after.filter(|(_, message)| message.sender != user).count()
        });
        let unread = u32::try_from(unread).unwrap_or(u32::MAX);
        let End { epoch, last } = self.end(&conversation, archive);
        Standing { conversation, epoch, last, delivered, read, unread }
    }

    fn raise(&mut self, user: UserId, conversation: ConversationId, to: Watermarks) {
        let marks = self.watermarks.entry((user, conversation)).or_default();
        marks.delivered = marks.delivered.max(to.delivered);
        marks.read = marks.read.max(to.read);
    }

    /// Whether the message is there already.
    fn is_stored(&self, message: &StoredMessage) -> PortResult<bool> {
        let place = (message.conversation, message.seq);
        let holder = self.messages.get(&message.conversation).and_then(|all| all.get(&message.seq));
        match (self.places.get(&message.message_id), holder) {
            (None, None) => Ok(false),
            (Some(known), _) if *known == place => Ok(true),
            _ => Err(PortError::Conflict {
                service: "memory",
                detail: format!("another message holds {} {} or its id", message.conversation, message.seq.0),
            }),
        }
    }

    fn insert(&mut self, message: &StoredMessage) {
        self.places.insert(message.message_id, (message.conversation, message.seq));
        self.messages.entry(message.conversation).or_default().insert(message.seq, message.clone());
    }

    fn admit(&mut self, message: &StoredMessage) {
        if let (ConversationId::Private { low, high }, Seq(1)) = (message.conversation, message.seq) {
            for user in [low, high] {
                self.members.entry((user, message.conversation)).or_insert(message.sent_at);
            }
        }
    }

    /// Takes a batch back that turned out to contradict itself.
    fn remove(&mut self, message: &StoredMessage) {
        self.places.remove(&message.message_id);
        if let Some(all) = self.messages.get_mut(&message.conversation) {
            all.remove(&message.seq);
        }
    }
}

impl Archive for MemoryArchive {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    async fn find(&self, messages: &[MessageId]) -> PortResult<Vec<StoredMessage>> {
        let state = self.state();
        let places = messages.iter().filter_map(|id| state.places.get(id));
        Ok(places.filter_map(|(conversation, seq)| state.messages.get(conversation)?.get(seq).cloned()).collect())
    }

    async fn ends(&self, conversations: &[ConversationId]) -> PortResult<Vec<End>> {
        let state = self.state();
        Ok(conversations.iter().map(|conversation| state.end(conversation, self.epoch)).collect())
    }

    async fn begin_epoch(&self, conversations: &[(ConversationId, Epoch)]) -> PortResult<Vec<Epoch>> {
        let mut state = self.state();
        let begin = |(conversation, above): &(ConversationId, Epoch)| {
            let epoch = state.epochs.entry(*conversation).or_insert(self.epoch);
            *epoch = Epoch((*epoch).max(*above).0.saturating_add(1));
            *epoch
        };
        Ok(conversations.iter().map(begin).collect())
    }

    async fn persist(&self, batch: &PersistBatch) -> PortResult<()> {
        let mut state = self.state();
        let mut inserted = Vec::new();
        for message in &batch.messages {
            match state.is_stored(message) {
                Ok(true) => {}
                Ok(false) => {
                    state.insert(message);
                    inserted.push(message);
                }
                Err(refused) => {
                    inserted.into_iter().for_each(|message| state.remove(message));
                    return Err(refused);
                }
            }
        }
        inserted.into_iter().for_each(|message| state.admit(message));
        for receipt in batch.receipts.iter().filter(|receipt| receipt.has_standing()) {
            let to = Watermarks { delivered: receipt.delivered, read: receipt.read };
            state.raise(receipt.user, receipt.conversation, to);
        }
        Ok(())
    }

    async fn history(&self, conversation: ConversationId, page: Page, size: u32) -> PortResult<Vec<StoredMessage>> {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let state = self.state();
        let Some(all) = state.messages.get(&conversation) else { return Ok(Vec::new()) };
        let newest_first = |before: Bound<Seq>| {
            let mut page: Vec<_> = all.range((Bound::Unbounded, before)).rev().take(size).collect();
            page.reverse();
            page
        };
        let page = match page {
            Page::Newest => newest_first(Bound::Unbounded),
            Page::Before(seq) => newest_first(Bound::Excluded(seq)),
            Page::After(seq) => all.range((Bound::Excluded(seq), Bound::Unbounded)).take(size).collect(),
        };
        Ok(page.into_iter().map(|(_, message)| message.clone()).collect())
    }

    async fn missing(&self, after: &[(ConversationId, Seq)], max_each: u32) -> PortResult<Vec<Vec<StoredMessage>>> {
        let max_each = usize::try_from(max_each).unwrap_or(usize::MAX);
        let state = self.state();
        let of = |(conversation, seq): &(ConversationId, Seq)| {
            let above = (Bound::Excluded(*seq), Bound::Unbounded);
            let all = state.messages.get(conversation).into_iter().flat_map(|all| all.range(above));
            all.take(max_each).map(|(_, message)| message.clone()).collect()
        };
        Ok(after.iter().map(of).collect())
    }

    async fn watermarks(&self, conversations: &[ConversationId]) -> PortResult<Vec<Vec<Watermark>>> {
        let state = self.state();
        let of = |conversation: &ConversationId| {
            let members = state.members.keys().filter(|(_, of)| of == conversation);
            let mark = |(user, conversation): &(UserId, ConversationId)| {
                let marks = state.watermarks.get(&(*user, *conversation))?;
                let Watermarks { delivered, read } = *marks;
                (delivered.max(read) > Seq(0)).then_some(Watermark { user: *user, delivered, read })
            };
            members.filter_map(mark).collect()
        };
        Ok(conversations.iter().map(of).collect())
    }

    async fn standings(&self, user: UserId, max: usize) -> PortResult<Vec<Standing>> {
        let state = self.state();
        let mut found: Vec<(Millis, ConversationId)> = state
            .members
            .keys()
            .filter(|(member, _)| *member == user)
            .filter_map(|(_, conversation)| {
                let newest = state.messages.get(conversation).and_then(|all| all.last_key_value());
                let is_room = matches!(conversation, ConversationId::Room(_));
                let sent_at = newest.map(|(_, message)| message.sent_at);
                (is_room || newest.is_some()).then(|| (sent_at.unwrap_or_default(), *conversation))
            })
            .collect();
        found.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        Ok(found.into_iter().take(max).map(|(_, of)| state.standing(user, of, self.epoch)).collect())
    }

    async fn standings_of(&self, pairs: &[(UserId, ConversationId)]) -> PortResult<Vec<Standing>> {
        let state = self.state();
        Ok(pairs.iter().map(|(user, conversation)| state.standing(*user, *conversation, self.epoch)).collect())
    }

    async fn create_user(&self, name: &str, password_hash: &str, _at: Millis) -> PortResult<Option<UserId>> {
        let mut state = self.state();
        let key = name_key(name);
        if state.users_by_name.contains_key(&key) {
            return Ok(None);
        }
        let id = UserId(state.users.last_key_value().map_or(1, |(id, _)| id.0 + 1));
        state.users.insert(id, Registered { name: name.to_owned(), password_hash: password_hash.to_owned() });
        state.users_by_name.insert(key, id);
        Ok(Some(id))
    }

    async fn user_by_name(&self, name: &str) -> PortResult<Option<(User, String)>> {
        let state = self.state();
        let id = state.users_by_name.get(&name_key(name)).copied();
        Ok(id.and_then(|id| {
            let registered = state.users.get(&id)?;
            Some((User { id, name: registered.name.clone() }, registered.password_hash.clone()))
        }))
    }

    async fn users(&self, ids: &[UserId]) -> PortResult<Vec<User>> {
        let state = self.state();
        let known = |id: &UserId| Some(User { id: *id, name: state.users.get(id)?.name.clone() });
        Ok(ids.iter().filter_map(known).collect())
    }

    async fn create_room(&self, name: &str, owner: UserId, capacity: u32, at: Millis) -> PortResult<Room> {
        let mut state = self.state();
        let id = RoomId(state.rooms.last_key_value().map_or(1, |(id, _)| id.0 + 1));
        let room = Room { id, name: name.to_owned(), owner, capacity, members: 1, created_at: at, slow_mode_s: 0 };
        state.rooms.insert(id, room.clone());
        state.members.insert((owner, ConversationId::Room(id)), at);
        Ok(room)
    }

    async fn room(&self, room: RoomId) -> PortResult<Option<Room>> {
        Ok(self.state().rooms.get(&room).cloned())
    }

    async fn rooms_by_id(&self, ids: &[RoomId]) -> PortResult<Vec<Room>> {
        let state = self.state();
        Ok(ids.iter().filter_map(|id| state.rooms.get(id).cloned()).collect())
    }

    async fn set_slow_mode(&self, room: RoomId, slow_mode_s: u32) -> PortResult<bool> {
        let mut state = self.state();
        let room = state.rooms.get_mut(&room);
        Ok(room.map(|room| room.slow_mode_s = slow_mode_s).is_some())
    }

    async fn rooms(&self, before: Option<RoomId>, size: u32) -> PortResult<Vec<Room>> {
        let before = before.map_or(Bound::Unbounded, Bound::Excluded);
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let state = self.state();
        Ok(state.rooms.range((Bound::Unbounded, before)).rev().take(size).map(|(_, room)| room.clone()).collect())
    }

    async fn join_room(&self, room: RoomId, user: UserId, at: Millis) -> PortResult<Joined> {
        let conversation = ConversationId::Room(room);
        let mut state = self.state();
        let is_member = state.members.contains_key(&(user, conversation));
        let Some(joined) = state.rooms.get_mut(&room) else { return Ok(Joined::NoRoom) };
        if is_member {
            return Ok(Joined::Already);
        }
        if joined.members >= joined.capacity {
            return Ok(Joined::Full);
        }
        joined.members += 1;
        state.members.insert((user, conversation), at);
        let last = state.last(&conversation);
        state.raise(user, conversation, Watermarks { delivered: last, read: last });
        Ok(Joined::Now)
    }

    async fn leave_room(&self, room: RoomId, user: UserId) -> PortResult<bool> {
        let conversation = ConversationId::Room(room);
        let mut state = self.state();
        let was_member = state.members.remove(&(user, conversation)).is_some();
        if was_member {
            state.watermarks.remove(&(user, conversation));
            if let Some(left) = state.rooms.get_mut(&room) {
                left.members = left.members.saturating_sub(1);
            }
        }
        Ok(was_member)
    }

    async fn members(&self, rooms: &[RoomId]) -> PortResult<Vec<Vec<UserId>>> {
        let state = self.state();
        let of = |room: &RoomId| {
            let conversation = ConversationId::Room(*room);
            state.members.keys().filter(|(_, of)| *of == conversation).map(|(user, _)| *user).collect()
        };
        Ok(rooms.iter().map(of).collect())
    }

    async fn rooms_of(&self, user: UserId) -> PortResult<Vec<RoomId>> {
        let state = self.state();
        let room = |(member, conversation): &(UserId, ConversationId)| match conversation {
            ConversationId::Room(room) if *member == user => Some(*room),
            _ => None,
        };
        Ok(state.members.keys().filter_map(room).collect())
    }

    async fn ping(&self) -> PortResult<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn open(_case: &str) -> Option<Box<MemoryArchive>> {
        Some(Box::new(MemoryArchive::new()))
    }

    crate::archive_contract!(open);

    #[test]
    fn every_archive_has_an_epoch_of_its_own() {
        let (a, b) = (MemoryArchive::new(), MemoryArchive::new());
        assert_ne!(a.epoch(), Epoch(0));
        assert_ne!(a.epoch(), b.epoch());
    }
}
