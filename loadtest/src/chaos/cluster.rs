//! The whole that is broken and mended: gateways and their services, started for the run and ended with it.
//!
//! In: options; out: a [`Cluster`] whose parts can be faulted from several threads. However this process leaves its scope,
//! nothing that it started outlives it; a kill -9 of this process is the one exception.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use super::options::{BackendChoice, ChaosOptions};
use super::services::{SERVERS, Services, find_script};
use super::stage::Endpoint;
use crate::gateway::{Gateway, Launch, find_program, new_data_dir};
use crate::pacer::Random;

/// From a gateway's start to a good `/readyz`, all attempts together.
const START_DEADLINE: Duration = Duration::from_secs(90);

/// Between two attempts to start a gateway that ended early because its services are away.
const START_PAUSE: Duration = Duration::from_millis(500);

/// One gateway, running or not.
pub struct Member {
    launch: Launch,
    /// `None` while it is down on purpose.
    gateway: Option<Gateway>,
    failed_starts: u32,
}

/// See the module.
pub struct Cluster {
    /// Servers, if the gateways use any.
    pub services: Option<Services>,
    members: Vec<Mutex<Member>>,
    dir: PathBuf,
    keeps_data: AtomicBool,
}

impl Cluster {
    /// Starts everything and waits until it is ready.
    ///
    /// # Errors
    /// If a part cannot be started, with what it said; nothing is left running then.
    pub fn start(options: &ChaosOptions, stop: &AtomicBool) -> anyhow::Result<Self> {
        let program = find_program(options.gateway_bin.as_deref())?;
        let dir = options.data_dir.clone().map_or_else(new_data_dir, Ok)?;
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let services = match options.backend {
            BackendChoice::Embedded => None,
            BackendChoice::Services => {
                let script = find_script(options.services.as_deref())?;
                Some(Services::new(script, dir.join("services")))
            }
        };
        let keeps_data = AtomicBool::new(options.keep);
        let mut cluster = Self { services, members: Vec::new(), dir, keeps_data };
        let mut settings = vec![
            ("TIDEGATE_BACKEND".to_owned(), options.backend.name().to_owned()),
            // A hung gateway is to be noticed in seconds.
            ("TIDEGATE_HEARTBEAT_MIN_INTERVAL_S".to_owned(), "1".to_owned()),
            ("TIDEGATE_HEARTBEAT_MAX_INTERVAL_S".to_owned(), "30".to_owned()),
            ("TIDEGATE_LIMITS_DRAIN_TIMEOUT_S".to_owned(), "5".to_owned()),
        ];
        if let Some(services) = &cluster.services {
            services.start(&SERVERS)?;
            settings.extend(services.settings()?);
        }
        let mut random = Random::new(u64::from(std::process::id()));
        for index in 1..=options.gateways {
            if stop.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            let data_dir = cluster.dir.join(format!("gateway-{index}"));
            std::fs::create_dir_all(&data_dir)?;
            let mut settings = settings.clone();
            settings.push(("TIDEGATE_GATEWAY_ID".to_owned(), format!("chaos-{index}")));
            let (tcp, http) = (lasting_port(&mut random)?, lasting_port(&mut random)?);
            let launch = Launch { program: program.clone(), data_dir, tcp, http, settings };
            let member = Member { launch, gateway: None, failed_starts: 0 };
            cluster.members.push(Mutex::new(member));
        }
        for index in 0..cluster.members.len() {
            cluster.member(index).start(stop)?;
        }
        Ok(cluster)
    }

