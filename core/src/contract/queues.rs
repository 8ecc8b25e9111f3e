//! What every MQ1 and MQ2 must do.
//!
//! Each case gets fresh, empty queues and panics where they break the contract. Cases wait for what must come and for
//! nothing else, so the caller puts a deadline around each: a case that hangs has failed.

use bytes::Bytes;
use futures_util::future::{join, join_all};
use tidegate_proto::v1::{ContentType, Gear};

use crate::event::{Accepted, IngestEvent, Membership, PushEvent, ReceiptMoved};
use crate::ids::{ConversationId, Epoch, GatewayId, MessageId, Millis, Partition, RoomId, Seq, SessionId, UserId};
use crate::limits::INGEST_BATCH_MAX;
use crate::ports::{IngestBatch, IngestConsumer, IngestQueue, PushConsumer, PushQueue, PushTarget};

const FIRST: Partition = Partition(0);

/// A message accepted in a room; `n` tells it from others.
#[must_use]
pub fn accepted(n: u64) -> IngestEvent {
    IngestEvent::Accepted(Accepted {
        message_id: MessageId(u128::from(n).to_be_bytes()),
        conversation: ConversationId::Room(RoomId(1)),
        sender: UserId(n + 1),
        session: SessionId(n),
        gateway: "gw-contract".parse().expect("a legal id"),
        accepted_at: Millis(1_700_000_000_000 + n),
        content_type: ContentType::Text,
        body: Bytes::from(format!("message {n}")),
    })
}

/// A private message.
#[must_use]
pub fn whispered(n: u64) -> IngestEvent {
    match accepted(n) {
        IngestEvent::Accepted(whisper) => IngestEvent::Accepted(Accepted {
            conversation: ConversationId::Private { low: UserId(1), high: UserId(2) },
            ..whisper
        }),
        receipt @ IngestEvent::ReceiptMoved(_) => receipt,
    }
}

/// A receipt in the same room.
#[must_use]
pub fn receipt(n: u64) -> IngestEvent {
    IngestEvent::ReceiptMoved(receipt_moved(n))
}

/// A push; `n` tells it from others.
#[must_use]
pub fn pushed(n: u64) -> PushEvent {
    PushEvent::Sequenced {
        conversation: ConversationId::Room(RoomId(1)),
        epoch: Epoch(1),
        seq: Seq(n),
        sender: UserId(1),
        gear: Gear::Merged,
        payload: Bytes::from(format!("push {n}")),
    }
}

fn receipt_moved(n: u64) -> ReceiptMoved {
    ReceiptMoved { conversation: ConversationId::Room(RoomId(1)), user: UserId(n + 1), delivered: Seq(n), read: Seq(n) }
}

/// Takes batches until there are `count` events. Does not acknowledge.
///
/// # Panics
/// If the consumer fails.
pub async fn take<C: IngestConsumer>(consumer: &mut C, count: usize) -> Vec<IngestBatch> {
    take_by(consumer, count, INGEST_BATCH_MAX).await
}

async fn take_by<C: IngestConsumer>(consumer: &mut C, count: usize, events_max: usize) -> Vec<IngestBatch> {
    let mut batches: Vec<IngestBatch> = Vec::new();
    while batches.iter().map(|batch| batch.events.len()).sum::<usize>() < count {
        batches.push(consumer.next_batch(events_max).await.expect("a batch"));
    }
    batches
}

fn flat(batches: &[IngestBatch]) -> Vec<IngestEvent> {
    batches.iter().flat_map(|batch| batch.events.iter().cloned()).collect()
}

/// Publishes without waiting for confirms, one batch per range.
async fn publish<Q: IngestQueue>(queue: &Q, batches: impl Iterator<Item = Vec<IngestEvent>>) -> Vec<Q::Confirm> {
    let mut confirms = Vec::new();
    for events in batches {
        confirms.push(queue.publish(FIRST, events).await.expect("handed over"));
    }
    confirms
}

/// Events come out as they went in, with every field, and every batch is confirmed.
///
/// # Panics
/// If the contract is broken.
pub async fn ingest_keeps_order_and_content<Q: IngestQueue>(queue: &Q) {
    let mut consumer = queue.consume(FIRST).await.expect("a consumer");
    let sent: Vec<IngestEvent> = (0..100).map(accepted).collect();
    let confirms = publish(queue, sent.chunks(7).map(<[_]>::to_vec)).await;
    let taken = take(&mut consumer, sent.len()).await;
    assert_eq!(flat(&taken), sent);
    assert!(taken.is_sorted_by_key(|batch| batch.up_to), "tags ascend");
    consumer.ack(taken[taken.len() - 1].up_to).await.expect("acknowledged");
    assert!(join_all(confirms).await.iter().all(Result::is_ok), "all are confirmed");
}

