//! Pacing: when the messages of rooms and lobbies leave for this gateway's watchers, and which of them leave together.
//!
//! In come messages in order; out come spans of them, each of which becomes one frame. A message leaves at once if the last
//! frame of its conversation is long enough ago: as long as the merged gear says, or as this gateway needs to write to so many
//! watchers, whichever is more. What comes in between waits for that moment, so that a lobby with ten thousand watchers costs
//! a bounded number of writes, at any rate.
//!
//! Always: the order is kept; nothing waits longer than that time; a message of the system takes with it what waits, at once;
//! a conversation nobody here watches does not come here at all.

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::ids::{ConversationId, Millis, Place, Seq, Span, UserId};

/// Watchers a gateway writes to in a millisecond without being busy with it: a write costs 3 to 5 µs of a core.
const WATCHERS_PER_MS: u64 = 50;

/// Below it a frame of its own is cheaper than the wait.
const PAUSE_MS_MIN: u64 = 10;

/// Conversations remembered before quiet ones are looked for.
const CONVERSATIONS_MANY: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pace {
    conversations: FxHashMap<ConversationId, Paced>,
    /// Those that hold something.
    holding: Vec<ConversationId>,
}

#[derive(Debug, Default)]
struct Paced {
    sent_at: Millis,
    due: Millis,
    held: Vec<Held>,
    bytes: usize,
}

/// A message that waits for its frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub place: Place,
    pub sender: UserId,
    /// Nothing it could be joined with was waited for.
    pub is_direct: bool,
    /// The encoded `tidegate.v1.Message`.
    pub payload: Bytes,
}

/// The time between two frames of a conversation with so many watchers here.
pub(super) fn pause_ms(watchers: u32, merge_ms: u64) -> u64 {
    let needed_ms = u64::from(watchers) / WATCHERS_PER_MS;
    merge_ms.max(if needed_ms < PAUSE_MS_MIN { 0 } else { needed_ms })
}

impl Pace {
    /// Takes a message in; it leaves with [`Pace::take_due`].
    pub(super) fn hold(&mut self, now: Millis, conversation: ConversationId, pause_ms: u64, held: Held) {
        if self.conversations.len() >= CONVERSATIONS_MANY {
            self.conversations.retain(|_, paced| !paced.held.is_empty() || paced.sent_at.0 + 1_000 > now.0);
        }
        let paced = self.conversations.entry(conversation).or_default();
        if paced.held.is_empty() {
            self.holding.push(conversation);
            paced.due = Millis(now.0.max(paced.sent_at.0.min(now.0) + pause_ms));
        }
        if held.sender == UserId::SYSTEM {
            paced.due = now;
        }
        paced.bytes += held.payload.len();
        paced.held.push(held);
    }

    /// What waits in a conversation leaves now.
    pub(super) fn hurry(&mut self, now: Millis, conversation: &ConversationId) {
        if let Some(paced) = self.conversations.get_mut(conversation).filter(|paced| !paced.held.is_empty()) {
            paced.due = now;
        }
    }

    /// Gives what is due, or more than `bytes_max`, conversation by conversation.
    pub(super) fn take_due(&mut self, now: Millis, bytes_max: usize, mut give: impl FnMut(ConversationId, Vec<Held>)) {
        let conversations = &mut self.conversations;
        self.holding.retain(|conversation| {
            let Some(paced) = conversations.get_mut(conversation) else { return false };
            if paced.due > now && paced.bytes <= bytes_max {
                return true;
            }
            paced.sent_at = now;
            paced.bytes = 0;
            give(*conversation, std::mem::take(&mut paced.held));
            false
        });
    }

    /// When something is due next.
    pub(super) fn next_due(&self) -> Option<Millis> {
        self.holding.iter().filter_map(|conversation| self.conversations.get(conversation)).map(|paced| paced.due).min()
    }
}

impl Held {
    /// Whether it has a frame of its own: the system's are never merged.
    fn is_alone(&self) -> bool {
        self.is_direct || self.sender == UserId::SYSTEM
    }
}

