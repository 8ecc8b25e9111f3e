//! The generator's threads: each owns a lane, on a current-thread runtime of its own.
//!
//! In: a plan of conversations with their members' accounts; out: connected lanes ([`Generator::connect`]), then a run
//! at a fixed rate ([`Generator::start`]), then what was measured ([`Generator::finish`]).
//!
//! A thread has one task per connection, which reads, and one that takes turns, which writes. They share the lane
//! through a
//! `RefCell` that is never borrowed across an await.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::task::LocalSet;

use crate::clock::{Clock, Pulse, thread_cpu};
use crate::connection::{Account, Connection, LoggedIn, Reading};
use crate::finding::Findings;
use crate::judge::Counts;
use crate::lane::{Lane, LaneConversation};
use crate::pacer::{Random, Rotation, Schedule, TURN_NS};
use crate::tally::{Tally, Window};
use crate::wire::{STAMP_BYTES, SendTemplate};

/// Logins under way at once, per thread: enough to be quick, too few to overrun a listen backlog.
const LOGINS_AT_ONCE: usize = 64;

/// Time after everything has arrived in which a doubled delivery would still be seen.
const LINGER_NS: u64 = 300_000_000;

/// What an interrupted run may still wait for deliveries.
const INTERRUPTED_PATIENCE_NS: u64 = 2_000_000_000;

/// A conversation to be driven.
#[derive(Clone, Debug)]
pub struct PlannedConversation {
    /// As on the wire.
    pub id: String,
    /// One connection each.
    pub members: Vec<Account>,
}

/// Everything a generator needs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to connect; connections take the addresses in turn.
    pub tcp: Vec<SocketAddr>,
    /// Who talks to whom.
    pub conversations: Vec<PlannedConversation>,
    /// Of a hundred members, those that log in and then never read a byte; they send nothing either.
    pub stuck_percent: u32,
    /// Bytes of each message's body.
    pub body_bytes: usize,
    /// Threads; each takes whole conversations.
    pub threads: usize,
    /// Of the senders' order and the bodies.
    pub seed: u64,
}

/// When to send how much, on the generator's clock.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// First turn.
    pub start_ns: u64,
    /// Messages per second, all lanes together.
    pub rate_per_s: u64,
    /// The measured part; sending ends with it.
    pub window: Window,
    /// Time without progress after which what is missing is lost.
    pub patience_ns: u64,
}

/// Figures of one lane that others read while it runs.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Live {
    pub connected: AtomicU64,
    pub open: AtomicU64,
    pub offered: AtomicU64,
    pub accepted: AtomicU64,
    pub delivered: AtomicU64,
    pub ack_p99_ns: AtomicU64,
    pub delivery_p99_ns: AtomicU64,
}

/// What came of a lane, or of all together.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Measurements.
    pub tally: Tally,
    /// What became of the messages.
    pub counts: Counts,
    /// What was wrong.
    pub findings: Findings,
    /// CPU time of the lane's thread within the window, in seconds; of all together: the sum.
    pub cpu_seconds: f64,
    /// CPU time of the busiest thread.
    pub cpu_seconds_busiest: f64,
    /// Connections at the start.
    pub connections: usize,
    /// True if patience ended before everything was settled.
    pub is_unsettled: bool,
}

impl Outcome {
    fn merge(&mut self, other: Self) {
        self.tally.merge(&other.tally);
        self.counts.add(&other.counts);
        self.findings.merge(other.findings);
        self.cpu_seconds += other.cpu_seconds;
        self.cpu_seconds_busiest = self.cpu_seconds_busiest.max(other.cpu_seconds_busiest);
        self.connections += other.connections;
        self.is_unsettled |= other.is_unsettled;
    }
}

/// What all lanes of a generator are told.
#[derive(Default)]
struct Control {
    timing: OnceLock<Timing>,
    stop: AtomicBool,
}

/// Lanes that are connected and wait for their start, or run.
pub struct Generator {
    /// The clock all moments are on.
    pub clock: Clock,
    control: Arc<Control>,
    lanes: Vec<(Arc<Live>, JoinHandle<anyhow::Result<Outcome>>)>,
}

