//! What a side pull measurement reports: each side's requests per second and cost, and how they compare.

use std::fmt::Write as _;

use serde::Serialize;

use super::client::Counted;
use super::options::PullOptions;
use crate::report::Verdict;

/// Least share of nginx's requests per second that the gateway has to reach over HTTP.
pub const HTTP_RATIO_MIN: f64 = 0.60;

/// A generator thread that is busier than this was what limited the numbers.
const GENERATOR_BUSY_MAX: f64 = 0.95;

/// Of a hundred own pulls, so many may have been told to slow down.
const REFUSED_SHARE_MAX: f64 = 0.01;

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// nginx with a static file.
    Nginx,
    /// The gateway over HTTP.
    Http,
    /// The gateway over its own protocol.
    Own,
}

/// The result.
#[derive(Debug, Serialize)]
pub struct PullResult {
    /// One word.
    pub verdict: Verdict,
    /// Why, if it is not a pass.
    pub reasons: Vec<String>,
    /// What was asked for.
    pub parameters: PullOptions,
    /// As nginx says.
    pub nginx_version: String,
    /// Bytes of the answer that nginx has as a file.
    pub file_bytes: usize,
    /// Its type.
    pub content_type: String,
    /// nginx.
    pub nginx: SideResult,
    /// The gateway over HTTP.
    pub http: SideResult,
    /// The gateway over its own protocol.
    pub own: SideResult,
    /// Requests per second, over HTTP to nginx, pair by pair.
    pub http_to_nginx: Spread,
    /// Requests per second, over the own protocol to nginx, pair by pair.
    pub own_to_nginx: Spread,
    /// CPU per request, nginx to the gateway over HTTP, pair by pair: who needs less is above 1.
    pub http_cpu_to_nginx: Option<Spread>,
    /// CPU per request, nginx to the gateway over its own protocol.
    pub own_cpu_to_nginx: Option<Spread>,
    /// Share of the own protocol's pulls that were answered by the shards themselves, from memory.
    pub shard_share: Option<f64>,
}

/// One side's rounds.
#[derive(Debug, Serialize)]
pub struct SideResult {
    /// Answers per second.
    pub per_s: Spread,
    /// Seconds of CPU time of the server's processes per 10,000 answers.
    pub server_cpu_s_per_10k: Option<Spread>,
    /// Cores the server's processes used.
    pub server_cores: Option<Spread>,
    /// Cores the generator used, all its threads.
    pub generator_cores: Spread,
    /// Bytes of an answer on average.
    pub body_bytes: f64,
    /// Pulls that were told to slow down.
    pub refused: u64,
}

/// The middle and the ends of some rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Spread {
    /// The middle one; of two in the middle, their mean.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// In the order of the rounds.
    pub rounds: Vec<f64>,
}

impl Spread {
    /// Of at least one number.
    pub fn of(rounds: Vec<f64>) -> Self {
        let mut sorted = rounds.clone();
        sorted.sort_by(f64::total_cmp);
        let (last, middle) = (sorted.len().saturating_sub(1), sorted.len() / 2);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        let median =
            if sorted.len() % 2 == 1 { at(middle) } else { f64::midpoint(at(middle.saturating_sub(1)), at(middle)) };
        Self { median, min: at(0), max: at(last), rounds }
    }

    /// One number for each pair of rounds.
    pub fn ratio(above: &Self, below: &Self) -> Self {
        Self::of(above.rounds.iter().zip(&below.rounds).map(|(above, below)| above / below).collect())
    }
}

impl SideResult {
    /// Of a side's rounds.
    pub fn of(rounds: &[Counted], counted_s: f64) -> Self {
        let each = |value: &dyn Fn(&Counted) -> f64| Spread::of(rounds.iter().map(value).collect());
        let server = |value: &dyn Fn(&Counted, f64) -> f64| {
            let values: Option<Vec<f64>> =
                rounds.iter().map(|round| round.server_cpu_s.map(|cpu_s| value(round, cpu_s))).collect();
            values.map(Spread::of)
        };
        let (answers, bytes) = rounds.iter().fold((0, 0), |(a, b), round| (a + round.answers, b + round.body_bytes));
        Self {
            per_s: each(&|round| round.answers as f64 / counted_s),
            server_cpu_s_per_10k: server(&|round, cpu_s| cpu_s / round.answers as f64 * 10_000.0),
            server_cores: server(&|_, cpu_s| cpu_s / counted_s),
            generator_cores: each(&|round| round.cpu.as_secs_f64() / counted_s),
            body_bytes: bytes as f64 / answers as f64,
            refused: rounds.iter().map(|round| round.refused).sum(),
        }
    }
}

