//! Unread counts are exact or unknown, and an inbox holds the newest messages once.

use bytes::Bytes;

use super::{HotStoreFixture, private, room, seqs};
use crate::ids::{ConversationId, Seq, UserId};
use crate::limits::{INBOX_MESSAGES_MAX, UNREAD_TAIL_MAX};
use crate::ports::{Filing, HotStore, Seeding, UnreadCount};

const USER: UserId = UserId(7);

fn filing(user: UserId, conversation: ConversationId, range: std::ops::RangeInclusive<u64>) -> Filing {
    Filing { user, conversation, seqs: seqs(range), inbox: Vec::new() }
}

fn away(user: UserId, conversation: ConversationId, range: std::ops::RangeInclusive<u64>) -> Filing {
    let inbox = range.clone().map(|seq| body(conversation, seq)).collect();
    Filing { inbox, ..filing(user, conversation, range) }
}

fn body(conversation: ConversationId, seq: u64) -> Bytes {
    Bytes::from(format!("{conversation} {seq}\0\r\n"))
}

fn count(conversation: ConversationId, unread: u32, counted_to: u64) -> UnreadCount {
    UnreadCount { conversation, unread, counted_to: Seq(counted_to) }
}

async fn file(store: &impl HotStore, filings: &[Filing]) {
    store.file(filings).await.expect("the store answers");
}

async fn seed(store: &impl HotStore, seeding: Seeding, counts: &[UnreadCount]) {
    store.seed_unread(USER, seeding, counts).await.expect("the store answers");
}

async fn read(store: &impl HotStore, count: UnreadCount) {
    store.set_unread(&[(USER, count)]).await.expect("the store answers");
}

async fn unread(store: &impl HotStore) -> Result<Vec<(ConversationId, u32)>, Seeding> {
    let mut counts = store.take_summary(USER).await.expect("the store answers").unread?;
    counts.sort();
    Ok(counts)
}

/// The seeding under way of a user whose counts are unknown.
async fn unknown(store: &impl HotStore) -> Seeding {
    unread(store).await.expect_err("the counts are unknown")
}

/// A user whose counts are known, with these.
async fn known(store: &impl HotStore, counts: &[UnreadCount]) {
    seed(store, unknown(store).await, counts).await;
}

/// Filing alone does not make counts: what was before is in the archive only.
pub async fn counts_are_unknown_until_seeded(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    file(&store, &[filing(USER, room(1), 1..=3)]).await;
    read(&store, count(room(1), 1, 3)).await;
    let seeding = unknown(&store).await;
    seed(&store, seeding, &[count(room(1), 2, 3), count(room(2), 0, 9), count(private(7, 8), 5, 5)]).await;
    assert_eq!(unread(&store).await, Ok(vec![(private(7, 8), 5), (room(1), 2)]), "zero is left out");
    file(&store, &[filing(USER, room(1), 4..=5), filing(USER, room(2), 10..=10), filing(USER, room(3), 1..=1)]).await;
    let expected = vec![(private(7, 8), 5), (room(1), 4), (room(2), 1), (room(3), 1)];
    assert_eq!(unread(&store).await, Ok(expected.clone()));
    assert_eq!(unread(&store).await, Ok(expected), "reading takes nothing away");
}

/// Again, in other groups, and with sequences of the user's own messages left out.
pub async fn redelivered_filings_count_once(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    known(&store, &[]).await;
    let mut first = filing(USER, room(1), 1..=6);
    first.seqs.retain(|seq| seq.0 != 3);
    file(&store, &[first.clone()]).await;
    file(&store, &[first]).await;
    file(&store, &[filing(USER, room(1), 5..=8)]).await;
    file(&store, &[filing(USER, room(1), 1..=2)]).await;
    assert_eq!(unread(&store).await, Ok(vec![(room(1), 7)]));
    let many = 8 + 3 * UNREAD_TAIL_MAX as u64;
    file(&store, &[filing(USER, room(1), 7..=many)]).await;
    file(&store, &[filing(USER, room(1), 2..=many)]).await;
    assert_eq!(unread(&store).await, Ok(vec![(room(1), u32::try_from(many).expect("small") - 1)]));
}

