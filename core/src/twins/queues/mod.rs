//! MQ1 and MQ2 within one process.
//!
//! In come batches of events, out they go to the engine that consumes them. Nothing is copied over a wire, so a batch
//! costs a short lock and a wake-up. What must hold: both queues are bounded and say what they do when full; a lock is
//! held for a batch's bookkeeping only, never across an await.

mod ingest;
mod push;

pub use ingest::{EmbeddedConfirm, EmbeddedIngestConsumer, EmbeddedIngestQueue};
pub use push::{EmbeddedExchange, EmbeddedPushConsumer, EmbeddedPushQueue};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes ([`crate::event::IngestEvent::weight_bytes`]) one partition or one gateway's push queue holds; as an event
/// weighs at least 96 bytes, this bounds events as well, to about 87,000. Far above what engines leave lying while they
/// keep up, far below what a process would miss.
pub const EMBEDDED_QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Bytes of dead letters kept, all partitions together.
pub const EMBEDDED_DEAD_BYTES_MAX: usize = 1024 * 1024;

const _: () = assert!(
    EMBEDDED_QUEUE_BYTES_MAX > crate::limits::PUBLISH_WINDOW_MAX * crate::limits::PUBLISH_BYTES_MAX,
    "a partition's whole window of batches fits, so that the window and not this queue is what paces a publisher"
);

/// Every critical section leaves the state whole, so a panic elsewhere in it does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Room in a queue that takes `weight_bytes`. A batch heavier than the whole queue takes all of it.
fn room_of(weight_bytes: usize) -> u32 {
    u32::try_from(weight_bytes.clamp(1, EMBEDDED_QUEUE_BYTES_MAX)).expect("EMBEDDED_QUEUE_BYTES_MAX fits u32")
}

#[cfg(test)]
mod tests;
