//! How long each fault kept people waiting: from the times at which messages were accepted.
//!
//! Pure arithmetic. A fault's window goes from its beginning to the next fault's beginning, or to the end of the offering.

use serde::Serialize;

/// What a fault cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outage {
    /// Longest time in the window in which not one message of anybody was accepted.
    pub nobody_ms: u64,
    /// The same of the one device that waited longest.
    pub worst_user_ms: u64,
    /// From the beginning of the undoing until the last device that waited was served again.
    pub recovery_ms: u64,
}

/// A gap between two acceptances.
#[derive(Clone, Copy, Default)]
struct Gap {
    length_ms: u64,
    end_ms: u64,
}

/// Looks at a window in the times of all devices, each ascending.
pub fn outage(began_ms: u64, undone_ms: u64, window_end_ms: u64, accepted_at_ms: &[&[u64]]) -> Outage {
    let mut everybody: Vec<u64> = accepted_at_ms.iter().flat_map(|times| times.iter().copied()).collect();
    everybody.sort_unstable();
    let mut outage =
        Outage { nobody_ms: longest_gap(began_ms, window_end_ms, &everybody).length_ms, ..Outage::default() };
    for times in accepted_at_ms {
        let gap = longest_gap(began_ms, window_end_ms, times);
        outage.worst_user_ms = outage.worst_user_ms.max(gap.length_ms);
        // A device whose longest wait began later was not waiting for the undoing.
        if gap.end_ms - gap.length_ms <= undone_ms {
            outage.recovery_ms = outage.recovery_ms.max(gap.end_ms.saturating_sub(undone_ms));
        }
    }
    outage
}

/// The longest time without an entry between the two moments; an entry before them does not count, the end does.
fn longest_gap(from_ms: u64, to_ms: u64, times: &[u64]) -> Gap {
    let first = times.partition_point(|time| *time <= from_ms);
    let within = times[first..].iter().copied().take_while(|time| *time < to_ms);
    let mut longest = Gap::default();
    let mut before_ms = from_ms;
    for end_ms in within.chain([to_ms.max(from_ms)]) {
        if end_ms - before_ms > longest.length_ms {
            longest = Gap { length_ms: end_ms - before_ms, end_ms };
        }
        before_ms = end_ms;
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_user_and_everybody_are_told_apart() {
        // One device is cut off from 100 to 900, the other goes on; the fault is undone at 500.
        let (cut, fine): (Vec<u64>, Vec<u64>) =
            ((0..=1_000).step_by(50).filter(|t| *t <= 100 || *t >= 900).collect(), (0..=1_000).step_by(50).collect());
        let outage = outage(100, 500, 1_000, &[&cut, &fine]);
        assert_eq!(outage, Outage { nobody_ms: 50, worst_user_ms: 800, recovery_ms: 400 });
    }

    #[test]
    fn silence_up_to_the_end_of_the_window_counts() {
        let outage = outage(100, 200, 1_000, &[&[50, 150]]);
        assert_eq!(outage, Outage { nobody_ms: 850, worst_user_ms: 850, recovery_ms: 800 });
    }

    #[test]
    fn a_later_wait_is_no_recovery() {
        let outage = outage(100, 200, 1_000, &[&[150, 210, 300, 700, 990]]);
        assert_eq!(outage, Outage { nobody_ms: 400, worst_user_ms: 400, recovery_ms: 0 });
    }

    #[test]
    fn what_is_over_before_the_undoing_needs_no_recovery() {
        let outage = outage(100, 900, 1_000, &[&[90, 600, 950]]);
        assert_eq!(outage, Outage { nobody_ms: 500, worst_user_ms: 500, recovery_ms: 0 });
    }
}
