//! The presence keeper: tells the hot store which sessions ended, and that the others are still here.
//!
//! Sessions that begin are written by the reception, because a login waits for it. In come ended sessions of all shards;
//! out goes one call per batch. A gateway that dies says nothing: its users' records expire.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::ports::{Backend, HotStore, PortError, PresenceChange};
use crate::push::routes::Routes;
use crate::queue::{Closed, Queue, Weigh};
use crate::retry::until_done;

/// How often a record is renewed; a third of the time it lives in the hot store (90 s).
pub const RENEW_INTERVAL: Duration = Duration::from_secs(30);

/// Changes written in one call.
const BATCH_MAX: usize = 512;

impl Weigh for PresenceChange {
    fn weight_bytes(&self) -> usize {
        match self {
            Self::Here { device, .. } | Self::Gone { device, .. } => 64 + device.len(),
            Self::Renewed { .. } => 64,
        }
    }
}

/// Writes ended sessions until the queue is closed and empty.
pub async fn run_departures<B: Backend, C: Clock>(queue: &Queue<PresenceChange>, backend: Arc<B>, clock: C) {
    let mut changes = Vec::new();
    while queue.take(BATCH_MAX, &mut changes).await != Err(Closed) {
        let done = until_done(&clock, "change_presence", || backend.hot().change_presence(&changes)).await;
        if done == Err(PortError::Closed) {
            return;
        }
        changes.clear();
    }
}

/// Renews everybody's record, for ever.
pub async fn run_renewals<B: Backend, C: Clock>(routes: Arc<Routes>, backend: Arc<B>, clock: C) {
    loop {
        clock.sleep(RENEW_INTERVAL).await;
        let changes: Vec<_> = routes.users().into_iter().map(|user| PresenceChange::Renewed { user }).collect();
        for batch in changes.chunks(BATCH_MAX) {
            // Not repeated: the next round is near, and the record outlives two missed ones.
            if let Err(error) = backend.hot().change_presence(batch).await {
                tracing::warn!(%error, "could not renew presence");
                break;
            }
        }
    }
}
