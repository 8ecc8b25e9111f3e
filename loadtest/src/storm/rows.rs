//! The measurements as rows of a report: per second, per slice of the run, per gear, per percentile.
//!
//! In: the series of all lanes together and the samples of the server; out: plain figures, ready for JSON and plots.

use serde::Serialize;

use super::ramp::Ramp;
use super::series::{Latency, Second, Series};

/// The names of the gears, by number.
pub const GEARS: [&str; 3] = ["direct", "merged", "signal"];

/// Slices of the run, at most: each long enough that its p99 is not noise.
const SLICES_MAX: usize = 20;

/// One sample of the server's process, at the end of a second of the run.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct ServerSample {
    /// In this second.
    pub cores: f64,
    /// At its end.
    pub rss_bytes: u64,
}

/// Percentiles in milliseconds; none without a single time.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Percentiles {
    pub count: u64,
    pub p50_ms: Option<f64>,
    pub p90_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub p999_ms: Option<f64>,
    pub max_ms: Option<f64>,
}

impl Percentiles {
    /// Of these times.
    pub fn of(latency: &Latency) -> Self {
        let [p50_ms, p90_ms, p99_ms, p999_ms, max_ms] =
            [0.5, 0.9, 0.99, 0.999, 1.0].map(|quantile| latency.quantile_ms(quantile));
        Self { count: latency.count(), p50_ms, p90_ms, p99_ms, p999_ms, max_ms }
    }
}

/// A second of the run.
#[derive(Clone, Debug, Serialize)]
pub struct SecondRow {
    /// Its beginning.
    pub at_s: usize,
    /// What the ramp wanted in its middle.
    pub rate_per_s: f64,
    /// Messages due.
    pub offered: u64,
    /// Acks.
    pub accepted: u64,
    /// (Watcher, message) pairs shown in it.
    pub shown: u64,
    /// Of the messages due in it and accepted: the share of watchers that were shown them live.
    pub live_share: Option<f64>,
    /// The gear of most watchers at its end.
    pub gear: usize,
    /// From ack to shown live, of messages due in it.
    pub accepted_to_shown: Percentiles,
    /// From due to shown live.
    pub due_to_shown: Percentiles,
    /// From due to ack.
    pub ack: Percentiles,
    /// Bytes per watcher, on average.
    pub bytes_per_watcher: f64,
    /// Bytes of watchers in signal gear the whole second, on average.
    pub signal_bytes_mean: Option<f64>,
    /// The highest of them.
    pub signal_bytes_max: Option<u64>,
    /// Pulls asked.
    pub pulls: u64,
    /// Notices received.
    pub notices: u64,
    /// Answers of "slow down".
    pub slow_downs: u64,
    /// Notices of being behind.
    pub behinds: u64,
    /// CPU of the generator, all threads.
    pub generator_cores: f64,
    /// CPU of its busiest thread.
    pub generator_busiest_cores: f64,
    /// How late messages were sent, p99.
    pub lateness_p99_ms: Option<f64>,
    /// The server, if it is known.
    pub server: Option<ServerSample>,
}

/// A slice of the run, over which p99 is judged.
#[derive(Clone, Debug, Serialize)]
pub struct Slice {
    /// Its beginning.
    pub from_s: usize,
    /// Its end.
    pub to_s: usize,
    /// Messages due per second.
    pub offered_per_s: f64,
    /// Of them, accepted.
    pub accepted: u64,
    /// The gears of its seconds, ascending.
    pub gears: Vec<usize>,
    /// From ack to shown live.
    pub accepted_to_shown: Percentiles,
    /// From due to shown live.
    pub due_to_shown: Percentiles,
    /// Of the accepted messages: the share of watchers that were shown them live.
    pub live_share: Option<f64>,
    /// CPU of the generator's busiest thread, in its busiest second.
    pub generator_busiest_cores: f64,
    /// How late messages were sent, p99.
    pub lateness_p99_ms: Option<f64>,
}

