//! What the threads of a chaos run share: the phase it is in, where the gateways are, and a few gauges.
//!
//! The director moves the phase; players look at it every few milliseconds and report here how far they are.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;

/// Parts of a run, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Messages are offered at the rate; faults come and go.
    Offering,
    /// No new messages; what was offered is repeated until it is accepted and seen.
    Settling,
    /// One more message in each conversation, which must come by push.
    Probing,
    /// Everybody connects anew and closes gaps.
    Reconnecting,
    /// Players leave.
    Over,
}

const PHASES: [Phase; 5] = [Phase::Offering, Phase::Settling, Phase::Probing, Phase::Reconnecting, Phase::Over];

/// Where a gateway is.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// For connections.
    pub tcp: SocketAddr,
    /// For HTTP.
    pub http: String,
}

/// What one device tells of itself.
#[derive(Debug, Default)]
pub struct Gauge {
    /// The phase it acts in.
    pub phase: AtomicU8,
    /// Its messages without a final answer.
    pub unsettled: AtomicU64,
    /// True while it has seen all that is accepted in its conversations, on a live connection.
    pub is_caught_up: AtomicBool,
    /// If not, what it waits for: for people, while a phase settles.
    pub waits_for: Mutex<String>,
}

/// See the module.
#[derive(Debug)]
pub struct Stage {
    /// The run's clock.
    pub clock: Clock,
    /// The gateways.
    pub gateways: Vec<Endpoint>,
    /// One per device.
    pub gauges: Vec<Gauge>,
    /// Accepted messages per conversation.
    pub accepted_in: Vec<AtomicU64>,
    /// Messages offered.
    pub offered: AtomicU64,
    /// Messages accepted.
    pub accepted: AtomicU64,
    /// Messages shown, over all devices.
    pub shown: AtomicU64,
    /// Set once something has happened that may lose logins: tokens may be refused from then on.
    pub logins_may_be_lost: AtomicBool,
    /// No message is accepted after this time: the last acceptance, for the progress line.
    pub last_accepted_ms: AtomicU64,
    phase: AtomicU8,
}

impl Stage {
    /// A stage for so many devices and conversations.
    pub fn new(gateways: Vec<Endpoint>, devices: usize, conversations: usize) -> Self {
        Self {
            clock: Clock::start(),
            gateways,
            gauges: (0..devices).map(|_| Gauge::default()).collect(),
            accepted_in: (0..conversations).map(|_| AtomicU64::new(0)).collect(),
            offered: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            shown: AtomicU64::new(0),
            logins_may_be_lost: AtomicBool::new(false),
            last_accepted_ms: AtomicU64::new(0),
            phase: AtomicU8::new(Phase::Offering as u8),
        }
    }

    /// Milliseconds on the run's clock.
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ns() / 1_000_000
    }

    /// The phase.
    pub fn phase(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Ordering::Relaxed))]
    }

    /// Begins a phase.
    pub fn begin(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Devices that act in the phase, have nothing unsettled and have seen everything.
    pub fn settled(&self) -> usize {
        let phase = self.phase.load(Ordering::Relaxed);
        let is_settled = |gauge: &&Gauge| {
            gauge.phase.load(Ordering::Relaxed) == phase
                && gauge.unsettled.load(Ordering::Relaxed) == 0
                && gauge.is_caught_up.load(Ordering::Relaxed)
        };
        self.gauges.iter().filter(is_settled).count()
    }

    /// What the devices that are not settled wait for.
    pub fn waits(&self) -> String {
        let waits = self.gauges.iter().filter(|gauge| !gauge.is_caught_up.load(Ordering::Relaxed));
        let waits: Vec<String> = waits.map(|gauge| gauge.waits_for.lock().expect("held for a copy").clone()).collect();
        waits.join(", ")
    }

    /// Waits until all devices are settled and stay so for a moment. False if `patience` or `stop` came first.
    pub fn wait_until_settled(&self, patience: Duration, stop: &AtomicBool, mut watch: impl FnMut()) -> bool {
        let deadline_ms = self.now_ms() + u64::try_from(patience.as_millis()).unwrap_or(u64::MAX / 2);
        let mut agreed = 0;
        // A device that has seen everything may not have heard yet of what another had accepted just now.
        while agreed < 3 {
            if self.now_ms() > deadline_ms || stop.load(Ordering::Relaxed) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(100));
            agreed = if self.settled() == self.gauges.len() { agreed + 1 } else { 0 };
            watch();
        }
        true
    }
}
