//! The judge of a storm: does the history have every accepted message exactly once, and has every watcher seen exactly
//! the history?
//!
//! In: the history as it was read, what became of each message, what the lanes saw under which sequence, and each
//! watcher's sequences. Out: counts and [`Findings`]. Pure logic, so that made-up histories can test it.

use super::intervals::IntervalSet;
use super::ledger::Ledger;
use crate::finding::{Fault, Findings};

/// What became of a message, as its sender knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was due and never left.
    NeverWritten,
    /// Written, and no answer.
    Unanswered,
    /// Acknowledged under this id.
    Accepted([u8; 16]),
    /// Refused for good: it must not be stored.
    Refused,
    /// Told "later" too often: it may be stored or not.
    GivenUp,
}

/// A watcher at the end.
#[derive(Clone, Debug)]
pub struct End {
    /// Index among all watchers.
    pub watcher: u32,
    /// The sequences it has seen.
    pub seen: IntervalSet,
    /// Whether it was to fill its gaps and could: only then it must have all.
    pub is_filled: bool,
}

/// What came of the messages and the watchers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct StormCounts {
    /// Messages that were due.
    pub offered: u64,
    /// Acknowledged.
    pub accepted: u64,
    /// Refused for good, or told "later" too often.
    pub refused: u64,
    /// Without an answer at the end.
    pub unanswered: u64,
    /// Stored though never acknowledged: allowed, a client has to repeat them to know.
    pub uncertain: u64,
    /// Never written.
    pub never_written: u64,
    /// Messages of the run in the history.
    pub in_history: u64,
    /// The history's last sequence.
    pub last_seq: u64,
    /// Watchers whose set had to equal the history's.
    pub watchers_judged: u64,
    /// Of these, those whose set does.
    pub watchers_equal: u64,
}

/// Everything there is to judge by.
pub struct Evidence<'a> {
    /// The history, read once behind the run's base.
    pub history: &'a Ledger,
    /// The last sequence the server says there is.
    pub last_seq: u64,
    /// By message number.
    pub fates: &'a [Fate],
    /// What each lane saw.
    pub ledgers: &'a [Ledger],
    /// All watchers.
    pub ends: &'a [End],
}

/// Judges.
pub fn judge(evidence: &Evidence<'_>) -> (StormCounts, Findings) {
    let mut findings = Findings::default();
    let mut counts =
        StormCounts { offered: evidence.fates.len() as u64, last_seq: evidence.last_seq, ..StormCounts::default() };
    let stored = judge_history(evidence, &mut counts, &mut findings);
    judge_fates(evidence, &stored, &mut counts, &mut findings);
    judge_lanes(evidence, &mut findings);
    judge_watchers(evidence, &mut counts, &mut findings);
    (counts, findings)
}

/// The sequence of each message, 0 if it is not stored. Finds gaps and messages stored twice.
fn judge_history(evidence: &Evidence<'_>, counts: &mut StormCounts, findings: &mut Findings) -> Vec<u64> {
    let mut stored = vec![0; evidence.fates.len()];
    let mut expected = evidence.history.origin().base_seq + 1;
    for (seq, sight) in evidence.history.iter() {
        if seq > expected {
            findings.add(Fault::Gap, || format!("the history has no {expected}..={}", seq - 1));
        }
        expected = seq + 1;
        counts.in_history += 1;
        match stored.get_mut(sight.number as usize) {
            Some(place @ 0) => *place = seq,
            Some(first) => {
                let (number, first) = (sight.number, *first);
                findings.add(Fault::StoredTwice, || format!("message {number} stands at {first} and at {seq}"));
            }
            // The ledger knows how many messages there are, and takes no others.
            None => findings.add(Fault::NeverSent, || format!("seq {seq} is message {}", sight.number)),
        }
    }
    if expected <= evidence.last_seq {
        findings.add(Fault::Gap, || format!("the history has no {expected}..={}", evidence.last_seq));
    }
    stored
}