/// A batch may mix kinds; each kind keeps its order, and the confirm covers all of it.
///
/// # Panics
/// If the contract is broken.
pub async fn ingest_takes_mixed_kinds<Q: IngestQueue>(queue: &Q) {
    let mut consumer = queue.consume(FIRST).await.expect("a consumer");
    let sent: Vec<IngestEvent> = (0..30).flat_map(|n| [accepted(n), receipt(n), whispered(n)]).collect();
    let confirm = queue.publish(FIRST, sent.clone()).await.expect("handed over");
    let taken = take(&mut consumer, sent.len()).await;
    let events = flat(&taken);
    assert_eq!(events.len(), sent.len(), "nothing is doubled");
    let private = |event: &&IngestEvent| matches!(event.conversation(), ConversationId::Private { .. });
    let receipts = |event: &&IngestEvent| matches!(event, IngestEvent::ReceiptMoved(_));
    let rest = |event: &&IngestEvent| !private(event) && !receipts(event);
    assert!(events.iter().filter(private).eq(sent.iter().filter(private)));
    assert!(events.iter().filter(receipts).eq(sent.iter().filter(receipts)));
    assert!(events.iter().filter(rest).eq(sent.iter().filter(rest)));
    consumer.ack(taken[taken.len() - 1].up_to).await.expect("acknowledged");
    confirm.await.expect("confirmed");
}

/// One turn takes no more than it asked for, but for a published batch taken whole.
///
/// # Panics
/// If the contract is broken.
pub async fn ingest_bounds_a_batch<Q: IngestQueue>(queue: &Q) {
    let mut consumer = queue.consume(FIRST).await.expect("a consumer");
    let confirms = publish(queue, (0..20).map(|n| (n * 5..n * 5 + 5).map(accepted).collect())).await;
    let mut seen = 0;
    while seen < 100 {
        let batch = consumer.next_batch(12).await.expect("a batch");
        assert!((1..12 + 5).contains(&batch.events.len()), "{} events", batch.events.len());
        seen += batch.events.len();
        consumer.ack(batch.up_to).await.expect("acknowledged");
    }
    assert!(join_all(confirms).await.iter().all(Result::is_ok));
}

/// What a dropped consumer did not acknowledge comes again, first, in order; what it acknowledged does not.
///
/// # Panics
/// If the contract is broken.
pub async fn ingest_redelivers_in_order<Q: IngestQueue>(queue: &Q) {
    let mut consumer = queue.consume(FIRST).await.expect("a consumer");
    let mut confirms = publish(queue, (0..10).map(|n| vec![accepted(n)])).await;
    let mut acknowledged = 0;
    while acknowledged < 4 {
        let batch = consumer.next_batch(1).await.expect("a batch");
        acknowledged += batch.events.len();
        consumer.ack(batch.up_to).await.expect("acknowledged");
    }
    let taken = take(&mut consumer, 3).await;
    assert_eq!(taken[0].events[0], accepted(acknowledged as u64));
    confirms.extend(publish(queue, (10..20).map(|n| vec![accepted(n)])).await);
    drop(consumer);

    let mut next = queue.consume(FIRST).await.expect("a consumer");
    let taken = take(&mut next, 20 - acknowledged).await;
    assert_eq!(flat(&taken), (acknowledged as u64..20).map(accepted).collect::<Vec<_>>());
    next.ack(taken[taken.len() - 1].up_to).await.expect("acknowledged");
    assert!(join_all(confirms).await.iter().all(Result::is_ok));
}

