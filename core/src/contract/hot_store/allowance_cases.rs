//! What gateways let pass adds up, and is regained with time.

use super::{HotStoreFixture, room};
use crate::clock::Clock;
use crate::ids::{ConversationId, Millis, UserId};
use crate::ports::{AllowanceKey, Holder, HotStore, Spend};

const SECOND_US: u64 = 1_000_000;
const HOUR_US: u64 = 3_600 * SECOND_US;

/// What a loaded machine may take between two calls.
const SLACK_US: u64 = 30 * SECOND_US;

fn key(conversation: ConversationId, holder: Holder) -> AllowanceKey {
    AllowanceKey { conversation, holder }
}

fn ann() -> AllowanceKey {
    key(room(1), Holder::User(UserId(1)))
}

fn told(key: AllowanceKey, cost_us: u64) -> Spend {
    Spend { key, cost_us, age_us: 0, debt_us: cost_us, most_us: 1000 * HOUR_US }
}

fn asked(key: AllowanceKey) -> Spend {
    told(key, 0)
}

async fn spend<const SPENDS: usize>(store: &impl HotStore, spends: [Spend; SPENDS]) -> [u64; SPENDS] {
    let debts = store.spend(&spends).await.expect("the store answers");
    debts.try_into().expect("as many as were asked for")
}

#[track_caller]
fn assert_about(debt_us: u64, expected_us: u64) {
    assert!(debt_us <= expected_us && debt_us + SLACK_US >= expected_us, "{debt_us} is not about {expected_us}");
}

/// Over gateways and within a batch; holders and conversations do not disturb each other.
pub async fn what_gateways_let_pass_adds_up(fixture: &impl HotStoreFixture) {
    let (store, other) = (fixture.store("gw").await, fixture.store("other").await);
    assert_eq!(spend(&store, [asked(ann())]).await, [0], "nobody has spent anything");
    assert_about(spend(&store, [told(ann(), HOUR_US)]).await[0], HOUR_US);
    assert_about(spend(&other, [asked(ann())]).await[0], HOUR_US);
    let [first, second] = spend(&other, [told(ann(), 2 * HOUR_US), told(ann(), HOUR_US)]).await;
    assert_about(first, 3 * HOUR_US);
    assert_about(second, 4 * HOUR_US);
    assert_about(spend(&store, [asked(ann())]).await[0], 4 * HOUR_US);
    let others = [
        key(room(1), Holder::Everybody),
        key(room(1), Holder::Slow(UserId(1))),
        key(room(1), Holder::User(UserId(2))),
        key(room(2), Holder::User(UserId(1))),
        key(room(11), Holder::User(UserId(1))),
        key("lobby_main".parse().expect("an id"), Holder::User(UserId(1))),
    ];
    assert_eq!(spend(&store, others.map(asked)).await, [0; 6]);
    assert_eq!(store.spend(&[]).await, Ok(Vec::new()));
}

/// A microsecond in a microsecond; then it is as if nothing had been.
pub async fn an_allowance_becomes_whole_with_time(fixture: &impl HotStoreFixture) {
    let (store, clock) = (fixture.store("gw").await, fixture.clock());
    let begun = clock.now();
    let [mut before] = spend(&store, [told(ann(), SECOND_US)]).await;
    assert!(before > 0 && before <= SECOND_US, "{before}");
    while before > 0 {
        clock.sleep(std::time::Duration::from_millis(100)).await;
        assert!(clock.now() < Millis(begun.0 + 30_000), "not whole after thirty seconds");
        let [debt] = spend(&store, [asked(ann())]).await;
        assert!(debt < before, "{debt} is no less than {before}");
        before = debt;
    }
    assert!(clock.now().0 - begun.0 >= 900, "whole after {} ms", clock.now().0 - begun.0);
    assert_about(spend(&store, [told(ann(), HOUR_US)]).await[0], HOUR_US);
}

/// What is told late counts from when it passed: who spends no more than is regained owes nothing.
pub async fn what_is_told_late_counts_from_when_it_passed(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    let late = |cost_us, age_us, debt_us| Spend { cost_us, age_us, debt_us, ..asked(ann()) };
    let minutes = |count: u64| count * 60 * SECOND_US;
    assert_eq!(spend(&store, [late(minutes(10), minutes(10), 0)]).await, [0]);
    assert_about(spend(&store, [late(minutes(15), minutes(10), 0)]).await[0], minutes(15));
    assert_about(spend(&store, [late(minutes(10), minutes(10), 0)]).await[0], minutes(25));
}

/// What one gateway knows, and another one's call or a loss has not told: of two debts the larger counts.
pub async fn a_debt_that_is_stated_is_reached(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    let stated = |debt_us| Spend { debt_us, ..asked(ann()) };
    for _ in 0..2 {
        assert_about(spend(&store, [stated(2 * HOUR_US)]).await[0], 2 * HOUR_US);
    }
    assert_about(spend(&store, [stated(HOUR_US)]).await[0], 2 * HOUR_US);
    fixture.lose_everything().await;
    assert_eq!(spend(&store, [asked(ann())]).await, [0], "lost, and taken for whole");
    assert_about(spend(&store, [stated(HOUR_US)]).await[0], HOUR_US);
}

/// Slow mode was shortened, or a clock was set back.
pub async fn no_debt_is_larger_than_it_can_be(fixture: &impl HotStoreFixture) {
    let (store, other) = (fixture.store("gw").await, fixture.store("other").await);
    let bounded = |cost_us, most_us| Spend { most_us, ..told(ann(), cost_us) };
    assert_about(spend(&store, [bounded(9 * HOUR_US, 5 * HOUR_US)]).await[0], 5 * HOUR_US);
    assert_about(spend(&store, [bounded(0, HOUR_US)]).await[0], HOUR_US);
    assert_about(spend(&other, [asked(ann())]).await[0], HOUR_US);
}

/// Everything an acceptor let pass in half a second, and more than one command of a script takes.
pub async fn many_allowances_are_told_in_one_call(fixture: &impl HotStoreFixture) {
    const USERS: u64 = 9_000;
    let store = fixture.store("gw").await;
    let spends: Vec<_> =
        (1..=USERS).map(|user| told(key(room(1), Holder::User(UserId(user))), user * HOUR_US)).collect();
    let spends: Vec<_> = spends.into_iter().map(|spend| Spend { most_us: 2 * USERS * HOUR_US, ..spend }).collect();
    let debts = store.spend(&spends).await.expect("the store answers");
    assert_eq!(debts.len(), spends.len());
    (1..=USERS).zip(debts).for_each(|(user, debt_us)| assert_about(debt_us, user * HOUR_US));
}
