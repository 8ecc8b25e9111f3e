//! A chaos run: real gateways and services, traffic, faults by a seeded plan, a full resync, and a judgement by
//! conservation.
//!
//! In: [`ChaosOptions`]; out: a [`ChaosResult`]. What was started is ended, whatever happens. The parts:
//!
//! - [`schedule`] plans the faults, [`injector`] plays the plan on the [`cluster`] and its [`services`];
//! - [`player`] drives a device's [`client`], which follows PROTOCOL.md with a [`sync`] per conversation; [`stage`] is what
//!   they share;
//! - [`audit`] takes the last look; [`evidence`] of all goes to the [`judge`]; [`availability`] and [`report`] say the rest.

mod audit;
mod availability;
mod client;
mod cluster;
mod evidence;
mod injector;
mod judge;
mod options;
mod player;
mod report;
mod schedule;
mod services;
mod stage;
mod sync;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};

pub use options::ChaosOptions;
pub use report::{ChaosResult, table};

use audit::{Auditor, Chapter};
use availability::outage;
use client::{Client, Habits, Reads, Terms};
use cluster::Cluster;
use evidence::{Evidence, View};
use injector::{Injected, Injector};
use judge::judge;
use player::Player;
use report::{Devices, FaultRow};
use schedule::{Planned, Wishes};
use stage::{Phase, Stage};

use crate::connection::Account;
use crate::finding::{Fault, Findings};
use crate::pacer::Random;
use crate::progress::Bar;
use crate::report::Verdict;
use crate::scenario::traffic::fail_reasons;
use crate::setup::{Http, in_parallel};

/// Bytes of each message's body.
const BODY_BYTES: usize = 96;

/// Members of a room.
const ROOM_MEMBERS: usize = 6;

/// For players to leave after the last phase.
const LEAVE_DEADLINE: Duration = Duration::from_secs(20);

/// Without faults, for the first login of all and for probes.
const CALM_PATIENCE: Duration = Duration::from_secs(20);

/// A user of the run.
struct Person {
    account: Account,
    name: String,
    password: String,
}

/// A conversation of the run.
struct Conversation {
    id: String,
    /// Indexes of persons.
    members: Vec<usize>,
}

/// Runs.
///
/// # Errors
/// If the cluster cannot be started, people cannot be set up, or a tool fails: then there is nothing to judge.
pub fn run(options: &ChaosOptions, stop: &'static AtomicBool) -> anyhow::Result<ChaosResult> {
    let options = options.resolved()?;
    eprintln!("starting {} gateway(s), {}", options.gateways, options.backend.name());
    let cluster = Cluster::start(&options, stop)?;
    let result = play(&options, &cluster, stop);
    let failed = match &result {
        Ok(result) => result.verdict == Verdict::Fail,
        Err(_) => !stop.load(Ordering::Relaxed),
    };
    if failed {
        cluster.keep_data();
    }
    result
}

