//! When each watcher's next pull is due: a wheel of turns, because a heap of ten thousand would cost more than the pulls.

use crate::pacer::TURN_NS;

/// A power of two; whatever is due later than the wheel is long goes round once more.
const SLOTS: usize = 8192;

/// Watchers by the turn in which something is due.
#[derive(Debug)]
pub struct Wheel {
    slots: Vec<Vec<(u64, u32)>>,
    /// The first turn that has not been looked at.
    turn: u64,
    waiting: usize,
}

impl Wheel {
    /// An empty wheel whose time begins at `now_ns`.
    pub fn new(now_ns: u64) -> Self {
        Self { slots: (0..SLOTS).map(|_| Vec::new()).collect(), turn: now_ns / TURN_NS, waiting: 0 }
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Remembers a watcher for a moment; what is in the past is due at once.
    pub fn add(&mut self, due_ns: u64, watcher: u32) {
        let turn = due_ns.div_ceil(TURN_NS).max(self.turn);
        self.slots[turn as usize % SLOTS].push((turn, watcher));
        self.waiting += 1;
    }

    /// Moves those that are due by `now_ns` to `due`.
    pub fn take_due(&mut self, now_ns: u64, due: &mut Vec<u32>) {
        let until = now_ns / TURN_NS;
        // After a standstill longer than the wheel every slot is looked at once.
        let from = self.turn.max((until + 1).saturating_sub(SLOTS as u64));
        for turn in from..=until {
            let before = due.len();
            self.slots[turn as usize % SLOTS].retain(|(wanted, watcher)| {
                let is_due = *wanted <= until;
                if is_due {
                    due.push(*watcher);
                }
                !is_due
            });
            self.waiting -= due.len() - before;
        }
        self.turn = self.turn.max(until + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due_at(wheel: &mut Wheel, turn: u64) -> Vec<u32> {
        let mut due = Vec::new();
        wheel.take_due(turn * TURN_NS, &mut due);
        due
    }

    #[test]
    fn nobody_is_early_nor_forgotten() {
        let mut wheel = Wheel::new(0);
        wheel.add(5 * TURN_NS, 1);
        wheel.add(5 * TURN_NS + 1, 2);
        wheel.add((SLOTS as u64 + 5) * TURN_NS, 3);
        assert_eq!(due_at(&mut wheel, 4), [0; 0]);
        assert_eq!(due_at(&mut wheel, 5), [1]);
        assert_eq!((due_at(&mut wheel, 6), wheel.waiting()), (vec![2], 1));
        wheel.add(0, 4);
        assert_eq!(due_at(&mut wheel, 7), [4]);
        assert_eq!(due_at(&mut wheel, SLOTS as u64 + 4), [0; 0]);
        assert_eq!((due_at(&mut wheel, 3 * SLOTS as u64), wheel.waiting()), (vec![3], 0));
    }
}
