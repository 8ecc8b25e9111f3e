//! The queues on a real RabbitMQ: the shared contract, and what only a broker has.
//!
//! Runs if `TIDEGATE_TEST_SERVICES=1`, against `TIDEGATE_RABBITMQ_URL`. Every case has exchanges and queues of its own
//! and removes them.

use std::time::Duration;

use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions, QueueDeleteOptions,
};
use lapin::types::AMQPValue;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use tidegate::rabbitmq::{RabbitIngestQueue, RabbitMq, RabbitMqConfig, RabbitPushQueue, Topology};
use tidegate_core::contract::queues::{self as contract, accepted, pushed, take, whispered};
use tidegate_core::event::{Accepted, IngestEvent, encode_ingest};
use tidegate_core::ids::{GatewayId, Millis, Partition, UserId};
use tidegate_core::limits::BODY_BYTES_MAX;
use tidegate_core::ports::{
    IngestConsumer as _, IngestQueue as _, PortError, PushConsumer as _, PushQueue, PushTarget,
};
use tokio::time::timeout;

const FIRST: Partition = Partition(0);

/// Far above what a case takes; a case that reaches it hangs.
const CASE_TIMEOUT: Duration = Duration::from_secs(20);

fn broker_url() -> Option<String> {
    if std::env::var("TIDEGATE_TEST_SERVICES").as_deref() != Ok("1") {
        eprintln!("skipped: TIDEGATE_TEST_SERVICES is not 1");
        return None;
    }
    Some(std::env::var("TIDEGATE_RABBITMQ_URL").expect("TIDEGATE_RABBITMQ_URL names the broker"))
}

fn id(text: &str) -> GatewayId {
    text.parse().expect("a legal id")
}

/// Names of one case, and a channel that is not ours: a foreign service's view of the broker.
struct World {
    config: RabbitMqConfig,
    foreign: Channel,
    _connection: Connection,
}

impl World {
    async fn new(url: &str, case: &str, partitions: u32) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("the broker is there");
        let foreign = connection.create_channel().await.expect("a channel");
        foreign.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        let mut config = RabbitMqConfig::new(url);
        config.topology = Topology { prefix: format!("test.{}.{case}.", std::process::id()), partitions };
        Self { config, foreign, _connection: connection }
    }

    async fn connect(&self) -> RabbitMq {
        RabbitMq::connect(self.config.clone()).await.expect("connected")
    }

    fn name(&self, rest: &str) -> String {
        format!("{}{rest}", self.config.topology.prefix)
    }

    async fn publish(&self, key: &str, body: &[u8]) {
        let exchange = self.name("ingest.exchange").into();
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirm = self.foreign.basic_publish(exchange, key.into(), options, body, BasicProperties::default()).await;
        let confirmed = confirm.expect("published").await.expect("confirmed");
        assert!(confirmed.is_ack() && confirmed.take_message().is_none(), "a queue is bound to {key}");
    }

    async fn count(&self, queue: &str) -> u32 {
        let passive = lapin::options::QueueDeclareOptions { passive: true, ..Default::default() };
        let queue = self.foreign.queue_declare(self.name(queue).into(), passive, Default::default()).await;
        queue.expect("the queue exists").message_count()
    }

    async fn clean_up(self) {
        let gateways = ["push.one", "push.other"].map(str::to_owned);
        let partitions = (0..self.config.topology.partitions).map(|n| format!("ingest.{n}"));
        for queue in partitions.chain(gateways).chain(["dead.queue".to_owned()]) {
            let deleted = self.foreign.queue_delete(self.name(&queue).into(), QueueDeleteOptions::default()).await;
            deleted.expect("deleting what is not there is no error");
        }
        for exchange in ["ingest.exchange", "push.exchange", "dead.exchange"] {
            let deleted = self.foreign.exchange_delete(self.name(exchange).into(), ExchangeDeleteOptions::default());
            deleted.await.expect("deleting what is not there is no error");
        }
    }
}

