//! Password hashing off the threads that serve: a bounded number at a time, a bounded number waiting.

use std::sync::Arc;
use std::time::Duration;

use tidegate_core::ports::{PasswordHasher, PortError, PortResult};
use tidegate_core::services::password::{self, PasswordCost, SALT_BYTES};
use tokio::sync::Semaphore;

use super::bounds::HASHES_WAITING_PER_RUNNING;
use crate::telemetry;

const SERVICE: &str = "password hashing";

/// How long one may wait for its turn; by then its client would have given up.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// Hashes on tokio's blocking threads.
pub struct PasswordPool {
    cost: PasswordCost,
    running: Arc<Semaphore>,
    /// Running and waiting together.
    admitted: Semaphore,
}

impl PasswordPool {
    /// Computes at most `running_max` hashes at a time; above zero.
    #[must_use]
    pub fn new(cost: PasswordCost, running_max: usize) -> Self {
        let admitted_max = running_max * (1 + HASHES_WAITING_PER_RUNNING);
        Self { cost, running: Arc::new(Semaphore::new(running_max)), admitted: Semaphore::new(admitted_max) }
    }

    async fn run<T: Send + 'static>(&self, compute: impl FnOnce() -> T + Send + 'static) -> PortResult<T> {
        let busy = |detail: &str| {
            metrics::counter!(telemetry::PASSWORD_HASHES, "outcome" => "busy").increment(1);
            PortError::Unavailable { service: SERVICE, detail: detail.to_owned() }
        };
        let _admitted = self.admitted.try_acquire().map_err(|_| busy("too many wait"))?;
        let turn = tokio::time::timeout(TURN_TIMEOUT, Arc::clone(&self.running).acquire_owned());
        let turn = turn.await.map_err(|_| busy("waited too long"))?.map_err(|_| PortError::Closed)?;
        let computed = tokio::task::spawn_blocking(move || {
            // Held by the computation: a caller that goes away does not let one more begin.
            let _turn = turn;
            compute()
        });
        metrics::counter!(telemetry::PASSWORD_HASHES, "outcome" => "done").increment(1);
        computed.await.map_err(|error| PortError::Refused { service: SERVICE, detail: error.to_string() })
    }
}

impl PasswordHasher for PasswordPool {
    async fn hash(&self, password: String) -> PortResult<String> {
        let refused = |detail: String| PortError::Refused { service: SERVICE, detail };
        let mut salt = [0; SALT_BYTES];
        getrandom::fill(&mut salt).map_err(|error| refused(error.to_string()))?;
        let cost = self.cost;
        let hashed = self.run(move || cost.hash(&password, salt)).await?;
        hashed.map_err(|error| refused(error.to_string()))
    }

    async fn verify(&self, password: String, hash: String) -> PortResult<bool> {
        self.run(move || password::verify(&password, &hash)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn too_many_at_once_are_refused_and_the_rest_are_served() {
        let pool = PasswordPool::new(PasswordCost { memory_kib: 8, iterations: 1, parallel: 1 }, 1);
        let hash = pool.hash("correct horse".to_owned()).await.expect("an idle pool");
        let tries = (0..200).map(|_| pool.verify("correct horse".to_owned(), hash.clone()));
        let answers = futures_util::future::join_all(tries).await;
        let served = answers.iter().filter(|answer| **answer == Ok(true)).count();
        let refused = answers.iter().filter(|answer| matches!(answer, Err(PortError::Unavailable { .. }))).count();
        assert_eq!(served + refused, 200, "nobody is left without an answer");
        // A hash that ends while the others still come in makes room for one more.
        assert!(served > HASHES_WAITING_PER_RUNNING && refused > 0, "{served} served, {refused} refused");
        assert_eq!(pool.verify("wrong horse".to_owned(), hash).await, Ok(false));
    }
}