/// The verdict, and why it is not a pass.
pub fn judge(result: &PullResult) -> (Verdict, Vec<String>) {
    let mut void = Vec::new();
    let threads = f64::from(result.parameters.common.threads);
    for (name, side) in [("nginx", &result.nginx), ("HTTP", &result.http), ("own protocol", &result.own)] {
        let busy = side.generator_cores.median / threads;
        if busy > GENERATOR_BUSY_MAX {
            void.push(format!("{name}: the generator was busy {:.0} % of the time; use more --threads", busy * 100.0));
        }
        let differs = (side.body_bytes / result.file_bytes as f64 - 1.0).abs();
        if differs > 0.02 {
            void.push(format!("{name}: answers had {:.0} bytes, nginx's file {}", side.body_bytes, result.file_bytes));
        }
    }
    let counted_s = result.parameters.seconds.as_secs_f64();
    let own_answers: f64 = result.own.per_s.rounds.iter().sum::<f64>() * counted_s;
    if result.own.refused as f64 > REFUSED_SHARE_MAX * own_answers {
        void.push(format!("{} pulls were told to slow down; use more --own-connections", result.own.refused));
    }
    if result.shard_share.is_some_and(|share| share < 0.9) {
        void.push("pulls over the own protocol were not answered from the shards' memory".to_owned());
    }
    if !void.is_empty() {
        return (Verdict::Void, void);
    }
    let mut reasons = Vec::new();
    let (http, own) = (result.http_to_nginx.median, result.own_to_nginx.median);
    if http < HTTP_RATIO_MIN || http.is_nan() {
        reasons.push(format!("over HTTP {:.1} % of nginx, not {:.0} %", http * 100.0, HTTP_RATIO_MIN * 100.0));
    }
    if own <= http || own.is_nan() {
        reasons.push(format!("over the own protocol {:.1} % of nginx, not more than over HTTP", own * 100.0));
    }
    (if reasons.is_empty() { Verdict::Pass } else { Verdict::Fail }, reasons)
}