impl Generator {
    /// Starts the threads and connects everybody; `watch` is called now and then with the connections so far and
    /// returns false to give up.
    ///
    /// # Errors
    /// The first connection that could not be made.
    pub fn connect(plan: &Plan, mut watch: impl FnMut(u64) -> bool) -> anyhow::Result<Self> {
        let clock = Clock::start();
        let control = Arc::new(Control::default());
        let (ready_tx, ready_rx) = mpsc::sync_channel(plan.threads);
        let mut lanes = Vec::new();
        for lane_plan in LanePlan::split(plan) {
            let live = Arc::new(Live::default());
            let (live2, control, ready) = (live.clone(), control.clone(), ready_tx.clone());
            let thread = std::thread::Builder::new().name(format!("lane-{}", lanes.len()));
            let thread = thread.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                LocalSet::new().block_on(&runtime, run_lane(lane_plan, clock, control, live2, ready))
            })?;
            lanes.push((live, thread));
        }
        drop(ready_tx);
        let generator = Self { clock, control, lanes };
        let mut ready = 0;
        while ready < generator.lanes.len() {
            match ready_rx.recv_timeout(Duration::from_millis(50)) {
                Ok(()) => ready += 1,
                Err(mpsc::RecvTimeoutError::Timeout) if watch(generator.sum(|live| &live.connected)) => {}
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    generator.stop();
                    return Err(anyhow!("interrupted"));
                }
                // A lane ended before it was ready: joining it tells why.
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
            if generator.lanes.iter().any(|(_, thread)| thread.is_finished()) {
                break;
            }
        }
        if ready < generator.lanes.len() {
            generator.stop();
            generator.finish()?;
            return Err(anyhow!("a lane ended before it began"));
        }
        Ok(generator)
    }

    /// Lets the lanes send.
    pub fn start(&self, timing: Timing) {
        self.control.timing.set(timing).expect("a generator is started once");
    }

    /// Ends sending now; what is under way is still waited for, briefly.
    pub fn stop(&self) {
        self.control.stop.store(true, Ordering::Relaxed);
    }

    /// True when every lane has ended.
    pub fn is_over(&self) -> bool {
        self.lanes.iter().all(|(_, thread)| thread.is_finished())
    }

    /// Adds up one figure over the lanes.
    pub fn sum(&self, figure: impl Fn(&Live) -> &AtomicU64) -> u64 {
        self.lanes.iter().map(|(live, _)| figure(live).load(Ordering::Relaxed)).sum()
    }

    /// The worst of one figure over the lanes.
    pub fn max(&self, figure: impl Fn(&Live) -> &AtomicU64) -> u64 {
        self.lanes.iter().map(|(live, _)| figure(live).load(Ordering::Relaxed)).max().unwrap_or(0)
    }

    /// Waits for the lanes and adds up what they measured.
    ///
    /// # Errors
    /// Whatever ended a lane before its time.
    pub fn finish(self) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome::default();
        for (_, thread) in self.lanes {
            outcome.merge(thread.join().map_err(|_| anyhow!("a generator thread panicked"))??);
        }
        Ok(outcome)
    }
}

/// One lane's part of a plan.
struct LanePlan {
    tcp: Vec<SocketAddr>,
    conversations: Vec<(u32, PlannedConversation)>,
    filler: Vec<u8>,
    stuck_percent: u32,
    run: u32,
    seed: u64,
    /// This lane's and all lanes' connections: its share of the rate.
    share: (u64, u64),
    first_connection: u32,
}

impl LanePlan {
    fn split(plan: &Plan) -> Vec<Self> {
        let mut random = Random::new(plan.seed);
        let filler: Vec<u8> = (0..plan.body_bytes.max(STAMP_BYTES)).map(|_| random.next().to_le_bytes()[0]).collect();
        let all: usize = plan.conversations.iter().map(|conversation| conversation.members.len()).sum();
        let threads = plan.threads.clamp(1, plan.conversations.len().max(1));
        let mut first_connection = 0;
        let mut lanes = Vec::new();
        for lane in 0..threads {
            let conversations: Vec<(u32, PlannedConversation)> =
                (0u32..).zip(&plan.conversations).skip(lane).step_by(threads).map(|(i, c)| (i, c.clone())).collect();
            let own: usize = conversations.iter().map(|(_, conversation)| conversation.members.len()).sum();
            lanes.push(Self {
                tcp: plan.tcp.clone(),
                conversations,
                filler: filler.clone(),
                stuck_percent: plan.stuck_percent,
                run: std::process::id(),
                seed: plan.seed.wrapping_add(lane as u64),
                share: (own as u64, all as u64),
                first_connection,
            });
            first_connection += u32::try_from(own).expect("connections are counted in u32");
        }
        lanes
    }

