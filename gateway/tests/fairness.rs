//! Fairness from outside: who sends too much is told to wait, whichever connection or gateway it takes, and others are not.

#![allow(clippy::unwrap_used)]

#[macro_use]
mod support;

use std::time::Duration;

use prost::Message as _;
use support::process::Process;
use support::servers::{ALL, Servers};
use support::{Client, Cluster, DEADLINE, World, embedded, eventually};
use tidegate_core::ports::Backend;
use tidegate_proto::Kind;
use tidegate_proto::v1::{self, Code};

/// Slow enough that a test on a loaded machine does not regain a message by chance.
const SETTINGS: [&str; 2] =
    ["fairness.user_per_s=1", "fairness.rules=lobby_main user_per_s=1 user_burst=5, r_* user_per_s=0"];
const BURST: usize = 5;

/// What became of a Send.
type Verdict = Result<(), v1::Error>;

async fn try_send(client: &mut Client, conversation: &str, key: &str) -> Verdict {
    let correlation = client.command(Kind::Send, &support::send(conversation, key, key)).await;
    loop {
        let frame = client.frame().await.expect("an answer, not the end");
        if frame.head.kind < 0x80 && frame.head.correlation == correlation {
            let is_error = frame.head.kind == Kind::Error as u8;
            return if is_error { Err(v1::Error::decode(frame.payload).unwrap()) } else { Ok(()) };
        }
    }
}

/// Sends until it is refused; the number that passed, and the wait.
async fn flood(client: &mut Client, conversation: &str, key: &str) -> (usize, u32) {
    for passed in 0..100 {
        if let Err(error) = try_send(client, conversation, &format!("{key} {passed}")).await {
            assert_eq!(error.code(), Code::SlowDown);
            assert!(error.retry_after_ms > 0, "{error:?}");
            return (passed, error.retry_after_ms);
        }
    }
    panic!("a hundred messages passed");
}

async fn who_floods_is_told_to_wait_and_nobody_else<B: Backend>(world: &World<B>) {
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let mut flooding = world.connect(&anna, "pc").await;
    let (passed, wait_ms) = flood(&mut flooding, "lobby_main", "a").await;
    assert!((BURST..BURST + 3).contains(&passed), "{passed} passed");
    assert!(wait_ms <= 1_000, "{wait_ms} ms for one message a second");

    let mut other = world.connect(&ben, "pc").await;
    for n in 0..BURST {
        try_send(&mut other, "lobby_main", &format!("b {n}")).await.expect("Ben has an allowance of his own");
    }
    let private = anna.with(&ben);
    for n in 0..50 {
        try_send(&mut flooding, &private, &format!("p {n}")).await.expect("private conversations have no limit");
    }

    // Another device, another connection, another shard: the allowance is the user's.
    for n in 0..4 {
        let mut again = world.connect(&anna, &format!("device-{n}")).await;
        let (passed, _) = flood(&mut again, "lobby_main", &format!("again {n}")).await;
        assert!(passed <= 2, "{passed} passed after reconnecting");
    }

    // The wait is what it says.
    let (_, wait_ms) = flood(&mut flooding, "lobby_main", "once more").await;
    tokio::time::sleep(Duration::from_millis(wait_ms.into())).await;
    try_send(&mut flooding, "lobby_main", "patient").await.expect("it passes after the wait");

    // Nothing of what was refused was stored, and nothing of what passed was lost.
    let history = v1::History { conversation_id: "lobby_main".into(), page_size: 200, ..Default::default() };
    eventually("the last one is stored", async || {
        let page: v1::HistoryReply = other.ask(Kind::History, &history).await.unwrap();
        let of_anna = page.messages.iter().filter(|message| message.sender_id == anna.id.0);
        let bodies: Vec<_> = of_anna.map(|message| String::from_utf8_lossy(&message.body).into_owned()).collect();
        assert!(bodies.len() < 20, "{bodies:?}");
        (bodies.last()? == "patient").then_some(())
    })
    .await;
}

mod on_embedded {
    use super::{SETTINGS, embedded};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_floods_is_told_to_wait_and_nobody_else() {
        let world = embedded(&SETTINGS);
        super::who_floods_is_told_to_wait_and_nobody_else(&world).await;
        world.gateway.stop().await;
    }
}

mod on_services {
    use super::{Cluster, SETTINGS};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_floods_is_told_to_wait_and_nobody_else() {
        let Some(cluster) = Cluster::of_services() else { return };
        let world = cluster.gateway_with("gw-one", &SETTINGS).await;
        super::who_floods_is_told_to_wait_and_nobody_else(&world).await;
        world.gateway.stop().await;
    }
}

