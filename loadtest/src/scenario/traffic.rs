//! What all scenarios with messages share: connect, send at the rate, wait until all is settled, conclude.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;

use super::Stage;
use crate::clock::as_ns;
use crate::finding::Findings;
use crate::generator::{Generator, Outcome, Plan, PlannedConversation, Timing};
use crate::options::LoadOptions;
use crate::process;
use crate::progress::Bar;
use crate::report::{GeneratorUse, ServerUse, TrafficResult, Verdict};
use crate::tally::Window;

/// Turns later than this at p99 make a result void: latencies would be the generator's.
const LATENESS_P99_US_MAX: f64 = 10_000.0;

/// A thread busier than this makes a result void.
const THREAD_CORES_MAX: f64 = 0.95;

/// Time for the threads to hear of the start.
const START_DELAY_NS: u64 = 50_000_000;

/// Plays the conversations.
///
/// # Errors
/// If not everybody can be connected.
pub fn run(
    stage: &Stage<'_>,
    name: &'static str,
    conversations: Vec<PlannedConversation>,
    stuck_percent: u32,
    load: &LoadOptions,
    parameters: Value,
) -> anyhow::Result<TrafficResult> {
    let mut server = stage.server_pid.map(ServerProbe::new);
    let plan = Plan {
        tcp: stage.tcp.clone(),
        conversations,
        stuck_percent,
        body_bytes: load.body_bytes as usize,
        threads: stage.threads,
        seed: stage.seed,
    };
    let generator = connect(stage, &plan)?;
    let start_ns = generator.clock.now_ns() + START_DELAY_NS;
    let window_start_ns = start_ns + as_ns(load.warmup);
    let window = Window { start_ns: window_start_ns, end_ns: window_start_ns + as_ns(load.duration) };
    generator.start(Timing { start_ns, rate_per_s: load.rate, window, patience_ns: as_ns(load.patience) });
    let measured = watch(stage, name, &generator, window, server.as_mut());
    let outcome = generator.finish()?;
    let server = server.and_then(|probe| probe.conclude(measured.seconds, outcome.tally.delivered));
    Ok(TrafficResult { parameters, server, ..conclude(stage, name, load, outcome, measured) })
}

/// The measured part as it was.
#[derive(Clone, Copy)]
struct Measured {
    /// Shorter than asked for if the user ended it.
    seconds: f64,
    /// Everything on this machine together.
    host_cores_busy: Option<f64>,
}

/// Connects everybody under a progress bar.
///
/// # Errors
/// The first connection that could not be made.
pub fn connect(stage: &Stage<'_>, plan: &Plan) -> anyhow::Result<Generator> {
    let total: usize = plan.conversations.iter().map(|conversation| conversation.members.len()).sum();
    let bar = Bar::counting("connecting", total as u64);
    Generator::connect(plan, |connected| {
        bar.set(connected);
        !stage.stop.load(Ordering::Relaxed)
    })
}

/// Shows figures until the lanes end.
fn watch(
    stage: &Stage<'_>,
    name: &str,
    generator: &Generator,
    window: Window,
    mut server: Option<&mut ServerProbe>,
) -> Measured {
    let mut bar = Bar::figures(name);
    let (mut begun, mut ended_ns) = (None, None);
    let mut busy_s = None;
    let mut last = (generator.clock.now_ns(), 0, 0, 0);
    while !generator.is_over() {
        std::thread::sleep(Duration::from_millis(20));
        let now_ns = generator.clock.now_ns();
        if begun.is_none() && now_ns >= window.start_ns {
            begun = Some(process::busy_seconds());
            server.iter_mut().for_each(|server| server.begin());
        }
        if stage.stop.load(Ordering::Relaxed) {
            generator.stop();
        }
        if ended_ns.is_none() && (now_ns >= window.end_ns || stage.stop.load(Ordering::Relaxed)) {
            ended_ns = Some(now_ns.min(window.end_ns));
            busy_s = begun.flatten().zip(process::busy_seconds()).map(|(before, after)| after - before);
            server.iter_mut().for_each(|server| server.end());
        }
        let elapsed_ns = now_ns - last.0;
        if elapsed_ns >= 500_000_000 {
            let figures = [
                generator.sum(|live| &live.offered),
                generator.sum(|live| &live.accepted),
                generator.sum(|live| &live.delivered),
            ];
            let per_s = |now: u64, before: u64| (now - before) as f64 * 1e9 / elapsed_ns as f64;
            let [ack_ms, delivery_ms] =
                [generator.max(|live| &live.ack_p99_ns), generator.max(|live| &live.delivery_p99_ns)]
                    .map(|ns| ns as f64 / 1e6);
            bar.show(|| {
                format!(
                    "{name}: offered {:.0}/s, accepted {:.0}/s, delivered {:.0}/s, \
                     p99 ack {ack_ms:.2} ms, delivery {delivery_ms:.2} ms",
                    per_s(figures[0], last.1),
                    per_s(figures[1], last.2),
                    per_s(figures[2], last.3),
                )
            });
            last = (now_ns, figures[0], figures[1], figures[2]);
        }
    }
    let measured_ns = ended_ns.unwrap_or(window.end_ns).saturating_sub(window.start_ns);
    let seconds = (measured_ns as f64 / 1e9).max(1e-3);
    Measured { seconds, host_cores_busy: busy_s.map(|busy| busy / seconds) }
}

