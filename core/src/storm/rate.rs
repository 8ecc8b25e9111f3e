//! Events per second over a sliding window: a ring of buckets, so that counting costs one addition.

use std::time::Duration;

use crate::ids::Millis;

/// Parts of the window; the rate is off by at most one of them.
const BUCKETS: u64 = 10;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Rate {
    bucket_ms: u64,
    counts: [u32; BUCKETS as usize],
    /// Number of the newest bucket, counted from the Unix epoch.
    newest: u64,
    total: u64,
}

impl Rate {
    /// A rate over `window`, at least ten milliseconds.
    pub(super) fn new(window: Duration) -> Self {
        let window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        Self { bucket_ms: (window_ms / BUCKETS).max(1), counts: [0; BUCKETS as usize], newest: 0, total: 0 }
    }

    /// Counts events that happen now. A clock that went back counts into the newest bucket.
    pub(super) fn add(&mut self, now: Millis, events: u32) {
        self.advance(now);
        let count = &mut self.counts[(self.newest % BUCKETS) as usize];
        *count = count.saturating_add(events);
        self.total += u64::from(events);
    }

    /// Events of the window, in thousandths per second.
    pub(super) fn per_1000_s(&mut self, now: Millis) -> u64 {
        self.advance(now);
        self.total.saturating_mul(1_000_000) / (self.bucket_ms * BUCKETS)
    }

    /// Whether nothing happened within the window.
    pub(super) fn is_zero(&self) -> bool {
        self.total == 0
    }

    fn advance(&mut self, now: Millis) {
        let bucket = now.0 / self.bucket_ms;
        let passed = bucket.saturating_sub(self.newest);
        for step in 1..=passed.min(BUCKETS) {
            let count = &mut self.counts[((self.newest + step) % BUCKETS) as usize];
            self.total -= u64::from(std::mem::take(count));
        }
        self.newest = self.newest.max(bucket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_slides() {
        let mut rate = Rate::new(Duration::from_secs(2));
        for ms in (0..2_000).step_by(50) {
            rate.add(Millis(10_000 + ms), 1);
        }
        assert_eq!(rate.per_1000_s(Millis(11_999)), 20_000);
        assert_eq!(rate.per_1000_s(Millis(12_999)), 10_000, "half of it has passed");
        assert_eq!(rate.per_1000_s(Millis(14_000)), 0);
        assert!(rate.is_zero());
    }

    #[test]
    fn a_clock_that_jumps_does_no_harm() {
        let mut rate = Rate::new(Duration::from_secs(1));
        rate.add(Millis(1_000_000), 5);
        rate.add(Millis(900_000), 5);
        assert_eq!(rate.per_1000_s(Millis(999_999)), 10_000);
        assert_eq!(rate.per_1000_s(Millis(u64::MAX)), 0);
        rate.add(Millis(u64::MAX), u32::MAX);
        rate.add(Millis(u64::MAX), u32::MAX);
        assert!(rate.per_1000_s(Millis(u64::MAX)) > 0);
    }
}
