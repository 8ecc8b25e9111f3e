//! What a run leaves: a verdict with its exit code, a table for people, JSON for machines.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use serde::Serialize;

use crate::chaos::{self, ChaosResult};
use crate::finding::Findings;
use crate::judge::Counts;
use crate::process::{Host, Memory};
use crate::pull::report::{self as pull, PullResult};
use crate::storm::{self, StormResult};
use crate::tally::{TimesSummary, Whole};

/// The one word about a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every accepted message reached every receiver exactly once and in order.
    Pass,
    /// The generator was the bottleneck: the numbers say nothing.
    Void,
    /// Ended by the user.
    Interrupted,
    /// A promise was broken.
    Fail,
}

impl Verdict {
    /// The process's exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Fail => 1,
            // 2 is an error: there is no report then.
            Self::Void => 3,
            Self::Interrupted => 4,
        }
    }

    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Void => "VOID",
            Self::Interrupted => "INTERRUPTED",
            Self::Fail => "FAIL",
        }
    }
}

/// The whole report.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The worst of the results'.
    pub verdict: Verdict,
    /// Version of this program.
    pub version: &'static str,
    /// Commit of the working directory, if it is a repository.
    pub commit: Option<String>,
    /// When it ended, Unix time.
    pub ended_at_s: u64,
    /// Where it ran.
    pub host: Host,
    /// What kind of backends the gateway was told to use, if it was told by the environment.
    pub backend: Option<String>,
    /// One per scenario.
    pub results: Vec<ScenarioResult>,
}

/// What came of one scenario.
#[derive(Debug, Serialize)]
#[serde(tag = "scenario", rename_all = "snake_case")]
pub enum ScenarioResult {
    /// Messages at a rate.
    Traffic(Box<TrafficResult>),
    /// Connections that do nothing.
    Idle(IdleResult),
    /// Faults under traffic.
    Chaos(Box<ChaosResult>),
    /// A lobby through its gears.
    Storm(Box<StormResult>),
    /// Pulls as fast as they go.
    Pull(Box<PullResult>),
}

impl ScenarioResult {
    /// Its verdict.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Traffic(result) => result.verdict,
            Self::Idle(result) => result.verdict,
            Self::Chaos(result) => result.verdict,
            Self::Storm(result) => result.verdict,
            Self::Pull(result) => result.verdict,
        }
    }
}

/// Messages at a rate.
#[derive(Debug, Serialize)]
pub struct TrafficResult {
    /// `private`, `room`, ...
    pub name: &'static str,
    /// One word.
    pub verdict: Verdict,
    /// Why, if it is not a pass.
    pub reasons: Vec<String>,
    /// What was asked for.
    pub parameters: serde_json::Value,
    /// Length of the measured part.
    pub measured_s: f64,
    /// Messages due per second.
    pub offered_per_s: f64,
    /// Acks per second.
    pub accepted_per_s: f64,
    /// Deliveries per second, each receiver counted.
    pub delivered_per_s: f64,
    /// True if at least 99 % of what was offered was accepted in the measured part.
    pub is_sustained: bool,
    /// From due to ack.
    pub ack: TimesSummary,
    /// From due to delivery.
    pub delivery: TimesSummary,
    /// The whole run.
    pub messages: Counts,
    /// The whole run.
    pub whole: Whole,
    /// What was wrong.
    pub findings: Findings,
    /// The server's process.
    pub server: Option<ServerUse>,
    /// The generator.
    pub generator: GeneratorUse,
    /// Cores busy in the measured part, everything on this machine together.
    pub host_cores_busy: Option<f64>,
}

/// What the server's process used.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ServerUse {
    /// In the measured part.
    pub cpu_s: f64,
    /// In the measured part, on average.
    pub cores: f64,
    /// CPU time per delivered message, in microseconds.
    pub cpu_us_per_delivery: f64,
    /// Before anybody connected.
    pub rss_start_bytes: u64,
    /// The process's highest.
    pub rss_peak_bytes: u64,
}

