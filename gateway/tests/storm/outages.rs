//! A storm goes on while Redis does not answer: pulls are answered all the same, Redis is left alone, and nothing is lost.

use std::time::Duration;

use futures_util::future::join_all;
use tidegate_proto::Kind;
use tidegate_proto::v1;
use tokio::time::Instant;

use crate::support::process::{Process, until_ready};
use crate::support::servers::{ALL, Servers};
use crate::watcher::Watcher;
use crate::writer::Writer;

/// Notices are so rare that the gateway takes the storm to go on, and looks into the cache, all the time of the outage.
const RULE: &str = "storm.rules=lobby_main merged_per_s=10 signal_per_s=10 window_ms=1000 calm_ms=60000 notice_ms=2000 \
                    spread_ms=2000";
/// Two calls of two seconds, on a machine that does other things as well.
const ANSWER_MAX: Duration = Duration::from_secs(6);
/// A failed fetch is not repeated earlier.
const FAILED_PAUSE: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_pulls_leaves_a_redis_that_hangs_alone() {
    const AT_ONCE: usize = 100;
    let Some(servers) = Servers::start("storm-redis", &ALL) else { return };
    let gateway = Process::start("gw-storm", &servers.settings(), &[RULE]);
    until_ready(&gateway, Duration::from_secs(20)).await;
    let (anna, ben) = (gateway.register("anna").await, gateway.register("ben").await);
    let mut client = gateway.connect(&ben, "pc").await;
    let watch = v1::Watch { watch: vec!["lobby_main".into()], ..Default::default() };
    let _: v1::WatchReply = client.ask(Kind::Watch, &watch).await.unwrap();
    let watcher = Watcher::follow(client, "lobby_main", 30);
    let mut writer = Writer::by(gateway.connect(&anna, "pc").await, "lobby_main");
    writer.burst(200).await;
    let path = "/api/v1/chat/pull/lobby?lobby=lobby_main&after_seq=1";
    watcher.until("all is noticed", |seen| seen.knows_of(200)).await;
    assert_eq!(gateway.request_as(&ben.token, "GET", path, None).await.unwrap().0, 200);

    servers.signal("redis", "-STOP");
    // The broker keeps what is said meanwhile.
    writer.burst(50).await;
    let fetches = gateway.metric("tidegate_pull_fetches_total").await;
    let (begun, mut answered) = (Instant::now(), [0; 2]);
    while begun.elapsed() < Duration::from_secs(2) {
        let asked = Instant::now();
        let pulls = join_all((0..AT_ONCE).map(|_| gateway.request_as(&ben.token, "GET", path, None))).await;
        assert!(asked.elapsed() < ANSWER_MAX, "{:?}", asked.elapsed());
        for pull in pulls {
            let (status, body) = pull.unwrap();
            assert!(status == 200 || (status == 503 && body.contains("retry_after_ms")), "{status}: {body}");
            answered[usize::from(status != 200)] += 1;
        }
    }
    let fetched = gateway.metric("tidegate_pull_fetches_total").await - fetches;
    let pauses = begun.elapsed().as_secs_f64() / FAILED_PAUSE.as_secs_f64();
    assert!(
        fetched >= 1.0 && fetched <= pauses + 2.0,
        "{fetched} fetches for {answered:?} pulls in {:?}",
        begun.elapsed()
    );
    assert!(answered[0] >= AT_ONCE, "there is something in memory: {answered:?}");

    servers.signal("redis", "-CONT");
    until_ready(&gateway, Duration::from_secs(20)).await;
    writer.burst(10).await;
    let last = writer.said;
    watcher.until("what came since", |seen| seen.knows_of(last)).await;
    let (seen, _client) = watcher.finish(last).await;
    seen.has_all(last);
    seen.came_as_gears_say(last);
}
