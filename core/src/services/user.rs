//! Accounts: registering, logging in and out, and whose a token is.
//!
//! In go names, passwords and tokens, out come users or a [`ServiceError`]. Must always hold: a password is never kept,
//! logged or returned; a login for an unknown user costs and says the same as one with a wrong password.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join;
use prost::Message as _;
use tidegate_proto::v1;

use crate::ids::{Millis, UserId};
use crate::limits::{
    HISTORY_PAGE_BYTES_MAX, NAME_CHARS_MAX, NAME_CHARS_MIN, PASSWORD_BYTES_MAX, PASSWORD_BYTES_MIN, POSITIONS_MAX,
    RECENT_MESSAGES_MAX, TOKEN_BYTES_MAX, USERS_LOOKUP_MAX,
};
use crate::ports::{Archive as _, Backend, HotStore as _, PasswordHasher, PortError, Standing, TokenState, User};

use super::{ServiceError, ServiceResult};

/// Accounts over a backend and a password hasher.
pub struct UserService<B, P> {
    backend: Arc<B>,
    hasher: P,
    rules: LoginRules,
}

/// What a login is worth.
#[derive(Clone, Debug)]
pub struct LoginRules {
    /// How long a token lasts.
    pub token_ttl: Duration,
    /// A hash to verify against when there is no such user: [`super::password::PasswordCost::decoy`] of the cost in use.
    pub decoy_hash: String,
}

/// A login that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedIn {
    /// Who it is.
    pub user: User,
    /// The user's conversations, newest first.
    pub standings: Vec<Standing>,
    /// The newest messages that arrived while the user was away, oldest first: at most [`RECENT_MESSAGES_MAX`] and
    /// [`HISTORY_PAGE_BYTES_MAX`] of bodies. They stay in the inbox for the first connection.
    pub recent: Vec<v1::Message>,
}

impl<B: Backend, P: PasswordHasher> UserService<B, P> {
    /// Accounts of `backend`.
    pub fn new(backend: Arc<B>, hasher: P, rules: LoginRules) -> Self {
        Self { backend, hasher, rules }
    }

    /// How long a login lasts.
    #[must_use]
    pub fn token_ttl(&self) -> Duration {
        self.rules.token_ttl
    }

    /// Makes a user. A name is 2 to 32 letters or digits of any script, dots, dashes and underscores, begins with a
    /// letter or digit, and is nobody else's in any case; white space around it is taken off.
    ///
    /// # Errors
    /// [`ServiceError::NameInvalid`], [`ServiceError::PasswordInvalid`], [`ServiceError::NameTaken`],
    /// [`ServiceError::Overloaded`] if too many passwords are being hashed, or a port's error.
    pub async fn register(&self, name: &str, password: String, at: Millis) -> ServiceResult<User> {
        let name = legal_name(name).ok_or(ServiceError::NameInvalid)?;
        if !(PASSWORD_BYTES_MIN..=PASSWORD_BYTES_MAX).contains(&password.len()) {
            return Err(ServiceError::PasswordInvalid);
        }
        let archive = self.backend.archive();
        // Asked first because a hash is dear; `create_user` decides.
        if archive.user_by_name(name).await?.is_some() {
            return Err(ServiceError::NameTaken);
        }
        let hash = self.hasher.hash(password).await.map_err(hashing)?;
        let id = archive.create_user(name, &hash, at).await?.ok_or(ServiceError::NameTaken)?;
        Ok(User { id, name: name.to_owned() })
    }

