//! What every archive must do, as cases over [`Archive`].
//!
//! Each case takes an empty archive and panics where the archive breaks the contract of the port. An adapter's test file
//! runs them all with [`archive_contract!`](crate::archive_contract), so that a new case reaches every backend. Always:
//! a case uses nothing but the port, and neither sleeps nor depends on another.

use bytes::Bytes;
use futures_util::future::join_all;
use tidegate_proto::v1::ContentType;

use crate::event::{ReceiptMoved, StoredMessage};
use crate::ids::{ConversationId, Epoch, MessageId, Millis, RoomId, Seq, UserId};
use crate::limits::{BODY_BYTES_MAX, INGEST_BATCH_MAX};
use crate::ports::{Archive, Joined, Page, PersistBatch, PortError, Standing};

/// Makes one `#[tokio::test]` of each case. `$open` names an async function from the case's name to `Option<Box<A>>`, or
/// another owner of an archive; `None` skips the case.
#[macro_export]
macro_rules! archive_contract {
    ($open:path) => {
        $crate::archive_contract! { $open:
            an_empty_archive_knows_nothing, history_has_pages_in_three_directions, bodies_come_back_as_they_were,
            a_repeated_batch_changes_nothing, a_partly_stored_batch_is_completed,
            a_taken_sequence_refuses_the_whole_batch, a_taken_id_refuses_the_whole_batch,
            a_batch_that_contradicts_itself_is_refused, stored_messages_are_found_by_id,
            batches_of_any_width_are_kept, the_last_sequence_of_each_conversation_is_known,
            own_messages_are_not_unread, watermarks_never_go_back, receipts_without_standing_are_ignored,
            standings_come_newest_first, standings_of_strangers_count_from_the_start,
            names_differ_by_more_than_case, one_of_many_gets_a_name, users_are_found_by_id,
            rooms_are_listed_newest_first, a_room_takes_no_more_than_its_capacity, what_was_before_a_join_is_not_unread,
            members_come_and_go, conversations_are_persisted_side_by_side, one_batch_persisted_twice_at_once_is_kept_once,
        }
    };
    ($open:path: $($case:ident),+ $(,)?) => {
        $(
            #[tokio::test]
            async fn $case() {
                if let Some(archive) = $open(stringify!($case)).await {
                    $crate::contract::archive::$case(&*archive).await;
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

async fn refused<A: Archive>(archive: &A, batch: PersistBatch) {
    let answer = archive.persist(&batch).await;
    assert!(matches!(answer, Err(PortError::Refused { .. })), "a broken invariant is refused, but: {answer:?}");
}

async fn seqs<A: Archive>(archive: &A, conversation: ConversationId, page: Page, size: u32) -> Vec<u64> {
    let page = archive.history(conversation, page, size).await.expect("a page");
    page.iter().map(|message| message.seq.0).collect()
}

async fn last<A: Archive>(archive: &A, conversation: ConversationId) -> u64 {
    archive.last_seqs(&[conversation]).await.expect("a sequence")[0].0
}

async fn standing<A: Archive>(archive: &A, user: UserId, conversation: ConversationId) -> Standing {
    archive.standings_of(&[(user, conversation)]).await.expect("a standing")[0]
}

async fn new_room<A: Archive>(archive: &A, name: &str, owner: UserId, capacity: u32) -> RoomId {
    archive.create_room(name, owner, capacity, NOON).await.expect("a room").id
}

/// Nothing is invented.
pub async fn an_empty_archive_knows_nothing<A: Archive>(archive: &A) {
    assert_ne!(archive.epoch(), Epoch(0));
    assert_eq!(archive.ping().await, Ok(()));
    assert_eq!(archive.persist(&PersistBatch::default()).await, Ok(()));
    assert_eq!(archive.find(&[]).await, Ok(vec![]));
    assert_eq!(archive.find(&[MessageId([7; 16])]).await, Ok(vec![]));
    assert_eq!(archive.last_seqs(&[]).await, Ok(vec![]));
    assert_eq!(archive.last_seqs(&[ANN_BOB, lobby("lobby_main")]).await, Ok(vec![Seq(0), Seq(0)]));
    assert_eq!(archive.history(ANN_BOB, Page::Newest, 10).await, Ok(vec![]));
    assert_eq!(archive.standings(ANN, 10).await, Ok(vec![]));
    assert_eq!(archive.standings_of(&[]).await, Ok(vec![]));
    assert_eq!(archive.users(&[]).await, Ok(vec![]));
    assert_eq!(archive.user_by_name("ann").await, Ok(None));
    assert_eq!(archive.room(RoomId(1)).await, Ok(None));
    assert_eq!(archive.rooms(None, 10).await, Ok(vec![]));
    assert_eq!(archive.members(&[]).await, Ok(vec![]));
    assert_eq!(archive.members(&[RoomId(1)]).await, Ok(vec![vec![]]));
    assert_eq!(archive.rooms_of(ANN).await, Ok(vec![]));
    assert_eq!(archive.join_room(RoomId(1), ANN, NOON).await, Ok(Joined::NoRoom));
    assert_eq!(archive.leave_room(RoomId(1), ANN).await, Ok(false));
}

/// Pages are ascending, hold at most their size and end at the edges.
pub async fn history_has_pages_in_three_directions<A: Archive>(archive: &A) {
    let main = lobby("lobby_main");
    persist(archive, batch(messages(main, 1..=10, ANN))).await;
    persist(archive, batch(messages(lobby("lobby_mainz"), 1..=3, ANN))).await;

    assert_eq!(seqs(archive, main, Page::Newest, 3).await, [8, 9, 10]);
    assert_eq!(seqs(archive, main, Page::Newest, 100).await, (1..=10).collect::<Vec<_>>());
    assert_eq!(seqs(archive, main, Page::Before(Seq(8)), 3).await, [5, 6, 7]);
    assert_eq!(seqs(archive, main, Page::Before(Seq(3)), 3).await, [1, 2]);
    assert_eq!(seqs(archive, main, Page::Before(Seq(1)), 3).await, []);
    assert_eq!(seqs(archive, main, Page::Before(Seq(0)), 3).await, []);
    assert_eq!(seqs(archive, main, Page::Before(Seq(u64::MAX)), 2).await, [9, 10]);
    assert_eq!(seqs(archive, main, Page::After(Seq(0)), 3).await, [1, 2, 3]);
    assert_eq!(seqs(archive, main, Page::After(Seq(8)), 3).await, [9, 10]);
    assert_eq!(seqs(archive, main, Page::After(Seq(10)), 3).await, []);
    assert_eq!(seqs(archive, main, Page::After(Seq(u64::MAX)), 3).await, []);
    assert_eq!(seqs(archive, main, Page::Newest, 0).await, []);
}

/// Every field returns, whatever its bytes.
pub async fn bodies_come_back_as_they_were<A: Archive>(archive: &A) {
    let main = lobby("lobby_main");
    let bodies: [Vec<u8>; 4] = [Vec::new(), (0..=255).collect(), "grüße 🎮 '; --".into(), vec![0xAB; BODY_BYTES_MAX]];
    let written: Vec<_> = (1..)
        .zip(bodies)
        .map(|(seq, body)| StoredMessage {
            sender: UserId(i64::MAX.unsigned_abs()),
            sent_at: Millis(NOON.0 - seq),
            content_type: if seq % 2 == 0 { ContentType::Binary } else { ContentType::Text },
            body: body.into(),
            ..message(main, seq, ANN)
        })
        .collect();
    persist(archive, batch(written.clone())).await;
    assert_eq!(archive.history(main, Page::Newest, 10).await, Ok(written));
}

/// A call whose answer was lost is made again.
pub async fn a_repeated_batch_changes_nothing<A: Archive>(archive: &A) {
    let first = batch(messages(ANN_BOB, 1..=5, ANN));
    persist(archive, first.clone()).await;
    let before = archive.history(ANN_BOB, Page::Newest, 10).await;
    persist(archive, first.clone()).await;
    persist(archive, first).await;
    assert_eq!(archive.history(ANN_BOB, Page::Newest, 10).await, before);
    assert_eq!(standing(archive, BOB, ANN_BOB).await.unread, 5);

    let twice = message(ANN_BOB, 6, ANN);
    persist(archive, batch(vec![twice.clone(), twice])).await;
    assert_eq!(last(archive, ANN_BOB).await, 6);
}

/// A redelivered batch may have grown.
pub async fn a_partly_stored_batch_is_completed<A: Archive>(archive: &A) {
    persist(archive, batch(messages(ANN_BOB, 1..=3, ANN))).await;
    let mut grown = messages(ANN_BOB, 2..=6, ANN);
    grown.extend(messages(room(1), 1..=2, BOB));
    persist(archive, batch(grown)).await;
    assert_eq!(seqs(archive, ANN_BOB, Page::Newest, 10).await, [1, 2, 3, 4, 5, 6]);
    assert_eq!(last(archive, room(1)).await, 2);
}

/// Two messages cannot share a sequence, and a refused batch leaves nothing behind.
pub async fn a_taken_sequence_refuses_the_whole_batch<A: Archive>(archive: &A) {
    persist(archive, batch(messages(ANN_BOB, 1..=3, ANN))).await;
    let other = StoredMessage { message_id: MessageId([9; 16]), ..message(ANN_BOB, 3, BOB) };
    let mut illegal = batch(messages(room(1), 1..=4, BOB));
    illegal.messages.push(other);
    illegal.messages.extend(messages(room(2), 1..=4, BOB));
    illegal.receipts = receipt(BOB, ANN_BOB, 3, 3).receipts;
    refused(archive, illegal).await;

    assert_eq!(archive.last_seqs(&[room(1), room(2), ANN_BOB]).await, Ok(vec![Seq(0), Seq(0), Seq(3)]));
    assert_eq!(archive.find(&[message(room(1), 1, BOB).message_id, MessageId([9; 16])]).await, Ok(vec![]));
    assert_eq!(archive.find(&[message(ANN_BOB, 3, ANN).message_id]).await, Ok(messages(ANN_BOB, 3..=3, ANN)));
    assert_eq!(standing(archive, BOB, ANN_BOB).await.read, Seq(0));
}

/// A message has one place.
pub async fn a_taken_id_refuses_the_whole_batch<A: Archive>(archive: &A) {
    persist(archive, batch(messages(ANN_BOB, 1..=3, ANN))).await;
    let moved = StoredMessage { message_id: message(ANN_BOB, 2, ANN).message_id, ..message(ANN_BOB, 5, ANN) };
    refused(archive, batch(vec![message(ANN_BOB, 4, ANN), moved])).await;
    let elsewhere = StoredMessage { message_id: message(ANN_BOB, 2, ANN).message_id, ..message(room(1), 1, ANN) };
    refused(archive, batch(vec![message(ANN_BOB, 4, ANN), elsewhere])).await;
    assert_eq!(seqs(archive, ANN_BOB, Page::Newest, 10).await, [1, 2, 3]);
    assert_eq!(last(archive, room(1)).await, 0);
}

/// The invariants hold within a batch too.
pub async fn a_batch_that_contradicts_itself_is_refused<A: Archive>(archive: &A) {
    let rival = StoredMessage { message_id: MessageId([9; 16]), ..message(ANN_BOB, 2, BOB) };
    refused(archive, batch(vec![message(ANN_BOB, 1, ANN), message(ANN_BOB, 2, ANN), rival])).await;
    let copy = StoredMessage { seq: Seq(2), ..message(ANN_BOB, 1, ANN) };
    refused(archive, batch(vec![message(ANN_BOB, 1, ANN), copy])).await;
    assert_eq!(last(archive, ANN_BOB).await, 0);
}

/// Deduplication asks by id, many at a time, each at most once in the answer.
pub async fn stored_messages_are_found_by_id<A: Archive>(archive: &A) {
    let stored = messages(lobby("lobby_main"), 1..=20, ANN);
    persist(archive, batch(stored.clone())).await;
    let absent = messages(lobby("lobby_main"), 21..=500, ANN);
    let ids: Vec<_> = absent.iter().chain(&stored).map(|message| message.message_id).collect();
    let mut found = archive.find(&ids).await.expect("an answer");
    found.sort_by_key(|message| message.seq);
    assert_eq!(found, stored);
}

/// Adapters cut batches into statements; no cut may lose a row.
pub async fn batches_of_any_width_are_kept<A: Archive>(archive: &A) {
    let main = lobby("lobby_main");
    let mut next = 1;
    for width in [1, 7, 8, 9, 63, 64, 65, 257, INGEST_BATCH_MAX as u64, INGEST_BATCH_MAX as u64 + 1] {
        let written = messages(main, next..=next + width - 1, ANN);
        persist(archive, batch(written.clone())).await;
        let ids: Vec<_> = written.iter().map(|message| message.message_id).collect();
        let mut found = archive.find(&ids).await.expect("an answer");
        found.sort_by_key(|message| message.seq);
        assert!(found == written, "a batch of {width} came back as {} messages", found.len());
        next += width;
    }
    assert_eq!(last(archive, main).await, next - 1);
}

/// In the order asked, repetitions and strangers included.
pub async fn the_last_sequence_of_each_conversation_is_known<A: Archive>(archive: &A) {
    let rooms: Vec<_> = (1..=100).map(room).collect();
    let written = rooms.iter().zip(1..).flat_map(|(room, length)| messages(*room, 1..=length, ANN)).collect();
    persist(archive, batch(written)).await;
    let asked: Vec<_> = rooms.iter().rev().copied().chain([room(101), ANN_BOB, room(7), room(7)]).collect();
    let expected: Vec<_> = (1..=100).rev().chain([0, 0, 7, 7]).map(Seq).collect();
    assert_eq!(archive.last_seqs(&asked).await, Ok(expected));
}

/// Unread are the messages of others after the watermark, exactly.
pub async fn own_messages_are_not_unread<A: Archive>(archive: &A) {
    let mut talk = messages(ANN_BOB, 1..=4, ANN);
    talk.extend(messages(ANN_BOB, 5..=7, BOB));
    talk.extend(messages(ANN_BOB, 8..=8, ANN));
    persist(archive, batch(talk)).await;
    let at = |read, unread| Standing { conversation: ANN_BOB, last: Seq(8), read: Seq(read), unread };
    assert_eq!(archive.standings(ANN, 10).await, Ok(vec![at(0, 3)]));
    assert_eq!(archive.standings(BOB, 10).await, Ok(vec![at(0, 5)]));

    persist(archive, receipt(ANN, ANN_BOB, 8, 5)).await;
    persist(archive, receipt(BOB, ANN_BOB, 8, 8)).await;
    assert_eq!(
        archive.standings_of(&[(BOB, ANN_BOB), (ANN, ANN_BOB)]).await,
        Ok(vec![at(8, 0), at(5, 2)]),
        "in the order asked"
    );
    assert_eq!(archive.standings(ANN, 10).await, Ok(vec![at(5, 2)]));
}

/// Receipts are merged by maximum, within a batch and over batches.
pub async fn watermarks_never_go_back<A: Archive>(archive: &A) {
    let mut first = batch(messages(ANN_BOB, 1..=9, ANN));
    let moved = |delivered, read| receipt(BOB, ANN_BOB, delivered, read).receipts;
    first.receipts = [moved(3, 3), moved(6, 5), moved(7, 0), moved(0, 4)].concat();
    persist(archive, first).await;
    assert_eq!(standing(archive, BOB, ANN_BOB).await.read, Seq(5));
    persist(archive, receipt(BOB, ANN_BOB, 2, 2)).await;
    persist(archive, receipt(BOB, ANN_BOB, 9, 0)).await;
    assert_eq!(standing(archive, BOB, ANN_BOB).await.read, Seq(5));
    persist(archive, receipt(BOB, ANN_BOB, 9, 7)).await;
    assert_eq!(
        standing(archive, BOB, ANN_BOB).await,
        Standing { conversation: ANN_BOB, last: Seq(9), read: Seq(7), unread: 2 }
    );
}

/// A receipt can neither invent a member nor hold up the batch it is in.
pub async fn receipts_without_standing_are_ignored<A: Archive>(archive: &A) {
    let main = lobby("lobby_main");
    let mut first = batch(messages(main, 1..=2, ANN));
    first.receipts = [receipt(BOB, main, 2, 2), receipt(EVE, ANN_BOB, 1, 1), receipt(ANN, room(1), 1, u64::MAX)]
        .into_iter()
        .flat_map(|batch| batch.receipts)
        .collect();
    persist(archive, first).await;
    assert_eq!(standing(archive, BOB, main).await.read, Seq(0));
    assert_eq!(standing(archive, EVE, ANN_BOB).await.read, Seq(0));
    for user in [ANN, BOB, EVE] {
        assert_eq!(archive.standings(user, 10).await, Ok(vec![]));
    }
    assert_eq!(archive.members(&[RoomId(1)]).await, Ok(vec![vec![]]));
}

/// The conversations of a user: private ones with a message, rooms in any case, lobbies never.
pub async fn standings_come_newest_first<A: Archive>(archive: &A) {
    let quiet = new_room(archive, "quiet", ANN, 10).await;
    let busy = new_room(archive, "busy", ANN, 10).await;
    new_room(archive, "foreign", BOB, 10).await;
    let ann_eve = ConversationId::private(ANN, EVE).expect("two users");
    let bob_eve = ConversationId::private(BOB, EVE).expect("two users");
    let busy = ConversationId::Room(busy);
    let sent = |conversation, seq, minutes: u64| StoredMessage {
        sent_at: Millis(NOON.0 + minutes * 60_000),
        ..message(conversation, seq, EVE)
    };
    persist(
        archive,
        batch(vec![
            sent(ann_eve, 1, 5),
            sent(busy, 1, 1),
            sent(ANN_BOB, 1, 9),
            sent(bob_eve, 1, 10),
            sent(lobby("lobby_main"), 1, 11),
            sent(busy, 2, 7),
        ]),
    )
    .await;
    let standings = archive.standings(ANN, 10).await.expect("standings");
    let order: Vec<_> = standings.iter().map(|standing| (standing.conversation, standing.last.0)).collect();
    assert_eq!(order, [(ANN_BOB, 1), (busy, 2), (ann_eve, 1), (ConversationId::Room(quiet), 0)]);
    assert_eq!(archive.standings(ANN, 2).await, Ok(standings[..2].to_vec()));
    assert_eq!(archive.standings(ANN, 0).await, Ok(vec![]));
}

/// A standing can be asked for without membership, hundreds at a time.
pub async fn standings_of_strangers_count_from_the_start<A: Archive>(archive: &A) {
    persist(archive, batch(messages(room(1), 1..=3, ANN))).await;
    let pairs: Vec<_> = (1..=150).map(|user| (UserId(user), room(1))).chain([(ANN, ANN_BOB)]).collect();
    let standings = archive.standings_of(&pairs).await.expect("standings");
    let expected = |(user, conversation): &(UserId, ConversationId)| Standing {
        conversation: *conversation,
        last: Seq(if *conversation == room(1) { 3 } else { 0 }),
        read: Seq(0),
        unread: if *user == ANN { 0 } else { 3 },
    };
    assert_eq!(standings, pairs.iter().map(expected).collect::<Vec<_>>());
}

/// A name is one user's in all its spellings of case; letters that only look alike are others.
pub async fn names_differ_by_more_than_case<A: Archive>(archive: &A) {
    let ann = archive.create_user("Ann", "hash-1", NOON).await.expect("an answer").expect("the name is free");
    for taken in ["Ann", "ann", "ANN"] {
        assert_eq!(archive.create_user(taken, "hash-2", NOON).await, Ok(None), "{taken}");
    }
    let arsa = archive.create_user("Ärsa 🎲", "hash-3", NOON).await.expect("an answer").expect("the name is free");
    assert_eq!(archive.create_user("ärsa 🎲", "hash-4", NOON).await, Ok(None));
    for free in ["Arsa 🎲", "Änn", "Ann ", "Añn"] {
        assert!(archive.create_user(free, "hash-5", NOON).await.expect("an answer").is_some(), "{free:?}");
    }
    let (user, hash) = archive.user_by_name("aNN").await.expect("an answer").expect("Ann is registered");
    assert_eq!((user.id, user.name.as_str(), hash.as_str()), (ann, "Ann", "hash-1"));
    let (user, hash) = archive.user_by_name("ÄRSA 🎲").await.expect("an answer").expect("Ärsa is registered");
    assert_eq!((user.id, user.name.as_str(), hash.as_str()), (arsa, "Ärsa 🎲", "hash-3"));
    assert_eq!(archive.user_by_name("nobody").await, Ok(None));
}

/// Of concurrent registrations under one name one wins.
pub async fn one_of_many_gets_a_name<A: Archive>(archive: &A) {
    let tries = join_all((0..8).map(|n| async move {
        let name = if n % 2 == 0 { "dave" } else { "Dave" };
        archive.create_user(name, "hash", NOON).await.expect("an answer")
    }))
    .await;
    let winners: Vec<_> = tries.into_iter().flatten().collect();
    assert_eq!(winners.len(), 1, "{winners:?}");
    let (dave, _) = archive.user_by_name("DAVE").await.expect("an answer").expect("somebody is Dave");
    assert_eq!(dave.id, winners[0]);
}

/// Strangers among the ids are left out.
pub async fn users_are_found_by_id<A: Archive>(archive: &A) {
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(archive.create_user(&format!("user {n}"), "hash", NOON).await.expect("an answer").expect("free"));
    }
    ids.push(UserId(ids[19].0 + 1000));
    let mut users = archive.users(&ids).await.expect("users");
    users.sort_by_key(|user| user.id);
    let names: Vec<_> = users.into_iter().map(|user| user.name).collect();
    assert_eq!(names, (0..20).map(|n| format!("user {n}")).collect::<Vec<_>>());
}

/// A list that grows while it is read neither repeats nor skips what was there.
pub async fn rooms_are_listed_newest_first<A: Archive>(archive: &A) {
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(new_room(archive, &format!("room {n} ♜"), ANN, 4).await);
    }
    ids.reverse();
    let listed = async |before, size| {
        let rooms = archive.rooms(before, size).await.expect("rooms");
        rooms.iter().map(|room| room.id).collect::<Vec<_>>()
    };
    assert_eq!(listed(None, 10).await, ids);
    assert_eq!(listed(None, 2).await, ids[..2]);
    new_room(archive, "late", BOB, 4).await;
    assert_eq!(listed(Some(ids[1]), 2).await, ids[2..4]);
    assert_eq!(listed(Some(ids[3]), 2).await, ids[4..]);
    assert_eq!(listed(Some(ids[4]), 2).await, []);

    let room = archive.room(ids[0]).await.expect("an answer").expect("the room is there");
    assert_eq!(
        (room.name.as_str(), room.owner, room.capacity, room.members, room.created_at),
        ("room 4 ♜", ANN, 4, 1, NOON)
    );
}

/// Twenty want in, there is place for seven beside the owner.
pub async fn a_room_takes_no_more_than_its_capacity<A: Archive>(archive: &A) {
    let room = new_room(archive, "raid", ANN, 8).await;
    let answers = join_all((100..120).map(|user| archive.join_room(room, UserId(user), NOON))).await;
    let count = |wanted| answers.iter().filter(|answer| **answer == Ok(wanted)).count();
    assert_eq!((count(Joined::Now), count(Joined::Full)), (7, 13), "{answers:?}");
    assert_eq!(archive.room(room).await.expect("an answer").expect("the room").members, 8);
    assert_eq!(archive.members(&[room]).await.expect("members")[0].len(), 8);
    assert_eq!(archive.join_room(room, ANN, NOON).await, Ok(Joined::Already), "also when the room is full");

    assert_eq!(archive.leave_room(room, ANN).await, Ok(true));
    assert_eq!(archive.join_room(room, BOB, NOON).await, Ok(Joined::Now), "the place is free again");
    assert_eq!(archive.join_room(room, ANN, NOON).await, Ok(Joined::Full));
}

/// A newcomer starts at the newest message, and starts there anew after having left.
pub async fn what_was_before_a_join_is_not_unread<A: Archive>(archive: &A) {
    let id = new_room(archive, "den", ANN, 8).await;
    let den = ConversationId::Room(id);
    persist(archive, batch(messages(den, 1..=5, ANN))).await;
    assert_eq!(archive.join_room(id, BOB, NOON).await, Ok(Joined::Now));
    let at = |last, read, unread| Standing { conversation: den, last: Seq(last), read: Seq(read), unread };
    assert_eq!(archive.standings(BOB, 10).await, Ok(vec![at(5, 5, 0)]));
    persist(archive, batch(messages(den, 6..=7, ANN))).await;
    assert_eq!(archive.standings(BOB, 10).await, Ok(vec![at(7, 5, 2)]));

    assert_eq!(archive.leave_room(id, BOB).await, Ok(true));
    assert_eq!(archive.standings(BOB, 10).await, Ok(vec![]));
    assert_eq!(archive.join_room(id, BOB, NOON).await, Ok(Joined::Now));
    assert_eq!(archive.standings(BOB, 10).await, Ok(vec![at(7, 7, 0)]));
    assert_eq!(archive.join_room(id, BOB, NOON).await, Ok(Joined::Already));
}

/// Membership is the same seen from the room and from the user.
pub async fn members_come_and_go<A: Archive>(archive: &A) {
    let den = new_room(archive, "den", ANN, 8).await;
    let raid = new_room(archive, "raid", BOB, 8).await;
    archive.join_room(den, EVE, NOON).await.expect("an answer");
    archive.join_room(raid, EVE, NOON).await.expect("an answer");
    persist(archive, batch(messages(ConversationId::private(ANN, EVE).expect("two users"), 1..=1, ANN))).await;

    let members = async || {
        let mut members = archive.members(&[raid, den, RoomId(999), den]).await.expect("members");
        members.iter_mut().for_each(|room| room.sort_unstable());
        members
    };
    let rooms_of = async |user| {
        let mut rooms = archive.rooms_of(user).await.expect("rooms");
        rooms.sort_unstable();
        rooms
    };
    assert_eq!(members().await, [vec![BOB, EVE], vec![ANN, EVE], vec![], vec![ANN, EVE]]);
    assert_eq!(rooms_of(EVE).await, [den, raid]);
    assert_eq!(rooms_of(ANN).await, [den]);

    assert_eq!(archive.leave_room(den, EVE).await, Ok(true));
    assert_eq!(archive.leave_room(den, EVE).await, Ok(false));
    assert_eq!(members().await, [vec![BOB, EVE], vec![ANN], vec![], vec![ANN]]);
    assert_eq!(rooms_of(EVE).await, [raid]);
    assert_eq!(archive.room(den).await.expect("an answer").expect("the room").members, 1);
}

/// Partitions persist at the same time.
pub async fn conversations_are_persisted_side_by_side<A: Archive>(archive: &A) {
    join_all((1..=4).map(|partition| async move {
        for turn in 0..8 {
            let mut turn = batch(messages(room(partition), turn * 20 + 1..=turn * 20 + 20, ANN));
            let private = ConversationId::private(ANN, UserId(100 + partition)).expect("two users");
            turn.messages.extend(turn.messages.clone().into_iter().map(|of_room| StoredMessage {
                sent_at: of_room.sent_at,
                ..message(private, of_room.seq.0, UserId(100 + partition))
            }));
            turn.receipts = receipt(ANN, private, 1, turn.messages[0].seq.0).receipts;
            archive.persist(&turn).await.expect("partitions do not get into each other's way");
        }
    }))
    .await;
    for partition in 1..=4 {
        assert_eq!(seqs(archive, room(partition), Page::Newest, 1000).await, (1..=160).collect::<Vec<_>>());
    }
    let standings = archive.standings(ANN, 10).await.expect("standings");
    assert_eq!(standings.iter().map(|standing| (standing.last.0, standing.unread)).collect::<Vec<_>>(), [(160, 19); 4]);
}

/// A consumer that was thought dead and its successor persist the same batch.
pub async fn one_batch_persisted_twice_at_once_is_kept_once<A: Archive>(archive: &A) {
    for turn in 0..5 {
        let twice = batch(messages(ANN_BOB, turn * 50 + 1..=turn * 50 + 50, ANN));
        let answers = join_all((0..3).map(|_| archive.persist(&twice))).await;
        assert_eq!(answers, [Ok(()), Ok(()), Ok(())]);
    }
    assert_eq!(seqs(archive, ANN_BOB, Page::Newest, 1000).await, (1..=250).collect::<Vec<_>>());
    assert_eq!(standing(archive, BOB, ANN_BOB).await.unread, 250);
}
