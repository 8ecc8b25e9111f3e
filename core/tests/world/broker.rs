//! MQ1 and MQ2 as a broker keeps them: they outlive gateways.
//!
//! Unlike core's embedded queues MQ1 confirms when it has taken a batch, and gives what a lost consumer did not acknowledge
//! to the next in line. A consumer can be cut off while its owner lives on and does not know it yet. A gateway's queue
//! of MQ2 stays for a time after its consumer is gone. Always: order within a partition, one active consumer.

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};

use tidegate_core::clock::Clock as _;
use tidegate_core::event::{IngestEvent, PushEvent};
use tidegate_core::ids::{GatewayId, MessageId, Partition};
use tidegate_core::ports::{DeliveryTag, IngestBatch, PortError, PortResult, PushTarget};
use tokio::sync::Notify;

use crate::sim::Sim;

/// Batches a partition takes before it refuses more.
const LANE_BATCHES_MAX: usize = 512;

/// How long MQ2 keeps the queue of a gateway that is gone.
const QUEUE_TTL_MS: u64 = 30_000;

/// See the module.
#[derive(Clone)]
pub struct Broker {
    sim: Sim,
    lanes: Arc<[Lane]>,
    gateways: Arc<Mutex<BTreeMap<GatewayId, Outlet>>>,
    arrived: Arc<Notify>,
}

#[derive(Default)]
struct Lane {
    state: Mutex<LaneState>,
    changed: Notify,
}

#[derive(Default)]
struct LaneState {
    batches: VecDeque<Vec<IngestEvent>>,
    /// How many of them the active consumer has.
    taken: usize,
    settled: u64,
    line: VecDeque<u64>,
    next_consumer: u64,
}

#[derive(Default)]
struct Outlet {
    waiting: VecDeque<Vec<PushEvent>>,
    consumer: Option<u64>,
    next_consumer: u64,
    orphaned_at_ms: u64,
}

impl Broker {
    pub fn new(sim: &Sim, partitions: u32) -> Self {
        let lanes = (0..partitions).map(|_| Lane::default()).collect();
        Self { sim: sim.clone(), lanes, gateways: Arc::default(), arrived: Arc::default() }
    }

    fn lane(&self, partition: Partition) -> &Lane {
        &self.lanes[partition.0 as usize]
    }

    pub fn partitions(&self) -> u32 {
        u32::try_from(self.lanes.len()).expect("made from a u32")
    }

    /// Takes a batch: from here on it is the broker's. `false` if the partition is full.
    pub fn publish(&self, partition: Partition, events: Vec<IngestEvent>) -> bool {
        let lane = self.lane(partition);
        let mut state = lock(&lane.state);
        if state.batches.len() >= LANE_BATCHES_MAX {
            return false;
        }
        state.batches.push_back(events);
        drop(state);
        lane.changed.notify_waiters();
        true
    }

    pub fn consume(&self, partition: Partition) -> BrokerConsumer {
        let mut state = lock(&self.lane(partition).state);
        let id = state.next_consumer;
        state.next_consumer += 1;
        state.line.push_back(id);
        drop(state);
        BrokerConsumer { broker: self.clone(), partition, id }
    }

    /// The active consumer's connection ends. It learns that with its next call; the next in line begins at once.
    pub fn cut_off(&self, partition: Partition) {
        let lane = self.lane(partition);
        let mut state = lock(&lane.state);
        state.line.pop_front();
        state.taken = 0;
        drop(state);
        lane.changed.notify_waiters();
    }

    /// Whether a message waits in MQ1 or is with a consumer.
    pub fn holds(&self, message: MessageId) -> bool {
        let is_it = |event: &IngestEvent| matches!(event, IngestEvent::Accepted(a) if a.message_id == message);
        self.lanes.iter().any(|lane| lock(&lane.state).batches.iter().flatten().any(is_it))
    }

