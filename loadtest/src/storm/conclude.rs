//! From what was measured to a result: the judge's counts, the conditions, the verdict and its reasons, the figures.

use std::sync::atomic::Ordering;

use super::crowd::Outcome;
use super::judge::{Evidence, Fate, judge};
use super::ledger::Ledger;
use super::options::StormOptions;
use super::probe::ServerProbe;
use super::ramp::Ramp;
use super::result::{Pairs, Pulls, StormGenerator, StormResult};
use super::rows::{self, Percentiles};
use super::series::{Latency, Series};
use super::verdict::{self, Ending, SignalBytes, StormSettings};
use crate::finding::{Fault, Findings};
use crate::scenario::Stage;
use crate::scenario::traffic::fail_reasons;

/// What a run brought besides the lanes' outcome.
pub struct Run {
    /// Time to connect everybody.
    pub connect_s: f64,
    /// Time in which the history was read and gaps were filled.
    pub fill_s: f64,
    /// Cores busy during the ramp.
    pub busy_s: Option<f64>,
    /// The history and its end; none if the user ended the run.
    pub stored: Option<(Ledger, u64)>,
    /// What was wrong with the history.
    pub findings: Findings,
    /// What the server's process used.
    pub probe: ServerProbe,
}

/// The verdict and the figures.
pub fn conclude(
    stage: &Stage<'_>,
    options: &StormOptions,
    ramp: &Ramp,
    settings: StormSettings,
    mut outcome: Outcome,
    run: Run,
) -> StormResult {
    let Run { connect_s, fill_s, busy_s, stored, mut findings, probe } = run;
    let is_interrupted = stage.stop.load(Ordering::Relaxed) || stored.is_none();
    findings.merge(std::mem::take(&mut outcome.findings));
    let mut fates = vec![Fate::NeverWritten; ramp.messages() as usize];
    for (number, fate) in &outcome.fates {
        fates[*number as usize] = *fate;
    }
    let (mut messages, judged) = match &stored {
        Some((history, last_seq)) => judge(&Evidence {
            history,
            last_seq: *last_seq,
            fates: &fates,
            ledgers: &outcome.ledgers,
            ends: &outcome.ends,
        }),
        None => Default::default(),
    };
    if is_interrupted {
        // Commands that were under way are no fault of the server's.
        findings = Findings::default();
        messages.accepted = fates.iter().filter(|fate| matches!(fate, Fate::Accepted(_))).count() as u64;
    } else {
        findings.merge(judged);
    }
    if messages.never_written > 0 && !is_interrupted && findings.is_empty() {
        let count = messages.never_written;
        findings.add(Fault::Unanswered, || format!("{count} messages were never written: their connections were full"));
    }

    let watchers = u64::from(options.connections);
    let series = &outcome.series;
    let seconds = rows::seconds(series, ramp, watchers, &probe.samples);
    let slices = rows::slices(series, ramp.length_s(), watchers);
    let (gears, percentiles) = rows::gears(series, &seconds);
    let signal_bytes = signal_bytes(&outcome.signal_bytes_per_s);
    let conditions = vec![
        verdict::sets_equal(&messages, &findings),
        verdict::bytes_capped(settings, signal_bytes),
        verdict::visible_in_time(settings, &slices),
    ];
    let generator = generator_use(series, ramp.length_s());
    let voids = verdict::void_reasons(generator.busiest_thread_cores, generator.lateness.p99_ms);
    let ending = match (is_interrupted, outcome.is_unsettled) {
        (true, _) => Ending::Interrupted,
        (_, true) => Ending::Unsettled,
        _ => Ending::Whole,
    };
    let mut reasons = Vec::new();
    if ending == Ending::Unsettled {
        reasons.push(format!("nothing more happened for {:?} though not everything had come", options.patience));
    }
    if !is_interrupted {
        reasons.extend(fail_reasons(&findings));
        reasons.extend(StormResult::broken(&conditions));
        reasons.extend(voids.iter().cloned());
    }
    let all = || series.0.iter();
    let mut ack = Latency::default();
    all().for_each(|second| ack.merge(&second.ack));
    StormResult {
        verdict: verdict::verdict(&conditions, &voids, ending),
        reasons,
        conditions,
        command: std::env::args().collect::<Vec<_>>().join(" "),
        parameters: options.clone(),
        settings,
        connect_s,
        fill_s,
        messages,
        pairs: Pairs {
            shown: outcome.shown,
            live_share: outcome.shown as f64 / (messages.accepted * watchers).max(1) as f64,
            filled: outcome.filled,
            repeated_pushes: outcome.repeated_pushes,
        },
        signal_bytes,
        ack: Percentiles::of(&ack),
        gears,
        shifts: outcome.shifts,
        slices,
        percentiles,
        pulls: Pulls {
            asked: all().map(|second| second.pulls).sum(),
            notices: all().map(|second| second.notices).sum(),
            gaps: outcome.gaps,
            slow_downs: all().map(|second| second.slow_downs).sum(),
            behinds: all().map(|second| second.behinds).sum(),
            bodies_distinct: outcome.bodies.0,
            bodies_recognised: outcome.bodies.1,
            http_connections: outcome.http_opened,
        },
        seconds,
        whole: outcome.whole,
        findings,
        server: probe.conclude(ramp.length_s()),
        generator,
        host_cores_busy: busy_s,
    }
}

fn signal_bytes(per_s: &[f64]) -> Option<SignalBytes> {
    (!per_s.is_empty()).then(|| SignalBytes {
        watchers: per_s.len() as u64,
        mean_per_s: per_s.iter().sum::<f64>() / per_s.len() as f64,
        max_per_s: per_s.iter().copied().fold(0.0, f64::max),
    })
}

/// During the ramp alone.
fn generator_use(series: &Series, length_s: f64) -> StormGenerator {
    let seconds = &series.0[..series.0.len().min(length_s.ceil() as usize)];
    let mut lateness = Latency::default();
    seconds.iter().for_each(|second| lateness.merge(&second.lateness));
    StormGenerator {
        cpu_s: seconds.iter().map(|second| second.cpu_sum_s).sum(),
        busiest_thread_cores: seconds.iter().map(|second| second.cpu_s).sum::<f64>() / (seconds.len().max(1)) as f64,
        busiest_second_cores: seconds.iter().map(|second| second.cpu_s).fold(0.0, f64::max),
        lateness: Percentiles::of(&lateness),
    }
}
