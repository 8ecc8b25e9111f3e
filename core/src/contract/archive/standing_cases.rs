//! Where conversations end, and where their members are.

use futures_util::future::join_all;

use super::{
    ANN, ANN_BOB, BOB, EVE, NOON, batch, lobby, message, messages, new_room, persist, receipt, room, seqs, standing,
};
use crate::event::StoredMessage;
use crate::ids::{ConversationId, Epoch, Millis, RoomId, Seq, UserId};
use crate::ports::{Archive, End, Joined, Page, Standing, Watermark};

/// In the order asked, repetitions and strangers included.
pub async fn the_end_of_each_conversation_is_known<A: Archive>(archive: &A) {
    let rooms: Vec<_> = (1..=100).map(room).collect();
    let written = rooms.iter().zip(1..).flat_map(|(room, length)| messages(*room, 1..=length, ANN)).collect();
    persist(archive, batch(written)).await;
    let asked: Vec<_> = rooms.iter().rev().copied().chain([room(101), ANN_BOB, room(7), room(7)]).collect();
    let end = |last| End { epoch: archive.epoch(), last: Seq(last) };
    let expected: Vec<_> = (1..=100).rev().chain([0, 0, 7, 7]).map(end).collect();
    assert_eq!(archive.ends(&asked).await, Ok(expected));
}

/// A conversation whose continuity could not be proven begins anew; its messages stay.
pub async fn a_new_epoch_is_greater_and_its_conversations_alone<A: Archive>(archive: &A) {
    let own = archive.epoch();
    persist(archive, batch(messages(ANN_BOB, 1..=3, ANN))).await;
    let begun = archive.begin_epoch(&[(ANN_BOB, Epoch(0)), (room(1), own)]).await.expect("two epochs");
    let [private, of_room] = begun[..] else { panic!("one epoch for each, but: {begun:?}") };
    assert!(private > own && of_room > own, "{begun:?} after {own:?}");
    let end = |epoch, last| End { epoch, last: Seq(last) };
    assert_eq!(
        archive.ends(&[room(2), room(1), ANN_BOB]).await,
        Ok(vec![end(own, 0), end(of_room, 0), end(private, 3)])
    );
    assert_eq!(archive.epoch(), own, "the archive's is another matter");

    let far = Epoch(private.0 + 70);
    let again = archive.begin_epoch(&[(ANN_BOB, far), (room(1), Epoch(1))]).await.expect("two epochs");
    assert!(again[0] > far, "greater than the one named");
    assert!(again[1] > of_room, "greater than the one before");
    persist(archive, batch(messages(ANN_BOB, 4..=4, BOB))).await;
    assert_eq!(archive.ends(&[ANN_BOB, room(1)]).await, Ok(vec![end(again[0], 4), end(again[1], 0)]));
    assert_eq!(seqs(archive, ANN_BOB, Page::Newest, 10).await, [1, 2, 3, 4]);
    assert_eq!(standing(archive, BOB, ANN_BOB).await.epoch, again[0]);
    assert_eq!(archive.standings(BOB, 10).await.expect("standings")[0].epoch, again[0]);

    // Two gateways at once do not begin the same epoch.
    let both =
        join_all((0..4).map(async |_| archive.begin_epoch(&[(ANN_BOB, Epoch(0)), (room(1), Epoch(0))]).await)).await;
    let mut both: Vec<_> = both.into_iter().flat_map(|begun| begun.expect("two epochs")).collect();
    both.sort_unstable();
    both.dedup();
    assert_eq!(both.len(), 8, "{both:?}");
}

