//! What is persisted is kept once, whole, and read back.

use futures_util::future::join_all;
use tidegate_proto::v1::ContentType;

use super::{
    ANN, ANN_BOB, BOB, NOON, batch, conflicts, last, lasts, lobby, message, messages, persist, receipt, room, seqs,
    standing,
};
use crate::event::StoredMessage;
use crate::ids::{ConversationId, Epoch, MessageId, Millis, RoomId, Seq, UserId};
use crate::limits::{BODY_BYTES_MAX, INGEST_BATCH_MAX};
use crate::ports::{Archive, End, Joined, Page, PersistBatch};

/// Nothing is invented.
pub async fn an_empty_archive_knows_nothing<A: Archive>(archive: &A) {
    assert_ne!(archive.epoch(), Epoch(0));
    assert_eq!(archive.ping().await, Ok(()));
    assert_eq!(archive.persist(&PersistBatch::default()).await, Ok(()));
    assert_eq!(archive.find(&[]).await, Ok(vec![]));
    assert_eq!(archive.find(&[MessageId([7; 16])]).await, Ok(vec![]));
    assert_eq!(archive.ends(&[]).await, Ok(vec![]));
    let nothing = End { epoch: archive.epoch(), last: Seq(0) };
    assert_eq!(archive.ends(&[ANN_BOB, lobby("lobby_main")]).await, Ok(vec![nothing, nothing]));
    assert_eq!(archive.begin_epoch(&[]).await, Ok(vec![]));
    assert_eq!(archive.missing(&[], 10).await, Ok(vec![]));
    assert_eq!(archive.missing(&[(ANN_BOB, Seq(0))], 10).await, Ok(vec![vec![]]));
    assert_eq!(archive.watermarks(&[]).await, Ok(vec![]));
    assert_eq!(archive.watermarks(&[ANN_BOB]).await, Ok(vec![vec![]]));
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
    conflicts(archive, illegal).await;

    assert_eq!(lasts(archive, &[room(1), room(2), ANN_BOB]).await, [0, 0, 3]);
    assert_eq!(archive.find(&[message(room(1), 1, BOB).message_id, MessageId([9; 16])]).await, Ok(vec![]));
    assert_eq!(archive.find(&[message(ANN_BOB, 3, ANN).message_id]).await, Ok(messages(ANN_BOB, 3..=3, ANN)));
    assert_eq!(standing(archive, BOB, ANN_BOB).await.read, Seq(0));
}

/// A message has one place.
pub async fn a_taken_id_refuses_the_whole_batch<A: Archive>(archive: &A) {
    persist(archive, batch(messages(ANN_BOB, 1..=3, ANN))).await;
    let moved = StoredMessage { message_id: message(ANN_BOB, 2, ANN).message_id, ..message(ANN_BOB, 5, ANN) };
    conflicts(archive, batch(vec![message(ANN_BOB, 4, ANN), moved])).await;
    let elsewhere = StoredMessage { message_id: message(ANN_BOB, 2, ANN).message_id, ..message(room(1), 1, ANN) };
    conflicts(archive, batch(vec![message(ANN_BOB, 4, ANN), elsewhere])).await;
    assert_eq!(seqs(archive, ANN_BOB, Page::Newest, 10).await, [1, 2, 3]);
    assert_eq!(last(archive, room(1)).await, 0);
}

/// The invariants hold within a batch too.
pub async fn a_batch_that_contradicts_itself_is_refused<A: Archive>(archive: &A) {
    let rival = StoredMessage { message_id: MessageId([9; 16]), ..message(ANN_BOB, 2, BOB) };
    conflicts(archive, batch(vec![message(ANN_BOB, 1, ANN), message(ANN_BOB, 2, ANN), rival])).await;
    let copy = StoredMessage { seq: Seq(2), ..message(ANN_BOB, 1, ANN) };
    conflicts(archive, batch(vec![message(ANN_BOB, 1, ANN), copy])).await;
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

/// Many conversations, each from its own position; what is empty is empty in its place.
pub async fn what_each_reader_misses_comes_in_one_answer<A: Archive>(archive: &A) {
    for chunk in (1..=130).collect::<Vec<u64>>().chunks(40) {
        persist(archive, batch(chunk.iter().flat_map(|n| messages(room(*n), 1..=n % 7, ANN)).collect())).await;
    }
    persist(archive, batch(messages(ANN_BOB, 1..=20, BOB))).await;
    let mut after: Vec<_> = (1..=130).rev().map(|n| (room(n), Seq(n % 4))).collect();
    after.extend([(ANN_BOB, Seq(0)), (ANN_BOB, Seq(18)), (ANN_BOB, Seq(20)), (ANN_BOB, Seq(u64::MAX))]);
    after.extend([(room(999), Seq(0)), (ANN_BOB, Seq(17))]);
    let missing = archive.missing(&after, 3).await.expect("an answer");
    assert_eq!(missing.len(), after.len());
    for ((conversation, seq), found) in after.iter().zip(&missing) {
        let expected = archive.history(*conversation, Page::After(*seq), 3).await.expect("a page");
        assert_eq!(*found, expected, "of {conversation} above {}", seq.0);
    }
    let counts: Vec<_> = missing.iter().rev().take(6).map(Vec::len).collect();
    assert_eq!(counts, [3, 0, 0, 0, 2, 3]);
    assert_eq!(archive.missing(&[(ANN_BOB, Seq(0))], 0).await, Ok(vec![vec![]]));
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
