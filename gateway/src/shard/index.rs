//! Who is on this shard, and who gets which conversation: slots by user and by conversation, dense for fan-out.

use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use tidegate_core::ids::{ConversationId, UserId};

/// A connection's place in its shard.
pub type Slot = u32;

/// See the module.
#[derive(Debug, Default)]
pub struct Index {
    users: FxHashMap<UserId, SmallVec<[Slot; 2]>>,
    conversations: FxHashMap<ConversationId, Vec<Slot>>,
}

/// Whether it was the first connection here to come, or the last to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// It was: the routes change.
    Yes,
    /// There are others.
    No,
}

impl Index {
    /// A connection turned out to be the user's.
    pub fn add_user(&mut self, user: UserId, slot: Slot) -> Edge {
        let slots = self.users.entry(user).or_default();
        slots.push(slot);
        if slots.len() == 1 { Edge::Yes } else { Edge::No }
    }

    /// A user's connection is gone.
    pub fn remove_user(&mut self, user: UserId, slot: Slot) -> Edge {
        let Some(slots) = self.users.get_mut(&user) else {
            return Edge::No;
        };
        slots.retain(|known| *known != slot);
        if slots.is_empty() {
            self.users.remove(&user);
            return Edge::Yes;
        }
        Edge::No
    }

    /// The connection begins to get a conversation.
    pub fn begin(&mut self, conversation: ConversationId, slot: Slot) {
        self.conversations.entry(conversation).or_default().push(slot);
    }

    /// The connection no longer gets it. The order of the others may change. Whether it was the last one.
    pub fn end(&mut self, conversation: ConversationId, slot: Slot) -> Edge {
        let Some(slots) = self.conversations.get_mut(&conversation) else {
            return Edge::No;
        };
        // Four bytes a place: a scan over ten thousand is a microsecond, and leaving is rare beside delivering.
        if let Some(at) = slots.iter().position(|known| *known == slot) {
            slots.swap_remove(at);
        }
        if slots.is_empty() {
            self.conversations.remove(&conversation);
            return Edge::Yes;
        }
        Edge::No
    }

    /// Whether any connection gets the conversation.
    #[must_use]
    pub fn has(&self, conversation: &ConversationId) -> bool {
        self.conversations.contains_key(conversation)
    }

    /// The user's connections here.
    #[must_use]
    pub fn of_user(&self, user: UserId) -> &[Slot] {
        self.users.get(&user).map_or(&[], |slots| slots)
    }

    /// Takes the conversation's connections out, so that they can be walked while connections change; give them back with
    /// [`Index::put_back`]. Nothing may begin or end meanwhile.
    pub fn take(&mut self, conversation: &ConversationId) -> Vec<Slot> {
        self.conversations.get_mut(conversation).map(std::mem::take).unwrap_or_default()
    }

    /// See [`Index::take`].
    pub fn put_back(&mut self, conversation: &ConversationId, slots: Vec<Slot>) {
        if let Some(place) = self.conversations.get_mut(conversation) {
            *place = slots;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_connection_of_a_user_are_told_apart() {
        let mut index = Index::default();
        assert_eq!(index.add_user(UserId(1), 10), Edge::Yes);
        assert_eq!(index.add_user(UserId(1), 11), Edge::No);
        assert_eq!(index.of_user(UserId(1)), [10, 11]);
        assert_eq!(index.remove_user(UserId(1), 10), Edge::No);
        assert_eq!(index.remove_user(UserId(1), 11), Edge::Yes);
        assert_eq!(index.of_user(UserId(1)), [0_u32; 0]);
        assert_eq!(index.remove_user(UserId(1), 11), Edge::No);
    }

    #[test]
    fn a_conversation_without_connections_is_forgotten() {
        let mut index = Index::default();
        let room = ConversationId::Room(tidegate_core::ids::RoomId(1));
        index.begin(room, 1);
        index.begin(room, 2);
        assert_eq!(index.end(room, 1), Edge::No);
        let slots = index.take(&room);
        assert_eq!(slots, [2]);
        index.put_back(&room, slots);
        assert_eq!(index.end(room, 2), Edge::Yes);
        assert!(index.conversations.is_empty());
    }
}
