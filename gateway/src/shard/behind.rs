//! What a connection missed of its rooms and lobbies because it did not keep up.
//!
//! In come pushes that found its outbox full; out goes, once the outbox has drained, one Behind frame per conversation. Until
//! then the conversation's pushes pass this connection by, so that what it did get has no hole in the middle. Always: it costs
//! a connection that keeps up one word, and one that does not some bytes per conversation, never a message.

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use smallvec::SmallVec;
use tidegate_core::ids::{ConversationId, Epoch, Seq, Span};
use tidegate_proto::{Kind, frame, v1};

/// See the module.
#[derive(Debug, Default)]
pub struct Behind {
    gaps: SmallVec<[(ConversationId, Gap); 1]>,
    skipped: u64,
}

/// What was skipped of one conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Gap {
    epoch: Epoch,
    /// The last message before it; zero if only other pushes were skipped.
    after: Seq,
    last: Seq,
}

impl Behind {
    /// Whether the conversation's pushes pass the connection by.
    #[must_use]
    pub fn is_in(&self, conversation: &ConversationId) -> bool {
        self.gaps.iter().any(|(behind, _)| behind == conversation)
    }

    /// A push of the conversation was not queued.
    pub fn skip(&mut self, conversation: ConversationId, span: Option<Span>) {
        self.skipped += 1;
        let at = self.gaps.iter().position(|(behind, _)| *behind == conversation).unwrap_or_else(|| {
            self.gaps.push((conversation, Gap::default()));
            self.gaps.len() - 1
        });
        let gap = &mut self.gaps[at].1;
        let Some(Span { epoch, first, last }) = span else { return };
        let after = Seq(first.0.saturating_sub(1));
        // The pushes of a conversation come in ascending order; a repetition of an old one changes nothing.
        if gap.last == Seq(0) || epoch > gap.epoch {
            *gap = Gap { epoch, after, last };
        } else if epoch == gap.epoch {
            gap.after = gap.after.min(after);
            gap.last = gap.last.max(last);
        }
    }

    /// Pushes that were skipped.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The conversations that pass it by.
    pub fn conversations(&self) -> impl Iterator<Item = ConversationId> {
        self.gaps.iter().map(|(conversation, _)| *conversation)
    }

    /// The frames that say so.
    #[must_use]
    pub fn frames(&self) -> BytesMut {
        let mut frames = BytesMut::new();
        for (conversation, gap) in &self.gaps {
            let behind = v1::Behind {
                conversation_id: conversation.to_string(),
                epoch: gap.epoch.0,
                after_seq: gap.after.0,
                last_seq: gap.last.0,
                spread_ms: 0,
            };
            frame::put_message(&mut frames, Kind::Behind, 0, &behind);
        }
        frames
    }
}

/// The payload that tells so many connections at once that pushes of any conversation may be missing. They ask within a
/// time that leaves each of them a share of the shard.
#[must_use]
pub fn in_any_conversation(connections: usize) -> Bytes {
    /// Connections that sync in the same millisecond.
    const PER_MS: usize = 1;
    const SPREAD_MS_MAX: u32 = 60_000;
    let spread_ms = u32::try_from(connections / PER_MS).unwrap_or(SPREAD_MS_MAX).min(SPREAD_MS_MAX);
    Bytes::from(v1::Behind { spread_ms, ..Default::default() }.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::ids::{Place, RoomId};

    fn place(epoch: u32, seq: u64) -> Option<Span> {
        Some(Place { epoch: Epoch(epoch), seq: Seq(seq) }.into())
    }

    fn told(behind: &Behind) -> Vec<(String, u32, u64, u64)> {
        let mut bytes = behind.frames().freeze();
        std::iter::from_fn(|| frame::next_frame(&mut bytes, 1 << 16).expect("our own frames"))
            .map(|frame| v1::Behind::decode(frame.payload).expect("a Behind"))
            .map(|told| (told.conversation_id, told.epoch, told.after_seq, told.last_seq))
            .collect()
    }

    #[test]
    fn a_gap_is_told_from_its_first_to_its_last_message() {
        let (one, other) = (ConversationId::Room(RoomId(1)), ConversationId::Room(RoomId(2)));
        let mut behind = Behind::default();
        for seq in 5..9 {
            behind.skip(one, place(3, seq));
        }
        behind.skip(other, None);
        behind.skip(one, place(3, 6));
        assert!(behind.is_in(&one) && behind.is_in(&other) && !behind.is_in(&ConversationId::Room(RoomId(3))));
        assert_eq!(behind.skipped(), 6);
        assert_eq!(told(&behind), [("r_1".to_owned(), 3, 4, 8), ("r_2".to_owned(), 0, 0, 0)]);
    }

    #[test]
    fn a_new_epoch_begins_the_gap_anew() {
        let room = ConversationId::Room(RoomId(1));
        let mut behind = Behind::default();
        for (epoch, seq) in [(1, 90), (2, 3), (1, 91), (2, 4)] {
            behind.skip(room, place(epoch, seq));
        }
        assert_eq!(told(&behind), [("r_1".to_owned(), 2, 2, 4)]);
    }
}
