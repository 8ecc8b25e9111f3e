//! The slow modes of rooms, as acceptors need them: a bounded cache over the archive.
//!
//! Events of changed rooms make it forget ([`Paces::forget`]); a change that could not be announced is seen when what is
//! known has become old. A look-up that began before a change does not store its answer after it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;

use crate::ids::{Millis, RoomId, UserId};
use crate::ports::{Archive, PortResult};
use crate::recent::Recent;

/// Rooms per generation of the cache.
const ROOMS_MAX: usize = 16 * 1024;

/// How long what was read counts.
const AGE_MAX_MS: u64 = 60_000;

/// How fast a room may be written into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Seconds between two messages of one user; 0: any.
    pub slow_mode_s: u32,
    /// Who need not wait: the room's owner.
    pub owner: UserId,
}

impl Pace {
    /// Of lobbies and private conversations, and of rooms nobody knows.
    pub const ANY: Self = Self { slow_mode_s: 0, owner: UserId::SYSTEM };
}

/// Room to pace. Locked once per batch, never across an await.
pub struct Paces(Mutex<State>);

struct State {
    rooms: Recent<RoomId, (Pace, Millis)>,
    /// Counts what was forgotten.
    changes: u64,
}

/// Rooms to be looked up, and the state of things when that was found.
pub struct UnknownRooms {
    rooms: Vec<RoomId>,
    changes: u64,
}

impl Default for Paces {
    fn default() -> Self {
        Self(Mutex::new(State { rooms: Recent::new(ROOMS_MAX), changes: 0 }))
    }
}

impl Paces {
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

    /// Fills in the paces of the rooms in `paces`. `None` if all are known; the others keep the one they have.
    pub fn fill(&self, now: Millis, paces: &mut FxHashMap<RoomId, Pace>) -> Option<UnknownRooms> {
        let mut state = self.lock();
        let mut unknown = Vec::new();
        for (room, pace) in paces {
            match state.rooms.get(room) {
                // A clock that was set back makes nothing younger.
                Some((known, at)) if now >= *at && now.0 - at.0 < AGE_MAX_MS => *pace = *known,
                _ => unknown.push(*room),
            }
        }
        let changes = state.changes;
        (!unknown.is_empty()).then_some(UnknownRooms { rooms: unknown, changes })
    }

    /// Looks up what [`Paces::fill`] did not know, in one call.
    ///
    /// # Errors
    /// The archive's; nothing is filled in then.
    pub async fn look_up<A: Archive>(
        &self,
        now: Millis,
        unknown: &UnknownRooms,
        paces: &mut FxHashMap<RoomId, Pace>,
        archive: &A,
    ) -> PortResult<()> {
        let found = archive.rooms_by_id(&unknown.rooms).await?;
        let mut state = self.lock();
        let unchanged = state.changes == unknown.changes;
        for room in found {
            let pace = Pace { slow_mode_s: room.slow_mode_s, owner: room.owner };
            paces.insert(room.id, pace);
            if unchanged {
                state.rooms.insert(room.id, (pace, now));
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
