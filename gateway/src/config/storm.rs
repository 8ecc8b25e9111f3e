//! The section `storm`: one rule for all conversations, and the texts that make others for some.

use std::time::Duration;

use tidegate_core::storm::rules::{AROUND_MESSAGES_BYTES, Gears, StormRule, StormRules};

use super::error::ConfigError;
use super::reader::Reader;

const RULES: &str = "storm.rules";

pub(super) fn rules(read: &mut Reader, frame_bytes_max: usize) -> Result<StormRules, ConfigError> {
    let expected = "direct, merged and signal, with + between";
    let millis = |read: &mut Reader, key| read.number(key, 0..=u64::from(u32::MAX)).map(Duration::from_millis);
    let rule = StormRule {
        gears: read.text("storm.gears", expected, Gears::parse)?,
        merged_per_s: read.number("storm.merged_per_s", 1..=1_000_000)?,
        signal_per_s: read.number("storm.signal_per_s", 1..=1_000_000)?,
        window: millis(read, "storm.window_ms")?,
        calm_percent: read.number("storm.calm_percent", 1..=100)?,
        calm: millis(read, "storm.calm_ms")?,
        merge: millis(read, "storm.merge_ms")?,
        notice: millis(read, "storm.notice_ms")?,
        spread: millis(read, "storm.spread_ms")?,
        cache_messages_max: read.number("storm.cache_messages_max", 1..=10_000_000)?,
        cache_bytes_max: read.number("storm.cache_bytes_max", 64 * 1024..=1024 * 1024 * 1024)?,
        cache: millis(read, "storm.cache_ms")?,
        watcher_bytes_per_s: read.number("storm.watcher_bytes_per_s", 1024..=u64::from(u32::MAX))?,
        answer_bytes_max: frame_bytes_max.saturating_sub(AROUND_MESSAGES_BYTES),
    };
    if let Err((name, expected)) = rule.check() {
        let keys = [
            "storm.merged_per_s",
            "storm.signal_per_s",
            "storm.calm_percent",
            "storm.window_ms",
            "storm.calm_ms",
            "storm.merge_ms",
            "storm.notice_ms",
            "storm.spread_ms",
            "storm.cache_messages_max",
            "storm.cache_bytes_max",
            "storm.cache_ms",
            "storm.watcher_bytes_per_s",
        ];
        let key = keys.into_iter().find(|key| key.ends_with(&format!(".{name}"))).unwrap_or(RULES);
        return Err(read.wrong(key, expected));
    }
    let mut rules = StormRules::new(rule);
    let texts: Vec<String> = read.list(RULES, "a list of texts", |text| Some(text.to_owned()))?;
    for text in texts.iter().filter(|text| !text.is_empty()) {
        if let Err(wrong) = rules.add(text) {
            return Err(read.wrong(RULES, &format!("rules such as \"lobby_* signal_per_s=50\"; in \"{text}\" {wrong}")));
        }
    }
    Ok(rules)
}
