//! What a connection in the background is told instead of messages: how many came, and up to where.
//!
//! In come the places of pushes that passed it by; out goes, once a second at most, one Counts frame for all of them. Always:
//! a connection costs nothing here unless something came since it was told last, and then some bytes per conversation, never a
//! message. Of more than [`COUNTS_MAX`] conversations only that is told.

use bytes::BytesMut;
use rustc_hash::FxHashMap;
use tidegate_core::ids::{ConversationId, Epoch, Place, Seq};
use tidegate_core::limits::COUNTS_MAX;
use tidegate_proto::{Kind, frame, v1};

use super::behind;

/// An encoded Count with its share of the frame around it: 42 bytes of text, three numbers, and what precedes each. The smallest
/// frame that can be configured holds some.
const COUNT_BYTES_MAX: usize = 80;

/// See the module.
#[derive(Debug, Default)]
pub struct Counts {
    conversations: FxHashMap<ConversationId, Count>,
    is_too_much: bool,
}

/// What came in one conversation.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    epoch: Epoch,
    last: Seq,
    from_others: u32,
}

impl Counts {
    /// A push passed by: so many messages from others, the last of all at `place`.
    pub fn add(&mut self, conversation: ConversationId, place: Place, from_others: u32) {
        if self.is_too_much {
            return;
        }
        if self.conversations.len() >= COUNTS_MAX && !self.conversations.contains_key(&conversation) {
            *self = Self { is_too_much: true, ..Self::default() };
            return;
        }
        let count = self.conversations.entry(conversation).or_default();
        if place.epoch > count.epoch {
            *count = Count { epoch: place.epoch, ..Count::default() };
        }
        // A repetition of an old push changes nothing.
        if place.epoch == count.epoch && place.seq > count.last {
            count.last = place.seq;
            count.from_others = count.from_others.saturating_add(from_others);
        }
    }

    /// Forgets what came.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The frame that says so to one of so many connections, or several where a small `frame_bytes_max` asks for it. Empty if
    /// nothing came.
    #[must_use]
    pub fn frames(&self, connections: usize, frame_bytes_max: usize) -> BytesMut {
        let mut frames = BytesMut::new();
        if self.is_too_much {
            frame::put_payload(&mut frames, Kind::Behind, 0, &behind::in_any_conversation(connections));
            return frames;
        }
        let told = |(conversation, count): (&ConversationId, &Count)| v1::Count {
            conversation_id: conversation.to_string(),
            epoch: count.epoch.0,
            last_seq: count.last.0,
            new_messages: count.from_others,
        };
        let mut left = self.conversations.iter().map(told).peekable();
        while left.peek().is_some() {
            let counts = left.by_ref().take((frame_bytes_max / COUNT_BYTES_MAX).max(1)).collect();
            frame::put_message(&mut frames, Kind::Counts, 0, &v1::Counts { counts });
        }
        frames
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use tidegate_core::ids::{RoomId, UserId};
    use tidegate_core::limits::FRAME_BYTES_MAX;
    use tidegate_proto::Frame;

    use super::*;

    fn place(epoch: u32, seq: u64) -> Place {
        Place { epoch: Epoch(epoch), seq: Seq(seq) }
    }

    fn told(counts: &Counts, frame_bytes_max: usize) -> Vec<Frame> {
        let mut bytes = counts.frames(10, frame_bytes_max).freeze();
        std::iter::from_fn(|| frame::next_frame(&mut bytes, frame_bytes_max).expect("our own frames")).collect()
    }

    fn counts_of(frames: Vec<Frame>) -> Vec<(String, u32, u64, u32)> {
        let decode = |frame: Frame| {
            assert_eq!(frame.head.kind, Kind::Counts as u8);
            v1::Counts::decode(frame.payload).expect("a Counts").counts
        };
        let mut counts: Vec<_> = frames
            .into_iter()
            .flat_map(decode)
            .map(|count| (count.conversation_id, count.epoch, count.last_seq, count.new_messages))
            .collect();
        counts.sort();
        counts
    }

    #[test]
    fn each_conversation_has_one_count() {
        let (one, other) = (ConversationId::Room(RoomId(1)), ConversationId::Room(RoomId(2)));
        let mut counts = Counts::default();
        assert_eq!(told(&counts, FRAME_BYTES_MAX), []);
        for (conversation, seq, from_others) in [(one, 5, 1), (one, 6, 0), (other, 9, 0), (one, 20, 7), (one, 6, 1)] {
            counts.add(conversation, place(3, seq), from_others);
        }
        let frames = told(&counts, FRAME_BYTES_MAX);
        assert_eq!(frames.len(), 1);
        assert_eq!(counts_of(frames), [("r_1".to_owned(), 3, 20, 8), ("r_2".to_owned(), 3, 9, 0)]);
        counts.clear();
        assert_eq!(told(&counts, FRAME_BYTES_MAX), []);
    }

    #[test]
    fn a_new_epoch_begins_the_count_anew() {
        let room = ConversationId::Room(RoomId(1));
        let mut counts = Counts::default();
        for (epoch, seq) in [(1, 90), (2, 3), (1, 91), (2, 4)] {
            counts.add(room, place(epoch, seq), 1);
        }
        assert_eq!(counts_of(told(&counts, FRAME_BYTES_MAX)), [("r_1".to_owned(), 2, 4, 2)]);
    }

    #[test]
    fn what_is_too_much_to_count_is_told_as_that() {
        let mut counts = Counts::default();
        let longest = |n: u64| ConversationId::private(UserId(i64::MAX as u64 - n), UserId(i64::MAX as u64));
        let longest = |n| longest(n).expect("different users");
        for n in 1..=COUNTS_MAX as u64 {
            counts.add(longest(n), place(u32::MAX, i64::MAX as u64), u32::MAX);
        }
        counts.add(longest(1), place(u32::MAX, u64::MAX), u32::MAX);
        let frames = told(&counts, FRAME_BYTES_MAX);
        assert_eq!((frames.len(), counts_of(frames).len()), (1, COUNTS_MAX));
        let frames = told(&counts, 2048);
        assert_eq!((frames.len(), counts_of(frames).len()), (20, COUNTS_MAX), "small frames are several");
        for more in [0, 1] {
            counts.add(ConversationId::Room(RoomId(1 + more)), place(1, 1), 1);
            let frame = told(&counts, FRAME_BYTES_MAX).remove(0);
            assert_eq!(frame.head.kind, Kind::Behind as u8);
            let behind = v1::Behind::decode(frame.payload).expect("a Behind");
            assert_eq!((behind.conversation_id, behind.last_seq), (String::new(), 0));
        }
        assert!(counts.conversations.is_empty(), "and nothing is kept meanwhile");
    }
}
