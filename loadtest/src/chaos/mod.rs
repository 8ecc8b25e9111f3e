//! A chaos run: real gateways and services, traffic, faults by a seeded plan, a full resync, and a judgement by
//! conservation.
//!
//! In: [`ChaosOptions`]; out: a [`ChaosResult`]. What was started is ended, whatever happens. The parts:
//!
//! - [`cast`] sets the people up, [`director`] leads through the phases;
//! - [`schedule`] plans the faults, [`injector`] plays the plan on the [`cluster`] and its [`services`];
//! - [`player`] drives a device's [`client`], which follows PROTOCOL.md with a [`seat`] and a [`sync`] per conversation; [`stage`] is what
//!   they share;
//! - [`audit`] takes the last look; [`evidence`] of all goes to the [`judge`]; [`availability`] and [`report`] say the rest.

mod audit;
mod availability;
mod cast;
mod client;
mod cluster;
mod director;
mod evidence;
mod injector;
mod judge;
mod options;
mod player;
mod report;
mod schedule;
mod seat;
mod services;
mod stage;
mod sync;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;

pub use options::ChaosOptions;
pub use report::{ChaosResult, table};

use audit::{Auditor, Chapter};
use availability::outage;
use cast::{Conversation, Person};
use client::Client;
use cluster::Cluster;
use director::Directed;
use evidence::{Audit, Evidence, View};
use injector::Injected;
use judge::judge;
use report::{Devices, FaultRow};
use schedule::Wishes;
use seat::{Seat, Terms};
use stage::{Phase, Stage};

use crate::finding::{Fault, Findings};
use crate::report::Verdict;
use crate::scenario::traffic::fail_reasons;

/// For players to leave after the last phase.
const LEAVE_DEADLINE: Duration = Duration::from_secs(20);

/// What has happened, all of it.
struct Played {
    took_s: f64,
    planned: usize,
    directed: Directed,
    failed_starts: u64,
    clients: Vec<Client>,
    conversations: Vec<Conversation>,
    /// `None` if the run was interrupted or the archive could not be read: then conservation says nothing.
    audits: Option<Vec<Audit>>,
    findings: Findings,
}

/// Runs.
///
/// # Errors
/// If the cluster cannot be started or people cannot be set up: then there is nothing to judge.
pub fn run(options: &ChaosOptions, stop: &'static AtomicBool) -> anyhow::Result<ChaosResult> {
    let options = options.resolved()?;
    eprintln!("starting {} gateway(s), {}", options.gateways, options.backend.name());
    let cluster = Cluster::start(&options, stop)?;
    let result = play(&options, &cluster, stop).map(|played| conclude(&options, played, stop));
    let is_well = matches!(&result, Ok(ChaosResult { verdict: Verdict::Pass | Verdict::Interrupted, .. }));
    if !is_well && !stop.load(Ordering::Relaxed) {
        cluster.keep_data();
    }
    result
}

