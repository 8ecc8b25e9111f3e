//! What other services see, and what we see of theirs: plain strings under the documented keys.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use fred::interfaces::{HashesInterface, KeysInterface, ListInterface};
use fred::types::Expiration;
use tidegate::redis::RedisHotStore;
use tidegate_core::contract::hot_store::presence_cases::{gone, here, renewed};
use tidegate_core::ids::{ConversationId, Epoch, RoomId, Seq, UserId};
use tidegate_core::ports::{
    CacheRun, CacheSlice, End, Filing, HotStore, SequenceGrant, SequenceRun, TokenState, UnreadCount,
};

use super::{Fixture, eventually};

const ROOM: ConversationId = ConversationId::Room(RoomId(5));
const USER: UserId = UserId(42);

fn run(last: u64, count: u32) -> SequenceRun {
    SequenceRun { conversation: ROOM, end: End { epoch: Epoch(5), last: Seq(last) }, count }
}

fn cached_message(seq: u64) -> Bytes {
    Bytes::from(format!("message {seq:03}"))
}

fn cache_run(seqs: std::ops::RangeInclusive<u64>) -> CacheRun {
    CacheRun {
        conversation: ROOM,
        epoch: Epoch(5),
        messages: seqs.map(|seq| (Seq(seq), cached_message(seq))).collect(),
        messages_max: 1000,
        bytes_max: 1 << 20,
        keep_for: Duration::from_secs(30),
    }
}

#[tokio::test]
async fn a_counter_is_the_last_sequence_in_plain_text() {
    let Some(fixture) = Fixture::new().await else { return };
    let store = fixture.connect("gw").await;
    let text = async |key: &str| fixture.raw.get::<Option<String>, _>(fixture.key(key)).await.expect("a string");
    store.sequence(&[run(7, 2)]).await.expect("Redis answers");
    assert_eq!(text("seq:conv:r_5").await.as_deref(), Some("9"));
    assert_eq!(text("seq:kept:r_5").await.as_deref(), Some("5 7"));
    store.settle(&[(ROOM, End { epoch: Epoch(5), last: Seq(9) })], &[]).await.expect("Redis answers");
    assert_eq!(text("seq:kept:r_5").await.as_deref(), Some("5 9"));
    store.sequence(&[run(8, 30)]).await.expect("Redis answers");
    assert_eq!(text("seq:conv:r_5").await.as_deref(), Some("9"), "nothing was given");
}

#[tokio::test]
async fn a_counter_that_others_changed_or_deleted_changes_nothing() {
    let Some(fixture) = Fixture::new().await else { return };
    let store = fixture.connect("gw").await;
    for counter in ["3", "700", "nonsense"] {
        fixture.raw.set::<(), _, _>(fixture.key("seq:conv:r_5"), counter, None, None, false).await.expect("set");
        assert_eq!(store.sequence(&[run(9, 2)]).await, Ok(vec![SequenceGrant::Given(Seq(10))]), "{counter}");
    }
    fixture.raw.set::<(), _, _>(fixture.key("seq:kept:r_5"), "nonsense", None, None, false).await.expect("set");
    assert_eq!(store.sequence(&[run(9, 2)]).await, Ok(vec![SequenceGrant::Given(Seq(10))]));
}

