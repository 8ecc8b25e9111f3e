//! The machine's clock, for the domain's [`Clock`] port.

use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tidegate_core::clock::Clock;
use tidegate_core::ids::Millis;

/// The time of day of this machine, and tokio's timer.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Millis {
        // A clock set before 1970 is taken for 1970.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn sleep(&self, delay: Duration) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(delay)
    }
}
