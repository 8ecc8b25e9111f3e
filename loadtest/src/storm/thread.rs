//! One thread of a storm: connects its watchers, then serves their sockets and takes turns until the run is over.
//!
//! In: its part of a plan, and what all threads are told ([`Control`]); out: an [`Outcome`].
//!
//! A thread connects with tokio and then takes the sockets over: ten thousand sockets that all speak at once are cheaper
//! to serve by hand, and nothing but the lane decides what is done next.

use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, anyhow};
use futures_util::stream::{FuturesUnordered, StreamExt};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::crowd::{Control, Live, Outcome, Plan};
use super::dial::log_in;
use super::http_pull::HttpPool;
use super::judge::End;
use super::lane::{AcceptedAt, Lane, NewLane, Share};
use super::options::PullOver;
use super::watcher::{NewWatcher, Sender, Watcher};
use crate::clock::Clock;
use crate::pacer::{Random, Rotation, TURN_NS};
use crate::places::Places;
use crate::wire::SendTemplate;

/// Logins under way at once, per thread: enough to be quick, too few to overrun a listen backlog.
const LOGINS_AT_ONCE: usize = 64;

/// Time after everything has been answered in which pushes would still come.
const LINGER_NS: u64 = 500_000_000;

/// Sockets that are looked at between two looks at the clock.
const EVENTS_AT_ONCE: usize = 256;

/// Tokens of epoll: watchers by their index, HTTP connections behind them, the pulse.
const HTTP_TOKEN: u64 = 1 << 32;
const PULSE_TOKEN: u64 = u64::MAX;

/// One thread and what it was given.
pub struct Thread {
    /// What is to be done.
    pub plan: Arc<Plan>,
    /// Which of the threads it is.
    pub lane: usize,
    /// The clock all moments are on.
    pub clock: Clock,
    /// What all threads are told.
    pub control: Arc<Control>,
    /// Where its figures go.
    pub live: Arc<Live>,
    /// Shared by all lanes.
    pub accepted_at: AcceptedAt,
}

impl Thread {
    /// Runs it; `ready` hears when everybody is connected.
    ///
    /// # Errors
    /// If somebody cannot be connected, or a pull over HTTP has no way.
    pub fn run(self, ready: &mpsc::SyncSender<()>) -> anyhow::Result<Outcome> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let watchers = runtime.block_on(self.connect())?;
        drop(runtime);
        let mut lane = self.lane_of(watchers);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for index in 0..lane.watchers.len() {
            epoll.add(&lane.watchers[index].line.stream, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
            lane.take_leftover(index);
        }
        ready.send(()).context("the crowd is gone")?;
        let is_unsettled = !self.drive(&mut lane, &epoll)?;
        Ok(self.outcome(lane, is_unsettled))
    }

    /// The global index of one of this lane's watchers.
    fn watcher_number(&self, index: usize) -> usize {
        self.lane + index * self.plan.threads
    }

    async fn connect(&self) -> anyhow::Result<Vec<Watcher>> {
        let plan = &*self.plan;
        let mut random = Random::new(plan.seed ^ 0x7061_6365 ^ self.lane as u64);
        let own = (self.lane..plan.watchers.len()).step_by(plan.threads);
        let mut waiting = own.map(|number| (number, random.next())).collect::<Vec<_>>().into_iter().enumerate();
        let mut under_way = FuturesUnordered::new();
        let mut watchers: Vec<Option<Watcher>> = Vec::new();
        loop {
            while under_way.len() < LOGINS_AT_ONCE
                && let Some((index, (number, phase_ns))) = waiting.next()
            {
                watchers.push(None);
                let account = plan.watchers[number];
                let addresses = plan.addresses[number % plan.addresses.len()];
                under_way.push(async move {
                    let number = u32::try_from(number).expect("watchers are counted in u32");
                    let lobby = &plan.origin.lobby;
                    let dialled =
                        log_in(addresses, plan.transport, number, &plan.accounts[account as usize], lobby).await?;
                    let sender = (number < plan.senders).then(|| {
                        Box::new(Sender {
                            member: number,
                            template: SendTemplate::new(lobby, &plan.origin.filler),
                            places: Places::new(dialled.reply.max_in_flight),
                            held_back: std::collections::VecDeque::new(),
                        })
                    });
                    let new = NewWatcher {
                        stream: dialled.stream,
                        transport: plan.transport,
                        reply: &dialled.reply,
                        received: &dialled.received,
                        account,
                        base_seq: plan.origin.base_seq,
                        phase_ns,
                    };
                    anyhow::Ok((index, Watcher::new(new, sender, self.clock.now_ns())))
                });
            }
            let Some(connected) = under_way.next().await else { break };
            let (index, watcher) = connected?;
            watchers[index] = Some(watcher);
            self.live.connected.fetch_add(1, Ordering::Relaxed);
            if self.control.stop.load(Ordering::Relaxed) {
                return Err(anyhow!("interrupted"));
            }
        }
        Ok(watchers.into_iter().flatten().collect())
    }

