//! Presence: the twin of `change_presence.lua`, `presence.lua` and `resume.lua`.
//!
//! Changes of one gateway's sessions come in, the gateways that hold a user go out.
//!
//! What must hold: only the connection that holds a device can end its presence, what nobody renews is over after
//! [`crate::limits::PRESENCE_TTL`], and a session whose connection ended after [`crate::limits::SESSION_GRACE`].

use rustc_hash::FxHashMap;

use crate::ids::{Attachment, GatewayId, LobbyName, Millis, SessionId, UserId};
use crate::limits::{PRESENCE_TTL, SESSION_GRACE};
use crate::ports::{Hold, Presence, PresenceChange, PresenceOutcome};

use super::after;

/// Users between two looks for what has expired.
const PURGE_STEP: usize = 1024;

/// Who has a device.
#[derive(Clone)]
struct Place {
    device: String,
    /// `None`: the connection ended, and the session waits to be resumed.
    gateway: Option<GatewayId>,
    session: SessionId,
    attachment: Attachment,
    watching: Vec<LobbyName>,
    until: Millis,
}

impl Place {
    fn of(hold: &Hold, gateway: &GatewayId, until: Millis) -> Self {
        Self {
            device: hold.device.clone(),
            gateway: Some(gateway.clone()),
            session: hold.session,
            attachment: hold.attachment,
            watching: hold.watching.clone(),
            until,
        }
    }
}

/// Where everybody is.
#[derive(Clone, Default)]
pub(super) struct Places {
    users: FxHashMap<UserId, Vec<Place>>,
    purge_at: usize,
}

impl Places {
    /// Applies one change made by `gateway`.
    pub(super) fn change(&mut self, gateway: &GatewayId, change: &PresenceChange, now: Millis) -> PresenceOutcome {
        match change {
            PresenceChange::Here(hold) => {
                self.purge(now);
                let (places, before) = self.take(hold.user, &hold.device, now);
                let (place, outcome) = match before {
                    Some(later) if later.gateway.is_some() && later.attachment.is_well_after(hold.attachment) => {
                        (later, PresenceOutcome::HeldByAnother)
                    }
                    Some(Place { gateway: Some(held_by), attachment, .. }) if attachment != hold.attachment => (
                        Place::of(hold, gateway, after(now, PRESENCE_TTL)),
                        PresenceOutcome::TakenFrom { gateway: held_by, attachment },
                    ),
                    _ => (Place::of(hold, gateway, after(now, PRESENCE_TTL)), PresenceOutcome::Done),
                };
                places.push(place);
                outcome
            }
            PresenceChange::Renewed(hold) => {
                let (places, before) = self.take(hold.user, &hold.device, now);
                let (place, outcome) = match before {
                    Some(other) if other.attachment > hold.attachment => (other, PresenceOutcome::HeldByAnother),
                    Some(same) if same.attachment == hold.attachment => {
                        (Place::of(hold, gateway, after(now, PRESENCE_TTL)), PresenceOutcome::Done)
                    }
                    _ => (Place::of(hold, gateway, after(now, PRESENCE_TTL)), PresenceOutcome::Lost),
                };
                places.push(place);
                outcome
            }
            PresenceChange::Gone { user, device, attachment } => {
                let (places, before) = self.take(*user, device, now);
                if let Some(mut place) = before {
                    if place.attachment == *attachment && place.gateway.take().is_some() {
                        place.until = after(now, SESSION_GRACE);
                    }
                    places.push(place);
                }
                PresenceOutcome::Done
            }
        }
    }

    /// What the session watched.
    pub(super) fn resume(&self, user: UserId, device: &str, session: SessionId, now: Millis) -> Option<Vec<LobbyName>> {
        let is_it = |place: &&Place| place.device == device && place.session == session && place.until > now;
        self.users.get(&user)?.iter().find(is_it).map(|place| place.watching.clone())
    }

    /// Where a user is.
    pub(super) fn of(&self, user: UserId, now: Millis) -> Presence {
        let mut gateways: Vec<GatewayId> = Vec::new();
        for place in self.users.get(&user).into_iter().flatten().filter(|place| place.until > now) {
            if let Some(gateway) = &place.gateway
                && !gateways.contains(gateway)
            {
                gateways.push(gateway.clone());
            }
        }
        Presence { gateways, uncertain: false }
    }

    /// The user's places without those that are over, and the device's out of them.
    fn take(&mut self, user: UserId, device: &str, now: Millis) -> (&mut Vec<Place>, Option<Place>) {
        let places = self.users.entry(user).or_default();
        places.retain(|place| place.until > now);
        let at = places.iter().position(|place| place.device == device);
        let place = at.map(|at| places.swap_remove(at));
        (places, place)
    }

    /// Looks for what has expired whenever the number of users has doubled: constant time per change.
    fn purge(&mut self, now: Millis) {
        if self.users.len() >= self.purge_at {
            self.users.retain(|_, places| places.iter().any(|place| place.until > now));
            self.purge_at = (2 * self.users.len()).max(PURGE_STEP);
        }
    }
}