/// Unread are the messages of others after the watermark, exactly.
pub async fn own_messages_are_not_unread<A: Archive>(archive: &A) {
    let mut talk = messages(ANN_BOB, 1..=4, ANN);
    talk.extend(messages(ANN_BOB, 5..=7, BOB));
    talk.extend(messages(ANN_BOB, 8..=8, ANN));
    persist(archive, batch(talk)).await;
    let at = |delivered, read, unread| Standing {
        conversation: ANN_BOB,
        epoch: archive.epoch(),
        last: Seq(8),
        delivered: Seq(delivered),
        read: Seq(read),
        unread,
    };
    assert_eq!(archive.standings(ANN, 10).await, Ok(vec![at(0, 0, 3)]));
    assert_eq!(archive.standings(BOB, 10).await, Ok(vec![at(0, 0, 5)]));

    persist(archive, receipt(ANN, ANN_BOB, 8, 5)).await;
    persist(archive, receipt(BOB, ANN_BOB, 8, 8)).await;
    assert_eq!(
        archive.standings_of(&[(BOB, ANN_BOB), (ANN, ANN_BOB)]).await,
        Ok(vec![at(8, 8, 0), at(8, 5, 2)]),
        "in the order asked"
    );
    assert_eq!(archive.standings(ANN, 10).await, Ok(vec![at(8, 5, 2)]));
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
        Standing {
            conversation: ANN_BOB,
            epoch: archive.epoch(),
            last: Seq(9),
            delivered: Seq(9),
            read: Seq(7),
            unread: 2
        }
    );
}

/// Who has received and read up to where, as shown beside messages.
pub async fn watermarks_of_members_are_seen<A: Archive>(archive: &A) {
    let den = new_room(archive, "den", ANN, 100).await;
    for user in [EVE, BOB, UserId(9)] {
        assert_eq!(archive.join_room(den, user, NOON).await, Ok(Joined::Now));
    }
    let den = ConversationId::Room(den);
    let mut first = batch(messages(den, 1..=9, ANN));
    first.messages.extend(messages(ANN_BOB, 1..=3, ANN));
    let stranger = UserId(77);
    first.receipts = [
        receipt(EVE, den, 9, 4),
        receipt(ANN, den, 0, 9),
        receipt(BOB, den, 2, 0),
        receipt(stranger, den, 9, 9),
        receipt(BOB, ANN_BOB, 3, 1),
    ]
    .into_iter()
    .flat_map(|batch| batch.receipts)
    .collect();
    persist(archive, first).await;
    let mark = |user, delivered, read| Watermark { user, delivered: Seq(delivered), read: Seq(read) };
    let of_den = vec![mark(ANN, 0, 9), mark(BOB, 2, 0), mark(EVE, 9, 4)];
    assert_eq!(
        archive.watermarks(&[ANN_BOB, room(999), den, lobby("lobby_main"), den]).await,
        Ok(vec![vec![mark(BOB, 3, 1)], vec![], of_den.clone(), vec![], of_den])
    );
    let ConversationId::Room(id) = den else { unreachable!("made from a room") };
    assert_eq!(archive.leave_room(id, BOB).await, Ok(true));
    assert_eq!(archive.watermarks(&[den]).await, Ok(vec![vec![mark(ANN, 0, 9), mark(EVE, 9, 4)]]));
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
        epoch: archive.epoch(),
        last: Seq(if *conversation == room(1) { 3 } else { 0 }),
        delivered: Seq(0),
        read: Seq(0),
        unread: if *user == ANN { 0 } else { 3 },
    };
    assert_eq!(standings, pairs.iter().map(expected).collect::<Vec<_>>());
}

/// A newcomer starts at the newest message, and starts there anew after having left.
pub async fn what_was_before_a_join_is_not_unread<A: Archive>(archive: &A) {
    let id = new_room(archive, "den", ANN, 8).await;
    let den = ConversationId::Room(id);
    persist(archive, batch(messages(den, 1..=5, ANN))).await;
    assert_eq!(archive.join_room(id, BOB, NOON).await, Ok(Joined::Now));
    let at = |last, read, unread| Standing {
        conversation: den,
        epoch: archive.epoch(),
        last: Seq(last),
        delivered: Seq(read),
        read: Seq(read),
        unread,
    };
    assert_eq!(archive.standings(BOB, 10).await, Ok(vec![at(5, 5, 0)]));
    persist(archive, batch(messages(den, 6..=7, ANN))).await;
    assert_eq!(archive.standings(BOB, 10).await, Ok(vec![at(7, 5, 2)]));

    assert_eq!(archive.leave_room(id, BOB).await, Ok(true));
    assert_eq!(archive.standings(BOB, 10).await, Ok(vec![]));
    assert_eq!(archive.join_room(id, BOB, NOON).await, Ok(Joined::Now));
    assert_eq!(archive.standings(BOB, 10).await, Ok(vec![at(7, 7, 0)]));
    assert_eq!(archive.join_room(id, BOB, NOON).await, Ok(Joined::Already));
}