/// What the generator used.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct GeneratorUse {
    /// In the measured part, all threads.
    pub cpu_s: f64,
    /// In the measured part, on average, all threads.
    pub cores: f64,
    /// The busiest thread's share of a core.
    pub busiest_thread_cores: f64,
    /// How late turns were, weighted by their messages.
    pub lateness: TimesSummary,
}

/// Connections that do nothing.
#[derive(Debug, Serialize)]
pub struct IdleResult {
    /// One word.
    pub verdict: Verdict,
    /// Why, if it is not a pass.
    pub reasons: Vec<String>,
    /// Logged-in connections.
    pub connections: usize,
    /// Time from the first dial to the last login reply.
    pub connect_s: f64,
    /// Server memory before.
    pub before: Memory,
    /// Server memory with all connections, when it was quiet.
    pub after: Memory,
    /// The difference for each connection.
    pub rss_per_connection_bytes: f64,
    /// The difference for each connection.
    pub pss_per_connection_bytes: f64,
    /// The difference for each connection.
    pub uss_per_connection_bytes: f64,
    /// Kernel memory in TCP buffers for each connection, both ends (both are on this machine).
    pub kernel_tcp_per_connection_bytes: Option<f64>,
    /// All kernel objects for each connection, both ends.
    pub kernel_slab_per_connection_bytes: Option<f64>,
    /// CPU the server used per second while all were idle, in cores.
    pub idle_cores: Option<f64>,
    /// What was wrong.
    pub findings: Findings,
}

impl Report {
    /// A report of these results, made here and now.
    pub fn new(results: Vec<ScenarioResult>) -> Self {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            verdict: results.iter().map(ScenarioResult::verdict).max().unwrap_or(Verdict::Interrupted),
            version: env!("CARGO_PKG_VERSION"),
            commit: commit(),
            ended_at_s: since_epoch.as_secs(),
            host: Host::here(),
            backend: std::env::var("TIDEGATE_BACKEND").ok(),
            results,
        }
    }

    /// Writes table and JSON to where they belong: the table gives way if the JSON goes to the standard output.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn publish(&self, json: Option<&Path>) -> anyhow::Result<()> {
        let Some(path) = json else {
            print!("{}", self.table());
            return Ok(());
        };
        let text = serde_json::to_string_pretty(self)? + "\n";
        if path == Path::new("-") {
            eprint!("{}", self.table());
            print!("{text}");
        } else {
            print!("{}", self.table());
            std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    fn table(&self) -> String {
        let mut out = String::new();
        for result in &self.results {
            // Writing to a String cannot fail.
            let _ = match result {
                ScenarioResult::Traffic(result) => traffic_table(&mut out, result),
                ScenarioResult::Idle(result) => idle_table(&mut out, result),
                ScenarioResult::Chaos(result) => chaos::table(&mut out, result),
                ScenarioResult::Storm(result) => storm::table(&mut out, result),
                ScenarioResult::Pull(result) => pull::table(&mut out, result),
            };
        }
        out
    }
}

