//! Rooms: making, listing, joining, leaving and slowing them.
//!
//! In go users and room ids, out come rooms; every change is committed to the archive first and then announced to all
//! gateways through the push port, so that live sessions and caches follow. Must always hold: what the archive took is
//! answered with success. An announcement that fails within its bound is counted and logged; the affected sessions catch
//! up at their next login, and a repeated join announces again; a slow mode is seen within a minute all the same.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};

use crate::clock::Clock;
use crate::event::{Membership, PushEvent};
use crate::ids::{ConversationId, RoomId, UserId};
use crate::limits::{NAME_CHARS_MAX, ROOM_CAPACITY_MIN, ROOM_MEMBERS_MAX, ROOMS_PAGE_MAX, SLOW_MODE_S_MAX};
use crate::meter;
use crate::ports::{Archive as _, Backend, HotStore as _, Joined, PushQueue as _, PushTarget, Room, UnreadCount, User};

use super::{ServiceError, ServiceResult};

/// Waits before each try to announce a change. A broker that restarts needs longer; a hiccup does not.
const ANNOUNCE_DELAYS_MS: [u64; 3] = [0, 100, 400];

/// One try's bound, so that the whole call stays within a few seconds.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(1);

/// Rooms over a backend.
pub struct RoomService<B, C> {
    backend: Arc<B>,
    clock: C,
}

/// One page of the list of rooms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomPage {
    /// Newest first.
    pub rooms: Vec<Room>,
    /// Where the next page begins, if there may be one.
    pub next: Option<RoomId>,
}

impl<B: Backend, C: Clock> RoomService<B, C> {
    /// Rooms of `backend`.
    pub fn new(backend: Arc<B>, clock: C) -> Self {
        Self { backend, clock }
    }

    /// Makes a room of `capacity` (the most there may be if `None`) with `owner` as its first member.
    ///
    /// # Errors
    /// [`ServiceError::RoomNameInvalid`], [`ServiceError::RoomCapacityInvalid`], or a port's error.
    pub async fn create(&self, name: &str, owner: UserId, capacity: Option<u32>) -> ServiceResult<Room> {
        let name = legal_room_name(name).ok_or(ServiceError::RoomNameInvalid)?;
        let capacity = capacity.unwrap_or(ROOM_MEMBERS_MAX);
        if !(ROOM_CAPACITY_MIN..=ROOM_MEMBERS_MAX).contains(&capacity) {
            return Err(ServiceError::RoomCapacityInvalid);
        }
        let room = self.backend.archive().create_room(name, owner, capacity, self.clock.now()).await?;
        self.announce_membership(room.id, owner, Membership::Joined).await;
        Ok(room)
    }

    /// Rooms older than `before`, newest first, at most `size` and at most [`ROOMS_PAGE_MAX`].
    ///
    /// # Errors
    /// A port's error.
    pub async fn list(&self, before: Option<RoomId>, size: u32) -> ServiceResult<RoomPage> {
        let size = size.clamp(1, ROOMS_PAGE_MAX);
        let rooms = self.backend.archive().rooms(before, size).await?;
        let full = rooms.len() == size as usize;
        let next = rooms.last().map(|room| room.id).filter(|_| full);
        Ok(RoomPage { rooms, next })
    }

    /// One room.
    ///
    /// # Errors
    /// [`ServiceError::RoomUnknown`], or a port's error.
    pub async fn room(&self, room: RoomId) -> ServiceResult<Room> {
        self.backend.archive().room(room).await?.ok_or(ServiceError::RoomUnknown)
    }

    /// Makes `user` a member; it may be one already. Returns the room after it.
    ///
    /// # Errors
    /// [`ServiceError::RoomUnknown`], [`ServiceError::RoomFull`], or a port's error.
    pub async fn join(&self, room: RoomId, user: UserId) -> ServiceResult<Room> {
        match self.backend.archive().join_room(room, user, self.clock.now()).await? {
            // `Already` too: the first try may have died between the archive and the announcement.
            Joined::Now => {
                self.forget_unread(room, user).await;
                self.announce_membership(room, user, Membership::Joined).await;
            }
            Joined::Already => self.announce_membership(room, user, Membership::Joined).await,
            Joined::Full => return Err(ServiceError::RoomFull),
            Joined::NoRoom => return Err(ServiceError::RoomUnknown),
        }
        self.room(room).await
    }

    /// Makes `user` a member no more; it need not have been one, but the room must exist.
    ///
    /// # Errors
    /// [`ServiceError::RoomUnknown`], or a port's error.
    pub async fn leave(&self, room: RoomId, user: UserId) -> ServiceResult<()> {
        if self.backend.archive().leave_room(room, user).await? {
            self.forget_unread(room, user).await;
            self.announce_membership(room, user, Membership::Left).await;
            return Ok(());
        }
        // Nothing is announced here: anybody could make every member of every room hear of it.
        self.room(room).await.map(|_| ())
    }

