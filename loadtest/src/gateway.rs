//! A gateway started for the occasion: on free ports, with a data directory of its own, ended by its pid.
//!
//! In: options and this process's environment, which is passed on (so `TIDEGATE_BACKEND=services` works); out: a
//! [`Gateway`] that is ready. However this process leaves its scope, the gateway does not outlive it.

use std::fs::{self, OpenOptions};
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

/// For one question to `/readyz`.
const PROBE_DEADLINE: Duration = Duration::from_secs(3);

/// From SIGTERM to SIGKILL.
const END_DEADLINE: Duration = Duration::from_secs(20);

/// What the started gateway is told, unless the environment says otherwise: hashing the passwords of thousands of test
/// users must not be the longest part of a run, and each of them may write as much as many people.
const TEST_DEFAULTS: [(&str, &str); 4] = [
    ("TIDEGATE_AUTH_ARGON2_MEMORY_KIB", "8"),
    ("TIDEGATE_AUTH_ARGON2_ITERATIONS", "1"),
    ("TIDEGATE_FAIRNESS_USER_PER_S", "0"),
    ("TIDEGATE_FAIRNESS_CONVERSATION_PER_S", "100000"),
];

/// How a gateway is started; the same again after it has ended.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The program, by its absolute path.
    pub program: PathBuf,
    /// Its data and its log are here.
    pub data_dir: PathBuf,
    /// Where it listens for connections.
    pub tcp: SocketAddr,
    /// Where it listens for HTTP.
    pub http: SocketAddr,
    /// More of its environment.
    pub settings: Vec<(String, String)>,
}

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
    /// Starts one on free ports, with more settings if the environment does not name them, and waits until it is ready.
    ///
    /// # Errors
    /// If the program is not there, ends early or does not become ready in time; with the end of its log.
    pub fn start(options: &CommonOptions, settings: &[(&str, &str)], stop: &AtomicBool) -> anyhow::Result<Self> {
        let program = find_program(options.gateway_bin.as_deref())?;
        let data_dir = options.data_dir.clone().map_or_else(new_data_dir, Ok)?;
        fs::create_dir_all(&data_dir).with_context(|| format!("cannot create {}", data_dir.display()))?;
        let data_dir = data_dir.canonicalize()?;
        let [tcp, http] = free_ports()?;
        let is_open = |(name, _): &&(&str, &str)| std::env::var_os(name).is_none();
        let settings = settings.iter().filter(is_open).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let mut gateway = Self::launch(&Launch { program, data_dir, tcp, http, settings: settings.collect() })?;
        gateway.keeps_data = options.data_dir.is_some();
        gateway.wait_until_ready(stop)?;
        Ok(gateway)
    }

    /// Starts one and does not wait. What it says is appended to its log; the data directory is the caller's to remove.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn launch(launch: &Launch) -> anyhow::Result<Self> {
        let Launch { program, data_dir, tcp, http, settings } = launch;
        let log = data_dir.join("gateway.log");
        let log_file = OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = Command::new(program);
        for (name, value) in TEST_DEFAULTS {
            if std::env::var_os(name).is_none() {
                command.env(name, value);
            }
        }
        command
            .envs(settings.iter().map(|(name, value)| (name, value)))
            .env("TIDEGATE_LISTEN_TCP", tcp.to_string())
            .env("TIDEGATE_LISTEN_HTTP", http.to_string())
            .env("TIDEGATE_DATA_DIR", data_dir)
            // A tidegate.toml that happens to lie here must not change what is measured.
            .current_dir(data_dir)
            .stdin(std::process::Stdio::null())
            .stdout(log_file.try_clone()?)
            .stderr(log_file)
            // A Ctrl-C at the terminal is ours to handle.
            .process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let (tcp, http) = (*tcp, format!("http://{http}"));
        Ok(Self { tcp, http, child, keeps_data: true, data_dir: data_dir.clone(), log })
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

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// If it ends or does not become ready in time, with the end of its log; or if `stop` is set.
    pub fn wait_until_ready(&mut self, stop: &AtomicBool) -> anyhow::Result<()> {
        let http = Http::with_deadline(&self.http, PROBE_DEADLINE);
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

    /// Sends a signal to its process, if that has not ended.
    pub fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // It may have ended meanwhile; it is not reaped yet, so the pid is still its own.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends it in good order, within a bound.
    pub fn end(&mut self) {
        if self.has_ended().is_none() {
            self.signal(Signal::SIGTERM);
            let asked = Instant::now();
            while self.has_ended().is_none() {
                if asked.elapsed() > END_DEADLINE {
                    let _ = writeln!(std::io::stderr(), "the gateway did not end within {END_DEADLINE:?}; killing it");
                    self.kill();
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
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

/// The gateway's program: the one named, else `tidegate` beside this program.
///
/// # Errors
/// If it is not there.
pub fn find_program(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let program = match named {
        Some(path) => path.to_path_buf(),
        None => std::env::current_exe()?.with_file_name("tidegate"),
    };
    program.canonicalize().with_context(|| {
        format!("{} is not there: build it (cargo build --release) or name it with --gateway-bin", program.display())
    })
}

/// A directory below the `target` this program was built into, else below the system's place for temporary files.
pub fn new_data_dir() -> anyhow::Result<PathBuf> {
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
