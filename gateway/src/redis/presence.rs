//! Presence: what `change_presence.lua`, `presence.lua` and `beat.lua` take and return.
//!
//! Changes or users of the port come in, places go out, cut into calls of a bounded size; a change is not sent before the
//! one ahead of it is done, because they apply in order.

use bytes::Bytes;
use fred::types::{Key, Value};
use tidegate_core::ids::{GatewayId, SessionId, UserId};
use tidegate_core::limits::DEVICE_ID_BYTES_MAX;
use tidegate_core::ports::{Beat, PortError, PortResult, Presence, PresenceChange};

use super::{CALL_KEYS_MAX, RedisHotStore, SERVICE, millis, unexpected};

const _: () = assert!(DEVICE_ID_BYTES_MAX <= u8::MAX as usize, "a device's length is packed into one byte");

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

    pub(super) async fn change_places(&self, changes: &[PresenceChange]) -> PortResult<()> {
        for changes in changes.chunks(CALL_KEYS_MAX) {
            let mut keys = Vec::with_capacity(1 + changes.len());
            keys.push(self.keys.beats());
            let mut packed = Vec::with_capacity(changes.len() * 48);
            for change in changes {
                let (verb, user, device, session) = match change {
                    PresenceChange::Here { user, device, session } => (b'H', user, device.as_str(), *session),
                    PresenceChange::Gone { user, device, session } => (b'G', user, device.as_str(), *session),
                    PresenceChange::Renewed { user } => (b'R', user, "", SessionId(0)),
                };
                let Ok(device_len) = u8::try_from(device.len()) else {
                    let detail = "a device's name is longer than the session allows".to_owned();
                    return Err(PortError::Refused { service: SERVICE, detail });
                };
                keys.push(self.keys.status(*user));
                packed.extend_from_slice(&[verb, device_len]);
                packed.extend_from_slice(device.as_bytes());
                packed.extend_from_slice(format!("{:016x}", session.0).as_bytes());
            }
            let args = vec![
                Value::from(self.gateway.as_str()),
                Value::from(millis(self.presence_ttl)),
                Value::Bytes(Bytes::from(packed)),
                Value::from(self.process.as_str()),
                Value::from(millis(self.gateway_ttl)),
            ];
            self.link.run(&self.scripts.change_presence, keys, args).await?;
        }
        Ok(())
    }

    pub(super) async fn say_that_it_lives(&self) -> PortResult<Beat> {
        let args = vec![
            Value::from(self.gateway.as_str()),
            Value::from(self.process.as_str()),
            Value::from(millis(self.gateway_ttl)),
        ];
        let reply = self.link.run(&self.scripts.beat, vec![self.keys.beats()], args).await?;
        match reply.as_i64() {
            Some(1) => Ok(Beat::Known),
            Some(0) => Ok(Beat::Unknown),
            _ => Err(unexpected("beat")),
        }
    }
}

/// A gateway's name that is none was written by somebody else and holds nobody for us.
fn read_places(text: &Value) -> Presence {
    let text = text.as_str().unwrap_or_default();
    let (uncertain, names) = text.strip_prefix('?').map_or((false, &*text), |names| (true, names));
    Presence { gateways: names.split(',').filter_map(|name| name.parse::<GatewayId>().ok()).collect(), uncertain }
}
