//! What a chaos run reports: the faults and what each cost, the messages, and what was wrong.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use tidegate_proto::{CloseCode, Code};

use super::availability::Outage;
use super::client::Client;
use super::injector::Injected;
use super::judge::Counts;
use super::options::ChaosOptions;
use crate::finding::Findings;
use crate::report::{Verdict, findings_table};

/// The result.
#[derive(Debug, Serialize)]
pub struct ChaosResult {
    /// One word.
    pub verdict: Verdict,
    /// Why, if it is not a pass.
    pub reasons: Vec<String>,
    /// What was asked for.
    pub parameters: ChaosOptions,
    /// From the first message to the last look.
    pub took_s: f64,
    /// What was broken, in the order in which it began.
    pub faults: Vec<FaultRow>,
    /// Faults that were planned and not begun in time.
    pub faults_left_out: usize,
    /// The messages.
    pub messages: Counts,
    /// What the devices went through.
    pub devices: Devices,
    /// What was wrong.
    pub findings: Findings,
}

/// A fault and its cost.
#[derive(Debug, Serialize)]
pub struct FaultRow {
    /// What and when.
    #[serde(flatten)]
    pub injected: Injected,
    /// What it cost.
    #[serde(flatten)]
    pub outage: Outage,
}

/// Figures of all devices together.
#[derive(Debug, Default, Serialize)]
pub struct Devices {
    /// How many.
    pub devices: usize,
    /// Logins that succeeded.
    pub logins: u64,
    /// Of these, such that resumed a session.
    pub resumed: u64,
    /// Behind pushes.
    pub behinds: u64,
    /// Sends written again.
    pub repeated: u64,
    /// Pushes of what had been shown: allowed, and ignored.
    pub repeated_pushes: u64,
    /// Commands answered after they had been given up.
    pub late_answers: u64,
    /// Messages not offered because too many waited.
    pub not_offered: u64,
    /// Times a conversation's epoch grew.
    pub epoch_changes: u64,
    /// Longest time from a message's offering to its acknowledgement.
    pub ack_ms_max: u64,
    /// Error replies by code.
    pub errors: BTreeMap<String, u64>,
    /// Closes by code.
    pub closes: BTreeMap<String, u64>,
    /// Attempts to start a gateway that ended early.
    pub failed_starts: u64,
}

impl Devices {
    /// Adds a device's.
    pub fn add(&mut self, client: &Client) {
        let figures = &client.figures;
        self.devices += 1;
        self.logins += figures.logins;
        self.resumed += figures.resumed;
        self.behinds += figures.behinds;
        self.repeated += figures.repeated;
        self.late_answers += figures.late_answers;
        self.not_offered += figures.not_offered;
        self.ack_ms_max = self.ack_ms_max.max(figures.ack_ms_max);
        for seat in &client.seats {
            self.repeated_pushes += seat.sync.repeated;
            self.epoch_changes += seat.sync.epoch_changes;
        }
        for (code, count) in &figures.errors {
            let name = Code::try_from(*code).map_or("unknown", |code| code.as_str_name());
            *self.errors.entry(format!("{code} {name}")).or_default() += count;
        }
        for (code, count) in &figures.closes {
            let name = CloseCode::try_from(*code).map_or("unknown", |code| code.as_str_name());
            *self.closes.entry(format!("{code} {name}")).or_default() += count;
        }
    }
}

/// For people.
pub fn table(out: &mut String, result: &ChaosResult) -> std::fmt::Result {
    let ChaosOptions { seed, gateways, backend, users, .. } = &result.parameters;
    writeln!(out, "\nchaos: {}", result.verdict.word())?;
    for reason in &result.reasons {
        writeln!(out, "  ! {reason}")?;
    }
    let took_s = result.took_s;
    writeln!(
        out,
        "  {} faults (seed {seed}) in {took_s:.0} s; {gateways} gateways, {}, {users} users with {} devices",
        result.faults.len(),
        backend.name(),
        result.devices.devices
    )?;
    if result.faults_left_out > 0 {
        writeln!(out, "  {} more were planned and found no time", result.faults_left_out)?;
    }
    writeln!(
        out,
        "  {:<18}{:>9}{:>9}{:>9}   {:>9}{:>12}{:>10}",
        "fault", "at", "held", "ready", "nobody", "worst user", "recovery"
    )?;
    for FaultRow { injected, outage } in &result.faults {
        let gateway = injected.gateway.map_or(String::new(), |gateway| format!(" {gateway}"));
        let name = format!("{}{gateway}", injected.kind);
        let [at, held, ready, nobody, worst, recovery] = [
            injected.began_ms,
            injected.undone_ms - injected.began_ms,
            injected.ready_ms - injected.undone_ms,
            outage.nobody_ms,
            outage.worst_user_ms,
            outage.recovery_ms,
        ]
        .map(|ms| format!("{:.1} s", ms as f64 / 1_000.0));
        writeln!(out, "  {name:<18}{at:>9}{held:>9}{ready:>9}   {nobody:>9}{worst:>12}{recovery:>10}")?;
    }
    let Counts { offered, acknowledged, refused, unanswered, archived, shown, shown_by_answer, .. } = result.messages;
    let Counts { lost, doubled, reordered, .. } = result.messages;
    writeln!(
        out,
        "  messages    {offered} offered, {acknowledged} acknowledged, {refused} refused, {unanswered} unanswered; \
         {archived} archived"
    )?;
    writeln!(out, "  receivers   {shown} shown, {shown_by_answer} of them by Sync or History")?;
    writeln!(out, "  verdict     {lost} lost, {doubled} doubled, {reordered} reordered")?;
    let Devices {
        logins,
        resumed,
        behinds,
        repeated,
        repeated_pushes,
        late_answers,
        not_offered,
        epoch_changes,
        ack_ms_max,
        ..
    } = result.devices;
    writeln!(
        out,
        "  devices     {logins} logins ({resumed} resumed), {repeated} sends repeated, {repeated_pushes} pushes repeated, \
         {behinds} told to be behind, {late_answers} late answers, slowest ack {:.1} s",
        ack_ms_max as f64 / 1_000.0
    )?;
    if not_offered + epoch_changes + result.devices.failed_starts > 0 {
        let failed_starts = result.devices.failed_starts;
        writeln!(
            out,
            "              {not_offered} messages not offered, {epoch_changes} epoch changes, \
             {failed_starts} starts of a gateway failed"
        )?;
    }
    for (what, counts) in [("error", &result.devices.errors), ("closed", &result.devices.closes)] {
        for (name, count) in counts {
            writeln!(out, "  {what:<12}{count} x {name}")?;
        }
    }
    findings_table(out, &result.findings)
}
