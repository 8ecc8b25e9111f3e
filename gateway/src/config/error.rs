//! What can be wrong with a configuration, said so that the reader knows what to change and where.

use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A flag, by its name.
    Flag(&'static str),
    /// An environment variable, by its name.
    Environment(String),
    /// A configuration file.
    File(PathBuf),
    /// The defaults within the program.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// Why there is no configuration. The text names the key, its source, the value (never a secret one) and what is expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A value outside what its key takes.
    #[error("{key} = {shown} ({source}): expected {expected}", source = .from)]
    Wrong {
        /// `section.key`.
        key: String,
        /// Where the value came from.
        from: Source,
        /// The value as it may be shown.
        shown: String,
        /// What the key takes.
        expected: String,
    },
    /// A key that does not exist.
    #[error("unknown key {key} ({source}){hint}", source = .from)]
    UnknownKey {
        /// As it was written.
        key: String,
        /// Where it was written.
        from: Source,
        /// `; did you mean ...?`, or nothing.
        hint: String,
    },
    /// A file that cannot be read or is not TOML.
    #[error("configuration file {path}: {detail}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why; holds no line of the file, which may have a secret in it.
        detail: String,
    },
}

impl ConfigError {
    /// `EX_CONFIG` of sysexits.h: the process exits with it before any port is bound.
    pub const EXIT_CODE: u8 = 78;

    /// The key at fault, if one is.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Wrong { key, .. } | Self::UnknownKey { key, .. } => Some(key),
            Self::File { .. } => None,
        }
    }
}
