//! The section `[fairness]`: limits of sending, and the rules that differ from them.

use tidegate_core::fairness::limit::Limit;
use tidegate_core::fairness::rules::{Limits, SendLimits};
use tidegate_core::pattern::Pattern;

use super::error::ConfigError;
use super::reader::Reader;

/// Messages, per second or at once.
const NUMBER_MAX: u32 = 1_000_000;

const EXPECTED: &str = "a list of rules like \"lobby_main user_per_s=2 user_burst=5\": a conversation or the beginning of some \
     and a star, then at least one of user_per_s, user_burst, conversation_per_s and conversation_burst, each once, with a \
     whole number up to 1000000 (bursts from 1)";

/// The four numbers of the section, or of a rule on top of it.
#[derive(Clone, Copy)]
struct Numbers {
    user_per_s: u32,
    user_burst: u32,
    conversation_per_s: u32,
    conversation_burst: u32,
}

impl Numbers {
    fn limits(self) -> Limits {
        Limits {
            user: Limit::per_second(self.user_per_s, self.user_burst),
            conversation: Limit::per_second(self.conversation_per_s, self.conversation_burst),
        }
    }
}

pub(super) fn read(read: &mut Reader) -> Result<SendLimits, ConfigError> {
    let most = u64::from(NUMBER_MAX);
    let section = Numbers {
        user_per_s: read.number("fairness.user_per_s", 0..=most)?,
        user_burst: read.number("fairness.user_burst", 1..=most)?,
        conversation_per_s: read.number("fairness.conversation_per_s", 0..=most)?,
        conversation_burst: read.number("fairness.conversation_burst", 1..=most)?,
    };
    // Outside of files an empty list is an empty text.
    let rules = read.list("fairness.rules", EXPECTED, |text| {
        if text.is_empty() { Some(None) } else { rule(text, section).map(Some) }
    })?;
    Ok(SendLimits::new(section.limits(), rules.into_iter().flatten().collect()))
}

/// `None` if the text is no rule.
fn rule(text: &str, section: Numbers) -> Option<(Pattern, Limits)> {
    let mut words = text.split_whitespace();
    let pattern: Pattern = words.next()?.parse().ok()?;
    let (mut numbers, mut seen) = (section, Vec::new());
    for word in words {
        let (key, number) = word.split_once('=')?;
        let number = number.parse::<u32>().ok().filter(|number| *number <= NUMBER_MAX)?;
        let (place, least) = match key {
            "user_per_s" => (&mut numbers.user_per_s, 0),
            "user_burst" => (&mut numbers.user_burst, 1),
            "conversation_per_s" => (&mut numbers.conversation_per_s, 0),
            "conversation_burst" => (&mut numbers.conversation_burst, 1),
            _ => return None,
        };
        if number < least || seen.contains(&key) {
            return None;
        }
        *place = number;
        seen.push(key);
    }
    (!seen.is_empty()).then(|| (pattern, numbers.limits()))
}
