//! Whether what is to be written to an archive or a hot store arrives.
//!
//! In go the answers to the calls that only ingest turns make, and repeat until they succeed; out comes what readiness should know: a server that is read-only (a
//! replica after a failover), full or lacks a table still answers every ping. Always: a call's success ends the trouble with its kind; trouble of which nothing
//! more is heard is forgotten.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use tidegate_core::ports::{PortError, PortResult};

/// Whoever waits for a call of a turn repeats it at least every two seconds, each attempt within the call timeout. After that
/// much silence nobody here waits any more: another gateway has the partition.
const REMEMBERED_FOR: Duration = Duration::from_secs(15);

/// The last failure of each call, if no success followed.
#[derive(Debug, Default)]
pub(crate) struct Writing(Mutex<FxHashMap<&'static str, (Instant, PortError)>>);

impl Writing {
    /// Remembers an answer to `call`, and returns it.
    pub(crate) fn learn<T>(&self, call: &'static str, answer: PortResult<T>) -> PortResult<T> {
        let mut troubles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &answer {
            // About the batch, not about the service.
            Ok(_) | Err(PortError::Unfit { .. } | PortError::Conflict { .. }) => drop(troubles.remove(call)),
            Err(error) => drop(troubles.insert(call, (Instant::now(), error.clone()))),
        }
        drop(troubles);
        answer
    }

    /// # Errors
    /// One of the failures.
    pub(crate) fn is_well(&self) -> PortResult<()> {
        let troubles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match troubles.values().find(|(since, _)| since.elapsed() < REMEMBERED_FOR) {
            Some((_, error)) => Err(error.clone()),
            None => Ok(()),
        }
    }
}