/// The verdict and the numbers; parameters and server are the caller's to add.
fn conclude(
    stage: &Stage<'_>,
    name: &'static str,
    load: &LoadOptions,
    outcome: Outcome,
    measured: Measured,
) -> TrafficResult {
    let Measured { seconds: measured_s, host_cores_busy } = measured;
    let per_s = |count: u64| count as f64 / measured_s;
    let tally = &outcome.tally;
    let generator = GeneratorUse {
        cpu_s: outcome.cpu_seconds,
        cores: outcome.cpu_seconds / measured_s,
        busiest_thread_cores: outcome.cpu_seconds_busiest / measured_s,
        lateness: tally.lateness.summary(),
    };
    let interrupted = stage.stop.load(Ordering::Relaxed);
    let mut reasons = fail_reasons(&outcome.findings);
    let failed = !reasons.is_empty();
    let void = void_reasons(&generator);
    let is_void = !void.is_empty();
    reasons.extend(void);
    if outcome.is_unsettled && !interrupted {
        reasons.push(format!("nothing more happened for {:?} though not everything had arrived", load.patience));
    }
    let is_sustained = tally.accepted as f64 >= 0.99 * tally.offered as f64;
    let verdict = match (interrupted, failed || outcome.is_unsettled, is_void) {
        (true, ..) => Verdict::Interrupted,
        (_, true, _) => Verdict::Fail,
        (_, _, true) => Verdict::Void,
        _ if tally.whole.offered > 0 && outcome.counts.accepted == 0 => {
            reasons.push("not a single message was accepted".to_owned());
            Verdict::Fail
        }
        _ => Verdict::Pass,
    };
    TrafficResult {
        name,
        verdict,
        reasons,
        parameters: Value::Null,
        measured_s,
        offered_per_s: per_s(tally.offered),
        accepted_per_s: per_s(tally.accepted),
        delivered_per_s: per_s(tally.delivered),
        is_sustained,
        ack: tally.ack.summary(),
        delivery: tally.delivery.summary(),
        messages: outcome.counts,
        whole: tally.whole.clone(),
        findings: outcome.findings,
        server: None,
        generator,
        host_cores_busy,
    }
}

/// One line per fault.
pub fn fail_reasons(findings: &Findings) -> Vec<String> {
    let reason = |(fault, finding): (_, &crate::finding::Finding)| {
        format!("{fault:?} {} times, first: {}", finding.count, finding.examples.first().map_or("", String::as_str))
    };
    findings.iter().map(reason).collect()
}

fn void_reasons(generator: &GeneratorUse) -> Vec<String> {
    let mut reasons = Vec::new();
    if generator.lateness.p99_us > LATENESS_P99_US_MAX {
        let late_ms = generator.lateness.p99_us / 1_000.0;
        reasons.push(format!("void: generator was the bottleneck (its turns were {late_ms:.1} ms late at p99)"));
    }
    if generator.busiest_thread_cores > THREAD_CORES_MAX {
        let percent = generator.busiest_thread_cores * 100.0;
        reasons.push(format!(
            "void: generator was the bottleneck (a thread used {percent:.0} % of a core; see --threads)"
        ));
    }
    reasons
}

/// Watches the server's process.
struct ServerProbe {
    pid: u32,
    rss_start_bytes: u64,
    cpu_begin_s: Option<f64>,
    cpu_end_s: Option<f64>,
}

impl ServerProbe {
    fn new(pid: u32) -> Self {
        let rss_start_bytes = process::rss_bytes(pid).map_or(0, |(now, _)| now);
        Self { pid, rss_start_bytes, cpu_begin_s: None, cpu_end_s: None }
    }

    fn begin(&mut self) {
        self.cpu_begin_s = process::cpu_seconds(self.pid);
    }

    fn end(&mut self) {
        self.cpu_end_s = process::cpu_seconds(self.pid);
    }

    fn conclude(self, measured_s: f64, delivered: u64) -> Option<ServerUse> {
        let cpu_s = self.cpu_end_s? - self.cpu_begin_s?;
        Some(ServerUse {
            cpu_s,
            cores: cpu_s / measured_s,
            cpu_us_per_delivery: cpu_s * 1e6 / delivered.max(1) as f64,
            rss_start_bytes: self.rss_start_bytes,
            rss_peak_bytes: process::rss_bytes(self.pid).map_or(0, |(_, peak)| peak),
        })
    }
}
