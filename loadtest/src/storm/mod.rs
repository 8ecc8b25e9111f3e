//! The lobby storm: one lobby with very many watchers, a rate that climbs through all gears and comes back, and a judge
//! who wants everything shown in time, nothing lost, and no watcher to pay more than the cap.
//!
//! Reading order: [`run`] sets the stage and concludes; [`ramp`] says what is due when; [`crowd`] is the threads, each
//! with a [`lane`] that sends ([`lane`]), receives ([`receive`]) and pulls ([`pulls`]) for its [`watcher`]s; [`judge`] and
//! [`verdict`] decide; [`rows`] and [`result`] are the figures, [`page`] and [`plot`] draw them.
//!
//! What always holds: messages are due at times fixed beforehand; a message's content is checked once per distinct body
//! and each watcher keeps only which sequences it saw; what was left out live is filled afterwards and counted apart.

mod bodies;
mod crowd;
mod dial;
mod history;
mod http_pull;
mod intervals;
mod judge;
mod lane;
mod ledger;
mod line;
mod options;
mod page;
mod plot;
mod pulls;
mod ramp;
mod receive;
mod result;
mod rows;
mod series;
mod verdict;
mod watcher;
mod wheel;

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

pub use options::StormOptions;
pub use page::write_page;
pub use result::{StormResult, table};

use crate::clock::as_ns;
use crate::finding::{Fault, Findings};
use crate::pacer::Random;
use crate::process;
use crate::progress::Bar;
use crate::scenario::Stage;
use crate::scenario::traffic::fail_reasons;
use crate::setup::Http;
use crowd::{Crowd, Filling, Outcome, Plan};
use dial::Addresses;
use history::Reader;
use judge::{Evidence, Fate, judge};
use ledger::{Ledger, Origin};
use ramp::Ramp;
use result::{Pairs, Pulls, StormGenerator, StormServer};
use rows::{GEARS, Percentiles, ServerSample};
use series::Latency;
use verdict::{Ending, SignalBytes, StormSettings};

/// Time for the threads to hear of the start, and for the connecting to calm down.
const START_DELAY_NS: u64 = 1_000_000_000;

/// Plays it.
///
/// # Errors
/// If it cannot be set up.
pub fn run(stage: &Stage<'_>, options: &StormOptions) -> anyhow::Result<StormResult> {
    let ramp = Arc::new(options.ramp()?);
    let settings = storm_settings(&Http::new(&stage.http).settings()?, &options.lobby)?;
    let addresses = addresses(stage)?;
    let only_watching = options.connections - options.senders;
    let accounts = stage.users((options.senders + only_watching.div_ceil(options.devices_per_user)) as usize)?;
    let watchers = (0..options.senders)
        .chain((0..only_watching).map(|index| options.senders + index / options.devices_per_user))
        .collect();
    let before = Reader::log_in(addresses[0], &accounts[0], &options.lobby)?.end()?;
    let mut random = Random::new(stage.seed);
    let origin = Arc::new(Origin {
        lobby: options.lobby.clone(),
        epoch: before.epoch.max(1),
        base_seq: before.last_seq,
        run: std::process::id(),
        messages: ramp.messages(),
        sender_ids: accounts[..options.senders as usize].iter().map(|account| account.user_id).collect(),
        filler: (0..options.body_bytes).map(|_| random.next().to_le_bytes()[0]).collect(),
    });
    let plan = Arc::new(Plan {
        addresses: addresses.clone(),
        transport: options.transport,
        pull: options.pull,
        http_connections: options.http_connections as usize,
        origin: origin.clone(),
        ramp: ramp.clone(),
        accounts,
        watchers,
        senders: options.senders,
        threads: stage.threads,
        seed: stage.seed,
        patience_ns: as_ns(options.patience),
    });

    let mut probe = ServerProbe::new(stage.server_pid);
    let began = Instant::now();
    let bar = Bar::counting("connecting", u64::from(options.connections));
    let crowd = Crowd::connect(&plan, |connected| {
        bar.set(connected);
        !stage.stop.load(Ordering::Relaxed)
    })?;
    drop(bar);
    let connect_s = began.elapsed().as_secs_f64();
    probe.is_connected();

    let start_ns = crowd.clock.now_ns() + START_DELAY_NS;
    crowd.start(start_ns);
    let busy_s = watch_ramp(stage, &crowd, start_ns, &ramp, &mut probe);
    let filled = Instant::now();
    let mut findings = Findings::default();
    let stored = fill(stage, options, &plan, &crowd, &mut findings);
    let outcome = crowd.finish()?;
    let fill_s = filled.elapsed().as_secs_f64();
    let stored = match stored {
        Ok(stored) => Some(stored),
        Err(_) if stage.stop.load(Ordering::Relaxed) => None,
        Err(error) => return Err(error),
    };
    let run = Run { connect_s, fill_s, busy_s, stored, findings, probe };
    Ok(conclude(stage, options, &ramp, settings, outcome, run))
}