/// Between the question and the seed messages arrive; some of them the archive had counted already.
pub async fn what_is_filed_while_seeding_is_counted(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    let seeding = unknown(&store).await;
    file(&store, &[filing(USER, room(1), 4..=6), filing(USER, room(2), 1..=2)]).await;
    assert_eq!(unread(&store).await, Err(seeding), "another device asks");
    file(&store, &[filing(USER, room(1), 5..=7)]).await;
    seed(&store, seeding, &[count(room(1), 2, 5)]).await;
    assert_eq!(unread(&store).await, Ok(vec![(room(1), 4), (room(2), 2)]), "6 and 7 are above the seed");
}

/// A filing that comes late, after a seed whose snapshot had seen its messages.
pub async fn what_the_seed_has_counted_is_not_counted_again(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    known(&store, &[count(room(1), 3, 5)]).await;
    file(&store, &[filing(USER, room(1), 4..=6)]).await;
    assert_eq!(unread(&store).await, Ok(vec![(room(1), 4)]));
}

/// Two devices log in at once; the second one's snapshot is older than a conversation that has begun since.
pub async fn a_conversation_begun_while_seeding_survives_every_seed(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    let seeding = unknown(&store).await;
    file(&store, &[filing(USER, room(2), 1..=1)]).await;
    seed(&store, seeding, &[count(room(1), 1, 1)]).await;
    file(&store, &[filing(USER, room(3), 1..=2), filing(USER, room(1), 2..=3)]).await;
    seed(&store, seeding, &[count(room(1), 1, 1)]).await;
    seed(&store, seeding, &[count(room(1), 2, 2)]).await;
    assert_eq!(unread(&store).await, Ok(vec![(room(1), 3), (room(2), 1), (room(3), 2)]));
}

/// A seed may arrive after a read that happened later than its snapshot.
pub async fn a_seed_older_than_a_read_does_not_undo_it(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    let seeding = unknown(&store).await;
    read(&store, count(room(1), 0, 9)).await;
    read(&store, count(room(2), 0, 5)).await;
    assert_eq!(unread(&store).await, Err(seeding), "one count alone does not make the others known");
    seed(&store, seeding, &[count(room(1), 4, 9), count(room(2), 3, 4), count(room(3), 1, 1)]).await;
    assert_eq!(unread(&store).await, Ok(vec![(room(3), 1)]));
    seed(&store, seeding, &[count(room(1), 4, 9), count(room(2), 3, 4), count(room(3), 1, 1)]).await;
    assert_eq!(unread(&store).await, Ok(vec![(room(3), 1)]));
}

/// More was filed than is remembered one by one: the next login asks the archive again.
pub async fn a_seed_too_old_to_correct_leaves_the_counts_unknown(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    let seeding = unknown(&store).await;
    let many = UNREAD_TAIL_MAX as u64 + 5;
    file(&store, &[filing(USER, room(1), 1..=many)]).await;
    seed(&store, seeding, &[count(room(1), 4, 4)]).await;
    let seeding = unknown(&store).await;
    seed(&store, seeding, &[count(room(1), 5, 5)]).await;
    assert_eq!(unread(&store).await, Ok(vec![(room(1), 5)]), "nothing was filed since");
    file(&store, &[filing(USER, room(1), 6..=many)]).await;
    assert_eq!(unread(&store).await, Ok(vec![(room(1), u32::try_from(many).expect("small"))]));
    read(&store, count(room(1), 0, many)).await;
    file(&store, &[filing(USER, room(1), many + 1..=3 * many)]).await;
    read(&store, count(room(1), 0, many + 1)).await;
    unknown(&store).await; // The same holds for a read that is far behind.
}

/// What was filed between the question and the seed is lost with the store: the seed alone would be wrong.
pub async fn a_seed_after_a_loss_has_no_effect(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    let seeding = unknown(&store).await;
    fixture.lose_everything().await;
    seed(&store, seeding, &[count(room(1), 2, 3)]).await;
    unknown(&store).await;
}

