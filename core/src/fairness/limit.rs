//! The arithmetic of one allowance: a token bucket in whole microseconds, kept as the moment at which it is whole again
//! (the generic cell rate algorithm of ITU-T I.371).
//!
//! A Send costs one interval and moves that moment on by as much. It passes if the allowance is then at most a burst from
//! whole. So there is one number to keep, to add up over gateways and to forget once it has passed.

/// Microseconds in a second.
pub(super) const SECOND_US: u64 = 1_000_000;

/// What gateways that have not heard of each other may let pass in excess; see [`Limit::most_us`].
const EXCESS_US: u64 = 10 * SECOND_US;

/// So many messages per time, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    interval_us: u64,
    /// The burst, less the one message that always may be sent when the allowance is whole.
    tolerance_us: u64,
    most_us: u64,
}

impl Limit {
    /// `per_s` messages a second, and `burst` at once after a pause. `None` if either is zero: no limit.
    #[must_use]
    pub fn per_second(per_s: u32, burst: u32) -> Option<Self> {
        if per_s == 0 || burst == 0 {
            return None;
        }
        let interval_us = SECOND_US.div_ceil(u64::from(per_s));
        let tolerance_us = interval_us * u64::from(burst - 1);
        Some(Self { interval_us, tolerance_us, most_us: tolerance_us + interval_us + EXCESS_US })
    }

    /// One message in `period_s` seconds. `None` for zero: no limit.
    #[must_use]
    pub fn one_in(period_s: u32) -> Option<Self> {
        let interval_us = u64::from(period_s) * SECOND_US;
        // No more than a period, so that a shorter one counts at once for those who wait for the end of a longer one.
        (period_s > 0).then_some(Self { interval_us, tolerance_us: 0, most_us: interval_us })
    }

    /// What one message costs.
    #[must_use]
    pub fn interval_us(&self) -> u64 {
        self.interval_us
    }

    /// The furthest that an allowance can be from whole. What says otherwise comes from a clock that went back, or from
    /// before the limit was changed.
    #[must_use]
    pub fn most_us(&self) -> u64 {
        self.most_us
    }

    /// How long until a message passes, if the allowance is whole at `whole_at_us`; zero: it passes now.
    #[must_use]
    pub fn wait_us(&self, whole_at_us: u64, now_us: u64) -> u64 {
        whole_at_us.saturating_sub(now_us).saturating_sub(self.tolerance_us)
    }

    /// When the allowance is whole again, once a message has passed.
    #[must_use]
    pub fn spend(&self, whole_at_us: u64, now_us: u64) -> u64 {
        whole_at_us.max(now_us) + self.interval_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages sent at so many milliseconds, each with the microseconds it has to wait; 0: it passes.
    #[track_caller]
    fn check(name: &str, limit: Option<Limit>, sent: &[(u64, u64)]) {
        let limit = limit.expect("a limit");
        let mut whole_at_us = 0;
        for (at_ms, expected_us) in sent {
            let now_us = (1_000_000 + at_ms) * 1000;
            let wait_us = limit.wait_us(whole_at_us, now_us);
            assert_eq!(wait_us, *expected_us, "{name}, at {at_ms} ms");
            if wait_us == 0 {
                whole_at_us = limit.spend(whole_at_us, now_us);
            }
        }
    }

    #[test]
    fn a_message_passes_exactly_when_its_time_has_come() {
        let one_at_a_time = [(0, 0), (0, 100_000), (99, 1_000), (100, 0), (100, 100_000)];
        check("one at a time", Limit::per_second(10, 1), &one_at_a_time);
        let burst = [(0, 0), (0, 0), (0, 0), (0, 100_000), (100, 0), (150, 50_000), (200, 0)];
        check("a burst, then the rate", Limit::per_second(10, 3), &burst);
        let pause = [(0, 0), (0, 0), (9_000, 0), (9_000, 0), (9_000, 100_000)];
        check("a pause fills it, and no more", Limit::per_second(10, 2), &pause);
        check("a rate that does not divide", Limit::per_second(3, 1), &[(0, 0), (333, 334), (334, 0)]);
        let asking = [(0, 0), (1, 999_000), (2, 998_000), (999, 1_000), (1_000, 0)];
        check("asking costs nothing", Limit::per_second(1, 1), &asking);
        let slow = [(0, 0), (1, 29_999_000), (29_999, 1_000), (30_000, 0), (30_001, 29_999_000)];
        check("slow mode", Limit::one_in(30), &slow);
    }

    #[test]
    fn zero_is_no_limit() {
        assert_eq!((Limit::per_second(0, 5), Limit::per_second(5, 0), Limit::one_in(0)), (None, None, None));
    }
}