fn judge_fates(evidence: &Evidence<'_>, stored: &[u64], counts: &mut StormCounts, findings: &mut Findings) {
    for ((number, fate), seq) in evidence.fates.iter().enumerate().zip(stored) {
        match (fate, seq) {
            (Fate::Accepted(_), 0) => {
                counts.accepted += 1;
                findings.add(Fault::Lost, || format!("message {number} was accepted and is not in the history"));
            }
            (Fate::Accepted(message_id), seq) => {
                counts.accepted += 1;
                if evidence.history.sight(*seq).is_none_or(|sight| sight.message_id != *message_id) {
                    findings.add(Fault::WrongId, || format!("message {number}, seq {seq}: another id than its ack's"));
                }
            }
            (Fate::Refused, seq) => {
                counts.refused += 1;
                if *seq != 0 {
                    let example = || format!("message {number} was refused and stands at {seq}");
                    findings.add(Fault::RefusedYetDelivered, example);
                }
            }
            (Fate::GivenUp, seq) => {
                counts.refused += 1;
                counts.uncertain += u64::from(*seq != 0);
            }
            (Fate::Unanswered, seq) => {
                counts.unanswered += 1;
                counts.uncertain += u64::from(*seq != 0);
            }
            (Fate::NeverWritten, seq) => {
                counts.never_written += 1;
                if *seq != 0 {
                    findings.add(Fault::NeverSent, || format!("message {number} stands at {seq}"));
                }
            }
        }
    }
}

/// One sequence is one message, for everybody.
fn judge_lanes(evidence: &Evidence<'_>, findings: &mut Findings) {
    for (seq, seen) in evidence.ledgers.iter().flat_map(Ledger::iter) {
        match evidence.history.sight(seq) {
            Some(stored) if stored == seen => {}
            Some(stored) => {
                let (one, other) = (seen.number, stored.number);
                let example = || format!("seq {seq} was shown as message {one}; in the history it is message {other}");
                findings.add(Fault::Disagreement, example);
            }
            None => {
                let number = seen.number;
                findings.add(Fault::NotArchived, || format!("seq {seq} was shown as message {number}"));
            }
        }
    }
}

