//! Sequences: the twin of `sequence.lua`.
//!
//! A request comes in, one grant per run goes out.
//!
//! What must hold: a sequence is never given twice in a conversation, is above the floor, and the sequences above the floor
//! have no gap. A counter may be forgotten at any time; the next run then needs a floor, and what is pending stays above it.

use rustc_hash::FxHashMap;

use super::aging::Aging;
use crate::ids::{ConversationId, MessageId, Partition, Seq};
use crate::ports::{SequenceGrant, SequenceRequest, SequenceRun};

/// Counters of half a million conversations are kept at least; some 50 bytes each.
const COUNTERS_GENERATION_MAX: usize = 500_000;

/// Allocations of one partition that the archive is not known to hold, with their conversation.
type Pending = FxHashMap<MessageId, (ConversationId, Seq)>;

/// Last sequences and pending allocations.
pub(super) struct Sequences {
    last: Aging<ConversationId, Seq>,
    pending: FxHashMap<Partition, Pending>,
}

impl Default for Sequences {
    fn default() -> Self {
        Self { last: Aging::new(COUNTERS_GENERATION_MAX), pending: FxHashMap::default() }
    }
}

impl Sequences {
    /// Answers one request; see [`crate::ports::HotStore::sequence`].
    pub(super) fn give(&mut self, partition: Partition, request: &SequenceRequest) -> Vec<SequenceGrant> {
        let pending = self.pending.entry(partition).or_default();
        for message in &request.settled {
            pending.remove(message);
        }
        request.runs.iter().map(|run| give_run(&mut self.last, pending, run)).collect()
    }
}

#[cfg(test)]
impl Sequences {
    /// As if every counter had not been used for long.
    pub(super) fn forget_counters(&mut self) {
        self.last = Aging::new(COUNTERS_GENERATION_MAX);
    }
}

fn give_run(last: &mut Aging<ConversationId, Seq>, pending: &mut Pending, run: &SequenceRun) -> SequenceGrant {
    let known = |pending: &Pending, message: &MessageId| {
        pending.get(message).filter(|(conversation, _)| *conversation == run.conversation).map(|(_, seq)| *seq)
    };
    let counter = last.get_mut(&run.conversation).copied();
    let Some(mut highest) = counter.max(run.floor) else {
        // Nothing says how far the archive is: repeat what was given before, if that is all that is asked.
        let given: Option<Vec<Seq>> = run.messages.iter().map(|message| known(pending, message)).collect();
        return given.map_or(SequenceGrant::FloorNeeded, SequenceGrant::Given);
    };
    if counter.is_none() {
        // The counter was lost or never was. What was given by it and is not yet in the archive is above the floor.
        let same = pending.values().filter(|(conversation, _)| *conversation == run.conversation);
        highest = same.map(|(_, seq)| *seq).fold(highest, Seq::max);
    }
    highest = run.messages.iter().filter_map(|message| known(pending, message)).fold(highest, Seq::max);
    let mut given = Vec::with_capacity(run.messages.len());
    for message in &run.messages {
        let seq = known(pending, message).unwrap_or_else(|| {
            highest = highest.next();
            pending.insert(*message, (run.conversation, highest));
            highest
        });
        given.push(seq);
    }
    last.insert(run.conversation, highest);
    SequenceGrant::Given(given)
}
