//! The threads of a storm: each owns a lane and drives it with an epoll loop of its own.
//!
//! In: a plan; out: connected lanes ([`Crowd::connect`]), a ramp ([`Crowd::start`]), gaps that are filled
//! ([`Crowd::fill`]), and what was measured ([`Crowd::finish`]).
//!
//! Threads share what they are told ([`Control`]) and the times of acks, and nothing else.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::anyhow;

use super::dial::Addresses;
use super::judge::{End, Fate};
use super::lane::{AcceptedAt, Shift};
use super::ledger::{Ledger, Origin};
use super::options::{PullOver, Transport};
use super::ramp::Ramp;
use super::series::Series;
use super::thread::Thread;
use crate::clock::Clock;
use crate::connection::Account;
use crate::finding::Findings;
use crate::tally::Whole;

/// Everything the threads need.
pub struct Plan {
    /// Where the gateway is; connections take the first.
    pub addresses: Vec<Addresses>,
    /// How frames travel.
    pub transport: Transport,
    /// How watchers pull.
    pub pull: PullOver,
    /// Connections for HTTP per thread.
    pub http_connections: usize,
    /// What all messages have in common.
    pub origin: Arc<Origin>,
    /// When which message is due.
    pub ramp: Arc<Ramp>,
    /// Everybody's account.
    pub accounts: Vec<Account>,
    /// The account of each watcher; the first of them send.
    pub watchers: Vec<u32>,
    /// How many send.
    pub senders: u32,
    /// Threads.
    pub threads: usize,
    /// Of the order of senders and of the phases.
    pub seed: u64,
    /// Time without progress after which what is missing is lost.
    pub patience_ns: u64,
}

/// What there is to fill.
#[derive(Clone, Copy, Debug)]
pub struct Filling {
    /// The history's last sequence.
    pub last_seq: u64,
    /// Watchers below this index fill.
    pub watchers: u32,
    /// How many at once per thread.
    pub at_once: u32,
}

/// Figures of one lane that others read while it runs.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Live {
    pub connected: AtomicU64,
    pub open: AtomicU64,
    pub offered: AtomicU64,
    pub accepted: AtomicU64,
    pub shown: AtomicU64,
    pub filled: AtomicU64,
    pub filled_watchers: AtomicU64,
    pub gear: AtomicU64,
    pub p50_us: AtomicU64,
    pub p99_us: AtomicU64,
}

/// What came of a lane, or of all together.
#[derive(Default)]
pub struct Outcome {
    /// Second by second.
    pub series: Series,
    /// By message number.
    pub fates: Vec<(u64, Fate)>,
    /// What each lane saw.
    pub ledgers: Vec<Ledger>,
    /// All watchers.
    pub ends: Vec<End>,
    /// What was wrong.
    pub findings: Findings,
    /// Counts over the whole run.
    pub whole: Whole,
    /// Gears the first watcher was told.
    pub shifts: Vec<Shift>,
    /// (Watcher, message) pairs shown live.
    pub shown: u64,
    /// (Watcher, message) pairs that came by filling.
    pub filled: u64,
    /// Bytes received by watchers.
    pub bytes: u64,
    /// Pull replies that said that older messages were left out.
    pub gaps: u64,
    /// Pushes of what had been seen already.
    pub repeated_pushes: u64,
    /// Bodies that were taken apart, and those that were recognised.
    pub bodies: (u64, u64),
    /// Bytes per second of each watcher over its whole seconds in signal gear.
    pub signal_bytes_per_s: Vec<f64>,
    /// Connections opened for HTTP.
    pub http_opened: u64,
    /// True if patience ended before everything was settled or filled.
    pub is_unsettled: bool,
}