fn play(options: &ChaosOptions, cluster: &Cluster, stop: &AtomicBool) -> anyhow::Result<ChaosResult> {
    let endpoints = cluster.endpoints();
    let (people, conversations) = set_up(&endpoints[0].http, options, stop)?;
    let terms = Arc::new(Terms { run: run_number(), filler: filler(options.seed) });
    let players = players(options, &people, &conversations, &terms);
    let stage = Arc::new(Stage::new(endpoints, players.len(), conversations.len()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let playing: Vec<_> = players.into_iter().map(|player| runtime.spawn(player.play(Arc::clone(&stage)))).collect();

    let wishes = Wishes {
        kinds: options.faults.clone(),
        duration: options.duration,
        gateways: options.gateways as usize,
        at_once: if options.overlap { 2 } else { 1 },
    };
    let plan = schedule::plan(options.seed, &wishes);
    let mut findings = Findings::default();
    let injected = direct(options, cluster, &stage, &plan, stop, &mut findings);
    stage.begin(Phase::Over);
    let clients = runtime.block_on(async {
        let leave = futures_util::future::try_join_all(playing);
        tokio::time::timeout(LEAVE_DEADLINE, leave)
            .await
            .context("the players do not leave")?
            .map_err(anyhow::Error::from)
    })?;
    let injected = injected?;

    let audits = if stop.load(Ordering::Relaxed) {
        Vec::new()
    } else {
        eprintln!("reading the whole history as every user");
        runtime.block_on(audit(&clients, &people, &conversations, &stage, &terms, options.patience))?
    };
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(conclude(options, cluster, &stage, &plan, injected, clients, &conversations, audits, findings, stop))
}

// ---- the cast

fn set_up(base: &str, options: &ChaosOptions, stop: &AtomicBool) -> anyhow::Result<(Vec<Person>, Vec<Conversation>)> {
    let users = options.users as usize;
    let run = run_number();
    let people = in_parallel(base, "registering", users, stop, |http, index| {
        let (name, password) = (format!("chaos{run:08x}_{index}"), format!("password-{run:08x}-{index}"));
        let account = http.register_and_log_in(&name, &password)?;
        Ok(Person { account, name, password })
    })?;
    let mut conversations = Vec::new();
    // A ring: each user writes to both neighbours.
    for index in 0..users {
        let other = (index + 1) % users;
        let (a, b) = (people[index].account.user_id, people[other].account.user_id);
        conversations.push(Conversation { id: format!("p_{}_{}", a.min(b), a.max(b)), members: vec![index, other] });
    }
    let http = Http::new(base);
    for index in 0..users.div_ceil(ROOM_MEMBERS) {
        let members: Vec<usize> =
            (0..ROOM_MEMBERS.min(users)).map(|n| (index * (ROOM_MEMBERS - 1) + n) % users).collect();
        let owner = &people[members[0]].account;
        let room = http.open_room(owner, &format!("chaos {index}"), members.len().max(2))?;
        for member in &members[1..] {
            http.join_room(&people[*member].account, &room)?;
        }
        conversations.push(Conversation { id: room.conversation_id, members });
    }
    Ok((people, conversations))
}

fn players(
    options: &ChaosOptions,
    people: &[Person],
    conversations: &[Conversation],
    terms: &Arc<Terms>,
) -> Vec<Player> {
    let mut random = Random::new(options.seed ^ 0x70_6c61_7965_7273);
    let mut players = Vec::new();
    for (user, person) in people.iter().enumerate() {
        let devices = if user % 3 == 0 { 2 } else { 1 };
        for device in 0..devices {
            let reads = [Reads::All, Reads::Half, Reads::Nothing][user % 3];
            let habits = Habits { reads: (device == 0).then_some(reads) };
            let mut client =
                Client::new(format!("user {user} device {device}"), habits, Arc::clone(terms), random.next());
            for (index, conversation) in (0..).zip(conversations) {
                if let Some(member) = conversation.members.iter().position(|member| *member == user) {
                    let users = conversation.members.iter().map(|member| people[*member].account.user_id).collect();
                    let member = u32::try_from(member).expect("rooms are small");
                    client.take_seat(index, &conversation.id, member, users);
                }
            }
            let interval_ms = f64::from(options.users) * 1_000.0 / f64::from(options.rate);
            players.push(Player {
                client,
                index: players.len(),
                account: person.account.clone(),
                name: person.name.clone(),
                password: person.password.clone(),
                device_id: format!("device-{device}"),
                interval_ms: (device == 0).then_some(interval_ms),
                random: Random::new(random.next()),
                // The second device of a user is at another gateway than the first.
                gateway: user + device,
            });
        }
    }
    players
}

fn filler(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed ^ 0x66_696c_6c65_7200);
    (0..BODY_BYTES).map(|_| random.next().to_le_bytes()[0]).collect()
}

/// Differs between runs, so that a gateway kept from an earlier run cannot be mistaken for this one's.
fn run_number() -> u32 {
    std::process::id()
}

// ---- the play

/// Leads through the phases; returns what was injected.
fn direct(
    options: &ChaosOptions,
    cluster: &Cluster,
    stage: &Stage,
    plan: &[Vec<Planned>],
    stop: &AtomicBool,
    findings: &mut Findings,
) -> anyhow::Result<Vec<Injected>> {
    let until_ms = u64::try_from(options.duration.as_millis())?;
    let injector = Injector::new(cluster, stage, stop, until_ms);
    let mut view = Watch { bar: Bar::figures("chaos"), stage, injector: &injector, cluster, stop };
    let injected = std::thread::scope(|scope| {
        let hands: Vec<_> = plan.iter().map(|sequence| scope.spawn(|| injector.play(sequence))).collect();
        while hands.iter().any(|hand| !hand.is_finished()) || stage.now_ms() < until_ms {
            std::thread::sleep(Duration::from_millis(100));
            view.look(findings);
            if stop.load(Ordering::Relaxed) && hands.iter().all(|hand| hand.is_finished()) {
                break;
            }
        }
        hands.into_iter().map(|hand| hand.join().unwrap_or_else(|_| Err(anyhow!("a hand panicked")))).collect()
    });
    let injected: anyhow::Result<Vec<Vec<Injected>>> = injected;
    if stop.load(Ordering::Relaxed) {
        return Ok(injected.unwrap_or_default().concat());
    }
    if let Err(error) = cluster.restore(stop) {
        findings.add(Fault::NotRecovered, || format!("{error:#}"));
    }
    stage.begin(Phase::Settling);
    let mut phases =
        [(Phase::Settling, options.patience), (Phase::Probing, CALM_PATIENCE), (Phase::Reconnecting, options.patience)]
            .into_iter();
    // What does not settle is found by the judge: as unanswered, lost, or not pushed.
    for (phase, patience) in phases.by_ref() {
        stage.begin(phase);
        let settled = stage.wait_until_settled(patience, stop, || view.look(findings));
        if !settled && !stop.load(Ordering::Relaxed) {
            let (settled, all) = (stage.settled(), stage.gauges.len());
            findings.add(Fault::NotRecovered, || {
                format!("{phase:?}: after {patience:?} only {settled} of {all} devices had sent and seen everything")
            });
        }
    }
    Ok(injected?.concat())
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

async fn audit(
    clients: &[Client],
    people: &[Person],
    conversations: &[Conversation],
    stage: &Stage,
    terms: &Terms,
    patience: Duration,
) -> anyhow::Result<Vec<evidence::Audit>> {
    let deadline = tokio::time::Instant::now() + patience;
    let mut audits = Vec::new();
    let mut first_devices = clients.iter().filter(|client| client.who.ends_with("device 0"));
    for (user, person) in people.iter().enumerate() {
        let client = first_devices.next().context("every person has a first device")?;
        let chapter = |seat: &client::Seat| {
            let Conversation { id, members } = &conversations[seat.conversation as usize];
            Chapter {
                conversation: seat.conversation,
                id: id.clone(),
                member: seat.member,
                users: members.iter().map(|member| people[*member].account.user_id).collect(),
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

// ---- the end

#[allow(clippy::too_many_arguments, reason = "everything of the run comes together here, once")]
fn conclude(
    options: &ChaosOptions,
    cluster: &Cluster,
    stage: &Stage,
    plan: &[Vec<Planned>],
    mut injected: Vec<Injected>,
    clients: Vec<Client>,
    conversations: &[Conversation],
    audits: Vec<evidence::Audit>,
    mut findings: Findings,
    stop: &AtomicBool,
) -> ChaosResult {
    let took_s = stage.now_ms() as f64 / 1_000.0;
    let mut devices = Devices::default();
    clients.iter().for_each(|client| devices.add(client));
    devices.failed_starts =
        (0..options.gateways as usize).map(|index| u64::from(cluster.member(index).failed_starts)).sum();
    injected.sort_by_key(|injected| injected.began_ms);
    let duration_ms = u64::try_from(options.duration.as_millis()).unwrap_or(u64::MAX);
    let accepted: Vec<&[u64]> =
        clients.iter().map(|client| &client.figures.accepted_at_ms[..]).filter(|times| !times.is_empty()).collect();
    let ends = injected.iter().skip(1).map(|next| next.began_ms).chain([duration_ms]);
    let faults: Vec<FaultRow> = injected
        .iter()
        .zip(ends)
        .map(|(injected, end_ms)| FaultRow {
            outage: outage(injected.began_ms, injected.undone_ms, end_ms, &accepted),
            injected: injected.clone(),
        })
        .collect();

    let mut evidence = Evidence {
        conversations: conversations.iter().map(|conversation| conversation.id.clone()).collect(),
        audits,
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
    let interrupted = stop.load(Ordering::Relaxed);
    let (counts, findings) = if interrupted {
        // Nothing has settled, so that conservation says nothing.
        let offered = stage.offered.load(Ordering::Relaxed);
        let acknowledged = stage.accepted.load(Ordering::Relaxed);
        (judge::Counts { offered, acknowledged, ..judge::Counts::default() }, findings)
    } else {
        evidence.findings = findings;
        let outcome = judge(evidence);
        (outcome.counts, outcome.findings)
    };
    let mut reasons = fail_reasons(&findings);
    let planned: usize = plan.iter().map(Vec::len).sum();
    if counts.acknowledged == 0 {
        reasons.push("not a single message was accepted".to_owned());
    }
    if devices.epoch_changes > 0 {
        reasons.push("the epoch changed though no fault touches the archive".to_owned());
    }
    let verdict = match (interrupted, reasons.is_empty()) {
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
