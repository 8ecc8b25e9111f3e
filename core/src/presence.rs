//! The presence keeper: tells the hot store which sessions ended, and that the others are still here.
//!
//! Sessions that begin are written by the reception, because a login waits for it. In come ended and renewed sessions of all
//! shards; out goes one call per batch, and to the shards what it met: sessions the store had lost, whose clients must sync,
//! and sessions whose device another connection has, which end. A gateway that dies says nothing: its beats stop, and so its
//! users' records no longer count. A hot store that forgot everything says so to the next beat, and is told at once who is
//! here.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::delivery::{Mailboxes, ShardId, ShardInput};
use crate::ids::UserId;
use crate::limits::{GATEWAY_TTL, PRESENCE_TTL};
use crate::meter;
use crate::ports::{Backend, Beat, HotStore, PortError, PresenceChange, PresenceOutcome};
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
            Self::Here(hold) | Self::Renewed(hold) => 128 + hold.device.len() + size_of_val(hold.watching.as_slice()),
            Self::Gone { device, .. } => 64 + device.len(),
        }
    }
}

/// Writes ended and renewed sessions until the queue is closed and empty.
pub async fn run_changes<B: Backend, M: Mailboxes, C: Clock>(
    queue: &Queue<PresenceChange>,
    backend: Arc<B>,
    mailboxes: M,
    clock: C,
) {
    let mut changes = Vec::new();
    while queue.take(BATCH_MAX, &mut changes).await != Err(Closed) {
        let mut attempts = 0;
        let change = || {
            attempts += 1;
            backend.hot().change_presence(&changes)
        };
        match until_done(&clock, "change_presence", change).await {
            Err(PortError::Closed) => return,
            Err(_) => {}
            Ok(mut outcomes) => {
                if attempts > 1 {
                    doubt(&changes, &mut outcomes);
                }
                tell(&mailboxes, &changes, &outcomes).await;
            }
        }
        changes.clear();
    }
}

/// An attempt whose answer was lost may have been the one that found the session gone and made it present again: what the
/// next one says then proves nothing.
fn doubt(changes: &[PresenceChange], outcomes: &mut [PresenceOutcome]) {
    for (change, outcome) in changes.iter().zip(outcomes) {
        if let (PresenceChange::Renewed(_), PresenceOutcome::Done) = (change, &outcome) {
            *outcome = PresenceOutcome::Lost;
        }
    }
}

/// Tells the shards which of their sessions were lost or taken over.
async fn tell<M: Mailboxes>(mailboxes: &M, changes: &[PresenceChange], outcomes: &[PresenceOutcome]) {
    let mut lost: Vec<UserId> = Vec::new();
    let mut inputs = Vec::new();
    for (change, outcome) in changes.iter().zip(outcomes) {
        match (change, outcome) {
            (PresenceChange::Renewed(hold), PresenceOutcome::Lost) => lost.push(hold.user),
            (PresenceChange::Renewed(hold), PresenceOutcome::HeldByAnother) => {
                inputs.push((hold.user, hold.attachment));
            }
            _ => {}
        }
    }
    if !lost.is_empty() {
        metrics::counter!(meter::PRESENCE_LOST).increment(lost.len() as u64);
        tracing::warn!(users = lost.len(), "the hot store had lost where users are; their clients are told to sync");
    }
    if lost.is_empty() && inputs.is_empty() {
        return;
    }
    // Which shard holds them is not known here, and this is rare.
    for shard in (0..mailboxes.shards()).map(ShardId) {
        let mut posted: Vec<_> = inputs
            .iter()
            .map(|(user, attachment)| ShardInput::Replaced { user: *user, attachment: *attachment })
            .collect();
        if !lost.is_empty() {
            posted.push(ShardInput::PushesMissed { of: Some(lost.clone()) });
        }
        mailboxes.post(shard, posted).await;
    }
}

/// Beats, and has everybody's session renewed when that is due or the store has forgotten, for ever.
pub async fn run_beats<B: Backend, M: Mailboxes, C: Clock>(mailboxes: M, backend: Arc<B>, clock: C) {
    let mut beats = 0;
    loop {
        let delay = match backend.hot().beat().await {
            Ok(beat) => {
                beats += 1;
                if beat == Beat::Unknown || beats >= BEATS_PER_RENEWAL {
                    beats = 0;
                    for shard in (0..mailboxes.shards()).map(ShardId) {
                        mailboxes.post(shard, vec![ShardInput::RenewPresence]).await;
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
