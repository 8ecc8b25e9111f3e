//! The engine under faults, turn by turn: what it commits has no gap and nothing twice, and what it pushes is what it
//! committed.

use std::pin::pin;
use std::sync::Arc;

use futures_util::poll;
use tokio::sync::Notify;

use super::commit::COMMITS_MAX;
use super::testing::{Acked, Fate, Impatient, World, batch, id, message, receipt};
use super::*;
use crate::event::IngestEvent;
use crate::ids::{Epoch, MessageId, UserId};
use crate::ports::PersistBatch;

const ROOM: ConversationId = ConversationId::Room(RoomId(1));
const OTHER: ConversationId = ConversationId::Room(RoomId(2));

type Engine = IngestEngine<World, Impatient>;

/// One turn over messages of the room; it is acknowledged.
async fn turn(engine: &mut Engine, messages: impl IntoIterator<Item = u8>) {
    turn_of(engine, messages.into_iter().map(|n| message(ROOM, n)).collect()).await;
}

async fn turn_of(engine: &mut Engine, events: Vec<IngestEvent>) {
    let mut consumer = Acked::default();
    engine.turn(batch(events), &mut consumer).await.expect("the turn comes to its end");
    assert_eq!(consumer.0, 1, "acknowledged");
}

fn ids(range: impl IntoIterator<Item = u8>) -> Vec<MessageId> {
    range.into_iter().map(id).collect()
}

/// What was pushed of the room: epoch, sequence and message.
fn told(world: &World) -> Vec<(u32, u64, MessageId)> {
    let of_room = |(conversation, epoch, seq, id): (String, u32, u64, MessageId)| {
        (conversation == ROOM.to_string()).then_some((epoch, seq, id))
    };
    world.pushed().into_iter().filter_map(of_room).collect()
}

#[tokio::test]
async fn sequences_are_the_queues_order() {
    let world = World::new();
    let mut engine = world.engine();
    turn(&mut engine, 1..=3).await;
    let mut mixed: Vec<_> = (4..=6).map(|n| message(ROOM, n)).collect();
    mixed.insert(1, message(OTHER, 20));
    mixed.push(message(ROOM, 5));
    mixed.push(receipt(ROOM, 2, 3));
    mixed.push(message(OTHER, 21));
    turn_of(&mut engine, mixed).await;
    assert_eq!(world.dense(ROOM).await, ids(1..=6));
    assert_eq!(world.dense(OTHER).await, ids([20, 21]));
    assert_eq!(told(&world), (1..=6).map(|n| (100, u64::from(n), id(n))).collect::<Vec<_>>());
}

/// One id with two contents in one batch, the one that is not stored first: the other is a repetition, pushed and counted,
/// since the turn that stored it may have died before that.
#[tokio::test]
async fn what_is_stored_is_no_conflict_behind_one_that_is() {
    let world = World::new();
    turn(&mut world.engine(), [1]).await;
    let before = told(&world).len();
    turn_of(&mut world.engine(), vec![message(OTHER, 1), message(ROOM, 1)]).await;
    assert_eq!(world.rejected(), [id(1)], "the one for the other room");
    assert_eq!(told(&world)[before..], [(100, 1, id(1))]);
    assert_eq!(world.dense(ROOM).await, [id(1)]);
}

/// Every step's call fails, or its answer is lost, once and twice in a row.
#[tokio::test]
async fn a_lost_call_and_a_lost_answer_change_nothing() {
    for step in ["find", "ends", "sequence", "persist", "settle", "members", "file"] {
        for times in 1..=2 {
            for lose in [false, true] {
                let world = World::new();
                let mut engine = world.engine();
                turn(&mut engine, 1..=2).await;
                for _ in 0..times {
                    world.faults.next(step, if lose { Fate::LoseReply } else { Fate::Fail });
                }
                turn_of(&mut engine, vec![message(ROOM, 3), message(OTHER, 20), message(ROOM, 4)]).await;
                turn(&mut engine, 5..=6).await;
                assert!(world.faults.are_spent(), "{step} was called {times} times");
                assert_eq!(world.dense(ROOM).await, ids(1..=6), "{step}, {times} times, lost answer: {lose}");
                assert_eq!(world.end(ROOM).await.epoch, Epoch(100), "{step}, {times} times, lost answer: {lose}");
                assert_eq!(told(&world), (1..=6).map(|n| (100, u64::from(n), id(n))).collect::<Vec<_>>());
            }
        }
    }
}