    /// Checks a password and lets `token` stand for its user from now on. The token is the caller's random text.
    ///
    /// # Errors
    /// [`ServiceError::CredentialsWrong`], [`ServiceError::Overloaded`], or a port's error.
    pub async fn login(&self, name: &str, password: String, token: &str) -> ServiceResult<LoggedIn> {
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(ServiceError::CredentialsWrong);
        }
        let found = match legal_name(name) {
            Some(name) => self.backend.archive().user_by_name(name).await?,
            None => None,
        };
        let (user, hash) = match found {
            Some((user, hash)) => (Some(user), hash),
            None => (None, self.rules.decoy_hash.clone()),
        };
        let matches = self.hasher.verify(password, hash).await.map_err(hashing)?;
        let user = user.filter(|_| matches).ok_or(ServiceError::CredentialsWrong)?;
        // Before the token: a login that fails here must not leave a token nobody has seen.
        let (standings, inbox) = try_join(
            self.backend.archive().standings(user.id, POSITIONS_MAX),
            self.backend.hot().peek_inbox(user.id, RECENT_MESSAGES_MAX),
        )
        .await?;
        self.backend.hot().put_token(token, user.id, self.rules.token_ttl).await?;
        Ok(LoggedIn { user, standings, recent: readable(&inbox) })
    }

    /// Ends a login.
    ///
    /// # Errors
    /// [`ServiceError::TokenInvalid`] if it was none, or a port's error.
    pub async fn logout(&self, token: &str) -> ServiceResult<()> {
        if !plausible_token(token) || !self.backend.hot().delete_token(token).await? {
            return Err(ServiceError::TokenInvalid);
        }
        Ok(())
    }

    /// Whose token this is; one question to the hot store.
    ///
    /// # Errors
    /// [`ServiceError::TokenInvalid`], [`ServiceError::TokenExpired`], or a port's error.
    pub async fn holder(&self, token: &str) -> ServiceResult<UserId> {
        if !plausible_token(token) {
            return Err(ServiceError::TokenInvalid);
        }
        match self.backend.hot().token_states(&[token]).await?.first() {
            Some(TokenState::Valid(user)) => Ok(*user),
            Some(TokenState::Expired) => Err(ServiceError::TokenExpired),
            Some(TokenState::Unknown) | None => Err(ServiceError::TokenInvalid),
        }
    }

    /// Whose token this is, with the name: [`Self::holder`] and a question to the archive.
    ///
    /// # Errors
    /// As for [`Self::holder`]; [`ServiceError::TokenInvalid`] also for a token of a user that does not exist.
    pub async fn authenticate(&self, token: &str) -> ServiceResult<User> {
        let id = self.holder(token).await?;
        self.backend.archive().users(&[id]).await?.pop().ok_or(ServiceError::TokenInvalid)
    }

    /// The user of that name, in any case.
    ///
    /// # Errors
    /// A port's error.
    pub async fn by_name(&self, name: &str) -> ServiceResult<Option<User>> {
        match legal_name(name) {
            Some(name) => Ok(self.backend.archive().user_by_name(name).await?.map(|(user, _)| user)),
            None => Ok(None),
        }
    }

    /// Those of the users that exist, by ascending id. At most [`USERS_LOOKUP_MAX`] of `ids` are looked at.
    ///
    /// # Errors
    /// A port's error.
    pub async fn by_ids(&self, ids: &[UserId]) -> ServiceResult<Vec<User>> {
        let ids = &ids[..ids.len().min(USERS_LOOKUP_MAX)];
        let mut users = self.backend.archive().users(ids).await?;
        users.sort_unstable_by_key(|user| user.id);
        Ok(users)
    }

    /// The user's conversations, newest first, with exact unread counts.
    ///
    /// # Errors
    /// A port's error.
    pub async fn standings(&self, user: UserId) -> ServiceResult<Vec<Standing>> {
        Ok(self.backend.archive().standings(user, POSITIONS_MAX).await?)
    }
}

/// The name as it is kept, if it is one.
fn legal_name(name: &str) -> Option<&str> {
    let name = name.trim();
    let legal = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-');
    let chars = name.chars().take(NAME_CHARS_MAX + 1).count();
    let fits = (NAME_CHARS_MIN..=NAME_CHARS_MAX).contains(&chars);
    (fits && name.starts_with(char::is_alphanumeric) && name.chars().all(legal)).then_some(name)
}

/// The newest messages of an inbox within the bound of a page, oldest first. An entry that is no message is left out: the
/// inbox is a convenience.
fn readable(inbox: &[Bytes]) -> Vec<v1::Message> {
    let mut bytes = 0;
    let decoded = inbox.iter().rev().filter_map(|entry| v1::Message::decode(entry.clone()).ok());
    let mut messages: Vec<_> = decoded
        .take_while(|message| {
            bytes += message.body.len();
            bytes <= HISTORY_PAGE_BYTES_MAX
        })
        .collect();
    messages.reverse();
    messages
}

