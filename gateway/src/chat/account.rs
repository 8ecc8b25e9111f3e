//! Who the user is: the password, given, typed, or made and kept here; registering at the first use of a name.
//!
//! In go a name and, maybe, a password; out comes an [`Account`] that can log in whenever a token is needed. Must always
//! hold: a password is never shown; one that this client made is in a file that only its owner can read before the server
//! learns of it, so that no account is locked behind a password nobody has.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::http::{Api, ApiError, Login, percent};

/// Random bytes of a password made here.
const MADE_BYTES: usize = 24;

/// Why there is no login.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The server cannot be reached, or cannot log anybody in now.
    #[error("{0}")]
    Unreachable(String),
    /// The name is somebody's, and the password is not theirs.
    #[error("{0}")]
    Wrong(String),
    /// The server does not want such a name or password.
    #[error("{0}")]
    Unacceptable(String),
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        match &error {
            ApiError::Unreachable(why) => Self::Unreachable(why.clone()),
            ApiError::Refused { status, detail, .. } if *status >= 500 => Self::Unreachable(detail.clone()),
            _ => Self::Unacceptable(error.to_string()),
        }
    }
}

/// Where the password came from; says what to do when it is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Password {
    /// Given or typed.
    Told(String),
    /// Kept in a file since an earlier time.
    Kept(String, PathBuf),
    /// Made just now, and kept in a file.
    Made(String, PathBuf),
}

impl Password {
    fn text(&self) -> &str {
        match self {
            Self::Told(text) | Self::Kept(text, _) | Self::Made(text, _) => text,
        }
    }
}

/// A name with its password at a server.
pub struct Account {
    api: Api,
    name: String,
    password: Password,
}

impl Account {
    /// An account that may not exist yet.
    pub fn new(api: Api, name: String, password: Password) -> Self {
        Self { api, name, password }
    }

    /// Logs in, registering first if nobody has the name. Blocking.
    ///
    /// # Errors
    /// [`Refusal`] with a sentence for the user.
    pub fn log_in(&self) -> Result<Login, Refusal> {
        let password = self.password.text();
        match self.api.login(&self.name, password) {
            Err(error) if error.is(401) => {}
            outcome => return Ok(outcome?),
        }
        match self.api.register(&self.name, password) {
            Err(error) if error.is(409) => Err(Refusal::Wrong(self.wrong())),
            outcome => {
                outcome?;
                Ok(self.api.login(&self.name, password)?)
            }
        }
    }

    /// Forgets a password that was made for nothing.
    pub fn discard_made(&self) {
        if let Password::Made(_, path) = &self.password {
            // What stays behind is found and explained the next time.
            let _ = fs::remove_file(path);
        }
    }

    fn wrong(&self) -> String {
        let name = super::line::escape(&self.name);
        match &self.password {
            Password::Told(_) => format!("this is not {name}'s password (or take another name, this one is taken)"),
            Password::Made(..) => format!(
                "the name {name} is taken, and its password is not kept here; \
                 give it with TIDEGATE_CHAT_PASSWORD, or take another name"
            ),
            Password::Kept(_, path) => format!(
                "the name {name} is taken, and the password kept in {} is not the one; \
                 give it with TIDEGATE_CHAT_PASSWORD, or take another name",
                path.display()
            ),
        }
    }
}

/// The file in which this client keeps the password it made for `name` at a server.
///
/// Names are compared without case by the server, and so here.
#[must_use]
pub fn kept_path(config_home: &Path, authority: &str, name: &str) -> PathBuf {
    config_home.join("tidegate/chat").join(file_name(authority)).join(file_name(&name.trim().to_lowercase()))
}

/// Percent-encoded; a leading dot would name the folder itself or hide the file.
fn file_name(text: &str) -> String {
    let name = percent(text);
    if name.is_empty() || name.starts_with('.') { format!("%2E{}", name.get(1..).unwrap_or_default()) } else { name }
}

/// The folder for settings, by the XDG Base Directory Specification.
#[must_use]
pub fn config_home() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")))
}

/// The password kept at `path`, if there is one.
///
/// # Errors
/// If there is one that cannot be read.
pub fn kept(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim_end().to_owned()).filter(|text| !text.is_empty())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a password and keeps it at `path`, mode 0600 in folders of mode 0700.
///
/// # Errors
/// If it cannot be written, or the system has no randomness.
pub fn make_and_keep(path: &Path) -> io::Result<String> {
    let mut random = [0; MADE_BYTES];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    let password: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    // An empty file is one whose writing failed.
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(password.as_bytes())?;
    file.sync_all()?;
    Ok(password)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may panic")]

    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_name_never_leads_out_of_its_folder() {
        let path = |name| kept_path(Path::new("/c"), "127.0.0.1:7480", name);
        assert_eq!(path("Anna"), Path::new("/c/tidegate/chat/127.0.0.1%3A7480/anna"));
        assert_eq!(path("../../x"), Path::new("/c/tidegate/chat/127.0.0.1%3A7480/%2E.%2F..%2Fx"));
        assert_eq!(path(".."), Path::new("/c/tidegate/chat/127.0.0.1%3A7480/%2E."));
        assert_eq!(path(""), Path::new("/c/tidegate/chat/127.0.0.1%3A7480/%2E"));
    }

    #[test]
    fn a_made_password_is_kept_for_its_owner_alone() {
        let folder = std::env::temp_dir().join(format!("tidegate-chat-{}", std::process::id()));
        let path = kept_path(&folder, "h:1", "anna");
        assert_eq!(kept(&path).unwrap(), None);
        let made = make_and_keep(&path).unwrap();
        assert_eq!(kept(&path).unwrap(), Some(made.clone()));
        assert_eq!(made.len(), 2 * MADE_BYTES);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::remove_dir_all(&folder).unwrap();
    }
}
