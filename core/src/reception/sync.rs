//! What a client misses: many conversations in one answer, each whole or not at all.
//!
//! In come positions and what the user may read; out come [`v1::Synced`] entries that fit a frame. Two reads, whatever the
//! number of conversations: where they end, then what is missing. Always: an entry that says "whole" holds everything above
//! the client's position up to the end it names; what a later message adds is pushed, because whoever syncs is registered
//! for pushes already.

use futures_util::future::try_join;
use prost::Message as _;
use tidegate_proto::v1::{self, SyncOutcome};

use super::framed_len;
use crate::delivery::{Access, SyncFrom};
use crate::event::StoredMessage;
use crate::ids::{ConversationId, Epoch, Seq, UserId};
use crate::limits::{SYNC_FETCH_MAX, SYNC_MESSAGES_MAX};
use crate::ports::{Archive, PortResult, Standing};

/// Bytes of an entry without messages, at most; less would leave a frame that not even "reload" fits.
const ENTRY_BYTES_MAX: usize = 96;

/// What the conversation and the user's place in it look like now. A lobby has no place.
#[derive(Clone, Copy)]
struct Now {
    epoch: Epoch,
    last: Seq,
    read: Seq,
    unread: u32,
}

/// Answers as many of the positions, from the first on, as find room in `room_bytes`. A gap that would not fit
/// `frame_bytes` alone is answered "reload".
///
/// # Errors
/// The archive's.
pub(super) async fn synced<A: Archive>(
    archive: &A,
    user: UserId,
    positions: &[(SyncFrom, Access)],
    room_bytes: usize,
    frame_bytes: usize,
) -> PortResult<Vec<v1::Synced>> {
    let now = look_up(archive, user, positions).await?;
    let plan: Vec<Step> = positions.iter().zip(now).map(|((from, _), now)| Step { from: *from, now }).collect();
    let answered = plan.len().min(within_fetch(&plan));
    let gaps: Vec<(ConversationId, Seq)> = plan[..answered]
        .iter()
        .filter(|step| step.missing() > 0)
        .map(|step| (step.from.conversation, step.from.seq))
        .collect();
    let found = if gaps.is_empty() { Vec::new() } else { archive.missing(&gaps, SYNC_MESSAGES_MAX).await? };
    Ok(pack(&plan[..answered], found, room_bytes, frame_bytes))
}

/// One position and what was found for it; nothing if it is none of the user's.
#[derive(Clone, Copy)]
struct Step {
    from: SyncFrom,
    now: Option<Now>,
}

impl Step {
    fn outcome(&self) -> SyncOutcome {
        let Some(now) = self.now else { return SyncOutcome::NotMember };
        // Who knows nothing of it can be given it from its beginning.
        let is_comparable = self.from.epoch == now.epoch || (self.from.epoch == Epoch(0) && self.from.seq == Seq(0));
        match now.last.0.checked_sub(self.from.seq.0) {
            Some(gap) if is_comparable && gap <= u64::from(SYNC_MESSAGES_MAX) => SyncOutcome::Whole,
            // Too far behind, or ahead of what the archive has: it lost something that was shown.
            _ => SyncOutcome::Reload,
        }
    }

    /// Messages to read for it.
    fn missing(&self) -> u64 {
        match (self.outcome(), self.now) {
            (SyncOutcome::Whole, Some(now)) => now.last.0 - self.from.seq.0,
            _ => 0,
        }
    }

    fn entry(&self, outcome: SyncOutcome, messages: Vec<v1::Message>, last: Seq) -> v1::Synced {
        v1::Synced {
            conversation_id: self.from.conversation.to_string(),
            epoch: self.now.map_or(0, |now| now.epoch.0),
            last_seq: last.0,
            outcome: outcome.into(),
            messages,
            read_seq: self.now.map_or(0, |now| now.read.0),
            unread: self.now.map_or(0, |now| now.unread),
        }
    }
}

