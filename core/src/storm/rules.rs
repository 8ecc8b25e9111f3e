//! The rules by which conversations change gear: one for all, and others for those that a pattern chooses.
//!
//! In go the settings of the section `storm` and texts such as `lobby_main signal_per_s=50 gears=direct+signal`; out comes,
//! for each conversation, one [`StormRule`] whose numbers agree with each other.

use std::sync::Arc;
use std::time::Duration;

use tidegate_proto::v1::Gear;

use crate::ids::ConversationId;
use crate::limits::FRAME_BYTES_MAX;
use crate::pattern::Pattern;

/// Head and small fields of a `PullReply`.
pub const AROUND_MESSAGES_BYTES: usize = 512;

/// How a conversation's messages travel at which rate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StormRule {
    /// Gears it may use besides direct.
    pub gears: Gears,
    /// Messages per second from which on they are merged.
    pub merged_per_s: u32,
    /// Messages per second from which on clients pull; at least as many.
    pub signal_per_s: u32,
    /// What the rate is taken over.
    pub window: Duration,
    /// Share of a threshold, in percent, below which the gear goes back.
    pub calm_percent: u32,
    /// For how long it has to be below.
    pub calm: Duration,
    /// Time over which messages are merged.
    pub merge: Duration,
    /// Time between two notices to the gateways.
    pub notice: Duration,
    /// Time over which clients spread their pulls; at least `notice`.
    pub spread: Duration,
    /// Messages in the lobby cache.
    pub cache_messages_max: u32,
    /// Their bytes.
    pub cache_bytes_max: u32,
    /// Their age.
    pub cache: Duration,
    /// Bytes per second that pulls bring one watcher at most.
    pub watcher_bytes_per_s: u32,
    /// Most bytes of messages in any answer: what fits a frame.
    pub answer_bytes_max: usize,
}

/// Gears other than direct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gears {
    /// Messages may be merged.
    pub merged: bool,
    /// Clients may be left to pull.
    pub signal: bool,
}

impl Gears {
    /// Reads `direct+merged+signal` or a part of it; direct is always there.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut gears = Self { merged: false, signal: false };
        for name in text.split('+') {
            match name.trim() {
                "direct" => {}
                "merged" => gears.merged = true,
                "signal" => gears.signal = true,
                _ => return None,
            }
        }
        Some(gears)
    }

    /// Whether the gear may be used.
    #[must_use]
    pub fn allow(self, gear: Gear) -> bool {
        match gear {
            Gear::Direct => true,
            Gear::Merged => self.merged,
            Gear::Signal => self.signal,
        }
    }
}

impl StormRule {
    /// Messages per second from which on the gear is right.
    #[must_use]
    pub fn threshold_per_s(&self, gear: Gear) -> u32 {
        match gear {
            Gear::Direct => 0,
            Gear::Merged => self.merged_per_s,
            Gear::Signal => self.signal_per_s,
        }
    }

    /// Most bytes of messages in the answer to one live pull, which a watcher makes once per `spread`.
    #[must_use]
    pub fn pull_bytes_max(&self) -> usize {
        /// The notice, the heads and the answer's small fields; over HTTP the headers come on top.
        const REST: usize = 256;
        let bytes = u128::from(self.watcher_bytes_per_s) * self.spread.as_millis() / 1000;
        usize::try_from(bytes).unwrap_or(usize::MAX).saturating_sub(REST).clamp(1, self.answer_bytes_max)
    }

    /// The first pair of numbers that contradict each other: a setting's name, and what it must be.
    ///
    /// # Errors
    /// See above.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let conditions = [
            (self.merged_per_s >= 1, "merged_per_s", "at least 1"),
            (self.signal_per_s >= self.merged_per_s, "signal_per_s", "at least merged_per_s"),
            ((1..=100).contains(&self.calm_percent), "calm_percent", "1 to 100"),
            (in_ms(self.window, 100, 60_000), "window_ms", "100 to 60000"),
            (in_ms(self.calm, 0, 600_000), "calm_ms", "at most 600000"),
            (in_ms(self.merge, 1, 5_000), "merge_ms", "1 to 5000"),
            (in_ms(self.notice, 10, 10_000), "notice_ms", "10 to 10000"),
            (in_ms(self.spread, 10, 60_000) && self.spread >= self.notice, "spread_ms", "notice_ms to 60000"),
            (self.cache_messages_max >= 1, "cache_messages_max", "at least 1"),
            (self.cache_bytes_max >= 64 * 1024, "cache_bytes_max", "at least 65536"),
            (in_ms(self.cache, 100, 3_600_000), "cache_ms", "100 to 3600000"),
            (self.watcher_bytes_per_s >= 1024, "watcher_bytes_per_s", "at least 1024"),
        ];
        match conditions.into_iter().find(|(holds, ..)| !holds) {
            Some((_, name, expected)) => Err((name, expected)),
            None => Ok(()),
        }
    }

    /// Changes one setting by its name, as in the section `storm`.
    fn set(&mut self, name: &str, value: &str) -> Option<()> {
        let number = || value.parse::<u32>().ok();
        let ms = || value.parse::<u32>().ok().map(|ms| Duration::from_millis(ms.into()));
        match name {
            "gears" => self.gears = Gears::parse(value)?,
            "merged_per_s" => self.merged_per_s = number()?,
            "signal_per_s" => self.signal_per_s = number()?,
            "window_ms" => self.window = ms()?,
            "calm_percent" => self.calm_percent = number()?,
            "calm_ms" => self.calm = ms()?,
            "merge_ms" => self.merge = ms()?,
            "notice_ms" => self.notice = ms()?,
            "spread_ms" => self.spread = ms()?,
            "cache_messages_max" => self.cache_messages_max = number()?,
            "cache_bytes_max" => self.cache_bytes_max = number()?,
            "cache_ms" => self.cache = ms()?,
            "watcher_bytes_per_s" => self.watcher_bytes_per_s = number()?,
            _ => return None,
        }
        Some(())
    }
}