    /// Whether everything was acknowledged.
    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lock(&lane.state).batches.is_empty())
    }

    /// MQ2. Returns the gateways that have no queue.
    pub fn push(&self, batches: Vec<(PushTarget, Vec<PushEvent>)>) -> Vec<GatewayId> {
        let now_ms = self.sim.now().0;
        let mut gateways = lock(&self.gateways);
        gateways.retain(|_, outlet| outlet.consumer.is_some() || outlet.orphaned_at_ms + QUEUE_TTL_MS > now_ms);
        let mut gone = Vec::new();
        for (target, events) in batches {
            match target {
                PushTarget::All => gateways.values_mut().for_each(|outlet| outlet.waiting.push_back(events.clone())),
                PushTarget::Gateway(gateway) => match gateways.get_mut(&gateway) {
                    Some(outlet) => outlet.waiting.push_back(events),
                    None => gone.push(gateway),
                },
            }
        }
        drop(gateways);
        self.arrived.notify_waiters();
        gone
    }

    pub fn consume_pushes(&self, gateway: &GatewayId) -> BrokerPushConsumer {
        let mut gateways = lock(&self.gateways);
        let outlet = gateways.entry(gateway.clone()).or_default();
        let id = outlet.next_consumer;
        outlet.next_consumer += 1;
        outlet.consumer = Some(id);
        BrokerPushConsumer { broker: self.clone(), gateway: gateway.clone(), id }
    }
}

/// One in a partition's line.
pub struct BrokerConsumer {
    broker: Broker,
    partition: Partition,
    id: u64,
}

impl BrokerConsumer {
    pub async fn next_batch(&mut self, events_max: usize) -> PortResult<IngestBatch> {
        let lane = self.broker.lane(self.partition);
        loop {
            let mut changed = pin!(lane.changed.notified());
            changed.as_mut().enable();
            if let Some(batch) = lock(&lane.state).take(self.id, events_max)? {
                return Ok(batch);
            }
            changed.await;
        }
    }

    pub fn ack(&mut self, up_to: DeliveryTag) -> PortResult<()> {
        let mut state = lock(&self.broker.lane(self.partition).state);
        if state.line.front() != Some(&self.id) {
            return Err(gone("mq1"));
        }
        let count = usize::try_from((up_to.0 + 1).saturating_sub(state.settled)).expect("small");
        assert!(count <= state.taken, "acknowledged what was not given");
        state.batches.drain(..count);
        state.taken -= count;
        state.settled += count as u64;
        Ok(())
    }
}

impl Drop for BrokerConsumer {
    fn drop(&mut self) {
        let lane = self.broker.lane(self.partition);
        let mut state = lock(&lane.state);
        if state.line.front() == Some(&self.id) {
            state.taken = 0;
        }
        state.line.retain(|id| *id != self.id);
        drop(state);
        lane.changed.notify_waiters();
    }
}

impl LaneState {
    fn take(&mut self, id: u64, events_max: usize) -> PortResult<Option<IngestBatch>> {
        if !self.line.contains(&id) {
            return Err(gone("mq1"));
        }
        if self.line.front() != Some(&id) {
            return Ok(None);
        }
        let mut events = Vec::new();
        while let Some(batch) = self.batches.get(self.taken) {
            if !events.is_empty() && events.len() + batch.len() > events_max {
                break;
            }
            events.extend_from_slice(batch);
            self.taken += 1;
        }
        let up_to = DeliveryTag((self.settled + self.taken as u64).saturating_sub(1));
        Ok((!events.is_empty()).then_some(IngestBatch { events, up_to }))
    }
}

/// A gateway's consumer of MQ2. What it took counts as delivered.
pub struct BrokerPushConsumer {
    broker: Broker,
    gateway: GatewayId,
    id: u64,
}

impl BrokerPushConsumer {
    pub async fn next_batch(&mut self) -> PortResult<Vec<PushEvent>> {
        loop {
            let mut arrived = pin!(self.broker.arrived.notified());
            arrived.as_mut().enable();
            {
                let mut gateways = lock(&self.broker.gateways);
                let outlet = gateways.get_mut(&self.gateway).filter(|outlet| outlet.consumer == Some(self.id));
                let outlet = outlet.ok_or_else(|| gone("mq2"))?;
                if let Some(events) = outlet.waiting.pop_front() {
                    return Ok(events);
                }
            }
            arrived.await;
        }
    }
}

impl Drop for BrokerPushConsumer {
    fn drop(&mut self) {
        let mut gateways = lock(&self.broker.gateways);
        if let Some(outlet) = gateways.get_mut(&self.gateway).filter(|outlet| outlet.consumer == Some(self.id)) {
            outlet.consumer = None;
            outlet.orphaned_at_ms = self.broker.sim.now().0;
        }
    }
}

fn gone(service: &'static str) -> PortError {
    PortError::Unavailable { service, detail: "the connection ended".into() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("one thread, and no panic while it is held")
}