/// For people.
pub fn table(out: &mut String, result: &PullResult) -> std::fmt::Result {
    writeln!(out, "\nside pull: {}", result.verdict.word())?;
    for reason in &result.reasons {
        writeln!(out, "  ! {reason}")?;
    }
    let PullOptions { seconds, pairs, connections, own_connections, .. } = &result.parameters;
    writeln!(
        out,
        "  {connections} connections over HTTP, {own_connections} of the own protocol, one request under way on each; \
         {pairs} rounds of {seconds:?} each, shuffled."
    )?;
    writeln!(
        out,
        "  nginx ({}) serves the gateway's answer as a static file: {} bytes of {}, the same requests.",
        result.nginx_version, result.file_bytes, result.content_type
    )?;
    writeln!(
        out,
        "  The gateway answers in signal gear, behind its token check, while two messages a second change the answer."
    )?;
    writeln!(
        out,
        "  {:<14}{:>10}{:>20}{:>16}{:>10}{:>12}{:>12}",
        "", "median/s", "least to most", "CPU s/10,000", "cores", "generator", "body bytes"
    )?;
    for (name, side) in [("nginx", &result.nginx), ("HTTP", &result.http), ("own protocol", &result.own)] {
        let Spread { median, min, max, .. } = &side.per_s;
        let figure =
            |spread: &Option<Spread>| spread.as_ref().map_or_else(|| "?".to_owned(), |s| format!("{:.3}", s.median));
        writeln!(
            out,
            "  {name:<14}{median:>10.0}{:>20}{:>16}{:>10}{:>12.3}{:>12.0}",
            format!("{min:.0} to {max:.0}"),
            figure(&side.server_cpu_s_per_10k),
            figure(&side.server_cores),
            side.generator_cores.median,
            side.body_bytes
        )?;
    }
    for (name, ratio, cpu) in [
        ("HTTP", &result.http_to_nginx, &result.http_cpu_to_nginx),
        ("own protocol", &result.own_to_nginx, &result.own_cpu_to_nginx),
    ] {
        let [median, min, max] = [ratio.median, ratio.min, ratio.max].map(|ratio| ratio * 100.0);
        write!(out, "  {name} to nginx: {median:.1} % of the requests per second ({min:.1} to {max:.1})")?;
        match cpu {
            Some(cpu) => writeln!(out, "; per request {:.2} times its CPU", 1.0 / cpu.median)?,
            None => writeln!(out)?,
        }
    }
    if let Some(share) = result.shard_share {
        writeln!(out, "  {:.1} % of the own protocol's pulls were answered from the shards' memory", share * 100.0)?;
    }
    if result.own.refused > 0 {
        writeln!(out, "  {} pulls were told to slow down", result.own.refused)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser as _;

    use super::*;
    use crate::options::{Cli, Command};

    fn rounds(per_s: &[u64], cpu_s: f64) -> Vec<Counted> {
        let counted = |answers: &u64| Counted {
            answers: answers * 5,
            body_bytes: answers * 5 * 16_000,
            refused: 0,
            cpu: Duration::from_secs(3),
            server_cpu_s: Some(cpu_s),
        };
        per_s.iter().map(counted).collect()
    }

    fn result(nginx: &[u64], http: &[u64], own: &[u64]) -> PullResult {
        let cli = Cli::try_parse_from(["tidegate-loadtest", "pull", "--start-gateway"]).unwrap();
        let Command::Pull { options } = cli.command else { unreachable!("it is a pull") };
        PullResult::of(
            options,
            "1.2".to_owned(),
            (16_000, "x/y".to_owned()),
            [nginx, http, own].map(|s| rounds(s, 5.0)),
        )
    }

    #[test]
    fn the_median_decides_and_the_own_protocol_has_to_be_ahead() {
        for (nginx, http, own, verdict) in [
            (&[100, 100, 100][..], &[61, 10, 90][..], &[62, 62, 62][..], Verdict::Pass),
            (&[100, 100, 100], &[59, 10, 90], &[62, 62, 62], Verdict::Fail),
            (&[100, 100, 100], &[70, 70, 70], &[70, 70, 70], Verdict::Fail),
            // Round by round: each is compared with the nginx of its own round.
            (&[100, 50, 200], &[61, 31, 130], &[90, 45, 180], Verdict::Pass),
        ] {
            let result = result(nginx, http, own);
            assert_eq!(result.verdict, verdict, "{:?}", result.reasons);
            assert_eq!(result.reasons.is_empty(), verdict == Verdict::Pass);
        }
    }

    #[test]
    fn a_busy_generator_other_bytes_or_refusals_void_it() {
        let fine = || result(&[100], &[70], &[90]);
        assert_eq!(judge(&fine()).0, Verdict::Pass);
        let mut busy = fine();
        busy.nginx.generator_cores = Spread::of(vec![0.97]);
        let mut other = fine();
        other.own.body_bytes = 15_000.0;
        let mut refused = fine();
        refused.own.refused = 5;
        let mut elsewhere = fine();
        elsewhere.shard_share = Some(0.5);
        for void in [busy, other, refused, elsewhere] {
            let (verdict, reasons) = judge(&void);
            assert_eq!((verdict, reasons.len()), (Verdict::Void, 1), "{reasons:?}");
        }
    }

    #[test]
    fn a_table_has_all_that_counts() {
        let mut out = String::new();
        table(&mut out, &result(&[100, 100, 100, 100], &[60, 62, 64, 66], &[90, 90, 90, 90])).unwrap();
        for expected in
            ["side pull: PASS", "HTTP to nginx: 63.0 %", "own protocol to nginx: 90.0 %", "1.59 times its CPU"]
        {
            assert!(out.contains(expected), "{expected} is not in {out}");
        }
    }
}