fn in_ms(duration: Duration, least: u128, most: u128) -> bool {
    (least..=most).contains(&duration.as_millis())
}

/// All conversations' rules.
#[derive(Clone, Debug)]
pub struct StormRules {
    default: Arc<StormRule>,
    others: Vec<(Pattern, Arc<StormRule>)>,
}

impl StormRules {
    /// One rule for all.
    #[must_use]
    pub fn new(default: StormRule) -> Self {
        Self { default: Arc::new(default), others: Vec::new() }
    }

    /// Adds `pattern setting=value ...`; what it does not name is as in the rule for all. The first pattern that matches a
    /// conversation counts.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        let mut words = text.split_whitespace();
        let pattern: Pattern = words.next().unwrap_or_default().parse().map_err(|error| format!("{error}"))?;
        let mut rule = (*self.default).clone();
        for word in words {
            let (name, value) = word.split_once('=').ok_or_else(|| format!("{word} is not setting=value"))?;
            rule.set(name, value).ok_or_else(|| format!("{word} is no setting of [storm] with a value it takes"))?;
        }
        rule.check().map_err(|(name, expected)| format!("{name} must be {expected}"))?;
        self.others.push((pattern, Arc::new(rule)));
        Ok(())
    }

    /// The rule of a conversation. Asked once per conversation, not per message.
    #[must_use]
    pub fn of(&self, conversation: &ConversationId) -> &Arc<StormRule> {
        let other = self.others.iter().find(|(pattern, _)| pattern.matches(conversation));
        other.map_or(&self.default, |(_, rule)| rule)
    }
}

/// As in `tidegate.toml`.
impl Default for StormRule {
    fn default() -> Self {
        Self {
            gears: Gears { merged: true, signal: true },
            merged_per_s: 20,
            signal_per_s: 100,
            window: Duration::from_secs(2),
            calm_percent: 50,
            calm: Duration::from_secs(3),
            merge: Duration::from_millis(50),
            notice: Duration::from_millis(100),
            spread: Duration::from_secs(1),
            cache_messages_max: 20_000,
            cache_bytes_max: 8 * 1024 * 1024,
            cache: Duration::from_secs(10),
            watcher_bytes_per_s: 16 * 1024,
            answer_bytes_max: FRAME_BYTES_MAX - AROUND_MESSAGES_BYTES,
        }
    }
}

impl Default for StormRules {
    fn default() -> Self {
        Self::new(StormRule::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pattern_that_matches_counts_and_the_rest_is_as_for_all() {
        let mut rules = StormRules::default();
        rules.add("lobby_main signal_per_s=50 gears=direct+signal").expect("legal");
        rules.add("lobby_* merged_per_s=5 spread_ms=2000").expect("legal");
        let of = |id: &str| rules.of(&id.parse().expect("an id")).clone();
        let main = of("lobby_main");
        assert_eq!((main.merged_per_s, main.signal_per_s, main.gears.merged), (20, 50, false));
        let eu = of("lobby_eu");
        assert_eq!((eu.merged_per_s, eu.signal_per_s, eu.pull_bytes_max()), (5, 100, 32 * 1024 - 256));
        assert_eq!(*of("r_7"), StormRule::default());
    }

    #[test]
    fn what_is_wrong_with_a_rule_is_named() {
        for (text, named) in [
            ("", "pattern"),
            ("lobby_main fast", "fast is not setting=value"),
            ("lobby_main rate=7", "rate=7"),
            ("lobby_main gears=direct+warp", "gears=direct+warp"),
            ("lobby_main signal_per_s=3", "signal_per_s must be at least merged_per_s"),
            ("lobby_main spread_ms=20", "spread_ms must be notice_ms to 60000"),
            ("lobby_main calm_percent=-1", "calm_percent=-1"),
        ] {
            let error = StormRules::default().add(text).expect_err(text);
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