    async fn connect(&self, clock: Clock, control: &Control, live: &Live) -> anyhow::Result<Lane> {
        let mut members = Vec::new();
        for (conversation, (_, planned)) in (0u32..).zip(&self.conversations) {
            for (member, account) in (0u32..).zip(&planned.members) {
                members.push((conversation, member, account));
            }
        }
        let mut waiting = (0u32..).zip(members);
        let mut under_way = FuturesUnordered::new();
        let mut connections: Vec<Option<Connection>> = Vec::new();
        loop {
            while under_way.len() < LOGINS_AT_ONCE
                && let Some((index, (conversation, member, account))) = waiting.next()
            {
                connections.push(None);
                let number = self.first_connection + index;
                let address = self.tcp[number as usize % self.tcp.len()];
                let template = SendTemplate::new(&self.conversations[conversation as usize].1.id, &self.filler);
                let reading = self.reading(member);
                under_way.push(async move {
                    let device = format!("loadtest-{number}");
                    let logged_in = LoggedIn::connect(address, number, account, &device, reading).await?;
                    anyhow::Ok((
                        index,
                        logged_in.into_connection(conversation, member, template, reading, clock.now_ns()),
                    ))
                });
            }
            let Some(connected) = under_way.next().await else { break };
            let (index, connection) = connected?;
            connections[index as usize] = Some(connection);
            live.connected.fetch_add(1, Ordering::Relaxed);
            if control.stop.load(Ordering::Relaxed) {
                return Err(anyhow!("interrupted"));
            }
        }
        let connections: Vec<Connection> = connections.into_iter().flatten().collect();
        let conversations = self.conversations.iter().map(|(index, planned)| LaneConversation {
            index: *index,
            id: planned.id.clone(),
            user_ids: planned.members.iter().map(|account| account.user_id).collect(),
        });
        let senders = (0..).zip(&connections).filter(|(_, connection)| connection.reading == Reading::All);
        let senders = senders.map(|(index, _)| index);
        let rotation = Rotation::new(senders, &mut Random::new(self.seed));
        Ok(Lane::new(clock, self.run, self.filler.clone(), conversations.collect(), connections, rotation))
    }

    /// Stuck members are spread evenly over a conversation.
    fn reading(&self, member: u32) -> Reading {
        let stuck_below = |member: u32| u64::from(member) * u64::from(self.stuck_percent) / 100;
        if stuck_below(member + 1) > stuck_below(member) { Reading::Nothing } else { Reading::All }
    }

    /// This lane's part of a rate: by its connections, so that every sender sends equally often.
    fn rate_per_s(&self, total: u64) -> u64 {
        let (own, all) = self.share;
        (total * own + all / 2) / all.max(1)
    }
}

