//! Presence: the twin of `change_presence.lua` and `presence.lua`.
//!
//! Changes of one gateway's sessions come in, the gateways that hold a user go out.
//!
//! What must hold: only the session that holds a device can end its presence, and what nobody renews is over after
//! [`crate::limits::PRESENCE_TTL`].

use rustc_hash::FxHashMap;

use crate::ids::{GatewayId, Millis, SessionId, UserId};
use crate::limits::PRESENCE_TTL;
use crate::ports::{Presence, PresenceChange};

/// Users between two looks for what has expired.
const PURGE_STEP: usize = 1024;

/// One device of a user, or (`device` is `None`) the bare fact that a gateway holds the user.
struct Held {
    device: Option<String>,
    gateway: GatewayId,
    session: SessionId,
    until: Millis,
}

/// Where everybody is.
#[derive(Default)]
pub(super) struct Places {
    users: FxHashMap<UserId, Vec<Held>>,
    purge_at: usize,
}

impl Places {
    /// Applies one change made by `gateway`.
    pub(super) fn change(&mut self, gateway: &GatewayId, change: &PresenceChange, now: Millis) {
        let ttl_ms = u64::try_from(PRESENCE_TTL.as_millis()).expect("seconds");
        let until = Millis(now.0 + ttl_ms);
        match change {
            PresenceChange::Here { user, device, session } => {
                self.purge(now);
                let places = self.users.entry(*user).or_default();
                places.retain(|held| held.until > now && held.device.as_ref() != Some(device));
                let (device, gateway) = (Some(device.clone()), gateway.clone());
                places.push(Held { device, gateway, session: *session, until });
            }
            PresenceChange::Gone { user, device, session } => {
                let Some(places) = self.users.get_mut(user) else { return };
                places.retain(|held| {
                    held.until > now && !(held.device.as_ref() == Some(device) && held.session == *session)
                });
                if places.is_empty() {
                    self.users.remove(user);
                }
            }
            PresenceChange::Renewed { user } => {
                let places = self.users.entry(*user).or_default();
                places.retain(|held| held.until > now);
                let mut renewed = 0;
                for held in places.iter_mut().filter(|held| held.gateway == *gateway && held.device.is_some()) {
                    held.until = until;
                    renewed += 1;
                }
                if renewed == 0 {
                    places.retain(|held| held.gateway != *gateway);
                    places.push(Held { device: None, gateway: gateway.clone(), session: SessionId(0), until });
                }
            }
        }
    }

    /// Where a user is.
    pub(super) fn of(&self, user: UserId, now: Millis) -> Presence {
        let mut gateways: Vec<GatewayId> = Vec::new();
        for held in self.users.get(&user).into_iter().flatten() {
            if held.until > now && !gateways.contains(&held.gateway) {
                gateways.push(held.gateway.clone());
            }
        }
        Presence { gateways, uncertain: false }
    }

    /// Looks for what has expired whenever the number of users has doubled: constant time per change.
    fn purge(&mut self, now: Millis) {
        if self.users.len() >= self.purge_at {
            self.users.retain(|_, places| places.iter().any(|held| held.until > now));
            self.purge_at = (2 * self.users.len()).max(PURGE_STEP);
        }
    }
}