fn traffic_table(out: &mut String, result: &TrafficResult) -> std::fmt::Result {
    writeln!(out, "\n{}: {}", result.name, result.verdict.word())?;
    for reason in &result.reasons {
        writeln!(out, "  ! {reason}")?;
    }
    let sustained = if result.is_sustained { "" } else { "   (not sustained)" };
    writeln!(out, "  {:<12}{:>12.0} /s   over {:.1} s", "offered", result.offered_per_s, result.measured_s)?;
    writeln!(out, "  {:<12}{:>12.0} /s{sustained}", "accepted", result.accepted_per_s)?;
    writeln!(out, "  {:<12}{:>12.0} /s", "delivered", result.delivered_per_s)?;
    writeln!(out, "  {:<12}{:>10}{:>10}{:>10}{:>10}{:>10}", "", "p50", "p90", "p99", "p99.9", "max")?;
    for (name, times) in
        [("ack", &result.ack), ("delivery", &result.delivery), ("lateness", &result.generator.lateness)]
    {
        let [p50, p90, p99, p999, max] =
            [times.p50_us, times.p90_us, times.p99_us, times.p999_us, times.max_us].map(in_words);
        writeln!(out, "  {name:<12}{p50:>10}{p90:>10}{p99:>10}{p999:>10}{max:>10}")?;
    }
    if let Some(server) = &result.server {
        let (cpu_s, cores, us) = (server.cpu_s, server.cores, server.cpu_us_per_delivery);
        let [start, peak] = [server.rss_start_bytes, server.rss_peak_bytes].map(mib);
        writeln!(
            out,
            "  server      {cpu_s:.2} s CPU, {cores:.2} cores, {us:.1} us per delivery; \
             RSS {start:.0} MiB at the start, {peak:.0} MiB peak"
        )?;
    }
    let GeneratorUse { cpu_s, cores, .. } = result.generator;
    write!(out, "  generator   {cpu_s:.2} s CPU, {cores:.2} cores")?;
    match result.host_cores_busy {
        Some(busy) => writeln!(out, "; whole machine {busy:.2} cores")?,
        None => writeln!(out)?,
    }
    let Counts { sent, accepted, refused, delivered, unanswered, uncertain, .. } = result.messages;
    writeln!(
        out,
        "  messages    {sent} sent, {accepted} accepted, {refused} refused, {unanswered} unanswered, \
         {uncertain} uncertain; {delivered} deliveries"
    )?;
    let Whole { held_back, never_written, repeated, errors, other_pushes, closed, .. } = &result.whole;
    if held_back + never_written + repeated > 0 {
        writeln!(out, "              {held_back} held back, {never_written} never written, {repeated} repeated")?;
    }
    for (what, counts) in [("error", errors), ("push", other_pushes), ("closed", closed)] {
        for (name, count) in counts {
            writeln!(out, "  {what:<12}{count} x {name}")?;
        }
    }
    findings_table(out, &result.findings)
}

fn idle_table(out: &mut String, result: &IdleResult) -> std::fmt::Result {
    writeln!(out, "\nidle: {}", result.verdict.word())?;
    for reason in &result.reasons {
        writeln!(out, "  ! {reason}")?;
    }
    writeln!(out, "  connections {} in {:.1} s", result.connections, result.connect_s)?;
    writeln!(out, "  {:<12}{:>12}{:>12}{:>18}", "server", "before", "after", "per connection")?;
    for (name, before, after, each) in [
        ("RSS", result.before.rss_bytes, result.after.rss_bytes, result.rss_per_connection_bytes),
        ("PSS", result.before.pss_bytes, result.after.pss_bytes, result.pss_per_connection_bytes),
        ("USS", result.before.uss_bytes, result.after.uss_bytes, result.uss_per_connection_bytes),
    ] {
        writeln!(out, "  {name:<12}{:>8.1} MiB{:>8.1} MiB{each:>12.0} bytes", mib(before), mib(after))?;
    }
    if let (Some(tcp), Some(slab)) = (result.kernel_tcp_per_connection_bytes, result.kernel_slab_per_connection_bytes) {
        writeln!(out, "  kernel      {tcp:.0} bytes TCP buffers, {slab:.0} bytes objects per connection (both ends)")?;
    }
    if let Some(cores) = result.idle_cores {
        writeln!(out, "  idle CPU    {cores:.3} cores")?;
    }
    findings_table(out, &result.findings)
}

/// Each fault with its count and examples.
pub fn findings_table(out: &mut String, findings: &Findings) -> std::fmt::Result {
    for (fault, finding) in findings.iter() {
        writeln!(out, "  {fault:?}: {}", finding.count)?;
        for example in &finding.examples {
            writeln!(out, "      {example}")?;
        }
    }
    Ok(())
}

fn in_words(us: f64) -> String {
    match us {
        us if us < 1_000.0 => format!("{us:.0} us"),
        us if us < 1_000_000.0 => format!("{:.2} ms", us / 1_000.0),
        us => format!("{:.2} s", us / 1_000_000.0),
    }
}

/// For people.
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}

fn commit() -> Option<String> {
    let output =
        Command::new("git").args(["rev-parse", "--short=7", "HEAD"]).stderr(std::process::Stdio::null()).output();
    let output = output.ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
