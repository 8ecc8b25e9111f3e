use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::contract::hot_store::HotStoreFixture;
use crate::contract::hot_store::presence_cases::{self, gone, here};
use crate::ids::SessionId;
use crate::limits::{PRESENCE_TTL, SESSION_GRACE, UNREAD_SEEDING_TTL};

/// Time passes when somebody sleeps.
#[derive(Clone)]
struct ManualClock(Arc<AtomicU64>);

impl Clock for ManualClock {
    fn now(&self) -> Millis {
        Millis(self.0.load(Ordering::SeqCst))
    }

    async fn sleep(&self, delay: Duration) {
        self.0.fetch_add(u64::try_from(delay.as_millis()).expect("tests are short"), Ordering::SeqCst);
    }
}

struct Fixture(EmbeddedHotStore<ManualClock>);

impl Fixture {
    fn new() -> Self {
        let clock = ManualClock(Arc::new(AtomicU64::new(1_000_000)));
        Self(EmbeddedHotStore::new("gw".parse().expect("a legal gateway id"), clock))
    }
}

impl HotStoreFixture for Fixture {
    type Hot = EmbeddedHotStore<ManualClock>;
    type Time = ManualClock;

    async fn store(&self, gateway: &str) -> Self::Hot {
        self.0.for_gateway(gateway.parse().expect("a legal gateway id"))
    }

    fn clock(&self) -> ManualClock {
        self.0.clock.clone()
    }

    async fn lose_everything(&self) {
        self.0.lose_everything();
    }
}

mod contract {
    use super::Fixture;

    crate::hot_store_contract!(async { Some(Fixture::new()) });
}

#[tokio::test]
async fn presence_ends_unless_renewed() {
    let store = Fixture::new().0;
    let [renewed, forgotten] = [UserId(1), UserId(2)];
    store.change_presence(&[here(renewed, "phone", 1), here(forgotten, "phone", 2)]).await.expect("embedded");
    for _ in 0..3 {
        store.clock.sleep(PRESENCE_TTL / 2).await;
        store.change_presence(&[presence_cases::renewed(renewed, "phone", 1)]).await.expect("embedded");
    }
    let presence = store.presence(&[renewed, forgotten]).await.expect("embedded");
    assert_eq!(presence.iter().map(|p| p.gateways.len()).collect::<Vec<_>>(), [1, 0]);
}

#[tokio::test]
async fn a_session_waits_for_its_grace_and_no_longer() {
    let store = Fixture::new().0;
    let user = UserId(1);
    store.change_presence(&[here(user, "phone", 1), gone(user, "phone", 1)]).await.expect("embedded");
    store.clock.sleep(SESSION_GRACE - Duration::from_millis(1)).await;
    assert_eq!(store.resume(user, "phone", SessionId(1)).await, Ok(Some(Vec::new())));
    store.clock.sleep(Duration::from_millis(1)).await;
    assert_eq!(store.resume(user, "phone", SessionId(1)).await, Ok(None));
}

#[tokio::test]
async fn a_seed_that_comes_too_late_has_no_effect() {
    let store = Fixture::new().0;
    let unread = async || store.take_summary(UserId(1)).await.expect("embedded").unread;
    let first = unread().await.expect_err("nobody has asked before");
    store.clock.sleep(UNREAD_SEEDING_TTL).await;
    store.seed_unread(UserId(1), first, &[]).await.expect("embedded");
    let second = unread().await.expect_err("too late");
    store.seed_unread(UserId(1), first, &[]).await.expect("embedded");
    assert_eq!(unread().await, Err(second), "the first is over");
    store.seed_unread(UserId(1), second, &[]).await.expect("embedded");
    assert_eq!(unread().await, Ok(Vec::new()));
}