/// What was shown in one gear.
#[derive(Clone, Debug, Serialize)]
pub struct GearRow {
    /// Its name.
    pub gear: &'static str,
    /// Seconds of the run that most watchers ended in it.
    pub seconds: usize,
    /// From ack to shown live.
    pub accepted_to_shown: Percentiles,
    /// From due to shown live.
    pub due_to_shown: Percentiles,
}

/// One line of the percentile plot.
#[derive(Clone, Debug, Serialize)]
pub struct PercentileLine {
    /// What was timed.
    pub name: String,
    /// Quantile and milliseconds.
    pub points: Vec<(f64, f64)>,
}

/// The gear that most have.
fn gear_of(gears: &[u64; 3]) -> usize {
    (0..3).max_by_key(|gear| (gears[*gear], 2 - gear)).unwrap_or(0)
}

fn share(shown: u64, accepted: u64, watchers: u64) -> Option<f64> {
    (accepted > 0).then(|| shown as f64 / (accepted * watchers.max(1)) as f64)
}

/// The seconds of the run and the few after it in which something still came.
pub fn seconds(series: &Series, ramp: &Ramp, watchers: u64, samples: &[ServerSample]) -> Vec<SecondRow> {
    let last = series.0.iter().rposition(|second| second.offered + second.accepted + second.shown > 0);
    let length = last.map_or(0, |last| last + 1).max(ramp.length_s().ceil() as usize).min(series.0.len());
    let row = |(at_s, second): (usize, &Second)| SecondRow {
        at_s,
        rate_per_s: ramp.rate_at(at_s as f64 + 0.5),
        offered: second.offered,
        accepted: second.accepted,
        shown: second.shown,
        live_share: share(second.shown_of_due, second.accepted_of_due, watchers),
        gear: gear_of(&second.gears),
        accepted_to_shown: Percentiles::of(&second.accepted_to_shown_all()),
        due_to_shown: Percentiles::of(&second.due_to_shown_all()),
        ack: Percentiles::of(&second.ack),
        bytes_per_watcher: second.bytes as f64 / watchers.max(1) as f64,
        signal_bytes_mean: (second.signal_watchers > 0)
            .then(|| second.signal_bytes as f64 / second.signal_watchers as f64),
        signal_bytes_max: (second.signal_watchers > 0).then_some(second.signal_bytes_max),
        pulls: second.pulls,
        notices: second.notices,
        slow_downs: second.slow_downs,
        behinds: second.behinds,
        generator_cores: second.cpu_sum_s,
        generator_busiest_cores: second.cpu_s,
        lateness_p99_ms: second.lateness.quantile_ms(0.99),
        server: samples.get(at_s).copied(),
    };
    series.0[..length].iter().enumerate().map(row).collect()
}

/// The run in equal slices of whole seconds.
pub fn slices(series: &Series, length_s: f64, watchers: u64) -> Vec<Slice> {
    let length = (length_s.ceil() as usize).min(series.0.len());
    let count = length.min(SLICES_MAX);
    (0..count)
        .map(|slice| {
            let (from_s, to_s) = (slice * length / count, (slice + 1) * length / count);
            let mut all = Second::default();
            let mut gears = Vec::new();
            for second in &series.0[from_s..to_s] {
                all.merge(second);
                gears.push(gear_of(&second.gears));
            }
            gears.sort_unstable();
            gears.dedup();
            Slice {
                from_s,
                to_s,
                offered_per_s: all.offered as f64 / (to_s - from_s) as f64,
                accepted: all.accepted_of_due,
                gears,
                accepted_to_shown: Percentiles::of(&all.accepted_to_shown_all()),
                due_to_shown: Percentiles::of(&all.due_to_shown_all()),
                live_share: share(all.shown_of_due, all.accepted_of_due, watchers),
                generator_busiest_cores: all.cpu_s,
                lateness_p99_ms: all.lateness.quantile_ms(0.99),
            }
        })
        .collect()
}

