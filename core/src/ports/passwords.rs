//! Password hashes, which cost too much time for the threads that call.

use std::future::Future;

#[cfg(doc)]
use super::PortError;
use super::PortResult;

/// Hashing that takes tens of milliseconds on purpose: the gateway runs it off its hot threads, a bounded number at a time.
pub trait PasswordHasher: Send + Sync + 'static {
    /// Hashes with a fresh salt (PHC string).
    ///
    /// # Errors
    /// [`PortError::Unavailable`] if too many are waiting.
    fn hash(&self, password: String) -> impl Future<Output = PortResult<String>> + Send;

    /// Whether the password is the one of `hash`.
    ///
    /// # Errors
    /// As for [`PasswordHasher::hash`].
    fn verify(&self, password: String, hash: String) -> impl Future<Output = PortResult<bool>> + Send;
}