    /// Where the gateways are.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let endpoint = |launch: &Launch| Endpoint { tcp: launch.tcp, http: format!("http://{}", launch.http) };
        (0..self.members.len()).map(|index| endpoint(&self.member(index).launch)).collect()
    }

    /// One gateway, for the holder alone.
    pub fn member(&self, index: usize) -> MutexGuard<'_, Member> {
        self.members[index].lock().expect("no thread panics with a gateway in hand")
    }

    /// Gateways that ended though nobody had ended them, each with how.
    pub fn crashed(&self) -> Vec<(usize, String)> {
        let mut crashed = Vec::new();
        for (index, member) in self.members.iter().enumerate() {
            // Whoever holds it is about to end it or to start it.
            let Ok(mut member) = member.try_lock() else { continue };
            if let Some(status) = member.gateway.as_mut().and_then(Gateway::has_ended) {
                member.gateway = None;
                crashed.push((index, status.to_string()));
            }
        }
        crashed
    }

    /// Attempts to start a gateway that ended early.
    pub fn failed_starts(&self) -> u64 {
        (0..self.members.len()).map(|index| u64::from(self.member(index).failed_starts)).sum()
    }

    /// Mends everything: what was stopped runs again and is ready.
    ///
    /// # Errors
    /// If a part does not come back.
    pub fn restore(&self, stop: &AtomicBool) -> anyhow::Result<()> {
        if let Some(services) = &self.services {
            for server in SERVERS {
                services.signal(server, Signal::SIGCONT);
            }
            services.start(&SERVERS)?;
        }
        for index in 0..self.members.len() {
            let mut member = self.member(index);
            member.signal(Signal::SIGCONT);
            member.start(stop)?;
        }
        Ok(())
    }

    /// Keeps data and logs for whoever looks into a failure.
    pub fn keep_data(&self) {
        if !self.keeps_data.swap(true, Ordering::Relaxed) {
            eprintln!("the data and logs of all parts stay in {}", self.dir.display());
        }
    }

    fn end(&self) {
        for index in 0..self.members.len() {
            let mut member = self.member(index);
            member.signal(Signal::SIGCONT);
            member.stop();
        }
        let keeps_data = self.keeps_data.load(Ordering::Relaxed);
        if let Some(services) = self.services.as_ref().filter(|services| services.dir().exists()) {
            for server in SERVERS {
                services.signal(server, Signal::SIGCONT);
            }
            let ended = if keeps_data { services.stop(&SERVERS) } else { services.clean() };
            if let Err(error) = ended {
                eprintln!("the services may still run: {error:#}");
            }
        }
        if !keeps_data {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.end();
    }
}

impl Member {
    /// Starts it, if it does not run, and waits until it is ready. A gateway that ends because its services are away is
    /// started again, as a supervisor would.
    ///
    /// # Errors
    /// If it is not ready in time.
    pub fn start(&mut self, stop: &AtomicBool) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let gateway = match &mut self.gateway {
                Some(gateway) => gateway,
                none => none.insert(Gateway::launch(&self.launch)?),
            };
            let Err(error) = gateway.wait_until_ready(stop) else { return Ok(()) };
            let has_ended = gateway.has_ended().is_some();
            if has_ended {
                self.failed_starts += 1;
                self.gateway = None;
            }
            if !has_ended || began.elapsed() > START_DEADLINE || stop.load(Ordering::Relaxed) {
                return Err(error);
            }
            std::thread::sleep(START_PAUSE);
        }
    }

    /// Ends it in good order: it drains.
    pub fn stop(&mut self) {
        if let Some(mut gateway) = self.gateway.take() {
            gateway.end();
        }
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut gateway) = self.gateway.take() {
            gateway.kill();
        }
    }

    /// Sends it a signal, if it runs.
    pub fn signal(&self, signal: Signal) {
        if let Some(gateway) = &self.gateway {
            gateway.signal(signal);
        }
    }
}

/// A port nobody listens on, below the range from which the kernel takes the ports of outgoing connections: it must still be
/// free when the gateway is started again.
fn lasting_port(random: &mut Random) -> anyhow::Result<SocketAddr> {
    for _ in 0..100 {
        let port = 20_000 + u16::try_from(random.below(12_000)).expect("below 12,000");
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return Ok(listener.local_addr()?);
        }
    }
    bail!("no free port between 20000 and 32000")
}