/// One message in ten minutes, so that every gateway agrees for as long as the test takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_gateway_does_not_help() {
    let Some(cluster) = Cluster::of_services() else { return };
    let (one, two) = (cluster.gateway_with("gw-1", &SETTINGS).await, cluster.gateway_with("gw-2", &SETTINGS).await);
    let (anna, ben) = (one.user("anna").await, one.user("ben").await);
    let room = format!("r_{}", one.room(&ben, &[&anna]).await.0);
    let slow_mode = 600;
    let archive = tidegate_core::ports::Archive::set_slow_mode;
    assert_eq!(
        archive(one.backend.archive(), tidegate_core::ids::RoomId(room[2..].parse().unwrap()), slow_mode).await,
        Ok(true)
    );

    let mut here = one.connect(&anna, "pc").await;
    try_send(&mut here, &room, "first").await.expect("the first one passes");
    let wait_ms = try_send(&mut here, &room, "second").await.expect_err("slow mode").retry_after_ms;
    assert!((570_000..=600_000).contains(&wait_ms), "{wait_ms}");
    drop(here);

    // It follows within about a second. Whoever is quicker is not refused at once, but does not get through twice.
    let mut there = two.connect(&anna, "pc").await;
    let mut passed = 0;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(4);
    while tokio::time::Instant::now() < deadline {
        match try_send(&mut there, &room, &format!("there {passed}")).await {
            Ok(()) => passed += 1,
            Err(error) => assert!(error.code() == Code::SlowDown && error.retry_after_ms > 500_000, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(passed <= 1, "{passed} passed elsewhere");

    // A gateway that Anna never was at asks before it decides; and one that ends tells first.
    let (passed, _) = flood(&mut there, "lobby_main", "lobby").await;
    assert!(passed >= BURST, "{passed}");
    two.gateway.stop().await;
    let mut here = one.connect(&anna, "phone").await;
    let (passed, _) = flood(&mut here, "lobby_main", "here").await;
    assert!(passed <= 3, "{passed} passed at the other gateway");
    one.gateway.stop().await;
}

/// Over HTTP, at one of two gateways.
async fn slow_mode_is_the_owners_to_set(at: &Process, other: &Process) {
    let (ben, anna) = (at.register("ben").await, at.register("anna").await);
    let body = serde_json::json!({ "name": "den", "capacity": 8 });
    let (status, text) = at.request_as(&ben.token, "POST", "/api/v1/rooms", Some(body)).await.unwrap();
    assert_eq!(status, 201, "{text}");
    let room: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(room["slow_mode_s"], 0);
    let (path, conversation) =
        (format!("/api/v1/rooms/{}", room["room_id"]), room["conversation_id"].as_str().unwrap().to_owned());
    let (status, text) = at.request_as(&anna.token, "POST", &format!("{path}/join"), None).await.unwrap();
    assert_eq!(status, 200, "{text}");
    let mut anna_pc = other.connect(&anna, "pc").await;
    let mut ben_pc = at.connect(&ben, "pc").await;
    for n in 0..30 {
        try_send(&mut anna_pc, &conversation, &format!("free {n}")).await.expect("no limit yet");
    }

    let set = async |token: &str, slow_mode_s: serde_json::Value| {
        let body = serde_json::json!({ "slow_mode_s": slow_mode_s });
        let (status, text) = at.request_as(token, "PATCH", &path, Some(body)).await.unwrap();
        (status, serde_json::from_str::<serde_json::Value>(&text).unwrap())
    };
    let (status, problem) = set(&anna.token, 600.into()).await;
    assert_eq!((status, &problem["code"]), (403, &"not_owner".into()));
    let (status, problem) = set(&ben.token, 21_601.into()).await;
    assert_eq!((status, &problem["code"]), (400, &"slow_mode_invalid".into()));
    let (status, changed) = set(&ben.token, 600.into()).await;
    assert_eq!((status, &changed["slow_mode_s"], &changed["name"]), (200, &600.into(), &"den".into()));

    // The other gateway hears of it, and then one message passes in ten minutes, on whichever connection.
    let mut sent = 0;
    let wait_ms = eventually("the room is slow", async || {
        sent += 1;
        try_send(&mut anna_pc, &conversation, &format!("slow {sent}")).await.err().map(|error| error.retry_after_ms)
    })
    .await;
    assert!((570_000..=600_000).contains(&wait_ms), "{wait_ms}");
    let mut again = other.connect(&anna, "phone").await;
    assert_eq!(try_send(&mut again, &conversation, "again").await.expect_err("slow mode").code(), Code::SlowDown);
    for n in 0..5 {
        try_send(&mut ben_pc, &conversation, &format!("owner {n}")).await.expect("the owner need not wait");
    }

    let (status, changed) = set(&ben.token, 0.into()).await;
    assert_eq!((status, &changed["slow_mode_s"]), (200, &0.into()));
    eventually("the room is free", async || try_send(&mut anna_pc, &conversation, "at last").await.ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_mode_by_http_on_one_gateway() {
    let one = Process::start("gw-1", &[], &[]);
    support::process::until_ready(&one, DEADLINE).await;
    slow_mode_is_the_owners_to_set(&one, &one).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_mode_by_http_reaches_the_other_gateway() {
    let Some(servers) = Servers::start("fairness", &ALL) else { return };
    let start = |name: &str| Process::start(name, &servers.settings(), &[]);
    let (one, two) = (start("gw-1"), start("gw-2"));
    support::process::until_ready(&one, DEADLINE).await;
    support::process::until_ready(&two, DEADLINE).await;
    slow_mode_is_the_owners_to_set(&one, &two).await;
}