/// Runs a case with fresh queues and a deadline.
async fn ingest_case(case: &str, partitions: u32, run: impl AsyncFnOnce(&RabbitIngestQueue, &World)) {
    let Some(url) = broker_url() else { return };
    let world = World::new(&url, case, partitions).await;
    let queue = world.connect().await.ingest();
    timeout(CASE_TIMEOUT, run(&queue, &world)).await.expect("the case hangs");
    world.clean_up().await;
}

async fn push_case(case: &str, run: impl AsyncFnOnce(&RabbitPushQueue, &RabbitPushQueue, &World)) {
    let Some(url) = broker_url() else { return };
    let world = World::new(&url, case, 1).await;
    // Two processes, as it were.
    let (one, other) = (world.connect().await.push(id("one")), world.connect().await.push(id("other")));
    timeout(CASE_TIMEOUT, run(&one, &other, &world)).await.expect("the case hangs");
    world.clean_up().await;
}

#[tokio::test]
async fn ingest_keeps_order_and_content() {
    ingest_case("order", 1, async |queue, _| contract::ingest_keeps_order_and_content(queue).await).await;
}

#[tokio::test]
async fn ingest_takes_mixed_kinds() {
    ingest_case("mixed", 1, async |queue, _| contract::ingest_takes_mixed_kinds(queue).await).await;
}

#[tokio::test]
async fn ingest_bounds_a_batch() {
    ingest_case("bounds", 1, async |queue, _| contract::ingest_bounds_a_batch(queue).await).await;
}

#[tokio::test]
async fn ingest_redelivers_in_order() {
    ingest_case("redelivery", 1, async |queue, _| contract::ingest_redelivers_in_order(queue).await).await;
}

#[tokio::test]
async fn ingest_hands_over() {
    ingest_case("handover", 1, async |queue, _| contract::ingest_hands_over(queue).await).await;
}

#[tokio::test]
async fn ingest_separates_partitions() {
    ingest_case("partitions", 3, async |queue, _| contract::ingest_separates_partitions(queue).await).await;
}

#[tokio::test]
async fn push_reaches_all() {
    push_case("all", async |one, other, _| contract::push_reaches_all(one, other).await).await;
}

#[tokio::test]
async fn push_reaches_one() {
    push_case("one", async |one, other, _| contract::push_reaches_one(one, other, id("other")).await).await;
}

#[tokio::test]
async fn a_gateway_has_one_consumer_and_can_come_back() {
    push_case("comeback", async |one, _, _| {
        let first = one.consume().await.expect("a consumer");
        let second = one.consume().await.map(|_| ());
        assert!(matches!(second, Err(PortError::Refused { .. })), "{second:?}");
        drop(first);
        one.publish(vec![(PushTarget::Gateway(id("one")), vec![pushed(1)])]).await.expect("published");
        let mut again = one.consume().await.expect("a consumer");
        assert_eq!(again.next_batch(10).await.expect("a batch"), [pushed(1)], "the queue outlives its consumer");
    })
    .await;
}

#[tokio::test]
async fn a_returned_push_is_never_taken_for_another() {
    push_case("returns", async |one, _, _| {
        let mut consumer = one.consume().await.expect("a consumer");
        let gone = |n: u64| id(&format!("gone-{n}"));
        // Bursts, so that the broker confirms many at once.
        for _ in 0..20 {
            let calls = (0..60).map(|n| {
                let target = if n % 3 == 0 { id("one") } else { gone(n) };
                one.publish(vec![(PushTarget::Gateway(target), vec![pushed(n)])])
            });
            for (n, unknown) in (0..).zip(futures_util::future::join_all(calls).await) {
                let expected = if n % 3 == 0 { vec![] } else { vec![gone(n)] };
                assert_eq!(unknown.expect("published"), expected, "call {n}");
            }
            let mut arrived = Vec::new();
            while arrived.len() < 20 {
                arrived.extend(consumer.next_batch(64).await.expect("a batch"));
            }
            assert_eq!(arrived, (0..60).step_by(3).map(pushed).collect::<Vec<_>>());
        }
    })
    .await;
}

