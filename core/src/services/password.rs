//! Password hashing by argon2id, as plain functions: who may call them, where and how often is the caller's concern.
//!
//! In go a password, a cost and random salt, out comes a PHC string that carries its own cost; one call takes tens of
//! milliseconds and [`PasswordCost::memory_kib`] of memory on purpose.

use argon2::password_hash::{PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};

/// Random bytes that go into one hash: what OWASP and RFC 9106, section 4, recommend.
pub const SALT_BYTES: usize = 16;

/// What one hash costs. The default is OWASP's for argon2id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PasswordCost {
    /// Memory of one hash; at least 8 times `parallel`.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub iterations: u32,
    /// Lanes; computed one after the other here, so more of them do not make it quicker.
    pub parallel: u32,
}

impl Default for PasswordCost {
    fn default() -> Self {
        Self { memory_kib: 19_456, iterations: 2, parallel: 1 }
    }
}

/// A cost that argon2 does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("password hashing failed: {0}")]
pub struct PasswordError(String);

impl PasswordCost {
    /// Hashes `password`; the result verifies by [`verify`] whatever the cost is by then.
    ///
    /// # Errors
    /// [`PasswordError`] if argon2 does not take this cost.
    pub fn hash(self, password: &str, salt: [u8; SALT_BYTES]) -> Result<String, PasswordError> {
        let error = |error: &dyn std::fmt::Display| PasswordError(error.to_string());
        let params = Params::new(self.memory_kib, self.iterations, self.parallel, None).map_err(|e| error(&e))?;
        let salt = SaltString::encode_b64(&salt).map_err(|e| error(&e))?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        argon2.hash_password(password.as_bytes(), &salt).map(|hash| hash.to_string()).map_err(|e| error(&e))
    }

    /// A hash of this cost that stands in for a user that does not exist, so that the answer takes as long.
    ///
    /// # Errors
    /// As for [`PasswordCost::hash`].
    pub fn decoy(self) -> Result<String, PasswordError> {
        self.hash("nobody has this password", [0x5a; SALT_BYTES])
    }
}

/// Whether `hash` is one of `password`. A text that is no hash is nobody's.
#[must_use]
pub fn verify(password: &str, hash: &str) -> bool {
    PasswordHash::new(hash).is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: PasswordCost = PasswordCost { memory_kib: 8, iterations: 1, parallel: 1 };

    #[test]
    fn a_hash_knows_its_password_and_its_cost() {
        let hash = CHEAP.hash("correct horse", [7; SALT_BYTES]).expect("a legal cost");
        assert!(hash.starts_with("$argon2id$v=19$m=8,t=1,p=1$"), "{hash}");
        assert!(verify("correct horse", &hash) && !verify("wrong horse", &hash));
        assert_ne!(hash, CHEAP.hash("correct horse", [8; SALT_BYTES]).expect("a legal cost"));
    }

    #[test]
    fn an_impossible_cost_and_a_broken_hash_are_no_panic() {
        assert!(PasswordCost { memory_kib: 1, ..CHEAP }.decoy().is_err());
        assert!(!verify("x", "") && !verify("x", "$argon2id$v=19$m=8") && !verify("x", "plain"));
    }
}