fn play(options: &ChaosOptions, cluster: &Cluster, stop: &AtomicBool) -> anyhow::Result<Played> {
    let endpoints = cluster.endpoints();
    let (people, conversations) = cast::set_up(&endpoints[0].http, options, stop)?;
    let terms = Arc::new(Terms { run: cast::run_number(), filler: cast::filler(options.seed) });
    let players = cast::players(options, &people, &conversations, &terms);
    let wishes = Wishes {
        kinds: options.faults.clone(),
        duration: options.duration,
        gateways: options.gateways as usize,
        at_once: if options.overlap { 2 } else { 1 },
    };
    let plan = schedule::plan(options.seed, &wishes);

    let stage = Arc::new(Stage::new(endpoints, players.len(), conversations.len()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let playing: Vec<_> = players.into_iter().map(|player| runtime.spawn(player.play(Arc::clone(&stage)))).collect();
    let mut findings = Findings::default();
    let directed = director::direct(options, cluster, &stage, &plan, stop, &mut findings);
    stage.begin(Phase::Over);
    let clients = runtime.block_on(async {
        let leave = futures_util::future::try_join_all(playing);
        let left = tokio::time::timeout(LEAVE_DEADLINE, leave).await;
        left.context("the players do not leave")?.context("a player panicked")
    })?;

    let mut audits = None;
    if !stop.load(Ordering::Relaxed) {
        eprintln!("reading the whole history as every user");
        match runtime.block_on(audit(&clients, &people, &conversations, &stage, &terms, options.patience)) {
            Ok(all) => audits = Some(all),
            Err(error) => findings.add(Fault::NotRecovered, || format!("{error:#}")),
        }
    }
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(Played {
        took_s: stage.now_ms() as f64 / 1_000.0,
        planned: plan.iter().map(Vec::len).sum(),
        directed,
        failed_starts: cluster.failed_starts(),
        clients,
        conversations,
        audits,
        findings,
    })
}

/// Every user's last look.
async fn audit(
    clients: &[Client],
    people: &[Person],
    conversations: &[Conversation],
    stage: &Stage,
    terms: &Terms,
    patience: Duration,
) -> anyhow::Result<Vec<Audit>> {
    let deadline = tokio::time::Instant::now() + patience;
    let mut audits = Vec::new();
    let mut first_devices = clients.iter().filter(|client| client.who.ends_with("device 0"));
    for (user, person) in people.iter().enumerate() {
        let client = first_devices.next().context("every person has a first device")?;
        let chapter = |seat: &Seat| {
            let conversation = &conversations[seat.conversation as usize];
            Chapter {
                conversation: seat.conversation,
                id: conversation.id.clone(),
                member: seat.member,
                users: conversation.users(people),
                read_acked: seat.read_acked,
                read_sent: seat.read_sent,
            }
        };
        let auditor = Auditor {
            who: format!("user {user}"),
            user_id: person.account.user_id,
            name: person.name.clone(),
            password: person.password.clone(),
            chapters: client.seats.iter().map(chapter).collect(),
        };
        let gateway = &stage.gateways[user % stage.gateways.len()];
        audits.extend(auditor.audit(gateway, terms, deadline).await?);
    }
    Ok(audits)
}

/// Judges and sums up.
fn conclude(options: &ChaosOptions, played: Played, stop: &AtomicBool) -> ChaosResult {
    let Played { took_s, planned, directed, failed_starts, .. } = played;
    let Directed { mut injected, offered_until_ms, has_settled } = directed;
    let Played { clients, conversations, audits, mut findings, .. } = played;
    let mut devices = Devices { failed_starts, ..Devices::default() };
    clients.iter().for_each(|client| devices.add(client));
    injected.sort_by_key(|injected| injected.began_ms);
    let faults = with_outages(offered_until_ms, &injected, &clients);

    let mut evidence = Evidence {
        conversations: conversations.into_iter().map(|conversation| conversation.id).collect(),
        probes_count: has_settled,
        ..Evidence::default()
    };
    for client in clients {
        evidence.sent.extend(client.sent());
        for seat in client.seats {
            let view = View { who: client.who.clone(), conversation: seat.conversation, shown: seat.sync.shown };
            evidence.views.push(view);
        }
        findings.merge(client.findings);
    }
    let (counts, findings) = match audits {
        Some(audits) => {
            let outcome = judge(Evidence { audits, findings, ..evidence });
            (outcome.counts, outcome.findings)
        }
        None => (judge::Counts::of_answers(&evidence.sent), findings),
    };
    let mut reasons = fail_reasons(&findings);
    if counts.acknowledged == 0 {
        reasons.push("not a single message was accepted".to_owned());
    }
    if devices.epoch_changes > 0 {
        reasons.push("the epoch changed though no fault touches the archive".to_owned());
    }
    let verdict = match (stop.load(Ordering::Relaxed), reasons.is_empty()) {
        (true, _) => Verdict::Interrupted,
        (_, true) => Verdict::Pass,
        (_, false) => Verdict::Fail,
    };
    ChaosResult {
        verdict,
        reasons,
        parameters: options.clone(),
        took_s,
        faults_left_out: planned - faults.len(),
        faults,
        messages: counts,
        devices,
        findings,
    }
}

/// What each fault cost: its window ends where the next fault begins, or with the offering.
fn with_outages(offered_until_ms: u64, injected: &[Injected], clients: &[Client]) -> Vec<FaultRow> {
    let accepted: Vec<&[u64]> =
        clients.iter().map(|client| &client.figures.accepted_at_ms[..]).filter(|times| !times.is_empty()).collect();
    let ends = injected.iter().skip(1).map(|next| next.began_ms).chain([offered_until_ms]);
    let row = |(injected, end_ms): (&Injected, u64)| FaultRow {
        outage: outage(injected.began_ms, injected.undone_ms, end_ms, &accepted),
        injected: injected.clone(),
    };
    injected.iter().zip(ends).map(row).collect()
}
