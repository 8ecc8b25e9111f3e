//! Whether what is written arrives.
//!
//! In go the answers to writes, out comes what readiness should know: a server that is read-only, full or lacks a table
//! still answers every ping. Always: one success ends the trouble; trouble of which nothing more is heard is forgotten.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tidegate_core::ports::{PortError, PortResult};

/// Whoever waits for a write repeats it at least every two seconds, each attempt within the call timeout. After that much
/// silence nobody here waits any more: another gateway has the partition.
const REMEMBERED_FOR: Duration = Duration::from_secs(15);

/// The last failure, if no success followed.
#[derive(Debug, Default)]
pub(super) struct Writing(Mutex<Option<(Instant, PortError)>>);

impl Writing {
    pub(super) fn learn(&self, answer: &PortResult<()>) {
        let trouble = answer.as_ref().err().map(|error| (Instant::now(), error.clone()));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// # Errors
    /// The last failure.
    pub(super) fn is_well(&self) -> PortResult<()> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((since, error)) if since.elapsed() < REMEMBERED_FOR => Err(error.clone()),
            _ => Ok(()),
        }
    }
}
