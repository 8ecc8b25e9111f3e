//! The sync rule, case by case. A world of one conversation: what exists, what is pushed, what is asked for.

#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use super::fetch::FETCH_TIMEOUT;
use super::*;
use crate::chat::marks::RECEIPT_INTERVAL;

const NONE: [u64; 0] = [];

fn message(seq: u64) -> v1::Message {
    v1::Message { conversation_id: "r_1".into(), seq, epoch: 1, sender_id: 2, ..Default::default() }
}

fn page(seqs: impl IntoIterator<Item = u64>, last_seq: u64, more: bool) -> v1::HistoryReply {
    let messages = seqs.into_iter().map(message).collect();
    v1::HistoryReply { conversation_id: "r_1".into(), epoch: 1, last_seq, messages, more, ..Default::default() }
}

fn synced(seqs: impl IntoIterator<Item = u64>, last_seq: u64) -> v1::Synced {
    let messages = seqs.into_iter().map(message).collect();
    v1::Synced { conversation_id: "r_1".into(), epoch: 1, last_seq, messages, ..Default::default() }
}

fn reload(epoch: u32, last_seq: u64) -> v1::Synced {
    v1::Synced { epoch, outcome: SyncOutcome::Reload.into(), ..synced([], last_seq) }
}

/// Asks by Sync, which must be due, and says from where.
fn ask(c: &mut Conversation, now: Instant) -> v1::SyncFrom {
    assert_eq!(c.due_want(now), Some(Want::Missing));
    let (epoch, seq) = c.stands_at().unwrap();
    v1::SyncFrom { conversation_id: "r_1".into(), epoch, seq }
}

fn due_page(c: &mut Conversation, now: Instant) -> Range {
    match c.due_want(now) {
        Some(Want::Page(range)) => range,
        other => panic!("{other:?} instead of a page"),
    }
}

fn position(last_seq: u64, read_seq: u64, unread: u32) -> v1::Position {
    v1::Position { conversation_id: "r_1".into(), epoch: 1, last_seq, read_seq, unread }
}

/// What the steps show: sequences, with 0 for anything else.
fn shown(steps: &[Step]) -> Vec<u64> {
    let mut seqs = Vec::new();
    for step in steps {
        match step {
            Step::Show(message) => seqs.push(message.seq),
            Step::Older(messages) => seqs.extend(messages.iter().map(|message| message.seq)),
            Step::Ahead(message) => seqs.push(message.seq),
            Step::Filled(messages) => seqs.extend(messages.iter().map(|message| message.seq)),
            Step::Passed(_) | Step::Weather(_) => {}
            Step::Skipped(_) | Step::LeftOut { .. } | Step::Lost(_) => seqs.push(0),
        }
    }
    seqs
}

fn followed_to(last: u64) -> (Conversation, Instant) {
    let (mut conversation, now) = (Conversation::new(Place::Room(1)), Instant::now());
    conversation.handle_position(now, &position(last, last, 0));
    (conversation, now)
}

#[test]
fn what_follows_is_shown_and_repetitions_are_not() {
    let (mut c, now) = followed_to(3);
    assert_eq!(shown(&c.handle_message(now, message(4))), [4]);
    assert_eq!(shown(&c.handle_message(now, message(4))), NONE);
    assert_eq!(shown(&c.handle_message(now, message(2))), NONE);
    assert_eq!(c.due_want(now), None);
}

#[test]
fn a_gap_is_closed_before_what_came_after_it() {
    let (mut c, now) = followed_to(3);
    assert_eq!(shown(&c.handle_message(now, message(6))), NONE);
    let from = ask(&mut c, now);
    assert_eq!(from.seq, 3);
    assert_eq!(c.due_want(now), None, "asked once");
    assert_eq!(shown(&c.handle_message(now, message(7))), NONE, "waits behind the gap");
    assert_eq!(shown(&c.handle_synced(now, &from, synced(4..=6, 6))), [4, 5, 6, 7]);
    assert!(!c.is_busy());
}

#[test]
fn behind_is_asked_after_its_wait_and_once() {
    let (mut c, now) = followed_to(3);
    let at = now + Duration::from_secs(1);
    c.handle_behind(at, Some((1, 3)));
    assert!(!c.is_busy(), "it is here already");
    c.handle_behind(at, Some((1, 5)));
    c.handle_behind(at + Duration::from_secs(1), None);
    assert_eq!(c.due_want(now), None);
    assert!(c.is_busy());
    assert_eq!(shown(&c.handle_message(now, message(4))), [4], "what goes on is shown meanwhile");
    let from = ask(&mut c, at);
    assert_eq!(shown(&c.handle_synced(at, &from, synced(5..=5, 5))), [5]);
    assert!(!c.is_busy());
}

#[test]
fn behind_after_the_question_is_another_question() {
    let (mut c, now) = followed_to(3);
    c.handle_behind(now, None);
    let from = ask(&mut c, now);
    c.handle_behind(now, None);
    assert_eq!(shown(&c.handle_synced(now, &from, synced([], 3))), NONE);
    let from = ask(&mut c, now);
    assert_eq!(shown(&c.handle_synced(now, &from, synced(4..=4, 4))), [4]);
    assert!(!c.is_busy());
}