    fn lane_of(&self, watchers: Vec<Watcher>) -> Lane {
        let plan = &self.plan;
        let senders = (0..).zip(&watchers).filter(|(_, watcher)| watcher.sender.is_some()).map(|(index, _)| index);
        let rotation = Rotation::new(senders, &mut Random::new(plan.seed.wrapping_add(self.lane as u64)));
        let http = (plan.pull == PullOver::Http).then(|| HttpPool::new(plan.addresses[0].http, plan.http_connections));
        let new = NewLane {
            watchers,
            origin: plan.origin.clone(),
            share: Share { ramp: plan.ramp.clone(), first: self.lane as u64, step: plan.threads as u64 },
            rotation,
            accepted_at: self.accepted_at.clone(),
            http,
            tokens: plan.accounts.iter().map(|account| account.token.clone()).collect(),
        };
        Lane::new(new, self.clock)
    }

    /// Serves sockets and takes turns until everything is filled (true), or patience ends (false).
    fn drive(&self, lane: &mut Lane, epoll: &Epoll) -> anyhow::Result<bool> {
        let mut pulse = Pulse::new(epoll, Duration::from_millis(10))?;
        let mut events = vec![EpollEvent::empty(); EVENTS_AT_ONCE];
        let mut stage = Stage::Waiting;
        let (mut progress, mut progress_ns, mut next_turn_ns, mut next_figures_ns) = (0, 0, 0, 0);
        let mut is_unsettled = false;
        loop {
            let ready = match epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(ready) => ready,
                // A Ctrl-C is handled by another thread.
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            for event in &events[..ready] {
                match event.data() {
                    PULSE_TOKEN => pulse.take(),
                    token if token >= HTTP_TOKEN => lane.read_http((token - HTTP_TOKEN) as usize),
                    token => serve(lane, epoll, token as usize),
                }
            }
            let now_ns = self.clock.now_ns();
            if now_ns < next_turn_ns {
                continue;
            }
            next_turn_ns = now_ns - now_ns % TURN_NS + TURN_NS;
            lane.take_turn(now_ns, |stream, place| watch_http(epoll, stream, place)).context("a pull over HTTP")?;
            if now_ns >= next_figures_ns {
                next_figures_ns = now_ns + 200_000_000;
                self.publish(lane, now_ns);
            }
            if self.control.stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            if progress != lane.progress {
                (progress, progress_ns) = (lane.progress, now_ns);
            }
            let silent_ns = now_ns.saturating_sub(progress_ns);
            match stage {
                Stage::Waiting => {
                    if let Some(start_ns) = self.control.start_ns.get() {
                        lane.start(*start_ns);
                        pulse = Pulse::new(epoll, Duration::from_nanos(TURN_NS))?;
                        stage = Stage::Ramp;
                        progress_ns = now_ns;
                    }
                }
                Stage::Ramp if lane.is_all_offered() && now_ns >= self.ramp_end_ns() => {
                    stage = Stage::Settling;
                    progress_ns = now_ns;
                }
                Stage::Ramp => {}
                Stage::Settling => {
                    let is_quiet = lane.is_settled() && silent_ns >= LINGER_NS;
                    if is_quiet || silent_ns > self.plan.patience_ns {
                        is_unsettled |= !is_quiet;
                        self.control.settled.fetch_add(1, Ordering::Release);
                        stage = Stage::Settled;
                    }
                }
                Stage::Settled => {
                    if let Some(filling) = self.control.filling.get() {
                        lane.begin_filling(filling.last_seq, self.own_below(filling.watchers), filling.at_once);
                        stage = Stage::Filling;
                        progress_ns = now_ns;
                    }
                }
                Stage::Filling => {
                    lane.fill_more(now_ns);
                    if lane.is_filled() {
                        return Ok(!is_unsettled);
                    }
                    if silent_ns > self.plan.patience_ns {
                        return Ok(false);
                    }
                }
            }
        }
    }

