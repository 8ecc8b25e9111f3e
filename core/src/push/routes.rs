//! Which shards of this gateway hold a user, and which watch a conversation: written by the shards as connections come and go,
//! read by the push engine.

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use crate::delivery::{ShardId, ShardSet};
use crate::ids::{ConversationId, UserId};
use smallvec::SmallVec;

/// User to shards. Each shard sets and clears only its own bit.
#[derive(Debug, Default)]
pub struct Routes {
    users: DashMap<UserId, ShardSet>,
    /// Connections on each shard.
    conversations: DashMap<ConversationId, SmallVec<[u32; 4]>>,
}

/// Who gets the pushes of a conversation here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watchers {
    /// Their shards.
    pub shards: ShardSet,
    /// Connections.
    pub count: u32,
}

impl Routes {
    /// The user has a connection on `shard` now.
    pub fn add(&self, user: UserId, shard: ShardId) {
        self.users.entry(user).or_default().0 |= ShardSet::only(shard).0;
    }

    /// The user's last connection on `shard` is gone.
    pub fn remove(&self, user: UserId, shard: ShardId) {
        if let Entry::Occupied(mut entry) = self.users.entry(user) {
            entry.get_mut().0 &= !ShardSet::only(shard).0;
            if entry.get().0 == 0 {
                entry.remove();
            }
        }
    }

    /// The shards that hold a connection of the user; empty if it is not here.
    #[must_use]
    pub fn shards_of(&self, user: UserId) -> ShardSet {
        self.users.get(&user).map(|entry| *entry).unwrap_or_default()
    }

    /// A connection on `shard` begins to get the conversation.
    pub fn watch(&self, conversation: ConversationId, shard: ShardId) {
        let mut counts = self.conversations.entry(conversation).or_default();
        let at = usize::from(shard.0);
        if counts.len() <= at {
            counts.resize(at + 1, 0);
        }
        counts[at] += 1;
    }

    /// A connection on `shard` no longer gets it.
    pub fn unwatch(&self, conversation: ConversationId, shard: ShardId) {
        if let Entry::Occupied(mut entry) = self.conversations.entry(conversation) {
            if let Some(count) = entry.get_mut().get_mut(usize::from(shard.0)) {
                *count = count.saturating_sub(1);
            }
            if entry.get().iter().all(|count| *count == 0) {
                entry.remove();
            }
        }
    }

    /// Who gets the conversation here; nobody, if nobody watches or is in it.
    #[must_use]
    pub fn watchers(&self, conversation: &ConversationId) -> Watchers {
        let Some(counts) = self.conversations.get(conversation) else { return Watchers::default() };
        let mut watchers = Watchers::default();
        for (shard, count) in (0_u8..).map(ShardId).zip(counts.iter()).filter(|(_, count)| **count > 0) {
            watchers.shards.0 |= ShardSet::only(shard).0;
            watchers.count += count;
        }
        watchers
    }

    /// Everybody who is here.
    #[must_use]
    pub fn users(&self) -> Vec<UserId> {
        self.users.iter().map(|entry| *entry.key()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchers_are_counted_by_shard_and_nobody_is_nothing() {
        let routes = Routes::default();
        let lobby = "lobby_main".parse().expect("a lobby");
        assert_eq!(routes.watchers(&lobby), Watchers::default());
        routes.watch(lobby, ShardId(3));
        routes.watch(lobby, ShardId(0));
        routes.watch(lobby, ShardId(3));
        assert_eq!(routes.watchers(&lobby), Watchers { shards: ShardSet(0b1001), count: 3 });
        routes.unwatch(lobby, ShardId(0));
        routes.unwatch(lobby, ShardId(3));
        assert_eq!(routes.watchers(&lobby), Watchers { shards: ShardSet(0b1000), count: 1 });
        routes.unwatch(lobby, ShardId(3));
        routes.unwatch(lobby, ShardId(3));
        assert!(routes.conversations.is_empty());
    }
}
