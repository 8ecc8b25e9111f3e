//! Which limits hold where, as the operator set them.
//!
//! In goes a conversation, out come the limits of one user and of all users there. The first rule whose pattern fits decides;
//! without one, rooms and lobbies have the default, and private conversations no limit.

use super::limit::Limit;
use crate::ids::ConversationId;
use crate::pattern::Pattern;

/// What may be sent into a conversation. `None`: any amount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// By each user.
    pub user: Option<Limit>,
    /// By all users together.
    pub conversation: Option<Limit>,
}

/// The limits of all conversations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SendLimits {
    default: Limits,
    rules: Vec<(Pattern, Limits)>,
}

impl SendLimits {
    /// `rules` in their order of precedence, and what holds in other rooms and lobbies.
    #[must_use]
    pub fn new(default: Limits, rules: Vec<(Pattern, Limits)>) -> Self {
        Self { default, rules }
    }

    /// Whether there are rules. Looking for the right one is too slow to be done for each message.
    #[must_use]
    pub fn has_rules(&self) -> bool {
        !self.rules.is_empty()
    }

    /// What holds in a conversation.
    #[must_use]
    pub fn of(&self, conversation: &ConversationId) -> Limits {
        match self.rules.iter().find(|(pattern, _)| pattern.matches(conversation)) {
            Some((_, limits)) => *limits,
            None => self.without_rules(conversation),
        }
    }

    /// What holds in a conversation that no rule is about.
    #[must_use]
    pub fn without_rules(&self, conversation: &ConversationId) -> Limits {
        match conversation {
            ConversationId::Private { .. } => Limits::default(),
            ConversationId::Room(_) | ConversationId::Lobby(_) => self.default,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_fits_decides() {
        let limits = |per_s| Limits { user: Limit::per_second(per_s, 1), conversation: None };
        let rule = |pattern: &str, per_s| (pattern.parse().expect("a pattern"), limits(per_s));
        let rules = vec![rule("lobby_main", 1), rule("lobby_*", 2), rule("lobby_eu", 3), rule("p_1_*", 4)];
        let limits_set = SendLimits::new(limits(9), rules);
        for (conversation, expected) in [("lobby_main", 1), ("lobby_eu", 2), ("r_1", 9), ("p_1_2", 4), ("p_2_3", 0)] {
            let of = limits_set.of(&conversation.parse().expect("an id"));
            assert_eq!(of, limits(expected), "{conversation}");
        }
    }
}
