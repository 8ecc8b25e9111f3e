//! What a storm leaves: the result for JSON, and its table for people.

use std::fmt::Write as _;

use serde::Serialize;

use super::judge::StormCounts;
use super::lane::Shift;
use super::options::StormOptions;
use super::rows::{GEARS, GearRow, PercentileLine, Percentiles, SecondRow, Slice};
use super::verdict::{Condition, Holds, SignalBytes, StormSettings, visible_bound_ms};
use crate::finding::Findings;
use crate::report::{Verdict, findings_table, mib};
use crate::tally::Whole;

/// The result.
#[derive(Debug, Serialize)]
pub struct StormResult {
    /// One word.
    pub verdict: Verdict,
    /// Why, if it is not a pass.
    pub reasons: Vec<String>,
    /// The three conditions.
    pub conditions: Vec<Condition>,
    /// As it was typed.
    pub command: String,
    /// What was asked for.
    pub parameters: StormOptions,
    /// What the server says of the lobby's storms.
    pub settings: StormSettings,
    /// Time to connect everybody.
    pub connect_s: f64,
    /// Time in which gaps were filled, and the history read before it.
    pub fill_s: f64,
    /// The messages and the watchers.
    pub messages: StormCounts,
    /// (Watcher, message) pairs.
    pub pairs: Pairs,
    /// What watchers in signal gear received.
    pub signal_bytes: Option<SignalBytes>,
    /// From due to ack.
    pub ack: Percentiles,
    /// By gear.
    pub gears: Vec<GearRow>,
    /// Gears as the first watcher was told them.
    pub shifts: Vec<Shift>,
    /// Over these p99 is judged.
    pub slices: Vec<Slice>,
    /// Second by second.
    pub seconds: Vec<SecondRow>,
    /// From ack, and from due, to shown live.
    pub percentiles: Vec<PercentileLine>,
    /// Pulls.
    pub pulls: Pulls,
    /// Counts over the whole run.
    pub whole: Whole,
    /// What was wrong.
    pub findings: Findings,
    /// The server's process, if it is known.
    pub server: Option<StormServer>,
    /// The generator.
    pub generator: StormGenerator,
    /// Cores busy during the ramp, everything on this machine together.
    pub host_cores_busy: Option<f64>,
}

/// (Watcher, message) pairs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pairs {
    /// Shown live.
    pub shown: u64,
    /// Of all accepted messages and all watchers: the share shown live.
    pub live_share: f64,
    /// Left out live, and brought by filling.
    pub filled: u64,
    /// Pushed once more.
    pub repeated_pushes: u64,
}

/// Pulls, and what they were like.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pulls {
    /// Asked while messages were live.
    pub asked: u64,
    /// Notices that led to them.
    pub notices: u64,
    /// Answers that left out older messages, fillings among them.
    pub gaps: u64,
    /// Sends and pulls answered with "slow down".
    pub slow_downs: u64,
    /// Notices of being behind.
    pub behinds: u64,
    /// Different bodies that were taken apart.
    pub bodies_distinct: u64,
    /// Bodies that were recognised.
    pub bodies_recognised: u64,
    /// Connections opened for HTTP.
    pub http_connections: u64,
}

/// What the server's process used.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct StormServer {
    /// During the ramp.
    pub cpu_s: f64,
    /// In its busiest second.
    pub cores_max: f64,
    /// Before anybody connected.
    pub rss_start_bytes: u64,
    /// With everybody connected, before the first message.
    pub rss_connected_bytes: u64,
    /// Highest at the end of a second of the ramp.
    pub rss_ramp_max_bytes: u64,
    /// The process's highest, filling included.
    pub rss_peak_bytes: u64,
}

/// What the generator used during the ramp.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct StormGenerator {
    /// All threads.
    pub cpu_s: f64,
    /// The busiest thread, on average.
    pub busiest_thread_cores: f64,
    /// The busiest thread in its busiest second.
    pub busiest_second_cores: f64,
    /// How late messages were sent.
    pub lateness: Percentiles,
}