/// Cuts messages into runs that fit a frame: of consecutive places, and of at most so many bytes unless one alone is larger.
pub(super) fn runs(held: &[Held], bytes_max: usize) -> impl Iterator<Item = (Span, &[Held])> {
    let mut rest = held;
    std::iter::from_fn(move || {
        let first = rest.first()?;
        let mut bytes = 0;
        let mut expected = first.place;
        let follows = |held: &&Held| {
            bytes += held.payload.len() + 8;
            let has_room = bytes <= bytes_max && !held.is_alone() && !first.is_alone();
            let follows = held.place == expected && (has_room || held.place == first.place);
            expected = Place { seq: expected.seq.next(), ..expected };
            follows
        };
        let count = rest.iter().take_while(follows).count();
        let (run, others) = rest.split_at(count);
        rest = others;
        let last = Seq(first.place.seq.0 + count as u64 - 1);
        Some((Span { epoch: first.place.epoch, first: first.place.seq, last }, run))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;

    fn message(seq: u64, sender: u64) -> Held {
        let place = Place { epoch: Epoch(1), seq: Seq(seq) };
        Held { place, sender: UserId(sender), is_direct: false, payload: Bytes::from(vec![0; 100]) }
    }

    fn lobby() -> ConversationId {
        "lobby_main".parse().expect("a lobby")
    }

    fn taken(pace: &mut Pace, ms: u64) -> Vec<u64> {
        let mut seqs = Vec::new();
        pace.take_due(Millis(ms), 1_000, |_, held| seqs.extend(held.iter().map(|held| held.place.seq.0)));
        seqs
    }

    #[test]
    fn the_first_leaves_at_once_and_others_share_the_next_frame() {
        let mut pace = Pace::default();
        pace.hold(Millis(5_000), lobby(), 50, message(1, 7));
        assert_eq!(taken(&mut pace, 5_000), [1]);
        pace.hold(Millis(5_010), lobby(), 50, message(2, 7));
        pace.hold(Millis(5_020), lobby(), 50, message(3, 8));
        assert_eq!((taken(&mut pace, 5_020), pace.next_due()), (vec![], Some(Millis(5_050))));
        assert_eq!(taken(&mut pace, 5_050), [2, 3]);
        pace.hold(Millis(5_100), lobby(), 50, message(4, 7));
        assert_eq!((taken(&mut pace, 5_100), pace.next_due()), (vec![4], None));
    }

    #[test]
    fn the_system_does_not_wait_and_overtakes_nobody() {
        let mut pace = Pace::default();
        pace.hold(Millis(5_000), lobby(), 50, message(1, 7));
        taken(&mut pace, 5_000);
        pace.hold(Millis(5_001), lobby(), 50, message(2, 7));
        pace.hold(Millis(5_002), lobby(), 50, message(3, 0));
        assert_eq!(taken(&mut pace, 5_002), [2, 3]);
    }

    #[test]
    fn more_bytes_than_a_frame_do_not_wait() {
        let mut pace = Pace::default();
        pace.hold(Millis(5_000), lobby(), 50, message(1, 7));
        taken(&mut pace, 5_000);
        (2..=12).for_each(|seq| pace.hold(Millis(5_001), lobby(), 50, message(seq, 7)));
        assert_eq!(taken(&mut pace, 5_001).len(), 11);
    }

    #[test]
    fn watchers_make_the_pause_longer_but_few_do_not() {
        assert_eq!([0, 20, 499, 500, 10_000, 1_000_000].map(|n| pause_ms(n, 0)), [0, 0, 0, 10, 200, 20_000]);
        assert_eq!([20, 10_000].map(|n| pause_ms(n, 50)), [50, 200]);
    }

    #[test]
    fn a_run_ends_at_a_gap_and_where_the_frame_is_full() {
        let held: Vec<Held> = [1, 2, 3, 5, 6].into_iter().map(|seq| message(seq, 7)).collect();
        let spans = |bytes_max| {
            runs(&held, bytes_max).map(|(span, run)| (span.first.0, span.last.0, run.len())).collect::<Vec<_>>()
        };
        assert_eq!(spans(1_000), [(1, 3, 3), (5, 6, 2)]);
        assert_eq!(spans(220), [(1, 2, 2), (3, 3, 1), (5, 6, 2)]);
        assert_eq!(spans(10).len(), 5);
        let mut held = held.clone();
        held[1].sender = UserId::SYSTEM;
        assert_eq!(runs(&held, 1_000).count(), 4, "the system's has a frame of its own");
    }
}
