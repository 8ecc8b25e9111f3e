//! Breaks and mends by the plan, one thread per hand, and keeps the record of it.
//!
//! In: a sequence of [`Planned`] faults; out: what was done when. A part is in one hand at a time. Whatever happens, a fault
//! that was begun is undone.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::Serialize;

use super::cluster::Cluster;
use super::schedule::{Action, FaultKind, Part, Planned};
use super::services::Services;
use super::stage::Stage;

/// Time to recover between two faults of one hand, at least.
const PAUSE_MS: u64 = 1_500;

/// A slow part runs for this long and then stands for three times as long.
const SLOW_TURN: Duration = Duration::from_millis(20);

/// Three services and up to three gateways.
const PARTS: usize = 6;

/// Memory at which RabbitMQ blocks publishers: less than an idle node has.
const MEMORY_ALARM: &str = "1MB";

/// What the script configures.
const MEMORY_NORMAL: &str = "1GB";

/// A fault that was.
#[derive(Clone, Debug, Serialize)]
pub struct Injected {
    /// What.
    pub kind: FaultKind,
    /// Which gateway, if it was one: 1, 2, 3.
    pub gateway: Option<usize>,
    /// When it began, in milliseconds on the run's clock.
    pub began_ms: u64,
    /// When undoing it began.
    pub undone_ms: u64,
    /// When the part was ready again, as far as the part itself tells.
    pub ready_ms: u64,
}

/// See the module.
pub struct Injector<'a> {
    /// What is broken.
    pub cluster: &'a Cluster,
    /// The run.
    pub stage: &'a Stage,
    /// Ends the sequence.
    pub stop: &'a AtomicBool,
    /// No fault begins after this, however late the plan is.
    pub until_ms: u64,
    /// Parts in hand: the services, then the gateways.
    parts: [Mutex<()>; PARTS],
    /// What is under way, for the progress line.
    pub now: Mutex<Vec<String>>,
    /// Set once a part did not come back: breaking more would tell nothing.
    pub has_failed: AtomicBool,
}

impl<'a> Injector<'a> {
    /// An injector that has done nothing yet.
    pub fn new(cluster: &'a Cluster, stage: &'a Stage, stop: &'a AtomicBool, until_ms: u64) -> Self {
        Self {
            cluster,
            stage,
            stop,
            until_ms,
            parts: Default::default(),
            now: Mutex::new(Vec::new()),
            has_failed: AtomicBool::new(false),
        }
    }

    /// Plays one hand's sequence; with it, what was wrong: a part does not come back, or a tool fails.
    pub fn play(&self, sequence: &[Planned]) -> (Vec<Injected>, Option<anyhow::Error>) {
        let mut done = Vec::new();
        let mut free_ms = 0;
        for planned in sequence {
            self.wait_until(planned.at_ms.max(free_ms));
            if self.stage.now_ms() >= self.until_ms || self.is_over() {
                break;
            }
            let (injected, outcome) = self.inject(planned);
            free_ms = injected.ready_ms + PAUSE_MS;
            done.push(injected);
            if let Err(error) = outcome {
                self.has_failed.store(true, Ordering::Relaxed);
                return (done, Some(error.context(format!("after {}", planned.kind))));
            }
        }
        (done, None)
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.has_failed.load(Ordering::Relaxed)
    }

    fn inject(&self, planned: &Planned) -> (Injected, anyhow::Result<()>) {
        let kind = planned.kind;
        let is_gateway = kind.part() == Part::Gateway;
        let name = if is_gateway { format!("{kind} {}", planned.gateway + 1) } else { kind.to_string() };
        let part = match kind.part() {
            Part::RabbitMq => 0,
            Part::Redis => 1,
            Part::MariaDb => 2,
            Part::Gateway => 3 + planned.gateway,
        };
        let _in_hand = self.parts[part].lock().expect("no thread panics with a part in hand");
        self.now.lock().expect("held for a push").push(name.clone());
        let mut injected = Injected {
            kind,
            gateway: is_gateway.then_some(planned.gateway + 1),
            began_ms: self.stage.now_ms(),
            undone_ms: 0,
            ready_ms: 0,
        };
        let outcome = match &self.cluster.services {
            _ if is_gateway => self.fault_gateway(planned, &mut injected),
            Some(services) => self.fault_service(services, planned, &mut injected),
            None => unreachable!("the options refuse faults of services that are not there"),
        };
        injected.ready_ms = self.stage.now_ms();
        if injected.undone_ms == 0 {
            injected.undone_ms = injected.ready_ms;
        }
        self.now.lock().expect("held for a removal").retain(|under_way| *under_way != name);
        (injected, outcome)
    }

    fn fault_gateway(&self, planned: &Planned, injected: &mut Injected) -> anyhow::Result<()> {
        let mut member = self.cluster.member(planned.gateway);
        if self.cluster.services.is_none() {
            // Embedded, logins are in the process's memory.
            self.stage.logins_may_be_lost.store(true, Ordering::Relaxed);
        }
        match planned.kind.action() {
            Action::Kill => member.kill(),
            Action::Stop => member.stop(),
            _ => member.signal(Signal::SIGSTOP),
        }
        self.hold(planned);
        injected.undone_ms = self.stage.now_ms();
        member.signal(Signal::SIGCONT);
        member.start(self.stop)
    }

    fn fault_service(&self, services: &Services, planned: &Planned, injected: &mut Injected) -> anyhow::Result<()> {
        let server = planned.kind.part().server().expect("a gateway was told apart before");
        match planned.kind.action() {
            Action::Kill => {
                services.kill(&[server])?;
                self.hold(planned);
                injected.undone_ms = self.stage.now_ms();
                services.start(&[server])
            }
            Action::Stop => {
                services.stop(&[server])?;
                self.hold(planned);
                injected.undone_ms = self.stage.now_ms();
                services.start(&[server])
            }
            Action::Hang => {
                services.signal(server, Signal::SIGSTOP);
                self.hold(planned);
                injected.undone_ms = self.stage.now_ms();
                services.signal(server, Signal::SIGCONT);
                Ok(())
            }
            Action::Slow => {
                let end_ms = self.stage.now_ms() + planned.hold_ms;
                while self.stage.now_ms() < end_ms && !self.is_over() {
                    services.signal(server, Signal::SIGSTOP);
                    std::thread::sleep(3 * SLOW_TURN);
                    services.signal(server, Signal::SIGCONT);
                    std::thread::sleep(SLOW_TURN);
                }
                injected.undone_ms = self.stage.now_ms();
                Ok(())
            }
            Action::Flush => {
                self.stage.logins_may_be_lost.store(true, Ordering::Relaxed);
                services.cli(&[server, "FLUSHALL"])?;
                injected.undone_ms = self.stage.now_ms();
                Ok(())
            }
            Action::Alarm => {
                services.cli(&[server, "set_vm_memory_high_watermark", "absolute", MEMORY_ALARM])?;
                self.hold(planned);
                injected.undone_ms = self.stage.now_ms();
                services.cli(&[server, "set_vm_memory_high_watermark", "absolute", MEMORY_NORMAL]).map(drop)
            }
        }
    }

    fn hold(&self, planned: &Planned) {
        self.wait_until(self.stage.now_ms() + planned.hold_ms);
    }

    fn wait_until(&self, at_ms: u64) {
        while self.stage.now_ms() < at_ms && !self.is_over() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
