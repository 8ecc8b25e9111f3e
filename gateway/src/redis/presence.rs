//! Presence: what `change_presence.lua`, `presence.lua`, `resume.lua` and `beat.lua` take and return.
//!
//! Changes or users of the port come in, places go out, cut into calls of a bounded size; a change is not sent before the
//! one ahead of it is done, because they apply in order.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use fred::types::{Key, Value};
use tidegate_core::ids::{Attachment, GatewayId, LobbyName, SessionId, UserId};
use tidegate_core::limits::{DEVICE_ID_BYTES_MAX, LATE_LOGIN_MS, LOBBY_ID_BYTES_MAX, SESSION_GRACE, WATCHES_MAX};
use tidegate_core::ports::{Beat, PortError, PortResult, Presence, PresenceChange, PresenceOutcome};

use super::{CALL_KEYS_MAX, RedisHotStore, SERVICE, millis, unexpected};

const _: () = assert!(DEVICE_ID_BYTES_MAX <= u8::MAX as usize, "a device's length is packed into one byte");
const _: () = assert!(WATCHES_MAX * (LOBBY_ID_BYTES_MAX + 1) <= u16::MAX as usize, "watches are packed behind a u16");

impl RedisHotStore {
    pub(super) async fn places(&self, users: &[UserId]) -> PortResult<Vec<Presence>> {
        let mut places = Vec::with_capacity(users.len());
        for users in users.chunks(CALL_KEYS_MAX) {
            let statuses = users.iter().map(|user| self.keys.status(*user));
            let keys: Vec<Key> = std::iter::once(self.keys.beats()).chain(statuses).collect();
            let args = vec![Value::from(millis(self.gateway_ttl))];
            let reply = self.link.run(&self.scripts.presence, keys, args).await?;
            let Value::Array(texts) = reply else { return Err(unexpected("presence")) };
            if texts.len() != users.len() {
                return Err(unexpected("presence"));
            }
            places.extend(texts.iter().map(read_places));
        }
        Ok(places)
    }

    pub(super) async fn change_places(&self, changes: &[PresenceChange]) -> PortResult<Vec<PresenceOutcome>> {
        let mut outcomes = Vec::with_capacity(changes.len());
        for changes in changes.chunks(CALL_KEYS_MAX) {
            let mut keys = Vec::with_capacity(1 + changes.len());
            keys.push(self.keys.beats());
            let mut packed = Vec::with_capacity(changes.len() * 96);
            for change in changes {
                keys.push(self.keys.status(pack(change, &mut packed)?));
            }
            let args = vec![
                Value::from(self.gateway.as_str()),
                Value::from(millis(self.presence_ttl)),
                Value::from(millis(SESSION_GRACE)),
                Value::Bytes(Bytes::from(packed)),
                Value::from(self.process.as_str()),
                Value::from(millis(self.gateway_ttl)),
                Value::from(i64::try_from(LATE_LOGIN_MS).expect("a second")),
            ];
            let reply = self.link.run(&self.scripts.change_presence, keys, args).await?;
            let Value::Array(texts) = reply else { return Err(unexpected("change_presence")) };
            if texts.len() != changes.len() {
                return Err(unexpected("change_presence"));
            }
            for text in &texts {
                let text = text.as_str().unwrap_or_default();
                outcomes.push(read_outcome(&text).ok_or_else(|| unexpected("change_presence"))?);
            }
        }
        Ok(outcomes)
    }

    pub(super) async fn kept_session(
        &self,
        user: UserId,
        device: &str,
        session: SessionId,
    ) -> PortResult<Option<Vec<LobbyName>>> {
        let args = vec![Value::from(format!("device:{device}")), Value::from(hex(session.0))];
        let reply = self.link.run(&self.scripts.resume, vec![self.keys.status(user)], args).await?;
        // A lobby that is no longer a legal name is not watched any more.
        let lobbies = |text: &str| text.split(',').filter_map(|name| name.parse().ok()).collect();
        Ok(reply.as_str().map(|text| lobbies(&text)))
    }

    pub(super) async fn say_that_it_lives(&self) -> PortResult<Beat> {
        let args = vec![
            Value::from(self.gateway.as_str()),
            Value::from(self.process.as_str()),
            Value::from(millis(self.gateway_ttl)),
        ];
        let outages = self.link.outages();
        let reply = self.link.run(&self.scripts.beat, vec![self.keys.beats()], args).await?;
        // After an outage it may be a replica that has taken over and remembers an earlier beat, but not all that followed.
        let was_away = self.outages_beaten.swap(outages, Ordering::AcqRel) != outages;
        match reply.as_i64() {
            Some(1) if !was_away => Ok(Beat::Known),
            Some(0 | 1) => Ok(Beat::Unknown),
            _ => Err(unexpected("beat")),
        }
    }
}

/// Appends a change as `change_presence.lua` reads it. Returns whose it is.
fn pack(change: &PresenceChange, packed: &mut Vec<u8>) -> PortResult<UserId> {
    let (verb, user, device, session, attachment, watching) = match change {
        PresenceChange::Here(hold) => {
            (b'H', hold.user, &hold.device, hold.session, hold.attachment, hold.watching.as_slice())
        }
        PresenceChange::Renewed(hold) => {
            (b'R', hold.user, &hold.device, hold.session, hold.attachment, hold.watching.as_slice())
        }
        PresenceChange::Gone { user, device, attachment } => (b'G', *user, device, SessionId(0), *attachment, &[][..]),
    };
    let watching = watching.iter().map(LobbyName::as_str).collect::<Vec<_>>().join(",");
    let (Ok(device_len), Ok(watching_len)) = (u8::try_from(device.len()), u16::try_from(watching.len())) else {
        let detail = "a device's name or its watches are longer than the session allows".to_owned();
        return Err(PortError::Refused { service: SERVICE, detail });
    };
    packed.extend_from_slice(&[verb, device_len]);
    packed.extend_from_slice(device.as_bytes());
    packed.extend_from_slice(hex(session.0).as_bytes());
    packed.extend_from_slice(hex(attachment.0).as_bytes());
    packed.extend_from_slice(&watching_len.to_be_bytes());
    packed.extend_from_slice(watching.as_bytes());
    Ok(user)
}

/// What `change_presence.lua` says of one change.
fn read_outcome(text: &str) -> Option<PresenceOutcome> {
    match text {
        "" => Some(PresenceOutcome::Done),
        "L" => Some(PresenceOutcome::Lost),
        "X" => Some(PresenceOutcome::HeldByAnother),
        _ => {
            let (gateway, attachment) = text.strip_prefix('T')?.split_once('|')?;
            // One that an older release or somebody else wrote has no name to be told by.
            let taken = gateway.parse().ok().zip(u64::from_str_radix(attachment, 16).ok());
            Some(taken.map_or(PresenceOutcome::Done, |(gateway, attachment)| PresenceOutcome::TakenFrom {
                gateway,
                attachment: Attachment(attachment),
            }))
        }
    }
}

fn hex(number: u64) -> String {
    format!("{number:016x}")
}

/// A gateway's name that is none was written by somebody else and holds nobody for us.
fn read_places(text: &Value) -> Presence {
    let text = text.as_str().unwrap_or_default();
    let (uncertain, names) = text.strip_prefix('?').map_or((false, &*text), |names| (true, names));
    Presence { gateways: names.split(',').filter_map(|name| name.parse::<GatewayId>().ok()).collect(), uncertain }
}