/// `storms.<lobby>` of `/api/v1/config`.
///
/// # Errors
/// If the server does not say it.
fn storm_settings(config: &serde_json::Value, lobby: &str) -> anyhow::Result<StormSettings> {
    let storm = &config["storms"][lobby];
    let field = |name: &str| {
        let value = storm[name].as_u64().filter(|value| *value > 0);
        value.with_context(|| format!("the server's /api/v1/config has no storms.{lobby}.{name}: is it a lobby there?"))
    };
    Ok(StormSettings { watcher_bytes_per_s: field("watcher_bytes_per_s")?, spread_ms: field("spread_ms")? })
}

fn addresses(stage: &Stage<'_>) -> anyhow::Result<Vec<Addresses>> {
    let authority = stage.http.trim_start_matches("http://").trim_end_matches('/');
    let http: SocketAddr = authority
        .to_socket_addrs()
        .ok()
        .and_then(|mut found| found.next())
        .with_context(|| format!("{} is no http:// address with a port", stage.http))?;
    Ok(stage.tcp.iter().map(|tcp| Addresses { tcp: *tcp, http }).collect())
}

/// Shows figures and samples the server, second by second, until the lanes are settled. Returns how many cores were busy
/// during the ramp.
fn watch_ramp(stage: &Stage<'_>, crowd: &Crowd, start_ns: u64, ramp: &Ramp, probe: &mut ServerProbe) -> Option<f64> {
    let mut bar = Bar::figures("lobby-storm");
    let end_ns = start_ns + (ramp.length_s() * 1e9) as u64;
    let (mut busy_before, mut busy_s) = (None, None);
    let mut last = (crowd.clock.now_ns(), 0, 0, 0);
    while !crowd.is_settled() {
        std::thread::sleep(Duration::from_millis(20));
        let now_ns = crowd.clock.now_ns();
        if stage.stop.load(Ordering::Relaxed) {
            crowd.stop();
            break;
        }
        if now_ns >= start_ns {
            busy_before = busy_before.or_else(process::busy_seconds);
            probe.sample((now_ns - start_ns) / 1_000_000_000);
        }
        if now_ns >= end_ns && busy_s.is_none() {
            busy_s = busy_before.zip(process::busy_seconds()).map(|(before, after)| after - before);
        }
        let elapsed_ns = now_ns - last.0;
        if elapsed_ns >= 500_000_000 {
            let [offered, accepted, shown] =
                [crowd.sum(|live| &live.offered), crowd.sum(|live| &live.accepted), crowd.sum(|live| &live.shown)];
            let per_s = |now: u64, before: u64| (now - before) as f64 * 1e9 / elapsed_ns as f64;
            let gear = GEARS.get(crowd.max(|live| &live.gear) as usize).copied().unwrap_or("?");
            let [p50_ms, p99_ms] =
                [crowd.max(|live| &live.p50_us), crowd.max(|live| &live.p99_us)].map(|us| us as f64 / 1_000.0);
            let at_s = now_ns.saturating_sub(start_ns) as f64 / 1e9;
            bar.show(|| {
                format!(
                    "{at_s:.0} s: {} open, offered {:.0}/s, accepted {:.0}/s, shown {:.0}/s, {gear} gear, \
                     visible p50 {p50_ms:.1} ms, p99 {p99_ms:.1} ms{}",
                    crowd.sum(|live| &live.open),
                    per_s(offered, last.1),
                    per_s(accepted, last.2),
                    per_s(shown, last.3),
                    probe.in_words(),
                )
            });
            last = (now_ns, offered, accepted, shown);
        }
    }
    busy_s.map(|busy_s| busy_s / ramp.length_s())
}

