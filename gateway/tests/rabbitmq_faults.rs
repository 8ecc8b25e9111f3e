//! What the queues do when their broker hangs, dies, comes back, or runs out of memory.
//!
//! Has a broker of its own and takes about half a minute. Runs if `TIDEGATE_TEST_SERVICES=1`.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use support::servers::Servers;
use tidegate::rabbitmq::{RabbitIngestQueue, RabbitMq, RabbitMqConfig};
use tidegate_core::contract::queues::{accepted, pushed};
use tidegate_core::event::IngestEvent;
use tidegate_core::ids::Partition;
use tidegate_core::ports::{
    IngestConsumer as _, IngestQueue as _, PortError, PortResult, PushConsumer as _, PushQueue as _, PushTarget,
};
use tokio::time::{sleep, timeout};

const FIRST: Partition = Partition(0);

/// How long the adapter waits for the broker here.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Waiting, and the time a busy machine takes to notice.
const BOUND: Duration = Duration::from_secs(4);

/// Publishes one event and waits for its confirm, at most for the bound.
async fn put(queue: &RabbitIngestQueue, event: IngestEvent) -> PortResult<()> {
    let attempt = async { queue.publish(FIRST, vec![event]).await?.await };
    timeout(BOUND, attempt).await.expect("an answer within the bound")
}

/// Tries until the queue works again; returns what was confirmed.
async fn put_when_back(queue: &RabbitIngestQueue, event: IngestEvent) {
    let since = Instant::now();
    while let Err(error) = put(queue, event.clone()).await {
        assert!(since.elapsed() < Duration::from_secs(20), "does not come back: {error}");
        sleep(Duration::from_millis(50)).await;
    }
    eprintln!("back after {:?}", since.elapsed());
}

fn lapin_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
    let names = tasks.flatten().map(|task| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default());
    names.filter(|name| name.starts_with("lapin")).count()
}

fn is_unavailable<T>(result: &PortResult<T>) -> bool {
    matches!(result, Err(PortError::Unavailable { .. }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outages_are_spoken_and_end_by_themselves() {
    let Some(broker) = Servers::start("rabbitmq-faults", &["rabbitmq"]) else { return };
    let mut config = RabbitMqConfig::new(broker.rabbitmq_url());
    config.timeout = TIMEOUT;
    config.heartbeat = Duration::from_secs(1);
    config.reconnect_delay_max = Duration::from_secs(1);
    let rabbit = RabbitMq::connect(config).await.expect("connected");
    let queue = rabbit.ingest();
    let push = rabbit.push("gw-faults".parse().expect("a legal id"));
    let mut confirmed = Vec::new();
    for n in 0..100 {
        put(&queue, accepted(n)).await.expect("confirmed");
        confirmed.push(accepted(n));
    }
    let mut consumer = queue.consume(FIRST).await.expect("a consumer");
    let mut pushes = push.consume().await.expect("a consumer");
    push.publish(vec![(PushTarget::All, vec![pushed(1)])]).await.expect("published");
    assert_eq!(pushes.next_batch(10).await.expect("a batch"), [pushed(1)]);
    consumer.next_batch(1).await.expect("a batch");

    // A broker that is stopped takes connections and answers nothing.
    broker.signal("rabbitmq", "-STOP");
    let since = Instant::now();
    let mut outstanding = Vec::new();
    for n in 200..220 {
        outstanding.push(queue.publish(FIRST, vec![accepted(n)]).await.expect("handed over"));
    }
    let all = timeout(BOUND, futures_util::future::join_all(outstanding)).await.expect("answers within the bound");
    assert!(all.iter().all(is_unavailable), "{all:?}");
    eprintln!("stopped broker: confirms failed after {:?}", since.elapsed());
    let pushed_meanwhile = timeout(BOUND, push.publish(vec![(PushTarget::All, vec![pushed(2)])])).await;
    assert!(is_unavailable(&pushed_meanwhile.expect("an answer within the bound")));
    // The confirms that did not come have cost the publishing connection.
    assert!(is_unavailable(&rabbit.ping().await));
    let ended = timeout(BOUND, async { while consumer.next_batch(512).await.is_ok() {} }).await;
    ended.expect("the heartbeat tells the consumer");
    sleep(Duration::from_secs(8)).await;
    assert!(is_unavailable(&put(&queue, accepted(1)).await));
    assert!(lapin_threads() <= 6, "attempts pile up: {} threads", lapin_threads());
    broker.signal("rabbitmq", "-CONT");
    put_when_back(&queue, accepted(300)).await;
    confirmed.push(accepted(300));

    // A broker that dies takes outstanding confirms with it, at once, and what it confirmed it still has.
    let mut outstanding = Vec::new();
    for n in 400..430 {
        outstanding.push((n, queue.publish(FIRST, vec![accepted(n)]).await.expect("handed over")));
    }
    broker.run("kill", &["rabbitmq"]);
    for (n, confirm) in outstanding {
        if timeout(BOUND, confirm).await.expect("an answer within the bound").is_ok() {
            confirmed.push(accepted(n));
        }
    }
    assert!(is_unavailable(&put(&queue, accepted(1)).await));
    assert!(is_unavailable(&timeout(BOUND, pushes.next_batch(10)).await.expect("an answer within the bound")));
    broker.run("start", &["rabbitmq"]);
    put_when_back(&queue, accepted(500)).await;
    confirmed.push(accepted(500));

    // A broker short of memory blocks whoever publishes.
    broker.broker_memory_limit("1MB");
    let since = Instant::now();
    while put(&queue, accepted(1)).await.is_ok() {
        assert!(since.elapsed() < Duration::from_secs(10), "the alarm is not raised");
    }
    for _ in 0..1000 {
        assert!(is_unavailable(&put(&queue, accepted(1)).await));
    }
    eprintln!("blocked: {:?}", rabbit.ping().await);
    assert!(is_unavailable(&rabbit.ping().await));
    broker.broker_memory_limit("1GB");
    put_when_back(&queue, accepted(600)).await;
    confirmed.push(accepted(600));
    rabbit.ping().await.expect("ready again");

    let mut consumer = queue.consume(FIRST).await.expect("a consumer");
    let mut seen: Vec<IngestEvent> = Vec::new();
    while seen.last() != Some(&accepted(600)) {
        let batch = timeout(BOUND, consumer.next_batch(512)).await.expect("more events").expect("a batch");
        consumer.ack(batch.up_to).await.expect("acknowledged");
        seen.extend(batch.events);
    }
    let mut rest = seen.iter();
    assert!(
        confirmed.iter().all(|event| rest.any(|seen| seen == event)),
        "a confirmed event is missing or out of order"
    );
    push.consume().await.expect("a consumer");
}
