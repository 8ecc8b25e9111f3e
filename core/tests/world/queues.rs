//! The fault layer's queues: what MQ1 and MQ2 do to batches on their way, and what their consumers are shown to the ledger.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures_util::FutureExt as _;
use tidegate_core::clock::Clock as _;
use tidegate_core::event::{IngestEvent, PushEvent};
use tidegate_core::ids::{GatewayId, Millis, Partition};
use tidegate_core::ports::{
    DeadLetter, DeliveryTag, IngestBatch, IngestConsumer, IngestQueue, PortResult, PushConsumer, PushQueue, PushTarget,
};
use tidegate_core::twins::queues::{EmbeddedIngestConsumer, EmbeddedPushConsumer};

use crate::broker::{BrokerConsumer, BrokerPushConsumer};
use crate::faults::Fate;
use crate::ports::{Ports, Queues, Shared, unavailable};

// ---------------------------------------------------------------------------------------------------------------------
// MQ1

impl IngestQueue for Ports {
    type Confirm = Pin<Box<dyn Future<Output = PortResult<()>> + Send>>;
    type Consumer = Consumer;

    fn partitions(&self) -> u32 {
        self.shared.faults.partitions
    }

    async fn publish(&self, partition: Partition, events: Vec<IngestEvent>) -> PortResult<Self::Confirm> {
        let shared = self.shared.clone();
        // An error means here that the batch was not handed over: nothing may fail after it was.
        match shared.fate() {
            Fate::FailsBefore | Fate::FailsAfter => return Err(unavailable("publish")),
            Fate::Hangs { until, .. } => {
                shared.sim.sleep(until).await;
                return Err(unavailable("publish"));
            }
            Fate::Slow(delay) => shared.sim.sleep(delay).await,
            Fate::Smooth => shared.sim.pause().await,
        }
        let is_lost = shared.happens(shared.faults.confirm_lost);
        if is_lost && shared.sim.chance(300) {
            shared.sim.trace(|| format!("the broker says no to {} events", events.len()));
            return Ok(Box::pin(async { Err(unavailable("confirm")) }));
        }
        let confirm = match &self.queues {
            Queues::Embedded(queue, _) => queue.publish(partition, events).await?.boxed(),
            Queues::Services(broker) if broker.publish(partition, events) => async { Ok(()) }.boxed(),
            Queues::Services(_) => async { Err(unavailable("a full queue")) }.boxed(),
        };
        let delay = shared.happens(shared.faults.slow).then(|| shared.sim.up_to_ms(1000));
        Ok(Box::pin(async move {
            if let Some(delay) = delay {
                shared.sim.sleep(delay).await;
            }
            shared.sim.stroll().await;
            if is_lost {
                shared.sim.trace(|| "a confirm is lost".into());
                shared.sim.count("confirm lost");
                return Err(unavailable("confirm"));
            }
            confirm.await
        }))
    }

    /// Nothing here is unfit to be stored.
    async fn bury(&self, _partition: Partition, letters: Vec<DeadLetter>) -> PortResult<()> {
        self.shared.sim.violation(format!("guarantee 1: a good event is buried: {letters:?}"));
        Ok(())
    }

    async fn consume(&self, partition: Partition) -> PortResult<Consumer> {
        let inner = self.shared.call("consume", async {
            Ok(match &self.queues {
                Queues::Embedded(queue, _) => ConsumerKind::Embedded(queue.consume(partition).await?),
                Queues::Services(broker) => ConsumerKind::Services(broker.consume(partition)),
            })
        });
        Ok(Consumer { shared: self.shared.clone(), inner: inner.await?, given: VecDeque::new() })
    }
}

enum ConsumerKind {
    Embedded(EmbeddedIngestConsumer),
    Services(BrokerConsumer),
}

/// A consumer of MQ1 that shows the ledger what its engine acknowledges.
pub struct Consumer {
    shared: Shared,
    inner: ConsumerKind,
    given: VecDeque<(DeliveryTag, Vec<IngestEvent>)>,
}

impl IngestConsumer for Consumer {
    async fn next_batch(&mut self, events_max: usize) -> PortResult<IngestBatch> {
        // Now and then one event at a time, so that batches are cut everywhere.
        let events_max = if self.shared.sim.chance(200) { 1 } else { events_max };
        let batch = self
            .shared
            .call("next_batch", async {
                match &mut self.inner {
                    ConsumerKind::Embedded(consumer) => consumer.next_batch(events_max).await,
                    ConsumerKind::Services(consumer) => consumer.next_batch(events_max).await,
                }
            })
            .await?;
        self.given.push_back((batch.up_to, batch.events.clone()));
        Ok(batch)
    }

