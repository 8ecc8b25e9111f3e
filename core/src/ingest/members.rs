//! Who is in a room, as the ingest engine needs it: a bounded cache over the archive, kept current by membership events.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;

use crate::ids::{RoomId, UserId};
use crate::ports::{Archive, PortResult};
use crate::recent::Recent;

/// Rooms per generation of the cache.
const ROOMS_MAX: usize = 16 * 1024;

/// Room to members. Locked once per batch, never across an await.
pub struct Members(Mutex<State>);

struct State {
    rooms: Recent<RoomId, Arc<[UserId]>>,
    /// Counts what was forgotten. A look-up that began before a change does not store its answer after it.
    changes: u64,
}

impl Default for Members {
    fn default() -> Self {
        Self(Mutex::new(State { rooms: Recent::new(ROOMS_MAX), changes: 0 }))
    }
}

impl Members {
    /// The room changed.
    pub fn forget(&self, room: RoomId) {
        let mut state = self.lock();
        state.rooms.remove(&room);
        state.changes += 1;
    }

    /// Changes may have been missed.
    pub fn forget_all(&self) {
        let mut state = self.lock();
        state.rooms.clear();
        state.changes += 1;
    }

    /// The members of each of `rooms`; the archive is asked once for all that are not known.
    ///
    /// # Errors
    /// The archive's.
    pub async fn of<A: Archive>(&self, rooms: &[RoomId], archive: &A) -> PortResult<FxHashMap<RoomId, Arc<[UserId]>>> {
        let mut members = FxHashMap::default();
        let (unknown, changes_before) = {
            let mut state = self.lock();
            let mut unknown = Vec::new();
            for room in rooms {
                match state.rooms.get(room) {
                    Some(known) => drop(members.insert(*room, Arc::clone(known))),
                    None => unknown.push(*room),
                }
            }
            (unknown, state.changes)
        };
        if unknown.is_empty() {
            return Ok(members);
        }
        let found = archive.members(&unknown).await?;
        let mut state = self.lock();
        let unchanged = state.changes == changes_before;
        for (room, users) in unknown.into_iter().zip(found) {
            let users: Arc<[UserId]> = users.into();
            if unchanged {
                state.rooms.insert(room, Arc::clone(&users));
            }
            members.insert(room, users);
        }
        Ok(members)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
