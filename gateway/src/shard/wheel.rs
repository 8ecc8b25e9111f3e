//! The timer wheel: deadlines of all of a shard's connections, at one second's resolution.
//!
//! A connection has one entry at any time. Activity does not move it: when the entry comes up the connection says when its
//! deadline really is, and goes to that place. So a busy connection costs nothing here.

/// Places on the wheel, in seconds; longer deadlines go round again.
const PLACES: u32 = 256;

/// See the module. `T` names a connection.
#[derive(Debug)]
pub struct Wheel<T> {
    places: Vec<Vec<T>>,
    now_s: u32,
}

impl<T> Default for Wheel<T> {
    fn default() -> Self {
        Self { places: (0..PLACES).map(|_| Vec::new()).collect(), now_s: 0 }
    }
}

impl<T> Wheel<T> {
    /// Seconds since the wheel was made, as of the last [`Wheel::advance`].
    #[must_use]
    pub fn now_s(&self) -> u32 {
        self.now_s
    }

    /// Brings `item` up at `deadline_s`, or earlier if that is further away than the wheel is round; never before the
    /// next second.
    pub fn insert(&mut self, item: T, deadline_s: u32) {
        let at = deadline_s.clamp(self.now_s + 1, self.now_s + PLACES - 1);
        self.places[(at % PLACES) as usize].push(item);
    }

    /// Moves on to `now_s` and gives out what has come up.
    pub fn advance(&mut self, now_s: u32) -> Vec<T> {
        let mut due = Vec::new();
        // A machine that slept longer than a round brings everything up once.
        let steps = now_s.saturating_sub(self.now_s).min(PLACES);
        for at in (now_s - steps + 1)..=now_s {
            due.append(&mut self.places[(at % PLACES) as usize]);
        }
        self.now_s = self.now_s.max(now_s);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_up_in_their_second() {
        let mut wheel = Wheel::default();
        wheel.insert("late", 10);
        wheel.insert("soon", 2);
        wheel.insert("past", 0);
        assert_eq!(wheel.advance(1), ["past"]);
        assert_eq!(wheel.advance(2), ["soon"]);
        assert_eq!(wheel.advance(9), [""; 0]);
        assert_eq!(wheel.advance(10), ["late"]);
    }

    #[test]
    fn a_far_deadline_comes_up_early_to_be_asked_again() {
        let mut wheel = Wheel::default();
        wheel.insert("far", 1000);
        let first = (1..).find(|now| !wheel.advance(*now).is_empty());
        assert_eq!(first, Some(255));
    }

    #[test]
    fn a_long_sleep_brings_everything_up_once() {
        let mut wheel = Wheel::default();
        for n in 0..100 {
            wheel.insert(n, n);
        }
        assert_eq!(wheel.advance(100_000).len(), 100);
        assert_eq!(wheel.advance(100_001).len(), 0);
    }
}