#[test]
fn behind_during_the_opening_page_is_asked_after_it() {
    let (mut c, now) = (Conversation::new(Place::Lobby), Instant::now());
    c.handle_behind(now, None);
    assert!(!c.is_busy(), "nothing is followed yet");
    c.open(now);
    let range = due_page(&mut c, now);
    c.handle_behind(now, Some((1, 5)));
    assert_eq!(shown(&c.handle_history(now, range, page(3..=4, 4, true))), [3, 4]);
    let from = ask(&mut c, now);
    assert_eq!(shown(&c.handle_synced(now, &from, synced(5..=5, 5))), [5]);
}

#[test]
fn the_answer_of_a_login_needs_no_question() {
    let (mut c, now) = followed_to(3);
    let from = v1::SyncFrom { conversation_id: "r_1".into(), epoch: 1, seq: 3 };
    c.handle_position(now, &position(5, 3, 2));
    assert_eq!(shown(&c.handle_synced(now, &from, synced(4..=5, 5))), [4, 5]);
    assert_eq!(c.due_want(now), None);
}

#[test]
fn an_answer_to_a_question_of_another_epoch_is_void() {
    let (mut c, now) = followed_to(30);
    let from = v1::SyncFrom { conversation_id: "r_1".into(), epoch: 1, seq: 30 };
    assert_eq!(shown(&c.handle_message(now, v1::Message { epoch: 2, ..message(1) })), [1]);
    assert_eq!(shown(&c.handle_synced(now, &from, synced(31..=31, 31))), NONE);
    assert_eq!(ask(&mut c, now).epoch, 2);
}

#[test]
fn another_epoch_is_loaded_from_its_beginning_whether_its_number_is_greater_or_smaller() {
    for epoch in [2, 7] {
        let (mut c, now) = followed_to(30);
        let from = v1::SyncFrom { conversation_id: "r_1".into(), epoch: 1, seq: 30 };
        c.epoch = 5;
        let from = v1::SyncFrom { epoch: 5, ..from };
        assert_eq!(shown(&c.handle_synced(now, &from, reload(epoch, 2))), NONE);
        assert_eq!(due_page(&mut c, now), Range::After(0));
        let messages = (1..=2).map(|seq| v1::Message { epoch, ..message(seq) }).collect();
        let reply = v1::HistoryReply { epoch, last_seq: 2, messages, ..Default::default() };
        assert_eq!(shown(&c.handle_history(now, Range::After(0), reply)), [1, 2]);
        assert!(!c.is_busy());
    }
}

#[test]
fn a_server_that_knows_no_sync_is_asked_for_pages() {
    let (mut c, now) = followed_to(3);
    c.handle_message(now, message(5));
    ask(&mut c, now);
    c.fetch_by_pages(now);
    assert_eq!(due_page(&mut c, now), Range::After(3));
    assert_eq!(shown(&c.handle_history(now, Range::After(3), page(4..=5, 5, false))), [4, 5]);
}

#[test]
fn a_long_gap_is_fetched_page_by_page() {
    let (mut c, now) = followed_to(3);
    c.handle_position(now, &position(9, 3, 6));
    let from = ask(&mut c, now);
    assert_eq!(shown(&c.handle_synced(now, &from, reload(1, 9))), NONE);
    assert_eq!(due_page(&mut c, now), Range::After(3));
    assert_eq!(shown(&c.handle_history(now, Range::After(3), page(4..=6, 9, true))), [4, 5, 6]);
    assert_eq!(due_page(&mut c, now), Range::After(6));
    assert_eq!(shown(&c.handle_history(now, Range::After(6), page(7..=9, 9, false))), [7, 8, 9]);
    assert!(!c.is_busy());
}

#[test]
fn an_absence_too_long_to_read_is_cut_and_said() {
    let (mut c, now) = followed_to(3);
    c.handle_position(now, &position(1003, 3, 1000));
    let from = ask(&mut c, now);
    assert_eq!(c.handle_synced(now, &from, reload(1, 1003)), [Step::Skipped(980)]);
    assert_eq!(due_page(&mut c, now), Range::After(983));
    assert_eq!(shown(&c.handle_history(now, Range::After(983), page(984..=1003, 1003, false))).len(), 20);
    assert!(c.fetch_older(now, 50));
    assert_eq!(due_page(&mut c, now), Range::Before(984, 50), "what was cut can be read");
}

#[test]
fn an_archive_behind_the_pushes_is_asked_again_and_not_for_ever() {
    let (mut c, mut now) = followed_to(3);
    c.handle_message(now, message(6));
    let mut asked = 0;
    let steps = loop {
        let from = ask(&mut c, now);
        asked += 1;
        let steps = c.handle_synced(now, &from, synced([], 3));
        if !steps.is_empty() {
            break steps;
        }
        assert_eq!(c.due_want(now), None, "not at once");
        now += FETCH_DELAY;
    };
    assert_eq!(asked, FETCH_TRIES_MAX + 1);
    assert_eq!(steps[0], Step::Lost(2));
    assert_eq!(shown(&steps[1..]), [6]);
    assert!(!c.is_busy());
}

