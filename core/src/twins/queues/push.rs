//! The in-process MQ2.
//!
//! In: batches for all gateways or for one. Out: each gateway's events, in order, to its consumer. What must hold: a
//! gateway's queue lives exactly as long as its consumer, so nobody ever waits for room in a queue that nobody empties.

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::{EMBEDDED_QUEUE_BYTES_MAX, lock, room_of};
use crate::event::PushEvent;
use crate::ids::GatewayId;
use crate::ports::{PortError, PortResult, PushConsumer, PushQueue, PushTarget};

const SERVICE: &str = "embedded queue";

/// What the gateways of one process (one in earnest, several in tests) push over. A cheap handle.
#[derive(Clone, Default)]
pub struct EmbeddedExchange {
    gateways: Arc<Mutex<HashMap<GatewayId, Arc<Lane>>>>,
}

impl EmbeddedExchange {
    /// An exchange without gateways; each appears with [`PushQueue::consume`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The port as `gateway` uses it.
    #[must_use]
    pub fn queue(&self, gateway: GatewayId) -> EmbeddedPushQueue {
        EmbeddedPushQueue { exchange: self.clone(), gateway }
    }

    fn lane(&self, gateway: &GatewayId) -> Option<Arc<Lane>> {
        lock(&self.gateways).get(gateway).cloned()
    }

    fn lanes(&self) -> Vec<Arc<Lane>> {
        lock(&self.gateways).values().cloned().collect()
    }
}

/// The embedded [`PushQueue`] of one gateway.
///
/// A gateway's queue exists from [`consume`](PushQueue::consume) until that consumer is dropped, and is unknown
/// otherwise. It holds at most [`EMBEDDED_QUEUE_BYTES_MAX`]; when that is used up,
/// [`publish`](PushQueue::publish) waits for its consumer to take something, or to go away.
#[derive(Clone)]
pub struct EmbeddedPushQueue {
    exchange: EmbeddedExchange,
    gateway: GatewayId,
}

impl EmbeddedPushQueue {
    /// The queue of a gateway that is alone on its exchange.
    #[must_use]
    pub fn new(gateway: GatewayId) -> Self {
        EmbeddedExchange::new().queue(gateway)
    }
}

impl PushQueue for EmbeddedPushQueue {
    type Consumer = EmbeddedPushConsumer;

    async fn publish(&self, batches: Vec<(PushTarget, Vec<PushEvent>)>) -> PortResult<Vec<GatewayId>> {
        let mut unknown = Vec::new();
        for (target, events) in batches {
            match target {
                PushTarget::All => {
                    let mut lanes = self.exchange.lanes();
                    let last = lanes.pop();
                    for lane in lanes {
                        lane.put(events.clone()).await;
                    }
                    if let Some(lane) = last {
                        lane.put(events).await;
                    }
                }
                PushTarget::Gateway(gateway) => {
                    let put = match self.exchange.lane(&gateway) {
                        Some(lane) => lane.put(events).await,
                        None => Put::NobodyThere,
                    };
                    if put == Put::NobodyThere && !unknown.contains(&gateway) {
                        unknown.push(gateway);
                    }
                }
            }
        }
        Ok(unknown)
    }

    async fn consume(&self) -> PortResult<EmbeddedPushConsumer> {
        let lane = Arc::new(Lane::new());
        let mut gateways = lock(&self.exchange.gateways);
        if gateways.contains_key(&self.gateway) {
            let detail = format!("gateway {} already has a consumer", self.gateway);
            return Err(PortError::Refused { service: SERVICE, detail });
        }
        gateways.insert(self.gateway.clone(), Arc::clone(&lane));
        drop(gateways);
        Ok(EmbeddedPushConsumer { exchange: self.exchange.clone(), gateway: self.gateway.clone(), lane })
    }
}

/// The consumer of one gateway's pushes. Cancelling [`next_batch`](PushConsumer::next_batch) loses nothing.
pub struct EmbeddedPushConsumer {
    exchange: EmbeddedExchange,
    gateway: GatewayId,
    lane: Arc<Lane>,
}

impl PushConsumer for EmbeddedPushConsumer {
    async fn next_batch(&mut self, events_max: usize) -> PortResult<Vec<PushEvent>> {
        loop {
            let mut arrived = pin!(self.lane.arrived.notified());
            // Registered before looking, so that what arrives after the look wakes us.
            arrived.as_mut().enable();
            let events = self.lane.take(events_max);
            if !events.is_empty() {
                return Ok(events);
            }
            arrived.await;
        }
    }
}

impl Drop for EmbeddedPushConsumer {
    fn drop(&mut self) {
        lock(&self.exchange.gateways).remove(&self.gateway);
        // Publishers that wait for room find that nobody is there.
        self.lane.room.close();
        lock(&self.lane.waiting).clear();
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Put {
    Done,
    NobodyThere,
}

struct Lane {
    waiting: Mutex<VecDeque<Entry>>,
    /// Permits are bytes; they lie in the entries.
    room: Arc<Semaphore>,
    arrived: Notify,
}

struct Entry {
    events: Vec<PushEvent>,
    /// Given back when the entry goes.
    _room: OwnedSemaphorePermit,
}

impl Lane {
    fn new() -> Self {
        Self {
            waiting: Mutex::default(),
            room: Arc::new(Semaphore::new(EMBEDDED_QUEUE_BYTES_MAX)),
            arrived: Notify::new(),
        }
    }

    async fn put(&self, events: Vec<PushEvent>) -> Put {
        let weight_bytes = events.iter().map(PushEvent::weight_bytes).sum();
        let Ok(room) = Arc::clone(&self.room).acquire_many_owned(room_of(weight_bytes)).await else {
            return Put::NobodyThere;
        };
        lock(&self.waiting).push_back(Entry { events, _room: room });
        self.arrived.notify_waiters();
        Put::Done
    }

    fn take(&self, events_max: usize) -> Vec<PushEvent> {
        let mut waiting = lock(&self.waiting);
        let mut events: Vec<PushEvent> = Vec::new();
        while waiting.front().is_some_and(|next| events.is_empty() || events.len() + next.events.len() <= events_max) {
            let Some(entry) = waiting.pop_front() else { break };
            if events.is_empty() {
                events = entry.events;
            } else {
                events.extend(entry.events);
            }
        }
        events
    }
}