/// Keeps what cannot be a token away from the store.
fn plausible_token(token: &str) -> bool {
    !token.is_empty() && token.len() <= TOKEN_BYTES_MAX && token.bytes().all(|b| b.is_ascii_graphic())
}

fn hashing(error: PortError) -> ServiceError {
    match error {
        PortError::Unavailable { .. } => ServiceError::Overloaded,
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::ports::PortResult;
    use crate::services::testing::World;

    /// Writes down what it is asked to verify; a password is its own hash.
    #[derive(Default)]
    struct Witness {
        verified: Arc<Mutex<Vec<String>>>,
    }

    impl PasswordHasher for Witness {
        async fn hash(&self, password: String) -> PortResult<String> {
            Ok(password)
        }

        async fn verify(&self, password: String, hash: String) -> PortResult<bool> {
            self.verified.lock().expect("no panic").push(hash.clone());
            Ok(password == hash)
        }
    }

    #[tokio::test]
    async fn an_unknown_user_costs_one_verification_as_a_known_one_does() {
        let hasher = Witness::default();
        let verified = Arc::clone(&hasher.verified);
        let rules = LoginRules { token_ttl: Duration::from_secs(60), decoy_hash: "the decoy".to_owned() };
        let users = UserService::new(Arc::new(World::new()), hasher, rules);
        users.register("bob", "correct horse".to_owned(), Millis(1)).await.expect("a new name");
        for (name, password) in [("bob", "wrong horse"), ("nobody", "wrong horse"), ("no body", "the decoy")] {
            let answer = users.login(name, password.to_owned(), "token").await;
            assert_eq!(answer, Err(ServiceError::CredentialsWrong), "{name}");
        }
        assert_eq!(*verified.lock().expect("no panic"), ["correct horse", "the decoy", "the decoy"]);
        assert_eq!(users.holder("token").await, Err(ServiceError::TokenInvalid));
        users.login("BOB", "correct horse".to_owned(), "token").await.expect("the right password");
        assert_eq!(users.authenticate("token").await.map(|user| user.name), Ok("bob".to_owned()));
    }

    #[test]
    fn recent_messages_are_the_newest_that_fit_a_page() {
        let entry = |seq, bytes| v1::Message { seq, body: vec![b'x'; bytes].into(), ..Default::default() };
        let encoded = |messages: &[v1::Message]| -> Vec<Bytes> {
            messages.iter().map(|message| message.encode_to_vec().into()).collect()
        };
        let (first, second, third) = (entry(1, HISTORY_PAGE_BYTES_MAX / 2 + 1), entry(2, 5), entry(3, 5));
        let mut inbox = encoded(&[first.clone(), second.clone(), third.clone()]);
        inbox.insert(2, Bytes::from_static(b"\xff no message"));
        assert_eq!(readable(&inbox), [first.clone(), second, third]);
        let large = entry(4, HISTORY_PAGE_BYTES_MAX / 2);
        assert_eq!(readable(&encoded(&[first, large.clone()])), [large]);
    }

    #[test]
    fn names_are_of_any_script_and_show_themselves() {
        for name in ["bo", "Bob_2", "Łukasz", "李小龙", "a.b-c", " padded ", &"x".repeat(32)] {
            assert_eq!(legal_name(name), Some(name.trim()), "{name:?}");
        }
        let wrong = ["", "b", "a b", "_bob", "-x", "..", "bob\u{200b}", "bob\u{202e}", "bo\0b", "e\u{301}e", "bob\n1"];
        for name in wrong.into_iter().chain([&*"x".repeat(33), &*"x".repeat(100_000)]) {
            assert_eq!(legal_name(name), None, "{name:?}");
        }
    }

    #[test]
    fn tokens_that_cannot_be_are_never_asked_for() {
        assert!(plausible_token("0b1f-abc") && plausible_token(&"t".repeat(TOKEN_BYTES_MAX)));
        for token in ["", "a b", "a\nb", "tökn", &"t".repeat(TOKEN_BYTES_MAX + 1)] {
            assert!(!plausible_token(token), "{token:?}");
        }
    }
}
