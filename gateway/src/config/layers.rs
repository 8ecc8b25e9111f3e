//! The four sources of a setting laid over each other: flags, environment, file, defaults.
//!
//! In go texts and TOML, out comes for each key the winning value and where it came from. The keys there are, and their
//! defaults, are those of `tidegate.toml`; there is no second list of them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::cli::CliOverrides;
use super::error::{ConfigError, Source};
use super::nearest::nearest;

/// The commented file with every key and its default.
pub const DEFAULTS: &str = include_str!("../../tidegate.toml");

/// Variables with our prefix that are no settings of the program.
const NOT_SETTINGS: [&str; 2] = ["TIDEGATE_CONFIG", "TIDEGATE_SERVICES_DIR"];
const NOT_SETTINGS_PREFIX: &str = "TIDEGATE_TEST_";

/// A value as its source wrote it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Raw {
    /// From a flag or the environment.
    Text(String),
    /// From a file.
    Toml(toml::Value),
}

/// The winning value of one key.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub raw: Raw,
    pub source: Source,
}

/// Everything outside the program that decides about settings; a test makes its own.
pub(super) struct Surroundings {
    pub environment: Vec<(OsString, OsString)>,
    pub working_dir: PathBuf,
}

/// The winning values of all keys, and what is worth a warning.
pub(super) struct Layers {
    pub values: BTreeMap<String, Found>,
    pub warnings: Vec<String>,
}

impl Layers {
    pub(super) fn gather(flags: &CliOverrides, around: &Surroundings) -> Result<Self, ConfigError> {
        let defaults = DEFAULTS.parse::<toml::Table>().expect("tidegate.toml is TOML, as a test holds");
        let mut values = BTreeMap::new();
        flatten("", defaults, &mut |key, raw| {
            values.insert(key, Found { raw: Raw::Toml(raw), source: Source::Default });
        });
        let mut layers = Self { values, warnings: Vec::new() };
        layers.lay_file(flags, around)?;
        layers.lay_environment(around)?;
        layers.lay_flags(flags)?;
        Ok(layers)
    }

    fn lay_file(&mut self, flags: &CliOverrides, around: &Surroundings) -> Result<(), ConfigError> {
        let named = around.environment.iter().find(|(name, value)| name == "TIDEGATE_CONFIG" && !value.is_empty());
        let path = match (&flags.config, named) {
            (Some(path), _) => around.working_dir.join(path),
            (None, Some((_, path))) => around.working_dir.join(path),
            (None, None) => {
                let path = around.working_dir.join("tidegate.toml");
                if !path.exists() {
                    return Ok(());
                }
                path
            }
        };
        let table = read_table(&path)?;
        let mut unknown = None;
        flatten("", table, &mut |key, raw| {
            let source = Source::File(path.clone());
            match self.values.get_mut(&key) {
                Some(found) => *found = Found { raw: Raw::Toml(raw), source },
                None => {
                    unknown.get_or_insert((key, source));
                }
            }
        });
        match unknown {
            Some((key, from)) => Err(self.unknown_key(key, from)),
            None => Ok(()),
        }
    }

    fn lay_environment(&mut self, around: &Surroundings) -> Result<(), ConfigError> {
        let keys: BTreeMap<String, String> = self.values.keys().map(|key| (variable_of(key), key.clone())).collect();
        for (name, value) in &around.environment {
            let Some(name) = name.to_str().filter(|name| name.starts_with("TIDEGATE_")) else { continue };
            if NOT_SETTINGS.contains(&name) || name.starts_with(NOT_SETTINGS_PREFIX) || value.is_empty() {
                continue;
            }
            let Some(key) = keys.get(name) else {
                let hint =
                    nearest(name, keys.keys()).map_or_else(String::new, |near| format!("; did you mean {near}?"));
                self.warnings.push(format!("environment variable {name} is no setting and is ignored{hint}"));
                continue;
            };
            let source = Source::Environment(name.to_owned());
            let Some(text) = value.to_str() else {
                let (from, shown) = (source, "bytes that are not UTF-8".into());
                return Err(ConfigError::Wrong { key: key.clone(), from, shown, expected: "UTF-8 text".into() });
            };
            self.values.insert(key.clone(), Found { raw: Raw::Text(text.to_owned()), source });
        }
        Ok(())
    }

    fn lay_flags(&mut self, flags: &CliOverrides) -> Result<(), ConfigError> {
        for set in &flags.set {
            let from = Source::Flag("--set");
            let Some((key, value)) = set.split_once('=') else {
                return Err(ConfigError::UnknownKey { key: set.clone(), from, hint: "; expected KEY=VALUE".into() });
            };
            if !self.values.contains_key(key) {
                return Err(self.unknown_key(key.to_owned(), from));
            }
            if is_secret(key) {
                let variable = variable_of(key);
                let expected =
                    format!("no secret on a command line, which others can read: use {variable} or the file");
                return Err(ConfigError::Wrong { key: key.to_owned(), from, shown: "***".into(), expected });
            }
            self.values.insert(key.to_owned(), Found { raw: Raw::Text(value.to_owned()), source: from });
        }
        for (flag, key, value) in flags.given() {
            let found = Found { raw: Raw::Text(value.to_owned()), source: Source::Flag(flag) };
            let before = self.values.insert(key.to_owned(), found);
            debug_assert!(before.is_some(), "{flag} names a key of tidegate.toml");
        }
        Ok(())
    }

    fn unknown_key(&self, key: String, from: Source) -> ConfigError {
        let hint = nearest(&key, self.values.keys()).map_or_else(String::new, |near| format!("; did you mean {near}?"));
        ConfigError::UnknownKey { key, from, hint }
    }
}

/// Whether the value of `key` must not be shown.
pub(super) fn is_secret(key: &str) -> bool {
    key.ends_with(".url")
}

/// The environment variable of a key.
pub(super) fn variable_of(key: &str) -> String {
    format!("TIDEGATE_{}", key.replace('.', "_").to_uppercase())
}

fn read_table(path: &Path) -> Result<toml::Table, ConfigError> {
    let wrong = |detail: String| ConfigError::File { path: path.to_owned(), detail };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    text.parse::<toml::Table>().map_err(|error| {
        // The error's own text quotes the line, which may hold a password.
        let line = error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        wrong(format!("line {line} is not TOML: {}", error.message()))
    })
}

/// Gives every leaf of `table` to `give`, with its dotted key. An array is a leaf.
fn flatten(prefix: &str, table: toml::Table, give: &mut impl FnMut(String, toml::Value)) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        match value {
            toml::Value::Table(table) => flatten(&key, table, give),
            value => give(key, value),
        }
    }
}
