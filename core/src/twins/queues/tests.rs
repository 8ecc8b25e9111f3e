use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::poll;
use tidegate_proto::v1::Gear;
use tokio::time::timeout;

use super::*;
use crate::contract::queues::{self as contract, accepted, pushed, take};
use crate::event::{IngestEvent, PushEvent};
use crate::ids::{ConversationId, Epoch, Partition, RoomId, Seq, UserId};
use crate::limits::BODY_BYTES_MAX;
use crate::ports::{DeliveryTag, IngestConsumer, IngestQueue, PortError, PushConsumer, PushQueue, PushTarget};

const FIRST: Partition = Partition(0);

async fn soon<F: Future>(case: F) -> F::Output {
    timeout(Duration::from_secs(5), case).await.expect("the case hangs")
}

fn heavy(n: u64) -> IngestEvent {
    match accepted(n) {
        IngestEvent::Accepted(mut event) => {
            event.body = Bytes::from(vec![0; BODY_BYTES_MAX]);
            IngestEvent::Accepted(event)
        }
        other => other,
    }
}

fn heavy_push() -> Vec<PushEvent> {
    let payload = Bytes::from(vec![0; EMBEDDED_QUEUE_BYTES_MAX]);
    vec![PushEvent::Sequenced {
        conversation: ConversationId::Room(RoomId(1)),
        epoch: Epoch(1),
        seq: Seq(1),
        sender: UserId(1),
        gear: Gear::Direct,
        payload,
    }]
}

#[tokio::test]
async fn ingest_keeps_the_contract() {
    soon(contract::ingest_keeps_order_and_content(&EmbeddedIngestQueue::new(1))).await;
    soon(contract::ingest_takes_mixed_kinds(&EmbeddedIngestQueue::new(1))).await;
    soon(contract::ingest_bounds_a_batch(&EmbeddedIngestQueue::new(1))).await;
    soon(contract::ingest_redelivers_in_order(&EmbeddedIngestQueue::new(1))).await;
    soon(contract::ingest_hands_over(&EmbeddedIngestQueue::new(1))).await;
    soon(contract::ingest_separates_partitions(&EmbeddedIngestQueue::new(2))).await;
}

#[tokio::test]
async fn push_keeps_the_contract() {
    let two = || {
        let exchange = EmbeddedExchange::new();
        let id = |text: &str| text.parse().expect("a legal id");
        (exchange.queue(id("one")), exchange.queue(id("other")))
    };
    let (one, other) = two();
    soon(contract::push_reaches_all(&one, &other)).await;
    let (one, other) = two();
    soon(contract::push_reaches_one(&one, &other, "other".parse().expect("a legal id"))).await;
}

#[tokio::test]
async fn a_batch_is_confirmed_by_its_acknowledgement_and_not_before() {
    let queue = EmbeddedIngestQueue::new(1);
    let mut consumer = queue.consume(FIRST).await.expect("a consumer");
    let mut confirm = queue.publish(FIRST, vec![accepted(1)]).await.expect("handed over");
    let taken = soon(take(&mut consumer, 1)).await;
    assert!(poll!(&mut confirm).is_pending(), "taken is not done");
    consumer.ack(taken[0].up_to).await.expect("acknowledged");
    assert_eq!(soon(confirm).await, Ok(()));
    assert!(consumer.ack(DeliveryTag(1)).await.is_err(), "nothing with this tag was given");
    assert_eq!(consumer.ack(taken[0].up_to).await, Ok(()), "repeating an acknowledgement is harmless");
}