/// An engine is dropped at each of its calls, before or after the call was done; another gets the events again, in other
/// groups and with more behind them, and may find the hot store empty.
#[tokio::test]
async fn a_crash_at_any_step_leaves_neither_gap_nor_repetition() {
    for step in ["find", "ends", "sequence", "persist", "settle", "members", "file"] {
        for done in [false, true] {
            for empty in [false, true] {
                let world = World::new();
                turn(&mut world.engine(), 1..=2).await;
                {
                    let mut engine = world.engine();
                    let mut consumer = Acked::default();
                    let gate = Arc::new(Notify::new());
                    if done {
                        world.faults.next(step, Fate::LoseReply);
                    }
                    world.faults.next(step, Fate::Hold(Arc::clone(&gate)));
                    let crashing = pin!(engine.turn(batch((3..=6).map(|n| message(ROOM, n)).collect()), &mut consumer));
                    assert!(poll!(crashing).is_pending(), "it waits at {step}");
                    assert!(world.faults.are_spent(), "it came to {step}");
                }
                if empty {
                    world.lose_hot_store();
                }
                let mut engine = world.engine();
                turn(&mut engine, 3..=4).await;
                turn(&mut engine, 5..=8).await;
                assert_eq!(world.dense(ROOM).await, ids(1..=8), "{step}, done: {done}, empty: {empty}");
                assert_eq!(world.end(ROOM).await.epoch, Epoch(100), "{step}, done: {done}, empty: {empty}");
                for (epoch, seq, message) in told(&world) {
                    assert_eq!((epoch, id(u8::try_from(seq).expect("small"))), (100, message), "one sequence each");
                }
            }
        }
    }
}

/// The broker lost what it had confirmed: sequences that were given to it are given to others.
#[tokio::test]
async fn a_message_that_never_comes_again_leaves_no_gap() {
    let world = World::new();
    turn(&mut world.engine(), 1..=2).await;
    world.faults.next("persist", Fate::Hold(Arc::default()));
    {
        let (mut engine, mut consumer) = (world.engine(), Acked::default());
        let lost = batch((3..=5).map(|n| message(ROOM, n)).collect());
        assert!(poll!(pin!(engine.turn(lost, &mut consumer))).is_pending(), "3 to 5 have their sequences");
    }
    turn(&mut world.engine(), 6..=7).await;
    assert_eq!(world.dense(ROOM).await, ids([1, 2, 6, 7]));
    assert_eq!(world.end(ROOM).await.epoch, Epoch(100), "nobody had seen 3 to 5");
}

/// FLUSHALL before, between and after turns, in one life of an engine and over several.
#[tokio::test]
async fn an_empty_hot_store_changes_neither_sequences_nor_epochs() {
    let world = World::new();
    let mut engine = world.engine();
    for n in 1..=20 {
        if n % 3 == 0 {
            engine = world.engine();
        }
        let (before, between) = (world.clone(), world.clone());
        world.faults.next("sequence", Fate::Meanwhile(Box::new(move || before.lose_hot_store())));
        world.faults.next("persist", Fate::Meanwhile(Box::new(move || between.lose_hot_store())));
        turn(&mut engine, [n]).await;
        if n % 2 == 0 {
            world.lose_hot_store();
        }
    }
    assert_eq!(world.dense(ROOM).await, ids(1..=20));
    assert_eq!(told(&world), (1..=20).map(|n| (100, u64::from(n), id(n))).collect::<Vec<_>>());
}

