//! Allowances to send as they lie in Redis: one text each, that goes when it is of no more use.

use fred::interfaces::KeysInterface;
use tidegate_core::ids::{ConversationId, RoomId, UserId};
use tidegate_core::limits::ALLOWANCE_KEPT;
use tidegate_core::ports::{AllowanceKey, Holder, HotStore, Spend};

use super::Fixture;

const HOUR_US: u64 = 3_600_000_000;

fn spend(holder: Holder, cost_us: u64) -> Spend {
    let key = AllowanceKey { conversation: ConversationId::Room(RoomId(5)), holder };
    Spend { key, cost_us, age_us: 0, debt_us: cost_us, most_us: 10 * HOUR_US }
}

#[tokio::test]
async fn an_allowance_is_one_key_that_expires_soon_after_it_is_whole() {
    let Some(fixture) = Fixture::new().await else { return };
    let store = fixture.connect("gw").await;
    let user = UserId(42);
    let holders = [
        (Holder::Everybody, "send:debt:r_5"),
        (Holder::User(user), "send:debt:r_5:u42"),
        (Holder::Slow(user), "send:debt:r_5:s42"),
    ];
    let kept_ms = i64::try_from(ALLOWANCE_KEPT.as_millis()).expect("short");
    for (hours, (holder, key)) in (1..).zip(holders) {
        let debts = store.spend(&[spend(holder, hours * HOUR_US)]).await;
        assert_eq!(debts, Ok(vec![hours * HOUR_US]));
        let text: String = fixture.raw.get(fixture.key(key)).await.expect("a string");
        assert!(text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_digit()), "microseconds since 1970: {text}");
        let left_ms: i64 = fixture.raw.pttl(fixture.key(key)).await.expect("a number");
        let whole_ms = i64::try_from(hours * 3_600_000).expect("short");
        assert!(left_ms > whole_ms - 60_000 && left_ms <= whole_ms + kept_ms, "{key}: {left_ms}");
    }
    // Who only asks leaves nothing behind.
    assert_eq!(store.spend(&[spend(Holder::User(UserId(7)), 0)]).await, Ok(vec![0]));
    assert_eq!(fixture.raw.exists::<i64, _>(fixture.key("send:debt:r_5:u7")).await, Ok(0));
}

#[tokio::test]
async fn a_value_that_is_not_ours_is_an_allowance_that_is_whole() {
    let Some(fixture) = Fixture::new().await else { return };
    let store = fixture.connect("gw").await;
    let key = fixture.key("send:debt:r_5");
    for foreign in ["nonsense", "", "1e999", "-5"] {
        fixture.raw.set::<(), _, _>(&key, foreign, None, None, false).await.expect("set");
        let debts = store.spend(&[spend(Holder::Everybody, HOUR_US)]).await.expect("an answer");
        assert!(debts[0] >= HOUR_US && debts[0] <= 10 * HOUR_US, "{foreign:?}: {debts:?}");
    }
}