/// The whole run by gear, and the lines of its percentile plot.
pub fn gears(series: &Series, seconds: &[SecondRow]) -> (Vec<GearRow>, Vec<PercentileLine>) {
    let mut all = Second::default();
    series.0.iter().for_each(|second| all.merge(second));
    let rows = (0..3).map(|gear| GearRow {
        gear: GEARS[gear],
        seconds: seconds.iter().filter(|row| row.gear == gear).count(),
        accepted_to_shown: Percentiles::of(&all.accepted_to_shown[gear]),
        due_to_shown: Percentiles::of(&all.due_to_shown[gear]),
    });
    let named = (0..3).map(|gear| (GEARS[gear].to_owned(), all.accepted_to_shown[gear].clone()));
    let whole = [("all gears, from accepted".to_owned(), all.accepted_to_shown_all())];
    let from_due = [("all gears, from due".to_owned(), all.due_to_shown_all())];
    let lines = named.chain(whole).chain(from_due).filter(|(_, latency)| latency.count() > 0);
    (rows.collect(), lines.map(|(name, latency)| PercentileLine { name, points: points(&latency) }).collect())
}

/// Eight points for each nine of the quantile, as far as there are times enough to tell them apart.
fn points(latency: &Latency) -> Vec<(f64, f64)> {
    let nines_max = (latency.count() as f64).log10().clamp(1.0, 6.0);
    (0..)
        .map(|step| f64::from(step) / 8.0)
        .take_while(|nines| *nines <= nines_max)
        .map(|nines| 1.0 - 10f64.powf(-nines))
        .filter_map(|quantile| Some((quantile, latency.quantile_ms(quantile)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series() -> Series {
        let mut series = Series::default();
        for at_s in 0..50u64 {
            let second = series.at(at_s * 1_000_000_000);
            (second.offered, second.accepted_of_due, second.shown_of_due) = (10, 10, 25);
            second.gears = if at_s < 30 { [5, 0, 0] } else { [2, 0, 3] };
            second.accepted_to_shown[usize::from(at_s >= 30) * 2].record_n((at_s + 1) * 1_000_000, 25);
        }
        series
    }

    #[test]
    fn slices_are_equal_and_hold_every_second_once() {
        let slices = slices(&series(), 50.0, 5);
        assert_eq!(slices.len(), 20);
        assert_eq!((slices[0].from_s, slices[19].to_s), (0, 50));
        assert!(slices.windows(2).all(|pair| pair[0].to_s == pair[1].from_s));
        assert_eq!(slices.iter().map(|slice| slice.accepted).sum::<u64>(), 500);
        assert_eq!((slices[0].live_share, slices[0].offered_per_s), (Some(0.5), 10.0));
        assert_eq!((&slices[0].gears[..], &slices[19].gears[..]), (&[0][..], &[2][..]));
        let p99 = slices[19].accepted_to_shown.p99_ms.unwrap();
        assert!((p99 / 50.0 - 1.0).abs() < 0.02, "{p99}");
        // A run of seven seconds has seven.
        assert_eq!(super::slices(&series(), 7.0, 5).len(), 7);
    }

    #[test]
    fn gears_and_percentiles_are_of_the_whole_run() {
        let series = series();
        let ramp = Ramp::new(10.0, 10.0, 50.0, 0.0).unwrap();
        let seconds = seconds(&series, &ramp, 5, &[ServerSample { cores: 1.0, rss_bytes: 7 }]);
        assert_eq!((seconds.len(), seconds[0].server.unwrap().rss_bytes), (50, 7));
        assert!(seconds[1].server.is_none());
        let (gears, lines) = gears(&series, &seconds);
        assert_eq!(
            gears.iter().map(|row| (row.seconds, row.accepted_to_shown.count)).collect::<Vec<_>>(),
            [(30, 750), (0, 0), (20, 500)]
        );
        assert_eq!(lines.len(), 3, "nothing was shown in merged gear nor timed from due: {lines:?}");
        assert!(lines.iter().all(|line| line.points.is_sorted_by_key(|(_, ms)| *ms)));
    }
}
