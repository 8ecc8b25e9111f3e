//! Tokens stand for users until their time is over.

use std::time::Duration;

use super::HotStoreFixture;
use crate::clock::Clock;
use crate::ids::{Millis, UserId};
use crate::ports::{HotStore, TokenState};

const HOUR: Duration = Duration::from_secs(3600);

async fn state(store: &impl HotStore, token: &str) -> TokenState {
    store.token_states(&[token]).await.expect("the store answers")[0]
}

/// Given, replaced by a second login with the same token, logged out.
pub async fn a_token_is_valid_until_deleted(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    assert_eq!(state(&store, "t").await, TokenState::Unknown);
    store.put_token("t", UserId(5), HOUR).await.expect("the store answers");
    store.put_token("t", UserId(i64::MAX.cast_unsigned()), HOUR).await.expect("the store answers");
    assert_eq!(state(&store, "t").await, TokenState::Valid(UserId(i64::MAX.cast_unsigned())));
    assert_eq!(store.delete_token("t").await, Ok(true));
    assert_eq!(store.delete_token("t").await, Ok(false));
    assert_eq!(state(&store, "t").await, TokenState::Unknown);
}

/// Its time to live runs out.
pub async fn a_token_expires(fixture: &impl HotStoreFixture) {
    let (store, clock) = (fixture.store("gw").await, fixture.clock());
    store.put_token("short", UserId(5), Duration::from_millis(50)).await.expect("the store answers");
    store.put_token("long", UserId(6), HOUR).await.expect("the store answers");
    let deadline = Millis(clock.now().0 + 10_000);
    while state(&store, "short").await != TokenState::Unknown {
        assert!(clock.now() < deadline, "still valid after ten seconds");
        clock.sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(state(&store, "long").await, TokenState::Valid(UserId(6)));
    assert_eq!(store.delete_token("short").await, Ok(false));
}

/// Re-checks of live sessions come by the hundred.
pub async fn states_come_in_the_order_asked(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    let names: Vec<String> = (0..1200).map(|n| format!("token {n} é\n")).collect();
    for n in [1_usize, 600, 1199] {
        store.put_token(&names[n], UserId(n as u64), HOUR).await.expect("the store answers");
    }
    let asked: Vec<&str> = names.iter().map(String::as_str).collect();
    let states = store.token_states(&asked).await.expect("the store answers");
    assert_eq!(states.len(), 1200);
    let valid: Vec<_> = states.iter().filter(|state| **state != TokenState::Unknown).copied().collect();
    assert_eq!(valid, [1, 600, 1199].map(|n| TokenState::Valid(UserId(n))));
    assert_eq!(states[600], TokenState::Valid(UserId(600)));
    assert_eq!(store.token_states(&[]).await.expect("the store answers"), []);
}
