//! RabbitMQ, Redis and MariaDB of the run's own, by `gateway/deploy/services` in a directory of the run.
//!
//! In: the script and a directory; out: servers that can be killed, stopped, hung and started again. Nothing but what was
//! started there is touched: a signal goes only to a process whose pid and start time are those the script recorded.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// For one command of the script, which bounds its own waits: 120 s to start, 30 s to stop.
const COMMAND_DEADLINE: Duration = Duration::from_secs(200);

/// All of them.
pub const SERVERS: [&str; 3] = ["rabbitmq", "redis", "mariadb"];

/// See the module.
#[derive(Clone, Debug)]
pub struct Services {
    script: PathBuf,
    dir: PathBuf,
}

impl Services {
    /// Servers of `script` in `dir`; nothing is started yet.
    pub fn new(script: PathBuf, dir: PathBuf) -> Self {
        Self { script, dir }
    }

    /// Where their data is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts those of `servers` that do not run and waits until they are ready.
    ///
    /// # Errors
    /// What the script said.
    pub fn start(&self, servers: &[&str]) -> anyhow::Result<()> {
        self.run("start", servers).map(drop)
    }

    /// Stops in good order.
    ///
    /// # Errors
    /// What the script said.
    pub fn stop(&self, servers: &[&str]) -> anyhow::Result<()> {
        self.run("stop", servers).map(drop)
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// What the script said.
    pub fn kill(&self, servers: &[&str]) -> anyhow::Result<()> {
        self.run("kill", servers).map(drop)
    }

    /// Ends them and deletes the directory.
    ///
    /// # Errors
    /// What the script said.
    pub fn clean(&self) -> anyhow::Result<()> {
        self.kill(&SERVERS)?;
        self.run("clean", &[]).map(drop)
    }

    /// The server's own command-line tool.
    ///
    /// # Errors
    /// What it said.
    pub fn cli(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.run("cli", arguments)
    }

    /// The settings that lead a gateway to them.
    ///
    /// # Errors
    /// If they were never started.
    pub fn settings(&self) -> anyhow::Result<Vec<(String, String)>> {
        let text = self.run("env", &[])?;
        let setting = |line: &str| {
            let (name, value) = line.strip_prefix("export ")?.split_once('=')?;
            // The script quotes for a shell, which here means backslashes: URLs, numbers and a path.
            Some((name.to_owned(), value.replace('\\', "")))
        };
        Ok(text.lines().filter_map(setting).collect())
    }

    /// Sends a signal to a server, if it runs.
    pub fn signal(&self, server: &str, signal: Signal) {
        if let Some(pid) = self.pid(server) {
            let _ = kill(pid, signal);
        }
    }

    fn pid(&self, server: &str) -> Option<Pid> {
        let record = fs::read_to_string(self.dir.join("processes").join(server)).ok()?;
        let mut fields = record.split_whitespace();
        let (pid, started): (i32, &str) = (fields.next()?.parse().ok()?, fields.next()?);
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Field 22 of the file, the 20th behind the name in parentheses.
        let now_started = stat.rsplit_once(") ")?.1.split_whitespace().nth(19)?;
        (now_started == started).then(|| Pid::from_raw(pid))
    }

    fn run(&self, command: &str, rest: &[&str]) -> anyhow::Result<String> {
        let what = format!("{} {command} {}", self.script.display(), rest.join(" "));
        let child = Command::new(&self.script)
            .arg(command)
            .arg("--dir")
            .arg(&self.dir)
            .args(rest)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C at the terminal is ours to handle: a stop that was begun is finished.
            .process_group(0)
            .spawn();
        let mut child = child.with_context(|| what.clone())?;
        let began = Instant::now();
        // What it says fits a pipe: a few lines.
        while child.try_wait()?.is_none() {
            if began.elapsed() > COMMAND_DEADLINE {
                child.kill()?;
                child.wait()?;
                bail!("{what}: not done after {COMMAND_DEADLINE:?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("{what}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The script: the one named, else `gateway/deploy/services` above this program or the working directory.
///
/// # Errors
/// If it is nowhere.
pub fn find_script(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = named {
        return path.canonicalize().with_context(|| format!("{} is not there", path.display()));
    }
    let (program, here) = (std::env::current_exe()?, std::env::current_dir()?);
    let above = here.ancestors().chain(program.ancestors()).map(|dir| dir.join("gateway/deploy/services"));
    above
        .into_iter()
        .find(|path| path.is_file())
        .context("gateway/deploy/services is not found: name it with --services")
}