/// An engine that lost its partition is held before its commit, with less or more than its successor, which gets the events
/// again, in whatever order.
#[tokio::test]
async fn two_engines_over_one_archive_lose_nothing_and_repeat_nothing() {
    let cases: [(&[u8], &[&[u8]]); 6] = [
        (&[3, 4], &[&[3, 4, 5]]),
        (&[3, 4, 5], &[&[3], &[4]]),
        (&[3, 4], &[&[4, 3]]),
        (&[3], &[&[6, 3, 4]]),
        (&[3, 4], &[&[6, 7, 8]]),
        (&[3, 4, 5], &[&[5], &[3], &[6]]),
    ];
    for (of_zombie, of_owner) in cases {
        for empty in [false, true] {
            let case = format!("{of_zombie:?} against {of_owner:?}, empty: {empty}");
            let world = World::new();
            let mut zombie = world.engine();
            turn(&mut zombie, 1..=2).await;
            let gate = Arc::new(Notify::new());
            world.faults.next("persist", Fate::Hold(Arc::clone(&gate)));
            let held = turn(&mut zombie, of_zombie.iter().copied());
            let mut held = pin!(held);
            assert!(poll!(held.as_mut()).is_pending());

            let mut owner = world.beside().engine();
            for messages in of_owner {
                turn(&mut owner, messages.iter().copied()).await;
            }
            if empty {
                world.lose_hot_store();
            }
            gate.notify_one();
            held.await;
            turn(&mut owner, [9, 10]).await;

            let stored = world.dense(ROOM).await;
            let mut all: Vec<u8> = [1, 2].iter().chain(of_zombie).chain(of_owner.concat().iter()).copied().collect();
            all.extend([9, 10]);
            all.sort_unstable();
            all.dedup();
            let mut sorted = stored.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, ids(all), "{case}: each once");
            assert_eq!(world.end(ROOM).await.epoch, Epoch(100), "{case}: nothing was lost");
            for (epoch, seq, message) in told(&world) {
                let seq = usize::try_from(seq).expect("small");
                assert_eq!((epoch, stored[seq - 1]), (100, message), "{case}: pushed as stored");
            }
        }
    }
}

/// An engine whose partition went away and came back remembers ends that are no longer right.
#[tokio::test]
async fn an_engine_that_missed_its_successors_turns_learns_of_them() {
    for empty in [false, true] {
        let world = World::new();
        let mut former = world.engine();
        turn(&mut former, 1..=2).await;
        turn(&mut world.engine(), 3..=5).await;
        if empty {
            world.lose_hot_store();
        }
        turn(&mut former, 5..=7).await;
        assert_eq!(world.dense(ROOM).await, ids(1..=7));
        assert_eq!(world.end(ROOM).await.epoch, Epoch(100), "another engine is no loss");
    }
}

/// The same id in two conversations of different partitions, at the same moment.
#[tokio::test]
async fn one_client_msg_id_in_two_conversations_stops_no_partition() {
    let world = World::new();
    let mut engine = world.engine();
    let gate = Arc::new(Notify::new());
    world.faults.next("persist", Fate::Hold(Arc::clone(&gate)));
    let mut held = pin!(turn(&mut engine, [1, 2, 3]));
    assert!(poll!(held.as_mut()).is_pending());
    turn_of(&mut world.beside().engine(), vec![message(OTHER, 2)]).await;
    gate.notify_one();
    held.await;
    assert_eq!(world.dense(ROOM).await, ids([1, 3]));
    assert_eq!(world.dense(OTHER).await, ids([2]));
    assert_eq!(world.rejected(), ids([2]), "its sender learns it");
}

/// If the archive contradicts again and again, the turn is given up before anything is pushed, and its events come again.
#[tokio::test]
async fn a_turn_that_is_contradicted_without_end_is_given_up() {
    let world = World::new();
    let mut engine = world.engine();
    for n in 0..COMMITS_MAX {
        let other = world.beside();
        let write = move || {
            // Quicker again; written past the port, because it happens inside a call.
            let rival = StoredMessage { seq: Seq(u64::from(n) + 1), ..stored(100 + u8::try_from(n).expect("small")) };
            let persist = PersistBatch { messages: vec![rival], receipts: Vec::new() };
            futures_util::FutureExt::now_or_never(other.memory().persist(&persist)).expect("at once").expect("stored");
        };
        world.faults.next("persist", Fate::Meanwhile(Box::new(write)));
    }
    let mut consumer = Acked::default();
    let given_up = engine.turn(batch(vec![message(ROOM, 1)]), &mut consumer).await;
    assert!(matches!(given_up, Err(PortError::Conflict { .. })), "{given_up:?}");
    assert_eq!((consumer.0, told(&world)), (0, Vec::new()));
    turn(&mut engine, [1]).await;
    assert_eq!(world.dense(ROOM).await, ids([100, 101, 102, 1]));
}

