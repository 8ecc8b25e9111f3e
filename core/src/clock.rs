//! Time as a port. Core never reads a clock of its own; engines that must wait are given one.

use std::future::Future;
use std::time::Duration;

use crate::ids::Millis;

/// The time of day and the passing of time.
pub trait Clock: Clone + Send + Sync + 'static {
    /// Unix time now.
    fn now(&self) -> Millis;

    /// Completes after `delay`.
    fn sleep(&self, delay: Duration) -> impl Future<Output = ()> + Send;
}