#[tokio::test]
async fn a_full_queue_makes_publishers_wait_in_line() {
    let queue = EmbeddedIngestQueue::new(1);
    let mut consumer = queue.consume(FIRST).await.expect("a consumer");
    let fits = EMBEDDED_QUEUE_BYTES_MAX / heavy(0).weight_bytes();
    let mut confirms = Vec::new();
    for n in 0..fits as u64 {
        confirms.push(soon(queue.publish(FIRST, vec![heavy(n)])).await.expect("handed over"));
    }
    let mut waiting = pin!(queue.publish(FIRST, vec![heavy(1000)]));
    let mut behind = pin!(queue.publish(FIRST, vec![accepted(1001)]));
    assert!(poll!(&mut waiting).is_pending());
    assert!(poll!(&mut behind).is_pending(), "a light batch does not overtake");
    let batch = consumer.next_batch(1).await.expect("a batch");
    assert!(poll!(&mut waiting).is_pending(), "what was taken still counts");
    consumer.ack(batch.up_to).await.expect("acknowledged");
    soon(waiting).await.expect("handed over");
    let batch = consumer.next_batch(1).await.expect("a batch");
    consumer.ack(batch.up_to).await.expect("acknowledged");
    soon(behind).await.expect("handed over");
}

#[tokio::test]
async fn the_end_of_a_queue_fails_whoever_waits() {
    let queue = EmbeddedIngestQueue::new(1);
    let mut consumer = queue.consume(FIRST).await.expect("a consumer");
    let taken_confirm = queue.publish(FIRST, vec![accepted(1)]).await.expect("handed over");
    let taken = soon(take(&mut consumer, 1)).await;
    let confirm = queue.publish(FIRST, vec![accepted(2)]).await.expect("handed over");
    queue.close();
    assert_eq!(soon(taken_confirm).await, Err(PortError::Closed));
    assert_eq!(soon(confirm).await, Err(PortError::Closed));
    assert_eq!(consumer.ack(taken[0].up_to).await, Err(PortError::Closed));
    assert!(matches!(soon(consumer.next_batch(1)).await, Err(PortError::Closed)));
    assert!(matches!(queue.publish(FIRST, vec![accepted(3)]).await, Err(PortError::Closed)));
}

#[tokio::test]
async fn without_publishers_a_consumer_drains_and_then_ends() {
    let queue = EmbeddedIngestQueue::new(1);
    let mut consumer = queue.consume(FIRST).await.expect("a consumer");
    let confirm = queue.publish(FIRST, vec![accepted(1)]).await.expect("handed over");
    drop(queue);
    let batch = soon(consumer.next_batch(1)).await.expect("a batch");
    consumer.ack(batch.up_to).await.expect("acknowledged");
    assert_eq!(soon(confirm).await, Ok(()));
    assert!(matches!(soon(consumer.next_batch(1)).await, Err(PortError::Closed)));
}

#[tokio::test]
async fn confirms_fail_when_nobody_is_left_to_give_them() {
    let queue = EmbeddedIngestQueue::new(1);
    let consumer = queue.consume(FIRST).await.expect("a consumer");
    let confirm = queue.publish(FIRST, vec![accepted(1)]).await.expect("handed over");
    drop((queue, consumer));
    assert_eq!(soon(confirm).await, Err(PortError::Closed));
}

#[tokio::test]
async fn a_full_push_queue_waits_for_its_consumer_or_for_its_end() {
    let queue = EmbeddedPushQueue::new("gw".parse().expect("a legal id"));
    assert_eq!(queue.publish(vec![(PushTarget::All, heavy_push())]).await, Ok(vec![]), "nobody there, nobody waits");
    let mut consumer = queue.consume().await.expect("a consumer");
    assert!(queue.consume().await.is_err(), "a gateway has one consumer");
    soon(queue.publish(vec![(PushTarget::All, heavy_push())])).await.expect("published");
    let mut waiting = pin!(queue.publish(vec![(PushTarget::All, vec![pushed(1)])]));
    assert!(poll!(&mut waiting).is_pending());
    assert_eq!(soon(consumer.next_batch(64)).await.map(|events| events.len()), Ok(1));
    soon(waiting).await.expect("published");
    soon(queue.publish(vec![(PushTarget::All, vec![pushed(2)])])).await.expect("published");
    let mut waiting = pin!(queue.publish(vec![(PushTarget::All, heavy_push())]));
    assert!(poll!(&mut waiting).is_pending());
    drop(consumer);
    soon(waiting).await.expect("nobody is there any more");
}