#[tokio::test]
async fn any_producer_can_feed_single_events() {
    ingest_case("foreign", 1, async |queue, world| {
        let mut consumer = queue.consume(FIRST).await.expect("a consumer");
        world.publish("chat.room", &encode_ingest(&[accepted(1)])).await;
        world.publish("chat.private", &encode_ingest(&[whispered(2)])).await;
        let taken = take(&mut consumer, 2).await;
        let events: Vec<_> = taken.iter().flat_map(|batch| batch.events.clone()).collect();
        assert_eq!(events, [accepted(1), whispered(2)]);
        consumer.ack(taken[taken.len() - 1].up_to).await.expect("acknowledged");
    })
    .await;
}

#[tokio::test]
async fn poison_goes_to_the_dead_letters_and_stops_nobody() {
    ingest_case("poison", 1, async |queue, world| {
        world.publish("chat.room", &encode_ingest(&[accepted(1)])).await;
        world.publish("chat.room", b"\xffnot protobuf").await;
        world.publish("chat.room", b"").await;
        world.publish("chat.room", &encode_ingest(&[spoilt(|event| event.sender = UserId(u64::MAX))])).await;
        let huge = bytes::Bytes::from(vec![b'x'; BODY_BYTES_MAX + 1]);
        world.publish("chat.room", &encode_ingest(&[spoilt(|event| event.body = huge)])).await;
        world.publish("chat.room", &encode_ingest(&[spoilt(|event| event.accepted_at = Millis(u64::MAX))])).await;
        world.publish("chat.room", &encode_ingest(&[accepted(2)])).await;
        world.publish("chat.room", b"\xff").await;

        let mut consumer = queue.consume(FIRST).await.expect("a consumer");
        let taken = take(&mut consumer, 2).await;
        let events: Vec<_> = taken.iter().flat_map(|batch| batch.events.clone()).collect();
        assert_eq!(events, [accepted(1), accepted(2)]);
        // The last one is met only when somebody asks on.
        let confirm = queue.publish(FIRST, vec![accepted(3)]).await.expect("handed over");
        let last = consumer.next_batch(10).await.expect("a batch");
        assert_eq!(last.events, [accepted(3)]);
        confirm.await.expect("confirmed");

        let mut reasons = Vec::new();
        while reasons.len() < 6 {
            let got = world.foreign.basic_get(world.name("dead.queue").into(), BasicGetOptions { no_ack: true }).await;
            let Some(letter) = got.expect("the dead letters can be read") else { continue };
            let headers = letter.properties.headers().clone().expect("headers");
            let Some(AMQPValue::LongString(reason)) = headers.inner().get("x-reason").cloned() else {
                panic!("no reason: {headers:?}")
            };
            reasons.push((reason.to_string(), letter.delivery.data));
        }
        assert!(reasons[0].0.contains("not a batch of events") && reasons[0].1 == b"\xffnot protobuf", "{reasons:?}");
        assert!(reasons[1].0.contains("unknown type") && reasons[1].1.is_empty(), "{reasons:?}");

        for (reason, field) in reasons[2..5].iter().zip(["user_id", "body", "accepted_at_ms"]) {
            assert_eq!(reason.0, format!("field {field} is out of range"));
        }

        // Burying did not acknowledge the good ones.
        drop(consumer);
        let mut consumer = queue.consume(FIRST).await.expect("a consumer");
        let taken = take(&mut consumer, 3).await;
        let events: Vec<_> = taken.iter().flat_map(|batch| batch.events.clone()).collect();
        assert_eq!(events, [accepted(1), accepted(2), accepted(3)]);
        consumer.ack(taken[taken.len() - 1].up_to).await.expect("the newest tag is still ours to acknowledge");
        assert_eq!(world.count("dead.queue").await, 0, "each was buried once");
    })
    .await;
}