    fn ramp_end_ns(&self) -> u64 {
        let start_ns = self.control.start_ns.get().copied().unwrap_or(0);
        start_ns + (self.plan.ramp.length_s() * 1e9) as u64
    }

    /// How many of this lane's watchers have a number below `watchers`.
    fn own_below(&self, watchers: u32) -> u32 {
        let own = (self.lane..watchers as usize).step_by(self.plan.threads).count();
        u32::try_from(own).expect("watchers are counted in u32")
    }

    fn publish(&self, lane: &mut Lane, now_ns: u64) {
        let live = &self.live;
        live.offered.store(lane.whole.offered, Ordering::Relaxed);
        live.accepted.store(lane.accepted_total, Ordering::Relaxed);
        live.shown.store(lane.shown_total, Ordering::Relaxed);
        live.filled.store(lane.filled_total, Ordering::Relaxed);
        live.filled_watchers.store(u64::from(lane.filled_watchers), Ordering::Relaxed);
        live.open.store(lane.open_watchers(), Ordering::Relaxed);
        live.gear.store(lane.watchers.first().map_or(0, |watcher| watcher.gear as u64), Ordering::Relaxed);
        if let Some(second) = lane.last_whole_second(now_ns) {
            let shown = second.accepted_to_shown_all();
            let us = |quantile| shown.quantile_ms(quantile).map_or(0, |ms| (ms * 1_000.0) as u64);
            live.p50_us.store(us(0.5), Ordering::Relaxed);
            live.p99_us.store(us(0.99), Ordering::Relaxed);
        }
    }

    fn outcome(&self, mut lane: Lane, is_unsettled: bool) -> Outcome {
        if is_unsettled {
            lane.note_unanswered();
        }
        let fill_below = self.control.filling.get().map_or(0, |filling| filling.watchers as usize);
        let watchers = lane.watchers.iter().enumerate().map(|(index, watcher)| (self.watcher_number(index), watcher));
        let ends = watchers.clone().map(|(number, watcher)| End {
            watcher: u32::try_from(number).expect("watchers are counted in u32"),
            seen: watcher.seen.clone(),
            is_filled: number < fill_below && watcher.is_open,
        });
        let in_signal = watchers.filter(|(_, watcher)| watcher.signal_seconds > 0);
        let (first, step) = (self.lane as u64, self.plan.threads as u64);
        Outcome {
            ends: ends.collect(),
            signal_bytes_per_s: in_signal
                .map(|(_, watcher)| watcher.signal_bytes as f64 / watcher.signal_seconds as f64)
                .collect(),
            fates: (first..).step_by(step as usize).zip(lane.fates).collect(),
            shifts: if self.lane == 0 { lane.shifts } else { Vec::new() },
            shown: lane.shown_total,
            filled: lane.filled_total,
            bytes: lane.bytes_total,
            gaps: lane.gaps,
            repeated_pushes: lane.repeated_pushes,
            bodies: (lane.bodies.distinct, lane.bodies.repeated),
            http_opened: lane.http.as_ref().map_or(0, |pool| pool.opened),
            series: lane.series,
            ledgers: vec![lane.ledger],
            findings: lane.findings,
            whole: lane.whole,
            is_unsettled,
        }
    }
}

/// Where a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Ramp,
    Settling,
    Settled,
    Filling,
}

fn serve(lane: &mut Lane, epoll: &Epoll, index: usize) {
    if lane.watchers[index].is_open {
        lane.read_watcher(index);
    }
    if !lane.watchers[index].is_open {
        // It would be reported again and again. It may be gone from there already.
        let _ = epoll.delete(&lane.watchers[index].line.stream);
    }
}

fn watch_http(epoll: &Epoll, stream: &TcpStream, place: usize) -> std::io::Result<()> {
    epoll.add(stream, EpollEvent::new(EpollFlags::EPOLLIN, HTTP_TOKEN + place as u64)).map_err(std::io::Error::from)
}

/// Wakes the loop once a turn: epoll's own timeouts are whole milliseconds from now, not on a grid.
struct Pulse(TimerFd);

impl Pulse {
    fn new(epoll: &Epoll, period: Duration) -> anyhow::Result<Self> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        timer.set(Expiration::Interval(TimeSpec::from_duration(period)), TimerSetTimeFlags::empty())?;
        epoll.add(timer.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, PULSE_TOKEN))?;
        Ok(Self(timer))
    }

    /// Missed pulses are one. The timer never blocks, and what it says is of no interest.
    fn take(&self) {
        let _ = self.0.wait();
    }
}
