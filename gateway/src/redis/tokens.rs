//! Login tokens in the layout of Sa-Token: `<token name>:<login type>:token:<token>` holds the login id as plain text.
//!
//! What must hold: only the plain string keys are needed, and a value we do not understand is nobody's token. Freezing
//! (`last-active`) and banning (`disable`) are other keys of Sa-Token and are not looked at.

use fred::interfaces::KeysInterface;
use fred::types::{Expiration, Key, Value};
use std::time::Duration;
use tidegate_core::ids::UserId;
use tidegate_core::ports::{PortResult, TokenState};

use super::{CALL_KEYS_MAX, RedisHotStore, millis, unexpected};

impl RedisHotStore {
    pub(super) async fn put(&self, token: &str, user: UserId, ttl: Duration) -> PortResult<()> {
        let key = self.keys.token(token);
        let expiration = Some(Expiration::PX(millis(ttl)));
        self.link
            .call(async |within| {
                within.client().set::<(), _, _>(key, user.0.to_string(), expiration, None, false).await
            })
            .await
    }

    pub(super) async fn states(&self, tokens: &[&str]) -> PortResult<Vec<TokenState>> {
        let mut states = Vec::with_capacity(tokens.len());
        for tokens in tokens.chunks(CALL_KEYS_MAX) {
            let keys: Vec<Key> = tokens.iter().map(|token| self.keys.token(token)).collect();
            // As a plain value: fred turns an array of one into its item when asked for anything narrower.
            let reply: Value = self.link.call(async |within| within.client().mget(keys).await).await?;
            match reply {
                Value::Array(values) if values.len() == tokens.len() => states.extend(values.iter().map(state)),
                value if tokens.len() == 1 => states.push(state(&value)),
                _ => return Err(unexpected("mget")),
            }
        }
        Ok(states)
    }

    pub(super) async fn delete(&self, token: &str) -> PortResult<bool> {
        let key = self.keys.token(token);
        let deleted: i64 = self.link.call(async |within| within.client().del(key).await).await?;
        Ok(deleted > 0)
    }
}

/// Sa-Token (`NotLoginException`) keeps a marker in place of the login id: -3 timed out, -4 replaced by another login,
/// -5 kicked by an operator. The other markers are computed and never stored.
fn state(value: &Value) -> TokenState {
    let Some(text) = value.as_str() else { return TokenState::Unknown };
    if matches!(&*text, "-3" | "-4" | "-5") {
        return TokenState::Expired;
    }
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let id = text.parse::<i64>().ok().filter(|_| plain).and_then(|id| u64::try_from(id).ok()).filter(|id| *id > 0);
    id.map_or(TokenState::Unknown, |id| TokenState::Valid(UserId(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_login_id_is_valid() {
        let user = |id| TokenState::Valid(UserId(id));
        let cases = [
            ("10001", user(10_001)),
            ("9223372036854775807", user(i64::MAX.cast_unsigned())),
            ("-3", TokenState::Expired),
            ("-4", TokenState::Expired),
            ("-5", TokenState::Expired),
            ("-6", TokenState::Unknown),
            ("-1", TokenState::Unknown),
            ("0", TokenState::Unknown),
            ("+7", TokenState::Unknown),
            ("9223372036854775808", TokenState::Unknown),
            ("", TokenState::Unknown),
            ("\u{4}kryo", TokenState::Unknown),
        ];
        for (text, expected) in cases {
            assert_eq!(state(&Value::from(text)), expected, "{text:?}");
        }
        assert_eq!(state(&Value::Null), TokenState::Unknown);
    }
}
