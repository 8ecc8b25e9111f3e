//! The conditions a storm is judged by, each with its bound and what was measured, and the one word that follows.

use serde::Serialize;

use super::judge::StormCounts;
use super::rows::Slice;
use crate::finding::Findings;
use crate::report::Verdict;

/// What a pull may take besides waiting for its time.
pub const BEYOND_SPREAD_MS: f64 = 50.0;

/// Messages sent later than this at p99 are the generator's fault.
const LATENESS_P99_MS_MAX: f64 = 10.0;

/// A thread busier than this is the bottleneck.
const THREAD_CORES_MAX: f64 = 0.95;

/// What the server says of the lobby's storms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StormSettings {
    /// What a watcher may cost in signal gear.
    pub watcher_bytes_per_s: u64,
    /// Over which time pulls are spread.
    pub spread_ms: u64,
}

/// What a watcher cost in signal gear: bytes per second over its whole seconds there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct SignalBytes {
    /// Watchers that were in signal gear for a whole second at least.
    pub watchers: u64,
    /// Their mean.
    pub mean_per_s: f64,
    /// The most expensive one.
    pub max_per_s: f64,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Holds {
    /// It does.
    Yes,
    /// It does not.
    No,
    /// It does not, where the generator was the bottleneck.
    Void,
    /// There was nothing to measure it by.
    Unmeasured,
}

impl Holds {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Yes => "pass",
            Self::No => "FAIL",
            Self::Void => "void",
            Self::Unmeasured => "not measured",
        }
    }
}

/// One condition.
#[derive(Clone, Debug, Serialize)]
pub struct Condition {
    /// What must hold.
    pub name: String,
    /// What was measured.
    pub measured: String,
    /// Whether it does.
    pub holds: Holds,
}

/// Everything was stored once, and everybody saw it.
pub fn sets_equal(counts: &StormCounts, findings: &Findings) -> Condition {
    let StormCounts { accepted, in_history, watchers_judged, watchers_equal, .. } = *counts;
    let is_right = findings.is_empty() && watchers_equal == watchers_judged;
    Condition {
        name: "every watcher ends with exactly the history, which has every accepted message once".to_owned(),
        measured: format!(
            "{watchers_equal} of {watchers_judged} watchers equal; {accepted} accepted, {in_history} in the history"
        ),
        holds: match (is_right, watchers_judged) {
            (false, _) => Holds::No,
            (true, 0) => Holds::Unmeasured,
            (true, _) => Holds::Yes,
        },
    }
}

/// A watcher in signal gear costs no more than the cap.
pub fn bytes_capped(settings: StormSettings, bytes: Option<SignalBytes>) -> Condition {
    let cap = settings.watcher_bytes_per_s;
    let name = format!("in signal gear a watcher receives at most {cap} bytes per second");
    match bytes {
        None => {
            let measured = "no watcher was in signal gear for a whole second".to_owned();
            Condition { name, measured, holds: Holds::Unmeasured }
        }
        Some(SignalBytes { watchers, mean_per_s, max_per_s }) => Condition {
            name,
            measured: format!("{mean_per_s:.0} on average, {max_per_s:.0} at most, of {watchers} watchers"),
            holds: if max_per_s <= cap as f64 { Holds::Yes } else { Holds::No },
        },
    }
}

/// The bound of p99 from accepted to visible.
pub fn visible_bound_ms(settings: StormSettings) -> f64 {
    settings.spread_ms as f64 + BEYOND_SPREAD_MS
}

/// In every slice of the run, 99 % of what was shown live was shown in time.
pub fn visible_in_time(settings: StormSettings, slices: &[Slice]) -> Condition {
    let bound_ms = visible_bound_ms(settings);
    let name = format!("from accepted to visible at most {bound_ms:.0} ms at p99, in each slice of the run");
    // Nothing shown of what was accepted is worse than late.
    let p99_ms = |slice: &Slice| slice.accepted_to_shown.p99_ms.unwrap_or(f64::INFINITY);
    let judged = || slices.iter().filter(|slice| slice.accepted > 0);
    let Some(worst) = judged().max_by(|one, other| p99_ms(one).total_cmp(&p99_ms(other))) else {
        return Condition { name, measured: "nothing was accepted".to_owned(), holds: Holds::Unmeasured };
    };
    let late: Vec<&Slice> = judged().filter(|slice| p99_ms(slice) > bound_ms).collect();
    let from_due = judged().filter_map(|slice| slice.due_to_shown.p99_ms).fold(0.0, f64::max);
    let measured = format!(
        "{} of {} slices in time; the worst had {:.1} ms ({} to {} s, {:.0}/s); from due {from_due:.1} ms",
        judged().count() - late.len(),
        judged().count(),
        p99_ms(worst),
        worst.from_s,
        worst.to_s,
        worst.offered_per_s,
    );
    let holds = match late.iter().all(|slice| is_generators_fault(slice)) {
        _ if late.is_empty() => Holds::Yes,
        true => Holds::Void,
        false => Holds::No,
    };
    Condition { name, measured, holds }
}

fn is_generators_fault(slice: &Slice) -> bool {
    slice.generator_busiest_cores > THREAD_CORES_MAX
        || slice.lateness_p99_ms.is_some_and(|lateness_ms| lateness_ms > LATENESS_P99_MS_MAX)
}