fn judge_watchers(evidence: &Evidence<'_>, counts: &mut StormCounts, findings: &mut Findings) {
    let whole = IntervalSet::up_to(evidence.last_seq);
    for End { watcher, seen, is_filled } in evidence.ends {
        counts.watchers_judged += u64::from(*is_filled);
        if *seen == whole {
            counts.watchers_equal += u64::from(*is_filled);
            continue;
        }
        if seen.last() > evidence.last_seq {
            let (shown, last) = (seen.last(), evidence.last_seq);
            findings
                .add(Fault::NotArchived, || format!("watcher {watcher} was shown {shown}; the history ends at {last}"));
        }
        if *is_filled && let Some((from, to)) = seen.first_gap(evidence.last_seq) {
            let missing = evidence.last_seq.saturating_sub(seen.len());
            let example = || format!("watcher {watcher} never got {from}..={to}; it lacks {missing} in all");
            findings.add(Fault::Lost, example);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ledger::tests::{message, origin};
    use super::*;
    use crate::wire::MessageView;
    use prost::Message as _;
    use tidegate_proto::v1::Message;

    fn ledger(messages: &[Message]) -> Ledger {
        let mut ledger = Ledger::new(origin());
        for message in messages {
            let payload = message.encode_to_vec();
            ledger.take(&MessageView::scan(&payload).unwrap()).unwrap();
        }
        ledger
    }

    fn end(last: u64) -> End {
        End { watcher: 4, seen: IntervalSet::up_to(last), is_filled: true }
    }

    /// Three messages behind sequence 10, all accepted under the ids that `message` gives them.
    struct World {
        history: Vec<Message>,
        fates: Vec<Fate>,
        seen: Vec<Message>,
        ends: Vec<End>,
        last_seq: u64,
    }

    fn right() -> World {
        let history: Vec<Message> = (0..3).map(|number| message(11 + u64::from(number), number)).collect();
        World {
            seen: history.clone(),
            history,
            fates: (1..4).map(|id| Fate::Accepted([id; 16])).collect(),
            ends: vec![end(13), end(13)],
            last_seq: 13,
        }
    }

    fn judged(world: &World) -> (StormCounts, Vec<Fault>) {
        let (history, seen) = (ledger(&world.history), ledger(&world.seen));
        let (counts, findings) = judge(&Evidence {
            history: &history,
            last_seq: world.last_seq,
            fates: &world.fates,
            ledgers: &[seen],
            ends: &world.ends,
        });
        (counts, findings.iter().map(|(fault, _)| fault).collect())
    }

    #[test]
    fn what_is_right_passes_and_is_counted() {
        let (counts, faults) = judged(&right());
        assert_eq!(faults, []);
        assert_eq!((counts.offered, counts.accepted, counts.in_history), (3, 3, 3));
        assert_eq!((counts.watchers_judged, counts.watchers_equal), (2, 2));
    }

    #[test]
    fn a_watcher_that_lacks_one_fails_unless_it_was_not_to_fill() {
        let mut world = right();
        world.ends[1] = end(11);
        world.ends[1].seen.insert(13, 13, |_, _| {});
        let (counts, faults) = judged(&world);
        assert_eq!((faults, counts.watchers_equal), (vec![Fault::Lost], 1));
        world.ends[1].is_filled = false;
        let (counts, faults) = judged(&world);
        assert_eq!((faults, counts.watchers_judged), (vec![], 1));
    }

    #[test]
    fn a_watcher_that_was_shown_more_than_there_is_fails_whether_it_fills_or_not() {
        let mut world = right();
        world.ends[0] = End { is_filled: false, ..end(14) };
        assert_eq!(judged(&world).1, [Fault::NotArchived]);
    }

    #[test]
    fn an_accepted_message_must_be_stored_once_under_its_id() {
        let mut world = right();
        world.history.pop();
        world.last_seq = 12;
        (world.seen, world.ends) = (world.history.clone(), vec![end(12)]);
        assert_eq!(judged(&world).1, [Fault::Lost]);

        let mut world = right();
        world.fates[1] = Fate::Accepted([9; 16]);
        assert_eq!(judged(&world).1, [Fault::WrongId]);

        let mut world = right();
        world.history.push(message(14, 0));
        world.last_seq = 14;
        (world.seen, world.ends) = (world.history.clone(), vec![end(14)]);
        assert_eq!(judged(&world).1, [Fault::StoredTwice]);
    }

    #[test]
    fn a_gap_in_the_history_is_found_in_its_middle_and_at_its_end() {
        let mut world = right();
        world.history.remove(1);
        world.fates[1] = Fate::Refused;
        world.seen = world.history.clone();
        assert_eq!(judged(&world).1, [Fault::Gap]);
        let mut world = right();
        world.last_seq = 15;
        world.ends = vec![end(15)];
        assert_eq!(judged(&world).1, [Fault::Gap]);
    }

    #[test]
    fn refusals_and_silence_are_told_apart() {
        let mut world = right();
        world.fates[0] = Fate::Refused;
        assert_eq!(judged(&world).1, [Fault::RefusedYetDelivered]);
        world.fates[0] = Fate::NeverWritten;
        assert_eq!(judged(&world).1, [Fault::NeverSent]);
        world.fates[..2].copy_from_slice(&[Fate::Unanswered, Fate::GivenUp]);
        let (counts, faults) = judged(&world);
        assert_eq!((faults, counts.uncertain, counts.unanswered, counts.refused), (vec![], 2, 1, 1));
    }

    #[test]
    fn what_was_shown_must_be_what_is_stored() {
        let mut world = right();
        world.seen[1] = message(12, 2);
        world.seen[2] = message(13, 1);
        assert_eq!(judged(&world).1, [Fault::Disagreement]);
        let mut world = right();
        world.seen.push(message(14, 2));
        assert_eq!(judged(&world).1, [Fault::NotArchived]);
    }
}