/// Of two consumers one is active; the other takes over where the first stopped, though more is waiting than a broker
/// delivers ahead: what the first did not acknowledge comes before what it was never given.
///
/// # Panics
/// If the contract is broken.
pub async fn ingest_hands_over<Q: IngestQueue>(queue: &Q) {
    const SENT: u64 = 300;
    let mut active = queue.consume(FIRST).await.expect("a consumer");
    let mut waiting = queue.consume(FIRST).await.expect("another consumer");
    let confirms = publish(queue, (0..SENT).map(|n| vec![accepted(n)])).await;
    let (first, second) = join(
        async {
            let taken = take_by(&mut active, 6, 1).await;
            active.ack(taken[0].up_to).await.expect("acknowledged");
            drop(active);
            taken
        },
        async {
            let mut events = Vec::new();
            while events.last() != Some(&accepted(SENT - 1)) {
                let batch = waiting.next_batch(INGEST_BATCH_MAX).await.expect("a batch");
                waiting.ack(batch.up_to).await.expect("acknowledged");
                events.extend(batch.events);
            }
            events
        },
    )
    .await;
    let acknowledged = first[0].events.len() as u64;
    let (first, sent) = (flat(&first), |from| (from..SENT).map(accepted).collect::<Vec<_>>());
    assert_eq!(first, sent(0)[..first.len()], "the active one got the first");
    assert_eq!(second, sent(acknowledged), "the other what was left");
    assert!(join_all(confirms).await.iter().all(Result::is_ok));
}

/// Each partition has a queue of its own. Takes a queue of at least two partitions.
///
/// # Panics
/// If the contract is broken.
pub async fn ingest_separates_partitions<Q: IngestQueue>(queue: &Q) {
    assert!(queue.partitions() >= 2, "made with two partitions");
    for n in [1, 0] {
        let confirm = queue.publish(Partition(n), vec![accepted(u64::from(n)), receipt(9)]).await.expect("handed over");
        let mut consumer = queue.consume(Partition(n)).await.expect("a consumer");
        let taken = take(&mut consumer, 2).await;
        let events = flat(&taken);
        assert!(events.contains(&accepted(u64::from(n))) && events.contains(&receipt(9)) && events.len() == 2);
        consumer.ack(taken[taken.len() - 1].up_to).await.expect("acknowledged");
        confirm.await.expect("confirmed");
    }
    let beyond = Partition(queue.partitions());
    assert!(queue.publish(beyond, vec![accepted(1)]).await.is_err(), "there is no such partition");
}

async fn take_pushes<C: PushConsumer>(consumer: &mut C, count: usize) -> Vec<PushEvent> {
    let mut events = Vec::new();
    while events.len() < count {
        events.extend(consumer.next_batch(64).await.expect("a batch"));
    }
    events
}

/// Pushes to all reach every gateway, in order and whole.
///
/// # Panics
/// If the contract is broken.
pub async fn push_reaches_all<Q: PushQueue>(one: &Q, other: &Q) {
    let (mut at_one, mut at_other) =
        join(async { one.consume().await.expect("a consumer") }, async { other.consume().await.expect("a consumer") })
            .await;
    let room = ConversationId::Room(RoomId(1));
    let mut sent: Vec<PushEvent> = (0..300).map(pushed).collect();
    sent.push(PushEvent::Rejected { user: UserId(1), session: SessionId(2), payload: Bytes::from_static(b"no") });
    sent.push(PushEvent::ReceiptMoved(receipt_moved(3)));
    sent.push(PushEvent::MembershipChanged { conversation: room, user: UserId(4), change: Membership::Left });
    sent.push(PushEvent::RoomChanged(RoomId(9)));
    for batch in sent.chunks(50) {
        let unknown = one.publish(vec![(PushTarget::All, batch.to_vec())]).await.expect("published");
        assert!(unknown.is_empty());
    }
    assert_eq!(take_pushes(&mut at_one, sent.len()).await, sent);
    assert_eq!(take_pushes(&mut at_other, sent.len()).await, sent);
}

/// A push to one gateway reaches that one; a gateway that does not exist is named.
///
/// # Panics
/// If the contract is broken.
pub async fn push_reaches_one<Q: PushQueue>(one: &Q, other: &Q, other_id: GatewayId) {
    let (mut at_one, mut at_other) =
        join(async { one.consume().await.expect("a consumer") }, async { other.consume().await.expect("a consumer") })
            .await;
    let gone: GatewayId = "gw-gone".parse().expect("a legal id");
    let batches = vec![
        (PushTarget::Gateway(gone.clone()), vec![pushed(1)]),
        (PushTarget::Gateway(other_id), vec![pushed(2)]),
        (PushTarget::Gateway(gone.clone()), vec![pushed(3)]),
        (PushTarget::All, vec![pushed(4)]),
    ];
    assert_eq!(one.publish(batches).await.expect("published"), [gone], "named once");
    assert_eq!(take_pushes(&mut at_one, 1).await, [pushed(4)]);
    assert_eq!(take_pushes(&mut at_other, 2).await, [pushed(2), pushed(4)]);
}