/// Reads the history, then lets watchers fill their gaps.
///
/// # Errors
/// If the history cannot be read to its end, or the user does not want it any more.
fn fill(
    stage: &Stage<'_>,
    options: &StormOptions,
    plan: &Plan,
    crowd: &Crowd,
    findings: &mut Findings,
) -> anyhow::Result<(Ledger, u64)> {
    let mut read = || {
        let mut bar = Bar::figures("history");
        let mut reader = Reader::log_in(plan.addresses[0], &plan.accounts[0], &options.lobby)?;
        reader.read(&plan.origin, findings, |at, last| {
            bar.show(|| format!("{at} of {last} messages"));
            !stage.stop.load(Ordering::Relaxed)
        })
    };
    let stored = read().inspect_err(|_| crowd.stop())?;
    let watchers = options.fill.of(options.connections);
    crowd.fill(Filling { last_seq: stored.1, watchers, at_once: options.fill_at_once });
    let bar = Bar::counting("filling gaps", u64::from(watchers));
    let mut line = Bar::figures("filling gaps");
    while !crowd.is_all_over() {
        std::thread::sleep(Duration::from_millis(20));
        if stage.stop.load(Ordering::Relaxed) {
            crowd.stop();
            bail!("interrupted");
        }
        let done = crowd.sum(|live| &live.filled_watchers);
        bar.set(done);
        line.show(|| format!("{done} of {watchers} watchers filled, {} messages", crowd.sum(|live| &live.filled)));
    }
    Ok(stored)
}

/// What a run brought besides the lanes' outcome.
struct Run {
    connect_s: f64,
    fill_s: f64,
    busy_s: Option<f64>,
    stored: Option<(Ledger, u64)>,
    findings: Findings,
    probe: ServerProbe,
}

/// The verdict and the figures.
fn conclude(
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
fn generator_use(series: &series::Series, length_s: f64) -> StormGenerator {
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

/// Watches the server's process.
struct ServerProbe {
    pid: Option<u32>,
    rss_start_bytes: u64,
    rss_connected_bytes: u64,
    last: Option<(Instant, f64)>,
    samples: Vec<ServerSample>,
}

impl ServerProbe {
    fn new(pid: Option<u32>) -> Self {
        let rss_start_bytes = pid.and_then(process::rss_bytes).map_or(0, |(now, _)| now);
        Self { pid, rss_start_bytes, rss_connected_bytes: 0, last: None, samples: Vec::new() }
    }

    fn is_connected(&mut self) {
        self.rss_connected_bytes = self.pid.and_then(process::rss_bytes).map_or(0, |(now, _)| now);
    }

    /// Takes the sample of each second that has ended.
    fn sample(&mut self, seconds: u64) {
        let Some(pid) = self.pid else { return };
        if self.last.is_some() && seconds <= self.samples.len() as u64 {
            return;
        }
        let Some((cpu_s, rss)) = process::cpu_seconds(pid).zip(process::rss_bytes(pid)) else { return };
        let now = Instant::now();
        if let Some((then, cpu_then_s)) = self.last {
            let cores = (cpu_s - cpu_then_s) / now.duration_since(then).as_secs_f64().max(1e-3);
            let sample = ServerSample { cores, rss_bytes: rss.0 };
            // Seconds that were missed because this thread got no turn are like the next one.
            self.samples.resize(usize::try_from(seconds).expect("a run is shorter than 2^32 s"), sample);
        }
        self.last = Some((now, cpu_s));
    }

    /// For the live display.
    fn in_words(&self) -> String {
        let Some(sample) = self.samples.last() else { return String::new() };
        format!("; server {:.2} cores, {:.0} MiB", sample.cores, crate::report::mib(sample.rss_bytes))
    }

    fn conclude(&self, length_s: f64) -> Option<StormServer> {
        let pid = self.pid?;
        let ramp = &self.samples[..self.samples.len().min(length_s.ceil() as usize)];
        Some(StormServer {
            cpu_s: ramp.iter().map(|sample| sample.cores).sum(),
            cores_max: ramp.iter().map(|sample| sample.cores).fold(0.0, f64::max),
            rss_start_bytes: self.rss_start_bytes,
            rss_connected_bytes: self.rss_connected_bytes,
            rss_ramp_max_bytes: ramp.iter().map(|sample| sample.rss_bytes).max().unwrap_or(0),
            rss_peak_bytes: process::rss_bytes(pid).map_or(0, |(_, peak)| peak),
        })
    }
}
