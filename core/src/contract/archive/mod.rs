//! What every archive must do, as cases over [`Archive`].
//!
//! Each case takes an empty archive and panics where the archive breaks the contract of the port. An adapter's test file
//! runs them all with [`archive_contract!`](crate::archive_contract), so that a new case reaches every backend. Always:
//! a case uses nothing but the port, and neither sleeps nor depends on another.

pub mod message_cases;
pub mod people_cases;
pub mod standing_cases;

use bytes::Bytes;
use tidegate_proto::v1::ContentType;

use crate::event::{ReceiptMoved, StoredMessage};
use crate::ids::{ConversationId, MessageId, Millis, RoomId, Seq, UserId};
use crate::ports::{Archive, Page, PersistBatch, PortError, Standing};

/// Makes one `#[tokio::test]` of each case. `$open` names an async function from the case's name to `Option<Box<A>>`, or
/// another owner of an archive; `None` skips the case.
#[macro_export]
macro_rules! archive_contract {
    ($open:path) => {
        $crate::archive_contract! { @cases $open,
            message_cases: an_empty_archive_knows_nothing,
            message_cases: history_has_pages_in_three_directions,
            message_cases: bodies_come_back_as_they_were,
            message_cases: a_repeated_batch_changes_nothing,
            message_cases: a_partly_stored_batch_is_completed,
            message_cases: a_taken_sequence_refuses_the_whole_batch,
            message_cases: a_taken_id_refuses_the_whole_batch,
            message_cases: a_batch_that_contradicts_itself_is_refused,
            message_cases: stored_messages_are_found_by_id,
            message_cases: batches_of_any_width_are_kept,
            message_cases: what_each_reader_misses_comes_in_one_answer,
            message_cases: conversations_are_persisted_side_by_side,
            message_cases: one_batch_persisted_twice_at_once_is_kept_once,
            standing_cases: the_end_of_each_conversation_is_known,
            standing_cases: a_new_epoch_is_greater_and_its_conversations_alone,
            standing_cases: own_messages_are_not_unread,
            standing_cases: watermarks_never_go_back,
            standing_cases: watermarks_of_members_are_seen,
            standing_cases: receipts_without_standing_are_ignored,
            standing_cases: standings_come_newest_first,
            standing_cases: standings_of_strangers_count_from_the_start,
            standing_cases: what_was_before_a_join_is_not_unread,
            people_cases: names_differ_by_more_than_case,
            people_cases: one_of_many_gets_a_name,
            people_cases: users_are_found_by_id,
            people_cases: rooms_are_listed_newest_first,
            people_cases: rooms_are_found_by_id_with_their_slow_mode,
            people_cases: a_room_takes_no_more_than_its_capacity,
            people_cases: members_come_and_go,
        }
    };
    (@cases $open:path, $($module:ident: $case:ident,)+) => {
        $(
            #[tokio::test]
            async fn $case() {
                if let Some(archive) = $open(stringify!($case)).await {
                    $crate::contract::archive::$module::$case(&*archive).await;
                }
            }
        )+
    };
}

const ANN: UserId = UserId(1);
const BOB: UserId = UserId(2);
const EVE: UserId = UserId(3);

/// The private conversation of Ann and Bob.
const ANN_BOB: ConversationId = ConversationId::Private { low: ANN, high: BOB };

const NOON: Millis = Millis(1_800_000_000_000);

/// A message whose id follows from its place, sent `seq` milliseconds after noon.
#[must_use]
pub fn message(conversation: ConversationId, seq: u64, sender: UserId) -> StoredMessage {
    let mut id = [0; 16];
    for (index, byte) in conversation.to_string().bytes().enumerate() {
        let cell: &mut u8 = &mut id[index % 8];
        *cell = cell.wrapping_mul(31).wrapping_add(byte);
    }
    id[8..].copy_from_slice(&seq.to_be_bytes());
    StoredMessage {
        conversation,
        seq: Seq(seq),
        message_id: MessageId(id),
        sender,
        sent_at: Millis(NOON.0 + seq),
        content_type: ContentType::Text,
        body: Bytes::from(format!("{conversation} {seq}")),
    }
}

/// Messages `seqs` of a conversation, all from one sender.
#[must_use]
pub fn messages(
    conversation: ConversationId,
    seqs: std::ops::RangeInclusive<u64>,
    sender: UserId,
) -> Vec<StoredMessage> {
    seqs.map(|seq| message(conversation, seq, sender)).collect()
}

/// A batch of messages only.
#[must_use]
pub fn batch(messages: Vec<StoredMessage>) -> PersistBatch {
    PersistBatch { messages, receipts: Vec::new() }
}

fn receipt(user: UserId, conversation: ConversationId, delivered: u64, read: u64) -> PersistBatch {
    let receipt = ReceiptMoved { conversation, user, delivered: Seq(delivered), read: Seq(read) };
    PersistBatch { messages: Vec::new(), receipts: vec![receipt] }
}

fn lobby(name: &str) -> ConversationId {
    ConversationId::Lobby(name.parse().expect("a lobby's name"))
}

fn room(id: u64) -> ConversationId {
    ConversationId::Room(RoomId(id))
}

async fn persist<A: Archive>(archive: &A, batch: PersistBatch) {
    archive.persist(&batch).await.expect("a legal batch is persisted");
}

async fn conflicts<A: Archive>(archive: &A, batch: PersistBatch) {
    let answer = archive.persist(&batch).await;
    assert!(matches!(answer, Err(PortError::Conflict { .. })), "a contradiction is a conflict, but: {answer:?}");
}

async fn seqs<A: Archive>(archive: &A, conversation: ConversationId, page: Page, size: u32) -> Vec<u64> {
    let page = archive.history(conversation, page, size).await.expect("a page");
    page.iter().map(|message| message.seq.0).collect()
}

async fn last<A: Archive>(archive: &A, conversation: ConversationId) -> u64 {
    lasts(archive, &[conversation]).await[0]
}

async fn lasts<A: Archive>(archive: &A, conversations: &[ConversationId]) -> Vec<u64> {
    let ends = archive.ends(conversations).await.expect("ends");
    ends.iter().map(|end| end.last.0).collect()
}

async fn standing<A: Archive>(archive: &A, user: UserId, conversation: ConversationId) -> Standing {
    archive.standings_of(&[(user, conversation)]).await.expect("a standing")[0]
}

async fn new_room<A: Archive>(archive: &A, name: &str, owner: UserId, capacity: u32) -> RoomId {
    archive.create_room(name, owner, capacity, NOON).await.expect("a room").id
}
