//! Turns the winning raw values into typed ones, each checked against what its key takes.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::error::ConfigError;
use super::layers::{Found, Layers, Raw, is_secret};

/// Reads each key once; [`Reader::finish`] finds keys that were offered by `tidegate.toml` but never read.
pub(super) struct Reader {
    layers: Layers,
    read: BTreeSet<&'static str>,
}

impl Reader {
    pub(super) fn new(layers: Layers) -> Self {
        Self { layers, read: BTreeSet::new() }
    }

    /// A whole number within `range`.
    pub(super) fn number<T>(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Result<T, ConfigError>
    where
        T: TryFrom<u64>,
    {
        let value = match &self.found(key).raw {
            Raw::Toml(toml::Value::Integer(number)) => u64::try_from(*number).ok(),
            Raw::Toml(_) => None,
            Raw::Text(text) => text.trim().parse().ok(),
        };
        let value = value.filter(|value| range.contains(value)).and_then(|value| T::try_from(value).ok());
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        value.ok_or_else(|| self.wrong(key, &expected()))
    }

    /// A text that `parse` takes; `expected` says which those are.
    pub(super) fn text<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, ConfigError> {
        let value = match &self.found(key).raw {
            Raw::Toml(toml::Value::String(text)) | Raw::Text(text) => parse(text.trim()),
            Raw::Toml(_) => None,
        };
        value.ok_or_else(|| self.wrong(key, expected))
    }

    /// A list: an array of texts in a file, texts with commas between elsewhere.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Vec<T>, ConfigError> {
        let value = match &self.found(key).raw {
            Raw::Toml(toml::Value::Array(items)) => items.iter().map(|item| parse(item.as_str()?)).collect(),
            Raw::Toml(_) => None,
            Raw::Text(text) => text.split(',').map(|item| parse(item.trim())).collect::<Option<Vec<T>>>(),
        };
        value.ok_or_else(|| self.wrong(key, expected))
    }

    /// The error for a value of `key` that does not fit.
    pub(super) fn wrong(&mut self, key: &'static str, expected: &str) -> ConfigError {
        let found = self.found(key);
        let shown = match &found.raw {
            _ if is_secret(key) => "***".to_owned(),
            Raw::Text(text) => format!("{text:?}"),
            Raw::Toml(value) => value.to_string(),
        };
        ConfigError::Wrong { key: key.to_owned(), from: found.source.clone(), shown, expected: expected.to_owned() }
    }

    /// Ends the reading; returns the warnings.
    pub(super) fn finish(self) -> Vec<String> {
        let unread: Vec<_> = self.layers.values.keys().filter(|key| !self.read.contains(key.as_str())).collect();
        debug_assert!(unread.is_empty(), "tidegate.toml offers keys that nothing reads: {unread:?}");
        self.layers.warnings
    }

    fn found(&mut self, key: &'static str) -> &Found {
        self.read.insert(key);
        self.layers.values.get(key).expect("tidegate.toml has every key that is read, as a test holds")
    }
}