#[tokio::test]
async fn a_lobby_cache_is_a_list_of_messages() {
    let Some(fixture) = Fixture::new().await else { return };
    let store = fixture.connect("gw").await;
    let list =
        async || -> Vec<Bytes> { fixture.raw.lrange(fixture.key("lobby:cache:r_5"), 0, -1).await.expect("a list") };
    store.settle(&[], &[cache_run(1..=2)]).await.expect("Redis answers");
    store.settle(&[], &[cache_run(2..=4)]).await.expect("Redis answers");
    assert_eq!(list().await, (1..=4).map(cached_message).collect::<Vec<_>>());
    for key in ["lobby:cache:r_5", "lobby:lots:r_5"] {
        let ttl_s: i64 = fixture.raw.ttl(fixture.key(key)).await.expect("a key");
        assert!((25..=30).contains(&ttl_s), "{key} lives {ttl_s} s");
    }
    // Bounds hold in the list too, also where the messages that came together are older than the rest.
    let bounded = CacheRun { messages_max: 3, ..cache_run(5..=6) };
    store.settle(&[], &[bounded]).await.expect("Redis answers");
    assert_eq!(list().await, (5..=6).map(cached_message).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_lobby_cache_that_others_changed_or_deleted_begins_anew() {
    let Some(fixture) = Fixture::new().await else { return };
    let store = fixture.connect("gw").await;
    let (list, lots) = (fixture.key("lobby:cache:r_5"), fixture.key("lobby:lots:r_5"));
    let held = async || store.cached(ROOM, None, 100, 100_000).await.expect("Redis answers");
    let mut next = 1;
    for change in ["shortened", "lengthened", "deleted", "forgotten", "spoilt"] {
        store.settle(&[], &[cache_run(next..=next + 5)]).await.expect("Redis answers");
        assert_eq!(held().await.messages.last(), Some(&cached_message(next + 5)));
        match change {
            "shortened" => fixture.raw.ltrim::<(), _>(&list, 0, -2).await,
            "lengthened" => fixture.raw.rpush::<(), _, _>(&list, "foreign").await,
            "deleted" => fixture.raw.del::<(), _>(&list).await,
            "forgotten" => fixture.raw.del::<(), _>(&lots).await,
            _ => fixture.raw.set::<(), _, _>(&lots, "nonsense, and a bit more of it", None, None, false).await,
        }
        .expect("Redis answers");
        assert_eq!(held().await, CacheSlice::default(), "{change}");
        store.settle(&[], &[cache_run(next..=next + 7)]).await.expect("Redis answers");
        let after = held().await;
        let messages: Vec<_> = (after.first.0..=next + 7).map(cached_message).collect();
        assert_eq!((after.messages, after.first >= Seq(next)), (messages, true), "{change}");
        next += 8;
    }
}

#[tokio::test]
async fn a_cache_with_many_additions_stays_cheap_to_add_to() {
    let Some(fixture) = Fixture::new().await else { return };
    let store = fixture.connect("gw").await;
    for seq in 1..=3000 {
        let run = CacheRun { messages_max: 2000, bytes_max: 1 << 20, ..cache_run(seq..=seq) };
        store.settle(&[], &[run]).await.expect("Redis answers");
    }
    let held = store.cached(ROOM, None, 3000, 1 << 20).await.expect("Redis answers");
    assert!((1875..=2000).contains(&held.messages.len()), "a sixteenth leaves at once: {}", held.messages.len());
    assert_eq!(held.messages.last(), Some(&cached_message(3000)));
    let lots: i64 = fixture.raw.strlen(fixture.key("lobby:lots:r_5")).await.expect("a string");
    assert!(lots <= 24 + 200 * 16, "what is kept beside the messages takes {lots} bytes");
}

#[tokio::test]
async fn a_status_names_the_latest_gateway_and_expires() {
    let Some(mut fixture) = Fixture::new().await else { return };
    fixture.config.presence_ttl = Duration::from_secs(30);
    let (a, b) = (fixture.connect("a").await, fixture.connect("b").await);
    let key = fixture.key("user:status:42");
    a.change_presence(&[here(USER, "phone", 0xabc)]).await.expect("Redis answers");
    b.change_presence(&[here(USER, "desk", 2)]).await.expect("Redis answers");
    let status: BTreeMap<String, String> = fixture.raw.hgetall(&key).await.expect("a hash");
    assert_eq!(status["gatewayId"], "b");
    assert!(status["device:phone"].starts_with("a|0000000000000abc|"), "{status:?}");
    assert_eq!(status.len(), 3);
    let ttl_s: i64 = fixture.raw.ttl(&key).await.expect("a key");
    assert!((25..=30).contains(&ttl_s), "{ttl_s}");
    b.change_presence(&[gone(USER, "desk", 2)]).await.expect("Redis answers");
    let latest: String = fixture.raw.hget(&key, "gatewayId").await.expect("a field");
    assert_eq!(latest, "a");
    a.change_presence(&[gone(USER, "phone", 0xabc)]).await.expect("Redis answers");
    assert_eq!(fixture.raw.hexists::<i64, _, _>(&key, "gatewayId").await, Ok(0), "away: sessions wait to be resumed");
    let ttl_s: i64 = fixture.raw.ttl(&key).await.expect("a key");
    assert!((55..=60).contains(&ttl_s), "{ttl_s}");
}

#[tokio::test]
async fn a_dead_gateway_is_forgotten_though_another_renews() {
    let Some(mut fixture) = Fixture::new().await else { return };
    fixture.config.presence_ttl = Duration::from_millis(1500);
    let (alive, dead) = (fixture.connect("alive").await, fixture.connect("dead").await);
    alive.change_presence(&[here(USER, "phone", 1)]).await.expect("Redis answers");
    dead.change_presence(&[here(USER, "desk", 2)]).await.expect("Redis answers");
    eventually("only the living gateway holds the user", Duration::from_secs(10), || async {
        alive.change_presence(&[renewed(USER, "phone", 1)]).await.expect("Redis answers");
        let presence = alive.presence(&[USER]).await.expect("Redis answers");
        let gateways: BTreeSet<_> = presence[0].gateways.iter().map(ToString::to_string).collect();
        assert!(gateways.contains("alive"), "what is renewed stays");
        !gateways.contains("dead")
    })
    .await;
    alive.change_presence(&[here(USER, "phone", 1)]).await.expect("Redis answers");
    assert_eq!(fixture.raw.hexists::<i64, _, _>(fixture.key("user:status:42"), "device:desk").await, Ok(0));
}

#[tokio::test]
async fn a_place_whose_time_is_over_holds_nobody() {
    let Some(fixture) = Fixture::new().await else { return };
    let store = fixture.connect("gw").await;
    let key = fixture.key("user:status:42");
    let places =
        vec![("gatewayId", "b"), ("device:phone", "a|01|1700000000000"), ("device:desk", "b|02|99000000000000")];
    fixture.raw.hset::<(), _, _>(&key, places).await.expect("Redis answers");
    let presence = store.presence(&[USER]).await.expect("Redis answers");
    assert_eq!(presence[0].gateways.iter().map(ToString::to_string).collect::<Vec<_>>(), ["b"]);
}

#[tokio::test]
async fn counts_and_inbox_are_readable_and_hold_nothing_else() {
    let Some(fixture) = Fixture::new().await else { return };
    let store = fixture.connect("gw").await;
    let other = ConversationId::Room(RoomId(6));
    let seeding = store.take_summary(USER).await.expect("Redis answers").unread.expect_err("nobody has asked before");
    let count = |conversation, unread, counted_to| UnreadCount { conversation, unread, counted_to: Seq(counted_to) };
    store.seed_unread(USER, seeding, &[count(ROOM, 2, 4), count(other, 0, 3)]).await.expect("Redis answers");
    let inbox = vec![Bytes::from_static(b"\0five"), Bytes::from_static(b"six")];
    let filing = Filing { user: USER, conversation: ROOM, seqs: vec![Seq(5), Seq(6)], inbox: inbox.clone() };
    store.file(&[filing]).await.expect("Redis answers");
    let key = fixture.key("user:unread:counts:42");
    let counts: BTreeMap<String, String> = fixture.raw.hgetall(&key).await.expect("a hash");
    assert_eq!(counts, BTreeMap::from([("r_5".to_owned(), "4".to_owned())]));
    let waiting: Vec<Bytes> = fixture.raw.lrange(fixture.key("offline:msg:42"), 0, -1).await.expect("a list");
    assert_eq!(waiting, inbox);
    for key in ["user:unread:counts:42", "user:unread:seqs:42", "offline:msg:42", "offline:seqs:42"] {
        let ttl_s: i64 = fixture.raw.ttl(fixture.key(key)).await.expect("a key");
        assert!(ttl_s > 6 * 24 * 3600, "{key} lives {ttl_s} s");
    }
    store.set_unread(&[(USER, count(ROOM, 0, 6))]).await.expect("Redis answers");
    assert_eq!(fixture.raw.exists::<i64, _>(&key).await, Ok(0), "no field at zero, and no empty hash");
}

/// What earlier versions wrote between a login's question and its answer.
#[tokio::test]
async fn a_seeding_without_a_name_gets_one() {
    let Some(fixture) = Fixture::new().await else { return };
    let store = fixture.connect("gw").await;
    let key = fixture.key("user:unread:seqs:42");
    fixture.raw.hset::<(), _, _>(&key, ("state", "seeding")).await.expect("Redis answers");
    let unread = async || store.take_summary(USER).await.expect("Redis answers").unread;
    let seeding = unread().await.expect_err("the counts are unknown");
    assert_eq!(unread().await, Err(seeding));
    let count = UnreadCount { conversation: ROOM, unread: 2, counted_to: Seq(4) };
    store.seed_unread(USER, seeding, &[count]).await.expect("Redis answers");
    assert_eq!(unread().await, Ok(vec![(ROOM, 2)]));
}

#[tokio::test]
async fn logins_of_sa_token_are_understood() {
    let Some(fixture) = Fixture::new().await else { return };
    let store = fixture.connect("gw").await;
    let ttl = Some(Expiration::EX(60));
    for (token, value) in [("t-1", "10001"), ("t-2", "-4"), ("t-3", "-5"), ("t-4", "-6"), ("t-5", "not a user")] {
        let key = fixture.key(&format!("satoken:login:token:{token}"));
        fixture.raw.set::<(), _, _>(key, value, ttl.clone(), None, false).await.expect("Redis answers");
    }
    fixture.raw.hset::<(), _, _>(fixture.key("satoken:login:token:t-6"), ("a", "b")).await.expect("Redis answers");
    let asked = ["t-1", "t-2", "t-3", "t-4", "t-5", "t-6", "t-7"];
    let (expired, unknown) = (TokenState::Expired, TokenState::Unknown);
    let expected = vec![TokenState::Valid(UserId(10_001)), expired, expired, unknown, unknown, unknown, unknown];
    assert_eq!(store.token_states(&asked).await, Ok(expected));
    store.put_token("ours", USER, Duration::from_secs(60)).await.expect("Redis answers");
    let value: String = fixture.raw.get(fixture.key("satoken:login:token:ours")).await.expect("a string");
    assert_eq!(value, "42");

    let mut config = fixture.config.clone();
    "app".clone_into(&mut config.token_name);
    "user".clone_into(&mut config.login_type);
    let gateway = "gw".parse().expect("a legal gateway id");
    let store = RedisHotStore::connect(config, gateway).await.expect("Redis answers");
    fixture.raw.set::<(), _, _>(fixture.key("app:user:token:t"), "7", ttl, None, false).await.expect("Redis answers");
    assert_eq!(store.token_states(&["t"]).await, Ok(vec![TokenState::Valid(UserId(7))]));
}
