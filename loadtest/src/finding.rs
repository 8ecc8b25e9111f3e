//! What can be wrong, and what was: a closed catalogue of faults, each counted and with its first examples.

use std::collections::BTreeMap;

use serde::Serialize;

/// Examples kept per fault: enough to begin a search with.
const EXAMPLES_MAX: usize = 5;

/// A broken promise of the server. Any one of them fails a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// An accepted message did not reach a receiver.
    Lost,
    /// A receiver got one sequence twice.
    Doubled,
    /// A receiver got a sequence after a later one.
    Reordered,
    /// A sequence was left out.
    Gap,
    /// Two receivers got different messages under one sequence.
    Disagreement,
    /// One message was stored under two sequences.
    StoredTwice,
    /// A message was delivered under another id than it was acknowledged with.
    WrongId,
    /// A message was refused for good and yet delivered, or accepted and then refused.
    RefusedYetDelivered,
    /// A message nobody sent.
    NeverSent,
    /// A body is not what was sent.
    Altered,
    /// A message of a conversation the receiver is no member of.
    Foreign,
    /// The epoch changed though nothing was to be lost.
    EpochChanged,
    /// Bytes or answers that the protocol does not allow.
    Protocol,
    /// A connection was closed.
    Closed,
    /// A command got no answer within the deadline.
    Unanswered,
    /// A valid command, login or connection was refused for good.
    Refused,
    /// A receiver was shown what the archive does not have.
    NotArchived,
    /// A position, read watermark or unread count is not what the messages say.
    WrongPosition,
    /// A message reached a live connection only when it asked, though nothing was broken.
    NotPushed,
    /// A gateway ended by itself.
    Crashed,
    /// Something did not work again though everything had been mended.
    NotRecovered,
}

/// How often each fault was found.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Findings(BTreeMap<Fault, Finding>);

/// One fault's count and examples.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Finding {
    /// How often.
    pub count: u64,
    /// The first few, for people.
    pub examples: Vec<String>,
}

impl Findings {
    /// Counts a fault; the example is made only if it is among the first.
    pub fn add(&mut self, fault: Fault, example: impl FnOnce() -> String) {
        let finding = self.0.entry(fault).or_default();
        finding.count += 1;
        if finding.examples.len() < EXAMPLES_MAX {
            finding.examples.push(example());
        }
    }

    /// Adds another thread's findings.
    pub fn merge(&mut self, other: Self) {
        for (fault, theirs) in other.0 {
            let ours = self.0.entry(fault).or_default();
            ours.count += theirs.count;
            ours.examples.extend(theirs.examples);
            ours.examples.truncate(EXAMPLES_MAX);
        }
    }

    /// True if nothing was wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each fault with its finding.
    pub fn iter(&self) -> impl Iterator<Item = (Fault, &Finding)> {
        self.0.iter().map(|(fault, finding)| (*fault, finding))
    }

    /// How often a fault was found.
    #[cfg(test)]
    pub fn count(&self, fault: Fault) -> u64 {
        self.0.get(&fault).map_or(0, |finding| finding.count)
    }
}