    /// Has every user but the owner wait `slow_mode_s` seconds between two messages; 0 ends it. Only `owner`, the room's, may
    /// do that. Returns the room after it.
    ///
    /// # Errors
    /// [`ServiceError::SlowModeInvalid`], [`ServiceError::RoomUnknown`], [`ServiceError::NotOwner`], or a port's error.
    pub async fn set_slow_mode(&self, room: RoomId, owner: UserId, slow_mode_s: u32) -> ServiceResult<Room> {
        if slow_mode_s > SLOW_MODE_S_MAX {
            return Err(ServiceError::SlowModeInvalid);
        }
        if self.room(room).await?.owner != owner {
            return Err(ServiceError::NotOwner);
        }
        if !self.backend.archive().set_slow_mode(room, slow_mode_s).await? {
            return Err(ServiceError::RoomUnknown);
        }
        self.announce(PushEvent::RoomChanged(room)).await;
        self.room(room).await
    }

    /// Who is in a room, by ascending id. Any user may ask, as for the room itself.
    ///
    /// # Errors
    /// [`ServiceError::RoomUnknown`], or a port's error.
    pub async fn members(&self, room: RoomId) -> ServiceResult<Vec<User>> {
        self.room(room).await?;
        let ids = self.backend.archive().members(&[room]).await?.pop().unwrap_or_default();
        let mut users = self.backend.archive().users(&ids).await?;
        users.sort_unstable_by_key(|user| user.id);
        Ok(users)
    }

    /// The rooms a user is in, by ascending id.
    ///
    /// # Errors
    /// A port's error.
    pub async fn rooms_of(&self, user: UserId) -> ServiceResult<Vec<RoomId>> {
        let mut rooms = self.backend.archive().rooms_of(user).await?;
        rooms.sort_unstable();
        Ok(rooms)
    }

    /// What was written before a join is not unread, and what was not read before leaving neither. If the hot store cannot be
    /// reached, the count is wrong in the fast view only: logins show the archive's.
    async fn forget_unread(&self, room: RoomId, user: UserId) {
        let conversation = ConversationId::Room(room);
        let reset = async {
            let ends = self.backend.archive().ends(&[conversation]).await?;
            let counted_to = ends.first().map(|end| end.last).unwrap_or_default();
            self.backend.hot().set_unread(&[(user, UnreadCount { conversation, unread: 0, counted_to })]).await
        };
        if let Err(error) = reset.await {
            tracing::warn!(%error, "could not reset an unread count");
        }
    }

    async fn announce_membership(&self, room: RoomId, user: UserId, change: Membership) {
        self.announce(PushEvent::MembershipChanged { conversation: ConversationId::Room(room), user, change }).await;
    }

    /// Tells every gateway, within a bound. A repetition is harmless to them.
    async fn announce(&self, event: PushEvent) {
        let mut why = String::new();
        for delay_ms in ANNOUNCE_DELAYS_MS {
            if delay_ms > 0 {
                self.clock.sleep(Duration::from_millis(delay_ms)).await;
            }
            let publish = self.backend.push().publish(vec![(PushTarget::All, vec![event.clone()])]);
            match select(pin!(publish), pin!(self.clock.sleep(ANNOUNCE_TIMEOUT))).await {
                Either::Left((Ok(_), _)) => return,
                Either::Left((Err(error), _)) => why = error.to_string(),
                Either::Right(_) => "no confirm in time".clone_into(&mut why),
            }
        }
        metrics::counter!(meter::ROOM_UNANNOUNCED).increment(1);
        tracing::warn!(?event, why, "a change of a room was not announced");
    }
}

/// The name as it is kept, if it is one: characters that people see, of any script, and single spaces between.
fn legal_room_name(name: &str) -> Option<&str> {
    let name = name.trim();
    let chars = name.chars().take(NAME_CHARS_MAX + 1).count();
    // Controls, and what changes the look of other text: marks of direction, joiners, separators, byte order mark.
    let unseen = |c: char| {
        c.is_control()
            || (c.is_whitespace() && c != ' ')
            || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    ((1..=NAME_CHARS_MAX).contains(&chars) && !name.contains(unseen)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Millis;
    use crate::services::testing::{Impatient, World};

    #[tokio::test]
    async fn a_broker_that_hangs_does_not_hold_a_change_up() {
        let world = Arc::new(World::new());
        let owner = world.archive().create_user("bob", "", Millis(1)).await.expect("in memory").expect("the first bob");
        let rooms = RoomService::new(world, Impatient);
        let room = rooms.create("den", owner, None).await.expect("the archive took it");
        assert_eq!(rooms.rooms_of(owner).await, Ok(vec![room.id]));
    }

    #[test]
    fn room_names_are_what_people_see() {
        for name in ["x", "Den of bob", "房间 1", "🎲!", &"x".repeat(32)] {
            assert_eq!(legal_room_name(name), Some(name));
        }
        for name in ["", " \t ", "a\nb", "a\u{a0}b", "a\u{200b}", "\u{feff}a", "a\u{202e}b", &"x".repeat(33)] {
            assert_eq!(legal_room_name(name), None, "{name:?}");
        }
    }
}