/// The store is lost between a login's question and its seed, and another login has asked since. What was filed between the
/// first login's snapshot and the loss is in neither.
pub async fn a_seed_for_an_earlier_question_has_no_effect(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    let lost = unknown(&store).await;
    file(&store, &[filing(USER, room(1), 4..=4)]).await;
    fixture.lose_everything().await;
    let seeding = unknown(&store).await;
    file(&store, &[filing(USER, room(1), 5..=5)]).await;
    seed(&store, lost, &[count(room(1), 2, 3)]).await;
    assert_eq!(unread(&store).await, Err(seeding), "4 would be missing");
    seed(&store, seeding, &[count(room(1), 3, 4)]).await;
    assert_eq!(unread(&store).await, Ok(vec![(room(1), 4)]));
}

/// Two devices log in at once. The first snapshot to arrive makes the counts exact; the other may be older than a
/// conversation that has begun since, or newer and no better.
pub async fn of_two_seeds_the_first_stands(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    let seeding = unknown(&store).await;
    file(&store, &[filing(USER, room(1), 1..=1)]).await;
    assert_eq!(unread(&store).await, Err(seeding), "another device asks");
    seed(&store, seeding, &[count(room(1), 1, 1)]).await;
    seed(&store, seeding, &[]).await;
    assert_eq!(unread(&store).await, Ok(vec![(room(1), 1)]));
}

/// The read happened after the snapshot, in which the conversation had not begun.
pub async fn a_conversation_read_while_seeding_survives_an_older_seed(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    let seeding = unknown(&store).await;
    file(&store, &[filing(USER, room(1), 1..=2)]).await;
    read(&store, count(room(1), 1, 2)).await;
    seed(&store, seeding, &[]).await;
    assert_eq!(unread(&store).await, Ok(vec![(room(1), 1)]));
}

/// To fewer, and to none.
pub async fn reading_replaces_the_count(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    known(&store, &[count(room(1), 3, 5), count(room(2), 1, 1)]).await;
    file(&store, &[filing(USER, room(1), 6..=9)]).await;
    read(&store, count(room(1), 2, 9)).await;
    assert_eq!(unread(&store).await, Ok(vec![(room(1), 2), (room(2), 1)]));
    read(&store, count(room(1), 0, 9)).await;
    read(&store, count(room(1), 2, 9)).await;
    read(&store, count(room(1), 7, 8)).await;
    assert_eq!(unread(&store).await, Ok(vec![(room(2), 1)]), "a watermark does not go back");
    file(&store, &[filing(USER, room(1), 8..=10)]).await;
    assert_eq!(unread(&store).await, Ok(vec![(room(1), 1), (room(2), 1)]));
    let (other, both) = (UserId(8), [(USER, count(room(2), 0, 1)), (UserId(8), count(room(2), 0, 1))]);
    store.set_unread(&both).await.expect("the store answers");
    assert_eq!(unread(&store).await, Ok(vec![(room(1), 1)]));
    assert_eq!(store.take_summary(other).await.expect("the store answers").unread.ok(), None);
}

/// The count was made a moment ago; what was filed since is not in it.
pub async fn what_is_filed_above_a_read_survives_it(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    known(&store, &[count(room(1), 3, 5)]).await;
    file(&store, &[filing(USER, room(1), 6..=9)]).await;
    read(&store, count(room(1), 0, 7)).await;
    assert_eq!(unread(&store).await, Ok(vec![(room(1), 2)]), "8 and 9 are not read");
    read(&store, count(room(1), 0, 7)).await;
    file(&store, &[filing(USER, room(1), 6..=10)]).await;
    assert_eq!(unread(&store).await, Ok(vec![(room(1), 3)]));
}

/// A new epoch gives sequences anew that were counted and filed.
pub async fn what_is_forgotten_is_counted_and_filed_anew(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    let other = UserId(8);
    known(&store, &[count(room(1), 0, 3)]).await;
    file(&store, &[away(USER, room(1), 4..=6), away(other, room(1), 4..=6)]).await;
    store.take_summary(other).await.expect("the store answers");
    store.forget_unread(&[UserId(9), USER, other]).await.expect("the store answers");
    store.forget_unread(&[]).await.expect("the store answers");

    let summary = store.take_summary(USER).await.expect("the store answers");
    let seeding = summary.unread.expect_err("the counts are forgotten");
    assert_eq!(summary.inbox.len(), 3, "what is in the inbox stays there");
    file(&store, &[away(USER, room(1), 4..=4), away(other, room(1), 4..=4)]).await;
    seed(&store, seeding, &[count(room(1), 0, 3)]).await;
    let summary = store.take_summary(USER).await.expect("the store answers");
    assert_eq!(summary.unread, Ok(vec![(room(1), 1)]));
    assert_eq!(summary.inbox, [body(room(1), 4)]);
    assert_eq!(store.take_summary(other).await.expect("the store answers").inbox, [body(room(1), 4)]);
}

