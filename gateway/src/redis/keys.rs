//! Every key of Redis, spelled once. Other services read most of them: a change here breaks those.
//!
//! Names from the domain come in, keys go out; braces in the documented forms are placeholders, not hash tags.
//!
//! What must hold: every key begins with the configured prefix (empty where others read along), and what is ours alone is
//! marked so below.

use std::fmt::{Display, Write as _};

use fred::types::Key;
use tidegate_core::ids::{ConversationId, UserId};
use tidegate_core::ports::{AllowanceKey, Holder};

use super::config::RedisConfig;

/// Makes keys.
pub(super) struct Keys {
    prefix: String,
    /// `satoken:login`, unless configured otherwise.
    token_space: String,
}

impl Keys {
    pub(super) fn new(config: &RedisConfig) -> Self {
        let token_space = format!("{}:{}", config.token_name, config.login_type);
        Self { prefix: config.key_prefix.clone(), token_space }
    }

    /// `seq:conv:{conversation_id}`: text, the last sequence given.
    pub(super) fn sequence(&self, conversation: &ConversationId) -> Key {
        self.key("seq:conv:", conversation)
    }

    /// `seq:kept:{conversation_id}`: text, epoch and sequence up to which the archive has committed. Ours alone.
    pub(super) fn kept(&self, conversation: &ConversationId) -> Key {
        self.key("seq:kept:", conversation)
    }

    /// `lobby:cache:{conversation_id}`: list of encoded `tidegate.v1.Message`, oldest first, without a gap: the newest of a
    /// room or lobby in signal gear; bounded, and gone soon after.
    pub(super) fn cache(&self, conversation: &ConversationId) -> Key {
        self.key("lobby:cache:", conversation)
    }

    /// `lobby:lots:{conversation_id}`: text, which messages those are and when they came; see `cache.lua`. Ours alone.
    pub(super) fn cache_lots(&self, conversation: &ConversationId) -> Key {
        self.key("lobby:lots:", conversation)
    }

    /// `user:status:{user_id}`: hash, `gatewayId` and places; expires unless renewed. See `change_presence.lua`.
    pub(super) fn status(&self, user: UserId) -> Key {
        self.key("user:status:", &user.0)
    }

    /// `gateway:beats`: hash, gateway -> its last sign of life; see `beat.lua`. Ours alone.
    pub(super) fn beats(&self) -> Key {
        Key::from(format!("{}gateway:beats", self.prefix))
    }

    /// `offline:msg:{user_id}`: list of encoded `tidegate.v1.Message`, oldest first, bounded.
    pub(super) fn inbox(&self, user: UserId) -> Key {
        self.key("offline:msg:", &user.0)
    }

    /// `offline:seqs:{user_id}`: hash, conversation -> highest sequence ever put into the inbox. Ours alone.
    pub(super) fn inbox_guard(&self, user: UserId) -> Key {
        self.key("offline:seqs:", &user.0)
    }

    /// `user:unread:counts:{user_id}`: hash, conversation -> count above zero.
    pub(super) fn unread_counts(&self, user: UserId) -> Key {
        self.key("user:unread:counts:", &user.0)
    }

    /// `user:unread:seqs:{user_id}`: hash, what makes the counts exact; see `unread.lua`. Ours alone.
    pub(super) fn unread_tallies(&self, user: UserId) -> Key {
        self.key("user:unread:seqs:", &user.0)
    }

    /// `send:debt:{conversation_id}`, with `:u{user_id}` or `:s{user_id}` behind it: text, when the allowance to send of all users,
    /// of one, or of one in slow mode is whole again, in Unix microseconds; expires soon after. See `spend.lua`. Ours alone.
    pub(super) fn debt(&self, allowance: &AllowanceKey) -> Key {
        let AllowanceKey { conversation, holder } = allowance;
        match holder {
            Holder::Everybody => self.key("send:debt:", conversation),
            Holder::User(user) => self.key("send:debt:", &format_args!("{conversation}:u{}", user.0)),
            Holder::Slow(user) => self.key("send:debt:", &format_args!("{conversation}:s{}", user.0)),
        }
    }

    /// `satoken:login:token:{token}`: text, the login id; expires with the login (Sa-Token, `StpLogic.splicingKeyTokenValue`).
    pub(super) fn token(&self, token: &str) -> Key {
        Key::from(format!("{}{}:token:{token}", self.prefix, self.token_space))
    }

    fn key(&self, space: &str, name: &impl Display) -> Key {
        let mut key = String::with_capacity(self.prefix.len() + space.len() + 32);
        key.push_str(&self.prefix);
        key.push_str(space);
        write!(key, "{name}").expect("a String takes any text");
        Key::from(key)
    }
}
