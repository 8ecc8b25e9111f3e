//! The presence keeper: tells the hot store which sessions ended, and that the others are still here.
//!
//! Sessions that begin are written by the reception, because a login waits for it. In come ended sessions of all shards;
//! out goes one call per batch. A gateway that dies says nothing: its beats stop, and so its users' records no longer count.
//! A hot store that forgot everything says so to the next beat, and is told at once who is here.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::limits::{GATEWAY_TTL, PRESENCE_TTL};
use crate::ports::{Backend, Beat, HotStore, PortError, PortResult, PresenceChange};
use crate::push::routes::Routes;
use crate::queue::{Closed, Queue, Weigh};
use crate::retry::until_done;

/// How often a gateway says that it lives; a third of the time for which it is believed.
pub const BEAT_INTERVAL: Duration = Duration::from_secs(5);

/// The pause after a beat that found nobody.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Beats between two renewals of everybody's record; three renewals fit the time it lives in the hot store (90 s).
const BEATS_PER_RENEWAL: u32 = 6;

const _: () = assert!(3 * BEAT_INTERVAL.as_secs() <= GATEWAY_TTL.as_secs(), "two beats may be lost");
const _: () = assert!(
    3 * BEATS_PER_RENEWAL as u64 * BEAT_INTERVAL.as_secs() <= PRESENCE_TTL.as_secs(),
    "a record outlives two missed renewals"
);

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

/// Beats, and renews everybody's record when it is due or was lost, for ever.
pub async fn run_beats<B: Backend, C: Clock>(routes: Arc<Routes>, backend: Arc<B>, clock: C) {
    let mut beats = 0;
    loop {
        let delay = match backend.hot().beat().await {
            Ok(beat) => {
                beats += 1;
                if beat == Beat::Unknown || beats >= BEATS_PER_RENEWAL {
                    match renew(&routes, &*backend).await {
                        Ok(()) => beats = 0,
                        // Due again with the next beat.
                        Err(error) => {
                            tracing::warn!(%error, "could not renew presence");
                            beats = BEATS_PER_RENEWAL;
                        }
                    }
                }
                BEAT_INTERVAL
            }
            Err(error) => {
                tracing::warn!(%error, "could not say that this gateway lives");
                RETRY_DELAY
            }
        };
        clock.sleep(delay).await;
    }
}

async fn renew<B: Backend>(routes: &Routes, backend: &B) -> PortResult<()> {
    let changes: Vec<_> = routes.users().into_iter().map(|user| PresenceChange::Renewed { user }).collect();
    for batch in changes.chunks(BATCH_MAX) {
        backend.hot().change_presence(batch).await?;
    }
    Ok(())
}
