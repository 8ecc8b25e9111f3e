//! The two legs of a message: MQ1 to the ingest engine, MQ2 to the gateways.

use std::future::Future;

use crate::event::{IngestEvent, PushEvent};
use crate::ids::{GatewayId, Partition};

#[cfg(doc)]
use super::PortError;
use super::PortResult;

/// The first leg: accepted events on their way to the ingest engine. Order holds within a partition.
pub trait IngestQueue: Send + Sync + 'static {
    /// Completes when the batch is durable: the broker's confirm, or in the embedded twin the consumer's acknowledgement
    /// (which follows the archive's commit). An error leaves it open whether the batch will be consumed.
    type Confirm: Future<Output = PortResult<()>> + Send + 'static;
    /// One partition's consumer.
    type Consumer: IngestConsumer;

    /// How many partitions there are; fixed for the life of the process.
    fn partitions(&self) -> u32;

    /// Hands one batch over, in call order, and returns its confirm. All events belong to `partition`; the caller keeps
    /// to [`crate::limits::PUBLISH_EVENTS_MAX`] and [`crate::limits::PUBLISH_BYTES_MAX`].
    ///
    /// # Errors
    /// [`PortError::Unavailable`] if the batch was not handed over; it will then not be consumed.
    fn publish(
        &self,
        partition: Partition,
        events: Vec<IngestEvent>,
    ) -> impl Future<Output = PortResult<Self::Confirm>> + Send;

    /// Puts events that can never be processed to the dead letters, where people find them with their reasons and can give
    /// them back to MQ1. Durable, as far as the queue is, when it returns.
    ///
    /// # Errors
    /// [`PortError::Unavailable`] if any of them is not known to be there; repeating may put some there twice.
    fn bury(&self, partition: Partition, letters: Vec<DeadLetter>) -> impl Future<Output = PortResult<()>> + Send;

    /// Becomes a consumer of `partition`. With several gateway instances one of them is active at a time, the others
    /// wait inside [`IngestConsumer::next_batch`].
    ///
    /// # Errors
    /// [`PortError::Unavailable`] if the broker cannot be reached.
    fn consume(&self, partition: Partition) -> impl Future<Output = PortResult<Self::Consumer>> + Send;
}

/// An event that can never be processed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// What was to be processed.
    pub event: IngestEvent,
    /// Why it cannot be, for the operator.
    pub reason: String,
}

impl DeadLetter {
    /// Bytes the letter holds on to, for bounds.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        self.event.weight_bytes() + self.reason.len()
    }
}

/// Events taken from MQ1 that wait for their acknowledgement.
#[derive(Debug)]
pub struct IngestBatch {
    /// In queue order.
    pub events: Vec<IngestEvent>,
    /// Acknowledges these events and all before them.
    pub up_to: DeliveryTag,
}

/// A consumer's name for a position in its stream of deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeliveryTag(pub u64);

/// Takes events from one partition of MQ1. What is not acknowledged when it is dropped, or its connection ends, is
/// delivered again, in order.
///
/// What cannot be decoded never comes out of here: the adapter moves it to the dead-letter queue with its reason.
pub trait IngestConsumer: Send + 'static {
    /// Waits until there is an event, then takes all that has piled up, up to `events_max` (a broker message is taken
    /// whole, so a batch may exceed it by one message).
    ///
    /// # Errors
    /// [`PortError::Unavailable`] if the connection ended; the consumer is then useless and another is made.
    /// [`PortError::Closed`] if there will never be another event.
    fn next_batch(&mut self, events_max: usize) -> impl Future<Output = PortResult<IngestBatch>> + Send;

    /// Acknowledges everything up to and including `up_to`.
    ///
    /// # Errors
    /// [`PortError::Unavailable`] if the connection ended; the events will come again.
    fn ack(&mut self, up_to: DeliveryTag) -> impl Future<Output = PortResult<()>> + Send;
}

/// Which gateways a push goes to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PushTarget {
    /// Every running instance: rooms and lobbies.
    All,
    /// The one that holds a recipient of a private message.
    Gateway(GatewayId),
}

/// The second leg: sequenced events on their way to gateways.
pub trait PushQueue: Send + Sync + 'static {
    /// This gateway's consumer.
    type Consumer: PushConsumer;

    /// Publishes and waits until the broker has confirmed everything. Returns the targets that do not exist (any more):
    /// a gateway that went away without taking its presence back.
    ///
    /// # Errors
    /// [`PortError::Unavailable`] if any part was not confirmed; the whole call is repeated then, receivers tolerate
    /// repetition by sequence.
    fn publish(
        &self,
        batches: Vec<(PushTarget, Vec<PushEvent>)>,
    ) -> impl Future<Output = PortResult<Vec<GatewayId>>> + Send;

    /// Becomes the consumer of this gateway's own queue.
    ///
    /// # Errors
    /// [`PortError::Unavailable`] if the broker cannot be reached.
    fn consume(&self) -> impl Future<Output = PortResult<Self::Consumer>> + Send;
}

/// Takes pushes for this gateway. What was taken counts as delivered: a client that misses something resyncs by sequence.
pub trait PushConsumer: Send + 'static {
    /// Waits until there is an event, then takes what has piled up, up to about `events_max`.
    ///
    /// # Errors
    /// As for [`IngestConsumer::next_batch`].
    fn next_batch(&mut self, events_max: usize) -> impl Future<Output = PortResult<Vec<PushEvent>>> + Send;
}
