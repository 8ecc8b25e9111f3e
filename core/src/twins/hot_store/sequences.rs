//! Sequences: the twin of `sequence.lua` and `settle.lua`.
//!
//! In come runs with the archive's end, one grant per run goes out.
//!
//! What must hold: sequences follow the end that was named, and none are given if the archive was further once. What is
//! known of that may be forgotten at any time: it proves that the archive went back, never where it is.

use super::aging::Aging;
use crate::ids::ConversationId;
use crate::ports::{End, SequenceGrant, SequenceRun};

/// Ends of half a million conversations are kept at least; some 50 bytes each.
const KEPT_GENERATION_MAX: usize = 500_000;

/// How far the archive is known to have been.
#[derive(Clone)]
pub(super) struct Sequences {
    kept: Aging<ConversationId, End>,
}

impl Default for Sequences {
    fn default() -> Self {
        Self { kept: Aging::new(KEPT_GENERATION_MAX) }
    }
}

impl Sequences {
    /// Answers one request; see [`crate::ports::HotStore::sequence`].
    pub(super) fn give(&mut self, runs: &[SequenceRun]) -> Vec<SequenceGrant> {
        let give = |run: &SequenceRun| {
            let kept = self.raise(run.conversation, run.end);
            if kept > run.end {
                SequenceGrant::Discontinuous { kept }
            } else {
                SequenceGrant::Given(run.end.last.next())
            }
        };
        runs.iter().map(give).collect()
    }

    /// See [`crate::ports::HotStore::settle`].
    pub(super) fn settle(&mut self, ends: &[(ConversationId, End)]) {
        for (conversation, end) in ends {
            self.raise(*conversation, *end);
        }
    }

    fn raise(&mut self, conversation: ConversationId, end: End) -> End {
        let kept = self.kept.get_or_default(conversation);
        *kept = end.max(*kept);
        *kept
    }
}
