//! The lobby storm: one lobby with very many watchers, a rate that climbs through all gears and comes back, and a judge
//! who wants everything shown in time, nothing lost, and no watcher to pay more than the cap.
//!
//! Reading order: [`run`] sets the stage; [`ramp`] says what is due when; [`crowd`] is the threads, each a [`thread`]
//! with a [`lane`] that sends ([`lane`]), receives ([`receive`]) and pulls ([`pulls`]) for its [`watcher`]s; [`judge`],
//! [`verdict`] and [`conclude`] decide; [`rows`] and [`result`] are the figures, [`page`] and [`plot`] draw them.
//!
//! What always holds: messages are due at times fixed beforehand; a message's content is checked once per distinct body
//! and each watcher keeps only which sequences it saw; what was left out live is filled afterwards and counted apart.

mod bodies;
mod conclude;
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
mod probe;
mod pulls;
mod ramp;
mod receive;
mod result;
mod rows;
mod series;
mod thread;
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
use crate::finding::Findings;
use crate::pacer::Random;
use crate::process;
use crate::progress::Bar;
use crate::scenario::Stage;
use crate::setup::Http;
use conclude::{Run, conclude};
use crowd::{Crowd, Filling, Plan};
use dial::Addresses;
use history::Reader;
use ledger::{Ledger, Origin};
use probe::ServerProbe;
use ramp::Ramp;
use rows::GEARS;
use verdict::StormSettings;

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