#[test]
fn a_new_epoch_begins_anew_and_an_old_one_is_ignored() {
    let (mut c, now) = followed_to(30);
    let newer = v1::Message { epoch: 2, ..message(1) };
    assert_eq!(shown(&c.handle_message(now, newer)), [1]);
    assert_eq!(shown(&c.handle_message(now, message(31))), NONE, "of the old epoch");
    c.handle_position(now, &position(31, 0, 1));
    assert!(!c.is_busy());
    let newer = v1::Message { epoch: 2, ..message(2) };
    assert_eq!(shown(&c.handle_message(now, newer)), [2]);
}

#[test]
fn a_page_of_a_new_epoch_is_compared_like_a_message() {
    let (mut c, now) = followed_to(3);
    c.handle_message(now, message(6));
    let from = ask(&mut c, now);
    c.handle_synced(now, &from, reload(1, 6));
    let range = due_page(&mut c, now);
    let messages = (1..=2).map(|seq| v1::Message { epoch: 2, ..message(seq) }).collect();
    let reply = v1::HistoryReply { epoch: 2, last_seq: 2, messages, ..Default::default() };
    assert_eq!(shown(&c.handle_history(now, range, reply)), [1, 2]);
    assert!(!c.is_busy(), "what was held is void");
}

#[test]
fn an_opened_conversation_shows_its_newest_page_before_what_comes_meanwhile() {
    let (mut c, now) = (Conversation::new(Place::Lobby), Instant::now());
    c.open(now);
    assert_eq!(due_page(&mut c, now), Range::Newest(OPENING_PAGE));
    assert_eq!(shown(&c.handle_message(now, message(6))), NONE);
    let steps = c.handle_history(now, Range::Newest(OPENING_PAGE), page(3..=5, 5, true));
    assert_eq!(shown(&steps), [3, 4, 5, 6]);
    assert!(c.fetch_older(now, 10));
    assert_eq!(due_page(&mut c, now), Range::Before(3, 10));
    assert_eq!(shown(&c.handle_history(now, Range::Before(3, 10), page(1..=2, 6, false))), [1, 2]);
    assert!(!c.fetch_older(now, 10), "the beginning is on the screen");
}

#[test]
fn an_unknown_conversation_begins_at_its_beginning_or_where_we_came() {
    let now = Instant::now();
    let mut room = Conversation::new(Place::Room(1));
    assert_eq!(shown(&room.handle_message(now, message(40))), [40]);
    let mut private = Conversation::new(Place::Private(1, 2));
    assert_eq!(shown(&private.handle_message(now, message(2))), NONE);
    assert_eq!(ask(&mut private, now).seq, 0);
}

#[test]
fn a_lost_connections_question_is_asked_again() {
    let (mut c, now) = followed_to(3);
    c.handle_message(now, message(6));
    let from = ask(&mut c, now);
    c.handle_lost(now);
    assert_eq!(ask(&mut c, now), from);
    assert_eq!(c.due_want(now + FETCH_TIMEOUT / 2), None);
    assert_eq!(ask(&mut c, now + FETCH_TIMEOUT), from, "silence");
}

#[test]
fn unread_counts_what_others_said_elsewhere_and_counts_it_once() {
    let (mut c, now) = followed_to(3);
    c.handle_message(now, message(4));
    c.handle_shown(4, false, false);
    assert_eq!(c.marks().unread(), 1);
    c.handle_position(now, &position(5, 3, 2));
    assert_eq!(c.marks().unread(), 2);
    c.handle_shown(5, false, false);
    assert_eq!(c.marks().unread(), 2, "the position counted it");
    c.handle_read_here();
    assert_eq!(c.marks().unread(), 0);
}

#[test]
fn receipts_follow_what_is_shown_and_read_and_are_rare() {
    let (mut c, mut now) = followed_to(3);
    assert_eq!(c.due_receipt(now), None);
    c.handle_message(now, message(4));
    c.handle_shown(4, false, false);
    assert_eq!(c.due_receipt(now), Some((4, 3)), "arrived, not read");
    c.handle_message(now, message(5));
    c.handle_shown(5, true, false);
    assert_eq!(c.due_receipt(now), None, "too soon");
    now += RECEIPT_INTERVAL;
    assert_eq!(c.due_receipt(now), Some((5, 5)));
    c.handle_message(now, message(6));
    c.handle_shown(6, true, true);
    assert!(!c.owes_receipt(), "own messages are never unread");
    c.handle_position(now, &position(6, 4, 1));
    assert!(c.owes_receipt(), "a receipt got lost with its connection");
    assert_eq!(c.marks().unread(), 0);
}

#[test]
fn messages_shown_at_login_are_not_shown_again_on_opening() {
    let (mut c, now) = followed_to(6);
    for seq in [2, 4, 5, 6] {
        c.handle_shown_before(&message(seq));
    }
    c.open(now);
    assert_eq!(c.due_want(now), None);
    assert!(c.fetch_older(now, 10));
    assert_eq!(due_page(&mut c, now), Range::Before(4, 10), "above the hole");
}