async fn run_lane(
    plan: LanePlan,
    clock: Clock,
    control: Arc<Control>,
    live: Arc<Live>,
    ready: mpsc::SyncSender<()>,
) -> anyhow::Result<Outcome> {
    let lane = plan.connect(clock, &control, &live).await?;
    let connections = lane.connections();
    let lane = Rc::new(RefCell::new(lane));
    for index in 0..connections {
        if lane.borrow().is_stuck(index) {
            continue;
        }
        let lane = lane.clone();
        tokio::task::spawn_local(async move {
            lane.borrow_mut().take_leftover(index);
            poll_fn(|context| lane.borrow_mut().poll_connection(index, context)).await;
        });
    }
    ready.send(()).context("the generator is gone")?;
    drop(ready);

    let mut outcome = Outcome { connections, ..Outcome::default() };
    let mut idle_pulse = Pulse::new(Duration::ZERO, Duration::from_millis(10))?;
    let timing = loop {
        idle_pulse.wait().await?;
        let now_ns = clock.now_ns();
        let mut lane = lane.borrow_mut();
        lane.take_turn(now_ns, || None);
        live.open.store(lane.open_connections() as u64, Ordering::Relaxed);
        match control.timing.get() {
            Some(timing) => break Some(*timing),
            None if control.stop.load(Ordering::Relaxed) => break None,
            None => {}
        }
    };
    drop(idle_pulse);
    if let Some(timing) = timing {
        let rate_per_s = plan.rate_per_s(timing.rate_per_s);
        outcome.is_unsettled = !drive(&lane, clock, &control, &live, timing, rate_per_s, &mut outcome).await?;
    }
    let mut lane = lane.borrow_mut();
    if outcome.is_unsettled {
        lane.note_unanswered();
    }
    (outcome.counts, outcome.findings) = std::mem::take(&mut lane.judge).finish();
    outcome.tally = std::mem::take(&mut lane.tally);
    Ok(outcome)
}

/// Takes turns until all is sent and settled (true), or patience ends (false).
async fn drive(
    lane: &RefCell<Lane>,
    clock: Clock,
    control: &Control,
    live: &Live,
    timing: Timing,
    rate_per_s: u64,
    outcome: &mut Outcome,
) -> anyhow::Result<bool> {
    let Timing { start_ns, window, mut patience_ns, .. } = timing;
    lane.borrow_mut().set_window(window);
    let mut schedule = Schedule::new(start_ns, window.end_ns - start_ns, rate_per_s);
    let delay = Duration::from_nanos(start_ns.saturating_sub(clock.now_ns()));
    let mut pulse = Pulse::new(delay, Duration::from_nanos(TURN_NS))?;
    let mut cpu_at_start = None;
    let mut settled_since_ns = None;
    let (mut progress, mut progress_ns) = (0, start_ns);
    let mut next_figures_ns = start_ns;
    let mut next_check_ns = 0;
    loop {
        pulse.wait().await?;
        let now_ns = clock.now_ns();
        let mut lane = lane.borrow_mut();
        if control.stop.load(Ordering::Relaxed) && !schedule.is_over() {
            schedule.stop();
            patience_ns = patience_ns.min(INTERRUPTED_PATIENCE_NS);
        }
        lane.take_turn(now_ns, || schedule.next_due(now_ns));

        if now_ns >= window.start_ns {
            let cpu_at_start = *cpu_at_start.get_or_insert_with(thread_cpu);
            if now_ns < window.end_ns || outcome.cpu_seconds == 0.0 {
                outcome.cpu_seconds = (thread_cpu() - cpu_at_start).as_secs_f64();
                outcome.cpu_seconds_busiest = outcome.cpu_seconds;
            }
        }
        live.offered.store(lane.tally.whole.offered, Ordering::Relaxed);
        live.accepted.store(lane.accepted_total, Ordering::Relaxed);
        live.delivered.store(lane.delivered_total, Ordering::Relaxed);
        if now_ns >= next_figures_ns {
            next_figures_ns = now_ns + 500_000_000;
            live.ack_p99_ns.store(lane.tally.ack.quantile_ns(0.99), Ordering::Relaxed);
            live.delivery_p99_ns.store(lane.tally.delivery.quantile_ns(0.99), Ordering::Relaxed);
            live.open.store(lane.open_connections() as u64, Ordering::Relaxed);
        }
        if !schedule.is_over() || now_ns < next_check_ns {
            continue;
        }
        next_check_ns = now_ns + 10_000_000;
        if lane.is_settled() {
            if now_ns - *settled_since_ns.get_or_insert(now_ns) >= LINGER_NS {
                return Ok(true);
            }
        } else {
            settled_since_ns = None;
        }
        if progress != lane.progress {
            (progress, progress_ns) = (lane.progress, now_ns);
        } else if settled_since_ns.is_none() && now_ns.saturating_sub(progress_ns) > patience_ns {
            return Ok(false);
        }
    }
}
