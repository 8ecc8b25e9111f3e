//! Leads through a run: the hands that break and mend, the phases behind them, and what a person sees meanwhile.
//!
//! In: a plan and a stage full of players; out: what was injected, and findings: gateways that ended by themselves, parts
//! that did not come back, phases that did not settle.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::cluster::Cluster;
use super::injector::{Injected, Injector};
use super::options::ChaosOptions;
use super::schedule::Planned;
use super::stage::{Phase, Stage};
use crate::finding::{Fault, Findings};
use crate::progress::Bar;

/// Between two looks at progress and at gateways that may have ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// For probes, when nothing is broken any more.
const CALM_PATIENCE: Duration = Duration::from_secs(20);

/// What came of it.
pub struct Directed {
    /// What was broken.
    pub injected: Vec<Injected>,
    /// When the last message was offered.
    pub offered_until_ms: u64,
    /// True if everybody had seen everything before the probes.
    pub has_settled: bool,
}

/// Leads through the phases; returns what came of it.
pub fn direct(
    options: &ChaosOptions,
    cluster: &Cluster,
    stage: &Stage,
    plan: &[Vec<Planned>],
    stop: &AtomicBool,
    findings: &mut Findings,
) -> Directed {
    let until_ms = u64::try_from(options.duration.as_millis()).unwrap_or(u64::MAX);
    // What was planned is played though it may be late; twice the time is enough for that.
    let injector = Injector::new(cluster, stage, stop, until_ms.saturating_mul(2));
    let mut view = Watch { bar: Bar::figures("chaos"), stage, injector: &injector, cluster, stop };
    let played = std::thread::scope(|scope| {
        let hands: Vec<_> = plan.iter().map(|sequence| scope.spawn(|| injector.play(sequence))).collect();
        let is_over = || stop.load(Ordering::Relaxed) || injector.has_failed.load(Ordering::Relaxed);
        while hands.iter().any(|hand| !hand.is_finished()) || (stage.now_ms() < until_ms && !is_over()) {
            std::thread::sleep(LOOK_INTERVAL);
            view.look(findings);
        }
        hands.into_iter().map(|hand| hand.join().expect("a hand does not panic")).collect::<Vec<_>>()
    });
    let offered_until_ms = stage.now_ms();
    let mut injected = Vec::new();
    for (done, error) in played {
        injected.extend(done);
        if let Some(error) = error.filter(|_| !stop.load(Ordering::Relaxed)) {
            findings.add(Fault::NotRecovered, || format!("{error:#}"));
        }
    }
    if stop.load(Ordering::Relaxed) {
        return Directed { injected, offered_until_ms, has_settled: false };
    }
    if let Err(error) = cluster.restore(stop) {
        findings.add(Fault::NotRecovered, || format!("{error:#}"));
    }
    stage.begin(Phase::Settling);
    let mut has_settled = true;
    let phases =
        [(Phase::Settling, options.patience), (Phase::Probing, CALM_PATIENCE), (Phase::Reconnecting, options.patience)];
    // What does not settle is found by the judge: as unanswered, lost, or not pushed.
    for (phase, patience) in phases {
        if phase == Phase::Probing && !has_settled {
            continue;
        }
        stage.begin(phase);
        let settled = stage.wait_until_settled(patience, stop, || view.look(findings));
        if !settled && !stop.load(Ordering::Relaxed) {
            let (settled, all, waits) = (stage.settled(), stage.gauges.len(), stage.waits());
            findings.add(Fault::NotRecovered, || {
                format!(
                    "{phase:?}: after {patience:?} only {settled} of {all} devices had sent and seen everything; \
                     waiting: {waits}"
                )
            });
            has_settled &= phase != Phase::Settling;
        }
    }
    Directed { injected, offered_until_ms, has_settled }
}

/// What is looked at all the time.
struct Watch<'a> {
    bar: Bar,
    stage: &'a Stage,
    injector: &'a Injector<'a>,
    cluster: &'a Cluster,
    stop: &'a AtomicBool,
}

impl Watch<'_> {
    fn look(&mut self, findings: &mut Findings) {
        for (index, status) in self.cluster.crashed() {
            findings.add(Fault::Crashed, || format!("gateway {} ended by itself: {status}", index + 1));
            if let Err(error) = self.cluster.member(index).start(self.stop) {
                findings.add(Fault::NotRecovered, || format!("{error:#}"));
            }
        }
        let stage = self.stage;
        let now_ms = stage.now_ms();
        let [offered, accepted, shown, last_ms] =
            [&stage.offered, &stage.accepted, &stage.shown, &stage.last_accepted_ms].map(|n| n.load(Ordering::Relaxed));
        self.bar.show(|| {
            let faults = self.injector.now.lock().expect("held for a change").join(", ");
            let faults = if faults.is_empty() { format!("{:?}", stage.phase()).to_lowercase() } else { faults };
            format!(
                "{:.0} s: {faults}; {offered} offered, {accepted} accepted (last {:.1} s ago), {shown} shown",
                now_ms as f64 / 1_000.0,
                now_ms.saturating_sub(last_ms) as f64 / 1_000.0,
            )
        });
    }
}