fn stored(n: u8) -> StoredMessage {
    let IngestEvent::Accepted(accepted) = message(ROOM, n) else { unreachable!("it is a message") };
    StoredMessage {
        conversation: ROOM,
        seq: Seq(0),
        message_id: accepted.message_id,
        sender: UserId(1),
        sent_at: accepted.accepted_at,
        content_type: accepted.content_type,
        body: accepted.body,
    }
}

/// The archive lost what people had seen: what follows is of a new epoch, in this conversation alone.
#[tokio::test]
async fn an_archive_that_went_back_begins_a_new_epoch() {
    let world = World::new();
    turn_of(&mut world.engine(), vec![message(ROOM, 1), message(OTHER, 20)]).await;
    let backup = world.memory().backup();
    turn(&mut world.engine(), 2..=3).await;
    world.memory().restore(&backup);
    let mut engine = world.engine();
    turn_of(&mut engine, vec![message(ROOM, 4), message(OTHER, 21)]).await;
    turn(&mut engine, [5]).await;
    let begun = world.end(ROOM).await.epoch;
    assert!(begun > Epoch(100));
    assert_eq!(world.dense(ROOM).await, ids([1, 4, 5]));
    let expected = [(100, 1, id(1)), (100, 2, id(2)), (100, 3, id(3)), (begun.0, 2, id(4)), (begun.0, 3, id(5))];
    assert_eq!(told(&world), expected, "no sequence twice in one epoch");
    assert_eq!(world.end(OTHER).await, End { epoch: Epoch(100), last: Seq(2) });

    turn(&mut world.engine(), [6]).await;
    assert_eq!(world.end(ROOM).await, End { epoch: begun, last: Seq(4) }, "once is enough");

    // The backup knows nothing of the epoch that was begun since; the next one must not be the same.
    world.memory().restore(&backup);
    turn(&mut world.engine(), [7]).await;
    assert!(world.end(ROOM).await.epoch > begun);
}

/// The same while an engine lives that remembers where conversations ended: the archive was away, or a connection broke.
#[tokio::test]
async fn an_archive_that_went_back_unseen_is_noticed_when_it_was_away() {
    for case in ["find", "persist", "connection, before the turn", "connection, before the commit"] {
        let world = World::new();
        let mut engine = world.engine();
        turn(&mut engine, 1..=2).await;
        let backup = world.memory().backup();
        turn(&mut engine, 3..=5).await;
        let (other, copy) = (world.clone(), backup.clone());
        let go_back = Box::new(move || {
            other.memory().restore(&copy);
            other.break_connection();
        });
        match case {
            "connection, before the turn" => go_back(),
            "connection, before the commit" => world.faults.next("sequence", Fate::Meanwhile(go_back)),
            step => {
                let (other, copy) = (world.clone(), backup.clone());
                world.faults.next(step, Fate::FailMeanwhile(Box::new(move || other.memory().restore(&copy))));
            }
        }
        turn(&mut engine, [6]).await;
        turn(&mut engine, [7]).await;
        assert_eq!(world.dense(ROOM).await, ids([1, 2, 6, 7]), "{case}: no gap where 3 to 5 were");
        let begun = world.end(ROOM).await.epoch;
        assert!(begun > Epoch(100), "{case}");
        assert_eq!(told(&world)[5..], [(begun.0, 3, id(6)), (begun.0, 4, id(7))], "{case}");
    }
}

