//! The two consumers: a partition of MQ1, and a gateway's pushes of MQ2.
//!
//! In: deliveries. Out: batches. What must hold: MQ1 is acknowledged by the engine alone; a push is acknowledged when
//! the next batch is asked for, so that a gateway that does not keep up leaves its pushes with the broker.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::BasicConsumeOptions;
use tidegate_core::event::{IngestEvent, PushEvent, decode_ingest, decode_push};
use tidegate_core::ids::{GatewayId, Partition};
use tidegate_core::limits::{PUBLISH_BYTES_MAX, PUBLISH_WINDOW_MAX};
use tidegate_core::ports::{DeliveryTag, IngestBatch, IngestConsumer, PortError, PortResult, PushConsumer};
use tokio::time::{Instant, sleep};

use super::connection::{Link, Live};
use super::intake::{Consuming, Intake};
use super::publisher::Publisher;
use super::topology::Topology;

/// Messages of one partition that wait for the engine's acknowledgement. The broker counts messages, not events: four
/// publishers' windows, so that also producers of single events fill a turn; 12 MiB when all are as large as they may be.
const INGEST_PREFETCH: u16 = 128;

/// Messages on their way to one gateway's push engine.
const PUSH_PREFETCH: u16 = 32;

const _: () = assert!(INGEST_PREFETCH as usize >= PUBLISH_WINDOW_MAX, "one publisher's window is taken in one go");
const _: () = assert!(INGEST_PREFETCH <= 2000, "quorum queues take no greater prefetch");
const _: () = assert!(INGEST_PREFETCH as usize * PUBLISH_BYTES_MAX <= 16 << 20, "a partition's deliveries fit memory");

/// How long, and how often, to ask again for a queue that another consumer holds.
const EXCLUSIVE_WAIT_MAX: Duration = Duration::from_secs(1);
const EXCLUSIVE_RETRY_DELAY: Duration = Duration::from_millis(100);

/// A consumer of one partition; active or waiting in line, as the broker decides.
///
/// Cancelling [`next_batch`](IngestConsumer::next_batch) loses nothing. When it is dropped, what was not acknowledged
/// goes back to the front of the queue.
pub struct RabbitIngestConsumer {
    intake: Intake<IngestEvent>,
}

impl RabbitIngestConsumer {
    pub(super) async fn open(
        consuming: &Link,
        topology: &Topology,
        partition: Partition,
        dead_letters: Publisher,
    ) -> PortResult<Self> {
        let live = consuming.live_soon().await?;
        let channel = live.channel().await?;
        live.within("declaring", topology.declare_ingest(&channel, partition)).await?;
        let queue = topology.ingest_queue(partition);
        let how = Consuming { queue, prefetch: INGEST_PREFETCH, options: BasicConsumeOptions::default() };
        let intake = Intake::open(live, channel, how, decode_ingest, topology, dead_letters).await?;
        Ok(Self { intake })
    }
}

impl IngestConsumer for RabbitIngestConsumer {
    async fn next_batch(&mut self, events_max: usize) -> PortResult<IngestBatch> {
        let (events, tag) = self.intake.next(events_max).await?;
        Ok(IngestBatch { events, up_to: DeliveryTag(tag) })
    }

    async fn ack(&mut self, up_to: DeliveryTag) -> PortResult<()> {
        self.intake.ack(up_to.0).await
    }
}

/// The consumer of one gateway's queue, and the only one: a second gateway with the same id is refused.
///
/// Cancelling [`next_batch`](PushConsumer::next_batch) loses nothing.
pub struct RabbitPushConsumer {
    intake: Intake<PushEvent>,
    /// The tag of what was handed out last.
    handed_out: Option<u64>,
}

impl RabbitPushConsumer {
    pub(super) async fn open(
        consuming: &Link,
        topology: &Topology,
        gateway: &GatewayId,
        dead_letters: Publisher,
    ) -> PortResult<Self> {
        let live = consuming.live_soon().await?;
        let until = Instant::now() + EXCLUSIVE_WAIT_MAX;
        loop {
            match Self::attempt(&live, topology, gateway, dead_letters.clone()).await {
                // Our own previous consumer may not be gone yet.
                Err(PortError::Refused { .. }) if Instant::now() < until => sleep(EXCLUSIVE_RETRY_DELAY).await,
                done => return done,
            }
        }
    }

    async fn attempt(
        live: &Arc<Live>,
        topology: &Topology,
        gateway: &GatewayId,
        dead_letters: Publisher,
    ) -> PortResult<Self> {
        let channel = live.channel().await?;
        live.within("declaring", topology.declare_push_queue(&channel, gateway)).await?;
        let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
        let how = Consuming { queue: topology.push_queue(gateway), prefetch: PUSH_PREFETCH, options };
        let intake = Intake::open(Arc::clone(live), channel, how, decode_push, topology, dead_letters).await?;
        Ok(Self { intake, handed_out: None })
    }
}

impl PushConsumer for RabbitPushConsumer {
    async fn next_batch(&mut self, events_max: usize) -> PortResult<Vec<PushEvent>> {
        // Taken first: were this cancelled, the next acknowledgement covers it.
        if let Some(tag) = self.handed_out.take() {
            self.intake.ack(tag).await?;
        }
        let (events, tag) = self.intake.next(events_max).await?;
        self.handed_out = Some(tag);
        Ok(events)
    }
}
