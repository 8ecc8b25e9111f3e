//! What happens when Redis hangs, dies, forgets or refuses.

use std::time::Duration;

use bytes::Bytes;
use fred::interfaces::{ClientLike, KeysInterface, LuaInterface};
use futures_util::future::join_all;
use tidegate::redis::{RedisConfig, RedisHotStore};
use tidegate_core::ids::{ConversationId, Epoch, RoomId, Seq, UserId};
use tidegate_core::ports::{End, Filing, HotStore, PortError, PortResult, SequenceGrant, SequenceRun, TokenState};
use tokio::time::Instant;

use super::server::Server;
use super::{eventually, raw_client};

/// What a call may take in these tests; a hang is noticed after it.
const TIMEOUT: Duration = Duration::from_millis(500);
/// Slack for a loaded machine.
const SLACK: Duration = Duration::from_millis(1500);
/// Within this work goes on after Redis is back.
const RECOVERY: Duration = Duration::from_secs(15);

fn enabled() -> bool {
    let enabled = std::env::var("TIDEGATE_TEST_SERVICES").as_deref() == Ok("1");
    if !enabled {
        eprintln!("skipped: TIDEGATE_TEST_SERVICES is not 1");
    }
    enabled
}

async fn connect(url: impl Into<String>) -> PortResult<RedisHotStore> {
    let mut config = RedisConfig::new(url);
    config.command_timeout = TIMEOUT;
    RedisHotStore::connect(config, "gw".parse().expect("a legal gateway id")).await
}

const ROOM: ConversationId = ConversationId::Room(RoomId(1));

fn at(last: u64) -> End {
    End { epoch: Epoch(1), last: Seq(last) }
}

/// The first of three sequences.
async fn give(store: &RedisHotStore, last: u64) -> PortResult<SequenceGrant> {
    let grants = store.sequence(&[SequenceRun { conversation: ROOM, end: at(last), count: 3 }]).await?;
    match grants.as_slice() {
        [grant] => Ok(*grant),
        other => panic!("expected one grant, got {other:?}"),
    }
}

fn given(first: u64) -> PortResult<SequenceGrant> {
    Ok(SequenceGrant::Given(Seq(first)))
}

/// Fails the test unless the call ends with `Unavailable` within its bound.
async fn assert_unavailable(store: &RedisHotStore) {
    let since = Instant::now();
    let error = store.ping().await.expect_err("Redis does not answer");
    assert!(matches!(error, PortError::Unavailable { service: "redis", .. }), "{error:?}");
    assert!(since.elapsed() < TIMEOUT + SLACK, "after {:?}", since.elapsed());
}

async fn assert_recovers(store: &RedisHotStore) {
    eventually("Redis answers again", RECOVERY, || async {
        // Engines repeat what failed, and only its success ends the doubt.
        let repeated = (store.sequence(&[]).await, store.settle(&[], &[]).await, store.file(&[]).await);
        matches!(repeated, (Ok(_), Ok(()), Ok(()))) && store.ping().await.is_ok()
    })
    .await;
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: usize = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("the second field");
    pages * 4096
}

#[tokio::test]
async fn a_redis_that_is_down_at_start_is_named_without_its_password() {
    if !enabled() {
        return;
    }
    let mut server = Server::start("hunter2").await;
    let (url, address) = (server.url(), server.address());
    server.kill();
    let since = Instant::now();
    let error = connect(&url).await.err().expect("nobody listens");
    assert!(since.elapsed() < 2 * TIMEOUT + SLACK);
    let shown = format!("{error} {error:?}");
    assert!(matches!(error, PortError::Unavailable { service: "redis", .. }), "{shown}");
    assert!(shown.contains(&address) && !shown.contains("hunter2"), "{shown}");

    let server = Server::start("hunter2").await;
    server.freeze();
    let since = Instant::now();
    let error = connect(server.url()).await.err().expect("it accepts and says nothing");
    assert!(since.elapsed() < 2 * TIMEOUT + SLACK, "after {:?}", since.elapsed());
    assert!(matches!(error, PortError::Unavailable { .. }), "{error:?}");
    server.thaw();

    let wrong = connect(server.url().replace("hunter2", "letmein")).await.err().expect("a wrong password");
    assert!(format!("{wrong} {wrong:?}").contains(&server.address()));
    assert!(!format!("{wrong} {wrong:?}").contains("letmein"));
}

#[tokio::test]
async fn a_hung_redis_is_unavailable_within_the_bound_and_comes_back() {
    if !enabled() {
        return;
    }
    let server = Server::start("").await;
    let store = connect(server.url()).await.expect("it runs");
    assert_eq!(give(&store, 0).await, given(1));
    for _ in 0..2 {
        server.freeze();
        assert_unavailable(&store).await;
        let since = Instant::now();
        for _ in 0..1000 {
            give(&store, 3).await.expect_err("it hangs");
        }
        assert!(since.elapsed() < TIMEOUT + SLACK, "a thousand calls fail at once, not {:?}", since.elapsed());
        tokio::time::sleep(2 * TIMEOUT).await;
        server.thaw();
        assert_recovers(&store).await;
        assert_eq!(give(&store, 3).await, given(4));
        let kept = SequenceGrant::Discontinuous { kept: at(3) };
        assert_eq!(give(&store, 2).await, Ok(kept), "and knows what it knew");
    }
}