/// Known or not, redelivered or not.
pub async fn an_inbox_is_taken_once_oldest_first(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    file(&store, &[away(USER, room(1), 1..=2), away(USER, private(7, 8), 1..=1)]).await;
    file(&store, &[away(USER, room(1), 1..=3)]).await;
    file(&store, &[filing(USER, room(1), 4..=4)]).await;
    let expected = vec![body(room(1), 1), body(room(1), 2), body(private(7, 8), 1), body(room(1), 3)];
    assert_eq!(store.take_summary(USER).await.expect("the store answers").inbox, expected);
    assert_eq!(store.take_summary(USER).await.expect("the store answers").inbox, [] as [Bytes; 0]);
    file(&store, &[away(USER, room(1), 2..=5)]).await;
    let rest = store.take_summary(USER).await.expect("the store answers").inbox;
    assert_eq!(rest, [body(room(1), 4), body(room(1), 5)], "what was taken does not come again");
}

/// Looking changes nothing, neither the inbox nor what is known of the counts.
pub async fn an_inbox_is_looked_at_and_stays(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    let peek = async |max| store.peek_inbox(USER, max).await.expect("the store answers");
    assert_eq!(peek(10).await, [] as [Bytes; 0]);
    file(&store, &[away(USER, room(1), 1..=1)]).await;
    assert_eq!(peek(10).await, [body(room(1), 1)]);
    file(&store, &[away(USER, private(7, 8), 1..=1), away(USER, room(1), 2..=3)]).await;
    let all = vec![body(room(1), 1), body(private(7, 8), 1), body(room(1), 2), body(room(1), 3)];
    assert_eq!(peek(10).await, all);
    assert_eq!(peek(3).await, all[1..]);
    assert_eq!(peek(1).await, all[3..]);
    assert_eq!(peek(0).await, [] as [Bytes; 0]);
    assert_eq!(store.peek_inbox(UserId(8), 10).await, Ok(Vec::new()));
    let summary = store.take_summary(USER).await.expect("the store answers");
    assert_eq!((summary.unread.ok(), summary.inbox), (None, all));
    assert_eq!(peek(10).await, [] as [Bytes; 0]);
}

/// Bounded, whether filled at once or bit by bit.
pub async fn an_inbox_keeps_the_newest(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    let max = INBOX_MESSAGES_MAX as u64;
    file(&store, &[away(USER, room(1), 1..=max + 20)]).await;
    for seq in 1..=10 {
        file(&store, &[away(USER, room(2), seq..=seq)]).await;
    }
    let inbox = store.take_summary(USER).await.expect("the store answers").inbox;
    let expected: Vec<_> =
        (31..=max + 20).map(|n| body(room(1), n)).chain((1..=10).map(|n| body(room(2), n))).collect();
    assert_eq!(inbox, expected);
}

/// A message to a full room, with large bodies, and two more behind it.
pub async fn a_large_filing_reaches_everybody(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    known(&store, &[]).await;
    let large: Vec<Bytes> = (0..3_u8).map(|n| Bytes::from(vec![n; 16 * 1024])).collect();
    let mut filings: Vec<Filing> = (1..=1000)
        .map(|n| Filing { user: UserId(n), conversation: room(1), seqs: seqs(1..=3), inbox: large.clone() })
        .collect();
    filings.push(away(USER, room(1), 4..=4));
    file(&store, &filings).await;
    file(&store, &filings).await;
    assert_eq!(unread(&store).await, Ok(vec![(room(1), 4)]));
    for user in [1, 500, 1000] {
        let summary = store.take_summary(UserId(user)).await.expect("the store answers");
        assert_eq!(summary.inbox, large, "user {user}");
    }
}