/// Sequences that were counted and filed once are given to other messages: these are unread and in the inbox all the same.
#[tokio::test]
async fn unread_counts_are_exact_after_a_new_epoch() {
    let world = World::new();
    let (hot, away) = (world.hot(), UserId(2));
    turn(&mut world.engine(), 1..=2).await;
    let seeding = hot.take_summary(away).await.expect("in memory").unread.expect_err("nobody has asked before");
    hot.seed_unread(away, seeding, &[UnreadCount { conversation: ROOM, unread: 2, counted_to: Seq(2) }])
        .await
        .expect("in memory");
    let backup = world.memory().backup();
    turn(&mut world.engine(), 3..=5).await;
    let before = hot.take_summary(away).await.expect("in memory");
    assert_eq!((before.unread, before.inbox.len()), (Ok(vec![(ROOM, 5)]), 3));

    world.memory().restore(&backup);
    turn(&mut world.engine(), [6]).await;
    let after = hot.take_summary(away).await.expect("in memory");
    assert_eq!((after.unread.ok(), after.inbox.len()), (None, 1), "unknown until the archive is asked, and 6 is there");
    assert_eq!(world.memory().standings(away, 1).await.expect("in memory")[0].unread, 3);
}

/// An outage that one conversation met is a doubt about all.
#[tokio::test]
async fn an_archive_that_was_away_is_asked_again_for_every_conversation() {
    for step in ["find", "persist"] {
        let world = World::new();
        let mut engine = world.engine();
        turn_of(&mut engine, vec![message(ROOM, 1), message(OTHER, 20)]).await;
        let backup = world.memory().backup();
        turn(&mut engine, 2..=3).await;
        let other = world.clone();
        world.faults.next(step, Fate::FailMeanwhile(Box::new(move || other.memory().restore(&backup))));
        turn_of(&mut engine, vec![message(OTHER, 21)]).await;
        turn(&mut engine, [4]).await;
        assert_eq!(world.dense(ROOM).await, ids([1, 4]), "{step}");
        assert!(world.end(ROOM).await.epoch > Epoch(100), "{step}");
        assert_eq!(world.end(OTHER).await, End { epoch: Epoch(100), last: Seq(2) }, "{step}");
    }
}

/// A crash on the way to the new epoch, and answers lost on it.
#[tokio::test]
async fn a_new_epoch_survives_what_happens_while_it_begins() {
    for step in ["forget_unread", "begin_epoch", "sequence", "persist", "settle"] {
        for crash in [false, true] {
            let world = World::new();
            turn(&mut world.engine(), 1..=2).await;
            let backup = world.memory().backup();
            turn(&mut world.engine(), 3..=4).await;
            world.memory().restore(&backup);
            world.faults.next(step, Fate::LoseReply);
            let mut engine = world.engine();
            if crash {
                world.faults.next(step, Fate::Hold(Arc::default()));
                let mut consumer = Acked::default();
                assert!(poll!(pin!(engine.turn(batch(vec![message(ROOM, 5)]), &mut consumer))).is_pending());
                engine = world.engine();
            }
            turn(&mut engine, [5]).await;
            turn(&mut engine, [6]).await;
            let end = world.end(ROOM).await;
            assert!(end.epoch > Epoch(100), "{step}");
            assert_eq!(world.dense(ROOM).await, ids([1, 2, 5, 6]), "{step}");
            let told = told(&world);
            assert_eq!(told.last(), Some(&(end.epoch.0, 4, id(6))), "{step}");
            let mut places: Vec<_> = told.iter().map(|(epoch, seq, id)| ((*epoch, *seq), *id)).collect();
            places.sort_unstable();
            places.dedup();
            let count = places.len();
            places.dedup_by_key(|(place, _)| *place);
            assert_eq!(places.len(), count, "{step}: two messages under one sequence: {told:?}");
        }
    }
}

/// Any time later, and after the loss of the hot store: the archive's key is the memory of what was sent.
#[tokio::test]
async fn a_repetition_gets_the_first_answer_after_a_loss() {
    let world = World::new();
    turn(&mut world.engine(), 1..=3).await;
    world.lose_hot_store();
    let mut engine = world.engine();
    let mut other_body = message(ROOM, 3);
    if let IngestEvent::Accepted(accepted) = &mut other_body {
        accepted.body = bytes::Bytes::from_static(b"another");
    }
    turn_of(&mut engine, vec![message(ROOM, 2), other_body, message(OTHER, 1), message(ROOM, 4)]).await;
    assert_eq!(world.dense(ROOM).await, ids(1..=4));
    assert_eq!(told(&world)[3..], [(100, 2, id(2)), (100, 4, id(4))]);
    assert_eq!(world.rejected(), ids([3, 1]));
    assert_eq!(world.dense(OTHER).await, []);
}

