//! A gateway started for the occasion: on free ports, with a data directory of its own, ended by its pid.
//!
//! In: options and this process's environment, which is passed on (so `TIDEGATE_BACKEND=services` works); out: a
//! [`Gateway`] that is ready. However this process leaves its scope, the gateway does not outlive it.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::options::CommonOptions;
use crate::setup::Http;

/// From the start of the process to a good `/readyz`.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// From SIGTERM to SIGKILL.
const END_DEADLINE: Duration = Duration::from_secs(20);

/// What the started gateway is told, unless the environment says otherwise: hashing the passwords of thousands of test
/// users must not be the longest part of a run.
const TEST_DEFAULTS: [(&str, &str); 2] =
    [("TIDEGATE_AUTH_ARGON2_MEMORY_KIB", "8"), ("TIDEGATE_AUTH_ARGON2_ITERATIONS", "1")];

/// A running gateway.
pub struct Gateway {
    /// Where it listens for connections.
    pub tcp: SocketAddr,
    /// Where its HTTP API is.
    pub http: String,
    child: Child,
    data_dir: PathBuf,
    keeps_data: bool,
    log: PathBuf,
}

impl Gateway {
    /// Starts one and waits until it is ready.
    ///
    /// # Errors
    /// If the program is not there, ends early or does not become ready in time; with the end of its log.
    pub fn start(options: &CommonOptions, stop: &AtomicBool) -> anyhow::Result<Self> {
        let program = match &options.gateway_bin {
            Some(path) => path.clone(),
            None => std::env::current_exe()?.with_file_name("tidegate"),
        };
        let program = program.canonicalize().with_context(|| {
            format!(
                "{} is not there: build it (cargo build --release) or name it with --gateway-bin",
                program.display()
            )
        })?;
        let data_dir = options.data_dir.clone().map_or_else(new_data_dir, Ok)?;
        fs::create_dir_all(&data_dir).with_context(|| format!("cannot create {}", data_dir.display()))?;
        let data_dir = data_dir.canonicalize()?;
        let log = data_dir.join("gateway.log");
        let log_file = File::create(&log)?;
        let [tcp, http] = free_ports()?;
        let mut command = Command::new(&program);
        for (name, value) in TEST_DEFAULTS {
            if std::env::var_os(name).is_none() {
                command.env(name, value);
            }
        }
        command
            .env("TIDEGATE_LISTEN_TCP", tcp.to_string())
            .env("TIDEGATE_LISTEN_HTTP", http.to_string())
            .env("TIDEGATE_DATA_DIR", &data_dir)
            // A tidegate.toml that happens to lie here must not change what is measured.
            .current_dir(&data_dir)
            .stdin(std::process::Stdio::null())
            .stdout(log_file.try_clone()?)
            .stderr(log_file)
            // A Ctrl-C at the terminal is ours to handle.
            .process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let mut gateway =
            Self { tcp, http: format!("http://{http}"), child, keeps_data: options.data_dir.is_some(), data_dir, log };
        gateway.wait_until_ready(stop)?;
        Ok(gateway)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Keeps the data directory for whoever looks into a failure.
    pub fn keep_data(&mut self) {
        if !std::mem::replace(&mut self.keeps_data, true) {
            let _ = writeln!(std::io::stderr(), "the gateway's data and log stay in {}", self.data_dir.display());
        }
    }

    fn wait_until_ready(&mut self, stop: &AtomicBool) -> anyhow::Result<()> {
        let http = Http::new(&self.http);
        let started = Instant::now();
        loop {
            if let Some(status) = self.has_ended() {
                bail!("the gateway ended with {status} before it was ready; the end of its log:\n{}", self.log_end());
            }
            if http.is_ready() {
                return Ok(());
            }
            if stop.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            if started.elapsed() > READY_DEADLINE {
                bail!("the gateway is not ready after {READY_DEADLINE:?}; the end of its log:\n{}", self.log_end());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn log_end(&self) -> String {
        let text = fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn end(&mut self) {
        if self.has_ended().is_none() {
            signal(&self.child, Signal::SIGTERM);
            let asked = Instant::now();
            while self.has_ended().is_none() {
                if asked.elapsed() > END_DEADLINE {
                    let _ = writeln!(std::io::stderr(), "the gateway did not end within {END_DEADLINE:?}; killing it");
                    signal(&self.child, Signal::SIGKILL);
                    let _ = self.child.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

fn signal(child: &Child, signal: Signal) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // It may have ended meanwhile; it is not reaped yet, so the pid is still its own.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.end();
        if !self.keeps_data {
            let _ = fs::remove_dir_all(&self.data_dir);
        }
    }
}

/// A directory below the `target` this program was built into, else below the system's place for temporary files.
fn new_data_dir() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().find(|path| path.file_name().is_some_and(|name| name == "target"));
    let parent = target.map_or_else(std::env::temp_dir, Path::to_path_buf);
    Ok(parent.join("loadtest").join(std::process::id().to_string()))
}

/// Two ports nobody listens on now. Both are held until both are known, so that they differ.
fn free_ports() -> anyhow::Result<[SocketAddr; 2]> {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port");
    let listeners = [bind()?, bind()?];
    Ok([listeners[0].local_addr()?, listeners[1].local_addr()?])
}
