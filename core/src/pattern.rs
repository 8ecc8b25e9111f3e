//! Patterns that choose conversations: a whole id such as `lobby_main`, or a beginning and a star such as `lobby_*` or `r_*`.

use std::fmt;
use std::str::FromStr;

use crate::ids::ConversationId;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: Box<str>,
    is_prefix: bool,
}

/// A text that is no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a pattern is a conversation's id, or its beginning and a star: lobby_main, lobby_*, r_*")]
pub struct PatternError;

impl Pattern {
    /// Whether the conversation is one of those meant.
    #[must_use]
    pub fn matches(&self, conversation: &ConversationId) -> bool {
        let id = conversation.to_string();
        if self.is_prefix { id.starts_with(&*self.text) } else { id == *self.text }
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let (text, is_prefix) = text.strip_suffix('*').map_or((text, false), |beginning| (beginning, true));
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
        let is_id = is_prefix || text.parse::<ConversationId>().is_ok();
        if is_id && text.bytes().all(legal) { Ok(Self { text: text.into(), is_prefix }) } else { Err(PatternError) }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, if self.is_prefix { "*" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_an_id_or_a_beginning() {
        let matches =
            |pattern: &str, id: &str| pattern.parse::<Pattern>().expect("legal").matches(&id.parse().expect("an id"));
        assert!(matches("lobby_main", "lobby_main") && !matches("lobby_main", "lobby_main2"));
        assert!(matches("lobby_*", "lobby_main") && !matches("lobby_*", "r_1"));
        assert!(matches("*", "p_1_2") && matches("r_7*", "r_77") && !matches("r_7", "r_77"));
        for wrong in ["", "lobby", "lobby_Main", "l*y", "r_0", "r_7 *"] {
            assert_eq!(wrong.parse::<Pattern>(), Err(PatternError), "{wrong:?}");
        }
    }
}