    async fn ack(&mut self, up_to: DeliveryTag) -> PortResult<()> {
        while let Some((_, events)) = self.given.pop_front_if(|(tag, _)| *tag <= up_to) {
            self.shared.ledger.acking(&events);
        }
        let acknowledge = async {
            match &mut self.inner {
                ConsumerKind::Embedded(consumer) => consumer.ack(up_to).await,
                ConsumerKind::Services(consumer) => consumer.ack(up_to),
            }
        };
        self.shared.call("ack", acknowledge).await
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// MQ2

impl PushQueue for Ports {
    type Consumer = Pushes;

    async fn publish(&self, batches: Vec<(PushTarget, Vec<PushEvent>)>) -> PortResult<Vec<GatewayId>> {
        let events: Vec<PushEvent> = batches.iter().flat_map(|(_, events)| events.iter().cloned()).collect();
        self.shared.ledger.pushing(&events);
        let publish = async {
            match &self.queues {
                Queues::Embedded(_, queue) => queue.publish(batches).await,
                Queues::Services(broker) => Ok(broker.push(batches)),
            }
        };
        let gone = self.shared.call("push", publish).await?;
        self.shared.ledger.pushed(&events);
        Ok(gone)
    }

    async fn consume(&self) -> PortResult<Pushes> {
        let inner = self.shared.call("consume pushes", async {
            Ok(match &self.queues {
                Queues::Embedded(_, queue) => PushesKind::Embedded(queue.consume().await?),
                Queues::Services(broker) => PushesKind::Services(broker.consume_pushes(&self.gateway)),
            })
        });
        Ok(Pushes { shared: self.shared.clone(), inner: inner.await?, late: VecDeque::new() })
    }
}

enum PushesKind {
    Embedded(EmbeddedPushConsumer),
    Services(BrokerPushConsumer),
}

/// A consumer of MQ2 that loses, delays, doubles and reorders.
pub struct Pushes {
    shared: Shared,
    inner: PushesKind,
    late: VecDeque<(Millis, Vec<PushEvent>)>,
}

impl PushConsumer for Pushes {
    async fn next_batch(&mut self, events_max: usize) -> PortResult<Vec<PushEvent>> {
        if matches!(self.shared.fate(), Fate::FailsBefore | Fate::Hangs { .. }) {
            return Err(unavailable("pushes"));
        }
        let sim = self.shared.sim.clone();
        loop {
            let now = sim.now();
            let due = std::iter::from_fn(|| self.late.pop_front_if(|(at, _)| *at <= now));
            let due: Vec<PushEvent> = due.flat_map(|(_, batch)| batch).collect();
            if !due.is_empty() {
                return Ok(due);
            }
            let wait = self.late.front().map(|(at, _)| Duration::from_millis(at.0 - now.0));
            let late = async {
                match wait {
                    Some(wait) => sim.sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            let next = async {
                match &mut self.inner {
                    PushesKind::Embedded(consumer) => consumer.next_batch(events_max).await,
                    PushesKind::Services(consumer) => consumer.next_batch().await,
                }
            };
            let events = tokio::select! {
                biased;
                () = late => continue,
                events = next => events?,
            };
            sim.stroll().await;
            let events = self.mistreat(events);
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }
}

impl Pushes {
    /// What a broker loses it loses by whole messages: a batch behind its mark.
    fn mistreat(&mut self, events: Vec<PushEvent>) -> Vec<PushEvent> {
        let (shared, sim) = (&self.shared, &self.shared.sim);
        let faults = &shared.faults;
        let mut out = Vec::with_capacity(events.len());
        for batch in events.chunk_by(|_, next| !matches!(next, PushEvent::Marked(_))) {
            if shared.happens(faults.push_dropped) {
                sim.trace(|| format!("pushes are lost: {}", batch.iter().map(brief).collect::<Vec<_>>().join(", ")));
                sim.count("push lost");
                continue;
            }
            if shared.happens(faults.push_doubled) {
                sim.count("push doubled");
                out.push(batch.to_vec());
            }
            if shared.happens(faults.push_late) {
                sim.count("push late");
                let at = Millis(sim.now().0 + sim.below(3000));
                let place = self.late.partition_point(|(other, _)| *other <= at);
                self.late.insert(place, (at, batch.to_vec()));
            } else {
                out.push(batch.to_vec());
            }
        }
        if out.len() > 1 && shared.happens(faults.push_reordered) {
            sim.count("pushes reordered");
            let at = sim.below(out.len() as u64) as usize;
            out.rotate_left(at);
        }
        out.concat()
    }
}

fn brief(event: &PushEvent) -> String {
    match event {
        PushEvent::Sequenced { conversation, seq, .. } => format!("{conversation} {}", seq.0),
        PushEvent::Noticed { conversation, latest, .. } => format!("{conversation} notice of {}", latest.seq.0),
        PushEvent::GearChanged { conversation, gear, .. } => format!("{conversation} in {}", gear.as_str_name()),
        PushEvent::ReceiptMoved(receipt) => format!("receipt of {} in {}", receipt.user.0, receipt.conversation),
        PushEvent::Rejected { user, .. } => format!("rejection for {}", user.0),
        PushEvent::Replaced { user, attachment } => format!("replaced {:x} of {}", attachment.0, user.0),
        PushEvent::Marked(mark) => format!("batch {} of {:x}", mark.after, mark.stream.0),
        PushEvent::RoomChanged(room) => format!("room {} changed", room.0),
        PushEvent::MembershipChanged { conversation, user, .. } => format!("member {} of {conversation}", user.0),
    }
}