/// A client that used one id twice sends both again, in one batch: the stored one stands behind the other.
#[tokio::test]
async fn a_stored_message_is_pushed_though_a_contradiction_stands_before_it() {
    let world = World::new();
    let stored = StoredMessage { seq: Seq(1), ..stored(1) };
    let batch_before = PersistBatch { messages: vec![stored], receipts: Vec::new() };
    world.memory().persist(&batch_before).await.expect("a turn that crashed before its push");
    turn_of(&mut world.engine(), vec![message(OTHER, 1), message(ROOM, 1)]).await;
    assert_eq!(told(&world), [(100, 1, id(1))]);
    assert!(world.rejected().contains(&id(1)));
}

/// One event that is never taken among many: at every place, beside others, and the last one of all.
#[tokio::test]
async fn what_the_archive_never_takes_is_buried_alone() {
    for (count, unfit) in [(1, 1), (2, 1), (2, 2), (7, 3), (64, 1), (64, 33), (64, 64)] {
        let world = World::new();
        let mut engine = world.engine();
        world.make_unfit(id(unfit), UserId(9));
        let mut events: Vec<_> = (1..=count).map(|n| message(ROOM, n)).collect();
        events.extend([message(OTHER, 200), receipt(OTHER, 9, 1), receipt(OTHER, 2, 1)]);
        // A receipt reads what was there before.
        turn_of(&mut engine, vec![message(OTHER, 199)]).await;
        turn_of(&mut engine, events).await;
        turn_of(&mut engine, vec![message(ROOM, 100)]).await;
        let kept: Vec<_> = ids((1..=count).filter(|n| *n != unfit).chain([100]));
        assert_eq!(world.dense(ROOM).await, kept, "{unfit} of {count}: the others, without a gap");
        assert_eq!(world.dense(OTHER).await, ids([199, 200]));
        let pushed: Vec<_> = told(&world).into_iter().map(|(_, _, id)| id).collect();
        assert_eq!(pushed, kept);
        assert_eq!(world.rejected(), ids([unfit]), "its sender is told");
        let dead = world.dead_letters();
        let events: Vec<_> = dead.iter().map(|letter| letter.event.clone()).collect();
        assert_eq!(events, [message(ROOM, unfit), receipt(OTHER, 9, 1)]);
        assert!(dead.iter().all(|letter| letter.reason.contains("not here")), "{dead:?}");
    }
}

/// An archive that stores nothing at present is waited for, and costs no message.
#[tokio::test]
async fn an_archive_that_cannot_store_buries_nothing() {
    let world = World::new();
    let mut engine = world.engine();
    for _ in 0..20 {
        world.faults.next("persist", Fate::Refuse);
    }
    turn(&mut engine, 1..=3).await;
    assert!(world.faults.are_spent());
    assert_eq!(world.dense(ROOM).await, ids(1..=3));
    assert_eq!(world.dead_letters(), []);
}

/// Somebody else writes to the same conversation while an event is being singled out.
#[tokio::test]
async fn singling_out_survives_a_rival_and_lost_answers() {
    let world = World::new();
    let (mut engine, rival_world) = (world.engine(), world.beside());
    turn(&mut engine, 1..=2).await;
    world.make_unfit(id(6), UserId(9));
    world.faults.next("persist", Fate::Fail);
    world.faults.next("persist", Fate::LoseReply);
    world.faults.next(
        "persist",
        Fate::Meanwhile(Box::new(move || {
            let mut rival = rival_world.engine();
            let work = async { turn(&mut rival, 20..=21).await };
            futures_util::FutureExt::now_or_never(work).expect("nothing waits in memory");
        })),
    );
    turn(&mut engine, 3..=8).await;
    assert!(world.faults.are_spent());
    let mut stored = world.dense(ROOM).await;
    stored.sort();
    assert_eq!(stored, ids([1, 2, 3, 4, 5, 7, 8, 20, 21]));
    assert!(world.dead_letters().iter().all(|letter| letter.event == message(ROOM, 6)));
    assert!(!world.dead_letters().is_empty());
}
