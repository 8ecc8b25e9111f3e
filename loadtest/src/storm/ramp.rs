//! The ramp: which rate is offered when, and so at which time each message is due.
//!
//! In: two rates and a length; out: a rate and a number of messages for every moment, and the due time of every message,
//! known before the first one is sent. Low rate for a while, up by equal factors in equal times, high rate for a while,
//! down the same way, low rate for a while.
//!
//! Nothing here depends on replies: a slow server cannot slow the ramp down.

use crate::pacer::TURN_NS;

/// Times of the run in seconds from its start, rates in messages per second.
#[derive(Clone, Debug)]
pub struct Ramp {
    parts: Vec<Part>,
    length_s: f64,
    messages: u64,
}

/// A part of the ramp in which the rate grows or shrinks by an equal factor in an equal time.
#[derive(Clone, Copy, Debug)]
struct Part {
    start_s: f64,
    length_s: f64,
    from_per_s: f64,
    to_per_s: f64,
    /// Messages of all parts before it.
    before: f64,
}

impl Part {
    /// The exponent per second; zero while the rate is held.
    fn growth_per_s(&self) -> f64 {
        (self.to_per_s / self.from_per_s).ln() / self.length_s
    }

    fn rate_at(&self, after_s: f64) -> f64 {
        self.from_per_s * (self.growth_per_s() * after_s).exp()
    }

    /// The integral of the rate.
    fn messages_until(&self, after_s: f64) -> f64 {
        let growth = self.growth_per_s();
        if growth.abs() < 1e-12 {
            return self.from_per_s * after_s;
        }
        self.from_per_s * (growth * after_s).exp_m1() / growth
    }

    /// The inverse of [`Self::messages_until`].
    fn time_of(&self, messages: f64) -> f64 {
        let growth = self.growth_per_s();
        if growth.abs() < 1e-12 {
            return messages / self.from_per_s;
        }
        (messages * growth / self.from_per_s).ln_1p() / growth
    }
}

impl Ramp {
    /// From `low_per_s` to `high_per_s` and back within `length_s`; both ends of it and its middle are held for `hold_s`
    /// each. `None` if the holds leave no time to climb.
    pub fn new(low_per_s: f64, high_per_s: f64, length_s: f64, hold_s: f64) -> Option<Self> {
        let climb_s = (length_s - 3.0 * hold_s) / 2.0;
        let is_possible = climb_s > 0.0 && low_per_s > 0.0 && high_per_s > 0.0 && hold_s >= 0.0;
        if !is_possible {
            return None;
        }
        let (mut parts, mut start_s, mut before): (Vec<Part>, f64, f64) = (Vec::new(), 0.0, 0.0);
        for (length_s, from_per_s, to_per_s) in [
            (hold_s, low_per_s, low_per_s),
            (climb_s, low_per_s, high_per_s),
            (hold_s, high_per_s, high_per_s),
            (climb_s, high_per_s, low_per_s),
            (hold_s, low_per_s, low_per_s),
        ] {
            if length_s > 0.0 {
                let part = Part { start_s, length_s, from_per_s, to_per_s, before };
                before += part.messages_until(length_s);
                start_s += length_s;
                parts.push(part);
            }
        }
        // A sum that ought to be whole may come out a hair below.
        Some(Self { parts, length_s, messages: (before + 1e-6) as u64 })
    }

    /// Messages of the whole ramp.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Seconds.
    pub fn length_s(&self) -> f64 {
        self.length_s
    }

    /// The rate offered at a time; zero outside the ramp.
    pub fn rate_at(&self, time_s: f64) -> f64 {
        if !(0.0..=self.length_s).contains(&time_s) {
            return 0.0;
        }
        self.part_at(|part| part.start_s <= time_s).map_or(0.0, |part| part.rate_at(time_s - part.start_s))
    }

    /// When message `number`, counted from 0, is due: nanoseconds from the start, on the grid of turns. It is the first
    /// turn by which the integral of the rate has reached the message.
    pub fn due_ns(&self, number: u64) -> u64 {
        let wanted = number as f64 + 1.0;
        let Some(part) = self.part_at(|part| part.before < wanted) else { return 0 };
        let time_s = (part.start_s + part.time_of(wanted - part.before)).min(self.length_s);
        // Not a turn later for a rounding error of a few picoseconds.
        let turns = (time_s * 1e9 / TURN_NS as f64 - 1e-6).ceil().max(0.0);
        turns as u64 * TURN_NS
    }

    /// The last part of which it holds.
    fn part_at(&self, holds: impl Fn(&Part) -> bool) -> Option<&Part> {
        self.parts.iter().rev().find(|part| holds(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp() -> Ramp {
        Ramp::new(1.0, 5_000.0, 60.0, 5.0).unwrap()
    }

    #[test]
    fn the_rate_is_held_climbs_by_equal_factors_and_comes_back() {
        let ramp = ramp();
        for (time_s, rate) in [(0.0, 1.0), (4.9, 1.0), (30.0, 5_000.0), (32.4, 5_000.0), (55.1, 1.0), (60.0, 1.0)] {
            assert!((ramp.rate_at(time_s) / rate - 1.0).abs() < 0.01, "{} at {time_s}", ramp.rate_at(time_s));
        }
        // A third of the way up is a third of the factors.
        let third = ramp.rate_at(5.0 + 7.5);
        assert!((third - 5_000f64.powf(1.0 / 3.0)).abs() < 1e-6, "{third}");
        assert!((ramp.rate_at(20.0) - ramp.rate_at(40.0)).abs() < 1e-6, "up and down are mirrored");
        assert_eq!((ramp.rate_at(-0.1), ramp.rate_at(60.1)), (0.0, 0.0));
    }

    #[test]
    fn the_messages_are_the_integral_of_the_rate() {
        let ramp = ramp();
        let steps = 600_000;
        let integral: f64 =
            (0..steps).map(|step| ramp.rate_at(60.0 * (f64::from(step) + 0.5) / f64::from(steps)) * 1e-4).sum();
        assert!((integral - ramp.messages() as f64).abs() < 1.5, "{integral} and {}", ramp.messages());
    }

    #[test]
    fn due_times_never_go_back_and_each_second_has_its_rate() {
        let ramp = ramp();
        let dues: Vec<u64> = (0..ramp.messages()).map(|number| ramp.due_ns(number)).collect();
        assert!(dues.is_sorted());
        assert!(dues.iter().all(|due| due % TURN_NS == 0 && *due <= 60_000_000_000));
        let in_second = |second: u64| {
            dues.iter().filter(|due| **due > second * 1_000_000_000 && **due <= (second + 1) * 1_000_000_000).count()
        };
        assert_eq!((in_second(0), in_second(3), in_second(29)), (1, 1, 5_000));
    }

    #[test]
    fn a_ramp_that_holds_all_the_time_is_none() {
        assert!(Ramp::new(1.0, 10.0, 15.0, 5.0).is_none());
        let flat = Ramp::new(100.0, 100.0, 2.0, 0.0).unwrap();
        assert_eq!(flat.messages(), 200);
        assert_eq!((flat.due_ns(0), flat.due_ns(199)), (10_000_000, 2_000_000_000));
    }
}