/// The table.
pub fn table(out: &mut String, result: &StormResult) -> std::fmt::Result {
    let options = &result.parameters;
    writeln!(out, "\nlobby-storm: {}", result.verdict.word())?;
    for reason in &result.reasons {
        writeln!(out, "  ! {reason}")?;
    }
    for condition in &result.conditions {
        writeln!(out, "  [{:^12}] {}", condition.holds.word(), condition.name)?;
        writeln!(out, "                 {}", condition.measured)?;
    }
    writeln!(
        out,
        "  {} watchers, {} of them write, {} to {} to {} messages/s in {:.0} s; connected in {:.1} s, filled in {:.1} s",
        options.connections,
        options.senders,
        options.rate_from,
        options.rate_to,
        options.rate_from,
        options.duration.as_secs_f64(),
        result.connect_s,
        result.fill_s,
    )?;
    let bound_ms = visible_bound_ms(result.settings);
    writeln!(
        out,
        "  {:>9}  {:>10}  {:>8}  {:>6}  {:>23}  {:>9}  {:>9}  {:>9}",
        "seconds", "offered/s", "accepted", "live", "gears", "p50", "p99", "due p99"
    )?;
    let ms = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1} ms"));
    for slice in &result.slices {
        let gears: Vec<&str> = slice.gears.iter().map(|gear| GEARS[*gear]).collect();
        let is_late = slice.accepted > 0 && slice.accepted_to_shown.p99_ms.is_none_or(|p99_ms| p99_ms > bound_ms);
        writeln!(
            out,
            "  {:>9}  {:>10.1}  {:>8}  {:>6}  {:>23}  {:>9}  {:>9}  {:>9}{}",
            format!("{}-{}", slice.from_s, slice.to_s),
            slice.offered_per_s,
            slice.accepted,
            slice.live_share.map_or("-".to_owned(), |share| format!("{:.1} %", share * 100.0)),
            gears.join(" "),
            ms(slice.accepted_to_shown.p50_ms),
            ms(slice.accepted_to_shown.p99_ms),
            ms(slice.due_to_shown.p99_ms),
            if is_late { "  late" } else { "" },
        )?;
    }
    for gear in &result.gears {
        let Percentiles { count, p50_ms, p99_ms, p999_ms, .. } = gear.accepted_to_shown;
        let [p50, p99, p999] = [p50_ms, p99_ms, p999_ms].map(ms);
        let (name, seconds) = (gear.gear, gear.seconds);
        writeln!(out, "  {name:<8} {seconds:>4} s  {count:>12} shown; p50 {p50}, p99 {p99}, p99.9 {p999}")?;
    }
    let Pairs { shown, live_share, filled, .. } = result.pairs;
    let percent = live_share * 100.0;
    writeln!(out, "  shown       {shown} live ({percent:.1} % of all), {filled} by filling gaps")?;
    if let Some(SignalBytes { mean_per_s, max_per_s, .. }) = result.signal_bytes {
        let cap = result.settings.watcher_bytes_per_s;
        writeln!(out, "  signal gear {mean_per_s:.0} bytes/s per watcher, {max_per_s:.0} at most; cap {cap}")?;
    }
    let ack = result.ack;
    writeln!(out, "  ack         p50 {}, p99 {}, max {}", ms(ack.p50_ms), ms(ack.p99_ms), ms(ack.max_ms))?;
    let pulls = &result.pulls;
    writeln!(
        out,
        "  pulls       {} for {} notices, {} slow-downs, {} behind; {} bodies, {} recognised",
        pulls.asked, pulls.notices, pulls.slow_downs, pulls.behinds, pulls.bodies_distinct, pulls.bodies_recognised
    )?;
    if let Some(server) = &result.server {
        let [start, connected, ramp, peak] =
            [server.rss_start_bytes, server.rss_connected_bytes, server.rss_ramp_max_bytes, server.rss_peak_bytes]
                .map(mib);
        writeln!(
            out,
            "  server      {:.1} s CPU, {:.2} cores at most; RSS {start:.0} MiB, connected {connected:.0} MiB, \
             in the ramp {ramp:.0} MiB, peak {peak:.0} MiB",
            server.cpu_s, server.cores_max
        )?;
    }
    let generator = &result.generator;
    write!(
        out,
        "  generator   {:.1} s CPU, busiest thread {:.2} cores, {:.2} at most; late {} at p99",
        generator.cpu_s,
        generator.busiest_thread_cores,
        generator.busiest_second_cores,
        ms(generator.lateness.p99_ms)
    )?;
    match result.host_cores_busy {
        Some(busy) => writeln!(out, "; whole machine {busy:.2} cores")?,
        None => writeln!(out)?,
    }
    let StormCounts { offered, accepted, refused, unanswered, uncertain, never_written, last_seq, .. } =
        result.messages;
    writeln!(
        out,
        "  messages    {offered} offered, {accepted} accepted, {refused} refused, {unanswered} unanswered, \
         {uncertain} uncertain, {never_written} never written; the history ends at {last_seq}"
    )?;
    let Whole { held_back, repeated, errors, other_pushes, closed, .. } = &result.whole;
    if held_back + repeated > 0 {
        writeln!(out, "              {held_back} held back, {repeated} repeated")?;
    }
    for (what, counts) in [("error", errors), ("push", other_pushes), ("closed", closed)] {
        for (name, count) in counts {
            writeln!(out, "  {what:<12}{count} x {name}")?;
        }
    }
    findings_table(out, &result.findings)
}

impl StormResult {
    /// Fails for whoever reads only the first lines: which conditions do not hold.
    pub fn broken(conditions: &[Condition]) -> impl Iterator<Item = String> + '_ {
        let is_broken = |condition: &&Condition| matches!(condition.holds, Holds::No | Holds::Void);
        conditions.iter().filter(is_broken).map(|condition| format!("{}: {}", condition.name, condition.measured))
    }
}
