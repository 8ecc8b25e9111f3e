//! Repeating a port call until it succeeds. Engines hold their batch meanwhile: nothing is lost, the queue before them fills
//! up to its bound, and whoever feeds it is told.

use std::future::Future;
use std::time::Duration;

use crate::clock::Clock;
use crate::meter;
use crate::ports::{PortError, PortResult};

const DELAY_MIN: Duration = Duration::from_millis(50);
const DELAY_MAX: Duration = Duration::from_secs(2);

/// Calls `attempt` until it answers, with growing pauses. `step` names it in logs and metrics.
///
/// # Errors
/// [`PortError::Closed`]: the process is ending. [`PortError::Conflict`] and [`PortError::Unfit`], which no repetition mends.
pub async fn until_done<C, T, F>(clock: &C, step: &'static str, mut attempt: impl FnMut() -> F) -> PortResult<T>
where
    C: Clock,
    F: Future<Output = PortResult<T>>,
{
    let mut delay = DELAY_MIN;
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(error @ (PortError::Closed | PortError::Conflict { .. } | PortError::Unfit { .. })) => {
                return Err(error);
            }
            // A refusal is repeated as well: dropping the batch would lose it, and an operator can mend a schema.
            Err(error @ PortError::Refused { .. }) => tracing::error!(step, %error, "will be repeated"),
            Err(error @ PortError::Unavailable { .. }) => tracing::warn!(step, %error, "will be repeated"),
        }
        metrics::counter!(meter::ENGINE_RETRIES, "step" => step).increment(1);
        clock.sleep(delay).await;
        delay = (delay * 2).min(DELAY_MAX);
    }
}
