//! Sequences are dense, stable for a message, and never go back.

use super::{HotStoreFixture, PARTITION, ask, give, message, messages, private, room, run, seqs};
use crate::ids::{Partition, Seq};
use crate::ports::{HotStore, SequenceGrant, SequenceRequest};

/// 1, 2, 3 and so on, whatever the batches are.
pub async fn sequences_are_dense_from_one_over_batches(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    assert_eq!(give(&store, run(room(1), Some(0), messages(0..3))).await, seqs(1..=3));
    assert_eq!(give(&store, run(room(1), None, messages(3..4))).await, seqs(4..=4));
    assert_eq!(give(&store, run(room(1), None, Vec::new())).await, []);
    assert_eq!(give(&store, run(room(1), Some(2), messages(4..104))).await, seqs(5..=104));
    let grants = ask(
        &store,
        vec![run(room(1), None, messages(104..106)), run(private(1, 2), Some(0), messages(106..107))],
        Vec::new(),
    )
    .await;
    assert_eq!(grants, [SequenceGrant::Given(seqs(105..=106)), SequenceGrant::Given(seqs(1..=1))]);
}

/// A call that ended in an error is simply repeated.
pub async fn repeating_a_request_repeats_its_answer(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    let runs = || vec![run(room(1), Some(7), messages(0..5)), run(room(2), Some(0), messages(5..9))];
    let first = ask(&store, runs(), Vec::new()).await;
    assert_eq!(first, [SequenceGrant::Given(seqs(8..=12)), SequenceGrant::Given(seqs(1..=4))]);
    assert_eq!(ask(&store, runs(), Vec::new()).await, first);
    assert_eq!(give(&store, run(room(1), None, messages(20..21))).await, seqs(13..=13), "and nothing was used up");
}

/// After a crash the same messages come again, cut into other batches and with new ones behind them.
pub async fn redelivery_in_other_groups_repeats_the_answer(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    assert_eq!(give(&store, run(room(1), Some(0), messages(0..4))).await, seqs(1..=4));
    assert_eq!(give(&store, run(room(1), None, messages(4..6))).await, seqs(5..=6));
    let other = fixture.store("other").await;
    assert_eq!(give(&other, run(room(1), Some(0), messages(0..2))).await, seqs(1..=2));
    assert_eq!(give(&other, run(room(1), Some(0), messages(2..9))).await, seqs(3..=9));
}

/// What the archive holds need not be remembered; the engine finds it there and does not ask for it again.
pub async fn settled_messages_are_forgotten(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    assert_eq!(give(&store, run(room(1), Some(0), messages(0..3))).await, seqs(1..=3));
    let grants = ask(&store, vec![run(room(1), None, messages(3..4))], messages(0..2)).await;
    assert_eq!(grants, [SequenceGrant::Given(seqs(4..=4))]);
    let grants = ask(&store, vec![run(room(1), None, messages(1..3))], messages(500..2000)).await;
    assert_eq!(grants, [SequenceGrant::Given(vec![Seq(5), Seq(3)])], "1 is settled, 2 is not");
}

/// Without a counter and a floor nothing is given, except what was given before.
pub async fn an_unknown_conversation_needs_a_floor(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    let runs = vec![run(room(1), None, messages(0..3)), run(room(2), Some(0), messages(3..4))];
    let grants = ask(&store, runs, Vec::new()).await;
    assert_eq!(grants, [SequenceGrant::FloorNeeded, SequenceGrant::Given(seqs(1..=1))]);
    assert_eq!(give(&store, run(room(1), Some(41), messages(0..3))).await, seqs(42..=44));
}

/// A Redis that lost everything: the archive's highest sequence is the floor.
pub async fn after_a_loss_sequences_go_on_above_the_floor(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    assert_eq!(give(&store, run(room(1), Some(0), messages(0..10))).await, seqs(1..=10));
    fixture.lose_everything().await;
    assert_eq!(ask(&store, vec![run(room(1), None, messages(8..12))], Vec::new()).await, [SequenceGrant::FloorNeeded]);
    assert_eq!(give(&store, run(room(1), Some(8), messages(8..12))).await, seqs(9..=12));
}

/// A counter restored from an old copy must not give what the archive holds.
pub async fn a_floor_above_the_counter_raises_it(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    assert_eq!(give(&store, run(room(1), Some(0), messages(0..2))).await, seqs(1..=2));
    assert_eq!(give(&store, run(room(1), Some(9), messages(2..4))).await, seqs(10..=11));
    assert_eq!(
        give(&store, run(room(1), Some(3), messages(4..5))).await,
        seqs(12..=12),
        "a lower floor lowers nothing"
    );
    let far = 1 << 52;
    assert_eq!(give(&store, run(room(1), Some(far), messages(5..6))).await, [Seq(far + 1)], "beyond 32 bits");
    assert_eq!(give(&store, run(room(1), None, messages(6..7))).await, [Seq(far + 2)]);
    assert_eq!(give(&store, run(room(1), None, messages(5..7))).await, seqs(far + 1..=far + 2));
}

/// A whole turn of the ingest engine.
pub async fn a_large_batch_is_answered_in_one_call(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    for round in 0..3_u32 {
        let base = round * 10_000;
        let mut runs: Vec<_> =
            (0..300).map(|n| run(private(1, u64::from(n) + 2), Some(0), messages(base + n..base + n + 1))).collect();
        runs.push(run(room(1), Some(0), messages(base + 300..base + 512)));
        runs.push(run(room(2), Some(0), messages(base + 600..base + 1700)));
        let settled = if round == 0 { Vec::new() } else { messages(base - 10_000..base - 8_000) };
        let grants = ask(&store, runs, settled).await;
        let round = u64::from(round);
        assert_eq!(grants.len(), 302);
        for grant in &grants[..300] {
            assert_eq!(grant, &SequenceGrant::Given(vec![Seq(round + 1)]));
        }
        assert_eq!(grants[300], SequenceGrant::Given(seqs(round * 212 + 1..=round * 212 + 212)));
        assert_eq!(grants[301], SequenceGrant::Given(seqs(round * 1100 + 1..=round * 1100 + 1100)));
    }
}

/// What one partition settles does not concern another.
pub async fn partitions_remember_for_themselves(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    assert_eq!(give(&store, run(room(1), Some(0), messages(0..2))).await, seqs(1..=2));
    let request = SequenceRequest { runs: vec![run(room(9), Some(0), messages(5..6))], settled: messages(0..2) };
    let grants = store.sequence(Partition(PARTITION.0 + 1), request).await.expect("the store answers");
    assert_eq!(grants, [SequenceGrant::Given(seqs(1..=1))]);
    assert_eq!(give(&store, run(room(1), None, messages(0..3))).await, seqs(1..=3));
}

/// A client that repeats itself within one batch.
pub async fn a_message_twice_in_a_run_has_one_sequence(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    let twice = vec![message(0), message(1), message(0), message(2)];
    assert_eq!(give(&store, run(room(1), Some(0), twice.clone())).await, [Seq(1), Seq(2), Seq(1), Seq(3)]);
    assert_eq!(give(&store, run(room(1), None, twice)).await, [Seq(1), Seq(2), Seq(1), Seq(3)]);
}
