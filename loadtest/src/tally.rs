//! What is measured: histograms of time and counts over the measured part of a run. Each thread has a tally; they add
//! up.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Times above are recorded as this.
const RECORDED_NS_MAX: u64 = 600_000_000_000;

/// Times in nanoseconds, precise to 0.1 %.
#[derive(Clone, Debug)]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1_000, RECORDED_NS_MAX, 3).expect("the bounds are in order"))
    }
}

impl Times {
    /// Records one time.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    /// Records a time that several messages share.
    pub fn record_n(&mut self, ns: u64, count: u64) {
        self.0.saturating_record_n(ns, count);
    }

    /// Adds another's times.
    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    /// The time within which `quantile` of all were, in nanoseconds.
    pub fn quantile_ns(&self, quantile: f64) -> u64 {
        self.0.value_at_quantile(quantile)
    }

    /// The figures of a report.
    pub fn summary(&self) -> TimesSummary {
        let us = |ns: u64| ns as f64 / 1_000.0;
        TimesSummary {
            count: self.0.len(),
            mean_us: self.0.mean() / 1_000.0,
            p50_us: us(self.quantile_ns(0.5)),
            p90_us: us(self.quantile_ns(0.9)),
            p99_us: us(self.quantile_ns(0.99)),
            p999_us: us(self.quantile_ns(0.999)),
            max_us: us(self.0.max()),
        }
    }
}

/// Percentiles in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs)]
pub struct TimesSummary {
    pub count: u64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

/// The part of a run that is measured, on the generator's clock.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// First nanosecond.
    pub start_ns: u64,
    /// First nanosecond after it.
    pub end_ns: u64,
}

impl Window {
    /// True if the moment is measured.
    pub fn holds(self, ns: u64) -> bool {
        (self.start_ns..self.end_ns).contains(&ns)
    }
}

/// One thread's measurements. Times belong to the window by when the message was due, counts by when they happened.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// From the time a message was due to its ack.
    pub ack: Times,
    /// From the time a message was due to each delivery.
    pub delivery: Times,
    /// How late turns were: the generator's own fault.
    pub lateness: Times,
    /// Messages due.
    pub offered: u64,
    /// Acks.
    pub accepted: u64,
    /// Deliveries.
    pub delivered: u64,
    /// Numbers over the whole run, not only the window.
    pub whole: Whole,
}

/// Counts over the whole run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Whole {
    /// Messages due.
    pub offered: u64,
    /// Messages that waited because their connection had too many commands in flight.
    pub held_back: u64,
    /// Messages never written: their connection was closed, or too many were held back.
    pub never_written: u64,
    /// Repetitions after a retryable error.
    pub repeated: u64,
    /// Error replies by code.
    pub errors: BTreeMap<String, u64>,
    /// Pushes that are no messages, by kind.
    pub other_pushes: BTreeMap<String, u64>,
    /// Closed connections by reason.
    pub closed: BTreeMap<String, u64>,
}

impl Tally {
    /// Adds another thread's.
    pub fn merge(&mut self, other: &Self) {
        self.ack.merge(&other.ack);
        self.delivery.merge(&other.delivery);
        self.lateness.merge(&other.lateness);
        self.offered += other.offered;
        self.accepted += other.accepted;
        self.delivered += other.delivered;
        self.whole.merge(&other.whole);
    }
}

impl Whole {
    /// Adds another thread's.
    pub fn merge(&mut self, other: &Self) {
        self.offered += other.offered;
        self.held_back += other.held_back;
        self.never_written += other.never_written;
        self.repeated += other.repeated;
        for (ours, theirs) in [
            (&mut self.errors, &other.errors),
            (&mut self.other_pushes, &other.other_pushes),
            (&mut self.closed, &other.closed),
        ] {
            for (key, count) in theirs {
                *ours.entry(key.clone()).or_default() += count;
            }
        }
    }
}
