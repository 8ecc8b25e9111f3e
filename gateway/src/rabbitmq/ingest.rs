//! MQ1: [`IngestQueue`] over the direct exchange.
//!
//! In: a batch for a partition. Out: one AMQP message per kind of event in it (the routing key names the kind), and one
//! confirm for all. What must hold: within a kind, and so within a conversation's messages, order is kept; receipts may
//! overtake messages, which is harmless because they merge by maximum.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tidegate_core::event::{IngestEvent, encode_ingest};
use tidegate_core::ids::Partition;
use tidegate_core::limits::PUBLISH_WINDOW_MAX;
use tidegate_core::ports::{DeadLetter, IngestQueue, PortResult};

use super::connection::Link;
use super::consumer::RabbitIngestConsumer;
use super::intake::{DEAD_LETTERED, epitaph};
use super::publisher::{Declares, Delivery, Outcome, Outgoing, Pending, Publisher};
use super::topology::{Kind, Topology};
use super::{refused, unavailable};

/// MQ1 on RabbitMQ. A cheap handle.
///
/// [`publish`](IngestQueue::publish) returns when the batch is in line for its partition's channel. The line is bounded
/// in messages and a publisher waits for room at most the configured timeout; without a connection, or while the broker
/// blocks publishing, it fails at once.
#[derive(Clone)]
pub struct RabbitIngestQueue {
    shared: Arc<Shared>,
}

struct Shared {
    topology: Topology,
    /// One per partition, each with a channel of its own.
    publishers: Vec<Publisher>,
    consuming: Link,
}

impl RabbitIngestQueue {
    pub(super) fn start(topology: &Topology, publishing: &Link, consuming: &Link) -> Self {
        let publisher = |n| Publisher::start(publishing, topology, Declares::Ingest(Partition(n)));
        let publishers = (0..topology.partitions.max(1)).map(publisher).collect();
        Self { shared: Arc::new(Shared { topology: topology.clone(), publishers, consuming: consuming.clone() }) }
    }

    fn publisher(&self, partition: Partition) -> PortResult<&Publisher> {
        let publisher = usize::try_from(partition.0).ok().and_then(|index| self.shared.publishers.get(index));
        publisher.ok_or_else(|| refused(format!("there is no partition {}", partition.0)))
    }
}

impl IngestQueue for RabbitIngestQueue {
    type Confirm = RabbitConfirm;
    type Consumer = RabbitIngestConsumer;

    fn partitions(&self) -> u32 {
        self.shared.topology.partitions.max(1)
    }

    async fn publish(&self, partition: Partition, events: Vec<IngestEvent>) -> PortResult<RabbitConfirm> {
        let publisher = self.publisher(partition)?;
        let outgoing = |kind: Kind, events: &[IngestEvent]| Outgoing {
            exchange: self.shared.topology.ingest_exchange(),
            routing_key: self.shared.topology.ingest_key(kind, partition),
            payload: encode_ingest(events),
            delivery: Delivery::Durable,
            headers: None,
        };
        let messages = by_kind(events).iter().map(|(kind, events)| outgoing(*kind, events)).collect();
        let parts = publisher.publish(messages).await?;
        Ok(RabbitConfirm { parts })
    }

    async fn bury(&self, partition: Partition, letters: Vec<DeadLetter>) -> PortResult<()> {
        let topology = &self.shared.topology;
        let outgoing = |letter: &DeadLetter| {
            let key = topology.ingest_key(Kind::of(&letter.event), partition);
            Outgoing {
                exchange: topology.dead_exchange(),
                routing_key: key.clone(),
                payload: encode_ingest(std::slice::from_ref(&letter.event)),
                delivery: Delivery::Durable,
                headers: Some(epitaph(&letter.reason, &topology.ingest_exchange(), &key)),
            }
        };
        let publisher = self.publisher(partition)?;
        // No more at a time than the publisher takes.
        for letters in letters.chunks(PUBLISH_WINDOW_MAX) {
            for pending in publisher.publish(letters.iter().map(outgoing).collect()).await? {
                if pending.await? == Outcome::Returned {
                    return Err(unavailable("there is no queue for dead letters"));
                }
            }
            metrics::counter!(DEAD_LETTERED, "reason" => "unfit").increment(letters.len() as u64);
        }
        Ok(())
    }

    async fn consume(&self, partition: Partition) -> PortResult<RabbitIngestConsumer> {
        let dead_letters = self.publisher(partition)?.clone();
        RabbitIngestConsumer::open(&self.shared.consuming, &self.shared.topology, partition, dead_letters).await
    }
}

/// Usually a batch holds one kind, and goes through as it is.
fn by_kind(events: Vec<IngestEvent>) -> Vec<(Kind, Vec<IngestEvent>)> {
    let Some(kind) = events.first().map(Kind::of) else { return Vec::new() };
    if events.iter().all(|event| Kind::of(event) == kind) {
        return vec![(kind, events)];
    }
    let mut parts: Vec<(Kind, Vec<IngestEvent>)> = Vec::new();
    for event in events {
        let kind = Kind::of(&event);
        match parts.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, part)) => part.push(event),
            None => parts.push((kind, vec![event])),
        }
    }
    parts
}

/// Resolves when the broker has all parts of a batch on disk in a majority of its nodes, or with the first failure.
pub struct RabbitConfirm {
    parts: Vec<Pending>,
}

impl Future for RabbitConfirm {
    type Output = PortResult<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut failed = None;
        self.parts.retain_mut(|part| match Pin::new(part).poll(cx) {
            Poll::Pending => true,
            Poll::Ready(Ok(Outcome::Taken)) => false,
            Poll::Ready(Ok(Outcome::Returned)) => {
                failed = Some(unavailable("unroutable: no queue is bound"));
                false
            }
            Poll::Ready(Err(error)) => {
                failed = Some(error);
                false
            }
        });
        match failed {
            Some(error) => Poll::Ready(Err(error)),
            None if self.parts.is_empty() => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }
}
