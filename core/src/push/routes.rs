//! Which shards of this gateway hold a user: written by the shards as connections come and go, read by the push engine.

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use crate::delivery::{ShardId, ShardSet};
use crate::ids::UserId;

/// User to shards. Each shard sets and clears only its own bit.
#[derive(Debug, Default)]
pub struct Routes {
    users: DashMap<UserId, ShardSet>,
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

    /// Everybody who is here.
    #[must_use]
    pub fn users(&self) -> Vec<UserId> {
        self.users.iter().map(|entry| *entry.key()).collect()
    }
}