impl Outcome {
    fn merge(&mut self, other: Self) {
        self.series.merge(&other.series);
        self.fates.extend(other.fates);
        self.ledgers.extend(other.ledgers);
        self.ends.extend(other.ends);
        self.findings.merge(other.findings);
        self.whole.merge(&other.whole);
        self.shifts.extend(other.shifts);
        self.shown += other.shown;
        self.filled += other.filled;
        self.bytes += other.bytes;
        self.gaps += other.gaps;
        self.repeated_pushes += other.repeated_pushes;
        self.bodies = (self.bodies.0 + other.bodies.0, self.bodies.1 + other.bodies.1);
        self.signal_bytes_per_s.extend(other.signal_bytes_per_s);
        self.http_opened += other.http_opened;
        self.is_unsettled |= other.is_unsettled;
    }
}

/// What all lanes are told.
#[derive(Default)]
pub struct Control {
    /// When the ramp begins.
    pub start_ns: OnceLock<u64>,
    /// What is to be filled, once that is known.
    pub filling: OnceLock<Filling>,
    /// Lanes that have settled: this the lanes tell.
    pub settled: AtomicU64,
    /// Everybody is to end at once.
    pub stop: AtomicBool,
}

/// Lanes that are connected and wait for their start, or run.
pub struct Crowd {
    /// The clock all moments are on.
    pub clock: Clock,
    control: Arc<Control>,
    lanes: Vec<(Arc<Live>, JoinHandle<anyhow::Result<Outcome>>)>,
}

impl Crowd {
    /// Starts the threads and connects everybody; `watch` is called now and then with the connections so far and
    /// returns false to give up.
    ///
    /// # Errors
    /// The first connection that could not be made.
    pub fn connect(plan: &Arc<Plan>, mut watch: impl FnMut(u64) -> bool) -> anyhow::Result<Self> {
        let clock = Clock::start();
        let control = Arc::new(Control::default());
        let accepted_at: AcceptedAt = (0..plan.ramp.messages()).map(|_| AtomicU64::new(0)).collect();
        let (ready_tx, ready_rx) = mpsc::sync_channel(plan.threads);
        let mut lanes = Vec::new();
        for lane in 0..plan.threads {
            let live = Arc::new(Live::default());
            let thread = Thread {
                plan: plan.clone(),
                lane,
                clock,
                control: control.clone(),
                live: live.clone(),
                accepted_at: accepted_at.clone(),
            };
            let ready = ready_tx.clone();
            let builder = std::thread::Builder::new().name(format!("storm-{lane}"));
            lanes.push((live, builder.spawn(move || thread.run(&ready))?));
        }
        drop(ready_tx);
        let crowd = Self { clock, control, lanes };
        let mut ready = 0;
        while ready < crowd.lanes.len() {
            match ready_rx.recv_timeout(Duration::from_millis(50)) {
                Ok(()) => ready += 1,
                Err(mpsc::RecvTimeoutError::Timeout) if watch(crowd.sum(|live| &live.connected)) => {}
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    crowd.stop();
                    return Err(anyhow!("interrupted"));
                }
                // A lane ended before it was ready: joining it tells why.
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
            if crowd.is_over() {
                break;
            }
        }
        if ready < crowd.lanes.len() {
            crowd.stop();
            crowd.finish()?;
            return Err(anyhow!("a lane ended before it began"));
        }
        Ok(crowd)
    }

    /// The ramp begins at this moment.
    pub fn start(&self, start_ns: u64) {
        self.control.start_ns.set(start_ns).expect("a crowd is started once");
    }

    /// True when every lane has sent its messages and nothing more comes, or its patience has ended.
    pub fn is_settled(&self) -> bool {
        self.control.settled.load(Ordering::Acquire) >= self.lanes.len() as u64 || self.is_over()
    }

    /// Lets watchers ask for what they have not seen.
    pub fn fill(&self, filling: Filling) {
        self.control.filling.set(filling).expect("gaps are filled once");
    }

    /// Ends it now.
    pub fn stop(&self) {
        self.control.stop.store(true, Ordering::Relaxed);
    }

    /// True when a lane has ended: all of them, or one before its time.
    pub fn is_over(&self) -> bool {
        self.lanes.iter().any(|(_, thread)| thread.is_finished())
    }

    /// True when every lane has ended.
    pub fn is_all_over(&self) -> bool {
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
        outcome.ends.sort_by_key(|end| end.watcher);
        Ok(outcome)
    }
}