/// Where everything the user may read ends, in the positions' order.
async fn look_up<A: Archive>(
    archive: &A,
    user: UserId,
    positions: &[(SyncFrom, Access)],
) -> PortResult<Vec<Option<Now>>> {
    let is_lobby = |conversation: &ConversationId| matches!(conversation, ConversationId::Lobby(_));
    let readable = positions.iter().filter(|(_, access)| *access == Access::Granted).map(|(from, _)| from.conversation);
    let (lobbies, others): (Vec<_>, Vec<_>) = readable.partition(is_lobby);
    let others: Vec<_> = others.into_iter().map(|conversation| (user, conversation)).collect();
    let ends = async { if lobbies.is_empty() { Ok(Vec::new()) } else { archive.ends(&lobbies).await } };
    let standings = async { if others.is_empty() { Ok(Vec::new()) } else { archive.standings_of(&others).await } };
    let (ends, standings) = try_join(ends, standings).await?;
    let (mut ends, mut standings) = (ends.into_iter(), standings.into_iter());
    let of = |(from, access): &(SyncFrom, Access)| match (access, is_lobby(&from.conversation)) {
        (Access::Denied, _) => None,
        (Access::Granted, true) => {
            ends.next().map(|end| Now { epoch: end.epoch, last: end.last, read: Seq(0), unread: 0 })
        }
        (Access::Granted, false) => {
            standings.next().map(|Standing { epoch, last, read, unread, .. }| Now { epoch, last, read, unread })
        }
    };
    Ok(positions.iter().map(of).collect())
}

/// How many steps may be read together; at least one.
fn within_fetch(plan: &[Step]) -> usize {
    let mut messages = 0;
    let fits = |step: &&Step| {
        messages += step.missing();
        messages <= SYNC_FETCH_MAX
    };
    plan.iter().take_while(fits).count().max(1)
}

fn pack(plan: &[Step], found: Vec<Vec<StoredMessage>>, room_bytes: usize, frame_bytes: usize) -> Vec<v1::Synced> {
    let mut found = found.into_iter();
    let mut entries = Vec::with_capacity(plan.len());
    let mut bytes = 0;
    for step in plan {
        let entry = entry(step, &mut found, frame_bytes);
        bytes += framed_len(entry.encoded_len());
        if bytes > room_bytes {
            break;
        }
        entries.push(entry);
    }
    entries
}

