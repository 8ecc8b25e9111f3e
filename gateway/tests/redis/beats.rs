//! Which gateways are believed to live.

use std::time::Duration;

use tidegate::redis::RedisHotStore;
use tidegate_core::contract::hot_store::HotStoreFixture as _;
use tidegate_core::contract::hot_store::presence_cases::here;
use tidegate_core::ids::UserId;
use tidegate_core::ports::{Beat, HotStore};

use super::{Fixture, eventually};

const USER: UserId = UserId(42);

/// Long enough that a busy machine gets a few beats into it.
const TTL: Duration = Duration::from_millis(1500);

async fn fixture() -> Option<Fixture> {
    let mut fixture = Fixture::new().await?;
    fixture.config.gateway_ttl = TTL;
    Some(fixture)
}

async fn arrive(store: &RedisHotStore, device: &str) {
    store.change_presence(&[here(USER, device, 1)]).await.expect("Redis answers");
}

async fn places(store: &RedisHotStore) -> Vec<String> {
    let presence = store.presence(&[USER]).await.expect("Redis answers");
    let mut places: Vec<_> = presence[0].gateways.iter().map(ToString::to_string).collect();
    places.sort();
    places
}

#[tokio::test]
async fn a_gateway_that_falls_silent_holds_nobody_while_others_speak() {
    let Some(fixture) = fixture().await else { return };
    let (alive, dead) = (fixture.connect("alive").await, fixture.connect("dead").await);
    arrive(&alive, "pc").await;
    arrive(&dead, "phone").await;
    dead.beat().await.expect("Redis answers");
    assert_eq!(places(&alive).await, ["alive", "dead"]);
    eventually("the silent one is given up", TTL * 4, || async {
        alive.beat().await.expect("Redis answers");
        let places = places(&alive).await;
        assert!(places.contains(&"alive".to_owned()), "who speaks is believed");
        places == ["alive"]
    })
    .await;
    // It was slow, not dead.
    assert_eq!(dead.beat().await.expect("Redis answers"), Beat::Known);
    assert_eq!(places(&alive).await, ["alive", "dead"]);
}

#[tokio::test]
async fn when_nobody_could_speak_nobody_is_given_up() {
    let Some(fixture) = fixture().await else { return };
    let (a, b) = (fixture.connect("a").await, fixture.connect("b").await);
    arrive(&a, "pc").await;
    arrive(&b, "phone").await;
    // As in an outage of Redis that both survive.
    tokio::time::sleep(TTL * 2).await;
    assert_eq!(places(&a).await, ["a", "b"]);
    a.beat().await.expect("Redis answers");
    assert_eq!(places(&a).await, ["a", "b"], "the other has its time to speak as well");
    eventually("but no more than that", TTL * 4, || async {
        a.beat().await.expect("Redis answers");
        places(&a).await == ["a"]
    })
    .await;
}

#[tokio::test]
async fn a_gateways_next_process_does_not_hold_what_the_former_held() {
    let Some(fixture) = fixture().await else { return };
    let (former, watcher) = (fixture.connect("gw").await, fixture.connect("watcher").await);
    arrive(&former, "pc").await;
    former.beat().await.expect("Redis answers");
    assert_eq!(places(&watcher).await, ["gw"]);
    let next = fixture.connect("gw").await;
    assert_eq!(next.beat().await.expect("Redis answers"), Beat::Unknown);
    assert_eq!(places(&watcher).await, Vec::<String>::new());
    arrive(&next, "phone").await;
    assert_eq!(places(&watcher).await, ["gw"]);
}

#[tokio::test]
async fn after_a_loss_places_are_uncertain_until_all_can_have_spoken() {
    let Some(fixture) = fixture().await else { return };
    let store = fixture.connect("gw").await;
    let is_uncertain = async || store.presence(&[USER]).await.expect("Redis answers")[0].uncertain;
    assert!(is_uncertain().await, "nobody has spoken yet");
    store.beat().await.expect("Redis answers");
    assert!(is_uncertain().await, "others may follow");
    eventually("all have spoken", TTL * 4, || async { !is_uncertain().await }).await;
    fixture.lose_everything().await;
    arrive(&store, "pc").await;
    assert!(is_uncertain().await, "a login is not enough");
}