/// A message with a field that is not as it must be.
fn spoilt(spoil: impl FnOnce(&mut Accepted)) -> IngestEvent {
    let IngestEvent::Accepted(mut event) = accepted(9) else { panic!("a message") };
    spoil(&mut event);
    IngestEvent::Accepted(event)
}

#[tokio::test]
async fn a_consumer_that_dies_again_and_again_costs_nothing() {
    const DEATHS: usize = 30;
    ingest_case("crash-loop", 1, async |queue, world| {
        let sent: Vec<_> = (0..50).map(accepted).collect();
        for event in &sent {
            queue.publish(FIRST, vec![event.clone()]).await.expect("handed over").await.expect("confirmed");
        }
        for _ in 0..DEATHS {
            // Its connection goes with it, as when a process is killed.
            let doomed = world.connect().await.ingest();
            let mut consumer = doomed.consume(FIRST).await.expect("a consumer");
            let batch = consumer.next_batch(10).await.expect("a batch");
            assert_eq!(batch.events[0], sent[0], "the first comes first");
        }
        let mut consumer = queue.consume(FIRST).await.expect("a consumer");
        let taken = take(&mut consumer, sent.len()).await;
        let events: Vec<_> = taken.iter().flat_map(|batch| batch.events.clone()).collect();
        assert_eq!(events, sent, "all of it, in order");
        consumer.ack(taken[taken.len() - 1].up_to).await.expect("acknowledged");
        assert_eq!(world.count("dead.queue").await, 0, "and nothing is among the dead letters");
    })
    .await;
}

#[tokio::test]
async fn an_unroutable_batch_is_not_confirmed_and_the_topology_heals() {
    ingest_case("unroutable", 1, async |queue, world| {
        queue.publish(FIRST, vec![accepted(1)]).await.expect("handed over").await.expect("confirmed");
        let deleted = world.foreign.queue_delete(world.name("ingest.0").into(), QueueDeleteOptions::default()).await;
        deleted.expect("deleted");
        let mut confirms = Vec::new();
        for n in 0..20 {
            confirms.push(queue.publish(FIRST, vec![accepted(n)]).await.expect("handed over"));
        }
        let outcomes = futures_util::future::join_all(confirms).await;
        let lost = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        assert!(lost > 0, "the first one at least had no queue");
        queue.publish(FIRST, vec![accepted(99)]).await.expect("handed over").await.expect("declared again");
        let kept = u32::try_from(outcomes.len() - lost + 1).expect("a few");
        let mut consumer = queue.consume(FIRST).await.expect("a consumer");
        let taken = take(&mut consumer, kept as usize).await;
        let events: usize = taken.iter().map(|batch| batch.events.len()).sum();
        assert_eq!(events, kept as usize, "what was confirmed is there, and nothing else");
    })
    .await;
}

#[tokio::test]
async fn without_a_broker_connecting_fails_soon_and_tells_no_secret() {
    // Port 9 (discard) has no broker; 192.0.2.0/24 is reserved for documents (RFC 5737) and nobody answers there.
    for url in ["amqp://user:hunter2@127.0.0.1:9/%2f", "amqp://user:hunter2@192.0.2.1:5672/%2f"] {
        let mut config = RabbitMqConfig::new(url);
        config.timeout = Duration::from_millis(300);
        let attempt = timeout(Duration::from_secs(5), RabbitMq::connect(config)).await.expect("within the bound");
        let Err(error) = attempt else { panic!("there is a broker at {url}") };
        let text = format!("{error} {error:?}");
        assert!(matches!(error, PortError::Unavailable { .. }), "{text}");
        assert!(
            text.contains("rabbitmq")
                && text.contains(if url.contains("127") { "127.0.0.1:9" } else { "192.0.2.1:5672" })
        );
        assert!(!text.contains("hunter2"), "{text}");
    }
}
