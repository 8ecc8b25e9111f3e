//! The open loop: how many messages are due in which turn, and whose turn it is to send.
//!
//! In: a rate and the time; out: the turns that are due, each with its intended time and its number of messages. The
//! schedule knows nothing of replies: a slow server cannot slow it down, and a turn that comes late keeps its intended
//! time, so that waiting counts as latency (no coordinated omission).

/// Length of a turn. A thousand a second keep the number of system calls low at any rate; the times at which messages
/// are due lie on this grid, so that pacing by turns adds no latency of its own.
pub const TURN_NS: u64 = 1_000_000;

/// One turn's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The grid point, on the generator's clock.
    pub intended_ns: u64,
    /// Messages due at it; may be zero.
    pub messages: u64,
}

/// A constant rate from a start for a number of turns.
#[derive(Clone, Debug)]
pub struct Schedule {
    start_ns: u64,
    rate_per_s: u64,
    turns_total: u64,
    turns_done: u64,
    issued: u64,
}

impl Schedule {
    /// `rate_per_s` messages a second from `start_ns` on, for `length_ns`.
    pub fn new(start_ns: u64, length_ns: u64, rate_per_s: u64) -> Self {
        Self { start_ns, rate_per_s, turns_total: length_ns.div_ceil(TURN_NS), turns_done: 0, issued: 0 }
    }

    /// The next turn that is due by `now_ns`; call until `None`. Turns that were missed come one by one.
    pub fn next_due(&mut self, now_ns: u64) -> Option<Due> {
        let intended_ns = self.start_ns + self.turns_done * TURN_NS;
        if self.is_over() || intended_ns > now_ns {
            return None;
        }
        self.turns_done += 1;
        let total = u128::from(self.rate_per_s) * u128::from(self.turns_done) * u128::from(TURN_NS) / 1_000_000_000;
        let total = u64::try_from(total).unwrap_or(u64::MAX);
        let messages = total - self.issued;
        self.issued = total;
        Some(Due { intended_ns, messages })
    }

    /// True after the last turn.
    pub fn is_over(&self) -> bool {
        self.turns_done >= self.turns_total
    }

    /// Ends the schedule now.
    pub fn stop(&mut self) {
        self.turns_total = self.turns_done;
    }
}

/// The order in which senders take their turns: shuffled once, then round and round, so that load is even and a seed
/// repeats it.
#[derive(Debug)]
pub struct Rotation {
    order: Vec<u32>,
    next: usize,
}

impl Rotation {
    /// These senders.
    pub fn new(senders: impl IntoIterator<Item = u32>, random: &mut Random) -> Self {
        let mut order: Vec<u32> = senders.into_iter().collect();
        for index in (1..order.len()).rev() {
            let other = random.below(index as u64 + 1);
            order.swap(index, usize::try_from(other).expect("below a usize"));
        }
        Self { order, next: 0 }
    }

    /// Whose turn it is; `None` only without senders.
    pub fn next(&mut self) -> Option<u32> {
        let sender = self.order.get(self.next).copied()?;
        self.next = (self.next + 1) % self.order.len();
        Some(sender)
    }
}

/// A small seeded generator (splitmix64): repeatable, and nothing here needs secrecy.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `bound`, which must not be zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    fn drain(schedule: &mut Schedule, now_ns: u64) -> Vec<Due> {
        std::iter::from_fn(|| schedule.next_due(now_ns)).collect()
    }

    #[test]
    fn a_second_of_any_rate_has_exactly_that_many_messages() {
        for rate in [1, 7, 999, 1_000, 1_001, 50_000, 1_234_567] {
            let mut schedule = Schedule::new(5 * SECOND_NS, SECOND_NS, rate);
            let dues = drain(&mut schedule, 9 * SECOND_NS);
            assert_eq!(dues.iter().map(|due| due.messages).sum::<u64>(), rate);
            assert!(schedule.is_over());
        }
    }

    #[test]
    fn a_missed_turn_keeps_its_intended_time() {
        let mut schedule = Schedule::new(0, SECOND_NS, 2_000);
        assert_eq!(drain(&mut schedule, 0), [Due { intended_ns: 0, messages: 2 }]);
        let late = drain(&mut schedule, 3 * TURN_NS + 5);
        assert_eq!(late.iter().map(|due| due.intended_ns).collect::<Vec<_>>(), [TURN_NS, 2 * TURN_NS, 3 * TURN_NS]);
        assert_eq!(schedule.next_due(3 * TURN_NS + 6), None);
    }

    #[test]
    fn a_rotation_visits_every_sender_once_a_round_and_repeats_with_its_seed() {
        let round = |seed| {
            let mut rotation = Rotation::new(0..10, &mut Random::new(seed));
            (0..20).map(|_| rotation.next().expect("ten senders")).collect::<Vec<_>>()
        };
        let turns = round(3);
        assert_eq!(turns[..10], turns[10..]);
        let mut sorted = turns[..10].to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        assert_eq!(turns, round(3));
        assert_ne!(turns, round(4));
    }
}
