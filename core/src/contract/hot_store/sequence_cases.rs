//! Sequences follow the archive's end, and an archive that went back is noticed.

use super::{HotStoreFixture, ask, at, discontinuous, given, private, room, run, settle};
use crate::ports::HotStore;

/// 1, 2, 3 and so on, whatever the batches are.
pub async fn sequences_follow_the_archives_end(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    assert_eq!(ask(&store, [run(room(1), at(1, 0), 3)]).await, [given(1)]);
    settle(&store, [(room(1), at(1, 3))]).await;
    assert_eq!(ask(&store, [run(room(1), at(1, 3), 100)]).await, [given(4)]);
    settle(&store, [(room(1), at(1, 103))]).await;
    let runs = [run(room(1), at(1, 103), 2), run(private(1, 2), at(1, 0), 1), run(room(2), at(7, 40), 1)];
    assert_eq!(ask(&store, runs).await, [given(104), given(1), given(41)]);
    assert_eq!(store.sequence(&[]).await, Ok(vec![]));
    assert_eq!(store.settle(&[], &[]).await, Ok(()));
}

/// A call that ended in an error is simply repeated, and so is a batch that was redelivered in other groups.
pub async fn what_was_not_committed_is_given_again(fixture: &impl HotStoreFixture) {
    let (store, other) = (fixture.store("gw").await, fixture.store("other").await);
    let runs = [run(room(1), at(1, 7), 5), run(room(2), at(1, 0), 4)];
    for _ in 0..3 {
        assert_eq!(ask(&store, runs).await, [given(8), given(1)]);
    }
    assert_eq!(ask(&other, [run(room(1), at(1, 7), 2)]).await, [given(8)]);
    settle(&other, [(room(1), at(1, 9))]).await;
    assert_eq!(ask(&other, [run(room(1), at(1, 9), 30)]).await, [given(10)]);
    assert_eq!(ask(&store, [run(room(2), at(1, 0), 1)]).await, [given(1)], "however much was asked for before");
}

/// An archive that is behind what it had committed: others may have seen what it lost.
pub async fn an_archive_that_went_back_is_noticed(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    settle(&store, [(room(1), at(1, 9)), (room(2), at(1, 9))]).await;
    let runs = [run(room(1), at(1, 8), 1), run(room(2), at(1, 9), 1), run(room(3), at(1, 0), 1)];
    for _ in 0..2 {
        assert_eq!(ask(&store, runs).await, [discontinuous(1, 9), given(10), given(1)], "the others are not held up");
    }
    assert_eq!(ask(&store, [run(room(1), at(2, 8), 1)]).await, [given(9)], "a new epoch begins where the archive is");
    settle(&store, [(room(1), at(2, 9))]).await;
    assert_eq!(ask(&store, [run(room(1), at(2, 9), 1)]).await, [given(10)]);
    assert_eq!(ask(&store, [run(room(1), at(1, 20), 1)]).await, [discontinuous(2, 9)], "the former epoch is over");
}

/// What was committed in one life of an engine is remembered in the next, and what the archive had when it was asked.
pub async fn an_end_that_was_named_is_remembered(fixture: &impl HotStoreFixture) {
    let (store, other) = (fixture.store("gw").await, fixture.store("other").await);
    assert_eq!(ask(&store, [run(room(1), at(1, 5), 3)]).await, [given(6)]);
    assert_eq!(ask(&other, [run(room(1), at(1, 4), 1)]).await, [discontinuous(1, 5)]);
    assert_eq!(ask(&other, [run(room(1), at(1, 5), 1)]).await, [given(6)], "6 to 8 were given and never committed");
}

/// A Redis that lost everything, or is new: the archive is believed.
pub async fn after_a_loss_the_archive_is_believed(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    assert_eq!(ask(&store, [run(room(1), at(1, 0), 10)]).await, [given(1)]);
    settle(&store, [(room(1), at(1, 10))]).await;
    fixture.lose_everything().await;
    assert_eq!(ask(&store, [run(room(1), at(1, 10), 2)]).await, [given(11)]);
    fixture.lose_everything().await;
    assert_eq!(ask(&store, [run(room(1), at(1, 8), 2)]).await, [given(9)], "nothing says that it was further");
}