fn entry(step: &Step, found: &mut impl Iterator<Item = Vec<StoredMessage>>, frame_bytes: usize) -> v1::Synced {
    let outcome = step.outcome();
    let Some(now) = step.now else { return step.entry(outcome, Vec::new(), Seq(0)) };
    if step.missing() == 0 {
        return step.entry(outcome, Vec::new(), now.last);
    }
    let mut messages = found.next().unwrap_or_default();
    // What came between the two reads is not counted in `unread`, and is pushed.
    messages.retain(|message| message.seq <= now.last);
    if messages.len() as u64 != step.missing() {
        return step.entry(SyncOutcome::Reload, Vec::new(), now.last);
    }
    let messages = messages.iter().map(|message| message.to_wire(now.epoch)).collect();
    let entry = step.entry(SyncOutcome::Whole, messages, now.last);
    if framed_len(entry.encoded_len()) + ENTRY_BYTES_MAX > frame_bytes {
        return step.entry(SyncOutcome::Reload, Vec::new(), now.last);
    }
    entry
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt as _;

    use super::*;
    use crate::ids::{LobbyName, MessageId, Millis, RoomId};
    use crate::ports::PersistBatch;
    use crate::twins::archive::MemoryArchive;

    const ANNA: UserId = UserId(1);
    const BEN: UserId = UserId(2);
    const FRAME: usize = 64 * 1024;

    fn lobby() -> ConversationId {
        ConversationId::Lobby("lobby_main".parse::<LobbyName>().expect("legal"))
    }

    fn private() -> ConversationId {
        ConversationId::private(ANNA, BEN).expect("two users")
    }

    /// An archive of epoch 7 with so many messages of ben's per conversation.
    fn archive(conversations: &[(ConversationId, u64, usize)]) -> MemoryArchive {
        let archive = MemoryArchive::with_epoch(Epoch(7));
        let mut batch = PersistBatch::default();
        for (conversation, count, body_bytes) in conversations {
            for seq in 1..=*count {
                let id = blake3::hash(format!("{conversation} {seq}").as_bytes());
                batch.messages.push(StoredMessage {
                    conversation: *conversation,
                    seq: Seq(seq),
                    message_id: MessageId::from_wire(&id.as_bytes()[..16]).expect("16 bytes"),
                    sender: BEN,
                    sent_at: Millis(seq),
                    content_type: v1::ContentType::Text,
                    body: Bytes::from(vec![b'x'; *body_bytes]),
                });
            }
        }
        archive.persist(&batch).now_or_never().expect("at once").expect("stored");
        archive
    }

    fn from(conversation: ConversationId, epoch: u32, seq: u64) -> (SyncFrom, Access) {
        (SyncFrom { conversation, epoch: Epoch(epoch), seq: Seq(seq) }, Access::Granted)
    }

    fn ask(archive: &MemoryArchive, positions: &[(SyncFrom, Access)], room_bytes: usize) -> Vec<v1::Synced> {
        let synced = synced(archive, ANNA, positions, room_bytes, FRAME);
        synced.now_or_never().expect("at once").expect("an answer")
    }

    fn seqs(entry: &v1::Synced) -> Vec<u64> {
        entry.messages.iter().map(|message| message.seq).collect()
    }

    #[test]
    fn many_conversations_are_in_sync_after_one_answer() {
        let room = ConversationId::Room(RoomId(5));
        let archive = archive(&[(private(), 4, 1), (room, 2, 1), (lobby(), 3, 1)]);
        let synced = ask(&archive, &[from(private(), 7, 1), from(room, 7, 2), from(lobby(), 0, 0)], FRAME);
        let got: Vec<_> = synced.iter().map(|entry| (entry.outcome(), seqs(entry), entry.last_seq)).collect();
        let whole = SyncOutcome::Whole;
        assert_eq!(got, [(whole, vec![2, 3, 4], 4), (whole, vec![], 2), (whole, vec![1, 2, 3], 3)]);
        assert!(synced.iter().all(|entry| entry.epoch == 7));
        assert_eq!((synced[0].unread, synced[0].read_seq, synced[2].unread), (4, 0, 0));
    }

    #[test]
    fn what_cannot_be_made_whole_is_to_be_reloaded_and_holds_nothing() {
        let archive = archive(&[(private(), 201, 1)]);
        for position in [from(private(), 7, 0), from(private(), 6, 200), from(private(), 8, 0), from(private(), 7, 202)]
        {
            let synced = ask(&archive, &[position], FRAME);
            assert_eq!((synced[0].outcome(), synced[0].messages.len()), (SyncOutcome::Reload, 0), "{position:?}");
            assert_eq!((synced[0].epoch, synced[0].last_seq), (7, 201));
        }
        assert_eq!(seqs(&ask(&archive, &[from(private(), 7, 1)], FRAME)[0]).len(), 200, "the longest gap there is");
    }

    #[test]
    fn a_gap_that_no_frame_holds_is_to_be_reloaded() {
        let archive = archive(&[(private(), 5, 16 * 1024)]);
        assert_eq!(ask(&archive, &[from(private(), 7, 0)], FRAME)[0].outcome(), SyncOutcome::Reload);
        assert_eq!(seqs(&ask(&archive, &[from(private(), 7, 2)], FRAME)[0]), [3, 4, 5]);
    }

    #[test]
    fn what_finds_no_room_is_left_for_the_next_answer_and_never_cut() {
        let rooms: Vec<_> = (1..=9).map(|n| ConversationId::Room(RoomId(n))).collect();
        let archive = archive(&rooms.iter().map(|room| (*room, 4, 1000)).collect::<Vec<_>>());
        let mut positions: Vec<_> = rooms.iter().map(|room| from(*room, 7, 0)).collect();
        let mut answers = 0;
        while !positions.is_empty() {
            let synced = ask(&archive, &positions, 10_000);
            assert_eq!(synced.len(), positions.len().min(2), "two of 4 KB and a bit fit");
            for (entry, (from, _)) in synced.iter().zip(&positions) {
                assert_eq!(entry.conversation_id, from.conversation.to_string());
                assert_eq!((entry.outcome(), seqs(entry)), (SyncOutcome::Whole, vec![1, 2, 3, 4]));
            }
            positions.drain(..synced.len());
            answers += 1;
        }
        assert_eq!(answers, 5);
    }

    #[test]
    fn many_long_gaps_are_read_a_bounded_number_at_a_time() {
        let rooms: Vec<_> = (1..=4).map(|n| ConversationId::Room(RoomId(n))).collect();
        let archive = archive(&rooms.iter().map(|room| (*room, 150, 1)).collect::<Vec<_>>());
        let positions: Vec<_> = rooms.iter().map(|room| from(*room, 7, 0)).collect();
        assert_eq!(ask(&archive, &positions, usize::MAX).len(), 1, "150 and 150 are more than are read at once");
    }

    #[test]
    fn a_strangers_conversation_tells_nothing() {
        let archive = archive(&[(private(), 3, 1)]);
        let position = (from(private(), 7, 0).0, Access::Denied);
        let synced = ask(&archive, &[position, from(lobby(), 0, 0)], FRAME);
        let first = &synced[0];
        assert_eq!((first.outcome(), first.epoch, first.last_seq), (SyncOutcome::NotMember, 0, 0));
        assert_eq!(synced[1].outcome(), SyncOutcome::Whole);
    }
}