/// Why the whole run says nothing about the server, if it does not.
pub fn void_reasons(busiest_thread_cores: f64, lateness_p99_ms: Option<f64>) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Some(late_ms) = lateness_p99_ms.filter(|late_ms| *late_ms > LATENESS_P99_MS_MAX) {
        reasons.push(format!("void: generator was the bottleneck (it sent {late_ms:.1} ms late at p99)"));
    }
    if busiest_thread_cores > THREAD_CORES_MAX {
        let percent = busiest_thread_cores * 100.0;
        reasons.push(format!("void: generator was the bottleneck (a thread used {percent:.0} % of a core; --threads)"));
    }
    reasons
}

/// What ended a run before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing: everything was seen to its end.
    Whole,
    /// Patience: not everything had come.
    Unsettled,
    /// The user.
    Interrupted,
}

/// The one word. What was lost is lost however busy the generator was; but it answers for lateness.
pub fn verdict(conditions: &[Condition], voids: &[String], ending: Ending) -> Verdict {
    let [equal, capped, in_time] = [0, 1, 2].map(|at| conditions.get(at).map_or(Holds::Unmeasured, |it| it.holds));
    match ending {
        Ending::Interrupted => Verdict::Interrupted,
        Ending::Unsettled => Verdict::Fail,
        Ending::Whole if equal == Holds::No || capped == Holds::No => Verdict::Fail,
        Ending::Whole if !voids.is_empty() || in_time == Holds::Void => Verdict::Void,
        Ending::Whole if in_time != Holds::Yes => Verdict::Fail,
        Ending::Whole => Verdict::Pass,
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::Percentiles;
    use super::*;
    use crate::finding::Fault;

    const SETTINGS: StormSettings = StormSettings { watcher_bytes_per_s: 16_384, spread_ms: 100 };

    fn slice(p99_ms: Option<f64>) -> Slice {
        Slice {
            from_s: 3,
            to_s: 6,
            offered_per_s: 10.0,
            accepted: 30,
            gears: vec![0],
            accepted_to_shown: Percentiles { p99_ms, ..Percentiles::default() },
            due_to_shown: Percentiles::default(),
            live_share: None,
            generator_busiest_cores: 0.5,
            lateness_p99_ms: Some(1.0),
        }
    }

    #[test]
    fn one_late_slice_fails_and_one_in_which_nothing_was_shown_too() {
        let holds = |slices: &[Slice]| visible_in_time(SETTINGS, slices).holds;
        assert_eq!(holds(&[slice(Some(150.0)), slice(Some(2.0))]), Holds::Yes);
        assert_eq!(holds(&[slice(Some(2.0)), slice(Some(150.1))]), Holds::No);
        assert_eq!(holds(&[slice(Some(2.0)), slice(None)]), Holds::No);
        assert_eq!(holds(&[Slice { accepted: 0, ..slice(None) }]), Holds::Unmeasured);
    }

    #[test]
    fn lateness_is_void_where_the_generator_was_late_itself() {
        let busy = Slice { generator_busiest_cores: 0.99, ..slice(Some(900.0)) };
        let late = Slice { lateness_p99_ms: Some(11.0), ..slice(Some(900.0)) };
        assert_eq!(visible_in_time(SETTINGS, &[busy.clone(), late]).holds, Holds::Void);
        assert_eq!(visible_in_time(SETTINGS, &[busy, slice(Some(900.0))]).holds, Holds::No);
    }

    #[test]
    fn the_dearest_watcher_counts() {
        let holds =
            |max_per_s| bytes_capped(SETTINGS, Some(SignalBytes { watchers: 2, mean_per_s: 9.0, max_per_s })).holds;
        assert_eq!((holds(16_384.0), holds(16_384.5)), (Holds::Yes, Holds::No));
        assert_eq!(bytes_capped(SETTINGS, None).holds, Holds::Unmeasured);
    }

    #[test]
    fn the_word_follows_from_the_conditions() {
        let conditions =
            |holds: [Holds; 3]| holds.map(|holds| Condition { name: String::new(), measured: String::new(), holds });
        let (yes, no) = (Holds::Yes, Holds::No);
        let word = |holds, voids: &[String]| verdict(&conditions(holds), voids, Ending::Whole);
        assert_eq!(word([yes; 3], &[]), Verdict::Pass);
        assert_eq!(word([yes, Holds::Unmeasured, yes], &[]), Verdict::Pass);
        assert_eq!(word([no, yes, yes], &["busy".to_owned()]), Verdict::Fail);
        assert_eq!(word([yes, no, yes], &["busy".to_owned()]), Verdict::Fail);
        assert_eq!(word([yes, yes, no], &["busy".to_owned()]), Verdict::Void);
        assert_eq!(word([yes, yes, Holds::Void], &[]), Verdict::Void);
        assert_eq!(word([yes, yes, no], &[]), Verdict::Fail);
        assert_eq!(verdict(&conditions([yes; 3]), &[], Ending::Unsettled), Verdict::Fail);
        assert_eq!(verdict(&conditions([no; 3]), &[], Ending::Interrupted), Verdict::Interrupted);
    }

    #[test]
    fn any_finding_breaks_the_first_condition() {
        let counts = StormCounts { watchers_judged: 2, watchers_equal: 2, ..StormCounts::default() };
        let mut findings = Findings::default();
        assert_eq!(sets_equal(&counts, &findings).holds, Holds::Yes);
        findings.add(Fault::Closed, || "gone".to_owned());
        assert_eq!(sets_equal(&counts, &findings).holds, Holds::No);
        let lacking = StormCounts { watchers_equal: 1, ..counts };
        assert_eq!(sets_equal(&lacking, &Findings::default()).holds, Holds::No);
    }
}