/// A replica that was behind when it took over knows less, never something else.
pub async fn a_store_that_is_behind_follows_the_archive(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    assert_eq!(ask(&store, [run(room(1), at(1, 0), 2)]).await, [given(1)]);
    settle(&store, [(room(1), at(1, 2))]).await;
    assert_eq!(ask(&store, [run(room(1), at(1, 9), 2)]).await, [given(10)]);
    assert_eq!(ask(&store, [run(room(1), at(4, 9), 2)]).await, [given(10)], "of epochs too");
}

/// An engine that lost its partition settles late.
pub async fn what_was_committed_never_goes_back(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    settle(&store, [(room(1), at(2, 50)), (room(2), at(1, 5))]).await;
    settle(&store, [(room(1), at(2, 49)), (room(2), at(1, 7))]).await;
    settle(&store, [(room(1), at(1, 900))]).await;
    let runs = [run(room(1), at(2, 49), 1), run(room(2), at(1, 6), 1)];
    assert_eq!(ask(&store, runs).await, [discontinuous(2, 50), discontinuous(1, 7)]);
    let runs = [run(room(1), at(2, 50), 1), run(room(2), at(1, 7), 1)];
    assert_eq!(ask(&store, runs).await, [given(51), given(8)]);
}

/// Two engines that take the partition for theirs: the one that knows less learns it.
pub async fn of_two_engines_the_one_behind_is_told(fixture: &impl HotStoreFixture) {
    let (owner, zombie) = (fixture.store("gw").await, fixture.store("other").await);
    assert_eq!(ask(&zombie, [run(room(1), at(1, 10), 3)]).await, [given(11)]);
    assert_eq!(ask(&owner, [run(room(1), at(1, 10), 5)]).await, [given(11)], "the archive decides who commits");
    settle(&owner, [(room(1), at(1, 15))]).await;
    assert_eq!(ask(&zombie, [run(room(1), at(1, 10), 3)]).await, [discontinuous(1, 15)]);
    assert_eq!(ask(&zombie, [run(room(1), at(1, 15), 3)]).await, [given(16)]);
    assert_eq!(ask(&owner, [run(room(1), at(1, 15), 1)]).await, [given(16)], "what a zombie asked for holds up nobody");
}

/// The greatest numbers there are.
pub async fn ends_beyond_32_bits_are_kept(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    let (far, epoch) = (1 << 52, u32::MAX);
    assert_eq!(ask(&store, [run(room(1), at(epoch, far), 2)]).await, [given(far + 1)]);
    settle(&store, [(room(1), at(epoch, far + 2))]).await;
    assert_eq!(ask(&store, [run(room(1), at(epoch, far + 1), 1)]).await, [discontinuous(epoch, far + 2)]);
    assert_eq!(ask(&store, [run(room(1), at(epoch - 1, far + 9), 1)]).await, [discontinuous(epoch, far + 2)]);
}

/// A whole turn of the ingest engine, and more than one command of a script takes.
pub async fn a_large_batch_is_answered_in_one_call(fixture: &impl HotStoreFixture) {
    const CONVERSATIONS: u64 = 1500;
    let store = fixture.store("gw").await;
    for round in 0..3 {
        let end = |n| at(1, round * n);
        let runs: Vec<_> = (1..=CONVERSATIONS).map(|n| run(private(1, n + 1), end(n), 3)).collect();
        let grants = store.sequence(&runs).await.expect("the store answers");
        let expected: Vec<_> = (1..=CONVERSATIONS).map(|n| given(round * n + 1)).collect();
        assert!(grants == expected, "round {round}");
        let ends: Vec<_> = (1..=CONVERSATIONS).map(|n| (private(1, n + 1), at(1, (round + 1) * n))).collect();
        store.settle(&ends, &[]).await.expect("the store answers");
    }
    let runs: Vec<_> = (1..=CONVERSATIONS).map(|n| run(private(1, n + 1), at(1, 2 * n), 3)).collect();
    let grants = store.sequence(&runs).await.expect("the store answers");
    let expected: Vec<_> = (1..=CONVERSATIONS).map(|n| discontinuous(1, 3 * n)).collect();
    assert!(grants == expected, "every one of them went back");
}