#[tokio::test]
async fn a_killed_redis_is_unavailable_and_its_successor_believes_the_archive() {
    if !enabled() {
        return;
    }
    let mut server = Server::start("hunter2").await;
    let store = connect(server.url()).await.expect("it runs");
    store.settle(&[(ROOM, at(3))], &[]).await.expect("it runs");
    server.kill();
    assert_unavailable(&store).await;
    assert_unavailable(&store).await;
    let _server = server.restart().await;
    assert_recovers(&store).await;
    assert_eq!(give(&store, 2).await, given(3), "it knows neither script nor conversation: the archive is believed");
}

#[tokio::test]
async fn large_calls_into_a_hung_redis_do_not_pile_up() {
    if !enabled() {
        return;
    }
    let server = Server::start("").await;
    let store = connect(server.url()).await.expect("it runs");
    let filings = |salt: u64| -> Vec<Filing> {
        let filing = |n| Filing {
            user: UserId(n),
            conversation: ConversationId::Room(RoomId(1)),
            seqs: vec![Seq(salt)],
            inbox: vec![Bytes::from(vec![b'x'; 16 * 1024])],
        };
        (1..=60).map(filing).collect()
    };
    store.file(&filings(1)).await.expect("it runs");
    let before = resident_bytes();
    server.freeze();
    // Far more than a socket takes, so that fred's task hangs in a write.
    for round in 0..20 {
        let batches: Vec<_> = (0..50).map(|n| filings(2 + round * 50 + n)).collect();
        let calls = join_all(batches.iter().map(|batch| store.file(batch)));
        let since = Instant::now();
        assert!(calls.await.iter().all(Result::is_err));
        assert!(since.elapsed() < TIMEOUT + SLACK, "after {:?}", since.elapsed());
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 200 << 20, "a gigabyte was offered and {} MiB kept", grown >> 20);
    tokio::time::sleep(6 * TIMEOUT).await;
    server.thaw();
    assert_recovers(&store).await;
    store.file(&filings(5000)).await.expect("it runs again");
    let waiting = store.take_summary(UserId(60)).await.expect("it runs again").inbox;
    assert!(waiting.len() >= 2, "{}", waiting.len());
}

#[tokio::test]
async fn forgetting_scripts_or_everything_is_noticed_by_nobody() {
    if !enabled() {
        return;
    }
    let server = Server::start("").await;
    let (store, raw) = (connect(server.url()).await.expect("it runs"), raw_client(&server.url()).await);
    assert_eq!(give(&store, 0).await, given(1));
    raw.script_flush(false).await.expect("it runs");
    store.settle(&[(ROOM, at(5))], &[]).await.expect("it runs");
    assert_eq!(give(&store, 5).await, given(6));
    raw.flushall::<()>(false).await.expect("it runs");
    assert_eq!(give(&store, 5).await, given(6));
    assert_eq!(store.token_states(&["t"]).await, Ok(vec![TokenState::Unknown]));
}

#[tokio::test]
async fn a_key_of_the_wrong_type_is_refused_and_harms_nothing_else() {
    if !enabled() {
        return;
    }
    let server = Server::start("").await;
    let (store, raw) = (connect(server.url()).await.expect("it runs"), raw_client(&server.url()).await);
    raw.set::<(), _, _>("offline:msg:7", "not a list", None, None, false).await.expect("it runs");
    let error = store.take_summary(UserId(7)).await.expect_err("a string is no list");
    assert!(matches!(error, PortError::Refused { service: "redis", .. }), "{error:?}");
    store.ping().await.expect("it still answers");
}

#[tokio::test]
async fn a_full_redis_is_unavailable_until_it_has_room() {
    if !enabled() {
        return;
    }
    let server = Server::start("").await;
    let store = connect(server.url()).await.expect("it runs");
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let error = give(&store, 0).await.expect_err("no room");
    assert!(matches!(error, PortError::Unavailable { .. }), "{error:?}");
    // It answers every PING, which is not enough: readiness goes by what it does.
    let until = Instant::now() + 2 * TIMEOUT;
    while Instant::now() < until {
        assert!(matches!(store.ping().await, Err(PortError::Unavailable { .. })));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    eventually("the engine's next attempt succeeds", TIMEOUT + SLACK, || async { give(&store, 0).await == given(1) })
        .await;
    assert_eq!(store.ping().await, Ok(()));
}

#[tokio::test]
async fn a_replica_is_unavailable_until_it_is_promoted() {
    if !enabled() {
        return;
    }
    let server = Server::start("").await;
    let store = connect(server.url()).await.expect("it runs");
    // Of nobody: it keeps answering, and takes no writes.
    server.command(&["REPLICAOF", "127.0.0.1", "9"]);
    let error = give(&store, 0).await.expect_err("read-only");
    assert!(matches!(error, PortError::Unavailable { .. }), "{error:?}");
    assert!(store.ping().await.is_err());
    server.command(&["REPLICAOF", "NO", "ONE"]);
    eventually("the engine's next attempt succeeds", TIMEOUT + SLACK, || async { give(&store, 0).await == given(1) })
        .await;
    assert_eq!(store.ping().await, Ok(()));
}
