//! What is measured, second by second of the run. Each thread has a series; they add up.

use hdrhistogram::Histogram;

/// Times below are recorded as this; above, as the highest.
const RECORDED_NS_MIN: u64 = 10_000;
const RECORDED_NS_MAX: u64 = 300_000_000_000;

/// Times in nanoseconds, precise to 1 %: a run has many of them.
#[derive(Clone, Debug, Default)]
pub struct Latency(Option<Box<Histogram<u64>>>);

impl Latency {
    /// Records one time.
    pub fn record(&mut self, ns: u64) {
        self.record_n(ns, 1);
    }

    /// Records a time that several have.
    pub fn record_n(&mut self, ns: u64, count: u64) {
        let histogram = self.0.get_or_insert_with(|| {
            let histogram = Histogram::new_with_bounds(RECORDED_NS_MIN, RECORDED_NS_MAX, 2);
            Box::new(histogram.expect("the bounds are in order"))
        });
        histogram.saturating_record_n(ns, count);
    }

    /// Adds another's times.
    pub fn merge(&mut self, other: &Self) {
        match (&mut self.0, &other.0) {
            (Some(ours), Some(theirs)) => ours.add(&**theirs).expect("all have the same bounds"),
            (ours @ None, Some(theirs)) => *ours = Some(theirs.clone()),
            (_, None) => {}
        }
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.0.as_ref().map_or(0, |histogram| histogram.len())
    }

    /// The time within which `quantile` of all were, in milliseconds; `None` if nothing was recorded.
    pub fn quantile_ms(&self, quantile: f64) -> Option<f64> {
        let histogram = self.0.as_ref().filter(|histogram| !histogram.is_empty())?;
        // A histogram answers with the end of a bucket; the beginning of the lowest is zero.
        let ns = histogram.value_at_quantile(quantile);
        Some(if ns <= RECORDED_NS_MIN { 0.0 } else { ns as f64 / 1e6 })
    }
}

/// One second of one thread, or of all together.
#[derive(Clone, Debug, Default)]
pub struct Second {
    /// Messages due in it.
    pub offered: u64,
    /// Acks that came in it.
    pub accepted: u64,
    /// Of those due in it: accepted, whenever that was.
    pub accepted_of_due: u64,
    /// Of those due in it: how often a watcher was shown one live, whenever that was.
    pub shown_of_due: u64,
    /// How often a watcher was shown a message in it.
    pub shown: u64,
    /// Bytes received by watchers.
    pub bytes: u64,
    /// Watchers that were in signal gear the whole second.
    pub signal_watchers: u64,
    /// Bytes these received.
    pub signal_bytes: u64,
    /// Bytes that one of these received, at most.
    pub signal_bytes_max: u64,
    /// Watchers in each gear at its end.
    pub gears: [u64; 3],
    /// Pulls asked.
    pub pulls: u64,
    /// Notices of new messages received.
    pub notices: u64,
    /// Sends and pulls answered with "slow down".
    pub slow_downs: u64,
    /// Notices of being behind.
    pub behinds: u64,
    /// CPU time of the thread, in seconds; of the busiest.
    pub cpu_s: f64,
    /// CPU time of all threads.
    pub cpu_sum_s: f64,
    /// How late messages were sent.
    pub lateness: Latency,
    /// From due to ack, by when the message was due.
    pub ack: Latency,
    /// From due to shown live, by when the message was due and the gear it was shown in.
    pub due_to_shown: [Latency; 3],
    /// From ack to shown live, the same way; zero where it was shown first.
    pub accepted_to_shown: [Latency; 3],
}

impl Second {
    /// Adds another thread's second.
    pub fn merge(&mut self, other: &Self) {
        for (ours, theirs) in [
            (&mut self.offered, other.offered),
            (&mut self.accepted, other.accepted),
            (&mut self.accepted_of_due, other.accepted_of_due),
            (&mut self.shown_of_due, other.shown_of_due),
            (&mut self.shown, other.shown),
            (&mut self.bytes, other.bytes),
            (&mut self.signal_watchers, other.signal_watchers),
            (&mut self.signal_bytes, other.signal_bytes),
            (&mut self.pulls, other.pulls),
            (&mut self.notices, other.notices),
            (&mut self.slow_downs, other.slow_downs),
            (&mut self.behinds, other.behinds),
        ] {
            *ours += theirs;
        }
        self.signal_bytes_max = self.signal_bytes_max.max(other.signal_bytes_max);
        self.cpu_s = self.cpu_s.max(other.cpu_s);
        self.cpu_sum_s += other.cpu_sum_s;
        self.lateness.merge(&other.lateness);
        self.ack.merge(&other.ack);
        for gear in 0..3 {
            self.gears[gear] += other.gears[gear];
            self.due_to_shown[gear].merge(&other.due_to_shown[gear]);
            self.accepted_to_shown[gear].merge(&other.accepted_to_shown[gear]);
        }
    }

    /// From due to shown, all gears together.
    pub fn due_to_shown_all(&self) -> Latency {
        all_of(&self.due_to_shown)
    }

    /// From ack to shown, all gears together.
    pub fn accepted_to_shown_all(&self) -> Latency {
        all_of(&self.accepted_to_shown)
    }
}

fn all_of(gears: &[Latency; 3]) -> Latency {
    let mut all = Latency::default();
    gears.iter().for_each(|gear| all.merge(gear));
    all
}

/// The seconds of a run from its start on.
#[derive(Clone, Debug, Default)]
pub struct Series(pub Vec<Second>);

impl Series {
    /// The second that holds a moment.
    pub fn at(&mut self, since_start_ns: u64) -> &mut Second {
        let index = (since_start_ns / 1_000_000_000) as usize;
        if index >= self.0.len() {
            self.0.resize_with(index + 1, Second::default);
        }
        &mut self.0[index]
    }

    /// Adds another thread's.
    pub fn merge(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize_with(other.0.len(), Second::default);
        }
        for (ours, theirs) in self.0.iter_mut().zip(&other.0) {
            ours.merge(theirs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_add_up_and_maxima_stay_maxima() {
        let (mut one, mut other) = (Series::default(), Series::default());
        *one.at(500_000_000) =
            Second { shown: 2, signal_bytes_max: 7, cpu_s: 0.5, cpu_sum_s: 0.5, ..Second::default() };
        *other.at(0) = Second { shown: 3, signal_bytes_max: 9, cpu_s: 0.2, cpu_sum_s: 0.2, ..Second::default() };
        other.at(1_000_000_000).accepted_to_shown[2].record(4_000_000);
        one.merge(&other);
        let first = &one.0[0];
        assert_eq!((first.shown, first.signal_bytes_max, first.cpu_s, first.cpu_sum_s), (5, 9, 0.5, 0.7));
        assert_eq!(one.0[1].accepted_to_shown_all().count(), 1);
    }

    #[test]
    fn no_time_at_all_is_zero_and_nothing_recorded_is_none() {
        let mut latency = Latency::default();
        assert_eq!(latency.quantile_ms(0.99), None);
        latency.record_n(0, 3);
        assert_eq!(latency.quantile_ms(0.99), Some(0.0));
        latency.record(150_000_000);
        assert!((latency.quantile_ms(1.0).unwrap() / 150.0 - 1.0).abs() < 0.01);
    }
}
